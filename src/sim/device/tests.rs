//! The device against the simulated upper platform, and against a bare UDP socket. Every wait has a limit; nothing
//! sleeps.

use super::answers::{Reply, reply};
use super::*;
use crate::proto::gb28181::UnixMillis;
use crate::proto::manscdp::catalog::CatalogResponse;
use crate::proto::manscdp::notify::Alarm;
use crate::proto::manscdp::ptz::PresetAction;
use crate::proto::manscdp::request::{AlarmQuery, DrawnBox, RecordQuery};
use crate::proto::manscdp::response::read_result;
use crate::proto::manscdp::{
    CatalogEvent, DeviceControl, Incoming, PtzCommand, Query, QueryKind, Status, parse, query,
};
use crate::proto::mansrtsp;
use crate::proto::sdp::{MediaTransport, SessionKind};
use crate::proto::sip::message::{Headers, Message, Request, Response};
use crate::proto::sip::parse::parse_datagram;
use crate::sim::platform::{InviteOptions, PlatformError, PlatformHandle, Session, SimPlatform, SimPlatformConfig};
use crate::sim::receiver::{Problem, Verdict};
use md5::{Digest, Md5};
use tokio::net::UdpSocket;

const LIMIT: Duration = Duration::from_secs(20);
const DEVICE: &str = "41130000581180000001";
const PLATFORM: &str = "41130000002000000002";
const PASSWORD: &str = "12345678";

fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

fn camera(serial: u32) -> DeviceId {
    DeviceId::mint(&DEVICE[..10], 132, 0, serial).unwrap()
}

fn config(server: SocketAddr) -> SimDeviceConfig {
    SimDeviceConfig {
        channels: SimChannel::numbered(&id(DEVICE), 3).unwrap(),
        speed: 10,
        ..SimDeviceConfig::on_loopback(id(DEVICE), PASSWORD, id(PLATFORM), server)
    }
}

/// A platform, and a device registered with it.
struct Pair {
    platform: PlatformHandle,
    handle: DeviceHandle,
    device: SimDevice,
    _platform: SimPlatform,
}

async fn pair(edit: impl FnOnce(&mut SimDeviceConfig)) -> Pair {
    let platform = SimPlatform::start(SimPlatformConfig::on_loopback(id(PLATFORM), Some(PASSWORD))).await.unwrap();
    let mut config = config(platform.addr());
    edit(&mut config);
    let device = SimDevice::start(config).await.unwrap();
    device.handle().wait_registered(LIMIT).await.unwrap();
    Pair { platform: platform.handle(), handle: device.handle(), device, _platform: platform }
}

fn shared(edit: impl FnOnce(&mut SimDeviceConfig)) -> Shared {
    let addr = SocketAddr::from(([127, 0, 0, 1], 5060));
    let mut config = config(addr);
    edit(&mut config);
    Shared::new(config, addr, addr, StdRng::seed_from_u64(1))
}

impl Pair {
    async fn invite(&self, serial: u32, edit: impl FnOnce(&mut InviteOptions)) -> Session {
        let channel = self.handle.channels().iter().find(|channel| channel.id == camera(serial)).cloned().unwrap();
        let mut options = InviteOptions { clip: Some(channel.clip), ..InviteOptions::default() };
        edit(&mut options);
        self.platform.invite(&id(DEVICE), &channel.id, options).await.unwrap()
    }

    async fn status(&self, serial: u32) -> Option<u16> {
        self.cancelled(serial, None).await
    }

    async fn cancelled(&self, serial: u32, cancel_after: Option<Duration>) -> Option<u16> {
        let options = InviteOptions { cancel_after, answer_limit: LIMIT, ..InviteOptions::default() };
        self.platform.invite(&id(DEVICE), &camera(serial), options).await.err().and_then(|failure| failure.status)
    }

    async fn control(&self, control: DeviceControl) -> Option<bool> {
        let outcome = self.platform.control(&id(DEVICE), &camera(1), &control, LIMIT).await.unwrap();
        assert_eq!(outcome.status, 200);
        outcome.result
    }

    /// Waits until so many recordings have been played to their end.
    async fn finished(&self, count: u64) {
        self.handle.wait(LIMIT, "the end of a recording", |s| s.recordings_finished == count).await.unwrap();
    }

    /// What a fault of media does to a stream.
    async fn struck(
        &self,
        edit: impl FnOnce(&mut MediaFaults),
        wanted: impl FnMut(&Verdict) -> bool,
    ) -> (Vec<Problem>, Verdict) {
        self.handle.set_faults(|faults| {
            faults.media = MediaFaults::default();
            edit(&mut faults.media);
        });
        let mut session = self.invite(1, |_| {}).await;
        session.wait(LIMIT, "what the fault does", wanted).await.unwrap();
        let verdict = session.bye().await.verdict;
        (verdict.problems(), verdict)
    }
}

fn recorded(kind: SessionKind, seconds: u64) -> impl FnOnce(&mut InviteOptions) {
    move |options| (options.kind, options.time) = (kind, Some((1_000_000, 1_000_000 + seconds)))
}

// ---- registration and alarms, against a bare socket ----

/// A platform of a few lines: reads and writes whole messages, decides nothing.
struct Bare {
    socket: UdpSocket,
    peer: SocketAddr,
}

