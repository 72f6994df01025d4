//! The frames since the last key frame, so that a sink that joins starts with a whole picture at once.
//! Bounds: `media.gop_cache` bytes and `media.gop_cache_max_age`; a group of pictures beyond either is not cached and
//! a sink then waits for the next key frame. Frames are shared (`Bytes`), never copied.
//! A recording is played for one viewer, from its first picture on: until the viewer has started nothing is dropped
//! in front, up to [`BACKLOG`] bytes; what comes beyond that is dropped up to the key frame that finds room again, which
//! is none before the viewer has started (the device is told to send when he has, so only its haste counts).

use super::frame::{Frame, FrameKind};
use super::timeline::Stamp;
use std::time::{Duration, Instant};

/// What a recording may have sent before its viewer has started: half a minute of 8 Mbit/s.
pub const BACKLOG: usize = 32 << 20;

/// What can be cached.
pub trait Cached: Clone {
    /// A receiver can begin with it.
    fn is_key(&self) -> bool;
    /// Bytes.
    fn length(&self) -> usize;
    /// When it came.
    fn arrived(&self) -> Instant;
}

/// A stamped frame.
#[derive(Debug, Clone)]
pub struct StampedFrame {
    /// As it came.
    pub frame: Frame,
    /// Where it stands on the stream's time line.
    pub stamp: Stamp,
    /// Its RTP timestamp, 90 kHz, unwrapped: rises from frame to frame, the same for every sink.
    pub rtp: u64,
    /// The mux rate to state in its pack, in units of 50 bytes a second; changes at key frames only.
    pub mux_rate: u32,
}

impl Cached for StampedFrame {
    fn is_key(&self) -> bool {
        matches!(self.frame.kind, FrameKind::Video { key: true })
    }
    fn length(&self) -> usize {
        self.frame.data.len()
    }
    fn arrived(&self) -> Instant {
        self.frame.arrived
    }
}

/// See the file's head.
#[derive(Debug)]
pub struct GopCache<T = StampedFrame> {
    frames: Vec<T>,
    bytes: usize,
    started: Option<Instant>,
    /// Keeps everything: nobody has been sent any of it.
    backlog: bool,
    max_bytes: usize,
    max_age: Duration,
    overflowed: bool,
}

impl<T: Cached> GopCache<T> {
    /// `max_bytes` 0 switches the cache off.
    pub fn new(max_bytes: usize, max_age: Duration) -> Self {
        GopCache { frames: Vec::new(), bytes: 0, started: None, backlog: false, max_bytes, max_age, overflowed: false }
    }

    /// A cache that keeps everything from the first key frame on until [`Self::taken`].
    pub fn backlog(max_bytes: usize, max_age: Duration) -> Self {
        GopCache { backlog: true, ..GopCache::new(max_bytes, max_age) }
    }

    /// True while it keeps everything.
    pub fn is_backlog(&self) -> bool {
        self.backlog
    }

    /// A sink has what is cached: from now on it is a cache as any other.
    pub fn taken(&mut self) {
        if std::mem::take(&mut self.backlog) {
            self.clear();
        }
    }

    /// Takes the next frame of the stream. Returns true when this frame made the group too old or too large (told
    /// once a group: the camera's "smart coding" with its long groups should be switched off).
    pub fn push(&mut self, frame: &T) -> bool {
        if self.backlog {
            self.keep(frame);
            return false;
        }
        if frame.is_key() {
            self.clear();
            self.started = Some(frame.arrived());
        }
        let Some(started) = self.started else { return false };
        if self.overflowed || self.max_bytes == 0 {
            return false;
        }
        let age = frame.arrived().saturating_duration_since(started);
        if self.bytes + frame.length() > self.max_bytes || age > self.max_age {
            self.frames.clear();
            self.bytes = 0;
            self.overflowed = true;
            return true;
        }
        self.bytes += frame.length();
        self.frames.push(frame.clone());
        false
    }

    fn keep(&mut self, frame: &T) {
        if frame.is_key() {
            self.started.get_or_insert(frame.arrived());
            self.overflowed = false;
        }
        self.overflowed |= self.bytes + frame.length() > BACKLOG;
        if self.started.is_some() && !self.overflowed {
            self.bytes += frame.length();
            self.frames.push(frame.clone());
        }
    }

    /// Forgets everything (the source restarted: what is cached does not lead up to what comes).
    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
        self.started = None;
        self.overflowed = false;
    }

    /// The cached frames in order; empty, or starting with a key frame.
    pub fn frames(&self) -> &[T] {
        &self.frames
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn frame(base: Instant, ms: u64, key: bool, len: usize) -> StampedFrame {
        StampedFrame {
            frame: Frame {
                kind: FrameKind::Video { key },
                ticks: 0,
                data: Bytes::from(vec![0; len]),
                loss: 0,
                arrived: base + Duration::from_millis(ms),
            },
            stamp: Stamp { pts: ms * 90, dts: ms * 90 },
            rtp: ms * 90,
            mux_rate: 0,
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn starts_at_key_and_respects_both_bounds() {
        let b = Instant::now();
        let mut c = GopCache::new(100, Duration::from_secs(1));
        assert!(!c.push(&frame(b, 0, false, 10)));
        assert!(c.frames().is_empty(), "nothing before a key frame");
        c.push(&frame(b, 40, true, 50));
        c.push(&frame(b, 80, false, 40));
        assert_eq!((c.frames().len(), c.bytes()), (2, 90));
        assert!(c.push(&frame(b, 120, false, 40)), "too large is told");
        assert!(c.frames().is_empty());
        assert!(!c.push(&frame(b, 160, false, 1)), "told once");
        c.push(&frame(b, 200, true, 10));
        assert_eq!(c.frames().len(), 1);
        assert!(c.push(&frame(b, 1300, false, 10)), "too old is told");
    }
}
