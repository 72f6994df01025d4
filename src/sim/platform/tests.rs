//! The platform against a small lower platform, over real loopback sockets. Every wait has a limit; nothing sleeps.

use super::lower::{Fault, LOWER, Lower, LowerCommand, LowerConfig, PASSWORD, UPPER, camera, id};
use super::*;
use crate::proto::gb28181::UnixMillis;
use crate::proto::manscdp::notify::{Alarm, file_finished};
use crate::proto::manscdp::response::DeviceInfo;
use crate::proto::manscdp::{CatalogChange, CatalogEvent, CatalogItem, DeviceControl, Query, QueryKind, Status};
use crate::proto::sdp::{MediaTransport, Sdp, YForm};
use crate::proto::sip::message::Transport;
use crate::sim::clip::ClipLibrary;
use crate::sim::receiver::{Problem, Verdict};
use tokio::sync::broadcast;

const LIMIT: Duration = Duration::from_secs(10);

async fn platform(edit: impl FnOnce(&mut SimPlatformConfig)) -> SimPlatform {
    let mut config = SimPlatformConfig::on_loopback(id(UPPER), Some(PASSWORD));
    edit(&mut config);
    SimPlatform::start(config).await.unwrap()
}

/// A platform, and a lower platform registered with it.
async fn pair(edit: impl FnOnce(&mut LowerConfig)) -> (SimPlatform, PlatformHandle, Lower) {
    let platform = platform(|_| {}).await;
    let mut config = LowerConfig::new(platform.addr());
    edit(&mut config);
    let lower = Lower::start(config).await;
    let handle = platform.handle();
    handle.wait_registered(&id(LOWER), LIMIT).await.unwrap();
    (platform, handle, lower)
}

