//! What a receiver found: counts, and the problems they amount to, each with a name and its numbers.
//!
//! Standard: [GB/T28181-2022 4.3.6] one timestamp a frame, another for each; [GB/T28181-2022 annex C] PS over RTP.
//! In: counts of `verify`. Out: `Verdict`, `Problem`.
//! Invariants: a stream without a problem is whole: no packet lost, every picture the clip's to the last bit.
//! Not here: finding them (`verify`).

use std::fmt;
use std::time::Duration;

use crate::proto::codec::{AudioCodec, VideoCodec};
use crate::proto::ps::DemuxCounters;
use crate::proto::rtp::FramerError;

/// Where a picture first differs from the clip's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alteration {
    /// Number of the received picture, from 1.
    pub picture: u64,
    /// The clip's picture that was due, where one was known.
    pub expected: Option<usize>,
    /// First byte that differs; `None` where nothing was due to compare with.
    pub at: Option<usize>,
    /// Bytes received.
    pub length: usize,
    /// Bytes due.
    pub expected_length: Option<usize>,
}

/// What was received so far. Counts are since the receiver began.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// RTP packets with the expected SSRC and payload type, each once.
    pub packets: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// RTP packets that should have come and have not.
    pub lost: u64,
    /// Packets that came again.
    pub duplicates: u64,
    /// Packets that came after a later one.
    pub reordered: u64,
    /// Times the sequence numbers began anew.
    pub restarts: u64,
    /// Packets with another SSRC than `y=` said; they are not read.
    pub wrong_ssrc: u64,
    /// The last such SSRC, and the one due.
    pub ssrc_seen: Option<(u32, u32)>,
    /// Packets with another payload type than the answer said; they are not read.
    pub wrong_payload_type: u64,
    /// The last such payload type.
    pub payload_type_seen: Option<u8>,
    /// Datagrams and frames that are neither RTP nor RTCP.
    pub not_rtp: u64,
    /// RTCP packets.
    pub rtcp: u64,
    /// Datagrams from another address than the answer's; they are read.
    pub from_elsewhere: u64,
    /// Frames whose last packet had no marker bit.
    pub markers_missing: u64,
    /// Packets with the marker bit although their frame went on.
    pub markers_early: u64,
    /// Times the timestamp changed inside a frame.
    pub timestamps_mixed: u64,
    /// Times the timestamp went back.
    pub timestamps_back: u64,
    /// Frames with the timestamp of the frame before.
    pub timestamps_repeated: u64,
    /// Video access units.
    pub frames: u64,
    /// Of them the clip's to the last bit (parameter sets and an access unit delimiter may stand before).
    pub exact: u64,
    /// Of them none of the clip's.
    pub altered: u64,
    /// Of them key pictures.
    pub keys: u64,
    /// Pictures of the clip missing between two received ones.
    pub missing: u64,
    /// The first picture that is none of the clip's.
    pub first_alteration: Option<Alteration>,
    /// Pictures whose decoding time does not follow the one before.
    pub dts_back: u64,
    /// Audio payloads.
    pub audio_frames: u64,
    /// Their bytes.
    pub audio_bytes: u64,
    /// Holes in the program stream.
    pub gaps: u64,
    /// From the INVITE to the first packet.
    pub first_packet_after: Option<Duration>,
    /// From the INVITE to the first whole picture.
    pub first_picture_after: Option<Duration>,
    /// Whether the first picture is a key picture.
    pub first_is_key: Option<bool>,
    /// What the pictures are.
    pub video: Option<VideoCodec>,
    /// What the sound is.
    pub audio: Option<AudioCodec>,
    /// What the demuxer met.
    pub ps: DemuxCounters,
    /// TCP connections that carried media.
    pub connections: u64,
    /// Connecting, or listening, failed: the system's words.
    pub connect_error: Option<String>,
    /// The TCP stream is not framed RTP.
    pub framing_error: Option<FramerError>,
    /// The file could not be written: the system's words.
    pub dump_error: Option<String>,
}

