//! Who may read what: asked before any route, also those that do not exist.
//! Standard: [RFC7617] Basic, [RFC6750] Bearer, [RFC9110 15.5.20] 421.
//! In: address, head and time of a request. Out: yes, or the error to answer.
//! Invariants: bound to loopback, reading is open, but only under a name no foreign web page can take (DNS rebinding);
//! bound elsewhere, everything but /healthz needs a login and /metrics its token. Secrets are compared in constant
//! time and kept as digests; a source that guesses is locked out.
//! Not here: routes that change anything: there are none.

use super::error::ApiError;
use axum::http::{HeaderMap, Method, Uri, header, request::Parts};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use subtle::{Choice, ConstantTimeEq};

/// The one login there is.
pub(super) const USER: &str = "admin";
/// Most bytes of a body: no route reads one.
pub(super) const BODY_BYTES: u64 = 64 << 10;
/// Most bytes of a path: the longest route with the longest name.
const PATH_BYTES: usize = 512;
/// Most bytes of a query.
const QUERY_BYTES: usize = 1024;
/// Most bytes of a credential.
const CREDENTIAL_BYTES: usize = 1024;

/// So many wrong logins …
const FAILURES: usize = 5;
/// … within this time …
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// … lock their source out for this long.
const LOCKED: Duration = Duration::from_secs(600);
/// Sources remembered; about 1 MiB. When more than that guess at once, the oldest is forgotten.
const SOURCES: usize = 4096;

/// What a request must show.
pub(super) enum Access {
    /// Bound to loopback.
    Local,
    /// Bound where others are.
    Login {
        /// Digest of the administrator's password.
        password: [u8; 32],
        /// Digest of the token for /metrics.
        metrics_token: [u8; 32],
        /// Who failed of late.
        failures: Failures,
    },
}

impl Access {
    pub fn login(password: &str, metrics_token: &str) -> Self {
        Access::Login {
            password: digest(password),
            metrics_token: digest(metrics_token),
            failures: Failures::default(),
        }
    }

    /// May this request go on?
    pub fn admit(&self, now: Instant, source: IpAddr, head: &Parts) -> Result<(), ApiError> {
        limits(&head.uri, &head.headers)?;
        if head.method != Method::GET && head.method != Method::HEAD {
            // Said before the login is asked for: nothing here can be changed, with or without it.
            return Err(ApiError::MethodNotAllowed);
        }
        match self {
            Access::Local => local_name(&head.uri, &head.headers),
            Access::Login { .. } if head.uri.path() == "/healthz" => Ok(()),
            Access::Login { password, metrics_token, failures } => {
                if let Some(left) = failures.locked(now, source) {
                    return Err(ApiError::LockedOut(left));
                }
                let metrics = head.uri.path() == "/metrics";
                let given = head.headers.get(header::AUTHORIZATION).map(|v| v.as_bytes());
                let Some(given) = given else { return Err(ApiError::Unauthorised { metrics }) };
                let right = if metrics { bearer_is(given, metrics_token) } else { basic_is(given, password) };
                if right {
                    failures.clear(source);
                    return Ok(());
                }
                if failures.failed(now, source) {
                    return Err(ApiError::NowLockedOut(LOCKED));
                }
                Err(ApiError::Unauthorised { metrics })
            }
        }
    }
}

fn limits(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    if uri.path().len() > PATH_BYTES || uri.query().is_some_and(|q| q.len() > QUERY_BYTES) {
        return Err(ApiError::UriTooLong);
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|l| l > BODY_BYTES) {
        return Err(ApiError::BodyTooLarge);
    }
    Ok(())
}

/// A foreign web page whose name was made to point at us still asks under its own name.
fn local_name(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut names = 0;
    let named = headers.get_all(header::HOST).iter().map(|v| v.to_str().unwrap_or("?"));
    for name in uri.authority().map(|a| a.as_str()).into_iter().chain(named) {
        if !is_local(name) {
            return Err(ApiError::ForeignHost);
        }
        names += 1;
    }
    if names == 0 { Err(ApiError::ForeignHost) } else { Ok(()) }
}

