//! The media engine on real loopback sockets: what a receiver gets is the clip, byte for byte, in order and in time.
//! `bed` feeds a stream slot by slot in virtual time and reads its receivers; `stream` tests one stream with its sinks,
//! `hub` the hub with its workers, `receive` what comes from a device.

mod bed;
mod hub;
mod receive;
mod stream;
