//! Who may register, and on what terms: the registrar's configuration as values, and the look-up of an id's account.
//!
//! Standard: [GB/T28181-2022 9.1.1, 9.6.1, 9.10, annex I].
//! In: `RegistrarConfig`. Out: `Account` of an id.
//! Invariants: an exact id wins over a prefix, the longest prefix over shorter ones; a reserved id has an account only
//! when one names it exactly; a password never shows in `Debug` and is wiped when dropped.
//! Not here: reading configuration files, the check of a password.

use super::super::digest::Algorithm;
use super::lockout::{LockoutConfig, RateConfig};
use crate::proto::gb28181::{DeviceId, Version};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;
use zeroize::Zeroizing;

/// A device is left this much time between two REGISTERs, whatever it asks for and whatever is configured: below it
/// would do nothing else.
pub const EXPIRES_FLOOR: u32 = 60;

/// The least keepalive interval that counts.
const INTERVAL_FLOOR: Duration = Duration::from_secs(1);

/// Longest time without keepalive that can be configured; beyond it the registration's own expiry is what counts.
const SILENCE_CEILING: Duration = Duration::from_secs(7 * 86_400);

/// What a registrar needs to know. `Default` is the standard's figures, nobody admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrarConfig {
    /// Protection space of the challenges; by custom the first ten digits of the platform's id.
    pub realm: String,
    /// Offered in this order, one WWW-Authenticate each. Old devices take the first, or fail over the second: MD5 alone
    /// is what the standard has. [GB/T28181-2022 9.1.2.1]
    pub algorithms: Vec<Algorithm>,
    /// Offers qop=auth. Without it a nonce is good for one REGISTER.
    pub qop: bool,
    /// How long a nonce lives, in whole seconds.
    pub nonce_lifetime: Duration,
    /// The devices.
    pub accounts: Vec<Account>,
    /// Our own ids and those of upper platforms: never taken in by a prefix, never listed as pending.
    pub reserved: Vec<DeviceId>,
    /// Where REGISTERs may come from at all; empty: anywhere.
    pub networks: Vec<Network>,
    /// What becomes of unknown ids.
    pub pending: PendingPolicy,
    /// Which sources other than that of the REGISTER speak for a device.
    pub nat: NatPolicy,
    /// Terms of devices that have none of their own.
    pub expires: ExpiresLimits,
    /// Likewise.
    pub keepalive: KeepalivePolicy,
    /// `X-GB-Ver` of all answers; `None` sends none. [GB/T28181-2022 annex I]
    pub version: Option<Version>,
    /// A 200 carries our time. [GB/T28181-2022 9.10]
    pub date: bool,
    /// When a source, or a source's tries for one id, are no longer heard.
    pub lockout: LockoutConfig,
    /// How many REGISTERs are heard.
    pub rate: RateConfig,
}

impl Default for RegistrarConfig {
    fn default() -> Self {
        RegistrarConfig {
            realm: String::new(),
            algorithms: vec![Algorithm::Md5],
            qop: false,
            nonce_lifetime: Duration::from_secs(60),
            accounts: Vec::new(),
            reserved: Vec::new(),
            networks: Vec::new(),
            pending: PendingPolicy::default(),
            nat: NatPolicy::default(),
            expires: ExpiresLimits::default(),
            keepalive: KeepalivePolicy::default(),
            version: Some(Version::V2022),
            date: true,
            lockout: LockoutConfig::default(),
            rate: RateConfig::default(),
        }
    }
}

/// One device, or all devices whose ids begin alike. `None` in a term means the registrar's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Which ids.
    pub ids: Ids,
    /// The user name of the digest; `None`: the device's id.
    pub username: Option<String>,
    /// `None` or empty admits nobody: a device that has to show a certificate never gets in by a password.
    pub password: Option<Password>,
    /// Where these devices register from; empty: wherever the registrar's networks allow.
    pub networks: Vec<Network>,
    /// Whether they get our time: some jump by hours over it.
    pub date: Option<bool>,
    /// What they speak, whatever they say. Before 2022 they are answered without `X-GB-Ver`.
    pub version: Option<Version>,
    /// When they are offline.
    pub keepalive: Option<KeepalivePolicy>,
    /// How long they are registered.
    pub expires: Option<ExpiresLimits>,
    /// Which sources speak for them.
    pub nat: Option<NatPolicy>,
}

impl Account {
    /// An account with the registrar's terms.
    pub fn new(ids: Ids, password: &str) -> Account {
        Account {
            ids,
            username: None,
            password: Some(Password::new(password)),
            networks: Vec::new(),
            date: None,
            version: None,
            keepalive: None,
            expires: None,
            nat: None,
        }
    }

    /// What `id` has to call itself.
    pub(super) fn username_of<'a>(&'a self, id: &'a DeviceId) -> &'a str {
        self.username.as_deref().unwrap_or(id.as_str())
    }

    /// The password when `username` is what `id` has to call itself.
    pub(super) fn password_for(&self, id: &DeviceId, username: &str) -> Option<&str> {
        self.password.as_ref().filter(|_| self.username_of(id) == username).map(Password::expose)
    }

