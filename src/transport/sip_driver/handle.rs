//! The driver's handle: what links, registrar and app ask of it.
//! Standard: none.
//! In: calls. Out: commands in the driver's queue, each answered at once over a oneshot.
//! Invariants: the driver never waits for a caller, so a caller may wait for the driver inside its own loop.
//! Not here: what the commands do (`super`).

use super::counters::DriverCounters;
use super::route::Route;
use super::{BoundListener, Listener, SipEvent, TlsClient, UserId};
use crate::proto::sip::endpoint::{ApiError, ClientTxId, Counts, ServerTxId};
use crate::proto::sip::message::{ConnId, Flow, Request, Response};
use crate::transport::sockopt::BindError;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Commands waiting for the driver; senders wait when it is full.
pub(super) const COMMAND_QUEUE: usize = 1024;

/// Why the driver did not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// The driver has stopped: the process is ending.
    #[error("the SIP driver has stopped")]
    Stopped,
    /// No user of this name is registered.
    #[error("no SIP user {0} is registered")]
    UnknownUser(UserId),
    /// No listener has this address.
    #[error("no SIP listener at {0}")]
    UnknownListener(SocketAddr),
    /// The transaction is over, or the tables are full.
    #[error(transparent)]
    Transaction(#[from] ApiError),
    /// A listener's address cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// The answer to a command.
pub(super) type Reply<T> = oneshot::Sender<Result<T, HandleError>>;

pub(super) enum Command {
    RegisterUser(UserId, Vec<Route>, Reply<mpsc::Receiver<SipEvent>>),
    SetRoutes(UserId, Vec<Route>, Reply<()>),
    RemoveUser(UserId, Reply<()>),
    Claim { user: UserId, code: String, ip: IpAddr, conn: Option<ConnId> },
    Unclaim(UserId, String),
    Hold(bool),
    Request { user: UserId, flow: Flow, via_sent_by: Option<String>, request: Request, reply: Reply<ClientTxId> },
    Ack { user: UserId, flow: Flow, via_sent_by: Option<String>, request: Request, reply: Reply<()> },
    Cancel(ClientTxId, Reply<()>),
    Respond(ServerTxId, Response, Reply<()>),
    AddListener(Listener, Reply<BoundListener>),
    RemoveListener(SocketAddr, Reply<()>),
    SetTlsClient(SocketAddr, Option<TlsClient>, Reply<()>),
    Counts(Reply<Counts>),
}

/// Talks to the driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SipHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) counters: Arc<DriverCounters>,
}

