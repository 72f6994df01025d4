//! Media: one pull per stream, any number of sinks.
//!
//! A stream lives on one worker, with its pull and its sinks: `southbound` hands the future of its pull to the
//! worker (a [`Seat`]), the worker drives it inside its slots on a runtime of its own, and what it yields is stamped
//! (`timeline`), kept since the last key frame (`gop_cache`), muxed once per packaging (`mux`) and sent (`sink`) on
//! the same thread: no lock and no hand-over. `hub` is the only one who knows which stream is where and who wants it.
//! Without a live stream a worker blocks; with one it wakes once a slot (`media.slot`, 2 ms), because wake-ups cost as
//! much as sending.
//!
//! Two sorts of sources: `southbound` drives a camera's RTSP session and pushes frames; [`receive`] takes the PS over RTP
//! of a GB/T 28181 device (`receive` the sockets, `intake` the packets, `assemble` frames and tracks).
//! What needs no mending is not even demuxed: its packets are passed on (`relay`), and muxed anew for those sinks alone
//! that cannot take them as they are.

mod assemble;
mod frame;
mod gop_cache;
mod hub;
mod intake;
mod mux;
pub mod receive;
mod relay;
mod sink;
mod stream;
#[cfg(test)]
mod tests;
mod timeline;
mod worker;

pub use frame::{AudioCodec, Frame, FrameKind, StreamKey, Tracks, VideoCodec};
pub use hub::{
    Hub, HubConfig, HubHandle, Seat, SinkLease, SinkReady, SourceFailure, SourceHandle, SourceRequest, StreamSnapshot,
    SubscribeError,
};
pub use receive::{Plane, PlanePolicy, ReceiveEvent, ReceiveMeters, ReceiveSpec, ReceiveTransport, SsrcRule, receive};
pub use sink::{SinkEnd, SinkEvent, SinkId, SinkMeters, SinkSpec, SinkTransport};
pub use worker::FrameFeed;

use std::time::Duration;

/// What every stream needs to know of the configuration (`[media]`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MediaOptions {
    /// Bytes of the group of pictures kept for joining sinks; 0 = off.
    pub gop_cache: usize,
    /// Age beyond which a group is not kept.
    pub gop_cache_max_age: Duration,
    /// Length of a worker's slot.
    pub slot: Duration,
    /// A frame of more than 64 packets is spread over at most this.
    pub pacing_max: Duration,
}

impl Default for MediaOptions {
    fn default() -> Self {
        MediaOptions {
            gop_cache: 4 << 20,
            gop_cache_max_age: Duration::from_secs(4),
            slot: Duration::from_millis(2),
            pacing_max: Duration::from_millis(10),
        }
    }
}

/// Identifies a stream within the process; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId(pub u64);

/// Figures of one stream, of the last full second where a rate.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StreamStats {
    /// Pictures a second.
    pub fps: f64,
    /// Bytes of elementary streams a second.
    pub bytes_per_second: f64,
    /// Distance of the last two key frames.
    pub gop: Duration,
    /// Bytes in the cache.
    pub gop_bytes: usize,
    /// RTP packets the source lost.
    pub lost: u64,
    /// Jumps of the source's clock that were mended.
    pub clock_jumps: u64,
    /// Frames not sent because the worker could not keep up.
    pub overruns: u64,
    /// Width and height by the parameter sets.
    pub size: Option<(u32, u32)>,
    /// How the stream reaches its sinks: `remux` or `relay`; empty before the source started.
    pub plane: &'static str,
    /// Why: `clean`, `policy`, `frames` (the source is an RTSP camera), or what a remux has to mend.
    pub plane_reason: &'static str,
}
