//! The daemon as a whole: in process between simulated cameras and platforms, and as a binary.
//!
//! Every wait is for a thing and bounded; nothing sleeps. One file per behaviour.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what fails in a test's support fails the test, and says why"
)]

mod alarms;
mod cli;
mod devices;
mod docs;
mod faults;
mod fuzz_replay;
mod northbound;
mod play;
mod raw;
mod records;
mod reload;
mod scale;
mod support;
mod transport;
