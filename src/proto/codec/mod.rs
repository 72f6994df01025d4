//! Elementary streams: what must be known of H.264, H.265 and audio to carry them, never to decode them.
//!
//! Standard: [H.264], [H.265], [ISO14496-3], [GB/T28181-2022 annex C].
//! In: Annex B bytes, audio frames. Out: borrowed slices and small facts.
//! Invariants: no function panics or allocates on hostile bytes beyond the named bounds.
//! Not here: PS (see `ps`), RTP (see `rtp`), sample values.

pub mod access_unit;
pub mod annexb;
pub mod audio;
mod bits;
pub mod h264;
pub mod h265;

pub use access_unit::{
    AccessUnit, AccessUnitError, AccessUnitFacts, ParameterSets, inspect, misplaced_delimiter, normalise_access_unit,
    sniff,
};
pub use annexb::{NalUnits, nal_units};
pub use audio::{AdtsError, AdtsHeader, AdtsParams};

/// Video codecs the gateway carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VideoCodec {
    /// H.264 / AVC.
    H264,
    /// H.265 / HEVC.
    H265,
}

/// Audio codecs the gateway carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AudioCodec {
    /// G.711 A-law, 8 kHz mono.
    G711A,
    /// G.711 µ-law, 8 kHz mono.
    G711U,
    /// AAC-LC, each frame with its ADTS header.
    Aac,
}

/// Largest width or height believed, in pixels: level 6.2 of both codecs ends at 16,384 or below.
pub const MAX_DIMENSION: u32 = 16_384;

/// What a sequence parameter set says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpsFacts {
    /// Width in pixels after cropping, 1 to [`MAX_DIMENSION`].
    pub width: u32,
    /// Height in pixels after cropping, 1 to [`MAX_DIMENSION`].
    pub height: u32,
    /// Frames a second, when the VUI states a timing that can be true (0 < fps ≤ 1000).
    pub fps: Option<f64>,
    /// How many frames may precede a frame in decoding order and follow it in output order, 0 to 16.
    pub reorder_depth: u8,
    /// profile_idc or general_profile_idc.
    pub profile: u8,
    /// level_idc or general_level_idc.
    pub level: u8,
}

/// Why a sequence parameter set is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpsError {
    /// The NAL unit is of another type, empty, or has its forbidden bit set.
    #[error("not a sequence parameter set: give the NAL unit without its start code")]
    NotSps,
    /// The bits end inside a field.
    #[error("sequence parameter set is cut short in {0}: wait for the next one")]
    Truncated(&'static str),
    /// An Exp-Golomb code of more than 32 bits.
    #[error("sequence parameter set has an overlong code in {0}: wait for the next one")]
    GolombTooLong(&'static str),
    /// A field is outside its range.
    #[error("sequence parameter set has an impossible {0}: wait for the next one")]
    OutOfRange(&'static str),
    /// Width or height is zero or above [`MAX_DIMENSION`].
    #[error("picture of {width}x{height} is refused: 1 to 16384 pixels a side are carried")]
    Dimensions {
        /// Width stated, in pixels.
        width: u64,
        /// Height stated, in pixels.
        height: u64,
    },
}

/// Checks a picture size; shared by both codecs.
fn checked_dimensions(width: u64, height: u64) -> Result<(u32, u32), SpsError> {
    let max = u64::from(MAX_DIMENSION);
    if width == 0 || height == 0 || width > max || height > max {
        return Err(SpsError::Dimensions { width, height });
    }
    Ok((width as u32, height as u32))
}

/// Frames a second from ticks, `None` when the values cannot be true.
fn checked_fps(time_scale: u32, units: u64) -> Option<f64> {
    if time_scale == 0 || units == 0 {
        return None;
    }
    let fps = f64::from(time_scale) / units as f64;
    (fps <= 1000.0).then_some(fps)
}
