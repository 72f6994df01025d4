//! The RTP image of a frame: all its packets in one buffer, header slots at a fixed stride, written with one copy.
//!
//! Standard: [RFC3550 5.1], [RFC4571 2], [GB/T28181-2022 annex C]: one timestamp a frame, marker on its last packet.
//! In: the frame's bytes in pieces. Out: blocks `[12-byte header | payload]`, every block but the last of equal size,
//! over TCP each with its 2-byte length before it.
//! Invariants: sequence numbers count from 0 and the SSRC is 0 until [`restamp`] writes a destination's own;
//! a buffer that has grown to the largest frame is never reallocated.
//! Not here: sending, pacing, segmentation offload (the stride is what it wants).

use bytes::{BufMut, BytesMut};

use super::header::{HEADER_LENGTH, Header};

/// Bytes of the length before each packet over TCP [RFC4571 2].
pub const LENGTH_PREFIX: usize = 2;

/// Smallest payload of a block: below it headers outweigh what they carry.
pub const MIN_PAYLOAD: usize = 64;

/// Largest payload of a block: what a 16-bit length leaves beside the header.
pub const MAX_PAYLOAD: usize = 0xFFFF - HEADER_LENGTH;

/// Something bytes are appended to.
pub trait PutBytes {
    /// Appends all of `bytes`.
    fn put(&mut self, bytes: &[u8]);
}

impl PutBytes for BytesMut {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl PutBytes for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// How packets follow each other in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Header and payload alone, for datagrams.
    Datagram,
    /// A 2-byte length before each packet, for TCP.
    Rfc4571,
}

impl Framing {
    /// Bytes before each RTP header.
    #[must_use]
    pub const fn prefix(self) -> usize {
        match self {
            Self::Datagram => 0,
            Self::Rfc4571 => LENGTH_PREFIX,
        }
    }
}

/// The shape of a finished image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Number of packets; 0 when nothing was written.
    pub packets: usize,
    /// Bytes of every block but the last: prefix, header and payload.
    pub block: usize,
    /// Bytes of the last block, at most `block`.
    pub last_block: usize,
    /// Where the blocks' RTP headers are.
    pub framing: Framing,
}

impl Image {
    /// Bytes of the whole image.
    #[must_use]
    pub fn length(&self) -> usize {
        if self.packets == 0 { 0 } else { (self.packets - 1) * self.block + self.last_block }
    }
}

/// Bytes an image of `payload` bytes in blocks of `payload_max` takes: reserve them once.
#[must_use]
pub fn image_length(payload: usize, payload_max: usize, framing: Framing) -> usize {
    payload + payload.div_ceil(clamp_payload(payload_max)) * (framing.prefix() + HEADER_LENGTH)
}

fn clamp_payload(payload_max: usize) -> usize {
    payload_max.clamp(MIN_PAYLOAD, MAX_PAYLOAD)
}

/// Writes one frame's image at the end of a buffer.
#[derive(Debug)]
pub struct ImageWriter<'a> {
    out: &'a mut BytesMut,
    start: usize,
    payload_max: usize,
    framing: Framing,
    room: usize,
    packets: usize,
}

impl<'a> ImageWriter<'a> {
    /// Begins an image with blocks of at most `payload_max` payload bytes (clamped to 64..=65523).
    pub fn new(out: &'a mut BytesMut, payload_max: usize, framing: Framing) -> Self {
        let start = out.len();
        Self { out, start, payload_max: clamp_payload(payload_max), framing, room: 0, packets: 0 }
    }

    /// Appends payload, opening a header slot whenever a block is full.
    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.room == 0 {
                self.out.put_bytes(0, self.framing.prefix() + HEADER_LENGTH);
                self.room = self.payload_max;
                self.packets += 1;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(self.room));
            self.out.extend_from_slice(now);
            self.room -= now.len();
            bytes = rest;
        }
    }

    /// Writes the headers. `marker` goes on the last packet; `timestamp` is in clock ticks, the same on all.
    #[must_use = "the image's shape is needed to send it"]
    pub fn finish(self, marker: bool, payload_type: u8, timestamp: u32) -> Image {
        let prefix = self.framing.prefix();
        let block = prefix + HEADER_LENGTH + self.payload_max;
        let packets = self.packets;
        for (index, packet) in self.out[self.start..].chunks_mut(block).enumerate() {
            let length = packet.len() - prefix;
            if self.framing == Framing::Rfc4571 {
                packet[..prefix].copy_from_slice(&(length as u16).to_be_bytes());
            }
            let marker = marker && index + 1 == packets;
            let header = Header { marker, payload_type, sequence: index as u16, timestamp, ssrc: 0 };
            packet[prefix..prefix + HEADER_LENGTH].copy_from_slice(&header.to_bytes());
        }
        Image { packets, block, last_block: if packets == 0 { 0 } else { block - self.room }, framing: self.framing }
    }
}

impl PutBytes for ImageWriter<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }
}

/// Makes a datagram image a destination's own: sequence numbers from `sequence` on, and its SSRC.
///
/// `buf` is the image, `block` its stride. Returns the sequence number for the next frame. Trailing bytes too short for
/// a header are left alone.
pub fn restamp(buf: &mut [u8], block: usize, sequence: u16, ssrc: u32) -> u16 {
    restamp_at(buf, block, 0, sequence, ssrc)
}

/// [`restamp`] for an image with length prefixes.
pub fn restamp_rfc4571(buf: &mut [u8], block: usize, sequence: u16, ssrc: u32) -> u16 {
    restamp_at(buf, block, LENGTH_PREFIX, sequence, ssrc)
}

