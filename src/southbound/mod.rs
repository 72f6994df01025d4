//! Southbound: the compound's cameras.
pub mod rtsp;
