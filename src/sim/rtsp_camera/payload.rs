//! RTP packets out of NAL units and audio frames, and RTCP sender reports.
//!
//! Standard: [RFC 3550 5.1, 6.4.1, 6.5], H.264 [RFC 6184 5.6, 5.8], H.265 [RFC 7798 4.4.1, 4.4.3], AAC [RFC 3640 3.3.6], G.711 [RFC 3551].
//! In: access units, audio frames, times. Out: whole packets, handed to a closure one by one.
//! Invariants: a packet is at most 12 + `payload_max` bytes; sequence numbers are consecutive.
//! Not here: when a packet is sent and how (`session`).

use rtcp_types::{Compound, RtcpPacketWriter, RtcpPacketWriterExt, Sdes, SdesChunk, SdesItem, SenderReport};

use crate::sim::clip::{AccessUnit, AudioCodec, AudioFrame, VideoCodec};

/// Smallest payload size we fragment to: below it headers outweigh the content.
pub(super) const PAYLOAD_MIN: usize = 64;

/// Largest payload size: what a UDP datagram carries, less the RTP header.
pub(super) const PAYLOAD_MAX: usize = 65_000;

/// The sending side of one RTP stream.
#[derive(Debug)]
pub(super) struct RtpStream {
    pub payload_type: u8,
    pub ssrc: u32,
    pub sequence: u16,
    /// RTP timestamp of the clip's beginning.
    pub base: u32,
    packets: u32,
    octets: u32,
    scratch: Vec<u8>,
}

impl RtpStream {
    pub fn new(payload_type: u8, ssrc: u32, sequence: u16, base: u32) -> Self {
        RtpStream { payload_type, ssrc, sequence, base, packets: 0, octets: 0, scratch: Vec::new() }
    }

    /// Packetises a picture: every NAL unit in a packet of its own, or fragmented; the last packet carries the marker.
    pub fn picture(
        &mut self,
        codec: VideoCodec,
        unit: &AccessUnit,
        time: u32,
        payload_max: usize,
        mut emit: impl FnMut(&mut [u8]),
    ) {
        let last = unit.nals.len().saturating_sub(1);
        for (n, nal) in unit.nals.iter().enumerate() {
            fragments(codec, nal, payload_max, |head, part, end| {
                self.packet(end && n == last, time, head, part, &mut emit);
            });
        }
    }

    /// Packetises an audio frame.
    pub fn sound(&mut self, codec: AudioCodec, frame: &AudioFrame, time: u32, mut emit: impl FnMut(&mut [u8])) {
        match codec {
            AudioCodec::Pcma | AudioCodec::Pcmu => self.packet(false, time, &[], &frame.payload, &mut emit),
            AudioCodec::Aac => {
                // AU-headers-length in bits, then one AU-header: 13 bits size, 3 bits index
                let size = (frame.payload.len() as u16 & 0x1FFF) << 3;
                let [hi, lo] = size.to_be_bytes();
                self.packet(true, time, &[0, 16, hi, lo], &frame.payload, &mut emit);
            }
        }
    }

    fn packet(&mut self, marker: bool, time: u32, head: &[u8], part: &[u8], emit: &mut impl FnMut(&mut [u8])) {
        self.scratch.clear();
        self.scratch.extend_from_slice(&[0x80, self.payload_type | u8::from(marker) << 7]);
        self.scratch.extend_from_slice(&self.sequence.to_be_bytes());
        self.scratch.extend_from_slice(&time.to_be_bytes());
        self.scratch.extend_from_slice(&self.ssrc.to_be_bytes());
        self.scratch.extend_from_slice(head);
        self.scratch.extend_from_slice(part);
        self.sequence = self.sequence.wrapping_add(1);
        self.packets = self.packets.wrapping_add(1);
        self.octets = self.octets.wrapping_add((head.len() + part.len()) as u32);
        emit(&mut self.scratch);
    }

    /// A sender report with the canonical name, for wall time `ntp` (32.32 fixed point) and the same moment in RTP time.
    pub fn report(&self, ntp: u64, time: u32) -> Vec<u8> {
        let report = SenderReport::builder(self.ssrc)
            .ntp_timestamp(ntp)
            .rtp_timestamp(time)
            .packet_count(self.packets)
            .octet_count(self.octets);
        let name = SdesChunk::builder(self.ssrc).add_item(SdesItem::builder(SdesItem::CNAME, "camera"));
        let compound = Compound::builder().add_packet(report).add_packet(Sdes::builder().add_chunk(name));
        let mut out = vec![0; compound.calculate_size().unwrap_or(0)];
        let written = compound.write_into(&mut out).unwrap_or(0);
        out.truncate(written);
        out
    }
}

/// Cuts a NAL unit into payloads: `(payload header, bytes, last)`.
fn fragments(codec: VideoCodec, nal: &[u8], payload_max: usize, mut emit: impl FnMut(&[u8], &[u8], bool)) {
    let header_len = match codec {
        VideoCodec::H264 => 1,
        VideoCodec::H265 => 2,
    };
    if nal.len() <= payload_max || nal.len() <= header_len {
        return emit(&[], nal, true);
    }
    let nal_type = codec.nal_type(nal);
    let mut head = match codec {
        VideoCodec::H264 => vec![nal[0] & 0xE0 | 28, nal_type],
        VideoCodec::H265 => vec![nal[0] & 0x81 | 49 << 1, nal[1], nal_type],
    };
    let body = &nal[header_len..];
    let room = payload_max - head.len();
    let count = body.len().div_ceil(room);
    let flags = head.len() - 1;
    for (n, part) in body.chunks(room).enumerate() {
        let (start, end) = (n == 0, n + 1 == count);
        head[flags] = nal_type | u8::from(start) << 7 | u8::from(end) << 6;
        emit(&head, part, end);
    }
}

