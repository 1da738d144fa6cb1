//! The header of the PROXY protocol, version 2: which client a load balancer's connection is for.
//!
//! Pure: bytes in, an address out. <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, section 2.2.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, the command, the family and the length of the rest.
const FIXED: usize = 16;
/// The addresses and all that a balancer may tell about TLS and itself.
const MAX_REST: usize = 4096;

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// Not all of it is there: so many bytes more, at least. None of them belong to the client.
    Partial(usize),
    /// The header has so many bytes.
    Whole {
        /// Its bytes.
        length: usize,
        /// The client's address; none where the balancer speaks for itself or does not know: then the connection's
        /// own counts.
        client: Option<SocketAddr>,
    },
}

/// Why a connection does not begin with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProxyHeaderError {
    /// Something else.
    #[error("the connection does not begin with a PROXY protocol header of version 2")]
    Missing,
    /// Another version than 2.
    #[error("PROXY protocol version {0}; 2 is needed")]
    Version(u8),
    /// Neither LOCAL nor PROXY.
    #[error("PROXY protocol: unknown command {0}")]
    Command(u8),
    /// Not a stream, or of a family that there is not.
    #[error("PROXY protocol: address family and protocol {0:#04x} are not those of a stream")]
    Family(u8),
    /// Shorter than its addresses, or longer than anybody needs.
    #[error(
        "PROXY protocol: {0} bytes of addresses and additions; too few for the family, or more than {MAX_REST}"
    )]
    Length(usize),
}

impl ProxyHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// As soon as the bytes cannot become one.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProxyHeaderError> {
        let signature = bytes.len().min(SIGNATURE.len());
        if bytes[..signature] != SIGNATURE[..signature] {
            return Err(ProxyHeaderError::Missing);
        }
        let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
            return Ok(Self::Partial(FIXED - bytes.len()));
        };
        let [.., command, family, high, low] = *fixed;
        if command >> 4 != 2 {
            return Err(ProxyHeaderError::Version(command >> 4));
        }
        let told = match command & 0xf {
            0 => false,
            1 => true,
            other => return Err(ProxyHeaderError::Command(other)),
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let needed = match (told, family) {
            // Whatever family the balancer's own connection says it has.
            (false, _) | (true, 0x00) => 0,
            (true, 0x11) => 12,
            (true, 0x21) => 36,
            // A unix socket at the balancer, which says nothing about a client.
            (true, 0x31) => 216,
            (true, other) => return Err(ProxyHeaderError::Family(other)),
        };
        if length < needed || length > MAX_REST {
            return Err(ProxyHeaderError::Length(length));
        }
        let Some(rest) = rest.get(..length) else { return Ok(Self::Partial(length - rest.len())) };
        let client = if told { source(family, rest) } else { None };
        Ok(Self::Whole { length: FIXED + length, client })
    }
}

/// The source address. After both addresses come both ports.
fn source(family: u8, rest: &[u8]) -> Option<SocketAddr> {
    let port = |at: usize| Some(u16::from_be_bytes(*rest.get(at..)?.first_chunk()?));
    match family {
        0x11 => Some((Ipv4Addr::from(*rest.first_chunk::<4>()?), port(8)?).into()),
        0x21 => Some((Ipv6Addr::from(*rest.first_chunk::<16>()?), port(32)?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [SIGNATURE.as_slice(), &[command, family], &length, rest].concat()
    }

    fn ipv4() -> Vec<u8> {
        header(0x21, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0x18, 0xec])
    }

    #[test]
    fn addresses() {
        let parse = |bytes: &[u8]| ProxyHeader::parse(bytes);
        let whole = |length, client: Option<&str>| {
            Ok(ProxyHeader::Whole { length, client: client.map(|text| text.parse().expect("an address")) })
        };
        assert_eq!(parse(&ipv4()), whole(28, Some("192.0.2.7:4660")));
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().expect("an address").octets());
        v6[32..34].copy_from_slice(&[0x12, 0x34]);
        assert_eq!(parse(&header(0x21, 0x21, &v6)), whole(52, Some("[2001:db8::7]:4660")));
        assert_eq!(parse(&header(0x21, 0x00, b"")), whole(16, None));
        assert_eq!(parse(&header(0x21, 0x31, &[0; 216])), whole(232, None));
        // LOCAL: a health check of the balancer; what else it tells is ignored.
        assert_eq!(parse(&header(0x20, 0x00, b"")), whole(16, None));
        assert_eq!(parse(&header(0x20, 0x11, &ipv4()[16..])), whole(28, None));
    }

    #[test]
    fn additions_are_skipped_and_what_follows_is_the_clients() {
        let additions = [&ipv4()[16..], &[0x04, 0x00, 0x03, 1, 2, 3]].concat();
        let bytes = [header(0x21, 0x11, &additions), b"PING\r\n".to_vec()].concat();
        let client = Some("192.0.2.7:4660".parse().expect("an address"));
        assert_eq!(ProxyHeader::parse(&bytes), Ok(ProxyHeader::Whole { length: 34, client }));
    }

    #[test]
    fn truncated_at_each_byte() {
        let bytes = ipv4();
        for cut in 0..bytes.len() {
            let wanted = if cut < FIXED { FIXED } else { bytes.len() } - cut;
            assert_eq!(ProxyHeader::parse(&bytes[..cut]), Ok(ProxyHeader::Partial(wanted)), "{cut}");
        }
    }

    #[test]
    fn what_is_no_header() {
        use ProxyHeaderError::*;
        for (bytes, error) in [
            (b"P".to_vec(), Missing),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 6380\r\n".to_vec(), Missing),
            (b"*1\r\n$4\r\nPING\r\n".to_vec(), Missing),
            // How TLS begins.
            (b"\x16\x03\x01".to_vec(), Missing),
            (b"\r\n\r\n\0\r\nQUIX".to_vec(), Missing),
            (header(0x11, 0x11, &[0; 12]), Version(1)),
            (header(0x22, 0x11, &[0; 12]), Command(2)),
            (header(0x21, 0x12, &[0; 12]), Family(0x12)),
            (header(0x21, 0x41, &[0; 12]), Family(0x41)),
            (header(0x21, 0x11, &[0; 11]), Length(11)),
            (header(0x21, 0x21, &[0; 35]), Length(35)),
            (header(0x21, 0x11, &[0; 4097]), Length(4097)),
            (header(0x20, 0x00, &[0; 4097])[..FIXED].to_vec(), Length(4097)),
        ] {
            assert_eq!(ProxyHeader::parse(&bytes), Err(error), "{bytes:?}");
        }
    }
}
