#!/usr/bin/env bash
# Builds the shaders for an NVIDIA GPU: build.sh SHADERS_CPP LIBRARY, with nvcc on the path or in NVCC. SHADERS_CPP is what
# `cargo run -p hymba-metal-emulator --bin hymba-metal-cpp` prints. Then, for the comparisons of the tests:
#   HYMBA_METAL_CUDA=LIBRARY cargo test --release -p hymba-metal-emulator --test kernels
#   HYMBA_METAL_CUDA=LIBRARY cargo test --release --test golden emulated
# under `compute-sanitizer --tool memcheck` or `racecheck` for what these find; and for each kernel's share of the
# memory's bandwidth:
#   HYMBA_METAL_CUDA=LIBRARY cargo run --release -p hymba-metal-emulator --example bandwidth
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$1 library=$2
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
cp "$source" "$temp/shaders.cu"
"${NVCC:-nvcc}" -std=c++17 -O3 -lineinfo -arch="${ARCH:-sm_90}" -I "$here/../shim" --shared -Xcompiler -fPIC \
    ${NVCC_FLAGS:-} "$temp/shaders.cu" "$here/device.cu" -o "$library"
