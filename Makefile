# Strata: one way to set up, build, install, show, test, measure and check it. `make help` lists the targets.
#
# There is one cargo flavour, --release over the whole workspace: feature unification over a smaller selection of packages
# would compile the large dependencies a second time. PostgreSQL majors other than the default have a target
# directory of their own, because the bindings are generated from the server's headers.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PG       ?= 15
CARGO    ?= cargo

# Debian's /usr/bin/pg_config answers for the newest server headers that are installed; it is taken when it says $(PG).
# A version that is not installed is taken from a tree of its own: see .ci/tree.
ifeq ($(origin PG_CONFIG),undefined)
PG_CONFIG := $(shell if [ "$$(/usr/bin/pg_config --version 2>/dev/null | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')" = "$(PG)" ]; \
	then echo /usr/bin/pg_config; \
	elif [ "$(PG)" = 15 ] || [ -x /usr/lib/postgresql/$(PG)/bin/pg_config ]; then echo /usr/lib/postgresql/$(PG)/bin/pg_config; \
	else .ci/tree --where $(PG); fi)
endif

ifeq ($(origin CARGO_TARGET_DIR),undefined)
CARGO_TARGET_DIR := $(shell if mkdir -p "$$HOME/.cache/strata" 2>/dev/null && [ -w "$$HOME/.cache/strata" ]; \
	then echo "$$HOME/.cache/strata/target"; else echo "$(CURDIR)/target"; fi)
endif
ifeq ($(PG),15)
FLAVOUR := --release --workspace --locked
PREFIX  ?= /usr/local
else
# The program goes beside that server's own, where it does not replace the one that belongs to another version's library.
PREFIX  ?= $(patsubst %/bin,%,$(shell $(PG_CONFIG) --bindir 2>/dev/null))
FLAVOUR := --release --workspace --locked --no-default-features --features strata/pg$(PG)
SEED := $(CARGO_TARGET_DIR)
override CARGO_TARGET_DIR := $(CARGO_TARGET_DIR)-pg$(PG)
endif

export CARGO_TARGET_DIR
export PGRX_PG_CONFIG_PATH := $(PG_CONFIG)
export CARGO_INCREMENTAL := 1
export PATH := $(HOME)/.cargo/bin:$(PATH)
# A backtrace would land in the DETAIL of an ERROR.
unexport RUST_BACKTRACE

OUT    := $(CARGO_TARGET_DIR)/release
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
EXTENSION_VERSION := $(shell sed -nE "s/^default_version *= *'(.*)'/\1/p" extension/strata.control)
SQL_PARTS := $(sort $(wildcard sql/schema/*.sql))

.PHONY: help setup build install demo test test-postgres test-versions bench lint clean layers

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'
	@echo
	@echo "  PG=$(PG) PG_CONFIG=$(PG_CONFIG) PREFIX=$(PREFIX)"
	@echo "  CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)"

setup: ## install what is missing (apt); checks Rust
	@PG=$(PG) PG_CONFIG=$(PG_CONFIG) .ci/setup

build: setup ## compile the extension, the sidecar and the tools
	@$(if $(SEED),.ci/seed "$(SEED)" "$(CARGO_TARGET_DIR)")
	$(CARGO) build $(FLAVOUR)

install: build ## copy them to PostgreSQL's directories and PREFIX/bin
	@$(AS_ROOT) .ci/install "$(PG_CONFIG)" "$(OUT)" "$(PREFIX)" "$(EXTENSION_VERSION)" $(SQL_PARTS)

demo: install ## the whole job on three million flights; KEEP=1 leaves the recovered server running
	@KEEP="$(KEEP)" STRATA_BIN="$(PREFIX)/bin/strata" PG_CONFIG="$(PG_CONFIG)" "$(OUT)/strata-demo"

# `make test SUITE=crash` runs one suite, SUITE='crash plan' two; `make test ARGS=name` filters by test name.
test: install ## unit tests and every suite, against real servers
	@STRATA_BIN="$(PREFIX)/bin/strata" PG_CONFIG="$(PG_CONFIG)" FLAVOUR="$(FLAVOUR)" .ci/test $(SUITE:%=--suite %) -- $(ARGS)

test-versions: ## the core suites on PostgreSQL 17 and 18, which are fetched; VERSIONS='17 18'
	@VERSIONS="$(VERSIONS)" .ci/versions

# `make test-postgres PART=regress TESTS='tidscan cluster'` runs some of it; see .ci/test-postgres for the rest.
test-postgres: install ## PostgreSQL's own regression, isolation and contrib suites on warm tables (long)
	@PG_CONFIG="$(PG_CONFIG)" .ci/test-postgres $(PART)

bench: install ## speed and size against heap and DuckDB, held against the goals; flights; backups. SMOKE=1: small, answers only
	@STRATA_BIN="$(PREFIX)/bin/strata" PG_CONFIG="$(PG_CONFIG)" SMOKE="$(SMOKE)" OUT="$(BENCH_OUT)" benches/run

layers: ## check the arrows between the crates
	@.ci/layers

lint: setup layers ## rustfmt, clippy with warnings denied, licences and advisories, shell scripts
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(FLAVOUR) --all-targets -- -D warnings
	@.ci/deny

clean: ## remove what cargo built (the demo's download stays in the cache)
	$(CARGO) clean
	rm -rf "$(CARGO_TARGET_DIR)"
