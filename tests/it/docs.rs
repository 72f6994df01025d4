//! Documentation as code: what README, dashboards and fixtures say is so.

use menshen::metrics::NAMES;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else {
            out.push(path);
        }
    }
}

#[test]
fn every_metric_is_in_the_readme() {
    let readme = read("README.md");
    for name in NAMES {
        assert!(readme.contains(name), "README does not name {name}");
    }
}

/// Words that look like our metrics, without the suffixes of histograms.
fn metric_words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|w| w.starts_with("menshen_"))
        .map(|w| ["_bucket", "_sum", "_count"].iter().find_map(|s| w.strip_suffix(s)).unwrap_or(w).to_owned())
        .collect()
}

#[test]
fn dashboards_and_alerts_use_metrics_that_exist() {
    for path in ["docker/prometheus/alerts.yml", "docker/grafana/menshen.json"] {
        let words = metric_words(&read(path));
        assert!(!words.is_empty(), "{path}");
        for word in words {
            assert!(NAMES.contains(&word.as_str()), "{path} uses {word}, which does not exist");
        }
    }
}

#[test]
fn clauses_are_cited_in_one_form() {
    let mut sources = Vec::new();
    files(&root().join("src"), &mut sources);
    let mut clauses = 0;
    for path in sources.iter().filter(|p| p.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(path).unwrap();
        for (at, _) in text.match_indices("[GB/T28181") {
            let inside = text[at + 1..].split(']').next().unwrap_or_default();
            let year = inside.get(10..14).unwrap_or_default();
            assert!(
                inside.starts_with("GB/T28181-") && ["2011", "2016", "2022"].contains(&year) && inside.len() < 80,
                "{}: [{inside}]",
                path.display()
            );
            clauses += 1;
        }
    }
    assert!(clauses > 50, "{clauses} citations");
}

#[test]
fn nothing_here_names_a_machine_or_a_registry_host() {
    let mut all = Vec::new();
    for dir in ["src", "config", "tests", "docker", "benches", "proto-fixtures"] {
        if root().join(dir).exists() {
            files(&root().join(dir), &mut all);
        }
    }
    all.push(root().join("README.md"));
    let forbidden = [["/work", "/"].concat(), ["crates", ".io"].concat(), ["github", ".com"].concat()];
    for path in all {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for word in &forbidden {
            assert!(!text.contains(word.as_str()), "{} names {word}", path.display());
        }
    }
}

#[test]
fn every_fixture_folder_says_where_its_files_come_from() {
    for entry in std::fs::read_dir(root().join("proto-fixtures")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let told = ["MANIFEST.toml", "README.md"].iter().any(|f| path.join(f).exists());
            assert!(told, "{} has neither MANIFEST.toml nor README.md", path.display());
        }
    }
}
