//! Cuts a TCP byte stream into RTP packets.
//!
//! Standard: [RFC4571 2], [GB/T28181-2022 annex D]: a 2-byte length before each packet. Recognised by the first bytes of
//! a connection besides: RTSP's `$ channel length` framing, and bare PS without RTP.
//! In: bytes read into [`Framer::space`] (or pushed). Out: frames borrowed from the buffer.
//! Invariants: one buffer of `BUFFER` bytes, never grown; nothing is allocated by an announced length; a stream that
//! is no RTP ends in an error, after garbage of at most `MAX_GARBAGE`.
//! Not here: the socket, RTP parsing beyond what finds the next packet after garbage.

use std::ops::Range;

use super::header::{HEADER_LENGTH, is_rtcp};

/// Bytes held: the longest frame (65,535 and its header) and a read of the same size behind it.
pub const BUFFER: usize = 128 * 1024 + 8;
/// Garbage skipped in one piece before the connection is given up: two of the longest frames.
const MAX_GARBAGE: usize = 128 * 1024;
/// Shortest frame that can be RTP or RTCP.
const MIN_FRAME: usize = 8;
/// First bytes that tell the framing.
const DETECT: usize = 6;

/// How packets are framed on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 2-byte length.
    Rfc4571,
    /// `$`, channel, 2-byte length [RFC2326 10.12].
    Interleaved,
    /// A program stream without RTP.
    RawPs,
}

impl Mode {
    const fn header(self) -> usize {
        match self {
            Self::Rfc4571 => 2,
            Self::Interleaved => 4,
            Self::RawPs => 0,
        }
    }
}

/// What the stream held next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One RTP packet.
    Rtp(&'a [u8]),
    /// One RTCP packet.
    Rtcp(&'a [u8]),
    /// The next bytes of a bare program stream.
    RawPs(&'a [u8]),
}

/// Why the connection is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FramerError {
    /// The first bytes are neither RTP nor PS.
    #[error("stream begins with {0:#04x}, neither RTP over TCP nor PS: close the connection")]
    NotRtp(u8),
    /// No packet was found for too long.
    #[error("no RTP packet in {0} bytes: close the connection")]
    LostSync(usize),
}

/// What was met on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FramerCounters {
    /// Frames given out.
    pub frames: u64,
    /// Frames of length 0.
    pub empty: u64,
    /// Frames too short for RTP and RTCP.
    pub short: u64,
    /// Times the framing was lost and found again.
    pub resyncs: u64,
    /// Bytes skipped to find it.
    pub garbage_bytes: u64,
}

enum Kind {
    Rtp,
    Rtcp,
    RawPs,
}

/// The framer of one connection.
#[derive(Debug)]
pub struct Framer {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    mode: Option<Mode>,
    /// Payload type and SSRC of the last good packet: what to look for after garbage.
    known: Option<(u8, [u8; 4])>,
    /// Bytes skipped since framing was lost; `None` while it holds.
    searching: Option<usize>,
    failed: Option<FramerError>,
    counters: FramerCounters,
}

impl Default for Framer {
    fn default() -> Self {
        Self::new()
    }
}

