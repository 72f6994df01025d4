//! Access units in Annex B form: what is in them, whether they may be carried, and the parameter sets to repeat.
//!
//! Standard: [GB/T28181-2022 annex C, F]: (VPS,) SPS and PPS stand before every IDR picture, in one PS pack.
//! In: Annex B bytes of one access unit. Out: facts, a checked slice, the prefix for key frames that lack it.
//! Invariants: scanning stops at the first slice, so the cost does not grow with the picture; parameter sets held
//! are bounded by `MAX_SET_BYTES` a kind; no allocation once the sets have been seen.
//! Not here: copying the prefix in front of a frame, which is the caller's one copy.

use super::annexb::{self, nal_starts, nal_units};
use super::{SpsError, SpsFacts, VideoCodec, h264, h265};
use std::ops::Range;

/// Bytes of parameter sets of one kind that are kept: real ones are under 200, scaling lists reach 1.3 KiB.
const MAX_SET_BYTES: usize = 4096;

/// What an access unit holds up to and including its first slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AccessUnitFacts {
    /// The first slice is of an IDR (H.264) or IRAP (H.265) picture.
    pub key: bool,
    /// There is a slice.
    pub has_picture: bool,
    /// A video parameter set precedes it (H.265 only).
    pub has_vps: bool,
    /// A sequence parameter set precedes it.
    pub has_sps: bool,
    /// A picture parameter set precedes it.
    pub has_pps: bool,
}

impl AccessUnitFacts {
    /// Whether every parameter set the codec needs is there.
    #[must_use]
    pub fn has_parameter_sets(&self, codec: VideoCodec) -> bool {
        self.has_sps && self.has_pps && (codec == VideoCodec::H264 || self.has_vps)
    }
}

/// Why an access unit may not be carried as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessUnitError {
    /// The bytes do not begin with a start code.
    #[error("access unit does not begin with a start code: convert it to Annex B first")]
    NotAnnexB,
    /// No slice.
    #[error("access unit has no picture: join it with the one that follows")]
    NoPicture,
    /// A key frame whose parameter sets travel apart.
    #[error("key frame lacks parameter sets (vps {vps}, sps {sps}, pps {pps} present): put the cached ones before it")]
    MissingParameterSets {
        /// A VPS is there; always true for H.264.
        vps: bool,
        /// An SPS is there.
        sps: bool,
        /// A PPS is there.
        pps: bool,
    },
}

/// An access unit fit for muxing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessUnit<'a> {
    /// The bytes, from a 3- or 4-byte start code to the last byte that is not padding.
    pub annexb: &'a [u8],
    /// What is in them.
    pub facts: AccessUnitFacts,
}

/// The type of a NAL unit of either codec.
fn nal_type(codec: VideoCodec, nal: &[u8]) -> Option<u8> {
    match codec {
        VideoCodec::H264 => h264::nal_type(nal),
        VideoCodec::H265 => h265::nal_type(nal),
    }
}

/// Whether a NAL unit after picture data opens the next access unit.
#[must_use]
pub fn opens_access_unit(codec: VideoCodec, nal: &[u8]) -> bool {
    match codec {
        VideoCodec::H264 => h264::opens_access_unit(nal),
        VideoCodec::H265 => h265::opens_access_unit(nal),
    }
}

/// Whether a NAL unit carries picture data.
#[must_use]
pub fn is_picture(codec: VideoCodec, nal: &[u8]) -> bool {
    nal_type(codec, nal).is_some_and(|nal_type| match codec {
        VideoCodec::H264 => h264::is_vcl(nal_type),
        VideoCodec::H265 => h265::is_vcl(nal_type),
    })
}

/// Looks through an access unit up to its first slice.
#[must_use]
pub fn inspect(codec: VideoCodec, annexb: &[u8]) -> AccessUnitFacts {
    let mut facts = AccessUnitFacts::default();
    for start in nal_starts(annexb) {
        let Some(nal_type) = nal_type(codec, &annexb[start..]) else {
            continue;
        };
        match (codec, nal_type) {
            (VideoCodec::H264, h264::SPS) | (VideoCodec::H265, h265::SPS) => facts.has_sps = true,
            (VideoCodec::H264, h264::PPS) | (VideoCodec::H265, h265::PPS) => facts.has_pps = true,
            (VideoCodec::H265, h265::VPS) => facts.has_vps = true,
            (VideoCodec::H264, other) if h264::is_vcl(other) => {
                facts.has_picture = true;
                facts.key = h264::is_key(other);
                break;
            }
            (VideoCodec::H265, other) if h265::is_vcl(other) => {
                facts.has_picture = true;
                facts.key = h265::is_key(other);
                break;
            }
            _ => {}
        }
    }
    facts
}

