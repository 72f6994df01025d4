//! Reading a configuration: file, then environment, then types; every problem at once.
//!
//! In: a path, the environment, the wall clock. Out: [`Loaded`].
//! Invariants: `config` is there exactly when no problem is an error; a section's first mistake hides no other, since
//! the key that failed is dropped and the section read again; each table of an array is read on its own.
//! Not here: checks across keys (`validate`), secrets and derived values (`resolve.rs`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use ::config::{Config as Layers, Environment, Map};
use serde::de::DeserializeOwned;
use serde_json::{Map as JsonMap, Value as Json};
use serde_path_to_error::{Segment, Track};
use toml_edit::Document;

use super::Config;
use super::problem::{Problem, Report, Severity, quoted};
use super::schema::{self, SECRET_KEYS, SECTIONS, SectionKind, VariableKind};
use super::source::{self, FileLayer, Lines, MAX_FILE_BYTES};
use super::validate::{self, Machine};
use super::{resolve, units};

/// Two underscores between levels.
const VARIABLE_PREFIX: &str = "MENSHEN__";

/// A table is read again after each mistake, so a table of nothing but mistakes must have an end.
const MAX_MISTAKES: usize = 200;

/// Where a value came from; a key that is not listed has its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This line of the file, from 1.
    File {
        /// The line.
        line: usize,
    },
    /// This environment variable.
    Env {
        /// Its name.
        variable: String,
    },
    /// Worked out from this key.
    Derived {
        /// The other key's path.
        from: String,
    },
}

/// What came of reading a configuration.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file that was read.
    pub path: PathBuf,
    /// The configuration, if no problem is an error.
    pub config: Option<Config>,
    /// Everything found, errors and warnings, in the order of the file.
    pub problems: Vec<Problem>,
    /// Where values came from, by the key's path.
    pub sources: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Whether the configuration cannot be used.
    pub fn has_errors(&self) -> bool {
        self.config.is_none()
    }
}

/// Reads the file, lays the environment over it and checks everything, the files it names included.
///
/// `env` is the whole environment: `MENSHEN__…` variables are overrides, the others serve `{ env = … }` secrets.
/// `now_unix` is the wall clock in seconds since 1970, for the validity of certificates.
pub fn load(path: &Path, env: impl Iterator<Item = (String, String)>, now_unix: i64) -> Loaded {
    load_on(path, &env.collect(), &Machine::read(), now_unix)
}

/// [`load`] of a text that is at hand; `name` stands for the file in problems and is where relative paths start.
pub fn load_text(name: &Path, text: &str, env: impl Iterator<Item = (String, String)>, now_unix: i64) -> Loaded {
    load_from(name, Some(text), &env.collect(), &Machine::read(), now_unix)
}

/// [`load`] with the machine's own settings as an argument.
pub(super) fn load_on(path: &Path, env: &BTreeMap<String, String>, machine: &Machine, now_unix: i64) -> Loaded {
    load_from(path, None, env, machine, now_unix)
}

fn load_from(
    path: &Path,
    text: Option<&str>,
    env: &BTreeMap<String, String>,
    machine: &Machine,
    now_unix: i64,
) -> Loaded {
    let mut report = Report::new(path.display().to_string());
    let mut sources = BTreeMap::new();
    let mut config = None;
    if let Some(mut root) = read_tree(path, text, env, &mut report) {
        let mut draft = read_types(&mut root, &mut report);
        note_sources(&report, &mut sources);
        resolve::resolve(&mut draft, path, env, &mut report, &mut sources);
        validate::validate(&draft, machine, now_unix, &mut report);
        if !report.has_errors() {
            config = Some(draft);
        }
    }
    Loaded { path: path.to_owned(), config, problems: report.finish(), sources }
}

fn note_sources(report: &Report, sources: &mut BTreeMap<String, Origin>) {
    for (key, line) in report.lines() {
        sources.insert(key.clone(), Origin::File { line: *line });
    }
    for (key, variable) in report.variables() {
        let secret = key.strip_suffix(".env").or_else(|| key.strip_suffix(".file"));
        sources.insert(secret.unwrap_or(key).to_owned(), Origin::Env { variable: variable.clone() });
    }
}

