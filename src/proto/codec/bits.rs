//! A small bounded bit reader over a raw byte sequence payload.
//!
//! Standard: [H.264 7.2, 9.1], [H.265 7.2, 9.2].
//! In: a NAL unit's bytes. Out: fields.
//! Invariants: reads past the end are errors; a code of more than 32 bits is an error; no allocation.
//! Not here: any syntax table.

use super::SpsError;

/// Bytes of a parameter set looked at: scaling lists at their largest fill 1.3 KiB, the rest under 200 bytes.
pub(super) const MAX_RBSP: usize = 2048;

/// Copies `ebsp` without emulation prevention bytes into `out`; a longer payload is cut (its end then reads as truncated).
pub(super) fn unescape<'o>(ebsp: &[u8], out: &'o mut [u8; MAX_RBSP]) -> &'o [u8] {
    let (mut len, mut zeros) = (0, 0);
    for &byte in ebsp {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        if len == out.len() {
            break;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out[len] = byte;
        len += 1;
    }
    &out[..len]
}

/// Reads bits from the most significant end.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn flag(&mut self, field: &'static str) -> Result<bool, SpsError> {
        let byte = self.bytes.get(self.at / 8).ok_or(SpsError::Truncated(field))?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Ok(bit == 1)
    }

    /// `count` ≤ 32 bits.
    pub(super) fn bits(&mut self, count: u32, field: &'static str) -> Result<u32, SpsError> {
        let mut value = 0u32;
        for _ in 0..count {
            value = value << 1 | u32::from(self.flag(field)?);
        }
        Ok(value)
    }

    pub(super) fn skip(&mut self, count: usize, field: &'static str) -> Result<(), SpsError> {
        let at = self.at + count;
        if at > self.bytes.len() * 8 {
            return Err(SpsError::Truncated(field));
        }
        self.at = at;
        Ok(())
    }

    /// Unsigned Exp-Golomb.
    pub(super) fn ue(&mut self, field: &'static str) -> Result<u32, SpsError> {
        let mut zeros = 0;
        while !self.flag(field)? {
            zeros += 1;
            if zeros > 31 {
                return Err(SpsError::GolombTooLong(field));
            }
        }
        let rest = self.bits(zeros, field)?;
        Ok((1u32 << zeros) - 1 + rest)
    }

    /// Signed Exp-Golomb.
    pub(super) fn se(&mut self, field: &'static str) -> Result<i64, SpsError> {
        let code = i64::from(self.ue(field)?);
        Ok(if code % 2 == 1 { code / 2 + 1 } else { -(code / 2) })
    }

    /// Unsigned Exp-Golomb of at most `max`.
    pub(super) fn ue_max(&mut self, max: u32, field: &'static str) -> Result<u32, SpsError> {
        let value = self.ue(field)?;
        if value > max {
            return Err(SpsError::OutOfRange(field));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_prevention_is_removed() {
        let mut out = [0; MAX_RBSP];
        assert_eq!(unescape(&[1, 0, 0, 3, 1, 0, 0, 3, 0, 0, 3], &mut out), [1, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(unescape(&[7; MAX_RBSP + 9], &mut out).len(), MAX_RBSP);
    }

    #[test]
    fn golomb() {
        // 1 | 010 | 011 | 00100 | 1..
        let mut r = BitReader::new(&[0b1010_0110, 0b0100_1000]);
        assert_eq!((0..5).map(|_| r.ue("x").unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 0]);
        assert_eq!(r.ue("x"), Err(SpsError::Truncated("x")));
        assert_eq!(BitReader::new(&[0, 0, 0, 0, 255]).ue("x"), Err(SpsError::GolombTooLong("x")));
        assert_eq!(BitReader::new(&[0, 0, 0, 1, 255, 255, 255, 255]).ue("x"), Ok(u32::MAX - 1));
        assert_eq!(BitReader::new(&[0b0111_0000]).se("x"), Ok(-1));
        assert_eq!(BitReader::new(&[0]).skip(9, "x"), Err(SpsError::Truncated("x")));
    }
}
