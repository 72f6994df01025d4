//! Towards one upper platform: registering in all its ways, and what is refused, with which words.

use crate::raw::*;
use crate::support::*;
use menshen::app::Gateway;
use menshen::northbound::UplinkStatus;
use menshen::northbound::ladder::{Rung, RungState};
use menshen::proto::gb28181::{Profile, Version};
use menshen::proto::manscdp::{CatalogEvent, DeviceControl};
use menshen::proto::sdp::MediaTransport;
use menshen::proto::sip::digest::Algorithm;
use menshen::sim::clip::ClipLibrary;
use menshen::sim::platform::{
    Behaviour, InviteOptions, KeepalivePolicy, PlatformEvent, SimPlatform, SimPlatformConfig, Subscription,
};
use std::net::SocketAddr;
use std::time::Duration;

async fn platform_with(edit: impl FnOnce(&mut SimPlatformConfig)) -> SimPlatform {
    let mut config = SimPlatformConfig::on_loopback(id(SERVER), Some(PASSWORD));
    edit(&mut config);
    SimPlatform::start(config).await.unwrap()
}

/// Waits until the uplink stands as `wanted` says.
async fn stands(gateway: &Gateway, uplink: &str, wanted: impl FnMut(&UplinkStatus) -> bool) -> UplinkStatus {
    let mut book = gateway.uplinks().borrow()[uplink].clone();
    let found = tokio::time::timeout(SOON, book.wait_for(wanted)).await;
    match found {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("{:#?}", gateway.uplinks().borrow()[uplink].borrow().clone()),
    }
}

