//! What happens when a task ends by itself.
//!
//! Invariants: an error and a panic are treated alike; a task that ends because its scope was cancelled is never
//! started again and never fatal; restarts are never closer together than the back-off says.

use std::fmt::Display;
use std::pin::pin;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use super::scope::caught;
use super::{Backoff, Scope, TaskEvent};

/// Failures in a row after which a task counts as flapping: about a minute with delays from 2 s.
pub const FLAPPING_AFTER: u32 = 5;

/// What to do when a task ends by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// The program cannot go on without it: ending in any way but by cancellation is reported by [`Scope::fatal`].
    Fatal,
    /// After an error or panic it is started again, later each time; it has recovered once it runs longer than the
    /// longest delay. Ending without an error is the end of it.
    Restart {
        /// The delays.
        backoff: Backoff,
        /// Seeds the jitter.
        seed: u64,
    },
    /// It ran, and that was it; an error is logged.
    Once,
}

enum End {
    Finished,
    Failed(String),
}

impl Scope {
    /// Runs a task the process cannot go on without and that cannot be started a second time: [`Policy::Fatal`].
    pub fn essential<M, F, E>(&self, name: &'static str, make: M)
    where
        M: FnOnce(CancellationToken) -> F + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        // What such a task owns is large: boxed, so that it does not lie on the stack of whoever starts it.
        let mut make = Some(Box::new(make));
        self.supervise(name, Policy::Fatal, move |token| {
            let work = make.take().map(|make| make(token));
            async move {
                match work {
                    Some(work) => work.await.map_err(|e| e.to_string()),
                    None => Err("it cannot be started twice".to_owned()),
                }
            }
        });
    }

    /// Runs the future `make` returns, as a task under `policy`; for a restart `make` is called again. The token it
    /// gets is cancelled with the scope.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn supervise<M, F, E>(&self, name: &'static str, policy: Policy, mut make: M)
    where
        M: FnMut(CancellationToken) -> F + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let shared = self.shared();
        let token = self.token().child_token();
        self.spawn(name, async move {
            let mut attempt = async || match caught(async { Box::pin(make(token.clone())).await }).await {
                Ok(Ok(())) => End::Finished,
                Ok(Err(error)) => End::Failed(error.to_string()),
                Err(panic) => {
                    shared.panicked(name, &panic);
                    End::Failed(panic)
                }
            };
            match policy {
                Policy::Once => {
                    if let End::Failed(error) = attempt().await {
                        tracing::error!(task = name, error, "failed");
                    }
                }
                Policy::Fatal => {
                    let why = match attempt().await {
                        End::Finished => "it ended without being asked to".to_owned(),
                        End::Failed(error) => {
                            tracing::error!(task = name, error, "failed");
                            error
                        }
                    };
                    if !token.is_cancelled() {
                        shared.fatal(name, why);
                    }
                }
                Policy::Restart { mut backoff, seed } => {
                    let mut rng = StdRng::seed_from_u64(seed);
                    let mut failures = 0u32;
                    loop {
                        let recovery = tokio::time::sleep(backoff.max());
                        let (end, recovered) = ended_before(attempt(), recovery).await;
                        let End::Failed(error) = end else { break };
                        if token.is_cancelled() {
                            tracing::warn!(task = name, error, "failed while stopping");
                            break;
                        }
                        if recovered {
                            backoff.reset();
                            failures = 0;
                        }
                        failures = failures.saturating_add(1);
                        let delay = backoff.next_delay(&mut rng);
                        tracing::warn!(task = name, error, failures, ?delay, "failed, will be started again");
                        shared.observe(TaskEvent::Restarting { task: name, delay });
                        if failures == FLAPPING_AFTER {
                            shared.observe(TaskEvent::Flapping { task: name });
                        }
                        tokio::select! {
                            biased;
                            () = token.cancelled() => break,
                            () = tokio::time::sleep(delay) => {}
                        }
                    }
                }
            }
        });
    }
}

