#!/usr/bin/env bash
# Runs the tests on emulated 64-bit Arm. Needs the binary that test.sh builds.
source "$(dirname "$0")/common.sh"

stage "64-bit Arm, emulated"
# Runs cargo test under emulation, on the CPU model in the first argument and pinned to one core: in an emulator,
# synchronizing threads on several cores is several times slower.
on_arm() {
    set -o pipefail
    local run
    # shellcheck disable=SC2154 # xargs sets slot
    run="taskset -c $(cut -d ' ' -f $((slot + 1)) <<<"$cores") $qemu -cpu $1"
    env -u HYMBA_GOLDEN_EXTRA HYMBA_TEST_RUNNER="$run" CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$run" \
        cargo test "${@:2}" 2>&1 | tee -a "$CI_TESTS" | sed -u "s/^/$1: /" || return 255 # 255 makes xargs stop
}
if [[ $(uname -m) != x86_64 ]]; then
    skip "this machine is not x86-64"
elif ! quietly as_root apt-get install --yes --no-install-recommends {gcc,g++}-aarch64-linux-gnu libc6-dev-arm64-cross; then
    skip "there are no cross compilers for 64-bit Arm"
else
    quietly rustup target add aarch64-unknown-linux-gnu
    qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64)
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
    arm=(--release --target aarch64-unknown-linux-gnu -p hymba -p hymba-kernels-cpu)
    cargo test --quiet "${arm[@]}" --no-run
    hymba_arm=${CARGO_TARGET_DIR:-target}/aarch64-unknown-linux-gnu/release/hymba
    generate=(run --temp 0 -n 8 --no-display-prompt --quiet "Once upon a time")
    expected=$("$hymba" "${generate[@]}")
    ids=$(seq -s , 5 71 4000)
    "$hymba" eval logits -m models/hymba-demo.gguf --ids "$ids" -o "$temp/logits"
    for cpu in max:neon_i8mm cortex-a76:neon_dotprod cortex-a53:neon; do
        run=("$qemu" -cpu "${cpu%:*}" "$hymba_arm")
        "${run[@]}" run --list-devices | tee "$temp/devices"
        grep -q "${cpu#*:} kernels" "$temp/devices"
        got=$("${run[@]}" "${generate[@]}")
        printf '%s: %s\n' "${cpu%:*}" "$got"
        [[ -n $expected && $expected == "$got" ]]
        "${run[@]}" eval logits -m models/hymba-demo.gguf --ids "$ids" --force -o "$temp/logits-arm"
        cmp "$temp/logits" "$temp/logits-arm" # the vector kernels of both architectures are bit-identical
    done
    stage "64-bit Arm, emulated: CPU-dependent tests, with and without dotprod and i8mm"
    skip "on emulated Arm: the emulated GPU, the large golden case, timelines, passes over several texts, and tests that do not
    depend on the CPU (chat, conversion, pull, templates, signals, ...)"
    skip "on emulated Arm without dotprod: golden passes and tests that do not depend on the CPU: the logits above are bit-identical"
    cores=$(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0)))')
    export cores qemu temp
    export -f on_arm
    { # the longest first
        for name in golden segments determinism; do echo "max ${arm[*]} --test $name"; done
        for name in numbers against_scalar chunk_invariance not_finite; do
            echo "cortex-a53 ${arm[*]} --test $name"
        done
        for name in numbers against_scalar chunk_invariance not_finite; do
            echo "max ${arm[*]} --test $name"
        done
        echo "max ${arm[*]} --lib"
    } | sed '/segments/s/$/ -- --skip=logits_do_not_depend/' |
        xargs -L 1 -P "$(wc -w <<<"$cores")" --process-slot-var=slot bash -c 'on_arm "$@"' on_arm
fi