/// `localhost` or an IP address, with or without port.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((ip, port)) = rest.split_once(']') else { return false };
            let port = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
            return port && ip.parse::<Ipv6Addr>().is_ok();
        }
        None => match host.split_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::Ipv4Addr>().is_ok()
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn credential<'a>(given: &'a [u8], scheme: &str) -> Option<&'a str> {
    let given = std::str::from_utf8(given).ok().filter(|g| g.len() <= CREDENTIAL_BYTES)?;
    let (name, rest) = given.split_once(' ')?;
    name.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}

fn bearer_is(given: &[u8], token: &[u8; 32]) -> bool {
    credential(given, "Bearer").is_some_and(|t| digest(t).ct_eq(token).into())
}

fn basic_is(given: &[u8], password: &[u8; 32]) -> bool {
    let decoded = credential(given, "Basic").and_then(|c| STANDARD.decode(c).ok());
    let Some(text) = decoded.and_then(|d| String::from_utf8(d).ok()) else { return false };
    let Some((user, pass)) = text.split_once(':') else { return false };
    let user: Choice = digest(user).ct_eq(&digest(USER));
    (user & digest(pass).ct_eq(password)).into()
}

/// Wrong logins by source.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<IpAddr, Record>>);

#[derive(Debug, Default)]
struct Record {
    /// Of the last [`FAILURES`], oldest first.
    times: VecDeque<Instant>,
    locked_until: Option<Instant>,
}

impl Record {
    fn matters_until(&self) -> Option<Instant> {
        self.locked_until.or_else(|| self.times.back().map(|t| *t + FAILURE_WINDOW))
    }
}

