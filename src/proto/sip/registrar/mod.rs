//! The registrar: who of the devices is registered, from where, and whether it is alive.
//!
//! Standard: [GB/T28181-2022 9.1, 9.6, 9.10, annex I], [RFC3261 10.3, 22], [RFC2617 3].
//! In: REGISTERs, signs of life, closed connections, time. Out: the answer and a list of `Change`s.
//! Invariants: each REGISTER has to answer a challenge; strangers, wrong passwords and wrong networks are answered alike;
//! a limit or a list that could shut out somebody else counts only senders that have answered a nonce sent to their own
//! address, so a forged source does no harm; requests go where the REGISTER came from, never where Contact points.
//! Deviations: CSeq is not compared with the last REGISTER's: a device starts anew with its old Call-ID.
//! Not here: transactions and retransmissions (`endpoint`), the store, certificates.

mod accounts;
mod lockout;
mod pending;
mod table;
#[cfg(test)]
mod tests;

pub use accounts::{
    Account, EXPIRES_FLOOR, ExpiresLimits, Ids, KeepalivePolicy, NatPolicy, Network, Password, PendingPolicy,
    RegistrarConfig, ShortExpires,
};
pub use lockout::{LockoutConfig, RateConfig};
pub use pending::{MAX_PENDING, PendingDevice};
pub use table::{Binding, BindingRecord, KeepaliveVerdict, MAX_CONTACT, MAX_USER_AGENT};

use super::digest::{AuthParams, DigestError, DigestServer};
use super::endpoint::response_to;
use super::header::{self, Contacts, NameAddr, SipUri, digits};
use super::message::{ConnId, Flow, Headers, Request, Response};
use crate::proto::gb28181::{DeviceId, UnixMillis, Version};
use accounts::Accounts;
use lockout::{Pace, Tally, source_key};
use pending::PendingList;
use rand::Rng;
use rand::rngs::StdRng;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use table::{Due, Table, Terms, cut_user_agent};

/// Most devices registered at once, whatever the accounts allow: six times the largest site, at about 1 KiB each.
pub const MAX_BINDINGS: usize = 65_536;

/// How many Authorization headers of a REGISTER are looked at.
const MAX_CREDENTIALS: usize = 4;

/// Seconds of the Retry-After of a 503.
const RETRY_AFTER: &str = "10";

/// Why a REGISTER was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// A header is missing or broken, or the Contact is no SIP URI.
    Malformed,
    /// From and To differ: nobody registers somebody else here.
    ThirdParty,
    /// From outside `RegistrarConfig::networks`.
    Network,
    /// Over `RateConfig`.
    RateLimited,
    /// Under a lock.
    LockedOut,
    /// There is no account for the id.
    UnknownId,
    /// From outside the account's networks.
    AccountNetwork,
    /// The digest's user name is not the device's.
    WrongUsername,
    /// The password does not fit, or the account has none.
    WrongPassword,
    /// The account's prefix has all the devices it may have, or the registrar has.
    Full,
    /// Asked for less time than it may. `ShortExpires::Refuse`
    TooBrief,
}

impl Refusal {
    /// All of them, in order.
    pub const ALL: [Refusal; 11] = [
        Refusal::Malformed,
        Refusal::ThirdParty,
        Refusal::Network,
        Refusal::RateLimited,
        Refusal::LockedOut,
        Refusal::UnknownId,
        Refusal::AccountNetwork,
        Refusal::WrongUsername,
        Refusal::WrongPassword,
        Refusal::Full,
        Refusal::TooBrief,
    ];

