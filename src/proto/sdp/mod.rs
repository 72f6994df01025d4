//! SDP as GB/T 28181 speaks it: with `y=` and `f=`, and with what the field makes of it.
//! Standard: [GB/T28181-2022 annex G], [GB/T28181-2016 annex F], [RFC4566].
//! In: body bytes (`Sdp::parse`). Out: `Sdp`; from it `MediaOffer` and `MediaAnswer`; texts from `Invite`, `Answer`.
//! Invariants: at most 64 KiB, 16 media, 128 attributes each; line order is not demanded; what `Display` writes,
//! `parse` reads as the same value.
//! Deviations read: CR, LF or both as line end, blanks around values, NULs, `y=` and `f=` in any place, unknown lines.
//! Not here: which address media may go to, ports.

mod answer;
mod format;
mod offer;
pub mod ssrc;

pub use answer::{Answer, Invite, MediaAnswer, RecordType};
pub use format::{AudioCodec, AudioParams, BitrateType, F, Resolution, VideoCodec, VideoParams};
pub use offer::{AudioPayload, MediaOffer, MediaTransport, OfferError, Payload, SessionKind, Uri, YForm};

use crate::proto::gb28181::charset;
use std::fmt;
use std::net::IpAddr;

/// Largest body: real ones are below 2 KiB; one datagram holds no more.
pub const MAX_BYTES: usize = 64 << 10;
/// Most `m=` lines: GB has one, Talk may have two.
pub const MAX_MEDIA: usize = 16;
/// Most attributes kept of the session and of each medium.
pub const MAX_ATTRIBUTES: usize = 128;
/// Most payload types kept of an `m=` line.
const MAX_FORMATS: usize = 64;

/// Why a body is no SDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SdpError {
    /// Above `MAX_BYTES`.
    #[error("SDP: {0} bytes: send at most 64 KiB")]
    TooLong(usize),
    /// None of the lines `v= o= s= c= m=` in it.
    #[error("SDP: no session description found: send application/sdp")]
    NotSdp,
    /// An `m=` line without kind, port and protocol.
    #[error("SDP: m= line {0} is incomplete: write m=<kind> <port> <protocol> <payload types>")]
    MediaLine(usize),
    /// A port that is no number below 65536.
    #[error("SDP: m= line {0} has no valid port: use 1 to 65535")]
    Port(usize),
    /// Above `MAX_MEDIA`.
    #[error("SDP: more than 16 m= lines: send one")]
    TooManyMedia,
}

/// `a=name` or `a=name:value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Name as written.
    pub name: String,
    /// What follows the colon.
    pub value: Option<String>,
}

impl Attribute {
    /// An attribute with a value.
    pub fn new(name: &str, value: impl ToString) -> Self {
        Self { name: name.to_owned(), value: Some(value.to_string()) }
    }

    /// An attribute without one.
    pub fn flag(name: &str) -> Self {
        Self { name: name.to_owned(), value: None }
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "a={}:{value}\r\n", self.name),
            None => write!(f, "a={}\r\n", self.name),
        }
    }
}

/// `a=rtpmap`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtpMap {
    /// Payload type.
    pub pt: u8,
    /// Encoding name as written.
    pub encoding: String,
    /// Clock rate in Hz.
    pub clock: u32,
}

/// `a=setup`: who opens the TCP connection; the author of the SDP is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// The author connects.
    Active,
    /// The author listens.
    Passive,
    /// Either.
    ActPass,
    /// `holdconn`.
    HoldConn,
}

/// Direction of media, from the author's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Receives.
    RecvOnly,
    /// Sends.
    SendOnly,
    /// Both.
    SendRecv,
    /// Neither.
    Inactive,
}

