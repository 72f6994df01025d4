//! `[http]`: the console, the API, /metrics, /healthz and /readyz. Taken at restart only.
//!
//! Invariants: there is no default password; bound elsewhere than to loopback, TLS, an administrator and a
//! metrics token are demanded (`validate`).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::units::text;

/// `[http]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Http {
    /// Address and port.
    #[serde(deserialize_with = "text")]
    pub listen: SocketAddr,
    /// The administrator's password; without it the changing routes do not exist.
    pub admin_password: Option<Secret>,
    /// Bearer token for /metrics.
    pub metrics_token: Option<Secret>,
    /// PEM certificate chain for HTTPS.
    pub tls_cert: Option<PathBuf>,
    /// PEM private key of `tls_cert`.
    pub tls_key: Option<PathBuf>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 28181)),
            admin_password: None,
            metrics_token: None,
            tls_cert: None,
            tls_key: None,
        }
    }
}
