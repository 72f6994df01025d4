//! RTSP/1.0 on the wire, camera side: requests in, responses out, digest answers checked.
//!
//! Standard: [RFC 2326 6, 7, 10.12, 12.39], [RFC 2617 3.2.2] with and without qop.
//! In: the connection's receive buffer. Out: one `Step` at a time, and response bytes.
//! Invariants: never looks beyond `REQUEST_MAX`; never panics on any input.
//! Not here: what a request means (`session`).

use std::net::{IpAddr, SocketAddr};

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// Largest request we take, head and body: the longest honest one is a few hundred bytes.
pub(super) const REQUEST_MAX: usize = 16 << 10;

/// One thing at the head of the receive buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes are needed.
    Incomplete,
    /// This many bytes are interleaved binary data or blank lines; skip them.
    Skip(usize),
    /// A request, and how many bytes it took.
    Request(Request, usize),
    /// Not RTSP, or too large: answer 400 and close.
    Bad,
}

/// A request, its body dropped: no request we serve has one that matters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub method: String,
    pub uri: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// First header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The path of the request URI, without query, trailing slash and last `/trackID=N`, and that N.
    pub fn path(&self) -> (&str, Option<usize>) {
        let after_scheme = self.uri.split_once("://").map_or(self.uri.as_str(), |(_, rest)| rest);
        let path = after_scheme.find('/').map_or("/", |slash| &after_scheme[slash..]);
        let path = path.split(['?', '#']).next().unwrap_or(path).trim_end_matches('/');
        match path.rsplit_once("/trackID=") {
            Some((mount, track)) => (mount.trim_end_matches('/'), Some(track.parse().unwrap_or(usize::MAX))),
            None => (path, None),
        }
    }

    /// The request URI without `/trackID=N`, query and trailing slash: what relative control names are relative to.
    pub fn base_uri(&self) -> &str {
        let uri = self.uri.split(['?', '#']).next().unwrap_or(&self.uri);
        uri.rsplit_once("/trackID=").map_or(uri, |(mount, _)| mount).trim_end_matches('/')
    }
}

/// Looks at the head of the receive buffer.
pub(super) fn step(buf: &[u8]) -> Step {
    match buf {
        [] => return Step::Incomplete,
        [b'$', _, hi, lo, rest @ ..] => {
            let len = usize::from(u16::from_be_bytes([*hi, *lo]));
            return if rest.len() < len { Step::Incomplete } else { Step::Skip(4 + len) };
        }
        [b'$', ..] => return Step::Incomplete,
        [b'\r' | b'\n', ..] => return Step::Skip(1),
        _ => {}
    }
    let window = &buf[..buf.len().min(REQUEST_MAX)];
    let too_long = if buf.len() >= REQUEST_MAX { Step::Bad } else { Step::Incomplete };
    let Some(head_len) = memchr::memmem::find(window, b"\r\n\r\n").map(|at| at + 4) else {
        return too_long;
    };
    let head = String::from_utf8_lossy(&window[..head_len]);
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(uri), Some("RTSP/1.0"), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Step::Bad;
    };
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let request = Request { method: method.to_owned(), uri: uri.to_owned(), headers };
    let body_len = match request.header("Content-Length").map(str::parse::<usize>) {
        None => 0,
        Some(Ok(len)) if len <= REQUEST_MAX - head_len => len,
        Some(_) => return Step::Bad,
    };
    if buf.len() < head_len + body_len { Step::Incomplete } else { Step::Request(request, head_len + body_len) }
}

/// Appends a response. `headers` come after CSeq.
pub(super) fn respond(out: &mut Vec<u8>, status: u16, cseq: Option<&str>, headers: &[(&str, &str)], body: &str) {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        453 => "Not Enough Bandwidth",
        454 => "Session Not Found",
        455 => "Method Not Valid in This State",
        459 => "Aggregate Operation Not Allowed",
        461 => "Unsupported Transport",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        _ => "Error",
    };
    let mut text = format!("RTSP/1.0 {status} {reason}\r\n");
    let mut line = |name: &str, value: &str| {
        text.push_str(name);
        text.push_str(": ");
        text.push_str(value);
        text.push_str("\r\n");
    };
    if let Some(cseq) = cseq {
        line("CSeq", cseq);
    }
    line("Server", "Simulated camera");
    for (name, value) in headers {
        line(name, value);
    }
    if !body.is_empty() {
        line("Content-Length", &body.len().to_string());
    }
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.as_bytes());
}

