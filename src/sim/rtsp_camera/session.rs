//! One connection of a simulated camera: its requests, its session, its pictures.
//!
//! Standard: [RFC 2326 10, 12, C] methods, Session, Transport, RTP-Info; SDP parameters of [RFC 6184 8.2.1], [RFC 7798 7.1], [RFC 3640 4.1].
//! In: an accepted TCP stream. Out: responses and media, from one task, so that the two never interleave within a packet.
//! Invariants: one session a connection, ended with it; pictures leave on the grid `began + n / fps / speed`, never early.
//! Not here: the bytes of requests (`wire`) and packets (`payload`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use super::payload::{RtpStream, ntp};
use super::wire::{self, Request, Step, Wanted, respond};
use super::{Mount, SESSIONS_MAX, Shared, Slot, add};
use crate::clock;
use crate::sim::clip::{AudioClip, AudioCodec, Clip, VIDEO_CLOCK, VideoCodec};

/// Between two sender reports of a stream, in camera time.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// A picture later than this is not sent: the client does not keep up, and real cameras do not buffer either.
const LAG_MAX: Duration = Duration::from_secs(2);

/// Attempts to find two adjacent free UDP ports.
const PORT_ATTEMPTS: usize = 64;

const METHODS: &str = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER, SET_PARAMETER";

fn now() -> Instant {
    Instant::from_std(clock::now())
}

/// Serves a connection until the client or its silence ends it.
pub(super) async fn serve(shared: Arc<Shared>, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let nonce = format!("{:08x}{:08x}", shared.random(), shared.random());
    let mut connection = Connection { shared, local, peer, nonce, session: None, out: Vec::new(), close: false };
    let mut received = BytesMut::with_capacity(4096);
    let mut silent_since = now();
    loop {
        loop {
            match wire::step(&received) {
                Step::Incomplete => break,
                Step::Skip(n) => received.advance(n),
                Step::Request(request, n) => {
                    received.advance(n);
                    connection.answer(&request).await;
                }
                Step::Bad => {
                    respond(&mut connection.out, 400, None, &[], "");
                    connection.close = true;
                    break;
                }
            }
        }
        if !connection.out.is_empty() {
            // A client that takes nothing for as long is as good as silent.
            let patience = connection.shared.config.session_timeout;
            tokio::time::timeout(patience, stream.write_all(&connection.out)).await??;
            connection.out.clear();
        }
        if connection.close {
            return stream.shutdown().await;
        }
        let silence_ends = silent_since + connection.shared.config.session_timeout;
        let due = connection.next_due().map_or(silence_ends, |due| due.min(silence_ends));
        tokio::select! {
            read = stream.read_buf(&mut received) => {
                if read? == 0 {
                    return Ok(());
                }
                silent_since = now();
            }
            () = tokio::time::sleep_until(due) => {
                let now = now();
                if now >= silence_ends {
                    return Ok(());
                }
                connection.pump(now).await;
            }
        }
    }
}

struct Connection {
    shared: Arc<Shared>,
    local: SocketAddr,
    peer: SocketAddr,
    nonce: String,
    session: Option<Session>,
    /// Bytes to write to the client next: responses and interleaved media.
    out: Vec<u8>,
    close: bool,
}

struct Session {
    id: String,
    mount: Mount,
    tracks: Vec<Track>,
    /// When the first picture is due, once PLAY has been answered.
    began: Option<Instant>,
    playing: Option<Slot>,
    _slot: Slot,
}

struct Track {
    number: usize,
    content: Content,
    carriage: Carriage,
    rtp: RtpStream,
    /// Next unit or frame of the endless loop.
    next: u64,
    /// Pictures are left out until the next key picture.
    wait_key: bool,
    next_report: Instant,
}

#[derive(Clone)]
enum Content {
    Video(Arc<Clip>),
    Audio(Arc<AudioClip>),
}

impl Content {
    /// When the `n`-th unit leaves, in camera time since the beginning.
    fn due(&self, n: u64) -> Duration {
        match self {
            Content::Video(clip) => clip.due(n),
            Content::Audio(clip) => clip.due(n),
        }
    }

    fn rtp_clock(&self) -> u32 {
        match self {
            Content::Video(_) => VIDEO_CLOCK,
            Content::Audio(clip) => clip.clock(),
        }
    }

