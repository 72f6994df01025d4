//! The relay plane: RTP payloads pass as they came, under each sink's own header.
//! Standard: [RFC3550 5.1], [GB/T28181-2022 annex C]: payloads of a program stream, one timestamp a frame.
//! In: packets in order (from `intake`). Out: [`Burst`]s: packets of one frame that came together, back to back, each
//! behind room for a header, ready to be copied, stamped and sent in runs of equal size.
//! Invariants: a burst never spans two frames; one that a receiver can begin with begins with its key frame's first
//! packet; what the device lost stays missing in the numbers its sinks see; one copy, no allocation a packet.
//! Bounds: [`MAX_PACKETS`] and [`MAX_RUNS`] a burst; a key frame's first [`LOOK`] bytes or [`LOOK_PACKETS`] packets are looked
//! at. Not here: which plane a stream is on (`intake`), who is sent what (`stream`).

use super::gop_cache::Cached;
use crate::proto::codec::VideoCodec;
use crate::proto::ps::peek::{MapTypes, Peek, peek};
use crate::proto::rtp::Header;
use crate::proto::rtp::header::HEADER_LENGTH;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::time::Instant;

/// As many as are sent at once.
const MAX_PACKETS: usize = 64;
/// Changes of packet size in one burst: a frame has one, one with a PES for each NAL unit a few.
const MAX_RUNS: usize = 6;
/// Where the first slice or parameter set of a frame is, at the latest.
const LOOK: usize = 2048;
/// The same in packets.
const LOOK_PACKETS: usize = 4;
/// What packets are gathered in.
const SLAB: usize = 128 * 1024;

/// Packets of one size, the last may be shorter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Run {
    /// Bytes of a packet with its header.
    pub block: usize,
    /// Packets.
    pub packets: usize,
    /// Bytes of all.
    pub bytes: usize,
}

/// Packets of one frame that came together.
#[derive(Debug, Clone)]
pub struct Burst {
    data: Bytes,
    runs: [Run; MAX_RUNS],
    /// Begins a key frame.
    pub key: bool,
    /// Begins a picture.
    pub picture: bool,
    /// Begins a picture that has no pack of its own: a receiver cannot begin with it, key frame or not.
    pub bare: bool,
    /// The device's timestamp, unwrapped.
    pub ticks: i64,
    /// Packets lost just before it.
    pub lost: u32,
    /// What the stream map in front of its key frame says.
    pub map: Option<MapTypes>,
    /// When its last packet came.
    pub arrived: Instant,
}

impl Burst {
    /// Its runs with their bytes: packets with a header of zeros but for marker and version.
    pub fn runs(&self) -> impl Iterator<Item = (Run, &[u8])> {
        let mut at = 0;
        self.runs.iter().take_while(|run| run.packets > 0).map(move |run| {
            let bytes = &self.data[at..at + run.bytes];
            at += run.bytes;
            (*run, bytes)
        })
    }

    /// Its payloads, and whether each had the marker.
    pub fn payloads(&self) -> impl Iterator<Item = (&[u8], bool)> {
        self.runs().flat_map(|(run, bytes)| bytes.chunks(run.block)).map(|p| (&p[HEADER_LENGTH..], p[1] & 0x80 != 0))
    }

    /// Packets.
    pub fn packets(&self) -> usize {
        self.runs.iter().map(|run| run.packets).sum()
    }

    /// Bytes of the largest payload.
    pub fn largest(&self) -> usize {
        self.runs.iter().map(|run| run.block.saturating_sub(HEADER_LENGTH)).max().unwrap_or(0)
    }

    /// Bytes of payload.
    pub fn octets(&self) -> usize {
        self.data.len() - HEADER_LENGTH * self.packets()
    }
}

/// A burst on its stream's time line.
#[derive(Debug, Clone)]
pub struct StampedBurst {
    /// As it came.
    pub burst: Burst,
    /// Its RTP timestamp, 90 kHz, unwrapped, the same for every sink.
    pub rtp: u64,
}

impl Cached for StampedBurst {
    fn is_key(&self) -> bool {
        self.burst.key
    }
    fn length(&self) -> usize {
        self.burst.data.len()
    }
    fn arrived(&self) -> Instant {
        self.burst.arrived
    }
}

/// The burst that is being gathered.
#[derive(Debug)]
struct Open {
    runs: [Run; MAX_RUNS],
    /// Runs in use.
    count: usize,
    packets: usize,
    ticks: i64,
    lost: u32,
    bare: bool,
    look: Option<Peek>,
    arrived: Instant,
}

