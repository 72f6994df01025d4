//! What a source hands to a stream: one access unit or one audio packet, with the source's own clock.
//! Invariants: video is Annex B in decode order, one access unit a frame, parameter sets in front of a key frame
//! where the source has them; audio is what the PS carries (raw G.711, AAC with ADTS headers).

use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use crate::proto::codec::{AudioCodec, VideoCodec};

/// One stream of one channel: the unit that is pulled once and shared by all sinks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey {
    /// The channel's own id (the camera's 20-digit code).
    pub channel: Arc<str>,
    /// GB stream number: 0 main, 1 first sub stream …
    pub number: u8,
    /// 0: live, shared by all viewers. Else a recording played for one viewer, numbered by its owner.
    pub session: u64,
}

impl StreamKey {
    /// The live stream of a channel.
    pub fn live(channel: impl Into<Arc<str>>, number: u8) -> Self {
        StreamKey { channel: channel.into(), number, session: 0 }
    }
}

impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.channel, self.number)?;
        if self.session == 0 { Ok(()) } else { write!(f, "#{}", self.session) }
    }
}

/// What a stream carries, as the source announced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracks {
    /// Always there: a channel without video is not a stream here.
    pub video: VideoCodec,
    /// The audio that is carried, if any.
    pub audio: Option<AudioCodec>,
    /// Clock rate of the video timestamps, Hz.
    pub video_clock: u32,
    /// Clock rate of the audio timestamps, Hz.
    pub audio_clock: u32,
    /// Width and height when the parameter sets told.
    pub size: Option<(u32, u32)>,
}

/// Which track a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A picture; `key` for IDR/IRAP.
    Video {
        /// Decodable without earlier pictures.
        key: bool,
    },
    /// One audio packet.
    Audio,
}

/// One access unit.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Track and key flag.
    pub kind: FrameKind,
    /// Presentation time in the track's clock, unwrapped, from the start of the source session.
    pub ticks: i64,
    /// The bytes.
    pub data: Bytes,
    /// RTP packets the source lost just before this frame; the frame may be damaged.
    pub loss: u16,
    /// When the last byte of it was in our hands.
    pub arrived: Instant,
}
