//! The configuration: types with their defaults, reading, checking, printing, comparing.
//!
//! In: a TOML file and `MENSHEN__SECTION__KEY` variables ([`load`]). Out: [`Config`], plain typed values.
//! Invariants: a `Config` that was loaded has passed every check; all problems are reported together, each with
//! file and line (or variable), key, value found, what is allowed and how to mend it.
//! One file per section holds its types; `schema.rs` reads key names off them, so no list of keys is kept by hand.
//! What people decide is here; what the program learns is in the store; nothing is in both.
//! Not here: the store, the clock, and any reader of a section.

mod area;
mod camera;
mod camera_file;
mod code;
mod diff;
mod gateway;
mod http;
mod load;
mod log;
mod media;
mod print;
mod problem;
mod registrar;
mod resolve;
mod schema;
mod secret;
mod sip;
mod source;
mod time;
mod units;
mod uplink;
mod validate;

#[cfg(test)]
mod reference;

pub use area::{Area, AreaKind};
pub use camera::{
    AudioPolicy, Camera, CameraStream, InitialSeqPolicy, InitialTimestampPolicy, PullPolicy, RtspTransport,
    SessionIdPolicy, TeardownPolicy, UnassignedChannelPolicy, UnknownRtcpSsrcPolicy,
};
pub use camera_file::CameraFile;
pub use code::Code20;
pub use diff::{Changes, Diff, diff};
pub use gateway::Gateway;
pub use http::Http;
pub use load::{Loaded, Origin, load, load_text};
pub use log::{Log, LogFormat, LogLevel};
pub use media::Media;
pub use print::print_effective;
pub use problem::{MAX_PROBLEMS, Problem, ProblemFormat, Severity, render_problems};
pub use registrar::{
    Device, DeviceMedia, DevicePlane, DeviceSsrc, DigestAlgorithm, PendingPolicy, Registrar, SourcePolicy,
};
pub use schema::is_taken_live;
pub use secret::{MASK, Secret, SecretSource};
pub use sip::{Sip, SipTls};
pub use source::MAX_FILE_BYTES;
pub use time::{Time, TimeSource};
pub use units::{Auto, ByteSize, Cidr, FromText, PortRange, Span};
pub use uplink::{
    Charset, DialogMatch, H265Policy, MediaNetwork, ParentIds, Permission, Security, SecurityLevel, SecurityMode,
    Share, SsrcPolicy, Standard, Transport, Uplink, UplinkTls,
};

/// The whole configuration. Each component is handed its own part by value; none sees the whole.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[time]`
    pub time: Time,
    /// `[sip]`
    pub sip: Sip,
    /// `[media]`
    pub media: Media,
    /// `[http]`
    pub http: Http,
    /// `[log]`
    pub log: Log,
    /// `[[uplink]]`
    pub uplinks: Vec<Uplink>,
    /// `[[area]]`
    pub areas: Vec<Area>,
    /// `[[camera]]`
    pub cameras: Vec<Camera>,
    /// `[registrar]`, where it is written.
    pub registrar: Option<Registrar>,
    /// `[[device]]`
    pub devices: Vec<Device>,
}
