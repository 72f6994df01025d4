//! Live play: every codec over every transport, many viewers of one camera, two platforms.

use crate::support::*;
use menshen::proto::sdp::MediaTransport;
use menshen::sim::check::play_and_check;
use menshen::sim::clip::ClipLibrary;
use menshen::sim::platform::InviteOptions;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_codec_over_every_transport_arrives_whole() {
    let (camera, platform) = (camera().await, platform().await);
    let text = [
        base(0),
        uplink("psb", &platform, ""),
        camera_section(1, &camera.url("/h264"), ""),
        camera_section(2, &camera.url("/h265"), "rtsp_transport = \"udp\""),
        camera_section(3, &camera.url("/h264b"), ""),
    ]
    .concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let items = channels(&handle).await;
    assert_eq!(items.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["通道1", "通道2", "通道3"]);
    let clips = [ClipLibrary::h264(), ClipLibrary::h265(), ClipLibrary::h264_bframes()];
    let rows = play_and_check(
        &handle,
        &id(LOCAL),
        &items,
        |device| clips.get(device.serial()? as usize - 1).cloned(),
        &[MediaTransport::Udp, MediaTransport::TcpPassive, MediaTransport::TcpActive],
        Duration::from_secs(3),
        |_| {},
    )
    .await;
    assert_eq!(rows.len(), 9);
    for row in &rows {
        assert!(row.ok, "{row:?}");
        assert!(row.setup_ms.is_some_and(|ms| ms < 2_000), "cold with a 1 s group of pictures: {row:?}");
    }
    gateway.shutdown().await;
    assert!(handle.registration(&id(LOCAL)).is_none_or(|l| !l.is_online()), "unregistered on stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_invites_at_once_are_one_pull() {
    let (camera, platform) = (camera().await, platform().await);
    let text =
        [base(1), uplink("psb", &platform, "max_sessions = 200"), camera_section(1, &camera.url("/h264"), "")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut invites = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let handle = handle.clone();
        invites.spawn(async move {
            let mut session = invite(&handle, 1, options(ClipLibrary::h264())).await;
            pictures(&mut session, 10).await;
            session
        });
    }
    let sessions = invites.join_all().await;
    assert_eq!(camera.handle.counters().plays, 1, "one RTSP pull");
    assert_eq!(gateway.hub().snapshot().await[0].sinks, 100);
    for session in sessions {
        let end = session.bye().await;
        assert!(end.verdict.lost == 0 && end.verdict.altered == 0, "{:?}", end.verdict.problems());
    }
    // The leases are gone with their calls: no port is left behind.
    ports_free(&gateway).await;
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_platforms_and_ten_viewers_share_one_pull_and_keep_apart() {
    let (camera, first) = (camera().await, platform().await);
    let second = platform_of(SECOND).await;
    let text = [
        base(2),
        uplink("psb", &first, ""),
        uplink("county", &second, &format!("share = [\"{}\"]", camera_id(1))),
        camera_section(1, &camera.url("/h264"), ""),
        camera_section(2, &camera.url("/h265"), ""),
    ]
    .concat();
    let gateway = gateway(&text).await;
    let (a, b) = (first.handle(), second.handle());
    registered(&a).await;
    registered(&b).await;
    assert_eq!(channels(&a).await.len(), 2);
    assert_eq!(channels(&b).await.len(), 1, "the second sees what is shared with it");
    let refused = b.invite(&id(LOCAL), &id(&camera_id(2)), InviteOptions::default()).await;
    assert_eq!(refused.unwrap_err().status, Some(404));
    let mut sessions = Vec::new();
    for n in 0..10 {
        let handle = if n % 2 == 0 { &a } else { &b };
        let transport = [MediaTransport::Udp, MediaTransport::TcpPassive, MediaTransport::TcpActive][n % 3];
        sessions.push(invite(handle, 1, InviteOptions { transport, ..options(ClipLibrary::h264()) }).await);
    }
    for session in &mut sessions {
        pictures(session, 30).await;
    }
    assert_eq!(camera.handle.counters().plays, 1, "one RTSP pull");
    for session in sessions {
        let end = session.bye().await;
        assert_eq!((end.verdict.lost, end.verdict.altered, end.verdict.missing), (0, 0, 0));
    }
    gateway.shutdown().await;
}