fn restamp_at(buf: &mut [u8], block: usize, prefix: usize, mut sequence: u16, ssrc: u32) -> u16 {
    let ssrc = ssrc.to_be_bytes();
    for packet in buf.chunks_mut(block.max(1)) {
        let Some(header) = packet.get_mut(prefix..prefix + HEADER_LENGTH) else {
            break;
        };
        header[2..4].copy_from_slice(&sequence.to_be_bytes());
        header[8..12].copy_from_slice(&ssrc);
        sequence = sequence.wrapping_add(1);
    }
    sequence
}

/// Copies a datagram image with its length prefixes added; returns the new image's shape.
pub fn to_rfc4571(image: &[u8], block: usize, out: &mut BytesMut) -> Image {
    let block = block.clamp(HEADER_LENGTH + 1, 0xFFFF);
    let (mut packets, mut last) = (0, 0);
    out.reserve(image.len() + image.len().div_ceil(block) * LENGTH_PREFIX);
    for packet in image.chunks(block) {
        out.extend_from_slice(&(packet.len() as u16).to_be_bytes());
        out.extend_from_slice(packet);
        (packets, last) = (packets + 1, packet.len() + LENGTH_PREFIX);
    }
    Image { packets, block: block + LENGTH_PREFIX, last_block: last, framing: Framing::Rfc4571 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rtp::Packet;
    use proptest::prelude::*;

    #[test]
    fn an_empty_frame_has_no_packets() {
        let mut out = BytesMut::from(&b"before"[..]);
        let image = ImageWriter::new(&mut out, 1388, Framing::Datagram).finish(true, 96, 1);
        assert_eq!((image.packets, image.length(), &out[..]), (0, 0, &b"before"[..]));
    }

    #[test]
    fn a_full_last_block_opens_no_other() {
        let mut out = BytesMut::new();
        let mut writer = ImageWriter::new(&mut out, 100, Framing::Datagram);
        writer.write(&[1; 200]);
        let image = writer.finish(true, 96, 1);
        assert_eq!((image.packets, image.block, image.last_block), (2, 112, 112));
        assert_eq!(out.len(), image.length());
        assert!(!Packet::parse(&out[..112]).unwrap().marker && Packet::parse(&out[112..]).unwrap().marker);
    }

    #[test]
    fn restamp_wraps_and_never_panics() {
        let mut out = BytesMut::new();
        let mut writer = ImageWriter::new(&mut out, 100, Framing::Datagram);
        writer.write(&[1; 250]);
        let image = writer.finish(false, 96, 77);
        assert_eq!(restamp(&mut out, image.block, 65_535, 0xABCD_EF01), 2);
        let sequences: Vec<_> = out
            .chunks(image.block)
            .map(|p| Packet::parse(p).unwrap())
            .map(|p| (p.sequence, p.ssrc, p.timestamp))
            .collect();
        assert_eq!(sequences, [65_535, 0, 1].map(|s| (s, 0xABCD_EF01, 77)));
        assert_eq!(restamp(&mut [0; 5], 0, 3, 1), 3);
        assert_eq!(restamp(&mut [], 112, 3, 1), 3);
    }

    #[test]
    fn a_pooled_buffer_is_not_reallocated() {
        let mut out = BytesMut::with_capacity(image_length(5000, 1388, Framing::Rfc4571));
        let before = out.as_ptr();
        for _ in 0..3 {
            out.clear();
            let mut writer = ImageWriter::new(&mut out, 1388, Framing::Rfc4571);
            writer.write(&[7; 5000]);
            assert_eq!(writer.finish(true, 96, 0).length(), image_length(5000, 1388, Framing::Rfc4571));
        }
        assert_eq!(out.as_ptr(), before);
    }

    proptest! {
        #[test]
        fn payload_comes_back(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..12),
            payload_max in 0usize..400, sequence: u16, tcp: bool)
        {
            let framing = if tcp { Framing::Rfc4571 } else { Framing::Datagram };
            let mut out = BytesMut::new();
            let mut writer = ImageWriter::new(&mut out, payload_max, framing);
            pieces.iter().for_each(|piece| writer.write(piece));
            let image = writer.finish(true, 96, 12345);
            prop_assert_eq!(image.length(), out.len());
            let stamp = if tcp { restamp_rfc4571 } else { restamp };
            prop_assert_eq!(stamp(&mut out, image.block, sequence, 9), sequence.wrapping_add(image.packets as u16));
            let mut read = Vec::new();
            for (i, block) in out.chunks(image.block).enumerate() {
                if tcp {
                    prop_assert_eq!(usize::from(u16::from_be_bytes([block[0], block[1]])), block.len() - 2);
                }
                let packet = Packet::parse(&block[framing.prefix()..]).unwrap();
                prop_assert_eq!(packet.sequence, sequence.wrapping_add(i as u16));
                prop_assert_eq!(packet.marker, i + 1 == image.packets);
                read.extend_from_slice(packet.payload);
            }
            prop_assert_eq!(read, pieces.concat());
            if !tcp {
                let (mut copied, mut direct) = (BytesMut::new(), BytesMut::new());
                let shape = to_rfc4571(&out, image.block, &mut copied);
                let mut writer = ImageWriter::new(&mut direct, payload_max, Framing::Rfc4571);
                pieces.iter().for_each(|piece| writer.write(piece));
                let built = writer.finish(true, 96, 12345);
                restamp_rfc4571(&mut direct, built.block, sequence, 9);
                prop_assert_eq!(&copied, &direct);
                prop_assert_eq!(shape, built);
            }
        }
    }
}
