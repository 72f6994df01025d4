//! Typed readers of header values.
//! Standard: [RFC3261 19.1], [RFC3261 20], [RFC3261 25.1], [RFC3581 3].
//! In: values in the form `normalize` leaves them. Out: `NameAddr`, `SipUri`, `Via`, `CSeq` and plain numbers.
//! Invariants: no reader panics, none resolves names, none looks at bytes outside its value; parameter values are kept
//! as written (quotes included) so that writing a value gives back its meaning.
//! Deviations: an unquoted display name may hold any character [RFC4475 3.1.2.15]; host names may hold `_`.
//! Not here: whether a message as a whole is acceptable (`parse`), credentials (`digest`).

use super::message::Headers;
use super::normalize::{Place, is_token, split_outside};
use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A header that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The message has no such field.
    #[error("header {0} not read: it is missing: the sender must add it")]
    Missing(&'static str),
    /// The field is there and breaks the grammar.
    #[error("header {0} not read: its value breaks the grammar: see the message on the wire")]
    Syntax(&'static str),
}

/// Why a URI could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// Not `sip:` or `sips:`, but a scheme by its form.
    #[error("URI not read: its scheme is neither sip nor sips: give a SIP address")]
    Scheme,
    /// Breaks the grammar.
    #[error("URI not read: it breaks the grammar: give sip:<user>@<host>:<port>")]
    Syntax,
}

/// `;name=value` parameters in order, values as written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(Vec<(String, Option<String>)>);

impl Params {
    /// The value of `name`, ignoring case; `Some("")` for a parameter without a value.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_deref().unwrap_or(""))
    }

    /// True when `name` is there, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// Sets `name`, in its place when it is there already.
    pub fn set(&mut self, name: &str, value: Option<String>) {
        match self.0.iter_mut().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// All in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_deref()))
    }

    /// `text` is what stands behind the first `;`. One trailing `;` is let pass: devices write it.
    fn parse(text: &str, name_ok: impl Fn(&str) -> bool) -> Option<Params> {
        let mut parts = split_outside(text, ';');
        if parts.len() > 1 && parts.last().is_some_and(|last| last.is_empty()) {
            parts.pop();
        }
        let mut params = Vec::with_capacity(parts.len());
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim())),
                None => (part, None),
            };
            if !name_ok(name) || value.is_some_and(|v| !param_value_ok(v)) {
                return None;
            }
            params.push((name.to_owned(), value.map(str::to_owned)));
        }
        Some(Params(params))
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.iter() {
            match value {
                Some(value) => write!(f, ";{name}={value}")?,
                None => write!(f, ";{name}")?,
            }
        }
        Ok(())
    }
}

/// A whole quoted string, or text without white space, comma or brackets.
fn param_value_ok(value: &str) -> bool {
    if value.starts_with('"') {
        return unquote(value).is_some();
    }
    !value.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, ',' | '"' | '<' | '>'))
}

/// The text of a quoted string that is all of `value`. [RFC3261 25.1]
pub fn unquote(value: &str) -> Option<String> {
    let inner = value.strip_prefix('"')?;
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    loop {
        match chars.next()? {
            '\\' => out.push(chars.next()?),
            '"' => return chars.as_str().is_empty().then_some(out),
            c => out.push(c),
        }
    }
}

/// `text` as a quoted string. [RFC3261 25.1]
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// Undoes `%hh`. Bytes that are no UTF-8 afterwards become U+FFFD; a `%` without two digits stays. [RFC3261 19.1.2]
pub fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// Digits only, within `u32`; leading zeros are legal. [RFC3261 25.1]
pub fn digits(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// `host[:port]`, the host as written (IPv6 with its brackets). [RFC3261 25.1]
fn host_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(v6) => {
            let (address, rest) = v6.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (&text[..address.len() + 2], rest)
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let host = &text[..end];
            if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
                return None;
            }
            (host, &text[end..])
        }
    };
    let port = match rest.strip_prefix(':') {
        Some(port) => Some(digits(port)?.try_into().ok()?),
        None if rest.is_empty() => None,
        None => return None,
    };
    Some((host.to_owned(), port))
}

