//! The SIP trace: the last messages of each uplink, to look at and to download.
//! Standard: none.
//! In: every message the driver reads or writes, through its hook. Out: JSON values, capture files.
//! Invariants: no secret is kept (`redact`); memory is bounded by [`RINGS`] x [`RING_MESSAGES`] x [`MESSAGE_BYTES`];
//! recording waits for nothing but a reader that copies a list of pointers.
//! Not here: media; what is on disk (nothing is).

use super::redact::redact;
use crate::clock::WallClock;
use crate::proto::gb28181::charset;
use crate::proto::pcap::{Carrier, Packet, PcapWriter};
use crate::proto::sip::message::Transport;
use crate::transport::sip_driver::{Direction, TraceHook, TraceRecord};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Messages kept of one uplink: a registration, its keepalives of an hour and the calls in between.
pub const RING_MESSAGES: usize = 200;
/// Messages kept of all devices together: there can be thousands of them, and one is looked at at a time.
pub const DEVICE_MESSAGES: usize = 2000;
/// The ring of devices that register with us; no uplink may have this name.
pub const DEVICES: &str = "devices";
/// Bytes kept of one message; a page of a catalogue over UDP is much shorter.
pub const MESSAGE_BYTES: usize = 8 << 10;
/// Rings kept: more uplinks than anybody has. What comes for more goes to [`OTHER`].
pub const RINGS: usize = 128;
/// The ring of strangers. Not a name an uplink can have: it is a metrics label of the same meaning.
pub const OTHER: &str = crate::metrics::OTHER;

/// A message as it was kept.
#[derive(Debug)]
struct Kept {
    at: Duration,
    direction: Direction,
    transport: Transport,
    local: SocketAddr,
    peer: SocketAddr,
    /// On the wire.
    size: usize,
    /// The beginning of it, without secrets.
    bytes: Box<[u8]>,
}

/// A message as the console shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceMessage {
    /// Unix milliseconds.
    pub at_ms: i64,
    /// `in`, `out`.
    pub direction: &'static str,
    /// `UDP`, `TCP`, `TLS`.
    pub transport: &'static str,
    /// Our address.
    pub local: SocketAddr,
    /// The other's.
    pub peer: SocketAddr,
    /// The start line.
    pub summary: String,
    /// Empty when there is none.
    pub call_id: String,
    /// Empty when there is none.
    pub cseq: String,
    /// Bytes on the wire.
    pub size: usize,
    /// True when only the first [`MESSAGE_BYTES`] are shown.
    pub truncated: bool,
    /// The message without secrets, in UTF-8 whatever its character set was.
    pub text: String,
}

type Ring = VecDeque<Arc<Kept>>;

/// All rings. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct TraceStore {
    wall: WallClock,
    rings: Arc<Mutex<BTreeMap<Arc<str>, Ring>>>,
}

impl TraceStore {
    /// Nothing recorded yet. `wall` stamps what will be.
    pub fn new(wall: WallClock) -> Self {
        // The ring of strangers always has its place.
        let rings = BTreeMap::from([(Arc::from(OTHER), Ring::new())]);
        TraceStore { wall, rings: Arc::new(Mutex::new(rings)) }
    }

    /// For the driver: records every message.
    pub fn hook(&self) -> TraceHook {
        let store = self.clone();
        Arc::new(move |record| store.record(record))
    }

