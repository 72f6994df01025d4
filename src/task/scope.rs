//! A scope: a cancellation token and the tasks that listen to it.
//!
//! Invariants: after `shutdown` began, nothing new starts; when it returns, every task has ended or was aborted and
//! named. The lock is held for a few map operations, never across an await.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// What the observer hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskEvent {
    /// A task panicked: our fault.
    Panicked {
        /// Its name.
        task: &'static str,
    },
    /// A supervised task ended and will be started again after `delay`.
    Restarting {
        /// Its name.
        task: &'static str,
        /// The pause before it.
        delay: Duration,
    },
    /// A supervised task has failed [`FLAPPING_AFTER`](super::FLAPPING_AFTER) times in a row: worth an alarm. It goes
    /// on.
    Flapping {
        /// Its name.
        task: &'static str,
    },
}

/// A task without which the program cannot go on has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{task} has failed: {why}: the program stops")]
pub struct FatalTask {
    /// Its name.
    pub task: &'static str,
    /// Its error, or the text of its panic.
    pub why: String,
}

/// Tasks that are cancelled and waited for together. Cheap to clone; all clones are one scope.
///
/// Dropping the last handle of a scope aborts its tasks; use [`Scope::shutdown`].
#[derive(Clone)]
pub struct Scope(Arc<Inner>);

struct Inner {
    path: String,
    token: CancellationToken,
    tasks: Mutex<Tasks>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
    children: Vec<Scope>,
    closed: bool,
}

/// What all scopes of one tree have in common.
pub(super) struct Shared {
    observer: Box<dyn Fn(TaskEvent) + Send + Sync>,
    fatal: watch::Sender<Option<FatalTask>>,
}

impl Scope {
    /// The scope of the whole program. `observer` hears of every panic and restart; it must neither block
    /// nor call into a scope.
    pub fn root(observer: impl Fn(TaskEvent) + Send + Sync + 'static) -> Self {
        let shared = Shared { observer: Box::new(observer), fatal: watch::Sender::new(None) };
        Scope::with("menshen".to_owned(), CancellationToken::new(), Arc::new(shared))
    }

    /// A scope that is cancelled with this one, and can be shut down alone. `name` is for people: an uplink, a
    /// component.
    pub fn child(&self, name: &str) -> Scope {
        let child = Scope::with(format!("{}/{name}", self.0.path), self.0.token.child_token(), self.0.shared.clone());
        let mut tasks = self.tasks();
        if tasks.closed {
            child.0.token.cancel();
            child.tasks().closed = true;
        } else {
            tasks.children.retain(|child| !child.is_over());
            tasks.children.push(child.clone());
        }
        child
    }