    fn payload_type(&self) -> u8 {
        match self {
            Content::Video(_) => 96,
            Content::Audio(clip) => match clip.codec() {
                AudioCodec::Pcmu => 0,
                AudioCodec::Pcma => 8,
                AudioCodec::Aac => 97,
            },
        }
    }

    /// RTP ticks of unit `n` since the clip began, moved by the clock-jump fault.
    fn ticks(&self, n: u64, jump_ms: i64) -> u64 {
        let ticks = match self {
            Content::Video(clip) => clip.looped(n).1,
            Content::Audio(clip) => clip.looped(n).1,
        };
        ticks.wrapping_add(jump_ms.wrapping_mul(i64::from(self.rtp_clock()) / 1000) as u64)
    }
}

enum Carriage {
    Interleaved(u8),
    Udp { rtp: UdpSocket, rtcp: UdpSocket },
}

impl Connection {
    async fn answer(&mut self, request: &Request) {
        let shared = Arc::clone(&self.shared);
        add(&shared.counts.requests, 1);
        if shared.faults.mute.load(Ordering::Relaxed) {
            return;
        }
        let cseq = request.header("CSeq");
        if !self.authorised(request) {
            let challenge = format!("Digest realm=\"{}\", nonce=\"{}\"", shared.config.realm, self.nonce);
            return respond(&mut self.out, 401, cseq, &[("WWW-Authenticate", &challenge)], "");
        }
        match request.method.as_str() {
            "OPTIONS" => respond(&mut self.out, 200, cseq, &[("Public", METHODS)], ""),
            "DESCRIBE" => self.describe(request).await,
            "SETUP" => self.setup(request).await,
            method @ ("PLAY" | "TEARDOWN" | "GET_PARAMETER" | "SET_PARAMETER") => {
                let named = request.header("Session").map(|s| s.split(';').next().unwrap_or(s).trim());
                match (&self.session, named) {
                    (Some(session), Some(id)) if session.id == id => {}
                    // a keepalive may come without a session
                    (_, None) if method.ends_with("PARAMETER") => {}
                    _ => return respond(&mut self.out, 454, cseq, &[], ""),
                }
                match method {
                    "PLAY" => self.play(request),
                    "TEARDOWN" => {
                        self.session = None;
                        add(&shared.counts.teardowns, 1);
                        respond(&mut self.out, 200, cseq, &[], "");
                    }
                    _ => {
                        let session = self.session.as_ref().map(|s| ("Session", s.id.as_str()));
                        respond(&mut self.out, 200, cseq, session.as_slice(), "");
                    }
                }
            }
            _ => respond(&mut self.out, 501, cseq, &[("Public", METHODS)], ""),
        }
    }

    fn authorised(&self, request: &Request) -> bool {
        let shared = &self.shared;
        let refused = shared.faults.refuse_auth.load(Ordering::Relaxed);
        let fits = match &shared.config.account {
            None => true,
            Some(a) => wire::authorised(request, &shared.config.realm, &self.nonce, &a.username, &a.password),
        };
        let ok = fits && !refused;
        if !ok && request.header("Authorization").is_some() {
            add(&shared.counts.auth_failures, 1);
        }
        ok
    }

    fn mount(&self, path: &str) -> Option<Mount> {
        self.shared.config.mounts.iter().find(|m| m.path == path).cloned()
    }

    async fn describe(&mut self, request: &Request) {
        let cseq = request.header("CSeq");
        let delay = self.shared.faults.describe_delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let Some(mount) = self.mount(request.path().0) else {
            return respond(&mut self.out, 404, cseq, &[], "");
        };
        let base = format!("{}/", request.base_uri());
        let sdp = describe_mount(&mount, self.local, self.shared.random());
        add(&self.shared.counts.describes, 1);
        let headers = [("Content-Type", "application/sdp"), ("Content-Base", base.as_str())];
        respond(&mut self.out, 200, cseq, &headers, &sdp);
    }

    async fn setup(&mut self, request: &Request) {
        let status = match self.set_up_track(request).await {
            Ok((session, transport)) => {
                add(&self.shared.counts.setups, 1);
                let headers = [("Session", session.as_str()), ("Transport", transport.as_str())];
                return respond(&mut self.out, 200, request.header("CSeq"), &headers, "");
            }
            Err(status) => status,
        };
        respond(&mut self.out, status, request.header("CSeq"), &[], "");
    }

