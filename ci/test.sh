#!/usr/bin/env bash
# Runs all tests on this machine, and a few tokens under valgrind.
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

stage "Products of AVX-VNNI and AVX-512, emulated"
if [[ $(uname -m) != x86_64 ]] || ! grep -qw avx2 /proc/cpuinfo; then
    skip "this machine has no AVX2"
elif [[ -d /usr/include/simde ]] ||
    (cd "$temp" && quietly apt-get download libsimde-dev && quietly dpkg -x libsimde-dev_*.deb simde); then # without root
    CPATH=$temp/simde/usr/include timeout 300 scripts/check-emulated-kernels || {
        (($? == 124)) && skip "compiling and running the products took longer than five minutes"
    }
else
    skip "the distribution has no libsimde-dev"
fi

stage "Chat templates against transformers"
python3 -m venv "$temp/python" # since transformers pins many packages
if quietly "$temp/python/bin/pip" install 'transformers==5.24.*' 'jinja2==3.1.*'; then
    timeout 60 "$temp/python/bin/python" scripts/check-templates
else
    skip "transformers: PyPI has none for this machine"
fi

stage "Constrained texts against Python's jsonschema"
if quietly python3 -m pip install --target "$temp/schemas" 'jsonschema==4.*'; then
    PYTHONPATH=$temp/schemas timeout 600 scripts/check-schemas --hostile
else
    skip "PyPI has no jsonschema"
fi

stage "hymba pull against Python's huggingface_hub"
if quietly python3 -m pip install --target "$temp/hub" huggingface_hub; then
    PYTHONPATH=$temp/hub HYMBA_HF_PYTHON=python3 timeout 180 cargo test --quiet --release --test pull_python
else
    skip "PyPI has no huggingface_hub"
fi

stage "Clients of hymba serve, and a short soak test"
scripts/check-clients
timeout 300 scripts/soak-serve --seconds 30 --clients 8

stage "A few tokens under valgrind"
scripts/sanitize valgrind
