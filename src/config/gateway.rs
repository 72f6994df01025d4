//! `[gateway]`: who we are, as the upper platforms see us. Taken at restart only.
//!
//! Standard: [GB/T28181-2022 E.1] for the code.
//! Not here: what single upper platforms see instead (`uplink.rs`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::code::Code20;

/// `[gateway]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gateway {
    /// Our 20-digit code, type 200 (platform). Required.
    pub id: Code20,
    /// Our name in catalogue and device information. Required.
    pub name: String,
    /// Administrative division, 2, 4, 6 or 8 digits. Default: first six digits of `id`.
    pub civil_code: String,
    /// Where the store and the audit log live. A relative path starts at the configuration's folder.
    pub data_dir: PathBuf,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            id: Code20::default(),
            name: String::new(),
            civil_code: String::new(),
            data_dir: PathBuf::from("/var/lib/menshen"),
        }
    }
}