/// One thing that is wrong with a stream.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// No packet at all.
    Silence,
    /// Packets, but not one picture.
    NoPicture,
    /// Fewer pictures than the time played should bring.
    Starved {
        /// Pictures received.
        have: u64,
        /// Pictures due.
        want: u64,
    },
    /// RTP packets did not come.
    Lost(u64),
    /// RTP packets came twice.
    Duplicates(u64),
    /// Another SSRC than `y=`.
    WrongSsrc {
        /// Packets.
        packets: u64,
        /// As sent.
        have: u32,
        /// As answered.
        want: u32,
    },
    /// Another payload type than the answer's.
    WrongPayloadType {
        /// Packets.
        packets: u64,
        /// As sent.
        have: u8,
    },
    /// What came is no RTP.
    NotRtp(u64),
    /// Media from another address than the answer's.
    FromElsewhere(u64),
    /// Frames end without marker.
    MarkerMissing(u64),
    /// Markers inside frames.
    MarkerEarly(u64),
    /// Timestamps change inside frames.
    TimestampMixed(u64),
    /// Timestamps go back.
    TimestampBack(u64),
    /// Frames share a timestamp.
    TimestampRepeated(u64),
    /// Pictures are not the clip's.
    Altered {
        /// How many.
        pictures: u64,
        /// The first one.
        first: Alteration,
    },
    /// Pictures of the clip were left out.
    Missing(u64),
    /// Decoding times do not rise.
    DtsBack(u64),
    /// The stream does not begin with a key picture.
    FirstNotKey,
    /// The program stream has holes.
    Gaps(u64),
    /// The program stream departs from the standard: the demuxer's name for it, and how often.
    ProgramStream(&'static str, u64),
    /// No TCP connection.
    NotConnected(String),
    /// The TCP stream cannot be cut into packets.
    Framing(FramerError),
    /// The dump could not be written.
    Dump(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Silence => f.write_str("no RTP packet came"),
            Problem::NoPicture => f.write_str("no whole picture came"),
            Problem::Starved { have, want } => write!(f, "only {have} of about {want} pictures came"),
            Problem::Lost(n) => write!(f, "{n} RTP packets lost"),
            Problem::Duplicates(n) => write!(f, "{n} RTP packets came twice"),
            Problem::WrongSsrc { packets, have, want } => {
                write!(f, "{packets} packets with SSRC {have:010} where y= says {want:010}")
            }
            Problem::WrongPayloadType { packets, have } => write!(f, "{packets} packets with payload type {have}"),
            Problem::NotRtp(n) => write!(f, "{n} datagrams or frames that are no RTP"),
            Problem::FromElsewhere(n) => write!(f, "{n} packets from another address than the answer's"),
            Problem::MarkerMissing(n) => write!(f, "{n} frames end without marker bit"),
            Problem::MarkerEarly(n) => write!(f, "{n} marker bits inside frames"),
            Problem::TimestampMixed(n) => write!(f, "timestamp changes inside a frame {n} times"),
            Problem::TimestampBack(n) => write!(f, "timestamp goes back {n} times"),
            Problem::TimestampRepeated(n) => write!(f, "{n} frames share the timestamp of the one before"),
            Problem::Altered { pictures, first } => {
                write!(f, "{pictures} pictures altered: picture {} ({} bytes)", first.picture, first.length)?;
                match (first.expected, first.at, first.expected_length) {
                    (Some(unit), Some(at), Some(length)) => {
                        write!(f, " differs from the clip's {unit} ({length} bytes) at byte {at}")
                    }
                    _ => f.write_str(" is none of the clip's"),
                }
            }
            Problem::Missing(n) => write!(f, "{n} pictures of the clip missing"),
            Problem::DtsBack(n) => write!(f, "decoding time does not rise at {n} pictures"),
            Problem::FirstNotKey => f.write_str("the first picture is no key picture"),
            Problem::Gaps(n) => write!(f, "{n} holes in the program stream"),
            Problem::ProgramStream(what, n) => write!(f, "program stream: {what} {n} times"),
            Problem::NotConnected(why) => write!(f, "no TCP connection for media: {why}"),
            Problem::Framing(error) => write!(f, "TCP framing: {error}"),
            Problem::Dump(why) => write!(f, "cannot write the dump: {why}"),
        }
    }
}