    pub(super) fn allows(&self, source: IpAddr) -> bool {
        Network::any_contains(&self.networks, source)
    }

    /// True when whoever has proven himself to `other` has done so to this account.
    pub(super) fn admits_as(&self, other: &Account) -> bool {
        self.username == other.username && self.password == other.password
    }
}

/// Which ids an account is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// This one.
    One(DeviceId),
    /// All that begin with these digits, so many at most at a time.
    Prefix {
        /// Leading digits.
        digits: String,
        /// How many devices may be registered at once.
        max: usize,
    },
}

/// A password. Wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Takes a copy.
    pub fn new(text: &str) -> Password {
        Password(Zeroizing::new(text.to_owned()))
    }

    fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Any address of it. One of IPv4 written in IPv6 (`::ffff:10.0.0.0`) is taken for IPv4.
    pub address: IpAddr,
    /// How many bits count; more than the address has means all.
    pub prefix_length: u8,
}

impl Network {
    /// True when `ip` lies in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        fn same(a: u128, b: u128, width: u32, prefix: u8) -> bool {
            let free = width.saturating_sub(prefix.into());
            (a ^ b).checked_shr(free).unwrap_or(0) == 0
        }
        match (self.address.to_canonical(), ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                same(u32::from(a).into(), u32::from(b).into(), u32::BITS, self.prefix_length)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), u128::BITS, self.prefix_length),
            _ => false,
        }
    }

    /// True when one of `networks` contains `ip`, or there is none.
    pub fn any_contains(networks: &[Network], ip: IpAddr) -> bool {
        networks.is_empty() || networks.iter().any(|network| network.contains(ip))
    }
}

/// What becomes of ids no account is for. Either way they are refused, and answered like a known id with a wrong
/// password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PendingPolicy {
    /// They are listed for the operator; never admitted by themselves.
    #[default]
    List,
    /// They are forgotten.
    Refuse,
}

/// Which sources speak for a registered device. Over TCP and TLS it is the connection of the REGISTER, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NatPolicy {
    /// The address and port of the REGISTER. A device whose port has changed is refused until it registers anew.
    #[default]
    SameSource,
    /// The address of the REGISTER with any port, and requests to the device follow the port: for devices behind a NAT
    /// that moves ports between two REGISTERs. Whoever shares that address can speak for the device, and can draw its
    /// requests to himself.
    SameIp,
}

/// How long a registration lasts, in seconds. [GB/T28181-2022 9.1.1]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpiresLimits {
    /// Less than this is short; the standard has 3,600.
    pub min: u32,
    /// More is cut down to this.
    pub max: u32,
    /// For a REGISTER that does not say.
    pub default: u32,
    /// What a short one gets.
    pub short: ShortExpires,
}

impl Default for ExpiresLimits {
    fn default() -> Self {
        ExpiresLimits { min: 3_600, max: 86_400, default: 86_400, short: ShortExpires::default() }
    }
}

impl ExpiresLimits {
    /// What is granted to who asks for `asked` seconds, not 0; or the `Min-Expires` of a 423. [RFC3261 10.3]
    pub(super) fn grant(&self, asked: Option<u32>) -> Result<u32, u32> {
        let max = self.max.max(EXPIRES_FLOOR);
        let asked = asked.unwrap_or(self.default);
        match self.short {
            ShortExpires::Refuse if asked < self.min.min(max) => Err(self.min.min(max)),
            ShortExpires::Raise => Ok(asked.max(self.min).clamp(EXPIRES_FLOOR, max)),
            ShortExpires::Accept | ShortExpires::Refuse => Ok(asked.clamp(EXPIRES_FLOOR, max)),
        }
    }
}

/// What a device gets that asks for less than `ExpiresLimits::min`. Equipment that registers each minute is common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShortExpires {
    /// What it asks for, but `EXPIRES_FLOOR` at least.
    #[default]
    Accept,
    /// The least that is not short.
    Raise,
    /// 423 Interval Too Brief. [RFC3261 21.4.17]
    Refuse,
}

/// When a silent device is offline. [GB/T28181-2022 9.6.1]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepalivePolicy {
    /// Between two keepalives; at least a second counts.
    pub interval: Duration,
    /// So many in a row missing: offline. At least 1 counts.
    pub count: u32,
}

impl Default for KeepalivePolicy {
    fn default() -> Self {
        KeepalivePolicy { interval: Duration::from_secs(60), count: 3 }
    }
}

impl KeepalivePolicy {
    /// With the floors.
    pub(super) fn sound(self) -> KeepalivePolicy {
        KeepalivePolicy { interval: self.interval.clamp(INTERVAL_FLOOR, SILENCE_CEILING), count: self.count.max(1) }
    }

    /// How long a device may be silent.
    pub(super) fn silence(self) -> Duration {
        self.interval.saturating_mul(self.count).min(SILENCE_CEILING)
    }
}

/// The accounts, found by id.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    all: Vec<Account>,
    exact: HashMap<DeviceId, usize>,
    /// Longest first.
    prefixes: Vec<usize>,
    reserved: HashSet<DeviceId>,
}