impl Framer {
    /// A framer for a fresh connection.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            mode: None,
            known: None,
            searching: None,
            failed: None,
            counters: FramerCounters::default(),
        }
    }

    /// The framing, once the first bytes told.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// The counters now.
    #[must_use]
    pub fn counters(&self) -> FramerCounters {
        self.counters
    }

    /// Room to read into; never empty once [`Self::pull`] has returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.buffer.len() - self.end < BUFFER / 4 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that `count` bytes were read into [`Self::space`].
    pub fn commit(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Copies bytes in; returns how many fitted. Pull until `None` and push the rest.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let space = self.space();
        let count = bytes.len().min(space.len());
        space[..count].copy_from_slice(&bytes[..count]);
        self.commit(count);
        count
    }

    /// The next frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FramerError`], for good: the connection cannot be used.
    pub fn pull(&mut self) -> Result<Option<Frame<'_>>, FramerError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        match self.next() {
            Ok(Some((kind, range))) => {
                self.counters.frames += 1;
                let bytes = &self.buffer[range];
                Ok(Some(match kind {
                    Kind::Rtp => Frame::Rtp(bytes),
                    Kind::Rtcp => Frame::Rtcp(bytes),
                    Kind::RawPs => Frame::RawPs(bytes),
                }))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.failed = Some(error);
                Err(error)
            }
        }
    }

    fn next(&mut self) -> Result<Option<(Kind, Range<usize>)>, FramerError> {
        let mode = match self.mode {
            Some(mode) => mode,
            None => match detect(&self.buffer[self.start..self.end]) {
                Some(mode) => *self.mode.insert(mode),
                None => return Ok(None),
            },
        };
        let head = mode.header();
        loop {
            if mode == Mode::RawPs {
                let range = self.start..self.end;
                self.start = self.end;
                return Ok((!range.is_empty()).then_some((Kind::RawPs, range)));
            }
            if self.searching.is_some() && !self.search(head)? {
                return Ok(None);
            }
            let held = &self.buffer[self.start..self.end];
            if held.len() < head {
                return Ok(None);
            }
            let length = usize::from(u16::from_be_bytes([held[head - 2], held[head - 1]]));
            let framed = mode == Mode::Rfc4571 || held[0] == b'$';
            if framed && length < MIN_FRAME {
                if held.len() < head + length {
                    return Ok(None);
                }
                *(if length == 0 { &mut self.counters.empty } else { &mut self.counters.short }) += 1;
                self.start += head + length;
                continue;
            }
            let Some(&first) = held.get(head) else { return Ok(None) };
            if !framed || first >> 6 != 2 {
                if self.known.is_none() {
                    return Err(FramerError::NotRtp(first));
                }
                self.searching = Some(0);
                continue;
            }
            let Some(packet) = held.get(head..head + length) else {
                return Ok(None);
            };
            let kind = if is_rtcp(packet) {
                Kind::Rtcp
            } else {
                if let Some(&[_, pt, _, _, _, _, _, _, a, b, c, d]) = packet.first_chunk::<HEADER_LENGTH>() {
                    self.known = Some((pt & 0x7F, [a, b, c, d]));
                }
                Kind::Rtp
            };
            let range = self.start + head..self.start + head + length;
            self.start = range.end;
            return Ok(Some((kind, range)));
        }
    }

    /// Looks for the next packet of the known source; true when `start` is at one.
    fn search(&mut self, head: usize) -> Result<bool, FramerError> {
        let (Some((payload_type, ssrc)), Some(skipped)) = (self.known, self.searching) else {
            return Ok(true);
        };
        let held = &self.buffer[self.start..self.end];
        let window = head + HEADER_LENGTH;
        // the first byte was found wanting already, unless bytes were skipped up to here
        let from = usize::from(skipped == 0);
        let found = held.windows(window).skip(from).position(|w| {
            (head == 2 || w[0] == b'$')
                && usize::from(u16::from_be_bytes([w[head - 2], w[head - 1]])) >= HEADER_LENGTH
                && w[head] >> 6 == 2
                && w[head + 1] & 0x7F == payload_type
                && w[head + 8..] == ssrc
        });
        let passed = match found {
            Some(at) => at + from,
            None => held.len().saturating_sub(window - 1),
        };
        self.start += passed;
        self.counters.garbage_bytes += passed as u64;
        if found.is_some() {
            self.searching = None;
            self.counters.resyncs += 1;
            return Ok(true);
        }
        let skipped = skipped + passed;
        self.searching = Some(skipped);
        if skipped > MAX_GARBAGE { Err(FramerError::LostSync(skipped)) } else { Ok(false) }
    }
}

