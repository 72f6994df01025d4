//! The store's thread and the handle to it.
//!
//! In: jobs by a bounded queue. Out: replies by oneshot, after the commit. Owner of the only writing connection.
//! Invariants: jobs run in the order they were queued; each in a savepoint of its own, so that one failing job takes no
//! other with it; no reply of `Ok` leaves before the commit; when the commit fails, every job of the batch hears it.
//! Not here: the SQL (`audit`, `mint`, `learnt`), opening (`schema`).

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{StoreError, audit, schema};

/// Requests that may wait. An alarm burst brings 1,000 a second; this bridges 4 s of a stalled disk in about 4 MiB.
/// Overflow: [`StoreError::Overloaded`] at once; the caller spills, retries or refuses.
pub const REQUESTS_MAX: usize = 4096;

/// Jobs that share one commit at most, so that the first of them does not wait for a whole full queue.
const BATCH_MAX: usize = 512;

/// How often `close` looks for room in a full queue.
const CLOSE_RETRY: Duration = Duration::from_millis(10);

/// Where the rows live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file, created when it is not there.
    File(PathBuf),
    /// Memory: for tests and the demonstration; gone with the last handle.
    Memory,
}

/// What the store must know to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Where the rows live.
    pub location: Location,
    /// The gateway's 20-digit code: the audit chain of a new file begins with it. An existing chain keeps its own.
    pub site_id: String,
    /// Unix milliseconds: the birth of the audit chain of a new file.
    pub created_at: i64,
}

/// Tells a job's caller how it ended, once the fate of the whole batch is known.
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Given the connection, does the work; given an error, refuses with it. Returns its failure, if any, and the reply.
type Job = Box<dyn FnOnce(Result<&Connection, &StoreError>) -> (Option<StoreError>, Reply) + Send>;

enum Request {
    Job(Job),
    Close(oneshot::Sender<Result<(), StoreError>>),
}

/// Talks to the store's thread; cheap to clone. When the last handle is dropped the store finishes its queue and
/// closes.
///
/// A request whose future is dropped (a caller's own deadline) may still be done.
#[derive(Debug, Clone)]
pub struct StoreHandle {
    requests: SyncSender<Request>,
    gone: CancellationToken,
}

impl StoreHandle {
    /// Opens the database, brings its schema up to date and starts the thread. Blocks; call it while starting.
    ///
    /// # Errors
    /// [`StoreError::Open`] with the reason; the file is then as it was. [`StoreError::Io`] when no thread can be
    /// started.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let conn = match &config.location {
            Location::File(path) => schema::open_file(path)?,
            Location::Memory => schema::open_memory()?,
        };
        audit::begin(&conn, &config.site_id, config.created_at)?;
        let (requests, queue) = sync_channel(REQUESTS_MAX);
        let gone = CancellationToken::new();
        let guard = gone.clone().drop_guard();
        std::thread::Builder::new().name("store".to_owned()).spawn(move || serve(conn, &queue, guard))?;
        Ok(StoreHandle { requests, gone })
    }

    /// Finishes everything queued before this call, closes the database and ends the thread. Later requests get
    /// [`StoreError::Closed`]. Closing twice is no error.
    ///
    /// # Errors
    /// [`StoreError::CloseTimeout`] after `deadline`; SQLite's reason when the file does not close.
    pub async fn close(&self, deadline: Duration) -> Result<(), StoreError> {
        let closing = async {
            let (reply, answer) = oneshot::channel();
            let mut request = Request::Close(reply);
            loop {
                match self.requests.try_send(request) {
                    Ok(()) => break,
                    Err(TrySendError::Disconnected(_)) => return Ok(()),
                    Err(TrySendError::Full(back)) => request = back,
                }
                tokio::time::sleep(CLOSE_RETRY).await;
            }
            // No answer: another close was before us in the queue.
            answer.await.unwrap_or(Ok(()))
        };
        tokio::time::timeout(deadline, closing).await.unwrap_or(Err(StoreError::CloseTimeout))
    }

    /// Completes when the store's thread has ended, for whatever reason. Does not keep the store open.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.gone.clone().cancelled_owned()
    }

    /// Whether the thread answers and the database can be read.
    ///
    /// # Errors
    /// As for any request.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.transact(|conn| Ok(conn.query_row("SELECT 1", [], |_| Ok(()))?)).await
    }

    /// As a disk with no room for more than `more` further pages; `None`: with room.
    #[cfg(test)]
    pub(crate) async fn disk_room(&self, more: Option<i64>) -> Result<(), StoreError> {
        self.transact(move |conn| {
            let used: i64 = conn.pragma_query_value(None, "page_count", |row| row.get(0))?;
            let pages = more.map_or(1_000_000, |more| used + more);
            conn.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
            Ok(())
        })
        .await
    }

    /// Runs `work` in the next batch; its result arrives after the commit, and only if the commit held.
    pub(super) async fn transact<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        // A caller that has stopped listening is no concern of the store: hence the ignored sends.
        self.queue(Box::new(move |conn| match conn.map_err(Clone::clone).and_then(work) {
            Ok(value) => (
                None,
                Box::new(move |commit: Result<(), StoreError>| {
                    let _ = reply.send(commit.map(|()| value));
                }),
            ),
            Err(error) => (
                Some(error.clone()),
                Box::new(move |_| {
                    let _ = reply.send(Err(error));
                }),
            ),
        }))?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Runs `work` in the next batch without telling anybody; a failure is logged under `what`.
    pub(super) fn enqueue<F>(&self, what: &'static str, work: F) -> Result<(), StoreError>
    where
        F: FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    {
        self.queue(Box::new(move |conn| {
            let done = conn.map_err(Clone::clone).and_then(work);
            let failure = done.as_ref().err().cloned();
            let reply = move |commit: Result<(), StoreError>| {
                if let Err(error) = done.and(commit) {
                    tracing::warn!(what, %error, "not stored");
                }
            };
            (failure, Box::new(reply) as Reply)
        }))
    }

    fn queue(&self, job: Job) -> Result<(), StoreError> {
        self.requests.try_send(Request::Job(job)).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Overloaded,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })
    }
}

