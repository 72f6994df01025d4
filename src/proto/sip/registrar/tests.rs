//! The registrar in virtual time, with devices that answer challenges as devices do, and with those who attack it.

#![allow(clippy::disallowed_methods, reason = "a base for virtual time")]

use super::super::digest::{Algorithm, DigestClient, pick_challenge};
use super::super::message::Transport;
use super::*;
use bytes::Bytes;
use rand::SeedableRng;
use std::collections::HashSet;

const CAM: &str = "34020000001320000001";
const NVR: &str = "34020000001180000007";
const STRANGER: &str = "11010000001320000099";
const UPPER: &str = "34010000002000000001";
const SECRET: &str = "12345678";
/// 2026-11-23T21:15:04.128 in Beijing.
const WALL: i64 = 1_795_439_704_128;

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

fn udp(peer: &str) -> Flow {
    let local = "192.0.2.1:5060".parse().unwrap();
    Flow { transport: Transport::Udp, local, peer: peer.parse().unwrap(), conn: None }
}

fn tcp(peer: &str, conn: u64) -> Flow {
    Flow { transport: Transport::Tcp, conn: Some(ConnId(conn)), ..udp(peer) }
}

fn one(text: &str) -> Account {
    Account::new(Ids::One(id(text)), SECRET)
}

fn config() -> RegistrarConfig {
    let nvrs = Account::new(Ids::Prefix { digits: "3402000000118".into(), max: 2 }, SECRET);
    RegistrarConfig {
        realm: "3402000000".into(),
        accounts: vec![one(CAM), nvrs],
        reserved: vec![id(UPPER), id("34020000002000000001")],
        ..RegistrarConfig::default()
    }
}

/// A registrar and the time at it.
struct Site {
    registrar: Registrar,
    now: Instant,
    wall: i64,
}

fn site_with(config: RegistrarConfig) -> Site {
    Site { registrar: Registrar::new(config, StdRng::seed_from_u64(7)), now: Instant::now(), wall: WALL }
}

fn site() -> Site {
    site_with(config())
}

/// A REGISTER as devices write it, with more headers; an empty value leaves a header out.
fn register(user: &str, more: &[(&str, &str)]) -> Request {
    let mut headers = Headers::new();
    headers.push("Via", "SIP/2.0/UDP 10.0.0.9:5060;rport;branch=z9hG4bK71c0e2a1");
    headers.push("From", format!("<sip:{user}@3402000000>;tag=9a1f03"));
    headers.push("To", format!("<sip:{user}@3402000000>"));
    headers.push("Call-ID", "5b1f7c2e0a@10.0.0.9");
    headers.push("CSeq", "1 REGISTER");
    headers.push("Contact", format!("<sip:{user}@10.0.0.9:5060>"));
    headers.push("Expires", "3600");
    headers.push("User-Agent", "Embedded Net DVR");
    for (name, value) in more {
        match value.is_empty() {
            true => headers.remove(name),
            false => headers.set(name, *value),
        }
    }
    Request {
        method: "REGISTER".into(),
        uri: "sip:34020000002000000001@192.0.2.1:5060".into(),
        headers,
        body: Bytes::new(),
    }
}

fn credentials(challenge: &Response, username: &str, secret: &str) -> String {
    let picked = pick_challenge(challenge.headers.get_all("WWW-Authenticate"), false).unwrap();
    // Not the Request-URI: Hikvision names the domain.
    DigestClient::new(picked).answer("REGISTER", "sip:34020000002000000001@3402000000", username, secret, "0a4f113b")
}

fn with(mut request: Request, authorization: &str) -> Request {
    request.headers.push("Authorization", authorization);
    request
}

impl Site {
    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.wall += time.as_millis() as i64;
    }

    fn hear(&mut self, request: &Request, flow: &Flow) -> Verdict {
        self.registrar.handle_register(self.now, self.wall, request, flow)
    }

    /// The second REGISTER's verdict.
    fn try_as(&mut self, request: &Request, flow: &Flow, username: &str, secret: &str) -> Verdict {
        let first = self.hear(request, flow);
        assert_eq!((first.response.status, first.changes.len()), (401, 0), "{request:?}");
        self.hear(&with(request.clone(), &credentials(&first.response, username, secret)), flow)
    }

    fn try_more(&mut self, user: &str, flow: &Flow, more: &[(&str, &str)]) -> Verdict {
        self.try_as(&register(user, more), flow, user, SECRET)
    }

    /// Registers, and gives the one change.
    fn enter(&mut self, user: &str, flow: &Flow, more: &[(&str, &str)]) -> Change {
        let verdict = self.try_more(user, flow, more);
        assert_eq!(verdict.response.status, 200);
        let [change] = verdict.changes.try_into().unwrap();
        change
    }

    fn keepalive(&mut self, user: &str, flow: &Flow) -> KeepaliveVerdict {
        self.registrar.handle_keepalive(self.now, &id(user), flow)
    }

    fn refused(&self, reason: Refusal) -> u64 {
        self.registrar.counts().refused(reason)
    }
}

const ALIVE: KeepaliveVerdict = KeepaliveVerdict::Alive { was_offline: false, moved: false };
const BACK: KeepaliveVerdict = KeepaliveVerdict::Alive { was_offline: true, moved: false };

fn header<'a>(verdict: &'a Verdict, name: &str) -> Option<&'a str> {
    verdict.response.headers.get(name)
}

// ---- the standard's course ----

