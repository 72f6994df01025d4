//! Words of GB/T 28181 that every message shares: identifiers, character sets, versions, times, the Subject header.
//! Standard: [GB/T28181-2022 6.1, 6.10, 9.10, annexes E, I, L], the same clauses of 2016 and 2011.
//! In: text and bytes from peers. Out: small values. Holds no state.
//! Invariants: nothing here panics or allocates without a bound on any input.
//! Not here: MANSCDP bodies (`manscdp`), SDP (`sdp`), SIP (`sip`).

pub mod charset;
pub mod device_id;
pub mod subject;
pub mod time;
pub mod version;

pub use charset::Charset;
pub use device_id::{DeviceId, DeviceIdError, IdKind};
pub use subject::Subject;
pub use time::{TimeError, UnixMillis};
pub use version::{Profile, Version};