/// Gathers packets into bursts.
#[derive(Debug)]
pub struct Gatherer {
    codec: VideoCodec,
    slab: BytesMut,
    open: Option<Open>,
    /// The last packet's timestamp and its unwrapped value.
    last: Option<(u32, i64)>,
    /// The last packet had the marker.
    ended: bool,
    /// Packets that must be missing before the next one.
    missing: u32,
    /// A burst of this frame began a picture.
    in_picture: bool,
    /// Frames that began although the one before had no marker.
    unmarked: u64,
    /// The payload of the open burst, as far as it must be looked at.
    look: Vec<u8>,
    out: VecDeque<Burst>,
}

impl Gatherer {
    /// Before the first packet.
    pub fn new(codec: VideoCodec) -> Self {
        Gatherer {
            codec,
            slab: BytesMut::new(),
            open: None,
            last: None,
            ended: true,
            missing: 0,
            in_picture: false,
            unmarked: 0,
            look: Vec::with_capacity(LOOK),
            out: VecDeque::new(),
        }
    }

    /// The codec key frames are told by, once it is known.
    pub fn set_codec(&mut self, codec: VideoCodec) {
        self.codec = codec;
    }

    /// Frames whose end no marker told.
    pub fn unmarked(&self) -> u64 {
        self.unmarked
    }

    /// Numbering or connection begin anew. A frame that was not at its end has lost a packet at least.
    pub fn interrupted(&mut self) {
        self.missing = u32::from(!self.ended);
    }

    /// One packet, `lost` missing before it.
    pub fn packet(&mut self, payload: &[u8], marker: bool, timestamp: u32, lost: u32, now: Instant) {
        let lost = lost.saturating_add(std::mem::take(&mut self.missing));
        let (before, ticks) = self.last.unwrap_or((timestamp, i64::from(timestamp)));
        let ticks = ticks + i64::from(timestamp.wrapping_sub(before) as i32);
        let (changed, ended) = (before != timestamp, std::mem::replace(&mut self.ended, marker));
        let another = changed || ended;
        self.unmarked += u64::from(changed && !ended && lost == 0);
        self.last = Some((timestamp, ticks));
        let begins = payload.starts_with(&[0, 0, 1, 0xBA]);
        let block = HEADER_LENGTH + payload.len();
        let full = self.open.as_ref().is_some_and(|o| o.packets >= MAX_PACKETS || !o.has_room(block));
        if another || begins || lost > 0 || full {
            self.close();
        }
        self.in_picture &= !another;
        // Another pack of the same picture is no beginning.
        let look = (begins && !self.in_picture).then_some(Peek::More);
        if self.open.is_none() {
            self.look.clear();
        }
        if self.slab.capacity() - self.slab.len() < block {
            self.slab.reserve(SLAB.max(block));
        }
        let header = Header { marker, payload_type: 0, sequence: 0, timestamp: 0, ssrc: 0 };
        self.slab.extend_from_slice(&header.to_bytes());
        self.slab.extend_from_slice(payload);
        let open = self.open.get_or_insert(Open {
            runs: Default::default(),
            count: 0,
            packets: 0,
            ticks,
            lost,
            bare: changed && lost == 0 && matches!(payload, [0, 0, 1, 0xE0..=0xEF, ..]),
            look,
            arrived: now,
        });
        open.add(block, now);
        if open.look == Some(Peek::More) {
            let room = LOOK - self.look.len();
            self.look.extend_from_slice(&payload[..payload.len().min(room)]);
            open.look = Some(peek(&self.look, self.codec));
            if open.look == Some(Peek::More) && (self.look.len() >= LOOK || open.packets >= LOOK_PACKETS || marker) {
                open.look = Some(Peek::Other);
            }
        }
    }

    /// All that came together is in: gives it out, unless it must be looked at further.
    pub fn flush(&mut self) {
        if self.open.as_ref().is_some_and(|open| open.look != Some(Peek::More)) {
            self.close();
        }
    }

    /// Gives out what there is.
    pub fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let (picture, key, map) = match open.look {
            Some(Peek::Picture { key, map }) => (true, key, map),
            _ => (false, false, None),
        };
        self.in_picture |= picture;
        self.out.push_back(Burst {
            data: self.slab.split().freeze(),
            runs: open.runs,
            key,
            picture,
            bare: open.bare,
            ticks: open.ticks,
            lost: open.lost,
            map,
            arrived: open.arrived,
        });
    }

    /// What is ready.
    pub fn pop(&mut self) -> Option<Burst> {
        self.out.pop_front()
    }
}

impl Open {
    /// Whether a packet of this size can be added.
    fn has_room(&self, block: usize) -> bool {
        self.count < MAX_RUNS || self.fits(block)
    }

    /// Whether it continues the last run: that one's packets are all of one size, and this one is no larger.
    fn fits(&self, block: usize) -> bool {
        self.count > 0 && {
            let run = self.runs[self.count - 1];
            run.bytes == run.block * run.packets && block <= run.block
        }
    }

