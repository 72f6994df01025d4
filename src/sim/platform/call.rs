//! Calls: the platform invites a channel, receives what it plays, and hangs up.
//!
//! Standard: [GB/T28181-2022 9.2, 9.8, 9.9, annexes D, G, L], [RFC3261 13, 9, 15].
//! In: `InviteOptions`. Out: a `Session` while media comes, or an `InviteFailure`.
//! Invariants: the receiver listens before the INVITE leaves; a call that was answered and is not wanted is acknowledged
//! and ended; a session that is dropped is hung up.
//! Not here: reading media (`sim::receiver`).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::PlatformError;
use super::handle::{PlatformHandle, Sent, within};
use super::serve::Command;
use super::state::{CallEntry, LowerPlatform, MAX_WAITING, Shared, lock};
use crate::clock;
use crate::proto::gb28181::{DeviceId, Subject};
use crate::proto::sdp::ssrc::format_y;
use crate::proto::sdp::{F, Invite, MediaAnswer, MediaTransport, RecordType, Sdp, SessionKind};
use crate::proto::sip::dialog::Dialog;
use crate::proto::sip::message::{Flow, Request, Response};
use crate::proto::sip::status::reason_phrase;
use crate::sim::clip::Clip;
use crate::sim::receiver::{Expected, ReceivePlan, ReceiverPort, Verdict};

/// What a CANCEL is given to bring the final answer.
const CANCEL_TIME: Duration = Duration::from_secs(5);
/// What a BYE is given to be answered.
const BYE_TIME: Duration = Duration::from_secs(5);

/// Makes the body of an INVITE out of the offer that would be sent.
pub type SdpEdit = Box<dyn FnOnce(Sdp) -> Bytes + Send>;
/// Changes an INVITE before it leaves.
pub type RequestEdit = Box<dyn FnOnce(&mut Request) + Send>;

/// How to invite.
pub struct InviteOptions {
    /// Live or history.
    pub kind: SessionKind,
    /// How media travels; the role is the platform's.
    pub transport: MediaTransport,
    /// Unix seconds, for history.
    pub time: Option<(u64, u64)>,
    /// `a=streamnumber`.
    pub stream_number: Option<u8>,
    /// `a=downloadspeed`.
    pub download_speed: Option<u32>,
    /// `f=`.
    pub f: Option<F>,
    /// `y=`; `None`: a fresh one of the platform's domain.
    pub ssrc: Option<u32>,
    /// What the camera plays, to compare with.
    pub clip: Option<Arc<Clip>>,
    /// Write the program stream there.
    pub dump: Option<PathBuf>,
    /// The INVITE is cancelled when no final answer has come by then.
    pub answer_limit: Duration,
    /// Cancel after this time, answered or not.
    pub cancel_after: Option<Duration>,
    /// False: leave the 200 without ACK.
    pub ack: bool,
    /// Another body.
    pub sdp: Option<SdpEdit>,
    /// Another INVITE.
    pub tamper: Option<RequestEdit>,
}

impl Default for InviteOptions {
    /// Live over UDP, the way an upper platform does it.
    fn default() -> Self {
        InviteOptions {
            kind: SessionKind::Play,
            transport: MediaTransport::Udp,
            time: None,
            stream_number: None,
            download_speed: None,
            f: None,
            ssrc: None,
            clip: None,
            dump: None,
            answer_limit: Duration::from_secs(10),
            cancel_after: None,
            ack: true,
            sdp: None,
            tamper: None,
        }
    }
}

impl fmt::Debug for InviteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InviteOptions")
            .field("kind", &self.kind)
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}

