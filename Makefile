# Everything a user or developer does with the tree. `make help` lists it.

export PATH := $(CURDIR)/target/tools:$(HOME)/.cargo/bin:$(PATH)
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build test packages packages-test repository demo matrix kernels bench captures fuzz fmt lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## build the four programs into target/debug
	@tests/vm/setup.sh build
	cargo build

test: ## run all tests; installs what they need and says what
	@tests/vm/setup.sh
	cargo test
	tests/vm/test.sh
	tests/package/test.sh --quick

packages: ## build .deb and .rpm files of agent, coordinator and relay into target/packages; KINDS=deb for some, TARGET=aarch64-unknown-linux-gnu for others
	@tests/vm/setup.sh build packages
	packaging/build.sh $(KINDS)

repository: ## sign a repository for apt and dnf of what `make packages` built; packaging/repository.sh says with which key
	@tests/vm/setup.sh repository
	packaging/repository.sh

packages-test: ## install, upgrade, break, remove and purge the packages on machines that boot; RELEASES=trixie for one
	@tests/vm/setup.sh build kernel packages
	tests/package/test.sh $(RELEASES)

demo: ## two nodes join a coordinator and ping each other, here or in a virtual machine
	@tests/vm/setup.sh build kernel
	@cargo build
	@tests/lab/demo.sh

matrix: ## each kind of NAT and firewall against each; CELLS=easy-nat/hard-nat,open/open for some
	@tests/vm/setup.sh build kernel
	WARREN_MATRIX=$(or $(CELLS),all) tests/vm/test.sh -t 3600 lab -- $(if $(CELLS),,--include-ignored outage:: revocation::) matrix::

kernels: ## the kernel tests on the oldest and the newest kernel that we know; KERNELS=5.10 for some
	for version in $(or $(KERNELS),5.10 6.12); do export WARREN_VM_KERNEL=$$version; \
	  tests/vm/setup.sh build kernel && tests/vm/test.sh kernel || exit 1; done

bench: ## measure and print a table; NAME=plan for one group, NAME=beside for ours beside others of WARREN_INTEROP_BIN
	@tests/vm/setup.sh build kernel
	@tests/bench/run.sh $(NAME)

captures: ## compare the policy compiler with captured answers; WARREN_POLICY_CAPTURES names their folder
	cargo test -p warren-core --test policy -- --ignored --nocapture every_capture

fmt: ## format the sources
	cargo fmt --all

fuzz: ## search for bytes that a decoder falls over; TIME=60 seconds each, NAME=policy for one
	@tests/vm/setup.sh build fuzz
	tests/fuzz/run.sh $(or $(TIME),60) $(NAME)

lint: ## check format, lints, the layers of the source tree, and the crates that we link
	@tests/vm/setup.sh build lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --test '*' -- -D warnings # what --all-targets leaves out: tests with `test = false`
	for member in src/*/; do cargo clippy -q -p warren-$$(basename $$member) --all-targets -- -D warnings || exit 1; done
	cargo test --test tidy
	cargo deny --locked check bans licenses sources
	@tests/vm/advisories.sh

clean: ## remove everything built or downloaded
	rm -rf target
