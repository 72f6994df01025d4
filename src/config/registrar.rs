//! `[registrar]` and `[[device]]`: GB/T 28181 cameras, recorders and lower platforms that register with us.
//!
//! Standard: [GB/T28181-2022 9.1].
//! Invariants: keys are read and checked; since no device is served yet, every table is answered with a warning.

use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::units::Cidr;

/// `[registrar]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Registrar {
    /// Who may try to register at all; empty: anybody.
    pub networks: Vec<Cidr>,
    /// What becomes of an unknown code that tries.
    pub pending: PendingPolicy,
}

/// What becomes of an unknown code that tries to register. Never added by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingPolicy {
    /// Refused, and listed for the administrator.
    #[default]
    List,
    /// Refused.
    Refuse,
}

/// `[[device]]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// One 20-digit code, or a prefix of one ending in `*` with `max`. Required.
    pub id: String,
    /// How many devices may match a prefix, 1 to 10,000.
    pub max: Option<u32>,
    /// What the device must know. Required.
    pub password: Option<Secret>,
    /// Area of its channels.
    pub area: Option<String>,
}
