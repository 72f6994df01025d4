//! Recordings: what a session of playback or download has beyond a live one.
//! Standard: [GB/T28181-2022 9.8, 9.9, annex B, annex K].
//! Order: the owner of the channel opens the recording, the hub is asked for its stream, the rest is a call as any
//! other. INFO goes to the device as it came, and its answer back; at the end of the recording MediaStatus 121 goes out
//! in the dialog and the platform has [`GOODBYE`] to say BYE.
//! Invariants: what was opened for a call is given back with it, also while it is being opened; a recording that is held
//! is not lost: only the device, the platform or their silence about the end ends it.

use super::relay::bounded;
use super::*;
use crate::catalog::{RecordControl, RecordEvent, RecordFacts, RecordRequest, RecordSession};
use crate::proto::manscdp::notify::file_finished;
use crate::proto::mansrtsp;
use crate::proto::sdp::{MediaOffer, SessionKind as OfferKind};
use std::sync::OnceLock;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// What an owner has to open a recording; it bounds itself below this. Platforms wait about as long.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// What a device has to answer a playback control: just below the life of the INFO's transaction.
const CONTROL_LIMIT: Duration = Duration::from_secs(20);
/// From the device's word that all is sent to ours: its last packets are on their way, in our slots, or in a receiver's
/// connection.
const DRAIN: Duration = Duration::from_millis(500);
/// What the platform has to say BYE after MediaStatus: as long as a transaction lives.
const GOODBYE: Duration = Duration::from_secs(32);
/// How far ahead of our clock a recording may begin: clocks differ, but who sends NTP seconds is decades away.
const AHEAD: u64 = 86_400;

/// Ends its job when dropped.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum Due {
    /// MediaStatus.
    Tell,
    /// BYE.
    Bye,
}

/// The recording of a call.
pub(super) struct Record {
    /// Where it is to go, until it is opened.
    spec: Option<Box<SinkSpec>>,
    control: Option<mpsc::Sender<RecordControl>>,
    facts: Option<Arc<OnceLock<RecordFacts>>>,
    /// Waits for the owner: first for the recording, then for its news.
    task: Option<Task>,
    /// The device has sent everything.
    finished: bool,
    due: Option<(Instant, Due)>,
}

impl Record {
    pub(super) fn file_size(&self) -> Option<u64> {
        self.facts.as_ref()?.get()?.file_size
    }
}

/// The word for it in the audit log and the status.
pub(super) fn kind_word(kind: OfferKind) -> &'static str {
    match kind {
        OfferKind::Play => "live",
        OfferKind::Playback => "playback",
        OfferKind::Download => "download",
        OfferKind::Talk => "talk",
    }
}

/// The SIP status of what an owner could not do.
fn status_of(error: &CommandError) -> u16 {
    match error {
        // Its own words, but for what would mean something else between the platform and us.
        CommandError::Refused(status @ (403 | 404 | 408 | 480 | 486 | 488 | 500..=699)) => *status,
        CommandError::Timeout => 504,
        CommandError::Busy(_) => 486,
        CommandError::Unsupported => 488,
        _ => 503,
    }
}

impl CallEntry {
    pub(super) fn kind(&self) -> OfferKind {
        self.wanted.offer.kind
    }

    /// True for what the ladder follows: it tells of live play alone.
    pub(super) fn is_live(&self) -> bool {
        !self.kind().is_history()
    }
}

impl Link {
    pub(super) fn may_open(&self, kind: OfferKind) -> Result<(), Refusal> {
        let (permission, what) = match kind {
            OfferKind::Playback => (Permission::Playback, "playback is"),
            OfferKind::Download => (Permission::Download, "download is"),
            OfferKind::Play => (Permission::Live, "live pictures are"),
            OfferKind::Talk => (Permission::Talk, "talk is"),
        };
        match self.cfg.uplink.permissions.contains(&permission) {
            true => Ok(()),
            false => Err(Refusal::new(403, format!("{what} not permitted for this platform"))),
        }
    }

