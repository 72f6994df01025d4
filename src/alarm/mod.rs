//! Alarms: taken in once, kept before anybody is told they are, and owed to every upper platform that may see them.
//!
//! Standard: [GB/T28181-2022 9.4, A.2.5.3].
//! In: [`AlarmInbox::submit`] by `southbound`, [`AlarmInbox::reset`] by whoever an upper platform asked for it.
//! Out: rows of the store's outbox, which each uplink's link reads; [`AlarmInbox::news`] wakes it. Owner: the task
//! [`Alarms`].
//! Invariants: an alarm is answered [`Receipt::Stored`] only after it and what is owed are on the disk; per channel the
//! order of submission is the order of the outbox; memory holds at most [`INBOX`] alarms, the rest is in the store.
//! Not here: the SQL (`store`), carriers, answers and repeats (`northbound`).

mod event;
mod service;
#[cfg(test)]
mod tests;

pub use event::{AlarmEvent, AlarmReset};
pub use service::{AlarmConfig, AlarmDeps, AlarmInbox, Alarms, INBOX, Receipt, Refusal};
