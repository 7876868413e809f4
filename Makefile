# Everything is one command: `make run` to try it, `make test` to check it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO := scripts/cargo.sh
# More arguments for the server: make run ARGS="--http 127.0.0.1:8600"
ARGS ?=
# Which tests: make test TESTS="deploy::"
TESTS ?=

.PHONY: help run test build dist check audit fmt bench chaos clean deps-run deps-test

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

run: deps-run ## build in release and run a whole meepo here: etcd, master, worker, log store
	@$(CARGO) build --release -p meepo --bin meepo
	@exec $${CARGO_TARGET_DIR:-target}/release/meepo --server --data-dir .meepo --jobs deploy/examples $(ARGS)

test: deps-test ## every test, against a real etcd and a real MongoDB
	@if [ -z "$${MEEPO_TEST_MONGODB_URI:-}" ]; then scripts/fetch-mongod.sh >/dev/null; fi
	@$(CARGO) build --workspace --bins
	@$(CARGO) test --workspace -- $(TESTS)

build: deps-run ## every binary, in release
	@$(CARGO) build --release --workspace --bins

dist: deps-run ## every binary, as small as it gets, in target/dist: takes several minutes
	@CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=$(CURDIR)/scripts/link-ordered.sh \
	$(CARGO) build --profile dist -p meepo -p meepo-master -p meepo-worker --bins

check: ## formatting, lints, documentation and, where cargo-deny is installed, licences
	@$(CARGO) metadata --locked --format-version 1 >/dev/null
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet
	@if command -v cargo-deny >/dev/null; then cargo-deny --offline check bans licenses sources; \
	else echo "cargo-deny is not installed: licences not checked (cargo install cargo-deny)"; fi

audit: ## known vulnerabilities of what is linked in; needs a network and cargo-deny
	@cargo-deny check advisories

fmt: ## format the code
	@$(CARGO) fmt --all

fuzz: deps-run ## fuzz what comes from outside, a minute each: make fuzz ARGS="600 cron"
	@scripts/fuzz.sh $(ARGS)

fuzz-api: deps-run ## ask the HTTP API everything that its OpenAPI document allows
	@$(CARGO) build -p meepo --bin meepo
	@scripts/fuzz-api.sh $(ARGS)

bench: deps-test ## measure this machine and meepo on it, side by side
	@$(CARGO) build --release --workspace --bins
	@$(CARGO) run --release -p meepo-tests --bin meepo-bench -- $(ARGS)

chaos: deps-test ## half an hour of faults for a real cluster under work, and a verdict
	@scripts/fetch-mongod.sh >/dev/null
	@$(CARGO) build --workspace --bins
	@$(CARGO) run -p meepo-tests --bin meepo-chaos -- --duration 30m --at-least 200 --page docs/faults.md $(ARGS)

clean: ## remove what was built; data (.meepo) and downloads (.cache) stay
	@$(CARGO) clean

deps-run:
	@scripts/install-deps.sh run

deps-test:
	@scripts/install-deps.sh test
