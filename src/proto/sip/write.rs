//! Messages to bytes.
//! Standard: [RFC3261 7], [RFC3261 20.14].
//! In: `Request`, `Response`, `Message`. Out: the bytes of one datagram or of one piece of a stream.
//! Invariants: the body goes out as it is, whatever its charset; Content-Length is made here, is always there and is
//! the last field; no value can end its line early (CR and LF become spaces), so no field can be smuggled in.
//! Not here: Via, Max-Forwards and tags (`endpoint`), reason phrases (`status`).

use super::message::{Headers, Message, Request, Response};
use bytes::{BufMut, Bytes, BytesMut};

/// Room for a usual head, so that most messages are written without growing the buffer.
const USUAL_HEAD: usize = 768;

impl Request {
    /// The request as it goes on the wire. [RFC3261 7.1]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(USUAL_HEAD + self.body.len());
        line_part(&mut out, &self.method);
        out.put_u8(b' ');
        line_part(&mut out, &self.uri);
        out.put_slice(b" SIP/2.0\r\n");
        fields_and_body(out, &self.headers, &self.body)
    }
}

impl Response {
    /// The response as it goes on the wire. [RFC3261 7.2]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(USUAL_HEAD + self.body.len());
        line_part(&mut out, &format!("SIP/2.0 {} {}", self.status, self.reason));
        out.put_slice(b"\r\n");
        fields_and_body(out, &self.headers, &self.body)
    }
}

impl Message {
    /// The message as it goes on the wire. [RFC3261 7]
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Message::Request(request) => request.to_bytes(),
            Message::Response(response) => response.to_bytes(),
        }
    }
}

fn fields_and_body(mut out: BytesMut, headers: &Headers, body: &Bytes) -> Bytes {
    for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("Content-Length")) {
        line_part(&mut out, name);
        out.put_slice(b": ");
        line_part(&mut out, value);
        out.put_slice(b"\r\n");
    }
    out.put_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
    out.put_slice(body);
    out.freeze()
}

/// Text inside one line.
fn line_part(out: &mut BytesMut, text: &str) {
    if memchr::memchr2(b'\r', b'\n', text.as_bytes()).is_none() {
        out.put_slice(text.as_bytes());
    } else {
        out.extend(text.bytes().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { b }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: Headers, body: &'static [u8]) -> Request {
        Request {
            method: "MESSAGE".into(),
            uri: "sip:34020000001320000001@192.0.2.1:5060".into(),
            headers,
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn body_bytes_go_out_untouched_behind_a_content_length_that_comes_last() {
        let mut headers = Headers::new();
        headers.push("Content-Length", "7");
        headers.push("Call-ID", "a@b");
        let bytes = request(headers, b"\xb1\xb1\xbe\xa9\x00").to_bytes();
        assert_eq!(
            &bytes[..],
            b"MESSAGE sip:34020000001320000001@192.0.2.1:5060 SIP/2.0\r\nCall-ID: a@b\r\nContent-Length: 5\r\n\r\n\
              \xb1\xb1\xbe\xa9\x00"
        );
    }

    #[test]
    fn reason_phrases_are_written_as_given_even_when_empty() {
        let mut response =
            Response { status: 404, reason: "Not Found".into(), headers: Headers::new(), body: Bytes::new() };
        assert!(response.to_bytes().starts_with(b"SIP/2.0 404 Not Found\r\n"));
        response.reason.clear();
        assert!(response.to_bytes().starts_with(b"SIP/2.0 404 \r\nContent-Length: 0\r\n\r\n"));
    }

    #[test]
    fn a_value_cannot_start_a_line_of_its_own() {
        let mut headers = Headers::new();
        headers.push("Subject", "x\r\nEvil: 1\r\n\r\nbody");
        let text = String::from_utf8(request(headers, b"").to_bytes().to_vec()).unwrap();
        assert!(text.contains("Subject: x  Evil: 1    body\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(text.matches("\r\n\r\n").count(), 1);
    }
}
