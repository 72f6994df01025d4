//! GB/T 28181 devices: they register with us, their channels are shown north and played there.

use crate::support::*;
use menshen::proto::sdp::MediaTransport;
use menshen::proto::sip::message::Transport;
use menshen::sim::check::play_and_check;
use menshen::sim::device::{SimChannel, SimDevice, SimDeviceConfig};
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
