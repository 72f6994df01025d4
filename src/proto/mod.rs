//! Sans-IO protocol code: no sockets, no clock, no tasks, no configuration.
//! Time, randomness and addresses come in as arguments.

pub mod codec;
pub mod fuzz;
pub mod gb28181;
pub mod manscdp;
pub mod mansrtsp;
pub mod pcap;
pub mod ps;
pub mod rtp;
pub mod sdp;
pub mod sip;
