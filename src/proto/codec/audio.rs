//! AAC framing: ADTS headers and the AudioSpecificConfig they are made from.
//!
//! Standard: [ISO14496-3 1.6.2.1, 1.A.2.2]; in PS an AAC frame travels with its ADTS header [GB/T28181-2022 annex C].
//! In: an RTSP camera's `config`, or ADTS bytes. Out: 7-byte headers, parsed headers.
//! Invariants: a frame never exceeds 8,191 bytes; a header whose length is shorter than itself is refused.
//! Not here: G.711, whose samples travel bare, and anything that decodes.

/// Sampling frequencies by index [ISO14496-3 table 1.18].
const SAMPLE_RATES: [u32; 13] =
    [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350];

/// Bytes of an ADTS header without CRC.
pub const ADTS_HEADER: usize = 7;

/// aac_frame_length has 13 bits.
const MAX_FRAME: usize = 0x1FFF;

/// Samples an AAC frame decodes to.
pub const AAC_FRAME_SAMPLES: u32 = 1024;

/// Why ADTS or AudioSpecificConfig bytes are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdtsError {
    /// Fewer bytes than the header needs.
    #[error("AAC header is cut short: give it whole")]
    Truncated,
    /// No 0xFFF sync word with layer 0.
    #[error("no ADTS sync word: the bytes are no AAC frame")]
    NoSync,
    /// The frame length is shorter than the header.
    #[error("ADTS frame length {0} is shorter than its header: skip the frame")]
    Length(usize),
    /// The payload does not fit a frame length of 13 bits.
    #[error("AAC frame of {0} bytes is too long for ADTS: 8184 at most")]
    TooLong(usize),
    /// Object type, frequency or channel configuration that ADTS cannot say.
    #[error("ADTS cannot carry this AAC {0}: use AAC-LC at a standard rate")]
    Unsupported(&'static str),
}

/// What every ADTS header of a stream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdtsParams {
    /// Audio object type less one: 1 is LC.
    pub profile: u8,
    /// Index of the sampling frequency, 0 to 12.
    pub frequency_index: u8,
    /// Channel configuration, 1 to 7 (7 is eight channels); 0 when the stream itself says.
    pub channels: u8,
}

impl AdtsParams {
    /// Reads an AudioSpecificConfig, as an RTSP camera's `config=` gives it.
    ///
    /// With SBR or PS signalled in front the core AAC is taken, which every receiver can decode.
    ///
    /// # Errors
    /// [`AdtsError`] when cut or when ADTS cannot express it.
    pub fn from_audio_specific_config(config: &[u8]) -> Result<Self, AdtsError> {
        let mut at = 0;
        let mut bits = |count: usize| {
            let mut value = 0u32;
            for _ in 0..count {
                let byte = config.get(at / 8).ok_or(AdtsError::Truncated)?;
                value = value << 1 | u32::from(byte >> (7 - at % 8) & 1);
                at += 1;
            }
            Ok(value)
        };
        let mut object_type = bits(5)?;
        let mut rate_index = bits(4)?;
        if rate_index == 15 {
            let rate = bits(24)?;
            let known = SAMPLE_RATES.iter().position(|&r| r == rate).ok_or(AdtsError::Unsupported("frequency"))?;
            rate_index = known as u32;
        }
        let channels = bits(4)?;
        if matches!(object_type, 5 | 29) {
            if bits(4)? == 15 {
                bits(24)?;
            }
            object_type = bits(5)?;
        }
        if !(1..=4).contains(&object_type) {
            return Err(AdtsError::Unsupported("object type"));
        }
        if rate_index as usize >= SAMPLE_RATES.len() {
            return Err(AdtsError::Unsupported("frequency"));
        }
        if channels > 7 {
            return Err(AdtsError::Unsupported("channel configuration"));
        }
        Ok(Self { profile: object_type as u8 - 1, frequency_index: rate_index as u8, channels: channels as u8 })
    }

    /// Samples a second.
    #[must_use]
    pub fn sample_rate(&self) -> u32 {
        SAMPLE_RATES.get(usize::from(self.frequency_index)).copied().unwrap_or(SAMPLE_RATES[11])
    }

    /// The header to stand before a raw AAC frame of `payload` bytes.
    ///
    /// # Errors
    /// [`AdtsError::TooLong`] above 8,184 bytes.
    pub fn header(&self, payload: usize) -> Result<[u8; ADTS_HEADER], AdtsError> {
        let length = payload.saturating_add(ADTS_HEADER);
        if length > MAX_FRAME {
            return Err(AdtsError::TooLong(payload));
        }
        let (profile, rate, channels) = (self.profile & 3, self.frequency_index & 15, self.channels & 7);
        Ok([
            0xFF,
            0xF1, // MPEG-4, layer 0, no CRC
            profile << 6 | rate << 2 | channels >> 2,
            channels << 6 | (length >> 11) as u8,
            (length >> 3) as u8,
            (length << 5) as u8 | 0x1F, // buffer fullness 0x7FF: variable rate
            0xFC,
        ])
    }
}