/// The address, when `host` is one (brackets allowed).
fn ip_of(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// A `sip:` or `sips:` URI. [RFC3261 19.1.1]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SipUri {
    /// `sip` or `sips`, in lower case.
    pub scheme: String,
    /// The user part as written, escapes included.
    pub user: Option<String>,
    /// What follows `:` in the user part.
    pub password: Option<String>,
    /// Host as written; IPv6 in brackets.
    pub host: String,
    /// Port, when given.
    pub port: Option<u16>,
    /// URI parameters.
    pub params: Params,
    /// Escaped headers: what follows `?`. Never acted on.
    pub headers: Option<String>,
}

impl SipUri {
    /// Reads a URI that is all of `text`.
    ///
    /// # Errors
    /// `Scheme` for another scheme, `Syntax` for anything that is no URI.
    pub fn parse(text: &str) -> Result<SipUri, UriError> {
        if text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | '"')) {
            return Err(UriError::Syntax);
        }
        let (scheme, rest) = text.split_once(':').filter(|(s, _)| is_scheme(s)).ok_or(UriError::Syntax)?;
        let scheme = scheme.to_ascii_lowercase();
        if scheme != "sip" && scheme != "sips" {
            return Err(UriError::Scheme);
        }
        // The user part may hold `;` and `?`, so it is cut off first. [RFC4475 3.1.1.9]
        let (userinfo, rest) = match rest.split_once('@') {
            Some((userinfo, rest)) => (Some(userinfo), rest),
            None => (None, rest),
        };
        let (user, password) = match userinfo {
            Some("") => return Err(UriError::Syntax),
            Some(info) => match info.split_once(':') {
                Some((user, password)) => (Some(user), Some(password)),
                None => (Some(info), None),
            },
            None => (None, None),
        };
        let (rest, headers) = match rest.split_once('?') {
            Some((rest, headers)) => (rest, Some(headers.to_owned())),
            None => (rest, None),
        };
        let (address, params) = match rest.split_once(';') {
            Some((address, params)) => {
                (address, Params::parse(params, |n| !n.is_empty() && !n.contains(['@', ','])).ok_or(UriError::Syntax)?)
            }
            None => (rest, Params::default()),
        };
        let (host, port) = host_port(address).ok_or(UriError::Syntax)?;
        Ok(SipUri {
            scheme,
            user: user.map(str::to_owned),
            password: password.map(str::to_owned),
            host,
            port,
            params,
            headers,
        })
    }

    /// The host as an address, when it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        ip_of(&self.host)
    }
}

impl fmt::Display for SipUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if let Some(user) = &self.user {
            f.write_str(user)?;
            if let Some(password) = &self.password {
                write!(f, ":{password}")?;
            }
            f.write_str("@")?;
        }
        f.write_str(&self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        write!(f, "{}", self.params)?;
        match &self.headers {
            Some(headers) => write!(f, "?{headers}"),
            None => Ok(()),
        }
    }
}

/// `scheme` of the grammar. [RFC3261 25.1]
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// From, To, Contact, Route: an address with parameters. [RFC3261 20.10]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameAddr {
    /// The display name without its quotes.
    pub display: Option<String>,
    /// The URI as written, of any scheme.
    pub uri: String,
    /// Parameters of the header, not of the URI.
    pub params: Params,
}