impl Setup {
    const ALL: [(&'static str, Setup); 4] = [
        ("active", Setup::Active),
        ("passive", Setup::Passive),
        ("actpass", Setup::ActPass),
        ("holdconn", Setup::HoldConn),
    ];
}

impl Direction {
    const ALL: [(&'static str, Direction); 4] = [
        ("recvonly", Direction::RecvOnly),
        ("sendonly", Direction::SendOnly),
        ("sendrecv", Direction::SendRecv),
        ("inactive", Direction::Inactive),
    ];
}

fn word_of<T: Copy + PartialEq>(all: &[(&'static str, T)], value: T) -> &'static str {
    all.iter().find(|(_, v)| *v == value).map_or("", |(word, _)| word)
}

fn value_of<T: Copy>(all: &[(&'static str, T)], word: &str) -> Option<T> {
    all.iter().find(|(w, _)| word.eq_ignore_ascii_case(w)).map(|(_, v)| *v)
}

/// One `m=` section.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Media {
    /// `video`, `audio`.
    pub kind: String,
    /// Port; 0 refuses.
    pub port: u16,
    /// `RTP/AVP`, `TCP/RTP/AVP`.
    pub proto: String,
    /// Payload types; what is none is left out.
    pub pts: Vec<u8>,
    /// `c=` of the section: the address as text.
    pub connection: Option<String>,
    /// Payload names.
    pub rtpmaps: Vec<RtpMap>,
    /// TCP role.
    pub setup: Option<Setup>,
    /// Direction.
    pub direction: Option<Direction>,
    /// All other attributes.
    pub attributes: Vec<Attribute>,
}

/// A session description.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sdp {
    /// First word of `o=`: a 20-digit code.
    pub origin_user: String,
    /// Last word of `o=`.
    pub origin_address: String,
    /// `s=`.
    pub session_name: String,
    /// `u=`.
    pub uri: Option<String>,
    /// `c=` of the session: the address as text.
    pub connection: Option<String>,
    /// `t=` in Unix seconds; `None` if missing or no two numbers.
    pub time: Option<(u64, u64)>,
    /// TCP role given for the session.
    pub setup: Option<Setup>,
    /// Direction given for the session.
    pub direction: Option<Direction>,
    /// Other attributes of the session.
    pub attributes: Vec<Attribute>,
    /// The media.
    pub media: Vec<Media>,
    /// `y=` as written.
    pub y: Option<String>,
    /// `f=`; `None` if missing or empty.
    pub f: Option<F>,
}

impl Sdp {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, SdpError> {
        if body.len() > MAX_BYTES {
            return Err(SdpError::TooLong(body.len()));
        }
        let text = charset::decode(body, None);
        let text = if text.contains('\0') { text.replace('\0', "") } else { text.into_owned() };
        let mut sdp = Sdp::default();
        let mut recognised = false;
        for line in text.split(['\r', '\n']) {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let value = value.trim();
            let &[key] = key.trim().as_bytes() else { continue };
            recognised |= matches!(key, b'v' | b'o' | b's' | b'c' | b'm');
            sdp.line(key.to_ascii_lowercase(), value)?;
        }
        if recognised { Ok(sdp) } else { Err(SdpError::NotSdp) }
    }

    fn line(&mut self, key: u8, value: &str) -> Result<(), SdpError> {
        match key {
            b'o' => {
                let mut words = value.split_whitespace();
                self.origin_user = words.next().unwrap_or("").to_owned();
                self.origin_address = words.next_back().unwrap_or("").to_owned();
            }
            b's' => self.session_name = value.to_owned(),
            b'u' => self.uri = Some(value.to_owned()).filter(|v| !v.is_empty()),
            b'c' => {
                let address = value.split_whitespace().next_back().map(str::to_owned);
                match self.media.last_mut() {
                    Some(media) => media.connection = address,
                    None => self.connection = address,
                }
            }
            b't' => {
                let mut numbers = value.split_whitespace().map(|n| n.parse::<u64>().ok());
                self.time = numbers.next().flatten().zip(numbers.next().flatten());
            }
            b'm' => self.media.push(self.media_line(value)?),
            b'a' => self.attribute(value),
            b'y' => self.y = Some(value.to_owned()).filter(|v| !v.is_empty()),
            b'f' => self.f = F::parse(value),
            _ => {}
        }
        Ok(())
    }

    fn media_line(&self, value: &str) -> Result<Media, SdpError> {
        let line = self.media.len() + 1;
        if line > MAX_MEDIA {
            return Err(SdpError::TooManyMedia);
        }
        let mut words = value.split_whitespace();
        let mut word = || words.next().ok_or(SdpError::MediaLine(line));
        let kind = word()?.to_ascii_lowercase();
        let port = word()?;
        // `49170/2` counts ports
        let port = port.split('/').next().unwrap_or(port).parse().map_err(|_| SdpError::Port(line))?;
        let proto = word()?.to_ascii_uppercase();
        let pts = words.filter_map(|w| w.parse().ok()).filter(|pt| *pt < 128).take(MAX_FORMATS).collect();
        Ok(Media { kind, port, proto, pts, ..Media::default() })
    }

    fn attribute(&mut self, value: &str) {
        let (name, value) = match value.split_once(':') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (value, None),
        };
        let (attributes, setup, direction) = match self.media.last_mut() {
            Some(m) => {
                if name.eq_ignore_ascii_case("rtpmap") {
                    if m.rtpmaps.len() < MAX_FORMATS {
                        m.rtpmaps.extend(value.and_then(rtpmap));
                    }
                    return;
                }
                (&mut m.attributes, &mut m.setup, &mut m.direction)
            }
            None => (&mut self.attributes, &mut self.setup, &mut self.direction),
        };
        if let (true, Some(value)) = (name.eq_ignore_ascii_case("setup"), value) {
            *setup = value_of(&Setup::ALL, value);
        } else if let (None, Some(way)) = (value, value_of(&Direction::ALL, name)) {
            *direction = Some(way);
        } else if attributes.len() < MAX_ATTRIBUTES && !name.is_empty() {
            attributes.push(Attribute { name: name.to_owned(), value: value.map(str::to_owned) });
        }
    }

    /// The value of an attribute: of `media` first, then of the session.
    pub fn attribute_of<'a>(&'a self, media: &'a Media, name: &str) -> Option<&'a str> {
        let all = media.attributes.iter().chain(&self.attributes);
        all.filter(|a| a.name.eq_ignore_ascii_case(name)).find_map(|a| a.value.as_deref())
    }
}

/// `96 PS/90000`, also with blanks around the slash.
fn rtpmap(value: &str) -> Option<RtpMap> {
    let (pt, rest) = value.split_once(char::is_whitespace)?;
    let mut parts = rest.split('/').map(str::trim);
    let encoding = parts.next()?;
    let clock = parts.next()?.parse().ok()?;
    let pt = pt.parse().ok().filter(|pt| *pt < 128)?;
    Some(RtpMap { pt, encoding: encoding.to_owned(), clock })
}

impl fmt::Display for Sdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v=0\r\no={} 0 0 {}\r\n", self.origin_user, in_address(&self.origin_address))?;
        write!(f, "s={}\r\n", self.session_name)?;
        if let Some(uri) = &self.uri {
            write!(f, "u={uri}\r\n")?;
        }
        if let Some(address) = &self.connection {
            write!(f, "c={}\r\n", in_address(address))?;
        }
        let (start, end) = self.time.unwrap_or((0, 0));
        write!(f, "t={start} {end}\r\n")?;
        write_common(f, self.direction, &[], self.setup, &self.attributes)?;
        for m in &self.media {
            write!(f, "m={} {} {}", m.kind, m.port, m.proto)?;
            for pt in &m.pts {
                write!(f, " {pt}")?;
            }
            f.write_str("\r\n")?;
            if let Some(address) = &m.connection {
                write!(f, "c={}\r\n", in_address(address))?;
            }
            write_common(f, m.direction, &m.rtpmaps, m.setup, &m.attributes)?;
        }
        if let Some(y) = &self.y {
            write!(f, "y={y}\r\n")?;
        }
        if let Some(format) = &self.f {
            write!(f, "f={format}\r\n")?;
        }
        Ok(())
    }
}

fn in_address(address: &str) -> String {
    format!("IN {} {address}", if address.contains(':') { "IP6" } else { "IP4" })
}

fn write_common(
    f: &mut fmt::Formatter<'_>,
    direction: Option<Direction>,
    rtpmaps: &[RtpMap],
    setup: Option<Setup>,
    attributes: &[Attribute],
) -> fmt::Result {
    if let Some(direction) = direction {
        write!(f, "a={}\r\n", word_of(&Direction::ALL, direction))?;
    }
    for map in rtpmaps {
        write!(f, "a=rtpmap:{} {}/{}\r\n", map.pt, map.encoding, map.clock)?;
    }
    if let Some(setup) = setup {
        write!(f, "a=setup:{}\r\n", word_of(&Setup::ALL, setup))?;
    }
    attributes.iter().try_for_each(|a| write!(f, "{a}"))
}

/// The IP address of a `c=` text, without the `/ttl` of multicast.
fn ip_of(address: &str) -> Option<IpAddr> {
    address.split('/').next()?.trim_matches(['[', ']']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const OFFER: &str = include_str!("../../../proto-fixtures/sdp/standard-2016-offer-tcp-passive.sdp");

    #[test]
    fn sample_reads_and_writes() {
        let sdp = Sdp::parse(OFFER.as_bytes()).unwrap();
        assert_eq!(sdp.origin_user, "34010000002000000001");
        assert_eq!(sdp.origin_address, "192.0.2.20");
        assert_eq!(sdp.connection.as_deref(), Some("192.0.2.20"));
        assert_eq!((sdp.session_name.as_str(), sdp.time), ("Play", Some((0, 0))));
        let m = &sdp.media[0];
        assert_eq!((m.kind.as_str(), m.port, m.proto.as_str()), ("video", 30000, "TCP/RTP/AVP"));
        assert_eq!(m.pts, [96, 98, 97]);
        assert_eq!(m.rtpmaps[0], RtpMap { pt: 96, encoding: "PS".into(), clock: 90000 });
        assert_eq!((m.setup, m.direction), (Some(Setup::Passive), Some(Direction::RecvOnly)));
        assert_eq!(m.attributes, [Attribute::new("connection", "new")]);
        assert_eq!(sdp.y.as_deref(), Some("0100000001"));
        assert_eq!(sdp.to_string(), OFFER);
    }

    #[test]
    fn line_ends_order_and_blanks() {
        let good = Sdp::parse(OFFER.as_bytes()).unwrap();
        for end in ["\n", "\r", "\r\n\r\n", "\n\0"] {
            assert_eq!(Sdp::parse(OFFER.replace("\r\n", end).as_bytes()), Ok(good.clone()), "{end:?}");
        }
        assert_eq!(Sdp::parse(OFFER.replace("v=0\r\n", "").as_bytes()), Ok(good.clone()));
        // y= and f= before the attributes, c= in the media section, lower case, blanks
        let moved = "v=0\r\no=34010000002000000001 0 0 IN IP4 192.0.2.20\r\ns= Play \r\nt=0  0\r\n\
            m=VIDEO  30000  tcp/rtp/avp  96 98 97 \r\nc=IN IP4 192.0.2.20\r\ny= 0100000001\r\nf=v/2/6/25/1/4096a///\r\n\
            a=RECVONLY\r\na=rtpmap: 96 PS / 90000\r\na=Setup: Passive\r\nx-junk\r\nzz=1\r\nb=AS:4096\r\n";
        let sdp = Sdp::parse(moved.as_bytes()).unwrap();
        let m = &sdp.media[0];
        assert_eq!((m.kind.as_str(), m.proto.as_str(), &m.pts), ("video", "TCP/RTP/AVP", &vec![96, 98, 97]));
        assert_eq!(m.connection.as_deref(), Some("192.0.2.20"));
        assert_eq!((m.setup, m.direction), (Some(Setup::Passive), Some(Direction::RecvOnly)));
        assert_eq!(m.rtpmaps, [RtpMap { pt: 96, encoding: "PS".into(), clock: 90000 }]);
        assert_eq!((sdp.y.as_deref(), sdp.f), (Some("0100000001"), good.f));
    }

    #[test]
    fn bad_input() {
        let with = |m: &str| Sdp::parse(format!("v=0\r\ns=Play\r\n{m}\r\n").as_bytes());
        assert_eq!(Sdp::parse(b""), Err(SdpError::NotSdp));
        assert_eq!(Sdp::parse(b"hello\r\nworld=1\r\nt=0 0"), Err(SdpError::NotSdp));
        assert_eq!(Sdp::parse(&vec![b'a'; MAX_BYTES + 1]), Err(SdpError::TooLong(MAX_BYTES + 1)));
        assert_eq!(with("m=video"), Err(SdpError::MediaLine(1)));
        assert_eq!(with("m="), Err(SdpError::MediaLine(1)));
        assert_eq!(with("m=video 6000"), Err(SdpError::MediaLine(1)));
        assert_eq!(with("m=video 65536 RTP/AVP 96"), Err(SdpError::Port(1)));
        assert_eq!(with("m=video -1 RTP/AVP 96"), Err(SdpError::Port(1)));
        assert_eq!(with("m=video port RTP/AVP 96"), Err(SdpError::Port(1)));
        assert_eq!(with(&"m=video 1 RTP/AVP 96\r\n".repeat(1000)), Err(SdpError::TooManyMedia));
        // a payload type beyond 127 or 2^32 is not one
        let m = with("m=video 6000/2 RTP/AVP 4294967296 128 96 -1 x\r\na=rtpmap:4294967296 PS/90000\r\na=rtpmap:96")
            .unwrap();
        assert_eq!((m.media[0].port, &m.media[0].pts, m.media[0].rtpmaps.len()), (6000, &vec![96], 0));
        assert_eq!(with("t=18446744073709551616 1").unwrap().time, None);
        assert_eq!(with("t=5").unwrap().time, None);
        assert_eq!(with("a=fmtp:96 a\0b").unwrap().attributes[0].value.as_deref(), Some("96 ab"));
        assert_eq!(with(&"a=x:1\r\n".repeat(5000)).unwrap().attributes.len(), MAX_ATTRIBUTES);
        assert_eq!(with("o=").unwrap().origin_user, "");
        assert_eq!(with("a=:").unwrap().attributes, []);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn written_reads_back(user in "[0-9]{20}", port in any::<u16>(), pts in vec(0u8..128, 0..5),
                              start in any::<u64>(), end in any::<u64>(), v6 in any::<bool>(),
                              y in proptest::option::of("[0-9]{10}"),
                              uri in proptest::option::of("[0-9]{20}:[0-3]")) {
            let address = if v6 { "2001:db8::7" } else { "192.0.2.7" };
            let sdp = Sdp {
                origin_user: user,
                origin_address: address.into(),
                session_name: "Playback".into(),
                uri,
                connection: Some(address.into()),
                time: Some((start, end)),
                media: vec![Media {
                    kind: "video".into(),
                    port,
                    proto: "RTP/AVP".into(),
                    rtpmaps: pts.iter().map(|pt| RtpMap { pt: *pt, encoding: "PS".into(), clock: 90000 }).collect(),
                    pts,
                    setup: Some(Setup::Active),
                    direction: Some(Direction::SendOnly),
                    attributes: vec![Attribute::new("filesize", 7), Attribute::flag("x")],
                    connection: None,
                }],
                y,
                ..Sdp::default()
            };
            prop_assert_eq!(Sdp::parse(sdp.to_string().as_bytes()), Ok(sdp));
        }

        #[test]
        fn mutated_input_never_panics(edits in vec((any::<usize>(), any::<u8>()), 0..6), cut in any::<usize>()) {
            let mut body = OFFER.as_bytes().to_vec();
            for (at, byte) in edits {
                let at = at % body.len();
                body[at] = byte;
            }
            body.truncate(cut % (body.len() * 2));
            if let Ok(sdp) = Sdp::parse(&body) {
                let _ = MediaOffer::from_sdp(&sdp);
                let _ = MediaAnswer::from_sdp(&sdp);
                let _ = sdp.to_string();
            }
        }
    }
}
