//! RTP and RTCP: packets, order, framing over TCP, and the contiguous image a frame is sent as.
//!
//! Standard: [RFC3550], [RFC4571], [GB/T28181-2022 annex C, D].
//! In: received bytes and frame bytes; time as an argument. Out: borrowed packets, counters, images ready to send.
//! Invariants: nothing here allocates per packet; every window is bounded.
//! Not here: sockets, pacing, PS.

pub mod header;
pub mod image;
pub mod reorder;
pub mod rfc4571;
pub mod rtcp;
pub mod sequence;

pub use header::{Header, HeaderError, Packet, is_rtcp};
pub use image::{Framing, Image, ImageWriter, PutBytes, restamp, restamp_rfc4571, to_rfc4571};
pub use reorder::{Pulled, Pushed, Reorder, ReorderCounters};
pub use rfc4571::{Frame, Framer, FramerCounters, FramerError, Mode};
pub use sequence::{Sequence, SequenceStats};

/// Payload type of PS over RTP [GB/T28181-2022 annex C].
pub const PT_PS: u8 = 96;
/// RTP clock of PS and video, ticks a second.
pub const CLOCK_RATE: u32 = 90_000;
