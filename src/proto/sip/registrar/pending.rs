//! Unknown devices that have tried to register, for the operator to look at.
//!
//! Standard: none.
//! In: tries of ids without account. Out: the list.
//! Invariants: at most `MAX_PENDING`; the one that has not tried for longest makes room. Nobody gets in by being listed.
//! Not here: whether a try may be listed at all (`registrar`: right network, and a nonce of ours was answered).

use super::super::message::Flow;
use super::table::cut_user_agent;
use crate::proto::gb28181::DeviceId;
use std::net::SocketAddr;

/// Most devices listed: more than anybody sets up between two looks at the list.
pub const MAX_PENDING: usize = 256;

/// An unknown device. All of it is its own word, but for the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingDevice {
    /// What it calls itself: 20 digits.
    pub id: DeviceId,
    /// Where it tried from last.
    pub source: SocketAddr,
    /// Its User-Agent, cut.
    pub user_agent: Box<str>,
    /// First try since it is listed, Unix milliseconds.
    pub first_seen_unix_ms: i64,
    /// Last try.
    pub last_seen_unix_ms: i64,
    /// How often, with an answered challenge.
    pub tries: u32,
}

#[derive(Debug, Default)]
pub(super) struct PendingList {
    /// The last to try comes last.
    devices: Vec<PendingDevice>,
}

impl PendingList {
    /// Notes a try; gives the device when it is new on the list, and whether another had to go for it.
    pub fn tried(
        &mut self,
        id: &DeviceId,
        flow: &Flow,
        user_agent: &str,
        unix_ms: i64,
    ) -> (Option<PendingDevice>, bool) {
        let user_agent = cut_user_agent(user_agent);
        if let Some(at) = self.devices.iter().position(|device| device.id == *id) {
            let mut device = self.devices.remove(at);
            (device.source, device.user_agent, device.last_seen_unix_ms) = (flow.peer, user_agent, unix_ms);
            device.tries = device.tries.saturating_add(1);
            self.devices.push(device);
            return (None, false);
        }
        let overflow = self.devices.len() >= MAX_PENDING;
        if overflow {
            self.devices.remove(0);
        }
        let device = PendingDevice {
            id: *id,
            source: flow.peer,
            user_agent,
            first_seen_unix_ms: unix_ms,
            last_seen_unix_ms: unix_ms,
            tries: 1,
        };
        self.devices.push(device.clone());
        (Some(device), overflow)
    }

    pub fn iter(&self) -> impl Iterator<Item = &PendingDevice> {
        self.devices.iter()
    }

    pub fn retain(&mut self, keep: impl FnMut(&PendingDevice) -> bool) {
        self.devices.retain(keep);
    }
}