    /// What the owner is to be asked for; the channel must have one.
    pub(super) fn record_request(&self, offer: &MediaOffer, channel: &Channel) -> Result<RecordRequest, Refusal> {
        if channel.commands.is_none() {
            return Err(Refusal::new(488, format!("no recording source: {} has live pictures alone", channel.id)));
        }
        let (start, end) = offer.time.ok_or_else(|| Refusal::new(400, "no t= line: send start and end"))?;
        if start > self.deps.wall.unix().as_secs() + AHEAD {
            return Err(Refusal::new(400, format!("t={start} is in the future: send Unix seconds, not NTP's")));
        }
        Ok(RecordRequest {
            kind: offer.kind,
            start,
            end,
            uri: offer.uri,
            speed: offer.download_speed,
            stream_number: offer.stream_number,
        })
    }

    /// Has the recording opened for call `key`.
    pub(super) fn open_record(
        &mut self,
        key: u64,
        channel: &Channel,
        request: RecordRequest,
        spec: SinkSpec,
    ) -> Record {
        let (commands, channel) = (channel.commands.clone(), channel.id.clone());
        let task = self.jobs.spawn(async move {
            let result = match commands {
                Some(commands) => bounded(OPEN_LIMIT, commands.open(channel, request)).await,
                None => Err(CommandError::Unsupported),
            };
            Job::Opened { key, result }
        });
        let spec = Some(Box::new(spec));
        Record { spec, control: None, facts: None, task: Some(Task(task)), finished: false, due: None }
    }

    pub(super) async fn on_opened(&mut self, key: u64, result: Result<RecordSession, CommandError>) {
        // None: cancelled meanwhile; the recording goes with `result`.
        let Some(record) = self.calls.get_mut(&key).and_then(|c| c.record.as_mut()) else { return };
        let opened = match (result, record.spec.take()) {
            (Ok(session), Some(spec)) => {
                record.control = Some(session.control);
                record.facts = Some(session.facts);
                self.await_record(key, session.events);
                self.subscribe(key, session.key, *spec, session.source)
            }
            (Err(e), _) => Err(Refusal::new(status_of(&e), e.to_string())),
            (Ok(_), None) => return,
        };
        if let Err(refusal) = opened
            && let Some(entry) = self.calls.get_mut(&key)
        {
            entry.refusal = refusal.reason;
            self.feed(key, CallInput::Failed(refusal.status)).await;
        }
    }

    fn await_record(&mut self, key: u64, mut events: mpsc::Receiver<RecordEvent>) {
        let task = self.jobs.spawn(async move {
            let event = events.recv().await;
            Job::RecordNews { key, event, events }
        });
        if let Some(record) = self.calls.get_mut(&key).and_then(|c| c.record.as_mut()) {
            record.task = Some(Task(task));
        }
    }

