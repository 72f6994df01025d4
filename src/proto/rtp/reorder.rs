//! Puts received packets in order.
//!
//! Standard: [RFC3550 A.1] for what is a restart; the window is this gateway's own: 64 packets or 200 ms.
//! In: packets as they arrive, with their time. Out: packets in order, each with how many are missing before it.
//! Invariants: at most `WINDOW` packets are held, none longer than `WAIT` once time is told; a packet is given out
//! once; order never goes back; no allocation after `new`.
//! Not here: counting loss for reports (see `sequence`).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::sequence::{MAX_DROPOUT, MAX_MISORDER};

/// Most packets held: what wireless links put out of order, and two key frames' worth at low rates.
pub const WINDOW: usize = 64;
/// Longest a missing packet is waited for.
pub const WAIT: Duration = Duration::from_millis(200);

/// What became of a pushed packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// Held, or ready to pull.
    Accepted,
    /// Seen before; dropped.
    Duplicate,
    /// Its place was already given up; dropped.
    Late,
    /// Far off; kept aside until the next packet confirms it.
    Suspect,
    /// Nothing was pulled for `WINDOW` packets; dropped.
    Full,
}

/// A packet in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulled<T> {
    /// What was pushed.
    pub item: T,
    /// Packets given up just before this one.
    pub lost: u32,
    /// The sender's numbering began anew with this one.
    pub restarted: bool,
}

/// What the window has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReorderCounters {
    /// Packets given out.
    pub delivered: u64,
    /// Packets given up.
    pub lost: u64,
    /// Packets dropped because they had been seen.
    pub duplicates: u64,
    /// Packets dropped because their place had been given up.
    pub late: u64,
    /// Packets that came after a newer one and were put right.
    pub reordered: u64,
    /// Times the numbering began anew.
    pub restarts: u64,
    /// Packets far off that nothing confirmed.
    pub strays: u64,
    /// Packets dropped because nobody pulled.
    pub overflows: u64,
}

#[derive(Debug, Clone)]
struct Held<T> {
    /// Extended sequence number.
    number: u64,
    arrived: Instant,
    item: T,
}

/// The window. Pull until `None` after every push.
#[derive(Debug, Clone)]
pub struct Reorder<T> {
    held: VecDeque<Held<T>>,
    /// The number due next; 0 before the first packet.
    next: u64,
    /// The highest number taken in.
    highest: u64,
    /// Bit n: number `next - 1 - n` was given out.
    delivered: u128,
    /// Numbers from here on belong to a new numbering.
    restart_at: Option<u64>,
    suspect: Option<(u16, Instant, T)>,
    counters: ReorderCounters,
}

impl<T> Default for Reorder<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Reorder<T> {
    /// An empty window.
    #[must_use]
    pub fn new() -> Self {
        Self {
            held: VecDeque::with_capacity(WINDOW + 2),
            next: 0,
            highest: 0,
            delivered: 0,
            restart_at: None,
            suspect: None,
            counters: ReorderCounters::default(),
        }
    }

    /// The counters now.
    #[must_use]
    pub fn counters(&self) -> ReorderCounters {
        self.counters
    }

    /// Lets a packet through that is due just now while nothing is held: as `push` and `pull` would, without holding it.
    /// False: push it.
    pub fn pass(&mut self, sequence: u16) -> bool {
        if self.next == 0 || !self.held.is_empty() || self.suspect.is_some() || sequence != self.next as u16 {
            return false;
        }
        self.highest = self.next;
        self.delivered = self.delivered << 1 | 1;
        self.next += 1;
        self.counters.delivered += 1;
        true
    }

    /// Takes a packet in.
    pub fn push(&mut self, sequence: u16, now: Instant, item: T) -> Pushed {
        if self.next == 0 {
            // far enough from zero that no step back can reach it
            self.next = 1 << 32 | u64::from(sequence);
            self.highest = self.next;
            return self.insert(self.next, now, item);
        }
        let step = i64::from(sequence.wrapping_sub(self.highest as u16) as i16);
        let number = self.highest.wrapping_add_signed(step);
        let behind = self.next as i64 - number as i64;
        if step > MAX_DROPOUT || behind > MAX_MISORDER {
            return self.suspect(sequence, now, item);
        }
        if self.suspect.take().is_some() {
            self.counters.strays += 1;
        }
        if behind > 0 {
            let seen = self.delivered >> (behind - 1) & 1 == 1;
            let (counter, pushed) = if seen {
                (&mut self.counters.duplicates, Pushed::Duplicate)
            } else {
                (&mut self.counters.late, Pushed::Late)
            };
            *counter += 1;
            return pushed;
        }
        self.insert(number, now, item)
    }

