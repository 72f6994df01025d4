//! The head of a received message, brought into the one form that rsip and the readers of `header` take.
//! Standard: [RFC3261 7.3.1], [RFC3261 25.1], [RFC3261 7.3.3] (compact forms).
//! In: the raw bytes of a head. Out: `Head`: start line and fields as UTF-8 text.
//! What it undoes: bare LF line ends, folding, compact names, space before the colon, spaces round `;` `=` `/` `,`
//! where they mean nothing, Via and Route lists (one value a field), bytes that are not UTF-8 (GB18030, line by line).
//! Invariants: never fails and never panics; what it cannot read is left in `fault`, and the fields it could read are
//! still there, so that the sender can be answered. Order and number of fields are kept but for the split lists.
//! Not here: what the start line and the values mean (`parse`, `header`).

use super::parse::{MAX_FIELDS, MAX_VIAS, Malformed};
use std::borrow::Cow;

/// A head in normal form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The first line without its line end and without trailing spaces.
    pub start: String,
    /// Fields in order: full name in the sender's case, value without outer spaces.
    pub fields: Vec<(String, String)>,
    /// The first thing wrong with the lines themselves.
    pub fault: Option<Malformed>,
}

impl Head {
    /// First value of `name`, ignoring case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// All values of `name`, ignoring case.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.fields.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The head as text with CRLF line ends, its blank line, and `start` as its first line.
    pub fn to_text(&self, start: &str) -> String {
        let room = start.len() + 4 + self.fields.iter().map(|(n, v)| n.len() + v.len() + 4).sum::<usize>();
        let mut text = String::with_capacity(room);
        text.push_str(start);
        text.push_str("\r\n");
        for (name, value) in &self.fields {
            text.push_str(name);
            text.push_str(": ");
            text.push_str(value);
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        text
    }

    fn blame(&mut self, fault: Malformed) {
        self.fault.get_or_insert(fault);
    }

    fn take(&mut self, line: &str) {
        let Some((name, value)) = line.split_once(':') else {
            return self.blame(Malformed::HeaderLine);
        };
        let name = name.trim_end_matches([' ', '\t']);
        if !is_token(name) {
            return self.blame(Malformed::HeaderLine);
        }
        let name = full_name(name);
        let value = value.trim_matches([' ', '\t']);
        if has_stray_control(value) {
            self.blame(Malformed::Control);
        }
        match shape(name) {
            Shape::Plain => self.push(name, value.to_owned()),
            Shape::Words => self.push(name, value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")),
            Shape::Params => self.push(name, tidy(value, &[';', '='])),
            Shape::RouteList => self.push_each(name, tidy(value, &[';', '=', ','])),
            Shape::ViaList => self.push_each(name, tidy(value, &[';', '=', ',', '/', ':'])),
        }
    }

    /// A list as one field a value; a list with an empty value in it stays whole, for its reader to refuse.
    fn push_each(&mut self, name: &str, value: String) {
        let parts = split_outside(&value, ',');
        if parts.len() == 1 || parts.iter().any(|part| part.is_empty()) {
            return self.push(name, value);
        }
        for part in parts {
            self.push(name, part.to_owned());
        }
    }

    fn push(&mut self, name: &str, value: String) {
        if self.fields.len() == MAX_FIELDS {
            return self.blame(Malformed::TooManyFields);
        }
        if name.eq_ignore_ascii_case("Via") && self.all("Via").count() == MAX_VIAS {
            return self.blame(Malformed::TooManyVias);
        }
        self.fields.push((name.to_owned(), value));
    }
}

/// Reads a head: everything before the blank line, which may be there or not. [RFC3261 7.3.1]
pub fn normalize(head: &[u8]) -> Head {
    let mut out = Head::default();
    let mut lines = head
        .split(|b| *b == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .skip_while(|line| line.is_empty())
        .take_while(|line| !line.is_empty());
    let start = text_of(lines.next().unwrap_or_default());
    out.start = start.trim_end_matches([' ', '\t']).to_owned();
    if out.start.chars().any(|c| c.is_control()) {
        out.blame(Malformed::Control);
    }
    let mut logical: Option<String> = None;
    for line in lines {
        let text = text_of(line);
        if text.starts_with([' ', '\t']) {
            match &mut logical {
                Some(whole) => {
                    whole.push(' ');
                    whole.push_str(text.trim_matches([' ', '\t']));
                }
                None => out.blame(Malformed::HeaderLine),
            }
        } else if let Some(whole) = logical.replace(text.into_owned()) {
            out.take(&whole);
        }
        // Fields over the cap are not looked at: their number alone must not cost time.
        if matches!(out.fault, Some(Malformed::TooManyFields | Malformed::TooManyVias)) {
            return out;
        }
    }
    if let Some(whole) = logical {
        out.take(&whole);
    }
    out
}

/// Finds the blank line of a head, over any number of calls with a growing buffer, looking at each byte once.
#[derive(Debug, Clone, Default)]
pub struct HeadScan {
    line: usize,
    seen: usize,
}

impl HeadScan {
    /// The offset just behind the blank line, when `bytes` holds it. `bytes` starts with the start line and must be
    /// what earlier calls saw, or longer. CRLF and bare LF both end a line.
    pub fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(offset) = memchr::memchr(b'\n', bytes.get(self.seen..)?) {
            let end = self.seen + offset;
            let line = &bytes[self.line..end];
            self.seen = end + 1;
            self.line = end + 1;
            if line.is_empty() || line == b"\r" {
                return Some(end + 1);
            }
        }
        self.seen = bytes.len();
        None
    }
}

/// True for `token` of the grammar. [RFC3261 25.1]
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// True for a byte of `token`. [RFC3261 25.1]
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&byte)
}

