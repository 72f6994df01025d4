//! H.265 NAL units and sequence parameter sets.
//!
//! Standard: [H.265 7.3.1.2, 7.3.2.2, 7.3.3, 7.4.2.4.4, E.2.1].
//! In: NAL units without start code. Out: types and [`SpsFacts`].
//! Invariants: a NAL unit with its forbidden bit set or temporal id 0 (reserved) has no type; every loop is bounded
//! by the standard's own limit; sizes outside 1 to 16,384 are refused.
//! Not here: slices beyond their first bit, SEI content, extensions after the VUI timing.

use super::bits::{BitReader, MAX_RBSP, unescape};
use super::{SpsError, SpsFacts, checked_dimensions, checked_fps};

/// Trailing picture that others refer to.
pub const TRAIL_R: u8 = 1;
/// IDR picture with decodable leading pictures.
pub const IDR_W_RADL: u8 = 19;
/// Video parameter set.
pub const VPS: u8 = 32;
/// Sequence parameter set.
pub const SPS: u8 = 33;
/// Picture parameter set.
pub const PPS: u8 = 34;
/// Access unit delimiter.
pub const AUD: u8 = 35;
/// SEI before the picture.
pub const PREFIX_SEI: u8 = 39;

/// The type of a NAL unit; `None` when it is shorter than its header or its forbidden bit is set.
#[must_use]
pub fn nal_type(nal: &[u8]) -> Option<u8> {
    match nal {
        [first, second, ..] if first & 0x80 == 0 && second & 7 != 0 => Some(first >> 1 & 0x3F),
        _ => None,
    }
}

/// Whether the type carries picture data.
#[must_use]
pub fn is_vcl(nal_type: u8) -> bool {
    nal_type < VPS
}

/// Whether the type makes its access unit a key frame (IRAP: BLA, IDR, CRA and their reserved kin).
#[must_use]
pub fn is_key(nal_type: u8) -> bool {
    (16..=23).contains(&nal_type)
}

/// Whether a NAL unit that follows picture data opens the next access unit [H.265 7.4.2.4.4].
#[must_use]
pub fn opens_access_unit(nal: &[u8]) -> bool {
    match nal_type(nal) {
        Some(nal_type) if is_vcl(nal_type) => nal.get(2).is_some_and(|b| b & 0x80 != 0),
        Some(nal_type) => matches!(nal_type, VPS..=AUD | PREFIX_SEI | 41..=44 | 48..=55),
        None => false,
    }
}

/// Reads a sequence parameter set given as a NAL unit without start code.
///
/// The frame rate needs the VUI at the far end: where anything before it cannot be read, it is `None`, no error.
///
/// # Errors
/// [`SpsError`] for another NAL unit, for cut, overlong or impossible fields and for sizes that are not carried.
pub fn sps_facts(nal: &[u8]) -> Result<SpsFacts, SpsError> {
    if nal_type(nal) != Some(SPS) {
        return Err(SpsError::NotSps);
    }
    let mut rbsp = [0; MAX_RBSP];
    let mut r = BitReader::new(unescape(&nal[2..], &mut rbsp));

    r.skip(4, "sps_video_parameter_set_id")?;
    let sub_layers = r.bits(3, "sps_max_sub_layers_minus1")?;
    if sub_layers > 6 {
        return Err(SpsError::OutOfRange("sps_max_sub_layers_minus1"));
    }
    r.skip(1, "sps_temporal_id_nesting_flag")?;
    let (profile, level) = profile_tier_level(&mut r, sub_layers)?;
    r.ue_max(15, "sps_seq_parameter_set_id")?;
    let chroma_format = r.ue_max(3, "chroma_format_idc")?;
    let separate_planes = chroma_format == 3 && r.flag("separate_colour_plane_flag")?;
    let (width, height) = (r.ue("pic_width_in_luma_samples")?, r.ue("pic_height_in_luma_samples")?);
    let (mut width, mut height) = (u64::from(width), u64::from(height));
    if r.flag("conformance_window_flag")? {
        let unit_x = if matches!(chroma_format, 1 | 2) && !separate_planes { 2 } else { 1 };
        let unit_y = if chroma_format == 1 && !separate_planes { 2 } else { 1 };
        let mut edge = || r.ue("conformance window").map(u64::from);
        let (left, right, top, bottom) = (edge()?, edge()?, edge()?, edge()?);
        width = width.saturating_sub(unit_x * (left + right));
        height = height.saturating_sub(unit_y * (top + bottom));
    }
    let (width, height) = checked_dimensions(width, height)?;
    r.ue_max(8, "bit_depth_luma_minus8")?;
    r.ue_max(8, "bit_depth_chroma_minus8")?;
    let poc_bits = 4 + r.ue_max(12, "log2_max_pic_order_cnt_lsb_minus4")?;
    let all_layers = r.flag("sps_sub_layer_ordering_info_present_flag")?;
    let mut reorder_depth = 0;
    for _ in if all_layers { 0 } else { sub_layers }..=sub_layers {
        r.ue_max(15, "sps_max_dec_pic_buffering_minus1")?;
        reorder_depth = r.ue_max(15, "sps_max_num_reorder_pics")? as u8;
        r.ue("sps_max_latency_increase_plus1")?;
    }
    let fps = frame_rate(&mut r, chroma_format, poc_bits).ok().flatten();
    Ok(SpsFacts { width, height, fps, reorder_depth, profile, level })
}

