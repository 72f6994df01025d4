//! SIP messages as values: start line, ordered headers, opaque body.
//! Standard: [RFC3261 7]. Parsing goes through rsip (`parse`), writing is by hand because rsip's writer loses
//! body bytes that are not UTF-8 and writes reason phrases without spaces.
//! Invariants: header order and value text are kept as received (after `normalize`); the body is never re-encoded.

use super::header;
use bytes::Bytes;
use std::net::SocketAddr;

/// How a message travels. [RFC3261 18]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// One datagram, one message.
    Udp,
    /// A stream framed by Content-Length.
    Tcp,
    /// TCP under TLS.
    Tls,
}

impl Transport {
    /// As Via writes it: `UDP`, `TCP`, `TLS`.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
        }
    }
    /// True where the transport itself retransmits.
    pub fn is_reliable(self) -> bool {
        self != Transport::Udp
    }
}

/// A connection of the driver's (TCP or TLS). Never reused while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Where a message came from or goes to.
///
/// For UDP `local` picks the socket. For TCP and TLS `conn`, when set, is the connection to use; when it is not set
/// (or is gone) the driver opens one from `local`'s address to `peer`, or reuses one it already has to that peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// UDP, TCP or TLS.
    pub transport: Transport,
    /// Our side's listening address (the socket's, not a connection's ephemeral one).
    pub local: SocketAddr,
    /// The other side.
    pub peer: SocketAddr,
    /// The connection it came on.
    pub conn: Option<ConnId>,
}

/// Ordered header fields. Names keep the case they came with; look-ups ignore case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// No headers.
    pub fn new() -> Self {
        Self::default()
    }
    /// First value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
    /// All values of `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
    /// Appends a header.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }
    /// Puts a header in front of all others (Via).
    pub fn push_front(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(0, (name.into(), value.into()));
    }
    /// Replaces every `name` by one, in the place of the first; appends when there was none.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let at = self.0.iter().position(|(n, _)| n.eq_ignore_ascii_case(name));
        match at {
            Some(i) => {
                self.0[i].1 = value.into();
                let mut index = 0;
                self.0.retain(|(n, _)| {
                    index += 1;
                    index - 1 == i || !n.eq_ignore_ascii_case(name)
                });
            }
            None => self.push(name, value),
        }
    }
    /// Removes every `name`.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }
    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }
    /// Tag of From, when it has one. [RFC3261 19.3]
    pub fn from_tag(&self) -> Option<String> {
        header::from(self).ok()?.tag().map(str::to_owned)
    }
    /// Tag of To, when it has one. [RFC3261 19.3]
    pub fn to_tag(&self) -> Option<String> {
        header::to(self).ok()?.tag().map(str::to_owned)
    }
    /// Call-ID, when there is a sound one.
    pub fn call_id(&self) -> Option<&str> {
        header::call_id(self).ok()
    }
    /// CSeq, when there is a sound one.
    pub fn cseq(&self) -> Option<header::CSeq> {
        header::cseq(self).ok()
    }
    /// User part of From's URI, escapes undone: the sender's id.
    pub fn from_user(&self) -> Option<String> {
        header::from(self).ok()?.user()
    }
    /// User part of To's URI, escapes undone: the receiver's id.
    pub fn to_user(&self) -> Option<String> {
        header::to(self).ok()?.user()
    }
    /// URI of the first Contact.
    pub fn contact_uri(&self) -> Option<String> {
        match header::parse_contacts(self).ok()? {
            header::Contacts::List(list) => list.into_iter().next().map(|contact| contact.uri),
            header::Contacts::Star => None,
        }
    }
    /// Seconds of Expires, else of the first Contact's `expires`.
    pub fn expires(&self) -> Option<u32> {
        header::expires(self)
    }
    /// How many fields.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// True without any field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A request. [RFC3261 7.1]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Upper-case token, compared exactly: `INVITE`, `MESSAGE`, …
    pub method: String,
    /// The Request-URI as text.
    pub uri: String,
    /// Header fields; Content-Length is not kept here, the writer makes it.
    pub headers: Headers,
    /// The body, bytes as received.
    pub body: Bytes,
}

/// A response. [RFC3261 7.2]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 100..=699.
    pub status: u16,
    /// Reason phrase; may be empty.
    pub reason: String,
    /// Header fields; Content-Length is not kept here, the writer makes it.
    pub headers: Headers,
    /// The body, bytes as received.
    pub body: Bytes,
}

/// Either kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A request.
    Request(Request),
    /// A response.
    Response(Response),
}
