//! Channels whose owner can be asked: controls, queries, recordings. The owner here is the test itself, with the pictures
//! of a simulated camera for recordings; the other side is a platform over real sockets.

use crate::support::*;
use menshen::app::Gateway;
use menshen::catalog::{
    Channel, ChannelCommand, ChannelState, CommandAnswer, CommandError, CommandHandle, RecordControl, RecordEvent,
    RecordFacts, RecordRequest, RecordSession,
};
use menshen::media::StreamKey;
use menshen::proto::manscdp::{
    CatalogItem, ControlKind, DeviceControl, Element, Incoming, PtzCommand, QueryKind, parse,
};
use menshen::proto::mansrtsp;
use menshen::proto::sdp::{MediaTransport, SessionKind};
use menshen::sim::clip::ClipLibrary;
use menshen::sim::platform::{InviteOptions, PlatformHandle, Session, SimPlatform};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

const FROM: u64 = 1_763_863_200;
const TO: u64 = FROM + 3_600;
/// The device's own code of its channel: nothing an uplink may see.
const THEIRS: &str = "34020000001320000077";

type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// A channel and its owner.
struct Device {
    commands: mpsc::Receiver<ChannelCommand>,
    n: usize,
}

impl Device {
    /// Channel `n`, beside the configured ones.
    async fn put(gateway: &Gateway, n: usize) -> Device {
        let (tx, commands) = mpsc::channel(64);
        let directory = gateway.directory();
        let source = directory.now().channels.values().next().unwrap().source.clone();
        directory
            .put(Channel {
                id: camera_id(n).into(),
                area: None,
                parent: None,
                item: Arc::new(CatalogItem::new(id(&camera_id(n)), "球机")),
                streams: 1,
                source,
                commands: Some(CommandHandle::new(tx)),
                state: ChannelState { online: Some(true), reason: "ok", ..ChannelState::unknown() },
                kind: "gb28181",
            })
            .await;
        directory.settled().await;
        Device { commands, n }
    }

    async fn command(&mut self) -> ChannelCommand {
        tokio::time::timeout(SOON, self.commands.recv()).await.expect("a command in time").unwrap()
    }