/// A call that did not come about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("INVITE failed after {took:?}: {}{reason}: look at the lower platform", status.map_or(String::new(), |s| format!("{s} ")))]
pub struct InviteFailure {
    /// The final status, where one came.
    pub status: Option<u16>,
    /// Why, in words: the phrase of the status, or what is wrong with the answer.
    pub reason: String,
    /// From the INVITE to the end.
    pub took: Duration,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionEnd {
    /// The answer to our BYE; `None` when none came, or the lower platform had hung up before.
    pub bye_status: Option<u16>,
    /// The lower platform hung up.
    pub by_lower: bool,
    /// All that was received.
    pub verdict: Verdict,
}

/// Forgets the call when dropped.
#[derive(Debug)]
struct Guard {
    shared: Arc<Shared>,
    call_id: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&self.shared.calls).remove(&self.call_id);
    }
}

/// A call in progress. Dropping it hangs up.
#[derive(Debug)]
pub struct Session {
    /// The answer.
    pub answer: MediaAnswer,
    /// The answer's whole description.
    pub sdp: Sdp,
    /// `y=` as offered.
    pub offered_ssrc: u32,
    /// From the INVITE to its 200.
    pub setup: Duration,
    /// Statuses before the 200.
    pub provisional: Vec<u16>,
    /// The channel.
    pub channel: DeviceId,
    handle: PlatformHandle,
    guard: Guard,
    dialog: Dialog,
    pub(super) finished: Option<oneshot::Receiver<u32>>,
    /// Playback controls sent.
    controls: u32,
    ended: oneshot::Receiver<Request>,
    hung_up: bool,
    verdict: watch::Receiver<Verdict>,
    stop: CancellationToken,
    /// Holds the receiver's one task.
    receiver: JoinSet<()>,
}

impl PlatformHandle {
    /// Invites `channel` of `lower`, and begins to receive.
    ///
    /// # Errors
    /// [`InviteFailure`]: refused, cancelled, not answered in time, or answered with what cannot be used.
    pub async fn invite(
        &self,
        lower: &DeviceId,
        channel: &DeviceId,
        options: InviteOptions,
    ) -> Result<Session, InviteFailure> {
        let began = clock::now();
        let failed = |error: PlatformError| failure(began, None, error.to_string());
        let known = self.shared.online(lower).map_err(failed)?;
        let media_ip = self.shared.media_ip(known.flow.peer);
        let port = ReceiverPort::bind(media_ip, options.transport).map_err(|error| failed(error.into()))?;
        let ssrc = options.ssrc.unwrap_or_else(|| self.shared.next_ssrc(options.kind.is_history()));
        let offer = Invite {
            kind: options.kind,
            receiver: self.shared.config.id,
            channel: *channel,
            address: media_ip,
            port: port.port(),
            transport: options.transport,
            ssrc,
            time: options.time,
            record_type: RecordType::All,
            stream_number: options.stream_number,
            download_speed: options.download_speed,
            f: options.f,
        };
        let mut request = self.invite_request(&known, channel, &offer);
        request.body = match options.sdp {
            Some(edit) => edit(offer.to_sdp()),
            None => offer.to_sdp().to_string().into(),
        };
        if let Some(tamper) = options.tamper {
            tamper(&mut request);
        }
        let (guard, ended, finished) = self.expect_call(&request, *lower, *channel).map_err(failed)?;
        let mut sent = self.send(known.flow, request.clone()).await.map_err(failed)?;
        let cancel_at = options.cancel_after.map(|after| began + after);
        let answered = self.final_answer(&mut sent, began + options.answer_limit, cancel_at).await;
        let (response, flow, provisional, cancelled) = answered.map_err(failed)?;
        let setup = clock::now().saturating_duration_since(began);
        if !(200..300).contains(&response.status) {
            return Err(failure(began, Some(response.status), phrase(&response)));
        }
        let status = Some(response.status);
        let Ok(mut dialog) = Dialog::uac(&request, &response, flow) else {
            return Err(failure(began, status, PlatformError::NoDialog.to_string()));
        };
        if options.ack || cancelled {
            self.ack(&mut dialog).await.map_err(failed)?;
        }
        let usable = match cancelled {
            true => Err("answered although it was cancelled".to_owned()),
            false => read_answer(&response),
        };
        let (sdp, answer) = match usable {
            Ok(usable) => usable,
            Err(reason) => {
                self.hang_up(&mut dialog);
                return Err(failure(began, status, reason));
            }
        };
        let plan = ReceivePlan {
            remote: answer.remote,
            expected: Expected {
                ssrc: answer.ssrc,
                payload_type: answer.ps_payload_type.unwrap_or(crate::proto::rtp::PT_PS),
                clip: options.clip,
            },
            began,
            dump: options.dump,
        };
        let (publish, verdict) = watch::channel(Verdict::default());
        let stop = CancellationToken::new();
        let mut receiver = JoinSet::new();
        receiver.spawn(port.run(plan, publish, stop.clone()));
        Ok(Session {
            answer,
            sdp,
            offered_ssrc: ssrc,
            setup,
            provisional,
            channel: *channel,
            handle: self.clone(),
            guard,
            dialog,
            finished: Some(finished),
            controls: 0,
            ended,
            hung_up: false,
            verdict,
            stop,
            receiver,
        })
    }

