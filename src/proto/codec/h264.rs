//! H.264 NAL units and sequence parameter sets.
//!
//! Standard: [H.264 7.3.1, 7.3.2.1, 7.4.1.2.3, A.3].
//! In: NAL units without start code. Out: types and [`SpsFacts`].
//! Invariants: a NAL unit with its forbidden bit set has no type; sizes outside 1 to 16,384 are refused.
//! Not here: slices beyond their first bit, SEI content.

use h264_reader::nal::sps as reader;
use h264_reader::rbsp::{BitReader, BitReaderError};

use super::bits::{MAX_RBSP, unescape};
use super::{SpsError, SpsFacts, checked_dimensions, checked_fps};

/// Coded slice of a picture that is not an IDR picture.
pub const SLICE: u8 = 1;
/// Coded slice of an IDR picture.
pub const IDR: u8 = 5;
/// Supplemental enhancement information.
pub const SEI: u8 = 6;
/// Sequence parameter set.
pub const SPS: u8 = 7;
/// Picture parameter set.
pub const PPS: u8 = 8;
/// Access unit delimiter.
pub const AUD: u8 = 9;

/// The type of a NAL unit; `None` when it is empty or its forbidden bit is set.
#[must_use]
pub fn nal_type(nal: &[u8]) -> Option<u8> {
    nal.first().filter(|&&head| head & 0x80 == 0).map(|head| head & 0x1F)
}

/// Whether the type carries picture data (slices and data partitions).
#[must_use]
pub fn is_vcl(nal_type: u8) -> bool {
    (SLICE..=IDR).contains(&nal_type)
}

/// Whether the type makes its access unit a key frame.
#[must_use]
pub fn is_key(nal_type: u8) -> bool {
    nal_type == IDR
}

/// Whether a NAL unit that follows picture data opens the next access unit [H.264 7.4.1.2.3].
///
/// A slice does when its first_mb_in_slice is 0, which is its first bit set.
#[must_use]
pub fn opens_access_unit(nal: &[u8]) -> bool {
    match nal_type(nal) {
        Some(SLICE | 2 | IDR) => nal.get(1).is_some_and(|b| b & 0x80 != 0),
        Some(nal_type) => matches!(nal_type, SEI..=AUD | 14..=18),
        None => false,
    }
}

/// Reads a sequence parameter set given as a NAL unit without start code.
///
/// # Errors
/// [`SpsError`] for another NAL unit, for cut, overlong or impossible fields and for sizes that are not carried.
pub fn sps_facts(nal: &[u8]) -> Result<SpsFacts, SpsError> {
    if nal_type(nal) != Some(SPS) {
        return Err(SpsError::NotSps);
    }
    let mut rbsp = [0; MAX_RBSP];
    let rbsp = unescape(&nal[1..], &mut rbsp);
    let sps = reader::SeqParameterSet::from_bits(BitReader::new(rbsp)).map_err(sps_error)?;
    let (width, height) = sps.pixel_dimensions().map_err(sps_error)?;
    let (width, height) = checked_dimensions(width.into(), height.into())?;
    let timing = sps.vui_parameters.as_ref().and_then(|vui| vui.timing_info.as_ref());
    Ok(SpsFacts {
        width,
        height,
        fps: timing.and_then(|t| checked_fps(t.time_scale, 2 * u64::from(t.num_units_in_tick))),
        reorder_depth: reorder_depth(&sps),
        profile: sps.profile_idc.into(),
        level: sps.level_idc,
    })
}

fn sps_error(error: reader::SpsError) -> SpsError {
    match error {
        reader::SpsError::RbspReaderError(BitReaderError::ExpGolombTooLarge(field)) => SpsError::GolombTooLong(field),
        reader::SpsError::RbspReaderError(BitReaderError::ReaderErrorFor(field, _)) => SpsError::Truncated(field),
        reader::SpsError::RbspReaderError(BitReaderError::RemainingData) => SpsError::OutOfRange("trailing bits"),
        reader::SpsError::FieldValueTooLarge { name, .. } | reader::SpsError::FieldValueTooSmall { name, .. } => {
            SpsError::OutOfRange(name)
        }
        reader::SpsError::CroppingError(_) => SpsError::OutOfRange("frame cropping"),
        _ => SpsError::OutOfRange("field"),
    }
}

/// max_num_reorder_frames where stated, else what profile, picture order and level let one assume.
fn reorder_depth(sps: &reader::SeqParameterSet) -> u8 {
    let stated = sps.vui_parameters.as_ref().and_then(|vui| vui.bitstream_restrictions.as_ref());
    if let Some(restrictions) = stated {
        return restrictions.max_num_reorder_frames.min(16) as u8;
    }
    let profile = u8::from(sps.profile_idc);
    let intra_only = sps.constraint_flags.flag3() && matches!(profile, 44 | 86 | 100 | 110 | 122 | 244);
    if profile == 66 || intra_only || matches!(sps.pic_order_cnt, reader::PicOrderCntType::TypeTwo) {
        return 0;
    }
    // Cameras of Main and High profile that state nothing: the full decoded picture buffer would mean up to 640 ms,
    // the standard allows two B frames between P frames.
    let field_pairs = if sps.frame_mbs_flags == reader::FrameMbsFlags::Frames { 1 } else { 2 };
    let macroblocks = u64::from(sps.pic_width_in_mbs()) * u64::from(sps.pic_height_in_map_units()) * field_pairs;
    let frames = u64::from(max_dpb_macroblocks(sps.level_idc)) / macroblocks.max(1);
    frames.clamp(2, 4) as u8
}