    /// Adds a track to the session, which the first one creates. Answers the Session and Transport headers, or a status.
    async fn set_up_track(&mut self, request: &Request) -> Result<(String, String), u16> {
        let (path, number) = request.path();
        let mount = self.mount(path).ok_or(404u16)?;
        // a presentation of one stream may be set up by its own URL
        let number = number.or(mount.audio.is_none().then_some(0)).ok_or(459u16)?;
        let content = match (number, &mount.audio) {
            (0, _) => Content::Video(Arc::clone(&mount.video)),
            (1, Some(audio)) => Content::Audio(Arc::clone(audio)),
            _ => return Err(404),
        };
        let mut session = match self.session.take() {
            Some(session) => {
                let other = session.mount.path != mount.path || session.tracks.iter().any(|t| t.number == number);
                if session.began.is_some() || other {
                    self.session = Some(session);
                    return Err(455);
                }
                session
            }
            None => Session {
                id: format!("{:08X}", self.shared.random()),
                mount,
                tracks: Vec::new(),
                began: None,
                playing: None,
                _slot: Slot::take(&self.shared, |s| &s.sessions, SESSIONS_MAX).ok_or(453u16)?,
            },
        };
        let ssrc = self.shared.random();
        let carried = self.carriage(request, &session).await;
        let carried = carried.map(|(carriage, transport)| {
            let rtp = RtpStream::new(content.payload_type(), ssrc, self.shared.random() as u16, self.shared.random());
            let track = Track { number, content, carriage, rtp, next: 0, wait_key: false, next_report: now() };
            session.tracks.push(track);
            let timeout = self.shared.config.session_timeout.as_secs();
            (format!("{};timeout={timeout}", session.id), format!("{transport};ssrc={ssrc:08X}"))
        });
        if !session.tracks.is_empty() {
            self.session = Some(session);
        }
        carried
    }

    async fn carriage(&self, request: &Request, session: &Session) -> Result<(Carriage, String), u16> {
        match request.header("Transport").and_then(wire::transport).ok_or(461u16)? {
            Wanted::Interleaved(channel) => {
                let taken = |c: u8| {
                    let near = |t: &Track| matches!(t.carriage, Carriage::Interleaved(other) if other.abs_diff(c) < 2);
                    session.tracks.iter().any(near)
                };
                let channel = channel.or_else(|| (0..=2).step_by(2).find(|c| !taken(*c))).ok_or(461u16)?;
                if taken(channel) {
                    return Err(461);
                }
                let transport = format!("RTP/AVP/TCP;unicast;interleaved={channel}-{}", channel + 1);
                Ok((Carriage::Interleaved(channel), transport))
            }
            Wanted::Udp(port) => {
                let (rtp, rtcp, ours) = self.udp_pair(port).await.map_err(|e| {
                    tracing::warn!(peer = %self.peer, error = %e, "simulated camera has no UDP ports");
                    500u16
                })?;
                let transport =
                    format!("RTP/AVP;unicast;client_port={port}-{};server_port={ours}-{}", port + 1, ours + 1);
                Ok((Carriage::Udp { rtp, rtcp }, transport))
            }
        }
    }

    /// Two sockets on adjacent ports of ours, the first even, connected to the client's `port` and the next.
    async fn udp_pair(&self, port: u16) -> io::Result<(UdpSocket, UdpSocket, u16)> {
        let ip: IpAddr = self.local.ip();
        for _ in 0..PORT_ATTEMPTS {
            let first = UdpSocket::bind((ip, 0)).await?;
            let ours = first.local_addr()?.port();
            let Ok(second) = UdpSocket::bind((ip, ours ^ 1)).await else {
                continue;
            };
            let (rtp, rtcp) = if ours & 1 == 0 { (first, second) } else { (second, first) };
            rtp.connect((self.peer.ip(), port)).await?;
            rtcp.connect((self.peer.ip(), port + 1)).await?;
            return Ok((rtp, rtcp, ours & !1));
        }
        Err(io::Error::from(io::ErrorKind::AddrInUse))
    }

