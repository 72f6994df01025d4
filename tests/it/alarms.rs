//! Alarms on their way to upper platforms: by MESSAGE, by NOTIFY, before and after they have registered us.

use crate::support::*;
use menshen::alarm::{AlarmEvent, Receipt};
use menshen::app::Gateway;
use menshen::proto::gb28181::UnixMillis;
use menshen::proto::manscdp::Query;
use menshen::proto::manscdp::notify::Alarm;
use menshen::proto::manscdp::request::AlarmQuery;
use menshen::sim::platform::PlatformEvent;
use tokio::sync::broadcast::Receiver;

const NOWHERE: &str = "rtsp://127.0.0.1:9/none";
const BORN: i64 = 1_795_000_000_000;

fn event(n: usize, sn: u32, priority: u8) -> AlarmEvent {
    AlarmEvent {
        channel: id(&camera_id(n)),
        device: id(&camera_id(n)),
        priority,
        method: 5,
        kind: Some(6),
        type_param: Some(1),
        device_time: Some(UnixMillis(BORN + i64::from(sn) * 1000)),
        received_at_ms: BORN,
        description: Some(format!("翻越 {sn}")),
        longitude: None,
        latitude: None,
        sn,
    }
}

async fn submit(gateway: &Gateway, event: AlarmEvent) {
    let receipt = gateway.alarms().submit(event).await;
    assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}");
}

/// The next alarms a platform hears of: channel and words.
async fn heard(news: &mut Receiver<PlatformEvent>, count: usize) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let all = async {
        while found.len() < count {
            if let PlatformEvent::Alarm { device, alarm, .. } = news.recv().await.unwrap() {
                found.push((device.to_string(), alarm.description.unwrap_or_default()));
            }
        }
    };
    tokio::time::timeout(SOON, all).await.expect("alarms in time");
    found
}

/// Waits until nobody is owed anything.
async fn settled(gateway: &Gateway) {
    let done = async {
        while gateway.store().outbox_undone().await.unwrap().iter().any(|(_, undone)| *undone > 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, done).await.expect("the outbox is empty");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_go_by_message_to_those_who_may_see_the_channel_each_once_and_in_order() {
    let (first, second) = (platform().await, platform_of(SECOND).await);
    let (mut at_first, mut at_second) = (first.handle().news(), second.handle().news());
    let one = format!("share = [\"{}\"]", camera_id(1));
    let text = [
        base(40),
        uplink("psb", &first, ""),
        uplink("county", &second, &one),
        camera_section(1, NOWHERE, ""),
        camera_section(2, NOWHERE, ""),
    ]
    .concat();
    let gateway = gateway(&text).await;
    // Some come before anybody has registered us.
    for sn in 1..=10 {
        submit(&gateway, event(1 + (sn as usize) % 2, sn, 1)).await;
    }
    let (a, b) = (heard(&mut at_first, 10).await, heard(&mut at_second, 5).await);
    for n in 1..=2 {
        let of_camera = |heard: &[(String, String)]| -> Vec<String> {
            heard.iter().filter(|(channel, _)| *channel == camera_id(n)).map(|(_, words)| words.clone()).collect()
        };
        let all: Vec<String> = (1..=10).filter(|sn| 1 + sn % 2 == n).map(|sn| format!("翻越 {sn}")).collect();
        assert_eq!(of_camera(&a), all);
        assert_eq!(of_camera(&b), if n == 1 { all } else { Vec::new() });
    }
    settled(&gateway).await;
    submit(&gateway, event(1, 11, 1)).await;
    assert_eq!(heard(&mut at_first, 1).await[0].1, "翻越 11", "nothing came twice before it");
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_gets_what_it_asked_for_by_notify() {
    let platform = platform().await;
    let text = [base(41), uplink("psb", &platform, ""), camera_section(1, NOWHERE, "")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut news = handle.news();
    let query = Query::Alarm(AlarmQuery { start_priority: Some(1), end_priority: Some(2), ..AlarmQuery::default() });
    let us = id(LOCAL);
    let unknown = handle.subscribe(&us, &id(&camera_id(99)), query.clone(), 600, SOON).await;
    assert!(unknown.is_err(), "404");
    let mut subscription = handle.subscribe(&us, &us, query, 600, SOON).await.unwrap();
    assert_eq!(subscription.granted(), 600);
    for (sn, priority) in [(1, 2), (2, 3), (3, 1)] {
        submit(&gateway, event(1, sn, priority)).await;
    }
    for sn in [1, 3] {
        let notice = subscription.next(SOON).await.unwrap();
        assert!(notice.state.starts_with("active;expires=") && notice.event == subscription.event(), "{notice:?}");
        let incoming = notice.incoming.unwrap();
        let alarm = Alarm::read(&incoming).unwrap();
        assert_eq!((incoming.device_id, alarm.description), (id(&camera_id(1)), Some(format!("翻越 {sn}"))));
        assert_eq!((alarm.alarm_type, alarm.event_type, alarm.time.0), (Some(6), Some(1), BORN + sn * 1000));
    }
    settled(&gateway).await;
    subscription.refresh(300, SOON).await.unwrap();
    assert_eq!(subscription.granted(), 300);
    subscription.cancel(SOON).await.unwrap();
    assert!(subscription.next(SOON).await.unwrap().is_terminated());
    submit(&gateway, event(1, 4, 3)).await;
    assert_eq!(heard(&mut news, 1).await[0].1, "翻越 4", "without a subscription everything, by MESSAGE");
    // A subscription that does not take its notices is over; the alarm is not.
    let all = Query::Alarm(AlarmQuery::default());
    let broken = handle.subscribe(&us, &us, all, 600, SOON).await.unwrap();
    drop(broken);
    submit(&gateway, event(1, 5, 1)).await;
    assert_eq!(heard(&mut news, 1).await[0].1, "翻越 5");
    settled(&gateway).await;
    gateway.shutdown().await;
}

/// L10: 1,000 a second; here as fast as they can be submitted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_kept_and_forwarded() {
    let platform = platform().await;
    let cameras: String = (1..=20).map(|n| camera_section(n, NOWHERE, "")).collect();
    let gateway = gateway(&[base(42), uplink("psb", &platform, ""), cameras].concat()).await;
    registered(&platform.handle()).await;
    for sn in 0..500u32 {
        submit(&gateway, event(1 + sn as usize % 20, sn + 1, 1)).await;
    }
    settled(&gateway).await;
    gateway.shutdown().await;
}