/// The access unit delimiter with its start code, where other NAL units stand before it: it must be the first one
/// [H.264 7.4.1.2.3], and is not when parameter sets were put in front.
#[must_use]
pub fn misplaced_delimiter(codec: VideoCodec, annexb: &[u8]) -> Option<Range<usize>> {
    let delimiter = match codec {
        VideoCodec::H264 => h264::AUD,
        VideoCodec::H265 => h265::AUD,
    };
    let mut starts = nal_starts(annexb).enumerate();
    while let Some((number, start)) = starts.next() {
        let nal = &annexb[start..];
        if is_picture(codec, nal) {
            return None;
        }
        if nal_type(codec, nal) == Some(delimiter) {
            let code = |start: usize| start - if annexb[..start].ends_with(&annexb::START_CODE) { 4 } else { 3 };
            let end = starts.next().map_or(annexb.len(), |(_, next)| code(next));
            return (number > 0).then(|| code(start)..end);
        }
    }
    None
}

/// Checks an access unit for muxing and cuts padding at both ends, without copying.
///
/// # Errors
/// [`AccessUnitError::MissingParameterSets`] tells the caller to put [`ParameterSets::prefix`] before it.
pub fn normalise_access_unit(codec: VideoCodec, annexb: &[u8]) -> Result<AccessUnit<'_>, AccessUnitError> {
    let code = annexb.iter().position(|&b| b != 0).unwrap_or(annexb.len());
    if code < 2 || annexb.get(code) != Some(&1) {
        return Err(AccessUnitError::NotAnnexB);
    }
    let annexb = annexb::trim_zeros(&annexb[code - code.min(3)..]);
    let facts = inspect(codec, annexb);
    if !facts.has_picture {
        return Err(AccessUnitError::NoPicture);
    }
    if facts.key && !facts.has_parameter_sets(codec) {
        let vps = facts.has_vps || codec == VideoCodec::H264;
        return Err(AccessUnitError::MissingParameterSets { vps, sps: facts.has_sps, pps: facts.has_pps });
    }
    Ok(AccessUnit { annexb, facts })
}

/// Tells the codec of a stream by parameter sets and key slices, whose first bytes are unlike in both codecs.
///
/// `None` for NAL units that prove nothing (delta slices, SEI).
#[must_use]
pub fn sniff(nal: &[u8]) -> Option<VideoCodec> {
    match *nal {
        // VPS, SPS, PPS, IDR_W_RADL, IDR_N_LP, CRA on layer 0, temporal layer 0
        [0x40 | 0x42 | 0x44 | 0x26 | 0x28 | 0x2A, 0x01, ..] => Some(VideoCodec::H265),
        [head, profile, ..] if head & 0x9F == h264::SPS && head & 0x60 != 0 => {
            let known = matches!(profile, 44 | 66 | 77 | 83 | 86 | 88 | 100 | 110 | 118 | 122 | 128 | 244);
            known.then_some(VideoCodec::H264)
        }
        // PPS and IDR slice: their first code word is ue(0) in every stream with one PPS or one slice
        [head, first, ..] if matches!(head & 0x9F, h264::PPS | h264::IDR) && head & 0x60 != 0 && first & 0x80 != 0 => {
            Some(VideoCodec::H264)
        }
        _ => None,
    }
}

/// The parameter sets last seen, ready to stand before a key frame that came without.
#[derive(Debug, Clone)]
pub struct ParameterSets {
    codec: VideoCodec,
    /// VPS, SPS, PPS in Annex B form; several of a kind stand one after the other.
    sets: [Vec<u8>; 3],
    prefix: Vec<u8>,
    scratch: Vec<u8>,
    facts: Option<Result<SpsFacts, SpsError>>,
}

impl ParameterSets {
    /// An empty cache.
    #[must_use]
    pub fn new(codec: VideoCodec) -> Self {
        Self { codec, sets: Default::default(), prefix: Vec::new(), scratch: Vec::new(), facts: None }
    }

