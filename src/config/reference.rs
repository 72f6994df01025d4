//! `config/menshen.toml` against the code: every key is there, with its default and its class.
//!
//! A line `key = value  # [tags] …` is on, `#key = value  # [tags] …` is off. Tags: `live` or `restart`; `required`
//! or `example` where the value is no default. Also: the other shipped files load without errors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value as Json;

use super::load::{Loaded, load_on};
use super::print::print_effective;
use super::problem::{ProblemFormat, render_problems};
use super::schema::{self, SECTIONS};
use super::validate::Machine;
use super::*;

/// 2026-01-01T00:00:00Z.
const NOW: i64 = 1_767_225_600;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

fn read(path: &Path) -> Loaded {
    let names = ["PSB", "CAMERA", "CITY", "COUNTY", "NVR", "NVR2", "CAMERAS", "LOWER"];
    let env: BTreeMap<String, String> =
        names.iter().map(|name| (format!("MENSHEN_{name}_PASSWORD"), "not-a-real-secret".to_owned())).collect();
    load_on(path, &env, &Machine { ephemeral_ports: Some(32768..=60999), ..Machine::default() }, NOW)
}

struct Line {
    table: String,
    name: String,
    tags: BTreeSet<String>,
    on: bool,
}

fn key_lines(text: &str) -> Vec<Line> {
    let mut table = String::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let (on, line) = match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => (false, rest),
            Some(_) => continue,
            None => (true, line),
        };
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_start_matches('[').split(']').next().unwrap().to_owned();
        } else if let Some((name, rest)) = line.split_once(" = ") {
            let tags = rest.rsplit_once("# [").unwrap_or_else(|| panic!("{table}.{name} has no tags")).1;
            let tags = tags.split(']').next().unwrap().split(", ").map(str::to_owned).collect();
            lines.push(Line { table: table.clone(), name: name.to_owned(), tags, on });
        }
    }
    lines
}

/// The reference with every key that is off switched on.
fn all_on(text: &str) -> String {
    let is_key = |rest: &str| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    text.lines()
        .map(|line| line.strip_prefix('#').filter(|rest| is_key(rest)).unwrap_or(line).to_owned() + "\n")
        .collect()
}

fn json<T: Serialize>(value: T) -> Json {
    serde_json::to_value(value).unwrap()
}

fn default_of(table: &str) -> Json {
    match table {
        "gateway" => json(Gateway::default()),
        "time" => json(Time::default()),
        "sip" => json(Sip::default()),
        "sip.tls" => json(SipTls::default()),
        "media" => json(Media::default()),
        "http" => json(Http::default()),
        "log" => json(Log::default()),
        "uplink" => json(Uplink::default()),
        "uplink.tls" => json(UplinkTls::default()),
        "uplink.security" => json(Security::default()),
        "area" => json(Area::default()),
        "camera" => json(Camera::default()),
        "camera.file" => json(CameraFile::default()),
        "registrar" => json(Registrar::default()),
        "device" => json(Device::default()),
        other => panic!("no default for {other}"),
    }
}

#[test]
fn the_reference_loads_without_a_word() {
    let loaded = read(&shipped("menshen.toml"));
    assert_eq!(render_problems(&loaded.problems, ProblemFormat::Text), "");
    assert!(loaded.config.is_some());
}

#[test]
fn the_reference_names_every_key_and_its_class() {
    let text = std::fs::read_to_string(shipped("menshen.toml")).unwrap();
    let lines = key_lines(&text);
    let written: BTreeSet<String> = lines.iter().map(|line| format!("{}.{}", line.table, line.name)).collect();
    assert_eq!(written.len(), lines.len(), "a key is written twice");
    let mut tables: Vec<String> = SECTIONS.iter().map(|(name, _)| (*name).to_owned()).collect();
    while let Some(table) = tables.pop() {
        for field in schema::fields(&table).unwrap() {
            let key = format!("{table}.{field}");
            if schema::fields(&key).is_some() && key != "camera.streams" {
                assert!(lines.iter().any(|line| line.table == key), "[{key}] is not in the reference");
                tables.push(key);
            } else {
                assert!(written.contains(&key), "{key} is not in the reference");
            }
        }
    }
    for Line { table, name, tags, .. } in &lines {
        let key = format!("{table}.{name}");
        let class = if is_taken_live(&key) { "live" } else { "restart" };
        assert!(tags.contains(class), "{key} must be tagged {class}");
        let known = ["live", "restart", "required", "example"];
        assert!(tags.len() <= 2 && tags.iter().all(|tag| known.contains(&tag.as_str())), "{key}: {tags:?}");
    }
}

