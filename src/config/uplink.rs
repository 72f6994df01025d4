//! `[[uplink]]`: one upper platform. Taken live: a changed uplink registers anew, the others stay.
//!
//! Standard: [GB/T28181-2022 9.1, 9.6, 9.5.3], [GB/T28181-2016 9.1, 9.6].
//! Invariants: in a loaded `Config`, `domain`, `local_id` and `username` are never empty.
//! Not here: limits of the values (`validate/uplink.rs`), the link itself (`northbound`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::code::Code20;
use super::secret::Secret;
use super::units::{Auto, Cidr, FromText, Span, text, text_serde};

/// `[[uplink]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Uplink {
    /// Short name for logs, metrics and `time.source`. Required, unique.
    pub name: String,
    /// `false`: known, but not registered.
    pub enabled: bool,
    /// The platform's 20-digit code. Required.
    pub server_id: Code20,
    /// The platform's SIP address and port. Required.
    #[serde(deserialize_with = "text")]
    pub server_addr: SocketAddr,
    /// The platform's SIP domain. Default: first ten digits of `server_id`.
    pub domain: String,
    /// How SIP goes to it.
    pub transport: Transport,
    /// Which edition of the standard it speaks.
    pub standard: Standard,
    /// Local address for this uplink's SIP and media.
    pub bind: Auto<IpAddr>,
    /// What we call ourselves towards it; auto: `bind`, else what rport/received taught, else `sip.advertised_address`.
    pub advertised_address: Auto<IpAddr>,
    /// What SDP says towards it; auto: `media.advertised_address`, else this uplink's `advertised_address`.
    pub media_advertised_address: Auto<IpAddr>,
    /// Our 20-digit code towards it. Default: `gateway.id`.
    pub local_id: Code20,
    /// Digest user name. Default: `local_id`.
    pub username: String,
    /// Digest password.
    pub password: Option<Secret>,
    /// Registration expiry, 1 h to 7 d [GB/T28181-2022 9.1.1].
    pub register_expires: Span,
    /// Wait after a rejected registration, 60 s to 1 h [GB/T28181-2022 9.1.1].
    pub register_retry: Span,
    /// Keepalive period, 5 s to 1 h [GB/T28181-2022 9.6.1].
    pub keepalive_interval: Span,
    /// So many unanswered keepalives in a row mean offline, 1 to 20 [GB/T28181-2022 9.6.1].
    pub keepalive_max_missed: u32,
    /// Charset of what we send.
    pub charset: Charset,
    /// Catalogue items in a message, 1 to 10,000; auto: as many as keep a UDP message within 1,300 bytes.
    pub catalog_items_per_message: Auto<u16>,
    /// Whose SSRC goes into RTP and the `y=` answer.
    pub ssrc: SsrcPolicy,
    /// H.265 towards platforms of 2011/2016.
    pub h265: H265Policy,
    /// How in-dialog requests find their call.
    pub dialog_match: DialogMatch,
    /// Where media may be sent.
    pub media_networks: Vec<MediaNetwork>,
    /// Media sessions at once, 1 to 10,000; above: 486.
    pub max_sessions: u32,
    /// What it sees.
    pub share: Vec<Share>,
    /// What it may do.
    pub permissions: Vec<Permission>,
    /// Which of a camera's streams it gets where its INVITE names none, 0 to 7.
    pub stream: u8,
    /// Bytes of payload in an RTP packet, 600 to 1400. Default: `media.rtp_payload_max`.
    pub rtp_payload_max: Option<u16>,
    /// Areas appear as business group and virtual organisations (types 215, 216).
    pub groups: bool,
    /// Whether `ParentID` may hold several codes.
    pub parent_ids: ParentIds,
    /// Whether requests carry `X-GB-Ver` [GB/T28181-2022 I].
    pub xgbver: bool,
    /// `[uplink.tls]`: needed with `transport = "tls"`.
    pub tls: Option<UplinkTls>,
    /// `[uplink.security]`.
    pub security: Security,
}

