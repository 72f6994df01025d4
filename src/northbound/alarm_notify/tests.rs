//! Tests of the reader's side of the outbox: alone, and with service and store crashing at every step.

use super::*;
use crate::alarm::{AlarmConfig, AlarmDeps, AlarmEvent, AlarmInbox, AlarmReset, Alarms, Receipt};
use crate::catalog::{Directory, DirectoryHandle, Share, ViewSpec};
use crate::clock::WallClock;
use crate::metrics::Metrics;
use crate::store::{Location, StoreConfig, StoreHandle};
use proptest::prelude::*;
use rand::SeedableRng;
use std::path::Path;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const MS: Duration = Duration::from_millis(1);

#[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
fn start() -> Instant {
    Instant::now()
}

fn row(seq: i64, channel: u32) -> OutboxRow {
    let channel = format!("4113000058134{channel:07}");
    let alarm = AlarmRecord {
        device: channel.clone(),
        channel,
        priority: 2,
        method: 5,
        kind: Some(2),
        type_param: None,
        device_time: None,
        received_at: 1_700_000_000_000,
        sn: 1,
        description: None,
        longitude: None,
        latitude: None,
    };
    OutboxRow { seq, tries: 0, alarm_id: seq, alarm }
}

fn queue(now: Instant, rows: Vec<OutboxRow>) -> AlarmQueue {
    let mut queue = AlarmQueue::new(StdRng::seed_from_u64(1));
    load(&mut queue, now, rows);
    queue
}

fn load(queue: &mut AlarmQueue, now: Instant, rows: Vec<OutboxRow>) {
    let read = queue.read(now).expect("a page is wanted");
    let rows = rows.into_iter().filter(|row| row.seq > read.after).take(read.limit as usize).collect();
    queue.loaded(now, read, Ok(rows));
}

fn send_all(queue: &mut AlarmQueue, now: Instant) -> Vec<i64> {
    let mut sent = Vec::new();
    while let Some(row) = queue.take(now) {
        sent.push(row.seq);
        queue.sent(now, row, Carrier::Message);
    }
    sent
}

#[test]
fn a_message_is_over_with_the_response_and_a_notify_with_the_200() {
    let t = start();
    let mut q = queue(t, vec![row(1, 1), row(2, 2), row(3, 3)]);
    assert_eq!(send_all(&mut q, t), [1, 2, 3]);
    assert_eq!(q.answered(t, 1, Some(200)), None, "the 200 alone is not the end");
    assert_eq!(q.response(t, 1, true), Some(Verdict::Done { seq: 1, end: OutboxEnd::Delivered }));
    assert_eq!(q.response(t, 1, true), None, "repeated");
    // The Response may overtake the 200.
    assert_eq!(q.response(t, 2, true), Some(Verdict::Done { seq: 2, end: OutboxEnd::Delivered }));
    assert_eq!(q.answered(t, 2, Some(200)), None);
    q.news();
    load(&mut q, t, vec![row(4, 1)]);
    let fourth = q.take(t).unwrap();
    q.sent(t, fourth, Carrier::Notify { call_id: "a".into() });
    assert_eq!(q.subscription_of(4), Some("a"));
    assert_eq!(q.answered(t, 4, Some(200)), Some(Verdict::Done { seq: 4, end: OutboxEnd::Delivered }));
}

#[test]
fn one_of_a_channel_and_eight_in_all_are_under_way() {
    let t = start();
    let rows: Vec<_> = (0..40).map(|n| row(n + 1, (n / 2) as u32)).collect();
    let mut q = queue(t, rows);
    assert_eq!(send_all(&mut q, t), [1, 3, 5, 7, 9, 11, 13, 15]);
    q.response(t, 3, true);
    assert_eq!(send_all(&mut q, t), [4], "the next of that channel");
}

