//! What an INVITE asks for, out of its SDP.
//! Standard: [GB/T28181-2022 G.1, 9.2, 9.8, 9.9], [GB/T28181-2016 annex F].
//! In: `Sdp`. Out: `MediaOffer`, or an `OfferError` that knows its SIP status: 400 where data is missing or contradicts
//! itself, 488 where it is understood and cannot be served.
//! Deviations read: payload 96 without rtpmap is PS; y= of any number of digits; TCP without setup is passive (the
//! receiver listens); stream numbers under four vendors' names; an unknown s= with t=0 0 is Play.
//! Not here: whether the address may be sent to, whether the channel exists.

use super::{Direction, F, Media, Sdp, SdpError, Setup, ip_of};
use crate::proto::gb28181::DeviceId;
use std::net::{IpAddr, SocketAddr};

/// What `s=` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionKind {
    /// Live.
    Play,
    /// Recorded, under control.
    Playback,
    /// Recorded, as a file.
    Download,
    /// Voice, both ways. Until 2016.
    Talk,
}

impl SessionKind {
    const ALL: [SessionKind; 4] = [SessionKind::Play, SessionKind::Playback, SessionKind::Download, SessionKind::Talk];

    /// As written in `s=`.
    pub fn as_str(self) -> &'static str {
        match self {
            SessionKind::Play => "Play",
            SessionKind::Playback => "Playback",
            SessionKind::Download => "Download",
            SessionKind::Talk => "Talk",
        }
    }

    /// Reads it in any case.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| text.eq_ignore_ascii_case(k.as_str()))
    }

    /// True for what is read from a recording.
    pub fn is_history(self) -> bool {
        matches!(self, SessionKind::Playback | SessionKind::Download)
    }
}

/// How media travels; the roles are the offerer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaTransport {
    /// RTP in datagrams.
    Udp,
    /// The offerer listens, we connect.
    TcpPassive,
    /// The offerer connects, we listen.
    TcpActive,
}

impl MediaTransport {
    /// True for both TCP forms.
    pub fn is_tcp(self) -> bool {
        self != MediaTransport::Udp
    }

    /// The protocol word of `m=`.
    pub fn proto(self) -> &'static str {
        if self.is_tcp() { "TCP/RTP/AVP" } else { "RTP/AVP" }
    }

    /// `a=setup` of the offerer.
    pub(super) fn offer_setup(self) -> Option<Setup> {
        match self {
            MediaTransport::Udp => None,
            MediaTransport::TcpPassive => Some(Setup::Passive),
            MediaTransport::TcpActive => Some(Setup::Active),
        }
    }

    /// `a=setup` of the answerer: the other role.
    pub(super) fn answer_setup(self) -> Option<Setup> {
        match self {
            MediaTransport::Udp => None,
            MediaTransport::TcpPassive => Some(Setup::Active),
            MediaTransport::TcpActive => Some(Setup::Passive),
        }
    }
}

/// Voice encodings that travel without PS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AudioPayload {
    /// G.711 A-law, payload 8.
    Pcma,
    /// G.711 mu-law, payload 0.
    Pcmu,
}

/// The payload chosen from the offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Payload {
    /// A program stream under this payload type.
    Ps(u8),
    /// Bare audio under this payload type.
    Audio(u8, AudioPayload),
}

/// What `y=` looked like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum YForm {
    /// No line, or an empty one.
    Absent,
    /// Ten digits.
    Standard,
    /// Another number of digits that fits 32 bits.
    OddLength,
    /// Letters, or above 2^32-1: as if absent.
    Unusable,
}

/// The short form of `u=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uri {
    /// Whose recording.
    pub source: DeviceId,
    /// 0 all, 1 manual, 2 alarm, 3 time.
    pub record_type: u8,
}

impl Uri {
    /// Reads `id:type`; the type may be missing. The long `http://` form is not this.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, kind) = text.split_once(':').unwrap_or((text, "0"));
        Some(Self { source: DeviceId::parse(id.trim()).ok()?, record_type: kind.trim().parse().unwrap_or(0) })
    }
}

