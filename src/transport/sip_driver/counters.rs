//! What the driver tells the outside about itself: counters, and hooks for metrics and for the message trace.
//! Standard: none.
//! In: events of the driver. Out: atomics to read, callbacks to be called in the driver's task (they must not block).
//! Invariants: labels come from fixed sets; a stranger's text never becomes one.
//! Not here: the metrics registry, the console's list of messages.

use super::UserId;
use crate::proto::sip::message::{Flow, Transport};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// What is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Count { $($(#[$doc])* $name,)* }
        impl Count {
            /// Every count, in order.
            pub const ALL: &'static [Count] = &[$(Count::$name,)*];
            /// A label value.
            pub fn as_label(self) -> &'static str {
                match self { $(Count::$name => $label,)* }
            }
        }
    };
}

counts! {
    /// Requests dropped because their source sent too many.
    RateLimited = "rate_limited",
    /// Requests from nobody's peer, answered 403 or (OPTIONS) 200.
    Stranger = "stranger",
    /// OPTIONS of strangers not answered because there were too many.
    StrangerMuted = "stranger_muted",
    /// Messages no parser understood.
    Malformed = "malformed",
    /// Requests answered 503 because their user's queue was full.
    QueueFull = "queue_full",
    /// Other events lost because their user's queue was full.
    EventLost = "event_lost",
    /// Datagrams not sent because the socket's buffer was full; retransmission repairs it.
    UdpBlocked = "udp_blocked",
    /// Datagrams the system refused to send.
    UdpFailed = "udp_failed",
    /// Errors while receiving datagrams.
    UdpReceiveFailed = "udp_receive_failed",
    /// Connections accepted.
    Accepted = "accepted",
    /// Connections turned away: too many from one address, or in all.
    Refused = "refused",
    /// Pauses in accepting because the process had no descriptor left.
    AcceptPaused = "accept_paused",
    /// Connections we opened.
    Opened = "opened",
    /// Connections we could not open (refused, no route, too slow, no TLS settings).
    OpenFailed = "open_failed",
    /// TLS handshakes that failed or took too long.
    HandshakeFailed = "handshake_failed",
    /// Connections closed because what came was not SIP.
    Framing = "framing",
    /// Connections closed because a message was not complete in time.
    MessageTimeout = "message_timeout",
    /// Connections closed because the peer did not read.
    SlowPeer = "slow_peer",
    /// Connections closed after a quiet time.
    Idle = "idle",
}

/// Counters of one driver. Read at any time from any thread.
pub struct DriverCounters {
    counts: [AtomicU64; Count::ALL.len()],
    connections: AtomicU64,
}

impl DriverCounters {
    pub(super) fn new() -> Self {
        DriverCounters { counts: std::array::from_fn(|_| AtomicU64::new(0)), connections: AtomicU64::new(0) }
    }

    pub(super) fn add(&self, count: Count) {
        self.counts[count as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn connections_set(&self, open: usize) {
        self.connections.store(open as u64, Ordering::Relaxed);
    }

    /// Since start.
    pub fn value(&self, count: Count) -> u64 {
        self.counts[count as usize].load(Ordering::Relaxed)
    }

    /// Connections open (or opening) now.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for DriverCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(Count::ALL.iter().map(|c| (c.as_label(), self.value(*c)))).finish()
    }
}

/// Which way a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To us.
    In,
    /// From us.
    Out,
}

impl Direction {
    /// `in`, `out`.
    pub fn as_label(self) -> &'static str {
        match self {
            Direction::In => "in",
            Direction::Out => "out",
        }
    }
}

/// One message as it stood on the wire, also a malformed one.
#[derive(Debug, Clone)]
pub struct TraceRecord {
    /// To us or from us.
    pub direction: Direction,
    /// The way.
    pub flow: Flow,
    /// The whole message.
    pub bytes: Bytes,
    /// Whose message; `None`: a stranger's.
    pub user: Option<UserId>,
}

