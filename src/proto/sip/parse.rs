//! Bytes to messages: the only place that reads a message from the wire, and the only user of rsip.
//! Standard: [RFC3261 7], [RFC3261 8.1.1], [RFC3261 8.2], [RFC3261 18.3], [RFC4475].
//! In: one datagram, or one framed head and body. Out: `Message`, or `ParseError` with the answer to send, if any.
//! How: `normalize` makes the head plain, rsip reads it, and what rsip cannot hold (unknown methods, URIs with IPv6,
//! reason phrases) is taken from the plain start line.
//! Invariants: no panic on any input; a `Message` has one sound From, To, Call-ID, CSeq and top Via; the body is cut by
//! Content-Length; responses and ACKs are never answered; Date is never looked at (devices send local ISO time).
//! Not here: 401, 403, 404, 406, 415 (the user of the endpoint), transaction matching (`endpoint`).

use super::header::{self, SipUri, UriError, Via};
use super::message::{Headers, Message, Request, Response};
use super::normalize::{Head, HeadScan, is_token, is_token_byte, normalize};
use super::status::reason_phrase;
use bytes::Bytes;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Longest head in bytes: what one datagram can hold. A longer one is answered 513.
pub const MAX_HEAD: usize = 64 * 1024;
/// Longest body in bytes: a catalogue in one piece over TCP is below it. A longer one is answered 413.
pub const MAX_BODY: usize = 4 * 1024 * 1024;
/// Most header fields: ten times what platforms send, and a bound on the work for one message.
pub const MAX_FIELDS: usize = 256;
/// Most Via values: one a hop, and Max-Forwards starts at 70 with nobody going that far.
pub const MAX_VIAS: usize = 64;
/// Longest Call-ID, tag and branch in bytes: they are kept in the transaction and dialog tables.
const MAX_IDENT: usize = 1024;
/// Longest method in bytes.
const MAX_METHOD: usize = 128;
/// Datagrams up to this length are keepalives whatever they hold: devices send one byte or four NULs.
const MAX_KEEPALIVE: usize = 4;

/// What is wrong with a message. The set is fixed, so a metric may have one label for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Malformed {
    /// Not a message at all: empty, one to four bytes, blank lines, NULs.
    Keepalive,
    /// Something else than SIP.
    NotSip,
    /// The head is longer than 64 KiB.
    HeadTooLarge,
    /// The blank line behind the head is missing.
    NoBlankLine,
    /// The request line has not three parts with one space between them, or its method is no token.
    StartLine,
    /// Another version than SIP/2.0.
    Version,
    /// The Request-URI is neither sip nor sips.
    UriScheme,
    /// The Request-URI breaks the grammar or has headers in it.
    RequestUri,
    /// The status code is not 100 to 699.
    Status,
    /// A header line without a name, or a fold with nothing before it.
    HeaderLine,
    /// A control character outside a quoted-pair.
    Control,
    /// More than 256 fields.
    TooManyFields,
    /// More than 64 Via values.
    TooManyVias,
    /// Content-Length is not one plain number.
    ContentLength,
    /// The body is shorter than Content-Length says.
    Truncated,
    /// The body is longer than 4 MiB.
    BodyTooLarge,
    /// From, To, Call-ID, CSeq or Via is missing.
    Missing,
    /// A field that may stand once stands twice.
    Repeated,
    /// Via breaks the grammar.
    Via,
    /// A response that went through more hops than ours, or to a broadcast address.
    Misrouted,
    /// From breaks the grammar.
    From,
    /// To breaks the grammar.
    To,
    /// Call-ID breaks the grammar.
    CallId,
    /// CSeq breaks the grammar or is 2^31 or more.
    CSeq,
    /// The method of CSeq is not the request's.
    MethodMismatch,
    /// Max-Forwards is not 0 to 255.
    MaxForwards,
    /// Expires is not a number below 2^32.
    Expires,
    /// Contact breaks the grammar.
    Contact,
    /// Call-ID, tag or branch is longer than 1,024 bytes.
    IdentTooLong,
    /// rsip does not read the head.
    Grammar,
}

impl Malformed {
    /// The reason as a metric label.
    pub fn as_label(self) -> &'static str {
        match self {
            Malformed::Keepalive => "keepalive",
            Malformed::NotSip => "not_sip",
            Malformed::HeadTooLarge => "head_too_large",
            Malformed::NoBlankLine => "no_blank_line",
            Malformed::StartLine => "start_line",
            Malformed::Version => "version",
            Malformed::UriScheme => "uri_scheme",
            Malformed::RequestUri => "request_uri",
            Malformed::Status => "status",
            Malformed::HeaderLine => "header_line",
            Malformed::Control => "control_character",
            Malformed::TooManyFields => "too_many_fields",
            Malformed::TooManyVias => "too_many_vias",
            Malformed::ContentLength => "content_length",
            Malformed::Truncated => "truncated",
            Malformed::BodyTooLarge => "body_too_large",
            Malformed::Missing => "missing_header",
            Malformed::Repeated => "repeated_header",
            Malformed::Via => "via",
            Malformed::Misrouted => "misrouted",
            Malformed::From => "from",
            Malformed::To => "to",
            Malformed::CallId => "call_id",
            Malformed::CSeq => "cseq",
            Malformed::MethodMismatch => "method_mismatch",
            Malformed::MaxForwards => "max_forwards",
            Malformed::Expires => "expires",
            Malformed::Contact => "contact",
            Malformed::IdentTooLong => "ident_too_long",
            Malformed::Grammar => "grammar",
        }
    }

    /// The status a request with this fault is answered with; `None` where nothing must be sent.
    fn status(self) -> Option<u16> {
        match self {
            Malformed::Keepalive
            | Malformed::NotSip
            | Malformed::Status
            | Malformed::Misrouted
            | Malformed::TooManyVias => None,
            Malformed::HeadTooLarge => Some(513),
            Malformed::BodyTooLarge => Some(413),
            Malformed::UriScheme => Some(416),
            Malformed::Version => Some(505),
            _ => Some(400),
        }
    }
}

