#!/usr/bin/env bash
# Builds and tests the `cuda` feature without a GPU, a driver or a CUDA toolkit.
#
#   tools/cuda.sh check     clippy on all code of the feature; downloads nothing
#   tools/cuda.sh emulated  tests of GPU code on a GPU emulated on the CPU; downloads nothing
#   tools/cuda.sh requests  kernels, copies and products of a teacher step and a student step, on the emulated GPU
#   tools/cuda.sh toolkit   CUDA's compiler from PyPI (105 MB, 271 MB unpacked) into target/cuda; prints CUDA_HOME
#   tools/cuda.sh build     toolkit, and a release binary that starts with and without a driver: target/cuda/cdl
#   tools/cuda.sh package   build, and target/cuda/package: files for tools/gpu_check.sh on a machine with a GPU and no Rust
#
# With CUDA installed, cargo suffices: cargo build --release -p cdl-cli --features cuda
# CUDA_COMPUTE_CAP (default 80, for 8.0) is the oldest compute capability on which the kernels run.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD/target/cuda
toolkit=$root/toolkit-13.0
triple=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$root"
# Select the bindings of CUDA 13.0 without calling nvcc. Drivers of CUDA 13.0 or later accept the PTX.
export CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}

# Writes a wrapper of nvcc, the script $1. It replaces candle's kernels for quantised networks, which are not used and
# take most of the build time, by functions that abort. The script on standard input compiles all other files.
without_quantised() {
  cat > "$root/$1" <<'SCRIPT'
#!/usr/bin/env bash
output='' object='' folder=. library='' source='' version='' objects=()
all=("$@")
while [ $# -gt 0 ]; do
  case $1 in
    --version) version=yes ;;
    -c) object=yes ;;
    -o) output=$2; shift ;;
    --output-directory) folder=$2; shift ;;
    --lib) library=yes ;;
    *.cu) source=$1 ;;
    *.o) objects+=("$1") ;;
  esac
  shift
done
if [ "$object" ] && [[ $(basename "$source") =~ ^(moe_|mmvq_gguf|mmq_) ]]; then
  {
    echo '#include <stdio.h>'
    echo '#include <stdlib.h>'
    # One object defines the functions of all these files.
    if [ "$(basename "$source")" = moe_gguf.cu ]; then
      grep -oE '\bfn +[a-z0-9_]+ *\(' src/ffi.rs | grep -oE '[a-z0-9_]+ *\(' | tr -d ' (' | sort -u |
        sed 's/.*/void &(void) { fputs("&: not in this build\\n", stderr); abort(); }/'
    fi
  } | cc -x c -O1 -fPIC -c -o "$output" -
  exit
fi
SCRIPT
  cat >> "$root/$1"
  chmod +x "$root/$1"
}

# Writes a stand-in for nvcc that prints a version and writes empty files. That suffices to check Rust code, and to run
# it on the emulated GPU, which finds kernels by name.
stand_in() {
  without_quantised stand-in-nvcc <<'SCRIPT'
if [ "$version" ]; then echo 'Cuda compilation tools, release 13.0, V13.0.88'; exit; fi
if [ "$library" ]; then rm -f "$output"; exec ar cr "$output" "${objects[@]}"; fi
: > "${output:-$folder/$(basename "$source" .cu).ptx}"
SCRIPT
  export NVCC=$root/stand-in-nvcc CUDA_HOME=$root/emulated
  mkdir -p "$CUDA_HOME/lib64"
  # Another profile for candle-kernels, so that cargo never takes these empty files for compiled ones.
  apart=(--config 'profile.release.package.candle-kernels.opt-level=1')
}

fetch_toolkit() {
  local home=$toolkit/nvidia/cu13
  if [ ! -e "$toolkit/complete" ]; then
    rm -rf "$toolkit"
    # All packages are pinned, without dependencies: pip would choose the newest version of each, which does not fit.
    python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
      --target "$toolkit" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
      nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
    ln -sfn lib "$home/lib64"
    # Empty archives for the linker: the program opens the libraries at run time.
    for library in cuda nvrtc curand cublas cublasLt; do ar cr "$home/lib/lib$library.a"; done
    printf 'INPUT(libcudart_static.a)\n' > "$home/lib/libcudart.so"
    touch "$toolkit/complete"
  fi
  export CUDA_HOME=$home
}