    fn suspect(&mut self, sequence: u16, now: Instant, item: T) -> Pushed {
        match self.suspect.take() {
            Some((before, arrived, first)) if before == sequence.wrapping_sub(1) => {
                // the new numbering goes behind everything held, on the first number with the same low bits
                let base = self.highest.max(self.next) + 1;
                let number = base + u64::from(before.wrapping_sub(base as u16));
                self.restart_at = Some(number);
                self.counters.restarts += 1;
                if self.insert(number, arrived, first) == Pushed::Full {
                    self.restart_at = None;
                    return Pushed::Full;
                }
                self.insert(number + 1, now, item)
            }
            other => {
                self.counters.strays += u64::from(other.is_some());
                self.suspect = Some((sequence, now, item));
                Pushed::Suspect
            }
        }
    }

    fn insert(&mut self, number: u64, arrived: Instant, item: T) -> Pushed {
        if self.held.len() >= WINDOW {
            self.counters.overflows += 1;
            return Pushed::Full;
        }
        let place = self.held.iter().rposition(|h| h.number <= number).map_or(0, |before| before + 1);
        if place > 0 && self.held[place - 1].number == number {
            self.counters.duplicates += 1;
            return Pushed::Duplicate;
        }
        // a packet that slips in before others waits no longer than they do
        let arrived = self.held.get(place).map_or(arrived, |after| after.arrived.min(arrived));
        self.counters.reordered += u64::from(number < self.highest);
        self.highest = self.highest.max(number);
        self.held.insert(place, Held { number, arrived, item });
        Pushed::Accepted
    }

    /// Gives out the next packet in order, or the one after a gap when the gap is given up.
    pub fn pull(&mut self, now: Instant) -> Option<Pulled<T>> {
        let front = self.held.front()?;
        let (gap, restarting) = (front.number - self.next, self.restart_at.is_some());
        let give_up = restarting || self.held.len() >= WINDOW || now >= front.arrived + WAIT;
        if gap > 0 && !give_up {
            return None;
        }
        let restarted = self.restart_at.is_some_and(|at| front.number >= at);
        let lost = if restarted { 0 } else { gap as u32 };
        if restarted {
            self.restart_at = None;
        }
        let Held { number, item, .. } = self.held.pop_front()?;
        self.delivered = self.delivered.checked_shl(gap.min(u64::from(u32::MAX)) as u32 + 1).unwrap_or(0) | 1;
        self.next = number + 1;
        self.counters.lost += u64::from(lost);
        self.counters.delivered += 1;
        Some(Pulled { item, lost, restarted })
    }

    /// When to pull again although nothing arrives.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.held.front().map(|front| front.arrived + WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of time")]
    fn start() -> Instant {
        Instant::now()
    }

