//! Addresses and ports: ranges, overlaps, and the ports the kernel gives away.
//!
//! In: every listener and the media range. Out: problems.
//! Invariants: nothing is bound; port 0 (any free port) never overlaps.

use std::net::{IpAddr, SocketAddr};

use super::super::Config;
use super::super::problem::{Report, quoted};
use super::super::units::{Auto, PortRange};
use super::Machine;

/// Below are the ports of other services.
const FIRST_MEDIA_PORT: u16 = 1024;

pub(super) fn check(config: &Config, machine: &Machine, report: &mut Report) {
    let mut listeners = vec![("sip.listen", config.sip.listen)];
    if let Some(tls) = &config.sip.tls {
        listeners.push(("sip.tls.listen", tls.listen));
    }
    listeners.push(("http.listen", config.http.listen));

    let range = config.media.port_range;
    let shown = quoted(&range.to_string());
    if range.size() < 2 {
        report.error("media.port_range", shown.clone(), "must hold at least 2 ports", "a session takes two");
    }
    if range.first < FIRST_MEDIA_PORT {
        let allowed = format!("must begin at {FIRST_MEDIA_PORT} or above");
        report.error("media.port_range", shown.clone(), allowed, "write it as \"20000-27999\"");
    }
    if overlaps_ephemeral(range, machine) {
        report.warning(
            "media.port_range",
            shown.clone(),
            format!("overlaps the kernel's ephemeral ports {}", ephemeral(machine)),
            format!("choose ports outside, or add {range} to net.ipv4.ip_local_reserved_ports"),
        );
    }
    let sessions: u64 = config.uplinks.iter().filter(|u| u.enabled).map(|uplink| u64::from(uplink.max_sessions)).sum();
    if range.size() >= 2 && u64::from(range.size() / 2) < sessions {
        report.warning(
            "media.port_range",
            shown,
            format!("holds {} sessions, the uplinks may ask for {sessions}", range.size() / 2),
            "widen it, or lower max_sessions",
        );
    }

    for (n, (key, address)) in listeners.iter().enumerate() {
        let found = quoted(&address.to_string());
        let port = address.port();
        if address.ip().is_multicast() {
            report.error(key, found.clone(), "must be an address of this machine", "write \"0.0.0.0\" for all of them");
        }
        if port == 0 {
            report.warning(key, found, "port 0 is another port at every start", "write the port the other side knows");
            continue;
        }
        for (other, taken) in &listeners[..n] {
            if overlap(*address, *taken) {
                report.error(key, found.clone(), format!("{other} has the same port"), "give each its own port");
            }
        }
        if range.contains(port) {
            report.error(
                key,
                found.clone(),
                format!("the port lies in media.port_range {range}"),
                "choose a port outside it",
            );
        }
        if overlaps_ephemeral(PortRange { first: port, last: port }, machine) {
            report.warning(
                key,
                found,
                format!("the port lies in the kernel's ephemeral ports {}", ephemeral(machine)),
                format!("choose a port outside, or add {port} to net.ipv4.ip_local_reserved_ports"),
            );
        }
    }

    for (key, address) in [
        ("sip.advertised_address", config.sip.advertised_address),
        ("media.advertised_address", config.media.advertised_address),
    ] {
        unicast(key, address, "an address others reach us at", report);
    }
}

/// Not a wildcard, not multicast.
pub(super) fn unicast(key: &str, address: Auto<IpAddr>, what: &str, report: &mut Report) {
    if let Auto::Set(ip) = address
        && (ip.is_unspecified() || ip.is_multicast())
    {
        report.error(key, quoted(&ip.to_string()), format!("must be {what}"), "write one address, or \"auto\"");
    }
}

/// Whether two listeners cannot both be bound: the same port, and one address covers the other.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |a: SocketAddr, b: SocketAddr| a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    a.port() == b.port() && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}

fn ephemeral(machine: &Machine) -> String {
    machine.ephemeral_ports.as_ref().map_or_else(String::new, |ports| format!("{}-{}", ports.start(), ports.end()))
}

/// Whether a port of the range may be given away by the kernel; reserved ones are not.
fn overlaps_ephemeral(range: PortRange, machine: &Machine) -> bool {
    let Some(ports) = &machine.ephemeral_ports else {
        return false;
    };
    (range.first..=range.last)
        .any(|port| ports.contains(&port) && !machine.reserved_ports.iter().any(|reserved| reserved.contains(&port)))
}
