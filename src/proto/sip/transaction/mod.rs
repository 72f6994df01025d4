//! Transactions as pure state machines: one value per transaction, one step per message or timer.
//!
//! Standard: [RFC3261 17], [RFC6026].
//! In: responses (client), repeated requests, answers and ACKs (server), timers. Out: a step that says what to send
//! and what to tell the user.
//! Invariants: a transaction knows no table and no other transaction; it leaves its deadlines in `alarms`.
//! Not here: matching, bounds and output order (`endpoint`).

mod client;
mod server;

pub(super) use client::{CancelRefusal, ClientStep, ClientTx};
pub(super) use server::{ServerState, ServerStep, ServerTx, copied_headers, with_tag};
