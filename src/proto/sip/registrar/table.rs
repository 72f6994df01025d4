//! The devices that are registered: one plain value each, one ordered set of deadlines for all.
//!
//! Standard: [GB/T28181-2022 9.1.1 f, 9.6.1], [RFC3261 10].
//! In: bindings, signs of life, time. Out: bindings, and what is due.
//! Invariants: a binding has exactly one entry in the set of deadlines, never later than its true deadline; a sign of
//! life from an online device touches neither the set nor the heap: an entry that comes up early is put where it
//! belongs then. A binding over TCP or TLS does not outlive its connection.
//! Not here: who may register, for how long (`registrar`), the store the records go to.

use super::super::message::{ConnId, Flow, Transport};
use super::accounts::{KeepalivePolicy, NatPolicy};
use crate::proto::gb28181::{DeviceId, Version};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Longest Contact URI kept and taken, in bytes: GB devices write 50.
pub const MAX_CONTACT: usize = 256;
/// How much of a User-Agent is kept, in bytes.
pub const MAX_USER_AGENT: usize = 128;

/// A registered device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Its id.
    pub id: DeviceId,
    /// URI of its Contact; empty when it gave none. For display: requests go to `flow`, or anybody could have them sent
    /// to anyone.
    pub contact: Box<str>,
    /// Where it registered from, and where requests to it go.
    pub flow: Flow,
    /// What it speaks; `None`: it did not say.
    pub version: Option<Version>,
    /// Its User-Agent, cut, without control characters; may be empty.
    pub user_agent: Box<str>,
    /// Since when it has been registered without a break, Unix milliseconds.
    pub registered_unix_ms: i64,
    /// When it was last heard.
    pub last_seen: Instant,
    /// When the registration ends.
    pub expires_at: Instant,
    /// Heard within its keepalive time. A device that has gone silent stays registered until `expires_at`.
    pub online: bool,
    pub(super) terms: Terms,
    /// Its place in the set of deadlines.
    pub(super) queued: Instant,
}

/// What a binding takes from its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// The account's number.
    pub account: usize,
    pub keepalive: KeepalivePolicy,
    pub nat: NatPolicy,
}

impl Binding {
    /// When it is offline unless it is heard. [GB/T28181-2022 9.6.1]
    pub fn keepalive_due(&self) -> Instant {
        self.last_seen + self.terms.keepalive.silence()
    }

    /// Request-URI of requests to it: its id at the address it registered from.
    pub fn request_uri(&self) -> String {
        format!("sip:{}@{}", self.id, self.flow.peer)
    }

    /// As the store keeps it. `now` and `unix_ms` are the same moment on both clocks.
    pub fn to_record(&self, now: Instant, unix_ms: i64) -> BindingRecord {
        let wall = |at: Instant| {
            let (ahead, behind) = (at.saturating_duration_since(now), now.saturating_duration_since(at));
            unix_ms.saturating_add(millis(ahead)).saturating_sub(millis(behind))
        };
        BindingRecord {
            id: self.id.to_string(),
            contact: self.contact.to_string(),
            transport: self.flow.transport.as_str().to_owned(),
            local: self.flow.local.to_string(),
            peer: self.flow.peer.to_string(),
            version: self.version.map(|version| version.as_str().to_owned()),
            user_agent: self.user_agent.to_string(),
            registered_unix_ms: self.registered_unix_ms,
            last_seen_unix_ms: wall(self.last_seen),
            expires_unix_ms: wall(self.expires_at),
        }
    }

    /// The next deadline: silence while online, else expiry.
    fn due(&self) -> Instant {
        if self.online { self.expires_at.min(self.keepalive_due()) } else { self.expires_at }
    }