impl NameAddr {
    /// Reads one value. Without angle brackets, parameters belong to the header and a `?` is refused.
    pub fn parse(value: &str) -> Option<NameAddr> {
        let mut place = Place::default();
        let opened = value.char_indices().find(|(_, c)| !place.step(*c) && *c == '<' && !place.in_quotes());
        let (display, uri, rest) = match opened {
            Some((at, _)) => {
                let (uri, rest) = value[at + 1..].split_once('>')?;
                let display = value[..at].trim();
                let display = match display.is_empty() {
                    true => None,
                    false if display.starts_with('"') => Some(unquote(display)?),
                    false => Some(display.to_owned()),
                };
                (display, uri, rest.trim())
            }
            None if place.in_quotes() => return None,
            None => {
                let end = value.find(';').unwrap_or(value.len());
                let uri = value[..end].trim();
                if uri.contains(['?', ',']) {
                    return None;
                }
                (None, uri, &value[end..])
            }
        };
        if uri.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | '"')) {
            return None;
        }
        let (scheme, what) = uri.split_once(':')?;
        if !is_scheme(scheme) || what.is_empty() {
            return None;
        }
        let params = match rest.strip_prefix(';') {
            Some(params) => Params::parse(params, is_token)?,
            None if rest.is_empty() => Params::default(),
            None => return None,
        };
        Some(NameAddr { display, uri: uri.to_owned(), params })
    }

    /// The `tag` parameter; an empty one counts as none.
    pub fn tag(&self) -> Option<&str> {
        self.params.value("tag").filter(|tag| !tag.is_empty())
    }

    /// The user part of a SIP URI, escapes undone.
    pub fn user(&self) -> Option<String> {
        SipUri::parse(&self.uri).ok()?.user.map(|user| unescape(&user).into_owned())
    }

    /// The `expires` parameter in seconds. [RFC3261 10.2.1.1]
    pub fn expires(&self) -> Option<u32> {
        digits(self.params.value("expires")?)
    }
}

impl fmt::Display for NameAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(display) = &self.display {
            write!(f, "{} ", quote(display))?;
        }
        write!(f, "<{}>{}", self.uri, self.params)
    }
}

/// One Via value. [RFC3261 20.42]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// `UDP`, `TCP`, `TLS` or any other token, as written.
    pub transport: String,
    /// Host of sent-by; IPv6 in brackets.
    pub host: String,
    /// Port of sent-by, when given.
    pub port: Option<u16>,
    /// Parameters.
    pub params: Params,
}

impl Via {
    /// Reads one value (not a list). Any protocol version is read: the start line decides about versions.
    pub fn parse(value: &str) -> Option<Via> {
        let (protocol, rest) = value.split_once(' ')?;
        let mut protocol = protocol.split('/');
        let (name, version, transport) = (protocol.next()?, protocol.next()?, protocol.next()?);
        if !name.eq_ignore_ascii_case("SIP") || !is_token(version) || !is_token(transport) || protocol.next().is_some()
        {
            return None;
        }
        let (sent_by, params) = match rest.split_once(';') {
            Some((sent_by, params)) => (sent_by, Params::parse(params, is_token)?),
            None => (rest, Params::default()),
        };
        let (host, port) = host_port(sent_by.trim())?;
        Some(Via { transport: transport.to_owned(), host, port, params })
    }

    /// The branch, byte for byte; an empty one counts as none.
    pub fn branch(&self) -> Option<&str> {
        self.params.value("branch").filter(|branch| !branch.is_empty())
    }

    /// The `received` address. [RFC3261 18.2.1]
    pub fn received(&self) -> Option<IpAddr> {
        ip_of(self.params.value("received")?)
    }

    /// True when the sender asks for (or was given) `rport`. [RFC3581 3]
    pub fn has_rport(&self) -> bool {
        self.params.has("rport")
    }

    /// The value of `rport`, when filled in. [RFC3581 4]
    pub fn rport(&self) -> Option<u16> {
        digits(self.params.value("rport")?)?.try_into().ok()
    }

    /// The host of sent-by as an address, when it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        ip_of(&self.host)
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SIP/2.0/{} {}", self.transport, self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        write!(f, "{}", self.params)
    }
}

/// CSeq. [RFC3261 20.16]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CSeq {
    /// Below 2^31.
    pub seq: u32,
    /// The method, case kept.
    pub method: String,
}