/// Splits at `separator` where it stands outside quotes and angle brackets; the parts are trimmed.
pub fn split_outside(value: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut from = 0;
    let mut place = Place::default();
    for (at, c) in value.char_indices() {
        if place.step(c) && c == separator {
            parts.push(value[from..at].trim());
            from = at + c.len_utf8();
        }
    }
    parts.push(value[from..].trim());
    parts
}

/// Whether a walk over a value stands inside a quoted string or angle brackets.
#[derive(Default)]
pub(super) struct Place {
    quoted: bool,
    escaped: bool,
    angle: bool,
}

impl Place {
    /// Takes the next character; true when it stands outside quotes and brackets (the delimiters themselves do not).
    pub(super) fn step(&mut self, c: char) -> bool {
        if self.quoted {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.quoted = false,
                _ => {}
            }
            return false;
        }
        match c {
            '"' if !self.angle => self.quoted = true,
            '<' if !self.angle => self.angle = true,
            '>' if self.angle => self.angle = false,
            _ => return !self.angle,
        }
        false
    }

    /// True when a quoted string was left open.
    pub(super) fn in_quotes(&self) -> bool {
        self.quoted
    }
}

enum Shape {
    Plain,
    Words,
    Params,
    RouteList,
    ViaList,
}

fn shape(name: &str) -> Shape {
    const PARAMS: &[&str] = &[
        "From",
        "To",
        "Contact",
        "Content-Type",
        "Event",
        "Subscription-State",
        "Refer-To",
        "Referred-By",
        "Reply-To",
    ];
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    if is("Via") {
        Shape::ViaList
    } else if is("CSeq") {
        Shape::Words
    } else if is("Route") || is("Record-Route") {
        Shape::RouteList
    } else if PARAMS.iter().any(|p| is(p)) {
        Shape::Params
    } else {
        Shape::Plain
    }
}

/// The long form of a compact name. [RFC3261 7.3.3], [RFC6665 8.2.1], [RFC3515 2.1], [RFC3892 2.1], [RFC4028 4]
fn full_name(name: &str) -> &str {
    let &[letter] = name.as_bytes() else { return name };
    match letter.to_ascii_lowercase() {
        b'b' => "Referred-By",
        b'c' => "Content-Type",
        b'e' => "Content-Encoding",
        b'f' => "From",
        b'i' => "Call-ID",
        b'k' => "Supported",
        b'l' => "Content-Length",
        b'm' => "Contact",
        b'o' => "Event",
        b'r' => "Refer-To",
        b's' => "Subject",
        b't' => "To",
        b'u' => "Allow-Events",
        b'v' => "Via",
        b'x' => "Session-Expires",
        _ => name,
    }
}

/// One line as text. The GB 2312 and GBK bytes some devices put into Subject or display names are a subset of GB18030,
/// and no byte of its multi-byte forms is a line end, a quote, a colon or an angle bracket.
fn text_of(line: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(line) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => encoding_rs::GB18030.decode_without_bom_handling(line).0,
    }
}

/// True when a control character stands where no quoted-pair covers it; CR is never covered. [RFC3261 25.1]
fn has_stray_control(value: &str) -> bool {
    let is_control = |c: char| c != '\t' && c.is_ascii_control();
    if !value.contains(is_control) {
        return false;
    }
    let mut place = Place::default();
    value.chars().any(|c| {
        let covered = place.escaped && c != '\r';
        place.step(c);
        is_control(c) && !covered
    })
}

