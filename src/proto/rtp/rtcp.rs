//! RTCP: sender and receiver reports to write, and a tolerant reader.
//!
//! Standard: [RFC3550 6.4, 6.5, 6.6, A.3]; RTCP on the port above RTP is recommended [GB/T28181-2022 4.3], never required.
//! In: counters and wall time; received datagrams. Out: compound packets; what peers report.
//! Invariants: a part that lies about its length or content is counted and passed over, never an error for the rest.
//! Not here: when to send (once in 5 s is enough), XR, feedback.

use std::time::Duration;

use rtcp_types::prelude::*;
use rtcp_types::{Bye, Compound, ReceiverReport, ReportBlock, RtcpWriteError, Sdes, SdesChunk, SdesItem, SenderReport};

use super::sequence::Sequence;

/// Seconds from the NTP epoch (1900) to the Unix epoch.
const NTP_OFFSET: u64 = 2_208_988_800;
/// Room for every compound packet written here: SR 28, block 24, SDES 12 and a CNAME of 255.
pub const MAX_COMPOUND: usize = 512;
/// Parts of a datagram looked at: real compounds have two to four.
const MAX_PARTS: usize = 16;

/// Why a compound packet was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RtcpError {
    /// The CNAME is longer than 255 bytes.
    #[error("RTCP CNAME of {0} bytes is too long: 255 at most")]
    Cname(usize),
    /// The buffer is too small.
    #[error("RTCP buffer is {0} bytes too small: give MAX_COMPOUND")]
    Buffer(usize),
    /// The writer refused for another reason.
    #[error("RTCP packet cannot be written: check its fields")]
    Refused,
}

/// What a sender report says of a stream we send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentStream {
    /// The stream's SSRC.
    pub ssrc: u32,
    /// Wall time since the Unix epoch.
    pub unix: Duration,
    /// The RTP timestamp that belongs to `unix`.
    pub rtp_timestamp: u32,
    /// Packets sent.
    pub packets: u32,
    /// Payload octets sent.
    pub octets: u32,
}

/// What a receiver report says of a stream we receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedStream {
    /// Our own SSRC.
    pub ssrc: u32,
    /// The stream's SSRC.
    pub source: u32,
    /// Middle 32 bits of the NTP time of the last sender report, 0 when there was none.
    pub last_sender_report: u32,
    /// Time since it came.
    pub since_sender_report: Duration,
}

/// A 64-bit NTP timestamp as Unix time in milliseconds; negative before 1970, as from a camera that counts from its start.
#[must_use]
pub fn unix_millis(ntp: u64) -> i64 {
    let seconds = (ntp >> 32) as i64 - NTP_OFFSET as i64;
    seconds * 1000 + (((ntp & 0xFFFF_FFFF) * 1000) >> 32) as i64
}

/// Unix time as a 64-bit NTP timestamp.
#[must_use]
pub fn ntp_time(unix: Duration) -> u64 {
    let fraction = (u64::from(unix.subsec_nanos()) << 32) / 1_000_000_000;
    unix.as_secs().wrapping_add(NTP_OFFSET) << 32 | fraction
}

/// Writes SR and SDES CNAME; returns their length.
///
/// # Errors
/// [`RtcpError`] for a CNAME over 255 bytes or a buffer under [`MAX_COMPOUND`].
pub fn write_sender_report(out: &mut [u8], stream: &SentStream, cname: &str) -> Result<usize, RtcpError> {
    let report = SenderReport::builder(stream.ssrc)
        .ntp_timestamp(ntp_time(stream.unix))
        .rtp_timestamp(stream.rtp_timestamp)
        .packet_count(stream.packets)
        .octet_count(stream.octets);
    write(out, report, stream.ssrc, cname)
}

/// Writes RR with one block and SDES CNAME; returns their length. Takes the loss since the last report.
///
/// # Errors
/// As [`write_sender_report`].
pub fn write_receiver_report(
    out: &mut [u8],
    stream: &ReceivedStream,
    sequence: &mut Sequence,
    cname: &str,
) -> Result<usize, RtcpError> {
    let stats = sequence.stats();
    let since = stream.since_sender_report.as_nanos() * 65_536 / 1_000_000_000;
    let block = ReportBlock::builder(stream.source)
        .fraction_lost(sequence.take_fraction_lost())
        .cumulative_lost(stats.lost.min(0x7F_FFFF) as u32)
        .extended_sequence_number(stats.highest)
        .interarrival_jitter(stats.jitter)
        .last_sender_report_timestamp(stream.last_sender_report)
        .delay_since_last_sender_report_timestamp(u32::try_from(since).unwrap_or(u32::MAX));
    write(out, ReceiverReport::builder(stream.ssrc).add_report_block(block), stream.ssrc, cname)
}