#[test]
fn a_refused_alarm_holds_up_its_channel_alone_and_comes_first_again() {
    let t = start();
    let all = || vec![row(1, 1), row(2, 1), row(3, 2)];
    let mut q = queue(t, all());
    assert_eq!(send_all(&mut q, t), [1, 3]);
    let Some(Verdict::Retry { seq: 1, tries: 1, wait }) = q.answered(t, 1, Some(404)) else { panic!() };
    assert!(wait >= WAIT.0.mul_f64(0.8) && wait <= WAIT.0.mul_f64(1.2));
    assert!(send_all(&mut q, t).is_empty(), "2 is behind 1");
    q.news();
    load(&mut q, t, vec![row(4, 1), row(5, 3)]);
    assert_eq!(send_all(&mut q, t), [5]);
    assert_eq!(q.next_timeout(), Some(t + wait));
    q.timeout(t + wait);
    load(&mut q, t + wait, [all(), vec![row(4, 1), row(5, 3)]].concat());
    assert_eq!(send_all(&mut q, t + wait), [1], "3 and 5 are still under way");
    q.response(t + wait, 1, true);
    assert_eq!(send_all(&mut q, t + wait), [2]);
    let stubborn = OutboxRow { tries: REFUSALS_MAX - 1, ..row(9, 9) };
    q.news();
    load(&mut q, t + wait, vec![stubborn]);
    assert_eq!(send_all(&mut q, t + wait), [9]);
    assert_eq!(q.response(t + wait, 9, false), Some(Verdict::Done { seq: 9, end: OutboxEnd::Refused }));
}

#[test]
fn a_platform_that_does_not_answer_pauses_everything_until_it_registers_us() {
    let t = start();
    let all = || vec![row(1, 1), row(2, 2), row(3, 2)];
    let mut q = queue(t, all());
    assert_eq!(send_all(&mut q, t), [1, 2]);
    assert!(matches!(q.answered(t, 1, None), Some(Verdict::Retry { seq: 1, tries: 0, .. })), "that is no refusal");
    assert!(matches!(q.answered(t, 2, Some(408)), Some(Verdict::Retry { seq: 2, .. })));
    assert!(q.take(t).is_none() && q.read(t).is_none());
    let first = q.next_timeout().unwrap();
    q.timeout(first);
    load(&mut q, first, all());
    assert_eq!(send_all(&mut q, first), [1, 2]);
    q.answered(first, 1, None);
    let second = q.next_timeout().unwrap();
    assert!(second - first > first - t, "longer each time");
    q.restart();
    load(&mut q, first, all());
    assert_eq!(send_all(&mut q, first), [1], "2 is still under way");
    // Whose answer is lost is not under way for ever.
    let lost = first + ANSWER_WAIT;
    assert!(matches!(q.timeout(lost)[0], Verdict::Retry { .. }));
}

#[test]
fn a_platform_without_responses_is_found_out_and_believed_its_200() {
    let t = start();
    let mut q = queue(t, vec![row(1, 1), row(2, 2)]);
    assert_eq!(send_all(&mut q, t), [1, 2]);
    q.answered(t, 1, Some(200));
    let late = t + RESPONSE_WAIT;
    assert!(q.timeout(late - MS).is_empty());
    assert!(matches!(q.timeout(late)[..], [Verdict::Retry { seq: 1, tries: 1, .. }]));
    let third = OutboxRow { tries: RESPONSE_TRIES - 1, ..row(3, 3) };
    q.news();
    load(&mut q, late, vec![third, row(4, 4), row(5, 5)]);
    let sent = send_all(&mut q, late);
    assert_eq!(sent, [3, 4, 5]);
    q.answered(late, 3, Some(200));
    let verdicts = q.timeout(late + RESPONSE_WAIT);
    assert!(verdicts.contains(&Verdict::Done { seq: 3, end: OutboxEnd::Unconfirmed }), "{verdicts:?}");
    let now = late + RESPONSE_WAIT;
    assert_eq!(q.answered(now, 4, Some(200)), Some(Verdict::Done { seq: 4, end: OutboxEnd::Unconfirmed }));
    q.response(now, 4, true);
    assert_eq!(q.answered(now, 5, Some(200)), None, "it does send them");
}

