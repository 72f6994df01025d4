//! The configuration file as text: bounded reading, unquoted codes, lines of keys, TOML as a `config` source.
//!
//! In: a path. Out: a merged tree's lower layer and the line of every key.
//! Invariants: at most `MAX_FILE_BYTES` are ever read; only known sections reach the `config` crate, whose merge
//! would take an index in a quoted section name literally and grow an array to it.
//! Not here: the environment layer and types (`load.rs`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use config::{ConfigError, Map, Source, Value, ValueKind};
use toml_edit::{Document, Item, Table, Value as TomlValue};
use zeroize::Zeroizing;

use super::schema::SECTIONS;

/// A configuration with thousands of cameras stays far below this; more is a wrong file.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// From here on a whole number does not fit into TOML's 64 bits.
const TOO_MANY_DIGITS: usize = 19;

/// Why a file's text could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("larger than {} MiB", MAX_FILE_BYTES >> 20)]
    TooLarge,
    #[error("not UTF-8 text")]
    NotText,
}

/// Reads at most `limit` bytes of text.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<Zeroizing<String>, ReadError> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory).into());
    }
    // Room for all of it at once: growing would leave copies of a secret behind.
    let room = usize::try_from(metadata.len().min(limit)).unwrap_or(0);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room + 1));
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge);
    }
    std::str::from_utf8(&bytes).map(|text| Zeroizing::new(text.to_owned())).map_err(|_| ReadError::NotText)
}

/// A whole number too long for TOML: a code somebody forgot to quote.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnquotedCode {
    /// From 1.
    pub line: usize,
    pub digits: String,
}

/// Puts quotes round every bare run of 19 digits and more, so that reading goes on and finds the other problems.
pub(super) fn quote_long_numbers(text: &str) -> (Zeroizing<String>, Vec<UnquotedCode>) {
    let mut out = Zeroizing::new(String::with_capacity(text.len() + 64));
    let mut found = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' | '\'' => string_length(rest),
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (token, tail) = rest.split_at(taken);
        if token.len() >= TOO_MANY_DIGITS && token.bytes().all(|b| b.is_ascii_digit()) {
            found.push(UnquotedCode { line, digits: token.to_owned() });
            out.push('"');
            out.push_str(token);
            out.push('"');
        } else {
            out.push_str(token);
        }
        line += token.matches('\n').count();
        rest = tail;
    }
    (out, found)
}

/// What a bare key, number or date consists of.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '.' | ':')
}

/// The length of the TOML string that `text` begins with, quotes included; to the end where it is not closed.
fn string_length(text: &str) -> usize {
    let quote = &text[..1];
    let long = quote.repeat(3);
    let (open, multi_line) = if text.starts_with(&long) { (long.as_str(), true) } else { (quote, false) };
    let mut at = open.len();
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with(open) {
            return at + open.len();
        }
        let Some(c) = rest.chars().next() else { break };
        if c == '\n' && !multi_line {
            return at;
        }
        at += c.len_utf8();
        if c == '\\' && quote == "\"" {
            at += text[at..].chars().next().map_or(0, char::len_utf8);
        }
    }
    text.len()
}

/// Byte offset to line number, from 1.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub fn new(text: &str) -> Self {
        Self(memchr::memchr_iter(b'\n', text.as_bytes()).collect())
    }

    pub fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|end| *end < offset) + 1
    }
}

