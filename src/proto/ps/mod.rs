//! MPEG program streams as GB/T 28181 uses them: one pack a frame out, anything cameras send in.
//!
//! Standard: [ISO13818-1 2.5], [GB/T28181-2022 annex C].
//! In: access units and audio frames; received bytes. Out: PS bytes into any sink; access units.
//! Invariants: muxing copies a frame once and allocates nothing; demuxing is bounded and survives any bytes.
//! Not here: RTP (see `rtp`), NAL units beyond what tells frames apart (see `codec`).

pub mod demux;
mod frames;
#[cfg(test)]
mod makers_tests;
pub mod mux;
pub mod peek;
#[cfg(test)]
mod round_trip;

pub use demux::{BadPsmCrc, DemuxConfig, DemuxCounters, Demuxer, Unit};
pub use mux::{MuxConfig, MuxRate, Muxer, VideoUnit};

use super::codec::{AudioCodec, VideoCodec};

/// Ticks a second of PTS, DTS and SCR.
pub const CLOCK_RATE: u64 = 90_000;
/// PTS, DTS and SCR have 33 bits.
pub const CLOCK_MASK: u64 = (1 << 33) - 1;

const PACK: u8 = 0xBA;
const SYSTEM: u8 = 0xBB;
const PSM: u8 = 0xBC;
const PRIVATE_1: u8 = 0xBD;
const END: u8 = 0xB9;
const VIDEO: u8 = 0xE0;
const AUDIO: u8 = 0xC0;

/// The PSM stream_type of a video codec [GB/T28181-2022 annex C].
#[must_use]
pub const fn video_stream_type(codec: VideoCodec) -> u8 {
    match codec {
        VideoCodec::H264 => 0x1B,
        VideoCodec::H265 => 0x24,
    }
}

/// The PSM stream_type of an audio codec [GB/T28181-2022 annex C].
#[must_use]
pub const fn audio_stream_type(codec: AudioCodec) -> u8 {
    match codec {
        AudioCodec::G711A => 0x90,
        AudioCodec::G711U => 0x91,
        AudioCodec::Aac => 0x0F,
    }
}

/// CRC-32 as in MPEG systems: polynomial 0x04C11DB7, from all ones, not reflected, not inverted [ISO13818-1 annex A].
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| crc << 8 ^ CRC_TABLE[usize::from((crc >> 24) as u8 ^ byte)])
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = crc << 1 ^ if crc >> 31 == 1 { 0x04C1_1DB7 } else { 0 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    #[test]
    fn crc_check_value() {
        assert_eq!(super::crc32(b"123456789"), 0x0376_E6E7);
    }
}