#[test]
fn a_refused_notify_goes_another_way_at_once() {
    let t = start();
    let mut q = queue(t, vec![row(1, 1)]);
    let first = q.take(t).unwrap();
    q.sent(t, first, Carrier::Notify { call_id: "a".into() });
    assert_eq!(q.answered(t, 1, Some(481)), Some(Verdict::Retry { seq: 1, tries: 0, wait: Duration::ZERO }));
    load(&mut q, t, vec![row(1, 1)]);
    assert_eq!(send_all(&mut q, t), [1]);
}

#[test]
fn what_ends_while_a_page_is_read_is_not_sent_again() {
    let t = start();
    let mut q = queue(t, vec![row(1, 1), row(2, 2)]);
    assert_eq!(send_all(&mut q, t), [1, 2]);
    q.restart();
    let read = q.read(t).unwrap();
    q.response(t, 1, true);
    q.loaded(t, read, Ok(vec![row(1, 1), row(2, 2), row(3, 3)]));
    assert_eq!(send_all(&mut q, t), [3], "1 is over, 2 is under way");
    q.news();
    let read = q.read(t).unwrap();
    q.restart();
    q.loaded(t, read, Ok(vec![row(4, 4)]));
    assert!(q.take(t).is_none(), "a page of before");
    let read = q.read(t).unwrap();
    q.loaded(t, read, Err(StoreError::Overloaded));
    assert!(q.read(t).is_none(), "not at once");
    let again = t + READ_AGAIN;
    assert_eq!(q.next_timeout(), Some(again));
    q.timeout(again);
    assert!(q.read(again).is_some());
}

#[test]
fn memory_holds_a_window_of_the_outbox() {
    let t = start();
    let all: Vec<_> = (1..=1000).map(|n| row(n, n as u32)).collect();
    let mut q = queue(t, all.clone());
    let mut delivered = Vec::new();
    while delivered.len() < 1000 {
        assert!(q.waiting.len() <= WINDOW && q.flights.len() <= MAX_IN_FLIGHT);
        for seq in send_all(&mut q, t) {
            q.response(t, seq as u32, true);
            delivered.push(seq);
        }
        if q.more && q.waiting.len() <= LOW {
            load(&mut q, t, all.clone());
        }
    }
    assert!(delivered.is_sorted());
}

#[test]
fn a_subscription_asks_for_a_part() {
    let record = AlarmRecord { device_time: Some(5_000), ..row(1, 1).alarm };
    let all = AlarmQuery::default();
    assert!(matches(&all, &record));
    let t = |ms| Some(UnixMillis(ms));
    for (query, yes) in [
        (AlarmQuery { start_priority: Some(1), end_priority: Some(2), ..all.clone() }, true),
        (AlarmQuery { start_priority: Some(3), ..all.clone() }, false),
        (AlarmQuery { end_priority: Some(1), ..all.clone() }, false),
        (AlarmQuery { methods: vec![2, 5], ..all.clone() }, true),
        (AlarmQuery { methods: vec![2], ..all.clone() }, false),
        (AlarmQuery { alarm_type: Some(6), ..all.clone() }, false),
        (AlarmQuery { start: t(5_000), end: t(5_000), ..all.clone() }, true),
        (AlarmQuery { start: t(5_001), ..all.clone() }, false),
        (AlarmQuery { end: t(4_999), ..all.clone() }, false),
    ] {
        assert_eq!(matches(&query, &record), yes, "{query:?}");
    }
}

#[test]
fn what_an_edition_does_not_know_is_not_said() {
    let covered = AlarmRecord { kind: Some(13), type_param: Some(1), ..row(1, 1).alarm };
    let of = |version| alarm_of(&covered, Profile::new(version));
    assert_eq!((of(Version::V2016).alarm_type, of(Version::V2016).event_type), (None, None));
    assert_eq!((of(Version::V2022).alarm_type, of(Version::V2022).event_type), (Some(13), Some(1)));
}

// ---- with service and store, crashing

/// Few, so that their alarms meet.
const DEVICES: usize = 2;
const LOCAL: &str = "41130000582000000001";