fn sip(gateway: &Gateway) -> SocketAddr {
    gateway.listeners()[0].local
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_with_every_digest() {
    for (n, (algorithms, qop)) in [
        (vec![Algorithm::Md5], false),
        (vec![Algorithm::Md5], true),
        (vec![Algorithm::Sha256], true),
        (vec![Algorithm::Sha256, Algorithm::Md5], true),
    ]
    .into_iter()
    .enumerate()
    {
        let platform = platform_with(|c| (c.algorithms, c.qop) = (algorithms.clone(), qop)).await;
        let gateway = gateway(&[base(10), uplink("psb", &platform, "")].concat()).await;
        let lower = platform.handle().wait_registered(&id(LOCAL), SOON).await.unwrap();
        assert_eq!(lower.version, Some(Version::V2022), "{n}: X-GB-Ver says what we can do");
        let status = stands(&gateway, "psb", |s| s.registered).await;
        assert_eq!((status.standard, status.charset), ("2022", "GB18030"), "learnt from the platform's X-GB-Ver");
        assert!(status.clock_offset_ms.is_some_and(|ms| ms.abs() < 1_000));
        gateway.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stops_a_registration_is_said_in_words() {
    let platform = platform_with(|c| c.password = Some("another".into())).await;
    let gateway = gateway(&[base(11), uplink("psb", &platform, "")].concat()).await;
    let status = stands(&gateway, "psb", |s| s.state == "waiting").await;
    assert!(status.reason.contains("wrong") || status.reason.contains("403"), "{}", status.reason);
    let rung = status.ladder.step(Rung::Registered).unwrap();
    assert_eq!(rung.state, RungState::Failed);
    assert!(rung.advice.contains("口令"), "{}", rung.advice);
    assert!(status.ladder.step(Rung::Challenge).unwrap().state == RungState::Ok);
    let (mut news, handle) = (platform.handle().news(), platform.handle());
    gateway.shutdown().await;
    assert!(handle.registration(&id(LOCAL)).is_none());
    while let Ok(event) = news.try_recv() {
        assert!(!matches!(event, PlatformEvent::RegisterRefused { .. }), "no second try within the minute");
    }

    let platform = platform_with(|c| c.behaviour.reject_register = Some(404)).await;
    let gateway = crate::support::gateway(&[base(11), uplink("psb", &platform, "")].concat()).await;
    let status = stands(&gateway, "psb", |s| s.state == "waiting").await;
    assert!(status.reason.contains("404"), "{}", status.reason);
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_followed() {
    let second = platform_of(SECOND).await;
    let first = platform_with(|c| c.behaviour.redirect = Some((id(SECOND), second.addr()))).await;
    let gateway = gateway(&[base(12), uplink("psb", &first, "")].concat()).await;
    let handle = second.handle();
    handle.wait(&id(LOCAL), SOON, "a keepalive", |l| l.is_online() && l.keepalives > 0).await.unwrap();
    assert!(first.handle().registration(&id(LOCAL)).is_none());
    let status = stands(&gateway, "psb", |s| s.registered).await;
    assert_eq!((status.server_id.as_str(), status.server_addr), (SECOND, second.addr().to_string()));
    // The platform we were sent to is asked and answered like the configured one.
    assert!(handle.query_catalog(&id(LOCAL), SOON).await.unwrap().is_complete());
    gateway.shutdown().await;
    assert!(handle.registration(&id(LOCAL)).is_none_or(|l| !l.is_online()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_keepalive_registers_at_once() {
    let platform = platform_with(|c| c.keepalive = KeepalivePolicy { max_missed: 0, ..Default::default() }).await;
    let handle = platform.handle();
    handle.set_behaviour(Behaviour { keepalive_status: Some(404), ..Behaviour::default() });
    let gateway = gateway(&[base(13), uplink("psb", &platform, "")].concat()).await;
    handle.wait(&id(LOCAL), SOON, "a second REGISTER", |l| l.registers >= 2).await.unwrap();
    handle.set_behaviour(Behaviour::default());
    handle.wait(&id(LOCAL), SOON, "a keepalive", |l| l.keepalives > 0 && l.is_online()).await.unwrap();
    stands(&gateway, "psb", |s| s.registered).await;
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn areas_are_groups_and_organisations() {
    let camera = camera().await;
    for (profile, groups) in [(Version::V2022, true), (Version::V2016, true), (Version::V2011, false)] {
        let platform = platform_with(|c| c.profile = Profile::new(profile)).await;
        let text = [
            base(14),
            "[[area]]\nid = \"east_gate\"\nname = \"东门\"\n[[area]]\nid = \"empty\"\nname = \"空\"\n".into(),
            uplink("psb", &platform, ""),
            camera_section(1, &camera.url("/h264"), "area = \"east_gate\""),
            camera_section(2, &camera.url("/h264"), ""),
        ]
        .concat();
        let gateway = gateway(&text).await;
        registered(&platform.handle()).await;
        stands(&gateway, "psb", |s| s.standard.starts_with(&profile_year(profile))).await;
        let all = platform.handle().query_catalog(&id(LOCAL), SOON).await.unwrap();
        assert!(all.is_complete(), "{all:?}");
        let types: Vec<_> = all.items.iter().filter_map(|i| i.device_id.type_code()).collect();
        let first = all.items.iter().find(|i| i.device_id == id(&camera_id(1))).unwrap();
        if groups {
            assert_eq!(types, [200, 215, 216, 132, 132], "parents first, no empty organisation");
            let organisation = &all.items[2];
            assert_eq!(
                (organisation.name.as_str(), organisation.business_group_id),
                ("东门", Some(all.items[1].device_id))
            );
            assert_eq!(first.parent_id, [organisation.device_id]);
        } else {
            assert_eq!(types, [200, 132, 132]);
            assert_eq!(first.parent_id, [id(LOCAL)]);
        }
        assert_eq!(first.civil_code.as_deref(), Some("411300"));
        gateway.shutdown().await;
    }
}

fn profile_year(version: Version) -> String {
    match version {
        Version::V2011 => "2011",
        Version::V2016 => "2016",
        _ => "2022",
    }
    .into()
}

async fn changes(subscription: &mut Subscription) -> Vec<(CatalogEvent, String)> {
    let notice = subscription.next(SOON).await.expect("a notice in time");
    notice.changes.into_iter().map(|c| (c.event, c.device_id.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_hears_of_every_change() {
    let (camera, platform) = (camera().await, platform().await);
    let nowhere = "rtsp://127.0.0.1:9/none";
    let common = [base(15), uplink("psb", &platform, "")].concat();
    let (one, two, three) =
        (camera_section(1, &camera.url("/h264"), ""), camera_section(2, nowhere, ""), camera_section(3, nowhere, ""));
    let mut gateway = gateway(&[common.as_str(), &one, &two].concat()).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut directory = gateway.directory().watch();
    let probed = directory.wait_for(|d| d.channels.values().all(|c| c.state.online.is_some()));
    tokio::time::timeout(SOON, probed).await.expect("both cameras are probed").unwrap();
    let mut subscription = handle.subscribe_catalog(&id(LOCAL), 600, SOON).await.unwrap();
    assert_eq!(subscription.granted(), 600);
    assert_eq!(changes(&mut subscription).await, [(CatalogEvent::Off, camera_id(2))], "first what is off");
    gateway.reload(config(&[common.as_str(), &one, &two, &three].concat())).await.unwrap();
    assert_eq!(changes(&mut subscription).await, [(CatalogEvent::Add, camera_id(3))]);
    let renamed = one.replace("通道1", "北门");
    gateway.reload(config(&[common.as_str(), &renamed, &two, &three].concat())).await.unwrap();
    assert_eq!(changes(&mut subscription).await, [(CatalogEvent::Update, camera_id(1))]);
    gateway.reload(config(&[common.as_str(), &renamed, &two].concat())).await.unwrap();
    assert_eq!(changes(&mut subscription).await, [(CatalogEvent::Del, camera_id(3))]);
    subscription.refresh(300, SOON).await.unwrap();
    assert_eq!(changes(&mut subscription).await, [(CatalogEvent::Off, camera_id(2))], "a refresh tells how it stands");
    let url = camera.url("/h264");
    gateway.reload(config(&[common.as_str(), &renamed, &two.replace(nowhere, &url)].concat())).await.unwrap();
    assert_eq!(changes(&mut subscription).await, [(CatalogEvent::On, camera_id(2))]);
    subscription.cancel(SOON).await.unwrap();
    assert!(subscription.next(SOON).await.unwrap().is_terminated());
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_that_lost_us_is_told_everything_again() {
    let platform = platform_with(|c| c.keepalive = KeepalivePolicy { max_missed: 0, ..Default::default() }).await;
    let text = [base(16), uplink("psb", &platform, ""), camera_section(1, "rtsp://127.0.0.1:9/none", "")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut subscription = handle.subscribe_catalog(&id(LOCAL), 600, SOON).await.unwrap();
    changes(&mut subscription).await;
    handle.set_behaviour(Behaviour { keepalive_status: Some(481), ..Behaviour::default() });
    assert_eq!(changes(&mut subscription).await, [(CatalogEvent::Off, camera_id(1))]);
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_built_is_refused_truthfully() {
    let (camera, platform) = (camera().await, platform().await);
    let more = "permissions = [\"live\", \"ptz\", \"guard\"]";
    let text = [base(17), uplink("psb", &platform, more), camera_section(1, &camera.url("/h264"), "")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let (us, cam, unknown) = (id(LOCAL), camera_id(1), camera_id(99));
    let mut raw = RawPeer::new(sip(&gateway)).await;

    let mut ask = async |body: String| {
        let answer = raw.ask("MESSAGE", US, &[MANSCDP], &body).await;
        (status(&answer), answer)
    };
    for (inner, wanted) in [
        ("<PTZCmd>A50F0001400000F5</PTZCmd>", 403),
        ("<TeleBoot>Boot</TeleBoot>", 403),
        ("<IFameCmd>Send</IFameCmd>", 200),
        ("<IFrameCmd>Send</IFrameCmd>", 200),
    ] {
        let (status, answer) = ask(manscdp("Control", "DeviceControl", &cam, inner)).await;
        assert_eq!(status, wanted, "{inner}: {answer}");
        assert_eq!(answer.contains("\r\nReason: SIP;cause=403;text=\""), wanted == 403, "{answer}");
        let (status, _) = ask(manscdp("Control", "DeviceControl", &unknown, inner)).await;
        assert_eq!(status, 404, "{inner}");
    }
    let (status, answer) = ask(manscdp("Control", "DeviceConfig", &cam, "<BasicParam/>")).await;
    assert!(status == 403 && answer.contains("not permitted"), "{answer}");
    for (body, wanted) in [
        (manscdp("Notify", "SensorCatalog", US, ""), 200),
        ("<Notify><CmdType>Odd</CmdType></Notify>".to_owned(), 200),
        (manscdp("Query", "DeviceStatus", &unknown, ""), 404),
        (manscdp("Query", "DeviceStatus", "4113000058132000000X", ""), 400),
        ("no xml".to_owned(), 400),
    ] {
        assert_eq!(ask(body.clone()).await.0, wanted, "{body}");
    }
    let answer = raw.ask("MESSAGE", US, &["Content-Type: text/plain"], "x").await;
    assert!(status_line(&answer).starts_with("415") && answer.contains("Accept: Application/MANSCDP+xml"), "{answer}");

    // Commands with an answer of their own say ERROR in it; lists are empty.
    let guard = DeviceControl::Guard { set: true };
    let outcome = handle.control(&us, &id(&cam), &guard, SOON).await.unwrap();
    assert_eq!((outcome.status, outcome.result), (200, Some(false)));
    for cmd in ["RecordInfo", "PresetQuery", "SDCardStatus", "ConfigDownload"] {
        assert_eq!(status_of(&mut raw, &manscdp("Query", cmd, &cam, "")).await, 200, "{cmd}");
    }

    // Subscriptions: the catalogue and alarms alone.
    let alarm = manscdp("Query", "Alarm", US, "");
    let position = manscdp("Query", "MobilePosition", US, "");
    for (event, body) in [("presence", position.as_str()), ("Catalog", &position), ("message-summary", "")] {
        let event = format!("Event: {event}");
        let answer = raw.ask("SUBSCRIBE", US, &[&event, "Expires: 600", MANSCDP], body).await;
        assert!(status_line(&answer).starts_with("489"), "{event}: {answer}");
        assert!(answer.contains("\r\nAllow-Events: Catalog"), "{answer}");
    }
    let catalog = manscdp("Query", "Catalog", &unknown, "");
    let answer = raw.ask("SUBSCRIBE", US, &["Event: Catalog;id=1", "Expires: 600", MANSCDP], &catalog).await;
    assert!(status_line(&answer).starts_with("404"), "{answer}");
    let answer = raw.ask("OPTIONS", US, &[], "").await;
    assert!(answer.starts_with("SIP/2.0 200") && answer.contains("SUBSCRIBE"), "{answer}");
    let answer = raw.ask("MESSAGE", US, &["Require: gb-nonsense", MANSCDP], &alarm).await;
    assert!(status_line(&answer).starts_with("420") && answer.contains("Unsupported: gb-nonsense"), "{answer}");
    gateway.shutdown().await;
}

fn status_line(answer: &str) -> &str {
    answer.strip_prefix("SIP/2.0 ").and_then(|a| a.lines().next()).unwrap_or(answer)
}

async fn status_of(raw: &mut RawPeer, body: &str) -> u16 {
    let answer = raw.ask("MESSAGE", US, &[MANSCDP], body).await;
    status(&answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invites_that_cannot_be_served_say_why() {
    let (camera, platform) = (camera().await, platform().await);
    let text = [
        base(18),
        uplink("psb", &platform, "max_sessions = 1"),
        camera_section(1, &camera.url("/h264"), ""),
        camera_section(2, "rtsp://127.0.0.1:9/none", ""),
    ]
    .concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut raw = RawPeer::new(sip(&gateway)).await;
    let (cam, good) = (camera_id(1), offer("127.0.0.1", 9000, "0100000001"));
    let no_ps = good.replace("RTP/AVP 96", "RTP/AVP 98").replace("96 PS", "98 H264");
    for (wanted, user, headers, body) in [
        (404, camera_id(99), vec![SDP], good.clone()),
        (415, cam.clone(), vec![MANSCDP], good.clone()),
        (406, cam.clone(), vec![SDP, "Accept: text/plain"], good.clone()),
        (400, cam.clone(), vec![SDP], "v=0\r\nnonsense\r\n".into()),
        (488, cam.clone(), vec![SDP], no_ps),
        (488, cam.clone(), vec![SDP], String::new()),
        (488, cam.clone(), vec![SDP], good.replace("s=Play", "s=Playback").replace("t=0 0", "t=1 2")),
        (488, cam.clone(), vec![SDP], good.replace("IP4 127.0.0.1", "IP6 ::1")),
        (403, cam.clone(), vec![SDP], good.replace("127.0.0.1", "169.254.3.4")),
        (503, camera_id(2), vec![SDP], good.clone()),
    ] {
        let answer = raw.ask("INVITE", &user, &headers, &body).await;
        assert_eq!(status(&answer), wanted, "{answer}");
        assert!(answer.contains(&format!("\r\nReason: SIP;cause={wanted};text=\"")), "{answer}");
        raw.ack(&user, &answer).await;
    }
    stands(&gateway, "psb", |s| {
        s.calls.is_empty() && s.ladder.step(Rung::Invite).is_some_and(|r| r.evidence.starts_with("503"))
    })
    .await;
    ports_free(&gateway).await;

    let mut session = invite(&handle, 1, options(ClipLibrary::h264())).await;
    pictures(&mut session, 5).await;
    let busy = handle.invite(&id(LOCAL), &id(&cam), InviteOptions::default()).await.unwrap_err();
    assert_eq!(busy.status, Some(486));
    assert!(busy.reason.contains("max_sessions"), "{}", busy.reason);
    let info = session.info("PAUSE RTSP/1.0\r\n".into(), SOON).await.unwrap();
    assert_eq!(info, 488);
    assert_eq!(session.bye().await.bye_status, Some(200));
    stands(&gateway, "psb", |s| s.calls.is_empty()).await;
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_invite_is_487_and_leaves_nothing() {
    let (camera, platform) = (camera().await, platform().await);
    camera.handle.delay_describe(Duration::from_secs(5));
    let text = [base(19), uplink("psb", &platform, ""), camera_section(1, &camera.url("/h264"), "")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let cancel = InviteOptions { cancel_after: Some(Duration::from_millis(300)), ..InviteOptions::default() };
    let failure = handle.invite(&id(LOCAL), &id(&camera_id(1)), cancel).await.unwrap_err();
    assert_eq!(failure.status, Some(487));
    stands(&gateway, "psb", |s| s.calls.is_empty()).await;
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_subject_again_replaces_the_old_session() {
    let (camera, platform) = (camera().await, platform().await);
    let text = [base(20), uplink("psb", &platform, ""), camera_section(1, &camera.url("/h264"), "")].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let with_subject = |text: String| InviteOptions {
        tamper: Some(Box::new(move |request| request.headers.set("Subject", text))),
        ..options(ClipLibrary::h264())
    };
    let subject = format!("{}:0,{SERVER}:1", camera_id(1));
    let mut old = invite(&handle, 1, with_subject(subject.clone())).await;
    pictures(&mut old, 5).await;
    let mut other = invite(&handle, 1, with_subject(subject.replace(":1", ":2"))).await;
    let mut new = invite(&handle, 1, with_subject(subject.replace(',', " , "))).await;
    assert!(old.wait_bye(SOON).await.is_some(), "the old one is ended by us");
    pictures(&mut new, 5).await;
    pictures(&mut other, 5).await;
    assert_eq!(other.bye().await.bye_status, Some(200), "another window of the same camera goes on");
    assert_eq!(new.bye().await.bye_status, Some(200));
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bye_goes_where_its_invite_came_from() {
    let (camera, platform) = (camera().await, Yes::new().await);
    let addr = platform.socket.local_addr().unwrap();
    let uplink = format!("[[uplink]]\nname = \"psb\"\nserver_id = \"{SERVER}\"\nserver_addr = \"{addr}\"\n");
    let without = [base(21), uplink].concat();
    let mut gateway = gateway(&[without.as_str(), &camera_section(1, &camera.url("/h264"), "")].concat()).await;
    platform.next("REGISTER").await;
    let mut raw = RawPeer::new(sip(&gateway)).await;
    let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let body = offer("127.0.0.1", sink.local_addr().unwrap().port(), "0100000007");
    let subject = subject(&camera_id(1), 1);
    let answer = raw.ask("INVITE", &camera_id(1), &[SDP, &subject], &body).await;
    assert!(answer.starts_with("SIP/2.0 200") && answer.contains("y=0100000007"), "{answer}");
    raw.ack(&camera_id(1), &answer).await;
    let mut buf = [0; 2048];
    tokio::time::timeout(SOON, sink.recv(&mut buf)).await.expect("pictures after the ACK").unwrap();
    let again = raw.ask("INVITE", &camera_id(1), &[SDP, "Subject: x"], &body).await;
    assert_eq!(status(&again), 200, "another call, without a Subject that says anything");
    gateway.reload(config(&without)).await.unwrap();
    let mut bye = raw.receive().await;
    while !bye.starts_with("BYE") {
        bye = raw.receive().await;
    }
    assert!(bye.contains("tag=raw1"), "{bye}");
    let (stop, unregister) = tokio::join!(gateway.shutdown(), platform.next("REGISTER"));
    let () = stop;
    assert!(unregister.contains("Expires: 0"), "{unregister}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_platforms_with_each_others_codes_do_not_mix() {
    // The first calls itself what we call ourselves towards the second, and the other way round.
    let (camera, first, second) = (camera().await, platform_of(SERVER).await, platform_of(SECOND).await);
    let text = [
        base(22),
        uplink("a", &first, &format!("local_id = \"{SECOND}\"\nshare = [\"{}\"]", camera_id(1))),
        uplink("b", &second, &format!("local_id = \"{SERVER}\"\nshare = [\"{}\"]", camera_id(2))),
        camera_section(1, &camera.url("/h264"), ""),
        camera_section(2, &camera.url("/h265"), ""),
    ]
    .concat();
    let gateway = gateway(&text).await;
    for (platform, local, sees, hidden) in [(&first, SECOND, 1, 2), (&second, SERVER, 2, 1)] {
        let handle = platform.handle();
        handle.wait_registered(&id(local), SOON).await.unwrap();
        let all = handle.query_catalog(&id(local), SOON).await.unwrap();
        let cameras: Vec<String> = all.cameras().map(|c| c.device_id.to_string()).collect();
        assert_eq!(cameras, [camera_id(sees)]);
        let refused = handle.invite(&id(local), &id(&camera_id(hidden)), InviteOptions::default()).await;
        assert_eq!(refused.unwrap_err().status, Some(404));
        let mut session = handle.invite(&id(local), &id(&camera_id(sees)), InviteOptions::default()).await.unwrap();
        pictures(&mut session, 5).await;
        assert_eq!(session.bye().await.bye_status, Some(200));
    }
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_uplink_says_goodbye_and_comes_again() {
    let (camera, platform, second) = (camera().await, platform().await, platform_of(SECOND).await);
    let cameras = camera_section(1, &camera.url("/h264"), "");
    let with = |more: &str| {
        [base(23), uplink("psb", &platform, more), uplink("county", &second, ""), cameras.clone()].concat()
    };
    let mut gateway = gateway(&with("")).await;
    let (a, b) = (platform.handle(), second.handle());
    registered(&a).await;
    registered(&b).await;
    let mut going = invite(&a, 1, options(ClipLibrary::h264())).await;
    let mut staying = invite(&b, 1, options(ClipLibrary::h264())).await;
    pictures(&mut going, 5).await;
    let mut news = a.news();
    let summary = gateway.reload(config(&with("max_sessions = 5"))).await.unwrap();
    assert_eq!(summary.done, ["uplink psb changed"]);
    assert!(going.wait_bye(SOON).await.is_some());
    let mut order = Vec::new();
    while order.len() < 2 {
        match tokio::time::timeout(SOON, news.recv()).await.unwrap().unwrap() {
            PlatformEvent::Offline { .. } => order.push("offline"),
            PlatformEvent::Registered { .. } => order.push("registered"),
            _ => {}
        }
    }
    assert_eq!(order, ["offline", "registered"]);
    let before = staying.verdict().frames;
    pictures(&mut staying, before + 10).await;
    assert_eq!(staying.bye().await.bye_status, Some(200));
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_goodbye_has_a_limit_when_nobody_answers() {
    let (camera, platform) = (camera().await, platform().await);
    let text = [base(24), uplink("psb", &platform, ""), camera_section(1, &camera.url("/h264"), "")].concat();
    let gateway = gateway(&text).await;
    registered(&platform.handle()).await;
    platform.handle().set_behaviour(Behaviour { ignore_registers: 1000, ..Behaviour::default() });
    #[allow(clippy::disallowed_methods, reason = "the test measures real time")]
    let began = std::time::Instant::now();
    gateway.shutdown().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_secs(3), "it waited for an answer: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_chosen_by_number_and_the_last_one_stands_in() {
    let (camera, platform) = (camera().await, platform().await);
    let streams =
        format!("streams = [{{ rtsp = \"{}\" }}, {{ rtsp = \"{}\" }}]", camera.url("/h264"), camera.url("/h265"));
    let section = camera_section(1, "x", &streams).replace("rtsp = \"x\"\n", "");
    let text = [base(25), uplink("psb", &platform, "stream = 1"), section].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    for (stream_number, clip) in [
        (Some(0), ClipLibrary::h264()),
        (Some(1), ClipLibrary::h265()),
        (Some(5), ClipLibrary::h265()),
        (None, ClipLibrary::h265()),
    ] {
        let transport = MediaTransport::TcpPassive;
        let mut session = invite(&handle, 1, InviteOptions { stream_number, transport, ..options(clip) }).await;
        pictures(&mut session, 5).await;
        let f = session.sdp.f.expect("f= says what is sent");
        assert!(f.video.codec.is_some());
        let end = session.bye().await;
        assert_eq!((end.verdict.altered, end.verdict.lost), (0, 0), "{stream_number:?}");
    }
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_catalogue_query_does_not_wait_for_the_old_one() {
    let (camera, platform) = (camera().await, platform().await);
    let cameras: String = (1..=12).map(|n| camera_section(n, &camera.url("/h264"), "")).collect();
    let text = [base(26), uplink("psb", &platform, "catalog_items_per_message = 1"), cameras].concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    // The old answer's first page hears nothing: its transaction goes on for half a minute.
    let mut raw = RawPeer::new(sip(&gateway)).await;
    handle.set_behaviour(Behaviour { ignore_messages: 1, ..Behaviour::default() });
    assert_eq!(status_of(&mut raw, &manscdp("Query", "Catalog", US, "")).await, 200);
    let all = handle.query_catalog(&id(LOCAL), SOON).await.unwrap();
    assert!(all.is_complete(), "{all:?}");
    assert_eq!(all.messages, 13);
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_that_restarts_finds_its_registration_and_faults_again() {
    let (camera, platform) = (camera().await, platform().await);
    let addr = platform.addr();
    let text = [
        base(27),
        uplink("psb", &platform, "transport = \"tcp\""),
        camera_section(1, &camera.url("/h264"), ""),
        camera_section(2, "rtsp://127.0.0.1:9/none", ""),
    ]
    .concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    let faulty = [id(&camera_id(2))];
    handle.wait(&id(LOCAL), SOON, "the fault", |l| l.faulty == faulty).await.unwrap();
    let mut session = invite(&handle, 1, options(ClipLibrary::h264())).await;
    pictures(&mut session, 5).await;
    platform.stop().await;
    // The connection has ended: the platform is away, and what it watched ends.
    let status = stands(&gateway, "psb", |s| s.state == "waiting" && s.calls.is_empty()).await;
    assert!(!status.reason.is_empty());
    drop(session);
    let again = SimPlatform::start(SimPlatformConfig {
        listen: addr,
        // Other Call-IDs and branches than in its first life.
        seed: 2,
        ..SimPlatformConfig::on_loopback(id(SERVER), Some(PASSWORD))
    })
    .await
    .unwrap();
    let handle = again.handle();
    handle.wait(&id(LOCAL), SOON, "the registration", |l| l.is_online()).await.unwrap();
    handle.wait(&id(LOCAL), SOON, "the fault", |l| l.faulty == faulty).await.unwrap();
    let mut session = invite(&handle, 1, options(ClipLibrary::h264())).await;
    pictures(&mut session, 5).await;
    session.bye().await;
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn media_of_2022_and_2016_platforms_over_three_transports_answers_the_offer() {
    let camera = camera().await;
    for (slice, version) in [(28, Version::V2016), (29, Version::V2022)] {
        let platform = platform_with(|c| c.profile = Profile::new(version)).await;
        let text =
            [base(slice), uplink("psb", &platform, "ssrc = \"own\""), camera_section(1, &camera.url("/h264"), "")];
        let gateway = gateway(&text.concat()).await;
        let handle = platform.handle();
        registered(&handle).await;
        for transport in [MediaTransport::Udp, MediaTransport::TcpPassive, MediaTransport::TcpActive] {
            let mut session = invite(&handle, 1, InviteOptions { transport, ..options(ClipLibrary::h264()) }).await;
            assert_eq!(session.provisional, [100]);
            assert_ne!(session.answer.ssrc, Some(session.offered_ssrc), "our own SSRC");
            assert!(session.sdp.y.as_deref().is_some_and(|y| y.starts_with("000058") || y.starts_with("0")));
            pictures(&mut session, 5).await;
            let end = session.bye().await;
            assert_eq!((end.bye_status, end.verdict.lost, end.verdict.altered), (Some(200), 0, 0));
        }
        gateway.shutdown().await;
    }
}
