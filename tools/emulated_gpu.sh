#!/usr/bin/env bash
# Builds an emulated GPU in target/cuda/emulated/lib64: the parts of CUDA's driver, cuBLAS, cuBLASLt and cuRAND that cdl uses,
# with this repository's and candle's kernels compiled for the CPU. docs/dev/kernels.md describes its scope. Prints the
# folder target/cuda/emulated: set CUDA_HOME to it for linking, and add its lib64 to LD_LIBRARY_PATH.
#
# CXX  a C++20 compiler, g++ by default
set -euo pipefail
cd "$(dirname "$0")/.."
self=$PWD/tools/$(basename "$0")

CXX=${CXX:-g++}
root=$PWD/target/cuda/emulated
kernels=$PWD/core/kernels
sources=$kernels/emulation/card
registry() { cargo metadata --format-version 1 --locked --all-features | grep -oE "\"[^\"]*/$1-[0-9][^\"/]*/Cargo.toml\"" | head -1 | tr -d '"' | xargs dirname; }
candle=$(registry candle-kernels)/src
cudarc=$(registry cudarc)/src
bindings=("$cudarc"/{driver,cublas,cublaslt,curand,nvrtc}/sys/mod.rs)

state=$({ "$CXX" --version; cat "$self" "$kernels"/cuda/*.cu* "$kernels"/emulation/*.h "$sources"/* "$candle"/*.cu* "${bindings[@]}"; } | sha256sum)
if [ -e "$root/state" ] && [ "$state" = "$(cat "$root/state")" ]; then
    echo "$root"
    exit
fi
rm -rf "$root"
mkdir -p "$root/lib64" "$root/include/cuda/std" "$root/objects"
# Names of CUDA's headers that candle's kernels include.
for header in cuda_fp16.h cuda_bf16.h cuda_fp8.h cuda/std/limits; do
    echo '#include "candle_on_cpu.h"' > "$root/include/$header"
done

# As in check_kernels.sh, but optimised for whole runs.
flags=(-std=c++20 -O2 -fPIC -fvisibility=hidden -fno-strict-aliasing -w)

# kernel SOURCE BARRIERS SPACE FLAGS...: compiles SOURCE and registers its kernels by name. BARRIERS: whether the
# threads of these kernels wait for each other. SPACE: block around SOURCE; `namespace` keeps equal names apart.
kernel() {
    local source=$1 barriers=$2 space=$3 name out
    shift 3
    name=$(basename "$source" .cu)
    out=$root/objects/$name
    # Dynamic shared memory has no declaration in C++.
    {
        echo '#include "card.h"'
        echo "$space {"
        sed 's/extern __shared__ int \([a-z_]*\)\[\];/int* \1 = reinterpret_cast<int*>(dynamic_shared());/' "$source"
    } > "$out.cpp"
    "$CXX" "${flags[@]}" "$@" -E -P "$out.cpp" | tr '\n' ' ' | grep -oE 'extern "C" +void +[A-Za-z0-9_]+ *\(' |
        sed -E 's/.* ([A-Za-z0-9_]+) *\(/static card::Register entry_\1("\1", \1, '"$barriers"');/' > "$out.entries" || true
    [ -s "$out.entries" ] || { echo "$source: no kernels found" >&2; return 1; }
    { cat "$out.entries"; echo '}'; } >> "$out.cpp"
    "$CXX" "${flags[@]}" "$@" -c "$out.cpp" -o "$out.o"
}

all=()
for name in elementwise embedding injection rows flat layer_norm attention; do
    case $name in elementwise | embedding | injection | flat) barriers=false ;; *) barriers=true ;; esac
    kernel "$kernels/cuda/$name.cu" $barriers 'extern "C++"' -I"$kernels/cuda" -I"$sources" &
    all+=($!)
done
for name in affine binary cast fill indexing reduce sort ternary unary; do
    case $name in reduce | sort) barriers=true ;; *) barriers=false ;; esac
    kernel "$candle/$name.cu" $barriers namespace -I"$root/include" -I"$sources" -I"$candle" -include candle_on_cpu.h &
    all+=($!)
done
for name in driver blas; do
    "$CXX" "${flags[@]}" -c "$sources/$name.cpp" -o "$root/objects/$name.o" &
    all+=($!)
done
for one in "${all[@]}"; do wait "$one"; done

# Every other function of the bindings ends the program with a message when it is called.
{
    echo '#include <stdio.h>'
    echo '#include <stdlib.h>'
    grep -ohE '\bfn (cu|cublas|cublasLt|curand|nvrtc)[A-Z][A-Za-z0-9_]*\(' "${bindings[@]}" | sed 's/fn //; s/(//' | sort -u |
        sed 's/.*/__attribute__((weak)) void &(void) { fputs("emulated GPU: & is not emulated\\n", stderr); abort(); }/'
} > "$root/objects/missing.c"
"$CXX" -x c -fPIC -w -c "$root/objects/missing.c" -o "$root/objects/missing.o"

"$CXX" -shared -Wl,-soname,libcard.so "$root"/objects/*.o -o "$root/lib64/libcard.so"
for library in cuda.so cuda.so.1 cublas.so cublas.so.13 cublasLt.so cublasLt.so.13 curand.so curand.so.10 nvrtc.so cudart.so; do
    ln -s libcard.so "$root/lib64/lib$library"
done
echo "$state" > "$root/state"
echo "$root"