    /// Keeps a message. Called in the driver's task: costs a copy of at most [`MESSAGE_BYTES`] and two looks over it.
    pub fn record(&self, record: &TraceRecord) {
        let mut bytes: Box<[u8]> = record.bytes[..record.bytes.len().min(MESSAGE_BYTES)].into();
        redact(&mut bytes);
        let kept = Arc::new(Kept {
            at: self.wall.unix(),
            direction: record.direction,
            transport: record.flow.transport,
            local: record.flow.local,
            peer: record.flow.peer,
            size: record.bytes.len(),
            bytes,
        });
        let name = record.user.as_ref().map_or(OTHER, |user| user.as_str());
        let mut rings = self.rings();
        let name = if rings.len() >= RINGS && !rings.contains_key(name) { OTHER } else { name };
        let ring = match rings.get_mut(name) {
            Some(ring) => ring,
            None => rings.entry(name.into()).or_default(),
        };
        let most =
            if record.user.as_ref().is_some_and(|u| u.as_str() == DEVICES) { DEVICE_MESSAGES } else { RING_MESSAGES };
        if ring.len() >= most {
            ring.pop_front();
        }
        ring.push_back(kept);
    }

    /// Forgets an uplink that is no longer configured.
    pub fn forget(&self, uplink: &str) {
        self.rings().remove(uplink);
    }

    /// The messages of an uplink (or [`OTHER`]), oldest first; `None` when there never was any.
    pub fn messages(&self, uplink: &str) -> Option<Vec<TraceMessage>> {
        Some(self.ring(uplink)?.iter().map(|kept| kept.show()).collect())
    }

    /// The messages of one device: from or to the address it registered from, or naming its code. Oldest first.
    pub fn device_messages(&self, id: &str, source: SocketAddr) -> Vec<TraceMessage> {
        self.device_ring(id, source).iter().map(|kept| kept.show()).collect()
    }

    /// The same as a capture file for Wireshark.
    pub fn device_pcap(&self, id: &str, source: SocketAddr) -> Vec<u8> {
        capture(&self.device_ring(id, source))
    }

    fn device_ring(&self, id: &str, source: SocketAddr) -> Vec<Arc<Kept>> {
        let mut ring = self.ring(DEVICES).unwrap_or_default();
        ring.retain(|kept| kept.peer == source || memchr::memmem::find(&kept.bytes, id.as_bytes()).is_some());
        ring
    }

    /// The same as a capture file for Wireshark; `None` when there never was any.
    pub fn pcap(&self, uplink: &str) -> Option<Vec<u8>> {
        Some(capture(&self.ring(uplink)?))
    }

    fn ring(&self, uplink: &str) -> Option<Vec<Arc<Kept>>> {
        self.rings().get(uplink).map(|ring| ring.iter().cloned().collect())
    }

