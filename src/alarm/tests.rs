//! Tests of the alarm service through its inbox: deduplication, latches, bounds, faults of the disk, kill -9.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::catalog::{Channel, ChannelState, Directory, Share, ViewSpec};
use crate::clock::WallClock;
use crate::media::SourceHandle;
use crate::metrics::Metrics;
use crate::proto::gb28181::{DeviceId, UnixMillis, Version};
use crate::proto::manscdp::CatalogItem;
use crate::store::{ALARM_PAGE_MAX, Location, StoreConfig, StoreError, StoreHandle};

const LOCAL: &str = "41130000582000000001";
const BORN: i64 = 1_700_000_000_000;
/// So many channels; the first half is in the area `gate`.
const CHANNELS: u32 = 4;

struct Bed {
    store: StoreHandle,
    inbox: AlarmInbox,
    metrics: Metrics,
    tasks: JoinSet<()>,
    /// While the service does not run.
    idle: Option<Alarms>,
}

fn id(n: u32) -> DeviceId {
    DeviceId::parse(&format!("4113000058134{n:07}")).unwrap()
}

fn spec(share: Share) -> ViewSpec {
    ViewSpec {
        local_id: DeviceId::parse(LOCAL).unwrap(),
        name: String::new(),
        civil_code: String::new(),
        share: vec![share],
        groups: false,
        multi_parent: false,
        version: Version::V2016,
    }
}

fn event(n: u32, sn: u32, method: u8) -> AlarmEvent {
    AlarmEvent {
        channel: id(n),
        device: id(n),
        priority: 1,
        method,
        kind: None,
        type_param: None,
        device_time: Some(UnixMillis(BORN)),
        received_at_ms: BORN,
        description: None,
        longitude: None,
        latitude: None,
        sn,
    }
}

impl Bed {
    async fn new(location: Location, cfg: AlarmConfig) -> Bed {
        let store = StoreHandle::open(&StoreConfig { location, site_id: LOCAL.to_owned(), created_at: BORN }).unwrap();
        let (directory, handle) = Directory::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(directory.run(CancellationToken::new()));
        for n in 1..=CHANNELS {
            let (tx, _rx) = tokio::sync::mpsc::channel(1);
            handle
                .put(Channel {
                    id: id(n).as_str().into(),
                    area: (n <= CHANNELS / 2).then(|| "gate".into()),
                    parent: None,
                    item: Arc::new(CatalogItem::new(id(n), "zone")),
                    streams: 0,
                    source: SourceHandle::new(tx),
                    state: ChannelState::unknown(),
                    commands: None,
                    kind: "gb28181",
                })
                .await;
        }
        handle.settled().await;
        let metrics = Metrics::new("1", "x");
        let deps =
            AlarmDeps { store: store.clone(), directory: handle, metrics: metrics.clone(), wall: WallClock::new() };
        let (alarms, inbox) = Alarms::new(cfg, deps);
        for (name, share) in [("psb", Share::All), ("county", Share::Area("gate".into()))] {
            metrics.add_uplink(name);
            inbox.set_audience(name, spec(share));
        }
        Bed { store, inbox, metrics, tasks, idle: Some(alarms) }
    }

    fn run(mut self) -> Bed {
        let alarms = self.idle.take().unwrap();
        self.tasks.spawn(async move { alarms.run(CancellationToken::new()).await.unwrap() });
        self
    }

    async fn owed(&self, uplink: &str) -> Vec<u32> {
        let page = self.store.outbox_page(uplink.into(), 0, ALARM_PAGE_MAX).await.unwrap();
        page.into_iter().map(|row| row.alarm.sn).collect()
    }

    fn counts(&self, line: &str) -> bool {
        let text = self.metrics.encode(false);
        text.lines().any(|l| l == line)
    }
}

async fn running() -> Bed {
    Bed::new(Location::Memory, AlarmConfig::default()).await.run()
}

fn stored(receipt: &Receipt) -> bool {
    matches!(receipt, Receipt::Stored { .. })
}

/// A paused clock jumps whenever everything waits for the store's thread: not while this runs.
async fn in_no_time<T>(work: impl Future<Output = T>) -> T {
    let (done, held) = std::sync::mpsc::channel::<()>();
    let guard = tokio::task::spawn_blocking(move || held.recv());
    let value = work.await;
    drop(done);
    let _ = guard.await;
    value
}