/// Why an offer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// Not SDP that can be read.
    #[error(transparent)]
    Sdp(#[from] SdpError),
    /// No `m=` at all.
    #[error("SDP: no m= line: send m=video <port> RTP/AVP 96")]
    NoMedia,
    /// No `c=` and no address in `o=`.
    #[error("SDP: no c= line: send c=IN IP4 <address>")]
    NoConnection,
    /// Playback or download without two numbers in `t=`.
    #[error("SDP: {} without start and end in t=: send t=<start> <end> in Unix seconds", .0.as_str())]
    NoTime(SessionKind),
    /// The end is not after the start.
    #[error("SDP: t= ends at or before its start: send the earlier second first")]
    TimeOrder,
    /// `s=` is none of the four, and it is not a live offer either.
    #[error("SDP: unknown s=: use Play, Playback, Download or Talk")]
    SessionName,
    /// Audio alone where video is due.
    #[error("SDP: no m=video line: offer video")]
    NoVideo,
    /// Video alone where audio is due.
    #[error("SDP: no m=audio line: offer audio")]
    NoAudio,
    /// Port 0.
    #[error("SDP: m= port is 0: send a real port")]
    ZeroPort,
    /// Not RTP/AVP over UDP or TCP.
    #[error("SDP: unknown protocol in m=: use RTP/AVP or TCP/RTP/AVP")]
    Protocol,
    /// `sendonly` or `inactive`: nothing for us to send.
    #[error("SDP: direction leaves nothing to send: offer recvonly")]
    Direction,
    /// A host name where an address is due.
    #[error("SDP: c= holds no IP address: send one in place of a host name")]
    HostName,
    /// Multicast, 0.0.0.0 or broadcast.
    #[error("SDP: c= is no unicast address: send the receiver's own")]
    NotUnicast,
    /// No payload type carries PS.
    #[error("SDP: no PS/90000 among the payload types: offer a=rtpmap:96 PS/90000")]
    NoPs,
    /// Payload 96 is a vendor's own format. [GB/T28181-2022 G.1.4]
    #[error("SDP: payload type 96 is a vendor's format: offer a=rtpmap:96 PS/90000")]
    VendorPayload,
    /// No audio payload we speak.
    #[error("SDP: no PCMA/8000 or PCMU/8000 among the payload types: offer one")]
    NoAudioPayload,
}

impl OfferError {
    /// 400 or 488.
    pub fn status(self) -> u16 {
        match self {
            OfferError::Sdp(_)
            | OfferError::NoMedia
            | OfferError::NoConnection
            | OfferError::NoTime(_)
            | OfferError::TimeOrder => 400,
            _ => 488,
        }
    }
}

/// An offer that can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaOffer {
    /// What is asked for.
    pub kind: SessionKind,
    /// How media travels.
    pub transport: MediaTransport,
    /// Where media goes (UDP, TCP passive). From a TCP active offerer the connection may come from another port.
    pub remote: SocketAddr,
    /// What to send.
    pub payload: Payload,
    /// The receiver's SSRC wish, by value.
    pub ssrc: Option<u32>,
    /// What y= looked like.
    pub y_form: YForm,
    /// Unix seconds, for history.
    pub time: Option<(u64, u64)>,
    /// Short form of u=.
    pub uri: Option<Uri>,
    /// 0 main, 1 first sub-stream.
    pub stream_number: Option<u8>,
    /// Times real speed, for downloads; 1 where absent.
    pub download_speed: u32,
    /// f=, a hint.
    pub f: Option<F>,
}

impl MediaOffer {
    /// Reads the body of an INVITE: `Sdp::parse` and `from_sdp` in one.
    pub fn parse(body: &[u8]) -> Result<Self, OfferError> {
        Self::from_sdp(&Sdp::parse(body)?)
    }

    /// Video by PS, or audio for Talk.
    pub fn from_sdp(sdp: &Sdp) -> Result<Self, OfferError> {
        let kind = session_kind(sdp)?;
        Self::extract(sdp, kind, if kind == SessionKind::Talk { "audio" } else { "video" })
    }

    /// Bare audio: what the listener of a broadcast offers. [GB/T28181-2022 9.12.1]
    pub fn audio_from_sdp(sdp: &Sdp) -> Result<Self, OfferError> {
        Self::extract(sdp, session_kind(sdp)?, "audio")
    }