/// A parsed ADTS header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdtsHeader {
    /// What the stream is.
    pub params: AdtsParams,
    /// Bytes of the header: 7, or 9 with CRC.
    pub header_length: usize,
    /// Bytes of the whole frame with its header.
    pub frame_length: usize,
}

impl AdtsHeader {
    /// Reads the header at the start of `bytes`, which need not hold the whole frame.
    ///
    /// # Errors
    /// [`AdtsError`] when cut, without sync word, or self-contradictory.
    pub fn parse(bytes: &[u8]) -> Result<Self, AdtsError> {
        let &[sync, flags, b2, b3, b4, b5, _, ..] = bytes else {
            return Err(AdtsError::Truncated);
        };
        if sync != 0xFF || flags & 0xF6 != 0xF0 {
            return Err(AdtsError::NoSync);
        }
        let header_length = if flags & 1 == 1 { ADTS_HEADER } else { ADTS_HEADER + 2 };
        let frame_length = usize::from(b3 & 3) << 11 | usize::from(b4) << 3 | usize::from(b5) >> 5;
        if frame_length < header_length {
            return Err(AdtsError::Length(frame_length));
        }
        let params = AdtsParams { profile: b2 >> 6, frequency_index: b2 >> 2 & 15, channels: (b2 & 1) << 2 | b3 >> 6 };
        if usize::from(params.frequency_index) >= SAMPLE_RATES.len() {
            return Err(AdtsError::Unsupported("frequency"));
        }
        Ok(Self { params, header_length, frame_length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn config_to_header() {
        // AAC-LC 16 kHz mono, as cameras send it
        let params = AdtsParams::from_audio_specific_config(&[0x14, 0x08]).unwrap();
        assert_eq!(params, AdtsParams { profile: 1, frequency_index: 8, channels: 1 });
        assert_eq!(params.sample_rate(), 16_000);
        assert_eq!(params.header(100).unwrap(), [0xFF, 0xF1, 0x60, 0x40, 0x0D, 0x7F, 0xFC]);
    }

    #[test]
    fn odd_configs() {
        // HE-AAC 24 kHz core: object 5, index 6, channels 2, extension 3, object 2
        let he = AdtsParams::from_audio_specific_config(&[0x2B, 0x11, 0x88]).unwrap();
        assert_eq!((he.profile, he.sample_rate(), he.channels), (1, 24_000, 2));
        // explicit 8000 Hz
        let explicit = AdtsParams::from_audio_specific_config(&[0x17, 0x80, 0x0F, 0xA0, 0x08]).unwrap();
        assert_eq!((explicit.frequency_index, explicit.channels), (11, 1));
        assert_eq!(AdtsParams::from_audio_specific_config(&[0x14]), Err(AdtsError::Truncated));
        assert_eq!(AdtsParams::from_audio_specific_config(&[]), Err(AdtsError::Truncated));
        assert_eq!(
            AdtsParams::from_audio_specific_config(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
            Err(AdtsError::Unsupported("frequency"))
        );
        assert_eq!(AdtsParams::from_audio_specific_config(&[0xB9, 0x08]), Err(AdtsError::Unsupported("object type")));
    }

    #[test]
    fn hostile_headers() {
        assert_eq!(AdtsHeader::parse(&[0xFF, 0xF1]), Err(AdtsError::Truncated));
        assert_eq!(AdtsHeader::parse(&[0xFF, 0xFD, 0, 0, 0, 0, 0]), Err(AdtsError::NoSync), "MPEG audio layer 2");
        assert_eq!(AdtsHeader::parse(&[0xFF, 0xF1, 0x60, 0x40, 0, 0x60, 0]), Err(AdtsError::Length(3)));
        assert_eq!(AdtsHeader::parse(&[0xFF, 0xF0, 0x60, 0x40, 1, 0, 0]), Err(AdtsError::Length(8)), "CRC needs 9");
        let params = AdtsParams { profile: 1, frequency_index: 8, channels: 1 };
        assert_eq!(params.header(usize::MAX), Err(AdtsError::TooLong(usize::MAX)));
        assert!(params.header(8184).is_ok() && params.header(8185).is_err());
    }

    proptest! {
        #[test]
        fn header_round_trip(profile in 0u8..4, frequency_index in 0u8..13, channels in 0u8..8, len in 0usize..8185) {
            let params = AdtsParams { profile, frequency_index, channels };
            let header = AdtsHeader::parse(&params.header(len).unwrap()).unwrap();
            prop_assert_eq!(header, AdtsHeader { params, header_length: 7, frame_length: len + 7 });
        }
    }
}
