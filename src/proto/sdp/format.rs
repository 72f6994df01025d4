//! The `f=` line: what video and audio are asked for or sent.
//! Standard: [GB/T28181-2022 G.1.6].
//! In: text. Out: `F`. Form: `v/codec/resolution/fps/bitrate type/kbps` then `a/codec/bitrate/sample rate`.
//! Invariants: a field that is empty or out of its range is unspecified; writing gives the complete structure.
//! Not here: whether anybody heeds it (hardly any device does: a hint).

use std::fmt;

/// Longest text read: the longest meaningful one has about 40 characters.
const MAX_TEXT: usize = 256;

/// Video codec numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VideoCodec {
    /// 1.
    Mpeg4 = 1,
    /// 2.
    H264 = 2,
    /// 3.
    Svac = 3,
    /// 4.
    ThreeGp = 4,
    /// 5, since 2022.
    H265 = 5,
}

/// Picture size: a number of 2016, or `WxH` of 2022.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// 1 QCIF, 2 CIF, 3 4CIF, 4 D1, 5 720P, 6 1080P/I.
    Code(u8),
    /// Width and height in pixels.
    Size(u16, u16),
}

/// Kind of bitrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BitrateType {
    /// 1: constant.
    Cbr = 1,
    /// 2: variable.
    Vbr = 2,
}

/// Audio codec numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AudioCodec {
    /// 1.
    G711 = 1,
    /// 2.
    G723 = 2,
    /// 3.
    G729 = 3,
    /// 4: G.722.1.
    G722 = 4,
    /// 5, since 2022.
    Svac = 5,
    /// 6, since 2022.
    Aac = 6,
}

/// The video half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VideoParams {
    /// Codec.
    pub codec: Option<VideoCodec>,
    /// Picture size.
    pub resolution: Option<Resolution>,
    /// Frames a second, 0-99.
    pub fps: Option<u8>,
    /// Kind of bitrate.
    pub bitrate_type: Option<BitrateType>,
    /// Kilobits a second, 0-100000.
    pub kbps: Option<u32>,
}

/// The audio half. Bitrate and sample rate are the standard's code numbers (8: 64 kbit/s; 1: 8 kHz).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AudioParams {
    /// Codec.
    pub codec: Option<AudioCodec>,
    /// Code 1-30.
    pub bitrate: Option<u8>,
    /// Code 1-17.
    pub sample_rate: Option<u8>,
}

impl AudioParams {
    /// G.711 at 64 kbit/s and 8 kHz: what voice is.
    pub const G711: AudioParams = AudioParams { codec: Some(AudioCodec::G711), bitrate: Some(8), sample_rate: Some(1) };
}

/// An `f=` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct F {
    /// Video.
    pub video: VideoParams,
    /// Audio.
    pub audio: AudioParams,
}

impl F {
    /// Reads a value; missing fields are unspecified. `None` if it has neither half, or is absurdly long.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() || text.len() > MAX_TEXT {
            return None;
        }
        // the audio half follows without a separator; no other field has an `a` in it
        let (video, audio) = match text.split_once(['a', 'A']) {
            Some((video, audio)) => (video, Some(audio)),
            None => (text, None),
        };
        let video = video.trim().strip_prefix(['v', 'V']);
        if video.is_none() && audio.is_none() {
            return None;
        }
        let mut v = video.unwrap_or("").split('/').skip(1).map(str::trim);
        let mut a = audio.unwrap_or("").split('/').skip(1).map(str::trim);
        Some(Self {
            video: VideoParams {
                codec: v.next().and_then(video_codec),
                resolution: v.next().and_then(resolution),
                fps: v.next().and_then(|t| t.parse().ok()).filter(|n| *n <= 99),
                bitrate_type: v.next().and_then(|t| match t {
                    "1" => Some(BitrateType::Cbr),
                    "2" => Some(BitrateType::Vbr),
                    _ => None,
                }),
                kbps: v.next().and_then(|t| t.parse().ok()).filter(|n| *n <= 100_000),
            },
            audio: AudioParams {
                codec: a.next().and_then(audio_codec),
                bitrate: a.next().and_then(|t| t.parse().ok()).filter(|n| (1..=30).contains(n)),
                sample_rate: a.next().and_then(|t| t.parse().ok()).filter(|n| (1..=17).contains(n)),
            },
        })
    }
}

