//! A small lower platform for tests: registers, keeps alive, pages a catalogue, answers calls and plays clips.
//!
//! Standard: [GB/T28181-2022 9.1, 9.2, 9.5, 9.6, 9.11] as far as the tests of the upper platform need it.
//! In: `LowerConfig`, `LowerCommand`s. Out: signalling by the product's SIP driver, PS over RTP; `Fault`s on demand.
//! Invariants: what it plays is its clip from the first picture on, changed only where a fault says so.
//! Not here: the gateway itself (`northbound`).

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::state::lock;
use crate::clock;
use crate::proto::codec::{AudioCodec, VideoCodec};
use crate::proto::gb28181::{DeviceId, Profile, Version};
use crate::proto::manscdp::notify::Keepalive;
use crate::proto::manscdp::response::{DeviceInfo, device_info, result};
use crate::proto::manscdp::{
    CatalogChange, CatalogItem, ChecksumPolicy, DeviceControl, Query, QueryKind, Root, Status, catalog, device_control,
    parse,
};
use crate::proto::ps::{MuxConfig, Muxer, VideoUnit};
use crate::proto::rtp::{Framing, ImageWriter, restamp, restamp_rfc4571};
use crate::proto::sdp::{Answer, MediaOffer, MediaTransport};
use crate::proto::sip::dialog::Dialog;
use crate::proto::sip::digest::{DigestClient, pick_challenge};
use crate::proto::sip::endpoint::{ClientTxId, EndpointConfig, Event, ServerTxId};
use crate::proto::sip::message::{Flow, Headers, Request, Response, Transport};
use crate::proto::sip::registration::{Kind, Registration, RegistrationConfig, RegistrationOutput, State};
use crate::sim::clip::{self, Clip, ClipLibrary};
use crate::transport::sip_driver::{
    Hooks, Limits, Listener, Route, SipDriverConfig, SipEvent, SipHandle, UserId, bind,
};

pub(crate) const LOWER: &str = "41130000582000000001";
pub(crate) const UPPER: &str = "41130000002000000002";
pub(crate) const PASSWORD: &str = "12345678";
/// Sound of one audio PES: 40 ms.
const SOUND: usize = 320;
const PAYLOAD: usize = 1400;

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// One bit of this byte of this picture.
    Altered(u64, usize),
    /// This RTP packet of the session is not sent.
    Dropped(u64),
    /// RTP has another SSRC than the answer.
    WrongSsrc,
    /// No marker on this picture.
    NoMarker(u64),
    /// This picture has the timestamp of the one before.
    SameTimestamp(u64),
    /// Pictures begin at this one.
    LateStart(u64),
    /// INVITE is refused.
    Refuse(u16),
    /// INVITE gets no final answer.
    NoAnswer,
    /// The 200 has this for a body.
    BadAnswer(&'static str),
    /// BYE when all is played.
    HangUp,
    /// SumNum counts one more than there is.
    SumNum,
}

#[derive(Clone)]
pub(crate) struct LowerConfig {
    pub platform: SocketAddr,
    pub transport: Transport,
    pub password: &'static str,
    pub prefer_sha256: bool,
    pub items: Vec<CatalogItem>,
    pub per_page: usize,
    pub clips: HashMap<DeviceId, Arc<Clip>>,
    /// Pictures played in each session, as fast as they can be sent.
    pub pictures: u64,
    pub fault: Fault,
}

/// A camera's code.
pub(crate) fn camera(serial: u32) -> DeviceId {
    DeviceId::mint("4113000058", 132, 0, serial).unwrap()
}

pub(crate) fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

impl LowerConfig {
    /// Three cameras, one of them H.265, in a virtual organisation.
    pub fn new(platform: SocketAddr) -> Self {
        let names = ["东门入口", "三楼走廊（北）", "停车场𠮷"];
        let clips = [ClipLibrary::h264(), ClipLibrary::h265(), ClipLibrary::h264_bframes()];
        let mut items = vec![CatalogItem::new(id("41130000582160000001"), "教学楼")];
        let mut by_id = HashMap::new();
        for (n, (name, clip)) in names.into_iter().zip(clips).enumerate() {
            let mut item = CatalogItem::new(camera(n as u32 + 1), name);
            item.status = Some(Status::On);
            by_id.insert(item.device_id, clip);
            items.push(item);
        }
        LowerConfig {
            platform,
            transport: Transport::Udp,
            password: PASSWORD,
            prefer_sha256: false,
            items,
            per_page: 2,
            clips: by_id,
            pictures: 50,
            fault: Fault::None,
        }
    }
}