/// What kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// A request.
    Request,
    /// A response with its status code, 100..=699.
    Response(u16),
}

/// One well-formed message, for counting. Retransmissions count each time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageSeen {
    /// To us or from us.
    pub direction: Direction,
    /// UDP, TCP or TLS.
    pub transport: Transport,
    /// Whose message; `None`: a stranger's, to be counted under `other`.
    pub user: Option<UserId>,
    /// Request or response.
    pub kind: MessageKind,
    /// The method (a response's: of its CSeq); one of a fixed set, else `other`.
    pub method: &'static str,
    /// Size of the message. With [`Transport::Udp`] and more than 1,300 it may be cut up on its way.
    pub size: usize,
}

/// A callback for each [`TraceRecord`].
pub type TraceHook = Arc<dyn Fn(&TraceRecord) + Send + Sync>;
/// A callback for each [`MessageSeen`].
pub type MessageHook = Arc<dyn Fn(&MessageSeen) + Send + Sync>;
/// A callback for each malformed message: transport, reason out of a fixed set.
pub type MalformedHook = Arc<dyn Fn(Transport, &'static str) + Send + Sync>;

/// Callbacks, called in the driver's task: they must be quick and must not block.
#[derive(Clone, Default)]
pub struct Hooks {
    /// Every message in and out.
    pub trace: Option<TraceHook>,
    /// Every well-formed message in and out.
    pub on_message: Option<MessageHook>,
    /// Every malformed message in.
    pub on_malformed: Option<MalformedHook>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

/// The method as a label out of a fixed set.
pub(super) fn method_label(method: &str) -> &'static str {
    crate::proto::sip::known_method(method).unwrap_or("other")
}

/// Kind and method of a message we wrote ourselves.
pub(super) fn sniff(bytes: &[u8]) -> Option<(MessageKind, &'static str)> {
    let mut lines = bytes.split(|b| *b == b'\n').map(|l| l.trim_ascii());
    let start = std::str::from_utf8(lines.next()?).ok()?;
    let (first, rest) = start.split_once(' ')?;
    if first != "SIP/2.0" {
        return Some((MessageKind::Request, method_label(first)));
    }
    let status = rest.get(..3)?.parse().ok()?;
    let method = lines.take_while(|l| !l.is_empty()).find_map(|line| {
        let (name, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
        name.trim().eq_ignore_ascii_case("CSeq").then(|| value.split_ascii_whitespace().nth(1)).flatten()
    });
    Some((MessageKind::Response(status), method.map_or("other", method_label)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_messages_are_recognised_by_their_first_lines() {
        assert_eq!(
            sniff(b"MESSAGE sip:a@b SIP/2.0\r\nCSeq: 1 MESSAGE\r\n\r\n"),
            Some((MessageKind::Request, "MESSAGE"))
        );
        assert_eq!(
            sniff(b"SIP/2.0 401 Unauthorized\r\nVia: x\r\ncseq : 7 REGISTER\r\n\r\nCSeq: 1 BYE\r\n"),
            Some((MessageKind::Response(401), "REGISTER"))
        );
        assert_eq!(sniff(b"EVIL-1234 sip:a SIP/2.0\r\n\r\n"), Some((MessageKind::Request, "other")));
        assert_eq!(sniff(b"SIP/2.0 2"), None);
        assert_eq!(sniff(b""), None);
    }

    #[test]
    fn counts_have_distinct_labels_and_cells() {
        let counters = DriverCounters::new();
        for (n, count) in Count::ALL.iter().enumerate() {
            assert_eq!(*count as usize, n);
            assert_eq!(Count::ALL.iter().filter(|c| c.as_label() == count.as_label()).count(), 1);
        }
        counters.add(Count::Idle);
        assert_eq!((counters.value(Count::Idle), counters.value(Count::SlowPeer)), (1, 0));
    }
}
