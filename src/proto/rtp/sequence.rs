//! What a receiver counts: extended sequence numbers, loss, duplicates, interarrival jitter.
//!
//! Standard: [RFC3550 A.1, A.3, A.8].
//! In: every packet as it arrives, with its time. Out: counters, and the fields of a report block.
//! Invariants: a packet is counted once; a jump larger than `MAX_DROPOUT` is believed only when the next packet
//! confirms it, and is then a restart, not a loss.
//! Not here: putting packets in order (see `reorder`).

use std::time::Instant;

/// Largest step forward that is loss and not a restart [RFC3550 A.1].
pub const MAX_DROPOUT: i64 = 3000;
/// Largest step back that is disorder and not a restart: what the window of seen packets covers.
pub const MAX_MISORDER: i64 = 127;

/// How a packet stands to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// Newer than all before.
    Newest,
    /// Older, but not seen before.
    Disordered,
    /// Seen before.
    Duplicate,
    /// Numbering began anew.
    Restarted,
    /// Far off; believed if the next packet follows it.
    Suspect,
}

/// Counters of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SequenceStats {
    /// Packets received, each once.
    pub received: u64,
    /// Packets that should have come and have not; disorder that mends itself is taken back.
    pub lost: u64,
    /// Packets received again.
    pub duplicates: u64,
    /// Packets that came after a newer one.
    pub disordered: u64,
    /// Times the numbering began anew.
    pub restarts: u64,
    /// Interarrival jitter in clock ticks.
    pub jitter: u32,
    /// Highest sequence number with its cycle count above it.
    pub highest: u32,
}

/// Follows one source's sequence numbers.
#[derive(Debug, Clone)]
pub struct Sequence {
    clock_rate: u32,
    /// First and highest extended number of the present numbering; the first may sink below zero by disorder.
    span: Option<(i64, i64)>,
    /// Bit n: the packet n below the highest was seen.
    seen: u128,
    suspect: Option<u16>,
    expected_before: u64,
    stats: SequenceStats,
    jitter_x16: u32,
    epoch: Option<Instant>,
    transit: Option<u32>,
    reported: (u64, u64),
}

impl Sequence {
    /// A tracker for a clock of `clock_rate` ticks a second.
    #[must_use]
    pub fn new(clock_rate: u32) -> Self {
        Self {
            clock_rate,
            span: None,
            seen: 0,
            suspect: None,
            expected_before: 0,
            stats: SequenceStats::default(),
            jitter_x16: 0,
            epoch: None,
            transit: None,
            reported: (0, 0),
        }
    }

    /// Counts one packet.
    pub fn observe(&mut self, sequence: u16, timestamp: u32, now: Instant) -> Observed {
        let observed = self.place(sequence);
        match observed {
            Observed::Duplicate => self.stats.duplicates += 1,
            Observed::Suspect => {}
            Observed::Newest | Observed::Disordered | Observed::Restarted => {
                self.stats.received += 1;
                if observed == Observed::Restarted {
                    self.stats.restarts += 1;
                    self.transit = None;
                }
                self.time(timestamp, now);
            }
        }
        self.stats.disordered += u64::from(observed == Observed::Disordered);
        observed
    }

    fn place(&mut self, sequence: u16) -> Observed {
        let Some((first, highest)) = self.span else {
            self.begin(sequence);
            return Observed::Newest;
        };
        let step = i64::from(sequence.wrapping_sub(highest as u16) as i16);
        if !(-MAX_MISORDER..=MAX_DROPOUT).contains(&step) {
            if self.suspect == Some(sequence.wrapping_sub(1)) {
                self.expected_before += (highest - first + 1) as u64;
                self.begin(sequence.wrapping_sub(1));
                // the suspect was not counted when it came
                self.stats.received += 1;
                self.span = self.span.map(|(first, highest)| (first, highest + 1));
                self.seen = 0b11;
                return Observed::Restarted;
            }
            self.suspect = Some(sequence);
            return Observed::Suspect;
        }
        self.suspect = None;
        if step > 0 {
            self.seen = self.seen.checked_shl(step as u32).unwrap_or(0) | 1;
            self.span = Some((first, highest + step));
            return Observed::Newest;
        }
        let bit = 1u128 << -step;
        if self.seen & bit != 0 {
            return Observed::Duplicate;
        }
        self.seen |= bit;
        self.span = Some((first.min(highest + step), highest));
        Observed::Disordered
    }

    fn begin(&mut self, sequence: u16) {
        self.span = Some((sequence.into(), sequence.into()));
        self.seen = 1;
        self.suspect = None;
    }