    /// The codec this cache is for.
    #[must_use]
    pub fn codec(&self) -> VideoCodec {
        self.codec
    }

    /// Takes over the parameter sets that stand before the first slice of `annexb`; true when they changed.
    pub fn observe(&mut self, annexb: &[u8]) -> bool {
        let facts = inspect(self.codec, annexb);
        let (vps, sps, pps) = match self.codec {
            VideoCodec::H264 => (None, h264::SPS, h264::PPS),
            VideoCodec::H265 => (Some(h265::VPS), h265::SPS, h265::PPS),
        };
        let mut changed = false;
        let kinds = [(facts.has_vps, vps), (facts.has_sps, Some(sps)), (facts.has_pps, Some(pps))];
        for (index, (present, kind)) in kinds.into_iter().enumerate() {
            if present {
                changed |= self.take_kind(index, kind, annexb);
            }
        }
        if changed {
            self.prefix.clear();
            for set in &self.sets {
                self.prefix.extend_from_slice(set);
            }
        }
        changed
    }

    /// Takes every set of one kind; true when they differ from those held.
    fn take_kind(&mut self, index: usize, kind: Option<u8>, annexb: &[u8]) -> bool {
        self.scratch.clear();
        for nal in nal_units(annexb) {
            if is_picture(self.codec, nal) {
                break;
            }
            if nal_type(self.codec, nal) == kind {
                if self.scratch.len() + nal.len() + annexb::START_CODE.len() > MAX_SET_BYTES {
                    return false;
                }
                self.scratch.extend_from_slice(&annexb::START_CODE);
                self.scratch.extend_from_slice(nal);
            }
        }
        if self.scratch == self.sets[index] {
            return false;
        }
        std::mem::swap(&mut self.scratch, &mut self.sets[index]);
        if index == 1 {
            self.facts = nal_units(&self.sets[index]).next().map(|sps| match self.codec {
                VideoCodec::H264 => h264::sps_facts(sps),
                VideoCodec::H265 => h265::sps_facts(sps),
            });
        }
        true
    }

