//! What is said to a proxy before a connection through it is one to the target: CONNECT (RFC 9110, 9.3.6) and SOCKS5
//! (RFC 1928, with user name and password by RFC 1929).
//!
//! Both work on any stream that ends by its own limit. Not a byte beyond the proxy's answer is taken. A refusal is
//! `ConnectProxyFailed` with the proxy's reason.

use crate::budget::PROXY_HEADER_BYTES_MAX;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use ureq::{Error, Proxy};

/// Where a proxy is to connect to.
#[derive(Debug)]
pub(super) enum TunnelTarget<'a> {
    /// A name that the proxy looks up.
    Name(&'a str, u16),
    Address(SocketAddr),
}

/// Asks an HTTP proxy for a tunnel.
///
/// # Errors
/// The proxy refuses, or the stream's own.
pub(super) fn connect(
    stream: &mut (impl Read + Write),
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), Error> {
    let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
    let target = format!("{open}{host}{close}:{port}");
    let version = env!("CARGO_PKG_VERSION");
    let mut request =
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: larder/{version}\r\n");
    if proxy.username().is_some() || proxy.password().is_some() {
        let (user, password) = (proxy.username().unwrap_or_default(), proxy.password().unwrap_or_default());
        let login = STANDARD.encode(format!("{user}:{password}"));
        request.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut header = Vec::new();
    while !header.ends_with(b"\r\n\r\n") && !header.ends_with(b"\n\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        header.push(byte[0]);
        if header.len() > PROXY_HEADER_BYTES_MAX {
            return Err(refused("its answer is longer than allowed"));
        }
    }
    let line = String::from_utf8_lossy(header.split(|&byte| byte == b'\n').next().unwrap_or_default());
    match line.trim_end().split(' ').collect::<Vec<_>>()[..] {
        [version, status, ..] if version.starts_with("HTTP/1.") && status.len() == 3 => match status {
            _ if status.starts_with('2') => Ok(()),
            "407" => Err(refused(
                "it asks for a user name and password, or does not accept those of its address (407)",
            )),
            _ => Err(refused(&format!("it answered {status}"))),
        },
        _ => Err(refused("it does not answer as an http proxy")),
    }
}

/// Asks a SOCKS5 proxy for a connection.
///
/// # Errors
/// The proxy refuses, or the stream's own.
pub(super) fn socks5(
    stream: &mut (impl Read + Write),
    proxy: &Proxy,
    target: &TunnelTarget<'_>,
) -> Result<(), Error> {
    const NO_LOGIN: u8 = 0;
    const PASSWORD: u8 = 2;
    let user = proxy.username().filter(|user| !user.is_empty());
    let methods: &[u8] = if user.is_some() { &[5, 2, NO_LOGIN, PASSWORD] } else { &[5, 1, NO_LOGIN] };
    send(stream, methods)?;
    match (read::<2>(stream)?, user) {
        ([5, NO_LOGIN], _) => {}
        ([5, PASSWORD], Some(user)) => {
            let mut login = vec![1];
            for text in [user, proxy.password().unwrap_or_default()] {
                push_text(&mut login, text)
                    .ok_or_else(|| refused("its user name or password is too long"))?;
            }
            send(stream, &login)?;
            if read::<2>(stream)?[1] != 0 {
                return Err(refused("it does not accept the user name or password of its address"));
            }
        }
        ([5, _], _) => return Err(refused("it asks for a user name and password")),
        _ => return Err(refused("it does not answer as a socks5 proxy")),
    }
    send(stream, &connect_request(target).ok_or_else(|| refused("the name is too long for it"))?)?;
    let [version, reply, _, kind] = read::<4>(stream)?;
    if version != 5 {
        return Err(refused("it does not answer as a socks5 proxy"));
    }
    if reply != 0 {
        return Err(refused(socks5_reason(reply)));
    }
    // The address that the proxy connects from, which nobody needs.
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(read::<1>(stream)?[0]),
        _ => return Err(refused("it does not answer as a socks5 proxy")),
    };
    let mut bound = [0; u8::MAX as usize + 2];
    Ok(stream.read_exact(&mut bound[..length + 2])?)
}

fn connect_request(target: &TunnelTarget<'_>) -> Option<Vec<u8>> {
    let mut request = vec![5, 1, 0];
    let port = match target {
        TunnelTarget::Name(name, port) => {
            request.push(3);
            push_text(&mut request, name)?;
            *port
        }
        TunnelTarget::Address(address) => {
            match address.ip() {
                IpAddr::V4(v4) => {
                    request.push(1);
                    request.extend_from_slice(&v4.octets());
                }
                IpAddr::V6(v6) => {
                    request.push(4);
                    request.extend_from_slice(&v6.octets());
                }
            }
            address.port()
        }
    };
    request.extend_from_slice(&port.to_be_bytes());
    Some(request)
}

fn push_text(request: &mut Vec<u8>, text: &str) -> Option<()> {
    request.push(text.len().try_into().ok()?);
    request.extend_from_slice(text.as_bytes());
    Some(())
}

fn send(stream: &mut (impl Read + Write), bytes: &[u8]) -> Result<(), Error> {
    stream.write_all(bytes)?;
    Ok(stream.flush()?)
}