/// How often, and what that is.
type Counted = (u64, fn(u64) -> Problem);

impl Verdict {
    /// All that is wrong, worst first. Empty: the stream is whole.
    pub fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        found.extend(self.connect_error.clone().map(Problem::NotConnected));
        found.extend(self.framing_error.map(Problem::Framing));
        if let Some((have, want)) = self.ssrc_seen {
            let packets = self.wrong_ssrc;
            found.push(Problem::WrongSsrc { packets, have, want });
        }
        if let Some(have) = self.payload_type_seen {
            let packets = self.wrong_payload_type;
            found.push(Problem::WrongPayloadType { packets, have });
        }
        if self.packets == 0 {
            found.push(Problem::Silence);
        } else if self.frames == 0 && self.audio_frames == 0 {
            found.push(Problem::NoPicture);
        }
        found.extend(self.first_alteration.map(|first| Problem::Altered { pictures: self.altered, first }));
        let counted: [Counted; 13] = [
            (self.lost, Problem::Lost),
            (self.missing, Problem::Missing),
            (self.gaps, Problem::Gaps),
            (self.not_rtp, Problem::NotRtp),
            (self.duplicates, Problem::Duplicates),
            (self.from_elsewhere, Problem::FromElsewhere),
            (self.markers_missing, Problem::MarkerMissing),
            (self.markers_early, Problem::MarkerEarly),
            (self.timestamps_mixed, Problem::TimestampMixed),
            (self.timestamps_back, Problem::TimestampBack),
            (self.timestamps_repeated, Problem::TimestampRepeated),
            (self.dts_back, Problem::DtsBack),
            (u64::from(self.first_is_key == Some(false)), |_| Problem::FirstNotKey),
        ];
        found.extend(counted.into_iter().filter(|(n, _)| *n > 0).map(|(n, problem)| problem(n)));
        let ps = &self.ps;
        let departures = [
            ("structure lost", ps.resyncs),
            ("frame dropped", ps.frames_dropped),
            ("frame too large", ps.oversize_frames),
            ("frame without known codec", ps.undecided_frames),
            ("sound without known codec", ps.undecided_audio),
            ("frame without times", ps.times_missing),
            ("PES longer than its pack", ps.length_lies),
            ("PES of length 0", ps.unbounded_pes),
            ("contradictory PES header", ps.bad_pes),
            ("stream map with wrong CRC", ps.psm_bad_crc),
            ("unreadable stream map", ps.psm_malformed),
            ("another codec than the stream map's", ps.codec_lies),
            ("data alignment without access unit", ps.alignment_lies),
            ("MPEG-1 pack header", ps.mpeg1_packs),
        ];
        let ill = departures.into_iter().filter(|(_, n)| *n > 0);
        found.extend(ill.map(|(what, n)| Problem::ProgramStream(what, n)));
        found.extend(self.dump_error.clone().map(Problem::Dump));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_stream_has_no_problem_and_an_empty_one_is_silent() {
        let whole =
            Verdict { packets: 10, frames: 3, exact: 3, keys: 1, first_is_key: Some(true), ..Verdict::default() };
        assert_eq!(whole.problems(), []);
        assert_eq!(Verdict::default().problems(), [Problem::Silence]);
        let headless = Verdict { first_is_key: Some(false), lost: 2, ..whole };
        assert_eq!(headless.problems(), [Problem::Lost(2), Problem::FirstNotKey]);
    }

    #[test]
    fn an_alteration_names_the_byte() {
        let first =
            Alteration { picture: 7, expected: Some(6), at: Some(123), length: 500, expected_length: Some(500) };
        let text = Problem::Altered { pictures: 1, first }.to_string();
        assert!(text.contains("picture 7") && text.contains("clip's 6") && text.contains("byte 123"), "{text}");
    }
}