/// profile_tier_level(1, sub_layers): general profile and level [H.265 7.3.3].
fn profile_tier_level(r: &mut BitReader<'_>, sub_layers: u32) -> Result<(u8, u8), SpsError> {
    r.skip(3, "general_profile_space")?;
    let profile = r.bits(5, "general_profile_idc")? as u8;
    r.skip(80, "general_profile_compatibility_flag")?;
    let level = r.bits(8, "general_level_idc")? as u8;
    let mut present = [(false, false); 8];
    for layer in present.iter_mut().take(sub_layers as usize) {
        *layer = (r.flag("sub_layer_profile_present_flag")?, r.flag("sub_layer_level_present_flag")?);
    }
    if sub_layers > 0 {
        r.skip(2 * (8 - sub_layers as usize), "reserved_zero_2bits")?;
    }
    for (profile, level) in present {
        r.skip(88 * usize::from(profile) + 8 * usize::from(level), "sub_layer profile and level")?;
    }
    Ok((profile, level))
}

/// From log2_min_luma_coding_block_size to the VUI timing.
fn frame_rate(r: &mut BitReader<'_>, chroma_format: u32, poc_bits: u32) -> Result<Option<f64>, SpsError> {
    for _ in 0..6 {
        r.ue("coding block sizes")?;
    }
    if r.flag("scaling_list_enabled_flag")? && r.flag("sps_scaling_list_data_present_flag")? {
        scaling_list_data(r, chroma_format)?;
    }
    r.skip(2, "amp_enabled_flag")?;
    if r.flag("pcm_enabled_flag")? {
        r.skip(8, "pcm_sample_bit_depth")?;
        r.ue("log2_min_pcm_luma_coding_block_size")?;
        r.ue("log2_diff_max_min_pcm_luma_coding_block_size")?;
        r.skip(1, "pcm_loop_filter_disabled_flag")?;
    }
    short_term_sets(r)?;
    if r.flag("long_term_ref_pics_present_flag")? {
        for _ in 0..r.ue_max(32, "num_long_term_ref_pics_sps")? {
            r.skip(poc_bits as usize + 1, "lt_ref_pic_poc_lsb_sps")?;
        }
    }
    r.skip(2, "sps_temporal_mvp_enabled_flag")?;
    if !r.flag("vui_parameters_present_flag")? {
        return Ok(None);
    }
    if r.flag("aspect_ratio_info_present_flag")? && r.bits(8, "aspect_ratio_idc")? == 255 {
        r.skip(32, "sar_width")?;
    }
    if r.flag("overscan_info_present_flag")? {
        r.skip(1, "overscan_appropriate_flag")?;
    }
    if r.flag("video_signal_type_present_flag")? {
        r.skip(4, "video_format")?;
        if r.flag("colour_description_present_flag")? {
            r.skip(24, "colour_primaries")?;
        }
    }
    if r.flag("chroma_loc_info_present_flag")? {
        r.ue("chroma_sample_loc_type_top_field")?;
        r.ue("chroma_sample_loc_type_bottom_field")?;
    }
    r.skip(3, "neutral_chroma_indication_flag")?;
    if r.flag("default_display_window_flag")? {
        for _ in 0..4 {
            r.ue("default display window")?;
        }
    }
    if !r.flag("vui_timing_info_present_flag")? {
        return Ok(None);
    }
    let units = r.bits(32, "vui_num_units_in_tick")?;
    let time_scale = r.bits(32, "vui_time_scale")?;
    Ok(checked_fps(time_scale, units.into()))
}

/// scaling_list_data() [H.265 7.3.4]; only walked over.
fn scaling_list_data(r: &mut BitReader<'_>, chroma_format: u32) -> Result<(), SpsError> {
    for size in 0..4u32 {
        let step = if size == 3 && chroma_format != 3 { 3 } else { 1 };
        for _ in (0..6).step_by(step) {
            if !r.flag("scaling_list_pred_mode_flag")? {
                r.ue("scaling_list_pred_matrix_id_delta")?;
                continue;
            }
            if size > 1 {
                r.se("scaling_list_dc_coef_minus8")?;
            }
            for _ in 0..64.min(1 << (4 + (size << 1))) {
                r.se("scaling_list_delta_coef")?;
            }
        }
    }
    Ok(())
}