/// What the client asked for in Transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Interleaved, with this channel for RTP and the next one for RTCP if the client chose.
    Interleaved(Option<u8>),
    /// Unicast UDP to this port and the next.
    Udp(u16),
}

/// The first transport of the header that we can serve.
pub(super) fn transport(header: &str) -> Option<Wanted> {
    header.split(',').find_map(|one| {
        let mut fields = one.split(';').map(str::trim);
        let protocol = fields.next()?;
        let fields: Vec<&str> = fields.collect();
        let first_of = |key: &str| {
            let value = fields.iter().find_map(|f| f.strip_prefix(key)?.strip_prefix('='))?;
            Some(value.split('-').next().unwrap_or(value))
        };
        if fields.iter().any(|f| f.eq_ignore_ascii_case("multicast")) {
            return None;
        }
        match protocol.to_ascii_uppercase().as_str() {
            "RTP/AVP/TCP" => match first_of("interleaved").map(str::parse::<u8>) {
                None => Some(Wanted::Interleaved(None)),
                Some(Ok(channel)) if channel < u8::MAX => Some(Wanted::Interleaved(Some(channel))),
                Some(_) => None,
            },
            "RTP/AVP" | "RTP/AVP/UDP" => {
                first_of("client_port")?.parse().ok().filter(|p| (1..u16::MAX).contains(p)).map(Wanted::Udp)
            }
            _ => None,
        }
    })
}

/// Checks the Authorization header of `request` against the account and the nonce we gave out.
pub(super) fn authorised(request: &Request, realm: &str, nonce: &str, username: &str, password: &str) -> bool {
    let Some(answer) = request.header("Authorization").and_then(|h| h.trim_start().strip_prefix("Digest ")) else {
        return false;
    };
    let field = |name: &str| digest_field(answer, name).unwrap_or_default();
    let ha1 = md5_hex(&[username, realm, password]);
    let ha2 = md5_hex(&[&request.method, field("uri")]);
    let expected = match field("qop") {
        "" => md5_hex(&[&ha1, nonce, &ha2]),
        qop => md5_hex(&[&ha1, nonce, field("nc"), field("cnonce"), qop, &ha2]),
    };
    let named = field("username") == username && field("realm") == realm && field("nonce") == nonce;
    named & bool::from(expected.as_bytes().ct_eq(field("response").to_ascii_lowercase().as_bytes()))
}

/// A parameter of a digest header; quoted values lose their quotes. Escapes are left as they are.
fn digest_field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = header;
    while let Some((key, tail)) = rest.split_once('=') {
        let (value, tail) = match tail.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => tail.split_once(',').unwrap_or((tail, "")),
        };
        if key.trim_matches([' ', ',', '\t']).eq_ignore_ascii_case(name) {
            return Some(value.trim());
        }
        rest = tail;
    }
    None
}