impl Default for Uplink {
    fn default() -> Self {
        Self {
            name: String::new(),
            enabled: true,
            server_id: Code20::default(),
            server_addr: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            domain: String::new(),
            transport: Transport::Udp,
            standard: Standard::Auto,
            bind: Auto::Auto,
            advertised_address: Auto::Auto,
            media_advertised_address: Auto::Auto,
            local_id: Code20::default(),
            username: String::new(),
            password: None,
            register_expires: Span::secs(3600),
            register_retry: Span::secs(60),
            keepalive_interval: Span::secs(60),
            keepalive_max_missed: 3,
            charset: Charset::Auto,
            catalog_items_per_message: Auto::Auto,
            ssrc: SsrcPolicy::Echo,
            h265: H265Policy::Pass,
            dialog_match: DialogMatch::Strict,
            media_networks: vec![MediaNetwork::Auto],
            max_sessions: 64,
            share: vec![Share::All],
            permissions: Permission::ALL.to_vec(),
            stream: 0,
            rtp_payload_max: None,
            groups: true,
            parent_ids: ParentIds::Single,
            xgbver: true,
            tls: None,
            security: Security::default(),
        }
    }
}

/// Transport of SIP towards an upper platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// TLS; needs `[uplink.tls]`.
    Tls,
}

/// Edition of GB/T 28181 an upper platform speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standard {
    /// What `X-GB-Ver` in its answers says, else 2016.
    #[serde(rename = "auto")]
    Auto,
    /// GB/T 28181-2011.
    #[serde(rename = "2011")]
    V2011,
    /// GB/T 28181-2016.
    #[serde(rename = "2016")]
    V2016,
    /// GB/T 28181-2022.
    #[serde(rename = "2022")]
    V2022,
}

/// Charset of the XML we send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Charset {
    /// GB18030 for 2022, GB2312 else.
    #[serde(rename = "auto")]
    Auto,
    /// GB2312.
    #[serde(rename = "gb2312")]
    Gb2312,
    /// GB18030.
    #[serde(rename = "gb18030")]
    Gb18030,
    /// UTF-8.
    #[serde(rename = "utf-8")]
    Utf8,
}

/// Whose SSRC goes into RTP and into the `y=` line of our answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SsrcPolicy {
    /// The upper platform's `y=`.
    Echo,
    /// Our own.
    Own,
}

/// H.265 towards platforms that may not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum H265Policy {
    /// Sent as it is.
    Pass,
    /// Refused with 488.
    Refuse,
}

/// How in-dialog requests find their call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DialogMatch {
    /// Call-ID and both tags [RFC3261 12].
    Strict,
    /// Call-ID, CSeq and the authenticated source; counted.
    Lenient,
}

/// Whether `ParentID` may hold several codes joined by `/` [GB/T28181-2022 J].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParentIds {
    /// One: the virtual organisation with `groups`, else the system. Many platforms take the whole text for one code.
    Single,
    /// System and virtual organisation.
    Multi,
}

/// What an upper platform may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// Live pictures.
    Live,
    /// Recorded pictures.
    Playback,
    /// Download of recordings.
    Download,
    /// Pan, tilt, zoom, presets.
    Ptz,
    /// Voice broadcast and talk.
    Talk,
    /// Device configuration.
    Config,
    /// Guard, alarm reset.
    Guard,
}

impl Permission {
    /// Every permission: the default.
    pub const ALL: [Self; 7] =
        [Self::Live, Self::Playback, Self::Download, Self::Ptz, Self::Talk, Self::Config, Self::Guard];
}

/// A part of what an upper platform sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// `"*"`: everything.
    All,
    /// `"area:ID"`: the channels of an area.
    Area(String),
    /// One channel.
    Channel(Code20),
}

impl FromText for Share {
    const EXPECT: &'static str = r#""*", "area:ID" or a channel's code"#;
    const FIX: &'static str = "name an area or a channel that exists";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "*" => Some(Self::All),
            _ => Some(match text.strip_prefix("area:") {
                Some(area) => Self::Area(area.to_owned()),
                None => Self::Channel(Code20::new(text)),
            }),
        }
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Area(area) => write!(f, "area:{area}"),
            Self::Channel(code) => write!(f, "{code}"),
        }
    }
}

