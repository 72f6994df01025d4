//! How registered devices stand, for the console.
//! In: what the table knows. Out: values. Owner: none.

use serde::Serialize;

/// Where a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// Registered and heard.
    Online,
    /// Registered, but its keepalives are missing; or known from before a restart and not heard yet.
    Silent,
    /// Not registered.
    Offline,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceStatus {
    /// Its code.
    pub id: String,
    /// The `[[device]]` it belongs to.
    pub class: String,
    /// Where it stands.
    pub state: DeviceState,
    /// Why, for people.
    pub reason: String,
    /// Since when, Unix milliseconds.
    pub since_ms: i64,
    /// Where it registered from.
    pub source: String,
    /// `UDP`, `TCP`, `TLS`.
    pub transport: &'static str,
    /// Edition it speaks.
    pub standard: &'static str,
    /// `User-Agent`.
    pub user_agent: String,
    /// Manufacturer, as it told.
    pub manufacturer: String,
    /// Model, as it told.
    pub model: String,
    /// Channels that can be played.
    pub channels: usize,
    /// When its catalogue was last had whole, Unix milliseconds.
    pub catalog_at_ms: Option<i64>,
    /// How news of it come: `subscription` (a NOTIFY has come), `subscribed` (none yet), `polling`.
    pub catalog_mode: &'static str,
    /// What was odd in its catalogue and was mended, by rule.
    pub catalog_policies: Vec<&'static str>,
    /// Why the last catalogue query came to nothing.
    pub catalog_failure: String,
    /// Media sessions now.
    pub streams: usize,
    /// How the last media session that failed ended.
    pub media_failure: String,
}

/// A stranger that would like to register.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PendingStatus {
    /// The code it says it has.
    pub id: String,
    /// From where.
    pub source: String,
    /// `User-Agent`.
    pub user_agent: String,
    /// How often it tried.
    pub tries: u64,
}
