//! Cuts a TCP or TLS byte stream into SIP messages and keepalives.
//! Standard: [RFC3261 18.3], [RFC3261 20.14], [RFC5626 3.5.1].
//! In: bytes as they come. Out: `Frame`s in order. One framer a connection; pull until `None` after each push.
//! Invariants: the frames do not depend on where the stream was cut; no byte of a head is scanned twice; at most one
//! head, one body (the limits) and one push are held; after an error nothing more comes: the next start is unknown.
//! Deviations: NULs, blanks and lone line feeds between messages are dropped: devices send them as keepalives.
//! Not here: the time limit for half a message and closing the connection (the transport), reading the head (`parse`).

use super::normalize::{HeadScan, is_token_byte, normalize};
use super::parse::{MAX_BODY, MAX_HEAD, Malformed, ParseError, content_length, oversized_head, refuse};
use bytes::{Buf, Bytes, BytesMut};

/// Why a stream cannot be cut further. `answer` is the last thing to send; then close the connection.
pub type FrameError = ParseError;

/// How much one message may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest head, blank line included.
    pub head: usize,
    /// Longest body.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { head: MAX_HEAD, body: MAX_BODY }
    }
}

/// One piece of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// CRLF CRLF: the peer wants a CRLF back. [RFC5626 3.5.1]
    Ping,
    /// One CRLF. It is told only when the byte behind it shows that it is no ping, which is too late for a sign of
    /// life; any byte received is one.
    Pong,
    /// A message: its head with the blank line, and exactly its body.
    Message {
        /// Start line, fields, blank line.
        head: Bytes,
        /// The body.
        body: Bytes,
    },
}

/// The cutter of one connection.
#[derive(Debug)]
pub struct Framer {
    limits: Limits,
    buffer: BytesMut,
    scan: HeadScan,
    /// Length of the head in front of the buffer and of its body, once the head is whole.
    waiting: Option<(usize, usize)>,
    broken: Option<Malformed>,
}

impl Framer {
    /// A framer at the start of a connection.
    pub fn new(limits: Limits) -> Framer {
        Framer { limits, buffer: BytesMut::new(), scan: HeadScan::default(), waiting: None, broken: None }
    }

    /// Other limits from the next message on: a stranger has become a known peer.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// True between messages: nothing half received. The transport's limit for slow senders runs when it is false.
    pub fn is_idle(&self) -> bool {
        // Of what is not part of a message only the beginning of a keepalive is kept.
        self.buffer.first().is_none_or(|byte| matches!(byte, b'\r' | b'\n'))
    }

    /// The next frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// The stream is not SIP, or a head, body or Content-Length is out of bounds. Each later call gives the same
    /// reason without an answer.
    pub fn pull(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(reason) = self.broken {
            return Err(ParseError::silent(reason));
        }
        self.next().inspect_err(|error| {
            self.broken = Some(error.reason);
            self.buffer = BytesMut::new();
        })
    }

    fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let (head, body) = match self.waiting {
            Some(lengths) => lengths,
            None => match self.between_messages()? {
                Between::Frame(frame) => return Ok(Some(frame)),
                Between::NeedMore => return Ok(None),
                Between::Start => match self.head()? {
                    Some(lengths) => *self.waiting.insert(lengths),
                    None => return Ok(None),
                },
            },
        };
        if self.buffer.len() < head + body {
            return Ok(None);
        }
        self.waiting = None;
        self.scan = HeadScan::default();
        let head = self.buffer.split_to(head).freeze();
        let body = self.buffer.split_to(body).freeze();
        Ok(Some(Frame::Message { head, body }))
    }

    fn between_messages(&mut self) -> Result<Between, FrameError> {
        loop {
            match *self.buffer {
                [] => return Ok(Between::NeedMore),
                [b'\r', b'\n', b'\r', b'\n', ..] => {
                    self.buffer.advance(4);
                    return Ok(Between::Frame(Frame::Ping));
                }
                [b'\r'] | [b'\r', b'\n'] | [b'\r', b'\n', b'\r'] => return Ok(Between::NeedMore),
                [b'\r', b'\n', ..] => {
                    self.buffer.advance(2);
                    return Ok(Between::Frame(Frame::Pong));
                }
                [b'\r' | b'\n' | b' ' | b'\t' | 0, ..] => self.buffer.advance(1),
                [first, ..] if is_token_byte(first) => return Ok(Between::Start),
                // RTP, TLS and the like on the wrong port.
                _ => return Err(ParseError::silent(Malformed::NotSip)),
            }
        }
    }

    fn head(&mut self) -> Result<Option<(usize, usize)>, FrameError> {
        let window = &self.buffer[..self.buffer.len().min(self.limits.head)];
        let Some(end) = self.scan.end(window) else {
            return match self.buffer.len() > self.limits.head {
                true => Err(oversized_head(window)),
                false => Ok(None),
            };
        };
        let head = normalize(&self.buffer[..end]);
        match content_length(&head, self.limits.body) {
            Ok(length) => Ok(Some((end, length.unwrap_or(0)))),
            Err(reason) => Err(refuse(&head, reason)),
        }
    }
}

enum Between {
    Start,
    NeedMore,
    Frame(Frame),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MESSAGE: &[u8] =
        b"MESSAGE sip:a@h SIP/2.0\r\nVia: SIP/2.0/TCP h;branch=z9hG4bK1\r\nFrom: <sip:b@h>;tag=1\r\n\
        To: <sip:a@h>\r\nCall-ID: x\r\nCSeq: 1 MESSAGE\r\nl\r\n :  5\r\n\r\n\xb1\xb1\r\n\r";

    fn message(length: &str, body: &[u8]) -> Vec<u8> {
        let head = format!("INFO sip:a@h SIP/2.0\r\nVia: SIP/2.0/TCP h\r\nCSeq: 1 INFO\r\n{length}\r\n");
        [head.as_bytes(), body].concat()
    }

    fn drain(framer: &mut Framer, out: &mut Vec<Result<Frame, Malformed>>) {
        loop {
            match framer.pull() {
                Ok(Some(frame)) => out.push(Ok(frame)),
                Ok(None) => return,
                Err(error) => {
                    // Only the first of a broken stream counts.
                    if !matches!(out.last(), Some(Err(_))) {
                        out.push(Err(error.reason));
                    }
                    return;
                }
            }
        }
    }

    fn frames<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Result<Frame, Malformed>> {
        let mut framer = Framer::new(Limits { head: 512, body: 64 });
        let mut out = Vec::new();
        for piece in pieces {
            framer.push(piece);
            drain(&mut framer, &mut out);
        }
        out
    }

    fn bodies(bytes: &[u8]) -> Vec<Result<Vec<u8>, Malformed>> {
        let only_messages = |frame| match frame {
            Ok(Frame::Message { body, .. }) => Some(Ok(body.to_vec())),
            Ok(_) => None,
            Err(reason) => Some(Err(reason)),
        };
        frames([bytes]).into_iter().filter_map(only_messages).collect()
    }

    #[test]
    fn messages_in_one_segment_come_apart_and_half_a_message_waits() {
        let mut bytes = message("Content-Length: 3\r\n", b"abc");
        bytes.extend(message("l:0\r\n", b""));
        bytes.extend(message("", b""));
        bytes.extend(message("CONTENT-LENGTH  :  \r\n  0004\r\n", b"\r\n\r\n"));
        bytes.extend(message("Content-Length: 9\r\n", b"half"));
        assert_eq!(bodies(&bytes), [Ok(b"abc".to_vec()), Ok(vec![]), Ok(vec![]), Ok(b"\r\n\r\n".to_vec())]);
    }

