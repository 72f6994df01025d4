//! The simulated camera as retina sees it: the RTSP client the gateway itself uses.
//!
//! In: every embedded clip, both transports. Out: retina's access units and audio frames are the clip's, byte for byte, in time.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
use retina::client::{
    Credentials, InitialSequenceNumberPolicy, InitialTimestampPolicy, PlayOptions, Session, SessionGroup,
    SessionOptions, SetupOptions, Transport,
};
use retina::codec::{CodecItem, FrameFormat};

use super::{Account, Mount, SimCamera, SimCameraConfig};
use crate::sim::clip::{AudioClip, Clip, ClipFollower, ClipLibrary, Comparison};

/// Pictures received of each clip: more than one pass, so that the seam is crossed.
const PICTURES: u64 = 140;

async fn play(camera: &SimCamera, clip: &Arc<Clip>, sounds: Option<&AudioClip>, path: &str, udp: bool) {
    let group = Arc::new(SessionGroup::default());
    let creds = Credentials { username: "admin".into(), password: "Pass-1234".into() };
    let options = SessionOptions::default().creds(Some(creds)).session_group(Arc::clone(&group));
    let url = camera.url(path).parse().expect("a camera's URL is one");
    let mut session = Session::describe(url, options).await.unwrap();
    assert_eq!(session.streams().len(), 1 + usize::from(sounds.is_some()));
    for i in 0..session.streams().len() {
        let transport = if udp { Transport::Udp(Default::default()) } else { Transport::Tcp(Default::default()) };
        let setup = SetupOptions::default().transport(transport).frame_format(FrameFormat::SIMPLE);
        session.setup(i, setup).await.unwrap();
    }
    // The strictest policies: everything RTP-Info announces must be true.
    let options = PlayOptions::default()
        .initial_timestamp(InitialTimestampPolicy::Require)
        .initial_seq(InitialSequenceNumberPolicy::Respect);
    let mut demuxed = session.play(options).await.unwrap().demuxed().unwrap();
    let mut follower = ClipFollower::new(Arc::clone(clip));
    let (mut pictures, mut frames, mut reports) = (0, 0, 0);
    while pictures < PICTURES || (sounds.is_some() && frames < 90) {
        match poll_fn(|cx| Pin::new(&mut demuxed).poll_next(cx)).await.unwrap().unwrap() {
            CodecItem::VideoFrame(frame) => {
                let (unit, pts) = clip.looped(pictures);
                assert_eq!(frame.loss(), 0);
                assert_eq!(frame.is_random_access_point(), unit.key);
                assert_eq!(frame.timestamp().elapsed(), pts as i64 - clip.looped(0).1 as i64);
                follower.push(frame.data());
                pictures += 1;
            }
            CodecItem::AudioFrame(frame) => {
                let (expected, ticks) = sounds.unwrap().looped(frames);
                assert_eq!((frame.loss(), frame.timestamp().elapsed()), (0, ticks as i64));
                assert_eq!(frame.data(), expected.bytes);
                frames += 1;
            }
            CodecItem::Rtcp(_) => reports += 1,
            _ => {}
        }
    }
    let keys = PICTURES.div_ceil(25);
    assert_eq!(
        follower.sum(),
        Comparison { exact: pictures, keys: keys + (pictures - PICTURES) / 25, ..Default::default() }
    );
    assert!(reports >= 1);
    drop(demuxed);
    group.await_teardown().await.unwrap();
}

#[tokio::test]
async fn retina_receives_every_clip_whole() {
    let video = [ClipLibrary::h264(), ClipLibrary::h265(), ClipLibrary::h264_bframes()];
    let audio = [Some(ClipLibrary::pcma()), Some(ClipLibrary::aac()), None];
    let mounts = video.iter().zip(&audio).enumerate().map(|(i, (clip, sounds))| Mount {
        path: format!("/ch{i}"),
        video: Arc::clone(clip),
        audio: sounds.clone(),
        sprop: i != 0, // the first one's parameter sets come in the stream alone
    });
    let mut config = SimCameraConfig::on_loopback(mounts.collect());
    config.account = Some(Account { username: "admin".into(), password: "Pass-1234".into() });
    config.speed = 20;
    let camera = SimCamera::start(config).await.unwrap();
    let test = async {
        for udp in [false, true] {
            for (i, (clip, sounds)) in video.iter().zip(&audio).enumerate() {
                play(&camera, clip, sounds.as_deref(), &format!("/ch{i}"), udp).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), test).await.expect("retina waits for what never comes");
    let counters = camera.handle.counters();
    assert_eq!((counters.describes, counters.plays, counters.teardowns, camera.handle.sessions()), (6, 6, 6, 0));
    // Not `send_errors`: a client closes its UDP ports before its TEARDOWN, and what is sent between the two is refused.
    assert_eq!((counters.skipped, counters.auth_failures), (0, 0));
}
