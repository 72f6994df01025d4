//! Northbound: one link per upper platform. It registers, answers what it is asked, sends what was subscribed, and
//! gives out live streams.
//!
//! `link` is the actor; what it decides is in pure pieces beside it: `invite` (an INVITE's offer), `call` (a media
//! session), `alarm_notify` (the alarm outbox), `message` (answers to MESSAGE), `relayed` (a device's answers in our
//! words), `paged_reply` (lists), `subscription` (catalogue notices), `ladder` (how far we got, and what to do). The
//! registering itself is `proto::sip::registration`.

mod alarm_notify;
mod call;
mod invite;
pub mod ladder;
mod link;
mod message;
mod paged_reply;
mod relayed;
mod status;
mod subscription;

pub use status::{CallStatus, UplinkBook, UplinkStatus};

use crate::alarm::AlarmInbox;
use crate::catalog::{DirectoryHandle, Share, ViewSpec};
use crate::clock::WallClock;
use crate::config::{Auto, MediaNetwork, ParentIds, Share as ConfigShare, Uplink};
use crate::media::HubHandle;
use crate::metrics::Metrics;
use crate::proto::gb28181::{DeviceId, Version};
use crate::store::StoreHandle;
use crate::task::{Backoff, Policy, Scope};
use crate::transport::port_pool::PortPool;
use crate::transport::sip_driver::SipHandle;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// One uplink, by value.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkConfig {
    /// `[[uplink]]`.
    pub uplink: Uplink,
    /// Our name on its tree.
    pub gateway_name: String,
    /// Civil code of the gateway.
    pub civil_code: String,
    /// The SIP listener it uses.
    pub listener: SocketAddr,
    /// `sip.advertised_address`.
    pub sip_advertised: Option<IpAddr>,
    /// What SDP says, where it differs from the SIP address.
    pub media_advertised: Option<IpAddr>,
    /// RTP payload bytes.
    pub rtp_payload_max: u16,
    /// The protocol clock follows this uplink.
    pub is_time_source: bool,
    /// `time.max_step`.
    pub max_clock_step: Duration,
}

impl LinkConfig {
    /// The configured local address, if any.
    fn bind_ip(&self) -> Option<IpAddr> {
        self.uplink.bind.set().or_else(|| (!self.listener.ip().is_unspecified()).then(|| self.listener.ip()))
    }

    fn view_spec(&self, local_id: DeviceId, version: Version) -> ViewSpec {
        let share = self.uplink.share.iter().map(|s| match s {
            ConfigShare::All => Share::All,
            ConfigShare::Area(area) => Share::Area(area.clone()),
            ConfigShare::Channel(code) => Share::Channel(code.to_string()),
        });
        ViewSpec {
            local_id,
            name: self.gateway_name.clone(),
            civil_code: self.civil_code.clone(),
            share: share.collect(),
            groups: self.uplink.groups,
            multi_parent: self.uplink.parent_ids == ParentIds::Multi,
            version,
        }
    }

    /// Whether media may go there: never a reflection towards others, ourselves, or the link's own segment. A platform
    /// that runs on this machine may receive on this machine, but not on our own sockets.
    fn media_allowed(&self, to: SocketAddr, own: &OwnSockets) -> bool {
        let (ip, server) = (to.ip().to_canonical(), self.uplink.server_addr.ip());
        let ours = |ip: IpAddr| ip.is_loopback() || own.addresses.contains(&ip);
        self.uplink.media_networks.iter().any(|network| match network {
            MediaNetwork::Net(cidr) => cidr.contains(ip),
            MediaNetwork::Auto => {
                let link_local = match ip {
                    IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
                    IpAddr::V6(v6) => v6.is_unicast_link_local(),
                };
                let here = match ip.is_loopback() {
                    true => server.is_loopback(),
                    false => !ours(ip) || ours(server),
                };
                let socket = ours(ip) && own.ports.contains(&to.port());
                !link_local && !ip.is_multicast() && !ip.is_unspecified() && here && !socket
            }
        })
    }
}

/// Where this process itself listens: never a destination of media.
#[derive(Debug, Clone, Default)]
pub struct OwnSockets {
    /// Addresses of our own interfaces.
    pub addresses: Arc<[IpAddr]>,
    /// Ports of our SIP and HTTP listeners.
    pub ports: Arc<[u16]>,
}

/// What a link works with.
#[derive(Debug, Clone)]
pub struct LinkDeps {
    /// Signalling.
    pub sip: SipHandle,
    /// Streams.
    pub hub: HubHandle,
    /// Channels.
    pub directory: DirectoryHandle,
    /// Learnt facts, audit, the alarm outbox.
    pub store: StoreHandle,
    /// Tells when there are new alarms, and hears to whom they are owed.
    pub alarms: AlarmInbox,
    /// Counters.
    pub metrics: Metrics,
    /// Media ports.
    pub ports: PortPool,
    /// The protocol clock.
    pub wall: WallClock,
    /// Never a media destination.
    pub own: OwnSockets,
    /// Where the link tells how it stands.
    pub status: watch::Sender<UplinkStatus>,
}