/// Runs `work` to its end; says whether it was still running when `timer` ran out.
async fn ended_before<T>(work: impl Future<Output = T>, timer: impl Future<Output = ()>) -> (T, bool) {
    let (mut work, mut timer) = (pin!(work), pin!(timer));
    tokio::select! {
        biased;
        end = &mut work => return (end, false),
        () = &mut timer => {}
    }
    (work.await, true)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::task::FatalTask;

    const SEC: Duration = Duration::from_secs(1);

    fn watched() -> (Scope, Arc<Mutex<Vec<TaskEvent>>>) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        (Scope::root(move |event| seen.lock().unwrap().push(event)), events)
    }

    fn restart() -> Policy {
        Policy::Restart { backoff: Backoff::try_new(2 * SEC, 60 * SEC, 0.0).unwrap(), seed: 1 }
    }

    /// Seconds at which `make` was called.
    type Starts = Arc<Mutex<Vec<u64>>>;

    fn started(starts: &Starts, began: Instant) -> usize {
        let mut starts = starts.lock().unwrap();
        starts.push(began.elapsed().as_secs());
        starts.len()
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_back_off_and_flapping_is_told_once() {
        let (scope, events) = watched();
        let (starts, began) = (Starts::default(), Instant::now());
        let noted = starts.clone();
        scope.supervise("pull", restart(), move |_| {
            let n = started(&noted, began);
            async move {
                assert!(n.is_multiple_of(2), "every other attempt panics");
                Err("no answer")
            }
        });
        sleep(200 * SEC).await;
        assert_eq!(*starts.lock().unwrap(), [0, 2, 6, 14, 30, 62, 122, 182]);
        let events = events.lock().unwrap();
        let count = |event: TaskEvent| events.iter().filter(|e| **e == event).count();
        assert_eq!(count(TaskEvent::Panicked { task: "pull" }), 4);
        assert_eq!(count(TaskEvent::Flapping { task: "pull" }), 1);
        assert_eq!(count(TaskEvent::Restarting { task: "pull", delay: 60 * SEC }), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_run_counts_as_recovery() {
        let (scope, _) = watched();
        let (starts, began) = (Starts::default(), Instant::now());
        let noted = starts.clone();
        scope.supervise("link", restart(), move |_| {
            let n = started(&noted, began);
            async move {
                sleep(if n == 3 { 100 * SEC } else { SEC }).await;
                Err("lost")
            }
        });
        sleep(120 * SEC).await;
        // 1 s + 2, 1 s + 4, 100 s + 2 again, 1 s + 4
        assert_eq!(*starts.lock().unwrap(), [0, 3, 8, 110, 115]);
    }

    #[tokio::test(start_paused = true)]
    async fn cancelling_ends_a_task_that_runs_and_one_that_waits() {
        let (scope, events) = watched();
        scope.supervise("runs", restart(), |token| async move {
            token.cancelled().await;
            Err("cut off")
        });
        scope.supervise("waits", restart(), |_| async { Err("always") });
        scope.supervise("finishes", restart(), |_| async { Ok::<(), String>(()) });
        sleep(SEC).await;
        let began = Instant::now();
        assert!(scope.shutdown(10 * SEC).await.is_empty());
        assert_eq!(began.elapsed(), Duration::ZERO);
        let delay = 2 * SEC;
        assert_eq!(*events.lock().unwrap(), [TaskEvent::Restarting { task: "waits", delay }]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_fatal_end_is_told_from_anywhere_in_the_tree() {
        let (scope, events) = watched();
        let child = scope.child("sip");
        child.supervise("driver", Policy::Fatal, |_| async {
            sleep(SEC).await;
            Err("port 5060 is taken")
        });
        child.supervise("second", Policy::Fatal, |_| async {
            sleep(2 * SEC).await;
            Ok::<(), String>(())
        });
        let fatal = FatalTask { task: "driver", why: "port 5060 is taken".to_owned() };
        assert_eq!(scope.fatal().await, fatal);
        sleep(5 * SEC).await;
        assert_eq!(child.fatal().await, fatal, "the first one stays");
        assert!(!scope.token().is_cancelled(), "the order of stopping is not ours to choose");
        assert!(events.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn fatal_means_unasked() {
        for panics in [false, true] {
            let (scope, _) = watched();
            scope.supervise("store", Policy::Fatal, move |_| async move {
                assert!(!panics, "broken");
                Ok::<(), String>(())
            });
            let why = if panics { "broken" } else { "it ended without being asked to" };
            assert_eq!(scope.fatal().await.why, why);
        }
        let (scope, _) = watched();
        scope.supervise("driver", Policy::Fatal, |token| async move {
            token.cancelled().await;
            Ok::<(), String>(())
        });
        scope.shutdown(SEC).await;
        let told = tokio::time::timeout(SEC, scope.fatal()).await;
        assert!(told.is_err(), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn once_is_once() {
        let (scope, events) = watched();
        let (starts, began) = (Starts::default(), Instant::now());
        let noted = starts.clone();
        scope.supervise("probe", Policy::Once, move |_| {
            started(&noted, began);
            async { Err("no") }
        });
        sleep(100 * SEC).await;
        assert_eq!(*starts.lock().unwrap(), [0]);
        assert!(events.lock().unwrap().is_empty());
    }
}
