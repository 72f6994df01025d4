//! Putting together an answer that comes in several messages: catalogue, recordings, alarms.
//! Standard: [GB/T28181-2022 annex M]; it has neither an end marker nor a time limit.
//! In: chunks of one answer (the owner sorts messages by command, SN and DeviceID) and the time. Out: `Progress`, when
//! to look again, and the `Outcome`.
//! Invariants: items in the order they first came, each id once, the latest version; bounded in items, bytes and time;
//! a chunk never takes away what another brought.
//! Deviations lived with: SumNum missing, 0, too small, too large, changing; Num wrong; messages lost, repeated, out of
//! order, late. Each is named in the outcome's policies.
//! Not here: asking again, reading bodies, duplicates of a SIP transaction.

use super::catalog::CatalogItem;
use super::notify::Alarm;
use super::policy::{CatalogPolicy, Policies};
use crate::proto::gb28181::{DeviceId, UnixMillis};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What tells the items of a list apart.
pub trait Keyed: PartialEq {
    /// The id.
    type Key: Ord;

    /// The id of this item.
    fn key(&self) -> Self::Key;
}

impl Keyed for CatalogItem {
    type Key = DeviceId;

    fn key(&self) -> DeviceId {
        self.device_id
    }
}

/// Alarms of one device: a device has no two of the same kind at one time.
impl Keyed for Alarm {
    type Key = (UnixMillis, u8, Option<u32>, Option<u8>);

    fn key(&self) -> Self::Key {
        (self.time, self.method, self.alarm_type, self.event_type)
    }
}

/// How long and how much an answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssemblyLimits {
    /// From the query to the first message.
    pub first: Duration,
    /// From one message to the next.
    pub idle: Duration,
    /// From the query to the end.
    pub overall: Duration,
    /// Kept open after SumNum was reached, for the rest of a list that was counted wrong.
    pub settle: Duration,
    /// Most items.
    pub max_items: usize,
    /// Most octets of all bodies.
    pub max_bytes: usize,
}

impl Default for AssemblyLimits {
    fn default() -> Self {
        Self {
            // large platforms gather their list first; other upper platforms wait as long
            first: Duration::from_secs(120),
            // over UDP a lost MESSAGE comes again after 0.5, 1.5, 3.5, 7.5, 11.5 s
            idle: Duration::from_secs(15),
            // 20,000 items one a message at 30 ms each
            overall: Duration::from_secs(600),
            settle: Duration::from_secs(1),
            // twice what the standard has in one message; a district has fewer cameras
            max_items: 20_000,
            // 20,000 items of 1.6 KB
            max_bytes: 32 << 20,
        }
    }
}

/// One message of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk<T> {
    /// SumNum.
    pub sum_num: Option<u32>,
    /// Num of the list.
    pub num: Option<u32>,
    /// The items.
    pub items: Vec<T>,
    /// Items that could not be read: they count, but are not there.
    pub dropped: usize,
    /// Length of the body.
    pub bytes: usize,
    /// What was tolerated in reading it.
    pub policies: Policies,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More is due.
    Waiting,
    /// As many as SumNum says are here: finish now, or at the next timeout for the sake of those that count wrong.
    Counted,
    /// A limit is reached: nothing more is taken.
    Full,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// As many as SumNum says, or more.
    Complete,
    /// Something, and no SumNum to hold against it.
    Uncounted,
    /// Fewer than SumNum says.
    Short,
    /// No message at all.
    Nothing,
    /// More than the limits allow.
    Full,
}

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome<T> {
    /// The items, in the order they first came.
    pub items: Vec<T>,
    /// How it ended.
    pub ending: Ending,
    /// The SumNum believed: the largest that was said, unless it was 0 and items came.
    pub expected: Option<u32>,
    /// Items that count towards it: those kept, those replaced under the same id, those that could not be read.
    pub counted: usize,
    /// Items that could not be read, or were above a limit.
    pub dropped: usize,
    /// Messages.
    pub chunks: usize,
    /// From the query to the end.
    pub took: Duration,
    /// What was tolerated, in reading and here.
    pub policies: Policies,
}

impl<T> Outcome<T> {
    /// True if all came that was promised.
    pub fn is_complete(&self) -> bool {
        self.ending == Ending::Complete
    }
}