fn read<const N: usize>(stream: &mut (impl Read + Write)) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn refused(why: &str) -> Error {
    Error::ConnectProxyFailed(why.to_owned())
}

/// RFC 1928, section 6.
fn socks5_reason(reply: u8) -> &'static str {
    match reply {
        2 => "its rules do not allow the connection",
        3 => "it cannot reach the network",
        4 => "it cannot reach the host",
        5 => "the host refused the connection",
        6 => "the connection took it too long",
        8 => "it does not know this kind of address",
        _ => "it could not connect",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Cursor};

    /// A proxy that has said all of its answers before it is asked.
    struct Script(Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn ask_socks(
        proxy: &str,
        target: &TunnelTarget<'_>,
        answers: &[u8],
    ) -> (Result<(), String>, Vec<u8>, usize) {
        let mut script = Script(Cursor::new(answers.to_vec()), Vec::new());
        let verdict =
            socks5(&mut script, &Proxy::new(proxy).unwrap(), target).map_err(|error| error.to_string());
        let left = answers.len() - usize::try_from(script.0.position()).unwrap();
        (verdict, script.1, left)
    }

    #[test]
    fn socks5_says_what_the_rfcs_say() {
        let name = TunnelTarget::Name("a.test", 443);
        let (verdict, sent, left) =
            ask_socks("socks5h://p", &name, b"\x05\0\x05\0\0\x01\x7f\0\0\x01\0\x09rest");
        assert_eq!((verdict, left), (Ok(()), 4));
        assert_eq!(sent, b"\x05\x01\0\x05\x01\0\x03\x06a.test\x01\xbb");
        let v4 = TunnelTarget::Address("1.2.3.4:80".parse().unwrap());
        let (verdict, sent, left) =
            ask_socks("socks5://u%40:p%3A@p", &v4, b"\x05\x02\x01\0\x05\0\0\x03\x02ab\0\x09");
        assert_eq!((verdict, left), (Ok(()), 0));
        assert_eq!(sent, b"\x05\x02\0\x02\x01\x02u@\x02p:\x05\x01\0\x01\x01\x02\x03\x04\0\x50");
        let v6 = TunnelTarget::Address("[::1]:443".parse().unwrap());
        let (verdict, sent, _) = ask_socks("socks5://u@p", &v6, b"\x05\0\x05\0\0\x04aaaabbbbccccdddd\0\x09");
        assert_eq!(verdict, Ok(()));
        assert!(sent.ends_with(b"\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x01\xbb"));
        for (answers, why) in [
            (&b"\x05\xff"[..], "asks for a user name"),
            (b"\x04\0", "as a socks5 proxy"),
            (b"HTTP/1.1 400 Bad Request", "as a socks5 proxy"),
            (b"\x05\x02", "asks for a user name"),
            (b"\x05\0\x05\x05\0\x01", "the host refused"),
            (b"\x05\0\x05\x63\0\x01", "could not connect"),
            (b"\x05\0\x05\0\0\x07", "as a socks5 proxy"),
            (b"\x05\0\x05\0", "fill whole buffer"),
        ] {
            let (verdict, _, _) = ask_socks("socks5://p", &name, answers);
            assert!(verdict.as_ref().is_err_and(|said| said.contains(why)), "{answers:?}: {verdict:?}");
        }
        let (verdict, _, _) = ask_socks("socks5://u:wrong@p", &name, b"\x05\x02\x01\x01");
        assert!(verdict.unwrap_err().contains("does not accept the user name"));
        let long = "a".repeat(300);
        let (verdict, _, _) = ask_socks("socks5h://p", &TunnelTarget::Name(&long, 1), b"\x05\0");
        assert!(verdict.unwrap_err().contains("too long"));
    }

    #[test]
    fn a_tunnel_ends_with_the_proxys_header() {
        let ask = |proxy: &str, answer: &[u8]| {
            let mut script = Script(Cursor::new(answer.to_vec()), Vec::new());
            let verdict = connect(&mut script, &Proxy::new(proxy).unwrap(), "::1", 443);
            let left = answer.len() - usize::try_from(script.0.position()).unwrap();
            (verdict.map_err(|error| error.to_string()), String::from_utf8(script.1).unwrap(), left)
        };
        let (verdict, sent, left) =
            ask("http://u:p@x", b"HTTP/1.0 200 Connection established\r\nA: b\r\n\r\ntls");
        assert_eq!((verdict, left), (Ok(()), 3));
        assert!(sent.starts_with("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n"), "{sent}");
        assert!(sent.contains("\r\nProxy-Authorization: Basic dTpw\r\n"), "{sent}");
        assert!(ask("http://x", b"HTTP/1.1 204\r\n\r\n").0.is_ok());
        for (answer, why) in [
            (&b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..], "(407)"),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "answered 502"),
            (b"SSH-2.0-x\r\n\r\n", "as an http proxy"),
            (b"HTTP/1.1 200", "fill whole buffer"),
            (&[b'x'; PROXY_HEADER_BYTES_MAX + 9], "longer than allowed"),
        ] {
            let verdict = ask("http://x", answer).0;
            assert!(verdict.as_ref().is_err_and(|said| said.contains(why)), "{verdict:?}");
        }
    }
}