impl CSeq {
    /// Reads the value; a number of 2^31 or more is refused. [RFC3261 8.1.1.5]
    pub fn parse(value: &str) -> Option<CSeq> {
        let (seq, method) = value.split_once([' ', '\t'])?;
        let method = method.trim();
        let seq = digits(seq).filter(|seq| *seq < 1 << 31)?;
        is_token(method).then(|| CSeq { seq, method: method.to_owned() })
    }
}

impl fmt::Display for CSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.seq, self.method)
    }
}

/// What Contact says. [RFC3261 20.10]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contacts {
    /// `*`: all bindings.
    Star,
    /// Addresses in order; may be empty.
    List(Vec<NameAddr>),
}

fn need<T>(headers: &Headers, name: &'static str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, HeaderError> {
    read(headers.get(name).ok_or(HeaderError::Missing(name))?).ok_or(HeaderError::Syntax(name))
}

/// From. [RFC3261 20.20]
///
/// # Errors
/// Missing or broken.
pub fn from(headers: &Headers) -> Result<NameAddr, HeaderError> {
    need(headers, "From", NameAddr::parse)
}

/// To. [RFC3261 20.39]
///
/// # Errors
/// Missing or broken.
pub fn to(headers: &Headers) -> Result<NameAddr, HeaderError> {
    need(headers, "To", NameAddr::parse)
}

/// CSeq. [RFC3261 20.16]
///
/// # Errors
/// Missing or broken.
pub fn cseq(headers: &Headers) -> Result<CSeq, HeaderError> {
    need(headers, "CSeq", CSeq::parse)
}

/// Call-ID: one word. [RFC3261 20.8]
///
/// # Errors
/// Missing, empty or with white space inside.
pub fn call_id(headers: &Headers) -> Result<&str, HeaderError> {
    let value = headers.get("Call-ID").ok_or(HeaderError::Missing("Call-ID"))?;
    match value.is_empty() || value.contains(char::is_whitespace) {
        true => Err(HeaderError::Syntax("Call-ID")),
        false => Ok(value),
    }
}

/// The first Via: the last hop's. [RFC3261 20.42]
///
/// # Errors
/// Missing or broken.
pub fn top_via(headers: &Headers) -> Result<Via, HeaderError> {
    need(headers, "Via", Via::parse)
}

/// All Contact values. [RFC3261 20.10]
///
/// # Errors
/// `Syntax` when one value is broken, or `*` is not alone.
pub fn parse_contacts(headers: &Headers) -> Result<Contacts, HeaderError> {
    let values: Vec<&str> = headers.get_all("Contact").flat_map(|value| split_outside(value, ',')).collect();
    if values == ["*"] {
        return Ok(Contacts::Star);
    }
    let list: Option<Vec<NameAddr>> = values.into_iter().map(NameAddr::parse).collect();
    list.map(Contacts::List).ok_or(HeaderError::Syntax("Contact"))
}

/// Seconds asked for or granted: Expires, else the first Contact's `expires`. [RFC3261 20.19]
///
/// The field comes first because devices that send both mean it (they leave the parameter at a fixed value when
/// they unregister).
pub fn expires(headers: &Headers) -> Option<u32> {
    if let Some(seconds) = headers.get("Expires").and_then(digits) {
        return Some(seconds);
    }
    match parse_contacts(headers).ok()? {
        Contacts::List(list) => list.first()?.expires(),
        Contacts::Star => None,
    }
}