impl Failures {
    fn table(&self) -> MutexGuard<'_, HashMap<IpAddr, Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the source is still locked out.
    fn locked(&self, now: Instant, source: IpAddr) -> Option<Duration> {
        let until = self.table().get(&network(source))?.locked_until?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// One more; true when this one locks the source out.
    fn failed(&self, now: Instant, source: IpAddr) -> bool {
        let source = network(source);
        let mut table = self.table();
        if table.len() >= SOURCES && !table.contains_key(&source) {
            table.retain(|_, r| r.matters_until().is_some_and(|t| t > now));
            if table.len() >= SOURCES
                && let Some(oldest) = table.iter().min_by_key(|(_, r)| r.matters_until()).map(|(ip, _)| *ip)
            {
                table.remove(&oldest);
            }
        }
        let record = table.entry(source).or_default();
        record.times.push_back(now);
        while record.times.len() > FAILURES {
            record.times.pop_front();
        }
        let first = record.times.front().copied().unwrap_or(now);
        let locks = record.times.len() == FAILURES && now.duration_since(first) <= FAILURE_WINDOW;
        record.locked_until = locks.then(|| now + LOCKED);
        if locks {
            record.times.clear();
        }
        locks
    }

    fn clear(&self, source: IpAddr) {
        self.table().remove(&network(source));
    }
}

/// Whoever has one IPv6 address has the whole /64.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn only_names_nobody_can_take_are_local() {
        for good in ["localhost", "LOCALHOST:28181", "127.0.0.1", "127.0.0.1:28181", "[::1]", "[::1]:80", "10.0.0.1:1"]
        {
            assert!(is_local(good), "{good}");
            assert_eq!(Access::Local.admit(crate::clock::now(), A, &head("/", &[("host", good)])), Ok(()));
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "::1",
            "[::1",
            "localhost:x",
            "1:2:3",
        ] {
            assert!(!is_local(bad), "{bad}");
            let refused = Access::Local.admit(crate::clock::now(), A, &head("/", &[("host", bad)]));
            assert_eq!(refused, Err(ApiError::ForeignHost));
        }
        let now = crate::clock::now();
        assert_eq!(Access::Local.admit(now, A, &head("/", &[])), Err(ApiError::ForeignHost));
        let two = head("http://evil.example/", &[("host", "localhost")]);
        assert_eq!(Access::Local.admit(now, A, &two), Err(ApiError::ForeignHost));
    }

    #[test]
    fn login_and_token_open_their_own_doors_only() {
        let access = Access::login("geheim:1", "t0ken");
        let ask = |path: &str, given: Option<&str>| {
            let headers: Vec<_> = given.map(|g| ("authorization", g)).into_iter().collect();
            access.admit(crate::clock::now(), A, &head(path, &headers))
        };
        assert_eq!(ask("/healthz", None), Ok(()));
        assert_eq!(ask("/", Some(&basic("admin", "geheim:1"))), Ok(()));
        assert_eq!(ask("/", Some(&basic("admin", "geheim:1").replace("Basic", "bAsIc"))), Ok(()));
        assert_eq!(ask("/metrics", Some("Bearer t0ken")), Ok(()));
        let refused = |path: &str, given: Option<&str>| {
            let metrics = path == "/metrics";
            assert_eq!(ask(path, given), Err(ApiError::Unauthorised { metrics }), "{path} {given:?}");
            access.admit(crate::clock::now(), A, &head("/metrics", &[("authorization", "Bearer t0ken")])).unwrap();
        };
        refused("/", None);
        refused("/healthz/", None);
        refused("/", Some("Bearer t0ken"));
        refused("/", Some(&basic("admin", "")));
        refused("/", Some(&basic("root", "geheim:1")));
        refused("/", Some("Basic !"));
        refused("/metrics", Some(&basic("admin", "geheim:1")));
        refused("/metrics", Some("Bearer "));
        refused("/", Some(&format!("Basic {}", "A".repeat(4000))));
    }

    #[test]
    fn five_failures_within_a_minute_lock_their_source_out() {
        let access = Access::login("right", "token");
        let t0 = crate::clock::now();
        let ask = |now, from, password: &str| {
            access.admit(now, from, &head("/", &[("authorization", &basic("admin", password))]))
        };
        let wrong = Err(ApiError::Unauthorised { metrics: false });
        for n in 0..4 {
            assert_eq!(ask(t0 + Duration::from_secs(20 * n), A, "x"), wrong);
        }
        let t = t0 + Duration::from_secs(61);
        assert_eq!(ask(t, A, "x"), wrong, "the first is too old to count");
        let t = t + Duration::from_secs(1);
        assert_eq!(ask(t, A, "x"), Err(ApiError::NowLockedOut(LOCKED)));
        let later = t + Duration::from_secs(100);
        assert_eq!(ask(later, A, "right"), Err(ApiError::LockedOut(Duration::from_secs(500))));
        assert_eq!(ask(later, B, "right"), Ok(()), "others are not concerned");
        assert_eq!(access.admit(later, A, &head("/healthz", &[])), Ok(()));
        assert_eq!(ask(t + LOCKED, A, "right"), Ok(()));
    }

    #[test]
    fn the_table_of_failures_is_bounded_and_counts_networks() {
        let failures = Failures::default();
        let now = crate::clock::now();
        let v6 = |n: u128| IpAddr::from(Ipv6Addr::from_bits(0x2001_0db8 << 96 | n));
        for n in 0..4 {
            assert!(!failures.failed(now, v6(n)));
        }
        assert!(failures.failed(now, v6(99)), "one network");
        for n in 0..SOURCES as u32 + 10 {
            failures.failed(now, IpAddr::from(n.to_be_bytes()));
        }
        assert!(failures.table().len() <= SOURCES);
        assert!(failures.locked(now, v6(1)).is_some(), "a locked source is the last to be forgotten");
    }

    #[test]
    fn too_large_requests_and_other_methods_are_refused_first() {
        let access = Access::login("p", "t");
        let now = crate::clock::now();
        let long = format!("/?{}", "a".repeat(QUERY_BYTES + 1));
        assert_eq!(access.admit(now, A, &head(&long, &[])), Err(ApiError::UriTooLong));
        let large = head("/", &[("content-length", "1073741824")]);
        assert_eq!(access.admit(now, A, &large), Err(ApiError::BodyTooLarge));
        let mut post = head("/", &[]);
        post.method = Method::POST;
        assert_eq!(access.admit(now, A, &post), Err(ApiError::MethodNotAllowed));
    }
}