    fn extract(sdp: &Sdp, kind: SessionKind, medium: &str) -> Result<Self, OfferError> {
        if sdp.media.is_empty() {
            return Err(OfferError::NoMedia);
        }
        let video = medium == "video";
        let absent = if video { OfferError::NoVideo } else { OfferError::NoAudio };
        let media = sdp.media.iter().find(|m| m.kind == medium).ok_or(absent)?;
        let transport = transport(sdp, media)?;
        let payload = if video { ps(media)? } else { audio(media)? };
        if matches!(media.direction.or(sdp.direction), Some(Direction::SendOnly | Direction::Inactive)) {
            return Err(OfferError::Direction);
        }
        let remote = remote(sdp, media)?;
        let time = match sdp.time {
            Some((start, end)) if kind.is_history() && end <= start => return Err(OfferError::TimeOrder),
            None if kind.is_history() => return Err(OfferError::NoTime(kind)),
            time => time.filter(|_| kind.is_history()),
        };
        let (ssrc, y_form) = ssrc_of(sdp);
        let speed = sdp.attribute_of(media, "downloadspeed").and_then(|v| v.parse().ok());
        Ok(Self {
            kind,
            transport,
            remote,
            payload,
            ssrc,
            y_form,
            time,
            uri: sdp.uri.as_deref().and_then(Uri::parse),
            stream_number: stream_number(sdp, media),
            download_speed: speed.filter(|n| *n > 0).unwrap_or(1),
            f: sdp.f,
        })
    }
}

fn session_kind(sdp: &Sdp) -> Result<SessionKind, OfferError> {
    match SessionKind::parse(&sdp.session_name) {
        Some(kind) => Ok(kind),
        // a name of the sender's own, but nothing that asks for a recording
        None if sdp.uri.is_none() && sdp.time.is_none_or(|t| t == (0, 0)) => Ok(SessionKind::Play),
        None => Err(OfferError::SessionName),
    }
}

fn transport(sdp: &Sdp, media: &Media) -> Result<MediaTransport, OfferError> {
    match media.proto.as_str() {
        "RTP/AVP" | "UDP/RTP/AVP" | "RTP/AVP/UDP" => Ok(MediaTransport::Udp),
        "TCP/RTP/AVP" | "RTP/AVP/TCP" => match media.setup.or(sdp.setup) {
            Some(Setup::Active) => Ok(MediaTransport::TcpActive),
            _ => Ok(MediaTransport::TcpPassive),
        },
        _ => Err(OfferError::Protocol),
    }
}

/// The other side's address and port, which must be a unicast one.
pub(super) fn remote(sdp: &Sdp, media: &Media) -> Result<SocketAddr, OfferError> {
    let text = media.connection.as_deref().or(sdp.connection.as_deref()).unwrap_or(&sdp.origin_address);
    if text.is_empty() {
        return Err(OfferError::NoConnection);
    }
    let ip = ip_of(text).ok_or(OfferError::HostName)?;
    let everyone = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_multicast() || ip.is_unspecified() || everyone {
        return Err(OfferError::NotUnicast);
    }
    if media.port == 0 {
        return Err(OfferError::ZeroPort);
    }
    Ok(SocketAddr::new(ip, media.port))
}

/// The payload type of PS: by rtpmap, else 96 where nothing else claims it.
pub(super) fn ps(media: &Media) -> Result<Payload, OfferError> {
    let named = |m: &&super::RtpMap| {
        m.clock == 90_000 && (m.encoding.eq_ignore_ascii_case("PS") || m.encoding.eq_ignore_ascii_case("MP2P"))
    };
    let listed = media.rtpmaps.iter().filter(named).find(|m| media.pts.contains(&m.pt));
    if let Some(map) = listed.or_else(|| media.rtpmaps.iter().find(named)) {
        return Ok(Payload::Ps(map.pt));
    }
    match media.rtpmaps.iter().find(|m| m.pt == 96) {
        None if media.pts.contains(&96) => Ok(Payload::Ps(96)),
        Some(map) if !is_codec(&map.encoding) => Err(OfferError::VendorPayload),
        _ => Err(OfferError::NoPs),
    }
}