async fn news(
    events: &mut broadcast::Receiver<PlatformEvent>,
    wanted: impl Fn(&PlatformEvent) -> bool,
) -> PlatformEvent {
    let found = async {
        loop {
            let event = events.recv().await.unwrap();
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(LIMIT, found).await.expect("news in time")
}

// ---- registration and keepalive ----

#[tokio::test]
async fn registers_with_every_digest_over_both_transports_and_unregisters() {
    for (transport, qop, algorithms, sha) in [
        (Transport::Udp, false, vec![Algorithm::Md5], false),
        (Transport::Udp, true, vec![Algorithm::Sha256], false),
        (Transport::Tcp, true, vec![Algorithm::Md5, Algorithm::Sha256], true),
    ] {
        let platform = platform(|config| {
            config.qop = qop;
            config.algorithms = algorithms;
            config.expires = Duration::from_secs(1800);
        })
        .await;
        let handle = platform.handle();
        let mut config = LowerConfig::new(platform.addr());
        (config.transport, config.prefer_sha256) = (transport, sha);
        let lower = Lower::start(config).await;
        let found = handle.wait_registered(&id(LOWER), LIMIT).await.unwrap();
        assert_eq!((found.flow.transport, found.expires), (transport, Duration::from_secs(1800)));
        assert_eq!((found.version, found.registers), (Some(Version::V2022), 1));
        assert_eq!(found.contact, format!("sip:{LOWER}@{}", lower.local));

        lower.command(LowerCommand::Keepalive(vec![camera(2)])).await;
        let told = handle.wait(&id(LOWER), LIMIT, "keepalive", |l| l.keepalives == 1).await;
        let told = told.unwrap();
        assert_eq!((told.ok, told.faulty), (false, vec![camera(2)]));

        // Answers come on the way the registration came, also over TCP.
        let info = handle.query(&id(LOWER), &id(LOWER), &Query::Plain(QueryKind::DeviceInfo), LIMIT).await.unwrap();
        assert_eq!(DeviceInfo::read(&info).unwrap().device_name.as_deref(), Some("校园网关"));

        lower.command(LowerCommand::Unregister).await;
        let gone = handle.wait(&id(LOWER), LIMIT, "end", |l| !l.is_online()).await.unwrap();
        assert_eq!(gone.offline, Some(OfflineReason::Unregistered));
        let refused = handle.query_catalog(&id(LOWER), LIMIT).await;
        assert_eq!(refused, Err(PlatformError::NotRegistered(id(LOWER))));
        platform.stop().await;
    }
}

#[tokio::test]
async fn refuses_as_told_and_who_has_the_wrong_password() {
    let platform = platform(|config| config.behaviour.reject_register = Some(503)).await;
    let handle = platform.handle();
    let mut events = handle.news();
    let _rejected = Lower::start(LowerConfig::new(platform.addr())).await;
    let refused = |event: &PlatformEvent| matches!(event, PlatformEvent::RegisterRefused { .. });
    let PlatformEvent::RegisterRefused { status: 503, .. } = news(&mut events, refused).await else {
        panic!("503 expected");
    };
    handle.set_behaviour(Behaviour { ignore_registers: 1, ..Behaviour::default() });
    let mut config = LowerConfig::new(platform.addr());
    config.password = "wrong";
    // Its first REGISTER is not answered; over UDP a repetition would be the same transaction: another one must come.
    let _silent = Lower::start(config.clone()).await;
    let _wrong = Lower::start(config).await;
    let PlatformEvent::RegisterRefused { status: 403, id: name } = news(&mut events, refused).await else {
        panic!("403 expected");
    };
    assert_eq!((name.as_str(), handle.behaviour().ignore_registers), (LOWER, 0));
    assert_eq!(handle.registrations(), []);
    let waited = handle.wait_registered(&id(LOWER), Duration::ZERO).await;
    assert!(matches!(waited, Err(PlatformError::Timeout { .. })));
}

#[tokio::test]
async fn sends_lower_platforms_to_another_server() {
    let target = platform(|_| {}).await;
    let to = target.addr();
    let redirecting = platform(|config| config.behaviour.redirect = Some((id(UPPER), to))).await;
    let mut events = redirecting.handle().news();
    let _lower = Lower::start(LowerConfig::new(redirecting.addr())).await;
    let sent_on = PlatformEvent::Redirected { id: id(LOWER), to };
    news(&mut events, |event| *event == sent_on).await;
    target.handle().wait_registered(&id(LOWER), LIMIT).await.unwrap();
    assert_eq!(redirecting.handle().registrations(), []);
}

#[tokio::test]
async fn who_stays_silent_or_loses_its_connection_is_offline() {
    for (missed, transport, why) in
        [(1, Transport::Udp, OfflineReason::NoKeepalive), (0, Transport::Tcp, OfflineReason::ConnectionLost)]
    {
        let platform = platform(|config| {
            config.keepalive = KeepalivePolicy { interval: Duration::from_millis(20), max_missed: missed };
        })
        .await;
        let mut events = platform.handle().news();
        let mut config = LowerConfig::new(platform.addr());
        config.transport = transport;
        let lower = Lower::start(config).await;
        news(&mut events, |event| matches!(event, PlatformEvent::Registered { fresh: true, .. })).await;
        lower.vanish();
        let gone = PlatformEvent::Offline { id: id(LOWER), why };
        news(&mut events, |event| *event == gone).await;
        assert_eq!(platform.handle().registrations()[0].offline, Some(why));
    }
}

#[tokio::test]
async fn a_keepalive_that_is_refused_brings_a_new_registration() {
    let (_platform, handle, lower) = pair(|_| {}).await;
    handle.set_behaviour(Behaviour { keepalive_status: Some(403), ..Behaviour::default() });
    lower.command(LowerCommand::Keepalive(Vec::new())).await;
    let again = handle.wait(&id(LOWER), LIMIT, "new registration", |l| l.registers == 2).await;
    assert_eq!(again.unwrap().keepalives, 0);
}

#[tokio::test]
async fn messages_are_told_and_strangers_refused() {
    let (_platform, handle, lower) = pair(|_| {}).await;
    let mut events = handle.news();
    let profile = Profile::new(Version::V2022);
    let alarm = Alarm {
        priority: 4,
        method: 5,
        time: UnixMillis::from_secs(1_795_439_704),
        description: Some("入侵".to_owned()),
        longitude: None,
        latitude: None,
        alarm_type: Some(6),
        event_type: None,
    };
    lower.command(LowerCommand::Message(alarm.write(profile, 9, &camera(1)))).await;
    let told = PlatformEvent::Alarm { id: id(LOWER), device: camera(1), alarm };
    news(&mut events, |event| *event == told).await;
    lower.command(LowerCommand::Message(file_finished(profile, 10, &camera(1)))).await;
    news(&mut events, |event| matches!(event, PlatformEvent::MediaStatus { notify_type: 121, .. })).await;
    // One MESSAGE is left without answer, and not told.
    handle.set_behaviour(Behaviour { ignore_messages: 1, ..Behaviour::default() });
    for body in [&b"<Ignored>"[..], b"<Notify>"] {
        lower.command(LowerCommand::Message(body.to_vec())).await;
    }
    let refused = |status| PlatformEvent::MessageRefused { id: LOWER.to_owned(), status };
    news(&mut events, |event| *event == refused(400)).await;
    assert_eq!(handle.behaviour().ignore_messages, 0);
    assert!(events.try_recv().is_err());
    lower.command(LowerCommand::Unregister).await;
    news(&mut events, |event| matches!(event, PlatformEvent::Offline { .. })).await;
    lower.command(LowerCommand::Message(file_finished(profile, 11, &camera(1)))).await;
    news(&mut events, |event| *event == refused(403)).await;
}

// ---- queries, commands, subscriptions ----

#[tokio::test]
async fn a_catalogue_is_put_together_from_its_pages() {
    let (_platform, handle, _lower) = pair(|_| {}).await;
    let catalog = handle.query_catalog(&id(LOWER), LIMIT).await.unwrap();
    assert!(catalog.is_complete(), "{catalog:?}");
    assert_eq!((catalog.sum_num, catalog.messages), (Some(4), 2));
    let names: Vec<&str> = catalog.items.iter().map(|item| item.name.as_str()).collect();
    assert_eq!(names, ["教学楼", "东门入口", "三楼走廊（北）", "停车场𠮷"]);
    assert!((500..4000).contains(&catalog.max_message_bytes), "{catalog:?}");
    assert_eq!(catalog.cameras().count(), 3);
}

#[tokio::test]
async fn a_catalogue_that_promises_more_than_it_brings_is_told_as_it_is() {
    let (_platform, handle, _lower) = pair(|config| config.fault = Fault::SumNum).await;
    let catalog = handle.query_catalog(&id(LOWER), Duration::from_millis(300)).await.unwrap();
    assert_eq!((catalog.items.len(), catalog.missing), (4, 1));
    assert!(!catalog.is_complete());
}

#[tokio::test]
async fn commands_reach_the_device_and_silence_has_a_limit() {
    let (_platform, handle, lower) = pair(|_| {}).await;
    let boot = handle.control(&id(LOWER), &camera(1), &DeviceControl::TeleBoot, LIMIT).await;
    let boot = boot.unwrap();
    assert_eq!((boot.status, boot.result), (200, None));
    let guard = DeviceControl::Guard { set: true };
    let armed = handle.control(&id(LOWER), &camera(1), &guard, LIMIT).await.unwrap();
    assert_eq!((armed.status, armed.result), (200, Some(true)));
    let got = state::lock(&lower.controls).clone();
    assert_eq!(got, [DeviceControl::TeleBoot, guard]);
    let status = handle.raw_message(&id(LOWER), "<Query".into(), LIMIT).await;
    assert_eq!(status, Ok(400));
    let query = Query::Plain(QueryKind::PresetQuery);
    let limit = Duration::from_millis(50);
    let silent = handle.query(&id(LOWER), &camera(1), &query, limit).await;
    assert!(matches!(silent, Err(PlatformError::Timeout { .. })), "{silent:?}");
    assert!(state::lock(&handle.shared.answers).is_empty(), "given up and forgotten");
}

#[tokio::test]
async fn a_subscription_brings_changes_until_it_is_cancelled() {
    let (_platform, handle, lower) = pair(|_| {}).await;
    let mut subscription = handle.subscribe_catalog(&id(LOWER), 600, LIMIT).await.unwrap();
    assert_eq!(subscription.granted(), 600);
    let first = subscription.next(LIMIT).await.unwrap();
    assert_eq!((first.changes.len(), first.event.as_str()), (0, subscription.event()));
    let mut renamed = CatalogItem::new(camera(1), "东门出口");
    renamed.status = Some(Status::On);
    let changes =
        vec![CatalogChange::state(CatalogEvent::Off, camera(2)), CatalogChange::of(CatalogEvent::Update, renamed)];
    lower.command(LowerCommand::Notify(changes)).await;
    let second = subscription.next(LIMIT).await.unwrap();
    assert_eq!((second.changes.len(), second.changes[0].event), (2, CatalogEvent::Off));
    assert_eq!(second.changes[1].item.as_ref().unwrap().name, "东门出口");
    assert!(second.cseq > first.cseq && !second.is_terminated());

    // A NOTIFY that is refused is not delivered.
    handle.set_behaviour(Behaviour { notify_status: Some(481), ..Behaviour::default() });
    let change = CatalogChange::state(CatalogEvent::On, camera(2));
    lower.command(LowerCommand::Notify(vec![change])).await;
    let refused = subscription.next(Duration::from_millis(50)).await;
    assert!(matches!(refused, Err(PlatformError::Timeout { .. })));
    handle.set_behaviour(Behaviour::default());

    subscription.refresh(300, LIMIT).await.unwrap();
    assert_eq!(subscription.granted(), 300);
    subscription.cancel(LIMIT).await.unwrap();
    assert!(subscription.next(LIMIT).await.unwrap().is_terminated());
    drop(subscription);
    assert!(state::lock(&handle.shared.subscriptions).is_empty());
}

// ---- calls ----

fn of_clip(n: u32) -> InviteOptions {
    let clips = [ClipLibrary::h264(), ClipLibrary::h265(), ClipLibrary::h264_bframes()];
    InviteOptions { clip: Some(clips[n as usize - 1].clone()), ..InviteOptions::default() }
}

/// Plays a camera until what came is as wanted, and hangs up.
async fn played(
    handle: &PlatformHandle,
    n: u32,
    transport: MediaTransport,
    wanted: impl Fn(&Verdict) -> bool,
) -> SessionEnd {
    let options = InviteOptions { transport, ..of_clip(n) };
    let mut session = handle.invite(&id(LOWER), &camera(n), options).await.unwrap();
    if let Err(error) = session.wait(LIMIT, "the pictures", wanted).await {
        panic!("{error}: {:?}", session.verdict());
    }
    session.bye().await
}

#[tokio::test]
async fn every_camera_arrives_whole_over_every_transport() {
    let (platform, handle, lower) = pair(|_| {}).await;
    for transport in [MediaTransport::Udp, MediaTransport::TcpPassive, MediaTransport::TcpActive] {
        for n in 1..=3 {
            let end = played(&handle, n, transport, |v| v.frames == 50 && v.audio_frames == 25).await;
            assert_eq!((end.bye_status, end.by_lower), (Some(200), false));
            let verdict = &end.verdict;
            assert_eq!(verdict.problems(), [], "camera {n} over {transport:?}");
            assert_eq!((verdict.exact, verdict.keys, verdict.gaps), (50, 2, 0));
            assert_eq!((verdict.audio_bytes, verdict.first_is_key), (25 * 320, Some(true)));
            assert!(verdict.packets > 75 && verdict.first_packet_after <= verdict.first_picture_after);
            assert_eq!(verdict.connections, u64::from(transport.is_tcp()));
        }
    }
    let invites = state::lock(&lower.invites).clone();
    let subject = invites[0].headers.get("Subject").unwrap();
    assert!(subject.starts_with(&format!("{}:00,{UPPER}:", camera(1))), "{subject}");
    let sdp = Sdp::parse(&invites[1].body).unwrap();
    assert_eq!((sdp.session_name.as_str(), sdp.origin_user.as_str()), ("Play", UPPER));
    assert_eq!(sdp.media[0].port % 2, 0);
    assert!(state::lock(&handle.shared.calls).is_empty());
    platform.stop().await;
}

/// What is wrong with the first camera's stream under a fault.
async fn wrong(fault: Fault, wanted: impl Fn(&Verdict) -> bool) -> (Vec<Problem>, Verdict) {
    let (_platform, handle, _lower) = pair(|config| config.fault = fault).await;
    let end = played(&handle, 1, MediaTransport::Udp, wanted).await;
    (end.verdict.problems(), end.verdict)
}

#[tokio::test]
async fn an_altered_byte_is_found_and_named() {
    let (problems, verdict) = wrong(Fault::Altered(7, 123), |v| v.frames == 50).await;
    let [Problem::Altered { pictures: 1, first }] = problems[..] else {
        panic!("{problems:?}");
    };
    assert_eq!((first.picture, first.expected, first.at), (8, Some(7), Some(123)));
    assert_eq!((verdict.exact, verdict.altered, verdict.missing), (49, 1, 0));
}

#[tokio::test]
async fn a_lost_packet_is_found_and_named() {
    let (problems, verdict) = wrong(Fault::Dropped(40), |v| v.frames + v.missing >= 50).await;
    assert!(problems.contains(&Problem::Lost(1)), "{problems:?}");
    assert!(verdict.altered == 0 && verdict.exact >= 45, "{verdict:?}");
    assert_eq!(verdict.gaps, 1);
}

#[tokio::test]
async fn a_wrong_ssrc_is_found_and_named() {
    let (problems, verdict) = wrong(Fault::WrongSsrc, |v| v.wrong_ssrc > 75).await;
    let Problem::WrongSsrc { packets, have, want } = problems[0] else {
        panic!("{problems:?}");
    };
    assert_eq!((have, verdict.frames), (want + 1, 0));
    assert!(packets > 75 && problems.contains(&Problem::Silence));
}

#[tokio::test]
async fn a_missing_marker_and_a_repeated_timestamp_are_found_and_named() {
    let (problems, _) = wrong(Fault::NoMarker(9), |v| v.frames == 50).await;
    assert_eq!(problems, [Problem::MarkerMissing(1)]);
    let (problems, _) = wrong(Fault::SameTimestamp(12), |v| v.frames == 50).await;
    assert_eq!(problems, [Problem::TimestampRepeated(1)]);
}

#[tokio::test]
async fn a_start_without_key_picture_is_found_and_named() {
    let (problems, verdict) = wrong(Fault::LateStart(3), |v| v.keys == 1 && v.frames >= 20).await;
    assert!(problems.contains(&Problem::FirstNotKey) || verdict.ps.undecided_frames > 0, "{problems:?}");
    assert!(!problems.is_empty());
}

#[tokio::test]
async fn refusals_are_values() {
    let (_platform, handle, _lower) = pair(|config| config.fault = Fault::Refuse(486)).await;
    let failed = handle.invite(&id(LOWER), &camera(1), of_clip(1)).await.unwrap_err();
    assert_eq!((failed.status, failed.reason.as_str()), (Some(486), "Busy Here"));
    let failed = handle.invite(&id(LOWER), &camera(77), of_clip(1)).await.unwrap_err();
    assert_eq!(failed.status, Some(404));
    let failed = handle.invite(&id(UPPER), &camera(1), of_clip(1)).await.unwrap_err();
    assert_eq!(failed.status, None);
}

#[tokio::test]
async fn an_offer_can_be_spoilt() {
    let (_platform, handle, lower) = pair(|_| {}).await;
    let options = InviteOptions {
        sdp: Some(Box::new(|mut sdp| {
            sdp.media[0].rtpmaps.clear();
            sdp.media[0].pts = vec![98];
            sdp.to_string().into()
        })),
        tamper: Some(Box::new(|request| request.headers.remove("Subject"))),
        ..of_clip(1)
    };
    let failed = handle.invite(&id(LOWER), &camera(1), options).await.unwrap_err();
    assert_eq!(failed.status, Some(488));
    assert_eq!(state::lock(&lower.invites)[0].headers.get("Subject"), None);
}

#[tokio::test]
async fn an_answer_that_cannot_be_used_is_acknowledged_and_ended() {
    for text in ["", "v=0\r\nm=audio 5000 RTP/AVP 8\r\n", "v=0\r\nc=IN IP4 127.0.0.1\r\nm=video 0 RTP/AVP 96\r\n"] {
        let (_platform, handle, _lower) = pair(|config| config.fault = Fault::BadAnswer(text)).await;
        let failed = handle.invite(&id(LOWER), &camera(1), of_clip(1)).await.unwrap_err();
        assert_eq!(failed.status, Some(200), "{failed}");
        assert!(failed.reason.starts_with("SDP"), "{failed}");
        // The BYE leaves nothing waiting.
        let left = async {
            while handle.sip.counts().await.unwrap().client > 0 && !state::lock(&handle.shared.calls).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, left).await.unwrap();
    }
}

#[tokio::test]
async fn an_invite_without_answer_is_cancelled() {
    let (_platform, handle, _lower) = pair(|config| config.fault = Fault::NoAnswer).await;
    let after = Duration::from_millis(50);
    let options = InviteOptions { cancel_after: Some(after), ..of_clip(1) };
    let failed = handle.invite(&id(LOWER), &camera(1), options).await.unwrap_err();
    assert_eq!((failed.status, failed.reason.as_str()), (Some(487), "Request Terminated"));
    assert!(failed.took >= after);
    let options = InviteOptions { answer_limit: after, ..of_clip(1) };
    let failed = handle.invite(&id(LOWER), &camera(1), options).await.unwrap_err();
    assert_eq!(failed.status, Some(487));
}

#[tokio::test]
async fn the_lower_platform_may_hang_up() {
    let (_platform, handle, _lower) = pair(|config| config.fault = Fault::HangUp).await;
    let mut events = handle.news();
    let mut session = handle.invite(&id(LOWER), &camera(1), of_clip(1)).await.unwrap();
    assert_eq!(session.answer.y_form, YForm::Standard);
    assert_eq!(session.answer.ssrc, Some(session.offered_ssrc));
    let bye = session.wait_bye(LIMIT).await.unwrap();
    assert_eq!(bye.method, "BYE");
    news(&mut events, |event| *event == PlatformEvent::Hangup { channel: camera(1) }).await;
    let end = session.bye().await;
    assert_eq!((end.bye_status, end.by_lower, end.verdict.frames), (None, true, 50));
}

#[tokio::test]
async fn without_ack_nothing_plays_and_a_dropped_session_is_hung_up() {
    let (_platform, handle, lower) = pair(|_| {}).await;
    let options = InviteOptions { ack: false, ..of_clip(1) };
    let mut session = handle.invite(&id(LOWER), &camera(1), options).await.unwrap();
    let silent = session.wait(Duration::from_millis(50), "a packet", |v| v.packets > 0).await;
    assert!(matches!(silent, Err(PlatformError::Timeout { .. })));
    drop(session);
    // The lower platform has no call left: a second BYE would find none, and a new call plays.
    let end = played(&handle, 1, MediaTransport::Udp, |v| v.frames == 50).await;
    assert_eq!(end.verdict.problems(), []);
    assert_eq!(state::lock(&lower.invites).len(), 2);
}

#[tokio::test]
async fn the_program_stream_is_written_to_a_file() {
    let (_platform, handle, _lower) = pair(|_| {}).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dump.ps");
    let options = InviteOptions { dump: Some(path.clone()), ..of_clip(2) };
    let mut session = handle.invite(&id(LOWER), &camera(2), options).await.unwrap();
    session.wait(LIMIT, "the pictures", |v| v.frames == 50).await.unwrap();
    let end = session.bye().await;
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, end.verdict.bytes);
    assert!(bytes.starts_with(&[0, 0, 1, 0xBA]));
}

// ---- for people ----

#[tokio::test]
async fn tells_people_what_happens_and_plays_everything() {
    let mut config = SimPlatformConfig::on_loopback(id(UPPER), Some(PASSWORD));
    // A port that is free now.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    config.listen = free.local_addr().unwrap();
    drop(free);
    let clips = LowerConfig::new(config.listen).clips;
    let lower_config = LowerConfig::new(config.listen);
    let args = PlatformArgs {
        config,
        play: Some(Duration::from_millis(400)),
        transports: vec![MediaTransport::Udp, MediaTransport::TcpPassive],
        clip_of: Some(Arc::new(move |channel: &DeviceId| clips.get(channel).cloned())),
        colour: false,
    };
    let mut out = Vec::new();
    let cancel = CancellationToken::new();
    let running = run_platform(args, &mut out, cancel);
    let lower = async {
        let _lower = Lower::start(lower_config).await;
        std::future::pending::<()>().await
    };
    let whole = tokio::select! {
        biased;
        whole = running => whole.unwrap(),
        () = lower => unreachable!(),
    };
    let text = String::from_utf8(out).unwrap();
    assert!(whole, "{text}");
    for part in
        ["registered from 127.0.0.1:", "SumNum 4", "三楼走廊（北）", "H.265", "tcp-passive", "6 of 6 arrived whole"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains('\x1b'));
}
