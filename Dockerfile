# syntax=docker/dockerfile:1

# The same Debian as below, so that the program finds the C library that it was linked with.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches outlive the layer, so the program is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin cachefence \
    && cp target/release/cachefence /usr/local/bin/cachefence

# The C library, certificates of public CAs, and nothing else: no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="cachefence" \
      org.opencontainers.image.description="A Redis-protocol proxy that keeps a cache from going back in time" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /usr/local/bin/cachefence /usr/local/bin/cachefence
# cachefence.toml is looked for here; without one, everything comes from the environment. The default addresses are
# loopback, which nobody reaches from outside the container: set CACHEFENCE_PROXY__LISTEN and CACHEFENCE_ADMIN__LISTEN.
WORKDIR /etc/cachefence
# By number: Kubernetes' runAsNonRoot does not know names. It writes nothing, so the root may be read-only.
USER 65532:65532
EXPOSE 6380 9187
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/cachefence", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/cachefence"]
CMD ["run"]