impl Accounts {
    /// Of two accounts for the same ids the first counts.
    pub fn new(all: Vec<Account>, reserved: &[DeviceId]) -> Accounts {
        let mut out = Accounts { all, reserved: reserved.iter().copied().collect(), ..Accounts::default() };
        for (at, account) in out.all.iter().enumerate() {
            match &account.ids {
                Ids::One(id) => {
                    out.exact.entry(*id).or_insert(at);
                }
                Ids::Prefix { .. } => out.prefixes.push(at),
            }
        }
        let all = &out.all;
        out.prefixes.sort_by_key(|at| std::cmp::Reverse(prefix_of(&all[*at]).len()));
        out
    }

    /// The account of `id`, and its number.
    pub fn find(&self, id: &DeviceId) -> Option<(usize, &Account)> {
        let by_prefix = || {
            let mut prefixes = self.prefixes.iter().copied().filter(|_| !self.is_reserved(id));
            prefixes.find(|at| id.as_str().starts_with(prefix_of(&self.all[*at])))
        };
        let at = self.exact.get(id).copied().or_else(by_prefix)?;
        Some((at, &self.all[at]))
    }

    /// By number.
    pub fn at(&self, number: usize) -> Option<&Account> {
        self.all.get(number)
    }

    pub fn is_reserved(&self, id: &DeviceId) -> bool {
        self.reserved.contains(id)
    }
}

fn prefix_of(account: &Account) -> &str {
    match &account.ids {
        Ids::Prefix { digits, .. } => digits,
        Ids::One(id) => id.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> DeviceId {
        DeviceId::parse(text).unwrap()
    }

    #[test]
    fn the_exact_id_wins_over_the_longest_prefix_and_reserved_ids_need_to_be_named() {
        let prefix = |digits: &str| Account::new(Ids::Prefix { digits: digits.into(), max: 1 }, digits);
        let exact = Account::new(Ids::One(id("34020000001180000001")), "x");
        let reserved = [id("34020000002000000001"), id("34020000001180000001")];
        let accounts =
            Accounts::new(vec![prefix("3402"), prefix("3402000000118"), exact, prefix("34020000")], &reserved);
        let found = |text: &str| accounts.find(&id(text)).map(|(at, _)| at);
        assert_eq!(found("34020000001180000001"), Some(2));
        assert_eq!(found("34020000001180000002"), Some(1));
        assert_eq!(found("34020000001320000002"), Some(3));
        assert_eq!(found("34029999991320000002"), Some(0));
        assert_eq!(found("11010000001320000002"), None);
        assert_eq!(found("34020000002000000001"), None);
    }

    #[test]
    fn networks_hold_what_begins_alike() {
        let network = |text: &str, prefix_length| Network { address: text.parse().unwrap(), prefix_length };
        let holds = |n: Network, text: &str| n.contains(text.parse().unwrap());
        assert!(holds(network("10.1.2.3", 8), "10.255.0.1"));
        assert!(holds(network("10.1.2.3", 8), "::ffff:10.9.9.9"));
        assert!(!holds(network("10.1.2.3", 8), "11.0.0.1"));
        assert!(!holds(network("10.1.2.3", 8), "::10.9.9.9"));
        assert!(holds(network("10.1.2.3", 32), "10.1.2.3") && !holds(network("10.1.2.3", 32), "10.1.2.2"));
        assert!(!holds(network("10.1.2.3", 255), "10.1.2.2"));
        assert!(holds(network("0.0.0.0", 0), "255.1.1.1") && !holds(network("0.0.0.0", 0), "2001:db8::1"));
        assert!(holds(network("::", 0), "2001:db8::1"));
        assert!(
            holds(network("2001:db8::", 32), "2001:db8:ffff::1") && !holds(network("2001:db8::", 32), "2001:db9::")
        );
        assert!(Network::any_contains(&[], "192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn expiries_are_granted_within_limits() {
        let limits = ExpiresLimits::default();
        let grants = |limits: ExpiresLimits| {
            [None, Some(1), Some(600), Some(3_600), Some(u32::MAX)].map(|asked| limits.grant(asked))
        };
        assert_eq!(grants(limits), [Ok(86_400), Ok(60), Ok(600), Ok(3_600), Ok(86_400)]);
        let raise = ExpiresLimits { short: ShortExpires::Raise, ..limits };
        assert_eq!(grants(raise), [Ok(86_400), Ok(3_600), Ok(3_600), Ok(3_600), Ok(86_400)]);
        let refuse = ExpiresLimits { short: ShortExpires::Refuse, ..limits };
        assert_eq!(grants(refuse), [Ok(86_400), Err(3_600), Err(3_600), Ok(3_600), Ok(86_400)]);
        let odd = ExpiresLimits { min: u32::MAX, max: 0, default: 0, short: ShortExpires::Raise };
        assert_eq!(grants(odd), [Ok(60); 5]);
    }

    #[test]
    fn a_password_does_not_show() {
        let account = Account::new(Ids::One(id("34020000001180000001")), "s3cret");
        assert!(!format!("{account:?}").contains("s3cret"));
    }
}