/// Names of the standard's own codecs; anything else under 96 is a vendor's.
fn is_codec(encoding: &str) -> bool {
    ["PS", "MPEG4", "H264", "H265", "HEVC", "SVAC", "MP4V-ES"].iter().any(|c| encoding.eq_ignore_ascii_case(c))
}

fn audio(media: &Media) -> Result<Payload, OfferError> {
    let named = |name: &str| media.rtpmaps.iter().find(|m| m.encoding.eq_ignore_ascii_case(name)).map(|m| m.pt);
    let fixed = |pt: u8| media.pts.contains(&pt).then_some(pt);
    let pcma = named("PCMA").or(fixed(8)).map(|pt| Payload::Audio(pt, AudioPayload::Pcma));
    let pcmu = || named("PCMU").or(fixed(0)).map(|pt| Payload::Audio(pt, AudioPayload::Pcmu));
    pcma.or_else(pcmu).ok_or(OfferError::NoAudioPayload)
}

/// The value of `y=`, compared by number: peers lose leading zeros.
pub(super) fn ssrc_of(sdp: &Sdp) -> (Option<u32>, YForm) {
    let Some(text) = sdp.y.as_deref() else {
        return (None, YForm::Absent);
    };
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u32>().ok().filter(|_| digits) {
        Some(ssrc) if text.len() == 10 => (Some(ssrc), YForm::Standard),
        Some(ssrc) => (Some(ssrc), YForm::OddLength),
        None => (None, YForm::Unusable),
    }
}

