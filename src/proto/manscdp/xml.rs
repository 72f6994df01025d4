//! A tolerant reader of XML into a small tree, and a writer.
//! Standard: [GB/T28181-2022 A.1]; deviations from XML 1.0 on reading are the field's, listed below.
//! In: body bytes. Out: `Element`; bytes from `XmlWriter`.
//! Invariants: at most 4 MiB, 200,000 elements, depth 32, 64 attributes an element; time linear in the input; a DTD is
//! refused before anything is expanded; names and look-ups ignore case and namespace prefixes.
//! Deviations: bare `&` and `<` in text are text; control characters vanish; an end tag that fits no open element is
//! skipped; a field left open is dropped and what it swallowed is given back to its parent; junk before the
//! root and after it is ignored (a second root is not).
//! Not here: what elements mean.

use super::policy::{CatalogPolicy, Policies};
use crate::proto::gb28181::charset::{self, Charset};
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use std::fmt::Display;

/// Largest body: 10,000 catalogue items (the standard's cap per message) of about 400 bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// Deepest nesting. The standard's own is 6.
pub const MAX_DEPTH: usize = 32;
/// Most elements: 10,000 items of 20.
pub const MAX_ELEMENTS: usize = 200_000;
/// Most attributes kept of one element (the standard has one); the rest is ignored.
pub const MAX_ATTRIBUTES: usize = 64;

/// Why a body is no XML that we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XmlError {
    /// Above `MAX_BYTES`.
    #[error("XML body: {0} bytes: send at most 4 MiB")]
    TooLong(usize),
    /// No element at all.
    #[error("XML body: no element found: send a MANSCDP body")]
    NoRoot,
    /// `<!DOCTYPE`, `<!ENTITY` and the like, in any place.
    #[error("XML body: document type declaration: send the body without it")]
    Dtd,
    /// Above `MAX_DEPTH`.
    #[error("XML body: nested deeper than 32: flatten it")]
    TooDeep,
    /// Above `MAX_ELEMENTS`.
    #[error("XML body: more than 200000 elements: split it")]
    TooManyElements,
    /// The root was never closed.
    #[error("XML body: ends inside the root element: send it whole")]
    Truncated,
    /// Another root follows the first.
    #[error("XML body: a second root element: send one message per body")]
    SecondRoot,
    /// The tokenizer gave up.
    #[error("XML body: syntax error: correct the sender")]
    Syntax,
}

/// One element: text is what stands directly in it, concatenated and trimmed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    /// Name as written, without a namespace prefix.
    pub name: String,
    /// Attributes in order.
    pub attrs: Vec<(String, String)>,
    /// Trimmed text.
    pub text: String,
    /// Child elements in order.
    pub children: Vec<Element>,
}

impl Element {
    /// True if the element has this name, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// First child of a name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|c| c.is(name))
    }

    /// All children of a name.
    pub fn children_named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |c| c.is(name))
    }

    /// Text of the first child of a name that has any.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.children.iter().find(|c| c.is(name) && !c.text.is_empty()).map(|c| c.text.as_str())
    }

    /// Number of the first child of a name; what does not parse is absent.
    pub fn number_of<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text_of(name)?.parse().ok()
    }

    /// Value of an attribute, trimmed.
    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attrs.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
    }

    /// Reads a body. `forced` is the peer's configured character set, if any.
    pub fn parse(body: &[u8], forced: Option<Charset>) -> Result<Element, XmlError> {
        Self::parse_noting(body, forced, &mut Policies::default())
    }

    /// The same; what had to be repaired is noted.
    pub fn parse_noting(body: &[u8], forced: Option<Charset>, policies: &mut Policies) -> Result<Element, XmlError> {
        if body.len() > MAX_BYTES {
            return Err(XmlError::TooLong(body.len()));
        }
        let (text, charset) = charset::detect(body, forced);
        note_charset(&text, charset, policies);
        build(&repair(&text, policies)?, policies)
    }
}

/// Notes where the declaration and the bytes disagree. Text in ASCII is the same in every set.
fn note_charset(text: &str, charset: Charset, policies: &mut Policies) {
    if text.is_ascii() {
        return;
    }
    match declared_encoding(text).map(Charset::parse) {
        None => policies.note(CatalogPolicy::CharsetUnlabelled),
        Some(Some(declared)) if (declared == Charset::Utf8) == (charset == Charset::Utf8) => {}
        Some(_) => policies.note(CatalogPolicy::CharsetMislabelled),
    }
    policies.note_if(text.contains('\u{FFFD}'), CatalogPolicy::BrokenCharacters);
}