# Runs cargo with nvcc. candle enables bindings that link to CUDA's libraries; with this flag the same sources open them
# at run time. --target keeps the flag from build scripts, which refuse both features together.
build() {
  local command=$1
  shift
  fetch_toolkit
  without_quantised nvcc <<< 'exec "$CUDA_HOME/bin/nvcc" "${all[@]}"'
  RUSTFLAGS='--cfg feature="dynamic-loading"' NVCC=$root/nvcc CARGO_TARGET_DIR=$root/build \
    cargo "$command" --release --target "$triple" "$@"
}

case ${1:-} in
  check)
    stand_in
    # Only tests whose code depends on the feature.
    cargo clippy --release --workspace --exclude cdl-fuzz --features cdl-core/cuda,cdl-plugins/cuda,cdl-cli/cuda \
      "${apart[@]}" --lib --bins --test cuda --test cli -- -D warnings
    ;;
  emulated)
    tools/emulated_gpu.sh > /dev/null
    stand_in
    export LD_LIBRARY_PATH=$CUDA_HOME/lib64 CDL_REQUIRE_GPU=1 CDL_TEST_DEVICE=cuda
    cargo test --release --workspace --features cdl-core/cuda,cdl-plugins/cuda,cdl-cli/cuda "${apart[@]}" \
      --test cuda --test golden
    ;;
  requests)
    tools/emulated_gpu.sh > /dev/null
    stand_in
    # A folder of its own, because this program runs on the emulated GPU only.
    export LD_LIBRARY_PATH=$CUDA_HOME/lib64 CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/emulated-build}
    cargo build --release --workspace --bin cdl --features cdl-core/cuda,cdl-plugins/cuda,cdl-cli/cuda "${apart[@]}"
    rm -f "$root"/requests.*
    # Two steps of each network, then three: the difference is one step of each.
    for steps in 1 2; do
      CARD_LAUNCHES=$root/requests.$steps "$CARGO_TARGET_DIR/release/cdl" -q bench --teacher tiny --student tiny --batch 1 \
        --device cuda --set precision=bf16 --warmup 1 --steps $steps --json > /dev/null
    done
    awk '{ count = $NF; sub(/ [0-9]+$/, ""); if (NR == FNR) before[$0] = count; else if (count > before[$0]) {
             print count - before[$0], $0; all += count - before[$0] } }
         END { print all, "in total" }' "$root"/requests.1 "$root"/requests.2 | sort -rn
    ;;
  toolkit)
    fetch_toolkit
    echo "$CUDA_HOME"
    ;;
  build)
    build build -p cdl-cli --features cuda
    strip -o "$root/cdl" "$root/build/$triple/release/cdl"
    ls -l "$root/cdl"
    ;;
  package)
    package=$root/package
    rm -rf "$package"
    mkdir -p "$package"
    # One build for all: alone, each would rebuild its dependencies with a different set of features.
    build build --workspace --features cdl-core/cuda,cdl-plugins/cuda,cdl-cli/cuda --bin cdl --test cuda --test golden \
      --message-format=json-render-diagnostics > "$root/package.json"
    for binary in cdl test-cuda test-golden; do
      strip -o "$package/$binary" "$(grep -F "\"name\":\"${binary#test-}\"" "$root/package.json" |
        grep -o '"executable":"[^"]*"' | tail -1 | cut -d'"' -f4)"
    done
    gzip -9 "$package"/cdl "$package"/test-*
    cp tools/gpu_check.sh "$package"
    mkdir -p "$package/plugins/tests/fixtures"
    cp -R configs "$package"
    cp -R plugins/tests/fixtures/golden "$package/plugins/tests/fixtures"
    du -sh "$package"
    ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