/// File and environment as one tree; `None` where the file cannot be read at all.
fn read_tree(
    path: &Path,
    text: Option<&str>,
    env: &BTreeMap<String, String>,
    report: &mut Report,
) -> Option<JsonMap<String, Json>> {
    let variables = accepted_variables(env, report);
    let read = match text {
        Some(text) => Ok(text.to_owned().into()),
        None => source::read_text(path, MAX_FILE_BYTES),
    };
    let text = match read {
        Ok(text) => text,
        Err(error) => {
            let fix = match error {
                source::ReadError::Io(_) => "name a file this user may read",
                source::ReadError::TooLarge | source::ReadError::NotText => "name a TOML file",
            };
            report.error("", error.to_string(), "must be readable", fix);
            return None;
        }
    };
    let (text, unquoted) = source::quote_long_numbers(&text);
    let lines = Lines::new(&text);
    let document = match Document::parse(text.as_str()) {
        Ok(document) => document,
        Err(error) => {
            syntax_problem(report, path, error.span().map(|span| lines.at(span.start)), error.message());
            for code in unquoted {
                unquoted_problem(report, path, String::new(), code);
            }
            return None;
        }
    };
    let index = source::lines_of_keys(&document, &lines);
    if !unquoted.is_empty() {
        let mut innermost: HashMap<usize, &str> = HashMap::new();
        for (key, line) in &index {
            let known = innermost.entry(*line).or_insert(key);
            if known.len() < key.len() {
                *known = key;
            }
        }
        for code in unquoted {
            let key = innermost.get(&code.line).copied().unwrap_or_default().to_owned();
            unquoted_problem(report, path, key, code);
        }
    }
    report.place(index);

    for (name, _) in document.as_table() {
        if !SECTIONS.iter().any(|(known, _)| *known == name) {
            let known = SECTIONS.iter().map(|(known, _)| *known);
            unknown_key(report, name, name, known);
        }
    }

    let environment =
        Environment::with_prefix("MENSHEN").prefix_separator("__").separator("__").source(Some(variables));
    let merged = Layers::builder().add_source(FileLayer::new(document.as_table())).add_source(environment).build();
    match merged.map(|layers| source::to_json(layers.cache)) {
        Ok(Json::Object(root)) => Some(root),
        Ok(_) => Some(JsonMap::new()),
        Err(error) => {
            report.error("", error.to_string(), "file and environment must fit together", "mend the key it names");
            None
        }
    }
}

fn syntax_problem(report: &mut Report, path: &Path, line: Option<usize>, message: &str) {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    report.push(Problem {
        severity: Severity::Error,
        file: path.display().to_string(),
        line,
        key: String::new(),
        found: message,
        allowed: "must be TOML".to_owned(),
        fix: "mend this line; nothing else was checked".to_owned(),
    });
}

fn unquoted_problem(report: &mut Report, path: &Path, key: String, code: source::UnquotedCode) {
    report.push(Problem {
        severity: Severity::Error,
        file: path.display().to_string(),
        line: Some(code.line),
        key,
        fix: format!("write {} with its quotes", quoted(&code.digits)),
        found: code.digits,
        allowed: "must be in quotes, a number of this length does not fit".to_owned(),
    });
}

/// The variables that set a known key. All others that begin as ours do are problems.
fn accepted_variables(env: &BTreeMap<String, String>, report: &mut Report) -> Map<String, String> {
    let known = schema::variable_keys();
    let mut accepted = Map::new();
    for (variable, value) in env.iter().filter(|(name, _)| name.starts_with(VARIABLE_PREFIX)) {
        let key = variable[VARIABLE_PREFIX.len()..].to_lowercase().replace("__", ".");
        let spelt = variable_name(&key) == *variable;
        match known.iter().find(|(name, _)| spelt && *name == key).map(|(_, kind)| kind) {
            Some(VariableKind::Value) => {
                report.came_from_variable(key, variable.clone());
                accepted.insert(variable.clone(), value.clone());
            }
            Some(VariableKind::List) => variable_problem(
                report,
                variable,
                "a list cannot be set from the environment".to_owned(),
                format!("write {key} in the file"),
            ),
            None => {
                let section = key.split(['.', '[']).next().unwrap_or_default();
                let is_array = SECTIONS.iter().any(|(name, kind)| *name == section && *kind == SectionKind::Array);
                let (allowed, fix) = if is_array {
                    (format!("[[{section}]] tables cannot be set from the environment"), "write it in the file".into())
                } else {
                    let near = schema::nearest(&key, known.iter().map(|(name, _)| name.as_str()));
                    let fix = near.map_or_else(
                        || format!("unset it; {VARIABLE_PREFIX} variables must name a key"),
                        |near| format!("did you mean {}?", variable_name(near)),
                    );
                    ("no key has this name".to_owned(), fix)
                };
                variable_problem(report, variable, allowed, fix);
            }
        }
    }
    // A secret set twice would be settled by the order of names, which nobody means.
    for key in SECRET_KEYS.map(|name| format!("http.{name}")) {
        let set: Vec<&String> = ["", ".env", ".file"]
            .iter()
            .filter_map(|form| accepted.keys().find(|name| **name == variable_name(&format!("{key}{form}"))))
            .collect();
        if let [first, second, ..] = set[..] {
            variable_problem(report, second, format!("{first} sets the same secret"), "unset one of them".to_owned());
        }
    }
    accepted
}

