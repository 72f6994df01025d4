//! Which user of the driver a request belongs to.
//! Standard: [RFC3261 16.5] gives the idea; peers are told apart as [GB/T28181-2022 4.1] names them: by platform code.
//! In: source address, the codes in From and To, Call-ID. Out: a user, or none (a stranger). Pure.
//! Invariants: a request from an address no route allows never reaches a user; the best match wins, first come at a tie.
//! Not here: what a stranger hears (`super`), whether a known peer may do what it asks (the user).

use super::UserId;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

/// Users that have a dialog of the same Call-ID: two platforms may count from the same seed; more is no accident.
const MAX_SHARERS: usize = 8;
/// Codes users may claim: twice the devices one gateway serves. A claim beyond is refused; such a device is then known by
/// its address alone.
const MAX_CODES: usize = 20_000;
/// Dialogs whose user is remembered; the oldest is forgotten first and then routed by its addresses like any request.
const MAX_CALLS: usize = 20_000;

/// An address a user's requests may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddr {
    /// Compared exactly.
    pub ip: IpAddr,
    /// Preferred where two routes match alike; never required: TCP clients come from any port.
    pub port: Option<u16>,
}

impl From<SocketAddr> for PeerAddr {
    fn from(addr: SocketAddr) -> Self {
        PeerAddr { ip: addr.ip(), port: Some(addr.port()) }
    }
}

impl From<IpAddr> for PeerAddr {
    fn from(ip: IpAddr) -> Self {
        PeerAddr { ip, port: None }
    }
}

/// Claims requests for a user. The source must fit; of all routes that fit, the best wins, in this order:
/// `server_id` in From, `local_id` in To or Request-URI, a named peer, the listener, the source port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// Where requests may come from. Empty: anywhere (a registrar, which looks at the source itself).
    pub peers: Vec<PeerAddr>,
    /// The peer's code, expected as user of From.
    pub server_id: Option<String>,
    /// Our code towards this peer, expected as user of To or Request-URI.
    pub local_id: Option<String>,
    /// The listener this peer is told to use.
    pub listener: Option<SocketAddr>,
    /// Takes every REGISTER but those of a platform that another route names by address and code.
    pub registrar: bool,
}

/// What a request says about whom it is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks<'a> {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub from_user: Option<&'a str>,
    pub to_user: Option<&'a str>,
    pub uri_user: Option<&'a str>,
    pub register: bool,
}

/// Weight of a named platform code.
const SERVER: u8 = 16;

impl Route {
    /// How well `marks` fit; `None` when the source does not.
    fn score(&self, marks: &Marks<'_>) -> Option<u8> {
        let peer = self.peers.iter().filter(|p| p.ip == marks.peer.ip());
        let port = peer.clone().any(|p| p.port == Some(marks.peer.port()));
        let named = peer.count() > 0;
        if !named && !self.peers.is_empty() {
            return None;
        }
        let server = self.server_id.is_some() && self.server_id.as_deref() == marks.from_user;
        let local_id = self.local_id.as_deref();
        let local = local_id.is_some() && (local_id == marks.to_user || local_id == marks.uri_user);
        let listener = self.listener == Some(marks.local);
        let bits = [server, local, named, listener, port];
        Some(bits.iter().fold(0, |score, bit| score << 1 | u8::from(*bit)))
    }
}

#[derive(Debug)]
struct Entry {
    user: UserId,
    routes: Vec<Route>,
}

/// All users' routes, and the dialogs they have.
#[derive(Debug, Default)]
pub(super) struct RouteTable {
    entries: Vec<Entry>,
    /// Codes in From that belong to a user, whatever address they come from, and the address they were claimed at.
    codes: HashMap<String, (UserId, IpAddr)>,
    /// Those addresses, with how many codes each.
    sources: HashMap<IpAddr, usize>,
    /// By Call-ID.
    calls: HashMap<String, Vec<UserId>>,
    call_order: VecDeque<String>,
}

impl RouteTable {
    /// Adds a user or replaces its routes.
    pub(super) fn set(&mut self, user: &UserId, routes: Vec<Route>) {
        match self.entries.iter_mut().find(|e| e.user == *user) {
            Some(entry) => entry.routes = routes,
            None => self.entries.push(Entry { user: user.clone(), routes }),
        }
    }

