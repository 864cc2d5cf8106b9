# shellcheck shell=bash disable=SC2034
# Sourced by every script in this folder: paths, environment and output functions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null # piped input is appended to prompts: provide none

# Larger fixtures (golden/, official/, models/); stages that need missing ones are skipped.
fixtures=$(realpath -m "${HYMBA_FIXTURES:-../shared}")
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
export CARGO_TERM_COLOR=never CARGO_TERM_PROGRESS_WHEN=never DEBIAN_FRONTEND=noninteractive
export CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_LTO=off # for faster builds
export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
export CI_START=${CI_START:-$(date +%s)}
export CI_TESTS=${CI_TESTS:-$temp/tests} # the output of cargo test
command -v cargo >/dev/null || export PATH="$HOME/.cargo/bin:$PATH"
hymba=${CARGO_TARGET_DIR:-target}/release/hymba

stage() { printf '\n== %s (%d s so far)\n' "$1" "$(($(date +%s) - CI_START))"; }
skip() { printf '!! SKIPPED: %s\n' "$1"; }
# Runs a command as root.
as_root() { if ((EUID)); then sudo "$@"; else "$@"; fi; }
# Runs a command silently; its output is shown if it fails.
quietly() { "$@" >"$temp/log" 2>&1 || { cat "$temp/log"; return 1; }; }