    fn invite_request(&self, lower: &LowerPlatform, channel: &DeviceId, offer: &Invite) -> Request {
        let mut request = self.shared.out_of_dialog("INVITE", channel, lower);
        let stream = offer.stream_number.unwrap_or(0);
        let subject = Subject {
            sender: *channel,
            // Live streams have equal serials, so that the sender can tell a repeated request; history is unique.
            sender_serial: match offer.kind.is_history() {
                true => format_y(offer.ssrc),
                false => format!("0{stream}"),
            },
            receiver: Some(self.shared.config.id),
            receiver_serial: format_y(offer.ssrc),
        };
        request.headers.push("Contact", self.shared.contact(lower.flow));
        request.headers.push("Subject", subject.to_string());
        request.headers.push("Content-Type", "APPLICATION/SDP");
        request
    }

    fn expect_call(
        &self,
        request: &Request,
        lower: DeviceId,
        channel: DeviceId,
    ) -> Result<(Guard, oneshot::Receiver<Request>, oneshot::Receiver<u32>), PlatformError> {
        let call_id = request.headers.call_id().unwrap_or_default().to_owned();
        let (tell, ended) = oneshot::channel();
        let (finish, finished) = oneshot::channel();
        let mut calls = lock(&self.shared.calls);
        if calls.len() >= MAX_WAITING {
            return Err(PlatformError::TooMany("calls"));
        }
        calls.insert(call_id.clone(), CallEntry { lower, channel, finished: Some(finish), ended: Some(tell) });
        let shared = self.shared.clone();
        Ok((Guard { shared, call_id }, ended, finished))
    }

    /// The final answer, and whether the INVITE was cancelled before.
    async fn final_answer(
        &self,
        sent: &mut Sent,
        limit: Instant,
        cancel_at: Option<Instant>,
    ) -> Result<(Response, Flow, Vec<u16>, bool), PlatformError> {
        let first = cancel_at.map_or(limit, |at| at.min(limit));
        if let Ok(outcome) = tokio::time::timeout_at(first.into(), sent.outcome()).await {
            let (response, flow, provisional) = outcome?;
            return Ok((response, flow, provisional, false));
        }
        // Refused when the answer has just come; then it is here at once.
        let cancelled = self.sip.cancel(sent.tx).await.is_ok();
        let outcome = within(CANCEL_TIME, "final answer to the INVITE", sent.outcome()).await?;
        let (response, flow, provisional) = outcome?;
        Ok((response, flow, provisional, cancelled))
    }

    async fn ack(&self, dialog: &mut Dialog) -> Result<(), PlatformError> {
        let (request, flow) = (dialog.request("ACK"), dialog.flow());
        let sent_by = Some(self.shared.advertised(flow.peer).to_string());
        Ok(self.sip.ack(&self.user, flow, sent_by, request).await?)
    }

