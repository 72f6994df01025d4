//! Southbound: the compound's cameras. `rtsp` pulls them; `gb28181` lets them register.
pub mod gb28181;
pub mod rtsp;