    /// Jitter [RFC3550 A.8].
    fn time(&mut self, timestamp: u32, now: Instant) {
        let epoch = *self.epoch.get_or_insert(now);
        let elapsed = now.saturating_duration_since(epoch);
        let arrival = (elapsed.as_nanos() * u128::from(self.clock_rate) / 1_000_000_000) as u32;
        let transit = arrival.wrapping_sub(timestamp);
        if let Some(before) = self.transit {
            let difference = (transit.wrapping_sub(before) as i32).unsigned_abs().min(u32::MAX >> 5);
            self.jitter_x16 = (self.jitter_x16 + difference).saturating_sub((self.jitter_x16 + 8) >> 4);
        }
        self.transit = Some(transit);
    }

    fn expected(&self) -> u64 {
        self.expected_before + self.span.map_or(0, |(first, highest)| (highest - first + 1) as u64)
    }

    /// The counters now.
    #[must_use]
    pub fn stats(&self) -> SequenceStats {
        SequenceStats {
            lost: self.expected().saturating_sub(self.stats.received),
            jitter: self.jitter_x16 >> 4,
            highest: self.span.map_or(0, |(_, highest)| highest as u32),
            ..self.stats
        }
    }

    /// The share of packets lost since the last call, in 1/256, for a report block [RFC3550 A.3].
    pub fn take_fraction_lost(&mut self) -> u8 {
        let (expected, received) = (self.expected(), self.stats.received);
        let (expected_new, received_new) = (expected - self.reported.0, received - self.reported.1);
        self.reported = (expected, received);
        let lost = expected_new.saturating_sub(received_new);
        (lost * 256).checked_div(expected_new).unwrap_or(0).min(255) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of time")]
    fn start() -> Instant {
        Instant::now()
    }

    fn run(sequences: impl IntoIterator<Item = u16>) -> (Sequence, Vec<Observed>) {
        let (mut tracker, now) = (Sequence::new(90_000), start());
        let observed = sequences.into_iter().map(|s| tracker.observe(s, 0, now)).collect();
        (tracker, observed)
    }

    #[test]
    fn loss_disorder_and_duplicates_over_the_wrap() {
        let (tracker, observed) = run([65_533, 65_535, 65_534, 65_535, 2, 1]);
        use Observed::{Disordered, Duplicate, Newest};
        assert_eq!(observed, [Newest, Newest, Disordered, Duplicate, Newest, Disordered]);
        let stats = tracker.stats();
        assert_eq!((stats.received, stats.lost, stats.duplicates, stats.disordered), (5, 1, 1, 2));
        assert_eq!(stats.highest, 65_538);
    }

    #[test]
    fn a_restart_needs_two_packets_and_is_no_loss() {
        let (tracker, observed) = run([10, 11, 40_000, 12, 50_000, 50_001, 50_002]);
        use Observed::{Newest, Restarted, Suspect};
        assert_eq!(observed, [Newest, Newest, Suspect, Newest, Suspect, Restarted, Newest]);
        let stats = tracker.stats();
        assert_eq!((stats.received, stats.lost, stats.restarts), (6, 0, 1));
    }

    #[test]
    fn disorder_before_the_first() {
        let (tracker, _) = run([0, 65_535]);
        assert_eq!((tracker.stats().received, tracker.stats().lost), (2, 0));
    }

    #[test]
    fn fraction_is_of_the_interval() {
        let (mut tracker, _) = run([0, 1, 2, 3]);
        assert_eq!(tracker.take_fraction_lost(), 0);
        let now = start();
        tracker.observe(7, 0, now);
        assert_eq!(tracker.take_fraction_lost(), 192);
        assert_eq!(tracker.take_fraction_lost(), 0);
    }

    #[test]
    fn jitter_of_even_arrivals_is_zero_and_grows_with_unevenness() {
        let (mut even, mut uneven, t0) = (Sequence::new(90_000), Sequence::new(90_000), start());
        for i in 0..200u64 {
            let at = t0 + Duration::from_millis(40 * i);
            even.observe(i as u16, (3600 * i) as u32, at);
            uneven.observe(i as u16, (3600 * i) as u32, at + Duration::from_millis(i % 2 * 10));
        }
        assert_eq!(even.stats().jitter, 0);
        assert!((850..=900).contains(&uneven.stats().jitter), "10 ms are 900 ticks: {}", uneven.stats().jitter);
    }

    proptest! {
        #[test]
        fn lost_is_what_was_left_out(first: u16, kept in proptest::collection::vec(any::<bool>(), 1..300)) {
            let sent: Vec<u16> = std::iter::once(&true).chain(&kept).chain([&true]).enumerate()
                .filter(|(_, keep)| **keep).map(|(i, _)| first.wrapping_add(i as u16)).collect();
            let (tracker, _) = run(sent.iter().copied());
            prop_assert_eq!(tracker.stats().received, sent.len() as u64);
            prop_assert_eq!(tracker.stats().lost, (kept.len() + 2 - sent.len()) as u64);
        }
    }
}
