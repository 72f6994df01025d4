//! `[sip]` and `[sip.tls]`: our signalling addresses. Taken at restart only.
//!
//! Standard: [RFC3261 18], [GB/T28181-2022 6.1.2] for the preferred port 5060.
//! Not here: addresses of single uplinks (`uplink.rs`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::units::{Auto, text};

/// `[sip]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sip {
    /// One address for both directions, UDP and TCP on the same port.
    #[serde(deserialize_with = "text")]
    pub listen: SocketAddr,
    /// What we write into Via, Contact and SDP.
    pub advertised_address: Auto<IpAddr>,
    /// `[sip.tls]`: a listener for SIP over TLS; none by default.
    pub tls: Option<SipTls>,
}

impl Default for Sip {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 5060)), advertised_address: Auto::Auto, tls: None }
    }
}

/// `[sip.tls]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SipTls {
    /// Address and port of the TLS listener.
    #[serde(deserialize_with = "text")]
    pub listen: SocketAddr,
    /// PEM certificate chain, ours first. Required.
    pub cert: Option<PathBuf>,
    /// PEM private key of the certificate. Required.
    pub key: Option<PathBuf>,
    /// PEM bundle: who may have issued a client's certificate. Without it no client certificate is asked for.
    pub client_ca: Option<PathBuf>,
}

impl Default for SipTls {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 5061)), cert: None, key: None, client_ca: None }
    }
}
