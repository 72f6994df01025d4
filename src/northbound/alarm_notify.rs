//! What one upper platform has still to be told of, and what comes next: the reader's side of the alarm outbox.
//! Standard: [GB/T28181-2022 9.4, 9.11.1, A.2.5.3]; a MESSAGE is over with the platform's Response, a NOTIFY with its 200.
//! In: rows read from the store, answers, time. Out: rows to send, and [`Verdict`]s to put down. Pure.
//! Invariants: one alarm of a channel under way at a time, in the order of the outbox; a row is forgotten here only with a
//! verdict or because it will be read again; nothing is given up but by [`OutboxEnd`].
//! Failures: a platform that does not answer pauses everything; one that refuses an alarm holds up that channel alone.
//! Bounds: [`MAX_IN_FLIGHT`] under way, [`WINDOW`] rows in memory, the rest stays in the store.

use crate::proto::gb28181::{DeviceId, Profile, UnixMillis, Version};
use crate::proto::manscdp::notify::Alarm;
use crate::proto::manscdp::request::AlarmQuery;
use crate::proto::sip::dialog::Dialog;
use crate::store::{AlarmRecord, OutboxEnd, OutboxRow, StoreError};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Alarms under way to one platform: enough for 1,000 a second over 5 ms, few enough for any platform.
pub const MAX_IN_FLIGHT: usize = 8;
/// Rows read ahead.
pub const WINDOW: usize = 256;
/// Below so many rows the next page is read.
const LOW: usize = 64;
/// How long the Response to a MESSAGE is waited for: after that an operator would have to telephone.
pub const RESPONSE_WAIT: Duration = Duration::from_secs(10);
/// A message whose fate nobody tells within this is taken for unanswered: the SIP layer itself gives up after 32 s
/// [RFC3261 17.1.2.2].
const ANSWER_WAIT: Duration = Duration::from_secs(40);
/// After so many attempts of one alarm that were answered 200 without a Response, this platform sends none.
const RESPONSE_TRIES: u32 = 3;
/// A platform that has refused an alarm so often, over two hours, will not take it.
const REFUSALS_MAX: u32 = 30;
/// Shortest and longest wait after a refusal, or after a platform gave no answer at all.
const WAIT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The store could not be read: it is asked again after this.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What makes an alarm delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlarmResponse {
    /// The application Response to it.
    Wait,
    /// The SIP 200 alone.
    Sip200,
}

/// [GB/T28181-2022 9.4.2]: a MESSAGE is answered twice.
pub const MESSAGE_RESPONSE: AlarmResponse = AlarmResponse::Wait;
/// [GB/T28181-2022 9.11.1]: a NOTIFY once.
pub const NOTIFY_RESPONSE: AlarmResponse = AlarmResponse::Sip200;

/// How an alarm travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carrier {
    /// In the dialog of a subscription.
    Notify {
        /// Which.
        call_id: String,
    },
    /// By itself.
    Message,
}

impl Carrier {
    fn response(&self) -> AlarmResponse {
        match self {
            Carrier::Notify { .. } => NOTIFY_RESPONSE,
            Carrier::Message => MESSAGE_RESPONSE,
        }
    }
}

/// To be put down in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The row is over.
    Done {
        /// Which.
        seq: i64,
        /// How.
        end: OutboxEnd,
    },
    /// It is sent again.
    Retry {
        /// Which.
        seq: i64,
        /// Failed attempts so far.
        tries: u32,
        /// After this.
        wait: Duration,
    },
}

/// A page to be read from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// To be handed back with the rows.
    pub generation: u64,
    /// After this one.
    pub after: i64,
    /// So many.
    pub limit: u32,
}

#[derive(Debug)]
struct Flight {
    row: OutboxRow,
    carrier: Carrier,
    /// It was answered 200, and the Response is waited for.
    accepted: bool,
    deadline: Instant,
}

/// See the file's head.
#[derive(Debug)]
pub struct AlarmQueue {
    rng: StdRng,
    waiting: VecDeque<OutboxRow>,
    flights: Vec<Flight>,
    /// Channels that are held up, until when. Their rows are passed over, and read again then.
    parked: HashMap<String, Instant>,
    paused: Option<Instant>,
    /// Pauses in a row.
    pauses: u32,
    /// The last row read.
    cursor: i64,
    /// There may be rows behind it.
    more: bool,
    reading: bool,
    generation: u64,
    /// Rows that were over while a page was being read, which may show them still.
    over: HashSet<i64>,
    /// The platform sends no Responses.
    silent: bool,
}

/// The SN an alarm has in every attempt, so that a platform can tell a repeat [GB/T28181-2022 A.2.1].
pub fn sn_of(row: &OutboxRow) -> u32 {
    ((row.alarm_id - 1).rem_euclid(0x7fff_ffff) + 1) as u32
}

impl AlarmQueue {
    /// Reads from the beginning of the outbox.
    pub fn new(rng: StdRng) -> Self {
        AlarmQueue {
            rng,
            waiting: VecDeque::new(),
            flights: Vec::new(),
            parked: HashMap::new(),
            paused: None,
            pauses: 0,
            cursor: 0,
            more: true,
            reading: false,
            generation: 0,
            over: HashSet::new(),
            silent: false,
        }
    }

