//! Character sets of signalling bodies.
//! Standard: [GB/T28181-2016 6.10] GB 2312, [GB/T28181-2022 6.10] GB 18030.
//! In: body bytes. Out: text (`decode`) and back (`encode_xml`, `encode_plain`).
//! Deviations: labels lie in the field. `decode` looks at the bytes first and at the label only where they are
//! ambiguous; what is labelled GB2312 is written as GBK, so that rare characters in names survive.
//! Not here: XML syntax (`manscdp::xml`).

use encoding_rs::{GB18030, GBK};
use std::borrow::Cow;

/// A character set as written to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Charset {
    /// Labelled `GB2312`, written as GBK.
    Gb2312,
    /// `GB18030`.
    Gb18030,
    /// `UTF-8`.
    Utf8,
}

impl Charset {
    /// The label for an XML declaration.
    pub fn label(self) -> &'static str {
        match self {
            Charset::Gb2312 => "GB2312",
            Charset::Gb18030 => "GB18030",
            Charset::Utf8 => "UTF-8",
        }
    }

    /// Reads a label or a configuration value, ignoring case. GBK counts as GB2312.
    pub fn parse(label: &str) -> Option<Self> {
        let label = label.trim();
        if ["gb2312", "gb-2312", "gbk", "cp936"].iter().any(|l| label.eq_ignore_ascii_case(l)) {
            Some(Charset::Gb2312)
        } else if ["gb18030", "gb-18030"].iter().any(|l| label.eq_ignore_ascii_case(l)) {
            Some(Charset::Gb18030)
        } else if ["utf-8", "utf8"].iter().any(|l| label.eq_ignore_ascii_case(l)) {
            Some(Charset::Utf8)
        } else {
            None
        }
    }

    /// Encodes XML. What the set lacks becomes a numeric reference `&#N;`.
    pub fn encode_xml(self, text: &str) -> Vec<u8> {
        match self {
            Charset::Gb2312 => GBK.encode(text).0.into_owned(),
            Charset::Gb18030 => GB18030.encode(text).0.into_owned(),
            Charset::Utf8 => text.as_bytes().to_vec(),
        }
    }

    /// Encodes text that is not XML (SIP headers, SDP). What the set lacks becomes `?`.
    pub fn encode_plain(self, text: &str) -> Vec<u8> {
        if self != Charset::Gb2312 || text.is_ascii() {
            return self.encode_xml(text);
        }
        let mut out = Vec::with_capacity(text.len());
        let mut buffer = [0u8; 4];
        for c in text.chars() {
            let (bytes, _, replaced) = GBK.encode(c.encode_utf8(&mut buffer));
            if replaced {
                out.push(b'?');
            } else {
                out.extend_from_slice(&bytes);
            }
        }
        out
    }
}

/// Decodes a body whose character set may be mislabelled, and strips what is around it: a UTF-8 byte order mark,
/// leading blanks and NULs, trailing blanks and NULs.
///
/// Valid UTF-8 is taken as such, else the bytes are GB 18030 (which holds GB 2312 and GBK). One case is ambiguous:
/// bytes that form only two-byte UTF-8 sequences are also common GBK characters (`C2 B7` is `路` or `·`). A Chinese body
/// in UTF-8 has three-byte sequences, so these are read as GBK unless the declaration says UTF-8.
/// Broken sequences become U+FFFD. `forced` (configured per peer) skips the guess.
pub fn decode(bytes: &[u8], forced: Option<Charset>) -> Cow<'_, str> {
    detect(bytes, forced).0
}

/// The same, and the set the bytes were taken for: `Utf8`, or `Gb18030` for it and all it holds.
pub fn detect(bytes: &[u8], forced: Option<Charset>) -> (Cow<'_, str>, Charset) {
    let is_edge = |b: &u8| *b == 0 || b.is_ascii_whitespace();
    let (bytes, marked) = match bytes.strip_prefix(b"\xEF\xBB\xBF") {
        Some(rest) => (rest, true),
        None => (bytes, false),
    };
    let Some(from) = bytes.iter().position(|b| !is_edge(b)) else {
        return (Cow::Borrowed(""), Charset::Utf8);
    };
    let to = bytes.iter().rposition(|b| !is_edge(b)).map_or(from, |at| at + 1);
    let bytes = &bytes[from..to];
    match forced {
        Some(Charset::Utf8) => return (String::from_utf8_lossy(bytes), Charset::Utf8),
        Some(_) => return (GB18030.decode_without_bom_handling(bytes).0, Charset::Gb18030),
        None => {}
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if marked || text.is_ascii() || has_three_byte(bytes) || declares_utf8(bytes) => {
            (Cow::Borrowed(text), Charset::Utf8)
        }
        _ => (GB18030.decode_without_bom_handling(bytes).0, Charset::Gb18030),
    }
}

