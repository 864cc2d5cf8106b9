#!/usr/bin/env bash
# Installs the dependencies of the other scripts on a Debian machine with root, Rust, and Python 3 with pip.
source "$(dirname "$0")/common.sh"

stage "Dependencies"
quietly as_root apt-get update
quietly as_root apt-get install --yes --no-install-recommends ca-certificates gcc g++ libc6-dev clang libclang-dev \
    libsimde-dev qemu-user-static shellcheck strace valgrind
cargo fmt --version >/dev/null 2>&1 || quietly rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || quietly rustup component add clippy
quietly python3 -m pip install gguf numpy safetensors
cargo --version
