#!/usr/bin/env bash
# The side-by-side benchmark: builds the release programs, installs etcd for comparison where that is possible,
# and runs everything on this machine, one subject after the other. Options go to the program: --output json,
# --duration SECONDS, --clients N, --subjects echo,kvasir,transactions,etcd; `scripts/bench.sh --help` lists them. Takes about
# seven minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

cargo build --locked --release -p kvserver -p scheduler -p kvctl -p integration --bins >&2

if ! command -v etcd >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1; then
    sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo -n)
    # The package starts a service of its own, which would only be in the way.
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends etcd-server \
        </dev/null >/dev/null 2>&1 || echo "bench: no etcd here; going on without" >&2
fi

ulimit -n "$(ulimit -H -n)" 2>/dev/null || true
exec "$CARGO_TARGET_DIR/release/bench_side" "$@"