/// The value of `encoding` in the declaration, if there is one.
fn declared_encoding(text: &str) -> Option<&str> {
    let declaration = text.split_once("<?xml")?.1.split_once("?>")?.0;
    let value = declaration.split_once("encoding")?.1.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    value[1..].split_once(quote).map(|(label, _)| label)
}

/// Characters XML 1.0 has no place for, and the C1 controls.
fn is_dropped(c: char) -> bool {
    (c.is_control() && !matches!(c, '\t' | '\r' | '\n')) || matches!(c, '\u{FFFE}' | '\u{FFFF}')
}

/// Rewrites the text so that every `<` in it opens a tag: comments and processing instructions go, CDATA becomes
/// escaped text, a `<` that opens no tag becomes `&lt;`, control characters go. Refuses document type declarations.
fn repair(text: &str, policies: &mut Policies) -> Result<String, XmlError> {
    let mut out = String::with_capacity(text.len() + 64);
    let (mut dropped, mut bare) = (false, false);
    let mut push = |piece: &str, out: &mut String| {
        if piece.contains(is_dropped) {
            dropped = true;
            out.extend(piece.chars().filter(|c| !is_dropped(*c)));
        } else {
            out.push_str(piece);
        }
    };
    // what precedes the first tag is no part of the document
    let mut rest = &text[text.find('<').ok_or(XmlError::NoRoot)?..];
    while let Some(at) = rest.find('<') {
        push(&rest[..at], &mut out);
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.find("-->").map_or("", |end| &comment[end + 3..]);
        } else if let Some(cdata) = rest.strip_prefix("<![CDATA[") {
            let end = cdata.find("]]>").unwrap_or(cdata.len());
            let mut escaped = String::new();
            escape_into(&cdata[..end], &mut escaped);
            push(&escaped, &mut out);
            rest = cdata.get(end + 3..).unwrap_or("");
        } else if rest.starts_with("<?") {
            rest = rest.find("?>").map_or("", |end| &rest[end + 2..]);
        } else if rest[1..].starts_with('!') && rest[2..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '[') {
            return Err(XmlError::Dtd);
        } else {
            let name = rest[1..].strip_prefix('/').unwrap_or(&rest[1..]);
            // every name of the standard is ASCII: `<东门>` is somebody's text
            let opens = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            // the tag ends at `>`; a `<` before that says that this one was text
            match rest[1..].find(['<', '>']).filter(|end| opens && rest[1..][*end..].starts_with('>')) {
                Some(end) => {
                    push(&rest[..end + 2], &mut out);
                    rest = &rest[end + 2..];
                }
                None => {
                    bare = true;
                    out.push_str("&lt;");
                    rest = &rest[1..];
                }
            }
        }
    }
    push(rest, &mut out);
    policies.note_if(dropped, CatalogPolicy::ControlCharacters);
    policies.note_if(bare, CatalogPolicy::BareMarkup);
    Ok(out)
}

