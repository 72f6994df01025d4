//! What breaks and heals: camera, upper platform, the process itself.

use crate::support::*;
use menshen::proto::manscdp::CatalogEvent;
use menshen::sim::clip::ClipLibrary;
use menshen::sim::platform::Subscription;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

async fn event(subscription: &mut Subscription, wanted: CatalogEvent, limit: Duration) -> Duration {
    #[allow(clippy::disallowed_methods, reason = "the test measures real time")]
    let began = Instant::now();
    loop {
        let notice = subscription.next(limit).await.expect("a notice in time");
        if notice.changes.iter().any(|c| c.event == wanted && c.device_id == id(&camera_id(1))) {
            return began.elapsed();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_that_goes_and_returns_is_told_in_time() {
    let (camera, platform) = (camera().await, platform().await);
    let addr = camera.addr;
    let text = [base(4), uplink("psb", &platform, ""), camera_section(1, &camera.url("/h264"), "")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut subscription = handle.subscribe_catalog(&id(LOCAL), 600, SOON).await.unwrap();
    let mut session = invite(&handle, 1, options(ClipLibrary::h264())).await;
    pictures(&mut session, 10).await;
    camera.stop().await;
    let off = event(&mut subscription, CatalogEvent::Off, Duration::from_secs(12)).await;
    assert!(off <= Duration::from_secs(12), "{off:?}");
    let camera = camera_at(addr).await;
    let on = event(&mut subscription, CatalogEvent::On, Duration::from_secs(8)).await;
    assert!(on <= Duration::from_secs(8), "{on:?}");
    // The viewer that stayed gets pictures again, on the same time line, from a key picture on.
    let before = session.verdict().frames;
    pictures(&mut session, before + 10).await;
    let end = session.bye().await;
    assert_eq!((end.verdict.altered, end.verdict.dts_back, end.verdict.timestamps_back), (0, 0, 0));
    subscription.cancel(SOON).await.unwrap();
    gateway.shutdown().await;
    camera.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigkill_registers_again_and_sigterm_says_goodbye() {
    let (camera, platform) = (camera().await, platform().await);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("menshen.toml");
    let text = [
        base(5).replace("[sip]", &format!("data_dir = \"{}\"\n[sip]", dir.path().join("data").display())),
        uplink("psb", &platform, ""),
        camera_section(1, &camera.url("/h264"), ""),
    ]
    .concat();
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    let handle = platform.handle();
    let mut news = handle.news();

    let mut daemon = Daemon::start(&path);
    registered(&handle).await;
    daemon.signal("-KILL");
    daemon.exited(SOON).await;
    let first = handle.registration(&id(LOCAL)).unwrap();

    let mut daemon = Daemon::start(&path);
    handle
        .wait(&id(LOCAL), SOON, "a new registration", |l| l.is_online() && l.contact != first.contact)
        .await
        .expect("registered again after a kill");
    let mut session = invite(&handle, 1, options(ClipLibrary::h264())).await;
    pictures(&mut session, 5).await;
    daemon.signal("-TERM");
    assert!(session.wait_bye(SOON).await.is_some(), "BYE on SIGTERM");
    handle.wait(&id(LOCAL), SOON, "unregistering", |l| !l.is_online()).await.unwrap();
    let status = daemon.exited(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
    while news.try_recv().is_ok() {}

    // What both lives did stands in one unbroken chain.
    let out = Command::new(env!("CARGO_BIN_EXE_menshen")).args(["audit", "verify", "-c"]).arg(&path).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