/// A message that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("SIP message not read: {}: {}", reason.as_label(), if answer.is_some() { "answer it" } else { "drop it" })]
pub struct ParseError {
    /// What is wrong.
    pub reason: Malformed,
    /// The response to send to where the message came from; `None` = say nothing.
    pub answer: Option<Box<Response>>,
}

impl ParseError {
    /// An error that is not answered.
    pub(super) fn silent(reason: Malformed) -> ParseError {
        ParseError { reason, answer: None }
    }
}

/// Reads one UDP datagram: one message, and what follows its body is ignored. [RFC3261 18.3]
///
/// # Errors
/// `Keepalive` for what devices send to keep a NAT open; otherwise what is wrong, with the answer for the sender.
pub fn parse_datagram(bytes: &[u8]) -> Result<Message, ParseError> {
    let filler = |b: &u8| matches!(b, b'\r' | b'\n' | b' ' | b'\t' | 0);
    if bytes.len() <= MAX_KEEPALIVE || bytes.iter().all(filler) {
        return Err(ParseError::silent(Malformed::Keepalive));
    }
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or_default();
    let bytes = &bytes[start..];
    if !is_token_byte(bytes[0]) {
        return Err(ParseError::silent(Malformed::NotSip));
    }
    let window = &bytes[..bytes.len().min(MAX_HEAD)];
    let Some(end) = HeadScan::default().end(window) else {
        return Err(match bytes.len() > MAX_HEAD {
            true => oversized_head(window),
            false => refuse(&normalize(window), Malformed::NoBlankLine),
        });
    };
    let rest = &bytes[end..];
    build(normalize(window), |declared| match declared {
        Some(length) => rest.get(..length).map(Bytes::copy_from_slice).ok_or(Malformed::Truncated),
        None => Ok(Bytes::copy_from_slice(rest)),
    })
}

/// Reads one message off a stream, as `Framer` cut it.
///
/// # Errors
/// What is wrong, with the answer for the sender.
pub fn parse_framed(head: &[u8], body: Bytes) -> Result<Message, ParseError> {
    build(normalize(head), |declared| match declared.unwrap_or(0) == body.len() {
        true => Ok(body),
        false => Err(Malformed::Truncated),
    })
}

/// The error for a head over the limit; `window` is its first part.
pub(super) fn oversized_head(window: &[u8]) -> ParseError {
    let whole_lines = memchr::memrchr(b'\n', window).map_or(0, |at| at + 1);
    refuse(&normalize(&window[..whole_lines]), Malformed::HeadTooLarge)
}

/// The error for `reason`, with the answer when one may be sent.
pub(super) fn refuse(head: &Head, reason: Malformed) -> ParseError {
    ParseError { reason, answer: reason.status().and_then(|status| answer(head, status, reason)).map(Box::new) }
}

/// Content-Length: one field of digits; `None` without the field. [RFC3261 20.14]
///
/// # Errors
/// `ContentLength` for anything else, two equal values included; `BodyTooLarge` over `max`.
pub(super) fn content_length(head: &Head, max: usize) -> Result<Option<usize>, Malformed> {
    let mut values = head.all("Content-Length");
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Malformed::ContentLength);
    }
    let length = header::digits(value).ok_or(Malformed::ContentLength)? as usize;
    if length > max { Err(Malformed::BodyTooLarge) } else { Ok(Some(length)) }
}

fn build(head: Head, body: impl FnOnce(Option<usize>) -> Result<Bytes, Malformed>) -> Result<Message, ParseError> {
    read(&head, body).map_err(|reason| {
        tracing::debug!(reason = reason.as_label(), "sip message refused");
        refuse(&head, reason)
    })
}

fn read(head: &Head, body: impl FnOnce(Option<usize>) -> Result<Bytes, Malformed>) -> Result<Message, Malformed> {
    let start = StartLine::read(&head.start)?;
    if let Some(fault) = head.fault {
        return Err(fault);
    }
    let body = body(content_length(head, MAX_BODY)?)?;
    let headers = through_rsip(head, &start)?;
    check_common(&headers)?;
    match start {
        StartLine::Request { method, uri } => {
            check_request(method, &headers)?;
            Ok(Message::Request(Request { method: method.to_owned(), uri: uri.to_owned(), headers, body }))
        }
        StartLine::Response { status, reason } => {
            check_response(&headers)?;
            Ok(Message::Response(Response { status, reason: reason.to_owned(), headers, body }))
        }
    }
}

enum StartLine<'a> {
    Request { method: &'a str, uri: &'a str },
    Response { status: u16, reason: &'a str },
}

impl<'a> StartLine<'a> {
    fn read(line: &'a str) -> Result<StartLine<'a>, Malformed> {
        if is_version(line) {
            let (version, rest) = line.split_once(' ').ok_or(Malformed::NotSip)?;
            if !version.eq_ignore_ascii_case("SIP/2.0") {
                return Err(Malformed::Version);
            }
            let (code, reason) = rest.split_once(' ').unwrap_or((rest, ""));
            let status = header::digits(code).filter(|s| code.len() == 3 && (100..700).contains(s));
            return Ok(StartLine::Response { status: status.ok_or(Malformed::Status)? as u16, reason: reason.trim() });
        }
        if !is_request_line(line) {
            return Err(Malformed::NotSip);
        }
        let mut parts = line.split(' ');
        let (Some(method), Some(uri), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Malformed::StartLine);
        };
        if !version.eq_ignore_ascii_case("SIP/2.0") {
            return Err(Malformed::Version);
        }
        if !is_token(method) || method.len() > MAX_METHOD {
            return Err(Malformed::StartLine);
        }
        match SipUri::parse(uri) {
            Ok(SipUri { headers: None, .. }) => Ok(StartLine::Request { method, uri }),
            Err(UriError::Scheme) => Err(Malformed::UriScheme),
            Ok(_) | Err(_) => Err(Malformed::RequestUri),
        }
    }
}