impl SipHandle {
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, HandleError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| HandleError::Stopped)?;
        answer.await.map_err(|_| HandleError::Stopped)?
    }

    /// Makes `user` known and gives it its events. Requests that fit `routes` best go to it; events it does not fetch
    /// in time are lost (requests are answered 503). A second call for the same user replaces routes and receiver.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn register_user(
        &self,
        user: UserId,
        routes: Vec<Route>,
    ) -> Result<mpsc::Receiver<SipEvent>, HandleError> {
        self.ask(|reply| Command::RegisterUser(user, routes, reply)).await
    }

    /// Replaces the routes of `user`, who keeps its receiver and its transactions.
    ///
    /// # Errors
    /// [`HandleError::Stopped`], [`HandleError::UnknownUser`].
    pub async fn set_routes(&self, user: UserId, routes: Vec<Route>) -> Result<(), HandleError> {
        self.ask(|reply| Command::SetRoutes(user, routes, reply)).await
    }

    /// Requests whose From names `code` are `user`'s from now on, wherever they come from, but for those of a platform
    /// another user's route names by address and code. The address of `flow` may send as much as a known peer, and
    /// messages as large on its connection. Not answered: at the bound of 20,000 codes the claim has no effect.
    pub async fn claim(&self, user: &UserId, code: &str, flow: &Flow) {
        let (ip, conn) = (flow.peer.ip(), flow.conn);
        let _ = self.commands.send(Command::Claim { user: user.clone(), code: code.to_owned(), ip, conn }).await;
    }

    /// While held, what comes from the network waits (in bounded queues and the kernel): at the start nobody is to be
    /// answered as a stranger before those are known who are none.
    pub async fn hold(&self, held: bool) {
        let _ = self.commands.send(Command::Hold(held)).await;
    }

    /// Takes a claim back.
    pub async fn unclaim(&self, user: &UserId, code: &str) {
        let _ = self.commands.send(Command::Unclaim(user.clone(), code.to_owned())).await;
    }

    /// Forgets `user`; its receiver ends.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn remove_user(&self, user: UserId) -> Result<(), HandleError> {
        self.ask(|reply| Command::RemoveUser(user, reply)).await
    }

    /// Sends a request; its responses, or its failure, come to `user` as events with the id returned here.
    /// Via (and Max-Forwards, User-Agent when missing) are put on by the endpoint; `via_sent_by` is the advertised
    /// `host:port`, default `flow.local`.
    ///
    /// # Errors
    /// [`HandleError::Stopped`], [`HandleError::UnknownUser`], [`HandleError::Transaction`] when the table is full.
    pub async fn request(
        &self,
        user: &UserId,
        flow: Flow,
        via_sent_by: Option<String>,
        request: Request,
    ) -> Result<ClientTxId, HandleError> {
        let user = user.clone();
        self.ask(|reply| Command::Request { user, flow, via_sent_by, request, reply }).await
    }

    /// Sends the ACK of a 2xx; the endpoint repeats it when the 2xx is repeated.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn ack(
        &self,
        user: &UserId,
        flow: Flow,
        via_sent_by: Option<String>,
        request: Request,
    ) -> Result<(), HandleError> {
        let user = user.clone();
        self.ask(|reply| Command::Ack { user, flow, via_sent_by, request, reply }).await
    }

    /// Cancels an INVITE that has no final response yet.
    ///
    /// # Errors
    /// [`HandleError::Stopped`], [`HandleError::Transaction`].
    pub async fn cancel(&self, tx: ClientTxId) -> Result<(), HandleError> {
        self.ask(|reply| Command::Cancel(tx, reply)).await
    }

    /// Answers a request.
    ///
    /// # Errors
    /// [`HandleError::Stopped`], [`HandleError::Transaction`] when it is over.
    pub async fn respond(&self, tx: ServerTxId, response: Response) -> Result<(), HandleError> {
        self.ask(|reply| Command::Respond(tx, response, reply)).await
    }

    /// Opens one more listener (reload).
    ///
    /// # Errors
    /// [`HandleError::Stopped`], [`HandleError::Bind`].
    pub async fn add_listener(&self, listener: Listener) -> Result<BoundListener, HandleError> {
        self.ask(|reply| Command::AddListener(listener, reply)).await
    }

    /// Closes the listener bound to `local`, and the connections that came or go through it.
    ///
    /// # Errors
    /// [`HandleError::Stopped`], [`HandleError::UnknownListener`].
    pub async fn remove_listener(&self, local: SocketAddr) -> Result<(), HandleError> {
        self.ask(|reply| Command::RemoveListener(local, reply)).await
    }

    /// How to speak TLS to `peer`; `None` forgets it. Connections made under other settings are closed.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn set_tls_client(&self, peer: SocketAddr, client: Option<TlsClient>) -> Result<(), HandleError> {
        self.ask(|reply| Command::SetTlsClient(peer, client, reply)).await
    }

    /// How many transactions there are now. Answered by the driver's own loop: also a sign of life.
    ///
    /// # Errors
    /// [`HandleError::Stopped`].
    pub async fn counts(&self) -> Result<Counts, HandleError> {
        self.ask(Command::Counts).await
    }

    /// The driver's counters.
    pub fn counters(&self) -> &DriverCounters {
        &self.counters
    }
}
