//! Sockets: the SIP driver, TLS settings, media ports, socket options.
//! Standard: [RFC3261 18], [GB/T28181-2022 4.3].
//! In: addresses and settings by value. Out: handles, bound sockets, counters. Owner of every SIP socket.
//! Invariants: whatever is asked of the system is asked here and reported with the address and what to do.
//! Not here: SIP transactions (`proto::sip`), media packets (`media`).

pub mod batch;
pub mod port_pool;
pub mod sip_driver;
pub mod sockopt;
pub mod tls;
