//! Limits on tries: how fast one may ask, and who has been wrong too often.
//!
//! Standard: none; [RFC3261 26.1] for the threat.
//! In: keys and `now`. Out: whether to go on.
//! Invariants: both tables are bounded. At the bound `Pace` counts the keys it has no room for together; `Tally` forgets
//! the key that would be forgotten soonest anyway, which is a locked one only when all are.
//! Not here: what a failure is, and what the locked are told.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Most keys of one `Pace`: ten thousand devices and as many strangers. 100 bytes each.
const MAX_PACED: usize = 20_000;
/// A full `Pace` looks for keys to forget this often, so that a flood of new ones does not pay for a look each.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// Most keys of one `Tally`: far more than lock out at once; each needs failures of a source that answers our nonces.
const MAX_TALLIED: usize = 4_096;
/// Most failures that can be asked for before a key is locked: each is remembered.
const MAX_FAILURES: usize = 256;
/// Longest window and longest lock: beyond a year nobody waits, and an instant can be added to it.
const MAX_PERIOD: Duration = Duration::from_secs(365 * 86_400);

/// When tries are no longer heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockoutConfig {
    /// So many failures of one source with one id within `window` lock that id from that source.
    pub failures: usize,
    /// So many failures of one source, whatever the ids, lock the source for all ids but those registered from it.
    /// High, because a site's hundred new recorders behind one NAT are all wrong until they are configured.
    pub source_failures: usize,
    /// How long a failure counts.
    pub window: Duration,
    /// How long a lock holds.
    pub hold: Duration,
}

impl Default for LockoutConfig {
    fn default() -> Self {
        LockoutConfig {
            failures: 5,
            source_failures: 200,
            window: Duration::from_secs(60),
            hold: Duration::from_secs(600),
        }
    }
}

/// How many REGISTERs are heard. A rate of 0 hears none once the burst is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateConfig {
    /// Of one source a second: ten thousand devices behind one NAT, each with a challenge, are back within ten seconds.
    pub source_per_second: u32,
    /// On top, at once.
    pub source_burst: u32,
    /// Answers to a challenge of one id from one source a minute: what makes us hash and change tables.
    pub id_per_minute: u32,
    /// On top, at once.
    pub id_burst: u32,
}

impl Default for RateConfig {
    fn default() -> Self {
        RateConfig { source_per_second: 2_500, source_burst: 5_000, id_per_minute: 60, id_burst: 20 }
    }
}

/// The address limits go by: IPv4 as such, of IPv6 the /64, because a host has as many of those addresses as it likes.
pub(super) fn source_key(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) >> 64 << 64).into(),
    }
}

/// A token bucket for each key, kept as the time at which it is full again.
#[derive(Debug)]
pub(super) struct Pace<K> {
    /// Time for one token.
    each: Duration,
    /// Time to fill the bucket.
    depth: Duration,
    full_at: HashMap<K, Instant>,
    /// Of all keys there was no room for.
    others: Option<Instant>,
    swept: Option<Instant>,
}

impl<K: Eq + Hash> Pace<K> {
    /// `count` in `period`, and `burst` on top.
    pub fn new(count: u32, period: Duration, burst: u32) -> Pace<K> {
        // No rate at all: a token takes a year.
        let each = period.checked_div(count).unwrap_or(MAX_PERIOD);
        Pace { each, depth: each.saturating_mul(burst.max(1)), full_at: HashMap::new(), others: None, swept: None }
    }

    /// Takes a token of `key`; false when there is none.
    pub fn take(&mut self, now: Instant, key: K) -> bool {
        if self.full_at.len() >= MAX_PACED && self.swept.is_none_or(|at| now >= at + SWEEP_PAUSE) {
            self.swept = Some(now);
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        if let Some(full_at) = self.full_at.get_mut(&key) {
            return spend(now, full_at, self.each, self.depth);
        }
        if self.full_at.len() >= MAX_PACED {
            return spend(now, self.others.get_or_insert(now), self.each, self.depth);
        }
        let mut full_at = now;
        let taken = spend(now, &mut full_at, self.each, self.depth);
        self.full_at.insert(key, full_at);
        taken
    }
}

fn spend(now: Instant, full_at: &mut Instant, each: Duration, depth: Duration) -> bool {
    let after = (*full_at).max(now) + each;
    let fits = after - now <= depth;
    if fits {
        *full_at = after;
    }
    fits
}

#[derive(Debug)]
struct Record {
    /// Times of failures, oldest first.
    failures: Vec<Instant>,
    locked: bool,
    /// When nothing of it counts any more.
    forget_at: Instant,
}

/// Failures of each key within a sliding window, and the locks they lead to.
#[derive(Debug)]
pub(super) struct Tally<K> {
    limit: usize,
    window: Duration,
    hold: Duration,
    records: HashMap<K, Record>,
    ages: BTreeSet<(Instant, K)>,
}

impl<K: Eq + Hash + Ord + Copy> Tally<K> {
    /// `limit` failures within `window` lock for `hold`.
    pub fn new(limit: usize, window: Duration, hold: Duration) -> Tally<K> {
        let limit = limit.clamp(1, MAX_FAILURES);
        let (window, hold) = (window.min(MAX_PERIOD), hold.min(MAX_PERIOD));
        Tally { limit, window, hold, records: HashMap::new(), ages: BTreeSet::new() }
    }

