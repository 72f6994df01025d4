//! How many requests a source may send.
//! Standard: none; [GB/T28181-2022 8] asks for protection of the signalling service.
//! In: source address, `now`. Out: allowed or not. Pure.
//! Invariants: memory is bounded whatever the number of (forged) sources; trusted peers are never evicted by strangers.
//! Not here: what happens to a refused request (`super`: dropped and counted; an answer would help the flooder).

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Sources remembered besides the trusted ones: about 1 MiB.
const MAX_SOURCES: usize = 10_000;
/// Entries looked at to find one that may be forgotten without loss; bounds the time of a packet.
const EVICTION_TRIES: usize = 8;

/// Requests per second in the long run, and at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Sustained requests per second. 0 counts as 1.
    pub per_second: u32,
    /// Requests a quiet source may send at once. 0 counts as 1.
    pub burst: u32,
}

impl RateLimit {
    fn times(self, factor: u32) -> Self {
        RateLimit { per_second: self.per_second.saturating_mul(factor), burst: self.burst.saturating_mul(factor) }
    }

    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second.max(1)
    }
}

/// A token bucket kept as one instant: when the bucket will be full again. In the past means full.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, limit: RateLimit) -> bool {
        let interval = limit.interval();
        let next = self.full_at.max(now) + interval;
        if next.saturating_duration_since(now) > interval * limit.burst.max(1) {
            return false;
        }
        self.full_at = next;
        true
    }
}

/// Token buckets for every source.
#[derive(Debug)]
pub(super) struct RateLimiter {
    limit: RateLimit,
    trusted_limit: RateLimit,
    trusted: HashMap<IpAddr, Bucket>,
    strangers: HashMap<IpAddr, Bucket>,
    /// Every key of `strangers` once, roughly least recently seen first.
    order: VecDeque<IpAddr>,
}

impl RateLimiter {
    pub(super) fn new(limit: RateLimit, trusted_factor: u32) -> Self {
        RateLimiter {
            limit,
            trusted_limit: limit.times(trusted_factor.max(1)),
            trusted: HashMap::new(),
            strangers: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Replaces the trusted addresses; those that stay keep their bucket.
    pub(super) fn trust(&mut self, now: Instant, peers: impl IntoIterator<Item = IpAddr>) {
        let old = std::mem::take(&mut self.trusted);
        self.trusted =
            peers.into_iter().map(|ip| (ip, old.get(&ip).copied().unwrap_or(Bucket { full_at: now }))).collect();
    }

    /// One more trusted address.
    pub(super) fn trust_also(&mut self, now: Instant, ip: IpAddr) {
        self.trusted.entry(ip).or_insert(Bucket { full_at: now });
    }

    /// No longer trusted.
    pub(super) fn distrust(&mut self, ip: IpAddr) {
        self.trusted.remove(&ip);
    }

    pub(super) fn is_trusted(&self, ip: IpAddr) -> bool {
        self.trusted.contains_key(&ip)
    }

    /// Takes one token of `ip`.
    pub(super) fn allow(&mut self, now: Instant, ip: IpAddr) -> bool {
        if let Some(bucket) = self.trusted.get_mut(&ip) {
            return bucket.take(now, self.trusted_limit);
        }
        let source = source_of(ip);
        if let Some(bucket) = self.strangers.get_mut(&source) {
            return bucket.take(now, self.limit);
        }
        if self.strangers.len() >= MAX_SOURCES {
            self.evict(now);
        }
        let mut bucket = Bucket { full_at: now };
        let allowed = bucket.take(now, self.limit);
        self.strangers.insert(source, bucket);
        self.order.push_back(source);
        allowed
    }

    /// Forgets one source: the first of a few whose bucket is full (nothing is lost), else the oldest of them.
    fn evict(&mut self, now: Instant) {
        for _ in 0..EVICTION_TRIES {
            let Some(source) = self.order.pop_front() else { return };
            if self.strangers.get(&source).is_none_or(|b| b.full_at <= now) {
                self.strangers.remove(&source);
                return;
            }
            self.order.push_back(source);
        }
        if let Some(source) = self.order.pop_front() {
            self.strangers.remove(&source);
        }
    }
}

/// An IPv6 host owns a /64: it counts as one source.
fn source_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => {
            let s = v6.segments();
            IpAddr::V6(Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit { per_second: 200, burst: 400 };

    fn ip(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn burst_then_sustained_rate() {
        let t0 = crate::clock::now();
        let mut limiter = RateLimiter::new(LIMIT, 10);
        assert_eq!((0..1000).filter(|_| limiter.allow(t0, ip(1))).count(), 400);
        // Another source is not touched.
        assert!(limiter.allow(t0, ip(2)));
        let second = t0 + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| limiter.allow(second, ip(1))).count(), 200);
        let later = t0 + Duration::from_secs(100);
        assert_eq!((0..1000).filter(|_| limiter.allow(later, ip(1))).count(), 400);
    }

    #[test]
    fn trusted_peers_get_ten_times_as_much_and_survive_a_flood_of_sources() {
        let t0 = crate::clock::now();
        let mut limiter = RateLimiter::new(LIMIT, 10);
        limiter.trust(t0, [ip(7)]);
        assert_eq!((0..10_000).filter(|_| limiter.allow(t0, ip(7))).count(), 4000);
        for n in 100..100 + 3 * MAX_SOURCES as u32 {
            assert!(limiter.allow(t0, ip(n)));
        }
        assert!(limiter.strangers.len() <= MAX_SOURCES && limiter.order.len() <= MAX_SOURCES);
        assert!(!limiter.allow(t0, ip(7)), "still remembers that the bucket is empty");
        limiter.trust(t0, [ip(7), ip(8)]);
        assert!(!limiter.allow(t0, ip(7)), "a reload does not refill");
    }

    #[test]
    fn a_busy_source_is_not_forgotten_while_quiet_ones_can_be() {
        let t0 = crate::clock::now();
        let mut limiter = RateLimiter::new(LIMIT, 10);
        assert_eq!((0..500).filter(|_| limiter.allow(t0, ip(1))).count(), 400);
        for n in 0..MAX_SOURCES as u32 - 1 {
            limiter.allow(t0, ip(1000 + n));
        }
        // A second later all but ip(1) are full again.
        let t1 = t0 + Duration::from_millis(500);
        limiter.allow(t1, ip(2));
        assert_eq!((0..500).filter(|_| limiter.allow(t1, ip(1))).count(), 100);
    }

    #[test]
    fn one_ipv6_host_is_one_source() {
        let t0 = crate::clock::now();
        let mut limiter = RateLimiter::new(RateLimit { per_second: 1, burst: 1 }, 10);
        assert!(limiter.allow(t0, "2001:db8::1".parse().unwrap()));
        assert!(!limiter.allow(t0, "2001:db8::2".parse().unwrap()));
        assert!(limiter.allow(t0, "2001:db8:0:1::1".parse().unwrap()));
    }
}