#[test]
fn registers_refreshes_and_unregisters() {
    let mut site = site();
    let flow = udp("198.51.100.7:5061");
    let first = site.hear(&register(CAM, &[]), &flow);
    assert_eq!(first.response.status, 401);
    let challenge = header(&first, "WWW-Authenticate").unwrap();
    assert!(challenge.starts_with("Digest realm=\"3402000000\", nonce=\"") && !challenge.contains("qop"));
    assert_eq!(header(&first, "X-GB-Ver"), Some("3.0"));
    assert!(first.response.headers.to_tag().is_some());
    assert!(header(&first, "Via").unwrap().contains(";received=198.51.100.7;rport=5061"));

    let asks = register(CAM, &[("X-GB-Ver", "2.0"), ("Contact", "\"c\" <sip:1@10.0.0.9>;expires=9")]);
    let verdict = site.hear(&with(asks, &credentials(&first.response, CAM, SECRET)), &flow);
    assert_eq!(verdict.response.status, 200);
    assert_eq!(header(&verdict, "Expires"), Some("3600"));
    assert_eq!(header(&verdict, "Contact"), Some("\"c\" <sip:1@10.0.0.9>;expires=3600"));
    assert_eq!(header(&verdict, "Date"), Some("2026-11-23T21:15:04.128"));
    assert_eq!(header(&verdict, "X-GB-Ver"), Some("3.0"));
    let [Change::Registered { binding, new: true, moved_from: None }] = &verdict.changes[..] else {
        panic!("{:?}", verdict.changes)
    };
    assert_eq!((binding.id, binding.flow, binding.version), (id(CAM), flow, Some(Version::V2016)));
    assert_eq!((&*binding.contact, &*binding.user_agent), ("sip:1@10.0.0.9", "Embedded Net DVR"));
    assert_eq!((binding.expires_at, binding.online), (site.now + seconds(3600), true));
    assert_eq!(site.registrar.next_timeout(), Some(site.now + seconds(180)));

    // The same Call-ID once more: challenged again.
    site.pass(seconds(1000));
    site.registrar.handle_timeout(site.now);
    site.keepalive(CAM, &flow);
    let since = binding.registered_unix_ms;
    let Change::Refreshed { binding } = site.enter(CAM, &flow, &[]) else { panic!("a refresh") };
    assert_eq!((binding.expires_at, binding.registered_unix_ms), (site.now + seconds(3600), since));

    let verdict = site.try_more(CAM, &flow, &[("Expires", "0")]);
    assert_eq!((verdict.response.status, header(&verdict, "Expires")), (200, Some("0")));
    assert_eq!((header(&verdict, "Date"), header(&verdict, "Contact")), (None, None));
    assert!(matches!(&verdict.changes[..], [Change::Unregistered { binding }] if binding.id == id(CAM)));
    assert_eq!((site.registrar.next_timeout(), site.keepalive(CAM, &flow)), (None, KeepaliveVerdict::NotRegistered));
    let again = site.try_more(CAM, &flow, &[("Contact", "*"), ("Expires", "0")]);
    assert_eq!((again.response.status, again.changes.len()), (200, 0));
    let counts = site.registrar.counts();
    assert_eq!((counts.registered, counts.refreshed, counts.unregistered, counts.expired), (1, 1, 1, 0));
}

#[test]
fn terms_of_an_account_override_the_registrars() {
    let old = Account {
        username: Some("gate".into()),
        date: Some(false),
        version: Some(Version::V2011),
        keepalive: Some(KeepalivePolicy { interval: seconds(10), count: 2 }),
        expires: Some(ExpiresLimits { min: 60, max: 7_200, default: 7_200, short: ShortExpires::Accept }),
        ..one(CAM)
    };
    let mut site = site_with(RegistrarConfig { accounts: vec![old], ..config() });
    let flow = udp("198.51.100.7:5060");
    let asks = register(CAM, &[("X-GB-Ver", "3.0"), ("Expires", "86400")]);
    assert_eq!(site.try_as(&asks, &flow, CAM, SECRET).response.status, 403);
    assert_eq!(site.refused(Refusal::WrongUsername), 1);
    let verdict = site.try_as(&asks, &flow, "gate", SECRET);
    assert_eq!(header(&verdict, "Expires"), Some("7200"));
    assert_eq!((header(&verdict, "Date"), header(&verdict, "X-GB-Ver")), (None, None));
    assert_eq!(site.registrar.binding(&id(CAM)).unwrap().version, Some(Version::V2011));
    assert_eq!(site.registrar.next_timeout(), Some(site.now + seconds(20)));
}

#[test]
fn both_algorithms_are_offered_and_taken_with_and_without_qop() {
    for qop in [false, true] {
        let algorithms = vec![Algorithm::Md5, Algorithm::Sha256];
        let mut site = site_with(RegistrarConfig { algorithms, qop, ..config() });
        let flow = udp("198.51.100.7:5060");
        for prefer_sha256 in [false, true] {
            let first = site.hear(&register(CAM, &[]), &flow).response;
            let picked = pick_challenge(first.headers.get_all("WWW-Authenticate"), prefer_sha256).unwrap();
            assert_eq!(picked.algorithm == Algorithm::Sha256, prefer_sha256);
            let value = DigestClient::new(picked).answer("REGISTER", "sip:x", CAM, SECRET, "c");
            assert_eq!(site.hear(&with(register(CAM, &[]), &value), &flow).response.status, 200);
        }
    }
}