/// True when Content-Type is `media_type`, ignoring case and parameters; devices write `Application/MANSCDP+XML`,
/// `application/sdp`, `APPLICATION/SDP`. [RFC3261 20.15]
pub fn content_type_is(headers: &Headers, media_type: &str) -> bool {
    headers.get("Content-Type").is_some_and(|value| {
        let value = value.split(';').next().unwrap_or(value);
        match (value.split_once('/'), media_type.split_once('/')) {
            (Some((a, b)), Some((c, d))) => a.trim().eq_ignore_ascii_case(c) && b.trim().eq_ignore_ascii_case(d),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in fields {
            headers.push(*name, *value);
        }
        headers
    }

    #[test]
    fn name_addr_takes_every_form_a_peer_may_write() {
        for (value, display, uri, tag) in [
            ("<sip:1@h>;tag=a", None, "sip:1@h", Some("a")),
            ("sip:1@h;tag=a", None, "sip:1@h", Some("a")),
            ("caller<sip:c@h>", Some("caller"), "sip:c@h", None),
            ("\"a <b> \\\" c\" <sip:c@h;x=1>;p=\"q;tag=no\";TAG=z", Some("a <b> \" c"), "sip:c@h;x=1", Some("z")),
            (
                "Bell, Alexander <sip:a.g.bell@example.com>;tag=43",
                Some("Bell, Alexander"),
                "sip:a.g.bell@example.com",
                Some("43"),
            ),
            ("isbn:2983792873", None, "isbn:2983792873", None),
            ("<sip:1@h>;tag=a;", None, "sip:1@h", Some("a")),
            ("<sip:1@h>;tag=", None, "sip:1@h", None),
        ] {
            let got = NameAddr::parse(value).unwrap_or_else(|| panic!("{value}"));
            assert_eq!((got.display.as_deref(), got.uri.as_str(), got.tag()), (display, uri, tag), "{value}");
            assert_eq!(NameAddr::parse(&got.to_string()), Some(got));
        }
    }

    #[test]
    fn name_addr_refuses_what_cannot_be_one() {
        for value in [
            "",
            "<>",
            "<sip:>",
            "sip",
            "*",
            "\"open <sip:1@h>",
            "<sip:1@h",
            "< sip:1@h >",
            "sip:1@h?Route=x",
            "<sip:1@h> x",
            "<sip:1@h>;;;;",
            "<sip:1@h>;=1",
            "\"a\" b <sip:1@h>",
            "<sip:1@h>;p=\"open",
            "<sip:a b@h>",
            "sip:1@h,sip:2@h",
        ] {
            assert_eq!(NameAddr::parse(value), None, "{value}");
        }
    }

    #[test]
    fn uri_user_part_is_cut_off_before_parameters_and_headers() {
        let uri = SipUri::parse("sip:user;par=u%40example.net@example.com;lr?X=1").unwrap();
        assert_eq!(uri.user.as_deref(), Some("user;par=u%40example.net"));
        assert_eq!((uri.host.as_str(), uri.port, uri.params.has("LR")), ("example.com", None, true));
        assert_eq!(uri.headers.as_deref(), Some("X=1"));
        let uri = SipUri::parse("SIP:a.b:pw@[2001:db8::1]:5061;transport=tcp").unwrap();
        assert_eq!((uri.user.as_deref(), uri.password.as_deref(), uri.port), (Some("a.b"), Some("pw"), Some(5061)));
        assert_eq!(uri.ip(), "2001:db8::1".parse().ok());
        assert_eq!(uri.to_string(), "sip:a.b:pw@[2001:db8::1]:5061;transport=tcp");
        let named = |uri: &str| NameAddr::parse(&format!("<{uri}>")).unwrap().user();
        assert_eq!(named("sip:%75se%72@example.com").as_deref(), Some("user"));
        assert_ne!(named("sip:%00@h"), named("sip:%00%00@h"));
    }

    #[test]
    fn uri_refusals_tell_scheme_from_syntax() {
        for uri in ["tel:+1", "soap.beep://192.0.2.103:3002", "nobodyKnowsThisScheme:totallyopaquecontent"] {
            assert_eq!(SipUri::parse(uri), Err(UriError::Scheme), "{uri}");
        }
        for uri in [
            "",
            "sip",
            "sip:",
            "sip:@h",
            "sip:u@",
            "sip:u@h:",
            "sip:u@h:99999",
            "sip:u@h:-1",
            "sip:u@2001:db8::1",
            "sip:u@[::1",
            "sip:u@[zz]",
            "sip:u@h o",
            "<sip:u@h>",
            "sip:u@h;;lr",
            "sip:u@a@b",
            "34020000002000000001",
            "1:2",
        ] {
            assert_eq!(SipUri::parse(uri), Err(UriError::Syntax), "{uri}");
        }
    }

    #[test]
    fn via_gives_branch_byte_for_byte_and_rport_in_both_forms() {
        let via = Via::parse("SIP/2.0/UDP [2001:db8::9]:5060;rport;branch=z9hG4bK@a:b/c=d").unwrap();
        assert_eq!((via.branch(), via.has_rport(), via.rport()), (Some("z9hG4bK@a:b/c=d"), true, None));
        assert_eq!((via.ip(), via.port), ("2001:db8::9".parse().ok(), Some(5060)));
        let via = Via::parse("SIP/2.0/SCTP h_1.example.com;received=192.0.2.5;rport=15060;branch=").unwrap();
        assert_eq!((via.received(), via.rport(), via.branch()), ("192.0.2.5".parse().ok(), Some(15060), None));
        for value in [
            "",
            "SIP/2.0/UDP",
            "SIP/2.0 h",
            "HTTP/2.0/UDP h",
            "SIP/2.0/UDP h;;,;,,",
            "SIP/2.0/UDP h:70000",
            "SIP/2.0/UDP ::1",
        ] {
            assert_eq!(Via::parse(value), None, "{value}");
        }
    }

    #[test]
    fn cseq_stays_below_two_to_the_31() {
        assert_eq!(CSeq::parse("0009 INVITE"), Some(CSeq { seq: 9, method: "INVITE".into() }));
        assert!(CSeq::parse("2147483647 INFO").is_some());
        for value in
            ["2147483648 INFO", "4294967296 INFO", "36893488147419103232 X", "-1 X", "+1 X", "1", "1 ", "x INVITE"]
        {
            assert_eq!(CSeq::parse(value), None, "{value}");
        }
    }

    #[test]
    fn contacts_may_be_a_star_a_list_or_broken() {
        assert_eq!(parse_contacts(&headers(&[("Contact", "*")])), Ok(Contacts::Star));
        let two = headers(&[("Contact", "<sip:a,b@h>;q=0.5, \"x, y\" <sip:c@h>"), ("m", "no"), ("contact", "sip:d@h")]);
        let Ok(Contacts::List(list)) = parse_contacts(&two) else { panic!() };
        assert_eq!(list.iter().map(|c| c.uri.as_str()).collect::<Vec<_>>(), ["sip:a,b@h", "sip:c@h", "sip:d@h"]);
        assert_eq!(parse_contacts(&Headers::new()), Ok(Contacts::List(vec![])));
        assert!(parse_contacts(&headers(&[("Contact", "*, <sip:a@h>")])).is_err());
        assert!(parse_contacts(&headers(&[("Contact", "<sip:a@h>,,")])).is_err());
    }

    #[test]
    fn expires_prefers_the_field_and_never_wraps() {
        assert_eq!(expires(&headers(&[("Expires", "0"), ("Contact", "<sip:a@h>;expires=3600")])), Some(0));
        assert_eq!(expires(&headers(&[("Contact", "<sip:a@h>;expires=3600")])), Some(3600));
        assert_eq!(expires(&headers(&[("Expires", "4294967296")])), None);
        assert_eq!(expires(&headers(&[("Expires", "-1")])), None);
    }

    #[test]
    fn content_type_ignores_case_spaces_and_parameters() {
        let yes = |value: &str| content_type_is(&headers(&[("content-type", value)]), "Application/MANSCDP+xml");
        assert!(yes("Application/MANSCDP+XML"));
        assert!(yes("application / manscdp+xml ; charset=gb2312"));
        assert!(!yes("application/sdp"));
        assert!(!yes("application"));
    }
}
