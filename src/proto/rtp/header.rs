//! RTP packets: a borrowed view, and the fixed header to write.
//!
//! Standard: [RFC3550 5.1, 5.3.1], [RFC5761 4].
//! In: one datagram or frame. Out: [`Packet`] borrowing it.
//! Invariants: the payload lies inside the input; RTCP never passes as RTP.
//! Not here: sequence arithmetic (see `sequence`, `reorder`).

/// Bytes of the fixed RTP header.
pub const HEADER_LENGTH: usize = 12;

/// Why bytes are no RTP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Fewer bytes than the header, its CSRC list or its extension need.
    #[error("RTP packet of {0} bytes is cut short: drop it")]
    Truncated(usize),
    /// Version other than 2.
    #[error("RTP version {0} is not spoken: drop the packet")]
    Version(u8),
    /// Padding of zero bytes or longer than the payload.
    #[error("RTP padding of {0} bytes does not fit: drop the packet")]
    Padding(u8),
    /// The second byte is an RTCP packet type (200 to 207).
    #[error("RTCP packet type {0} where RTP is expected: read it as RTCP")]
    Rtcp(u8),
}

/// Whether a datagram is RTCP by its second byte [RFC5761 4].
#[must_use]
pub fn is_rtcp(bytes: &[u8]) -> bool {
    matches!(bytes, [first, 200..=207, ..] if first >> 6 == 2)
}

/// A received RTP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Marker bit: last packet of a frame, when the sender is honest.
    pub marker: bool,
    /// Payload type, 0 to 127.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// Timestamp in clock ticks.
    pub timestamp: u32,
    /// Synchronisation source.
    pub ssrc: u32,
    /// Profile and body of the header extension.
    pub extension: Option<(u16, &'a [u8])>,
    /// Offset of the payload in the input.
    pub payload_offset: usize,
    /// The payload without padding.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet.
    ///
    /// # Errors
    /// [`HeaderError`] when the bytes are no RTP packet.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HeaderError> {
        let truncated = HeaderError::Truncated(bytes.len());
        let Some((&[b0, b1, s0, s1, t0, t1, t2, t3, r0, r1, r2, r3], _)) = bytes.split_first_chunk() else {
            return Err(truncated);
        };
        if b0 >> 6 != 2 {
            return Err(HeaderError::Version(b0 >> 6));
        }
        if is_rtcp(bytes) {
            return Err(HeaderError::Rtcp(b1));
        }
        let mut offset = HEADER_LENGTH + 4 * usize::from(b0 & 0x0F);
        let mut extension = None;
        if b0 & 0x10 != 0 {
            let head = bytes.get(offset..offset + 4).ok_or(truncated)?;
            let length = 4 * usize::from(u16::from_be_bytes([head[2], head[3]]));
            let body = bytes.get(offset + 4..offset + 4 + length).ok_or(truncated)?;
            extension = Some((u16::from_be_bytes([head[0], head[1]]), body));
            offset += 4 + length;
        }
        let mut payload = bytes.get(offset..).ok_or(truncated)?;
        if b0 & 0x20 != 0 {
            let padding = payload.last().copied().unwrap_or(0);
            if padding == 0 || usize::from(padding) > payload.len() {
                return Err(HeaderError::Padding(padding));
            }
            payload = &payload[..payload.len() - usize::from(padding)];
        }
        Ok(Self {
            marker: b1 & 0x80 != 0,
            payload_type: b1 & 0x7F,
            sequence: u16::from_be_bytes([s0, s1]),
            timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
            ssrc: u32::from_be_bytes([r0, r1, r2, r3]),
            extension,
            payload_offset: offset,
            payload,
        })
    }
}

/// The fixed header of a packet to send: no CSRC, extension or padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Marker bit.
    pub marker: bool,
    /// Payload type, 0 to 127.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// Timestamp in clock ticks.
    pub timestamp: u32,
    /// Synchronisation source.
    pub ssrc: u32,
}

impl Header {
    /// The 12 bytes on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0] = 0x80;
        bytes[1] = u8::from(self.marker) << 7 | self.payload_type & 0x7F;
        bytes[2..4].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.timestamp.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.ssrc.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: Header = Header { marker: true, payload_type: 96, sequence: 7, timestamp: 9000, ssrc: 0x0102_0304 };

    fn packet(first: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = HEADER.to_bytes().to_vec();
        bytes[0] = first;
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn csrc_extension_and_padding_are_passed_over() {
        let rest = [&[9; 8][..], &[0xBE, 0xDE, 0, 1, 1, 2, 3, 4], &[5, 6, 0, 2]].concat();
        let bytes = packet(0xB2, &rest);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.payload, [5, 6]);
        assert_eq!(packet.payload_offset, 28);
        assert_eq!(packet.extension, Some((0xBEDE, &[1u8, 2, 3, 4][..])));
    }

    #[test]
    fn bad_packets() {
        for len in 0..12 {
            assert_eq!(Packet::parse(&HEADER.to_bytes()[..len]), Err(HeaderError::Truncated(len)));
        }
        for (first, version) in [(0x00, 0), (0x40, 1), (0xC0, 3)] {
            assert_eq!(Packet::parse(&packet(first, &[])), Err(HeaderError::Version(version)));
        }
        assert_eq!(Packet::parse(&packet(0x8F, &[])), Err(HeaderError::Truncated(12)), "15 CSRCs");
        assert_eq!(Packet::parse(&packet(0x90, &[0, 0, 255, 255, 1])), Err(HeaderError::Truncated(17)));
        assert_eq!(Packet::parse(&packet(0xA0, &[])), Err(HeaderError::Padding(0)));
        assert_eq!(Packet::parse(&packet(0xA0, &[1, 0])), Err(HeaderError::Padding(0)));
        assert_eq!(Packet::parse(&packet(0xA0, &[1, 3])), Err(HeaderError::Padding(3)));
        assert_eq!(Packet::parse(&packet(0xA0, &[1, 2])).unwrap().payload, &[0u8; 0][..]);
        let mut rtcp = packet(0x80, &[0; 8]);
        rtcp[1] = 200;
        assert_eq!(Packet::parse(&rtcp), Err(HeaderError::Rtcp(200)));
        rtcp[1] = 72;
        assert_eq!(Packet::parse(&rtcp).unwrap().payload_type, 72, "without marker it is no RTCP type");
    }

    proptest! {
        #[test]
        fn round_trip(marker: bool, payload_type in 0u8..72, sequence: u16, timestamp: u32, ssrc: u32,
            payload in proptest::collection::vec(any::<u8>(), 0..30))
        {
            let header = Header { marker, payload_type, sequence, timestamp, ssrc };
            let bytes = [&header.to_bytes()[..], &payload].concat();
            let p = Packet::parse(&bytes).unwrap();
            prop_assert_eq!(header, Header { marker: p.marker, payload_type: p.payload_type, sequence: p.sequence,
                timestamp: p.timestamp, ssrc: p.ssrc });
            prop_assert_eq!(p.payload, &payload[..]);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.payload_offset + packet.payload.len() <= bytes.len());
            }
        }
    }
}