fn video_codec(text: &str) -> Option<VideoCodec> {
    use VideoCodec::*;
    [Mpeg4, H264, Svac, ThreeGp, H265].into_iter().find(|c| text.parse() == Ok(*c as u8))
}

fn audio_codec(text: &str) -> Option<AudioCodec> {
    use AudioCodec::*;
    [G711, G723, G729, G722, Svac, Aac].into_iter().find(|c| text.parse() == Ok(*c as u8))
}

fn resolution(text: &str) -> Option<Resolution> {
    match text.split_once(['x', 'X', '*']) {
        Some((w, h)) => Some(Resolution::Size(w.parse().ok().filter(|n| *n > 0)?, h.parse().ok().filter(|n| *n > 0)?)),
        None => Some(Resolution::Code(text.parse().ok().filter(|n| (1..=6).contains(n))?)),
    }
}

impl fmt::Display for F {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn field(value: Option<impl fmt::Display>) -> String {
            value.map(|v| v.to_string()).unwrap_or_default()
        }
        let resolution = self.video.resolution.map(|r| match r {
            Resolution::Code(code) => code.to_string(),
            Resolution::Size(w, h) => format!("{w}x{h}"),
        });
        write!(
            f,
            "v/{}/{}/{}/{}/{}a/{}/{}/{}",
            field(self.video.codec.map(|c| c as u8)),
            field(resolution),
            field(self.video.fps),
            field(self.video.bitrate_type.map(|b| b as u8)),
            field(self.video.kbps),
            field(self.audio.codec.map(|c| c as u8)),
            field(self.audio.bitrate),
            field(self.audio.sample_rate),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn samples() {
        for text in ["v/2/6/25/1/4096a///", "v/////a/1/8/1", "v/5/2560x1440/25/2/8192a/6/13/11", "v/////a///"] {
            assert_eq!(F::parse(text).unwrap().to_string(), text);
        }
        let f = F::parse("v/2/6/25/1/4096a///").unwrap();
        assert_eq!(f.video.codec, Some(VideoCodec::H264));
        assert_eq!(f.video.resolution, Some(Resolution::Code(6)));
        assert_eq!((f.video.fps, f.video.bitrate_type, f.video.kbps), (Some(25), Some(BitrateType::Cbr), Some(4096)));
        assert_eq!(f.audio, AudioParams::default());
        assert_eq!(F::parse("v/////a/1/8/1").unwrap().audio, AudioParams::G711);
    }

    #[test]
    fn lenient() {
        assert_eq!(F::parse("v/2/6/25/1/4096 a/1/8/1").unwrap().to_string(), "v/2/6/25/1/4096a/1/8/1");
        assert_eq!(F::parse("v/2").unwrap().to_string(), "v/2////a///");
        assert_eq!(F::parse("a/1/8/1").unwrap().to_string(), "v/////a/1/8/1");
        assert_eq!(F::parse("v/9/7/100/3/100001a/7/31/18").unwrap(), F::default());
        assert_eq!(F::parse("v/2/0x0//1/-1a").unwrap().video.resolution, None);
        for none in ["", "  ", "2/6/25", &format!("v/{}", "1".repeat(10_240))] {
            assert_eq!(F::parse(none), None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn what_was_read_is_written_alike(text in "v?[0-9x/ ]{0,30}a?[0-9/]{0,12}|\\PC{0,30}") {
            if let Some(f) = F::parse(&text) {
                prop_assert_eq!(F::parse(&f.to_string()), Some(f));
            }
        }
    }
}
