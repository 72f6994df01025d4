//! Where tasks live: every task belongs to a [`Scope`], has a name, and is waited for.
//!
//! In: futures. Out: [`TaskEvent`] to one observer (counting), [`FatalTask`] to whoever awaits [`Scope::fatal`].
//! Invariants: no task outlives `shutdown`; a panic ends its task only, is logged and reported once, and is treated by
//! the task's policy like an error; a scope's cancellation reaches its child scopes.
//! Not here: threads (media workers, the store); the order in which components stop (the program's wiring).

mod backoff;
mod scope;
mod supervise;

pub use backoff::{Backoff, InvalidBackoff};
pub use scope::{FatalTask, Scope, TaskEvent};
pub use supervise::{FLAPPING_AFTER, Policy};
