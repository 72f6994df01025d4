//! One program-stream mux per packaging, and its RTP images on the way out.
//! In: stamped frames. Out: [`Image`]s: a frame as contiguous RTP packets, restamped for each sink in place.
//! Invariants: buffers are pooled, so that a stream in steady state allocates nothing here. Not here: RTP timestamps
//! and the mux rate, which are the stream's and the same in every mux.

use super::frame::{FrameKind, Tracks};
use super::gop_cache::StampedFrame;
use super::relay::StampedBurst;
use crate::proto::ps::{MuxConfig, Muxer, VideoUnit};
use crate::proto::rtp::image::{LENGTH_PREFIX, image_length};
use crate::proto::rtp::{Framing, ImageWriter, to_rfc4571};
use bytes::BytesMut;
use std::collections::VecDeque;

/// Buffers kept for reuse.
const POOL: usize = 4;

/// What two sinks must have in common to share packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MuxProfile {
    /// RTP payload bytes, at most.
    pub payload_max: u16,
    /// RTP payload type.
    pub payload_type: u8,
    /// Packets carry the RFC 4571 length prefix.
    pub tcp: bool,
    /// Payloads pass as they came.
    pub relay: bool,
}

/// One frame as RTP packets.
#[derive(Debug)]
pub struct Image {
    buffer: BytesMut,
    block: usize,
    packets: usize,
    number: u64,
    missing: u32,
}

impl Image {
    /// Bytes of one packet (prefix and header included); the last may be shorter.
    pub fn block(&self) -> usize {
        self.block
    }
    /// Packets.
    pub fn packets(&self) -> usize {
        self.packets
    }
    /// Number of its frame in the stream.
    pub fn number(&self) -> u64 {
        self.number
    }
    /// Packets the device lost just before it: their numbers are left out.
    pub fn missing(&self) -> u32 {
        self.missing
    }
    /// Bytes of all packets.
    pub fn length(&self) -> usize {
        self.buffer.len()
    }
    /// The packets, to be restamped.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
}

/// See the file's head.
#[derive(Debug)]
pub struct ProfileMux {
    profile: MuxProfile,
    muxer: Muxer,
    queue: VecDeque<(Image, usize)>,
    pool: Vec<BytesMut>,
}

impl ProfileMux {
    /// A mux for these tracks.
    pub fn new(profile: MuxProfile, tracks: Tracks) -> Self {
        ProfileMux { profile, muxer: Muxer::new(config(tracks)), queue: VecDeque::new(), pool: Vec::new() }
    }

    /// A mux of another packaging that goes on where `other` is: its clock does not go back for a sink that changes.
    pub fn like(other: &ProfileMux, profile: MuxProfile) -> Self {
        ProfileMux { profile, muxer: other.muxer.clone(), queue: VecDeque::new(), pool: Vec::new() }
    }

    /// Other tracks from the next key frame on: the stream map's version rises, clock and rate go on.
    pub fn retrack(&mut self, tracks: Tracks) {
        self.muxer.set_config(config(tracks));
    }

    /// The packaging.
    pub fn profile(&self) -> MuxProfile {
        self.profile
    }

    /// Images waiting.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Muxes a frame and queues its image.
    pub fn enqueue(&mut self, frame: &StampedFrame, number: u64) {
        let mut buffer = self.pool.pop().unwrap_or_default();
        buffer.clear();
        let framing = if self.profile.tcp { Framing::Rfc4571 } else { Framing::Datagram };
        let payload_max = usize::from(self.profile.payload_max);
        // Once as large as the largest frame, a buffer stays so.
        buffer.reserve(image_length(Muxer::max_length(frame.frame.data.len()), payload_max, framing));
        let mut writer = ImageWriter::new(&mut buffer, payload_max, framing);
        let stamp = frame.stamp;
        self.muxer.state_at_least(frame.mux_rate);
        match frame.frame.kind {
            FrameKind::Video { key } => {
                self.muxer.write_video(
                    &mut writer,
                    &VideoUnit { annexb: &frame.frame.data, pts: stamp.pts, dts: stamp.dts, key },
                );
            }
            FrameKind::Audio => {
                self.muxer.write_audio(&mut writer, &frame.frame.data, stamp.pts);
            }
        }
        let layout = writer.finish(true, self.profile.payload_type, frame.rtp as u32);
        let image = Image { buffer, block: layout.block, packets: layout.packets, number, missing: 0 };
        self.queue.push_back((image, 0));
    }