struct Held<T> {
    item: T,
    /// The chunk it last came in.
    chunk: usize,
}

/// One answer in the making.
pub struct Assembly<T: Keyed> {
    limits: AssemblyLimits,
    began: Instant,
    last: Option<Instant>,
    counted_at: Option<Instant>,
    held: Vec<Held<T>>,
    index: BTreeMap<T::Key, usize>,
    sum_num: Option<u32>,
    counted: usize,
    dropped: usize,
    bytes: usize,
    chunks: usize,
    full: bool,
    policies: Policies,
}

impl<T: Keyed> Assembly<T> {
    /// For a query sent at `now`.
    pub fn new(limits: AssemblyLimits, now: Instant) -> Self {
        Self {
            limits,
            began: now,
            last: None,
            counted_at: None,
            held: Vec::new(),
            index: BTreeMap::new(),
            sum_num: None,
            counted: 0,
            dropped: 0,
            bytes: 0,
            chunks: 0,
            full: false,
            policies: Policies::default(),
        }
    }

    /// Takes a message. Late ones are taken as long as the owner keeps this.
    pub fn push(&mut self, now: Instant, chunk: Chunk<T>) -> Progress {
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
        self.chunks = self.chunks.saturating_add(1);
        self.policies.add(&chunk.policies);
        self.policies.note_if(self.counted_at.is_some(), CatalogPolicy::TrailingChunk);
        self.bytes = self.bytes.saturating_add(chunk.bytes);
        if self.full || self.bytes > self.limits.max_bytes {
            self.full = true;
            self.drop_above_limit(chunk.items.len() + chunk.dropped);
            return Progress::Full;
        }
        let listed = chunk.items.len() + chunk.dropped;
        let num_differs = chunk.num.is_some_and(|num| usize::try_from(num) != Ok(listed));
        self.policies.note_if(num_differs, CatalogPolicy::NumDiffers);
        match chunk.sum_num {
            None => self.policies.note(CatalogPolicy::MissingSumNum),
            Some(sum) => {
                self.policies.note_if(self.sum_num.is_some_and(|old| old != sum), CatalogPolicy::SumNumDiffers);
                self.sum_num = self.sum_num.max(Some(sum));
            }
        }
        self.counted = self.counted.saturating_add(chunk.dropped);
        self.dropped = self.dropped.saturating_add(chunk.dropped);
        for item in chunk.items {
            self.take(item);
        }
        if self.full {
            return Progress::Full;
        }
        if self.is_counted() {
            self.counted_at.get_or_insert(now);
            return Progress::Counted;
        }
        // a larger SumNum came later
        self.counted_at = None;
        Progress::Waiting
    }

    fn take(&mut self, item: T) {
        let key = item.key();
        let Some(held) = self.index.get(&key).copied().and_then(|at| self.held.get_mut(at)) else {
            if self.held.len() >= self.limits.max_items {
                self.full = true;
                self.drop_above_limit(1);
            } else {
                self.index.insert(key, self.held.len());
                self.held.push(Held { item, chunk: self.chunks });
                self.counted = self.counted.saturating_add(1);
            }
            return;
        };
        // One message does not repeat itself: the sender counts both. Another message with the same item is a
        // repetition unless the item is different, which two devices with one id are.
        if held.chunk != self.chunks && held.item == item {
            self.policies.note(CatalogPolicy::RepeatedItem);
        } else {
            *held = Held { item, chunk: self.chunks };
            self.counted = self.counted.saturating_add(1);
            self.policies.note(CatalogPolicy::DuplicateId);
        }
    }

    fn drop_above_limit(&mut self, items: usize) {
        self.dropped = self.dropped.saturating_add(items);
        self.policies.note_many(CatalogPolicy::OverLimit, items.max(1));
    }

    /// The SumNum that means something: 0 with items does not.
    fn expected(&self) -> Option<u32> {
        self.sum_num.filter(|sum| *sum > 0 || self.counted == 0)
    }

    fn is_counted(&self) -> bool {
        self.expected().is_some_and(|sum| usize::try_from(sum).is_ok_and(|sum| self.counted >= sum))
    }

