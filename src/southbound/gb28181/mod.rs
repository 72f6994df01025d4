//! Southbound GB/T 28181: cameras, recorders and lower platforms that register with us.
//! Standard: [GB/T28181-2022 9], the upper platform's side.
//!
//! One task, `table`, owns them all: ten thousand devices are ten thousand values, not tasks. What it decides is in pure
//! pieces: `proto::sip::registrar` (who may register, who is there), `call` (a media session), `proto::manscdp::assembly`
//! and `tree` (a catalogue that comes in pieces, and what to believe of it). Media runs on the stream's worker by
//! `media::receive`.

mod call;
mod status;
mod table;

pub use status::{DeviceState, DeviceStatus, PendingStatus};
pub use table::{DeviceTable, TableHandle};

use crate::alarm::AlarmInbox;
use crate::catalog::DirectoryHandle;
use crate::clock::WallClock;
use crate::media::{HubHandle, PlanePolicy};
use crate::metrics::Metrics;
use crate::proto::gb28181::{Charset, DeviceId, Profile, Version};
use crate::proto::sip::registrar::RegistrarConfig;
use crate::store::StoreHandle;
use crate::transport::port_pool::PortPool;
use crate::transport::sip_driver::SipHandle;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How media of a device comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaPolicy {
    /// TCP, the device connects; UDP for devices of 2011.
    Auto,
    /// TCP, the device connects.
    TcpPassive,
    /// TCP, we connect.
    TcpActive,
    /// UDP.
    Udp,
}

/// What the configuration says of a device or a family of devices (`[[device]]`).
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceClass {
    /// Its code, or the digits of a prefix.
    pub id: String,
    /// `id` is a prefix.
    pub prefix: bool,
    /// Devices behind a prefix.
    pub max: usize,
    /// Area of its channels.
    pub area: Option<String>,
    /// Edition it speaks; `None`: as it says, else 2016.
    pub version: Option<Version>,
    /// Charset of what we send; `None`: by edition.
    pub charset: Option<Charset>,
    /// How often its catalogue is asked for.
    pub catalog_interval: Duration,
    /// Whether we subscribe to its catalogue.
    pub catalog_subscribe: bool,
    /// Whether we subscribe to its alarms.
    pub alarm_subscribe: bool,
    /// How media comes.
    pub media: MediaPolicy,
    /// Only the SSRC we asked for.
    pub ssrc_strict: bool,
    /// How its streams are passed on.
    pub plane: PlanePolicy,
    /// Media sessions at once.
    pub max_streams: usize,
    /// How long a stream goes on without viewers.
    pub linger: Duration,
}

impl DeviceClass {
    /// The label of its figures.
    pub fn label(&self) -> String {
        if self.prefix { format!("{}*", self.id) } else { self.id.clone() }
    }

    fn profile(&self, told: Option<Version>) -> Profile {
        let profile = Profile::new(self.version.or(told).unwrap_or(Version::V2016));
        match self.charset {
            Some(charset) => profile.with_charset(charset),
            None => profile,
        }
    }
}

/// The table, by value.
#[derive(Debug, Clone, PartialEq)]
pub struct TableConfig {
    /// Our code.
    pub gateway_id: DeviceId,
    /// Our SIP domain.
    pub domain: String,
    /// Accounts and limits.
    pub registrar: RegistrarConfig,
    /// One a `[[device]]`, in the order of the accounts.
    pub classes: Vec<DeviceClass>,
    /// What Via and Contact say, where it is not the address the device came to.
    pub sip_advertised: Option<IpAddr>,
    /// What SDP says, where it is not the address the device came to.
    pub media_advertised: Option<IpAddr>,
    /// Codes of the configuration that no channel may take.
    pub reserved: Vec<String>,
    /// First ten digits and network digit of codes that are minted.
    pub mint: (String, u8),
}

/// What the table works with.
#[derive(Debug, Clone)]
pub struct TableDeps {
    /// Signalling.
    pub sip: SipHandle,
    /// Streams.
    pub hub: HubHandle,
    /// Channels.
    pub directory: DirectoryHandle,
    /// Bindings and codes.
    pub store: StoreHandle,
    /// Where alarms go.
    pub alarms: AlarmInbox,
    /// Counters.
    pub metrics: Metrics,
    /// Media ports.
    pub ports: PortPool,
    /// The protocol clock.
    pub wall: WallClock,
    /// Where SIP listens.
    pub listeners: Vec<SocketAddr>,
}