    /// Queues a burst as it came, an image for each of its runs.
    pub fn enqueue_burst(&mut self, burst: &StampedBurst, number: u64) {
        let prefix = if self.profile.tcp { LENGTH_PREFIX } else { 0 };
        let mut missing = burst.burst.lost;
        for (run, bytes) in burst.burst.runs() {
            let mut buffer = self.pool.pop().unwrap_or_default();
            buffer.clear();
            buffer.reserve(bytes.len() + run.packets * prefix);
            if prefix == 0 {
                buffer.extend_from_slice(bytes);
            } else {
                to_rfc4571(bytes, run.block, &mut buffer);
            }
            for packet in buffer.chunks_mut(run.block + prefix) {
                let header = &mut packet[prefix..];
                header[1] = header[1] & 0x80 | self.profile.payload_type & 0x7F;
                header[4..8].copy_from_slice(&(burst.rtp as u32).to_be_bytes());
            }
            let (block, packets) = (run.block + prefix, run.packets);
            let image = Image { buffer, block, packets, number, missing: std::mem::take(&mut missing) };
            self.queue.push_back((image, 0));
        }
    }

    /// The oldest image with the packets of it already sent.
    pub fn take_front(&mut self) -> Option<(Image, usize)> {
        self.queue.pop_front()
    }

    /// The oldest image, nothing of it sent.
    pub fn take_image(&mut self) -> Option<Image> {
        self.queue.pop_front().map(|(image, _)| image)
    }

    /// Puts a half-sent image back in front.
    pub fn put_front(&mut self, image: Image, sent: usize) {
        self.queue.push_front((image, sent));
    }

    /// Gives a buffer back.
    pub fn recycle(&mut self, image: Image) {
        if self.pool.len() < POOL {
            self.pool.push(image.buffer);
        }
    }
}

fn config(tracks: Tracks) -> MuxConfig {
    MuxConfig { video: Some(tracks.video), audio: tracks.audio }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Frame, VideoCodec};
    use super::super::timeline::Stamp;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn frames_take_turns_in_the_same_buffers() {
        let tracks =
            Tracks { video: VideoCodec::H264, audio: None, video_clock: 90_000, audio_clock: 8000, size: None };
        for tcp in [false, true] {
            let mut mux =
                ProfileMux::new(MuxProfile { payload_max: 1400, payload_type: 96, tcp, relay: false }, tracks);
            let mut seen = BTreeSet::new();
            for i in 0..200u64 {
                let key = i % 25 == 0;
                let length = if key { 90_000 } else { 4000 + 37 * i as usize };
                let mut data = vec![0, 0, 0, 1, if key { 0x65 } else { 0x41 }];
                data.resize(length, 7);
                let frame = StampedFrame {
                    frame: Frame {
                        kind: FrameKind::Video { key },
                        ticks: 0,
                        data: data.into(),
                        loss: 0,
                        arrived: std::time::Instant::now(),
                    },
                    stamp: Stamp { pts: 3600 * i, dts: 3600 * i },
                    rtp: 3600 * i,
                    mux_rate: 0,
                };
                mux.enqueue(&frame, i);
                // A large frame is being paced while the next ones come.
                if mux.queued() < 3 {
                    continue;
                }
                while let Some(image) = mux.take_image() {
                    assert!(image.buffer.len() >= 4000 && image.packets() > 2);
                    if i >= 100 {
                        seen.insert((image.buffer.as_ptr().addr(), image.buffer.capacity()));
                    }
                    mux.recycle(image);
                }
            }
            assert!(seen.len() <= 3, "three frames wait at once, in three buffers: {seen:?}");
        }
    }
}
