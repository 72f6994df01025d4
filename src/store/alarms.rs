//! The alarm log and the outbox: what happened, and which upper platform has still to be told.
//!
//! In: alarms with the uplinks that must have them. Out: pages of what an uplink has not got yet, in the order it is to
//! be sent: `seq`, which grows for ever and is never given out twice.
//! Invariants: an alarm and its outbox rows are one transaction; a row leaves the outbox only with an end that says why;
//! per channel the order of `seq` is the order of arrival, but that a held alarm takes its place anew when released.
//! Ages are counted in ticks of running time, so that a clock that jumps expires nothing.
//! Not here: who must be told (`alarm`), when and how (`northbound`).

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row};

use super::{StoreError, StoreHandle};

/// Alarms in one page at most: what keeps the store's thread busy for about a millisecond.
pub const ALARM_PAGE_MAX: u32 = 512;
/// Rows a single pruning removes at most, so that nothing behind it in the queue waits long.
pub const PRUNE_MAX: u32 = 2_000;
/// Bytes of a description: longer ones come from hostile peers, and are cut.
const DESCRIPTION_MAX: usize = 1024;
/// AlarmMethod of a device alarm, the one that latches [GB/T28181-2022 A.2.5.3].
const DEVICE_ALARM: u8 = 2;

const COLUMNS: &str = "a.id, a.channel, a.device, a.priority, a.method, a.kind, a.type_param, a.device_time, \
                       a.received_at, a.sn, a.description, a.longitude, a.latitude";

/// One alarm as it stands in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct AlarmRecord {
    /// Northbound code of the channel.
    pub channel: String,
    /// Code by which its device calls itself.
    pub device: String,
    /// 1 (most urgent) to 4.
    pub priority: u8,
    /// 1 telephone, 2 device, 3 SMS, 4 GPS, 5 video, 6 fault, 7 other.
    pub method: u8,
    /// AlarmType within the method.
    pub kind: Option<u32>,
    /// EventType: 1 entering, 2 leaving an area.
    pub type_param: Option<u8>,
    /// By the device's clock, Unix milliseconds.
    pub device_time: Option<i64>,
    /// By ours, Unix milliseconds.
    pub received_at: i64,
    /// The device's SN; 0 for none.
    pub sn: u32,
    /// In words.
    pub description: Option<String>,
    /// Degrees.
    pub longitude: Option<f64>,
    /// Degrees.
    pub latitude: Option<f64>,
}

/// An alarm to be kept.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAlarm {
    /// What happened.
    pub record: AlarmRecord,
    /// Names of the uplinks that must be told.
    pub uplinks: Vec<Arc<str>>,
    /// A device alarm, this one latches its channel, or is held while it is latched.
    pub latch: bool,
}

/// How alarms are taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendRules {
    /// The same device, SN, time, method and type within so many milliseconds is the same alarm.
    pub dedup_window_ms: i64,
    /// Rows an uplink may have undone; above, its oldest give way.
    pub outbox_max: u64,
}

/// What became of a [`NewAlarm`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// Kept.
    Stored {
        /// Its number in the log.
        id: i64,
        /// It is a device alarm, and its channel is latched by it now.
        latched: bool,
        /// It waits for the reset of an earlier one.
        held: bool,
        /// Uplinks whose oldest row gave way, once for each row.
        dropped: Vec<Arc<str>>,
    },
    /// It is in the log already.
    Duplicate,
}

/// Which latches to clear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LatchReset {
    /// Of this channel; `None`: of all.
    pub channel: Option<String>,
    /// Only where the alarm that latched has this type.
    pub kind: Option<u32>,
    /// A channel that had something held is latched anew: the platform sees one device alarm after the other.
    pub relatch: bool,
}

/// A cleared latch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Of which channel.
    pub channel: String,
    /// Outbox rows that can be sent now.
    pub rows: usize,
    /// What was released latches again.
    pub latched: bool,
}

/// What an uplink has still to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxRow {
    /// Place in the order of sending.
    pub seq: i64,
    /// Attempts that failed.
    pub tries: u32,
    /// Number of the alarm in the log: the same in every attempt.
    pub alarm_id: i64,
    /// The alarm.
    pub alarm: AlarmRecord,
}

/// How a row left the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutboxEnd {
    /// The platform has said that it has the alarm.
    Delivered,
    /// The platform has accepted the message, and never sends more than that.
    Unconfirmed,
    /// The platform's subscription excludes it.
    Filtered,
    /// The channel is no longer shared with this platform.
    Unshared,
    /// The platform refused it to the end.
    Refused,
}

