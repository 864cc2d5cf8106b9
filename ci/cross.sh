#!/usr/bin/env bash
# Checks other platforms: lints for macOS and Windows, and the same text on an emulated CPU without AVX2. Needs the binary that
# test.sh builds.
source "$(dirname "$0")/common.sh"

stage "Lints for other systems"
# The Rust code is checked, not linked, so that empty objects replace the C kernels. For macOS on Apple silicon they are
# compiled, with Clang and the macOS headers of zig.
cat >"$temp/cc" <<'EOF'
#!/bin/sh
case $1 in
-E) exec cc "$@" ;;
-\?) exit 1 ;;
esac
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && : >"$2"
    shift
done
EOF
# Replaces Xcode's Metal compiler, so that the code for precompiled shaders is checked too.
mkdir "$temp/xcode"
cat >"$temp/xcode/xcrun" <<'EOF'
#!/bin/sh
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && : >"$2"
    shift
done
EOF
chmod +x "$temp/cc" "$temp/xcode/xcrun"
if quietly python3 -m pip install ziglang==0.15.1; then
    headers=$(python3 -c 'import os, ziglang; print(os.path.dirname(ziglang.__file__))')/lib/libc/include/any-macos-any
    printf '#!/bin/sh\nexec clang "$@" -isystem %s\n' "$headers" >"$temp/cc-macos"
    chmod +x "$temp/cc-macos"
else
    skip "the C kernels for macOS: PyPI has no ziglang==0.15.1"
fi
for target in aarch64-apple-darwin x86_64-pc-windows-gnu; do
    quietly rustup target add "$target"
    cc=$temp/cc
    [[ $target == *-darwin && -x $temp/cc-macos ]] && cc=$temp/cc-macos
    env "CC_${target//-/_}=$cc" cargo clippy --quiet --release --target "$target" --workspace --exclude hymba-bindings \
        --exclude hymba-metal-emulator -- -D warnings
    printf '%s: no warnings\n' "$target"
done
if [[ -x $temp/cc-macos ]]; then
    # shellcheck disable=SC2012 # cargo's names are plain
    object=$(ls -t "${CARGO_TARGET_DIR:-target}"/aarch64-apple-darwin/release/build/hymba-kernels-cpu-*/out/*-neon_i8mm.o | head -n 1)
    [[ $(od -An -tx4 -N4 "$object") == " feedfacf" ]] # Mach-O
    strings "$object" | grep -x neon_i8mm >/dev/null  # not an empty table
    printf 'C kernels for aarch64-apple-darwin: Mach-O objects\n'
fi
touch kernels-metal/build.rs
PATH=$temp/xcode:$PATH cargo clippy --quiet --release --target aarch64-apple-darwin -p hymba-kernels-metal -- -D warnings

stage "The same text on a CPU without AVX2"
if [[ $(uname -m) == x86_64 ]]; then
    generate=("$hymba" run --temp 0 -n 8 --no-display-prompt --quiet "Once upon a time")
    qemu=$(command -v qemu-x86_64-static || command -v qemu-x86_64)
    native=$("${generate[@]}")
    emulated=$("$qemu" -cpu Nehalem "${generate[@]}")
    printf 'native:   %s\nemulated: %s\n' "$native" "$emulated"
    [[ -n $native && $native == "$emulated" ]]
else
    skip "this machine is not x86-64"
fi
