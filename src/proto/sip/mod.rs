//! SIP as a sans-IO stack. Standard: [RFC3261], [RFC3581], [RFC6026], [GB/T28181-2022 2 and 9].
//!
//! Read in this order: `message` (values), `parse` and `write` (bytes; `parse` is the only user of rsip, whose traps
//! `normalize` keeps away), `framer` (streams), `header` (typed readers), `endpoint` (transactions; one value per
//! process, driven by `transport::sip_driver`), `dialog`, `registration` (a registering client), `registrar` (the server
//! devices register with), `digest`.
//! Invariant: every mutation of an endpoint or a registration is followed by draining `poll_output`.

pub mod dialog;
pub mod digest;
pub mod endpoint;
mod fields;
pub mod framer;
pub mod header;
pub mod message;
pub mod normalize;
pub mod parse;
pub mod registrar;
pub mod registration;
pub mod status;
pub mod timer;
mod transaction;
pub mod write;

/// The methods of SIP and its extensions, and the draft method `DO`, as a closed set to count by;
/// case-sensitive [RFC3261 7.1]. Anything else is `None`.
pub fn known_method(method: &str) -> Option<&'static str> {
    const KNOWN: [&str; 15] = [
        "REGISTER",
        "MESSAGE",
        "INVITE",
        "ACK",
        "BYE",
        "CANCEL",
        "INFO",
        "SUBSCRIBE",
        "NOTIFY",
        "OPTIONS",
        "UPDATE",
        "PRACK",
        "REFER",
        "PUBLISH",
        "DO",
    ];
    KNOWN.into_iter().find(|known| *known == method)
}