#[tokio::test]
async fn an_alarm_is_owed_to_those_who_may_see_its_channel() {
    let bed = running().await;
    for n in 1..=CHANNELS {
        assert!(stored(&bed.inbox.submit(event(n, n, 5)).await));
    }
    assert_eq!((bed.owed("psb").await, bed.owed("county").await), (vec![1, 2, 3, 4], vec![1, 2]));
    let own = AlarmEvent { channel: DeviceId::parse(LOCAL).unwrap(), ..event(1, 9, 6) };
    assert!(stored(&bed.inbox.submit(own).await), "an alarm of ours is for all");
    assert!(stored(&bed.inbox.submit(event(77, 10, 5)).await), "an unknown channel is in the log alone");
    bed.inbox.remove_audience("county");
    assert!(stored(&bed.inbox.submit(event(1, 11, 5)).await));
    assert_eq!((bed.owed("psb").await, bed.owed("county").await), (vec![1, 2, 3, 4, 9, 11], vec![1, 2, 9]));
    assert_eq!(bed.store.alarm_page(None, 99).await.unwrap().len(), 7);
    assert!(bed.counts(r#"menshen_alarm_outbox_pending{uplink="psb"} 6"#));
    assert!(bed.counts(r#"menshen_alarms_received_total{method="video"} 6"#));
}

#[tokio::test]
async fn links_hear_of_news_after_they_are_in_the_store() {
    let bed = running().await;
    let mut news = bed.inbox.news();
    news.mark_unchanged();
    let submitted = bed.inbox.submit(event(1, 1, 5));
    news.changed().await.unwrap();
    assert_eq!(bed.owed("psb").await, [1]);
    assert!(stored(&submitted.await));
}

#[tokio::test]
async fn a_repeated_alarm_is_acknowledged_and_not_told_twice() {
    let bed = running().await;
    let (first, again) = (bed.inbox.submit(event(1, 5, 5)), bed.inbox.submit(event(1, 5, 5)));
    assert!(stored(&first.await));
    assert_eq!(again.await, Receipt::Duplicate);
    assert_eq!(bed.inbox.submit(event(1, 5, 5)).await, Receipt::Duplicate);
    assert_eq!(bed.owed("psb").await, [5]);
    assert!(bed.counts(r#"menshen_alarm_dropped_total{reason="duplicate"} 2"#));
}

#[tokio::test(start_paused = true)]
async fn a_latch_ends_by_reset_or_by_time_and_then_it_is_not_set_again_before_a_reset() {
    let bed = in_no_time(running()).await;
    let latched = async {
        for sn in 1..=3 {
            assert!(stored(&bed.inbox.submit(event(1, sn, 2)).await));
        }
        assert_eq!(bed.owed("psb").await, [1], "the others are held");
        let of_video = AlarmReset { channel: Some(id(1)), methods: vec![5], kind: None };
        assert_eq!(bed.inbox.reset(of_video).await, Ok(0));
        let east = AlarmReset { channel: Some(id(1)), ..AlarmReset::default() };
        assert_eq!(bed.inbox.reset(east).await, Ok(1));
        assert_eq!(bed.owed("psb").await, [1, 2, 3]);
        // What was held went out and latches anew.
        assert!(stored(&bed.inbox.submit(event(1, 4, 2)).await));
        assert_eq!(bed.owed("psb").await, [1, 2, 3]);
    };
    in_no_time(latched).await;
    let mut news = bed.inbox.news();
    news.mark_unchanged();
    // Nobody resets: the clock runs.
    news.changed().await.unwrap();
    let relaxed = async {
        assert_eq!(bed.owed("psb").await, [1, 2, 3, 4]);
        for sn in 5..=6 {
            assert!(stored(&bed.inbox.submit(event(1, sn, 2)).await));
        }
        assert_eq!(bed.owed("psb").await, [1, 2, 3, 4, 5, 6], "not held any more");
        bed.inbox.reset(AlarmReset::default()).await.unwrap();
        for sn in 7..=8 {
            assert!(stored(&bed.inbox.submit(event(1, sn, 2)).await));
        }
        assert_eq!(bed.owed("psb").await, [1, 2, 3, 4, 5, 6, 7], "somebody does reset");
    };
    in_no_time(relaxed).await;
}

#[tokio::test]
async fn a_latch_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let location = || Location::File(dir.path().join("menshen.db"));
    let bed = Bed::new(location(), AlarmConfig::default()).await.run();
    assert!(stored(&bed.inbox.submit(event(1, 1, 2)).await));
    let gone = bed.store.gone();
    drop(bed);
    gone.await;
    let bed = Bed::new(location(), AlarmConfig::default()).await.run();
    assert!(stored(&bed.inbox.submit(event(1, 2, 2)).await));
    assert_eq!(bed.owed("psb").await, [1]);
    assert_eq!(bed.inbox.reset(AlarmReset::default()).await, Ok(1));
    assert_eq!(bed.owed("psb").await, [1, 2]);
    assert!(stored(&bed.inbox.submit(event(1, 3, 2)).await));
    let gone = bed.store.gone();
    drop(bed);
    gone.await;
    let bed = Bed::new(location(), AlarmConfig { latch_limit: None, ..AlarmConfig::default() }).await.run();
    assert!(stored(&bed.inbox.submit(event(1, 4, 2)).await));
    assert_eq!(bed.owed("psb").await, [1, 2, 3, 4], "without latches nothing is held, nor kept held");
}

#[tokio::test]
async fn a_full_inbox_refuses_at_once_and_takes_all_it_has() {
    let bed = Bed::new(Location::Memory, AlarmConfig::default()).await;
    let waiting: Vec<_> = (0..INBOX as u32).map(|n| bed.inbox.submit(event(n % CHANNELS + 1, n, 5))).collect();
    assert_eq!(bed.inbox.submit(event(1, 9999, 5)).await, Receipt::Refused(Refusal::Overloaded));
    assert!(bed.counts(r#"menshen_alarm_dropped_total{reason="overloaded"} 1"#));
    let bed = bed.run();
    for receipt in waiting {
        assert!(stored(&receipt.await));
    }
    let owed = bed.owed("psb").await;
    assert!(owed.len() == ALARM_PAGE_MAX as usize && owed.is_sorted(), "in the order they came");
    drop(bed.tasks);
    assert_eq!(bed.inbox.submit(event(1, 9, 5)).await, Receipt::Refused(Refusal::Stopped));
    assert_eq!(bed.inbox.reset(AlarmReset::default()).await, Err(Refusal::Stopped));
}

/// Fault 13: nothing is acknowledged while the disk is full; what comes meanwhile waits, then is refused; it goes on by
/// itself, in order.
#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_after_a_while_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::new(Location::File(dir.path().join("menshen.db")), AlarmConfig::default()).await.run();
    let long = |sn| AlarmEvent { description: Some("x".repeat(1000)), ..event(1, sn, 5) };
    bed.store.disk_room(Some(1)).await.unwrap();
    let mut sn = 0;
    let refusal = loop {
        sn += 1;
        match bed.inbox.submit(long(sn)).await {
            Receipt::Refused(refusal) => break refusal,
            receipt => assert!(stored(&receipt)),
        }
    };
    assert_eq!(refusal, Refusal::Storage(StoreError::DiskFull));
    assert_eq!(bed.owed("psb").await, (1..sn).collect::<Vec<_>>());
    let (first, second) = (bed.inbox.submit(long(100)), bed.inbox.submit(long(101)));
    bed.store.disk_room(None).await.unwrap();
    assert!(stored(&first.await) && stored(&second.await), "room came in time");
    assert_eq!(bed.owed("psb").await[sn as usize - 1..], [100, 101]);
}

#[tokio::test]
async fn the_outbox_of_an_absent_platform_is_bounded_and_counted() {
    let cfg = AlarmConfig { outbox_max: 3, ..AlarmConfig::default() };
    let bed = Bed::new(Location::Memory, cfg).await.run();
    for sn in 1..=5 {
        assert!(stored(&bed.inbox.submit(event(3, sn, 5)).await));
    }
    assert_eq!((bed.owed("psb").await, bed.owed("county").await), (vec![3, 4, 5], vec![]));
    assert!(bed.counts(r#"menshen_alarm_dropped_total{reason="overrun"} 2"#));
    assert!(bed.counts(r#"menshen_alarm_outbox_pending{uplink="psb"} 3"#));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_could_be_told_of_expires_by_running_time() {
    let cfg = AlarmConfig { outbox_age: Duration::from_secs(3 * 600), ..AlarmConfig::default() };
    let bed = Bed::new(Location::Memory, cfg).await.run();
    assert!(stored(&bed.inbox.submit(event(3, 1, 5)).await));
    // As long as it takes, by the paused clock; the store's thread is not paused.
    while !bed.owed("psb").await.is_empty() {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    in_no_time(bed.store.ping()).await.unwrap();
    assert_eq!(bed.store.alarm_page(None, 9).await.unwrap().len(), 1, "the log is kept longer");
}

// ---- kill -9

const CHILD_PATH: &str = "MENSHEN_TEST_ALARM_CHILD";
const RUNS: &str = "MENSHEN_TEST_KILL_RUNS";

/// Submits for ever and prints each alarm once it is acknowledged; only when started by the test below.
#[tokio::test]
async fn kill_child() {
    let Some(path) = std::env::var_os(CHILD_PATH) else {
        return;
    };
    let bed = Bed::new(Location::File(path.into()), AlarmConfig::default()).await.run();
    let log = bed.store.alarm_page(None, 1).await.unwrap();
    let first = log.first().map_or(0, |(id, _)| *id as u32);
    let mut devices = JoinSet::new();
    for n in 1..=CHANNELS {
        let inbox = bed.inbox.clone();
        devices.spawn(async move {
            for sn in first + 1.. {
                // Every third is a device alarm, and held after the first.
                let method = if sn % 3 == 0 { 2 } else { 5 };
                assert!(stored(&inbox.submit(event(n, sn, method)).await));
                // Straight to the descriptor: the test harness only captures the macros. The leading line end parts it
                // from what the harness prints.
                std::io::stdout().write_all(format!("\nack {n} {sn}\n").as_bytes()).unwrap();
            }
        });
    }
    devices.join_all().await;
}

/// Fault 1 and S2: after SIGKILL at any moment every acknowledged alarm is there, and owed, in order.
#[tokio::test]
async fn no_acknowledged_alarm_is_lost_by_kill_9() {
    let runs = std::env::var(RUNS).ok().and_then(|runs| runs.parse().ok()).unwrap_or(10);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("menshen.db");
    for run in 0..runs {
        let acknowledged = killed_child(&path, 1 + (run * 37) % 101);
        let bed = Bed::new(Location::File(path.clone()), AlarmConfig::default()).await.run();
        bed.inbox.reset(AlarmReset::default()).await.unwrap();
        let mut owed: HashMap<(String, bool), Vec<u32>> = HashMap::new();
        let mut after = 0;
        loop {
            let page = bed.store.outbox_page("psb".into(), after, ALARM_PAGE_MAX).await.unwrap();
            let Some(last) = page.last() else { break };
            after = last.seq;
            for row in page {
                owed.entry((row.alarm.channel, row.alarm.method == 2)).or_default().push(row.alarm.sn);
                bed.store.outbox_done(row.seq, crate::store::OutboxEnd::Delivered, BORN).unwrap();
            }
        }
        for (n, sn) in acknowledged {
            let of_channel = owed.get(&(id(n).to_string(), sn % 3 == 0));
            assert!(of_channel.is_some_and(|sns| sns.contains(&sn)), "run {run}: {n} {sn} is lost");
        }
        assert!(owed.values().all(|sns| sns.is_sorted()), "run {run}: {owed:?}");
        assert!(bed.owed("psb").await.is_empty());
        let gone = bed.store.gone();
        drop(bed);
        gone.await;
    }
}

/// What a child acknowledged until it was killed, at the `kill_after`th.
fn killed_child(path: &Path, kill_after: usize) -> Vec<(u32, u32)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["alarm::tests::kill_child", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD_PATH, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut acknowledged = Vec::new();
    for line in lines {
        let Some((n, sn)) = line.strip_prefix("ack ").and_then(|rest| rest.split_once(' ')) else { continue };
        // The last line may be cut.
        let (Ok(n), Ok(sn)) = (n.parse(), sn.parse()) else { continue };
        acknowledged.push((n, sn));
        if acknowledged.len() == kill_after {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= kill_after, "the child ended by itself");
    acknowledged
}
