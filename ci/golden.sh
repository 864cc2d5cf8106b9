#!/usr/bin/env bash
# Compares converted files with ggml's Python package, and the demo's perplexity with its model card. Needs the binary that
# test.sh builds.
source "$(dirname "$0")/common.sh"

stage "docs/cli.md"
scripts/cli-docs --check --hymba "$hymba"

stage "Converted files against ggml's Python package"
scripts/make-random-model --shape tiny --shards 3 "$temp/tiny"
scripts/check-gguf --hymba "$hymba" tests/golden/tiny-* "$temp/tiny"

stage "Perplexity of the demo in F32 against its model card"
if [[ -d $fixtures/models/hymba-demo2 ]]; then
    "$hymba" quantize "$fixtures/models/hymba-demo2" "$temp/demo-f32.gguf" --type f32
    "$hymba" eval perplexity -m "$temp/demo-f32.gguf" tests/data/heldout.txt --json >"$temp/perplexity.json"
    python3 - "$temp/perplexity.json" <<'EOF'
import json, sys
got, want = json.load(open(sys.argv[1])), 5.0698
print(f"perplexity {got['perplexity']:.4f}, nll {got['nll']:.6f}; expected {want:.4f}")
sys.exit(abs(got["perplexity"] / want - 1) > 0.001)
EOF
else
    skip "there is no $fixtures/models/hymba-demo2"
fi