impl Bare {
    async fn bind() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let peer = socket.local_addr().unwrap();
        Bare { socket, peer }
    }

    async fn message(&mut self) -> Message {
        let mut bytes = vec![0; 65_536];
        let (length, peer) = tokio::time::timeout(LIMIT, self.socket.recv_from(&mut bytes)).await.unwrap().unwrap();
        self.peer = peer;
        parse_datagram(&bytes[..length]).unwrap()
    }

    /// The next request of a method; responses and repetitions of others are passed over.
    async fn request(&mut self, method: &str) -> Request {
        loop {
            match self.message().await {
                Message::Request(request) if request.method == method => return request,
                Message::Request(request) => self.answer(&request, 200, &[]).await,
                Message::Response(_) => {}
            }
        }
    }

    /// The next MESSAGE of a CmdType.
    async fn manscdp(&mut self, cmd_type: &str) -> (Request, Incoming) {
        loop {
            let request = self.request("MESSAGE").await;
            let incoming = parse(&request.body, None).unwrap();
            if incoming.cmd_type == cmd_type {
                return (request, incoming);
            }
            self.answer(&request, 200, &[]).await;
        }
    }

    async fn answer(&self, request: &Request, status: u16, more: &[(&str, &str)]) {
        let mut headers = Headers::new();
        for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
            let tag = if name == "To" { ";tag=bare" } else { "" };
            headers.push(name, format!("{}{tag}", request.headers.get(name).unwrap()));
        }
        more.iter().for_each(|(name, value)| headers.push(*name, *value));
        let response = Response { status, reason: "Said so".to_owned(), headers, body: bytes::Bytes::new() };
        self.socket.send_to(&response.to_bytes(), self.peer).await.unwrap();
    }

    async fn ask(&self, number: u32, body: Vec<u8>) {
        let call_id = format!("bare-{number}");
        self.send("MESSAGE", &call_id, number, &id(DEVICE), "", ("Application/MANSCDP+xml", body)).await;
    }

    /// A request; `tag` is the device's inside a dialog.
    async fn send(
        &self,
        method: &str,
        call_id: &str,
        number: u32,
        to: &DeviceId,
        tag: &str,
        (content_type, body): (&str, Vec<u8>),
    ) {
        let local = self.socket.local_addr().unwrap();
        let tag = if tag.is_empty() { String::new() } else { format!(";tag={tag}") };
        let mut headers = Headers::new();
        headers.push("Via", format!("SIP/2.0/UDP {local};rport;branch=z9hG4bK-{call_id}-{number}-{method}"));
        headers.push("From", format!("<sip:{PLATFORM}@4113000000>;tag=bare"));
        headers.push("To", format!("<sip:{to}@4113000058>{tag}"));
        headers.push("Call-ID", call_id);
        headers.push("CSeq", format!("{number} {method}"));
        headers.push("Max-Forwards", "70");
        headers.push("Contact", format!("<sip:{PLATFORM}@{local}>"));
        if !body.is_empty() {
            headers.push("Content-Type", content_type);
        }
        let uri = format!("sip:{to}@{}", self.peer);
        let request = Request { method: method.to_owned(), uri, headers, body: body.into() };
        self.socket.send_to(&request.to_bytes(), self.peer).await.unwrap();
    }

    /// The final response to a request of ours.
    async fn response(&mut self, number: u32, method: &str) -> Response {
        loop {
            match self.message().await {
                Message::Response(response)
                    if response.status >= 200
                        && response.headers.get("CSeq") == Some(&format!("{number} {method}")) =>
                {
                    return response;
                }
                Message::Response(_) => {}
                Message::Request(request) => self.answer(&request, 200, &[]).await,
            }
        }
    }

    /// Lets the device in, and looks at its credentials.
    async fn admit(&mut self, expires: &str) {
        let first = self.request("REGISTER").await;
        assert_eq!((first.headers.get("Authorization"), first.headers.get("Expires")), (None, Some(expires)));
        assert_eq!(first.uri, format!("sip:{PLATFORM}@4113000000"));
        assert_eq!(first.headers.get("X-GB-Ver"), Some("3.0"));
        let challenge = r#"Digest realm="4113000000",nonce="6fe9ba44a76be22a""#;
        self.answer(&first, 401, &[("WWW-Authenticate", challenge)]).await;
        let second = self.request("REGISTER").await;
        let hash =
            |text: String| Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        let (ha1, ha2) = (hash(format!("{DEVICE}:4113000000:{PASSWORD}")), hash(format!("REGISTER:{}", second.uri)));
        let due = format!("response=\"{}\"", hash(format!("{ha1}:6fe9ba44a76be22a:{ha2}")));
        let authorization = second.headers.get("Authorization").unwrap();
        assert!(authorization.contains(&due) && authorization.contains(DEVICE), "{authorization}");
        self.answer(&second, 200, &[("Expires", expires)]).await;
    }
}

#[tokio::test]
async fn registers_keeps_alive_and_comes_back_when_forgotten() {
    let mut bare = Bare::bind().await;
    let device = SimDevice::start(config(bare.socket.local_addr().unwrap())).await.unwrap();
    let handle = device.handle();
    bare.admit("86400").await;
    handle.wait_registered(LIMIT).await.unwrap();
    handle.keepalive().await.unwrap();
    let (request, incoming) = bare.manscdp("Keepalive").await;
    assert_eq!((incoming.element.text_of("Status"), incoming.device_id), (Some("OK"), id(DEVICE)));
    bare.answer(&request, 200, &[]).await;
    handle.wait(LIMIT, "answer to the keepalive", |s| s.keepalives_answered == 1).await.unwrap();

    // The platform has forgotten it.
    handle.keepalive().await.unwrap();
    let (request, _) = bare.manscdp("Keepalive").await;
    bare.answer(&request, 403, &[]).await;
    bare.admit("86400").await;
    let again = handle.wait(LIMIT, "registration", |s| s.registrations == 2).await.unwrap();
    assert!(again.registered);

    let stopped = async {
        assert!(device.stop().await);
    };
    let unregistered = async {
        bare.admit("0").await;
    };
    tokio::join!(stopped, unregistered);
}