fn build(text: &str, policies: &mut Policies) -> Result<Element, XmlError> {
    let mut reader = Reader::from_str(text);
    let config = reader.config_mut();
    config.check_end_names = false;
    config.allow_unmatched_ends = true;
    config.allow_dangling_amp = true;

    let mut open: Vec<Element> = Vec::new();
    let mut root: Option<Element> = None;
    let mut elements = 0;
    let (mut bare, mut broken) = (false, false);
    loop {
        let event = reader.read_event().map_err(|_| XmlError::Syntax)?;
        match event {
            Event::Eof => break,
            Event::Start(_) | Event::Empty(_) if root.is_some() => return Err(XmlError::SecondRoot),
            Event::Start(tag) => {
                if open.len() == MAX_DEPTH {
                    return Err(XmlError::TooDeep);
                }
                elements = counted(elements)?;
                open.push(element(&tag));
            }
            Event::Empty(tag) => {
                elements = counted(elements)?;
                let leaf = element(&tag);
                match open.last_mut() {
                    Some(parent) => parent.children.push(leaf),
                    None => root = Some(leaf),
                }
            }
            Event::End(tag) => {
                let name = tag.local_name();
                // an end that fits nothing open is skipped
                let Some(at) = open.iter().rposition(|e| e.is(name.as_ref())) else {
                    broken = true;
                    continue;
                };
                broken |= open.len() > at + 1;
                while open.len() > at + 1 {
                    let (Some(left_open), Some(parent)) = (open.pop(), open.last_mut()) else {
                        break;
                    };
                    give_back(left_open, parent);
                }
                let Some(mut closed) = open.pop() else { continue };
                trim(&mut closed.text);
                match open.last_mut() {
                    Some(parent) => parent.children.push(closed),
                    None => root = Some(closed),
                }
            }
            Event::Text(t) => {
                if let Some(e) = open.last_mut() {
                    bare |= t.contains('&');
                    e.text.push_str(&t);
                }
            }
            Event::GeneralRef(r) => {
                if let Some(e) = open.last_mut() {
                    bare |= !resolve(&r, &mut e.text);
                }
            }
            Event::DocType(_) => return Err(XmlError::Dtd),
            // `repair` took these out
            Event::CData(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
    policies.note_if(bare, CatalogPolicy::BareMarkup);
    policies.note_if(broken, CatalogPolicy::BrokenNesting);
    match root {
        Some(root) => Ok(root),
        None if elements > 0 => Err(XmlError::Truncated),
        None => Err(XmlError::NoRoot),
    }
}

fn counted(elements: usize) -> Result<usize, XmlError> {
    if elements == MAX_ELEMENTS { Err(XmlError::TooManyElements) } else { Ok(elements + 1) }
}

/// An element whose end never came. With text of its own, or empty, it was a field: it is dropped, and its
/// children are its siblings. Else it was a container such as `Item`: it stays, and nested elements of its own name
/// are its siblings.
fn give_back(mut left_open: Element, parent: &mut Element) {
    trim(&mut left_open.text);
    if !left_open.text.is_empty() || left_open.children.is_empty() {
        parent.children.append(&mut left_open.children);
        return;
    }
    let (siblings, own) = left_open.children.into_iter().partition::<Vec<_>, _>(|c| c.is(&left_open.name));
    left_open.children = own;
    parent.children.push(left_open);
    parent.children.extend(siblings);
}

fn trim(text: &mut String) {
    text.truncate(text.trim_end().len());
    let lead = text.len() - text.trim_start().len();
    text.drain(..lead);
}

fn element(tag: &BytesStart<'_>) -> Element {
    let attrs = tag
        .attributes()
        .with_checks(false)
        .take(MAX_ATTRIBUTES)
        .map_while(Result::ok)
        .map(|a| {
            let value = a.normalized_value(XmlVersion::Implicit1_0).unwrap_or_else(|_| a.value.clone());
            (a.key.local_name().as_ref().to_owned(), value.into_owned())
        })
        .collect();
    Element { name: tag.local_name().as_ref().to_owned(), attrs, ..Element::default() }
}

/// The five entities and character references; anything else stays as it stood, and false is returned.
fn resolve(reference: &BytesRef<'_>, out: &mut String) -> bool {
    let name: &str = reference;
    match name {
        "lt" => out.push('<'),
        "gt" => out.push('>'),
        "amp" => out.push('&'),
        "quot" => out.push('"'),
        "apos" => out.push('\''),
        _ => match reference.resolve_char_ref() {
            Ok(Some(c)) if is_dropped(c) => {}
            Ok(Some(c)) => out.push(c),
            _ => {
                out.push('&');
                out.push_str(name);
                out.push(';');
                return false;
            }
        },
    }
    true
}

/// Escapes `& < > " '` and drops control characters.
pub fn escape_into(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            c if is_dropped(c) => {}
            c => out.push(c),
        }
    }
}

/// Writes elements one a line, lines ending in CR LF. Names are ours and written as given; text is escaped.
#[derive(Debug, Default)]
pub struct XmlWriter {
    out: String,
}

impl XmlWriter {
    /// An empty piece.
    pub fn new() -> Self {
        Self::default()
    }

    /// `<name>` and a line end.
    pub fn open(&mut self, name: &str) -> &mut Self {
        self.raw(&format!("<{name}>\r\n"))
    }

    /// `<name Num="n">` and a line end.
    pub fn open_num(&mut self, name: &str, num: usize) -> &mut Self {
        self.raw(&format!("<{name} Num=\"{num}\">\r\n"))
    }

    /// `</name>` and a line end.
    pub fn close(&mut self, name: &str) -> &mut Self {
        self.raw(&format!("</{name}>\r\n"))
    }

    /// `<name>value</name>` and a line end.
    pub fn text(&mut self, name: &str, value: impl Display) -> &mut Self {
        self.out.push('<');
        self.out.push_str(name);
        self.out.push('>');
        escape_into(&value.to_string(), &mut self.out);
        self.close(name)
    }

    /// The same if there is a value.
    pub fn opt(&mut self, name: &str, value: Option<impl Display>) -> &mut Self {
        match value {
            Some(v) => self.text(name, v),
            None => self,
        }
    }

    /// What is XML already.
    pub fn raw(&mut self, xml: &str) -> &mut Self {
        self.out.push_str(xml);
        self
    }

    /// True if nothing was written.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// The piece without a declaration.
    pub fn into_string(self) -> String {
        self.out
    }

    /// A whole body: declaration first, in the peer's character set.
    pub fn into_body(self, charset: Charset) -> Vec<u8> {
        let declaration = format!("<?xml version=\"1.0\" encoding=\"{}\"?>\r\n", charset.label());
        charset.encode_xml(&(declaration + &self.out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Element, XmlError> {
        Element::parse(text.as_bytes(), Some(Charset::Utf8))
    }

    #[test]
    fn plain_body() {
        let e = read(
            "<?xml version=\"1.0\"?>\r\n<Query>\r\n<CmdType> Catalog </CmdType>\n<sn>7</sn>\
             <DeviceList Num= \"2 \" x='1'/><g:DeviceID a=1>34</g:DeviceID></Query>\r\n\0\0",
        )
        .unwrap();
        assert!(e.is("QUERY"));
        assert_eq!(e.text_of("cmdtype"), Some("Catalog"));
        assert_eq!(e.number_of::<u32>("SN"), Some(7));
        assert_eq!(e.child("devicelist").unwrap().attr("NUM"), Some("2"));
        assert_eq!(e.text_of("DeviceID"), Some("34"));
        assert_eq!(e.text_of("Name"), None);
    }

    #[test]
    fn bare_markup_in_text() {
        for (inner, text) in [
            ("R&D", "R&D"),
            ("R & D", "R & D"),
            ("a&b;c", "a&b;c"),
            ("&lt;&amp;&gt;&quot;&apos;&#x4e1c;&#38376;", "<&>\"'东门"),
            ("&#0;&#xFFFFFFFF;&#8;x", "&#0;&#xFFFFFFFF;x"),
            ("a<b", "a<b"),
            ("a < b", "a < b"),
            ("<1号楼", "<1号楼"),
            ("A<东门>B", "A<东门>B"),
            ("1<2>3", "1<2>3"),
            ("x<!--gone-->y", "xy"),
            ("<![CDATA[<b>&amp;]]>!", "<b>&amp;!"),
            ("ab\u{0}\u{1}c\u{7f}\u{85}d", "abcd"),
            ("it's \"q\"", "it's \"q\""),
        ] {
            let e = read(&format!("<Item><Name>{inner}</Name><P>1</P></Item>"));
            let e = e.unwrap_or_else(|err| panic!("{inner:?}: {err}"));
            assert_eq!(e.text_of("Name"), Some(text), "{inner:?}");
            assert_eq!(e.text_of("P"), Some("1"), "{inner:?}");
        }
    }

    #[test]
    fn broken_nesting_costs_one_field() {
        // a misspelt end: the field goes, the item and its later fields stay
        let e = read("<L><Item><ID>1</ID><Name>a</Nmae><S>ON</S></Item><Item><ID>2</ID></Item></L>").unwrap();
        let items: Vec<_> = e.children_named("Item").collect();
        assert_eq!(items.len(), 2);
        assert_eq!((items[0].text_of("ID"), items[0].text_of("S")), (Some("1"), Some("ON")));
        assert_eq!(items[0].text_of("Name"), None);
        // an item never closed
        let e = read("<L><Item><ID>1</ID><Item><ID>2</ID></Item><Item><ID>3</ID></Item></L>").unwrap();
        let ids: Vec<_> = e.children_named("Item").map(|i| i.text_of("ID")).collect();
        assert_eq!(ids, [Some("1"), Some("2"), Some("3")]);
        // an end too many
        let e = read("<L><Item><ID>1</ID></Item></Item><Item><ID>2</ID></Item></L>").unwrap();
        assert_eq!(e.children.len(), 2);
        // crossed ends
        let e = read("<L><Item><Info><T>1</T></Item></Info><Item><ID>2</ID></Item></L>").unwrap();
        assert_eq!(e.children_named("Item").count(), 2);
    }

    #[test]
    fn edges() {
        assert_eq!(read("junk <?xml version=\"1.0\"?><A>1</A> tail").unwrap().text, "1");
        assert_eq!(read("\u{feff}<A/>").unwrap().name, "A");
        assert_eq!(read("<A>1</A><!-- c --><?pi?>\r\n").unwrap().text, "1");
        assert_eq!(read("<A></a>").unwrap().name, "A");
    }

    #[test]
    fn refused() {
        let deep = "<a>".repeat(10_000);
        let billion = "<!DOCTYPE lolz [<!ENTITY lol \"lol\"><!ENTITY lol2 \"&lol;&lol;\">]><Query>&lol2;</Query>";
        for (text, error) in [
            ("", XmlError::NoRoot),
            ("hello", XmlError::NoRoot),
            ("<", XmlError::NoRoot),
            ("<?xml version=\"1.0\"?>", XmlError::NoRoot),
            ("<!-- only -->", XmlError::NoRoot),
            (billion, XmlError::Dtd),
            ("<!DOCTYPE q SYSTEM \"file:///etc/passwd\"><q/>", XmlError::Dtd),
            ("<q><!ENTITY % p SYSTEM \"http://x/\"></q>", XmlError::Dtd),
            ("<q><!entity x 'y'></q>", XmlError::Dtd),
            ("<![IGNORE[x]]><q/>", XmlError::Dtd),
            (&deep, XmlError::TooDeep),
            ("<A><B>1</B>", XmlError::Truncated),
            ("<A", XmlError::NoRoot),
            ("<A></B>", XmlError::Truncated),
            ("<A/><B/>", XmlError::SecondRoot),
            ("<A></A><A></A>", XmlError::SecondRoot),
        ] {
            assert_eq!(read(text), Err(error), "{:?}", &text[..text.len().min(40)]);
        }
        let many = format!("<A>{}</A>", "<b/>".repeat(MAX_ELEMENTS));
        assert_eq!(read(&many), Err(XmlError::TooManyElements));
        assert_eq!(Element::parse(&vec![b'<'; MAX_BYTES + 1], None), Err(XmlError::TooLong(MAX_BYTES + 1)));
    }

    #[test]
    fn floods_are_linear() {
        let attrs: String = (0..20_000).map(|n| format!(" a{n}=\"1\"")).collect();
        assert_eq!(read(&format!("<A{attrs}/>")).unwrap().attrs.len(), MAX_ATTRIBUTES);
        assert_eq!(read(&format!("<A>{}</A>", "x".repeat(1 << 20))).unwrap().text.len(), 1 << 20);
        assert_eq!(read(&format!("<A>{}</A>", "<".repeat(1 << 18))).unwrap().text.len(), 1 << 18);
        assert_eq!(read(&format!("<A>{}</A>", "&".repeat(1 << 18))).unwrap().text.len(), 1 << 18);
        assert!(read(&format!("<A>{}</A>", "</x>".repeat(1 << 17))).unwrap().children.is_empty());
    }

    #[test]
    fn character_sets() {
        let text = "<?xml version=\"1.0\" encoding=\"GB2312\"?>\r\n<Item><Name>东门&amp;堃</Name></Item>";
        for charset in [Charset::Gb2312, Charset::Gb18030, Charset::Utf8] {
            let e = Element::parse(&charset.encode_xml(text), None).unwrap();
            assert_eq!(e.text_of("Name"), Some("东门&堃"));
        }
        // what GBK lacks travels as a reference
        let mut w = XmlWriter::new();
        w.open("A").text("B", "\u{20000}").close("A");
        let body = w.into_body(Charset::Gb2312);
        assert!(body.starts_with(b"<?xml version=\"1.0\" encoding=\"GB2312\"?>\r\n<A>\r\n<B>&#131072;</B>\r\n"));
        assert_eq!(Element::parse(&body, None).unwrap().text_of("B"), Some("\u{20000}"));
    }

    #[test]
    fn repairs_are_noted() {
        use CatalogPolicy::*;
        let noted = |body: &[u8], forced| {
            let mut policies = Policies::default();
            Element::parse_noting(body, forced, &mut policies).unwrap();
            policies.iter().map(|(policy, _)| policy).collect::<Vec<_>>()
        };
        let gbk = |text: &str| Charset::Gb2312.encode_xml(text);
        let cases: [(Vec<u8>, &[CatalogPolicy]); 16] = [
            (b"<?xml version=\"1.0\"?><A>a &lt;&amp;&#65; b</A>\r\n\0\0".into(), &[]),
            (gbk("<?xml version=\"1.0\" encoding = 'GB2312' ?><A>东</A>"), &[]),
            (gbk("<?xml version=\"1.0\" encoding=\"gb18030\"?><A>东</A>"), &[]),
            ("<?xml version=\"1.0\" encoding=\"utf-8\"?><A>东</A>".into(), &[]),
            (b"<?xml version=\"1.0\" encoding=\"big5\"?><A>1</A>".into(), &[]),
            (gbk("<?xml version=\"1.0\"?><A>东</A>"), &[CharsetUnlabelled]),
            (gbk("<A>东</A>"), &[CharsetUnlabelled]),
            ("<?xml version=\"1.0\" encoding=\"GB2312\"?><A>东</A>".into(), &[CharsetMislabelled]),
            (gbk("<?xml version=\"1.0\" encoding=\"UTF-8\"?><A>东</A>"), &[CharsetMislabelled]),
            (gbk("<?xml version=\"1.0\" encoding=\"big5\"?><A>东</A>"), &[CharsetMislabelled]),
            (b"<?xml version=\"1.0\" encoding=\"GB2312\"?><A>\xB6\xAB\xC3</A>".into(), &[BrokenCharacters]),
            (b"<A>a&b</A>".into(), &[BareMarkup]),
            (b"<A>a & b</A>".into(), &[BareMarkup]),
            (b"<A>a < b</A>".into(), &[BareMarkup]),
            (b"<A>a\x01b</A>".into(), &[ControlCharacters]),
            (b"<A><B>1</C></A></B>".into(), &[BrokenNesting]),
        ];
        for (body, policies) in cases {
            assert_eq!(noted(&body, None), policies, "{}", body.escape_ascii());
        }
        // configuration speaks before the label, but the label is still wrong
        assert_eq!(noted(&gbk("<?xml encoding=\"UTF-8\"?><A>东</A>"), Some(Charset::Gb2312)), [CharsetMislabelled]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn written_text_reads_back(text in "\\PC{0,60}", more in "[ -~\\r\\n\\t一-龥]{0,60}") {
            let text: String = text.chars().filter(|c| !is_dropped(*c)).collect();
            let mut w = XmlWriter::new();
            w.open("Root").text("A", &text).text("B", &more).close("Root");
            let e = Element::parse(&w.into_body(Charset::Gb18030), Some(Charset::Gb18030)).unwrap();
            prop_assert_eq!(&e.child("A").unwrap().text, text.trim());
            prop_assert_eq!(&e.child("B").unwrap().text, more.trim());
        }

        #[test]
        fn soup_never_panics(pieces in proptest::collection::vec(
            prop_oneof![
                Just("<Item>"), Just("</Item>"), Just("<Name>"), Just("</Name>"), Just("<a b='"), Just("'>"), Just("&"),
                Just("&#"), Just("x41;"), Just("<!--"), Just("-->"), Just("<![CDATA["), Just("]]>"), Just("<?"),
                Just("?>"),
                Just("</"), Just("<"), Just("/>"), Just("东"), Just("text"), Just("\0"), Just("\"")
            ], 0..40)) {
            let _ = read(&pieces.concat());
            let _ = read(&format!("<Root>{}</Root>", pieces.concat()));
        }
    }
}
