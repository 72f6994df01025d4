//! Replays kept inputs through every parser's fuzz body: all fixtures through all bodies, and what was once found to
//! break one, kept as `tests/fuzz/corpus/<body>/*`. The ignored test searches on for as long as it is told.
//!
//! `MENSHEN_FUZZ_SECONDS=120 cargo test --release --test it -- --ignored fuzz_search` gives each body 120 s (default 10)
//! and keeps what breaks one as `target/fuzz/<body>-<n>`; `MENSHEN_FUZZ_BODY=sdp` searches one body alone,
//! `MENSHEN_FUZZ_SEED=7` along another path.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test of files that are there")]

use menshen::proto::fuzz::{BODIES, Body, mutate};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest piece of a fixture that all bodies get: the media clips are 280 KB, and bodies that go byte by byte are slow.
const PIECE: usize = 16 * 1024;
/// An input that takes longer than this is a finding like one that panics.
const HANG: Duration = Duration::from_secs(1);

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// All files under `path`, in order of their names; none if it is not there.
fn files(path: PathBuf) -> Vec<(PathBuf, Vec<u8>)> {
    let mut open = vec![path];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

fn piece(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(PIECE)]
}

#[test]
fn all_fixtures_pass_all_bodies() {
    let fixtures = files(root("proto-fixtures"));
    assert!(fixtures.len() > 100, "the fixtures are there");
    let mut broken = Vec::new();
    for (path, bytes) in &fixtures {
        for (name, body) in BODIES {
            if catch_unwind(|| body(piece(bytes))).is_err() {
                broken.push(format!("{name}: {}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn all_kept_inputs_pass_their_body() {
    let mut broken = Vec::new();
    for (name, body) in BODIES {
        for (path, bytes) in files(root("tests/fuzz/corpus").join(name)) {
            if catch_unwind(|| body(&bytes)).is_err() {
                broken.push(format!("{name}: {}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
#[ignore = "a search: MENSHEN_FUZZ_SECONDS for each body"]
fn fuzz_search() {
    let number = |name: &str, or: u64| std::env::var(name).ok().map_or(or, |n| n.parse().unwrap());
    let (seconds, seed) = (number("MENSHEN_FUZZ_SECONDS", 10), number("MENSHEN_FUZZ_SEED", 1));
    let only = std::env::var("MENSHEN_FUZZ_BODY").ok();
    assert!(only.as_ref().is_none_or(|only| BODIES.iter().any(|(name, _)| name == only)), "no body of that name");
    let mut found = Vec::new();
    for (name, body) in BODIES.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        found.extend(search(name, *body, Duration::from_secs(seconds), seed));
    }
    assert!(found.is_empty(), "kept as\n{}", found.join("\n"));
}

/// Changes fixtures and kept inputs until the time is over; gives the files of what broke the body, at most ten.
#[allow(clippy::disallowed_methods, reason = "the search is as long as it is told, in real time")]
fn search(name: &str, body: Body, time: Duration, seed: u64) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut seeds: Vec<Vec<u8>> = files(root("proto-fixtures"))
        .iter()
        .chain(&files(root("tests/fuzz/corpus").join(name)))
        .map(|(_, bytes)| piece(bytes).to_vec())
        .collect();
    // Tapes for the bodies that are machines.
    seeds.extend((0..32).map(|_| (0..600).map(|_| rng.random()).collect()));
    let (mut found, mut runs, start) = (Vec::new(), 0u64, Instant::now());
    while start.elapsed() < time && found.len() < 10 {
        let (at, other) = (rng.random_range(0..seeds.len()), rng.random_range(0..seeds.len()));
        let mut input = mutate(&seeds[at], &seeds[other], &mut rng);
        for _ in 0..rng.random_range(0..3) {
            input = mutate(&input, &seeds[other], &mut rng);
        }
        let begun = Instant::now();
        let broke = catch_unwind(|| body(&input)).is_err();
        runs += 1;
        if broke || begun.elapsed() > HANG {
            let path = root("target/fuzz").join(format!("{name}-{}", found.len()));
            std::fs::create_dir_all(root("target/fuzz")).unwrap();
            std::fs::write(&path, &input).unwrap();
            found.push(path.display().to_string());
        }
    }
    eprintln!("{name}: {runs} runs, {} found", found.len());
    found
}
