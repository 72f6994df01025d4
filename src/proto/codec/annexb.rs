//! Annex B byte streams: where NAL units begin and end.
//!
//! Standard: [H.264 B.1], [H.265 B.2].
//! In: one access unit or any run of bytes. Out: borrowed NAL units without start codes and trailing zeros.
//! Invariants: both 3- and 4-byte start codes are taken; bytes before the first start code are never yielded;
//! no allocation; every byte is looked at once.
//! Not here: what a NAL unit means (see `h264`, `h265`).

use memchr::memmem;

/// The start code every NAL unit is written with here [GB/T28181-2022 annex C].
pub const START_CODE: [u8; 4] = [0, 0, 0, 1];

const CODE: [u8; 3] = [0, 0, 1];

/// Offset of the first `00 00 01` at or after `from`; `None` when there is none.
#[must_use]
pub fn find_start_code(bytes: &[u8], from: usize) -> Option<usize> {
    Some(from + memmem::find(bytes.get(from..)?, &CODE)?)
}

/// Length of the start code `bytes` begin with: 3, 4, or `None`.
#[must_use]
pub fn leading_start_code(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(&CODE) {
        Some(3)
    } else if bytes.starts_with(&START_CODE) {
        Some(4)
    } else {
        None
    }
}

/// The offsets of the first byte of each NAL unit, lazily: asking for the next one scans just as far.
#[derive(Debug, Clone)]
pub struct NalStarts<'a> {
    finder: memmem::FindIter<'a, 'static>,
}

impl Iterator for NalStarts<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.finder.next().map(|at| at + CODE.len())
    }
}

/// Walks the NAL unit starts of `bytes`.
#[must_use]
pub fn nal_starts(bytes: &[u8]) -> NalStarts<'_> {
    NalStarts { finder: memmem::find_iter(bytes, &CODE) }
}

/// The NAL units of a run of bytes.
#[derive(Debug, Clone)]
pub struct NalUnits<'a> {
    bytes: &'a [u8],
    starts: NalStarts<'a>,
    start: Option<usize>,
}

impl<'a> Iterator for NalUnits<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let start = self.start?;
            self.start = self.starts.next();
            let end = self.start.map_or(self.bytes.len(), |next| next - CODE.len());
            let nal = trim_zeros(&self.bytes[start..end]);
            if !nal.is_empty() {
                return Some(nal);
            }
        }
    }
}

/// Walks the NAL units of `bytes`; empty ones are passed over.
#[must_use]
pub fn nal_units(bytes: &[u8]) -> NalUnits<'_> {
    let mut starts = nal_starts(bytes);
    let start = starts.next();
    NalUnits { bytes, starts, start }
}

/// Cuts trailing zero bytes, which belong to the next start code or are padding: a NAL unit never ends in one.
#[must_use]
pub fn trim_zeros(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_start_codes_and_padding() {
        let au = [0, 0, 0, 1, 0x67, 1, 0, 0, 1, 0x68, 2, 0, 0, 0, 0, 0, 1, 0x65, 3, 4, 0, 0];
        let nals: Vec<_> = nal_units(&au).collect();
        assert_eq!(nals, [&[0x67u8, 1][..], &[0x68, 2], &[0x65, 3, 4]]);
    }

    #[test]
    fn nothing_without_a_start_code() {
        for bytes in [&[][..], &[0], &[0, 0], &[1, 2, 3], &[0, 0, 2, 1]] {
            assert_eq!(nal_units(bytes).next(), None);
        }
        assert_eq!(nal_units(&[0, 0, 1]).next(), None, "an empty NAL unit is passed over");
        assert_eq!(nal_units(&[9, 0, 0, 1, 0, 0, 1, 5]).collect::<Vec<_>>(), [&[5u8][..]]);
    }

    #[test]
    fn leading_code() {
        assert_eq!(leading_start_code(&[0, 0, 1, 9]), Some(3));
        assert_eq!(leading_start_code(&[0, 0, 0, 1]), Some(4));
        assert_eq!(leading_start_code(&[0, 0, 0, 0, 1]), None);
        assert_eq!(find_start_code(&[0, 0, 1], 9), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(nals in proptest::collection::vec(
            proptest::collection::vec(1u8..=255, 1..40), 0..12), long in any::<u16>())
        {
            let mut au = Vec::new();
            for (i, nal) in nals.iter().enumerate() {
                au.extend_from_slice(if long >> (i % 16) & 1 == 0 { &CODE } else { &START_CODE });
                au.extend_from_slice(nal);
            }
            let read: Vec<_> = nal_units(&au).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(read, nals);
        }
    }
}
