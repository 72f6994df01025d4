//! SIP timers as data: their names, their lengths, and one ordered set of deadlines for all transactions.
//!
//! Standard: [RFC3261 17.1.1.2, 17.1.2.2, 17.2.1, 17.2.2, table 4], [RFC6026 8.7] (L, M).
//! In: arm and disarm calls with `now`. Out: the next deadline, and what is due.
//! Invariants: a transaction never runs more than one repeating and one ending timer, so it has at most one entry in
//! the set of deadlines; every operation is O(log n) in the number of transactions.
//! Not here: what a timer does when it fires (`transaction`).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The timers of RFC 3261 table 4 and RFC 6026, by their letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// Repeats an INVITE over UDP: T1, doubling. [RFC3261 17.1.1.2]
    A,
    /// Ends an INVITE nobody answered: 64·T1. [RFC3261 17.1.1.2]
    B,
    /// Ends a call that only rings: 3 minutes since the last 101..=199; then the INVITE is cancelled. [RFC3261 16.6]
    C,
    /// Absorbs repeated 300..=699 of an INVITE: at least 32 s over UDP. [RFC3261 17.1.1.2]
    D,
    /// Repeats a request over UDP: T1, doubling up to T2. [RFC3261 17.1.2.2]
    E,
    /// Ends a request nobody answered: 64·T1. [RFC3261 17.1.2.2]
    F,
    /// Repeats our 300..=699 to an INVITE over UDP, and our 2xx over every transport: T1, doubling up to T2.
    /// [RFC3261 17.2.1, 13.3.1.4]
    G,
    /// Ends the wait for the ACK of our 300..=699: 64·T1. [RFC3261 17.2.1]
    H,
    /// Absorbs repeated ACKs: T4 over UDP. [RFC3261 17.2.1]
    I,
    /// Absorbs repeats of a request we have answered: 64·T1 over UDP. [RFC3261 17.2.2]
    J,
    /// Absorbs repeated final responses: T4 over UDP. [RFC3261 17.1.2.2]
    K,
    /// Ends an INVITE we accepted: 64·T1. [RFC6026 8.7]
    L,
    /// Ends an INVITE that was accepted by the peer: 64·T1. [RFC6026 8.7]
    M,
    /// Not of the RFC: a request our own user has left without a final response. Keeps the table bounded.
    Unanswered,
}

/// Timer C: how long a peer may ring. [RFC3261 16.6] wants more than three minutes.
pub const TIMER_C: Duration = Duration::from_secs(181);

/// The least value of timer D over UDP. [RFC3261 17.1.1.2]
const TIMER_D_MIN: Duration = Duration::from_secs(32);

/// The three times all timers are made of. [RFC3261 17.1.1.1]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Estimate of the round trip; 500 ms.
    pub t1: Duration,
    /// Longest interval between repeats of anything but an INVITE; 4 s.
    pub t2: Duration,
    /// Longest time a message stays in the network; 5 s.
    pub t4: Duration,
}

impl Timing {
    /// 64·T1: the life of an unanswered transaction (B, F, H, J, L, M).
    pub fn life(&self) -> Duration {
        self.t1.saturating_mul(64)
    }
    /// Timer D over UDP.
    pub fn d(&self) -> Duration {
        self.life().max(TIMER_D_MIN)
    }
    /// The interval after `previous`: doubled, at most T2 (E, G).
    pub fn after(&self, previous: Duration) -> Duration {
        previous.saturating_mul(2).min(self.t2)
    }
}

/// The timers of one transaction: at most one that repeats a message (A, E, G) and one that ends the state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Alarms {
    repeat: Option<(Instant, Timer)>,
    end: Option<(Instant, Timer)>,
}

