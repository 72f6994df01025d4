//! RTSP cameras, pulled by retina.
//!
//! `camera` is the actor of one camera, `state` what it decides (pure, virtual time), `pull` one RTSP session on the
//! stream's media worker, `probe` the light look at a camera that nobody watches.

mod camera;
mod probe;
mod pull;
mod state;
#[cfg(test)]
mod tests;

pub use camera::{Camera, CameraConfig, CameraDeps};
pub use pull::{Policies, PullConfig};
pub use state::Rules;