    pub(super) fn remove(&mut self, user: &UserId) {
        self.entries.retain(|e| e.user != *user);
        self.codes.retain(|_, (owner, _)| owner != user);
        self.sources.clear();
        for (_, ip) in self.codes.values() {
            *self.sources.entry(*ip).or_default() += 1;
        }
        self.calls.retain(|_, users| {
            users.retain(|u| u != user);
            !users.is_empty()
        });
        self.call_order.retain(|call_id| self.calls.contains_key(call_id));
    }

    /// From now on requests whose From names `code` are `user`'s, unless a route names that very platform. `ip` is where
    /// it is now. False at the bound.
    pub(super) fn claim(&mut self, code: String, user: &UserId, ip: IpAddr) -> bool {
        if self.codes.len() >= MAX_CODES && !self.codes.contains_key(&code) {
            return false;
        }
        let before = self.codes.insert(code, (user.clone(), ip));
        *self.sources.entry(ip).or_default() += 1;
        if let Some((_, old)) = before {
            self.release(old);
        }
        true
    }

    /// Takes a claim back; the address it was made at.
    pub(super) fn unclaim(&mut self, code: &str, user: &UserId) -> Option<IpAddr> {
        let (_, ip) = self.codes.get(code).filter(|(owner, _)| owner == user)?;
        let ip = *ip;
        self.codes.remove(code);
        self.release(ip);
        Some(ip)
    }