/// MaxDpbMbs [H.264 table A-1].
fn max_dpb_macroblocks(level_idc: u8) -> u32 {
    match level_idc {
        0..=10 => 396,
        11 => 900,
        12..=20 => 2376,
        21 => 4752,
        22..=30 => 8100,
        31 => 18_000,
        32 => 20_480,
        40..=41 => 32_768,
        42 => 34_816,
        50 => 110_400,
        51..=52 => 184_320,
        _ => 696_320,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 64x64, High, level 1, 25 fps, reorder depth 2 stated.
    pub(crate) const SPS_64X64: &[u8] = &[
        0x67, 0x64, 0x00, 0x0a, 0xac, 0x72, 0x84, 0x44, 0x26, 0x84, 0x00, 0x00, 0x03, 0x00, 0x04, 0x00, 0x00, 0x03,
        0x00, 0xca, 0x3c, 0x48, 0x96, 0x11, 0x80,
    ];

    #[test]
    fn types() {
        assert_eq!(nal_type(&[]), None);
        assert_eq!(nal_type(&[0xE5]), None, "forbidden bit");
        assert_eq!(nal_type(&[0x65]), Some(IDR));
        assert!(is_key(IDR) && !is_key(SLICE) && is_vcl(IDR) && !is_vcl(SPS));
        assert!(opens_access_unit(&[0x41, 0x80]) && !opens_access_unit(&[0x41, 0x40]) && !opens_access_unit(&[0x41]));
        assert!(opens_access_unit(&[9]) && !opens_access_unit(&[10]));
    }

    #[test]
    fn facts_of_a_real_sps() {
        let facts = sps_facts(SPS_64X64).unwrap();
        assert_eq!((facts.width, facts.height), (64, 64));
        assert_eq!((facts.profile, facts.level), (100, 10));
        assert_eq!(facts.fps, Some(25.0));
        assert_eq!(facts.reorder_depth, 2);
    }

    struct Bits(Vec<bool>);
    impl Bits {
        fn u(&mut self, n: u32, v: u32) -> &mut Self {
            (0..n).rev().for_each(|i| self.0.push(v >> i & 1 == 1));
            self
        }
        fn ue(&mut self, v: u32) -> &mut Self {
            let len = 32 - (v + 1).leading_zeros();
            self.u(len - 1, 0).u(len, v + 1)
        }
        fn nal(&mut self) -> Vec<u8> {
            self.u(1, 1);
            let mut nal = vec![0x67];
            nal.extend(self.0.chunks(8).map(|c| c.iter().enumerate().fold(0, |b, (i, &x)| b | u8::from(x) << (7 - i))));
            nal
        }
    }

    /// Baseline-syntax SPS with the given profile, POC type and size in macroblocks less one.
    fn sps(profile: u32, poc: u32, width: u32, height: u32) -> Vec<u8> {
        let mut b = Bits(Vec::new());
        b.u(8, profile).u(8, 0).u(8, 31).ue(0).ue(0).ue(poc);
        if poc == 0 {
            b.ue(0);
        }
        b.ue(1).u(1, 0).ue(width).ue(height).u(1, 1).u(1, 0).u(1, 0).u(1, 0);
        b.nal()
    }

    #[test]
    fn reorder_depth_is_inferred() {
        assert_eq!(sps_facts(&sps(66, 0, 79, 44)).unwrap().reorder_depth, 0, "Baseline");
        assert_eq!(sps_facts(&sps(77, 2, 79, 44)).unwrap().reorder_depth, 0, "POC type 2");
        assert_eq!(sps_facts(&sps(77, 0, 79, 44)).unwrap().reorder_depth, 4, "1280x720 at 3.1: five frames, capped");
        assert_eq!(sps_facts(&sps(77, 0, 119, 67)).unwrap().reorder_depth, 2, "1920x1088 at 3.1: two frames");
    }

    #[test]
    fn hostile_sps() {
        assert_eq!(sps_facts(&[]), Err(SpsError::NotSps));
        assert_eq!(sps_facts(&[0x68, 1]), Err(SpsError::NotSps));
        assert!(matches!(sps_facts(&[0x67]), Err(SpsError::Truncated(_))));
        assert!(matches!(sps_facts(&[0x67, 77, 0, 31, 0, 0, 0, 0, 255]), Err(SpsError::GolombTooLong(_))));
        assert!(matches!(sps_facts(&sps(77, 0, 4095, 4)), Err(SpsError::Dimensions { width: 65_536, .. })));
        assert!(sps_facts(&sps(77, 0, u32::MAX - 1, u32::MAX - 1)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), head in 0..4usize) {
            let mut nal = SPS_64X64[..head * 4].to_vec();
            nal.extend(bytes);
            let _ = sps_facts(&nal);
        }
    }
}