#[test]
fn expiries_as_devices_ask_for_them() {
    let flow = udp("198.51.100.7:5060");
    for (more, granted) in [
        (vec![("Expires", "")], "86400"),
        (vec![("Expires", ""), ("Contact", "<sip:1@10.0.0.9>;expires=5000")], "5000"),
        (vec![("Expires", "600")], "600"),
        (vec![("Expires", "1")], "60"),
        (vec![("Expires", "4294967295")], "86400"),
        (vec![("Contact", "")], "3600"),
    ] {
        let verdict = site().try_more(CAM, &flow, &more);
        assert_eq!((verdict.response.status, header(&verdict, "Expires")), (200, Some(granted)), "{more:?}");
    }
    let expires = ExpiresLimits { short: ShortExpires::Refuse, ..ExpiresLimits::default() };
    let mut strict = site_with(RegistrarConfig { expires, ..config() });
    let verdict = strict.try_more(CAM, &flow, &[("Expires", "3599")]);
    assert_eq!((verdict.response.status, header(&verdict, "Min-Expires")), (423, Some("3600")));
    assert!(strict.registrar.binding(&id(CAM)).is_none());
    assert_eq!(strict.refused(Refusal::TooBrief), 1);
}

#[test]
fn a_register_that_only_asks_changes_nothing() {
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    let ask = [("Expires", ""), ("Contact", "")];
    assert_eq!(header(&site.try_more(CAM, &flow, &ask), "Contact"), None);
    site.enter(CAM, &flow, &[]);
    site.pass(seconds(100));
    let verdict = site.try_more(CAM, &flow, &ask);
    assert_eq!(header(&verdict, "Contact"), Some("<sip:34020000001320000001@10.0.0.9:5060>;expires=3500"));
    assert_eq!(verdict.changes, []);
}

#[test]
fn registers_that_make_no_sense_are_400() {
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    let long = format!("<sip:{}@10.0.0.9>", "1".repeat(MAX_CONTACT));
    for more in [
        ("To", ""),
        ("From", "<tel:34020000001320000001>"),
        ("To", "<http://34020000001320000001@x>"),
        ("Expires", "-1"),
        ("Expires", "4294967296"),
        ("Expires", "1e3"),
        ("Contact", "*"),
        ("Contact", "<tel:1>"),
        ("Contact", "<sip:1@10.0.0.9"),
        ("Contact", long.as_str()),
    ] {
        assert_eq!(site.hear(&register(CAM, &[more]), &flow).response.status, 400, "{more:?}");
    }
    for user in ["alice", "3402000000132000000x", "340200000013200000010000000000000"] {
        assert_eq!(site.hear(&register(user, &[]), &flow).response.status, 400, "{user}");
    }
    for authorization in ["Digest username=\"x", "Digest realm"] {
        assert_eq!(site.hear(&with(register(CAM, &[]), authorization), &flow).response.status, 400, "{authorization}");
    }
    for authorization in ["NoOneKnowsThisScheme opaque-data=here", "Basic YWxhZGRpbg==", "Digest realm=\"other\""] {
        assert_eq!(site.hear(&with(register(CAM, &[]), authorization), &flow).response.status, 401, "{authorization}");
    }
    let escaped = [("Contact", "<sip:1@10.0.0.9?Route=%3Csip:198.51.100.99%3E>")];
    site.enter(CAM, &flow, &escaped);
    assert_eq!(site.registrar.binding(&id(CAM)).unwrap().request_uri(), format!("sip:{CAM}@198.51.100.7:5060"));
}

// ---- alive or not ----

#[test]
fn silence_is_offline_to_the_nanosecond_and_a_keepalive_brings_back() {
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    site.enter(CAM, &flow, &[]);
    site.pass(seconds(60));
    assert_eq!(site.keepalive(CAM, &flow), ALIVE);
    let due = site.now + seconds(180);
    assert_eq!(site.registrar.handle_timeout(due - Duration::from_nanos(1)), []);
    assert_eq!(site.registrar.next_timeout(), Some(due));
    let offline = Change::Offline { id: id(CAM), reason: OfflineReason::Silent };
    assert_eq!(site.registrar.handle_timeout(due), [offline]);
    assert!(!site.registrar.binding(&id(CAM)).unwrap().online);
    assert_eq!(site.registrar.counts().keepalives_missed, 3);
    site.pass(seconds(500));
    assert_eq!(site.keepalive(CAM, &flow), BACK);
    assert_eq!(site.registrar.counts().keepalives_missed, 3);
    assert_eq!(site.registrar.next_timeout(), Some(site.now + seconds(180)));
    // A REGISTER of a silent device is news, though it is not new.
    site.pass(seconds(180));
    site.registrar.handle_timeout(site.now);
    let change = site.enter(CAM, &flow, &[]);
    assert!(matches!(change, Change::Registered { new: false, moved_from: None, .. }));
}

#[test]
fn expiry_ends_a_registration_even_before_the_timeout_is_served() {
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    site.enter(CAM, &flow, &[("Expires", "100")]);
    site.pass(seconds(100) - Duration::from_nanos(1));
    assert_eq!(site.keepalive(CAM, &flow), ALIVE);
    site.pass(Duration::from_nanos(1));
    assert_eq!(site.keepalive(CAM, &flow), KeepaliveVerdict::NotRegistered);
    assert_eq!(site.registrar.authenticate_source(site.now, &id(CAM), &flow), None);
    let verdict = site.try_more(CAM, &flow, &[]);
    let [Change::Expired { .. }, Change::Registered { new: true, .. }] = &verdict.changes[..] else {
        panic!("{:?}", verdict.changes)
    };
    site.pass(seconds(180));
    assert_eq!(site.registrar.handle_timeout(site.now).len(), 1);
    site.pass(seconds(3420));
    let changes = site.registrar.handle_timeout(site.now);
    assert!(matches!(&changes[..], [Change::Expired { .. }]));
    assert_eq!((site.registrar.next_timeout(), site.registrar.bindings().count()), (None, 0));
}

