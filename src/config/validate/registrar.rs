//! `[registrar]` and `[[device]]`.
//!
//! Standard: [GB/T28181-2022 9.1.1, 9.6.1] for times.
//! Invariants: every key of every device is looked at.

use std::collections::BTreeMap;

use super::super::Config;
use super::super::problem::{Report, quoted};
use super::super::units::Span;
use super::{area_exists, number, span};

/// More devices than this behind one prefix is a mistake in the prefix.
const MAX_DEVICES: u64 = 10_000;

pub(super) fn check(config: &Config, report: &mut Report) {
    if let Some(registrar) = &config.registrar {
        if registrar.algorithms.is_empty() {
            report.error("registrar.algorithms", "[]", "at least one is needed", "write [\"md5\"]");
        }
        span("registrar.expires_min", registrar.expires_min, Span::secs(60), Span::secs(3600), report);
        span("registrar.expires_max", registrar.expires_max, Span::secs(3600), Span::secs(7 * 86_400), report);
        number("registrar.lockout_failures", u64::from(registrar.lockout_failures), 3..=100, report);
        span("registrar.lockout_time", registrar.lockout_time, Span::secs(10), Span::secs(3600), report);
    }
    let mut seen = BTreeMap::new();
    for (n, device) in config.devices.iter().enumerate() {
        let at = format!("device[{n}]");
        let id = &device.id;
        let key = format!("{at}.id");
        let prefix = id.strip_suffix('*');
        let digits = prefix.unwrap_or(id);
        let length_fits = if prefix.is_some() { (1..20).contains(&digits.len()) } else { digits.len() == 20 };
        if id.is_empty() {
            report.error(&key, "missing", "must be 20 digits, or a prefix with *", "write the device's code");
        } else if !length_fits || !digits.bytes().all(|b| b.is_ascii_digit()) {
            report.error(&key, quoted(id), "must be 20 digits, or a prefix with *", "write the device's code");
        } else if let Some(first) = seen.insert(id.as_str(), n) {
            report.error(&key, quoted(id), format!("device[{first}] has the same id"), "write each device once");
        }
        let key = format!("{at}.max");
        match (prefix.is_some(), device.max) {
            (true, None) => report.error(&key, "missing", "is needed with a prefix", "write how many may match"),
            (true, Some(max)) => number(&key, u64::from(max), 1..=MAX_DEVICES, report),
            (false, Some(max)) => {
                report.error(&key, max.to_string(), "only fits a prefix with *", "leave it out");
            }
            (false, None) => {}
        }
        if device.password.is_none() {
            let key = format!("{at}.password");
            report.error(&key, "missing", "is needed, no device comes in without", "write what the device knows");
        }
        if let Some(area) = &device.area {
            area_exists(&format!("{at}.area"), area, area, config, report);
        }
        let key = |name: &str| format!("{at}.{name}");
        span(&key("keepalive_interval"), device.keepalive_interval, Span::secs(5), Span::secs(3600), report);
        number(&key("keepalive_max_missed"), u64::from(device.keepalive_max_missed), 1..=20, report);
        span(&key("catalog_interval"), device.catalog_interval, Span::secs(60), Span::secs(86_400), report);
        number(&key("max_streams"), u64::from(device.max_streams), 1..=1000, report);
        span(&key("linger"), device.linger, Span::default(), Span::secs(3600), report);
    }
}