impl OutboxEnd {
    /// The word stored.
    pub fn as_str(self) -> &'static str {
        match self {
            OutboxEnd::Delivered => "delivered",
            OutboxEnd::Unconfirmed => "unconfirmed",
            OutboxEnd::Filtered => "filtered",
            OutboxEnd::Unshared => "unshared",
            OutboxEnd::Refused => "refused",
        }
    }
}

/// What is kept how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneRules {
    /// Ticks an undone row is kept.
    pub outbox_ticks: i64,
    /// Ticks an alarm is kept in the log.
    pub log_ticks: i64,
    /// Alarms kept in the log.
    pub log_max: i64,
}

/// What a pruning did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Undone rows given up because of their age.
    pub expired: u64,
    /// Alarms that left the log.
    pub forgotten: u64,
    /// Undone rows of each uplink, afterwards.
    pub undone: Vec<(String, u64)>,
}

impl StoreHandle {
    /// Keeps alarms with their outbox rows, in this order, all or none; returns when they are durable.
    ///
    /// # Errors
    /// Any [`StoreError`]: none of them is kept, and none may be acknowledged.
    pub async fn append_alarms(&self, alarms: Vec<NewAlarm>, rules: AppendRules) -> Result<Vec<Appended>, StoreError> {
        self.transact(move |conn| alarms.into_iter().map(|alarm| append(conn, alarm, rules)).collect()).await
    }

    /// Clears latches. What they held back can be sent, in its old order and behind everything else.
    ///
    /// # Errors
    /// As for any request.
    pub async fn reset_latches(&self, reset: LatchReset) -> Result<Vec<Released>, StoreError> {
        self.transact(move |conn| release(conn, &reset)).await
    }