fn write(out: &mut [u8], report: impl RtcpPacketWriter, ssrc: u32, cname: &str) -> Result<usize, RtcpError> {
    let chunk = SdesChunk::builder(ssrc).add_item(SdesItem::builder(SdesItem::CNAME, cname));
    let compound = Compound::builder().add_packet(report).add_packet(Sdes::builder().add_chunk(chunk));
    let available = out.len();
    compound.write_into(out).map_err(|error| match error {
        RtcpWriteError::OutputTooSmall(needed) => RtcpError::Buffer(needed - available),
        RtcpWriteError::SdesValueTooLarge { .. } => RtcpError::Cname(cname.len()),
        _ => RtcpError::Refused,
    })
}

/// One part of a received compound that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A sender report.
    Sender {
        /// The sender.
        ssrc: u32,
        /// Its NTP time.
        ntp: u64,
        /// The RTP timestamp of that time.
        rtp_timestamp: u32,
        /// Packets it sent.
        packets: u32,
        /// Payload octets it sent.
        octets: u32,
    },
    /// One block of a sender or receiver report.
    Block {
        /// Who reports.
        reporter: u32,
        /// Whom it is about.
        source: u32,
        /// Loss since the last report, in 1/256.
        fraction_lost: u8,
        /// Loss in all, 24 bits.
        cumulative_lost: u32,
        /// Jitter in clock ticks.
        jitter: u32,
    },
    /// A receiver report without blocks: the peer is alive.
    Receiver {
        /// Who reports.
        ssrc: u32,
    },
    /// A source that leaves.
    Bye {
        /// Who leaves.
        ssrc: u32,
    },
}

/// Reads a datagram, calling `each` for every report in it; returns how many parts were malformed.
///
/// A part whose length runs past the end is malformed and ends the reading; other parts are passed over.
pub fn read(bytes: &[u8], mut each: impl FnMut(Report)) -> usize {
    let (mut rest, mut malformed) = (bytes, 0);
    for _ in 0..MAX_PARTS {
        let Some(&[_, kind, high, low]) = rest.first_chunk::<4>() else {
            return malformed + usize::from(!rest.is_empty());
        };
        let length = 4 * (usize::from(u16::from_be_bytes([high, low])) + 1);
        let Some((part, after)) = rest.split_at_checked(length) else {
            return malformed + 1;
        };
        malformed += usize::from(!read_part(kind, part, &mut each));
        rest = after;
    }
    malformed
}