    /// Until when `key` is locked.
    pub fn locked_until(&self, now: Instant, key: &K) -> Option<Instant> {
        self.records.get(key).filter(|record| record.locked && record.forget_at > now).map(|record| record.forget_at)
    }

    /// Notes a failure; gives the end of the lock when this one led to it.
    pub fn failed(&mut self, now: Instant, key: K) -> Option<Instant> {
        while let Some((forget_at, old)) = self.ages.first().copied()
            && (forget_at <= now || (self.records.len() >= MAX_TALLIED && !self.records.contains_key(&key)))
        {
            self.ages.remove(&(forget_at, old));
            self.records.remove(&old);
        }
        let record = self.records.entry(key).or_insert(Record { failures: Vec::new(), locked: false, forget_at: now });
        if record.locked {
            return None;
        }
        let window = self.window;
        record.failures.retain(|at| *at + window > now);
        record.failures.push(now);
        self.ages.remove(&(record.forget_at, key));
        if record.failures.len() >= self.limit {
            *record = Record { failures: Vec::new(), locked: true, forget_at: now + self.hold };
        } else {
            record.forget_at = now + window;
        }
        let locked = record.locked.then_some(record.forget_at);
        self.ages.insert((record.forget_at, key));
        locked
    }

    /// A success: what went before was a slip. A lock is not lifted.
    pub fn succeeded(&mut self, key: &K) {
        if let Some(record) = self.records.get(key)
            && !record.locked
        {
            self.ages.remove(&(record.forget_at, *key));
            self.records.remove(key);
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

    #[test]
    fn a_bucket_gives_its_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(60, seconds(60), 3);
        assert_eq!([0; 5].map(|_| pace.take(start, 1)), [true, true, true, false, false]);
        assert!(pace.take(start, 2), "others have their own");
        assert!(!pace.take(start + Duration::from_millis(999), 1));
        assert!(pace.take(start + seconds(1), 1));
        assert!(!pace.take(start + seconds(1), 1));
        assert_eq!([0; 4].map(|_| pace.take(start + seconds(100), 1)), [true, true, true, false]);
        let mut none = Pace::new(0, seconds(1), 1);
        assert_eq!([0; 2].map(|_| none.take(start, 1)), [true, false]);
    }

    #[test]
    fn a_full_pace_counts_newcomers_together_until_there_is_room() {
        let start = Instant::now();
        let mut pace = Pace::new(1, seconds(1), 5);
        for key in 0..MAX_PACED {
            assert!(pace.take(start, key));
        }
        let late: Vec<bool> = (0..7).map(|key| pace.take(start, MAX_PACED + key)).collect();
        assert_eq!(late, [true, true, true, true, true, false, false]);
        assert!(pace.take(start, 0), "those known keep their own");
        assert_eq!(pace.full_at.len(), MAX_PACED);
        assert!(pace.take(start + seconds(1), MAX_PACED));
        assert_eq!(pace.full_at.len(), 2);
    }

    #[test]
    fn failures_within_the_window_lock_and_older_ones_do_not_count() {
        let start = Instant::now();
        let mut tally = Tally::new(5, seconds(60), seconds(600));
        let ends: Vec<_> = [0, 15, 30, 45, 60].map(|s| tally.failed(start + seconds(s), 1)).into();
        assert_eq!(ends, [None; 5], "the first is out of the window by then");
        let end = start + seconds(674);
        assert_eq!(tally.failed(start + seconds(74), 1), Some(end), "15, 30, 45, 60, 74");
        assert_eq!(tally.failed(start + seconds(80), 1), None, "a lock is told once and not made longer");
        assert_eq!(tally.locked_until(end - Duration::from_nanos(1), &1), Some(end));
        tally.succeeded(&1);
        assert_eq!(tally.locked_until(start + seconds(100), &1), Some(end));
        assert_eq!(tally.locked_until(end, &1), None);
        assert_eq!(tally.failed(end, 1), None, "it begins anew");
        for _ in 0..3 {
            tally.failed(end, 1);
        }
        tally.succeeded(&1);
        assert_eq!(tally.failed(end, 1), None);
    }

    #[test]
    fn a_full_tally_forgets_the_unlocked_first() {
        let start = Instant::now();
        let mut tally = Tally::new(2, seconds(60), seconds(600));
        tally.failed(start, 0);
        tally.failed(start, 0);
        for key in 1..2 * MAX_TALLIED {
            tally.failed(start + seconds(1), key);
        }
        assert_eq!((tally.records.len(), tally.ages.len()), (MAX_TALLIED, MAX_TALLIED));
        assert!(tally.locked_until(start + seconds(1), &0).is_some());
        tally.failed(start + seconds(61), 1);
        assert_eq!((tally.records.len(), tally.ages.len()), (2, 2));
    }

    #[test]
    fn ipv6_sources_go_by_their_network() {
        let key = |text: &str| source_key(text.parse().unwrap()).to_string();
        assert_eq!(key("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(key("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(key("192.0.2.1"), "192.0.2.1");
    }
}
