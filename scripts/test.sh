#!/usr/bin/env bash
# Everything CI runs, in one go: formatting, lints, house rules, unit and script tests, process clusters,
# wire tests, documentation examples and the simulator. All steps run even when one fails; a build that fails ends it.
# Environment: SEEDS and EVENTS size the simulator's part.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

log="$(mktemp -t kvasir-test.XXXXXX)"
trap 'rm -f "$log"' EXIT
failed=() started=$SECONDS

step() { # step NAME COMMAND...: runs it, notes how it ended
    local name="$1" at=$SECONDS status
    shift
    echo "==> $name"
    "$@" </dev/null 2>&1 | tee -a "$log"
    status=${PIPESTATUS[0]}
    echo "<== $name: $([ "$status" -eq 0 ] && echo ok || echo FAILED) ($((SECONDS - at)) s)"
    [ "$status" -eq 0 ] || failed+=("$name")
    return "$status"
}

finish() {
    # Both runners' summaries: "N tests run: P passed, F failed" and "test result: ok. P passed; F failed".
    local passed broken
    passed=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | grep -oE '^ *Summary .* passed|^test result: .* passed' \
        | grep -oE '[0-9]+ passed' | awk '{n += $1} END {print n + 0}')
    broken=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | grep -oE '^ *Summary .*|^test result: .*' \
        | grep -oE '[0-9]+ failed' | awk '{n += $1} END {print n + 0}')
    [ ${#failed[@]} -eq 0 ] || echo "failed steps: ${failed[*]}"
    if [ ${#failed[@]} -eq 0 ]; then
        echo "test result: ok. $passed passed; 0 failed; finished in $((SECONDS - started))s"
        exit 0
    fi
    [ "$broken" -gt 0 ] || broken=${#failed[@]}
    echo "test result: FAILED. $passed passed; $broken failed; finished in $((SECONDS - started))s"
    exit 1
}

# Process-cluster tests start the built servers, so the binaries come before the tests.
step build cargo build --locked --workspace --bins || finish
step format cargo fmt --all --check
step lints cargo clippy --locked --workspace --all-targets -- -D warnings
if command -v cargo-nextest >/dev/null 2>&1; then
    step tests cargo nextest run --locked --workspace --no-fail-fast
else
    step tests cargo test --locked --workspace --all-targets --no-fail-fast
fi
step examples cargo test --locked --workspace --doc
sim() { cargo run --locked -q -p integration --bin sim -- "$@"; }
step regressions sim regressions
step simulator sim swarm --seeds "${SEEDS:-200}" --events "${EVENTS:-20000}" --twice 10
finish