    /// A word to count by.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Malformed => "malformed",
            Refusal::ThirdParty => "third_party",
            Refusal::Network => "network",
            Refusal::RateLimited => "rate_limited",
            Refusal::LockedOut => "locked_out",
            Refusal::UnknownId => "unknown_id",
            Refusal::AccountNetwork => "account_network",
            Refusal::WrongUsername => "wrong_username",
            Refusal::WrongPassword => "wrong_password",
            Refusal::Full => "full",
            Refusal::TooBrief => "too_brief",
        }
    }

    fn status(self) -> u16 {
        match self {
            Refusal::Malformed => 400,
            Refusal::TooBrief => 423,
            Refusal::RateLimited => 503,
            _ => 403,
        }
    }
}

/// Why a device is offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OfflineReason {
    /// Its keepalives are missing. It stays registered, and the next one brings it back.
    Silent,
    /// Its TCP or TLS connection is gone, and its registration with it. [GB/T28181-2022 9.1.1 f]
    ConnectionLost,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A device has registered, and is online.
    Registered {
        /// As it is now.
        binding: Box<Binding>,
        /// It was not registered before.
        new: bool,
        /// Where it was registered from, when that was elsewhere. It has proven itself, but two devices with one id and
        /// one password look like this, too: what is running with it is not to be moved unasked.
        moved_from: Option<Flow>,
    },
    /// A device that was online has registered again from the same place.
    Refreshed {
        /// As it is now.
        binding: Box<Binding>,
    },
    /// A device has unregistered.
    Unregistered {
        /// As it was.
        binding: Box<Binding>,
    },
    /// A registration has ended by time.
    Expired {
        /// As it was.
        binding: Box<Binding>,
    },
    /// A device has gone offline.
    Offline {
        /// Which.
        id: DeviceId,
        /// Why.
        reason: OfflineReason,
    },
    /// A device was dropped because its account is gone or has other credentials.
    Removed {
        /// As it was.
        binding: Box<Binding>,
    },
    /// A device with an account was not let in. Told for configured devices only, so `id` is bounded.
    Refused {
        /// Which.
        id: DeviceId,
        /// From where.
        source: SocketAddr,
        /// Why.
        reason: Refusal,
    },
    /// An unknown device is new on the list. Its id is a stranger's word: good to show, not to count by.
    Pending(PendingDevice),
    /// A lock has begun.
    LockedOut {
        /// Whose tries are no longer heard.
        source: IpAddr,
        /// For this id (perhaps a stranger's word); `None`: for all but those registered from there.
        id: Option<DeviceId>,
        /// Until then.
        until: Instant,
    },
}

/// What to do about a REGISTER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The final response to send.
    pub response: Response,
    /// In order; the response first, or requests could overtake it.
    pub changes: Vec<Change>,
}

/// How often what has happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegistrarCounts {
    /// Registrations of devices that were not registered.
    pub registered: u64,
    /// Registrations of devices that were.
    pub refreshed: u64,
    /// Of those, from another source than before.
    pub moved: u64,
    /// Registrations ended by the device.
    pub unregistered: u64,
    /// Ended by time.
    pub expired: u64,
    /// Ended by a closed connection.
    pub connections_lost: u64,
    /// Ended by a change of configuration.
    pub removed: u64,
    /// Devices that have gone silent.
    pub silent: u64,
    /// Keepalives that should have come and did not.
    pub keepalives_missed: u64,
    /// Requests of devices that are not registered.
    pub not_registered: u64,
    /// Requests in a registered device's name from elsewhere.
    pub wrong_source: u64,
    /// 401 sent.
    pub challenges: u64,
    /// Of those, to an answer whose nonce was too old, of another source or not ours.
    pub stale: u64,
    /// Of those, to an answer that had been given before.
    pub replays: u64,
    /// Locks begun.
    pub lockouts: u64,
    /// Pending devices that had to make room for newer ones.
    pub pending_overflow: u64,
    refused: [u64; Refusal::ALL.len()],
}

