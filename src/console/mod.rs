//! The console: one page, the JSON API, health and metrics over HTTP; the SIP trace they show; the client that asks for
//! health.
//!
//! In: handles of the running program ([`ConsoleDeps`]), a bound socket. Out: answers, nothing else: no route changes
//! anything. Bound to loopback, reading is open; elsewhere TLS, a login and the metrics token are demanded, whatever the
//! configuration said. The page is plain HTML, CSS and JavaScript inside the binary: no build step, no other host.

mod api;
pub mod client;
mod door;
mod error;
mod guard;
mod redact;
mod router;
pub mod trace;

pub use router::serve;
pub use trace::{TraceMessage, TraceStore};

use crate::catalog::DirectoryHandle;
use crate::clock::WallClock;
use crate::config::{Http, Secret};
use crate::media::HubHandle;
use crate::metrics::Metrics;
use crate::northbound::UplinkBook;
use crate::southbound::gb28181::TableHandle;
use crate::store::StoreHandle;
use crate::transport::sip_driver::{BoundListener, SipHandle};
use crate::transport::tls::{self, TlsError};
use rustls::ServerConfig;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// Settings of the console.
#[derive(Clone, Default)]
pub struct ConsoleConfig {
    /// The administrator's password; asked for only where others than this host can reach us.
    pub admin_password: Option<Secret>,
    /// Bearer token for /metrics, there too.
    pub metrics_token: Option<Secret>,
    /// HTTPS, see `transport::tls::server_config`; may be set on loopback too.
    pub tls: Option<Arc<ServerConfig>>,
}

impl ConsoleConfig {
    /// From `[http]`. Reads certificate and key.
    ///
    /// # Errors
    /// [`ConsoleError::Tls`], naming the file.
    pub fn new(http: &Http) -> Result<Self, ConsoleError> {
        let tls = match (&http.tls_cert, &http.tls_key) {
            (Some(cert), Some(key)) => {
                let identity = tls::Identity { cert: cert.clone(), key: key.clone() };
                Some(tls::server_config(&identity, None)?)
            }
            _ => None,
        };
        Ok(ConsoleConfig {
            admin_password: http.admin_password.clone(),
            metrics_token: http.metrics_token.clone(),
            tls,
        })
    }
}

impl fmt::Debug for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleConfig").field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

/// What the console shows, and whom it asks.
#[derive(Debug, Clone)]
pub struct ConsoleDeps {
    /// Commit the program was built from.
    pub commit: &'static str,
    /// Our 20-digit code.
    pub gateway_id: String,
    /// Our name.
    pub gateway_name: String,
    /// Our clock.
    pub wall: WallClock,
    /// The SIP loop.
    pub sip: SipHandle,
    /// What it listens on.
    pub sip_listeners: Vec<BoundListener>,
    /// Codes, facts, audit log.
    pub store: StoreHandle,
    /// Live streams.
    pub hub: HubHandle,
    /// Channels.
    pub directory: DirectoryHandle,
    /// Every enabled uplink.
    pub uplinks: UplinkBook,
    /// Devices that register with us.
    pub devices: tokio::sync::watch::Receiver<Option<TableHandle>>,
    /// The last SIP messages.
    pub trace: TraceStore,
    /// What /metrics tells.
    pub metrics: Metrics,
}

/// Why the console cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// Others can reach the address, but something that keeps them out is missing.
    #[error("console at {listen} without {what}: set it under [http], or listen on 127.0.0.1")]
    Unprotected {
        /// The address.
        listen: SocketAddr,
        /// The keys of `[http]` that are missing.
        what: &'static str,
    },
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system refused to serve on the socket.
    #[error("the console's socket cannot be used: {0}: check http.listen")]
    Listener(String),
}