#[tokio::test]
async fn an_alarm_is_repeated_until_it_is_answered_or_given_up() {
    let mut bare = Bare::bind().await;
    let device = SimDevice::start(SimDeviceConfig {
        alarm_repeat: Duration::from_millis(20),
        alarm_tries: 3,
        ..config(bare.socket.local_addr().unwrap())
    })
    .await
    .unwrap();
    let handle = device.handle();
    bare.admit("86400").await;
    handle.wait_registered(LIMIT).await.unwrap();
    let sn = handle.raise_alarm(&camera(2), 5, Some(6), "入侵").await.unwrap();
    let mut call_ids = Vec::new();
    for _ in 0..2 {
        let (request, incoming) = bare.manscdp("Alarm").await;
        bare.answer(&request, 200, &[]).await;
        assert_eq!((incoming.sn, incoming.device_id), (sn, camera(2)));
        let alarm = Alarm::read(&incoming).unwrap();
        assert_eq!((alarm.method, alarm.alarm_type, alarm.description.as_deref()), (5, Some(6), Some("入侵")));
        call_ids.push(request.headers.call_id().unwrap().to_owned());
    }
    assert_ne!(call_ids[0], call_ids[1]);
    let confirm = crate::proto::manscdp::response::result(Profile::new(Version::V2022), "Alarm", sn, &camera(2), true);
    bare.ask(1, confirm).await;
    let seen = handle.wait(LIMIT, "answer to the alarm", |s| s.alarms_answered == 1).await.unwrap();
    assert!(seen.alarms == 1 && seen.alarms_repeated >= 1 && seen.alarms_given_up == 0, "{seen:?}");

    // Nobody answers this one.
    handle.set_faults(|faults| faults.latches_alarms = true);
    handle.raise_alarm(&id(DEVICE), 2, None, "").await.unwrap();
    let seen = handle.wait(LIMIT, "end of the alarm", |s| s.alarms_given_up == 1).await.unwrap();
    assert!(seen.alarms_repeated >= 3, "{seen:?}");
    let refused = handle.raise_alarm(&id(DEVICE), 2, None, "").await;
    assert_eq!(refused, Err(DeviceError::InAlarm(id(DEVICE))));
    let reset = DeviceControl::AlarmReset { methods: Vec::new(), alarm_type: None };
    bare.ask(2, query::control(Profile::new(Version::V2022), 9, &id(DEVICE), &reset).unwrap()).await;
    let (request, incoming) = bare.manscdp("DeviceControl").await;
    bare.answer(&request, 200, &[]).await;
    assert_eq!((incoming.sn, read_result(&incoming)), (9, Some(true)));
    handle.raise_alarm(&id(DEVICE), 2, None, "").await.unwrap();
    let stranger = handle.raise_alarm(&camera(77), 5, None, "").await;
    assert_eq!(stranger, Err(DeviceError::NoChannel(camera(77))));
}

// ---- queries ----

#[tokio::test]
async fn a_catalogue_comes_whole_over_both_transports_and_in_every_version() {
    for (transport, version) in [
        (Transport::Udp, Version::V2022),
        (Transport::Tcp, Version::V2022),
        (Transport::Udp, Version::V2016),
        (Transport::Tcp, Version::V2011),
    ] {
        let pair = pair(|config| {
            (config.transport, config.profile) = (transport, Profile::new(version));
            config.channels = SimChannel::numbered(&id(DEVICE), 10).unwrap();
            config.channels[4].online = false;
        })
        .await;
        let catalog = pair.platform.query_catalog(&id(DEVICE), LIMIT).await.unwrap();
        assert!(catalog.is_complete() && catalog.messages == 3, "{catalog:?}");
        assert_eq!(catalog.cameras().count(), 10);
        assert_eq!(catalog.items[0].name, "摄像机1");
        assert_eq!(pair.platform.registration(&id(DEVICE)).unwrap().version, Some(version));
        assert!(catalog.items.iter().all(|item| item.parent_id == [id(DEVICE)]));
        let off: Vec<DeviceId> =
            catalog.items.iter().filter(|item| item.status == Some(Status::Off)).map(|item| item.device_id).collect();
        assert_eq!(off, [camera(5)]);
        assert!(pair.device.stop().await);
        assert!(!pair.platform.registration(&id(DEVICE)).unwrap().is_online());
    }
}

#[tokio::test]
async fn ten_thousand_channels_come_in_seconds() {
    let pair = pair(|config| {
        config.transport = Transport::Tcp;
        config.channels = SimChannel::numbered(&id(DEVICE), 10_000).unwrap();
        // A platform takes no more than 64 KiB from whom it does not know.
        config.items_per_message = 80;
    })
    .await;
    let catalog = pair.platform.query_catalog(&id(DEVICE), LIMIT).await.unwrap();
    assert!(catalog.is_complete());
    assert_eq!((catalog.items.len(), catalog.messages), (10_000, 125));
}

fn ask(shared: &Shared, target: &DeviceId, asked: &Query) -> (Incoming, Reply) {
    let body = query::query(shared.config.profile, 17, target, asked);
    let incoming = parse(&body, None).unwrap();
    let reply = reply(shared, &incoming, Query::of(&incoming).as_ref());
    (incoming, reply)
}