#[test]
fn only_the_source_of_the_register_speaks_for_a_device() {
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    site.enter(CAM, &flow, &[]);
    let others = [udp("198.51.100.7:5061"), udp("198.51.100.8:5060"), tcp("198.51.100.7:5060", 1)];
    for other in others {
        assert_eq!(site.keepalive(CAM, &other), KeepaliveVerdict::WrongSource);
        assert_eq!(site.registrar.touch(site.now, &id(CAM), &other).status(), 403);
        assert!(site.registrar.authenticate_source(site.now, &id(CAM), &other).is_none());
    }
    assert_eq!(site.keepalive(NVR, &flow), KeepaliveVerdict::NotRegistered);
    assert!(site.registrar.authenticate_source(site.now, &id(CAM), &flow).is_some());
    assert_eq!(site.registrar.binding(&id(CAM)).unwrap().flow, flow);
    let counts = site.registrar.counts();
    assert_eq!((counts.wrong_source, counts.not_registered), (6, 1));
    assert_eq!(site.registrar.next_timeout(), Some(site.now + seconds(180)));
}

#[test]
fn with_same_ip_the_port_may_move_and_requests_follow() {
    let mut site = site_with(RegistrarConfig { nat: NatPolicy::SameIp, ..config() });
    site.enter(CAM, &udp("198.51.100.7:5060"), &[]);
    let moved = udp("198.51.100.7:40001");
    assert!(site.registrar.authenticate_source(site.now, &id(CAM), &moved).is_some());
    assert_eq!(site.keepalive(CAM, &moved), KeepaliveVerdict::Alive { was_offline: false, moved: true });
    assert_eq!(site.registrar.binding(&id(CAM)).unwrap().flow, moved);
    assert_eq!(site.keepalive(CAM, &udp("198.51.100.8:40001")), KeepaliveVerdict::WrongSource);
    site.enter(NVR, &tcp("198.51.100.7:50000", 4), &[]);
    assert_eq!(site.keepalive(NVR, &tcp("198.51.100.7:50001", 5)), KeepaliveVerdict::WrongSource);
}

#[test]
fn a_closed_connection_ends_its_registrations_and_no_others() {
    let mut site = site();
    let (first, second) = (tcp("198.51.100.7:50000", 1), tcp("198.51.100.7:50001", 2));
    site.enter(CAM, &first, &[]);
    site.enter(NVR, &first, &[]);
    let change = site.enter(CAM, &second, &[]);
    let Change::Registered { new: false, moved_from: Some(from), .. } = change else { panic!("{change:?}") };
    assert_eq!((from, site.registrar.counts().moved), (first, 1));
    let lost = |who: &str| Change::Offline { id: id(who), reason: OfflineReason::ConnectionLost };
    assert_eq!(site.registrar.connection_closed(ConnId(1)), [lost(NVR)]);
    assert_eq!(site.registrar.connection_closed(ConnId(1)), []);
    assert_eq!((site.keepalive(CAM, &second), site.keepalive(NVR, &first)), (ALIVE, KeepaliveVerdict::NotRegistered));
    assert_eq!(site.registrar.connection_closed(ConnId(2)), [lost(CAM)]);
    assert_eq!((site.registrar.bindings().count(), site.registrar.next_timeout()), (0, None));
}

#[test]
fn udp_bindings_outlive_a_restart_and_others_do_not() {
    let mut before = site();
    let flow = udp("198.51.100.7:5060");
    before.enter(CAM, &flow, &[]);
    before.enter(NVR, &tcp("198.51.100.8:50000", 1), &[]);
    let mut records: Vec<BindingRecord> =
        before.registrar.bindings().map(|binding| binding.to_record(before.now, before.wall)).collect();
    records.push(BindingRecord { id: STRANGER.into(), ..records[0].clone() });
    let mut after = site();
    after.wall = before.wall + 1_000_000;
    let restored = after.registrar.restore(after.now, after.wall, records.clone());
    assert_eq!(restored, Restored { kept: 1, dropped: 2 });
    assert!(!after.registrar.binding(&id(CAM)).unwrap().online);
    assert_eq!(after.registrar.next_timeout(), Some(after.now + seconds(2600)));
    assert_eq!(after.keepalive(CAM, &udp("198.51.100.66:5060")), KeepaliveVerdict::WrongSource);
    assert_eq!(after.keepalive(CAM, &flow), BACK);
    assert_eq!(after.keepalive(NVR, &tcp("198.51.100.8:50000", 1)), KeepaliveVerdict::NotRegistered);
    let mut late = site();
    late.wall = before.wall + 3_600_000;
    assert_eq!(late.registrar.restore(late.now, late.wall, records), Restored { kept: 0, dropped: 3 });
}

// ---- configuration ----

