//! `[[camera]]`: a camera pulled by RTSP. Taken live: a changed camera is pulled anew, the others stay.
//!
//! Standard: [RFC2326]; [GB/T28181-2022 E.1] for the code.
//! Invariants: in a loaded `Config` there is at least one stream, and no URL holds a user name or password.
//! Not here: the catalogue's file of the camera (`camera_file.rs`), pulling (`southbound`).

use serde::{Deserialize, Serialize};

use super::camera_file::CameraFile;
use super::code::Code20;
use super::secret::Secret;
use super::units::Span;

/// `[[camera]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Camera {
    /// Channel code, type 131 or 132. Required, unique; upper platforms lose their tree when it changes.
    pub id: Code20,
    /// Name in the catalogue. Required.
    pub name: String,
    /// The area it belongs to.
    pub area: Option<String>,
    /// RTSP address of its only stream; or `streams`.
    pub rtsp: Option<String>,
    /// Its streams; the index is the standard's stream number.
    pub streams: Vec<CameraStream>,
    /// RTSP user name.
    pub username: String,
    /// RTSP password.
    pub password: Option<Secret>,
    /// How RTP comes from it.
    pub rtsp_transport: RtspTransport,
    /// When it is pulled.
    pub pull: PullPolicy,
    /// How long a pull goes on after the last viewer left; at most 1 h.
    pub linger: Span,
    /// How often a camera nobody watches is asked whether it lives, 1 s to 1 h.
    pub probe_interval: Span,
    /// Limit of each step: connecting with DESCRIBE, each SETUP, PLAY; 1 s to 60 s.
    pub connect_timeout: Span,
    /// A stream silent for so long is torn down and pulled anew, 1 s to 60 s.
    pub stall_timeout: Span,
    /// Sound.
    pub audio: AudioPolicy,
    /// A session id that changes in the middle.
    pub session_id_policy: SessionIdPolicy,
    /// An `RTP-Info` without `rtptime`.
    pub initial_timestamp_policy: InitialTimestampPolicy,
    /// The `seq` of `RTP-Info`.
    pub initial_seq_policy: InitialSeqPolicy,
    /// RTCP of an SSRC nobody announced.
    pub unknown_rtcp_ssrc_policy: UnknownRtcpSsrcPolicy,
    /// Data on an interleaved channel nobody set up.
    pub unassigned_channel_policy: UnassignedChannelPolicy,
    /// Whether TEARDOWN is sent.
    pub teardown_policy: TeardownPolicy,
    /// ONVIF device service; kept for later, not used yet.
    pub onvif: Option<String>,
    /// `[camera.file]`: the camera's file in the catalogue.
    pub file: CameraFile,
}

impl Default for Camera {
    fn default() -> Self {
        Self {
            id: Code20::default(),
            name: String::new(),
            area: None,
            rtsp: None,
            streams: Vec::new(),
            username: String::new(),
            password: None,
            rtsp_transport: RtspTransport::Tcp,
            pull: PullPolicy::OnDemand,
            linger: Span::secs(20),
            probe_interval: Span::secs(5),
            connect_timeout: Span::secs(5),
            stall_timeout: Span::secs(5),
            audio: AudioPolicy::Auto,
            session_id_policy: SessionIdPolicy::UseFirst,
            initial_timestamp_policy: InitialTimestampPolicy::Permissive,
            initial_seq_policy: InitialSeqPolicy::Ignore,
            unknown_rtcp_ssrc_policy: UnknownRtcpSsrcPolicy::Drop,
            unassigned_channel_policy: UnassignedChannelPolicy::Auto,
            teardown_policy: TeardownPolicy::Auto,
            onvif: None,
            file: CameraFile::default(),
        }
    }
}

impl Camera {
    /// The RTSP addresses by stream number, however they were written.
    pub fn rtsp_urls(&self) -> Vec<&str> {
        self.rtsp.iter().map(String::as_str).chain(self.streams.iter().map(|stream| stream.rtsp.as_str())).collect()
    }
}

/// An entry of `streams`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CameraStream {
    /// RTSP address. Required.
    pub rtsp: String,
}

/// How RTP comes from a camera.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RtspTransport {
    /// Interleaved in the RTSP connection.
    Tcp,
    /// UDP.
    Udp,
}

/// When a camera is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// While somebody watches.
    OnDemand,
    /// Always, so that the first picture comes at once.
    KeepWarm,
}

/// Sound of a camera.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AudioPolicy {
    /// Passed on where the standard knows its codec.
    Auto,
    /// Never set up.
    Off,
}

/// A session id that changes in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionIdPolicy {
    /// The first one counts; some cameras change it.
    UseFirst,
    /// A change ends the session.
    RequireMatch,
}

/// An `RTP-Info` header without `rtptime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitialTimestampPolicy {
    /// Used where every stream has one.
    Permissive,
    /// Each stream must have one.
    Require,
    /// Never used.
    Ignore,
}

/// The `seq` of the `RTP-Info` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitialSeqPolicy {
    /// Never used; many cameras write 0 or 1.
    Ignore,
    /// Used.
    Respect,
    /// Used unless it is 0 or 1.
    IgnoreSuspicious,
}

/// RTCP of an SSRC nobody announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownRtcpSsrcPolicy {
    /// Dropped.
    Drop,
    /// Ends the session.
    Abort,
    /// Taken for the stream's own.
    Process,
}

/// Data on an interleaved channel nobody set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnassignedChannelPolicy {
    /// A stale session for the servers known for it, else an error.
    Auto,
    /// Taken for a stale session.
    AssumeStaleSession,
    /// Ends the session.
    Error,
    /// Ignored.
    Ignore,
}

/// Whether TEARDOWN is sent at the end of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TeardownPolicy {
    /// Where the transport or the server needs it.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}
