//! Who may ask: not the page of another site in a browser that can reach the port.
//!
//! The port has no password. Where it listens on loopback, what keeps others out is that only this host reaches it; but
//! a browser on this host runs what other sites send it. A site whose name is made to resolve to 127.0.0.1 (DNS
//! rebinding) is the same origin as the port, to the browser: only the `Host` of its requests tells.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{HOST, ORIGIN};
use hyper::{Method, Request};

/// Whether only this host reaches an address. What IPv4 looks like in IPv6 is IPv4.
pub(super) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Whether a request must not be answered, and why.
pub(super) fn objection<B>(request: &Request<B>, listens_on_loopback: bool) -> Option<&'static str> {
    let host = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    // Without one it is not from a browser.
    if listens_on_loopback && host.is_some_and(|host| !is_of_this_host(host)) {
        return Some(
            "this port listens on loopback and is asked for localhost or an address, no other name\n",
        );
    }
    // What a browser is told to read it does not show to another site. What changes something must not be done at all.
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    let origin = request.headers().get(ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    if !reads && origin.is_some_and(|origin| origin.split_once("://").map(|(_, of)| of) != host) {
        return Some("a page of another site asks\n");
    }
    None
}

/// `localhost`, or an address, with or without a port: no name that somebody else's resolver answers for.
fn is_of_this_host(host: &str) -> bool {
    let is_address = host.parse::<SocketAddr>().is_ok()
        || host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
            .parse::<IpAddr>()
            .is_ok();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    is_address || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, headers: &[(&str, &str)], loopback: bool) -> bool {
        let request = headers
            .iter()
            .fold(Request::builder().method(method), |request, (name, value)| request.header(*name, *value));
        objection(&request.body(()).expect("a request"), loopback).is_none()
    }

    #[test]
    fn loopback_has_several_names() {
        for (address, loopback) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(address.parse().expect("an address")), loopback, "{address}");
        }
    }

    #[test]
    fn a_port_on_loopback_is_asked_by_no_foreign_name() {
        for host in [
            "localhost",
            "localhost:9187",
            "LOCALHOST:1",
            "127.0.0.1:9187",
            "10.0.0.1",
            "[::1]:9187",
            "[::1]",
        ] {
            assert!(asked("GET", &[("host", host)], true), "{host}");
        }
        for host in [
            "rebound.example",
            "rebound.example:9187",
            "localhost.example",
            "127.0.0.1.example:9187",
            "",
            "\u{e9}",
        ] {
            assert!(!asked("GET", &[("host", host)], true), "{host}");
            assert!(asked("GET", &[("host", host)], false), "{host}: elsewhere it may have any name");
        }
        assert!(asked("GET", &[], true), "not a browser");
    }

    #[test]
    fn nothing_is_changed_for_another_sites_page() {
        let host = ("host", "10.0.0.1:9187");
        assert!(asked("POST", &[host], false), "not a browser");
        assert!(asked("POST", &[host, ("origin", "http://10.0.0.1:9187")], false));
        for origin in ["http://evil.example", "null", "http://10.0.0.1:80", ""] {
            assert!(!asked("POST", &[host, ("origin", origin)], false), "{origin}");
            assert!(asked("GET", &[host, ("origin", origin)], false), "it is not shown the answer");
        }
    }
}
