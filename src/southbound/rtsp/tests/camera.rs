//! The simulated camera, pulled, broken and mended.

use super::rig::{RULES, Rig, Viewer, eventually, ms, pull};
use crate::clock;
use crate::sim::clip::{AudioClip, Clip, ClipFollower, ClipLibrary, Comparison};
use crate::sim::rtsp_camera::{Account, Mount, SimCamera, SimCameraConfig};
use crate::southbound::rtsp::Rules;
use std::sync::Arc;

fn account() -> Option<Account> {
    Some(Account { username: "admin".into(), password: "Pass-1234".into() })
}

async fn simple(speed: u32) -> SimCamera {
    let mut config = SimCameraConfig::on_loopback(vec![Mount::video("/main", ClipLibrary::h264())]);
    config.account = account();
    config.speed = speed;
    SimCamera::start(config).await.unwrap()
}

/// Every picture is the clip's; none is altered, and none is missing where `whole`.
fn follow(viewer: &Viewer, clip: &Arc<Clip>, whole: bool) -> Comparison {
    let mut follower = ClipFollower::new(Arc::clone(clip));
    let seen = viewer.seen();
    assert!(seen[0].0, "it begins with a key frame");
    for (_, data) in &seen {
        follower.push(data);
    }
    let sum = follower.sum();
    assert_eq!((sum.altered, sum.missing > 0 && whole), (0, false), "{sum:?}");
    sum
}

fn hear(viewer: &Viewer, clip: &AudioClip) -> usize {
    let heard = viewer.heard();
    let frames = clip.frames();
    let first = frames.iter().position(|f| f.bytes == heard[0]).expect("the clip's sound");
    for (i, data) in heard.iter().enumerate() {
        assert_eq!(*data, frames[(first + i) % frames.len()].bytes, "sound {i}");
    }
    heard.len()
}

#[tokio::test]
async fn every_codec_comes_over_tcp_and_udp_with_digest() {
    let video = [ClipLibrary::h264(), ClipLibrary::h265(), ClipLibrary::h264_bframes(), ClipLibrary::h264()];
    let audio = [Some(ClipLibrary::pcma()), Some(ClipLibrary::aac()), Some(ClipLibrary::pcmu()), None];
    let mounts = video.iter().zip(&audio).enumerate().map(|(i, (clip, sounds))| Mount {
        path: format!("/ch{i}"),
        video: Arc::clone(clip),
        audio: sounds.clone(),
        sprop: i != 0,
    });
    let mut config = SimCameraConfig::on_loopback(mounts.collect());
    config.account = account();
    config.speed = 4;
    let sim = SimCamera::start(config).await.unwrap();
    let mut rig = Rig::new();
    for udp in [false, true] {
        let streams = (0..4).map(|i| pull(&sim.url(&format!("/ch{i}")), udp)).collect();
        let camera = rig.camera(streams, RULES).await;
        let mut viewers = Vec::new();
        for number in 0..4 {
            viewers.push(rig.subscribe(&camera, number).await.unwrap());
        }
        for (i, viewer) in viewers.iter_mut().enumerate() {
            viewer.pictures(60).await;
            follow(viewer, &video[i], true);
            assert_eq!(viewer.ready.tracks.unwrap().size, Some((640, 360)));
            assert_eq!(viewer.ready.tracks.unwrap().audio.is_some(), audio[i].is_some());
            match &audio[i] {
                Some(clip) => assert!(hear(viewer, clip) > 10),
                None => assert!(viewer.heard().is_empty()),
            }
        }
        assert_eq!(sim.handle.playing(), 4, "several streams of one camera at once");
        assert_eq!(rig.state(&camera).online, Some(true));
        drop(viewers);
        eventually("the pulls end after their linger", || sim.handle.playing() == 0).await;
        eventually("TEARDOWN is sent", || sim.handle.sessions() == 0).await;
    }
    assert_eq!(sim.handle.counters().plays, 8);
    rig.stop().await;
}