impl RegistrarCounts {
    /// REGISTERs not taken for this reason.
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused[reason as usize]
    }

    /// Everything but refusals, by name.
    pub fn named(&self) -> [(&'static str, u64); 16] {
        [
            ("registered", self.registered),
            ("refreshed", self.refreshed),
            ("moved", self.moved),
            ("unregistered", self.unregistered),
            ("expired", self.expired),
            ("connection_lost", self.connections_lost),
            ("removed", self.removed),
            ("silent", self.silent),
            ("keepalive_missed", self.keepalives_missed),
            ("not_registered", self.not_registered),
            ("wrong_source", self.wrong_source),
            ("challenged", self.challenges),
            ("stale_nonce", self.stale),
            ("replayed_nonce", self.replays),
            ("locked_out", self.lockouts),
            ("pending_overflow", self.pending_overflow),
        ]
    }
}

/// How a restore went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// Bindings that are back, offline until heard.
    pub kept: usize,
    /// Records of no use: expired, over a connection, without account, unsound.
    pub dropped: usize,
}

/// What a REGISTER wants. [RFC3261 10.3]
struct Wanted {
    contact: Option<NameAddr>,
    what: Wish,
}

enum Wish {
    /// No Contact and no Expires: what is there?
    Ask,
    Unbind,
    /// For so many seconds.
    Bind(Option<u32>),
}

impl Wanted {
    /// `None` when it makes no sense.
    fn read(headers: &Headers) -> Option<Wanted> {
        let expires = match headers.get("Expires") {
            Some(text) => Some(digits(text)?),
            None => None,
        };
        let contact = match header::parse_contacts(headers).ok()? {
            Contacts::Star if expires == Some(0) => return Some(Wanted { contact: None, what: Wish::Unbind }),
            Contacts::Star => return None,
            // A device has one place to be.
            Contacts::List(list) => list.into_iter().next(),
        };
        if contact.as_ref().is_some_and(|c| c.uri.len() > MAX_CONTACT || SipUri::parse(&c.uri).is_err()) {
            return None;
        }
        let what = match expires.or(contact.as_ref().and_then(NameAddr::expires)) {
            Some(0) => Wish::Unbind,
            None if contact.is_none() => Wish::Ask,
            asked => Wish::Bind(asked),
        };
        Some(Wanted { contact, what })
    }
}

/// Which credentials a REGISTER brings.
enum Credentials {
    None,
    Broken,
    Ours(AuthParams),
}

/// A REGISTER on its way through.
struct Case<'a> {
    now: Instant,
    unix_ms: i64,
    request: &'a Request,
    flow: &'a Flow,
    changes: Vec<Change>,
}

impl Case<'_> {
    fn source(&self) -> IpAddr {
        self.flow.peer.ip()
    }

    /// Wall time as digests have it.
    fn unix(&self) -> u64 {
        u64::try_from(self.unix_ms.div_euclid(1000)).unwrap_or(0)
    }
}

/// The machine. See the file's head.
#[derive(Debug)]
pub struct Registrar {
    config: RegistrarConfig,
    accounts: Accounts,
    secret: [u8; 32],
    digest: DigestServer,
    rng: StdRng,
    table: Table,
    pending: PendingList,
    source_pace: Pace<IpAddr>,
    id_pace: Pace<(IpAddr, DeviceId)>,
    source_failures: Tally<IpAddr>,
    id_failures: Tally<(IpAddr, DeviceId)>,
    counts: RegistrarCounts,
}

fn digest_of(config: &RegistrarConfig, secret: [u8; 32]) -> DigestServer {
    let algorithms = config.algorithms.clone();
    DigestServer::new(secret, config.realm.clone(), algorithms, config.qop, config.nonce_lifetime).single_use()
}

fn paces_of(rate: RateConfig) -> (Pace<IpAddr>, Pace<(IpAddr, DeviceId)>) {
    let source = Pace::new(rate.source_per_second, Duration::from_secs(1), rate.source_burst);
    (source, Pace::new(rate.id_per_minute, Duration::from_secs(60), rate.id_burst))
}

