#!/usr/bin/env bash
# Tests the CUDA kernels without a GPU: compares them on the CPU with double precision, with the address and
# undefined-behaviour sanitizers, and compiles them to PTX if nvcc is found.
#
#   tools/check_kernels.sh [emulation] [ptx]     both by default
#
#   CXX          a C++20 compiler, g++ by default
#   NVCC         nvcc; by default that of CUDA_HOME, or the one on PATH
#   KERNEL_ARCH  architecture whose registers and spills ptxas reports, sm_90 by default
set -euo pipefail
cd "$(dirname "$0")/../core/kernels"

CXX=${CXX:-g++}
KERNELS=(elementwise layer_norm embedding injection rows flat attention)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
steps=("$@")
((${#steps[@]})) || steps=(emulation ptx)

emulation() {
    local source one all=() sanitizers=(-fsanitize=address,undefined -fno-sanitize-recover=all)
    # As in CUDA, kernels may access memory as any type: no strict aliasing.
    local flags=(-std=c++20 -O1 -g1 -Wall -Wextra -Wno-unknown-pragmas -fno-strict-aliasing -Icuda "${sanitizers[@]}")
    for source in $(printf "cuda/%s.cu " "${KERNELS[@]}") emulation/*.cpp; do
        "$CXX" "${flags[@]}" -x c++ -c "$source" -o "$work/$(basename "$source").o" &
        all+=($!)
    done
    for one in "${all[@]}"; do wait "$one"; done
    "$CXX" "${sanitizers[@]}" "$work"/*.o -o "$work/check"
    "$work/check"
}

ptx() {
    local nvcc=${NVCC:-} kernel
    if [[ -z $nvcc && -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc; fi
    if [[ -z $nvcc ]]; then nvcc=$(command -v nvcc || true); fi
    if [[ -z $nvcc ]]; then
        echo "skipped: no nvcc in NVCC, CUDA_HOME or PATH"
        return
    fi
    for kernel in "${KERNELS[@]}"; do
        "$nvcc" -std=c++17 -O3 -arch=compute_80 -Werror all-warnings -Icuda --ptx "cuda/$kernel.cu" -o "$work/$kernel.ptx"
        "$(dirname "$nvcc")/ptxas" -v -arch="${KERNEL_ARCH:-sm_90}" "$work/$kernel.ptx" -o "$work/$kernel.cubin" 2>&1 |
            awk -v arch="${KERNEL_ARCH:-sm_90}" '
                /Compiling entry/ { gsub("\047", "", $7); name = $7 }
                /spill stores/    { spilled = $5 + $9 }
                /Used/            { printf "%-40s %s %4d registers %4d bytes spilled\n", name, arch, $5, spilled
                                    if (spilled) bad = 1 }
                END               { exit bad }' || { echo "$kernel.cu spills registers" >&2; return 1; }
    done
}

for step in "${steps[@]}"; do
    case $step in
    emulation | ptx) ;;
    *)
        echo "unknown step $step: expected emulation or ptx" >&2
        exit 2
        ;;
    esac
done
# Run the steps in parallel and print their output in order.
running=()
for step in "${steps[@]}"; do
    "$step" > "$work/$step.log" 2>&1 &
    running+=($!)
done
failed=0
for i in "${!steps[@]}"; do
    status=0
    wait "${running[i]}" || status=$?
    echo "== ${steps[i]}"
    cat "$work/${steps[i]}.log"
    if ((status)); then failed=$status; fi
done
exit "$failed"
