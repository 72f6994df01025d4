//! Takes secrets out of a SIP message, in place.
//! Standard: [RFC3261 22.4], [RFC7616 3.4]: which parameters can be used to log in or to guess a password.
//! In: a message as it stood on the wire, also a malformed or cut one. Out: the same length, secrets as `*`.
//! Invariants: the length stays, so Content-Length and a capture's numbers stay true; where a value has no end, all to
//! the end of its header is taken out; user names, realms and algorithms stay, they are what one looks for.
//! Not here: what is kept, and for how long (`trace`).

/// Headers that carry credentials or challenges.
const HEADERS: [&str; 6] = [
    "Authorization",
    "Proxy-Authorization",
    "WWW-Authenticate",
    "Proxy-Authenticate",
    "Authentication-Info",
    "Proxy-Authentication-Info",
];
/// Their parameters that are taken out.
const PARAMETERS: [&str; 7] = ["response", "nonce", "cnonce", "nextnonce", "rspauth", "opaque", "cryptkey"];
/// Schemes whose whole credential is a secret.
const SCHEMES: [&str; 2] = ["Basic", "Bearer"];
const PASSWORD: &[u8] = b"password";
const MASK: u8 = b'*';

/// See the file's head.
pub(super) fn redact(message: &mut [u8]) {
    credentials(message);
    passwords(message);
}

fn credentials(message: &mut [u8]) {
    let mut at = 0;
    let mut begun = false;
    while at < message.len() {
        let mut end = line_end(message, at);
        if message[at..end].trim_ascii().is_empty() {
            if begun {
                return;
            }
            at = end;
            continue;
        }
        begun = true;
        // Continuation lines belong to their header.
        while message.get(end).is_some_and(|b| matches!(b, b' ' | b'\t')) && !blank(&message[end..]) {
            end = line_end(message, end);
        }
        let line = &mut message[at..end];
        if let Some(colon) = memchr::memchr(b':', line) {
            let (name, value) = line.split_at_mut(colon);
            let name = name.trim_ascii();
            if HEADERS.iter().any(|h| name.eq_ignore_ascii_case(h.as_bytes())) {
                parameters(&mut value[1..]);
            }
        }
        at = end;
    }
}

fn line_end(message: &[u8], from: usize) -> usize {
    memchr::memchr(b'\n', &message[from..]).map_or(message.len(), |i| from + i + 1)
}

fn blank(rest: &[u8]) -> bool {
    rest[..line_end(rest, 0)].trim_ascii().is_empty()
}

fn parameters(value: &mut [u8]) {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&b);
    let skip = |value: &[u8], mut at: usize, what: &dyn Fn(u8) -> bool| {
        while value.get(at).is_some_and(|b| what(*b)) {
            at += 1;
        }
        at
    };
    let mut at = 0;
    while at < value.len() {
        let name_at = skip(value, at, &|b| !is_token(b));
        let name_end = skip(value, name_at, &is_token);
        let is = |words: &[&str]| words.iter().any(|w| value[name_at..name_end].eq_ignore_ascii_case(w.as_bytes()));
        let (secret, all) = (is(&PARAMETERS), is(&SCHEMES));
        at = skip(value, name_end, &|b| b.is_ascii_whitespace());
        if value.get(at) != Some(&b'=') {
            if all {
                return fill(&mut value[at..]);
            }
            continue;
        }
        let start = skip(value, at + 1, &|b| b.is_ascii_whitespace());
        let (start, end) = if value.get(start) == Some(&b'"') { quoted(value, start + 1) } else { bare(value, start) };
        if secret {
            fill(&mut value[start..end]);
        }
        at = end + 1;
    }
}

/// To the closing quote, or to the end.
fn quoted(value: &[u8], start: usize) -> (usize, usize) {
    let mut end = start;
    while let Some(b) = value.get(end) {
        match b {
            b'"' => break,
            b'\\' => end += 2,
            _ => end += 1,
        }
    }
    (start, end.min(value.len()))
}

fn bare(value: &[u8], start: usize) -> (usize, usize) {
    let len = value[start..].iter().position(|b| b.is_ascii_whitespace() || matches!(b, b',' | b';'));
    (start, len.map_or(value.len(), |len| start + len))
}