impl Alarms {
    /// Arms the repeating timer, in place of the one that ran.
    pub fn repeat_at(&mut self, at: Instant, timer: Timer) {
        self.repeat = Some((at, timer));
    }
    /// Arms the timer that ends the state, in place of the one that ran.
    pub fn end_at(&mut self, at: Instant, timer: Timer) {
        self.end = Some((at, timer));
    }
    /// Stops repeating.
    pub fn stop_repeat(&mut self) {
        self.repeat = None;
    }
    /// The nearest deadline.
    pub fn next(&self) -> Option<Instant> {
        match (self.repeat, self.end) {
            (Some((r, _)), Some((e, _))) => Some(r.min(e)),
            (Some((at, _)), None) | (None, Some((at, _))) => Some(at),
            (None, None) => None,
        }
    }
    /// Takes a timer that is due at `now`; at the same moment the end goes before a repeat, which would be in vain.
    pub fn take_due(&mut self, now: Instant) -> Option<Timer> {
        if self.end.is_some_and(|(at, _)| at <= now) {
            self.repeat = None;
            return self.end.take().map(|(_, t)| t);
        }
        if self.repeat.is_some_and(|(at, _)| at <= now) {
            return self.repeat.take().map(|(_, t)| t);
        }
        None
    }
}

/// All deadlines in order; one per owner `K`.
#[derive(Debug)]
pub struct Deadlines<K: Copy + Ord> {
    set: BTreeSet<(Instant, K)>,
}

impl<K: Copy + Ord> Default for Deadlines<K> {
    fn default() -> Self {
        Self { set: BTreeSet::new() }
    }
}

impl<K: Copy + Ord> Deadlines<K> {
    /// Moves the deadline of `key` from `entered` (what this call left there last time) to `to`.
    pub fn shift(&mut self, key: K, entered: &mut Option<Instant>, to: Option<Instant>) {
        if *entered == to {
            return;
        }
        if let Some(at) = *entered {
            self.set.remove(&(at, key));
        }
        if let Some(at) = to {
            self.set.insert((at, key));
        }
        *entered = to;
    }
    /// The nearest deadline of all.
    pub fn first(&self) -> Option<Instant> {
        self.set.first().map(|(at, _)| *at)
    }
    /// The owner of the nearest deadline when that is due at `now`; the entry stays until it is shifted.
    pub fn due(&self, now: Instant) -> Option<K> {
        self.set.first().filter(|(at, _)| *at <= now).map(|(_, key)| *key)
    }
    /// How many owners have a deadline.
    pub fn len(&self) -> usize {
        self.set.len()
    }
    /// True when nothing is armed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a base for virtual time")]
mod tests {
    use super::*;

    #[test]
    fn the_end_goes_before_a_repeat_of_the_same_moment() {
        let now = Instant::now();
        let mut alarms = Alarms::default();
        alarms.repeat_at(now, Timer::E);
        alarms.end_at(now, Timer::F);
        assert_eq!(alarms.take_due(now), Some(Timer::F));
        assert_eq!(alarms.take_due(now), None, "the repeat was in vain");
    }

    #[test]
    fn deadlines_keep_one_entry_per_owner_in_order() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut deadlines = Deadlines::default();
        let (mut a, mut b) = (None, None);
        deadlines.shift('a', &mut a, Some(at(20)));
        deadlines.shift('b', &mut b, Some(at(10)));
        deadlines.shift('a', &mut a, Some(at(5)));
        assert_eq!((deadlines.len(), deadlines.first()), (2, Some(at(5))));
        assert_eq!(deadlines.due(at(4)), None);
        assert_eq!(deadlines.due(at(5)), Some('a'));
        deadlines.shift('a', &mut a, None);
        assert_eq!(deadlines.due(at(10)), Some('b'));
        deadlines.shift('b', &mut b, None);
        assert!(deadlines.is_empty());
    }

    #[test]
    fn intervals_double_up_to_t2() {
        let timing = Timing { t1: Duration::from_millis(500), t2: Duration::from_secs(4), t4: Duration::from_secs(5) };
        let mut interval = timing.t1;
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(interval.as_millis());
            interval = timing.after(interval);
        }
        assert_eq!(seen, [500, 1000, 2000, 4000, 4000]);
        assert_eq!(timing.life(), Duration::from_secs(32));
    }
}