    /// Whether every set the codec needs has been seen.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let [vps, sps, pps] = &self.sets;
        !sps.is_empty() && !pps.is_empty() && (self.codec == VideoCodec::H264 || !vps.is_empty())
    }

    /// (VPS,) SPS, PPS in Annex B form with 4-byte start codes; what is missing of them is simply not there.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// What the first SPS says; `None` before there is one.
    #[must_use]
    pub fn facts(&self) -> Option<Result<SpsFacts, SpsError>> {
        self.facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn au(nals: &[&[u8]]) -> Vec<u8> {
        nals.iter().flat_map(|nal| annexb::START_CODE.iter().chain(nal.iter()).copied()).collect()
    }

    const PPS: &[u8] = &[0x68, 0xEE, 0x3C, 0x80];
    const IDR: &[u8] = &[0x65, 0x88, 0x84, 1];

    #[test]
    fn facts_stop_at_the_first_slice() {
        let unit = au(&[&[9, 0xF0], h264::tests::SPS_64X64, PPS, IDR, &[0x41, 0x9A]]);
        let facts = inspect(VideoCodec::H264, &unit);
        assert_eq!(
            facts,
            AccessUnitFacts { key: true, has_picture: true, has_vps: false, has_sps: true, has_pps: true }
        );
        assert_eq!(
            inspect(VideoCodec::H264, &au(&[IDR, PPS])),
            AccessUnitFacts { key: true, has_picture: true, ..Default::default() }
        );
        assert_eq!(inspect(VideoCodec::H264, &[0, 0, 1]), AccessUnitFacts::default());
    }

    #[test]
    fn a_delimiter_behind_parameter_sets_is_found() {
        let (sps, aud) = (h264::tests::SPS_64X64, &[9, 0x10][..]);
        let unit = au(&[sps, PPS, aud, IDR]);
        let at = misplaced_delimiter(VideoCodec::H264, &unit).unwrap();
        assert_eq!(unit[at.clone()], au(&[aud]));
        assert_eq!(at.start, au(&[sps, PPS]).len());
        for right in [au(&[aud, sps, PPS, IDR]), au(&[sps, PPS, IDR]), au(&[IDR, aud]), Vec::new()] {
            assert_eq!(misplaced_delimiter(VideoCodec::H264, &right), None);
        }
        let short = [&[0, 0, 1, 0x40, 1, 7][..], &[0, 0, 1, 0x46, 1, 0x50]].concat();
        assert_eq!(misplaced_delimiter(VideoCodec::H265, &short), Some(6..12));
    }

    #[test]
    fn padding_is_cut_and_faults_are_named() {
        let delta = au(&[&[0x41, 0x9A, 7]]);
        let padded = [&[0, 0, 0][..], &delta, &[0, 0]].concat();
        assert_eq!(normalise_access_unit(VideoCodec::H264, &padded).unwrap().annexb, delta);
        assert_eq!(normalise_access_unit(VideoCodec::H264, &delta[1..]).unwrap().annexb, &delta[1..]);
        assert_eq!(normalise_access_unit(VideoCodec::H264, &[0x41]), Err(AccessUnitError::NotAnnexB));
        assert_eq!(normalise_access_unit(VideoCodec::H264, &[0, 0, 0]), Err(AccessUnitError::NotAnnexB));
        assert_eq!(normalise_access_unit(VideoCodec::H264, &[]), Err(AccessUnitError::NotAnnexB));
        assert_eq!(normalise_access_unit(VideoCodec::H264, &au(&[PPS])), Err(AccessUnitError::NoPicture));
        assert_eq!(
            normalise_access_unit(VideoCodec::H264, &au(&[PPS, IDR])),
            Err(AccessUnitError::MissingParameterSets { vps: true, sps: false, pps: true })
        );
        assert_eq!(
            normalise_access_unit(VideoCodec::H265, &au(&[&[0x26, 1, 0xAF]])),
            Err(AccessUnitError::MissingParameterSets { vps: false, sps: false, pps: false })
        );
    }

    #[test]
    fn cached_sets_mend_a_bare_key_frame() {
        let mut sets = ParameterSets::new(VideoCodec::H264);
        assert!(sets.observe(&au(&[h264::tests::SPS_64X64])));
        assert!(!sets.is_complete());
        assert!(sets.observe(&au(&[PPS, &[0x68, 0xCE], &[0x41, 0x9A]])), "both of a kind are kept");
        assert!(sets.is_complete());
        assert!(!sets.observe(&au(&[h264::tests::SPS_64X64, PPS, &[0x68, 0xCE], IDR])), "nothing new");
        let mended = [sets.prefix(), &au(&[IDR])].concat();
        assert!(normalise_access_unit(VideoCodec::H264, &mended).unwrap().facts.key);
        assert_eq!(sets.facts().unwrap().unwrap().width, 64);
        assert!(sets.observe(&au(&[PPS])) && !sets.observe(&au(&[IDR, &[0x68, 1]])), "sets after a slice do not count");
    }

    #[test]
    fn an_endless_set_is_not_kept() {
        let mut sets = ParameterSets::new(VideoCodec::H265);
        let huge = [&[0x42, 1][..], &[5; MAX_SET_BYTES]].concat();
        assert!(!sets.observe(&au(&[&huge])));
        assert!(sets.prefix().is_empty() && sets.facts().is_none());
    }

    #[test]
    fn codecs_are_told_apart() {
        assert_eq!(sniff(h264::tests::SPS_64X64), Some(VideoCodec::H264));
        assert_eq!(sniff(h265::tests::SPS_640X360), Some(VideoCodec::H265));
        assert_eq!(sniff(&[0x27, 0x42]), Some(VideoCodec::H264));
        for codec_free in [&[0x41, 0x9A][..], &[0x02, 0x01], &[0x06, 0x05], &[0x4E, 0x01], &[0x67], &[], &[0xE7, 66]] {
            assert_eq!(sniff(codec_free), None, "{codec_free:x?}");
        }
        for (codec, nals) in [
            (VideoCodec::H264, [&[0x68, 0xEE][..], &[0x28, 0xEE], &[0x65, 0x88], &[0x25, 0xB8]]),
            (VideoCodec::H265, [&[0x40, 1][..], &[0x44, 1], &[0x26, 1], &[0x2A, 1]]),
        ] {
            nals.iter().for_each(|nal| assert_eq!(sniff(nal), Some(codec), "{nal:x?}"));
        }
    }
}
