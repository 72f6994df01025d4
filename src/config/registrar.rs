//! `[registrar]` and `[[device]]`: GB/T 28181 cameras, recorders and lower platforms that register with us.
//!
//! Standard: [GB/T28181-2022 9.1, 9.6].
//! Invariants: without a `[[device]]` and a `[registrar]` nobody can register; a device needs a password.
//! Not here: limits of the values (`validate/registrar.rs`), the registrar itself (`southbound::gb28181`).

use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::units::{Cidr, Span};
use super::uplink::{Charset, Standard};

/// `[registrar]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registrar {
    /// Who may try to register at all; empty: anybody.
    pub networks: Vec<Cidr>,
    /// What becomes of an unknown code that tries.
    pub pending: PendingPolicy,
    /// Realm of the digest challenge; empty: the first ten digits of `gateway.id`.
    pub realm: String,
    /// Digest algorithms we offer, in this order.
    pub algorithms: Vec<DigestAlgorithm>,
    /// Shortest registration we give, 60 s to 1 h; a device that asks for less gets this.
    pub expires_min: Span,
    /// Longest registration we give, 1 h to 7 d.
    pub expires_max: Span,
    /// Failed registrations of one device from one address before it is locked out, 3 to 100.
    pub lockout_failures: u32,
    /// How long it is locked out, 10 s to 1 h.
    pub lockout_time: Span,
}

impl Default for Registrar {
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            pending: PendingPolicy::List,
            realm: String::new(),
            algorithms: vec![DigestAlgorithm::Md5],
            expires_min: Span::secs(60),
            expires_max: Span::secs(86_400),
            lockout_failures: 10,
            lockout_time: Span::secs(60),
        }
    }
}

/// A digest algorithm. Many devices look at the first challenge alone, and know MD5 alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DigestAlgorithm {
    /// MD5.
    #[serde(rename = "md5")]
    Md5,
    /// SHA-256.
    #[serde(rename = "sha-256")]
    Sha256,
}

/// What becomes of an unknown code that tries to register. Never added by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingPolicy {
    /// Refused, and listed for the administrator.
    #[default]
    List,
    /// Refused.
    Refuse,
}

/// `[[device]]`. Taken live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// One 20-digit code, or a prefix of one ending in `*` with `max`. Required.
    pub id: String,
    /// How many devices may match a prefix, 1 to 10,000.
    pub max: Option<u32>,
    /// What the device must know. Required.
    pub password: Option<Secret>,
    /// Digest user name; empty: the device's code.
    pub username: String,
    /// Area of its channels.
    pub area: Option<String>,
    /// Where it may register from, besides `registrar.networks`; empty: no further limit.
    pub networks: Vec<Cidr>,
    /// Which edition it speaks.
    pub standard: Standard,
    /// Charset of what we send.
    pub charset: Charset,
    /// Whether the answer to its registration tells the time [GB/T28181-2022 9.10].
    pub date: bool,
    /// How its requests are known between registrations.
    pub source_policy: SourcePolicy,
    /// Keepalive period it was set to, 5 s to 1 h.
    pub keepalive_interval: Span,
    /// So many missed in a row mean offline, 1 to 20.
    pub keepalive_max_missed: u32,
    /// How often its catalogue is asked for where it sends no news of it, 1 min to 1 d.
    pub catalog_interval: Span,
    /// Whether we subscribe to its catalogue.
    pub catalog_subscribe: bool,
    /// Whether we subscribe to its alarms; they are taken from MESSAGEs all the same.
    pub alarm_subscribe: bool,
    /// How media comes.
    pub media: DeviceMedia,
    /// Whether an SSRC other than the one we asked for is taken.
    pub ssrc: DeviceSsrc,
    /// How its streams are passed on.
    pub plane: DevicePlane,
    /// Media sessions at once, 1 to 1000; above: refused with 486.
    pub max_streams: u32,
    /// How long a stream goes on after the last viewer left; at most 1 h.
    pub linger: Span,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            id: String::new(),
            max: None,
            password: None,
            username: String::new(),
            area: None,
            networks: Vec::new(),
            standard: Standard::Auto,
            charset: Charset::Auto,
            date: true,
            source_policy: SourcePolicy::SameSource,
            keepalive_interval: Span::secs(60),
            keepalive_max_missed: 3,
            catalog_interval: Span::secs(1800),
            catalog_subscribe: true,
            alarm_subscribe: true,
            media: DeviceMedia::Auto,
            ssrc: DeviceSsrc::Learn,
            plane: DevicePlane::Auto,
            max_streams: 64,
            linger: Span::secs(20),
        }
    }
}

/// How a device's requests are known between registrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourcePolicy {
    /// By the address and port it registered from.
    SameSource,
    /// By the address alone, for devices behind a NAT that changes ports.
    SameIp,
}

/// How media of a device comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceMedia {
    /// `tcp_passive`; `udp` for devices of 2011, which know nothing else.
    Auto,
    /// The device connects to us.
    TcpPassive,
    /// We connect to the device.
    TcpActive,
    /// UDP.
    Udp,
}

/// Whether an SSRC other than the one we asked for is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceSsrc {
    /// The device's own is learnt from its answer or its first packets.
    Learn,
    /// Only the one we asked for.
    Strict,
}

/// How a device's streams are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DevicePlane {
    /// Its packets as they are where that is right, else muxed anew.
    Auto,
    /// Its packets as they are.
    Relay,
    /// Always muxed anew.
    Remux,
}
