//! The effective configuration as TOML, with the origin of every value.
//!
//! In: [`Loaded`]. Out: TOML text.
//! Invariants: no secret is written; keys in the order of the types.
//! Not here: problems (`problem.rs`).

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value as Json;

use super::load::{Loaded, Origin};
use super::schema;

/// The configuration as it is in effect: every key that has a value, where it came from, secrets masked.
/// Where it cannot be used, a comment says so.
pub fn print_effective(loaded: &Loaded) -> String {
    let Some(config) = &loaded.config else {
        return format!("# {} cannot be used: see check-config\n", loaded.path.display());
    };
    let mut printer = Printer { loaded, out: String::new() };
    printer.section("gateway", &config.gateway);
    printer.section("time", &config.time);
    printer.section("sip", &config.sip);
    printer.section("media", &config.media);
    printer.section("http", &config.http);
    printer.section("log", &config.log);
    printer.array("uplink", &config.uplinks);
    printer.array("area", &config.areas);
    printer.array("camera", &config.cameras);
    if let Some(registrar) = &config.registrar {
        printer.section("registrar", registrar);
    }
    printer.array("device", &config.devices);
    printer.out
}

struct Printer<'a> {
    loaded: &'a Loaded,
    out: String,
}

impl Printer<'_> {
    fn section<T: Serialize>(&mut self, name: &str, section: &T) {
        self.table(&format!("[{name}]"), name, &to_json(section));
    }

    fn array<T: Serialize>(&mut self, name: &str, elements: &[T]) {
        for (n, element) in elements.iter().enumerate() {
            self.table(&format!("[[{name}]]"), &format!("{name}[{n}]"), &to_json(element));
        }
    }

    fn table(&mut self, header: &str, path: &str, table: &Json) {
        if !self.out.is_empty() {
            self.out.push('\n');
        }
        _ = writeln!(self.out, "{header}");
        let pattern = schema::without_indices(path);
        let mut nested = Vec::new();
        for name in schema::fields(&pattern).unwrap_or_default() {
            let Some(value) = table.get(name) else { continue };
            let key = format!("{path}.{name}");
            match value {
                Json::Null => {}
                Json::Object(_) if schema::fields(&format!("{pattern}.{name}")).is_some() => {
                    nested.push((format!("[{pattern}.{name}]"), key, value));
                }
                value => {
                    let text = format!("{name} = {}", toml(value));
                    _ = writeln!(self.out, "{text:<48} # {}", self.origin(&key));
                }
            }
        }
        for (header, path, value) in nested {
            self.table(&header, &path, value);
        }
    }

    fn origin(&self, key: &str) -> String {
        match self.loaded.sources.get(key) {
            None => "default".to_owned(),
            Some(Origin::File { line }) => format!("{}:{line}", self.loaded.path.display()),
            Some(Origin::Env { variable }) => variable.clone(),
            Some(Origin::Derived { from }) => format!("from {from}"),
        }
    }
}

fn to_json<T: Serialize>(value: &T) -> Json {
    serde_json::to_value(value).unwrap_or(Json::Null)
}

/// A value in TOML, on one line.
fn toml(value: &Json) -> String {
    match value {
        Json::Null => "\"\"".to_owned(),
        Json::String(text) => toml_text(text),
        Json::Array(elements) => format!("[{}]", elements.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Json::Object(table) => {
            let entries = table.iter().map(|(key, value)| format!("{key} = {}", toml(value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        plain => plain.to_string(),
    }
}

fn toml_text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => _ = write!(out, "\\u{:04X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_one_toml_string(text in "\\PC{0,20}|[\\x00-\\x1f\"\\\\]{0,8}") {
            let document = format!("k = {}", toml_text(&text)).parse::<toml_edit::DocumentMut>().unwrap();
            prop_assert_eq!(document["k"].as_str(), Some(text.as_str()));
        }
    }

    #[test]
    fn values_are_toml() {
        assert_eq!(toml(&serde_json::json!(["a", 1, true])), r#"["a", 1, true]"#);
        assert_eq!(toml(&serde_json::json!({ "env": "A" })), r#"{ env = "A" }"#);
    }
}