/// All st_ref_pic_set() of the parameter set [H.265 7.3.7, 7.4.8]; only their sizes matter.
fn short_term_sets(r: &mut BitReader<'_>) -> Result<(), SpsError> {
    let count = r.ue_max(64, "num_short_term_ref_pic_sets")?;
    let mut previous = 0;
    for index in 0..count {
        let predicted = index > 0 && r.flag("inter_ref_pic_set_prediction_flag")?;
        previous = if predicted {
            r.skip(1, "delta_rps_sign")?;
            r.ue("abs_delta_rps_minus1")?;
            let mut size = 0;
            for _ in 0..=previous {
                let used = r.flag("used_by_curr_pic_flag")?;
                if used || r.flag("use_delta_flag")? {
                    size += 1;
                }
            }
            size
        } else {
            let negative = r.ue_max(16, "num_negative_pics")?;
            let positive = r.ue_max(16, "num_positive_pics")?;
            for _ in 0..negative + positive {
                r.ue("delta_poc_minus1")?;
                r.skip(1, "used_by_curr_pic_flag")?;
            }
            negative + positive
        };
        if previous > 32 {
            return Err(SpsError::OutOfRange("st_ref_pic_set"));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// x265, 640x360, 25 fps, Main, no B frames.
    pub(crate) const SPS_640X360: &[u8] = &[
        0x42, 0x01, 0x01, 0x01, 0x60, 0x00, 0x00, 0x03, 0x00, 0x90, 0x00, 0x00, 0x03, 0x00, 0x00, 0x03, 0x00, 0x3f,
        0xa0, 0x05, 0x02, 0x01, 0x69, 0x65, 0x92, 0xa4, 0x93, 0x2b, 0xc0, 0x5a, 0x02, 0x00, 0x00, 0x03, 0x00, 0x02,
        0x00, 0x00, 0x03, 0x00, 0x32, 0x10,
    ];

    #[test]
    fn types() {
        assert_eq!(nal_type(&[0x26]), None);
        assert_eq!(nal_type(&[0x26, 0x00]), None, "temporal id plus 1 is never 0");
        assert_eq!(nal_type(&[0xA6, 1]), None, "forbidden bit");
        assert_eq!(nal_type(&[0x26, 1]), Some(IDR_W_RADL));
        assert!(is_key(IDR_W_RADL) && is_key(21) && !is_key(TRAIL_R) && is_vcl(TRAIL_R) && !is_vcl(VPS));
        assert!(opens_access_unit(&[2, 1, 0x80]) && !opens_access_unit(&[2, 1, 0x40]) && !opens_access_unit(&[2, 1]));
        assert!(opens_access_unit(&[0x4E, 1]) && !opens_access_unit(&[0x50, 1]), "prefix, not suffix SEI");
    }

    #[test]
    fn facts_of_a_real_sps() {
        let facts = sps_facts(SPS_640X360).unwrap();
        assert_eq!(
            facts,
            SpsFacts { width: 640, height: 360, fps: Some(25.0), reorder_depth: 0, profile: 1, level: 63 }
        );
    }

    #[test]
    fn cut_anywhere() {
        for end in 0..SPS_640X360.len() {
            match sps_facts(&SPS_640X360[..end]) {
                Ok(facts) => assert!(facts.width == 640 && (facts.fps.is_none() || facts.fps == Some(25.0))),
                Err(SpsError::NotSps) => assert!(end < 2),
                Err(error) => assert!(matches!(error, SpsError::Truncated(_)), "{error}"),
            }
        }
    }

    #[test]
    fn hostile_sizes() {
        // everything up to the level, then sps id 0, chroma 1 and the size
        let sized = |bits: &[u8]| {
            let head = [&SPS_640X360[..2], &[0x01; 13]].concat();
            sps_facts(&[&head, bits].concat())
        };
        assert_eq!(sized(&[0b1010_1100, 0xFF]), Err(SpsError::Dimensions { width: 0, height: 0 }));
        assert_eq!(
            sized(&[0b1010_0000, 0, 0b0000_1000, 0, 0b0000_1100]),
            Err(SpsError::Dimensions { width: 65_536, height: 0 })
        );
        assert!(matches!(sized(&[0b1010_0000, 0, 0, 0, 0, 0xFF]), Err(SpsError::GolombTooLong(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), keep in 2..40usize) {
            let mut nal = SPS_640X360[..keep].to_vec();
            nal.extend(bytes);
            let _ = sps_facts(&nal);
        }
    }
}
