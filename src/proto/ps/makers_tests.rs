//! Program streams of independent makers, access unit for access unit as another demuxer has them (see `proto-fixtures/ps`).

use crate::proto::codec::annexb::{leading_start_code, trim_zeros};
use crate::proto::ps::{DemuxConfig, Demuxer, Unit};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::PathBuf;

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("proto-fixtures/ps")
}

/// From the first `00 00 01` on, without zeros at the end: whose those are is a matter of taste.
fn bare(unit: &[u8]) -> &[u8] {
    trim_zeros(&unit[leading_start_code(unit).unwrap() - 3..])
}

/// SHA-256 of every access unit, pushed in pieces of `piece` bytes.
fn access_units(stream: &[u8], piece: usize) -> Vec<String> {
    let mut demuxer = Demuxer::new(DemuxConfig::default());
    let mut units = Vec::new();
    let mut pull = |demuxer: &mut Demuxer| {
        while let Some(unit) = demuxer.pull() {
            match unit {
                Unit::Video { annexb, .. } => units.push(hex(bare(&annexb))),
                Unit::Audio { .. } => {}
                Unit::Gap => panic!("nothing is missing"),
            }
        }
    };
    for piece in stream.chunks(piece) {
        demuxer.push(piece);
        pull(&mut demuxer);
    }
    demuxer.finish();
    pull(&mut demuxer);
    units
}

#[test]
fn every_access_unit_is_as_another_demuxer_has_it() {
    let mut seen = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "ps") {
            continue;
        }
        seen += 1;
        let stream = std::fs::read(&path).unwrap();
        let listed = std::fs::read_to_string(path.with_extension("sha256")).unwrap();
        let expected: Vec<&str> = listed.split_whitespace().collect();
        for piece in [1400, 1, 7, 65_536] {
            let got = access_units(&stream, piece);
            let differs = got.iter().zip(&expected).position(|(g, e)| g != e);
            assert_eq!((got.len(), differs), (expected.len(), None), "{} in pieces of {piece}", path.display());
        }
    }
    assert!(seen >= 11, "{seen}");
}

#[test]
fn the_manifest_is_true() {
    let manifest = std::fs::read_to_string(fixtures().join("MANIFEST.toml")).unwrap();
    let mut seen = 0;
    for file in manifest.split("[[file]]").skip(1) {
        let value = |name: &str| {
            let line = file.lines().find(|l| l.split('=').next().is_some_and(|key| key.trim() == name)).unwrap();
            line.split_once('=').unwrap().1.trim().trim_matches('"').to_owned()
        };
        let bytes = std::fs::read(fixtures().join(value("name"))).unwrap();
        assert_eq!((bytes.len().to_string(), hex(&bytes)), (value("bytes"), value("sha256")), "{}", value("name"));
        assert_eq!(access_units(&bytes, 1400).len().to_string(), value("frames"), "{}", value("name"));
        seen += 1;
    }
    assert_eq!(seen, 8);
}
