//! Checks of `[[uplink]]`.
//!
//! Standard: [GB/T28181-2022 9.1.1] for expiry and retry, [GB/T28181-2022 9.6.1] for keepalives.

use std::collections::{BTreeMap, BTreeSet};

use rustls::pki_types::ServerName;

use super::super::Config;
use super::super::problem::{Report, quoted};
use super::super::schema::nearest;
use super::super::units::{Auto, Span};
use super::super::uplink::{Security, SecurityMode, Share, Transport, Uplink};
use super::network::{overlap, unicast};
use super::{area_exists, codes, files, number, plain_text, short_name, span};

pub(super) fn check(config: &Config, report: &mut Report) {
    if config.uplinks.is_empty() {
        report.warning("", "no [[uplink]]", "there is no platform to register with", "add an [[uplink]]");
    }
    let mut names = BTreeMap::new();
    let mut registrations = BTreeMap::new();
    for (n, uplink) in config.uplinks.iter().enumerate() {
        let at = format!("uplink[{n}]");
        one(&at, uplink, config, report);
        if !uplink.name.is_empty()
            && let Some(first) = names.insert(uplink.name.as_str(), n)
        {
            let allowed = format!("uplink[{first}] has the same name");
            report.error(&format!("{at}.name"), quoted(&uplink.name), allowed, "give each uplink its own name");
        }
        if uplink.server_id.is_well_formed()
            && let Some(first) = registrations.insert((&uplink.local_id, &uplink.server_id), n)
        {
            report.error(
                &format!("{at}.local_id"),
                quoted(uplink.local_id.as_str()),
                format!("uplink[{first}] registers the same code with the same server_id"),
                "remove one of them, or use the code the operator gave you for this one",
            );
        }
    }
}

fn one(at: &str, uplink: &Uplink, config: &Config, report: &mut Report) {
    let key = |name: &str| format!("{at}.{name}");
    short_name(&key("name"), &uplink.name, 32, report);
    if matches!(uplink.name.as_str(), "devices" | "other") {
        let allowed = "means all devices, or all strangers, in metrics and traces";
        report.error(&key("name"), quoted(&uplink.name), allowed, "choose another name");
    }
    codes::check_server(&key("server_id"), &uplink.server_id, report);
    if uplink.local_id != config.gateway.id {
        codes::check_own(&key("local_id"), &uplink.local_id, report);
    }
    if uplink.local_id.is_well_formed() && uplink.local_id == uplink.server_id {
        let fix = "one is ours, the other the platform's";
        report.error(&key("server_id"), quoted(uplink.server_id.as_str()), "is our own code", fix);
    }
    addresses(at, uplink, config, report);
    let domain = &uplink.domain;
    if domain.len() > 64 || !domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':')) {
        let fix = "write the ten digits or the host name the operator gave you";
        report.error(&key("domain"), quoted(domain), "must be letters, digits, '.', '-' and ':'", fix);
    }
    plain_text(&key("username"), &uplink.username, 64, report);
    if uplink.username.contains(['"', '\\']) {
        report.error(&key("username"), quoted(&uplink.username), "must not hold quotes or backslashes", "remove them");
    }
    if uplink.password.is_none() {
        let fix = "write the password the operator gave you; without one every challenge fails";
        report.warning(&key("password"), "missing", "a platform usually asks for one", fix);
    }
    span(&key("register_expires"), uplink.register_expires, Span::secs(3600), Span::secs(7 * 86_400), report);
    span(&key("register_retry"), uplink.register_retry, Span::secs(60), Span::secs(3600), report);
    span(&key("keepalive_interval"), uplink.keepalive_interval, Span::secs(5), Span::secs(3600), report);
    number(&key("keepalive_max_missed"), u64::from(uplink.keepalive_max_missed), 1..=20, report);
    let outage = uplink.keepalive_interval.duration().saturating_mul(uplink.keepalive_max_missed);
    if outage >= uplink.register_expires.duration() {
        report.warning(
            &key("keepalive_interval"),
            quoted(&uplink.keepalive_interval.to_string()),
            format!("with keepalive_max_missed it lasts longer than register_expires {}", uplink.register_expires),
            "lower it, so that an outage is noticed before the registration ends",
        );
    }
    if let Auto::Set(items) = uplink.catalog_items_per_message {
        number(&key("catalog_items_per_message"), u64::from(items), 1..=10_000, report);
    }
    number(&key("max_sessions"), u64::from(uplink.max_sessions), 1..=10_000, report);
    if let Some(payload) = uplink.rtp_payload_max {
        number(&key("rtp_payload_max"), u64::from(payload), 600..=1400, report);
    }
    number(&key("stream"), u64::from(uplink.stream), 0..=7, report);
    let without = config.cameras.iter().filter(|camera| camera.rtsp_urls().len() <= usize::from(uplink.stream)).count();
    if uplink.stream > 0 && without > 0 {
        report.warning(
            &key("stream"),
            uplink.stream.to_string(),
            format!("{without} cameras have no stream of this number and are sent with their last one"),
            "add it to their streams, or lower this",
        );
    }
    if uplink.media_networks.is_empty() {
        report.error(&key("media_networks"), "[]", "no media could be sent at all", "write [\"auto\"]");
    }
    shares(at, uplink, config, report);
    let distinct: BTreeSet<String> = uplink.permissions.iter().map(|permission| format!("{permission:?}")).collect();
    if distinct.len() < uplink.permissions.len() {
        report.warning(&key("permissions"), "a list", "one permission is written twice", "remove the second");
    }
    tls(at, uplink, report);
    security(at, &uplink.security, report);
}

