//! Files that are wrong, each in its own way, and the words for it.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair};

use super::*;

/// A directory with `cert`, `key` and another `other`.
fn files() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: String| {
        std::fs::write(directory.path().join(name), text).expect("a file");
    };
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".into()]).expect("parameters");
    write("cert", params.self_signed(&key).expect("a certificate").pem());
    write("key", key.serialize_pem());
    write("other", KeyPair::generate().expect("a key").serialize_pem());
    write(
        "encrypted",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n".into(),
    );
    write("empty", String::new());
    write("cut", key.serialize_pem().replace("-----END PRIVATE KEY-----", ""));
    write("junk", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into());
    write("key of junk", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".into());
    directory
}

fn server(directory: &Path, cert: &str, key: &str, client_ca: Option<&str>) -> String {
    let settings = ProxyTls {
        cert: directory.join(cert),
        key: directory.join(key),
        client_ca: client_ca.map(|name| directory.join(name)),
    };
    let error = ServerTls::load(&settings).err().map(|error| error.to_string());
    error.unwrap_or_default().replace(&format!("{}/", directory.display()), "")
}

fn client(directory: &Path, ca: Option<&str>, name: &str) -> String {
    let settings = RedisTls { ca: ca.map(|ca| directory.join(ca)), ..RedisTls::default() };
    let error = ClientTls::load(&settings, name).err().map(|error| error.to_string());
    error.unwrap_or_default().replace(&format!("{}/", directory.display()), "")
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let files = files();
    let server = |cert, key, ca| server(files.path(), cert, key, ca);
    assert_eq!(server("cert", "key", None), "");
    assert_eq!(server("cert", "key", Some("cert")), "");
    assert!(server("none", "key", None).starts_with("proxy.tls.cert: none: cannot be read: No such file"));
    assert!(server("empty", "key", None).starts_with("proxy.tls.cert: empty: there is no certificate in it"));
    assert!(server("key", "key", None).starts_with("proxy.tls.cert: key: there is no certificate in it"));
    assert!(server("cert", "cert", None).starts_with("proxy.tls.key: cert: there is no private key in it"));
    assert!(server("cert", "encrypted", None).contains("encrypted: the key in it is encrypted; decrypt it"));
    assert_eq!(server("cert", "cut", None), "proxy.tls.key: cut: it is not PEM: a section has no end");
    let mismatch = server("cert", "other", None);
    assert!(mismatch.starts_with("proxy.tls.key: other: it is not the key of the certificate in cert; "));
    let junk = server("junk", "key", None);
    assert!(junk.starts_with("proxy.tls.cert: junk: the certificate cannot be read"), "{junk}");
    let junk = server("cert", "key of junk", None);
    assert!(junk.starts_with("proxy.tls.key: key of junk: the key cannot be used"), "{junk}");
    assert!(server("cert", "key", Some("empty")).starts_with("proxy.tls.client_ca: empty: there is no"));
    assert!(
        server("cert", "key", Some("junk")).starts_with("proxy.tls.client_ca: junk: a certificate in it")
    );
}

#[test]
fn towards_redis() {
    let files = files();
    let client = |ca, name| client(files.path(), ca, name);
    assert_eq!(client(Some("cert"), "cache.internal"), "");
    assert_eq!(client(Some("cert"), "::1"), "");
    assert!(client(Some("none"), "h").starts_with("redis.tls.ca: none: cannot be read"));
    assert_eq!(client(Some("cert"), "a b"), "redis.url: \"a b\" is neither a host name nor an IP address");
}

#[test]
fn nothing_of_a_key_is_printed() {
    let files = files();
    let at = |name: &str| Some(files.path().join(name));
    let settings = RedisTls { ca: at("cert"), cert: at("cert"), key: at("key"), server_name: None };
    let printed = format!("{:?}", ClientTls::load(&settings, "h").expect("usable files"));
    assert_eq!(printed, "ClientTls { name: DnsName(\"h\"), .. }");
}