    fn play(&mut self, request: &Request) {
        let cseq = request.header("CSeq");
        let Some(session) = &mut self.session else {
            return respond(&mut self.out, 454, cseq, &[], "");
        };
        if session.began.is_none() {
            let now = now();
            session.began = Some(now + self.shared.config.phase);
            session.playing = Slot::take(&self.shared, |s| &s.playing, SESSIONS_MAX);
            for track in &mut session.tracks {
                track.next_report = now + self.shared.config.phase;
            }
            add(&self.shared.counts.plays, 1);
        }
        let base = request.base_uri();
        let jump = self.shared.faults.jump_ms.load(Ordering::Relaxed);
        let describe = |track: &Track| {
            let ticks = track.content.ticks(track.next, jump);
            let time = track.rtp.base.wrapping_add(ticks as u32);
            format!("url={base}/trackID={};seq={};rtptime={time}", track.number, track.rtp.sequence)
        };
        let info: Vec<String> = session.tracks.iter().map(describe).collect();
        let headers = [("Session", session.id.as_str()), ("Range", "npt=0.000-"), ("RTP-Info", &info.join(","))];
        respond(&mut self.out, 200, cseq, &headers, "");
    }

    fn next_due(&self) -> Option<Instant> {
        let session = self.session.as_ref()?;
        let began = session.began?;
        let speed = self.shared.config.speed;
        session.tracks.iter().map(|track| began + track.content.due(track.next) / speed).min()
    }

    /// Sends everything that is due.
    async fn pump(&mut self, now: Instant) {
        let Some(session) = &mut self.session else { return };
        let Some(began) = session.began else { return };
        for track in &mut session.tracks {
            let mut packets = Packets::default();
            track.collect(&self.shared, now, began, &mut packets);
            match &track.carriage {
                Carriage::Interleaved(channel) => {
                    for (packet, report) in packets.iter() {
                        // at most PAYLOAD_MAX and a header, so the length fits
                        self.out.extend_from_slice(&[b'$', channel + u8::from(report)]);
                        self.out.extend_from_slice(&(packet.len() as u16).to_be_bytes());
                        self.out.extend_from_slice(packet);
                    }
                }
                Carriage::Udp { rtp, rtcp } => {
                    for (packet, report) in packets.iter() {
                        let socket = if report { rtcp } else { rtp };
                        if socket.send(packet).await.is_err() {
                            add(&self.shared.counts.send_errors, 1);
                        }
                    }
                }
            }
        }
    }
}

/// Packets to send, one after the other in one buffer.
#[derive(Default)]
struct Packets {
    bytes: Vec<u8>,
    /// End of each packet, and whether it is a sender report.
    ends: Vec<(usize, bool)>,
}

impl Packets {
    fn push(&mut self, packet: &[u8], report: bool) {
        self.bytes.extend_from_slice(packet);
        self.ends.push((self.bytes.len(), report));
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let mut start = 0;
        self.ends.iter().map(move |(end, report)| {
            let packet = &self.bytes[start..*end];
            start = *end;
            (packet, *report)
        })
    }
}

impl Track {
    /// Packetises every unit due by `now`, and a sender report when it is time.
    fn collect(&mut self, shared: &Shared, now: Instant, began: Instant, packets: &mut Packets) {
        let speed = shared.config.speed;
        let stalled = shared.faults.stall.load(Ordering::Relaxed);
        let jump = shared.faults.jump_ms.load(Ordering::Relaxed);
        let first = self.next;
        loop {
            let due = began + self.content.due(self.next) / speed;
            if due > now {
                break;
            }
            let n = self.next;
            self.next += 1;
            let late = now.duration_since(due) > LAG_MAX;
            self.send(shared, n, jump, stalled || late, packets);
        }
        let Some(last) = self.next.checked_sub(1) else { return };
        if !stalled && now >= self.next_report {
            packets.push(&self.report(shared, first.min(last), now.duration_since(began), jump), true);
            self.next_report = now + REPORT_INTERVAL / speed;
        }
    }