/// What a test asks of it.
pub(crate) enum LowerCommand {
    Keepalive(Vec<DeviceId>),
    Message(Vec<u8>),
    Notify(Vec<CatalogChange>),
    Unregister,
    /// Ends the call of this Call-ID.
    HangUp(String),
}

enum Pending {
    Registration(Kind),
    Page,
    Other,
}

enum Sink {
    Udp(UdpSocket),
    Connect,
    Listen(TcpListener),
}

struct Call {
    offer: MediaOffer,
    clip: Option<Arc<Clip>>,
    ssrc: u32,
    sink: Option<Sink>,
    dialog: Dialog,
    media: Option<AbortHandle>,
}

/// A running lower platform; dropping it ends it.
pub(crate) struct Lower {
    pub local: SocketAddr,
    pub commands: mpsc::Sender<LowerCommand>,
    /// What it was commanded.
    pub controls: Arc<Mutex<Vec<DeviceControl>>>,
    /// INVITEs as they came.
    pub invites: Arc<Mutex<Vec<Request>>>,
    cancel: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Lower {
    pub async fn start(config: LowerConfig) -> Lower {
        let driver_config = SipDriverConfig {
            listeners: vec![Listener { local: "127.0.0.1:0".parse().unwrap(), udp: true, tcp: true, tls: None }],
            tls_clients: Vec::new(),
            limits: Limits::default(),
            endpoint: EndpointConfig::default(),
            hooks: Hooks::default(),
        };
        let (sip, driver, bound) = bind(driver_config, StdRng::seed_from_u64(2)).unwrap();
        let local = bound[0].local;
        let cancel = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let driving = driver.run(cancel.clone());
        tasks.spawn(async move { driving.await.unwrap() });
        let user = UserId::new("lower");
        let events = sip.register_user(user.clone(), vec![Route::default()]).await.unwrap();
        let (commands, queue) = mpsc::channel(16);
        let (controls, invites) = (Arc::default(), Arc::default());
        let (password, sha) = (config.password, config.prefer_sha256);
        let answer = move |response: &Response, request: &Request| {
            let challenge = pick_challenge(response.headers.get_all("WWW-Authenticate"), sha).ok()?;
            let mut client = DigestClient::new(challenge);
            let value = client.answer(&request.method, &request.uri, LOWER, password, "0a4f113b");
            Some(("Authorization".to_owned(), value))
        };
        let registration = Registration::new(
            RegistrationConfig {
                server_uri: format!("sip:{UPPER}@{}", config.platform),
                local_uri: format!("sip:{LOWER}@4113000058"),
                contact_uri: format!("sip:{LOWER}@{local}"),
                expires: Duration::from_secs(3600),
                retry: Duration::from_secs(60),
                keepalive_interval: Duration::from_secs(60),
                keepalive_max_missed: 3,
                version: Some("3.0".to_owned()),
            },
            Box::new(answer),
            StdRng::seed_from_u64(3),
        );
        let serve = Serve {
            flow: Flow { transport: config.transport, local, peer: config.platform, conn: None },
            config,
            sip,
            user,
            registration,
            pending: HashMap::new(),
            pages: VecDeque::new(),
            calls: HashMap::new(),
            subscriptions: Vec::new(),
            media: JoinSet::new(),
            commands: commands.clone(),
            controls: Arc::clone(&controls),
            invites: Arc::clone(&invites),
            profile: Profile::new(Version::V2022),
            next: 100,
            faulty: Vec::new(),
            keepalive_due: false,
        };
        tasks.spawn(serve.run(events, queue, cancel.clone()));
        Lower { local, commands, controls, invites, cancel, _tasks: tasks }
    }

    pub async fn command(&self, command: LowerCommand) {
        assert!(self.commands.send(command).await.is_ok(), "the lower platform runs");
    }

    /// Ends it without a word.
    pub fn vanish(&self) {
        self.cancel.cancel();
    }
}

struct Serve {
    config: LowerConfig,
    flow: Flow,
    sip: SipHandle,
    user: UserId,
    registration: Registration,
    pending: HashMap<ClientTxId, Pending>,
    pages: VecDeque<Vec<u8>>,
    calls: HashMap<String, Call>,
    subscriptions: Vec<(Dialog, String)>,
    media: JoinSet<()>,
    commands: mpsc::Sender<LowerCommand>,
    controls: Arc<Mutex<Vec<DeviceControl>>>,
    invites: Arc<Mutex<Vec<Request>>>,
    profile: Profile,
    next: u32,
    faulty: Vec<DeviceId>,
    keepalive_due: bool,
}

impl Serve {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<SipEvent>,
        mut commands: mpsc::Receiver<LowerCommand>,
        cancel: CancellationToken,
    ) {
        self.registration.start(clock::now());
        loop {
            // The platform may know of the registration before we do.
            if self.keepalive_due && self.registration.state() == State::Registered {
                self.keepalive_due = false;
                self.registration.keepalive_now();
            }
            self.drive().await;
            let deadline = self.registration.next_timeout();
            let deadline = deadline.unwrap_or_else(|| clock::now() + Duration::from_secs(3600));
            tokio::select! {
                () = cancel.cancelled() => return,
                Some(event) = events.recv() => self.event(event).await,
                Some(command) = commands.recv() => self.command(command).await,
                () = tokio::time::sleep_until(deadline.into()) => self.registration.timeout(clock::now()),
            }
        }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    async fn send(&mut self, request: Request, pending: Pending) {
        let tx = self.sip.request(&self.user, self.flow, None, request).await.unwrap();
        self.pending.insert(tx, pending);
    }

    async fn drive(&mut self) {
        while let Some(output) = self.registration.poll_output() {
            match output {
                RegistrationOutput::Send(request) => self.send(request, Pending::Registration(Kind::Register)).await,
                RegistrationOutput::SendKeepalive { sn } => {
                    let keepalive = Keepalive { ok: self.faulty.is_empty(), faulty: self.faulty.clone() };
                    let body = keepalive.write(self.profile, sn, &id(LOWER));
                    self.message(body, Pending::Registration(Kind::Keepalive { sn })).await;
                }
                RegistrationOutput::Redirected { to: Some(target) } => {
                    self.flow.peer = format!("{}:{}", target.host, target.port.unwrap()).parse().unwrap();
                }
                _ => {}
            }
        }
    }

    async fn message(&mut self, body: Vec<u8>, pending: Pending) {
        let n = self.number();
        let mut headers = Headers::new();
        headers.push("From", format!("<sip:{LOWER}@4113000058>;tag=l{n}"));
        headers.push("To", format!("<sip:{UPPER}@{}>", self.config.platform));
        headers.push("Call-ID", format!("lower-{n}"));
        headers.push("CSeq", format!("{n} MESSAGE"));
        headers.push("Content-Type", "Application/MANSCDP+xml");
        let request = Request {
            method: "MESSAGE".into(),
            uri: format!("sip:{UPPER}@{}", self.config.platform),
            headers,
            body: body.into(),
        };
        self.send(request, pending).await;
    }

    async fn command(&mut self, command: LowerCommand) {
        match command {
            LowerCommand::Keepalive(faulty) => {
                self.faulty = faulty;
                self.keepalive_due = true;
            }
            LowerCommand::Message(body) => self.message(body, Pending::Other).await,
            LowerCommand::Notify(changes) => self.notify(&changes, "active;expires=500").await,
            LowerCommand::Unregister => self.registration.stop(clock::now()),
            LowerCommand::HangUp(call_id) => {
                if let Some(mut call) = self.calls.remove(&call_id) {
                    self.send(call.dialog.request("BYE"), Pending::Other).await;
                }
            }
        }
    }

    async fn notify(&mut self, changes: &[CatalogChange], state: &str) {
        let sn = self.number();
        let body: Bytes = catalog::catalog_notify(self.profile, sn, &id(LOWER), changes).into();
        let mut requests = Vec::new();
        for (dialog, event) in &mut self.subscriptions {
            let mut request = dialog.request("NOTIFY");
            request.headers.push("Event", event.as_str());
            request.headers.push("Subscription-State", state);
            request.headers.push("Contact", format!("<sip:{LOWER}@{}>", self.flow.local));
            request.headers.push("Content-Type", "Application/MANSCDP+xml");
            request.body = body.clone();
            requests.push(request);
        }
        for request in requests {
            self.send(request, Pending::Other).await;
        }
    }

    async fn event(&mut self, event: SipEvent) {
        match event {
            Event::Request { tx, request, flow } => self.request(tx, request, flow).await,
            Event::Ack { request, .. } => {
                let call_id = request.headers.call_id().unwrap();
                if let Some(call) = self.calls.get_mut(call_id)
                    && let (Some(clip), Some(sink)) = (call.clip.clone(), call.sink.take())
                {
                    let playing = Playing {
                        clip,
                        pictures: self.config.pictures,
                        fault: self.config.fault,
                        ssrc: call.ssrc,
                        remote: call.offer.remote,
                        done: (self.commands.clone(), call_id.to_owned()),
                    };
                    call.media = Some(self.media.spawn(playing.run(sink)));
                }
            }
            Event::Cancelled { tx, .. } => self.respond(tx, 487, Headers::new(), Bytes::new()).await,
            Event::Response { tx, response, .. } if response.status >= 200 => match self.pending.remove(&tx) {
                Some(Pending::Registration(kind)) => self.registration.response(clock::now(), kind, &response),
                Some(Pending::Page) => self.next_page().await,
                _ => {}
            },
            Event::ClientFailed { tx, reason } => {
                if let Some(Pending::Registration(kind)) = self.pending.remove(&tx) {
                    self.registration.failed(clock::now(), kind, reason);
                }
            }
            Event::ConnClosed { .. } => self.registration.connection_lost(clock::now()),
            _ => {}
        }
    }

    async fn next_page(&mut self) {
        if let Some(page) = self.pages.pop_front() {
            self.message(page, Pending::Page).await;
        }
    }

    async fn respond(&self, tx: ServerTxId, status: u16, headers: Headers, body: Bytes) {
        let response = Response { status, reason: String::new(), headers, body };
        self.sip.respond(tx, response).await.unwrap();
    }

    async fn request(&mut self, tx: ServerTxId, request: Request, flow: Flow) {
        assert_eq!(flow.peer, self.flow.peer, "requests come the way the registration went");
        match request.method.as_str() {
            "MESSAGE" => self.on_message(tx, &request).await,
            "INVITE" => self.invite(tx, request, flow).await,
            "SUBSCRIBE" => self.subscribe(tx, &request, flow).await,
            "BYE" => {
                let call = self.calls.remove(request.headers.call_id().unwrap());
                let status = if call.is_some() { 200 } else { 481 };
                if let Some(media) = call.and_then(|call| call.media) {
                    media.abort();
                }
                self.respond(tx, status, Headers::new(), Bytes::new()).await;
            }
            _ => self.respond(tx, 200, Headers::new(), Bytes::new()).await,
        }
    }

    async fn on_message(&mut self, tx: ServerTxId, request: &Request) {
        let Ok(incoming) = parse(&request.body, None) else {
            return self.respond(tx, 400, Headers::new(), Bytes::new()).await;
        };
        self.respond(tx, 200, Headers::new(), Bytes::new()).await;
        let target = incoming.device_id;
        match Query::of(&incoming) {
            Some(Query::Catalog(_)) => {
                let items: Vec<String> =
                    self.config.items.iter().map(|item| catalog::item_xml(item, self.profile)).collect();
                let sum = items.len() + usize::from(self.config.fault == Fault::SumNum);
                let pages = items
                    .chunks(self.config.per_page)
                    .map(|page| catalog::catalog_page(self.profile, incoming.sn, &target, sum, page));
                self.pages = pages.collect();
                self.next_page().await;
            }
            Some(Query::Plain(QueryKind::DeviceInfo)) => {
                let info = DeviceInfo {
                    device_name: Some("校园网关".to_owned()),
                    ok: true,
                    channel: Some(3),
                    ..DeviceInfo::default()
                };
                let body = device_info(self.profile, incoming.sn, &target, &info);
                self.message(body, Pending::Other).await;
            }
            _ if incoming.root == Root::Control => {
                let control = device_control(&incoming, ChecksumPolicy::Verify).unwrap();
                let due = control.response_due();
                lock(&self.controls).push(control);
                if due {
                    let body = result(self.profile, "DeviceControl", incoming.sn, &target, true);
                    self.message(body, Pending::Other).await;
                }
            }
            _ => {}
        }
    }

    async fn subscribe(&mut self, tx: ServerTxId, request: &Request, flow: Flow) {
        let expires = request.headers.expires().unwrap();
        let mut headers = Headers::new();
        let to = request.headers.get("To").unwrap();
        let fresh = request.headers.to_tag().is_none();
        headers.push("To", if fresh { format!("{to};tag=sub") } else { to.to_owned() });
        headers.push("Contact", format!("<sip:{LOWER}@{}>", self.flow.local));
        headers.push("Expires", expires.to_string());
        if fresh {
            let response =
                Response { status: 200, reason: String::new(), headers: headers.clone(), body: Bytes::new() };
            let event = request.headers.get("Event").unwrap().to_owned();
            self.subscriptions.push((Dialog::uas(request, &response, flow).unwrap(), event));
        }
        self.respond(tx, 200, headers, Bytes::new()).await;
        if fresh {
            self.notify(&[], &format!("active;expires={expires}")).await;
        } else if expires == 0 {
            self.notify(&[], "terminated").await;
            self.subscriptions.clear();
        }
    }

    async fn invite(&mut self, tx: ServerTxId, request: Request, flow: Flow) {
        lock(&self.invites).push(request.clone());
        let channel = DeviceId::parse(&request.headers.to_user().unwrap()).unwrap();
        let known = self.config.items.iter().any(|item| item.device_id == channel);
        let offer = match MediaOffer::parse(&request.body) {
            _ if !known => return self.respond(tx, 404, Headers::new(), Bytes::new()).await,
            Err(error) => return self.respond(tx, error.status(), Headers::new(), Bytes::new()).await,
            Ok(offer) => offer,
        };
        match self.config.fault {
            Fault::Refuse(status) => return self.respond(tx, status, Headers::new(), Bytes::new()).await,
            Fault::NoAnswer => return,
            _ => {}
        }
        let any = "127.0.0.1:0";
        let (sink, local) = match offer.transport {
            MediaTransport::Udp => {
                let socket = UdpSocket::bind(any).await.unwrap();
                let local = socket.local_addr().unwrap();
                (Sink::Udp(socket), local)
            }
            MediaTransport::TcpPassive => (Sink::Connect, "127.0.0.1:9".parse().unwrap()),
            MediaTransport::TcpActive => {
                let listener = TcpListener::bind(any).await.unwrap();
                let local = listener.local_addr().unwrap();
                (Sink::Listen(listener), local)
            }
        };
        let ssrc = offer.ssrc.unwrap_or(7);
        let answer = Answer {
            offer: &offer,
            sender: channel,
            address: local.ip(),
            port: NonZeroU16::new(local.port()).unwrap(),
            ssrc,
            f: None,
            file_size: None,
        };
        let mut headers = Headers::new();
        headers.push("To", format!("{};tag=call", request.headers.get("To").unwrap()));
        headers.push("Contact", format!("<sip:{channel}@{}>", self.flow.local));
        headers.push("Content-Type", "APPLICATION/SDP");
        let body = match self.config.fault {
            Fault::BadAnswer(text) => text.to_owned(),
            _ => answer.to_sdp().to_string(),
        };
        let response = Response { status: 200, reason: String::new(), headers: headers.clone(), body: Bytes::new() };
        let call = Call {
            clip: self.config.clips.get(&channel).cloned(),
            ssrc: ssrc + u32::from(self.config.fault == Fault::WrongSsrc),
            sink: Some(sink),
            dialog: Dialog::uas(&request, &response, flow).unwrap(),
            media: None,
            offer,
        };
        self.calls.insert(request.headers.call_id().unwrap().to_owned(), call);
        self.respond(tx, 200, headers, body.into()).await;
    }
}

/// One session's media.
struct Playing {
    clip: Arc<Clip>,
    pictures: u64,
    fault: Fault,
    ssrc: u32,
    remote: SocketAddr,
    done: (mpsc::Sender<LowerCommand>, String),
}

enum Line {
    Udp(UdpSocket, SocketAddr),
    Tcp(TcpStream),
}

impl Line {
    async fn send(&mut self, packet: &[u8]) -> std::io::Result<()> {
        match self {
            Line::Udp(socket, remote) => socket.send_to(packet, *remote).await.map(drop),
            Line::Tcp(stream) => stream.write_all(packet).await,
        }
    }
}

impl Playing {
    async fn run(self, sink: Sink) {
        let (mut line, framing) = match sink {
            Sink::Udp(socket) => (Line::Udp(socket, self.remote), Framing::Datagram),
            Sink::Connect => (Line::Tcp(TcpStream::connect(self.remote).await.unwrap()), Framing::Rfc4571),
            Sink::Listen(listener) => (Line::Tcp(listener.accept().await.unwrap().0), Framing::Rfc4571),
        };
        let (codec, sound) = match self.clip.codec() {
            clip::VideoCodec::H264 => (VideoCodec::H264, ClipLibrary::pcma()),
            clip::VideoCodec::H265 => (VideoCodec::H265, ClipLibrary::pcma()),
        };
        let mut muxer = Muxer::new(MuxConfig { video: Some(codec), audio: Some(AudioCodec::G711A) });
        let first = match self.fault {
            Fault::LateStart(first) => first,
            _ => 0,
        };
        let (mut image, mut sequence, mut sent) = (BytesMut::new(), 65_500, 0);
        for n in first..first + self.pictures {
            let (unit, pts) = self.clip.looped(n);
            let dts = n * 3600;
            let mut picture = unit.bytes.to_vec();
            if let Fault::Altered(which, at) = self.fault
                && which == n
            {
                picture[at] ^= 1;
            }
            let video = VideoUnit { annexb: &picture, pts: pts + 90_000, dts: dts + 90_000, key: unit.key };
            for audio in [false, true] {
                if audio && n % 2 == 1 {
                    continue;
                }
                image.clear();
                let mut writer = ImageWriter::new(&mut image, PAYLOAD, framing);
                match audio {
                    false => muxer.write_video(&mut writer, &video),
                    true => {
                        let frame = &sound.frames()[n as usize % sound.frames().len()].bytes;
                        muxer.write_audio(&mut writer, &frame.repeat(SOUND / frame.len()), dts + 91_800)
                    }
                };
                let same = u64::from(self.fault == Fault::SameTimestamp(n)) * 3600;
                let timestamp = (dts - same) as u32 + u32::from(audio) * 1800;
                let marker = audio || self.fault != Fault::NoMarker(n);
                let shape = writer.finish(marker, 96, timestamp);
                sequence = match framing {
                    Framing::Datagram => restamp(&mut image, shape.block, sequence, self.ssrc),
                    Framing::Rfc4571 => restamp_rfc4571(&mut image, shape.block, sequence, self.ssrc),
                };
                for packet in image.chunks(shape.block) {
                    if self.fault != Fault::Dropped(sent) && line.send(packet).await.is_err() {
                        return;
                    }
                    sent += 1;
                }
            }
            tokio::task::yield_now().await;
        }
        let (commands, call_id) = self.done;
        if self.fault == Fault::HangUp {
            let _ = commands.send(LowerCommand::HangUp(call_id)).await;
        }
        // The line stays open until the call ends.
        let (_open, end) = oneshot::channel::<()>();
        let _ = end.await;
        drop(line);
    }
}
