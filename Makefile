# Everything a developer or CI needs. `make deps` gets what apt has; the rest comes with cargo.

CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)
# Where Postgres's programs may be besides PATH: Debian puts them outside.
PG_BINS := $(wildcard /usr/lib/postgresql/*/bin/initdb)

.PHONY: all deb demo test test-page test-alerts test-clients test-matrix test-servers redis-suite consistency faults soak bench instructions lint deps deps-test \
	deps-page deps-alerts deps-clients deps-bench deps-instructions

all: test

# The four divergences, straight and through the proxy. `make demo ARGS=--stay` leaves it running.
demo: deps
	$(CARGO) run --locked -- demo $(ARGS)

# Unit, property and integration tests; the latter start real servers of their own on loopback. Most of their time they
# wait for these, so two programs run at a time, each with its output in one piece. The long ones have directories, and begin:
# the last of them would have the machine to itself.
TEST_PROGRAMS := $(patsubst tests/%/main.rs,%,$(wildcard tests/*/main.rs)) $(basename $(notdir $(wildcard tests/*.rs)))
TEST_RUNS := $(addprefix test-of-test.,$(TEST_PROGRAMS)) test-of-lib test-of-bins test-of-doc

test: deps-test
	$(CARGO) test --locked --no-run
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target --keep-going $(TEST_RUNS)

.PHONY: $(TEST_RUNS)
$(TEST_RUNS): test-of-%:
	@env -u MAKEFLAGS -u MFLAGS $(CARGO) test --locked --$(subst ., ,$*)

# The live page in a browser; its pictures go to target/page.
test-page: deps-page
	$(CARGO) test --locked --test page -- --ignored --nocapture

# A package for Debian, into target/debian; it needs cargo-deb. Packages do not install into /usr/local.
deb:
	$(CARGO) build --release --locked
	mkdir -p target/deb
	sed 's|/usr/local/bin/|/usr/bin/|' config/cachefence.service >target/deb/cachefence.service
	$(CARGO) deb --no-build

# The alerts: their unit tests, and a real Prometheus that sees real faults.
test-alerts: deps-alerts
	CACHEFENCE_TEST_PROMTOOL=yes $(CARGO) test --locked --test monitoring -- --include-ignored --nocapture --test-threads 1

# All clients, those of `make test` and those that need a further toolchain. See docs/compatibility.md.
test-clients: deps-clients
	$(CARGO) test --locked --test clients --test frameworks -- --include-ignored --nocapture --test-threads 1

# What depends on the server: the wire, what commands do, and the clients, on Redis 8 and Valkey 9 as well as on the
# installed Redis.
SERVER_TESTS := transparency mixtures command_table fills_by_any_name refusals sharing clients

test-servers: deps-test
	@servers="$$(tests/servers.sh)" && for server in "" $$servers; do \
		echo "on $${server:-the installed Redis}"; \
		CACHEFENCE_REDIS_SERVER="$${server:-$$CACHEFENCE_REDIS_SERVER}"; export CACHEFENCE_REDIS_SERVER; \
		[ -n "$$CACHEFENCE_REDIS_SERVER" ] || unset CACHEFENCE_REDIS_SERVER; \
		$(CARGO) test --locked $(addprefix --test ,$(SERVER_TESTS)) -- --nocapture || exit 1; \
	done

# What depends on Postgres, on other major versions than the installed one: VERSIONS picks some of 13, 14, 16, 17, 18.
MATRIX_TESTS := rows slots check large_transactions differential visibility restart strict synchronous takeover divergences \
	harness quiescence refusals versions waits consistency postgres_connections

test-matrix: deps-test
	@bins="$$(tests/postgres.sh)" && \
	$(CARGO) test --locked --lib $(addprefix --test ,$(MATRIX_TESTS)) --no-run && \
	failed=; for bin in $$bins; do \
		version="$$($$bin/postgres --version)"; echo "on $$version"; result=passed; \
		export CACHEFENCE_PG_BIN="$$bin"; tests="$(MATRIX_TESTS)"; \
		case "$$version" in *") 13."*) tests="$${tests#rows }";; esac; \
		$(CARGO) test --locked --lib feed:: || result=FAILED; \
		$(CARGO) test --locked --no-fail-fast $$(printf -- '--test %s ' $$tests) || result=FAILED; \
		echo "$$result on $$version"; [ $$result = passed ] || failed="$$failed, $$version"; \
	done; \
	[ -z "$$failed" ] || { echo "failed on$${failed#,}"; exit 1; }

# Redis's own test suite: SUITE is a checkout of Redis of the version that is installed.
redis-suite: deps
	@command -v tclsh >/dev/null || { echo "tclsh is missing: install tcl"; exit 1; }
	CACHEFENCE_SUITE="$(SUITE)" $(CARGO) test --locked --test redis_suite -- --ignored --nocapture

# The model in larger worlds, and the consistency checker at length, in release: READS, SECONDS and the load by variables,
# CONTRACT=strict or bounded.
# See docs/consistency.md.
consistency: deps
	MODEL_BOUND=large $(CARGO) test --release --locked --test model -- --nocapture
	$(CARGO) test --release --locked --test consistency the_long_run -- --ignored --nocapture

# Every fault under load, with the table of docs/reliability.md: FAULT=part-of-a-name picks some, ROUNDS sets the rounds.
faults: deps
	$(CARGO) test --locked --features failpoints --test faults every_fault -- --ignored --nocapture

# Fault after fault for MINUTES (60), and what the proxy holds of the machine ends where it began.
soak: deps
	$(CARGO) test --release --locked --test faults what_is_held -- --ignored --nocapture

# What the proxy costs, beside what its users would otherwise run; writes the tables of docs/performance.md. PART picks some
# parts, ROUNDS says how often they take turns. Proxies that are not installed are left out: see deps-bench.
bench: deps
	$(CARGO) bench --locked --bench bench

# How many instructions the hot paths take, against the committed counts; more than a tenth above them fails. ACCEPT=yes
# writes the counts of now into the file, CASE picks some. See docs/performance.md.
# Our own code is optimised for it; dependencies are those of the tests, which are there.
OPTIMISED := $(addprefix --config profile.dev.package.cachefence.,opt-level=3 debug-assertions=false overflow-checks=false)

instructions: deps-instructions
	ACCEPT="$(ACCEPT)" CASE="$(CASE)" $(CARGO) run --locked --example instructions $(OPTIMISED)

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings

# Installs Postgres and Redis where they are missing; does nothing where they are there.
deps:
	@missing=; \
	[ -n "$(PG_BINS)$$CACHEFENCE_PG_BIN" ] || command -v initdb >/dev/null || missing="$$missing postgresql"; \
	[ -n "$$CACHEFENCE_REDIS_SERVER" ] || command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	$(install)

# And what runs the clients of `make test`, which are written in Python and JavaScript.
deps-test: deps
	@missing=; \
	python3 -m pip --version >/dev/null 2>&1 || missing="$$missing python3-pip"; \
	command -v node >/dev/null || missing="$$missing nodejs"; \
	command -v npm >/dev/null || missing="$$missing npm"; \
	$(install)

# And what `make test-clients` needs besides.
deps-clients: deps-test
	@missing=; \
	command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
	[ -e /usr/include/hiredis/hiredis.h ] || missing="$$missing libhiredis-dev"; \
	ruby -e 'require "redis"' 2>/dev/null || missing="$$missing ruby-redis"; \
	ruby -e 'require "active_support"' 2>/dev/null || missing="$$missing ruby-activesupport"; \
	$(install)

# And the browser of `make test-page`.
deps-page: deps
	@missing=; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	$(install)

# And the programs of `make test-alerts`.
deps-alerts: deps
	@missing=; \
	command -v promtool >/dev/null && command -v prometheus >/dev/null || missing="$$missing prometheus"; \
	$(install)

# What `make bench` compares with, as far as Debian has it, and what it measures with.
deps-bench: deps
	@missing=; \
	command -v redis-benchmark >/dev/null || missing="$$missing redis-tools"; \
	PATH="$$PATH:/usr/sbin"; \
	command -v haproxy >/dev/null || missing="$$missing haproxy"; \
	command -v nutcracker >/dev/null || missing="$$missing nutcracker"; \
	$(install)

# And what counts instructions.
deps-instructions:
	@missing=; \
	command -v valgrind >/dev/null || missing="$$missing valgrind"; \
	$(install)

define install
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		$(SUDO) apt-get update && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi
endef
