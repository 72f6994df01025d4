//! What is wrong with a configuration, in words an operator can act on.
//!
//! In: findings of reading and checking. Out: one line each, or JSON.
//! Invariants: one problem is one line; no secret is ever part of one; at most `MAX_PROBLEMS` are kept.
//! Not here: the checks themselves (`load.rs`, `validate`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::Serialize;

/// More problems than this are counted, not listed: nobody reads further, and memory stays bounded.
pub const MAX_PROBLEMS: usize = 1000;

/// A value longer than this is cut in a problem's text, so that a line stays a line.
const MAX_FOUND_CHARS: usize = 100;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, but somebody should look.
    Warning,
}

/// One finding: where, which key, what was found, what is allowed, how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file, or the environment variable the value came from.
    pub file: String,
    /// The line in the file, from 1; `None` for a variable or the file as a whole.
    pub line: Option<usize>,
    /// The key's path, such as `uplink[0].server_id`; empty for the file as a whole.
    pub key: String,
    /// The value found, quoted where it is text; masked where it is a secret.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
    /// How to mend it.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if self.severity == Severity::Warning {
            write!(f, " warning:")?;
        }
        for (part, end) in [(&self.key, ":"), (&self.found, ":"), (&self.allowed, ":"), (&self.fix, "")] {
            if !part.is_empty() {
                write!(f, " {part}{end}")?;
            }
        }
        Ok(())
    }
}

/// How [`render_problems`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemFormat {
    /// One line each, for people.
    Text,
    /// One JSON document, for scripts.
    Json,
}

/// All problems as text (a line each) or as one JSON document with `errors`, `warnings` and `problems`.
pub fn render_problems(problems: &[Problem], format: ProblemFormat) -> String {
    match format {
        ProblemFormat::Text => problems.iter().map(|problem| format!("{problem}\n")).collect(),
        ProblemFormat::Json => {
            let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
            let document = serde_json::json!({
                "errors": errors,
                "warnings": problems.len() - errors,
                "problems": problems,
            });
            format!("{document:#}\n")
        }
    }
}

/// Text as a problem shows it: quoted, control characters escaped, cut to a line's length.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_FOUND_CHARS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Collects problems and knows where each key was written.
#[derive(Debug, Default)]
pub(super) struct Report {
    file: String,
    lines: HashMap<String, usize>,
    variables: BTreeMap<String, String>,
    broken: BTreeSet<String>,
    problems: Vec<Problem>,
    left_out: usize,
    errors: usize,
}

impl Report {
    pub fn new(file: String) -> Self {
        Self { file, ..Self::default() }
    }

    /// Learns the line of every key of the file.
    pub fn place(&mut self, lines: HashMap<String, usize>) {
        self.lines = lines;
    }

    /// Notes that the key's value came from this environment variable.
    pub fn came_from_variable(&mut self, key: String, variable: String) {
        self.variables.insert(key, variable);
    }

    /// The variable that set the key, if one did; a secret's `file` or `env` counts for the secret itself.
    pub fn variable(&self, key: &str) -> Option<&str> {
        self.variables
            .get(key)
            .or_else(|| ["env", "file"].iter().find_map(|form| self.variables.get(&format!("{key}.{form}"))))
            .map(String::as_str)
    }

    /// The variables that set a key, by key.
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// The keys the file holds, with their lines.
    pub fn lines(&self) -> &HashMap<String, usize> {
        &self.lines
    }

    /// Nothing more is said about this key and what lies in it: it was dropped after a problem of its own.
    pub fn broken(&mut self, key: &str) {
        self.broken.insert(key.to_owned());
    }

