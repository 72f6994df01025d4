//! GB/T 28181 devices: they register with us, their channels are shown north and played there.

use crate::support::*;
use menshen::proto::manscdp::ptz::PresetAction;
use menshen::proto::manscdp::{DeviceControl, PtzCommand, QueryKind};
use menshen::proto::mansrtsp::Scale;
use menshen::proto::sdp::{MediaTransport, SessionKind};
use menshen::proto::sip::message::Transport;
use menshen::sim::check::play_and_check;
use menshen::sim::device::{SimChannel, SimDevice, SimDeviceConfig};
use menshen::sim::platform::{InviteOptions, PlatformEvent};
use menshen::southbound::gb28181::DeviceState;
use std::time::Duration;

const NVR: &str = "41130000581180000001";
const SECRET: &str = "Device-1";

/// `[[device]]` for the recorder, with more keys.
fn device_section(more: &str) -> String {
    format!("[[device]]\nid = \"{NVR}\"\npassword = \"{SECRET}\"\n{more}\n")
}

/// A recorder with `channels` channels, not started.
fn recorder(gateway: &menshen::app::Gateway, channels: u32) -> SimDeviceConfig {
    let server = gateway.listeners()[0].local;
    SimDeviceConfig {
        channels: SimChannel::numbered(&id(NVR), channels).unwrap(),
        ..SimDeviceConfig::on_loopback(id(NVR), SECRET, id(LOCAL), server)
    }
}