#[test]
fn faults_of_a_catalogue_are_what_they_say() {
    let catalogue = |edit: &dyn Fn(&mut CatalogFaults)| -> Vec<(Vec<u8>, CatalogResponse)> {
        let shared = shared(|config| {
            config.channels = SimChannel::numbered(&id(DEVICE), 10).unwrap();
            edit(&mut config.faults.catalog);
        });
        let (_, reply) = ask(&shared, &id(DEVICE), &Query::Catalog(Default::default()));
        let Reply::Catalog(job, plan) = reply else { panic!("{reply:?}") };
        let read = |body: Vec<u8>| {
            let response = CatalogResponse::read(&parse(&body, None).unwrap()).unwrap();
            (body, response)
        };
        plan.iter().map(|page| read(job.body(page))).collect()
    };
    let shape = |pages: &[(Vec<u8>, CatalogResponse)]| -> Vec<(Option<u32>, usize)> {
        pages.iter().map(|(_, page)| (page.sum_num, page.items.len())).collect()
    };
    let contains = |body: &[u8], part: &str| body.windows(part.len()).any(|w| w == part.as_bytes());
    let whole = catalogue(&|_| {});
    assert_eq!(shape(&whole), [(Some(10), 4), (Some(10), 4), (Some(10), 2)]);
    assert!(whole[0].0.starts_with(b"<?xml version=\"1.0\" encoding=\"GB18030\"?>"));
    // The most that one message may have fits a datagram.
    let largest = whole[0].0.len().div_ceil(4) * MAX_ITEMS_UDP;
    assert!(largest < 65_000, "{largest}");
    assert_eq!(shape(&catalogue(&|f| f.lost_message = true)), [(Some(10), 4), (Some(10), 2)]);
    let doubled = catalogue(&|f| f.duplicate_message = true);
    assert!(doubled.len() == 4 && doubled[0] == doubled[1]);
    assert_eq!(shape(&catalogue(&|f| f.disorder = true)), [(Some(10), 2), (Some(10), 4), (Some(10), 4)]);
    assert_eq!(shape(&catalogue(&|f| f.wrong_sum_num = true))[0], (Some(11), 4));
    assert_eq!(shape(&catalogue(&|f| f.sum_num_zero = true))[0], (Some(0), 4));
    let num = catalogue(&|f| f.num_mismatch = true);
    assert!(contains(&num[0].0, "<DeviceList Num=\"5\">") && num[0].1.items.len() == 4);
    // The reader drops a parent that is the item itself: look at the text.
    let own = catalogue(&|f| f.parent_is_self = true);
    assert!(contains(&own[0].0, &format!("<ParentID>{}</ParentID>", camera(1))));
    let bare = catalogue(&|f| f.bare_ampersand = true);
    assert!(contains(&bare[0].0, " A&B</Name>") && bare[0].1.items[0].name == "摄像机1 A&B");
    let undeclared = catalogue(&|f| f.no_declaration = true);
    assert!(undeclared[0].0.starts_with(b"<Response>") && undeclared[0].1.items[0].name == "摄像机1");
    let mislabelled = catalogue(&|f| f.mislabelled = true);
    assert!(mislabelled[0].0.starts_with(b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>"));
    assert!(std::str::from_utf8(&mislabelled[0].0).is_err() && mislabelled[0].1.items[0].name == "摄像机1");
}

#[test]
fn recordings_are_counted_over_all_messages() {
    let shared = shared(|_| {});
    let window = |start: i64, end: i64| {
        let time = |seconds| Some(UnixMillis::from_secs(seconds));
        Query::RecordInfo(RecordQuery { start: time(start), end: time(end), ..RecordQuery::default() })
    };
    let (_, reply) = ask(&shared, &camera(1), &window(36_000, 36_000 + 10 * 3600));
    let Reply::List(bodies) = reply else { panic!("{reply:?}") };
    let pages: Vec<Incoming> = bodies.iter().map(|body| parse(body, None).unwrap()).collect();
    let counts: Vec<usize> =
        pages.iter().map(|p| p.element.child("RecordList").unwrap().children_named("Item").count()).collect();
    assert_eq!(counts, [4, 4, 2]);
    assert!(pages.iter().all(|page| page.sn == 17 && page.element.text_of("SumNum") == Some("10")));
    let first = pages[0].element.child("RecordList").unwrap().child("Item").unwrap();
    assert_eq!(first.text_of("StartTime"), Some("1970-01-01T18:00:00"));
    assert_eq!(first.text_of("EndTime"), Some("1970-01-01T19:00:00"));
    let (_, reply) = ask(&shared, &camera(1), &window(10, 10));
    let Reply::List(bodies) = reply else { panic!("{reply:?}") };
    let none = parse(&bodies[0], None).unwrap();
    assert_eq!((bodies.len(), none.element.text_of("SumNum")), (1, Some("0")));
    assert_eq!(none.element.child("RecordList"), None);
}

#[test]
fn what_is_not_served_is_refused_in_the_shape_of_its_answer() {
    let shared = shared(|_| {});
    let one = |target: &DeviceId, asked: &Query| {
        let (_, reply) = ask(&shared, target, asked);
        let Reply::One(body) = reply else { panic!("{reply:?}") };
        parse(&body, None).unwrap()
    };
    let info = one(&id(DEVICE), &Query::Plain(QueryKind::DeviceInfo));
    assert_eq!((info.element.text_of("Channel"), read_result(&info)), (Some("3"), Some(true)));
    let status = one(&camera(1), &Query::Plain(QueryKind::DeviceStatus));
    assert_eq!(status.element.text_of("Online"), Some("ONLINE"));
    let basic = one(&id(DEVICE), &Query::ConfigDownload(vec!["BasicParam".to_owned()]));
    assert_eq!(basic.element.child("BasicParam").unwrap().text_of("HeartBeatInterval"), Some("60"));
    let other = one(&id(DEVICE), &Query::ConfigDownload(vec!["OSDConfig".to_owned()]));
    assert_eq!(read_result(&other), Some(false));
    let stranger = one(&camera(99), &Query::Plain(QueryKind::DeviceInfo));
    assert_eq!(read_result(&stranger), Some(false));
    let position = one(&camera(1), &Query::Plain(QueryKind::PtzPosition));
    assert_eq!(read_result(&position), Some(false));
    let text = format!("<Query><CmdType>Weather</CmdType><SN>4</SN><DeviceID>{DEVICE}</DeviceID></Query>");
    let unknown = parse(text.as_bytes(), None).unwrap();
    let Reply::One(body) = reply(&shared, &unknown, None) else { panic!("one body expected") };
    let refused = parse(&body, None).unwrap();
    assert_eq!((refused.cmd_type.as_str(), refused.sn, read_result(&refused)), ("Weather", 4, Some(false)));
    assert_eq!(shared.snapshot.borrow().queries_refused, 4);
}

// ---- controls ----

#[tokio::test]
async fn controls_are_remembered_and_answered_where_an_answer_is_due() {
    let pair = pair(|_| {}).await;
    let area = DrawnBox { window_width: 640, window_height: 360, x: 320, y: 180, width: 64, height: 36 };
    let preset = PtzCommand::Preset { action: PresetAction::Set, number: 7 };
    let commands = [
        (DeviceControl::Ptz { command: PtzCommand::STOP, name: None }, None),
        (DeviceControl::Ptz { command: preset, name: Some("球场".to_owned()) }, None),
        (DeviceControl::TeleBoot, None),
        (DeviceControl::Record { start: true, stream_number: 0 }, Some(true)),
        (DeviceControl::Guard { set: true }, Some(true)),
        (DeviceControl::AlarmReset { methods: vec![2], alarm_type: None }, Some(true)),
        (DeviceControl::HomePosition { enabled: true, reset_time: Some(60), preset: Some(1) }, Some(true)),
        (DeviceControl::DragZoom { inward: true, area }, None),
        (DeviceControl::KeyFrame, None),
    ];
    for (control, result) in &commands {
        assert_eq!(pair.control(control.clone()).await, *result, "{control:?}");
    }
    pair.handle.wait(LIMIT, "all controls", |s| s.controls == commands.len() as u64).await.unwrap();
    let seen: Vec<DeviceControl> = pair.handle.controls().into_iter().map(|seen| seen.control).collect();
    let sent: Vec<DeviceControl> = commands.into_iter().map(|(control, _)| control).collect();
    assert_eq!(seen, sent);
    assert!(pair.handle.controls().iter().all(|seen| seen.target == camera(1)));

    let asked = Query::Plain(QueryKind::PresetQuery);
    let presets = pair.platform.query(&id(DEVICE), &camera(1), &asked, LIMIT).await.unwrap();
    let names: Vec<&str> = presets
        .element
        .child("PresetList")
        .unwrap()
        .children_named("Item")
        .filter_map(|item| item.text_of("PresetName"))
        .collect();
    assert_eq!(names, ["大门", "走廊", "球场"]);

    // Not for anybody here: refused, and not remembered.
    let record = DeviceControl::Record { start: false, stream_number: 0 };
    let outcome = pair.platform.control(&id(DEVICE), &camera(88), &record, LIMIT).await.unwrap();
    assert_eq!(outcome.result, Some(false));
    assert_eq!((pair.handle.snapshot().controls_refused, pair.handle.controls().len()), (1, 9));
}

#[tokio::test]
async fn a_key_picture_comes_when_asked_for() {
    let pair = pair(|config| config.speed = 2).await;
    let mut session = pair.invite(1, |_| {}).await;
    let mut heard = 1;
    // A request that arrives just before a key picture changes nothing: ask again.
    while session.wait(Duration::from_millis(100), "a jump", |v| v.missing > 0).await.is_err() {
        pair.control(DeviceControl::KeyFrame).await;
        heard += 1;
        assert!(heard < 100, "no request for a key picture was obeyed");
    }
    let verdict = session.bye().await.verdict;
    assert!(verdict.altered == 0 && verdict.timestamps_back == 0 && verdict.dts_back == 0, "{verdict:?}");
}

// ---- live ----

#[tokio::test]
async fn live_pictures_arrive_whole_over_every_transport() {
    let pair = pair(|_| {}).await;
    for transport in [MediaTransport::Udp, MediaTransport::TcpPassive, MediaTransport::TcpActive] {
        for serial in 1..=3 {
            let mut session = pair.invite(serial, |options| options.transport = transport).await;
            assert_eq!(session.answer.ssrc, Some(session.offered_ssrc));
            session.wait(LIMIT, "pictures", |v| v.frames >= 60).await.unwrap();
            let end = session.bye().await;
            assert_eq!(end.verdict.problems(), [], "{transport:?} {serial}: {:?}", end.verdict);
            assert_eq!(end.verdict.exact, end.verdict.frames);
            assert_eq!(end.verdict.audio_frames > 0, serial != 2);
            assert_eq!(end.bye_status, Some(200));
        }
    }
    let seen = pair.handle.wait(LIMIT, "the end of all calls", |s| s.calls == 0).await.unwrap();
    assert_eq!((seen.calls_started, seen.byes_received, seen.media_failures), (9, 9, 0));
}

#[tokio::test]
async fn calls_are_refused_cancelled_and_hung_up() {
    let pair = pair(|config| config.max_streams = 1).await;
    let mut session = pair.invite(1, |_| {}).await;
    assert_eq!(pair.status(2).await, Some(486));
    assert_eq!(pair.status(99).await, Some(404));
    pair.handle.hang_up(&camera(1)).await.unwrap();
    assert_eq!(session.wait_bye(LIMIT).await.unwrap().method, "BYE");
    assert!(session.bye().await.by_lower);
    pair.handle.set_online(&camera(2), false).await.unwrap();
    assert_eq!(pair.status(2).await, Some(480));
    pair.handle.set_faults(|faults| faults.call.refuse = Some(503));
    assert_eq!(pair.status(1).await, Some(503));
    pair.handle.set_faults(|faults| faults.call = CallFaults { no_answer: true, ..CallFaults::default() });
    assert_eq!(pair.cancelled(1, Some(Duration::from_millis(20))).await, Some(487));
    pair.handle.set_faults(|faults| faults.call = CallFaults { own_ssrc: true, ..CallFaults::default() });
    let mut session = pair.invite(1, |_| {}).await;
    assert_ne!(session.answer.ssrc, Some(session.offered_ssrc));
    session.wait(LIMIT, "pictures", |v| v.frames >= 10).await.unwrap();
    assert_eq!(session.bye().await.verdict.problems(), []);
    let seen = pair.handle.snapshot();
    assert_eq!((seen.invites, seen.invites_refused, seen.invites_cancelled, seen.byes_sent), (7, 4, 1, 1));
}

#[tokio::test]
async fn faults_of_media_are_what_they_say() {
    let pair = pair(|_| {}).await;
    let (problems, verdict) = pair.struck(|f| f.wrong_ssrc = true, |v| v.wrong_ssrc > 50).await;
    assert!(matches!(problems[0], Problem::WrongSsrc { .. }) && verdict.frames == 0, "{problems:?}");
    let (_, verdict) = pair.struck(|f| f.alien_percent = 50, |v| v.wrong_ssrc > 20 && v.frames > 20).await;
    assert!(verdict.altered == 0 && verdict.lost == 0, "{verdict:?}");
    let (problems, _) = pair.struck(|f| f.drop_percent = 10, |v| v.lost > 3 && v.frames > 10).await;
    assert!(problems.iter().any(|problem| matches!(problem, Problem::Lost(_))), "{problems:?}");
    let (_, verdict) = pair.struck(|f| f.reorder_percent = 30, |v| v.reordered > 5 && v.frames > 20).await;
    assert!(verdict.altered == 0 && verdict.lost == 0, "{verdict:?}");
    let (problems, verdict) = pair.struck(|f| f.duplicate_percent = 30, |v| v.duplicates > 5 && v.frames > 20).await;
    assert!(matches!(problems[..], [Problem::Duplicates(_)]) && verdict.altered == 0, "{problems:?}");
    let (_, verdict) = pair.struck(|f| f.wrong_psm = true, |v| v.ps.codec_lies > 0 && v.frames > 20).await;
    assert_eq!((verdict.altered, verdict.ps.psm_bad_crc), (0, 0));
    let (_, verdict) = pair.struck(|f| f.no_parameter_sets = true, |v| v.frames + v.ps.frames_dropped > 60).await;
    assert!(verdict.altered > 0 || verdict.frames == 0, "{verdict:?}");
    let (problems, _) = pair.struck(|f| f.frozen_timestamps = true, |v| v.timestamps_repeated > 20).await;
    assert!(problems.iter().any(|problem| matches!(problem, Problem::TimestampRepeated(_))), "{problems:?}");
    pair.handle.set_faults(|faults| faults.media = MediaFaults { interleaved: true, ..MediaFaults::default() });
    let mut session = pair.invite(2, |options| options.transport = MediaTransport::TcpPassive).await;
    session.wait(LIMIT, "pictures", |v| v.frames > 20).await.unwrap();
    assert_eq!(session.bye().await.verdict.altered, 0);
    pair.handle.set_faults(|faults| faults.media = MediaFaults { mute: true, ..MediaFaults::default() });
    let session = pair.invite(2, |_| {}).await;
    let before = pair.handle.snapshot();
    let seen = pair.handle.wait(LIMIT, "silent pictures", |s| s.pictures > before.pictures + 10).await.unwrap();
    assert_eq!((seen.packets, session.bye().await.verdict.packets), (before.packets, 0));
}

// ---- recordings ----

#[tokio::test]
async fn a_playback_is_answered_in_its_own_words_and_ended_in_its_dialog() {
    let mut bare = Bare::bind().await;
    let device = SimDevice::start(config(bare.socket.local_addr().unwrap())).await.unwrap();
    bare.admit("86400").await;
    device.handle().wait_registered(LIMIT).await.unwrap();
    let media = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let offer = format!(
        "v=0\r\no={PLATFORM} 0 0 IN IP4 127.0.0.1\r\ns=Playback\r\nu={}:0\r\nc=IN IP4 127.0.0.1\r\n\
         t=1763863200 1763863202\r\nm=video {} RTP/AVP 96\r\na=recvonly\r\na=rtpmap:96 PS/90000\r\ny=1100000001\r\n",
        camera(2),
        media.local_addr().unwrap().port()
    );
    bare.send("INVITE", "call", 1, &camera(2), "", ("APPLICATION/SDP", offer.into_bytes())).await;
    let answer = bare.response(1, "INVITE").await;
    let sdp = String::from_utf8(answer.body.to_vec()).unwrap();
    assert_eq!(answer.status, 200);
    for line in ["s=Playback", "t=1763863200 1763863202", "a=sendonly", "y=1100000001", "f=v/5//25//a///"] {
        assert!(sdp.lines().any(|found| found == line), "{line} in {sdp}");
    }
    let tag = answer.headers.to_tag().unwrap();
    bare.send("ACK", "call", 1, &camera(2), &tag, ("", Vec::new())).await;
    let mut packet = [0; 2048];
    let length = tokio::time::timeout(LIMIT, media.recv(&mut packet)).await.unwrap().unwrap();
    assert_eq!((length > 100, packet[1] & 0x7F, &packet[8..12]), (true, 96, &1_100_000_001u32.to_be_bytes()[..]));

    let control = |text: &str| ("Application/MANSRTSP", text.as_bytes().to_vec());
    bare.send("INFO", "call", 2, &camera(2), &tag, control("PAUSE RTSP/1.0\r\nCSeq: 41\r\nPauseTime: now\r\n\r\n"))
        .await;
    let paused = bare.response(2, "INFO").await;
    assert_eq!((paused.status, paused.headers.get("Content-Type")), (200, Some("Application/MANSRTSP")));
    let text = std::str::from_utf8(&paused.body).unwrap();
    assert!(text.starts_with("RTSP/1.0 200 OK\r\nCSeq: 41\r\nRange: npt="), "{text}");
    bare.send("INFO", "call", 3, &camera(2), &tag, control("PLAY RTSP/1.0\r\nCSeq: 42\r\nRange: npt=9-\r\n\r\n")).await;
    assert!(bare.response(3, "INFO").await.body.starts_with(b"RTSP/1.0 457 "));
    bare.send("INFO", "call", 4, &camera(2), &tag, control("PLAY RTSP/1.0\r\nCSeq: 43\r\nRange: npt=1-\r\n\r\n")).await;
    let played = bare.response(4, "INFO").await;
    let text = std::str::from_utf8(&played.body).unwrap();
    assert!(text.contains("Range: npt=1-\r\nRTP-Info: seq="), "{text}");

    let (request, incoming) = bare.manscdp("MediaStatus").await;
    assert_eq!((request.headers.call_id(), request.headers.from_tag()), (Some("call"), Some(tag.clone())));
    assert_eq!((incoming.device_id, incoming.element.text_of("NotifyType")), (camera(2), Some("121")));
    bare.answer(&request, 200, &[]).await;
    bare.send("BYE", "call", 5, &camera(2), &tag, ("", Vec::new())).await;
    assert_eq!(bare.response(5, "BYE").await.status, 200);
    bare.send("BYE", "call", 6, &camera(2), &tag, ("", Vec::new())).await;
    assert_eq!(bare.response(6, "BYE").await.status, 481);
    assert_eq!(device.handle().snapshot().recordings_finished, 1);
}

#[tokio::test]
async fn a_playback_pauses_seeks_changes_speed_and_tells_its_end() {
    let pair = pair(|_| {}).await;
    let mut session = pair.invite(1, recorded(SessionKind::Playback, 3600)).await;
    session.wait(LIMIT, "pictures", |v| v.frames >= 30 && v.audio_frames > 0).await.unwrap();
    let info = |text: &'static str| bytes::Bytes::from_static(text.as_bytes());
    assert_eq!(session.info(info("PAUSE RTSP/1.0\r\nCSeq: 1\r\nPauseTime: now\r\n\r\n"), LIMIT).await, Ok(200));
    let paused = pair.handle.snapshot().pictures;
    // The platform asks, the device answers, and sends no picture meanwhile.
    for _ in 0..5 {
        let asked = Query::Plain(QueryKind::DeviceStatus);
        pair.platform.query(&id(DEVICE), &id(DEVICE), &asked, LIMIT).await.unwrap();
    }
    assert_eq!(pair.handle.snapshot().pictures, paused);

    // Not possible, and nothing happens.
    assert_eq!(session.info(info("PLAY RTSP/1.0\r\nCSeq: 2\r\nScale: -1\r\n\r\n"), LIMIT).await, Ok(200));
    assert_eq!(session.info(info("PLAY RTSP/1.0\r\nCSeq: 3\r\nRange: npt=3601-\r\n\r\n"), LIMIT).await, Ok(200));
    assert_eq!(session.info(info("DANCE RTSP/1.0\r\n\r\n"), LIMIT).await, Ok(400));
    assert_eq!(pair.handle.snapshot().pictures, paused);

    let resumed = info("PLAY RTSP/1.0\r\nCSeq: 4\r\nScale: 4.0\r\nRange: npt=3590.5-\r\n\r\n");
    assert_eq!(session.info(resumed, LIMIT).await, Ok(200));
    pair.finished(1).await;
    // From the key picture at 3590 s on, ten seconds of 25 pictures.
    let verdict = session.wait(LIMIT, "the end", |v| v.frames == paused + 250).await.unwrap();
    assert_eq!((verdict.altered, verdict.timestamps_back, verdict.dts_back, verdict.lost), (0, 0, 0, 0));
    let seen = pair.handle.playback_requests();
    let asked =
        mansrtsp::Request { scale: mansrtsp::Scale::from_thousandths(4000), ..mansrtsp::Request::seek(4, 3_590_500) };
    assert_eq!((seen.len(), &seen[3].request), (4, &asked));

    // It can be played again from an earlier place, until the platform hangs up.
    assert_eq!(session.info(info("PLAY RTSP/1.0\r\nCSeq: 5\r\nRange: npt=3599-\r\n\r\n"), LIMIT).await, Ok(200));
    pair.finished(2).await;
    assert_eq!(session.info(info("TEARDOWN RTSP/1.0\r\nCSeq: 6\r\n\r\n"), LIMIT).await, Ok(200));
    let end = session.bye().await;
    assert_eq!((end.bye_status, end.verdict.altered), (Some(200), 0));
    assert_eq!(pair.handle.snapshot().recordings_finished, 2);
}

#[tokio::test]
async fn a_download_ends_with_as_many_bytes_as_it_said() {
    let pair = pair(|config| config.recorded = Some(Duration::from_secs(8))).await;
    for (n, serial, transport) in [(1, 1, MediaTransport::Udp), (2, 3, MediaTransport::TcpPassive)] {
        let mut session = pair
            .invite(serial, |options| {
                recorded(SessionKind::Download, 3600)(options);
                (options.transport, options.download_speed) = (transport, Some(4));
            })
            .await;
        let size = session.answer.file_size.unwrap();
        pair.finished(n).await;
        let verdict = session.wait(LIMIT, "the last byte", |v| v.bytes >= size).await.unwrap();
        assert_eq!((verdict.bytes, verdict.frames), (size, 200));
        assert_eq!(session.bye().await.verdict.problems(), []);
    }
    // A device that says nothing, and hangs up.
    pair.handle.set_faults(|faults| (faults.call.no_media_status, faults.call.bye_at_end) = (true, true));
    let mut session = pair.invite(2, recorded(SessionKind::Download, 2)).await;
    assert_eq!(session.wait_bye(LIMIT).await.unwrap().method, "BYE");
    assert_eq!(session.bye().await.verdict.frames, 50);
}

// ---- subscriptions ----

#[tokio::test]
async fn subscribers_hear_of_channels_and_alarms() {
    let pair = pair(|config| config.channels[1].online = false).await;
    let mut catalog = pair.platform.subscribe_catalog(&id(DEVICE), 600, LIMIT).await.unwrap();
    let all = Query::Alarm(AlarmQuery::default());
    let mut alarms = pair.platform.subscribe(&id(DEVICE), &id(DEVICE), all, 600, LIMIT).await.unwrap();
    assert_eq!(pair.handle.wait(LIMIT, "both", |s| s.subscriptions == 2).await.unwrap().notifies, 1);
    let heard = |notice: crate::sim::platform::Notice| -> Vec<(CatalogEvent, DeviceId)> {
        notice.changes.iter().map(|change| (change.event, change.device_id)).collect()
    };
    let first = catalog.next(LIMIT).await.unwrap();
    assert_eq!(first.event, catalog.event());
    assert_eq!(heard(first), [(CatalogEvent::Off, camera(2))]);
    pair.handle.set_online(&camera(2), true).await.unwrap();
    assert_eq!(heard(catalog.next(LIMIT).await.unwrap()), [(CatalogEvent::On, camera(2))]);
    let fresh = SimChannel::new(camera(4), "新楼", ClipLibrary::h265());
    pair.handle.add_channel(fresh).await.unwrap();
    let added = catalog.next(LIMIT).await.unwrap();
    assert_eq!(added.changes[0].item.as_ref().unwrap().name, "新楼");
    assert_eq!(heard(added), [(CatalogEvent::Add, camera(4))]);
    pair.handle.remove_channel(&camera(1)).await.unwrap();
    assert_eq!(heard(catalog.next(LIMIT).await.unwrap()), [(CatalogEvent::Del, camera(1))]);

    let sn = pair.handle.raise_alarm(&camera(2), 5, Some(2), "移动").await.unwrap();
    let notice = alarms.next(LIMIT).await.unwrap();
    assert_eq!(notice.incoming.unwrap().sn, sn);
    pair.handle.wait(LIMIT, "answer to the alarm", |s| s.alarms_answered == 1).await.unwrap();

    catalog.cancel(LIMIT).await.unwrap();
    assert!(catalog.next(LIMIT).await.unwrap().is_terminated());
    pair.handle.wait(LIMIT, "the end of one", |s| s.subscriptions == 1).await.unwrap();
}

#[tokio::test]
async fn subscriptions_are_refused_or_accepted_in_vain() {
    let pair = pair(|config| config.faults.subscriptions.refuse = Some(489)).await;
    let refused = pair.platform.subscribe_catalog(&id(DEVICE), 600, LIMIT).await.unwrap_err();
    assert_eq!(refused, PlatformError::Refused { method: "SUBSCRIBE", status: 489 });
    pair.handle.set_faults(|faults| faults.subscriptions = SubscriptionFaults { refuse: None, silent: true });
    let positions = Query::MobilePosition { interval: 5 };
    let refused = pair.platform.subscribe(&id(DEVICE), &id(DEVICE), positions, 600, LIMIT).await.unwrap_err();
    assert_eq!(refused, PlatformError::Refused { method: "SUBSCRIBE", status: 489 });
    let mut silent = pair.platform.subscribe_catalog(&id(DEVICE), 600, LIMIT).await.unwrap();
    pair.handle.set_online(&camera(1), false).await.unwrap();
    // The change has been dealt with once a later question is answered.
    let catalog = pair.platform.query_catalog(&id(DEVICE), LIMIT).await.unwrap();
    assert_eq!(catalog.items[0].status, Some(Status::Off));
    assert!(silent.next(Duration::ZERO).await.is_err());
    assert_eq!(pair.handle.snapshot().notifies, 0);
}

// ---- for people ----

#[tokio::test]
async fn tells_people_what_happens() {
    let platform = SimPlatform::start(SimPlatformConfig::on_loopback(id(PLATFORM), Some(PASSWORD))).await.unwrap();
    let mut out = Vec::new();
    let cancel = tokio_util::sync::CancellationToken::new();
    let args = DeviceArgs { config: config(platform.addr()), length: None };
    let handle = platform.handle();
    let asked = async {
        handle.wait_registered(&id(DEVICE), LIMIT).await.unwrap();
        let guard = DeviceControl::Guard { set: true };
        while handle.control(&id(DEVICE), &camera(2), &guard, LIMIT).await.unwrap().result != Some(true) {}
        // Told when it unregisters: everything before has been told.
        cancel.cancel();
    };
    let (registered, ()) = tokio::join!(run_device(args, &mut out, cancel.clone()), asked);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(registered, Ok(true), "{text}");
    assert!(text.contains(DEVICE) && text.contains("3 channels") && text.contains("\nunregistered\n"), "{text}");
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let refused = |edit: fn(&mut SimDeviceConfig)| {
        let mut config = config(SocketAddr::from(([127, 0, 0, 1], 5060)));
        edit(&mut config);
        match config.check() {
            Err(DeviceError::Config { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(|config| config.items_per_message = 0), "items_per_message");
    assert_eq!(refused(|config| config.items_per_message = 91), "items_per_message");
    assert_eq!(refused(|config| config.speed = 0), "speed");
    assert_eq!(refused(|config| config.record_length = Duration::from_millis(5)), "record_length");
    assert_eq!(refused(|config| config.transport = Transport::Tls), "transport");
}
