# `make up` to try it, `make test` before you push. Every target installs what it needs first.
SHELL := /bin/bash
.PHONY: up test check sim bench fmt bootstrap

ARGS ?=            # make up ARGS='--stores 1 --data-dir /tmp/kv'
SEEDS ?= 200       # make sim SEEDS=5000 EVENTS=50000
EVENTS ?= 20000
SEED ?=            # make sim SEED=42 replays one
SCENARIO ?=        # make sim SCENARIO=snapshot_recover runs a named plan; `sim scenarios` lists them

up: bootstrap      ## a whole cluster in one process; Ctrl-C ends it
	@. scripts/env.sh && cargo run --locked -p kvctl --bin kvctl -- playground $(ARGS)

test: bootstrap    ## everything CI runs
	@scripts/test.sh

check: bootstrap   ## the quick part: formatting, lints, house rules
	@. scripts/env.sh && cargo fmt --all --check \
	  && cargo clippy --locked --workspace --all-targets -- -D warnings \
	  && cargo test --locked -q -p integration --test tidy

sim: bootstrap     ## the simulator: many seeds, or one again
	@. scripts/env.sh && cargo run --locked -q -p integration --bin sim -- \
	  $(if $(SCENARIO),scenario $(SCENARIO) --seeds $(SEEDS),$(if $(SEED),run --seed $(SEED) --events $(EVENTS),swarm --seeds $(SEEDS) --events $(EVENTS)))

bench: bootstrap   ## side by side with an echo server, the official client and etcd
	@scripts/bench.sh $(ARGS)

fmt:
	@cargo fmt --all

bootstrap:
	@scripts/bootstrap.sh