    /// Starts `future` as a task; in a scope that is shut down it is dropped instead. The future should end when
    /// [`Scope::token`] is cancelled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        if tasks.closed {
            tracing::debug!(task = name, scope = self.0.path, "not started: the scope is shut down");
            return;
        }
        while let Some(ended) = tasks.set.try_join_next_with_id() {
            self.reaped(&mut tasks.names, ended);
        }
        // Actors are large; every layer from here to the runtime would move one through the starter's stack.
        let future = Box::pin(future);
        let shared = self.0.shared.clone();
        let span = tracing::info_span!("task", name, scope = self.0.path);
        let task = async move {
            if let Err(panic) = caught(future).await {
                shared.panicked(name, &panic);
            }
        };
        let id = tasks.set.spawn(task.instrument(span)).id();
        tasks.names.insert(id, name);
    }

    /// Cancelled when this scope or one above it is to stop.
    pub fn token(&self) -> CancellationToken {
        self.0.token.clone()
    }

    /// Asks all tasks of this scope and its children to stop; does not wait.
    pub fn cancel(&self) {
        self.0.token.cancel();
    }

    /// Completes with the first [`Policy::Fatal`](super::Policy::Fatal) task of the whole tree that ended unasked.
    pub async fn fatal(&self) -> FatalTask {
        let mut fatal = self.0.shared.fatal.subscribe();
        let found = fatal.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        match found {
            Some(found) => found,
            // The sender lives in `self`, so it is never gone.
            None => std::future::pending().await,
        }
    }

    /// Cancels this scope and its children, waits for all their tasks until `deadline` has passed, aborts the rest.
    /// Returns the paths of those it had to abort.
    pub async fn shutdown(&self, deadline: Duration) -> Vec<String> {
        self.0.token.cancel();
        let mut timer = pin!(tokio::time::sleep(deadline));
        let mut aborted = Vec::new();
        for (scope, mut set, mut names) in self.take_all() {
            loop {
                if timer.is_elapsed() {
                    // Those that have ended by now are not to be named.
                    while let Some(ended) = set.try_join_next_with_id() {
                        scope.reaped(&mut names, ended);
                    }
                    aborted.extend(names.values().map(|name| format!("{}/{name}", scope.0.path)));
                    set.abort_all();
                    break;
                }
                tokio::select! {
                    biased;
                    ended = set.join_next_with_id() => match ended {
                        Some(ended) => scope.reaped(&mut names, ended),
                        None => break,
                    },
                    () = &mut timer => {}
                }
            }
        }
        aborted.sort();
        if !aborted.is_empty() {
            tracing::warn!(tasks = ?aborted, ?deadline, "tasks did not stop in time and were aborted");
        }
        aborted
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.0.shared.clone()
    }

    fn with(path: String, token: CancellationToken, shared: Arc<Shared>) -> Self {
        Scope(Arc::new(Inner { path, token, tasks: Mutex::default(), shared }))
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        // Nothing under the lock leaves it half done, so it is whole even if an observer panicked.
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody but its parent knows it any more, and nothing runs in it.
    fn is_over(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && {
            let mut tasks = self.tasks();
            while let Some(ended) = tasks.set.try_join_next_with_id() {
                self.reaped(&mut tasks.names, ended);
            }
            tasks.set.is_empty() && tasks.children.iter().all(Scope::is_over)
        }
    }

    /// Closes this scope and all below it, and hands out their tasks.
    fn take_all(&self) -> Vec<(Scope, JoinSet<()>, HashMap<Id, &'static str>)> {
        let (set, names, children) = {
            let mut tasks = self.tasks();
            tasks.closed = true;
            let Tasks { set, names, children, .. } = &mut *tasks;
            (std::mem::take(set), std::mem::take(names), std::mem::take(children))
        };
        let mut all = vec![(self.clone(), set, names)];
        for child in children {
            all.extend(child.take_all());
        }
        all
    }

    /// A task has ended. Its own panics were caught inside; what is left is one while its future was dropped.
    fn reaped(&self, names: &mut HashMap<Id, &'static str>, ended: Result<(Id, ()), JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let name = names.remove(&id);
        if let (Some(name), Err(error)) = (name, ended)
            && let Ok(panic) = error.try_into_panic()
        {
            self.0.shared.panicked(name, &panic_text(&*panic));
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("path", &self.0.path).field("cancelled", &self.0.token.is_cancelled()).finish()
    }
}

impl Shared {
    pub(super) fn observe(&self, event: TaskEvent) {
        (self.observer)(event);
    }

    pub(super) fn panicked(&self, task: &'static str, panic: &str) {
        tracing::error!(task, panic, "a task panicked");
        self.observe(TaskEvent::Panicked { task });
    }

    /// The first one counts: what fails after it fails because of it.
    pub(super) fn fatal(&self, task: &'static str, why: String) {
        self.fatal.send_if_modified(|first| {
            let modified = first.is_none();
            first.get_or_insert(FatalTask { task, why });
            modified
        });
    }
}

/// Runs `future`; a panic inside it becomes an error with its text.
pub(super) async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        // After a panic the future is not looked at again, so no broken state of it can be seen.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panic_text(&*panic))),
        }
    })
    .await
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no text").to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{Instant, sleep};

    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    fn counting() -> (Scope, Arc<AtomicUsize>) {
        let panics = Arc::new(AtomicUsize::new(0));
        let seen = panics.clone();
        let scope = Scope::root(move |event| {
            assert!(matches!(event, TaskEvent::Panicked { task: "bad" }));
            seen.fetch_add(1, Ordering::Relaxed);
        });
        (scope, panics)
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_tasks_of_the_whole_tree() {
        let (root, _) = counting();
        let child = root.child("psb");
        let ended = Arc::new(AtomicUsize::new(0));
        for (scope, name) in [(&root, "driver"), (&child, "link"), (&child.child("call"), "sink")] {
            let (token, ended) = (scope.token(), ended.clone());
            scope.spawn(name, async move {
                token.cancelled().await;
                sleep(3 * SEC).await;
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        let began = Instant::now();
        assert!(root.shutdown(10 * SEC).await.is_empty());
        assert_eq!(ended.load(Ordering::Relaxed), 3);
        assert_eq!(began.elapsed(), 3 * SEC);
        assert!(child.token().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_stop_is_aborted_and_named() {
        let (root, _) = counting();
        let child = root.child("psb");
        let token = root.token();
        root.spawn("polite", async move { token.cancelled().await });
        child.spawn("stubborn", std::future::pending());
        root.child("county").spawn("deaf", async { sleep(3600 * SEC).await });
        let token = child.token();
        child.spawn("prompt", async move { token.cancelled().await });
        let began = Instant::now();
        assert_eq!(root.shutdown(2 * SEC).await, ["menshen/county/deaf", "menshen/psb/stubborn"]);
        assert_eq!(began.elapsed(), 2 * SEC, "one deadline for all");
        assert!(root.shutdown(2 * SEC).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_stops_alone_and_nothing_starts_afterwards() {
        let (root, _) = counting();
        let child = root.child("psb");
        child.spawn("link", std::future::pending());
        assert_eq!(child.shutdown(SEC).await, ["menshen/psb/link"]);
        assert!(!root.token().is_cancelled());
        let ran = Arc::new(AtomicUsize::new(0));
        let mark = |ran: &Arc<AtomicUsize>| {
            let ran = ran.clone();
            async move {
                ran.fetch_add(1, Ordering::Relaxed);
            }
        };
        child.spawn("late", mark(&ran));
        child.child("later").spawn("late", mark(&ran));
        sleep(SEC).await;
        assert_eq!(ran.load(Ordering::Relaxed), 0);
        root.spawn("still", mark(&ran));
        sleep(SEC).await;
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_counted_at_once_and_ends_only_its_task() {
        let (root, panics) = counting();
        let alive = Arc::new(AtomicUsize::new(0));
        let still = alive.clone();
        root.spawn("good", async move {
            sleep(5 * SEC).await;
            still.fetch_add(1, Ordering::Relaxed);
        });
        root.spawn("bad", async {
            sleep(SEC).await;
            panic!("on purpose {}", 1);
        });
        sleep(2 * SEC).await;
        assert_eq!(panics.load(Ordering::Relaxed), 1);
        assert!(root.shutdown(10 * SEC).await.is_empty());
        assert_eq!((panics.load(Ordering::Relaxed), alive.load(Ordering::Relaxed)), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_while_a_finished_future_is_dropped_is_counted_too() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("in drop");
            }
        }
        let (root, panics) = counting();
        let bomb = Bomb;
        root.spawn(
            "bad",
            std::future::poll_fn(move |_| {
                let _held = &bomb;
                Poll::Ready(())
            }),
        );
        root.shutdown(SEC).await;
        assert_eq!(panics.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn ended_tasks_and_scopes_leave_nothing_behind() {
        let (root, _) = counting();
        for _ in 0..100 {
            root.spawn("short", async {});
            root.child("call").spawn("short", async {});
            sleep(SEC).await;
        }
        let tasks = root.tasks();
        assert!(tasks.set.len() <= 1 && tasks.names.len() <= 1 && tasks.children.len() <= 2);
    }
}