fn stream_number(sdp: &Sdp, media: &Media) -> Option<u8> {
    ["streamnumber", "streamprofile", "stream"]
        .iter()
        .find_map(|name| sdp.attribute_of(media, name)?.parse().ok())
        .or_else(|| match sdp.attribute_of(media, "streamMode")? {
            mode if mode.eq_ignore_ascii_case("MAIN") => Some(0),
            mode if mode.eq_ignore_ascii_case("SUB") => Some(1),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(text: &str) -> Result<MediaOffer, OfferError> {
        MediaOffer::from_sdp(&Sdp::parse(text.as_bytes()).unwrap())
    }

    /// The sample offer with one part replaced.
    fn with(from: &str, to: &str) -> Result<MediaOffer, OfferError> {
        let sample = include_str!("../../../proto-fixtures/sdp/standard-2016-offer-tcp-passive.sdp");
        assert!(sample.contains(from), "{from}");
        offer(&sample.replace(from, to))
    }

    #[test]
    fn sample() {
        let o = with("s=Play", "s=Play").unwrap();
        assert_eq!((o.kind, o.transport), (SessionKind::Play, MediaTransport::TcpPassive));
        assert_eq!(o.remote, "192.0.2.20:30000".parse().unwrap());
        assert_eq!((o.payload, o.ssrc, o.y_form), (Payload::Ps(96), Some(100_000_001), YForm::Standard));
        assert_eq!((o.time, o.uri, o.stream_number, o.download_speed), (None, None, None, 1));
        assert!(o.f.is_some());
    }

    #[test]
    fn transports() {
        let tcp = "m=video 30000 TCP/RTP/AVP 96 98 97";
        let transport = |from: &str, to: &str| with(from, to).map(|o| o.transport);
        assert_eq!(transport(tcp, "m=video 30000 RTP/AVP 96"), Ok(MediaTransport::Udp));
        assert_eq!(transport(tcp, "m=video 30000 rtp/avp/tcp 96"), Ok(MediaTransport::TcpPassive));
        assert_eq!(transport("setup:passive", "setup:active"), Ok(MediaTransport::TcpActive));
        for setup in ["setup:actpass", "setup:none", "setup:", "x:y"] {
            assert_eq!(transport("setup:passive", setup), Ok(MediaTransport::TcpPassive), "{setup}");
        }
        for proto in ["RTP/SAVP", "UDP", "TCP/MSRP", "RTP/AVPF/X"] {
            assert_eq!(transport(tcp, &format!("m=video 30000 {proto} 96")), Err(OfferError::Protocol), "{proto}");
        }
    }

    #[test]
    fn addresses() {
        let remote = |c: &str| with("c=IN IP4 192.0.2.20", c).map(|o| o.remote.ip().to_string());
        assert_eq!(remote("c=IN IP6 2001:db8::1"), Ok("2001:db8::1".into()));
        assert_eq!(remote("x=1"), Ok("192.0.2.20".into()), "o= stands in");
        assert_eq!(remote("c=IN IP4 nvr.example.com"), Err(OfferError::HostName));
        assert_eq!(remote("c=IN IP4 239.1.1.1/127"), Err(OfferError::NotUnicast));
        assert_eq!(remote("c=IN IP4 0.0.0.0"), Err(OfferError::NotUnicast));
        assert_eq!(remote("c=IN IP4 255.255.255.255"), Err(OfferError::NotUnicast));
        assert_eq!(remote("c=IN IP4 256.1.1.1"), Err(OfferError::HostName));
        assert_eq!(with("m=video 30000", "m=video 0"), Err(OfferError::ZeroPort));
        assert_eq!(offer("s=Play\r\nm=video 1 RTP/AVP 96\r\n"), Err(OfferError::NoConnection));
        assert_eq!(offer("v=0\r\ns=Play\r\nc=IN IP4 192.0.2.1\r\n"), Err(OfferError::NoMedia));
    }

    #[test]
    fn payloads() {
        let ps = "a=rtpmap:96 PS/90000";
        let payload = |to: &str| with(ps, to).map(|o| o.payload);
        assert_eq!(payload("a=rtpmap:97 ps/90000"), Ok(Payload::Ps(97)));
        assert_eq!(payload("a=rtpmap:112 MP2P/90000"), Ok(Payload::Ps(112)));
        assert_eq!(payload("a=x"), Ok(Payload::Ps(96)));
        assert_eq!(payload("a=rtpmap:96 DAHUA/90000"), Err(OfferError::VendorPayload));
        assert_eq!(payload("a=rtpmap:96 HIKVISION/90000"), Err(OfferError::VendorPayload));
        assert_eq!(payload("a=rtpmap:96 H264/90000"), Err(OfferError::NoPs));
        assert_eq!(payload("a=rtpmap:96 PS/8000"), Err(OfferError::NoPs));
        assert_eq!(
            with("AVP 96 98 97", "AVP 98 97").map(|o| o.payload),
            Ok(Payload::Ps(96)),
            "named though not listed"
        );
        assert_eq!(with("m=video", "m=audio"), Err(OfferError::NoVideo));
        assert_eq!(with("a=recvonly", "a=sendonly"), Err(OfferError::Direction));
        assert_eq!(with("a=recvonly", "a=sendrecv").map(|o| o.payload), Ok(Payload::Ps(96)));
    }

    #[test]
    fn y_forms() {
        let y = |to: &str| with("y=0100000001", to).map(|o| (o.ssrc, o.y_form)).unwrap();
        assert_eq!(y("x=1"), (None, YForm::Absent));
        assert_eq!(y("y="), (None, YForm::Absent));
        assert_eq!(y("y=100000001"), (Some(100_000_001), YForm::OddLength));
        assert_eq!(y("y=00100000001"), (Some(100_000_001), YForm::OddLength));
        assert_eq!(y("y=4294967295"), (Some(u32::MAX), YForm::Standard));
        assert_eq!(y("y=4294967296"), (None, YForm::Unusable));
        assert_eq!(y("y=99999999999999999999999999"), (None, YForm::Unusable));
        assert_eq!(y("y=abc"), (None, YForm::Unusable));
        assert_eq!(y("y=+100000001"), (None, YForm::Unusable));
        assert_eq!(y("y=null"), (None, YForm::Unusable));
    }

    #[test]
    fn history() {
        let history = |s: &str, t: &str| {
            with("s=Play\r\nc=IN IP4 192.0.2.20\r\nt=0 0", &format!("s={s}\r\nc=IN IP4 192.0.2.20\r\n{t}"))
        };
        let o = history("playback", "u=34020000001320000001:3\r\nt=1763863200 1763866800").unwrap();
        assert_eq!((o.kind, o.time), (SessionKind::Playback, Some((1_763_863_200, 1_763_866_800))));
        assert_eq!(o.uri.map(|u| (u.source.to_string(), u.record_type)), Some(("34020000001320000001".into(), 3)));
        assert_eq!(history("Playback", "t=5 5"), Err(OfferError::TimeOrder));
        assert_eq!(history("Playback", "t=5 1"), Err(OfferError::TimeOrder));
        assert_eq!(history("Download", "t=x"), Err(OfferError::NoTime(SessionKind::Download)));
        assert_eq!(history("Download", ""), Err(OfferError::NoTime(SessionKind::Download)));
        let o = history("Download", "u=http://34020000002000000001/a/b\r\nt=1 2\r\na=downloadspeed:4").unwrap();
        assert_eq!((o.uri, o.download_speed), (None, 4));
        assert_eq!(history("Download", "t=1 2\r\na=downloadspeed:0").unwrap().download_speed, 1);
        assert_eq!(history("EmbeddedNetDVR", "t=1 2"), Err(OfferError::SessionName));
        assert_eq!(history("EmbeddedNetDVR", "t=0 0").map(|o| o.kind), Ok(SessionKind::Play));
        assert_eq!(history("", "").map(|o| o.kind), Ok(SessionKind::Play));
        // live with an odd t= is still live
        assert_eq!(history("Play", "t=5 1").map(|o| o.time), Ok(None));
    }

    #[test]
    fn stream_numbers() {
        let stream = |a: &str| with("a=connection:new", a).map(|o| o.stream_number).unwrap();
        assert_eq!(stream("a=streamnumber:1"), Some(1));
        assert_eq!(stream("a=StreamProfile:0"), Some(0));
        assert_eq!(stream("a=streamMode:sub"), Some(1));
        assert_eq!(stream("a=streamMode:MAIN"), Some(0));
        assert_eq!(stream("a=stream:2"), Some(2));
        assert_eq!(stream("a=streamnumber:x"), None);
    }

    #[test]
    fn voice() {
        let talk = |m: &str, rest: &str| {
            offer(&format!("v=0\r\ns=Talk\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n{m}\r\na=sendrecv\r\n{rest}"))
        };
        let o = talk("m=audio 4000 TCP/RTP/AVP 8", "a=rtpmap:8 PCMA/8000").unwrap();
        assert_eq!((o.kind, o.payload), (SessionKind::Talk, Payload::Audio(8, AudioPayload::Pcma)));
        assert_eq!(talk("m=audio 4000 RTP/AVP 0", "").map(|o| o.payload), Ok(Payload::Audio(0, AudioPayload::Pcmu)));
        assert_eq!(talk("m=audio 4000 RTP/AVP 20", ""), Err(OfferError::NoAudioPayload));
        assert_eq!(talk("m=video 4000 RTP/AVP 96", ""), Err(OfferError::NoAudio));
        let broadcast = include_str!("../../../proto-fixtures/sdp/standard-2016-offer-broadcast.sdp");
        let sdp = Sdp::parse(broadcast.as_bytes()).unwrap();
        assert_eq!(MediaOffer::from_sdp(&sdp), Err(OfferError::NoVideo));
        let o = MediaOffer::audio_from_sdp(&sdp).unwrap();
        assert_eq!((o.payload, o.ssrc), (Payload::Audio(8, AudioPayload::Pcma), Some(200_000_003)));
        assert_eq!(sdp.to_string(), broadcast);
    }

    /// Every file says in its name which status it is worth.
    #[test]
    fn malformed_fixtures() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/proto-fixtures/sdp/malformed");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let status = MediaOffer::parse(&std::fs::read(&path).unwrap()).map_or_else(OfferError::status, |_| 200);
            assert_eq!(Some(status.to_string().as_str()), name.split('-').nth(1), "{name}");
            seen += 1;
        }
        assert!(seen >= 20);
    }

    #[test]
    fn statuses() {
        for e in [
            OfferError::NoMedia,
            OfferError::NoConnection,
            OfferError::TimeOrder,
            OfferError::NoTime(SessionKind::Playback),
        ] {
            assert_eq!(e.status(), 400);
        }
        for e in [
            OfferError::NoPs,
            OfferError::NoVideo,
            OfferError::Protocol,
            OfferError::HostName,
            OfferError::VendorPayload,
        ] {
            assert_eq!(e.status(), 488);
        }
        assert_eq!(
            OfferError::NoTime(SessionKind::Download).to_string(),
            "SDP: Download without start and end in t=: send t=<start> <end> in Unix seconds"
        );
    }
}
