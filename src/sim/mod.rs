//! Simulated peers: an RTSP camera and a GB/T 28181 device with clips of known content, and an upper platform that
//! plays and compares them.
//!
//! `menshen demo`, `menshen sim` and the tests share them, so they speak the real protocols over real sockets.
//! Invariants: every byte a simulated camera sends as media is known beforehand (`clip`), so that whoever receives it can
//! tell an exact picture from an altered one. Nothing here is reachable from `menshen run`.
//! Not here: the gateway's own RTSP client (`southbound::rtsp`).

pub mod check;
pub mod clip;
pub mod device;
pub mod platform;
pub mod receiver;
pub mod rtsp_camera;
