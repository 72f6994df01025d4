//! What the platform can be asked to do with lower platforms: wait for them, query them, command them.
//!
//! Standard: [GB/T28181-2022 9.3, 9.5, A.2.3, A.2.4]; a query's answers are MESSAGEs of their own with the query's SN.
//! In: calls, each with a limit in time. Out: values.
//! Invariants: nothing waits longer than its limit; whatever is given up is forgotten.
//! Not here: the catalogue (`catalog`), calls (`call`), subscriptions (`subscription`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::serve::{Command, Outcome};
use super::state::{Answer, LowerPlatform, MAX_WAITING, PlatformEvent, Shared, lock};
use super::{Behaviour, PlatformError};
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::query;
use crate::proto::manscdp::response::read_result;
use crate::proto::manscdp::{DeviceControl, Incoming, Query};
use crate::proto::sip::endpoint::ClientTxId;
use crate::proto::sip::message::{Flow, Headers, Request, Response};
use crate::transport::sip_driver::{SipHandle, UserId};

/// Content-Type of MANSCDP bodies.
pub(super) const MANSCDP: &str = "Application/MANSCDP+xml";
/// Answers to one query that nobody has fetched yet; a catalogue in single items has this many.
const ANSWER_QUEUE: usize = 16_384;

/// How a command ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlOutcome {
    /// The SIP status.
    pub status: u16,
    /// `Result` of the Response, where one is due. [GB/T28181-2022 9.3.1]
    pub result: Option<bool>,
    /// The Response.
    pub response: Option<Incoming>,
}

/// Asks things of a running platform. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PlatformHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) sip: SipHandle,
    pub(super) user: UserId,
    pub(super) commands: mpsc::Sender<Command>,
}

/// Within `limit`, or the error that names `what`.
pub(super) async fn within<T>(
    limit: Duration,
    what: &'static str,
    future: impl Future<Output = T>,
) -> Result<T, PlatformError> {
    let timeout = PlatformError::Timeout { what, limit };
    tokio::time::timeout(limit, future).await.map_err(|_| timeout)
}

impl Shared {
    /// A request outside a dialog. `target`: who is addressed; the URI's host is the lower platform's Contact's.
    pub(super) fn out_of_dialog(&self, method: &str, target: &DeviceId, lower: &LowerPlatform) -> Request {
        let host = lower.contact.rsplit_once('@').map_or("", |(_, host)| host);
        let host = host.split([';', '?', '>']).next().unwrap_or_default();
        let uri = match host.is_empty() {
            true => format!("sip:{target}@{}", lower.flow.peer),
            false => format!("sip:{target}@{host}"),
        };
        let (id, domain) = (&self.config.id, &self.config.domain);
        let mut headers = Headers::new();
        headers.push("From", format!("<sip:{id}@{domain}>;tag={}", self.tag()));
        headers.push("To", format!("<{uri}>"));
        headers.push("Call-ID", self.call_id());
        headers.push("CSeq", format!("1 {method}"));
        if self.config.version_header {
            headers.push("X-GB-Ver", self.config.profile.xgbver());
        }
        Request { method: method.to_owned(), uri, headers, body: Bytes::new() }
    }

    /// A MESSAGE to the lower platform.
    pub(super) fn message(&self, lower: &LowerPlatform, body: Bytes) -> Request {
        let mut request = self.out_of_dialog("MESSAGE", &lower.id, lower);
        request.headers.push("Content-Type", MANSCDP);
        request.body = body;
        request
    }

    /// Our Contact towards a peer.
    pub(super) fn contact(&self, flow: Flow) -> String {
        let transport = match flow.transport.is_reliable() {
            true => ";transport=tcp",
            false => "",
        };
        format!("<sip:{}@{}{transport}>", self.config.id, self.advertised(flow.peer))
    }
}

/// Waits for the answers with one SN; forgets them when dropped.
pub(super) struct Answers {
    shared: Arc<Shared>,
    pub sn: u32,
    pub queue: mpsc::Receiver<Answer>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        lock(&self.shared.answers).remove(&self.sn);
    }
}

/// A request on its way.
pub(super) struct Sent {
    pub tx: ClientTxId,
    done: oneshot::Receiver<Outcome>,
}

impl Sent {
    /// How it ends. Can be awaited again when cancelled; not after it has ended.
    pub async fn outcome(&mut self) -> Result<(Response, Flow, Vec<u16>), PlatformError> {
        match (&mut self.done).await {
            Ok(Outcome::Final(response, flow, provisional)) => Ok((response, flow, provisional)),
            Ok(Outcome::Failed(reason)) => Err(PlatformError::Unanswered(reason)),
            Err(_) => Err(PlatformError::Stopped),
        }
    }
}

impl PlatformHandle {
    /// The platform's code.
    pub fn id(&self) -> DeviceId {
        self.shared.config.id
    }

    /// News from now on. Who does not fetch them in time loses the oldest.
    pub fn news(&self) -> broadcast::Receiver<PlatformEvent> {
        self.shared.news.subscribe()
    }

    /// Everybody who ever registered, by code.
    pub fn registrations(&self) -> Vec<LowerPlatform> {
        self.shared.lowers.borrow().values().cloned().collect()
    }

    /// One of them.
    pub fn registration(&self, id: &DeviceId) -> Option<LowerPlatform> {
        self.shared.lower(id)
    }