fn variable_name(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fn variable_problem(report: &mut Report, variable: &str, allowed: String, fix: String) {
    report.push(Problem {
        severity: Severity::Error,
        file: variable.to_owned(),
        line: None,
        key: String::new(),
        found: "environment variable".to_owned(),
        allowed,
        fix,
    });
}

fn read_types(root: &mut JsonMap<String, Json>, report: &mut Report) -> Config {
    Config {
        gateway: table(root, "gateway", report),
        time: table(root, "time", report),
        sip: table(root, "sip", report),
        media: table(root, "media", report),
        http: table(root, "http", report),
        log: table(root, "log", report),
        uplinks: array(root, "uplink", report),
        areas: array(root, "area", report),
        cameras: array(root, "camera", report),
        registrar: root.contains_key("registrar").then(|| table(root, "registrar", report)),
        devices: array(root, "device", report),
    }
}

fn table<T: DeserializeOwned + Default>(root: &mut JsonMap<String, Json>, name: &str, report: &mut Report) -> T {
    match root.remove(name) {
        None => T::default(),
        Some(Json::Array(_)) => {
            report.error(name, format!("[[{name}]]"), "there is only one", format!("write [{name}]"));
            report.broken(name);
            T::default()
        }
        Some(value) => element(name, value, report),
    }
}

fn array<T: DeserializeOwned + Default>(root: &mut JsonMap<String, Json>, name: &str, report: &mut Report) -> Vec<T> {
    match root.remove(name) {
        None => Vec::new(),
        Some(Json::Array(elements)) => {
            elements.into_iter().enumerate().map(|(n, value)| element(&format!("{name}[{n}]"), value, report)).collect()
        }
        Some(value) => {
            report.error(name, format!("[{name}]"), "there may be several", format!("write [[{name}]]"));
            report.broken(name);
            // Others may refer to it, and that is no mistake of theirs.
            vec![element(name, value, report)]
        }
    }
}

/// One table as its type. A key that fails is reported, dropped, and the rest is read again.
fn element<T: DeserializeOwned + Default>(at: &str, mut value: Json, report: &mut Report) -> T {
    for _ in 0..MAX_MISTAKES {
        let mut unknown = Vec::new();
        let mut track = Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(&value, &mut track);
        let outcome = serde_ignored::deserialize(deserializer, |path| unknown.push(ignored_path(&path)));
        let error = match outcome {
            Ok(read) => {
                for path in unknown {
                    report_unknown(at, &path, report);
                }
                return read;
            }
            Err(error) => error,
        };
        let error: serde_json::Error = error;
        let path: Vec<Segment> = track.path().iter().cloned().collect();
        let key = path_text(at, &path);
        let Some(place) = find(&mut value, &path) else {
            report.error(at, "", error.to_string(), "mend this table");
            report.broken(at);
            return T::default();
        };
        // A variable is always text: where the key wants a number or a truth value, take it as one.
        if let (Json::String(text), true) = (&*place, report.variable(&key).is_some())
            && let Some(plain) = plain_value(text)
        {
            *place = plain;
            continue;
        }
        let found = shown(&key, place);
        let (allowed, fix) = explain(&error.to_string(), place);
        report.error(&key, found, allowed, fix);
        let dropped = drop_key(&mut value, &path);
        report.broken(&path_text(at, &path[..dropped]));
        if dropped == 0 {
            return T::default();
        }
    }
    report.error(at, format!("{MAX_MISTAKES} mistakes in one table"), "the rest was not read", "mend these first");
    report.broken(at);
    T::default()
}

fn plain_value(text: &str) -> Option<Json> {
    match text {
        "true" => Some(Json::Bool(true)),
        "false" => Some(Json::Bool(false)),
        _ => text.parse::<i64>().ok().map(Json::from),
    }
}

fn path_text(at: &str, path: &[Segment]) -> String {
    let mut text = at.to_owned();
    for segment in path {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("[{index}]")),
            Segment::Map { key } => {
                text.push('.');
                text.push_str(key);
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    text
}

fn find<'a>(value: &'a mut Json, path: &[Segment]) -> Option<&'a mut Json> {
    path.iter().try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get_mut(*index),
        Segment::Map { key } => value.get_mut(key),
        Segment::Enum { .. } | Segment::Unknown => Some(value),
    })
}