/// Waits until the upper platform sees `count` channels that are ON.
async fn shown(gateway: &menshen::app::Gateway, count: usize) {
    let mut directory = gateway.directory().watch();
    let all = directory.wait_for(|d| d.channels.values().filter(|c| c.state.online == Some(true)).count() == count);
    tokio::time::timeout(SOON, all).await.expect("the channels are there").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorders_channels_are_played_over_every_transport() {
    let platform = platform().await;
    let text = [base(20), uplink("psb", &platform, ""), device_section("")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let device = SimDevice::start(recorder(&gateway, 3)).await.unwrap();
    device.handle().wait_registered(SOON).await.unwrap();
    shown(&gateway, 3).await;
    let all = handle.query_catalog(&id(LOCAL), SOON).await.unwrap();
    let nvr = all.items.iter().find(|i| i.device_id == id(NVR)).expect("the recorder is a node above its channels");
    assert_eq!(nvr.parent_id, [id(LOCAL)]);
    let items = channels(&handle).await;
    assert_eq!(items.len(), 3);
    assert!(items.iter().all(|i| i.parent_id == [id(NVR)]), "{items:?}");
    let clips = device.handle().channels();
    let rows = play_and_check(
        &handle,
        &id(LOCAL),
        &items,
        |channel| clips.iter().find(|c| c.id == *channel).map(|c| c.clip.clone()),
        &[MediaTransport::Udp, MediaTransport::TcpPassive, MediaTransport::TcpActive],
        Duration::from_secs(3),
        |_| {},
    )
    .await;
    assert_eq!(rows.len(), 9);
    for row in &rows {
        assert!(row.ok, "{row:?}");
    }
    assert_eq!(device.handle().snapshot().calls_started, 3, "one session a channel, however many viewers");
    let (devices, pending) = gateway.devices().unwrap().snapshot().await;
    assert_eq!((devices.len(), devices[0].state, devices[0].channels, pending.len()), (1, DeviceState::Online, 3, 0));
    gateway.shutdown().await;
    let said = device.handle().wait(SOON, "said goodbye to", |s| s.calls == 0).await;
    assert!(said.is_ok(), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn media_comes_over_udp_and_over_our_connection_too() {
    for (slice, media) in [(21, "udp"), (22, "tcp_active")] {
        let platform = platform().await;
        let text =
            [base(slice), uplink("psb", &platform, ""), device_section(&format!("media = \"{media}\""))].concat();
        let gateway = gateway(&text).await;
        let handle = platform.handle();
        registered(&handle).await;
        let device = SimDevice::start(SimDeviceConfig { transport: Transport::Tcp, ..recorder(&gateway, 1) });
        let device = device.await.unwrap();
        shown(&gateway, 1).await;
        let channel = device.handle().channels()[0].clone();
        let mut session = handle.invite(&id(LOCAL), &channel.id, options(channel.clip.clone())).await.unwrap();
        pictures(&mut session, 60).await;
        let end = session.bye().await;
        assert_eq!((end.verdict.lost, end.verdict.altered, end.verdict.missing), (0, 0, 0), "{media}");
        gateway.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_goes_is_off_and_one_that_comes_back_is_on_under_the_same_codes() {
    let platform = platform().await;
    let text = [base(23), uplink("psb", &platform, ""), device_section("")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let device = SimDevice::start(recorder(&gateway, 2)).await.unwrap();
    shown(&gateway, 2).await;
    let before = channels(&handle).await;
    assert!(device.stop().await, "unregistered");
    shown(&gateway, 0).await;
    let off = channels(&handle).await;
    assert_eq!(off.len(), 2, "channels of a device that is away stay in the catalogue");
    let refused = handle.invite(&id(LOCAL), &before[0].device_id, Default::default()).await;
    assert_eq!(refused.unwrap_err().status, Some(503));
    let device = SimDevice::start(recorder(&gateway, 2)).await.unwrap();
    shown(&gateway, 2).await;
    let ids = |items: &[menshen::proto::manscdp::CatalogItem]| items.iter().map(|i| i.device_id).collect::<Vec<_>>();
    assert_eq!(ids(&channels(&handle).await), ids(&before));
    drop(device);
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_listed_and_wrong_passwords_are_not_let_in() {
    let text = [base(24), device_section("")].concat();
    let gateway = gateway(&text).await;
    let server = gateway.listeners()[0].local;
    let stranger = id("41130000581180000009");
    let other = SimDevice::start(SimDeviceConfig::on_loopback(stranger, SECRET, id(LOCAL), server)).await.unwrap();
    let wrong = SimDevice::start(SimDeviceConfig::on_loopback(id(NVR), "wrong", id(LOCAL), server)).await.unwrap();
    for device in [&other, &wrong] {
        device.handle().wait(SOON, "refused", |s| s.registration_failures > 0).await.unwrap();
    }
    let (devices, pending) = gateway.devices().unwrap().snapshot().await;
    assert_eq!(devices.len(), 0);
    assert_eq!(pending.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), [stranger.as_str()]);
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recordings_are_found_played_steered_and_downloaded() {
    let platform = platform().await;
    let text = [base(25), uplink("psb", &platform, ""), device_section("")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let config = SimDeviceConfig { recorded: Some(Duration::from_secs(4)), ..recorder(&gateway, 2) };
    let device = SimDevice::start(config).await.unwrap();
    shown(&gateway, 2).await;
    let channel = device.handle().channels()[0].clone();
    let time = (1_794_960_000, 1_794_967_200);
    let list = handle.record_info(&id(LOCAL), &channel.id, time, SOON).await.unwrap();
    assert!(list.is_complete() && list.items.len() >= 2, "{list:?}");
    assert!(list.max_message_bytes <= 1300, "{}", list.max_message_bytes);
    for item in &list.items {
        assert_eq!(item.text_of("DeviceID"), Some(channel.id.as_str()));
    }
    // An hour, with pause, 4x and a seek.
    let mut session = handle.playback(&id(LOCAL), &channel.id, time, MediaTransport::Udp).await.unwrap();
    pictures(&mut session, 20).await;
    assert!(session.pause(SOON).await.unwrap().is_ok());
    device.handle().wait(SOON, "paused", |s| s.playback_requests == 1).await.unwrap();
    assert!(session.resume(SOON).await.unwrap().is_ok());
    assert!(session.speed(Scale::from_thousandths(4000).unwrap(), SOON).await.unwrap().is_ok());
    assert!(session.seek(1_000, SOON).await.unwrap().is_ok());
    assert_eq!(session.wait_finished(SOON).await, Some(121), "the recording ends");
    let end = session.bye().await;
    assert_eq!(end.verdict.lost, 0, "{:?}", end.verdict.problems());
    assert_eq!(device.handle().playback_requests().len(), 4);
    // A download runs to its end, whole.
    let options = InviteOptions {
        kind: SessionKind::Download,
        time: Some(time),
        download_speed: Some(4),
        transport: MediaTransport::TcpPassive,
        ..options(channel.clip.clone())
    };
    let session = handle.invite(&id(LOCAL), &channel.id, options).await.unwrap();
    assert!(session.progress().is_some(), "the device told the size");
    let (finished, end) = session.play_to_end(SOON).await;
    assert_eq!(finished, Some(121));
    assert_eq!((end.verdict.lost, end.verdict.altered, end.verdict.missing), (0, 0, 0), "{:?}", end.verdict.problems());
    assert_eq!(end.verdict.frames, 100, "four seconds of 25 pictures");
    device.handle().wait(SOON, "without calls", |s| s.calls == 0).await.unwrap();
    ports_free(&gateway).await;
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controls_and_queries_reach_the_device_and_its_answers_come_back() {
    let platform = platform().await;
    let text = [base(26), uplink("psb", &platform, ""), device_section("standard = \"2016\"")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let device = SimDevice::start(recorder(&gateway, 1)).await.unwrap();
    shown(&gateway, 1).await;
    let channel = device.handle().channels()[0].id;
    let preset = PtzCommand::Preset { action: PresetAction::Call, number: 3 };
    let outcome = handle.ptz(&id(LOCAL), &channel, preset, SOON).await.unwrap();
    assert_eq!(outcome.status, 200);
    device.handle().wait(SOON, "steered", |s| s.controls == 1).await.unwrap();
    let seen = device.handle().controls();
    assert!(matches!(&seen[0].control, DeviceControl::Ptz { command, .. } if *command == preset), "{seen:?}");
    assert_eq!(seen[0].target, channel);
    for kind in [QueryKind::DeviceInfo, QueryKind::DeviceStatus, QueryKind::PresetQuery] {
        let answer = handle.query_kind(&id(LOCAL), &channel, kind, SOON).await.unwrap();
        assert_eq!(answer.device_id, channel, "{kind:?}");
        assert_ne!(answer.element.text_of("Result"), Some("ERROR"), "{answer:?}");
    }
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_reaches_every_platform_that_may_see_it_and_is_reset_from_there() {
    let (first, second) = (platform().await, platform_of(SECOND).await);
    let text = [
        base(27),
        uplink("psb", &first, ""),
        uplink("county", &second, "share = [\"41130000581320000002\"]"),
        device_section(""),
    ]
    .concat();
    let gateway = gateway(&text).await;
    let (a, b) = (first.handle(), second.handle());
    registered(&a).await;
    registered(&b).await;
    let device = SimDevice::start(recorder(&gateway, 2)).await.unwrap();
    shown(&gateway, 2).await;
    let mut news = a.news();
    let channel = device.handle().channels()[0].id;
    device.handle().raise_alarm(&channel, 5, Some(6), "intrusion").await.unwrap();
    device.handle().wait(SOON, "answered", |s| s.alarms_answered == 1).await.unwrap();
    let alarm = async {
        loop {
            if let PlatformEvent::Alarm { device, alarm, .. } = news.recv().await.unwrap() {
                return (device, alarm);
            }
        }
    };
    let (at, alarm) = tokio::time::timeout(SOON, alarm).await.expect("the alarm comes");
    assert_eq!((at, alarm.method, alarm.alarm_type), (channel, 5, Some(6)));
    let outcome = a.reset_alarm(&id(LOCAL), &channel, SOON).await.unwrap();
    assert_eq!(outcome.status, 200);
    device.handle().wait(SOON, "reset", |s| s.controls == 1).await.unwrap();
    assert!(matches!(device.handle().controls()[0].control, DeviceControl::AlarmReset { .. }));
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_takes_no_more_is_busy() {
    let platform = platform().await;
    let text = [base(30), uplink("psb", &platform, ""), device_section("max_streams = 1")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let device = SimDevice::start(recorder(&gateway, 2)).await.unwrap();
    shown(&gateway, 2).await;
    let channels = device.handle().channels();
    let mut first = handle.invite(&id(LOCAL), &channels[0].id, options(channels[0].clip.clone())).await.unwrap();
    pictures(&mut first, 5).await;
    let refused = handle.invite(&id(LOCAL), &channels[1].id, InviteOptions::default()).await.unwrap_err();
    assert_eq!(refused.status, Some(486));
    let time = (1_794_960_000, 1_794_967_200);
    let refused = handle.playback(&id(LOCAL), &channels[1].id, time, MediaTransport::Udp).await.unwrap_err();
    assert_eq!(refused.status, Some(486));
    assert_eq!(first.bye().await.verdict.lost, 0);
    gateway.shutdown().await;
}