#[test]
fn reconfiguring_drops_who_is_no_longer_admitted_and_keeps_the_rest() {
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    site.enter(CAM, &flow, &[]);
    site.enter(NVR, &flow, &[]);
    assert_eq!(site.registrar.reconfigure(config()), []);
    let mut faster = config();
    faster.keepalive = KeepalivePolicy { interval: seconds(20), count: 1 };
    faster.accounts.reverse();
    assert_eq!(site.registrar.reconfigure(faster.clone()), []);
    assert_eq!(site.registrar.next_timeout(), Some(site.now + seconds(20)));
    // The camera's account is gone.
    let mut fewer = faster.clone();
    fewer.accounts.pop();
    let changes = site.registrar.reconfigure(fewer);
    assert!(matches!(&changes[..], [Change::Removed { binding }] if binding.id == id(CAM)));
    assert_eq!(site.keepalive(CAM, &flow), KeepaliveVerdict::NotRegistered);
    assert_eq!(site.try_more(CAM, &flow, &[]).response.status, 403);
    let spoils: [fn(&mut RegistrarConfig); 5] = [
        |c| c.accounts[0].password = Some(Password::new("other")),
        |c| c.accounts[0].password = None,
        |c| c.accounts[0].username = Some("nvr".into()),
        |c| c.networks = vec![Network { address: "10.0.0.0".parse().unwrap(), prefix_length: 8 }],
        |c| c.accounts[0].networks = vec![Network { address: "10.0.0.0".parse().unwrap(), prefix_length: 8 }],
    ];
    for spoil in spoils {
        let mut site = self::site();
        site.enter(NVR, &flow, &[]);
        let mut config = faster.clone();
        spoil(&mut config);
        assert!(matches!(&site.registrar.reconfigure(config)[..], [Change::Removed { .. }]));
    }
    assert_eq!(site.registrar.counts().removed, 1);
}

#[test]
fn a_prefix_admits_so_many_devices() {
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    let nvr = |n: u32| format!("3402000000118{n:07}");
    site.enter(&nvr(1), &flow, &[]);
    site.enter(&nvr(2), &flow, &[]);
    let full = site.try_more(&nvr(3), &flow, &[]);
    assert_eq!(full.response.status, 403);
    assert!(matches!(full.changes[..], [Change::Refused { reason: Refusal::Full, .. }]));
    site.enter(&nvr(2), &flow, &[]);
    site.try_more(&nvr(1), &flow, &[("Expires", "0")]);
    site.enter(&nvr(3), &flow, &[]);
}

// ---- strangers ----

#[test]
fn unknown_devices_are_listed_and_never_let_in() {
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    assert_eq!(site.hear(&register(STRANGER, &[]), &flow).changes, []);
    let verdict = site.try_more(STRANGER, &flow, &[]);
    assert_eq!(verdict.response.status, 403);
    let [Change::Pending(listed)] = &verdict.changes[..] else { panic!("{:?}", verdict.changes) };
    assert_eq!((listed.id, listed.source, listed.tries), (id(STRANGER), flow.peer, 1));
    assert_eq!(&*listed.user_agent, "Embedded Net DVR");
    site.pass(seconds(60));
    assert_eq!(site.try_more(STRANGER, &flow, &[]).changes, []);
    let pending: Vec<_> = site.registrar.pending().collect();
    assert_eq!((pending.len(), pending[0].tries), (1, 2));
    assert_eq!((pending[0].first_seen_unix_ms, pending[0].last_seen_unix_ms), (WALL, site.wall));
    // Once it is configured it is off the list, and gets in.
    let mut known = config();
    known.accounts.push(one(STRANGER));
    site.registrar.reconfigure(known);
    assert_eq!(site.registrar.pending().count(), 0);
    site.enter(STRANGER, &flow, &[]);

    let mut closed = site_with(RegistrarConfig { pending: PendingPolicy::Refuse, ..config() });
    assert_eq!(closed.try_more(STRANGER, &flow, &[]).changes, []);
    assert_eq!((closed.registrar.pending().count(), closed.refused(Refusal::UnknownId)), (0, 1));
}

#[test]
fn the_list_of_the_unknown_is_bounded_the_oldest_goes() {
    let mut site = site();
    let stranger = |n: usize| format!("110100000013{n:08}");
    for n in 0..MAX_PENDING + 10 {
        // Each from its own address, or the source would be locked.
        let flow = udp(&format!("10.0.{}.{}:5060", n / 200, n % 200));
        site.try_more(&stranger(n), &flow, &[]);
        if n < MAX_PENDING {
            site.try_more(&stranger(0), &udp("10.1.0.1:5060"), &[]);
            site.pass(seconds(60));
        }
    }
    let listed: HashSet<DeviceId> = site.registrar.pending().map(|pending| pending.id).collect();
    assert_eq!((listed.len(), site.registrar.counts().pending_overflow), (MAX_PENDING, 10));
    assert!(listed.contains(&id(&stranger(0))) && !listed.contains(&id(&stranger(1))));
}

#[test]
fn sources_outside_the_networks_are_refused_unasked() {
    let lan = Network { address: "10.0.0.0".parse().unwrap(), prefix_length: 8 };
    let mut site = site_with(RegistrarConfig { networks: vec![lan], ..config() });
    for user in [CAM, STRANGER] {
        let verdict = site.hear(&register(user, &[]), &udp("198.51.100.7:5060"));
        assert_eq!((verdict.response.status, header(&verdict, "WWW-Authenticate")), (403, None));
    }
    site.enter(CAM, &udp("10.9.9.9:5060"), &[]);
    // An account's own networks do not show: challenged like anybody, then refused like a wrong password.
    let mut account = one(CAM);
    account.networks = vec![lan];
    let mut site = site_with(RegistrarConfig { accounts: vec![account], ..config() });
    let verdict = site.try_more(CAM, &udp("198.51.100.7:5060"), &[]);
    assert_eq!(verdict.response.status, 403);
    assert!(matches!(verdict.changes[..], [Change::Refused { reason: Refusal::AccountNetwork, .. }]));
    site.enter(CAM, &udp("10.9.9.9:5060"), &[]);
}