    async fn message(&mut self) -> (Incoming, Reply<CommandAnswer>) {
        match self.command().await {
            ChannelCommand::Message { channel, message, reply } => {
                assert_eq!(*channel, *camera_id(self.n));
                (*message, reply)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn open(&mut self) -> (RecordRequest, Reply<RecordSession>) {
        match self.command().await {
            ChannelCommand::Open { request, reply, .. } => (request, reply),
            other => panic!("{other:?}"),
        }
    }

    /// Opens the next recording with the pictures of camera `camera`.
    async fn record(&mut self, gateway: &Gateway, camera: usize) -> Recording {
        let (request, reply) = self.open().await;
        let channel: Arc<str> = camera_id(camera).into();
        let (control, controls) = mpsc::channel(4);
        let (events, told) = mpsc::channel(4);
        let facts: Arc<std::sync::OnceLock<RecordFacts>> = Arc::default();
        facts.set(RecordFacts { file_size: Some(10_000_000) }).unwrap();
        let session = RecordSession {
            source: gateway.directory().now().channels[&channel].source.clone(),
            key: StreamKey { channel, number: 0, session: 1 },
            facts,
            control,
            events: told,
        };
        reply.send(Ok(session)).unwrap();
        Recording { request, controls, events }
    }
}

struct Recording {
    request: RecordRequest,
    controls: mpsc::Receiver<RecordControl>,
    events: mpsc::Sender<RecordEvent>,
}

impl Recording {
    async fn answer(&mut self, status: u16, body: &'static str) -> String {
        let control = tokio::time::timeout(SOON, self.controls.recv()).await.expect("a control in time").unwrap();
        control.reply.send(Ok((status, body.into()))).unwrap();
        String::from_utf8_lossy(&control.body).into_owned()
    }

    /// Given back: nobody controls it and nobody hears of it.
    async fn released(mut self) {
        let gone = async {
            while self.controls.recv().await.is_some() {}
            self.events.closed().await;
        };
        tokio::time::timeout(SOON, gone).await.expect("the recording is given back");
    }
}

async fn compound(slice: u16, uplinks: &[String], camera: &menshen::sim::rtsp_camera::SimCamera) -> Gateway {
    let cameras: String = (1..=2).map(|n| camera_section(n, &camera.url("/h264"), "")).collect();
    gateway(&[base(slice), uplinks.concat(), cameras].concat()).await
}

fn response(cmd: &str, inner: &str) -> Incoming {
    let text = format!("<Response><CmdType>{cmd}</CmdType><SN>5</SN><DeviceID>{THEIRS}</DeviceID>{inner}</Response>");
    parse(text.as_bytes(), None).unwrap()
}

async fn audited(gateway: &Gateway, action: &str) -> Vec<(String, String)> {
    let records = gateway.store().audit_page(None, 200).await.unwrap();
    let of = records.into_iter().filter(|r| r.action == action);
    of.map(|r| (r.outcome.as_str().to_owned(), r.reason)).collect()
}

async fn recorded(gateway: &Gateway, action: &str, count: usize) -> Vec<(String, String)> {
    let found = async {
        loop {
            let found = audited(gateway, action).await;
            if found.len() >= count {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, found).await.unwrap_or_else(|_| panic!("{count} times {action} on record"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controls_reach_the_device_in_order_and_say_what_it_said() {
    let (camera, platform, second) = (camera().await, platform().await, platform_of(SECOND).await);
    let uplinks = [uplink("psb", &platform, ""), uplink("county", &second, "permissions = [\"live\"]")];
    let gateway = compound(30, &uplinks, &camera).await;
    let (handle, weak) = (platform.handle(), second.handle());
    registered(&handle).await;
    registered(&weak).await;
    let mut device = Device::put(&gateway, 5).await;
    let (us, cam) = (id(LOCAL), id(&camera_id(5)));

    let refused = weak.ptz(&us, &cam, preset_call(1), SOON).await.unwrap();
    assert_eq!(refused.status, 403);
    assert_eq!(recorded(&gateway, "ptz", 1).await[0].0, "deny");

    // A stop does not overtake its start.
    let commands: Vec<PtzCommand> = (1..=20).map(preset_call).collect();
    for command in &commands {
        assert_eq!(handle.ptz(&us, &cam, *command, SOON).await.unwrap().status, 200);
    }
    for command in &commands {
        let (message, reply) = device.message().await;
        assert_eq!(message.element.text_of("PTZCmd"), Some(command.to_hex().as_str()));
        reply.send(Ok(CommandAnswer::Accepted)).unwrap();
    }
    assert_eq!(recorded(&gateway, "ptz", 21).await.iter().filter(|(outcome, _)| outcome == "ok").count(), 20);

    let guard = DeviceControl::Guard { set: true };
    for (answer, wanted) in [
        (Ok(CommandAnswer::Message(response("DeviceControl", "<Result>OK</Result>"))), true),
        (Ok(CommandAnswer::Accepted), true),
        (Ok(CommandAnswer::Message(response("DeviceControl", "<Result>ERROR</Result>"))), false),
        (Err(CommandError::Timeout), false),
        (Err(CommandError::Offline), false),
    ] {
        let (outcome, ()) = tokio::join!(handle.control(&us, &cam, &guard, SOON), async {
            let (message, reply) = device.message().await;
            assert!(message.element.text_of("GuardCmd").is_some());
            reply.send(answer).unwrap();
        });
        let outcome = outcome.unwrap();
        assert_eq!((outcome.status, outcome.result), (200, Some(wanted)));
        let response = outcome.response.unwrap();
        assert_eq!((response.device_id, response.cmd_type.as_str()), (cam, "DeviceControl"));
    }
    // The owner goes away with the question in its hand.
    let (outcome, ()) = tokio::join!(handle.control(&us, &cam, &guard, SOON), async {
        drop(device.message().await);
    });
    assert_eq!(outcome.unwrap().result, Some(false));
    assert_eq!(recorded(&gateway, "guard", 10).await.iter().filter(|(outcome, _)| outcome == "error").count(), 4);

    // A key frame is asked of the stream, not of the device.
    assert_eq!(DeviceControl::KeyFrame.kind(), Some(ControlKind::KeyFrame));
    assert_eq!(handle.control(&us, &cam, &DeviceControl::KeyFrame, SOON).await.unwrap().status, 200);
    // A camera that only streams says what it always said.
    let none = handle.ptz(&us, &id(&camera_id(1)), preset_call(1), SOON).await.unwrap();
    assert_eq!(none.status, 403);
    assert!(device.commands.try_recv().is_err());
    gateway.shutdown().await;
}

fn preset_call(preset: u8) -> PtzCommand {
    PtzCommand::Preset { action: menshen::proto::manscdp::ptz::PresetAction::Call, number: preset }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_are_answered_under_our_names() {
    let (camera, platform) = (camera().await, platform().await);
    let gateway = compound(31, &[uplink("psb", &platform, "")], &camera).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut device = Device::put(&gateway, 5).await;
    let (us, cam) = (id(LOCAL), id(&camera_id(5)));
    for (kind, inner, field, wanted) in [
        (QueryKind::DeviceInfo, "<Result>OK</Result><Model>DS-1</Model>", "Model", "DS-1"),
        (QueryKind::DeviceStatus, "<Result>OK</Result><Online>ONLINE</Online><Status>OK</Status>", "Online", "ONLINE"),
        (
            QueryKind::HomePositionQuery,
            "<HomePosition><Enabled>1</Enabled></HomePosition><Info>x</Info>",
            "ExtraInfo",
            "x",
        ),
    ] {
        let (answer, ()) = tokio::join!(handle.query_kind(&us, &cam, kind, SOON), async {
            let (message, reply) = device.message().await;
            assert_eq!(message.cmd_type, kind.as_str());
            reply.send(Ok(CommandAnswer::Message(response(kind.as_str(), inner)))).unwrap();
        });
        let answer = answer.unwrap();
        assert_eq!((answer.device_id, answer.element.text_of(field)), (cam, Some(wanted)));
    }
    for (error, kind, field, wanted) in [
        (CommandError::Timeout, QueryKind::DeviceInfo, "Result", "ERROR"),
        (CommandError::Offline, QueryKind::DeviceStatus, "Online", "OFFLINE"),
        (CommandError::Failed, QueryKind::PtzPosition, "Result", "ERROR"),
        (CommandError::Unsupported, QueryKind::SdCardStatus, "SumNum", "0"),
    ] {
        let (answer, ()) = tokio::join!(handle.query_kind(&us, &cam, kind, SOON), async {
            device.message().await.1.send(Err(error)).unwrap();
        });
        assert_eq!(answer.unwrap().element.text_of(field), Some(wanted), "{kind:?}");
    }
    gateway.shutdown().await;
}

fn recordings(count: usize) -> Vec<Element> {
    (0..count)
        .map(|n| {
            let text = format!(
                "<Item><DeviceID>{THEIRS}</DeviceID><Name>球机</Name><FilePath>{n}</FilePath>\
                 <StartTime>2026-11-23T08:00:00</StartTime><EndTime>2026-11-23T08:00:10</EndTime>\
                 <Secrecy>0</Secrecy><Type>time</Type><FileSize>7340{n}</FileSize></Item>"
            );
            Element::parse(text.as_bytes(), None).unwrap()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_recordings_come_in_small_pages_and_complete() {
    let (camera, platform) = (camera().await, platform().await);
    let gateway = compound(32, &[uplink("psb", &platform, "")], &camera).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut device = Device::put(&gateway, 5).await;
    let mut other = Device::put(&gateway, 6).await;
    let (us, cam) = (id(LOCAL), id(&camera_id(5)));
    let list =
        |items| CommandAnswer::List { head: response("RecordInfo", "<SumNum>9</SumNum>"), items, complete: true };
    // Two lists and the catalogue at the same time.
    let (all, few, catalog, (), ()) = tokio::join!(
        handle.record_info(&us, &cam, (FROM, TO), SOON * 3),
        {
            let handle = handle.clone();
            async move { handle.record_info(&us, &id(&camera_id(6)), (FROM, TO), SOON).await }
        },
        handle.query_catalog(&us, SOON),
        async {
            let (message, reply) = device.message().await;
            assert!(message.element.text_of("StartTime").is_some());
            reply.send(Ok(list(recordings(2_000)))).unwrap();
        },
        async { other.message().await.1.send(Ok(list(recordings(3)))).unwrap() },
    );
    let all = all.unwrap();
    assert!(all.is_complete(), "{} of {:?}", all.items.len(), all.sum_num);
    assert_eq!((all.items.len(), all.name.as_deref()), (2_000, Some("球机")));
    assert!(all.max_message_bytes <= 1_300, "{}", all.max_message_bytes);
    let paths: Vec<usize> = all.items.iter().map(|i| i.text_of("FilePath").unwrap().parse().unwrap()).collect();
    assert_eq!(paths, (0..2_000).collect::<Vec<usize>>());
    assert!(all.items.iter().all(|i| i.text_of("DeviceID") == Some(cam.as_str())));
    assert!(few.unwrap().is_complete() && catalog.unwrap().is_complete());

    // A failure is an empty list, and so is no recording.
    for answer in [Err(CommandError::Timeout), Ok(list(Vec::new()))] {
        let (empty, ()) = tokio::join!(handle.record_info(&us, &cam, (FROM, TO), SOON), async {
            device.message().await.1.send(answer).unwrap();
        });
        assert_eq!(empty.unwrap().sum_num, Some(0));
    }
    // A newer question makes the older one's answer pointless.
    let (_, fresh, ()) = tokio::join!(
        handle.record_info(&us, &cam, (FROM, TO), Duration::from_secs(1)),
        handle.record_info(&us, &cam, (FROM, TO), SOON),
        async {
            let (first, second) = (device.message().await, device.message().await);
            let _ = first.1.send(Ok(list(recordings(1))));
            let _ = second.1.send(Ok(list(recordings(2))));
        },
    );
    assert_eq!(fresh.unwrap().items.len(), 2);
    gateway.shutdown().await;
}

async fn playback(
    handle: &PlatformHandle,
    device: &mut Device,
    gateway: &Gateway,
    kind: SessionKind,
    transport: MediaTransport,
) -> (Session, Recording) {
    let (us, cam) = (id(LOCAL), id(&camera_id(device.n)));
    let options = InviteOptions {
        kind,
        time: Some((FROM, TO)),
        transport,
        download_speed: (kind == SessionKind::Download).then_some(4),
        ..options(ClipLibrary::h264())
    };
    let (session, recording) = tokio::join!(handle.invite(&us, &cam, options), device.record(gateway, 1));
    (session.unwrap(), recording)
}

async fn calls(gateway: &Gateway, uplink: &str, count: usize) -> Vec<menshen::northbound::CallStatus> {
    let mut book = gateway.uplinks().borrow()[uplink].clone();
    let found = tokio::time::timeout(SOON, book.wait_for(|s| s.calls.len() == count)).await;
    found.expect("so many calls").unwrap().calls.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_is_played_under_control_and_ends_with_121() {
    let (camera, platform) = (camera().await, platform().await);
    let gateway = compound(33, &[uplink("psb", &platform, "ssrc = \"own\"")], &camera).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut device = Device::put(&gateway, 5).await;
    let (mut session, mut recording) =
        playback(&handle, &mut device, &gateway, SessionKind::Playback, MediaTransport::Udp).await;
    let request = &recording.request;
    assert_eq!((request.kind, request.start, request.end), (SessionKind::Playback, FROM, TO));
    assert_eq!((session.sdp.session_name.as_str(), session.sdp.time), ("Playback", Some((FROM, TO))));
    assert_eq!(session.answer.file_size, Some(10_000_000));
    assert!(session.sdp.y.as_deref().is_some_and(|y| y.starts_with('1') && y.len() == 10), "{:?}", session.sdp.y);
    pictures(&mut session, 5).await;
    let call = &calls(&gateway, "psb", 1).await[0];
    assert_eq!((call.kind, call.time, call.channel.as_str()), ("playback", Some((FROM, TO)), camera_id(5).as_str()));

    let (paused, body) = tokio::join!(session.pause(SOON), recording.answer(200, ""));
    let paused = paused.unwrap();
    assert!(paused.is_ok() && body.starts_with("PAUSE RTSP/1.0"), "{body}");
    assert_eq!(paused.answer.unwrap().cseq, Some(1), "words for a device that has none");
    let said = "RTSP/1.0 200 OK\r\nCSeq: 2\r\nRTP-Info: seq=18139;rtptime=311960083\r\n\r\n";
    let (sought, body) = tokio::join!(session.seek(100_000, SOON), recording.answer(200, said));
    assert!(body.contains("Range: npt=100-"), "{body}");
    assert_eq!(sought.unwrap().answer.unwrap().rtp_info.map(|i| i.seq), Some(18_139));
    let (refused, _) = tokio::join!(session.resume(SOON), recording.answer(488, ""));
    assert_eq!(refused.unwrap().status, 488);
    let silent = async {
        let control = recording.controls.recv().await.unwrap();
        control.reply.send(Err(CommandError::Timeout)).unwrap();
    };
    let (late, ()) = tokio::join!(session.speed(mansrtsp::Scale::NORMAL, SOON), silent);
    assert_eq!(late.unwrap().status, 504);
    assert_eq!(session.info("DANCE RTSP/1.0\r\nCSeq: 9\r\n\r\n".into(), SOON).await.unwrap(), 400);
    assert!(session.verdict().frames > 0);

    recording.events.send(RecordEvent::Finished).await.unwrap();
    assert_eq!(session.wait_finished(SOON).await, Some(121));
    // Who seeks back goes on watching.
    let (again, _) = tokio::join!(session.seek(0, SOON), recording.answer(200, ""));
    assert!(again.unwrap().is_ok());
    let end = session.bye().await;
    assert_eq!((end.bye_status, end.by_lower), (Some(200), false));
    recording.released().await;
    calls(&gateway, "psb", 0).await;
    for action in ["playback.begin", "playback.end"] {
        assert!(recorded(&gateway, action, 1).await[0].1.contains(&format!("t={FROM}-{TO}")));
    }
    ports_free(&gateway).await;
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_and_what_ends_a_recording() {
    let (camera, platform) = (camera().await, platform().await);
    let gateway = compound(34, &[uplink("psb", &platform, "")], &camera).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut device = Device::put(&gateway, 5).await;

    // The end of a download: 121, then the platform's BYE.
    for transport in [MediaTransport::TcpPassive, MediaTransport::TcpActive, MediaTransport::Udp] {
        let (mut session, recording) = playback(&handle, &mut device, &gateway, SessionKind::Download, transport).await;
        assert_eq!((recording.request.kind, recording.request.speed), (SessionKind::Download, 4));
        assert_eq!(session.answer.ssrc, Some(session.offered_ssrc), "echoed");
        pictures(&mut session, 5).await;
        assert!(session.progress().is_some_and(|p| p > 0.0 && p < 1.0));
        recording.events.send(RecordEvent::Finished).await.unwrap();
        let (finished, end) = session.play_to_end(SOON).await;
        assert_eq!((finished, end.bye_status), (Some(121), Some(200)));
        recording.released().await;
    }
    assert_eq!(recorded(&gateway, "download.begin", 3).await.len(), 3);

    // TEARDOWN, the device's end, and its owner's: BYE from us.
    let kind = SessionKind::Playback;
    let (mut session, recording) = playback(&handle, &mut device, &gateway, kind, MediaTransport::Udp).await;
    assert!(session.teardown(SOON).await.unwrap().is_ok());
    assert!(session.wait_bye(SOON).await.is_some());
    recording.released().await;
    let (mut session, recording) = playback(&handle, &mut device, &gateway, kind, MediaTransport::Udp).await;
    recording.events.send(RecordEvent::Ended("its disk is gone".into())).await.unwrap();
    assert!(session.wait_bye(SOON).await.is_some());
    recording.released().await;
    let (mut session, recording) = playback(&handle, &mut device, &gateway, kind, MediaTransport::Udp).await;
    drop(recording);
    assert!(session.wait_bye(SOON).await.is_some());
    ports_free(&gateway).await;
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recordings_that_cannot_be_opened_say_why_and_leave_nothing() {
    let (camera, platform, second) = (camera().await, platform().await, platform_of(SECOND).await);
    let uplinks = [uplink("psb", &platform, ""), uplink("county", &second, "permissions = [\"live\", \"playback\"]")];
    let gateway = compound(35, &uplinks, &camera).await;
    let (handle, weak) = (platform.handle(), second.handle());
    registered(&handle).await;
    registered(&weak).await;
    let mut device = Device::put(&gateway, 5).await;
    let (us, cam, time) = (id(LOCAL), id(&camera_id(5)), (FROM, TO));
    let udp = MediaTransport::Udp;

    let live_only = handle.playback(&us, &id(&camera_id(1)), time, udp).await.unwrap_err();
    assert_eq!(live_only.status, Some(488));
    assert!(live_only.reason.contains("no recording source"), "{}", live_only.reason);
    assert_eq!(weak.download(&us, &cam, time, 4, udp).await.unwrap_err().status, Some(403));
    let ntp = 2_208_988_800;
    assert_eq!(handle.playback(&us, &cam, (FROM + ntp, TO + ntp), udp).await.unwrap_err().status, Some(400));
    for (error, status) in [
        (CommandError::Refused(404), 404),
        (CommandError::Busy("two viewers"), 486),
        (CommandError::Timeout, 504),
        (CommandError::Offline, 503),
    ] {
        let (failure, ()) = tokio::join!(handle.playback(&us, &cam, time, udp), async {
            device.open().await.1.send(Err(error)).unwrap();
        });
        assert_eq!(failure.unwrap_err().status, Some(status));
    }
    // CANCEL while the owner thinks: it is told by nobody listening any more.
    let options = InviteOptions {
        kind: SessionKind::Playback,
        time: Some(time),
        cancel_after: Some(Duration::from_millis(200)),
        ..InviteOptions::default()
    };
    let (failure, ()) = tokio::join!(handle.invite(&us, &cam, options), async {
        let (_, mut reply) = device.open().await;
        tokio::time::timeout(SOON, reply.closed()).await.expect("nobody waits for it any more");
    });
    assert_eq!(failure.unwrap_err().status, Some(487));
    calls(&gateway, "psb", 0).await;
    ports_free(&gateway).await;
    // None of it is a matter of the ladder, which tells of live play.
    let status = gateway.uplinks().borrow()["psb"].borrow().clone();
    let rung = status.ladder.step(menshen::northbound::ladder::Rung::Invite).unwrap();
    assert_eq!(rung.state, menshen::northbound::ladder::RungState::Waiting);
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_platforms_play_one_channel_each_for_itself() {
    let (camera, first, second) = (camera().await, platform().await, platform_of(SECOND).await);
    let gateway = compound(36, &[uplink("psb", &first, ""), uplink("county", &second, "")], &camera).await;
    let mut device = Device::put(&gateway, 5).await;
    let mut running = Vec::new();
    for (n, platform) in [(1, &first), (2, &second)] as [(usize, &SimPlatform); 2] {
        let handle = platform.handle();
        registered(&handle).await;
        let (us, cam) = (id(LOCAL), id(&camera_id(5)));
        let options = InviteOptions {
            kind: SessionKind::Playback,
            time: Some((FROM + n as u64, TO)),
            ..options(ClipLibrary::h264())
        };
        let (session, recording) = tokio::join!(handle.invite(&us, &cam, options), device.record(&gateway, n));
        running.push((session.unwrap(), recording));
    }
    for (session, _) in &mut running {
        pictures(session, 5).await;
    }
    let (mut session, recording) = running.pop().unwrap();
    recording.events.send(RecordEvent::Ended("over".into())).await.unwrap();
    assert!(session.wait_bye(SOON).await.is_some());
    let (mut other, mut recording) = running.pop().unwrap();
    let before = other.verdict().frames;
    pictures(&mut other, before + 5).await;
    let (paused, _) = tokio::join!(other.pause(SOON), recording.answer(200, ""));
    assert!(paused.unwrap().is_ok());
    assert_eq!(other.bye().await.bye_status, Some(200));
    recording.released().await;
    gateway.shutdown().await;
}