    /// A sender report for the moment unit `n` was due: the first of those it goes out with, so that the first report names
    /// the first picture's very time. Receivers count stream time from whichever of the two they see first.
    fn report(&self, shared: &Shared, n: u64, elapsed: Duration, jump: i64) -> Vec<u8> {
        let due = self.content.due(n);
        let late = elapsed.saturating_sub(due / shared.config.speed);
        let wall = clock::system_unix().saturating_sub(late);
        let offset = shared.faults.wall_offset_ms.load(Ordering::Relaxed);
        let shift = Duration::from_millis(offset.unsigned_abs());
        let wall = if offset < 0 { wall.saturating_sub(shift) } else { wall.saturating_add(shift) };
        let ticks = due.as_nanos() * u128::from(self.content.rtp_clock()) / 1_000_000_000;
        let ticks = self.content.ticks(0, jump).wrapping_add(ticks as u64);
        self.rtp.report(ntp(wall), self.rtp.base.wrapping_add(ticks as u32))
    }

    fn send(&mut self, shared: &Shared, n: u64, jump: i64, withheld: bool, packets: &mut Packets) {
        let time = self.rtp.base.wrapping_add(self.content.ticks(n, jump) as u32);
        let spoil = shared.faults.wrong_ssrc.load(Ordering::Relaxed);
        let mut emit = |packet: &mut [u8]| {
            if shared.take_drop() {
                return add(&shared.counts.dropped, 1);
            }
            if spoil {
                packet[8..12].iter_mut().for_each(|b| *b ^= 0xFF);
            }
            add(&shared.counts.packets, 1);
            packets.push(packet, false);
        };
        match &self.content {
            Content::Video(clip) => {
                let (unit, _) = clip.looped(n);
                self.wait_key = withheld || (self.wait_key && !unit.key);
                if self.wait_key {
                    return add(&shared.counts.skipped, 1);
                }
                self.rtp.picture(clip.codec(), unit, time, shared.config.payload_max, &mut emit);
                add(&shared.counts.pictures, 1);
            }
            Content::Audio(clip) => {
                if !withheld {
                    self.rtp.sound(clip.codec(), clip.looped(n).0, time, &mut emit);
                    add(&shared.counts.sounds, 1);
                }
            }
        }
    }
}

/// The session description of a mount.
fn describe_mount(mount: &Mount, local: SocketAddr, id: u32) -> String {
    let family = if local.is_ipv4() { "IP4" } else { "IP6" };
    let mut sdp = format!(
        "v=0\r\no=- {id} 1 IN {family} {}\r\ns=Simulated camera\r\n{}\r\nt=0 0\r\na=control:*\r\na=range:npt=0-\r\n",
        local.ip(),
        wire::connection_line(local),
    );
    let clip = &mount.video;
    let sets: Vec<String> = clip.parameter_sets().iter().map(|set| BASE64.encode(set)).collect();
    let (name, parameters) = match clip.codec() {
        VideoCodec::H264 => {
            let sprop = if mount.sprop { format!(";sprop-parameter-sets={}", sets.join(",")) } else { String::new() };
            let profile = clip.parameter_sets().first().and_then(|sps| sps.get(1..4)).unwrap_or(&[0x4D, 0, 0x1E]);
            ("H264", Some(format!("packetization-mode=1;profile-level-id={}{sprop}", hex(profile))))
        }
        VideoCodec::H265 => {
            let named = ["sprop-vps", "sprop-sps", "sprop-pps"].iter().zip(&sets);
            let sprop: Vec<String> = named.map(|(name, set)| format!("{name}={set}")).collect();
            ("H265", mount.sprop.then(|| sprop.join(";")))
        }
    };
    sdp.push_str(&format!("m=video 0 RTP/AVP 96\r\na=rtpmap:96 {name}/90000\r\n"));
    if let Some(parameters) = parameters {
        sdp.push_str(&format!("a=fmtp:96 {parameters}\r\n"));
    }
    sdp.push_str(&format!("a=framerate:{}\r\na=control:trackID=0\r\n", clip.fps()));
    if let Some(audio) = &mount.audio {
        sdp.push_str(&match audio.codec() {
            AudioCodec::Pcma => "m=audio 0 RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\n".to_owned(),
            AudioCodec::Pcmu => "m=audio 0 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n".to_owned(),
            AudioCodec::Aac => format!(
                "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 MPEG4-GENERIC/{}/{}\r\na=fmtp:97 streamtype=5;profile-level-id=1;\
                 mode=AAC-hbr;sizelength=13;indexlength=3;indexdeltalength=3;config={}\r\n",
                audio.clock(),
                audio.channels(),
                hex(audio.config()),
            ),
        });
        sdp.push_str("a=control:trackID=1\r\n");
    }
    sdp
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}
