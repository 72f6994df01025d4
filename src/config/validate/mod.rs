//! Checks of a whole configuration: limits of single keys, keys that must fit together, files, the machine.
//!
//! In: the typed, resolved configuration. Out: problems.
//! Invariants: every check runs, whatever others found; nothing is sent, bound or written.
//! Not here: types and unknown keys (`load.rs`).

mod camera;
mod codes;
mod files;
mod network;
mod registrar;
mod uplink;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use tracing_subscriber::EnvFilter;

use super::problem::{Report, quoted};
use super::time::TimeSource;
use super::units::{Auto, ByteSize, Span};
use super::{Config, MASK};

/// Settings of the machine that the configuration must fit.
#[derive(Debug, Clone, Default)]
pub(super) struct Machine {
    /// Local ports the kernel gives to outgoing connections; `None` where it does not tell.
    pub ephemeral_ports: Option<RangeInclusive<u16>>,
    /// Ports the kernel leaves out of it.
    pub reserved_ports: Vec<RangeInclusive<u16>>,
}

impl Machine {
    /// Reads the running kernel's settings.
    pub fn read() -> Self {
        let setting = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
        Self::parse(&setting("ip_local_port_range"), &setting("ip_local_reserved_ports"))
    }

    fn parse(range: &str, reserved: &str) -> Self {
        let mut ends = range.split_whitespace().map_while(|n| n.parse::<u16>().ok());
        Self {
            ephemeral_ports: ends.next().zip(ends.next()).map(|(first, last)| first..=last),
            reserved_ports: reserved
                .trim()
                .split(',')
                .filter_map(|part| {
                    let (first, last) = part.split_once('-').unwrap_or((part, part));
                    Some(first.parse().ok()?..=last.parse().ok()?)
                })
                .collect(),
        }
    }
}

/// Runs every check.
pub(super) fn validate(config: &Config, machine: &Machine, now_unix: i64, report: &mut Report) {
    gateway(config, report);
    time(config, report);
    media(config, report);
    log(config, report);
    areas(config, report);
    http(config, report);
    registrar::check(config, report);
    network::check(config, machine, report);
    codes::check_duplicates(config, report);
    uplink::check(config, report);
    camera::check(config, report);
    files::check(config, now_unix, report);
}

fn gateway(config: &Config, report: &mut Report) {
    let gateway = &config.gateway;
    codes::check_own("gateway.id", &gateway.id, report);
    required_name("gateway.name", &gateway.name, report);
    codes::check_division("gateway.civil_code", &gateway.civil_code, report);
}

fn time(config: &Config, report: &mut Report) {
    if let TimeSource::Uplink(name) = &config.time.source {
        let fix = "name an uplink that exists and is enabled";
        match config.uplinks.iter().find(|uplink| uplink.name == *name) {
            None => {
                report.error("time.source", quoted(&config.time.source.to_string()), "no uplink has this name", fix)
            }
            Some(uplink) if !uplink.enabled => {
                report.error("time.source", quoted(&config.time.source.to_string()), "this uplink is not enabled", fix);
            }
            Some(_) => {}
        }
    }
    span("time.max_step", config.time.max_step, Span::secs(2), Span::secs(86_400), report);
}

fn media(config: &Config, report: &mut Report) {
    let media = &config.media;
    number("media.rtp_payload_max", u64::from(media.rtp_payload_max), 600..=1400, report);
    span("media.slot", media.slot, Span::millis(1), Span::millis(5), report);
    span("media.pacing_max", media.pacing_max, media.slot, Span::millis(100), report);
    span("media.gop_cache_max_age", media.gop_cache_max_age, Span::default(), Span::secs(60), report);
    if media.gop_cache > ByteSize::mib(64) {
        let found = quoted(&media.gop_cache.to_string());
        report.error("media.gop_cache", found, "must be at most 64MiB", "write a smaller size, or 0 for none");
    }
    if let Auto::Set(workers) = media.workers {
        number("media.workers", u64::from(workers), 1..=64, report);
    }
}

fn log(config: &Config, report: &mut Report) {
    if let Err(error) = EnvFilter::try_new(config.log.directives()) {
        report.error(
            "log.filter",
            quoted(&config.log.filter),
            format!("must be a list of module=level ({error})"),
            "write it as \"menshen::northbound=debug,menshen::media=trace\"",
        );
    }
}