    /// Whether requests that came by `flow` are this device's; `Some(true)` when its port has moved.
    fn speaks(&self, flow: &Flow) -> Option<bool> {
        let ours = &self.flow;
        if ours.transport != flow.transport || ours.conn != flow.conn {
            return None;
        }
        match (ours.peer == flow.peer, self.terms.nat) {
            (true, _) => Some(false),
            (false, NatPolicy::SameIp) if flow.transport == Transport::Udp && ours.peer.ip() == flow.peer.ip() => {
                Some(true)
            }
            _ => None,
        }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// A binding as plain values, for a store and back. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingRecord {
    /// The device's id.
    pub id: String,
    /// `Binding::contact`.
    pub contact: String,
    /// `UDP`, `TCP` or `TLS`.
    pub transport: String,
    /// Our address, `ip:port`.
    pub local: String,
    /// The device's address, `ip:port`.
    pub peer: String,
    /// `X-GB-Ver` form.
    pub version: Option<String>,
    /// `Binding::user_agent`.
    pub user_agent: String,
    /// Registered since.
    pub registered_unix_ms: i64,
    /// Last heard.
    pub last_seen_unix_ms: i64,
    /// Registered until.
    pub expires_unix_ms: i64,
}

impl BindingRecord {
    /// The binding, offline until it is heard; `None` when it has expired, is not of UDP (the connection is gone, and
    /// the device registers anew), or is unsound. At most `max_expires` seconds are left to it, whatever the wall clock
    /// has done meanwhile.
    pub(super) fn to_binding(&self, now: Instant, unix_ms: i64, max_expires: u32, terms: Terms) -> Option<Binding> {
        let left = Duration::from_millis(self.expires_unix_ms.checked_sub(unix_ms)?.try_into().ok()?);
        let silent = Duration::from_millis(unix_ms.saturating_sub(self.last_seen_unix_ms).try_into().unwrap_or(0));
        let address = |text: &str| text.parse::<SocketAddr>().ok();
        if left.is_zero() || self.transport != Transport::Udp.as_str() || self.contact.len() > MAX_CONTACT {
            return None;
        }
        let expires_at = now + left.min(Duration::from_secs(max_expires.into()));
        Some(Binding {
            id: DeviceId::parse(&self.id).ok()?,
            contact: self.contact.as_str().into(),
            flow: Flow {
                transport: Transport::Udp,
                local: address(&self.local)?,
                peer: address(&self.peer)?,
                conn: None,
            },
            version: self.version.as_deref().and_then(Version::parse),
            user_agent: cut_user_agent(&self.user_agent),
            registered_unix_ms: self.registered_unix_ms,
            last_seen: now.checked_sub(silent).unwrap_or(now),
            expires_at,
            online: false,
            terms,
            queued: expires_at,
        })
    }
}

/// A User-Agent as it is kept.
pub(super) fn cut_user_agent(text: &str) -> Box<str> {
    let text = &text[..text.floor_char_boundary(MAX_USER_AGENT)];
    text.chars().filter(|c| !c.is_control()).collect::<String>().into()
}

/// What a request of a device's is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepaliveVerdict {
    /// The device's own.
    Alive {
        /// It was offline, and is online now.
        was_offline: bool,
        /// Its port had moved, and requests to it follow. `NatPolicy::SameIp` only.
        moved: bool,
    },
    /// No such device is registered: it has to register anew.
    NotRegistered,
    /// It is registered, but from elsewhere.
    WrongSource,
}

impl KeepaliveVerdict {
    /// The status to answer with. Both refusals are 403: who asks learns nothing, and a device registers anew.
    pub fn status(self) -> u16 {
        match self {
            KeepaliveVerdict::Alive { .. } => 200,
            KeepaliveVerdict::NotRegistered | KeepaliveVerdict::WrongSource => 403,
        }
    }
}

/// What has come due.
#[derive(Debug)]
pub(super) enum Due {
    Silent(DeviceId),
    Expired(Box<Binding>),
}

/// All bindings. See the file's head.
#[derive(Debug, Default)]
pub(super) struct Table {
    bindings: HashMap<DeviceId, Binding>,
    deadlines: BTreeSet<(Instant, DeviceId)>,
    /// Devices of each connection.
    connections: HashMap<ConnId, Vec<DeviceId>>,
    /// Bindings of each account, by its number; no entry is none.
    of_account: HashMap<usize, usize>,
}