/// Tells the framing from the first bytes of a connection; `None` when there are too few.
fn detect(bytes: &[u8]) -> Option<Mode> {
    let &[b0, _, b2, b3, b4, _] = bytes.first_chunk::<DETECT>()?;
    let pack = bytes.starts_with(&[0, 0, 1, 0xBA]) && (b4 >> 6 == 1 || b4 >> 4 == 2);
    if pack || bytes.starts_with(b"IMKH") {
        return Some(Mode::RawPs);
    }
    // a length of 0x24xx followed by RTP's version would read as `$` too: there b2, not b4, has the version
    let length = usize::from(u16::from_be_bytes([b2, b3]));
    let interleaved = b0 == b'$' && b4 >> 6 == 2 && b2 >> 6 != 2 && length >= MIN_FRAME;
    Some(if interleaved { Mode::Interleaved } else { Mode::Rfc4571 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rtp::Header;
    use proptest::prelude::*;

    fn rtp(sequence: u16, payload: &[u8]) -> Vec<u8> {
        let header = Header { marker: false, payload_type: 96, sequence, timestamp: 5, ssrc: 0x0102_0304 };
        [&header.to_bytes()[..], payload].concat()
    }

    fn framed(packet: &[u8]) -> Vec<u8> {
        [&(packet.len() as u16).to_be_bytes()[..], packet].concat()
    }

    fn interleaved(channel: u8, packet: &[u8]) -> Vec<u8> {
        [&[b'$', channel][..], &framed(packet)].concat()
    }

    fn all(framer: &mut Framer, mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, FramerError> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            bytes = &bytes[framer.push(bytes)..];
            while let Some(frame) = framer.pull()? {
                match frame {
                    Frame::Rtp(p) | Frame::Rtcp(p) | Frame::RawPs(p) => out.push(p.to_vec()),
                }
            }
        }
        Ok(out)
    }

    #[test]
    fn lengths_zero_and_short_are_passed_over() {
        let stream = [&[0, 0][..], &[0, 1, 7], &framed(&rtp(1, b"a")), &[0, 0], &framed(&rtp(2, b"b"))].concat();
        let mut framer = Framer::new();
        assert_eq!(all(&mut framer, &stream).unwrap(), [rtp(1, b"a"), rtp(2, b"b")]);
        assert_eq!((framer.counters().empty, framer.counters().short), (2, 1));
    }

    #[test]
    fn rtcp_is_told_apart() {
        let mut framer = Framer::new();
        framer.push(&framed(&[0x80, 201, 0, 1, 0, 0, 0, 9]));
        assert!(matches!(framer.pull(), Ok(Some(Frame::Rtcp(p))) if p.len() == 8));
    }

    #[test]
    fn framings_are_recognised() {
        let mut framer = Framer::new();
        let stream = [interleaved(0, &rtp(1, b"abc")), interleaved(1, &[0x80, 200, 0, 1, 0, 0, 0, 9])].concat();
        assert_eq!(all(&mut framer, &stream).unwrap().len(), 2);
        assert_eq!(framer.mode(), Some(Mode::Interleaved));

        let long = rtp(1, &[7; 0x2410]);
        let mut framer = Framer::new();
        assert_eq!(all(&mut framer, &framed(&long)).unwrap(), [long], "a length that begins like a dollar sign");
        assert_eq!(framer.mode(), Some(Mode::Rfc4571));

        let ps = [0, 0, 1, 0xBA, 0x44, 0, 4, 0];
        let mut framer = Framer::new();
        assert_eq!(all(&mut framer, &ps).unwrap(), [ps]);
        assert_eq!(framer.mode(), Some(Mode::RawPs));

        let mut framer = Framer::new();
        let packet = rtp(1, &[7; 0x1BA - 12]);
        let stream = [&[0, 0][..], &framed(&packet)].concat();
        assert_eq!(
            all(&mut framer, &stream).unwrap(),
            [packet],
            "an empty frame and a length of 0x01BA are no pack header"
        );
    }

    #[test]
    fn garbage_is_skipped_once_the_source_is_known() {
        let stream = [&framed(&rtp(1, b"a"))[..], &[1, 2, 3, 4, 5, 9, 9, 9, 9], &framed(&rtp(2, b"bcd"))].concat();
        for cut in 0..stream.len() {
            let mut framer = Framer::new();
            let mut out = all(&mut framer, &stream[..cut]).unwrap();
            out.extend(all(&mut framer, &stream[cut..]).unwrap());
            assert_eq!(out, [rtp(1, b"a"), rtp(2, b"bcd")], "cut at {cut}");
            assert_eq!((framer.counters().resyncs, framer.counters().garbage_bytes), (1, 9));
        }
    }

    #[test]
    fn what_is_no_rtp_ends() {
        assert_eq!(all(&mut Framer::new(), b"GET / HTTP/1.1\r\n"), Err(FramerError::NotRtp(b'T')));
        let mut framer = Framer::new();
        all(&mut framer, &framed(&rtp(1, b"a"))).unwrap();
        let error = all(&mut framer, &[0x11; 3 * MAX_GARBAGE]).unwrap_err();
        assert!(matches!(error, FramerError::LostSync(_)));
        assert_eq!(framer.pull(), Err(error), "for good");
    }

    #[test]
    fn the_longest_frame_fits() {
        let packets = [rtp(1, &[7; 65_535 - 12]), rtp(2, b"b")];
        let stream: Vec<u8> = packets.iter().flat_map(|p| framed(p)).collect();
        assert_eq!(all(&mut Framer::new(), &stream).unwrap(), packets);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn splits_do_not_matter(sizes in proptest::collection::vec(0usize..90, 1..12),
            cuts in proptest::collection::vec(1usize..40, 1..30), dollar: bool)
        {
            let packets: Vec<_> = sizes.iter().enumerate().map(|(i, n)| rtp(i as u16, &vec![i as u8; *n])).collect();
            let stream: Vec<u8> =
                packets.iter().flat_map(|p| if dollar { interleaved(0, p) } else { framed(p) }).collect();
            let (mut framer, mut rest, mut out) = (Framer::new(), &stream[..], Vec::new());
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*cut));
                out.extend(all(&mut framer, now).unwrap());
                rest = later;
                if rest.is_empty() { break; }
            }
            prop_assert_eq!(out, packets);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), good: bool) {
            let mut framer = Framer::new();
            if good {
                all(&mut framer, &framed(&rtp(1, b"a"))).unwrap();
            }
            let _ = all(&mut framer, &bytes);
        }
    }
}