    /// The latched channels, the longest latched first.
    ///
    /// # Errors
    /// As for any request.
    pub async fn latched_channels(&self) -> Result<Vec<String>, StoreError> {
        self.transact(|conn| {
            let mut rows = conn.prepare_cached("SELECT channel FROM alarm_latch ORDER BY alarm")?;
            let channels = rows.query_map([], |row| row.get(0))?;
            Ok(channels.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The first rows after `after` that `uplink` has not got yet, in the order of sending; at most `limit` and
    /// [`ALARM_PAGE_MAX`].
    ///
    /// # Errors
    /// As for any request.
    pub async fn outbox_page(&self, uplink: Arc<str>, after: i64, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        self.transact(move |conn| {
            let sql = format!(
                "SELECT {COLUMNS}, o.seq, o.tries FROM outbox o JOIN alarms a ON a.id = o.alarm
                 WHERE o.uplink = ?1 AND o.seq > ?2 AND o.state = 'open' ORDER BY o.seq LIMIT ?3"
            );
            let mut rows = conn.prepare_cached(&sql)?;
            let page = rows.query_map((&*uplink, after, limit.min(ALARM_PAGE_MAX)), |row| {
                let (alarm_id, alarm) = of_row(row)?;
                Ok(OutboxRow { seq: row.get("seq")?, tries: row.get("tries")?, alarm_id, alarm })
            })?;
            Ok(page.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Takes a row out of the outbox. Returns as soon as the request is queued: one that is lost is only sent again.
    /// `at`: Unix milliseconds.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`], [`StoreError::Closed`]. A later failure is logged.
    pub fn outbox_done(&self, seq: i64, end: OutboxEnd, at: i64) -> Result<(), StoreError> {
        self.enqueue("end of an outbox row", move |conn| {
            conn.prepare_cached("UPDATE outbox SET state = ?2, done_at = ?3 WHERE seq = ?1 AND done_at IS NULL")?
                .execute((seq, end.as_str(), at))?;
            Ok(())
        })
    }

    /// An attempt failed; the next is due at `next_try`, Unix milliseconds. Returns as soon as it is queued.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`], [`StoreError::Closed`]. A later failure is logged.
    pub fn outbox_failed(&self, seq: i64, tries: u32, next_try: i64) -> Result<(), StoreError> {
        self.enqueue("attempt of an outbox row", move |conn| {
            conn.prepare_cached("UPDATE outbox SET tries = ?2, next_try = ?3 WHERE seq = ?1 AND done_at IS NULL")?
                .execute((seq, tries, next_try))?;
            Ok(())
        })
    }

    /// How many rows each uplink has undone; none are left out but those with 0 that never had any.
    ///
    /// # Errors
    /// As for any request.
    pub async fn outbox_undone(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.transact(undone).await
    }

    /// Gives up rows that are too old and forgets alarms beyond age and number, but never one that somebody has still to
    /// be told of. At most [`PRUNE_MAX`] of each. `tick`: a tick of running time has passed; `at`: Unix milliseconds.
    ///
    /// # Errors
    /// As for any request.
    pub async fn prune_alarms(&self, rules: PruneRules, tick: bool, at: i64) -> Result<Pruned, StoreError> {
        self.transact(move |conn| prune(conn, rules, tick, at)).await
    }

    /// The newest alarms before `before` (all when `None`), newest first, with their numbers; at most `limit` and
    /// [`ALARM_PAGE_MAX`].
    ///
    /// # Errors
    /// As for any request.
    pub async fn alarm_page(&self, before: Option<i64>, limit: u32) -> Result<Vec<(i64, AlarmRecord)>, StoreError> {
        self.transact(move |conn| {
            let sql = format!("SELECT {COLUMNS} FROM alarms a WHERE a.id < ?1 ORDER BY a.id DESC LIMIT ?2");
            let mut rows = conn.prepare_cached(&sql)?;
            let page = rows.query_map((before.unwrap_or(i64::MAX), limit.min(ALARM_PAGE_MAX)), of_row)?;
            Ok(page.collect::<Result<_, _>>()?)
        })
        .await
    }
}

fn of_row(row: &Row<'_>) -> Result<(i64, AlarmRecord), rusqlite::Error> {
    let record = AlarmRecord {
        channel: row.get(1)?,
        device: row.get(2)?,
        priority: row.get(3)?,
        method: row.get(4)?,
        kind: row.get(5)?,
        type_param: row.get(6)?,
        device_time: row.get(7)?,
        received_at: row.get(8)?,
        sn: row.get(9)?,
        description: row.get(10)?,
        longitude: row.get(11)?,
        latitude: row.get(12)?,
    };
    Ok((row.get(0)?, record))
}

/// What makes two reports the same alarm; `None` where a device gave neither SN nor time, and nothing can tell.
fn dedup_key(r: &AlarmRecord) -> Option<String> {
    if r.sn == 0 && r.device_time.is_none() {
        return None;
    }
    let number = |n: Option<i64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    Some(format!("{}|{}|{}|{}|{}", r.device, r.sn, number(r.device_time), r.method, number(r.kind.map(i64::from))))
}

fn append(conn: &Connection, alarm: NewAlarm, rules: AppendRules) -> Result<Appended, StoreError> {
    let NewAlarm { record: r, uplinks, latch } = alarm;
    let key = dedup_key(&r);
    if let Some(key) = &key {
        let known = conn
            .prepare_cached("SELECT 1 FROM alarms WHERE dedup = ?1 AND abs(received_at - ?2) <= ?3 LIMIT 1")?
            .query_row((key, r.received_at, rules.dedup_window_ms), |_| Ok(()))
            .optional()?;
        if known.is_some() {
            return Ok(Appended::Duplicate);
        }
    }
    let description = r.description.map(|mut text| {
        text.truncate(text.floor_char_boundary(DESCRIPTION_MAX));
        text
    });
    conn.prepare_cached(
        "INSERT INTO alarms (channel, device, priority, method, kind, type_param, device_time, received_at, sn,
                             description, longitude, latitude, dedup)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?
    .execute((
        &r.channel,
        &r.device,
        r.priority,
        r.method,
        r.kind,
        r.type_param,
        r.device_time,
        r.received_at,
        r.sn,
        &description,
        // NaN would be stored as NULL anyway.
        r.longitude,
        r.latitude,
        &key,
    ))?;
    let id = conn.last_insert_rowid();
    let device_alarm = latch && r.method == DEVICE_ALARM;
    let latched = device_alarm
        && conn
            .prepare_cached(
                "INSERT INTO alarm_latch (channel, alarm, kind) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            )?
            .execute((&r.channel, id, r.kind))?
            == 1;
    let held = device_alarm && !latched;
    let mut dropped = Vec::new();
    for uplink in uplinks {
        conn.prepare_cached("INSERT INTO outbox (uplink, alarm, channel, state) VALUES (?1, ?2, ?3, ?4)")?
            .execute((&*uplink, id, &r.channel, if held { "held" } else { "open" }))?;
        while undone_of(conn, &uplink)? > rules.outbox_max && drop_oldest(conn, &uplink, r.received_at)? {
            dropped.push(uplink.clone());
        }
    }
    Ok(Appended::Stored { id, latched, held, dropped })
}

fn undone_of(conn: &Connection, uplink: &str) -> Result<u64, StoreError> {
    let found = conn
        .prepare_cached("SELECT undone FROM outbox_count WHERE uplink = ?1")?
        .query_row([uplink], |row| row.get::<_, i64>(0))
        .optional()?;
    Ok(found.map_or(0, |n| n.max(0) as u64))
}

/// The oldest that could be sent; else the oldest that is held.
fn drop_oldest(conn: &Connection, uplink: &str, at: i64) -> Result<bool, StoreError> {
    for state in ["open", "held"] {
        let sql = format!(
            "UPDATE outbox SET state = 'overrun', done_at = ?2 WHERE seq =
                 (SELECT seq FROM outbox WHERE uplink = ?1 AND state = '{state}' ORDER BY seq LIMIT 1)"
        );
        if conn.prepare_cached(&sql)?.execute((uplink, at))? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn release(conn: &Connection, reset: &LatchReset) -> Result<Vec<Released>, StoreError> {
    let channels: Vec<String> = conn
        .prepare_cached(
            "SELECT channel FROM alarm_latch WHERE (?1 IS NULL OR channel = ?1) AND (?2 IS NULL OR kind = ?2)
             ORDER BY alarm",
        )?
        .query_map((&reset.channel, reset.kind), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut released = Vec::with_capacity(channels.len());
    for channel in channels {
        conn.prepare_cached("DELETE FROM alarm_latch WHERE channel = ?1")?.execute([&channel])?;
        // Those that are held, whether anybody must be told of them or not.
        let held: Vec<(i64, String, i64)> = conn
            .prepare_cached("SELECT seq, uplink, alarm FROM outbox WHERE channel = ?1 AND state = 'held' ORDER BY seq")?
            .query_map([&channel], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        for (seq, uplink, alarm) in &held {
            // A new place: who reads the outbox in order has passed the old one.
            conn.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?.execute([seq])?;
            conn.prepare_cached("INSERT INTO outbox (uplink, alarm, channel, state) VALUES (?1, ?2, ?3, 'open')")?
                .execute((uplink, alarm, &channel))?;
        }
        let latched = reset.relatch && !held.is_empty();
        if let Some((_, _, alarm)) = held.last().filter(|_| latched) {
            conn.prepare_cached(
                "INSERT INTO alarm_latch (channel, alarm, kind) SELECT channel, id, kind FROM alarms WHERE id = ?1",
            )?
            .execute([alarm])?;
        }
        released.push(Released { channel, rows: held.len(), latched });
    }
    Ok(released)
}

fn undone(conn: &Connection) -> Result<Vec<(String, u64)>, StoreError> {
    let mut rows = conn.prepare_cached("SELECT uplink, undone FROM outbox_count ORDER BY uplink")?;
    let counts = rows.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.max(0) as u64)))?;
    Ok(counts.collect::<Result<_, _>>()?)
}

fn prune(conn: &Connection, rules: PruneRules, tick: bool, at: i64) -> Result<Pruned, StoreError> {
    let newest: i64 = conn.query_row("SELECT coalesce(max(id), 0) FROM alarms", [], |row| row.get(0))?;
    if tick {
        conn.execute("INSERT INTO alarm_tick (newest) VALUES (?1)", [newest])?;
    }
    let tick: i64 = conn.query_row("SELECT coalesce(max(tick), 0) FROM alarm_tick", [], |row| row.get(0))?;
    // The newest alarm there was so many ticks ago; 0 before there were so many.
    let newest_at = |ticks: i64| -> Result<i64, StoreError> {
        let found = conn
            .prepare_cached("SELECT newest FROM alarm_tick WHERE tick <= ?1 ORDER BY tick DESC LIMIT 1")?
            .query_row([tick.saturating_sub(ticks)], |row| row.get(0))
            .optional()?;
        Ok(found.unwrap_or(0))
    };
    let stale = newest_at(rules.outbox_ticks)?;
    let mut expired = 0;
    for state in ["open", "held"] {
        let sql = format!(
            "UPDATE outbox SET state = 'expired', done_at = ?1 WHERE seq IN
                 (SELECT seq FROM outbox INDEXED BY outbox_{state} WHERE state = '{state}' AND alarm <= ?2 LIMIT ?3)"
        );
        expired += conn.prepare_cached(&sql)?.execute((at, stale, PRUNE_MAX))? as u64;
    }
    let last = newest_at(rules.log_ticks)?.max(newest.saturating_sub(rules.log_max));
    let forgotten = conn
        .prepare_cached(
            "DELETE FROM alarms WHERE id IN (SELECT id FROM alarms a WHERE id <= ?1 AND NOT EXISTS
                 (SELECT 1 FROM outbox o WHERE o.alarm = a.id AND o.done_at IS NULL) ORDER BY id LIMIT ?2)",
        )?
        .execute((last, PRUNE_MAX))? as u64;
    let longest = rules.outbox_ticks.max(rules.log_ticks);
    // One older tick stays: it says what was there when the span began.
    conn.prepare_cached("DELETE FROM alarm_tick WHERE tick < ?1")?.execute([tick.saturating_sub(longest)])?;
    Ok(Pruned { expired, forgotten, undone: undone(conn)? })
}