impl Table {
    pub fn get(&self, id: &DeviceId) -> Option<&Binding> {
        self.bindings.get(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.values()
    }

    pub fn len(&self) -> usize {
        self.bindings.len()
    }

    pub fn count_of(&self, account: usize) -> usize {
        self.of_account.get(&account).copied().unwrap_or(0)
    }

    /// Puts a binding in, in place of the device's old one.
    pub fn put(&mut self, mut binding: Binding) -> Option<Binding> {
        let old = self.remove(&binding.id);
        binding.queued = binding.due();
        self.deadlines.insert((binding.queued, binding.id));
        *self.of_account.entry(binding.terms.account).or_default() += 1;
        if let Some(conn) = binding.flow.conn {
            self.connections.entry(conn).or_default().push(binding.id);
        }
        self.bindings.insert(binding.id, binding);
        old
    }

    pub fn remove(&mut self, id: &DeviceId) -> Option<Binding> {
        let old = self.bindings.remove(id)?;
        self.deadlines.remove(&(old.queued, *id));
        if let Some(count) = self.of_account.get_mut(&old.terms.account) {
            *count -= 1;
            if *count == 0 {
                self.of_account.remove(&old.terms.account);
            }
        }
        if let Some(conn) = old.flow.conn
            && let Some(ids) = self.connections.get_mut(&conn)
        {
            ids.retain(|other| other != id);
            if ids.is_empty() {
                self.connections.remove(&conn);
            }
        }
        Some(old)
    }

    /// Devices registered over this connection.
    pub fn on_connection(&self, conn: ConnId) -> Vec<DeviceId> {
        self.connections.get(&conn).cloned().unwrap_or_default()
    }

    /// The device's binding, when `flow` speaks for it and it has not expired.
    pub fn source(&self, now: Instant, id: &DeviceId, flow: &Flow) -> Result<&Binding, KeepaliveVerdict> {
        let binding = self.bindings.get(id).filter(|binding| binding.expires_at > now);
        let binding = binding.ok_or(KeepaliveVerdict::NotRegistered)?;
        binding.speaks(flow).map(|_| binding).ok_or(KeepaliveVerdict::WrongSource)
    }

    /// A sign of life; gives how many keepalives it shows to have been missed, too.
    pub fn heard(&mut self, now: Instant, id: &DeviceId, flow: &Flow) -> (KeepaliveVerdict, u64) {
        let Some(binding) = self.bindings.get_mut(id).filter(|binding| binding.expires_at > now) else {
            return (KeepaliveVerdict::NotRegistered, 0);
        };
        let Some(moved) = binding.speaks(flow) else {
            return (KeepaliveVerdict::WrongSource, 0);
        };
        // The nearest number of intervals: keepalives come a little late as well as a little early.
        let interval = binding.terms.keepalive.interval.as_millis().max(1);
        let silent = now.saturating_duration_since(binding.last_seen).as_millis();
        let missed = ((silent + interval / 2) / interval).saturating_sub(1);
        binding.last_seen = binding.last_seen.max(now);
        binding.flow = *flow;
        let was_offline = !std::mem::replace(&mut binding.online, true);
        if was_offline {
            // Only now it has a deadline before its expiry.
            self.deadlines.remove(&(binding.queued, *id));
            binding.queued = binding.due();
            self.deadlines.insert((binding.queued, *id));
        }
        let missed = if was_offline { 0 } else { u64::try_from(missed).unwrap_or(u64::MAX) };
        (KeepaliveVerdict::Alive { was_offline, moved }, missed)
    }

    /// Gives a binding other terms; its deadline follows.
    pub fn set_terms(&mut self, id: &DeviceId, terms: Terms, version: Option<Version>) {
        if let Some(mut binding) = self.remove(id) {
            binding.terms = terms;
            binding.version = version.or(binding.version);
            self.put(binding);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// What has come due first, if anything has; to be asked until nothing has.
    pub fn pop_due(&mut self, now: Instant) -> Option<Due> {
        loop {
            let (queued, id) = self.deadlines.first().copied().filter(|(at, _)| *at <= now)?;
            let Some(binding) = self.bindings.get_mut(&id) else {
                self.deadlines.remove(&(queued, id));
                continue;
            };
            if binding.expires_at <= now {
                return self.remove(&id).map(|old| Due::Expired(Box::new(old)));
            }
            let silent = binding.online && binding.keepalive_due() <= now;
            binding.online &= !silent;
            self.deadlines.remove(&(queued, id));
            binding.queued = binding.due();
            self.deadlines.insert((binding.queued, id));
            if silent {
                return Some(Due::Silent(id));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a base for virtual time")]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn id(n: u64) -> DeviceId {
        DeviceId::parse(&format!("340200000013{n:08}")).unwrap()
    }

    fn flow(port: u16, conn: Option<u64>) -> Flow {
        let transport = if conn.is_some() { Transport::Tcp } else { Transport::Udp };
        Flow {
            transport,
            local: "192.0.2.1:5060".parse().unwrap(),
            peer: ([198, 51, 100, 7], port).into(),
            conn: conn.map(ConnId),
        }
    }

    fn binding(now: Instant, n: u64, flow: Flow) -> Binding {
        let terms = Terms { account: 0, keepalive: KeepalivePolicy::default().sound(), nat: NatPolicy::SameSource };
        Binding {
            id: id(n),
            contact: "sip:1@192.0.2.9:5060".into(),
            flow,
            version: Some(Version::V2016),
            user_agent: "cam".into(),
            registered_unix_ms: 5,
            last_seen: now,
            expires_at: now + seconds(3600),
            online: true,
            terms,
            queued: now,
        }
    }

    #[test]
    fn a_keepalive_does_not_touch_the_deadlines_and_an_early_entry_moves_on() {
        let now = Instant::now();
        let mut table = Table::default();
        table.put(binding(now, 1, flow(1, None)));
        let before = table.deadlines.clone();
        let alive = KeepaliveVerdict::Alive { was_offline: false, moved: false };
        assert_eq!(table.heard(now + seconds(60), &id(1), &flow(1, None)), (alive, 0));
        assert_eq!(table.deadlines, before);
        assert!(table.pop_due(now + seconds(180)).is_none());
        assert_eq!(table.next_deadline(), Some(now + seconds(240)));
        assert!(matches!(table.pop_due(now + seconds(240)), Some(Due::Silent(who)) if who == id(1)));
        assert_eq!(table.next_deadline(), Some(now + seconds(3600)));
    }

    #[test]
    fn missed_keepalives_are_counted_to_the_nearest() {
        let now = Instant::now();
        let mut table = Table::default();
        table.put(binding(now, 1, flow(1, None)));
        let mut at = now;
        for (silence, missed) in [(60, 0), (61, 0), (50, 0), (5, 0), (119, 1), (121, 1), (170, 2), (89, 0), (91, 1)] {
            at += seconds(silence);
            assert_eq!(table.heard(at, &id(1), &flow(1, None)).1, missed, "{silence} s");
        }
    }

    #[test]
    fn indexes_follow_the_bindings() {
        let now = Instant::now();
        let mut table = Table::default();
        table.put(binding(now, 1, flow(1, Some(9))));
        table.put(binding(now, 2, flow(1, Some(9))));
        assert_eq!(table.on_connection(ConnId(9)), [id(1), id(2)]);
        table.put(binding(now, 1, flow(2, Some(10))));
        assert_eq!((table.on_connection(ConnId(9)), table.on_connection(ConnId(10))), (vec![id(2)], vec![id(1)]));
        assert_eq!((table.count_of(0), table.deadlines.len()), (2, 2));
        table.remove(&id(1));
        table.remove(&id(2));
        assert_eq!((table.connections.len(), table.of_account.len(), table.deadlines.len()), (0, 0, 0));
    }

    #[test]
    fn records_bring_back_udp_bindings_until_they_expire() {
        let now = Instant::now();
        let original = binding(now, 1, flow(7, None));
        let record = original.to_record(now + seconds(100), 1_000_000);
        assert_eq!((record.last_seen_unix_ms, record.expires_unix_ms), (900_000, 4_500_000));
        let later = now + seconds(7);
        let back = |record: &BindingRecord, unix_ms| record.to_binding(later, unix_ms, 86_400, original.terms);
        let got = back(&record, 1_000_500).unwrap();
        assert_eq!((got.expires_at, got.online), (later + Duration::from_millis(3_499_500), false));
        assert_eq!((got.flow, got.version, &got.contact), (original.flow, original.version, &original.contact));
        assert_eq!(back(&record, 4_500_000), None);
        // The wall clock was set back by a year: no more than the longest expiry is left.
        assert_eq!(back(&record, -31_536_000_000).unwrap().expires_at, later + seconds(86_400));
        let spoils: [fn(&mut BindingRecord); 4] = [
            |r| r.transport = "TCP".into(),
            |r| r.peer = "nowhere".into(),
            |r| r.id = "x".into(),
            |r| r.contact = "x".repeat(MAX_CONTACT + 1),
        ];
        for spoil in spoils {
            let mut bad = record.clone();
            spoil(&mut bad);
            assert_eq!(back(&bad, 1_000_500), None);
        }
        let odd = BindingRecord { expires_unix_ms: i64::MAX, last_seen_unix_ms: i64::MIN, ..record };
        assert!(back(&odd, -1).is_none() && back(&odd, 1).is_some());
    }

    #[test]
    fn a_user_agent_is_cut_at_a_character() {
        assert_eq!(&*cut_user_agent("a\tb\u{1b}c"), "abc");
        let long = cut_user_agent(&"门".repeat(100));
        assert!(long.len() <= MAX_USER_AGENT && long.chars().all(|c| c == '门'));
    }
}
