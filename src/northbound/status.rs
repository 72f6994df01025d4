//! How an uplink stands, for the console and /readyz: published by the link, read by anybody.

use super::ladder::Ladder;
use crate::catalog::ViewSpec;
use serde::Serialize;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// One media session.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CallStatus {
    /// SIP Call-ID.
    pub call_id: String,
    /// `live`, `playback`, `download`.
    pub kind: &'static str,
    /// Channel code.
    pub channel: String,
    /// The part of the recording, start and end in Unix seconds; None for live pictures.
    pub time: Option<(u64, u64)>,
    /// GB stream number.
    pub stream: u8,
    /// `udp`, `tcp_passive`, `tcp_active` (our side).
    pub transport: &'static str,
    /// Where media goes.
    pub remote: String,
    /// Ten decimal digits.
    pub ssrc: String,
    /// `preparing`, `answered`, `established`.
    pub state: &'static str,
    /// Unix milliseconds.
    pub since_ms: i64,
    /// `mux`: elementary streams are put into PS here.
    pub plane: &'static str,
}

/// One uplink.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UplinkStatus {
    /// Configured name.
    pub name: String,
    /// The platform's code.
    pub server_id: String,
    /// Its address now (a redirect may have changed it).
    pub server_addr: String,
    /// Our code towards it.
    pub local_id: String,
    /// `udp`, `tcp`, `tls`.
    pub transport: &'static str,
    /// `2011`, `2014`, `2016`, `2022`: how we speak to it now.
    pub standard: &'static str,
    /// Charset of what we send.
    pub charset: &'static str,
    /// `idle`, `registering`, `registered`, `waiting`, `unregistering`, `stopped`.
    pub state: &'static str,
    /// True while the last REGISTER stands.
    pub registered: bool,
    /// Since when it is in `state`, Unix milliseconds.
    pub since_ms: i64,
    /// Why it is not registered; empty when it is.
    pub reason: String,
    /// Our address as this platform is told (Via, Contact).
    pub advertised: String,
    /// Its clock minus ours, milliseconds, when it told.
    pub clock_offset_ms: Option<i64>,
    /// Step by step.
    pub ladder: Ladder,
    /// Sessions.
    pub calls: Vec<CallStatus>,
    /// Catalogue subscriptions.
    pub subscriptions: usize,
    /// What it sees.
    #[serde(skip)]
    pub spec: ViewSpec,
}

/// All uplinks by name.
pub type UplinkBook = watch::Receiver<BTreeMap<String, watch::Receiver<UplinkStatus>>>;