#[test]
fn the_reference_shows_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all-on.toml");
    let text = std::fs::read_to_string(shipped("menshen.toml")).unwrap();
    std::fs::write(&path, all_on(&text)).unwrap();

    // With everything on the files are not there and rtsp stands beside streams; but no key and no type may be wrong.
    let document: toml_edit::DocumentMut = all_on(&text).parse().unwrap();
    let loaded = read(&path);
    let wrong: Vec<_> = loaded
        .problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .filter(|p| {
            !p.allowed.contains("readable") && !p.allowed.contains("rtsp is written too") && p.key != "device[0].max"
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");

    for Line { table, name, tags, on } in key_lines(&text) {
        let key = format!("{table}.{name}");
        let default = default_of(&table)[&name].clone();
        if tags.contains("required") || tags.contains("example") {
            assert!(
                on || default.is_null()
                    || default == ""
                    || default == json(Vec::<u8>::new())
                    || tags.contains("required"),
                "{key} is off but has a default"
            );
            continue;
        }
        let mut item = document.as_item();
        for part in table.split('.') {
            let found = item.get(part).unwrap();
            item = found.as_array_of_tables().map_or(found, |_| found.get(0).unwrap());
        }
        assert_eq!(typed(&table, &name, item.get(&name).unwrap()), default, "{key} does not show its default");
    }
}

/// The written value as the types hold it, so that "60m" equals "1h".
fn typed(table: &str, name: &str, item: &toml_edit::Item) -> Json {
    let raw = item_json(item);
    let mut whole = serde_json::Map::new();
    whole.insert(name.to_owned(), raw);
    let whole = Json::Object(whole);
    let read = match table {
        "gateway" => json(serde_json::from_value::<Gateway>(whole).unwrap()),
        "time" => json(serde_json::from_value::<Time>(whole).unwrap()),
        "sip" => json(serde_json::from_value::<Sip>(whole).unwrap()),
        "sip.tls" => json(serde_json::from_value::<SipTls>(whole).unwrap()),
        "media" => json(serde_json::from_value::<Media>(whole).unwrap()),
        "http" => json(serde_json::from_value::<Http>(whole).unwrap()),
        "log" => json(serde_json::from_value::<Log>(whole).unwrap()),
        "uplink" => json(serde_json::from_value::<Uplink>(whole).unwrap()),
        "uplink.security" => json(serde_json::from_value::<Security>(whole).unwrap()),
        "camera" => json(serde_json::from_value::<Camera>(whole).unwrap()),
        "camera.file" => json(serde_json::from_value::<CameraFile>(whole).unwrap()),
        "registrar" => json(serde_json::from_value::<Registrar>(whole).unwrap()),
        "device" => json(serde_json::from_value::<Device>(whole).unwrap()),
        other => panic!("no type for {other}"),
    };
    read[name].clone()
}

fn item_json(item: &toml_edit::Item) -> Json {
    let value = item.as_value().unwrap();
    match value {
        toml_edit::Value::String(text) => json(text.value()),
        toml_edit::Value::Integer(n) => json(n.value()),
        toml_edit::Value::Boolean(b) => json(b.value()),
        toml_edit::Value::Array(array) => {
            Json::Array(array.iter().map(|value| json(value.as_str().unwrap())).collect())
        }
        other => panic!("a default of another kind: {other}"),
    }
}

#[test]
fn the_demo_loads() {
    let loaded = read(&shipped("demo.toml"));
    assert!(!loaded.has_errors(), "{}", render_problems(&loaded.problems, ProblemFormat::Text));
}

#[test]
fn the_examples_load_without_a_word() {
    let mut count = 0;
    for entry in std::fs::read_dir(shipped("examples")).unwrap() {
        let path = entry.unwrap().path();
        let loaded = read(&path);
        assert_eq!(render_problems(&loaded.problems, ProblemFormat::Text), "", "{}", path.display());
        count += 1;
    }
    assert!(count >= 2);
}

#[test]
fn what_is_printed_loads_to_the_same() {
    let path = shipped("examples/two-uplinks-two-nics.toml");
    let first = read(&path);
    let printed = print_effective(&first);
    assert!(!printed.contains("not-a-real-secret"), "{printed}");
    assert!(printed.contains("domain = \"4113250000\"") && printed.contains("# from uplink[1].server_id"), "{printed}");
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("printed.toml");
    std::fs::write(&again, &printed).unwrap();
    let second = read(&again);
    assert_eq!(render_problems(&second.problems, ProblemFormat::Text), "");
    assert_eq!(first.config, second.config);
}