fn tallies_of(lockout: LockoutConfig) -> (Tally<IpAddr>, Tally<(IpAddr, DeviceId)>) {
    let LockoutConfig { failures, source_failures, window, hold } = lockout;
    (Tally::new(source_failures, window, hold), Tally::new(failures, window, hold))
}

impl Registrar {
    /// A registrar nobody has registered with. `rng` makes the secret of the nonces and the tags; it must have been
    /// seeded by the operating system.
    pub fn new(mut config: RegistrarConfig, mut rng: StdRng) -> Registrar {
        let secret = rng.random();
        let digest = digest_of(&config, secret);
        let accounts = Accounts::new(std::mem::take(&mut config.accounts), &config.reserved);
        let (source_pace, id_pace) = paces_of(config.rate);
        let (source_failures, id_failures) = tallies_of(config.lockout);
        Registrar {
            config,
            accounts,
            secret,
            digest,
            rng,
            table: Table::default(),
            pending: PendingList::default(),
            source_pace,
            id_pace,
            source_failures,
            id_failures,
            counts: RegistrarCounts::default(),
        }
    }

    /// Another configuration from now on. Devices whose account is gone, has other credentials or no longer allows their
    /// source are dropped; the others keep their registration and get the new terms (a new expiry at their next
    /// REGISTER). Locks and rates start anew only when their figures have changed.
    pub fn reconfigure(&mut self, mut config: RegistrarConfig) -> Vec<Change> {
        let accounts = Accounts::new(std::mem::take(&mut config.accounts), &config.reserved);
        let before = std::mem::replace(&mut self.accounts, accounts);
        let old = std::mem::replace(&mut self.config, config);
        let new = &self.config;
        let challenge = |config: &RegistrarConfig| {
            (config.realm.clone(), config.algorithms.clone(), config.qop, config.nonce_lifetime)
        };
        if challenge(&old) != challenge(new) {
            self.digest = digest_of(new, self.secret);
        }
        if old.rate != new.rate {
            (self.source_pace, self.id_pace) = paces_of(new.rate);
        }
        if old.lockout != new.lockout {
            (self.source_failures, self.id_failures) = tallies_of(new.lockout);
        }
        let mut bound: Vec<(DeviceId, usize, IpAddr)> =
            self.table.iter().map(|b| (b.id, b.terms.account, b.flow.peer.ip())).collect();
        bound.sort_unstable();
        let mut changes = Vec::new();
        for (id, account, source) in bound {
            let kept = self.accounts.find(&id).filter(|(_, now)| {
                let same = before.at(account).is_some_and(|then| now.admits_as(then));
                same && now.allows(source) && Network::any_contains(&self.config.networks, source)
            });
            match kept {
                Some((at, account)) => {
                    let (terms, version) = (self.terms(at, account), account.version);
                    self.table.set_terms(&id, terms, version);
                }
                None => {
                    self.counts.removed += 1;
                    changes.extend(self.table.remove(&id).map(|old| Change::Removed { binding: Box::new(old) }));
                }
            }
        }
        let (accounts, config) = (&self.accounts, &self.config);
        self.pending.retain(|pending| {
            config.pending == PendingPolicy::List
                && accounts.find(&pending.id).is_none()
                && !accounts.is_reserved(&pending.id)
                && Network::any_contains(&config.networks, pending.source.ip())
        });
        changes
    }

    fn terms(&self, at: usize, account: &Account) -> Terms {
        Terms {
            account: at,
            keepalive: account.keepalive.unwrap_or(self.config.keepalive).sound(),
            nat: account.nat.unwrap_or(self.config.nat),
        }
    }

    // ---- REGISTER ----

