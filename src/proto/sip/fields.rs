//! The few header parts that transactions, dialogs and registration need, read from header text without copying.
//!
//! Standard: [RFC3261 20, 25.1], [RFC3581].
//! In: `Headers`. Out: slices of their text; `None` where it cannot be read.
//! Invariants: never panics; a quoted string or a `<…>` is never cut at a separator inside it.
//! Not here: checking of whole messages (the parser answers 400 before a message comes here).

use super::message::Headers;
use std::net::{IpAddr, SocketAddr};

/// Position of the first `sep` of `text` that stands outside quotes and angle brackets.
fn find_outside(text: &str, sep: u8) -> Option<usize> {
    let (mut quoted, mut escaped, mut angle) = (false, false, false);
    for (i, byte) in text.bytes().enumerate() {
        if escaped {
            escaped = false;
            continue;
        }
        match byte {
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b if b == sep && !quoted && !angle => return Some(i),
            b'<' if !quoted => angle = true,
            b'>' if !quoted => angle = false,
            _ => {}
        }
    }
    None
}

/// The parts of `text` between separators that stand outside quotes and angle brackets, trimmed, empty ones left out.
pub(super) fn split_outside(text: &str, sep: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        match find_outside(text, sep) {
            Some(at) => {
                rest = Some(&text[at + 1..]);
                Some(&text[..at])
            }
            None => rest.take(),
        }
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

/// The value of parameter `name` in `text` (`;a=b;c`): `Some("")` when it has none.
pub(super) fn param<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    split_outside(text, b';').skip(1).find_map(|part| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

/// The topmost Via.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Via<'a> {
    /// The whole value, without the Vias that may follow it in the same header.
    pub text: &'a str,
    /// `host[:port]` as written.
    pub sent_by: &'a str,
}

impl<'a> Via<'a> {
    /// The branch; empty when there is none.
    pub fn branch(&self) -> &'a str {
        param(self.text, "branch").unwrap_or("")
    }
    /// The address the other side saw us at.
    pub fn received(&self) -> Option<IpAddr> {
        param(self.text, "received")?.trim_matches(['[', ']']).parse().ok()
    }
    /// The port the other side saw us at.
    pub fn rport(&self) -> Option<u16> {
        param(self.text, "rport")?.parse().ok()
    }
}

/// The topmost Via of a message.
pub(super) fn top_via(headers: &Headers) -> Option<Via<'_>> {
    let value = headers.get("Via")?;
    let text = value[..find_outside(value, b',').unwrap_or(value.len())].trim();
    let head = &text[..find_outside(text, b';').unwrap_or(text.len())];
    Some(Via { text, sent_by: sent_by_of(head)? })
}

/// The sent-by of `SIP / 2.0 / UDP host:port`: what follows the transport, which follows the second slash.
fn sent_by_of(head: &str) -> Option<&str> {
    let after = head.splitn(3, '/').nth(2)?.trim();
    let sent_by = after.split_once(char::is_whitespace)?.1.trim();
    (!sent_by.is_empty()).then_some(sent_by)
}

/// The value of the first Via header with `received` and `rport` of its topmost Via filled in. [RFC3261 18.2.1],
/// [RFC3581 4]
pub(super) fn stamped_via(value: &str, peer: SocketAddr) -> String {
    let end = find_outside(value, b',').unwrap_or(value.len());
    let (top, others) = value.split_at(end);
    let asked_rport = param(top, "rport").is_some();
    let mut out = String::with_capacity(value.len() + 48);
    let head_end = find_outside(top, b';').unwrap_or(top.len());
    out.push_str(top[..head_end].trim_end());
    for part in split_outside(&top[head_end..], b';') {
        let key = part.split_once('=').map_or(part, |(k, _)| k).trim();
        if !key.eq_ignore_ascii_case("rport") && !key.eq_ignore_ascii_case("received") {
            out.push(';');
            out.push_str(part);
        }
    }
    let host = host_of(sent_by_of(&top[..head_end]).unwrap_or(""));
    if asked_rport || host.parse::<IpAddr>().ok() != Some(peer.ip()) {
        out.push_str(&format!(";received={}", peer.ip()));
    }
    if asked_rport {
        out.push_str(&format!(";rport={}", peer.port()));
    }
    out.push_str(others);
    out
}

/// The host of `host[:port]`, without the brackets of IPv6.
pub(super) fn host_of(host_port: &str) -> &str {
    match host_port.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => host_port.split_once(':').map_or(host_port, |(host, _)| host),
    }
}

/// The port of `host[:port]`.
pub(super) fn port_of(host_port: &str) -> Option<u16> {
    let tail = match host_port.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.1,
        None => host_port,
    };
    tail.rsplit_once(':')?.1.trim().parse().ok()
}

/// CSeq: number and method.
pub(super) fn cseq(headers: &Headers) -> Option<(u32, &str)> {
    let mut parts = headers.get("CSeq")?.split_ascii_whitespace();
    Some((parts.next()?.parse().ok()?, parts.next()?))
}

/// Call-ID; empty when missing.
pub(super) fn call_id(headers: &Headers) -> &str {
    headers.get("Call-ID").unwrap_or("").trim()
}

/// The tag of a From or To value; empty when it has none.
pub(super) fn tag_of(value: &str) -> &str {
    param(value, "tag").unwrap_or("")
}

/// The tag of header `name` (From, To); empty when missing.
pub(super) fn tag<'a>(headers: &'a Headers, name: &str) -> &'a str {
    headers.get(name).map_or("", tag_of)
}