/// Where media may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaNetwork {
    /// Any unicast address but link-local, our own sockets, and loopback (unless `server_addr` itself is on loopback).
    Auto,
    /// This network.
    Net(Cidr),
}

impl FromText for MediaNetwork {
    const EXPECT: &'static str = r#""auto" or a network"#;
    const FIX: &'static str = r#"write it as "10.0.0.0/8", or "auto""#;

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            _ => Cidr::from_text(text).map(Self::Net),
        }
    }
}

impl std::fmt::Display for MediaNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Net(net) => write!(f, "{net}"),
        }
    }
}

text_serde!(Share, MediaNetwork);

/// `[uplink.tls]`: how we know the platform, and what we show it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UplinkTls {
    /// PEM bundle of authorities that may have issued its certificate.
    pub ca: Option<PathBuf>,
    /// SHA-256 of its certificate, 64 hexadecimal digits, colons allowed; for platforms whose chain no library accepts.
    pub pin_sha256: Option<String>,
    /// PEM certificate chain we show, where it asks for one.
    pub cert: Option<PathBuf>,
    /// PEM private key of `cert`.
    pub key: Option<PathBuf>,
    /// Name its certificate must carry. Default: the address of `server_addr`.
    pub server_name: Option<String>,
}

impl UplinkTls {
    /// The pinned SHA-256; `None` where none is given or it is not 64 hexadecimal digits.
    pub fn pin(&self) -> Option<[u8; 32]> {
        let digits: Vec<u8> = self.pin_sha256.as_deref()?.bytes().filter(|b| *b != b':').collect();
        if digits.len() != 64 {
            return None;
        }
        let nibble = |b: u8| char::from(b).to_digit(16).and_then(|n| u8::try_from(n).ok());
        let mut pin = [0; 32];
        for (byte, pair) in pin.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
        }
        Some(pin)
    }
}

/// `[uplink.security]`. Only `mode = "digest"` is built; the other keys are read, checked for form, and not used.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// How registration is secured.
    pub mode: SecurityMode,
    /// GB 35114 level.
    pub level: SecurityLevel,
    /// PEM certificate we sign with.
    pub sign_cert: Option<PathBuf>,
    /// PEM private key of `sign_cert`.
    pub sign_key: Option<PathBuf>,
    /// PEM bundle: the platform's signing certificate, and its authorities.
    pub trust: Option<PathBuf>,
    /// PEM certificate others encrypt for. Default: `sign_cert`.
    pub encrypt_cert: Option<PathBuf>,
    /// PEM private key of `encrypt_cert`. Default: `sign_key`.
    pub encrypt_key: Option<PathBuf>,
    /// PEM revocation list.
    pub crl: Option<PathBuf>,
    /// Whose identity signs.
    pub identity_model: Option<String>,
    /// How signalling carries signatures.
    pub carriage: Option<String>,
}

/// How registration with an upper platform is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityMode {
    /// Digest [RFC2617], [GB/T28181-2022 9.1.2.1].
    #[default]
    Digest,
    /// GB 35114; refused, because not built yet.
    Gb35114,
}

/// GB 35114 level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SecurityLevel {
    /// Signalling.
    #[default]
    A,
    /// And signed video.
    B,
    /// And encrypted video.
    C,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_64_hexadecimal_digits() {
        let tls = |pin: &str| UplinkTls { pin_sha256: Some(pin.to_owned()), ..UplinkTls::default() };
        assert_eq!(tls(&"0a".repeat(32)).pin(), Some([10; 32]));
        assert_eq!(tls(&["FF"; 32].join(":")).pin(), Some([255; 32]));
        for wrong in ["", "0a", &"zz".repeat(32), &"0a".repeat(33)] {
            assert_eq!(tls(wrong).pin(), None, "{wrong}");
        }
    }
}