    /// Judges a REGISTER, first or repeated by its device (retransmissions end in the endpoint). `now` and `unix_ms`
    /// (Unix milliseconds) are the same moment on both clocks.
    pub fn handle_register(&mut self, now: Instant, unix_ms: i64, request: &Request, flow: &Flow) -> Verdict {
        let mut case = Case { now, unix_ms, request, flow, changes: Vec::new() };
        let response = match self.judge(&mut case) {
            Ok(response) => response,
            Err(reason) => self.refuse(&case, reason),
        };
        Verdict { response, changes: case.changes }
    }

    /// From the cheap to the dear: nothing is remembered of a sender that has not answered a nonce of ours, but how many
    /// REGISTERs have come from its address.
    fn judge(&mut self, case: &mut Case<'_>) -> Result<Response, Refusal> {
        let source = case.source();
        if !Network::any_contains(&self.config.networks, source) {
            return Err(Refusal::Network);
        }
        if !self.source_pace.take(case.now, source_key(source)) {
            return Err(Refusal::RateLimited);
        }
        let headers = &case.request.headers;
        let (from, to) = (headers.from_user().ok_or(Refusal::Malformed)?, headers.to_user().ok_or(Refusal::Malformed)?);
        if from != to {
            return Err(Refusal::ThirdParty);
        }
        let id = DeviceId::parse(&to).map_err(|_| Refusal::Malformed)?;
        let wanted = Wanted::read(headers).ok_or(Refusal::Malformed)?;
        if self.is_locked(case.now, source, &id) {
            return Err(Refusal::LockedOut);
        }
        let credentials = match self.credentials(headers) {
            Credentials::None => return Ok(self.challenge(case, false)),
            Credentials::Broken => return Err(Refusal::Malformed),
            Credentials::Ours(credentials) => credentials,
        };
        // Before the password: a guess has to cost a nonce, and a failure must not be another's doing.
        if !self.digest.nonce_is_fresh(case.unix(), source, &credentials) {
            self.counts.stale += 1;
            return Ok(self.challenge(case, true));
        }
        if !self.id_pace.take(case.now, (source_key(source), id)) {
            return Err(Refusal::RateLimited);
        }
        let account = self.accounts.find(&id).map(|(_, account)| account).filter(|account| account.allows(source));
        let password = |username: &str| account?.password_for(&id, username);
        match self.digest.verify_parsed(case.unix(), source, "REGISTER", password, &credentials) {
            Ok(_) => {}
            Err(DigestError::Stale) => {
                self.counts.stale += 1;
                return Ok(self.challenge(case, true));
            }
            Err(DigestError::Replay) => {
                self.counts.replays += 1;
                return Ok(self.challenge(case, true));
            }
            Err(DigestError::NoCredentials) => return Ok(self.challenge(case, false)),
            Err(DigestError::Unknown | DigestError::Wrong) => return Err(self.failed(case, &id, &credentials)),
            Err(DigestError::Malformed) => return Err(Refusal::Malformed),
        }
        self.id_failures.succeeded(&(source_key(source), id));
        self.expire(case.now, &mut case.changes);
        match wanted.what {
            Wish::Ask => Ok(self.tell(case, &id)),
            Wish::Unbind => Ok(self.unbind(case, &id)),
            Wish::Bind(asked) => self.bind(case, id, wanted.contact, asked),
        }
    }

    fn is_locked(&self, now: Instant, source: IpAddr, id: &DeviceId) -> bool {
        let key = source_key(source);
        let at_home = || self.table.get(id).is_some_and(|binding| source_key(binding.flow.peer.ip()) == key);
        self.id_failures.locked_until(now, &(key, *id)).is_some()
            || (self.source_failures.locked_until(now, &key).is_some() && !at_home())
    }