    fn drain(window: &mut Reorder<u16>, now: Instant) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| window.pull(now)).map(|p| (p.item, p.lost)).collect()
    }

    #[test]
    fn order_is_restored_and_duplicates_and_late_packets_dropped() {
        let (mut w, t) = (Reorder::new(), start());
        assert_eq!(w.push(65_534, t, 65_534), Pushed::Accepted);
        assert_eq!(drain(&mut w, t), [(65_534, 0)]);
        w.push(0, t, 0);
        assert_eq!(drain(&mut w, t), [], "65535 is waited for");
        assert_eq!(w.push(0, t, 0), Pushed::Duplicate);
        w.push(65_535, t, 65_535);
        assert_eq!(drain(&mut w, t), [(65_535, 0), (0, 0)]);
        assert_eq!(w.push(65_535, t, 65_535), Pushed::Duplicate);
        w.push(2, t, 2);
        assert_eq!(w.next_timeout(), Some(t + WAIT));
        assert_eq!(drain(&mut w, t + WAIT), [(2, 1)]);
        assert_eq!(w.push(1, t, 1), Pushed::Late);
        assert_eq!(drain(&mut w, t + WAIT), []);
        let c = w.counters();
        assert_eq!((c.delivered, c.lost, c.duplicates, c.late, c.reordered), (4, 1, 2, 1, 1));
    }

    #[test]
    fn a_packet_that_is_due_passes_as_if_pushed_and_pulled() {
        let (mut w, t) = (Reorder::new(), start());
        assert!(!w.pass(65_535), "the first one is pushed");
        w.push(65_535, t, 65_535);
        assert_eq!(drain(&mut w, t), [(65_535, 0)]);
        assert!(w.pass(0) && w.pass(1) && !w.pass(1) && !w.pass(3));
        assert_eq!(w.push(0, t, 0), Pushed::Duplicate);
        w.push(3, t, 3);
        assert!(!w.pass(2), "others wait behind it");
        w.push(2, t, 2);
        assert_eq!(drain(&mut w, t), [(2, 0), (3, 0)]);
        assert!(w.pass(4));
        let c = w.counters();
        assert_eq!((c.delivered, c.lost, c.duplicates, c.reordered), (6, 0, 1, 1));
    }

    #[test]
    fn a_full_window_gives_up_the_gap() {
        let (mut w, t) = (Reorder::new(), start());
        w.push(0, t, 0);
        drain(&mut w, t);
        for s in 2..2 + WINDOW as u16 - 1 {
            w.push(s, t, s);
            assert_eq!(drain(&mut w, t), []);
        }
        w.push(100, t, 100);
        let out = drain(&mut w, t);
        assert_eq!((out.len(), out[0]), (WINDOW - 1, (2, 1)), "100 waits for its own gap");
        assert_eq!(drain(&mut w, t + WAIT), [(100, 35)]);
    }

    #[test]
    fn nobody_pulls() {
        let (mut w, t) = (Reorder::new(), start());
        for s in 0..WINDOW as u16 {
            assert_eq!(w.push(s, t, s), Pushed::Accepted);
        }
        assert_eq!(w.push(64, t, 64), Pushed::Full);
        assert_eq!(drain(&mut w, t).len(), WINDOW);
        assert_eq!(w.counters().overflows, 1);
    }

    #[test]
    fn a_restart_is_confirmed_and_flushes_what_was_held() {
        let (mut w, t) = (Reorder::new(), start());
        for s in [500, 502] {
            w.push(s, t, s);
        }
        assert_eq!(w.push(40_000, t, 40_000), Pushed::Suspect);
        assert_eq!(w.push(40_001, t, 40_001), Pushed::Accepted);
        let out: Vec<_> = std::iter::from_fn(|| w.pull(t)).map(|p| (p.item, p.lost, p.restarted)).collect();
        assert_eq!(out, [(500, 0, false), (502, 1, false), (40_000, 0, true), (40_001, 0, false)]);
        // back by a few hundred is a restart too, not a second of silence
        assert_eq!(w.push(39_500, t, 39_500), Pushed::Suspect);
        w.push(39_501, t, 39_501);
        assert_eq!(drain(&mut w, t), [(39_500, 0), (39_501, 0)]);
        assert_eq!(w.push(7, t, 7), Pushed::Suspect);
        w.push(39_502, t, 39_502);
        assert_eq!(drain(&mut w, t), [(39_502, 0)]);
        assert_eq!((w.counters().restarts, w.counters().strays), (2, 1));
    }

    proptest! {
        #[test]
        fn any_disorder_within_the_window_is_put_right(first: u16, delays in proptest::collection::vec(0usize..60, 1..200),
            twice: u8)
        {
            let mut order: Vec<u16> = (0..delays.len() as u16).collect();
            order[1..].sort_by_key(|s| usize::from(*s) + delays[usize::from(*s)]);
            let (mut w, t) = (Reorder::new(), start());
            let mut out = Vec::new();
            for s in order {
                w.push(first.wrapping_add(s), t, s);
                if s % 16 == u16::from(twice % 16) {
                    w.push(first.wrapping_add(s), t, s);
                }
                out.extend(drain(&mut w, t));
            }
            prop_assert_eq!(out, (0..delays.len() as u16).map(|s| (s, 0)).collect::<Vec<_>>());
        }

        #[test]
        fn whatever_comes_order_and_bounds_hold(sequences in proptest::collection::vec(any::<u16>(), 0..400)) {
            let (mut w, t) = (Reorder::new(), start());
            let mut out = 0;
            for s in &sequences {
                w.push(s % 300, t, *s);
                out += drain(&mut w, t).len();
                prop_assert!(w.held.len() <= WINDOW);
            }
            out += drain(&mut w, t + WAIT).len();
            let c = w.counters();
            let kept_aside = usize::from(w.suspect.is_some());
            let dropped = (c.duplicates + c.late + c.strays + c.overflows) as usize;
            prop_assert_eq!(out + dropped + kept_aside, sequences.len());
        }
    }
}
