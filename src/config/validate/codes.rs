//! 20-digit codes, divisions, and codes that must differ.
//!
//! Standard: [GB/T28181-2022 E.1] for the layout, [GB/T28181-2022 E.2] for types; divisions by GB/T 2260.
//! Invariants: one problem per code, the coarsest one.

use std::collections::BTreeMap;

use super::super::Config;
use super::super::code::Code20;
use super::super::problem::{Report, quoted};

/// First two digits of an administrative division.
const PROVINCES: [u8; 34] = [
    11, 12, 13, 14, 15, 21, 22, 23, 31, 32, 33, 34, 35, 36, 37, 41, 42, 43, 44, 45, 46, 50, 51, 52, 53, 54, 61, 62, 63,
    64, 65, 71, 81, 82,
];

fn is_known_province(code: &str) -> bool {
    code.get(..2).and_then(|digits| digits.parse().ok()).is_some_and(|province: u8| PROVINCES.contains(&province))
}

/// Present and 20 digits.
fn is_code(key: &str, code: &Code20, fix: &str, report: &mut Report) -> bool {
    let found = match code {
        code if code.is_well_formed() => return true,
        code if code.is_empty() => "missing".to_owned(),
        code => quoted(code.as_str()),
    };
    let allowed = match code.as_str().chars().count() {
        0 | 20 => "must be 20 digits".to_owned(),
        n => format!("must be 20 digits, this has {n} characters"),
    };
    report.error(key, found, allowed, fix);
    false
}

fn province(key: &str, code: &Code20, report: &mut Report) {
    if !is_known_province(code.as_str()) {
        let fix = "check the code; it begins with the administrative division";
        report.warning(key, quoted(code.as_str()), "its first two digits are no province", fix);
    }
}

/// A code we register with: ours, towards all uplinks or one.
pub(super) fn check_own(key: &str, code: &Code20, report: &mut Report) {
    if !is_code(key, code, "write the code the platform's operator gave you", report) {
        return;
    }
    match code.type_code() {
        Some(200 | 209) => {}
        Some(215 | 216 | 131..=199 | 300..) => report.error(
            key,
            quoted(code.as_str()),
            "must have 200 (platform) as its digits 11-13",
            "write a platform's code; this one belongs to a group, a channel or a user",
        ),
        _ => report.warning(
            key,
            quoted(code.as_str()),
            "a gateway usually has 200 (platform) or 209 (access gateway) as its digits 11-13",
            "ask the platform's operator whether this code is meant",
        ),
    }
    province(key, code, report);
}

/// The code of an upper platform.
pub(super) fn check_server(key: &str, code: &Code20, report: &mut Report) {
    if !is_code(key, code, "write the code the platform's operator gave you", report) {
        return;
    }
    if !matches!(code.type_code(), Some(200..=214 | 217..=299 | 500..=599)) {
        report.warning(
            key,
            quoted(code.as_str()),
            "a platform usually has 200 as its digits 11-13",
            "ask the platform's operator whether this code is meant",
        );
    }
    province(key, code, report);
}

/// The code of a camera's channel.
pub(super) fn check_channel(key: &str, code: &Code20, report: &mut Report) {
    if !is_code(key, code, "give the camera a code of its own and never change it", report) {
        return;
    }
    match code.type_code() {
        Some(131 | 132) => {}
        Some(111..=199) => report.warning(
            key,
            quoted(code.as_str()),
            "a camera usually has 131 or 132 as its digits 11-13",
            "use 132 for a network camera",
        ),
        _ => report.error(
            key,
            quoted(code.as_str()),
            "must have 131 or 132 (camera) as its digits 11-13",
            "use 132 for a network camera; other types are shown as platforms, groups or users",
        ),
    }
    province(key, code, report);
}

/// An administrative division: 2, 4, 6 or 8 digits. Empty was reported where it comes from.
pub(super) fn check_division(key: &str, code: &str, report: &mut Report) {
    if code.is_empty() {
        return;
    }
    if !matches!(code.len(), 2 | 4 | 6 | 8) || !code.bytes().all(|b| b.is_ascii_digit()) {
        report.error(key, quoted(code), "must be 2, 4, 6 or 8 digits", "write the division's code, such as \"411300\"");
    } else if !is_known_province(code) {
        let fix = "write the division's code, such as \"411300\"";
        report.warning(key, quoted(code), "its first two digits are no province", fix);
    }
}

/// Channels must differ from each other, from us and from the platforms.
pub(super) fn check_duplicates(config: &Config, report: &mut Report) {
    let mut taken: BTreeMap<&str, String> = BTreeMap::new();
    let mut own = vec![("gateway.id".to_owned(), &config.gateway.id)];
    for (n, uplink) in config.uplinks.iter().enumerate() {
        own.push((format!("uplink[{n}].local_id"), &uplink.local_id));
        own.push((format!("uplink[{n}].server_id"), &uplink.server_id));
    }
    for (key, code) in own {
        taken.entry(code.as_str()).or_insert(key);
    }
    let devices = config.devices.iter().enumerate().map(|(n, device)| (format!("device[{n}].id"), device.id.as_str()));
    let cameras = config.cameras.iter().enumerate().map(|(n, camera)| (format!("camera[{n}].id"), camera.id.as_str()));
    for (key, code) in cameras.chain(devices) {
        if code.is_empty() {
            continue;
        }
        match taken.get(code) {
            // Two devices of one id are reported with the devices.
            Some(first) if !(first.starts_with("device") && key.starts_with("device")) => {
                report.error(&key, quoted(code), format!("{first} has the same code"), "give it a code of its own")
            }
            Some(_) => {}
            None => _ = taken.insert(code, key),
        }
    }
}