    /// Credentials for our realm; those of other schemes and realms count as none. [RFC4475 3.1.2.13]
    fn credentials(&self, headers: &Headers) -> Credentials {
        let mut found = Credentials::None;
        for value in headers.get_all("Authorization").take(MAX_CREDENTIALS) {
            let digest = value.trim_start().get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("digest"));
            match AuthParams::parse(value) {
                Ok(params) if params.is_digest() && params.value("realm") == Some(self.config.realm.as_str()) => {
                    return Credentials::Ours(params);
                }
                Err(_) if digest => found = Credentials::Broken,
                _ => {}
            }
        }
        found
    }

    /// A failure of somebody who does receive what we send to his address.
    fn failed(&mut self, case: &mut Case<'_>, id: &DeviceId, credentials: &AuthParams) -> Refusal {
        let (now, source) = (case.now, case.source());
        let key = source_key(source);
        let reason = match self.accounts.find(id) {
            None => Refusal::UnknownId,
            Some((_, account)) if !account.allows(source) => Refusal::AccountNetwork,
            Some((_, account)) if credentials.value("username") != Some(account.username_of(id)) => {
                Refusal::WrongUsername
            }
            Some(_) => Refusal::WrongPassword,
        };
        if let Some(until) = self.id_failures.failed(now, (key, *id)) {
            self.counts.lockouts += 1;
            case.changes.push(Change::LockedOut { source, id: Some(*id), until });
        }
        if let Some(until) = self.source_failures.failed(now, key) {
            self.counts.lockouts += 1;
            case.changes.push(Change::LockedOut { source, id: None, until });
        }
        if reason != Refusal::UnknownId {
            case.changes.push(Change::Refused { id: *id, source: case.flow.peer, reason });
        } else if self.config.pending == PendingPolicy::List && id.is_code20() && !self.accounts.is_reserved(id) {
            let user_agent = case.request.headers.get("User-Agent").unwrap_or("");
            let (listed, overflow) = self.pending.tried(id, case.flow, user_agent, case.unix_ms);
            self.counts.pending_overflow += u64::from(overflow);
            case.changes.extend(listed.map(Change::Pending));
        }
        reason
    }

    fn bind(
        &mut self,
        case: &mut Case<'_>,
        id: DeviceId,
        contact: Option<NameAddr>,
        asked: Option<u32>,
    ) -> Result<Response, Refusal> {
        // An account was found a moment ago, or the password could not have fitted.
        let (at, account) = self.accounts.find(&id).ok_or(Refusal::UnknownId)?;
        let limits = account.expires.unwrap_or(self.config.expires);
        let seconds = match limits.grant(asked) {
            Ok(seconds) => seconds,
            Err(min) => {
                case.changes.push(Change::Refused { id, source: case.flow.peer, reason: Refusal::TooBrief });
                let mut response = self.refuse(case, Refusal::TooBrief);
                response.headers.push("Min-Expires", min.to_string());
                return Ok(response);
            }
        };
        let old = self.table.get(&id);
        let most = match &account.ids {
            Ids::One(_) => MAX_BINDINGS,
            Ids::Prefix { max, .. } => *max,
        };
        if old.is_none() && (self.table.count_of(at) >= most || self.table.len() >= MAX_BINDINGS) {
            case.changes.push(Change::Refused { id, source: case.flow.peer, reason: Refusal::Full });
            return Err(Refusal::Full);
        }
        let headers = &case.request.headers;
        let binding = Binding {
            id,
            contact: contact.as_ref().map_or("", |contact| contact.uri.as_str()).into(),
            flow: *case.flow,
            version: account.version.or_else(|| headers.get("X-GB-Ver").and_then(Version::parse)),
            user_agent: cut_user_agent(headers.get("User-Agent").unwrap_or("")),
            registered_unix_ms: old.map_or(case.unix_ms, |old| old.registered_unix_ms),
            last_seen: case.now,
            expires_at: case.now + Duration::from_secs(seconds.into()),
            online: true,
            terms: self.terms(at, account),
            queued: case.now,
        };
        let (date, old_standard) =
            (account.date.unwrap_or(self.config.date), account.version.is_some_and(|version| version < Version::V2022));
        let old = self.table.put(binding.clone());
        let moved_from = old.as_ref().map(|old| old.flow).filter(|flow| flow != case.flow);
        match &old {
            None => self.counts.registered += 1,
            Some(_) => self.counts.refreshed += 1,
        }
        self.counts.moved += u64::from(moved_from.is_some());
        let binding = Box::new(binding);
        case.changes.push(match old {
            Some(old) if old.online && moved_from.is_none() => Change::Refreshed { binding },
            old => Change::Registered { binding, new: old.is_none(), moved_from },
        });
        let mut response = self.answer(case, 200);
        if old_standard {
            response.headers.remove("X-GB-Ver");
        }
        if let Some(mut contact) = contact {
            if contact.params.has("expires") {
                contact.params.set("expires", Some(seconds.to_string()));
            }
            response.headers.push("Contact", contact.to_string());
        }
        response.headers.push("Expires", seconds.to_string());
        if date {
            response.headers.push("Date", UnixMillis(case.unix_ms).to_sip_date());
        }
        Ok(response)
    }

    fn unbind(&mut self, case: &mut Case<'_>, id: &DeviceId) -> Response {
        if let Some(old) = self.table.remove(id) {
            self.counts.unregistered += 1;
            case.changes.push(Change::Unregistered { binding: Box::new(old) });
        }
        let mut response = self.answer(case, 200);
        response.headers.push("Expires", "0");
        response
    }

    /// A REGISTER that only asks. [RFC3261 10.2.3]
    fn tell(&mut self, case: &Case<'_>, id: &DeviceId) -> Response {
        let mut response = self.answer(case, 200);
        if let Some(binding) = self.table.get(id) {
            let left = binding.expires_at.saturating_duration_since(case.now).as_secs();
            if !binding.contact.is_empty() {
                response.headers.push("Contact", format!("<{}>;expires={left}", binding.contact));
            }
            response.headers.push("Expires", left.to_string());
        }
        response
    }

    /// A final response with a tag and our version.
    fn answer(&mut self, case: &Case<'_>, status: u16) -> Response {
        let tag = format!("{:016x}", self.rng.random::<u64>());
        let mut response = response_to(case.request, case.flow, status, None, &tag);
        if let Some(version) = self.config.version {
            response.headers.push("X-GB-Ver", version.as_str());
        }
        response
    }

    fn challenge(&mut self, case: &Case<'_>, stale: bool) -> Response {
        self.counts.challenges += 1;
        let mut response = self.answer(case, 401);
        for value in self.digest.challenge(case.unix(), case.source(), stale) {
            response.headers.push("WWW-Authenticate", value);
        }
        response
    }

    fn refuse(&mut self, case: &Case<'_>, reason: Refusal) -> Response {
        self.counts.refused[reason as usize] += 1;
        tracing::debug!(peer = %case.flow.peer, reason = reason.as_str(), "REGISTER refused");
        let mut response = self.answer(case, reason.status());
        if reason == Refusal::RateLimited {
            response.headers.push("Retry-After", RETRY_AFTER);
        }
        response
    }

    // ---- signs of life ----

    /// A keepalive of `id`'s. From the device's own source it keeps or makes it online. [GB/T28181-2022 9.6.1]
    pub fn handle_keepalive(&mut self, now: Instant, id: &DeviceId, flow: &Flow) -> KeepaliveVerdict {
        let (verdict, missed) = self.table.heard(now, id, flow);
        self.counts.keepalives_missed += missed;
        self.count_verdict(verdict);
        verdict
    }

    /// Any other request of a device's: a sign of life as good as a keepalive, and refused like one.
    pub fn touch(&mut self, now: Instant, id: &DeviceId, flow: &Flow) -> KeepaliveVerdict {
        let (verdict, _) = self.table.heard(now, id, flow);
        self.count_verdict(verdict);
        verdict
    }

    fn count_verdict(&mut self, verdict: KeepaliveVerdict) {
        match verdict {
            KeepaliveVerdict::Alive { .. } => {}
            KeepaliveVerdict::NotRegistered => self.counts.not_registered += 1,
            KeepaliveVerdict::WrongSource => self.counts.wrong_source += 1,
        }
    }

    /// The device's binding, when it is registered and `flow` speaks for it. Changes nothing.
    pub fn authenticate_source(&self, now: Instant, id: &DeviceId, flow: &Flow) -> Option<&Binding> {
        self.table.source(now, id, flow).ok()
    }

    /// A TCP or TLS connection is gone, and with it the registrations made over it. [GB/T28181-2022 9.1.1 f]
    pub fn connection_closed(&mut self, conn: ConnId) -> Vec<Change> {
        let ids = self.table.on_connection(conn);
        for id in &ids {
            self.table.remove(id);
            self.counts.connections_lost += 1;
        }
        ids.into_iter().map(|id| Change::Offline { id, reason: OfflineReason::ConnectionLost }).collect()
    }

    /// When to call `handle_timeout` at the latest; it may turn out that nothing is due yet.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.table.next_deadline()
    }

    /// `next_timeout` has come.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        self.expire(now, &mut changes);
        changes
    }

    fn expire(&mut self, now: Instant, changes: &mut Vec<Change>) {
        while let Some(due) = self.table.pop_due(now) {
            changes.push(match due {
                Due::Silent(id) => {
                    self.counts.silent += 1;
                    let missed = self.table.get(&id).map_or(0, |binding| binding.terms.keepalive.count);
                    self.counts.keepalives_missed += u64::from(missed);
                    Change::Offline { id, reason: OfflineReason::Silent }
                }
                Due::Expired(binding) => {
                    self.counts.expired += 1;
                    Change::Expired { binding }
                }
            });
        }
    }

    // ---- across a restart ----

    /// Bindings of an earlier run, offline until they are heard from the source they had. TCP and TLS ones are dropped,
    /// and so are those whose account is gone. A device that is registered already keeps its newer binding.
    pub fn restore(
        &mut self,
        now: Instant,
        unix_ms: i64,
        records: impl IntoIterator<Item = BindingRecord>,
    ) -> Restored {
        let mut restored = Restored::default();
        for record in records {
            let binding = self.revive(now, unix_ms, &record);
            let kept = binding.map(|binding| self.table.put(binding)).is_some();
            restored.kept += usize::from(kept);
            restored.dropped += usize::from(!kept);
        }
        restored
    }

    fn revive(&self, now: Instant, unix_ms: i64, record: &BindingRecord) -> Option<Binding> {
        let id = DeviceId::parse(&record.id).ok()?;
        let (at, account) = self.accounts.find(&id)?;
        let limits = account.expires.unwrap_or(self.config.expires);
        let mut binding = record.to_binding(now, unix_ms, limits.max.max(EXPIRES_FLOOR), self.terms(at, account))?;
        binding.version = account.version.or(binding.version);
        let source = binding.flow.peer.ip();
        let admitted = account.password.is_some()
            && account.allows(source)
            && Network::any_contains(&self.config.networks, source)
            && self.table.get(&id).is_none()
            && self.table.len() < MAX_BINDINGS;
        admitted.then_some(binding)
    }

    // ---- what there is ----

    /// A device's binding; it may have expired unless `handle_timeout` has been called.
    pub fn binding(&self, id: &DeviceId) -> Option<&Binding> {
        self.table.get(id)
    }

    /// All bindings, in no order.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.table.iter()
    }

    /// Unknown devices that have tried, at most `MAX_PENDING`, in no order.
    pub fn pending(&self) -> impl Iterator<Item = &PendingDevice> {
        self.pending.iter()
    }

    /// How often what has happened since the start.
    pub fn counts(&self) -> RegistrarCounts {
        self.counts
    }
}