/// Wall time since the Unix epoch as NTP 32.32 fixed point [RFC 3550 4].
pub(super) fn ntp(unix: std::time::Duration) -> u64 {
    const SINCE_1900: u64 = 2_208_988_800;
    let fraction = (u64::from(unix.subsec_nanos()) << 32) / 1_000_000_000;
    (unix.as_secs().wrapping_add(SINCE_1900) << 32) | fraction
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// A small depacketiser, written from the RFCs and not from the code above: NAL units of one access unit.
    #[derive(Default)]
    pub(in crate::sim::rtsp_camera) struct Reassembly {
        pub annex_b: Vec<u8>,
    }

    impl Reassembly {
        pub fn push(&mut self, codec: VideoCodec, payload: &[u8]) {
            const CODE: [u8; 4] = [0, 0, 0, 1];
            match (codec, codec.nal_type(payload)) {
                (VideoCodec::H264, 28) => {
                    if payload[1] & 0x80 != 0 {
                        self.annex_b.extend_from_slice(&CODE);
                        self.annex_b.push(payload[0] & 0xE0 | payload[1] & 0x1F);
                    }
                    self.annex_b.extend_from_slice(&payload[2..]);
                }
                (VideoCodec::H265, 49) => {
                    if payload[2] & 0x80 != 0 {
                        self.annex_b.extend_from_slice(&CODE);
                        self.annex_b.push(payload[0] & 0x81 | (payload[2] & 0x3F) << 1);
                        self.annex_b.push(payload[1]);
                    }
                    self.annex_b.extend_from_slice(&payload[3..]);
                }
                _ => {
                    self.annex_b.extend_from_slice(&CODE);
                    self.annex_b.extend_from_slice(payload);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn fragments_join_to_the_nal_unit(
            h265: bool,
            body in proptest::collection::vec(any::<u8>(), 1..4000),
            payload_max in PAYLOAD_MIN..1500,
        ) {
            let codec = if h265 { VideoCodec::H265 } else { VideoCodec::H264 };
            let nal = if h265 { [&[0x26, 0x01][..], &body].concat() } else { [&[0x65][..], &body].concat() };
            let bytes = Bytes::from([&[0, 0, 0, 1][..], &nal].concat());
            let unit = AccessUnit { bytes: bytes.clone(), nals: vec![Bytes::from(nal)], key: true, pts: 0 };
            let mut rtp = RtpStream::new(96, 7, 65_535, 0);
            let (mut joined, mut markers, mut sequence) = (Reassembly::default(), vec![], 65_535u16);
            rtp.picture(codec, &unit, 3600, payload_max, |packet| {
                assert!(packet.len() <= 12 + payload_max);
                assert_eq!(packet[2..4], sequence.to_be_bytes());
                assert_eq!(packet[4..8], 3600u32.to_be_bytes());
                sequence = sequence.wrapping_add(1);
                markers.push(packet[1] >> 7);
                joined.push(codec, &packet[12..]);
            });
            prop_assert_eq!(joined.annex_b, bytes);
            prop_assert_eq!(markers.iter().map(|m| u32::from(*m)).sum::<u32>(), 1, "one marker");
            prop_assert_eq!(markers.last(), Some(&1), "on the last packet");
        }
    }

    #[test]
    fn aac_is_framed_for_hbr_mode() {
        let payload = Bytes::from(vec![0xAB; 300]);
        let frame = AudioFrame { bytes: payload.clone(), payload: payload.clone() };
        let mut seen = vec![];
        RtpStream::new(97, 1, 2, 0).sound(AudioCodec::Aac, &frame, 9, |p| seen = p.to_vec());
        assert_eq!(seen[1], 0x80 | 97);
        assert_eq!(seen[12..16], [0, 16, 0x09, 0x60]); // 300 << 3
        assert_eq!(seen[16..], payload[..]);
    }

    #[test]
    fn a_report_counts_what_was_sent() {
        let mut rtp = RtpStream::new(8, 0xCAFE, 2, 0);
        let frame = AudioFrame { bytes: Bytes::from_static(&[0; 160]), payload: Bytes::from_static(&[0; 160]) };
        rtp.sound(AudioCodec::Pcma, &frame, 9, |_| {});
        let report = rtp.report(ntp(Duration::new(1, 500_000_000)), 77);
        assert_eq!(report[..4], [0x80, 200, 0, 6]);
        assert_eq!(report[8..16], [0x83, 0xAA, 0x7E, 0x81, 0x80, 0, 0, 0]); // 1 January 1970 00:00:01.5
        assert_eq!(report[16..28], [0, 0, 0, 77, 0, 0, 0, 1, 0, 0, 0, 160]);
        assert_eq!(report[29], 202);
        assert_eq!(report.len() % 4, 0);
    }
}