// ---- attacks ----

/// What an answer shows, but for nonce and tag.
fn face(verdict: &Verdict) -> (u16, Vec<(String, String)>) {
    let cut = |name: &str, value: &str| match name {
        "To" => value.split(";tag=").next().unwrap_or_default().replace(STRANGER, CAM),
        "From" => value.replace(STRANGER, CAM),
        "WWW-Authenticate" => value.split("nonce=").next().unwrap_or_default().to_owned(),
        _ => value.to_owned(),
    };
    let headers = verdict.response.headers.iter().map(|(name, value)| (name.to_owned(), cut(name, value)));
    (verdict.response.status, headers.collect())
}

#[test]
fn known_and_unknown_ids_are_answered_alike_until_both_are_locked() {
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    for _ in 0..6 {
        let answers = [CAM, STRANGER].map(|user| {
            let asks = register(user, &[]);
            let first = site.hear(&asks, &flow);
            let guess = (first.response.status == 401).then(|| credentials(&first.response, user, "guess"));
            let second = guess.map(|guess| face(&site.hear(&with(asks, &guess), &flow)));
            (face(&first), second)
        });
        assert_eq!(answers[0], answers[1]);
    }
    assert_eq!(site.refused(Refusal::LockedOut), 2);
}

#[test]
fn known_and_unknown_ids_take_the_same_time() {
    let rate = RateConfig { id_per_minute: u32::MAX, id_burst: u32::MAX, ..RateConfig::default() };
    let lockout = LockoutConfig { failures: 250, source_failures: 250, ..LockoutConfig::default() };
    let mut site = site_with(RegistrarConfig { rate, lockout, ..config() });
    let flow = udp("198.51.100.7:5060");
    let mut times = [Vec::new(), Vec::new()];
    for n in 0..100 {
        let user = [CAM, STRANGER][n % 2];
        let first = site.hear(&register(user, &[]), &flow).response;
        let second = with(register(user, &[]), &credentials(&first, user, "guess"));
        let started = Instant::now();
        assert_eq!(site.hear(&second, &flow).response.status, 403);
        times[n % 2].push(started.elapsed());
    }
    let [known, unknown] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    assert!(known.abs_diff(unknown) < Duration::from_millis(1), "{known:?} {unknown:?}");
}

#[test]
fn five_guesses_lock_the_id_from_that_source_and_nobody_else() {
    let mut site = site();
    let (thief, flow) = (udp("203.0.113.66:5060"), udp("198.51.100.7:5060"));
    site.enter(CAM, &flow, &[]);
    for n in 1..=5 {
        let verdict = site.try_as(&register(CAM, &[]), &thief, CAM, "guess");
        assert_eq!(verdict.response.status, 403);
        let until = site.now + seconds(600);
        let locked = Change::LockedOut { source: thief.peer.ip(), id: Some(id(CAM)), until };
        assert_eq!(verdict.changes.contains(&locked), n == 5);
        let refused = Change::Refused { id: id(CAM), source: thief.peer, reason: Refusal::WrongPassword };
        assert!(verdict.changes.contains(&refused));
    }
    // Not even the right password helps, nor another port.
    let verdict = site.hear(&register(CAM, &[]), &udp("203.0.113.66:9"));
    assert_eq!((verdict.response.status, verdict.changes.len()), (403, 0));
    site.enter(CAM, &flow, &[]);
    site.enter(NVR, &thief, &[]);
    site.pass(seconds(600));
    assert_eq!(site.hear(&register(CAM, &[]), &thief).response.status, 401);
    assert_eq!(site.registrar.counts().lockouts, 1);
}

#[test]
fn a_source_that_guesses_many_ids_is_locked_but_for_who_is_registered_there() {
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    site.enter(CAM, &flow, &[]);
    let mut locked = 0;
    for n in 0..200 {
        let user = format!("110100000013{n:08}");
        let verdict = site.try_more(&user, &flow, &[]);
        locked += verdict.changes.iter().filter(|c| matches!(c, Change::LockedOut { id: None, .. })).count();
    }
    assert_eq!(locked, 1);
    assert_eq!(site.hear(&register(NVR, &[]), &flow).response.status, 403);
    site.enter(CAM, &flow, &[]);
    site.enter(NVR, &udp("198.51.100.8:5060"), &[]);
}

#[test]
fn forged_sources_lock_nobody_out_and_list_nothing() {
    let mut site = site();
    let (victim, attacker) = (udp("198.51.100.7:5060"), udp("203.0.113.66:5060"));
    // The attacker can get nonces for his own address only, and has made up others.
    let own = site.hear(&register(CAM, &[]), &attacker).response;
    for n in 0..300u32 {
        let made_up = format!(
            "Digest username=\"{CAM}\", realm=\"3402000000\", nonce=\"{n:040x}\", uri=\"sip:x\", response=\"{n:032x}\""
        );
        for value in [made_up, credentials(&own, CAM, "guess")] {
            let verdict = site.hear(&with(register(CAM, &[]), &value), &victim);
            assert_eq!((verdict.response.status, verdict.changes.len()), (401, 0));
            assert!(header(&verdict, "WWW-Authenticate").unwrap().ends_with("stale=true"));
        }
        site.hear(&with(register(STRANGER, &[]), &credentials(&own, STRANGER, "x")), &victim);
    }
    assert_eq!((site.registrar.counts().stale, site.registrar.pending().count()), (900, 0));
    site.enter(CAM, &victim, &[]);
}