/// The line of every key, by its path.
pub(super) fn lines_of_keys<S: AsRef<str>>(document: &Document<S>, lines: &Lines) -> HashMap<String, usize> {
    let mut index = HashMap::new();
    index_table("", document.as_table(), lines, &mut index);
    index
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn index_table(path: &str, table: &Table, lines: &Lines, index: &mut HashMap<String, usize>) {
    for (name, item) in table.iter() {
        let path = join(path, name);
        let span = match item {
            Item::Table(table) => table.span(),
            _ => None,
        };
        if let Some(span) = span.or_else(|| table.key(name).and_then(|key| key.span())) {
            index.insert(path.clone(), lines.at(span.start));
        }
        match item {
            Item::None => {}
            Item::Value(value) => index_value(&path, value, lines, index),
            Item::Table(table) => index_table(&path, table, lines, index),
            Item::ArrayOfTables(tables) => {
                for (n, table) in tables.iter().enumerate() {
                    let path = format!("{path}[{n}]");
                    if let Some(span) = table.span() {
                        index.insert(path.clone(), lines.at(span.start));
                    }
                    index_table(&path, table, lines, index);
                }
            }
        }
    }
}

fn index_value(path: &str, value: &TomlValue, lines: &Lines, index: &mut HashMap<String, usize>) {
    match value {
        TomlValue::Array(array) => {
            for (n, value) in array.iter().enumerate() {
                let path = format!("{path}[{n}]");
                if let Some(span) = value.span() {
                    index.insert(path.clone(), lines.at(span.start));
                }
                index_value(&path, value, lines, index);
            }
        }
        TomlValue::InlineTable(table) => {
            for (name, value) in table.iter() {
                let path = join(path, name);
                if let Some(span) = table.key(name).and_then(|key| key.span()) {
                    index.insert(path.clone(), lines.at(span.start));
                }
                index_value(&path, value, lines, index);
            }
        }
        _ => {}
    }
}

/// The file as the lowest layer of the `config` crate.
#[derive(Debug, Clone)]
pub(super) struct FileLayer(Map<String, Value>);

impl FileLayer {
    /// The known sections of the document.
    pub fn new(table: &Table) -> Self {
        Self(
            table
                .iter()
                .filter(|(name, _)| SECTIONS.iter().any(|(known, _)| known == name))
                .map(|(name, item)| (name.to_owned(), item_value(item)))
                .collect(),
        )
    }
}

impl Source for FileLayer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

fn table_value(table: &Table) -> Value {
    Value::new(None, ValueKind::Table(table.iter().map(|(key, item)| (key.to_owned(), item_value(item))).collect()))
}

fn item_value(item: &Item) -> Value {
    match item {
        Item::None => Value::new(None, ValueKind::Nil),
        Item::Value(value) => toml_value(value),
        Item::Table(table) => table_value(table),
        Item::ArrayOfTables(tables) => Value::new(None, ValueKind::Array(tables.iter().map(table_value).collect())),
    }
}

fn toml_value(value: &TomlValue) -> Value {
    let kind = match value {
        TomlValue::String(text) => ValueKind::String(text.value().clone()),
        TomlValue::Integer(n) => ValueKind::I64(*n.value()),
        TomlValue::Float(n) => ValueKind::Float(*n.value()),
        TomlValue::Boolean(b) => ValueKind::Boolean(*b.value()),
        TomlValue::Datetime(time) => ValueKind::String(time.value().to_string()),
        TomlValue::Array(array) => ValueKind::Array(array.iter().map(toml_value).collect()),
        TomlValue::InlineTable(table) => {
            ValueKind::Table(table.iter().map(|(key, value)| (key.to_owned(), toml_value(value))).collect())
        }
    };
    Value::new(None, kind)
}

/// The merged tree in the form serde's tools take. Numbers JSON does not know become text, and so a wrong type.
pub(super) fn to_json(value: Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match value.kind {
        ValueKind::Nil => Json::Null,
        ValueKind::Boolean(b) => Json::Bool(b),
        ValueKind::I64(n) => Json::from(n),
        ValueKind::U64(n) => Json::from(n),
        ValueKind::I128(n) => Json::String(n.to_string()),
        ValueKind::U128(n) => Json::String(n.to_string()),
        ValueKind::Float(n) => {
            serde_json::Number::from_f64(n).map_or_else(|| Json::String(n.to_string()), Json::Number)
        }
        ValueKind::String(text) => Json::String(text),
        ValueKind::Table(table) => Json::Object(table.into_iter().map(|(key, value)| (key, to_json(value))).collect()),
        ValueKind::Array(array) => Json::Array(array.into_iter().map(to_json).collect()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CODE: &str = "41130000582000000001";

    #[test]
    fn bare_codes_are_found_and_quoted() {
        let text = format!("# {CODE}\nid = {CODE} # {CODE}\nshare = [{CODE}, \"{CODE}\"]\nn = 5\n");
        let (quoted, found) = quote_long_numbers(&text);
        assert_eq!(found.iter().map(|code| code.line).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(*quoted, format!("# {CODE}\nid = \"{CODE}\" # {CODE}\nshare = [\"{CODE}\", \"{CODE}\"]\nn = 5\n"));
    }

    #[test]
    fn strings_and_comments_are_left_alone() {
        for text in [
            format!("a = \"\\\" {CODE}\""),
            format!("a = '{CODE}'"),
            format!("a = \"\"\"\n{CODE} \\\"\"\" {CODE}\n\"\"\""),
            format!("a = '''\n{CODE}\n'''"),
            format!("a = \"unclosed {CODE}\nb = 1"),
            "a = 2026-01-01T00:00:00.0000000000000000000".to_owned(),
            "a = 0.12345678901234567890".to_owned(),
        ] {
            let (quoted, found) = quote_long_numbers(&text);
            assert_eq!((quoted.as_str(), found), (text.as_str(), vec![]), "{text}");
        }
    }

    #[test]
    fn keys_have_lines() {
        let text = "[gateway]\nid = 'x'\n\n[[uplink]]\nname = 'a'\ntls = { ca = 'x' }\n[[uplink]]\nshare = [\n 'a',\n 'b',\n]\n[uplink.security]\nmode = 'x'\n";
        let document = Document::parse(text).unwrap();
        let index = lines_of_keys(&document, &Lines::new(text));
        for (key, line) in [
            ("gateway", 1),
            ("gateway.id", 2),
            ("uplink[0]", 4),
            ("uplink[0].tls.ca", 6),
            ("uplink[1]", 7),
            ("uplink[1].share[1]", 10),
            ("uplink[1].security", 12),
            ("uplink[1].security.mode", 13),
        ] {
            assert_eq!(index.get(key), Some(&line), "{key}");
        }
    }

    #[test]
    fn only_known_sections_reach_the_merge() {
        let document = Document::parse("\"camera[999999999]\" = 1\n[sip]\nlisten = 'x'\n").unwrap();
        let layer = FileLayer::new(document.as_table());
        assert_eq!(layer.0.keys().collect::<Vec<_>>(), ["sip"]);
    }

    #[test]
    fn reading_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big");
        std::fs::write(&path, "0123456789").unwrap();
        assert!(matches!(read_text(&path, 9), Err(ReadError::TooLarge)));
        assert_eq!(*read_text(&path, 10).unwrap(), "0123456789");
        std::fs::write(&path, [0xff]).unwrap();
        assert!(matches!(read_text(&path, 9), Err(ReadError::NotText)));
        assert!(matches!(read_text(folder.path(), 9), Err(ReadError::Io(_))));
    }

    proptest! {
        #[test]
        fn quoting_never_panics_and_only_adds_quotes(text in "[ \"'#\\\\\n0-9a=门]{0,80}") {
            let (quoted, found) = quote_long_numbers(&text);
            prop_assert_eq!(quoted.len(), text.len() + 2 * found.len());
        }
    }
}