    fn add(&mut self, block: usize, now: Instant) {
        if !self.fits(block) {
            self.runs[self.count].block = block;
            self.count += 1;
        }
        let run = &mut self.runs[self.count - 1];
        run.packets += 1;
        run.bytes += block;
        self.packets += 1;
        self.arrived = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ps::{MuxConfig, Muxer, VideoUnit};
    use crate::sim::clip::ClipLibrary;
    use proptest::prelude::*;

    #[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn base() -> Instant {
        Instant::now()
    }

    /// Pictures of the clip as payloads of at most `most` bytes, with their marker.
    fn picture(muxer: &mut Muxer, n: u64, most: usize) -> Vec<(Vec<u8>, bool)> {
        let clip = ClipLibrary::h264();
        let (unit, ticks) = clip.looped(n);
        let mut pack = Vec::new();
        muxer.write_video(&mut pack, &VideoUnit { annexb: &unit.bytes, pts: ticks, dts: ticks, key: unit.key });
        let pieces = pack.len().div_ceil(most);
        pack.chunks(most).enumerate().map(|(i, p)| (p.to_vec(), i + 1 == pieces)).collect()
    }

    fn muxer() -> Muxer {
        Muxer::new(MuxConfig { video: Some(VideoCodec::H264), audio: None })
    }

    #[test]
    fn bursts_keep_to_frames_and_tell_key_frames_however_small_the_packets() {
        for most in [16, 64, 500, 1400] {
            let (mut gatherer, mut muxer, now) = (Gatherer::new(VideoCodec::H264), muxer(), base());
            for n in 24..27 {
                for (payload, marker) in picture(&mut muxer, n, most) {
                    gatherer.packet(&payload, marker, n as u32 * 3600, 0, now);
                }
                // Whether it is looked at further or not: the marker ends it.
                gatherer.flush();
                let bursts: Vec<Burst> = std::iter::from_fn(|| gatherer.pop()).collect();
                assert!(bursts.iter().all(|b| b.ticks == n as i64 * 3600 && b.packets() <= MAX_PACKETS));
                // With 16 bytes a packet the parameter sets are beyond what is looked at.
                assert_eq!(bursts[0].key, n == 25 && most > 16, "picture {n} by {most}");
                assert!(bursts[1..].iter().all(|b| !b.key && !b.picture));
            }
        }
    }

    #[test]
    fn a_key_frame_is_held_until_it_is_known_as_one() {
        let (mut gatherer, mut muxer, now) = (Gatherer::new(VideoCodec::H264), muxer(), base());
        let packets = picture(&mut muxer, 25, 64);
        gatherer.packet(&packets[0].0, false, 7, 0, now);
        gatherer.flush();
        assert!(gatherer.pop().is_none(), "the stream map is not whole yet");
        gatherer.packet(&packets[1].0, false, 7, 0, now);
        gatherer.flush();
        let burst = gatherer.pop().expect("now it is");
        assert!(burst.key && burst.map.is_some_and(|m| m.video == Some(0x1B)) && burst.packets() == 2);
    }

    #[test]
    fn losses_and_breaks_are_told_by_the_burst_after_them() {
        let (mut gatherer, now) = (Gatherer::new(VideoCodec::H264), base());
        let mut give = |marker: bool, timestamp: u32, lost: u32, broken: bool| {
            if broken {
                gatherer.interrupted();
            }
            gatherer.packet(&[1; 20], marker, timestamp, lost, now);
            gatherer.flush();
            gatherer.pop().unwrap()
        };
        assert_eq!(give(false, u32::MAX, 0, false).lost, 0);
        assert_eq!(give(true, u32::MAX, 3, false).lost, 3);
        let next = give(false, 5, 0, true);
        assert_eq!((next.lost, next.ticks), (0, i64::from(u32::MAX) + 6), "the frame before was whole");
        assert_eq!(give(true, 5, 0, true).lost, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_payload_comes_out_as_it_went_in(sizes in proptest::collection::vec((0usize..300, any::<bool>(), any::<bool>()), 1..200)) {
            let (mut gatherer, now) = (Gatherer::new(VideoCodec::H264), base());
            let (mut given, mut got) = (Vec::new(), Vec::new());
            for (i, (size, marker, flush)) in sizes.iter().enumerate() {
                let payload = vec![i as u8; *size];
                gatherer.packet(&payload, *marker, i as u32 / 9, 0, now);
                given.push((payload, *marker));
                if *flush {
                    gatherer.flush();
                }
            }
            gatherer.close();
            while let Some(burst) = gatherer.pop() {
                prop_assert!(burst.runs().all(|(run, bytes)| bytes.len() > (run.packets - 1) * run.block));
                prop_assert_eq!(burst.octets(), burst.payloads().map(|(p, _)| p.len()).sum::<usize>());
                got.extend(burst.payloads().map(|(p, marker)| (p.to_vec(), marker)));
            }
            prop_assert_eq!(got, given);
        }
    }
}