/// `password=…`, `"password": "…"`, `<Password>…<` anywhere in the message, in any case.
fn passwords(message: &mut [u8]) {
    let mut at = 0;
    while let Some(found) = memchr::memchr2(b'p', b'P', &message[at..]) {
        at += found;
        let end = at + PASSWORD.len();
        if !message.get(at..end).is_some_and(|word| word.eq_ignore_ascii_case(PASSWORD)) {
            at += 1;
            continue;
        }
        at = end;
        let rest = &message[end..];
        let before = rest.iter().position(|b| !matches!(b, b' ' | b'\t' | b'"' | b'\'')).unwrap_or(rest.len());
        let ends: &[u8] = match rest.get(before) {
            Some(b'>') => b"<",
            Some(b'=' | b':') => b" \t\r\n&;,\"'<>",
            _ => continue,
        };
        let opening: &[u8] = if ends.len() == 1 { b"" } else { b" \t\"'" };
        let rest = &mut message[end + before + 1..];
        let from = rest.iter().position(|b| !opening.contains(b)).unwrap_or(rest.len());
        let len = rest[from..].iter().position(|b| ends.contains(b)).unwrap_or(rest.len() - from);
        fill(&mut rest[from..from + len]);
        at = end + before + 1 + from + len;
    }
}

/// White space stays, so that lines stay lines.
fn fill(value: &mut [u8]) {
    value.iter_mut().filter(|b| !b.is_ascii_whitespace()).for_each(|b| *b = MASK);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redacted(text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        redact(&mut bytes);
        assert_eq!(bytes.len(), text.len());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn digest_credentials_lose_what_lets_one_guess() {
        let got = redacted(
            "REGISTER sip:a SIP/2.0\r\nauthorization : Digest username=\"u,1\", realm=\"4113\", nonce=\"abc\",\r\n \
             uri=\"sip:nonce=\", RESPONSE = \"0123\",algorithm=MD5, cnonce=xyz, nc=00000001\r\nX: nonce=keep\r\n\r\nbody",
        );
        assert_eq!(
            got,
            "REGISTER sip:a SIP/2.0\r\nauthorization : Digest username=\"u,1\", realm=\"4113\", nonce=\"***\",\r\n \
             uri=\"sip:nonce=\", RESPONSE = \"****\",algorithm=MD5, cnonce=***, nc=00000001\r\nX: nonce=keep\r\n\r\nbody"
        );
    }

    #[test]
    fn challenges_and_whole_credentials() {
        assert_eq!(
            redacted("\r\nSIP/2.0 401 U\r\nWWW-Authenticate: Digest realm=\"r\",nonce=\"ab\\\"c\",opaque=\"\"\r\n"),
            "\r\nSIP/2.0 401 U\r\nWWW-Authenticate: Digest realm=\"r\",nonce=\"*****\",opaque=\"\"\r\n"
        );
        assert_eq!(redacted("A b\nProxy-Authorization: Basic QWxh\n\n"), "A b\nProxy-Authorization: Basic ****\n\n");
        assert_eq!(
            redacted("A b\nAuthentication-Info: nextnonce=\"n\"\n"),
            "A b\nAuthentication-Info: nextnonce=\"*\"\n"
        );
        assert_eq!(
            redacted("A b\nAuthorization: Digest nonce=\"open, a=1\r\nCSeq: 1 A\r\n"),
            "A b\nAuthorization: Digest nonce=\"***** ***\r\nCSeq: 1 A\r\n",
            "an unclosed quote ends with its header"
        );
    }

    #[test]
    fn passwords_go_wherever_they_stand() {
        assert_eq!(redacted("A sip:x;password=abc;y SIP/2.0\r\n\r\n"), "A sip:x;password=***;y SIP/2.0\r\n\r\n");
        assert_eq!(
            redacted("A b\r\n\r\n<a><Password>geheim 1</Password>\r\n<PassWord></PassWord></a>"),
            "A b\r\n\r\n<a><Password>****** *</Password>\r\n<PassWord></PassWord></a>"
        );
        assert_eq!(redacted("A b\r\n\r\n{\"password\": \"p\", \"x\":1}"), "A b\r\n\r\n{\"password\": \"*\", \"x\":1}");
        assert_eq!(redacted("A b\r\n\r\npassword"), "A b\r\n\r\npassword");
        assert_eq!(redacted("A b\r\n\r\npassword="), "A b\r\n\r\npassword=");
    }

    proptest! {
        #[test]
        fn any_bytes_keep_their_length(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut got = bytes.clone();
            redact(&mut got);
            prop_assert_eq!(got.len(), bytes.len());
        }

        #[test]
        fn a_response_never_survives(
            before in "[ -~]{0,30}", name in "(Authorization|PROXY-AUTHORIZATION)", blanks in "[ \t]{0,2}", cut in 0usize..400
        ) {
            let secret = "0123456789abcdef0123456789abcdef";
            let text = format!(
                "REGISTER sip:a SIP/2.0\r\nX: {before}\r\n{name}{blanks}: Digest username=\"u\", response{blanks}=\"{secret}\"\r\n\r\n"
            );
            let mut bytes = text.as_bytes()[..text.len().saturating_sub(cut)].to_vec();
            redact(&mut bytes);
            prop_assert!(!String::from_utf8_lossy(&bytes).contains(&secret[..4]));
        }
    }
}