    fn release(&mut self, ip: IpAddr) {
        if let Some(count) = self.sources.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&ip);
            }
        }
    }

    /// Whether some route names this address, or somebody claimed a code from there.
    pub(super) fn knows(&self, ip: IpAddr) -> bool {
        self.sources.contains_key(&ip)
            || self.entries.iter().flat_map(|e| &e.routes).flat_map(|r| &r.peers).any(|p| p.ip == ip)
    }

    /// Every address some route names, and those of codes.
    pub(super) fn peer_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let named = self.entries.iter().flat_map(|e| &e.routes).flat_map(|r| &r.peers).map(|p| p.ip);
        named.chain(self.sources.keys().copied())
    }

    /// The user a request belongs to. Inside a dialog (`call_id` given) the dialog's user comes first, if the source is
    /// one of that user's: some platforms write other codes into From and To of a BYE than into those of the INVITE.
    pub(super) fn find(&self, marks: &Marks<'_>, call_id: Option<&str>) -> Option<&UserId> {
        let users = call_id.and_then(|c| self.calls.get(c));
        users.and_then(|users| self.best_of(marks, |user| users.contains(user))).map(|(_, user)| user).or_else(|| {
            // Whoever is nobody's peer has no business with the registrar but to register: anything else of a stranger
            // is answered without a trace.
            let best = self.best_of(marks, |user| !self.is_registrar(user));
            let (score, user) = best.map_or((0, None), |(score, user)| (score, Some(user)));
            if score >= SERVER {
                return user;
            }
            let claimed = marks.from_user.and_then(|code| self.codes.get(code)).map(|(user, _)| user);
            let registrar = || {
                let takes = |e: &&Entry| e.routes.iter().any(|r| r.registrar && r.score(marks).is_some());
                self.entries.iter().find(takes).filter(|_| marks.register).map(|e| &e.user)
            };
            claimed.or_else(registrar).or(user)
        })
    }

    /// The user whose peer this address is, by address alone: whom an outgoing message without a name is counted for.
    pub(super) fn by_address(&self, local: SocketAddr, peer: SocketAddr) -> Option<&UserId> {
        let marks = Marks { local, peer, from_user: None, to_user: None, uri_user: None, register: false };
        let named = |e: &Entry| e.routes.iter().any(|r| r.peers.iter().any(|p| p.ip == peer.ip()));
        self.best_of(&marks, |_| true)
            .map(|(_, user)| user)
            .filter(|user| self.entries.iter().any(|e| e.user == **user && named(e)))
    }

    fn is_registrar(&self, user: &UserId) -> bool {
        self.entries.iter().any(|e| e.user == *user && e.routes.iter().any(|r| r.registrar))
    }

    fn best_of(&self, marks: &Marks<'_>, among: impl Fn(&UserId) -> bool) -> Option<(u8, &UserId)> {
        let mut best: Option<(u8, &UserId)> = None;
        for entry in self.entries.iter().filter(|e| among(&e.user)) {
            for route in &entry.routes {
                if let Some(score) = route.score(marks)
                    && best.is_none_or(|(b, _)| score > b)
                {
                    best = Some((score, &entry.user));
                }
            }
        }
        best
    }

    /// Remembers whose dialog `call_id` is.
    pub(super) fn remember_call(&mut self, call_id: &str, user: &UserId) {
        if let Some(users) = self.calls.get_mut(call_id) {
            if !users.contains(user) && users.len() < MAX_SHARERS {
                users.push(user.clone());
            }
            return;
        }
        self.calls.insert(call_id.to_string(), vec![user.clone()]);
        self.call_order.push_back(call_id.to_string());
        if self.call_order.len() > MAX_CALLS
            && let Some(oldest) = self.call_order.pop_front()
        {
            self.calls.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "41130000002000000002";
    const OTHER_SERVER: &str = "41130000002000000009";
    const LOCAL: &str = "41130000582000000001";

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn marks<'a>(peer: &str, from: &'a str, to: &'a str) -> Marks<'a> {
        Marks {
            local: addr("0.0.0.0:5060"),
            peer: addr(peer),
            from_user: Some(from),
            to_user: Some(to),
            uri_user: None,
            register: false,
        }
    }

    fn route(peer: &str, server_id: Option<&str>, local_id: Option<&str>) -> Route {
        Route {
            peers: vec![addr(peer).into()],
            server_id: server_id.map(str::to_string),
            local_id: local_id.map(str::to_string),
            ..Route::default()
        }
    }

    fn table(routes: Vec<(&str, Route)>) -> RouteTable {
        let mut table = RouteTable::default();
        for (user, route) in routes {
            table.set(&UserId::new(user), vec![route]);
        }
        table
    }

    fn found<'a>(table: &'a RouteTable, marks: &Marks<'_>) -> Option<&'a str> {
        table.find(marks, None).map(UserId::as_str)
    }

    #[test]
    fn the_more_that_fits_the_better() {
        let table = table(vec![
            ("ip", route("10.0.0.1:5060", Some("x"), None)),
            ("ip+local", route("10.0.0.1:5060", Some("y"), Some(LOCAL))),
            ("ip+server", route("10.0.0.1:5060", Some(SERVER), None)),
            ("all", route("10.0.0.1:5060", Some(SERVER), Some(LOCAL))),
        ]);
        assert_eq!(found(&table, &marks("10.0.0.1:9", SERVER, LOCAL)), Some("all"));
        assert_eq!(found(&table, &marks("10.0.0.1:9", "z", LOCAL)), Some("ip+local"));
        assert_eq!(found(&table, &marks("10.0.0.1:9", "z", "z")), Some("ip"));
        assert_eq!(found(&table, &marks("10.0.0.2:5060", SERVER, LOCAL)), None, "the codes alone prove nothing");
    }

    #[test]
    fn two_platforms_behind_one_address_are_told_apart_by_code_then_listener_then_port() {
        let mut a = route("127.0.0.1:15060", Some(SERVER), Some(LOCAL));
        let mut b = route("127.0.0.1:15061", Some(OTHER_SERVER), Some(LOCAL));
        a.listener = Some(addr("127.0.0.1:5060"));
        b.listener = Some(addr("127.0.0.1:5070"));
        let table = table(vec![("a", a), ("b", b)]);
        assert_eq!(found(&table, &marks("127.0.0.1:15060", OTHER_SERVER, LOCAL)), Some("b"));
        assert_eq!(found(&table, &marks("127.0.0.1:15061", "z", LOCAL)), Some("b"));
        let mut on_second = marks("127.0.0.1:15060", "z", LOCAL);
        on_second.local = addr("127.0.0.1:5070");
        assert_eq!(found(&table, &on_second), Some("b"));
    }

    #[test]
    fn a_route_for_anyone_takes_what_no_peer_claims() {
        let anyone = Route { local_id: Some(LOCAL.into()), ..Route::default() };
        let table = table(vec![("registrar", anyone), ("psb", route("10.0.0.1:5060", Some(SERVER), Some(LOCAL)))]);
        assert_eq!(found(&table, &marks("10.9.9.9:5060", "34020000001320000001", LOCAL)), Some("registrar"));
        assert_eq!(found(&table, &marks("10.0.0.1:5060", SERVER, LOCAL)), Some("psb"));
        assert_eq!(table.by_address(addr("0.0.0.0:5060"), addr("10.9.9.9:5060")), None);
        assert_eq!(table.by_address(addr("0.0.0.0:5060"), addr("10.0.0.1:1")).map(UserId::as_str), Some("psb"));
    }

    #[test]
    fn devices_beside_a_platform_are_known_by_their_code_or_by_registering() {
        let anyone = Route { local_id: Some(LOCAL.into()), registrar: true, ..Route::default() };
        let mut table = table(vec![("registrar", anyone), ("psb", route("10.0.0.1:5060", Some(SERVER), Some(LOCAL)))]);
        let device = "34020000001320000001";
        // A device on the platform's own machine.
        let register = Marks { register: true, ..marks("10.0.0.1:6060", device, device) };
        assert_eq!(found(&table, &register), Some("registrar"));
        let platform = Marks { register: true, ..marks("10.0.0.1:6060", SERVER, LOCAL) };
        assert_eq!(found(&table, &platform), Some("psb"), "a platform is no device of ours");
        let message = marks("10.0.0.1:6060", device, LOCAL);
        assert_eq!(found(&table, &message), Some("psb"));
        let registrar = UserId::new("registrar");
        let here = "10.0.0.1".parse().unwrap();
        assert!(table.claim(device.into(), &registrar, here));
        assert_eq!(found(&table, &message), Some("registrar"));
        assert!(table.claim(SERVER.into(), &registrar, here));
        assert_eq!(
            found(&table, &marks("10.0.0.1:6060", SERVER, LOCAL)),
            Some("psb"),
            "nobody takes a platform's code"
        );
        table.unclaim(device, &registrar);
        assert_eq!(found(&table, &message), Some("psb"));
        let stranger = marks("10.9.9.9:5060", device, LOCAL);
        assert_eq!(found(&table, &stranger), None, "who is not registered may register, and nothing else");
        assert_eq!(found(&table, &Marks { register: true, ..stranger }), Some("registrar"));
        table.claim("1".into(), &registrar, "10.9.9.9".parse().unwrap());
        table.claim("1".into(), &registrar, "10.9.9.8".parse().unwrap());
        assert!(table.knows("10.9.9.8".parse().unwrap()) && !table.knows("10.9.9.9".parse().unwrap()));
        for n in 0..MAX_CODES {
            table.claim(n.to_string(), &registrar, here);
        }
        assert!(!table.claim("more".into(), &registrar, here) && table.claim("7".into(), &registrar, here));
        table.remove(&registrar);
        assert!(table.codes.is_empty());
    }

    #[test]
    fn a_dialog_stays_with_its_user_but_only_from_its_peers() {
        let mut table = table(vec![
            ("a", route("127.0.0.1:15060", Some(SERVER), Some(LOCAL))),
            ("b", route("127.0.0.1:15061", Some(OTHER_SERVER), Some(LOCAL))),
            ("c", route("10.0.0.1:5060", None, None)),
        ]);
        table.remember_call("call-1", &UserId::new("b"));
        let from_a = marks("127.0.0.1:15060", SERVER, LOCAL);
        assert_eq!(table.find(&from_a, Some("call-1")).map(UserId::as_str), Some("b"));
        let from_c = marks("10.0.0.1:5060", OTHER_SERVER, LOCAL);
        assert_eq!(table.find(&from_c, Some("call-1")).map(UserId::as_str), Some("c"));
        // The same Call-ID from two platforms: neither takes the other's.
        table.remember_call("call-1", &UserId::new("a"));
        assert_eq!(table.find(&from_a, Some("call-1")).map(UserId::as_str), Some("a"));
        let from_b = marks("127.0.0.1:15061", OTHER_SERVER, LOCAL);
        assert_eq!(table.find(&from_b, Some("call-1")).map(UserId::as_str), Some("b"));
        table.remove(&UserId::new("b"));
        assert_eq!(table.find(&from_a, Some("call-1")).map(UserId::as_str), Some("a"));
    }

    #[test]
    fn remembered_dialogs_are_bounded() {
        let mut table = RouteTable::default();
        let user = UserId::new("a");
        for n in 0..MAX_CALLS + 10 {
            table.remember_call(&n.to_string(), &user);
            table.remember_call(&n.to_string(), &user);
        }
        assert_eq!((table.calls.len(), table.call_order.len()), (MAX_CALLS, MAX_CALLS));
        assert!(!table.calls.contains_key("9") && table.calls.contains_key("10"));
    }
}