/// Drops the innermost key on the path; returns how much of the path led to it, 0 where there is none.
fn drop_key(value: &mut Json, path: &[Segment]) -> usize {
    for end in (0..path.len()).rev() {
        if let Segment::Map { key } = &path[end]
            && let Some(Json::Object(parent)) = find(value, &path[..end])
            && parent.remove(key).is_some()
        {
            return end + 1;
        }
    }
    0
}

/// The keys from the root to an ignored one, with indices as text.
fn ignored_path(path: &serde_ignored::Path<'_>) -> Vec<Segment> {
    use serde_ignored::Path as Ignored;
    match path {
        Ignored::Root => Vec::new(),
        Ignored::Seq { parent, index } => {
            let mut path = ignored_path(parent);
            path.push(Segment::Seq { index: *index });
            path
        }
        Ignored::Map { parent, key } => {
            let mut path = ignored_path(parent);
            path.push(Segment::Map { key: key.clone() });
            path
        }
        Ignored::Some { parent } | Ignored::NewtypeStruct { parent } | Ignored::NewtypeVariant { parent } => {
            ignored_path(parent)
        }
    }
}

fn report_unknown(at: &str, path: &[Segment], report: &mut Report) {
    let Some((Segment::Map { key: name }, parents)) = path.split_last() else {
        return;
    };
    let table = schema::without_indices(&path_text(at, parents));
    let known = schema::fields(&table).unwrap_or_default();
    unknown_key(report, &path_text(at, path), name, known.iter().copied());
}

/// The value of an unknown key is not shown: it may be a mistyped password.
fn unknown_key<'a>(report: &mut Report, key: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) {
    let fix = match schema::nearest(name, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("remove it; known here: {}", known.collect::<Vec<_>>().join(", ")),
    };
    report.error(&key.escape_debug().to_string(), "unknown key", "no key has this name", fix);
}

/// The value as a problem shows it.
fn shown(key: &str, value: &Json) -> String {
    let secret = key.split('.').any(|name| SECRET_KEYS.contains(&name));
    match value {
        _ if secret => super::secret::MASK.to_owned(),
        Json::String(text) => quoted(text),
        Json::Array(_) => "a list".to_owned(),
        Json::Object(_) => "a table".to_owned(),
        plain => plain.to_string(),
    }
}

/// What serde says, as "what is allowed" and "how to mend it". Serde's own part about the value found is left out.
fn explain(message: &str, found: &Json) -> (String, String) {
    if message.starts_with("must be ") {
        let (allowed, fix) = message.split_once(": ").unwrap_or((message, "change the value"));
        return (allowed.to_owned(), fix.to_owned());
    }
    let expected = message.split_once("expected ").map_or(message, |(_, expected)| expected);
    if message.starts_with("unknown variant") {
        let names: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let near = found.as_str().and_then(|text| schema::nearest(text, names.iter().copied()));
        let list = names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let fix = near.map_or_else(|| "write one of them".to_owned(), |near| format!("did you mean \"{near}\"?"));
        return (format!("must be one of {list}"), fix);
    }
    let expected = match expected {
        "a string" | "string or map" | "path string" => "text in quotes",
        "u8" => "a whole number 0-255",
        "u16" => "a whole number 0-65535",
        "u32" => "a whole number 0-4294967295",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list in square brackets",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    let wants_text = expected.contains("quotes") || expected.contains("address");
    let fix = match found {
        Json::Number(n) if expected == <units::Span as units::FromText>::EXPECT => format!("write it as \"{n}s\""),
        Json::Number(n) if wants_text => format!("write \"{n}\" with its quotes"),
        Json::String(_) if expected.contains("number") || expected == "true or false" => {
            "write it without quotes".to_owned()
        }
        _ => format!("write {expected}"),
    };
    (format!("must be {expected}"), fix)
}