fn areas(config: &Config, report: &mut Report) {
    let mut seen = BTreeMap::new();
    for (n, area) in config.areas.iter().enumerate() {
        let key = format!("area[{n}].id");
        short_name(&key, &area.id, 64, report);
        required_name(&format!("area[{n}].name"), &area.name, report);
        if !area.id.is_empty()
            && let Some(first) = seen.insert(area.id.as_str(), n)
        {
            report.error(&key, quoted(&area.id), format!("area[{first}] has the same id"), "give each area its own id");
        }
    }
}

fn http(config: &Config, report: &mut Report) {
    /// Shorter ones are tried out in no time.
    const MIN_PASSWORD_CHARS: usize = 8;
    /// A token is made by a machine, so it can be long.
    const MIN_TOKEN_CHARS: usize = 16;

    let http = &config.http;
    for (key, secret, min) in [
        ("http.admin_password", &http.admin_password, MIN_PASSWORD_CHARS),
        ("http.metrics_token", &http.metrics_token, MIN_TOKEN_CHARS),
    ] {
        if let Some(secret) = secret
            && (1..min).contains(&secret.expose().chars().count())
        {
            report.error(key, MASK, format!("must have at least {min} characters"), "choose a longer one");
        }
    }
    files::check_both("http.tls_cert", &http.tls_cert, "http.tls_key", &http.tls_key, report);
    if !http.listen.ip().is_loopback() {
        let reason = format!("is needed, because http.listen {} is not loopback", http.listen);
        let missing = [
            ("http.tls_cert", http.tls_cert.is_none() && http.tls_key.is_none()),
            ("http.admin_password", http.admin_password.is_none()),
            ("http.metrics_token", http.metrics_token.is_none()),
        ];
        for (key, _) in missing.iter().filter(|(_, missing)| *missing) {
            report.error(key, "missing", reason.clone(), "add it, or listen on 127.0.0.1");
        }
    }
}

/// `found` is what was written, where that is more than the area's id.
fn area_exists(key: &str, found: &str, area: &str, config: &Config, report: &mut Report) {
    if !config.areas.iter().any(|known| known.id == area) {
        let known = config.areas.iter().map(|known| known.id.as_str());
        let fix = match super::schema::nearest(area, known) {
            Some(near) => format!("did you mean {near}?"),
            None => "add an [[area]] with this id".to_owned(),
        };
        report.error(key, quoted(found), "no area has this id", fix);
    }
}

/// A name people read: there, one line, and no longer than a catalogue takes.
fn required_name(key: &str, name: &str, report: &mut Report) {
    if name.trim().is_empty() {
        report.error(
            key,
            if name.is_empty() { "missing".to_owned() } else { quoted(name) },
            "is needed",
            "write a name",
        );
    } else {
        plain_text(key, name, 128, report);
    }
}

/// Text that goes into headers and XML: no control characters, bounded.
fn plain_text(key: &str, text: &str, max_chars: usize, report: &mut Report) {
    if text.chars().any(char::is_control) {
        report.error(key, quoted(text), "must be one line of text", "remove the control characters");
    } else if text.chars().count() > max_chars {
        report.error(key, quoted(text), format!("must have at most {max_chars} characters"), "shorten it");
    }
}

/// A name that programs use: letters, digits, `_`, `-`, `.`.
fn short_name(key: &str, name: &str, max: usize, report: &mut Report) {
    if name.is_empty() {
        report.error(key, "missing", "is needed", "write a short name");
    } else if name.len() > max || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) {
        report.error(
            key,
            quoted(name),
            format!("must be at most {max} letters a-z, digits, '_', '-' or '.'"),
            "choose a plain short name; the name people read may be Chinese",
        );
    }
}

fn span(key: &str, value: Span, min: Span, max: Span, report: &mut Report) {
    if value < min || value > max {
        let fix = format!("write \"{}\"", if value < min { min } else { max });
        report.error(key, quoted(&value.to_string()), format!("must be {min} to {max}"), fix);
    }
}

fn number(key: &str, value: u64, allowed: RangeInclusive<u64>, report: &mut Report) {
    let (min, max) = (*allowed.start(), *allowed.end());
    if !allowed.contains(&value) {
        report.error(
            key,
            value.to_string(),
            format!("must be {min} to {max}"),
            format!("write {}", value.clamp(min, max)),
        );
    }
}