/// Drops white space round `separators` and makes other runs of it one space, outside quotes and angle brackets.
fn tidy(value: &str, separators: &[char]) -> String {
    let mut out = String::with_capacity(value.len());
    let mut place = Place::default();
    let mut space = false;
    let mut after_separator = true;
    for c in value.chars() {
        let outside = place.step(c);
        if outside && (c == ' ' || c == '\t') {
            space = true;
            continue;
        }
        let separator = outside && separators.contains(&c);
        if space && !separator && !after_separator {
            out.push(' ');
        }
        space = false;
        after_separator = separator;
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(head: &str) -> Vec<(String, String)> {
        let out = normalize(head.as_bytes());
        assert_eq!(out.fault, None, "{head:?}");
        out.fields
    }

    fn value(line: &str) -> String {
        fields(&format!("A b SIP/2.0\r\n{line}\r\n\r\n")).remove(0).1
    }

    #[test]
    fn folding_compact_names_and_line_ends_are_undone() {
        let got = fields(
            "X y SIP/2.0  \nv : SIP/2.0/UDP h\r\nS:one\n two\r\n\t three  \ncseq: 0009\r\n  INVITE\r\n\r\nbody: no",
        );
        let want = [("Via", "SIP/2.0/UDP h"), ("Subject", "one two three"), ("cseq", "0009 INVITE")];
        assert_eq!(got, want.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert_eq!(normalize(b"\r\n\r\nX y SIP/2.0 \t\r\n\r\n").start, "X y SIP/2.0");
    }

    #[test]
    fn spaces_that_mean_nothing_go_and_those_in_quotes_and_brackets_stay() {
        assert_eq!(
            value("Via: SIP  /   2.0   / UDP   192.0.2.2 : 5060 ;rport ; branch =  z9hG4bKx"),
            "SIP/2.0/UDP 192.0.2.2:5060;rport;branch=z9hG4bKx"
        );
        assert_eq!(value("From: \"a ; = b\"   <sip:1@h> ; tag = 9"), "\"a ; = b\" <sip:1@h>;tag=9");
        assert_eq!(value("To: x < sip:a @b ; c >;tag=1"), "x < sip:a @b ; c >;tag=1");
        assert_eq!(value("To: \"open ;  x"), "\"open ;  x");
        assert_eq!(value("Subject: a ;  b"), "a ;  b");
    }

    #[test]
    fn via_lists_become_one_field_a_value() {
        let got = fields(
            "A b SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=1 , SIP / 2.0/TCP b\r\nRoute: <sip:p;lr>,<sip:q,r>\r\n\r\n",
        );
        let values: Vec<&str> = got.iter().map(|(_, v)| v.as_str()).collect();
        assert_eq!(values, ["SIP/2.0/UDP a;branch=1", "SIP/2.0/TCP b", "<sip:p;lr>", "<sip:q,r>"]);
        assert_eq!(value("Via: SIP/2.0/UDP a;;,;,,"), "SIP/2.0/UDP a;;,;,,");
    }

    #[test]
    fn lines_that_are_not_utf8_are_read_as_gb18030_and_the_others_as_they_are() {
        let got = normalize(
            b"A b SIP/2.0\r\nSubject: \xb1\xb1\xbe\xa9\r\n\
              Organization: \xe5\x8c\x97\r\n\x20\xb1\xb1\r\nNote: \xb1\r\n\r\n",
        );
        assert_eq!(got.field("subject"), Some("北京"));
        assert_eq!(got.field("organization"), Some("北 北"));
        assert_eq!(got.field("note"), Some("\u{fffd}"));
    }

    #[test]
    fn faults_are_named_and_the_rest_is_still_read() {
        for (head, fault) in [
            ("A b SIP/2.0\r\nno colon\r\nTo: x\r\n\r\n", Malformed::HeaderLine),
            ("A b SIP/2.0\r\n bad fold\r\nTo: x\r\n\r\n", Malformed::HeaderLine),
            ("A b SIP/2.0\r\nBad Name: 1\r\nTo: x\r\n\r\n", Malformed::HeaderLine),
            ("A b SIP/2.0\r\nSubject: a\0b\r\nTo: x\r\n\r\n", Malformed::Control),
            ("A b SIP/2.0\r\nSubject: a\rb\r\nTo: x\r\n\r\n", Malformed::Control),
            ("A\x01 b SIP/2.0\r\nTo: x\r\n\r\n", Malformed::Control),
        ] {
            let out = normalize(head.as_bytes());
            assert_eq!((out.fault, out.field("to")), (Some(fault), Some("x")), "{head:?}");
        }
        assert_eq!(normalize(b"A b SIP/2.0\r\nTo: \"nul \\\0\" <sip:a@b>\r\n\r\n").fault, None);
    }

    #[test]
    fn fields_and_vias_are_capped() {
        let many = format!("A b SIP/2.0\r\n{}\r\n", "X: 1\r\n".repeat(10_000));
        let out = normalize(many.as_bytes());
        assert_eq!((out.fault, out.fields.len()), (Some(Malformed::TooManyFields), MAX_FIELDS));
        let many = format!("A b SIP/2.0\r\nVia: {}\r\n\r\n", vec!["SIP/2.0/UDP h"; 1_000].join(","));
        let out = normalize(many.as_bytes());
        assert_eq!((out.fault, out.fields.len()), (Some(Malformed::TooManyVias), MAX_VIAS));
    }

    #[test]
    fn the_blank_line_is_found_whatever_the_line_ends_and_the_pieces() {
        for (bytes, end) in [(&b"A\r\nB\r\n\r\nbody"[..], 8), (b"A\nB\n\nbody", 5), (b"A\r\nB\n\r\nbody\n\n", 7)] {
            assert_eq!(HeadScan::default().end(bytes), Some(end));
            let mut scan = HeadScan::default();
            let first = (0..=bytes.len()).find_map(|n| scan.end(&bytes[..n]));
            assert_eq!(first, Some(end));
        }
        assert_eq!(HeadScan::default().end(b"A\r\nB\r\n \r\n"), None);
    }
}
