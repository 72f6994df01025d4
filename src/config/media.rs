//! `[media]`: ports, packets and pacing of RTP. Taken at restart only.
//!
//! Standard: [GB/T28181-2022 C.1].
//! Not here: policies of single cameras (`camera.rs`) and uplinks (`uplink.rs`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::units::{Auto, ByteSize, PortRange, Span};

/// `[media]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Media {
    /// Local ports for RTP and RTCP, UDP and TCP; best outside the kernel's ephemeral range.
    pub port_range: PortRange,
    /// What SDP says, where media uses another address than SIP.
    pub advertised_address: Auto<IpAddr>,
    /// Bytes of payload in an RTP packet, 600 to 1400; lower it for tunnels.
    pub rtp_payload_max: u16,
    /// The media loop's slot, 1 ms to 5 ms.
    pub slot: Span,
    /// A large key frame is spread over at most this; `slot` to 100 ms.
    pub pacing_max: Span,
    /// Bytes of a stream kept since its last key frame; 0 = off, at most 64 MiB.
    pub gop_cache: ByteSize,
    /// A cache older than this is not played from; at most 60 s.
    pub gop_cache_max_age: Span,
    /// Media threads, 1 to 64; auto: one less than the cores, at least one.
    pub workers: Auto<u16>,
}

impl Default for Media {
    fn default() -> Self {
        Self {
            port_range: PortRange { first: 20000, last: 27999 },
            advertised_address: Auto::Auto,
            rtp_payload_max: 1400,
            slot: Span::millis(2),
            pacing_max: Span::millis(10),
            gop_cache: ByteSize::mib(4),
            gop_cache_max_age: Span::secs(4),
            workers: Auto::Auto,
        }
    }
}