    pub fn error(&mut self, key: &str, found: impl Into<String>, allowed: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Error, key, found.into(), allowed.into(), fix.into());
    }

    pub fn warning(&mut self, key: &str, found: impl Into<String>, allowed: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Warning, key, found.into(), allowed.into(), fix.into());
    }

    fn add(&mut self, severity: Severity, key: &str, found: String, allowed: String, fix: String) {
        if Self::ancestors(key).any(|path| self.broken.contains(path)) {
            return;
        }
        let (file, line) = self.locate(key);
        self.push(Problem { severity, file, line, key: key.to_owned(), found, allowed, fix });
    }

    pub fn push(&mut self, problem: Problem) {
        self.errors += usize::from(problem.severity == Severity::Error);
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.left_out += 1;
        }
    }

    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Where the key was written; a key that is missing stands where its table begins.
    fn locate(&self, key: &str) -> (String, Option<usize>) {
        if let Some(variable) = self.variable(key) {
            return (variable.to_owned(), None);
        }
        let line = Self::ancestors(key).find_map(|path| self.lines.get(path).copied());
        (self.file.clone(), line)
    }

    /// The path itself and those of the tables it lies in, innermost first.
    fn ancestors(key: &str) -> impl Iterator<Item = &str> {
        std::iter::successors(Some(key), |path| path.rfind(['.', '[']).map(|end| &path[..end]))
    }

    /// The problems in the order they are mended: the file as a whole, its lines, then variables.
    pub fn finish(mut self) -> Vec<Problem> {
        let file = self.file.clone();
        self.problems.sort_by_key(|problem| (problem.file != file, problem.line.unwrap_or(0)));
        if self.left_out > 0 {
            self.problems.push(Problem {
                severity: if self.errors > 0 { Severity::Error } else { Severity::Warning },
                file,
                line: None,
                key: String::new(),
                found: format!("{} more problems", self.left_out),
                allowed: format!("the first {MAX_PROBLEMS} are listed"),
                fix: "mend these first".to_owned(),
            });
        }
        self.problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem() -> Problem {
        Problem {
            severity: Severity::Error,
            file: "menshen.toml".into(),
            line: Some(12),
            key: "uplink[0].server_id".into(),
            found: quoted("123"),
            allowed: "must be 20 digits".into(),
            fix: "write the code the platform's operator gave you".into(),
        }
    }

    #[test]
    fn one_problem_is_one_line() {
        assert_eq!(
            problem().to_string(),
            "menshen.toml:12: uplink[0].server_id: \"123\": must be 20 digits: write the code the platform's operator gave you"
        );
        let warning = Problem { severity: Severity::Warning, line: None, ..problem() };
        assert!(warning.to_string().starts_with("menshen.toml: warning: uplink[0].server_id"));
    }

    #[test]
    fn json_counts_and_lists() {
        let text = render_problems(&[problem()], ProblemFormat::Json);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["errors"], 1);
        assert_eq!(json["warnings"], 0);
        assert_eq!(json["problems"][0]["severity"], "error");
        assert_eq!(json["problems"][0]["line"], 12);
    }

    #[test]
    fn values_are_escaped_and_cut() {
        assert_eq!(quoted("a\u{1b}[31m\n"), "\"a\\u{1b}[31m\\n\"");
        assert!(quoted(&"门".repeat(5000)).chars().count() < 110);
    }

    #[test]
    fn a_missing_key_stands_where_its_table_begins() {
        let mut report = Report::new("m.toml".into());
        report.place(HashMap::from([("uplink[1]".to_owned(), 7)]));
        report.error("uplink[1].tls.ca", "missing", "", "");
        report.error("http.listen", "x", "", "");
        let problems = report.finish();
        assert_eq!((problems[0].line, problems[1].line), (None, Some(7)));
    }

    #[test]
    fn the_list_is_bounded() {
        let mut report = Report::new("m.toml".into());
        for n in 0..MAX_PROBLEMS + 5 {
            report.warning(&format!("k{n}"), "", "", "");
        }
        report.error("late", "", "", "");
        assert!(report.has_errors(), "an error past the bound still counts");
        let problems = report.finish();
        assert_eq!(problems.len(), MAX_PROBLEMS + 1);
        assert_eq!(problems.last().unwrap().found, "6 more problems");
    }
}