    /// BYE without waiting.
    fn hang_up(&self, dialog: &mut Dialog) {
        let command = Command::Forget { flow: dialog.flow(), request: dialog.request("BYE") };
        if self.commands.try_send(command).is_err() {
            tracing::debug!("a call of the simulated platform was left without BYE");
        }
    }
}

fn failure(began: Instant, status: Option<u16>, reason: String) -> InviteFailure {
    let took = clock::now().saturating_duration_since(began);
    InviteFailure { status, reason, took }
}

fn phrase(response: &Response) -> String {
    match response.reason.is_empty() {
        true => reason_phrase(response.status).to_owned(),
        false => response.reason.clone(),
    }
}

fn read_answer(response: &Response) -> Result<(Sdp, MediaAnswer), String> {
    let sdp = Sdp::parse(&response.body).map_err(|error| error.to_string())?;
    let answer = MediaAnswer::from_sdp(&sdp).map_err(|error| error.to_string())?;
    Ok((sdp, answer))
}

impl Session {
    /// What has been received so far.
    pub fn verdict(&self) -> Verdict {
        self.verdict.borrow().clone()
    }

    /// Waits until what has been received is as `wanted` says.
    ///
    /// # Errors
    /// [`PlatformError::Timeout`] naming `what`; look at [`Self::verdict`] then.
    pub async fn wait(
        &mut self,
        limit: Duration,
        what: &'static str,
        wanted: impl FnMut(&Verdict) -> bool,
    ) -> Result<Verdict, PlatformError> {
        let reached = within(limit, what, self.verdict.wait_for(wanted)).await?;
        Ok(reached.map_err(|_| PlatformError::Stopped)?.clone())
    }

    /// Lets it play for `length`; true when the lower platform hung up before.
    pub async fn play(&mut self, length: Duration) -> bool {
        self.wait_bye(length).await.is_some()
    }

    /// Waits for the lower platform's BYE (once; it has been answered).
    pub async fn wait_bye(&mut self, limit: Duration) -> Option<Request> {
        if self.hung_up {
            return None;
        }
        let bye = tokio::time::timeout(limit, &mut self.ended).await.ok()?.ok();
        self.hung_up = true;
        bye
    }

    /// Sends the body of an INFO (playback control, [GB/T28181-2022 annex B]) in the dialog; the SIP status.
    ///
    /// # Errors
    /// [`PlatformError`]: not answered within `limit`.
    pub async fn info(&mut self, body: Bytes, limit: Duration) -> Result<u16, PlatformError> {
        Ok(self.send_info(body, limit).await?.status)
    }

    pub(super) fn next_control(&mut self) -> u32 {
        self.controls += 1;
        self.controls
    }

    pub(super) async fn send_info(&mut self, body: Bytes, limit: Duration) -> Result<Response, PlatformError> {
        let mut request = self.dialog.request("INFO");
        request.headers.push("Content-Type", "Application/MANSRTSP");
        request.body = body;
        self.in_dialog(request, limit).await
    }

    async fn in_dialog(&self, request: Request, limit: Duration) -> Result<Response, PlatformError> {
        let sent = async {
            let mut sent = self.handle.send(self.dialog.flow(), request).await?;
            Ok(sent.outcome().await?.0)
        };
        within(limit, "response in the call", sent).await?
    }

    /// Hangs up, unless the lower platform has, and reads what came until then.
    pub async fn bye(mut self) -> SessionEnd {
        let by_lower = self.hung_up || self.ended.try_recv().is_ok();
        self.hung_up = true;
        let bye_status = match by_lower {
            true => None,
            false => {
                let request = self.dialog.request("BYE");
                self.in_dialog(request, BYE_TIME).await.ok().map(|response| response.status)
            }
        };
        self.stop.cancel();
        while self.receiver.join_next().await.is_some() {}
        SessionEnd { bye_status, by_lower, verdict: self.verdict() }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.hung_up && lock(&self.guard.shared.calls).contains_key(&self.guard.call_id) {
            self.handle.hang_up(&mut self.dialog);
        }
    }
}