fn addresses(at: &str, uplink: &Uplink, config: &Config, report: &mut Report) {
    let key = |name: &str| format!("{at}.{name}");
    let server = uplink.server_addr;
    let shown = quoted(&server.to_string());
    let operator = "write the address and port the platform's operator gave you";
    if server.port() == 0 && server.ip().is_unspecified() {
        report.error(&key("server_addr"), "missing", "must be an IP address and a port", operator);
    } else if server.port() == 0 || server.ip().is_unspecified() || server.ip().is_multicast() {
        report.error(&key("server_addr"), shown, "must be one machine's address and port", operator);
    } else {
        let ours = [Some(config.sip.listen), config.sip.tls.as_ref().map(|tls| tls.listen)];
        let same_machine = |ours: &std::net::SocketAddr| {
            ours.ip() == server.ip() || server.ip().is_loopback() && overlap(*ours, server)
        };
        if ours.iter().flatten().any(|ours| ours.port() == server.port() && same_machine(ours)) {
            report.error(&key("server_addr"), shown, "is our own SIP address", operator);
        }
    }
    unicast(&key("bind"), uplink.bind, "an address of this machine", report);
    unicast(&key("advertised_address"), uplink.advertised_address, "an address the platform reaches us at", report);
    let media = uplink.media_advertised_address;
    unicast(&key("media_advertised_address"), media, "an address the platform reaches us at", report);
    if let Auto::Set(ip) = uplink.bind {
        if ip.is_ipv4() != server.is_ipv4() && server.port() != 0 {
            let allowed = format!("must be of the same family as server_addr {server}");
            report.error(&key("bind"), quoted(&ip.to_string()), allowed, "write an address that reaches the platform");
        }
        let listen = config.sip.listen.ip();
        if !listen.is_unspecified() && listen != ip {
            report.warning(
                &key("bind"),
                quoted(&ip.to_string()),
                format!("sip.listen receives on {listen} only"),
                "let sip.listen be \"0.0.0.0\" with its port, so that this uplink's requests come in",
            );
        }
    }
}

fn shares(at: &str, uplink: &Uplink, config: &Config, report: &mut Report) {
    if uplink.share.is_empty() {
        let fix = "write [\"*\"], areas or channels";
        report.warning(&format!("{at}.share"), "[]", "this platform sees no channel", fix);
    }
    for (n, share) in uplink.share.iter().enumerate() {
        let key = format!("{at}.share[{n}]");
        match share {
            Share::All => {}
            Share::Area(area) => area_exists(&key, &share.to_string(), area, config, report),
            // Channels of registered devices are learnt, so nothing is known about them here.
            Share::Channel(code) if code.is_well_formed() && !config.devices.is_empty() => {}
            Share::Channel(code) => {
                if !config.cameras.iter().any(|camera| camera.id == *code) {
                    let near = nearest(code.as_str(), config.cameras.iter().map(|camera| camera.id.as_str()))
                        .filter(|_| code.is_well_formed());
                    let fix = near.map_or_else(
                        || "write \"*\", \"area:ID\" or the code of a [[camera]]".to_owned(),
                        |near| format!("did you mean {near}?"),
                    );
                    report.error(&key, quoted(code.as_str()), "no camera has this code", fix);
                }
            }
        }
    }
}

fn tls(at: &str, uplink: &Uplink, report: &mut Report) {
    let Some(tls) = &uplink.tls else {
        if uplink.transport == Transport::Tls {
            let fix = format!("add [uplink.tls] with ca or pin_sha256 to {}", uplink.name);
            report.error(&format!("{at}.transport"), "\"tls\"", "needs to know the platform's certificate", fix);
        }
        return;
    };
    let key = |name: &str| format!("{at}.tls.{name}");
    if uplink.transport != Transport::Tls {
        let fix = "write transport = \"tls\", or leave the table out";
        report.warning(&format!("{at}.tls"), "[uplink.tls]", "is not used with this transport", fix);
    } else if tls.ca.is_none() && tls.pin_sha256.is_none() {
        let fix = "name the authority's certificate, or write pin_sha256";
        report.error(&key("ca"), "missing", "ca or pin_sha256 is needed", fix);
    }
    if let Some(pin) = &tls.pin_sha256
        && tls.pin().is_none()
    {
        let fix = "write what openssl x509 -fingerprint -sha256 prints for the platform's certificate";
        report.error(&key("pin_sha256"), quoted(pin), "must be 64 hexadecimal digits", fix);
    }
    if let Some(name) = &tls.server_name
        && ServerName::try_from(name.as_str()).is_err()
    {
        report.error(
            &key("server_name"),
            quoted(name),
            "must be a host name or an IP address",
            "write it without port",
        );
    }
    files::check_both(&key("cert"), &tls.cert, &key("key"), &tls.key, report);
}

fn security(at: &str, security: &Security, report: &mut Report) {
    let key = format!("{at}.security.mode");
    match security.mode {
        SecurityMode::Gb35114 => report.error(
            &key,
            "\"gb35114\"",
            "GB 35114 is not built yet in this version",
            "write mode = \"digest\"; the platform must allow it",
        ),
        SecurityMode::Digest => {
            if *security != Security::default() {
                let fix = "leave the other keys of this table out";
                report.warning(&format!("{at}.security"), "keys of GB 35114", "are not used with mode \"digest\"", fix);
            }
        }
    }
}