#[derive(Debug, Clone)]
enum Step {
    Submit {
        device: usize,
        method: u8,
    },
    Reset,
    /// The next alarm meets this fate.
    Send(Fate),
    /// The whole process ends, at this step, and comes again.
    Crash,
    /// The link alone starts anew.
    Link,
    DiskFull(bool),
    Time,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Delivered,
    /// The platform has it, its answer is lost.
    AnswerLost,
    Lost,
    Refused,
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        4 => Just(Fate::Delivered),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Refused)
    ];
    prop_oneof![
        6 => (0..DEVICES, prop_oneof![Just(2u8), Just(5u8)])
            .prop_map(|(device, method)| Step::Submit { device, method }),
        1 => Just(Step::Reset),
        6 => fate.prop_map(Step::Send),
        2 => Just(Step::Crash),
        1 => Just(Step::Link),
        1 => prop_oneof![Just(true), Just(false), Just(false)].prop_map(Step::DiskFull),
        2 => Just(Step::Time),
    ]
}

struct World {
    store: StoreHandle,
    inbox: AlarmInbox,
    tasks: JoinSet<()>,
    queue: AlarmQueue,
}

fn device(n: usize) -> DeviceId {
    DeviceId::parse(&format!("4113000058134{n:07}")).unwrap()
}

async fn directory(tasks: &mut JoinSet<()>) -> DirectoryHandle {
    use crate::catalog::{Channel, ChannelState};
    let (directory, handle) = Directory::new();
    tasks.spawn(directory.run(CancellationToken::new()));
    for n in 0..DEVICES {
        let (tx, _rx) = tokio::sync::mpsc::channel(1);
        handle
            .put(Channel {
                id: device(n).as_str().into(),
                area: None,
                parent: None,
                item: std::sync::Arc::new(crate::proto::manscdp::CatalogItem::new(device(n), "zone")),
                streams: 0,
                source: crate::media::SourceHandle::new(tx),
                state: ChannelState::unknown(),
                commands: None,
                kind: "gb28181",
            })
            .await;
    }
    handle.settled().await;
    handle
}

impl World {
    async fn open(path: &Path, latch: bool) -> World {
        let config =
            StoreConfig { location: Location::File(path.to_path_buf()), site_id: LOCAL.to_owned(), created_at: 1 };
        let store = StoreHandle::open(&config).unwrap();
        let mut tasks = JoinSet::new();
        let deps = AlarmDeps {
            store: store.clone(),
            directory: directory(&mut tasks).await,
            metrics: Metrics::new("1", "x"),
            wall: WallClock::new(),
        };
        let cfg = AlarmConfig { latch_limit: latch.then_some(Duration::from_secs(600)), ..AlarmConfig::default() };
        let (alarms, inbox) = Alarms::new(cfg, deps);
        let spec = ViewSpec {
            local_id: DeviceId::parse(LOCAL).unwrap(),
            name: String::new(),
            civil_code: String::new(),
            share: vec![Share::All],
            groups: false,
            multi_parent: false,
            version: Version::V2016,
        };
        inbox.set_audience("psb", spec);
        tasks.spawn(async move { alarms.run(CancellationToken::new()).await.unwrap() });
        World { store, inbox, tasks, queue: AlarmQueue::new(StdRng::seed_from_u64(3)) }
    }

    /// Everything in memory is gone; what the store's thread has queued may be done still, or not.
    async fn crash(mut self) {
        self.tasks.shutdown().await;
        let gone = self.store.gone();
        drop(self);
        gone.await;
    }

    fn put_down(&self, verdict: Option<Verdict>) {
        match verdict {
            Some(Verdict::Done { seq, end }) => self.store.outbox_done(seq, end, 0).unwrap(),
            Some(Verdict::Retry { seq, tries, .. }) => self.store.outbox_failed(seq, tries, 0).unwrap(),
            None => {}
        }
    }