/// True for text that starts like `SIP/2.0`.
fn is_version(text: &str) -> bool {
    text.as_bytes().get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"SIP/"))
}

/// True when `line` is meant as a request line, sound or not: a token first and a SIP version last.
fn is_request_line(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace();
    words.next().is_some_and(is_token) && words.next_back().is_some_and(is_version)
}

/// Lets rsip read the head and gives back its fields, without Content-Length.
///
/// rsip knows a fixed set of methods and of URI forms; when it stumbles over the start line, it gets one it knows, as
/// the real one has been read already.
fn through_rsip(head: &Head, start: &StartLine<'_>) -> Result<Headers, Malformed> {
    let (line, stand_in) = match start {
        StartLine::Request { method, uri } => (format!("{method} {uri} SIP/2.0"), "OPTIONS sip:menshen SIP/2.0"),
        StartLine::Response { status, reason } => (format!("SIP/2.0 {status} {reason}"), "SIP/2.0 200 OK"),
    };
    let message = rsip::SipMessage::try_from(head.to_text(&line))
        .or_else(|_| rsip::SipMessage::try_from(head.to_text(stand_in)))
        .map_err(|_| Malformed::Grammar)?;
    let fields: Vec<rsip::Header> = match message {
        rsip::SipMessage::Request(request) => request.headers.into(),
        rsip::SipMessage::Response(response) => response.headers.into(),
    };
    if fields.len() != head.fields.len() {
        return Err(Malformed::Grammar);
    }
    let mut headers = Headers::new();
    for ((name, _), field) in head.fields.iter().zip(fields) {
        if name.eq_ignore_ascii_case("Content-Length") {
            continue;
        }
        let value = match field {
            rsip::Header::Other(_, value) => value,
            known => {
                let line = known.to_string();
                line.split_once(": ").map(|(_, value)| value.to_owned()).ok_or(Malformed::Grammar)?
            }
        };
        headers.push(name.as_str(), value);
    }
    Ok(headers)
}

fn check_common(headers: &Headers) -> Result<(), Malformed> {
    for name in ["From", "To", "Call-ID", "CSeq"] {
        match headers.get_all(name).count() {
            0 => return Err(Malformed::Missing),
            1 => {}
            _ => return Err(Malformed::Repeated),
        }
    }
    headers.get("Via").ok_or(Malformed::Missing)?;
    let via = header::top_via(headers).map_err(|_| Malformed::Via)?;
    let from = header::from(headers).map_err(|_| Malformed::From)?;
    let to = header::to(headers).map_err(|_| Malformed::To)?;
    let call_id = header::call_id(headers).map_err(|_| Malformed::CallId)?;
    header::cseq(headers).map_err(|_| Malformed::CSeq)?;
    let idents = [Some(call_id), from.tag(), to.tag(), via.branch()];
    if idents.into_iter().flatten().any(|ident| ident.len() > MAX_IDENT) {
        return Err(Malformed::IdentTooLong);
    }
    Ok(())
}

fn check_request(method: &str, headers: &Headers) -> Result<(), Malformed> {
    for name in ["Max-Forwards", "Content-Type", "Expires", "Event"] {
        if headers.get_all(name).count() > 1 {
            return Err(Malformed::Repeated);
        }
    }
    if header::cseq(headers).is_ok_and(|cseq| cseq.method != method) {
        return Err(Malformed::MethodMismatch);
    }
    if headers.get("Max-Forwards").is_some_and(|value| header::digits(value).is_none_or(|hops| hops > 255)) {
        return Err(Malformed::MaxForwards);
    }
    if headers.get("Expires").is_some_and(|value| !value.is_empty() && header::digits(value).is_none()) {
        return Err(Malformed::Expires);
    }
    // Elsewhere Contact means nothing, and a broken one is no reason to lose an alarm.
    let contact_matters = matches!(method, "REGISTER" | "INVITE" | "SUBSCRIBE" | "NOTIFY" | "UPDATE" | "REFER");
    if contact_matters && header::parse_contacts(headers).is_err() {
        return Err(Malformed::Contact);
    }
    Ok(())
}

/// A response comes back over the hops of its request and loses one Via at each; ours is the last. [RFC3261 8.1.3.3]
fn check_response(headers: &Headers) -> Result<(), Malformed> {
    match headers.get_all("Via").count() {
        1 => Ok(()),
        _ => Err(Malformed::Misrouted),
    }
}

/// A stateless answer to a request that could not be read as a whole. [RFC3261 8.2.6], [RFC3261 8.2.7]
fn answer(head: &Head, status: u16, reason: Malformed) -> Option<Response> {
    if is_version(&head.start) || !is_request_line(&head.start) || head.start.starts_with("ACK ") {
        return None;
    }
    // Only the host is needed: what follows it may be the very thing that is wrong.
    let top = head.field("Via")?;
    Via::parse(&top[..top.find([';', ',']).unwrap_or(top.len())])?;
    let mut headers = Headers::new();
    for via in head.all("Via") {
        headers.push("Via", via);
    }
    if let Some(from) = head.field("From") {
        headers.push("From", from);
    }
    if let Some(to) = head.field("To") {
        match to.to_ascii_lowercase().contains(";tag=") {
            true => headers.push("To", to),
            false => headers.push("To", format!("{to};tag={:016x}", repeatable_tag(head))),
        }
    }
    for name in ["Call-ID", "CSeq"] {
        if let Some(value) = head.field(name) {
            headers.push(name, value);
        }
    }
    let phrase = match status {
        400 => format!("{} ({})", reason_phrase(status), reason.as_label()),
        _ => reason_phrase(status).to_owned(),
    };
    Some(Response { status, reason: phrase, headers, body: Bytes::new() })
}

