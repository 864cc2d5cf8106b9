#!/usr/bin/env bash
# Installs what the other scripts need on a bare Debian machine (root, Rust, Python 3 with pip).
source "$(dirname "$0")/common.sh"

stage "Install what the checks need"
quietly as_root apt-get update
quietly as_root apt-get install --yes --no-install-recommends ca-certificates gcc g++ libc6-dev clang libclang-dev \
    libsimde-dev qemu-user-static shellcheck strace valgrind
cargo fmt --version >/dev/null 2>&1 || quietly rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || quietly rustup component add clippy
quietly python3 -m pip install gguf numpy safetensors
cargo --version