fn read_part(kind: u8, part: &[u8], each: &mut impl FnMut(Report)) -> bool {
    let mut blocks = |reporter, blocks: &mut dyn Iterator<Item = ReportBlock<'_>>| {
        let mut any = false;
        for block in blocks {
            any = true;
            each(Report::Block {
                reporter,
                source: block.ssrc(),
                fraction_lost: block.fraction_lost(),
                cumulative_lost: block.cumulative_lost(),
                jitter: block.interarrival_jitter(),
            });
        }
        any
    };
    match kind {
        SenderReport::PACKET_TYPE => {
            let Ok(report) = SenderReport::parse(part) else {
                return false;
            };
            blocks(report.ssrc(), &mut report.report_blocks());
            each(Report::Sender {
                ssrc: report.ssrc(),
                ntp: report.ntp_timestamp(),
                rtp_timestamp: report.rtp_timestamp(),
                packets: report.packet_count(),
                octets: report.octet_count(),
            });
        }
        ReceiverReport::PACKET_TYPE => {
            let Ok(report) = ReceiverReport::parse(part) else {
                return false;
            };
            if !blocks(report.ssrc(), &mut report.report_blocks()) {
                each(Report::Receiver { ssrc: report.ssrc() });
            }
        }
        Bye::PACKET_TYPE => {
            let Ok(bye) = Bye::parse(part) else { return false };
            bye.ssrcs().for_each(|ssrc| each(Report::Bye { ssrc }));
        }
        _ => return part.first().is_some_and(|first| first >> 6 == 2),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Instant;

    fn reports(bytes: &[u8]) -> (Vec<Report>, usize) {
        let mut out = Vec::new();
        let malformed = read(bytes, |report| out.push(report));
        (out, malformed)
    }

    const STREAM: SentStream = SentStream {
        ssrc: 100_000_001,
        unix: Duration::new(1_700_000_000, 500_000_000),
        rtp_timestamp: 90_000,
        packets: 12,
        octets: 16_000,
    };

    #[test]
    fn sender_report_round_trip() {
        let mut out = [0; MAX_COMPOUND];
        let length = write_sender_report(&mut out, &STREAM, "41130000582000000001").unwrap();
        assert_eq!(length % 4, 0);
        let (reports, malformed) = reports(&out[..length]);
        assert_eq!(malformed, 0);
        assert_eq!(
            reports,
            [Report::Sender {
                ssrc: STREAM.ssrc,
                ntp: 3_908_988_800 << 32 | 0x8000_0000,
                rtp_timestamp: 90_000,
                packets: 12,
                octets: 16_000
            }]
        );
        let text = &out[28..length];
        assert!(text.windows(20).any(|w| w == b"41130000582000000001"));
    }

    #[test]
    fn receiver_report_round_trip() {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of time")]
        let now = Instant::now();
        let mut sequence = Sequence::new(90_000);
        for s in [5, 6, 9] {
            sequence.observe(s, 0, now);
        }
        let stream = ReceivedStream {
            ssrc: 1,
            source: 2,
            last_sender_report: 3,
            since_sender_report: Duration::from_millis(1500),
        };
        let mut out = [0; MAX_COMPOUND];
        let length = write_receiver_report(&mut out, &stream, &mut sequence, "me").unwrap();
        assert_eq!(
            reports(&out[..length]).0,
            [Report::Block { reporter: 1, source: 2, fraction_lost: 102, cumulative_lost: 2, jitter: 0 }]
        );
        assert_eq!(out[28..32], [0, 1, 0x80, 0], "1.5 s in 1/65536");
    }

    #[test]
    fn writing_fails_by_name() {
        let mut out = [0; MAX_COMPOUND];
        assert_eq!(write_sender_report(&mut out, &STREAM, &"c".repeat(256)), Err(RtcpError::Cname(256)));
        assert!(matches!(write_sender_report(&mut out[..20], &STREAM, "c"), Err(RtcpError::Buffer(_))));
    }

    #[test]
    fn a_lie_costs_one_part_only() {
        let bye = [0x81, 203, 0, 1, 0, 0, 0, 9];
        assert_eq!(reports(&bye), (vec![Report::Bye { ssrc: 9 }], 0), "without a sender report before it");
        let many_blocks = [0x9F, 201, 0, 1, 0, 0, 0, 7];
        assert_eq!(reports(&[many_blocks, bye].concat()), (vec![Report::Bye { ssrc: 9 }], 1));
        let empty = [0x80, 201, 0, 1, 0, 0, 0, 7];
        assert_eq!(reports(&empty), (vec![Report::Receiver { ssrc: 7 }], 0));
        let long = [0x80, 201, 0, 200, 0, 0, 0, 7];
        assert_eq!(reports(&[bye, long].concat()), (vec![Report::Bye { ssrc: 9 }], 1));
        assert_eq!(reports(&[0x80, 201, 0]), (vec![], 1));
        assert_eq!(reports(&[]), (vec![], 0));
        assert_eq!(reports(&[0x80, 204, 0, 0].repeat(100)).1, 0, "bounded");
    }

    #[test]
    fn ntp_wraps_after_2036() {
        assert_eq!(ntp_time(Duration::ZERO) >> 32, NTP_OFFSET);
        assert_eq!(ntp_time(Duration::from_secs((1 << 32) - NTP_OFFSET)) >> 32, 0);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(kind in 199u8..206, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut datagram = vec![0x80 | (bytes.len() as u8), kind, 0, (bytes.len() / 4) as u8];
            datagram.extend(&bytes);
            reports(&datagram);
            reports(&bytes);
        }
    }
}
