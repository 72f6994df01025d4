//! The only file that reads the machine's clocks.
//!
//! Monotonic time (`Instant`) drives every timer; wall time is only for what people and peers read.
//! `WallClock` adds the correction learnt from an upper platform when `time.source = "uplink:NAME"`;
//! the operating system's clock is never set.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic now.
#[allow(clippy::disallowed_methods, reason = "this file is the one place that reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// The operating system's wall clock, as time since the Unix epoch (zero if the clock stands before it).
#[allow(clippy::disallowed_methods, reason = "this file is the one place that reads the clock")]
pub fn system_unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Our protocol clock: the system clock plus a correction in milliseconds. Cheap to clone; all clones share it.
#[derive(Debug, Clone, Default)]
pub struct WallClock {
    offset_ms: Arc<AtomicI64>,
}

impl WallClock {
    /// A clock without correction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Time since the Unix epoch, corrected.
    pub fn unix(&self) -> Duration {
        let ms = system_unix().as_millis() as i64 + self.offset_ms.load(Ordering::Relaxed);
        Duration::from_millis(ms.max(0) as u64)
    }

    /// The correction in milliseconds (positive: we are ahead of the system clock).
    pub fn offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed)
    }

    /// Moves the correction towards `target_ms` by at most `step_ms`; returns what is left to go.
    pub fn slew(&self, target_ms: i64, step_ms: i64) -> i64 {
        let have = self.offset_ms.load(Ordering::Relaxed);
        let step = (target_ms - have).clamp(-step_ms, step_ms);
        self.offset_ms.store(have + step, Ordering::Relaxed);
        target_ms - have - step
    }
}
