//! Cameras on loopback: the simulated one, and servers that are none.
//! `rig` has the hub, the directory and the cameras' actors; `camera` plays and breaks the simulated camera, `hostile`
//! answers what no camera should.

mod camera;
mod hostile;
mod rig;