fn md5_hex(parts: &[&str]) -> String {
    Md5::digest(parts.join(":").as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

/// The SDP connection line for our address [RFC 4566 5.7].
pub(super) fn connection_line(local: SocketAddr) -> &'static str {
    match local.ip() {
        IpAddr::V4(_) => "c=IN IP4 0.0.0.0",
        IpAddr::V6(_) => "c=IN IP6 ::",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(text: &str) -> Request {
        match step(text.as_bytes()) {
            Step::Request(request, len) => {
                assert_eq!(len, text.len());
                request
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_found_however_it_is_cut() {
        let text =
            "SET_PARAMETER rtsp://h:8554/main/trackID=1?x=/y RTSP/1.0\r\ncseq:  7 \r\nContent-Length: 5\r\n\r\nbody!";
        for cut in 1..text.len() {
            assert_eq!(step(&text.as_bytes()[..cut]), Step::Incomplete, "{cut}");
        }
        let r = request(text);
        assert_eq!((r.method.as_str(), r.header("CSeq")), ("SET_PARAMETER", Some("7")));
        assert_eq!(r.path(), ("/main", Some(1)));
        assert_eq!(r.base_uri(), "rtsp://h:8554/main");
    }

    #[test]
    fn paths() {
        let path = |uri: &str| {
            let r = Request { method: String::new(), uri: uri.into(), headers: vec![] };
            let (path, track) = r.path();
            (path.to_owned(), track)
        };
        assert_eq!(path("rtsp://h/a/b/"), ("/a/b".into(), None));
        assert_eq!(path("rtsp://h"), (String::new(), None));
        assert_eq!(path("*"), (String::new(), None));
        assert_eq!(path("rtsp://h/a/trackID=x"), ("/a".into(), Some(usize::MAX)));
    }

    #[test]
    fn what_is_not_rtsp_is_bad_and_what_is_too_long_too() {
        assert_eq!(step(b"GET / HTTP/1.1\r\n\r\n"), Step::Bad);
        assert_eq!(step(b"OPTIONS * RTSP/1.0\r\nContent-Length: 99999999999999999999\r\n\r\n"), Step::Bad);
        assert_eq!(step(b"OPTIONS * RTSP/1.0\r\nContent-Length: 16384\r\n\r\n"), Step::Bad);
        assert_eq!(step(&[b'A'; REQUEST_MAX]), Step::Bad);
        assert_eq!(step(&[b'A'; REQUEST_MAX - 1]), Step::Incomplete);
    }

    #[test]
    fn interleaved_data_is_skipped() {
        assert_eq!(step(b"$\x01\x00\x03abcOPTIONS"), Step::Skip(7));
        assert_eq!(step(b"$\x01\x00\x03ab"), Step::Incomplete);
        assert_eq!(step(b"\r\nOPTIONS"), Step::Skip(1));
    }

    #[test]
    fn transports() {
        assert_eq!(transport("RTP/AVP/TCP;unicast;interleaved=2-3"), Some(Wanted::Interleaved(Some(2))));
        assert_eq!(transport("RTP/AVP/TCP;unicast"), Some(Wanted::Interleaved(None)));
        assert_eq!(transport("RTP/AVP/TCP;unicast;interleaved=255-0"), None);
        assert_eq!(transport("RTP/SAVP;unicast,RTP/AVP;unicast;client_port=5000-5001"), Some(Wanted::Udp(5000)));
        assert_eq!(transport("RTP/AVP;multicast;client_port=5000-5001"), None);
        assert_eq!(transport("RTP/AVP/UDP;unicast;client_port=65535-0"), None);
        assert_eq!(transport("RTP/AVP;unicast"), None);
    }

    #[test]
    fn digest_answers() {
        // the worked example of RFC 2617 3.5
        let with_qop = request(concat!(
            "GET /dir/index.html RTSP/1.0\r\nAuthorization: Digest username=\"Mufasa\", realm=\"testrealm@host.com\", ",
            "nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\", uri=\"/dir/index.html\", qop=auth, nc=00000001, ",
            "cnonce=\"0a4f113b\", response=\"6629fae49393a05397450978507c4ef1\", ",
            "opaque=\"5ccc069c403ebaf9f0171e9517f40e41\"\r\n\r\n"
        ));
        let nonce = "dcd98b7102dd2f0e8b11d0f600bfb0c093";
        assert!(authorised(&with_qop, "testrealm@host.com", nonce, "Mufasa", "Circle Of Life"));
        assert!(!authorised(&with_qop, "testrealm@host.com", nonce, "Mufasa", "circle of life"));
        assert!(!authorised(&with_qop, "testrealm@host.com", "other", "Mufasa", "Circle Of Life"));
        let response = md5_hex(&[&md5_hex(&["u", "r", "p"]), "n", &md5_hex(&["PLAY", "rtsp://h/m"])]).to_uppercase();
        let plain = request(&format!(
            "PLAY rtsp://h/m RTSP/1.0\r\nAuthorization: Digest username=\"u\",realm=\"r\",nonce=\"n\",uri=\"rtsp://h/m\",\
             response=\"{response}\"\r\n\r\n"
        ));
        assert!(authorised(&plain, "r", "n", "u", "p"));
        for broken in ["Digest response=\"", "Digest =", "Digest", "Basic dTpw", "Digest username"] {
            let r = request(&format!("PLAY * RTSP/1.0\r\nAuthorization: {broken}\r\n\r\n"));
            assert!(!authorised(&r, "r", "n", "u", "p"));
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[ -~\r\n]{0,120}") {
            let _ = step(&bytes);
            let _ = step(text.as_bytes());
            let _ = transport(&text);
            let _ = digest_field(&text, "nonce");
        }
    }
}