    pub(super) async fn on_record_news(
        &mut self,
        key: u64,
        event: Option<RecordEvent>,
        events: mpsc::Receiver<RecordEvent>,
    ) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        let Some(record) = call.record.as_mut() else { return };
        match event {
            Some(RecordEvent::Finished) => {
                // A device that repeats itself does not make us do so.
                if !std::mem::replace(&mut record.finished, true) {
                    tracing::info!(uplink = %self.user, call_id = %call.call_id, channel = %call.channel,
                        "the device has sent the recording to its end");
                    record.due = Some((clock::now() + DRAIN, Due::Tell));
                }
                self.await_record(key, events);
            }
            // The platform has been told, or is about to be, and hangs up.
            Some(RecordEvent::Ended(_)) | None if record.finished => {}
            Some(RecordEvent::Ended(why)) => self.record_lost(key, why).await,
            None => self.record_lost(key, "its owner is gone".into()).await,
        }
    }

    async fn record_lost(&mut self, key: u64, why: String) {
        let Some(call) = self.calls.get_mut(&key) else { return };
        tracing::info!(uplink = %self.user, call_id = %call.call_id, channel = %call.channel, why = %plain(&why),
            "the recording ended");
        call.refusal = format!("the recording ended: {}", plain(&why));
        self.feed(key, CallInput::MediaEnded).await;
    }

    /// The sink of a call has ended. True where that is as it should be, or not the last word.
    pub(super) fn record_drained(&mut self, key: u64, why: SinkEnd) -> bool {
        let Some(record) = self.calls.get_mut(&key).and_then(|c| c.record.as_mut()) else { return false };
        if record.finished {
            return true;
        }
        // The stream and the device's word that it was all come by different ways.
        let source = matches!(why, SinkEnd::SourceLost | SinkEnd::StreamClosed);
        if source && record.due.is_none() {
            record.due = Some((clock::now() + DRAIN, Due::Bye));
        }
        source
    }

    pub(super) fn records_due(&self) -> Option<Instant> {
        self.calls.values().filter_map(|c| Some(c.record.as_ref()?.due.as_ref()?.0)).min()
    }

    pub(super) async fn serve_records(&mut self, now: Instant) {
        let is_due = |c: &CallEntry| c.record.as_ref().and_then(|r| r.due.as_ref()).is_some_and(|(at, _)| *at <= now);
        let keys: Vec<u64> = self.calls.iter().filter(|(_, c)| is_due(c)).map(|(k, _)| *k).collect();
        for key in keys {
            let Some(call) = self.calls.get_mut(&key) else { continue };
            let state = call.call.state();
            match (call.record.as_mut().and_then(|r| r.due.take()), state) {
                (Some((_, Due::Tell)), CallState::Established) => self.tell_finished(key, now).await,
                // The ACK is still to come, or will be missed.
                (Some((_, Due::Tell)), CallState::Answered) => self.set_due(key, now + DRAIN, Due::Tell),
                _ => self.feed(key, CallInput::MediaEnded).await,
            }
        }
    }

    fn set_due(&mut self, key: u64, at: Instant, due: Due) {
        if let Some(record) = self.calls.get_mut(&key).and_then(|c| c.record.as_mut()) {
            record.due = Some((at, due));
        }
    }

    /// MediaStatus 121 in the dialog [GB/T28181-2022 9.8.2].
    async fn tell_finished(&mut self, key: u64, now: Instant) {
        let (sn, profile) = (self.next_sn(), self.profile);
        let Some(call) = self.calls.get_mut(&key) else { return };
        let Some(dialog) = call.dialog.as_mut() else { return };
        let mut request = dialog.request("MESSAGE");
        request.headers.push("Content-Type", "Application/MANSCDP+xml");
        request.body = file_finished(profile, sn, &call.wanted.channel).into();
        let flow = dialog.flow();
        let flow = self.dialog_flow(flow);
        self.set_due(key, now + GOODBYE, Due::Bye);
        if !self.send_on(flow, request, Pending::MediaStatus { key }).await {
            self.feed(key, CallInput::MediaEnded).await;
        }
    }

    /// How MediaStatus was taken: who does not take it gets a BYE.
    pub(super) async fn on_finish_told(&mut self, key: u64, ok: bool) {
        let finished = self.calls.get(&key).and_then(|c| c.record.as_ref()).is_some_and(|r| r.finished);
        if !ok && finished {
            self.feed(key, CallInput::MediaEnded).await;
        }
    }

    // ---- INFO ----

    pub(super) async fn on_info(&mut self, tx: ServerTxId, request: Request, flow: Flow) {
        let found = self.call_for(&request).and_then(|key| Some((key, self.calls.get_mut(&key)?)));
        let Some((key, call)) = found else {
            return self.respond(tx, &request, &flow, 481, "no such session").await;
        };
        let stale = call.dialog.as_mut().is_some_and(|d| d.check_cseq(&request).is_err());
        let refusal = match call.record.as_ref().map(|r| r.control.clone()) {
            _ if stale => Refusal::new(500, "CSeq out of order"),
            None => Refusal::new(488, "live sessions take no playback control"),
            Some(None) => Refusal::new(481, "the session is still being opened"),
            Some(Some(control)) => match mansrtsp::Request::parse(&request.body) {
                Err(e) => Refusal::new(400, e.to_string()),
                Ok(asked) if asked.method == mansrtsp::Method::Teardown => {
                    self.answer_info(tx, &request, &flow, 200, mansrtsp::Response::to(&asked, 200).to_bytes().into())
                        .await;
                    return self.feed(key, CallInput::MediaEnded).await;
                }
                Ok(asked) => {
                    let (reply, answer) = oneshot::channel();
                    match control.try_send(RecordControl { body: request.body.clone(), reply }) {
                        Ok(()) => {
                            self.jobs.spawn(async move {
                                let answer = async { answer.await.unwrap_or(Err(CommandError::Gone)) };
                                let result = bounded(CONTROL_LIMIT, answer).await;
                                Job::Controlled { key, tx, request: Box::new(request), flow, asked, result }
                            });
                            return;
                        }
                        Err(mpsc::error::TrySendError::Full(_)) => Refusal::new(503, "too many controls at once"),
                        Err(mpsc::error::TrySendError::Closed(_)) => Refusal::new(481, "the recording has ended"),
                    }
                }
            },
        };
        self.refuse(tx, &request, &flow, &refusal).await;
    }

    pub(super) async fn on_info_answered(
        &mut self,
        key: u64,
        (tx, request, flow): (ServerTxId, Box<Request>, Flow),
        asked: mansrtsp::Request,
        result: Result<(u16, Bytes), CommandError>,
    ) {
        let (status, body) = match result {
            // A device that says nothing more than yes is given words: platforms wait for them.
            Ok((status @ 200..=299, body)) if body.is_empty() && asked.cseq.is_some() => {
                (status, mansrtsp::Response::to(&asked, 200).to_bytes().into())
            }
            Ok((status @ 200..=699, body)) => (status, body),
            Ok((status, _)) => (500, format!("the device answered {status}").into()),
            Err(e) => {
                let status = status_of(&e);
                return self.refuse(tx, &request, &flow, &Refusal::new(status, e.to_string())).await;
            }
        };
        let taken = status < 300 && mansrtsp::Response::parse(&body).map_or(true, |r| r.is_success());
        if taken
            && asked.method == mansrtsp::Method::Play
            && let Some(record) = self.calls.get_mut(&key).and_then(|c| c.record.as_mut())
        {
            // Played again from some place: the end is still to come.
            record.finished = false;
            record.due = None;
        }
        self.answer_info(tx, &request, &flow, status, body).await;
    }

    async fn answer_info(&self, tx: ServerTxId, request: &Request, flow: &Flow, status: u16, body: Bytes) {
        let mut response = response_to(request, flow, status, None, "");
        if !body.is_empty() {
            response.headers.push("Content-Type", "Application/MANSRTSP");
            response.body = body;
        }
        self.respond_with(tx, response).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_said_stays_between_it_and_us_where_it_would_mislead() {
        for (error, status) in [
            (CommandError::Refused(404), 404),
            (CommandError::Refused(486), 486),
            (CommandError::Refused(603), 603),
            (CommandError::Refused(401), 503),
            (CommandError::Refused(487), 503),
            (CommandError::Refused(99), 503),
            (CommandError::Timeout, 504),
            (CommandError::Busy("x"), 486),
            (CommandError::Unsupported, 488),
            (CommandError::Offline, 503),
        ] {
            assert_eq!(status_of(&error), status, "{error}");
        }
    }
}