fn has_three_byte(bytes: &[u8]) -> bool {
    bytes.iter().any(|b| *b >= 0xE0)
}

/// True if an XML declaration in the first 100 bytes names UTF-8.
fn declares_utf8(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(100)];
    let end = memchr::memchr(b'>', head).unwrap_or(0);
    head[..end].windows(5).any(|w| w.eq_ignore_ascii_case(b"utf-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels() {
        assert_eq!(Charset::parse(" gb2312 "), Some(Charset::Gb2312));
        assert_eq!(Charset::parse("GBK"), Some(Charset::Gb2312));
        assert_eq!(Charset::parse("Gb18030"), Some(Charset::Gb18030));
        assert_eq!(Charset::parse("utf-8"), Some(Charset::Utf8));
        assert_eq!(Charset::parse("big5"), None);
    }

    #[test]
    fn bytes_win_over_labels() {
        let utf8 = "<?xml version=\"1.0\" encoding=\"GB2312\"?><Name>东门枪机</Name>";
        assert_eq!(decode(utf8.as_bytes(), None), utf8);
        let label_lies = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Name>东门枪机</Name>";
        assert_eq!(decode(&GBK.encode(label_lies).0, None), label_lies);
        let none = "<Name>东门枪机</Name>";
        assert_eq!(decode(&GBK.encode(none).0, None), none);
        assert_eq!(decode(none.as_bytes(), None), none);
    }

    #[test]
    fn two_byte_sequences_are_read_as_gbk_unless_declared() {
        // C2 B7: 路 in GBK, · in UTF-8
        let name = b"<Name>5\xC2\xB7</Name>";
        assert_eq!(decode(name, None), "<Name>5路</Name>");
        assert_eq!(decode(name, Some(Charset::Utf8)), "<Name>5·</Name>");
        let declared = b"<?xml version='1.0' encoding='utf-8'?><Name>5\xC2\xB7</Name>";
        assert!(decode(declared, None).contains("5·"));
        assert_eq!(decode(b"\xEF\xBB\xBF<Name>5\xC2\xB7</Name>", None), "<Name>5·</Name>");
    }

    #[test]
    fn edges_and_broken_sequences() {
        assert_eq!(decode(b"\xEF\xBB\xBF\r\n <a/>\r\n\0\0\0", None), "<a/>");
        assert_eq!(decode(b"\0\0", None), "");
        assert_eq!(decode(b"", None), "");
        // a GBK character cut in half at the end
        let cut = decode(b"<Name>\xB6\xAB\xC3", None);
        assert_eq!(cut, "<Name>东\u{FFFD}");
        // four-byte GB 18030
        assert_eq!(decode(b"<N>\x95\x32\x82\x36</N>", None), "<N>\u{20000}</N>");
    }

    #[test]
    fn what_a_set_lacks() {
        // U+20000 is not in GBK
        assert_eq!(Charset::Gb2312.encode_xml("a\u{20000}"), b"a&#131072;");
        assert_eq!(Charset::Gb2312.encode_plain("东\u{20000}"), b"\xB6\xAB?");
        assert_eq!(Charset::Gb18030.encode_plain("\u{20000}"), b"\x95\x32\x82\x36");
        // 堃 is missing from GB 2312, but not from GBK
        assert_eq!(Charset::Gb2312.encode_xml("堃"), GBK.encode("堃").0.as_ref());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn gb18030_holds_everything(text in "[ -~一-龥]{0,40}") {
            let text = text.trim();
            let bytes = Charset::Gb18030.encode_xml(text);
            prop_assert_eq!(decode(&bytes, Some(Charset::Gb18030)), text);
        }

        #[test]
        fn any_bytes_decode(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes, None);
        }
    }
}