impl UplinkStatus {
    /// Before the link has said anything.
    pub fn initial(cfg: &LinkConfig) -> Option<UplinkStatus> {
        let local_id = DeviceId::parse(cfg.uplink.local_id.as_str()).ok()?;
        Some(UplinkStatus {
            name: cfg.uplink.name.clone(),
            server_id: cfg.uplink.server_id.to_string(),
            server_addr: cfg.uplink.server_addr.to_string(),
            local_id: local_id.to_string(),
            transport: "",
            standard: "",
            charset: "",
            state: "idle",
            registered: false,
            since_ms: 0,
            reason: String::new(),
            advertised: String::new(),
            clock_offset_ms: None,
            ladder: ladder::Ladder::default(),
            calls: Vec::new(),
            subscriptions: 0,
            spec: cfg.view_spec(local_id, Version::V2016),
        })
    }
}

/// First and longest wait before a link that failed is started again.
const RESTART: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Starts a link in `scope`. It says goodbye when the scope is cancelled; a link that fails is started anew, later each
/// time.
pub fn spawn(cfg: LinkConfig, deps: LinkDeps, scope: &Scope, seed: u64) {
    // From now on, not only from when the link runs: a link that fails must not lose what happens meanwhile.
    deps.metrics.add_uplink(&cfg.uplink.name);
    if let Ok(local_id) = DeviceId::parse(cfg.uplink.local_id.as_str()) {
        deps.alarms.set_audience(&cfg.uplink.name, cfg.view_spec(local_id, Version::V2016));
    }
    let backoff = Backoff::try_new(RESTART.0, RESTART.1, 0.2).expect("the limits are in order and above zero");
    let mut round = 0u64;
    scope.supervise("link", Policy::Restart { backoff, seed }, move |token| {
        let (cfg, deps, seed) = (cfg.clone(), deps.clone(), seed.wrapping_add(round));
        round += 1;
        async move {
            // None: the SIP driver is gone, and the process with it.
            let Some(link) = link::Link::new(cfg, deps, seed).await else { return Ok(()) };
            link.run(token.clone()).await;
            if token.is_cancelled() { Ok(()) } else { Err("the SIP driver forgot this uplink") }
        }
    });
}

/// The uplink's own address setting, else the media section's.
pub fn media_advertised(uplink: &Uplink, media: Auto<IpAddr>) -> Option<IpAddr> {
    uplink.media_advertised_address.set().or(media.set())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(server: &str, networks: &[MediaNetwork]) -> LinkConfig {
        LinkConfig {
            uplink: Uplink {
                server_addr: server.parse().unwrap(),
                media_networks: networks.to_vec(),
                ..Uplink::default()
            },
            gateway_name: String::new(),
            civil_code: String::new(),
            listener: "0.0.0.0:5060".parse().unwrap(),
            sip_advertised: None,
            media_advertised: None,
            rtp_payload_max: 1400,
            is_time_source: false,
            max_clock_step: Duration::ZERO,
        }
    }

    #[test]
    fn media_goes_to_media_networks_only() {
        let own = OwnSockets {
            addresses: vec!["127.0.0.1".parse().unwrap(), "10.0.0.5".parse().unwrap()].into(),
            ports: vec![5060, 28181].into(),
        };
        let allowed = |cfg: &LinkConfig, to: &str| cfg.media_allowed(to.parse().unwrap(), &own);
        let away = config("10.0.0.9:5060", &[MediaNetwork::Auto]);
        for (to, yes) in [
            ("10.0.0.9:30000", true),
            ("203.0.113.7:5060", true),
            ("10.0.0.5:30000", false),
            ("127.0.0.1:30000", false),
            ("[::ffff:127.0.0.1]:30000", false),
            ("169.254.1.1:30000", false),
            ("224.0.0.1:30000", false),
            ("255.255.255.255:9", false),
            ("0.0.0.0:30000", false),
            ("[fe80::1]:30000", false),
            ("[2001:db8::1]:30000", true),
        ] {
            assert_eq!(allowed(&away, to), yes, "{to}");
        }
        let on_this_machine = config("10.0.0.5:15060", &[MediaNetwork::Auto]);
        assert!(allowed(&on_this_machine, "10.0.0.5:30000") && !allowed(&on_this_machine, "10.0.0.5:5060"));
        assert!(!allowed(&on_this_machine, "127.0.0.1:30000"));
        let on_loopback = config("127.0.0.1:15060", &[MediaNetwork::Auto]);
        assert!(allowed(&on_loopback, "127.0.0.1:30000") && !allowed(&on_loopback, "127.0.0.1:28181"));
        let net =
            config("10.0.0.9:5060", &[MediaNetwork::Net(crate::config::Cidr::new([192, 0, 2, 0].into(), 24).unwrap())]);
        assert!(allowed(&net, "192.0.2.9:1") && !allowed(&net, "10.0.0.9:30000"));
    }
}