    /// When to finish if nothing else comes.
    pub fn next_timeout(&self) -> Instant {
        let after = |from: Instant, wait: Duration| from.checked_add(wait);
        let overall = after(self.began, self.limits.overall);
        let quiet = match (self.full, self.counted_at, self.last) {
            (true, _, last) => last,
            (false, Some(_), last) => last.and_then(|at| after(at, self.limits.settle)),
            (false, None, Some(last)) => after(last, self.limits.idle),
            (false, None, None) => after(self.began, self.limits.first),
        };
        // a limit beyond what an instant can say is none; were both, the answer would never end
        overall.into_iter().chain(quiet).min().unwrap_or(self.began)
    }

    /// True if it is time to finish.
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.next_timeout()
    }

    /// Items held so far.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Ends it with what is there.
    pub fn finish(self, now: Instant) -> Outcome<T> {
        let expected = self.expected();
        let counted = self.is_counted();
        let mut policies = self.policies;
        let zero = self.sum_num == Some(0) && expected.is_none();
        policies.note_if(zero, CatalogPolicy::ZeroSumNum);
        let more = expected.is_some_and(|sum| self.counted > usize::try_from(sum).unwrap_or(usize::MAX));
        policies.note_if(more, CatalogPolicy::SumNumTooSmall);
        let ending = match expected {
            _ if self.full => Ending::Full,
            _ if self.chunks == 0 => Ending::Nothing,
            None => Ending::Uncounted,
            Some(_) if counted => Ending::Complete,
            Some(_) => Ending::Short,
        };
        policies.note_if(ending == Ending::Short, CatalogPolicy::SumNumNotReached);
        Outcome {
            items: self.held.into_iter().map(|held| held.item).collect(),
            ending,
            expected,
            counted: self.counted,
            dropped: self.dropped,
            chunks: self.chunks,
            took: now.saturating_duration_since(self.began),
            policies,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CatalogPolicy::*;
    use proptest::prelude::*;

    /// An id and a version of the item.
    type Plain = (u32, u32);

    impl Keyed for Plain {
        type Key = u32;

        fn key(&self) -> u32 {
            self.0
        }
    }

    #[allow(clippy::disallowed_methods, reason = "virtual time needs some instant to begin at")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn chunk(sum_num: Option<u32>, ids: &[u32]) -> Chunk<Plain> {
        let items: Vec<Plain> = ids.iter().map(|id| (*id, 0)).collect();
        let num = Some(items.len() as u32);
        Chunk { sum_num, num, items, dropped: 0, bytes: 100, policies: Policies::default() }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    struct Run {
        start: Instant,
        now: Instant,
        assembly: Assembly<Plain>,
    }

    impl Run {
        fn new() -> Self {
            Self::with(AssemblyLimits::default())
        }

        fn with(limits: AssemblyLimits) -> Self {
            let start = origin();
            Run { start, now: start, assembly: Assembly::new(limits, start) }
        }

        fn push(&mut self, chunk: Chunk<Plain>) -> Progress {
            self.now += Duration::from_millis(100);
            self.assembly.push(self.now, chunk)
        }

        /// Waits for the timeout; the outcome, its ids, and the policies.
        fn end(self) -> (Outcome<Plain>, Vec<u32>, Vec<CatalogPolicy>) {
            let at = self.assembly.next_timeout();
            assert!(self.assembly.is_due(at) && at >= self.start);
            let outcome = self.assembly.finish(at);
            let ids = outcome.items.iter().map(|i| i.0).collect();
            let policies = outcome.policies.iter().map(|(p, _)| p).collect();
            (outcome, ids, policies)
        }
    }

    #[test]
    fn a_sound_answer() {
        let mut run = Run::new();
        assert_eq!(run.assembly.next_timeout() - run.start, secs(120));
        assert_eq!(run.push(chunk(Some(3), &[5, 4])), Progress::Waiting);
        assert_eq!(run.assembly.next_timeout() - run.now, secs(15));
        assert_eq!(run.push(chunk(Some(3), &[6])), Progress::Counted);
        assert_eq!(run.assembly.next_timeout() - run.now, secs(1));
        assert_eq!((run.assembly.len(), run.assembly.is_empty()), (3, false));
        let (outcome, ids, policies) = run.end();
        assert_eq!(
            (outcome.ending, outcome.expected, outcome.counted, outcome.chunks),
            (Ending::Complete, Some(3), 3, 2)
        );
        assert!(outcome.is_complete() && outcome.took == Duration::from_millis(1200));
        assert_eq!((ids, policies), (vec![5, 4, 6], vec![]));
    }

    #[test]
    fn an_empty_list_and_no_answer() {
        let mut run = Run::new();
        let empty = Chunk { num: None, ..chunk(Some(0), &[]) };
        assert_eq!(run.push(empty), Progress::Counted);
        let (outcome, ids, policies) = run.end();
        assert_eq!((outcome.ending, outcome.expected, ids, policies), (Ending::Complete, Some(0), vec![], vec![]));
        let (outcome, ..) = Run::new().end();
        assert_eq!((outcome.ending, outcome.expected, outcome.took), (Ending::Nothing, None, secs(120)));
    }

    #[test]
    fn wrong_counts() {
        // (SumNum and ids of each chunk), ending, expected, ids, policies
        type Case<'a> = (&'a [(Option<u32>, &'a [u32])], Ending, Option<u32>, &'a [u32], &'a [CatalogPolicy]);
        let cases: [Case<'_>; 10] = [
            (&[(None, &[1]), (None, &[2])], Ending::Uncounted, None, &[1, 2], &[MissingSumNum]),
            (&[(Some(0), &[1]), (Some(0), &[2])], Ending::Uncounted, None, &[1, 2], &[ZeroSumNum]),
            (&[(Some(9), &[1, 2])], Ending::Short, Some(9), &[1, 2], &[SumNumNotReached]),
            (&[(Some(1), &[1, 2])], Ending::Complete, Some(1), &[1, 2], &[SumNumTooSmall]),
            // SumNum counts each message
            (
                &[(Some(1), &[1]), (Some(1), &[2]), (Some(1), &[3])],
                Ending::Complete,
                Some(1),
                &[1, 2, 3],
                &[SumNumTooSmall, TrailingChunk],
            ),
            (
                &[(Some(1), &[1]), (Some(3), &[2, 3])],
                Ending::Complete,
                Some(3),
                &[1, 2, 3],
                &[SumNumDiffers, TrailingChunk],
            ),
            (&[(Some(3), &[1]), (Some(2), &[2, 3])], Ending::Complete, Some(3), &[1, 2, 3], &[SumNumDiffers]),
            (&[(Some(3), &[1]), (None, &[2, 3])], Ending::Complete, Some(3), &[1, 2, 3], &[MissingSumNum]),
            (&[(Some(1_000_000_000), &[1])], Ending::Short, Some(1_000_000_000), &[1], &[SumNumNotReached]),
            (&[(Some(0), &[]), (Some(1), &[1])], Ending::Complete, Some(1), &[1], &[SumNumDiffers, TrailingChunk]),
        ];
        for (chunks, ending, expected, ids, policies) in cases {
            let mut run = Run::new();
            for (sum, ids) in chunks {
                run.push(chunk(*sum, ids));
            }
            let (outcome, got, noted) = run.end();
            assert_eq!(
                (outcome.ending, outcome.expected, outcome.is_complete()),
                (ending, expected, ending == Ending::Complete),
                "{chunks:?}"
            );
            assert_eq!((got.as_slice(), noted.as_slice()), (ids, policies), "{chunks:?}");
        }
        let mut run = Run::new();
        run.push(Chunk { num: Some(7), ..chunk(Some(1), &[1]) });
        assert_eq!(run.end().2, [NumDiffers]);
    }

    #[test]
    fn repetition_and_duplicates() {
        // a message twice does not count twice
        let mut run = Run::new();
        assert_eq!(run.push(chunk(Some(3), &[1, 2])), Progress::Waiting);
        assert_eq!(run.push(chunk(Some(3), &[1, 2])), Progress::Waiting);
        assert_eq!(run.push(chunk(Some(3), &[3])), Progress::Counted);
        let (outcome, ids, policies) = run.end();
        assert_eq!((outcome.counted, ids, policies), (3, vec![1, 2, 3], vec![RepeatedItem]));
        // two channels with one id in one message do
        let mut run = Run::new();
        assert_eq!(run.push(chunk(Some(3), &[1, 1, 2])), Progress::Counted);
        assert_eq!(run.end().2, [DuplicateId]);
        // and in two, if they are different: the later one stays, where the first stood
        let mut run = Run::new();
        run.push(chunk(Some(3), &[1, 2]));
        assert_eq!(run.push(Chunk { items: vec![(1, 7)], ..chunk(Some(3), &[0]) }), Progress::Counted);
        let (outcome, ..) = run.end();
        assert_eq!(outcome.items, [(1, 7), (2, 0)]);
        // what could not be read counts
        let mut run = Run::new();
        assert_eq!(run.push(Chunk { dropped: 2, num: Some(3), ..chunk(Some(3), &[1]) }), Progress::Counted);
        let (outcome, _, policies) = run.end();
        assert_eq!((outcome.dropped, policies), (2, vec![]));
    }

    #[test]
    fn limits() {
        let mut run = Run::with(AssemblyLimits { max_items: 3, ..AssemblyLimits::default() });
        assert_eq!(run.push(chunk(Some(9), &[1, 2])), Progress::Waiting);
        assert_eq!(run.push(chunk(Some(9), &[1, 3, 4, 5])), Progress::Full);
        assert_eq!(run.push(chunk(Some(9), &[6])), Progress::Full);
        assert!(run.assembly.is_due(run.now), "there is nothing to wait for");
        let (outcome, ids, _) = run.end();
        assert_eq!((outcome.ending, ids, outcome.dropped), (Ending::Full, vec![1, 2, 3], 3));
        assert_eq!(outcome.policies.count(OverLimit), 3);
        let mut run = Run::with(AssemblyLimits { max_bytes: 150, ..AssemblyLimits::default() });
        assert_eq!(run.push(chunk(None, &[1])), Progress::Waiting);
        assert_eq!(run.push(chunk(None, &[2])), Progress::Full);
        assert_eq!(run.end().1, [1]);
        // empty messages keep it open only so long
        let mut run = Run::new();
        while !run.assembly.is_due(run.now) {
            run.push(chunk(Some(1), &[]));
        }
        assert_eq!(run.now - run.start, secs(600));
        assert_eq!(run.end().0.ending, Ending::Short);
        // limits nobody can wait for
        let forever =
            AssemblyLimits { first: Duration::MAX, idle: Duration::MAX, overall: secs(5), ..AssemblyLimits::default() };
        assert_eq!(Run::with(forever).end().0.took, secs(5));
    }

    #[test]
    fn catalogues_and_alarms_have_ids() {
        let id = DeviceId::parse("34020000001320000001").unwrap();
        assert_eq!(CatalogItem::new(id, "a").key(), id);
        let alarm = Alarm {
            priority: 1,
            method: 5,
            time: UnixMillis::from_secs(1),
            description: None,
            longitude: None,
            latitude: None,
            alarm_type: Some(2),
            event_type: None,
        };
        assert_ne!(alarm.key(), Alarm { alarm_type: Some(6), ..alarm.clone() }.key());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Whatever the order, the repeats and the losses: all that came is there once, and it is complete if and only
        /// if nothing is missing.
        #[test]
        fn loss_repetition_and_disorder(count in 1u32..60, size in 1usize..9, order in proptest::collection::vec(any::<prop::sample::Index>(), 0..80)) {
            let ids: Vec<u32> = (0..count).collect();
            let chunks: Vec<&[u32]> = ids.chunks(size).collect();
            let mut run = Run::new();
            let mut came = std::collections::BTreeSet::<u32>::new();
            for at in order {
                let ids = chunks[at.index(chunks.len())];
                let progress = run.push(chunk(Some(count), ids));
                came.extend(ids);
                prop_assert_eq!(progress == Progress::Counted, came.len() == ids_len(count));
            }
            let (outcome, mut got, _) = run.end();
            got.sort_unstable();
            prop_assert_eq!(got, came.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(outcome.is_complete(), came.len() == ids_len(count));
            prop_assert_eq!(outcome.counted, came.len());
        }
    }

    fn ids_len(count: u32) -> usize {
        count as usize
    }
}