    /// Waits until `id` is registered and alive.
    ///
    /// # Errors
    /// [`PlatformError::Timeout`], [`PlatformError::Stopped`].
    pub async fn wait_registered(&self, id: &DeviceId, limit: Duration) -> Result<LowerPlatform, PlatformError> {
        self.wait(id, limit, "registration", LowerPlatform::is_online).await
    }

    /// Waits until what is known of `id` is as `wanted` says: so many keepalives, offline, …
    ///
    /// # Errors
    /// [`PlatformError::Timeout`] naming `what`, [`PlatformError::Stopped`].
    pub async fn wait(
        &self,
        id: &DeviceId,
        limit: Duration,
        what: &'static str,
        wanted: impl Fn(&LowerPlatform) -> bool,
    ) -> Result<LowerPlatform, PlatformError> {
        let mut lowers = self.shared.lowers.subscribe();
        let found = lowers.wait_for(|lowers| lowers.get(id).is_some_and(&wanted));
        let found = within(limit, what, found).await?.map_err(|_| PlatformError::Stopped)?;
        found.get(id).cloned().ok_or(PlatformError::NotRegistered(*id))
    }

    /// The oddities in force.
    pub fn behaviour(&self) -> Behaviour {
        lock(&self.shared.behaviour).clone()
    }

    /// Other oddities from now on.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        *lock(&self.shared.behaviour) = behaviour;
    }

    /// Asks for anything but the catalogue; the first answer. `target`: whom the query is about, the lower platform
    /// itself or a channel.
    ///
    /// # Errors
    /// [`PlatformError`]: not registered, refused, or no answer within `limit`.
    pub async fn query(
        &self,
        lower: &DeviceId,
        target: &DeviceId,
        query: &Query,
        limit: Duration,
    ) -> Result<Incoming, PlatformError> {
        let asked = async {
            let mut answers = self.ask(lower, target, query).await?;
            let answer = answers.queue.recv().await.ok_or(PlatformError::Stopped)?;
            Ok(answer.incoming)
        };
        within(limit, "answer to the query", asked).await?
    }

    /// Sends a query and waits for its 200.
    pub(super) async fn ask(
        &self,
        lower: &DeviceId,
        target: &DeviceId,
        query: &Query,
    ) -> Result<Answers, PlatformError> {
        let answers = self.expect_answers()?;
        let body = query::query(self.shared.config.profile, answers.sn, target, query);
        let status = self.send_message(lower, body.into()).await?;
        accepted("MESSAGE", status)?;
        Ok(answers)
    }

    fn expect_answers(&self) -> Result<Answers, PlatformError> {
        let sn = self.shared.next_sn();
        let (asker, queue) = mpsc::channel(ANSWER_QUEUE);
        let mut waiting = lock(&self.shared.answers);
        if waiting.len() >= MAX_WAITING {
            return Err(PlatformError::TooMany("queries"));
        }
        waiting.insert(sn, asker);
        let shared = self.shared.clone();
        Ok(Answers { shared, sn, queue })
    }

    /// Commands a device; waits for the Response where one is due and the command was taken.
    ///
    /// # Errors
    /// [`PlatformError`]: not registered, no such command in the platform's version, or not answered within `limit`.
    pub async fn control(
        &self,
        lower: &DeviceId,
        target: &DeviceId,
        control: &DeviceControl,
        limit: Duration,
    ) -> Result<ControlOutcome, PlatformError> {
        let commanded = async {
            let mut answers = self.expect_answers()?;
            let body = query::control(self.shared.config.profile, answers.sn, target, control);
            let body = body.ok_or(PlatformError::NotInVersion)?;
            let status = self.send_message(lower, body.into()).await?;
            let response = match (200..300).contains(&status) && control.response_due() {
                true => Some(answers.queue.recv().await.ok_or(PlatformError::Stopped)?.incoming),
                false => None,
            };
            let result = response.as_ref().and_then(read_result);
            Ok(ControlOutcome { status, result, response })
        };
        within(limit, "answer to the command", commanded).await?
    }

    /// Sends any body in a MESSAGE; the SIP status.
    ///
    /// # Errors
    /// [`PlatformError`]: not registered, or not answered within `limit`.
    pub async fn raw_message(&self, lower: &DeviceId, body: Bytes, limit: Duration) -> Result<u16, PlatformError> {
        within(limit, "response to the MESSAGE", self.send_message(lower, body)).await?
    }

    async fn send_message(&self, lower: &DeviceId, body: Bytes) -> Result<u16, PlatformError> {
        let lower = self.shared.online(lower)?;
        let request = self.shared.message(&lower, body);
        let mut sent = self.send(lower.flow, request).await?;
        Ok(sent.outcome().await?.0.status)
    }

    /// Hands a request to the platform's task.
    pub(super) async fn send(&self, flow: Flow, request: Request) -> Result<Sent, PlatformError> {
        let (started, start) = oneshot::channel();
        let (done, outcome) = oneshot::channel();
        let command = Command::Send { flow, request, started, done };
        self.commands.send(command).await.map_err(|_| PlatformError::Stopped)?;
        let tx = start.await.map_err(|_| PlatformError::Stopped)??;
        Ok(Sent { tx, done: outcome })
    }
}

pub(super) fn accepted(method: &'static str, status: u16) -> Result<(), PlatformError> {
    match status {
        200..300 => Ok(()),
        status => Err(PlatformError::Refused { method, status }),
    }
}