/// The same tag for each repetition of a request, without keeping state. [RFC3261 8.2.7]
fn repeatable_tag(head: &Head) -> u64 {
    let mut hasher = DefaultHasher::new();
    for name in ["Via", "From", "Call-ID", "CSeq"] {
        head.field(name).hash(&mut hasher);
    }
    hasher.finish()
}

/// Methods of the SIP standards; any other is unknown rather than not allowed. [RFC3261 8.2.1]
const METHODS: &[&str] = &[
    "ACK",
    "BYE",
    "CANCEL",
    "INFO",
    "INVITE",
    "MESSAGE",
    "NOTIFY",
    "OPTIONS",
    "PRACK",
    "PUBLISH",
    "REFER",
    "REGISTER",
    "SUBSCRIBE",
    "UPDATE",
];

/// What the user of an endpoint checks before it looks at a request: method and Require.
/// [RFC3261 8.2.1], [RFC3261 8.2.2.3]
///
/// `supported_ext` are the option tags we support.
///
/// # Errors
/// The status to answer with and the headers to add: 405 with Allow, 501, 420 with Unsupported.
pub fn precheck(request: &Request, allowed_methods: &[&str], supported_ext: &[&str]) -> Result<(), (u16, Headers)> {
    let method = request.method.as_str();
    // Neither may be answered with an error for these reasons.
    if method == "ACK" || method == "CANCEL" {
        return Ok(());
    }
    let mut headers = Headers::new();
    if !allowed_methods.contains(&method) {
        let status = if METHODS.contains(&method) { 405 } else { 501 };
        headers.push("Allow", allowed_methods.join(", "));
        return Err((status, headers));
    }
    let required = request.headers.get_all("Require").flat_map(|value| value.split(',')).map(str::trim);
    let unknown: Vec<&str> = required
        .filter(|tag| !tag.is_empty() && !supported_ext.iter().any(|known| known.eq_ignore_ascii_case(tag)))
        .collect();
    if !unknown.is_empty() {
        headers.push("Unsupported", unknown.join(", "));
        return Err((420, headers));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sip::digest::{Algorithm, AuthParams, Challenge, DigestError, DigestServer, pick_challenge};
    use crate::proto::sip::framer::{Frame, Framer, Limits};
    use proptest::prelude::*;
    use std::time::Duration;

    const ALLOWED: &[&str] =
        &["INVITE", "ACK", "BYE", "CANCEL", "INFO", "MESSAGE", "OPTIONS", "SUBSCRIBE", "NOTIFY", "REGISTER"];

    fn directory(set: &str) -> std::path::PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "proto-fixtures", "sip", set].iter().collect()
    }

    fn fixture(set: &str, tag: &str) -> Vec<u8> {
        let path = directory(set).join(format!("{tag}.dat"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn all_fixtures(set: &str) -> Vec<String> {
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap().strip_suffix(".dat").map(str::to_owned)
        };
        let mut tags: Vec<String> = std::fs::read_dir(directory(set)).unwrap().filter_map(name).collect();
        tags.sort();
        tags
    }

    fn request(bytes: &[u8]) -> Request {
        match parse_datagram(bytes) {
            Ok(Message::Request(request)) => request,
            other => panic!("no request: {other:?}"),
        }
    }

    fn response(bytes: &[u8]) -> Response {
        match parse_datagram(bytes) {
            Ok(Message::Response(response)) => response,
            other => panic!("no response: {other:?}"),
        }
    }

    fn torture(tag: &str) -> Request {
        request(&fixture("rfc4475", tag))
    }

    fn gb(tag: &str) -> Request {
        request(&fixture("gb", tag))
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Then {
        /// The message is taken, and no layer has an objection to its form.
        Accept,
        /// `parse_datagram` refuses it with this answer.
        Answer(u16),
        /// `parse_datagram` refuses it without an answer.
        Discard,
        /// `parse_datagram` takes it; `precheck` has it answered so.
        Precheck(u16),
        /// Both take it; the layer named answers so.
        Above(u16, &'static str),
    }

    /// The cases of RFC 4475 in its order, with what a user agent of ours does. [RFC4475 3]
    const TORTURE: [(&str, Then); 49] = [
        ("wsinv", Then::Accept),
        ("intmeth", Then::Precheck(501)),
        ("esc01", Then::Accept),
        ("escnull", Then::Accept),
        ("esc02", Then::Precheck(501)),
        ("lwsdisp", Then::Accept),
        ("longreq", Then::Accept),
        ("dblreq", Then::Accept),
        ("semiuri", Then::Accept),
        ("transports", Then::Accept),
        ("mpart01", Then::Above(415, "no user takes multipart bodies")),
        ("unreason", Then::Accept),
        ("noreason", Then::Accept),
        ("badinv01", Then::Answer(400)),
        ("clerr", Then::Answer(400)),
        ("ncl", Then::Answer(400)),
        ("scalar02", Then::Answer(400)),
        ("scalarlg", Then::Discard),
        ("quotbal", Then::Answer(400)),
        ("ltgtruri", Then::Answer(400)),
        ("lwsruri", Then::Answer(400)),
        ("lwsstart", Then::Answer(400)),
        ("trws", Then::Accept),
        ("escruri", Then::Answer(400)),
        ("baddate", Then::Accept),
        ("regbadct", Then::Answer(400)),
        ("badaspec", Then::Answer(400)),
        ("baddn", Then::Accept),
        ("badvers", Then::Answer(505)),
        ("mismatch01", Then::Answer(400)),
        ("mismatch02", Then::Answer(400)),
        ("bigcode", Then::Discard),
        ("badbranch", Then::Accept),
        ("insuf", Then::Answer(400)),
        ("unkscm", Then::Answer(416)),
        ("novelsc", Then::Answer(416)),
        ("unksm2", Then::Above(400, "a registrar needs SIP addresses")),
        ("bext01", Then::Precheck(420)),
        ("invut", Then::Above(415, "the call takes SDP alone")),
        ("regaut01", Then::Above(401, "a registrar counts other schemes as none")),
        ("multi01", Then::Answer(400)),
        ("mcl01", Then::Answer(400)),
        ("bcast", Then::Discard),
        ("zeromf", Then::Accept),
        ("cparam01", Then::Accept),
        ("cparam02", Then::Accept),
        ("regescrt", Then::Accept),
        ("sdp01", Then::Above(406, "the call answers with SDP alone")),
        ("inv2543", Then::Accept),
    ];

    #[test]
    fn rfc4475() {
        let mut named: Vec<&str> = TORTURE.iter().map(|(tag, _)| *tag).collect();
        named.sort();
        assert_eq!(all_fixtures("rfc4475"), named);
        for (tag, then) in TORTURE {
            let got = match parse_datagram(&fixture("rfc4475", tag)) {
                Ok(Message::Request(request)) => match precheck(&request, ALLOWED, &[]) {
                    Ok(()) => Then::Accept,
                    Err((status, _)) => Then::Precheck(status),
                },
                Ok(Message::Response(_)) => Then::Accept,
                Err(ParseError { answer: Some(answer), .. }) => Then::Answer(answer.status),
                Err(_) => Then::Discard,
            };
            let want = if let Then::Above(..) = then { Then::Accept } else { then };
            assert_eq!(got, want, "{tag}");
        }
    }

    #[test]
    fn rfc4475_over_a_stream() {
        for (tag, ends_the_stream) in
            [("ncl", true), ("mcl01", true), ("clerr", false), ("wsinv", false), ("dblreq", false)]
        {
            let mut framer = Framer::new(Limits::default());
            framer.push(&fixture("rfc4475", tag));
            let first = framer.pull();
            assert_eq!(first.is_err(), ends_the_stream, "{tag}");
            match first {
                Err(error) => assert_eq!(error.answer.map(|a| a.status), Some(400)),
                Ok(Some(Frame::Message { head, body })) => assert!(parse_framed(&head, body).is_ok(), "{tag}"),
                // The rest of the body may still come; the transport's time limit ends the wait.
                other => assert_eq!((tag, other), ("clerr", Ok(None))),
            }
        }
    }

    #[test]
    fn rfc4475_messages_that_are_taken_are_understood() {
        let wsinv = torture("wsinv");
        assert_eq!(wsinv.headers.from_tag().as_deref(), Some("98asjd8"));
        assert_eq!(wsinv.headers.to_tag().as_deref(), Some("1918181833n"));
        assert_eq!(wsinv.headers.cseq().unwrap().to_string(), "9 INVITE");
        let branches: Vec<Option<String>> =
            wsinv.headers.get_all("Via").map(|v| Via::parse(v).unwrap().branch().map(str::to_owned)).collect();
        let want = ["390skdjuw", "z9hG4bK9ikj8", "z9hG4bK30239"];
        assert_eq!(branches, want.map(|b| Some(b.to_owned())));
        let header::Contacts::List(contacts) = header::parse_contacts(&wsinv.headers).unwrap() else { panic!() };
        assert_eq!(contacts[0].display.as_deref(), Some("Quoted string \"\""));
        assert_eq!(contacts[0].params.value("q"), Some("0.33"));
        assert_eq!(wsinv.headers.get("Subject"), Some(""));
        assert_eq!(wsinv.headers.get("newfangledheader"), Some("newfangled value continued newfangled value"));
        assert_eq!(wsinv.body.len(), 150);

        let intmeth = torture("intmeth");
        assert_eq!(intmeth.method, "!interesting-Method0123456789_*+`.%indeed'~");
        assert_eq!(header::to(&intmeth.headers).unwrap().display.as_deref(), Some("BEL:\x07 NUL:\0 DEL:\x7f"));
        assert_eq!(intmeth.headers.get("extensionHeader-!.%*+_`'~"), Some("大停電"));
        assert_eq!(header::from(&intmeth.headers).unwrap().params.value("fromParam''~+*_!.-%"), Some("\"работающий\""));

        let esc01 = torture("esc01");
        let uri = SipUri::parse(&esc01.uri).unwrap();
        assert_eq!((uri.scheme.as_str(), uri.user.as_deref()), ("sip", Some("sips%3Auser%40example.com")));
        assert_eq!(esc01.headers.to_user().as_deref(), Some("user"));
        assert_eq!(torture("escnull").headers.to_user().as_deref(), Some("null-\0-null"));
        assert_eq!(torture("esc02").method, "RE%47IST%45R");
        let longreq = torture("longreq").headers;
        assert_eq!((longreq.get_all("via").count(), longreq.len()), (34, 42));
        let dblreq = torture("dblreq");
        assert_eq!((dblreq.method.as_str(), dblreq.body.len()), ("REGISTER", 0));
        let semiuri = SipUri::parse(&torture("semiuri").uri).unwrap();
        assert_eq!((semiuri.user.as_deref(), semiuri.params.iter().count()), (Some("user;par=u%40example.net"), 0));
        assert_eq!(torture("mpart01").body.len(), 553);
        let reason = response(&fixture("rfc4475", "unreason")).reason;
        assert_eq!(reason, "= 2**3 * 5**2 но сто девяносто девять - простое");
        assert_eq!(response(&fixture("rfc4475", "noreason")).reason, "");
        assert_eq!(header::from(&torture("baddn").headers).unwrap().display.as_deref(), Some("Bell, Alexander"));
        assert_eq!(torture("zeromf").headers.get("Max-Forwards"), Some("0"));

        let contact = |tag: &str| match header::parse_contacts(&torture(tag).headers).unwrap() {
            header::Contacts::List(mut list) => list.remove(0),
            header::Contacts::Star => panic!(),
        };
        assert!(contact("cparam01").params.has("unknownparam"));
        assert!(!contact("cparam02").params.has("unknownparam"));
        assert!(contact("cparam02").uri.ends_with(";unknownparam"));
        assert_eq!(torture("regescrt").headers.get("Route"), None);
        assert!(contact("regescrt").uri.contains("?Route="));
        assert_eq!(torture("inv2543").headers.from_tag(), None);
        assert_eq!(torture("unksm2").headers.from_user(), None);
        assert!(!header::content_type_is(&torture("invut").headers, "application/sdp"));
        assert_eq!(torture("sdp01").headers.get("Accept"), Some("text/nobodyKnowsThis"));
        let mut server = DigestServer::new([0; 32], "r".into(), vec![Algorithm::Md5], true, Duration::from_secs(60));
        let credentials = torture("regaut01").headers.get("Authorization").unwrap().to_owned();
        let verified = server.verify(1, "192.0.2.1".parse().unwrap(), "REGISTER", |_| None, &credentials);
        assert_eq!(verified, Err(DigestError::NoCredentials));
    }

    #[test]
    fn precheck_names_what_is_allowed_and_what_is_unsupported() {
        let (status, headers) = precheck(&torture("bext01"), ALLOWED, &[]).unwrap_err();
        assert_eq!(status, 420);
        assert_eq!(headers.get("Unsupported"), Some("nothingSupportsThis, nothingSupportsThisEither"));
        let known = ["nothingsupportsthis", "nothingSupportsThisEither"];
        assert_eq!(precheck(&torture("bext01"), ALLOWED, &known), Ok(()));
        let (status, headers) = precheck(&torture("bext01"), &["MESSAGE", "BYE"], &[]).unwrap_err();
        assert_eq!((status, headers.get("Allow")), (405, Some("MESSAGE, BYE")));
        for method in ["ACK", "CANCEL"] {
            let request = Request { method: method.into(), ..torture("bext01") };
            assert_eq!(precheck(&request, &[], &[]), Ok(()));
        }
    }

    #[test]
    fn gb_fixtures_are_taken_but_the_cut_ones() {
        let refused = [("body_cut_short", Malformed::Truncated), ("no_blank_line", Malformed::NoBlankLine)];
        for tag in all_fixtures("gb") {
            let got = parse_datagram(&fixture("gb", &tag));
            match refused.iter().find(|(name, _)| *name == tag) {
                None => assert!(got.is_ok(), "{tag}: {got:?}"),
                Some((_, reason)) => {
                    let error = got.unwrap_err();
                    assert_eq!((error.reason, error.answer.unwrap().status), (*reason, 400), "{tag}");
                }
            }
        }
    }

    #[test]
    fn gb_registration_forms() {
        let register = gb("register_uri_differs");
        let credentials = register.headers.get("Authorization").unwrap();
        assert_ne!(AuthParams::parse(credentials).unwrap().value("uri"), Some(register.uri.as_str()));
        // The nonce is not ours, so a right password shows as an old nonce.
        let mut server =
            DigestServer::new([0; 32], "3401000000".into(), vec![Algorithm::Md5], false, Duration::from_secs(60));
        let source = "198.51.100.20".parse().unwrap();
        let mut verify = |secret: &str| server.verify(1, source, "REGISTER", |_| Some(secret.into()), credentials);
        assert_eq!(verify("Test-1234"), Err(DigestError::Stale));
        assert_eq!(verify("Test-12345"), Err(DigestError::Wrong));

        let challenged = response(&fixture("gb", "register_401"));
        let challenge = pick_challenge(challenged.headers.get_all("WWW-Authenticate"), false).unwrap();
        let Challenge { realm, qop_auth, algorithm, .. } = challenge;
        assert_eq!((realm.as_str(), qop_auth, algorithm), ("3402000000", false, Algorithm::Md5));
        assert_eq!(challenged.headers.get("X-GB-Ver"), Some("2.0"));
        let ok = response(&fixture("gb", "register_200_iso_date"));
        assert_eq!(ok.headers.get("Date"), Some("2026-11-23T21:15:04.128"));
        assert_eq!(ok.headers.expires(), Some(86_400));
        let via = header::top_via(&ok.headers).unwrap();
        assert_eq!((via.rport(), via.received()), (Some(5060), "198.51.100.7".parse().ok()));
        let g35 = gb("register_gb35114");
        let params = AuthParams::parse(g35.headers.get("Authorization").unwrap()).unwrap();
        assert_eq!((params.scheme.as_str(), params.value("keyversion")), ("Capability", Some("2026-01-02T03:04:05")));
        assert_eq!(header::top_via(&gb("via_without_branch").headers).unwrap().branch(), None);
    }

    #[test]
    fn gb_charsets_spellings_and_lengths() {
        let body = gb("message_gb2312_body").body;
        let name = b"<Name>\xb1\xb1\xc3\xc5\xc9\xe3\xcf\xf1\xbb\xfa</Name>";
        assert!(body.windows(name.len()).any(|window| window == name));
        let gbk = gb("header_gbk");
        assert_eq!(header::from(&gbk.headers).unwrap().display.as_deref(), Some("上级平台"));
        assert_eq!(header::to(&gbk.headers).unwrap().display.as_deref(), Some("北门"));
        assert_eq!(gbk.headers.get("Organization"), Some("某市公安局"));
        assert_eq!(response(&fixture("gb", "response_reason_gbk")).reason, "占线");
        let spaces = gb("spaces");
        let via = header::top_via(&spaces.headers).unwrap();
        assert_eq!((via.branch(), via.has_rport(), via.port), (Some("z9hG4bK77"), true, Some(5060)));
        assert_eq!((spaces.headers.from_tag().as_deref(), spaces.headers.call_id()), (Some("1"), Some("spaces-1")));
        assert!(header::content_type_is(&spaces.headers, "application/manscdp+xml"));
        let shouted = gb("content_type_case");
        assert!(header::content_type_is(&shouted.headers, "Application/MANSCDP+xml"));
        assert_eq!(shouted.headers.from_user().as_deref(), Some("34020000001320000001"));
        assert_eq!(&gb("bare_lf").body[..], b"<a/>\n\n");
        let compact = gb("compact");
        assert!(header::content_type_is(&compact.headers, "application/sdp"));
        assert_eq!(compact.headers.contact_uri().as_deref(), Some("sip:34010000002000000001@192.0.2.10:5060"));
        assert_eq!(compact.headers.get("Subject"), Some("34020000001320000001:0,34010000002000000001:0"));
        assert_eq!(&gb("no_content_length").body[..], b"<?xml version=\"1.0\"?>\r\n<Notify/>\r\n");
        assert!(response(&fixture("gb", "trailing_bytes")).body.is_empty());
        assert!(gb("invite_play").body.ends_with(b"y=0100000001\r\nf=v/2/5/25/1/4000a/1/8/1\r\n"));
        let v6 = gb("ipv6");
        assert_eq!(header::top_via(&v6.headers).unwrap().received(), "2001:db8::10".parse().ok());
        assert_eq!(SipUri::parse(&v6.uri).unwrap().port, Some(5060));
    }

    /// An INFO with `extra` header lines and `body` behind a right Content-Length.
    fn info(extra: &str) -> String {
        format!(
            "INFO sip:a@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:b@h>;tag=1\r\n\
             To: <sip:a@h>\r\nCall-ID: x\r\nCSeq: 1 INFO\r\n{extra}\r\n"
        )
    }

    fn refusal(bytes: &[u8]) -> (Malformed, Option<u16>) {
        let error = parse_datagram(bytes).unwrap_err();
        (error.reason, error.answer.map(|answer| answer.status))
    }

    #[test]
    fn keepalives_and_noise_are_dropped_in_silence() {
        for bytes in
            [&b""[..], b"x", b"\0", b"\0\0\0\0", b"\r\n", b"\r\n\r\n", b"jaK\0", b"\r\n\r\n\r\n\r\n", b" \0\t\0\r\n\0"]
        {
            assert_eq!(refusal(bytes), (Malformed::Keepalive, None), "{bytes:?}");
        }
        for bytes in [
            &b"\x80\x60\x00\x01\x00\x00\x00\x00"[..],
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"hello\r\n\r\n",
            b": no\r\n\r\n",
        ] {
            assert_eq!(refusal(bytes), (Malformed::NotSip, None), "{bytes:?}");
        }
        assert_eq!(refusal(&[b'A'; 64 * 1024]), (Malformed::NoBlankLine, None));
    }

    #[test]
    fn limits_are_answered_and_never_crossed() {
        let long = info(&format!("Subject: {}\r\n", "A".repeat(MAX_HEAD)));
        assert_eq!(refusal(long.as_bytes()), (Malformed::HeadTooLarge, Some(513)));
        let folded = info(&format!("Subject: a\r\n {}\r\n", "A".repeat(60 * 1024)));
        assert!(parse_datagram(folded.as_bytes()).is_ok());
        let fields = info(&"X: 1\r\n".repeat(10_000));
        assert_eq!(refusal(fields.as_bytes()), (Malformed::TooManyFields, Some(400)));
        let vias = info(&"Via: SIP/2.0/UDP h\r\n".repeat(1_000));
        assert_eq!(refusal(vias.as_bytes()), (Malformed::TooManyVias, None));
        let body = info(&format!("Content-Length: {}\r\n", MAX_BODY + 1));
        assert_eq!(refusal(body.as_bytes()), (Malformed::BodyTooLarge, Some(413)));
        let branch = info("").replace("z9hG4bK1", &"b".repeat(10 * 1024));
        assert_eq!(refusal(branch.as_bytes()), (Malformed::IdentTooLong, Some(400)));
        let method = info("").replace("INFO", &"M".repeat(1024));
        assert_eq!(refusal(method.as_bytes()), (Malformed::StartLine, Some(400)));
    }

    #[test]
    fn scalars_out_of_range_never_wrap() {
        for length in ["1e3", "+5", "0x10", "4294967296", "18446744073709551616", "-1", "", "0, 0"] {
            let bytes = info(&format!("Content-Length: {length}\r\n"));
            assert_eq!(refusal(bytes.as_bytes()), (Malformed::ContentLength, Some(400)), "{length}");
        }
        let twice = info("Content-Length: 0\r\nl: 0\r\n");
        assert_eq!(refusal(twice.as_bytes()), (Malformed::ContentLength, Some(400)));
        for (from, to, reason) in [
            ("CSeq: 1 INFO", "CSeq: 2147483648 INFO", Malformed::CSeq),
            ("CSeq: 1 INFO", "CSeq: 4294967297 INFO", Malformed::CSeq),
            ("CSeq: 1 INFO", "CSeq: 1 BYE", Malformed::MethodMismatch),
            ("CSeq: 1 INFO", "CSeq: 1 INFO\r\nExpires: -1", Malformed::Expires),
            ("CSeq: 1 INFO", "CSeq: 1 INFO\r\nExpires: 4294967296", Malformed::Expires),
            ("CSeq: 1 INFO", "CSeq: 1 INFO\r\nExpires: 1\r\nexpires: 1", Malformed::Repeated),
            ("CSeq: 1 INFO", "CSeq: 1 INFO\r\nMax-Forwards: 256", Malformed::MaxForwards),
            ("CSeq: 1 INFO", "CSeq: 1 INFO\r\nMax-Forwards: x", Malformed::MaxForwards),
            ("Call-ID: x", "Call-ID: x y", Malformed::CallId),
            ("Call-ID: x\r\n", "", Malformed::Missing),
            ("<sip:b@h>;tag=1", "<sip:b@h", Malformed::From),
            ("To: <sip:a@h>", "To: \"<sip:a@h>", Malformed::To),
            ("sip:a@192.0.2.1", "sip:a@2001:db8::1", Malformed::RequestUri),
            ("Call-ID: x", "Call-ID: x\r\nno colon", Malformed::HeaderLine),
            ("Call-ID: x", "Call-ID: x\0", Malformed::Control),
            ("h;branch", "h;;;branch", Malformed::Via),
        ] {
            let bytes = info("").replace(from, to);
            assert_eq!(refusal(bytes.as_bytes()), (reason, Some(400)), "{to}");
        }
        assert!(parse_datagram(info("Expires:\r\n").as_bytes()).is_ok());
        assert!(parse_datagram(info("Date: yesterday, local time\r\nDate: x\r\n").as_bytes()).is_ok());
        assert!(parse_datagram(info("Contact: ;;\r\n").as_bytes()).is_ok());
    }

    #[test]
    fn responses_and_acks_are_never_answered() {
        let response = info("").replace("INFO sip:a@192.0.2.1 SIP/2.0", "SIP/2.0 200 OK");
        for (from, to, reason) in [
            ("200", "099", Malformed::Status),
            ("200", "700", Malformed::Status),
            ("200", "20", Malformed::Status),
            ("SIP/2.0 200", "SIP/3.0 200", Malformed::Version),
            ("CSeq: 1", "CSeq: 9292394834772304023312", Malformed::CSeq),
            ("Call-ID: x\r\n", "", Malformed::Missing),
        ] {
            assert_eq!(refusal(response.replacen(from, to, 1).as_bytes()), (reason, None), "{to}");
        }
        let ack = info("").replace("INFO", "ACK").replace("Call-ID: x\r\n", "");
        assert_eq!(refusal(ack.as_bytes()), (Malformed::Missing, None));
        let no_via = info("").replace("Via: SIP/2.0/UDP h;branch=z9hG4bK1\r\n", "");
        assert_eq!(refusal(no_via.as_bytes()), (Malformed::Missing, None));
    }

    #[test]
    fn answers_carry_what_the_sender_needs_and_repeat_exactly() {
        let bytes = info("Via: SIP/2.0/TCP h2, SIP/2.0/UDP h3\r\nMax-Forwards: 300\r\n");
        let answer = parse_datagram(bytes.as_bytes()).unwrap_err().answer.unwrap();
        assert_eq!(answer.reason, "Bad Request (max_forwards)");
        assert_eq!(answer.headers.get_all("Via").count(), 3);
        assert_eq!(answer.headers.call_id(), Some("x"));
        assert_eq!(answer.headers.cseq().unwrap().method, "INFO");
        assert!(answer.headers.to_tag().is_some());
        assert_eq!(parse_datagram(bytes.as_bytes()).unwrap_err().answer.unwrap(), answer);
        let one_via = info("Max-Forwards: 300\r\n");
        let answer = parse_datagram(one_via.as_bytes()).unwrap_err().answer.unwrap();
        assert_eq!(parse_datagram(&answer.to_bytes()), Ok(Message::Response(*answer)));
    }

    /// Header values that are in normal form already, which is what a round trip keeps.
    fn extra_field() -> impl Strategy<Value = (String, String)> {
        let name = prop_oneof!["X-[A-Za-z0-9!%*_+`'~.-]{1,12}", Just("Subject".to_owned()), Just("date".to_owned())];
        let value = prop_oneof!["[!-~]{0,20}", "[!-~\u{4e00}-\u{4e10}]( [!-~]{1,5}){0,3}"];
        (name, value)
    }

    prop_compose! {
        fn message()(
            is_request in any::<bool>(),
            method in "[A-Z!'~%]{1,10}",
            user in "[a-z0-9;?%.]{1,20}",
            status in 100u16..700,
            reason in "([!-~\u{4e00}-\u{4e10}]{1,8}( [a-z]{1,4})?)?",
            host in prop_oneof!["[a-z][a-z0-9.-]{0,12}", Just("[2001:db8::1]".to_owned())],
            port in proptest::option::of(any::<u16>()),
            branch in "z9hG4bK[a-z0-9@:/=]{0,16}",
            tag in "[a-z0-9]{1,8}",
            seq in 0u32..1 << 31,
            extra in proptest::collection::vec(extra_field(), 0..5),
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) -> Message {
            let mut headers = Headers::new();
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            headers.push("Via", format!("SIP/2.0/UDP {host}{port};rport;branch={branch}"));
            headers.push("From", format!("\"a \\\" {user}\" <sip:{user}@{host}>;tag={tag}"));
            headers.push("to", format!("<sip:{user}@{host}{port}>"));
            headers.push("Call-ID", format!("{tag}@{host}"));
            headers.push("CSeq", format!("{seq} {method}"));
            for (name, value) in extra {
                headers.push(name, value);
            }
            let body = Bytes::from(body);
            let uri = format!("sip:{user}@{host}{port};transport=tcp");
            match is_request {
                true => Message::Request(Request { method, uri, headers, body }),
                false => Message::Response(Response { status, reason, headers, body }),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn what_is_written_is_read_back(message in message()) {
            let bytes = message.to_bytes();
            prop_assert_eq!(parse_datagram(&bytes), Ok(message.clone()));
            let mut framer = Framer::new(Limits::default());
            framer.push(&bytes);
            let Ok(Some(Frame::Message { head, body })) = framer.pull() else { panic!("not one frame") };
            prop_assert_eq!(parse_framed(&head, body), Ok(message));
        }

        #[test]
        fn mutated_fixtures_never_panic(
            torture in any::<bool>(),
            which in any::<prop::sample::Index>(),
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6),
        ) {
            let set = if torture { "rfc4475" } else { "gb" };
            let tags = all_fixtures(set);
            let mut bytes = fixture(set, &tags[which.index(tags.len())]);
            for (at, byte, how) in edits {
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    2 if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            // Whatever is taken can be written and taken again, the same.
            match parse_datagram(&bytes) {
                Ok(message) => prop_assert_eq!(parse_datagram(&message.to_bytes()), Ok(message)),
                Err(error) => {
                    if let Some(answer) = error.answer {
                        answer.to_bytes();
                    }
                }
            }
            let mut framer = Framer::new(Limits::default());
            framer.push(&bytes);
            while let Ok(Some(frame)) = framer.pull() {
                if let Frame::Message { head, body } = frame {
                    let _ = parse_framed(&head, body);
                }
            }
        }
    }
}