    /// Reads and sends the next alarm, if there is one. `None`: the outbox is empty.
    async fn send(&mut self, now: Instant, fate: Fate, got: &mut Vec<(DeviceId, u8, u32)>) -> Option<()> {
        self.queue.news();
        if let Some(read) = self.queue.read(now) {
            let rows = self.store.outbox_page("psb".into(), read.after, read.limit).await;
            self.queue.loaded(now, read, rows);
        }
        let row = self.queue.take(now)?;
        let (seq, sn) = (row.seq, sn_of(&row));
        if matches!(fate, Fate::Delivered | Fate::AnswerLost) {
            got.push((DeviceId::parse(&row.alarm.channel).unwrap(), row.alarm.method, row.alarm.sn));
        }
        self.queue.sent(now, row, Carrier::Message);
        let verdict = match fate {
            Fate::Delivered => self.queue.response(now, sn, true),
            Fate::AnswerLost | Fate::Lost => self.queue.answered(now, seq, None),
            Fate::Refused => self.queue.answered(now, seq, Some(500)),
        };
        self.put_down(verdict);
        Some(())
    }

    fn submit(&self, device_number: usize, method: u8, sn: u32) -> impl Future<Output = Receipt> + Send + 'static {
        let id = device(device_number);
        self.inbox.submit(AlarmEvent {
            channel: id,
            device: id,
            priority: 1,
            method,
            kind: None,
            type_param: None,
            device_time: None,
            received_at_ms: 1_700_000_000_000,
            description: Some("x".repeat(500)),
            longitude: None,
            latitude: None,
            sn,
        })
    }
}

/// Whatever fails and crashes in whatever order: what was answered Stored reaches the platform, per device in order.
async fn run(steps: Vec<Step>, latch: bool) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("menshen.db");
    let mut world = World::open(&path, latch).await;
    let mut now = start();
    let (mut stored, mut got) = (Vec::new(), Vec::new());
    let mut sn = 0;
    let mut full = false;
    for step in steps {
        match step {
            Step::Submit { device: n, method } => {
                sn += 1;
                let submitted = world.submit(n, method, sn);
                if full {
                    // It would be tried again for seconds: the crash comes first.
                    drop(submitted);
                } else if matches!(submitted.await, Receipt::Stored { .. }) {
                    stored.push((device(n), method, sn));
                }
            }
            Step::Reset if full => {}
            Step::Reset => drop(world.inbox.reset(AlarmReset::default()).await),
            Step::Send(fate) => drop(world.send(now, fate, &mut got).await),
            Step::Crash => {
                world.crash().await;
                world = World::open(&path, latch).await;
                full = false;
            }
            Step::Link => world.queue = AlarmQueue::new(StdRng::seed_from_u64(4)),
            Step::DiskFull(on) => {
                full = on && world.store.disk_room(Some(0)).await.is_ok();
                if !full {
                    world.store.disk_room(None).await.unwrap();
                }
            }
            Step::Time => {
                now += Duration::from_secs(20);
                for verdict in world.queue.timeout(now) {
                    world.put_down(Some(verdict));
                }
            }
        }
    }
    world.crash().await;
    let mut world = World::open(&path, latch).await;
    for _ in 0..2 {
        world.inbox.reset(AlarmReset::default()).await.unwrap();
        while world.send(now, Fate::Delivered, &mut got).await.is_some() {}
    }
    world.crash().await;
    for alarm in &stored {
        assert!(got.contains(alarm), "{alarm:?} was acknowledged and is lost: {got:?}");
    }
    for n in 0..DEVICES {
        for methods in if latch { vec![vec![2], vec![5]] } else { vec![vec![2, 5]] } {
            let mut seen = HashSet::new();
            let of_device = got.iter().filter(|(id, method, _)| *id == device(n) && methods.contains(method));
            let first: Vec<u32> = of_device.map(|(_, _, sn)| *sn).filter(|sn| seen.insert(*sn)).collect();
            assert!(first.is_sorted(), "device {n}, methods {methods:?}: {first:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_was_acknowledged_is_delivered_in_order_whatever_crashes(
        steps in prop::collection::vec(step(), 10..60),
        latch in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps, latch));
    }
}
