# Everything a developer or CI needs. `make deps` gets what apt has; the rest comes with cargo.

CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)
# Where Postgres's programs may be besides PATH: Debian puts them outside.
PG_BINS := $(wildcard /usr/lib/postgresql/*/bin/initdb)

.PHONY: all demo test bench lint deps

all: test

# The four divergences, straight and through the proxy. `make demo ARGS=--stay` leaves it running.
demo: deps
	$(CARGO) run --locked -- demo $(ARGS)

# Unit, property and integration tests; the latter start real servers of their own on loopback.
test: deps
	$(CARGO) build --locked
	$(CARGO) test --locked

# What the proxy costs: redis-benchmark straight and through it, side by side.
bench: deps
	$(CARGO) build --release --locked
	tests/bench/compare target/release/cachefence

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

# Installs Postgres and Redis where they are missing; does nothing where they are there.
deps:
	@missing=; \
	[ -n "$(PG_BINS)$$CACHEFENCE_PG_BIN" ] || command -v initdb >/dev/null || missing="$$missing postgresql"; \
	[ -n "$$CACHEFENCE_REDIS_SERVER" ] || command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		$(SUDO) apt-get update && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi
