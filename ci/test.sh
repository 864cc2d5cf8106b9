#!/usr/bin/env bash
# All tests on this machine, and a few tokens under valgrind.
source "$(dirname "$0")/common.sh"

stage "Tests"
if [[ -d $fixtures/golden ]]; then
    export HYMBA_GOLDEN_EXTRA=$fixtures/golden
else
    skip "the large golden case: there is no $fixtures/golden"
fi
if [[ -d $fixtures/official ]]; then
    export HYMBA_OFFICIAL=$fixtures/official
else
    skip "the published tokenizer and chat template: there is no $fixtures/official"
fi
cargo test --release --workspace 2>&1 | tee -a "$CI_TESTS"
cargo build --quiet --release

stage "A few tokens under valgrind"
scripts/sanitize valgrind
