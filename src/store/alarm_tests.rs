//! Tests of the alarm log and the outbox: order, deduplication, latches, bounds, ages, the migration.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite_migration::Migrations;

use super::*;

const BORN: i64 = 1_700_000_000_000;
const EAST: &str = "41130000581340000001";
const WEST: &str = "41130000581340000002";
const RULES: AppendRules = AppendRules { dedup_window_ms: 300_000, outbox_max: 1000 };
const KEEP: PruneRules = PruneRules { outbox_ticks: 3, log_ticks: 5, log_max: 1000 };

fn open(location: Location) -> StoreHandle {
    let config = StoreConfig { location, site_id: "41130000582000000001".to_owned(), created_at: BORN };
    StoreHandle::open(&config).unwrap()
}

fn alarm(channel: &str, sn: u32, method: u8, uplinks: &[&str]) -> NewAlarm {
    let record = AlarmRecord {
        channel: channel.to_owned(),
        device: channel.to_owned(),
        priority: 1,
        method,
        kind: None,
        type_param: None,
        device_time: Some(BORN),
        received_at: BORN,
        sn,
        description: Some("东门".to_owned()),
        longitude: Some(112.5),
        latitude: None,
    };
    NewAlarm { record, uplinks: uplinks.iter().map(|name| (*name).into()).collect(), latch: true }
}

async fn append(store: &StoreHandle, alarm: NewAlarm) -> Appended {
    store.append_alarms(vec![alarm], RULES).await.unwrap().remove(0)
}

async fn sns(store: &StoreHandle, uplink: &str) -> Vec<u32> {
    let page = store.outbox_page(uplink.into(), 0, ALARM_PAGE_MAX).await.unwrap();
    assert!(page.is_sorted_by_key(|row| row.seq));
    page.into_iter().map(|row| row.alarm.sn).collect()
}