    /// There is something new in the store.
    pub fn news(&mut self) {
        self.more = true;
    }

    /// The platform is there again: everything it does not have is sent at once, whatever it did before.
    pub fn restart(&mut self) {
        self.parked.clear();
        self.paused = None;
        self.pauses = 0;
        self.silent = false;
        self.rewind();
    }

    /// What was passed over is read again.
    fn rewind(&mut self) {
        self.waiting.clear();
        self.over.clear();
        self.cursor = 0;
        self.more = true;
        self.reading = false;
        self.generation += 1;
    }

    /// The next page to read, if one is wanted.
    pub fn read(&mut self, now: Instant) -> Option<Read> {
        if !self.more || self.reading || self.waiting.len() > LOW || self.is_paused(now) {
            return None;
        }
        self.reading = true;
        // What comes from now on will be told by further news.
        self.more = false;
        let limit = (WINDOW - self.waiting.len()) as u32;
        Some(Read { generation: self.generation, after: self.cursor, limit })
    }

    /// The answer to [`Self::read`].
    pub fn loaded(&mut self, now: Instant, read: Read, rows: Result<Vec<OutboxRow>, StoreError>) {
        if read.generation != self.generation {
            return;
        }
        self.reading = false;
        let over = std::mem::take(&mut self.over);
        match rows {
            Ok(rows) => {
                self.more |= rows.len() >= read.limit as usize;
                for row in rows {
                    self.cursor = row.seq;
                    let under_way = self.flights.iter().any(|f| f.row.seq == row.seq);
                    if !under_way && !over.contains(&row.seq) && !self.parked.contains_key(&row.alarm.channel) {
                        self.waiting.push_back(row);
                    }
                }
            }
            Err(_) => {
                self.more = true;
                self.paused = Some(now + READ_AGAIN);
            }
        }
    }

    /// The next row that may go now. It is under way with [`Self::sent`], over with [`Self::give_up`], or to be read
    /// again after [`Self::not_sent`].
    pub fn take(&mut self, now: Instant) -> Option<OutboxRow> {
        if self.is_paused(now) || self.flights.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let busy = |row: &OutboxRow| self.flights.iter().any(|f| f.row.alarm.channel == row.alarm.channel);
        let at = self.waiting.iter().position(|row| !busy(row))?;
        self.waiting.remove(at)
    }

    /// It went out.
    pub fn sent(&mut self, now: Instant, row: OutboxRow, carrier: Carrier) {
        self.flights.push(Flight { row, carrier, accepted: false, deadline: now + ANSWER_WAIT });
    }

    /// It is not to be sent at all.
    pub fn give_up(&mut self, row: &OutboxRow, end: OutboxEnd) -> Verdict {
        self.finished(row.seq);
        Verdict::Done { seq: row.seq, end }
    }

    /// It could not be sent.
    pub fn not_sent(&mut self, now: Instant, row: &OutboxRow) -> Verdict {
        self.pause(now, row.seq, row.tries)
    }

    /// The Call-ID of the subscription this row went out in.
    pub fn subscription_of(&self, seq: i64) -> Option<&str> {
        match &self.flights.iter().find(|f| f.row.seq == seq)?.carrier {
            Carrier::Notify { call_id } => Some(call_id),
            Carrier::Message => None,
        }
    }

    /// The final SIP answer; `None`: there was none.
    pub fn answered(&mut self, now: Instant, seq: i64, status: Option<u16>) -> Option<Verdict> {
        let at = self.flights.iter().position(|f| f.row.seq == seq)?;
        match status {
            Some(200..300) => {
                self.pauses = 0;
                let flight = &mut self.flights[at];
                match flight.carrier.response() {
                    AlarmResponse::Sip200 => Some(self.done(at, OutboxEnd::Delivered)),
                    AlarmResponse::Wait if self.silent => Some(self.done(at, OutboxEnd::Unconfirmed)),
                    AlarmResponse::Wait => {
                        (flight.accepted, flight.deadline) = (true, now + RESPONSE_WAIT);
                        None
                    }
                }
            }
            None | Some(408) => {
                let row = self.flights.swap_remove(at).row;
                Some(self.pause(now, row.seq, row.tries))
            }
            Some(_) if matches!(self.flights[at].carrier, Carrier::Notify { .. }) => {
                // The subscription is over, not the alarm: it goes another way, at once.
                let row = self.flights.swap_remove(at).row;
                self.rewind();
                Some(Verdict::Retry { seq: row.seq, tries: row.tries, wait: Duration::ZERO })
            }
            Some(_) => Some(self.refused(now, at)),
        }
    }

    /// The platform's Response to the alarm with this SN.
    pub fn response(&mut self, now: Instant, sn: u32, ok: bool) -> Option<Verdict> {
        self.silent = false;
        let at = self.flights.iter().position(|f| sn_of(&f.row) == sn && f.carrier == Carrier::Message)?;
        self.pauses = 0;
        Some(if ok { self.done(at, OutboxEnd::Delivered) } else { self.refused(now, at) })
    }