/// A From or To value without its header parameters (the tag among them): what a dialog keeps.
pub(super) fn without_params(value: &str) -> &str {
    value[..find_outside(value, b';').unwrap_or(value.len())].trim()
}

/// The URI of a name-addr or addr-spec value, with the URI's own parameters when it stood in angle brackets.
pub(super) fn uri_of(value: &str) -> &str {
    // A quoted display name may hold `<`; what is searched is the first one outside quotes.
    match find_outside(value, b'<') {
        Some(open) => {
            let inner = &value[open + 1..];
            inner[..inner.find('>').unwrap_or(inner.len())].trim()
        }
        None => without_params(value),
    }
}

/// `user` and `host[:port]` of a SIP URI; the user is empty when there is none.
pub(super) fn user_and_host(uri: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = uri.split_once(':')?;
    if !scheme.eq_ignore_ascii_case("sip") && !scheme.eq_ignore_ascii_case("sips") {
        return None;
    }
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (user.split_once(':').map_or(user, |(name, _)| name), rest),
        None => ("", rest),
    };
    let host = rest[..rest.find([';', '?']).unwrap_or(rest.len())].trim();
    (!host.is_empty()).then_some((user, host))
}

/// Parameter `name` of a SIP URI.
pub(super) fn uri_param<'a>(uri: &'a str, name: &str) -> Option<&'a str> {
    let host_part = uri.rsplit_once('@').map_or(uri, |(_, rest)| rest);
    param(host_part.split_once('?').map_or(host_part, |(head, _)| head), name)
}

/// A number of seconds (`Expires`, `Min-Expires`, `;expires=`).
pub(super) fn seconds(text: &str) -> Option<u32> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn via(value: &str) -> Headers {
        let mut headers = Headers::new();
        headers.push("Via", value);
        headers
    }

    #[test]
    fn reads_the_topmost_via() {
        let headers =
            via("SIP / 2.0 / UDP  [2001:db8::1]:5060 ;branch=z9hG4bK@a/b=c;RPORT=7;received=192.0.2.9, SIP/2.0/TCP x");
        let top = top_via(&headers).unwrap();
        assert_eq!(top.sent_by, "[2001:db8::1]:5060");
        assert_eq!(top.branch(), "z9hG4bK@a/b=c");
        assert_eq!((top.received(), top.rport()), ("192.0.2.9".parse().ok(), Some(7)));
        assert_eq!((host_of(top.sent_by), port_of(top.sent_by)), ("2001:db8::1", Some(5060)));
        for bad in ["", "SIP/2.0", "SIP/2.0/UDP", "SIP/2.0/UDP ;branch=1", ";;;"] {
            assert_eq!(top_via(&via(bad)), None, "{bad}");
        }
    }

    #[test]
    fn stamps_only_the_topmost_via() {
        let peer = "198.51.100.7:40000".parse().unwrap();
        assert_eq!(
            stamped_via("SIP/2.0/UDP 10.0.0.1:5060;rport;branch=b;received=6.6.6.6, SIP/2.0/UDP p;rport", peer),
            "SIP/2.0/UDP 10.0.0.1:5060;branch=b;received=198.51.100.7;rport=40000, SIP/2.0/UDP p;rport"
        );
        assert_eq!(stamped_via("SIP/2.0/UDP 198.51.100.7;branch=b", peer), "SIP/2.0/UDP 198.51.100.7;branch=b");
        assert_eq!(
            stamped_via("SIP/2.0/UDP cam.example;branch=b", peer),
            "SIP/2.0/UDP cam.example;branch=b;received=198.51.100.7"
        );
    }

    #[test]
    fn reads_addresses_with_awkward_quoting() {
        let value = r#""a;tag=no <sip:x@y>\"" <sip:34;01@h:5061;transport=tcp?a=b>;tag=yes;expires=60"#;
        assert_eq!(tag_of(value), "yes");
        assert_eq!(uri_of(value), "sip:34;01@h:5061;transport=tcp?a=b");
        assert_eq!(user_and_host(uri_of(value)), Some(("34;01", "h:5061")));
        assert_eq!(uri_param(uri_of(value), "transport"), Some("tcp"));
        assert_eq!(without_params("sip:a@b;tag=1"), "sip:a@b");
        assert_eq!(uri_of("sip:a@b;tag=1"), "sip:a@b");
        assert_eq!(user_and_host("tel:123"), None);
        assert_eq!(user_and_host("sip:h"), Some(("", "h")));
    }

    #[test]
    fn reads_cseq_or_refuses_it() {
        let read = |text: &str| {
            let mut headers = Headers::new();
            headers.push("CSeq", text);
            cseq(&headers).map(|(n, m)| (n, m.to_owned()))
        };
        assert_eq!(read(" 7   INVITE "), Some((7, "INVITE".into())));
        for bad in ["", "7", "4294967296 INVITE", "-1 INVITE", "x INVITE"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn never_panics(text in "[ -~<>\";:,=@\\\\\u{4e2d}]{0,60}") {
            let headers = via(&text);
            let _ = top_via(&headers).map(|v| (v.branch().len(), v.received(), v.rport()));
            let _ = stamped_via(&text, "192.0.2.1:5060".parse().unwrap());
            let _ = (tag_of(&text), without_params(&text), host_of(&text), port_of(&text));
            let _ = user_and_host(uri_of(&text)).map(|_| uri_param(&text, "x"));
        }
    }
}