fn serve(mut conn: Connection, queue: &Receiver<Request>, _gone: DropGuard) {
    let mut jobs = VecDeque::with_capacity(BATCH_MAX);
    let mut closing = None;
    while closing.is_none() {
        let Ok(first) = queue.recv() else { break };
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Job(job) => jobs.push_back(job),
                Request::Close(reply) => closing = Some(reply),
            }
            next = if closing.is_none() && jobs.len() < BATCH_MAX { queue.try_recv().ok() } else { None };
        }
        commit_batch(&mut conn, &mut jobs);
    }
    let closed = conn.close().map_err(|(_, error)| StoreError::from(error));
    match (closing, closed) {
        (Some(reply), closed) => {
            let _ = reply.send(closed);
        }
        (None, Err(error)) => tracing::warn!(%error, "the store did not close cleanly"),
        (None, Ok(())) => {}
    }
}

fn commit_batch(conn: &mut Connection, jobs: &mut VecDeque<Job>) {
    let mut replies = Vec::with_capacity(jobs.len());
    let committed = run_batch(conn, jobs, &mut replies);
    if let Err(error) = &committed {
        // Those the failure kept from running.
        replies.extend(jobs.drain(..).map(|job| job(Err(error)).1));
    }
    for reply in replies {
        reply(committed.clone());
    }
}

fn run_batch(conn: &mut Connection, jobs: &mut VecDeque<Job>, replies: &mut Vec<Reply>) -> Result<(), StoreError> {
    let mut transaction = conn.transaction()?;
    while let Some(job) = jobs.pop_front() {
        let (failure, kept) = match transaction.savepoint() {
            Ok(savepoint) => {
                let (failure, reply) = job(Ok(&savepoint));
                replies.push(reply);
                // One that is not committed rolls back what the failed job did, when it is dropped here.
                let kept = if failure.is_none() { savepoint.commit() } else { Ok(()) };
                (failure, kept)
            }
            Err(error) => {
                jobs.push_front(job);
                (None, Err(error))
            }
        };
        kept?;
        // On a full or failing disk SQLite rolls the whole transaction back by itself.
        if let Some(error) = failure.filter(|_| transaction.is_autocommit()) {
            return Err(error);
        }
    }
    Ok(transaction.commit()?)
}