    /// What time alone decides. A row that is done by it was [`OutboxEnd::Unconfirmed`] too often: from then on the 200
    /// is enough, until a Response comes or the platform registers us anew.
    pub fn timeout(&mut self, now: Instant) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        while let Some(at) = self.flights.iter().position(|f| now >= f.deadline) {
            if !self.flights[at].accepted {
                let row = self.flights.swap_remove(at).row;
                verdicts.push(self.pause(now, row.seq, row.tries));
            } else if self.flights[at].row.tries + 1 >= RESPONSE_TRIES {
                self.silent = true;
                verdicts.push(self.done(at, OutboxEnd::Unconfirmed));
            } else {
                let row = self.flights.swap_remove(at).row;
                verdicts.push(self.park(now, row));
            }
        }
        if self.paused.is_some_and(|t| now >= t) {
            self.paused = None;
        }
        let parked = self.parked.len();
        self.parked.retain(|_, until| now < *until);
        if self.parked.len() < parked {
            self.rewind();
        }
        verdicts
    }

    /// When [`Self::timeout`] has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        let deadlines = self.flights.iter().map(|f| f.deadline);
        deadlines.chain(self.parked.values().copied()).chain(self.paused).min()
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.paused.is_some_and(|t| now < t)
    }

    fn finished(&mut self, seq: i64) {
        if self.reading {
            self.over.insert(seq);
        }
    }

    fn done(&mut self, at: usize, end: OutboxEnd) -> Verdict {
        let seq = self.flights.swap_remove(at).row.seq;
        self.finished(seq);
        Verdict::Done { seq, end }
    }

    fn refused(&mut self, now: Instant, at: usize) -> Verdict {
        if self.flights[at].row.tries + 1 >= REFUSALS_MAX {
            return self.done(at, OutboxEnd::Refused);
        }
        let row = self.flights.swap_remove(at).row;
        self.park(now, row)
    }

    /// This channel waits; its rows are read again then, so that their order stays.
    fn park(&mut self, now: Instant, row: OutboxRow) -> Verdict {
        let wait = self.delay(row.tries);
        self.finished(row.seq);
        self.waiting.retain(|other| other.alarm.channel != row.alarm.channel);
        self.parked.insert(row.alarm.channel, now + wait);
        Verdict::Retry { seq: row.seq, tries: row.tries + 1, wait }
    }

    /// Everything waits: nobody answers.
    fn pause(&mut self, now: Instant, seq: i64, tries: u32) -> Verdict {
        let wait = match self.paused {
            // One of several that were under way together.
            Some(until) if now < until => until - now,
            _ => {
                let wait = self.delay(self.pauses);
                self.pauses += 1;
                self.paused = Some(now + wait);
                wait
            }
        };
        self.rewind();
        Verdict::Retry { seq, tries, wait }
    }

    fn delay(&mut self, failures: u32) -> Duration {
        let wait = WAIT.0.saturating_mul(1 << failures.min(10)).min(WAIT.1);
        wait.mul_f64(1.0 + self.rng.random_range(-0.2..=0.2))
    }
}

/// The body's content, as this platform's edition knows it.
pub fn alarm_of(record: &AlarmRecord, profile: Profile) -> Alarm {
    // Types 1 to 12 of a video alarm are old, 13 (picture covered) is of 2022.
    let kind = record.kind.filter(|kind| record.method != 5 || *kind <= 12 || profile.version() >= Version::V2022);
    Alarm {
        priority: record.priority,
        method: record.method,
        time: time_of(record),
        description: record.description.clone(),
        longitude: record.longitude,
        latitude: record.latitude,
        alarm_type: kind,
        event_type: record.type_param.filter(|_| kind.is_some()),
    }
}

fn time_of(record: &AlarmRecord) -> UnixMillis {
    UnixMillis(record.device_time.unwrap_or(record.received_at))
}

/// Whether a subscription asks for this alarm.
pub fn matches(query: &AlarmQuery, record: &AlarmRecord) -> bool {
    let time = time_of(record);
    query.start_priority.is_none_or(|p| record.priority >= p)
        && query.end_priority.is_none_or(|p| record.priority <= p)
        && (query.methods.is_empty() || query.methods.contains(&record.method))
        && query.alarm_type.is_none_or(|kind| record.kind == Some(kind))
        && query.start.is_none_or(|t| time >= t)
        && query.end.is_none_or(|t| time <= t)
}

/// A subscription to alarms.
#[derive(Debug)]
pub struct AlarmSubscription {
    /// Its dialog.
    pub dialog: Dialog,
    /// The Event header, echoed verbatim.
    pub event: String,
    /// Whose alarms.
    pub device_id: DeviceId,
    /// Which of them.
    pub query: AlarmQuery,
    /// When it runs out.
    pub expires_at: Instant,
}

#[cfg(test)]
mod tests;