#[tokio::test]
async fn one_pull_for_many_and_again_within_the_linger() {
    let sim = simple(1).await;
    let mut rig = Rig::new();
    let camera = rig.camera(vec![pull(&sim.url("/main"), false)], Rules { linger: ms(2_000), ..RULES }).await;
    let mut viewers = Vec::new();
    for _ in 0..10 {
        viewers.push(rig.subscribe(&camera, 0).await.unwrap());
    }
    for viewer in &mut viewers {
        viewer.pictures(5).await;
        follow(viewer, &ClipLibrary::h264(), true);
    }
    drop(viewers);
    let asked = clock::now();
    let mut again = rig.subscribe(&camera, 0).await.unwrap();
    let first = again.pictures(3).await;
    println!("a warm viewer has its first packet after {:?}", first - asked);
    assert_eq!(sim.handle.counters().plays, 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once_and_not_tried_again_for_every_viewer() {
    let sim = simple(1).await;
    let mut rig = Rig::new();
    let mut wrong = pull(&sim.url("/main"), false);
    wrong.credentials = Some(("admin".into(), "guess-my-password".into()));
    let camera = rig.camera(vec![wrong], RULES).await;
    let (failure, after) = rig.refusal(&camera, 0).await;
    assert_eq!(failure.reason, "unauthorised", "{failure:?}");
    assert!(after < ms(3_000));
    assert!(!failure.text.contains("guess-my-password"));
    rig.until(&camera, false).await;
    assert_eq!(rig.state(&camera).reason, "unauthorised");
    let tried = sim.handle.counters().auth_failures;
    for _ in 0..5 {
        let (failure, _) = rig.refusal(&camera, 0).await;
        assert_eq!(failure.reason, "unauthorised");
    }
    assert_eq!(sim.handle.counters().auth_failures, tried, "cameras lock accounts");
    assert_eq!(rig.state(&camera).online, Some(false));

    let mut none = pull(&sim.url("/main"), false);
    none.credentials = None;
    let camera = rig.camera(vec![none], RULES).await;
    assert_eq!(rig.refusal(&camera, 0).await.0.reason, "unauthorised");
    rig.stop().await;
}

#[tokio::test]
async fn a_stall_is_noticed_and_the_stream_goes_on_for_the_same_viewer() {
    for udp in [false, true] {
        let sim = simple(4).await;
        let mut rig = Rig::new();
        let mut config = pull(&sim.url("/main"), udp);
        config.stall_limit = ms(600);
        let camera = rig.camera(vec![config], RULES).await;
        let mut viewer = rig.subscribe(&camera, 0).await.unwrap();
        viewer.pictures(30).await;
        let before = viewer.seen().len();
        sim.handle.stall(true);
        eventually("a new pull", || sim.handle.counters().plays >= 2).await;
        sim.handle.stall(false);
        viewer.pictures(60).await;
        follow(&viewer, &ClipLibrary::h264(), false);
        let after = viewer.seen();
        assert!(after[before..].iter().any(|(key, _)| *key));
        assert!(rig.ends().is_empty(), "the viewer stays");
        eventually("it is on", || rig.state(&camera).online == Some(true)).await;
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_watched_camera_that_restarts_is_off_and_on_and_its_viewer_stays() {
    let sim = simple(2).await;
    let (addr, url) = (sim.addr, sim.url("/main"));
    let mut rig = Rig::new();
    let mut config = pull(&url, false);
    (config.step_limit, config.stall_limit) = (ms(1_000), ms(1_000));
    let camera = rig.camera(vec![config], RULES).await;
    let mut viewer = rig.subscribe(&camera, 0).await.unwrap();
    viewer.pictures(30).await;
    rig.until(&camera, true).await;
    sim.stop().await;
    let off = rig.until(&camera, false).await;
    assert_eq!(rig.state(&camera).reason, "unreachable");
    let mut again = SimCameraConfig::on_loopback(vec![Mount::video("/main", ClipLibrary::h264())]);
    (again.listen, again.account, again.speed) = (addr, account(), 2);
    let sim = SimCamera::start(again).await.unwrap();
    let on = rig.until(&camera, true).await;
    println!("watched: off after {off:?}, on after {on:?}");
    viewer.pictures(30).await;
    follow(&viewer, &ClipLibrary::h264(), false);
    assert!(rig.ends().is_empty());
    drop(sim);
    rig.stop().await;
}

#[tokio::test]
async fn a_camera_nobody_watches_is_off_and_on_by_its_probe() {
    let sim = simple(1).await;
    let (addr, url) = (sim.addr, sim.url("/main"));
    let mut rig = Rig::new();
    let camera = rig.camera(vec![pull(&url, false)], RULES).await;
    rig.until(&camera, true).await;
    assert_eq!(sim.handle.counters().describes, 1, "DESCRIBE at the start");
    let probed = sim.handle.counters().requests;
    eventually("more probes", || sim.handle.counters().requests >= probed + 3).await;
    assert_eq!(sim.handle.counters().describes, 1, "then OPTIONS");
    assert_eq!(sim.handle.playing(), 0);
    sim.stop().await;
    let off = rig.until(&camera, false).await;
    let mut again = SimCameraConfig::on_loopback(vec![Mount::video("/main", ClipLibrary::h264())]);
    (again.listen, again.account) = (addr, account());
    let sim = SimCamera::start(again).await.unwrap();
    let on = rig.until(&camera, true).await;
    println!("probed: off after {off:?}, on after {on:?}");
    eventually("DESCRIBE after the return", || sim.handle.counters().describes == 1).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_slow_describe_ends_with_the_step_limit() {
    let sim = simple(1).await;
    sim.handle.delay_describe(ms(30_000));
    let mut rig = Rig::new();
    let mut config = pull(&sim.url("/main"), false);
    config.step_limit = ms(400);
    let camera = rig.camera(vec![config.clone()], RULES).await;
    let (failure, after) = rig.refusal(&camera, 0).await;
    assert_eq!(failure.reason, "unreachable");
    assert!(failure.text.contains("400ms"), "{failure:?}");
    assert!(after >= ms(390) && after < ms(3_000), "{after:?}");
    // One that only accepts connections.
    sim.handle.mute(true);
    let camera = rig.camera(vec![config], RULES).await;
    let (failure, after) = rig.refusal(&camera, 0).await;
    assert_eq!(failure.reason, "unreachable");
    assert!(after < ms(3_000), "{after:?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_path_or_number_that_is_not_there_is_told() {
    let sim = simple(1).await;
    let mut rig = Rig::new();
    let streams = vec![pull(&sim.url("/main"), false), pull(&sim.url("/sub"), false)];
    let camera = rig.camera(streams, RULES).await;
    rig.until(&camera, true).await;
    assert_eq!(rig.refusal(&camera, 1).await.0.reason, "no_such_stream");
    assert_eq!(rig.refusal(&camera, 9).await.0.reason, "no_such_stream");
    assert_eq!(rig.state(&camera).online, Some(true), "its main stream is there");
    rig.subscribe(&camera, 0).await.unwrap().pictures(1).await;
    let wait = async { while rig.hub.snapshot().await.len() > 1 {} };
    tokio::time::timeout(ms(5_000), wait).await.expect("nothing is kept of the others");
    rig.stop().await;
}

#[tokio::test]
async fn kept_warm_it_plays_without_viewers_and_comes_back_by_itself() {
    let sim = simple(2).await;
    let mut rig = Rig::new();
    let camera = rig.camera(vec![pull(&sim.url("/main"), false)], Rules { keep_warm: true, ..RULES }).await;
    eventually("it plays", || sim.handle.playing() == 1).await;
    rig.until(&camera, true).await;
    let mut viewer = rig.subscribe(&camera, 0).await.unwrap();
    viewer.pictures(10).await;
    follow(&viewer, &ClipLibrary::h264(), true);
    drop(viewer);
    sim.handle.drop_sessions();
    eventually("it plays again", || sim.handle.counters().plays == 2 && sim.handle.playing() == 1).await;
    rig.subscribe(&camera, 0).await.unwrap().pictures(5).await;
    camera.cancel.cancel();
    eventually("it is taken away", || sim.handle.playing() == 0).await;
    rig.stop().await;
}

#[tokio::test]
async fn loss_and_clock_jumps_do_not_stop_it() {
    let sim = simple(2).await;
    let mut rig = Rig::new();
    let camera = rig.camera(vec![pull(&sim.url("/main"), false)], RULES).await;
    let mut viewer = rig.subscribe(&camera, 0).await.unwrap();
    viewer.pictures(20).await;
    for jump in [3_600_000, -3_600_000, 5_000, -1_000] {
        sim.handle.jump_timestamps(jump);
        viewer.pictures(15).await;
    }
    assert_eq!(sim.handle.counters().plays, 1, "all in one session");
    follow(&viewer, &ClipLibrary::h264(), true);
    sim.handle.drop_packets(3);
    viewer.pictures(60).await;
    assert!(rig.ends().is_empty());
    let wait = async {
        while rig.hub.snapshot().await[0].stats.lost == 0 {
            tokio::time::sleep(ms(20)).await
        }
    };
    tokio::time::timeout(ms(5_000), wait).await.expect("the loss is counted");
    assert!(rig.hub.snapshot().await[0].stats.clock_jumps >= 3);
    rig.stop().await;
}
