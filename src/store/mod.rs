//! What the program learnt and must keep: minted codes, learnt facts, the audit log, alarms and whom to tell of them.
//! One SQLite file.
//!
//! In: [`StoreHandle`] methods. Out: replies, sent only after the rows are on the disk. Owner: the thread `store`.
//! Durability: `journal_mode = WAL` and `synchronous = FULL`: every commit syncs the log before its callers hear of it,
//! so an acknowledged row survives kill -9, and a power cut as far as the disk tells the truth about its cache. That
//! stays cheap because all requests that queue up while one commit syncs share the next commit (group commit, no
//! timer).
//! Invariants: one connection writes; a reply of `Ok` means committed; a damaged or newer file is refused, never
//! written.
//! Not here: what people decide (configuration); deadlines of single requests (the caller's, with
//! `tokio::time::timeout`).

mod alarms;
mod audit;
mod error;
mod inventory;
mod learnt;
mod mint;
mod schema;
mod thread;

pub use alarms::{
    ALARM_PAGE_MAX, AlarmRecord, AppendRules, Appended, LatchReset, NewAlarm, OutboxEnd, OutboxRow, PRUNE_MAX,
    PruneRules, Pruned, Released,
};
pub use audit::{
    Actor, ActorKind, AuditEntry, AuditHead, AuditRecord, AuditReport, BadRecord, Fault, Outcome, PAGE_MAX,
    VerifyError, verify_audit,
};
pub use error::StoreError;
pub use inventory::{ITEMS_MAX, NewItem, StoredBinding, StoredItem};
pub use learnt::{LEARNT_KEYS_MAX, LEARNT_VALUE_MAX};
pub use mint::{Minted, SERIAL_MAX};
pub use thread::{Location, REQUESTS_MAX, StoreConfig, StoreHandle};

#[cfg(test)]
mod alarm_tests;
#[cfg(test)]
mod tests;