#[tokio::test]
async fn an_alarm_is_owed_to_each_of_its_uplinks_until_it_is_done_there() {
    let store = open(Location::Memory);
    for sn in 1..=3 {
        append(&store, alarm(EAST, sn, 5, if sn == 2 { &["psb"] } else { &["psb", "county"] })).await;
    }
    assert_eq!((sns(&store, "psb").await, sns(&store, "county").await), (vec![1, 2, 3], vec![1, 3]));
    let first = store.outbox_page("psb".into(), 0, 1).await.unwrap().remove(0);
    assert_eq!(first.alarm, alarm(EAST, 1, 5, &[]).record, "it comes back as it was");
    assert_eq!(store.outbox_page("psb".into(), first.seq, 1).await.unwrap()[0].alarm.sn, 2);
    store.outbox_failed(first.seq, 4, BORN).unwrap();
    assert_eq!(store.outbox_page("psb".into(), 0, 1).await.unwrap()[0].tries, 4);
    store.outbox_done(first.seq, OutboxEnd::Delivered, BORN).unwrap();
    store.outbox_done(first.seq, OutboxEnd::Refused, BORN).unwrap();
    assert_eq!((sns(&store, "psb").await, sns(&store, "county").await), (vec![2, 3], vec![1, 3]));
    assert_eq!(store.outbox_undone().await.unwrap(), [("county".to_owned(), 2), ("psb".to_owned(), 2)]);
    let log = store.alarm_page(None, 2).await.unwrap();
    assert_eq!(log.iter().map(|(_, r)| r.sn).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(store.alarm_page(Some(log[1].0), 9).await.unwrap()[0].1.sn, 1);
}

#[tokio::test]
async fn a_repeat_is_known_whatever_else_differs_and_only_within_the_window() {
    let store = open(Location::Memory);
    append(&store, alarm(EAST, 7, 5, &["psb"])).await;
    let mut again = alarm(EAST, 7, 5, &["psb"]);
    again.record.description = None;
    again.record.received_at += RULES.dedup_window_ms;
    assert_eq!(append(&store, again.clone()).await, Appended::Duplicate);
    for other in [alarm(WEST, 7, 5, &[]), alarm(EAST, 8, 5, &[]), alarm(EAST, 7, 6, &[])] {
        assert!(matches!(append(&store, other).await, Appended::Stored { .. }));
    }
    let mut later = alarm(EAST, 7, 5, &[]);
    later.record.device_time = Some(BORN + 1000);
    assert!(matches!(append(&store, later).await, Appended::Stored { .. }));
    again.record.received_at += 1;
    assert!(matches!(append(&store, again).await, Appended::Stored { .. }), "the window is over");
    let mut nameless = alarm(EAST, 0, 5, &[]);
    nameless.record.device_time = None;
    for _ in 0..2 {
        assert!(matches!(append(&store, nameless.clone()).await, Appended::Stored { .. }), "nothing tells them apart");
    }
    let twice = store.append_alarms(vec![alarm(EAST, 70, 5, &[]), alarm(EAST, 70, 5, &[])], RULES).await.unwrap();
    assert_eq!(twice[1], Appended::Duplicate, "within one batch too");
}

#[tokio::test]
async fn a_device_alarm_holds_back_the_next_of_its_channel_until_reset() {
    let store = open(Location::Memory);
    let held = |appended| matches!(appended, Appended::Stored { held: true, .. });
    assert!(!held(append(&store, alarm(EAST, 1, 2, &["psb"])).await));
    assert!(held(append(&store, alarm(EAST, 2, 2, &["psb", "county"])).await));
    assert!(held(append(&store, alarm(EAST, 3, 2, &["psb"])).await));
    assert!(!held(append(&store, alarm(EAST, 4, 6, &["psb"])).await), "a fault is no device alarm");
    assert!(!held(append(&store, alarm(WEST, 5, 2, &["psb"])).await), "another zone");
    let relaxed = NewAlarm { latch: false, ..alarm(WEST, 6, 2, &["psb"]) };
    assert!(!held(append(&store, relaxed).await));
    assert_eq!(sns(&store, "psb").await, [1, 4, 5, 6]);
    assert_eq!(store.latched_channels().await.unwrap(), [EAST, WEST]);

    let reset = |channel: &str, kind| LatchReset { channel: Some(channel.to_owned()), kind, relatch: true };
    assert!(store.reset_latches(reset(EAST, Some(9))).await.unwrap().is_empty(), "another type");
    let released = store.reset_latches(reset(EAST, None)).await.unwrap();
    assert_eq!(released, [Released { channel: EAST.to_owned(), rows: 3, latched: true }]);
    assert_eq!(sns(&store, "psb").await, [1, 4, 5, 6, 2, 3], "behind what went before, in their own order");
    assert_eq!(sns(&store, "county").await, [2]);
    assert_eq!(store.outbox_undone().await.unwrap(), [("county".to_owned(), 1), ("psb".to_owned(), 6)]);
    assert!(held(append(&store, alarm(EAST, 7, 2, &["psb"])).await), "what was released latches anew");
    let all = LatchReset { channel: None, kind: None, relatch: false };
    assert_eq!(store.reset_latches(all).await.unwrap().len(), 2);
    assert!(store.latched_channels().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_uplink_that_owes_too_much_loses_its_oldest() {
    let store = open(Location::Memory);
    let rules = AppendRules { outbox_max: 3, ..RULES };
    let mut dropped = Vec::new();
    for sn in 1..=5 {
        let uplinks: &[&str] = if sn == 5 { &["psb", "county"] } else { &["psb"] };
        let appended = store.append_alarms(vec![alarm(EAST, sn, 5, uplinks)], rules).await.unwrap();
        let Appended::Stored { dropped: names, .. } = &appended[0] else { panic!("{appended:?}") };
        dropped.extend(names.iter().map(|name| name.to_string()));
    }
    assert_eq!(dropped, ["psb", "psb"]);
    assert_eq!((sns(&store, "psb").await, sns(&store, "county").await), (vec![3, 4, 5], vec![5]));
    assert_eq!(store.alarm_page(None, 9).await.unwrap().len(), 5, "the log keeps them");
}

#[tokio::test]
async fn ages_are_counted_in_ticks_and_what_is_owed_stays_in_the_log() {
    let store = open(Location::Memory);
    append(&store, alarm(EAST, 1, 5, &["psb"])).await;
    append(&store, alarm(EAST, 2, 5, &[])).await;
    // Times of a clock that has jumped by a year do not matter.
    let prune = |tick| store.prune_alarms(KEEP, tick, BORN + 31_536_000_000);
    for _ in 0..3 {
        assert_eq!(prune(true).await.unwrap().expired, 0);
        assert_eq!(prune(false).await.unwrap().expired, 0, "no tick, no age");
    }
    append(&store, alarm(EAST, 3, 5, &["psb"])).await;
    let pruned = prune(true).await.unwrap();
    assert_eq!((pruned.expired, pruned.forgotten, pruned.undone), (1, 0, vec![("psb".to_owned(), 1)]));
    prune(true).await.unwrap();
    assert_eq!(prune(true).await.unwrap().forgotten, 2);
    assert_eq!(sns(&store, "psb").await, [3]);
    let few = PruneRules { outbox_ticks: i64::MAX, log_max: 1, ..KEEP };
    for sn in 4..=6 {
        append(&store, alarm(EAST, sn, 5, &[])).await;
    }
    assert_eq!(store.prune_alarms(few, false, BORN).await.unwrap().forgotten, 2);
    let log = store.alarm_page(None, 9).await.unwrap();
    assert_eq!(log.iter().map(|(_, r)| r.sn).collect::<Vec<_>>(), [6, 3], "3 is owed to psb");
}

#[tokio::test]
async fn a_batch_is_all_or_nothing() {
    let store = open(Location::Memory);
    let mut bad = alarm(EAST, 2, 5, &["psb", "psb"]);
    bad.record.sn = 2;
    let batch = vec![alarm(EAST, 1, 5, &["psb"]), bad];
    assert!(store.append_alarms(batch, RULES).await.is_err(), "twice the same uplink");
    assert!(sns(&store, "psb").await.is_empty() && store.alarm_page(None, 9).await.unwrap().is_empty());
    assert!(store.outbox_undone().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_file_of_the_first_schema_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("menshen.db");
    let first = |path: &Path| {
        let mut conn = Connection::open(path).unwrap();
        Migrations::from_slice(&schema::MIGRATIONS[..1]).to_latest(&mut conn).unwrap();
        conn.execute("INSERT INTO learnt VALUES ('s', 'k', 'v', 0)", []).unwrap();
    };
    first(&path);
    let store = open(Location::File(path.clone()));
    append(&store, alarm(EAST, 1, 5, &["psb"])).await;
    store.close(Duration::from_secs(10)).await.unwrap();
    let store = open(Location::File(path));
    assert_eq!(sns(&store, "psb").await, [1]);
    assert_eq!(store.learnt("s").await.unwrap()["k"], "v");
}