    #[test]
    fn keepalives_of_every_kind_stand_between_messages() {
        let mut bytes = b"\r\n\r\n\r\n\0\0\0\0 \n".to_vec();
        bytes.extend(message("Content-Length: 0\r\n", b""));
        let got = frames([&bytes[..]]);
        assert_eq!(&got[..2], [Ok(Frame::Ping), Ok(Frame::Pong)]);
        assert!(matches!(got[2], Ok(Frame::Message { .. })));
        assert_eq!(got.len(), 3);
    }

    #[test]
    fn other_protocols_end_the_stream() {
        let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00";
        let rtp = b"\x80\x60\x00\x01\x00\x00\x00\x00";
        for bytes in [&tls_hello[..], rtp, b"\x05\x78\x80\x60", b"\xff"] {
            assert_eq!(frames([bytes]), [Err(Malformed::NotSip)]);
        }
    }

    #[test]
    fn lengths_that_cannot_be_trusted_end_the_stream() {
        for length in ["-999", "+5", "1e3", "0x10", "5,5", "", "4294967296", "18446744073709551616", "5 5"] {
            let bytes = message(&format!("Content-Length: {length}\r\n"), b"abcde");
            assert_eq!(bodies(&bytes), [Err(Malformed::ContentLength)], "{length}");
        }
        let twice = message("Content-Length: 5\r\nl: 5\r\n", b"abcde");
        assert_eq!(bodies(&twice), [Err(Malformed::ContentLength)]);
        assert_eq!(bodies(&message("l: 65\r\n", b"")), [Err(Malformed::BodyTooLarge)]);
    }

    #[test]
    fn the_last_answer_comes_once_and_later_bytes_are_not_kept() {
        let mut framer = Framer::new(Limits::default());
        framer.push(&message("Content-Length: -1\r\n", b""));
        let error = framer.pull().unwrap_err();
        assert_eq!((error.reason, error.answer.unwrap().status), (Malformed::ContentLength, 400));
        framer.push(&message("l: 0\r\n", b""));
        assert_eq!(framer.pull(), Err(ParseError::silent(Malformed::ContentLength)));
        assert!(framer.is_idle());
    }

    #[test]
    fn half_a_keepalive_is_not_half_a_message() {
        let mut framer = Framer::new(Limits::default());
        framer.push(b"\r\n");
        assert_eq!(framer.pull(), Ok(None));
        assert!(framer.is_idle());
        framer.push(b"MESS");
        assert_eq!(framer.pull(), Ok(Some(Frame::Pong)));
        assert!(!framer.is_idle());
    }

    #[test]
    fn a_head_over_the_limit_is_answered_513() {
        let mut framer = Framer::new(Limits::default());
        framer.push(&message(&format!("Subject: {}\r\n", "A".repeat(MAX_HEAD)), b""));
        let error = framer.pull().unwrap_err();
        assert_eq!((error.reason, error.answer.unwrap().status), (Malformed::HeadTooLarge, 513));
        let mut framer = Framer::new(Limits::default());
        framer.push(&vec![b'A'; MAX_HEAD + 1]);
        assert_eq!(framer.pull(), Err(ParseError::silent(Malformed::HeadTooLarge)));
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => Just(MESSAGE.to_vec()),
            2 => Just(message("Content-Length: 0\r\n", b"")),
            2 => "[\r\n\0 ]{0,6}".prop_map(String::into_bytes),
            1 => Just(message(&format!("Subject: {}\r\n", "A".repeat(600)), b"")),
            1 => Just(message("l: 99\r\n", b"")),
            1 => Just(b"\x80\x60junk".to_vec()),
            1 => Just(b"\nX\r\rY\n\n".to_vec()),
        ];
        proptest::collection::vec(piece, 1..5).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn frames_do_not_depend_on_where_the_stream_is_cut(bytes in stream(), size in 1usize..40) {
            let whole = frames([&bytes[..]]);
            prop_assert_eq!(&frames(bytes.chunks(size)), &whole);
            for at in 0..=bytes.len() {
                let (left, right) = bytes.split_at(at);
                prop_assert_eq!(&frames([left, right]), &whole, "cut at {}", at);
            }
        }
    }
}
