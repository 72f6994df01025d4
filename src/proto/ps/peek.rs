//! A look at the beginning of a pack: is it a key frame's, and what does its stream map say. No demuxing.
//!
//! Standard: [ISO13818-1 2.5.3], [GB/T28181-2022 annex C]: pack header, system header, stream map, video PES.
//! In: the first bytes of a frame. Out: [`Peek`].
//! Invariants: nothing is kept or copied; any bytes are survived; reading ends at the first slice.
//! Not here: whether the stream is sound (see `demux`).

use super::demux::parse_map;
use super::{AUDIO, PACK, PSM, VIDEO};
use crate::proto::codec::access_unit::is_picture;
use crate::proto::codec::annexb::nal_starts;
use crate::proto::codec::{AccessUnitFacts, VideoCodec, inspect};

/// Parts looked at before the first elementary stream: real packs have three.
const MAX_PARTS: usize = 16;

/// The stream types a map names for its first video and its first audio stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapTypes {
    /// Of video.
    pub video: Option<u8>,
    /// Of audio.
    pub audio: Option<u8>,
}

/// What a pack begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peek {
    /// No pack header of MPEG-2 form.
    NoPack,
    /// The bytes end before a slice or parameter set: give more of the frame.
    More,
    /// Sound, or something else that is no picture.
    Other,
    /// A picture.
    Picture {
        /// It begins with parameter sets, or its first slice is of a picture that can be decoded alone.
        key: bool,
        /// What the map before it says.
        map: Option<MapTypes>,
    },
}

/// Looks at the first bytes of a frame. `codec` is what its video is where no map says.
#[must_use]
pub fn peek(bytes: &[u8], mut codec: VideoCodec) -> Peek {
    let Some(stuffing) = bytes.get(13).filter(|_| bytes.starts_with(&[0, 0, 1, PACK]) && bytes[4] >> 6 == 1) else {
        return Peek::NoPack;
    };
    let mut at = 14 + usize::from(stuffing & 7);
    let mut map = None;
    for _ in 0..MAX_PARTS {
        let Some(&[0, 0, 1, id, high, low]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else {
            return if bytes.len() < at + 6 { Peek::More } else { Peek::Other };
        };
        let end = at + 6 + usize::from(u16::from_be_bytes([high, low]));
        match id {
            VIDEO..=0xEF => {
                let Some(&header) = bytes.get(at + 8) else { return Peek::More };
                // A PES without length goes on to the end of what is here.
                let end = if end == at + 6 { bytes.len() } else { end.min(bytes.len()) };
                let payload = bytes.get(at + 9 + usize::from(header)..end).unwrap_or(&[]);
                match key(payload, codec) {
                    Some(key) => return Peek::Picture { key, map },
                    // Parameter sets and slices may have a PES each.
                    None if end < bytes.len() => at = end,
                    None => return Peek::More,
                }
                continue;
            }
            AUDIO..VIDEO => return Peek::Other,
            PSM => match bytes.get(at..end).map(parse_map) {
                Some(found) => {
                    let types = |stream: Option<(u8, u8)>| stream.map(|(stream_type, _)| stream_type);
                    map = found.map(|m| MapTypes { video: types(m.video), audio: types(m.audio) });
                    codec = match map.and_then(|m| m.video) {
                        Some(0x1B) => VideoCodec::H264,
                        Some(0x24) => VideoCodec::H265,
                        _ => codec,
                    };
                }
                None => return Peek::More,
            },
            _ => {}
        }
        if bytes.len() < end {
            return Peek::More;
        }
        at = end;
    }
    Peek::Other
}

/// None: neither a parameter set nor a slice is here yet.
fn key(payload: &[u8], codec: VideoCodec) -> Option<bool> {
    let AccessUnitFacts { key, has_picture, has_vps, has_sps, .. } = inspect(codec, payload);
    // The last slice header may be cut off after its start code.
    let whole = nal_starts(payload).any(|at| payload.len() >= at + 2 && is_picture(codec, &payload[at..]));
    if has_vps || has_sps { Some(true) } else { (has_picture && whole).then_some(key) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::AudioCodec;
    use crate::proto::ps::round_trip::annexb;
    use crate::proto::ps::{MuxConfig, Muxer, VideoUnit};
    use proptest::prelude::*;

    fn packs(codec: VideoCodec) -> [Vec<u8>; 3] {
        let mut muxer = Muxer::new(MuxConfig { video: Some(codec), audio: Some(AudioCodec::G711A) });
        let [mut key, mut other, mut sound] = [Vec::new(), Vec::new(), Vec::new()];
        let unit = annexb(codec, true, &[9; 300]);
        muxer.write_video(&mut key, &VideoUnit { annexb: &unit, pts: 9000, dts: 9000, key: true });
        let unit = annexb(codec, false, &[9; 300]);
        muxer.write_video(&mut other, &VideoUnit { annexb: &unit, pts: 12_600, dts: 12_600, key: false });
        muxer.write_audio(&mut sound, &[5; 320], 12_600);
        [key, other, sound]
    }

    #[test]
    fn key_frames_are_told_from_others_and_from_sound() {
        for (codec, stream_type) in [(VideoCodec::H264, 0x1B), (VideoCodec::H265, 0x24)] {
            let [key, other, sound] = packs(codec);
            let map = Some(MapTypes { video: Some(stream_type), audio: Some(0x90) });
            assert_eq!(peek(&key, codec), Peek::Picture { key: true, map });
            assert_eq!(peek(&other, codec), Peek::Picture { key: false, map: None });
            assert_eq!(peek(&sound, codec), Peek::Other);
            assert_eq!(peek(&other[14..], codec), Peek::NoPack);
            // Cut anywhere it is never taken for something else.
            for (whole, verdict) in [(&key, peek(&key, codec)), (&other, peek(&other, codec))] {
                for cut in 14..whole.len() {
                    let got = peek(&whole[..cut], codec);
                    assert!(got == Peek::More || got == verdict, "{codec:?} cut at {cut}: {got:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(at in 0usize..400, with in proptest::collection::vec(any::<u8>(), 1..40), length in 0usize..400) {
            for codec in [VideoCodec::H264, VideoCodec::H265] {
                let [mut key, ..] = packs(codec);
                let at = at.min(key.len() - 1);
                let end = (at + with.len()).min(key.len());
                key[at..end].copy_from_slice(&with[..end - at]);
                key.truncate(length);
                let _ = peek(&key, codec);
            }
        }
    }
}