    fn rings(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Ring>> {
        // Nothing is left half done inside; a panic elsewhere must not take the trace away.
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn capture(ring: &[Arc<Kept>]) -> Vec<u8> {
    let mut writer = PcapWriter::new();
    for kept in ring {
        let (from, to) = match kept.direction {
            Direction::In => (kept.peer, kept.local),
            Direction::Out => (kept.local, kept.peer),
        };
        writer.push(&Packet {
            at: kept.at,
            carrier: if kept.transport == Transport::Udp { Carrier::Udp } else { Carrier::Tcp },
            from,
            to,
            payload: &kept.bytes,
            size: kept.size,
        });
    }
    writer.finish()
}

impl Kept {
    fn show(&self) -> TraceMessage {
        // Head and body may be in different character sets.
        let split = memchr::memmem::find(&self.bytes, b"\r\n\r\n");
        let (head, body) = match split {
            Some(at) => (&self.bytes[..at], &self.bytes[at + 4..]),
            None => (&self.bytes[..], &[][..]),
        };
        let head = charset::decode(head, None);
        let field = |long: &str, short: &str| {
            let found = head.lines().skip(1).find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let name = name.trim();
                (name.eq_ignore_ascii_case(long) || name.eq_ignore_ascii_case(short)).then(|| value.trim().to_owned())
            });
            found.unwrap_or_default()
        };
        let (summary, call_id, cseq) =
            (head.lines().next().unwrap_or_default().trim().to_owned(), field("Call-ID", "i"), field("CSeq", "CSeq"));
        let text = match split {
            Some(_) => format!("{head}\r\n\r\n{}", charset::decode(body, None)),
            None => head.into_owned(),
        };
        TraceMessage {
            at_ms: i64::try_from(self.at.as_millis()).unwrap_or(i64::MAX),
            direction: self.direction.as_label(),
            transport: self.transport.as_str(),
            local: self.local,
            peer: self.peer,
            summary,
            call_id,
            cseq,
            size: self.size,
            truncated: self.bytes.len() < self.size,
            text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sip::message::Flow;
    use crate::transport::sip_driver::UserId;
    use bytes::Bytes;

    fn record(user: Option<&str>, bytes: impl Into<Bytes>) -> TraceRecord {
        TraceRecord {
            direction: Direction::Out,
            flow: Flow {
                transport: Transport::Udp,
                local: "192.0.2.1:5060".parse().unwrap(),
                peer: "192.0.2.2:15060".parse().unwrap(),
                conn: None,
            },
            bytes: bytes.into(),
            user: user.map(UserId::new),
        }
    }

    #[test]
    fn messages_are_shown_without_secrets_and_in_utf8() {
        let store = TraceStore::new(WallClock::new());
        let mut message = b"MESSAGE sip:a SIP/2.0\r\ni: 77@x\r\nCSEQ: 3 MESSAGE\r\n\
            Authorization: Digest response=\"0123\"\r\n\r\n<?xml encoding=\"GB2312\"?><N>"
            .to_vec();
        message.extend_from_slice(b"\xb6\xab\xc3\xc5</N>");
        store.hook()(&record(Some("psb"), message.clone()));
        let got = store.messages("psb").unwrap();
        let [one] = &got[..] else { panic!("{got:?}") };
        assert_eq!(
            (one.summary.as_str(), one.call_id.as_str(), one.cseq.as_str()),
            ("MESSAGE sip:a SIP/2.0", "77@x", "3 MESSAGE")
        );
        assert!(one.text.contains("<N>东门</N>") && one.text.contains("response=\"****\""));
        assert_eq!((one.size, one.truncated, one.direction), (message.len(), false, "out"));
        assert!(store.messages(OTHER).unwrap().is_empty() && store.pcap("nobody").is_none());
        let pcap = store.pcap("psb").unwrap();
        assert!(memchr::memmem::find(&pcap, b"0123").is_none(), "the file has no secret either");
        assert!(memchr::memmem::find(&pcap, b"response=\"****\"").is_some());
    }

    #[test]
    fn rings_and_messages_are_bounded() {
        let store = TraceStore::new(WallClock::new());
        for n in 0..RING_MESSAGES + 5 {
            store.record(&record(None, format!("M {n}\r\n")));
        }
        let got = store.messages(OTHER).unwrap();
        assert_eq!((got.len(), got[0].summary.as_str()), (RING_MESSAGES, "M 5"));
        store.record(&record(Some("big"), vec![b'a'; MESSAGE_BYTES + 1]));
        let big = &store.messages("big").unwrap()[0];
        assert!(big.truncated && big.text.len() == MESSAGE_BYTES && big.size == MESSAGE_BYTES + 1);
        for n in 0..RINGS + 10 {
            store.record(&record(Some(&format!("u{n}")), "X y"));
        }
        assert!(store.rings().len() <= RINGS);
        assert_eq!(store.messages(OTHER).unwrap().last().unwrap().summary, "X y");
        store.forget("u0");
        assert!(store.messages("u0").is_none());
    }

    #[test]
    fn odd_bytes_are_shown_somehow() {
        let store = TraceStore::new(WallClock::new());
        for bytes in [&b""[..], b"\r\n\r\n", b"\xff\xfe\0", b"A\r\n\r\n\xff"] {
            store.record(&record(None, bytes.to_vec()));
        }
        assert_eq!(store.messages(OTHER).unwrap().len(), 4);
        assert!(store.pcap(OTHER).unwrap().len() > 24);
    }
}