#[test]
fn a_guess_costs_a_nonce_that_is_fresh() {
    // The answer to the right and to a wrong password with a bad nonce is the same, or it could be guessed for free.
    let mut site = site();
    let flow = udp("198.51.100.7:5060");
    let old = site.hear(&register(CAM, &[]), &flow).response;
    site.pass(seconds(61));
    let faces = [SECRET, "guess"]
        .map(|secret| face(&site.hear(&with(register(CAM, &[]), &credentials(&old, CAM, secret)), &flow)));
    assert_eq!(faces[0], faces[1]);
    assert_eq!(faces[0].0, 401);
}

#[test]
fn an_answer_is_good_once_and_from_its_own_source() {
    for qop in [false, true] {
        let mut site = site_with(RegistrarConfig { qop, ..config() });
        let flow = udp("198.51.100.7:5060");
        let first = site.hear(&register(CAM, &[]), &flow).response;
        let second = with(register(CAM, &[]), &credentials(&first, CAM, SECRET));
        let elsewhere = site.hear(&second, &udp("203.0.113.66:5060"));
        assert_eq!((elsewhere.response.status, elsewhere.changes.len()), (401, 0));
        assert_eq!(site.hear(&second, &flow).response.status, 200);
        // Taken down on the way and sent again, from another port behind the same NAT.
        let replay = site.hear(&second, &udp("198.51.100.7:6666"));
        assert_eq!((replay.response.status, replay.changes.len()), (401, 0));
        assert_eq!(site.registrar.binding(&id(CAM)).unwrap().flow, flow);
        assert_eq!(site.registrar.counts().replays, 1);
        // As the end of a registration it is no better.
        let mut end = second.clone();
        end.headers.set("Expires", "0");
        assert_eq!(site.hear(&end, &flow).response.status, 401);
        assert!(site.registrar.binding(&id(CAM)).is_some());
    }
}

#[test]
fn one_devices_password_does_not_register_another() {
    let mut neighbour = one(NVR);
    neighbour.password = Some(Password::new("of the recorder"));
    let mut site = site_with(RegistrarConfig { accounts: vec![one(CAM), neighbour], ..config() });
    let flow = udp("198.51.100.7:5060");
    let verdict = site.try_as(&register(CAM, &[]), &flow, NVR, "of the recorder");
    assert_eq!((verdict.response.status, site.refused(Refusal::WrongUsername)), (403, 1));
    // Nor does From one id, To another.
    let mixed = register(NVR, &[("To", "<sip:34020000001320000001@3402000000>")]);
    assert_eq!(site.hear(&mixed, &flow).response.status, 403);
    assert_eq!(site.refused(Refusal::ThirdParty), 1);
    // A nonce is one user's, even before its second use.
    let first = site.hear(&register(CAM, &[]), &flow).response;
    assert_eq!(site.hear(&with(register(CAM, &[]), &credentials(&first, CAM, SECRET)), &flow).response.status, 200);
    let other = credentials(&first, NVR, "of the recorder");
    assert_eq!(site.hear(&with(register(NVR, &[]), &other), &flow).response.status, 401);
}

#[test]
fn ids_of_platforms_are_no_devices() {
    let wide = Account::new(Ids::Prefix { digits: "34".into(), max: 100 }, SECRET);
    let mut site = site_with(RegistrarConfig { accounts: vec![wide], ..config() });
    let flow = udp("198.51.100.7:5060");
    for user in [UPPER, "34020000002000000001"] {
        let verdict = site.try_more(user, &flow, &[]);
        assert_eq!((verdict.response.status, verdict.changes), (403, vec![]));
    }
    assert_eq!(site.registrar.pending().count(), 0);
    site.enter(CAM, &flow, &[]);
    // A platform that is both above and below us is named as such.
    let mut both = config();
    both.accounts.push(one(UPPER));
    site_with(both).enter(UPPER, &flow, &[]);
}

#[test]
fn without_a_password_nobody_gets_in() {
    let flow = udp("198.51.100.7:5060");
    for password in [None, Some(Password::new(""))] {
        let certificate = Account { password, ..one(CAM) };
        let mut site = site_with(RegistrarConfig { accounts: vec![certificate], ..config() });
        assert_eq!(site.try_as(&register(CAM, &[]), &flow, CAM, "").response.status, 403);
        assert_eq!(site.registrar.bindings().count(), 0);
    }
}

#[test]
fn requests_never_go_where_a_contact_points() {
    let mut site = site();
    let flow = udp("[2001:db8::7]:5060");
    let contact = "<sip:34020000001320000001@203.0.113.99:53;transport=udp;maddr=203.0.113.98>";
    site.enter(CAM, &flow, &[("Contact", contact)]);
    let binding = site.registrar.binding(&id(CAM)).unwrap();
    assert_eq!((binding.flow, binding.request_uri()), (flow, format!("sip:{CAM}@[2001:db8::7]:5060")));
}

#[test]
fn a_second_device_with_the_same_id_has_to_prove_itself_and_is_reported() {
    let mut site = site();
    let (first, second) = (udp("198.51.100.7:5060"), udp("198.51.100.8:5060"));
    site.enter(CAM, &first, &[]);
    assert_eq!(site.hear(&register(CAM, &[]), &second).response.status, 401);
    assert_eq!(site.keepalive(CAM, &first), ALIVE);
    let change = site.enter(CAM, &second, &[]);
    assert!(matches!(change, Change::Registered { new: false, moved_from: Some(from), .. } if from == first));
    assert_eq!(site.keepalive(CAM, &first), KeepaliveVerdict::WrongSource);
}

#[test]
fn a_flood_of_ids_leaves_nothing_behind() {
    let mut site = site();
    for n in 0..5_000u32 {
        let flow = udp(&format!("203.0.113.{}:5060", n % 200));
        assert_eq!(site.hear(&register(&format!("{n:020}"), &[]), &flow).response.status, 401);
    }
    assert_eq!((site.registrar.bindings().count(), site.registrar.pending().count()), (0, 0));
    assert_eq!((site.registrar.next_timeout(), site.registrar.counts().challenges), (None, 5_000));
}

#[test]
fn sources_and_ids_are_heard_at_a_rate() {
    let rate = RateConfig { source_per_second: 1, source_burst: 10, id_per_minute: 60, id_burst: 2 };
    let mut site = site_with(RegistrarConfig { rate, ..config() });
    let (flow, other) = (udp("198.51.100.7:5060"), udp("198.51.100.8:5060"));
    // An id's burst: two that answer a challenge.
    for _ in 0..2 {
        site.enter(CAM, &flow, &[]);
    }
    let verdict = site.try_more(CAM, &flow, &[]);
    assert_eq!((verdict.response.status, header(&verdict, "Retry-After")), (503, Some("10")));
    // The source's burst: ten in all.
    site.enter(NVR, &flow, &[]);
    for status in [401, 401, 503] {
        assert_eq!(site.hear(&register(CAM, &[]), &flow).response.status, status);
    }
    site.enter(CAM, &other, &[]);
    assert_eq!(site.refused(Refusal::RateLimited), 2);
    site.pass(seconds(1));
    assert_eq!(site.hear(&register(CAM, &[]), &flow).response.status, 401);
}

// ---- size ----

#[test]
fn ten_thousand_devices() {
    const DEVICES: usize = 10_000;
    let all = Account::new(Ids::Prefix { digits: "340200000013".into(), max: DEVICES }, SECRET);
    // Goes straight to the table: ten thousand digests take long in a debug build.
    let mut site = site_with(RegistrarConfig { accounts: vec![all], ..config() });
    let start = site.now;
    let device = |n: usize| DeviceId::parse(&format!("340200000013{n:08}")).unwrap();
    let flow = |n: usize| Flow { peer: ([10, 0, (n >> 8) as u8, n as u8], 5060).into(), ..udp("10.0.0.1:5060") };
    let records = (0..DEVICES).map(|n| BindingRecord {
        id: device(n).to_string(),
        contact: "c".repeat(MAX_CONTACT),
        transport: "UDP".into(),
        local: "192.0.2.1:5060".into(),
        peer: flow(n).peer.to_string(),
        version: Some("2.0".into()),
        user_agent: "u".repeat(1000),
        registered_unix_ms: WALL,
        last_seen_unix_ms: WALL,
        expires_unix_ms: WALL + 86_400_000,
    });
    assert_eq!(site.registrar.restore(start, WALL, records).kept, DEVICES);
    // A binding, its strings, its place in the set of deadlines: far below what a device may cost.
    let most = site.registrar.bindings().map(|b| size_of::<Binding>() + b.contact.len() + b.user_agent.len()).max();
    let most = most.unwrap() + 2 * size_of::<(Instant, DeviceId)>();
    assert!(most <= 1024, "{most} bytes");
    // Three rounds of keepalives, spread over the interval; one device in a hundred falls silent after the first.
    let at = |round: u64, n: usize| start + seconds(60) * round as u32 + Duration::from_millis(6 * n as u64);
    let mut offline = HashSet::new();
    let mut wakes = 0;
    for round in 1..=6 {
        for n in 0..DEVICES {
            let now = at(round, n);
            while site.registrar.next_timeout().is_some_and(|due| due <= now) {
                wakes += 1;
                let due = site.registrar.next_timeout().unwrap();
                for change in site.registrar.handle_timeout(due) {
                    let Change::Offline { id, reason: OfflineReason::Silent } = change else { panic!("{change:?}") };
                    assert_eq!(due, site.registrar.binding(&id).unwrap().keepalive_due(), "not late");
                    assert!(offline.insert(id));
                }
                assert!(site.registrar.next_timeout().unwrap() > due);
            }
            if round == 1 {
                assert_eq!(site.registrar.handle_keepalive(now, &device(n), &flow(n)), BACK);
            } else if n % 100 != 0 {
                assert_eq!(site.registrar.handle_keepalive(now, &device(n), &flow(n)), ALIVE);
            }
        }
    }
    assert_eq!(offline.len(), DEVICES / 100);
    assert!(offline.iter().all(|id| id.as_str().ends_with("00")));
    // Each device's entry comes up at most once in its silent time.
    assert!(wakes <= 3 * DEVICES, "{wakes}");
    assert_eq!(site.registrar.bindings().filter(|binding| binding.online).count(), DEVICES - DEVICES / 100);
}
