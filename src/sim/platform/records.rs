//! Recordings: searched, played back under control, downloaded.
//!
//! Standard: [GB/T28181-2022 9.7, 9.8, 9.9, annexes B, M].
//! In: a channel and a time. Out: `RecordList`; sessions as of live play, with playback control and an end.
//! Invariants: a list ends when SumNum items have come, or when nothing has for `IDLE`; bounded in items and time.
//! Not here: calls as such (`call`).

use std::time::Duration;

use tokio::sync::oneshot;

use super::PlatformError;
use super::call::{InviteFailure, InviteOptions, Session, SessionEnd};
use super::handle::{ControlOutcome, PlatformHandle, within};
use super::subscription::Subscription;
use crate::clock;
use crate::proto::gb28181::{DeviceId, UnixMillis};
use crate::proto::manscdp::request::{AlarmQuery, RecordQuery};
use crate::proto::manscdp::{DeviceControl, Element, Incoming, PtzCommand, Query, QueryKind};
use crate::proto::mansrtsp::{self, Scale};
use crate::proto::sdp::{MediaTransport, SessionKind};

/// A list that pauses for this long has ended; platforms in the field wait as long.
const IDLE: Duration = Duration::from_secs(5);
/// Most items kept: ten times the largest message.
const MAX_ITEMS: usize = 100_000;

/// Recordings as received.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecordList {
    /// The items in order of arrival.
    pub items: Vec<Element>,
    /// `Name` of the first page.
    pub name: Option<String>,
    /// SumNum of the first page.
    pub sum_num: Option<usize>,
    /// Pages whose SumNum is another one, or whose Num is not the number of items in them.
    pub faulty: usize,
    /// Pages.
    pub messages: usize,
    /// The largest SIP message among them, in bytes.
    pub max_message_bytes: usize,
    /// Result=ERROR came in place of a list.
    pub refused: bool,
}

impl RecordList {
    /// As many items as announced, every page sound.
    pub fn is_complete(&self) -> bool {
        self.sum_num == Some(self.items.len()) && self.faulty == 0
    }

    /// Takes a page; true when it was the last.
    fn take(&mut self, incoming: &Incoming, bytes: usize) -> bool {
        let e = &incoming.element;
        let sum_num = e.number_of("SumNum");
        let list = e.child("RecordList");
        let items = list.map_or(&[][..], |l| &l.children);
        let num = list.and_then(|l| l.attr("Num")).and_then(|n| n.parse().ok());
        if self.messages == 0 {
            self.sum_num = sum_num;
            self.name = e.text_of("Name").map(str::to_owned);
        }
        self.faulty += usize::from(sum_num != self.sum_num || num.is_some_and(|n: usize| n != items.len()));
        self.messages += 1;
        self.max_message_bytes = self.max_message_bytes.max(bytes);
        self.refused |= sum_num.is_none() && e.text_of("Result").is_some();
        let room = MAX_ITEMS.saturating_sub(self.items.len());
        self.items.extend(items.iter().take(room).cloned());
        self.refused || self.sum_num.is_some_and(|sum| self.items.len() >= sum)
    }
}

impl PlatformHandle {
    /// Searches the recordings of a channel between two moments, in Unix seconds. What has come by the end of `limit` is
    /// the result; see [`RecordList::is_complete`].
    ///
    /// # Errors
    /// [`PlatformError`]: not registered, refused, or no page at all within `limit`.
    pub async fn record_info(
        &self,
        lower: &DeviceId,
        channel: &DeviceId,
        (from, to): (u64, u64),
        limit: Duration,
    ) -> Result<RecordList, PlatformError> {
        let began = clock::now();
        let at = |seconds: u64| Some(UnixMillis::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX / 1000)));
        let query = Query::RecordInfo(RecordQuery {
            start: at(from),
            end: at(to),
            record_type: Some("all".into()),
            secrecy: Some(false),
            ..RecordQuery::default()
        });
        let asked = self.ask(lower, channel, &query);
        let mut answers = within(limit, "response to the query for recordings", asked).await??;
        let mut list = RecordList::default();
        loop {
            let left = limit.saturating_sub(clock::now().saturating_duration_since(began));
            let idle = if list.messages == 0 { left } else { left.min(IDLE) };
            match tokio::time::timeout(idle, answers.queue.recv()).await {
                Ok(Some(answer)) if list.take(&answer.incoming, answer.bytes) => return Ok(list),
                Ok(Some(_)) => {}
                Ok(None) => return Err(PlatformError::Stopped),
                Err(_) if list.messages > 0 => return Ok(list),
                Err(_) => return Err(PlatformError::Timeout { what: "list of recordings", limit }),
            }
        }
    }

    /// Plays back a channel's recording between two moments, in Unix seconds.
    ///
    /// # Errors
    /// As [`Self::invite`].
    pub async fn playback(
        &self,
        lower: &DeviceId,
        channel: &DeviceId,
        time: (u64, u64),
        transport: MediaTransport,
    ) -> Result<Session, InviteFailure> {
        let kind = SessionKind::Playback;
        self.invite(lower, channel, InviteOptions { kind, time: Some(time), transport, ..InviteOptions::default() })
            .await
    }

    /// Downloads it, at `speed` times its own pace.
    ///
    /// # Errors
    /// As [`Self::invite`].
    pub async fn download(
        &self,
        lower: &DeviceId,
        channel: &DeviceId,
        time: (u64, u64),
        speed: u32,
        transport: MediaTransport,
    ) -> Result<Session, InviteFailure> {
        let options = InviteOptions {
            kind: SessionKind::Download,
            time: Some(time),
            download_speed: Some(speed),
            transport,
            ..InviteOptions::default()
        };
        self.invite(lower, channel, options).await
    }

    /// Moves a camera.
    ///
    /// # Errors
    /// As [`Self::control`].
    pub async fn ptz(
        &self,
        lower: &DeviceId,
        channel: &DeviceId,
        command: PtzCommand,
        limit: Duration,
    ) -> Result<ControlOutcome, PlatformError> {
        self.control(lower, channel, &DeviceControl::Ptz { command, name: None }, limit).await
    }

    /// Asks a query without arguments; the first answer.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn query_kind(
        &self,
        lower: &DeviceId,
        target: &DeviceId,
        kind: QueryKind,
        limit: Duration,
    ) -> Result<Incoming, PlatformError> {
        self.query(lower, target, &Query::Plain(kind), limit).await
    }

    /// Resets a device's alarms.
    ///
    /// # Errors
    /// As [`Self::control`].
    pub async fn reset_alarm(
        &self,
        lower: &DeviceId,
        target: &DeviceId,
        limit: Duration,
    ) -> Result<ControlOutcome, PlatformError> {
        let control = DeviceControl::AlarmReset { methods: Vec::new(), alarm_type: None };
        self.control(lower, target, &control, limit).await
    }

    /// Subscribes to the alarms of `target` for `expires` seconds.
    ///
    /// # Errors
    /// As [`Self::subscribe`].
    pub async fn subscribe_alarms(
        &self,
        lower: &DeviceId,
        target: &DeviceId,
        expires: u32,
        limit: Duration,
    ) -> Result<Subscription, PlatformError> {
        self.subscribe(lower, target, Query::Alarm(AlarmQuery::default()), expires, limit).await
    }
}

/// What a playback control brought.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlAnswer {
    /// SIP status.
    pub status: u16,
    /// The body, where there is one that can be read.
    pub answer: Option<mansrtsp::Response>,
}

impl ControlAnswer {
    /// Taken, as far as is told.
    pub fn is_ok(&self) -> bool {
        (200..300).contains(&self.status) && self.answer.as_ref().is_none_or(mansrtsp::Response::is_success)
    }
}

impl Session {
    /// Controls the playback [GB/T28181-2022 annex B]. The request's CSeq is what the session counts.
    ///
    /// # Errors
    /// [`PlatformError`]: not answered within `limit`.
    pub async fn control(
        &mut self,
        mut request: mansrtsp::Request,
        limit: Duration,
    ) -> Result<ControlAnswer, PlatformError> {
        request.cseq = Some(self.next_control());
        let response = self.send_info(request.to_bytes().into(), limit).await?;
        Ok(ControlAnswer { status: response.status, answer: mansrtsp::Response::parse(&response.body).ok() })
    }

    /// Holds it.
    ///
    /// # Errors
    /// As [`Self::control`].
    pub async fn pause(&mut self, limit: Duration) -> Result<ControlAnswer, PlatformError> {
        self.control(mansrtsp::Request::pause(0), limit).await
    }

    /// Goes on.
    ///
    /// # Errors
    /// As [`Self::control`].
    pub async fn resume(&mut self, limit: Duration) -> Result<ControlAnswer, PlatformError> {
        self.control(mansrtsp::Request::resume(0), limit).await
    }

    /// Another speed.
    ///
    /// # Errors
    /// As [`Self::control`].
    pub async fn speed(&mut self, scale: Scale, limit: Duration) -> Result<ControlAnswer, PlatformError> {
        self.control(mansrtsp::Request::speed(0, scale), limit).await
    }

    /// Another place, in milliseconds from the start of the recording.
    ///
    /// # Errors
    /// As [`Self::control`].
    pub async fn seek(&mut self, ms: u64, limit: Duration) -> Result<ControlAnswer, PlatformError> {
        self.control(mansrtsp::Request::seek(0, ms), limit).await
    }

    /// Stops it; the lower platform hangs up.
    ///
    /// # Errors
    /// As [`Self::control`].
    pub async fn teardown(&mut self, limit: Duration) -> Result<ControlAnswer, PlatformError> {
        self.control(mansrtsp::Request::teardown(0), limit).await
    }

    /// Received so far of `a=filesize`, 0 to 1; `None` where the size was not told.
    pub fn progress(&self) -> Option<f64> {
        let size = self.answer.file_size.filter(|size| *size > 0)?;
        Some((self.verdict().bytes as f64 / size as f64).min(1.0))
    }

    /// Waits for the word that the recording was sent to its end (MediaStatus, once); its type, as a rule 121.
    pub async fn wait_finished(&mut self, limit: Duration) -> Option<u32> {
        let finished: oneshot::Receiver<u32> = self.finished.take()?;
        tokio::time::timeout(limit, finished).await.ok()?.ok()
    }

    /// Waits for the end of the recording and hangs up; `None`: no word of it in time, and hung up all the same.
    pub async fn play_to_end(mut self, limit: Duration) -> (Option<u32>, SessionEnd) {
        let finished = self.wait_finished(limit).await;
        (finished, self.bye().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::manscdp::parse;

    fn page(inner: &str) -> Incoming {
        let text = format!(
            "<Response><CmdType>RecordInfo</CmdType><SN>1</SN><DeviceID>41130000581320000001</DeviceID>{inner}</Response>"
        );
        parse(text.as_bytes(), None).unwrap()
    }

    #[test]
    fn pages_of_recordings_add_up() {
        let mut list = RecordList::default();
        let two = "<Name>n</Name><SumNum>3</SumNum><RecordList Num=\"2\"><Item/><Item/></RecordList>";
        assert!(!list.take(&page(two), 900));
        assert!(list.take(&page("<SumNum>3</SumNum><RecordList Num=\"1\"><Item/></RecordList>"), 700));
        assert!(list.is_complete() && list.max_message_bytes == 900 && list.name.as_deref() == Some("n"));
        let mut empty = RecordList::default();
        assert!(empty.take(&page("<SumNum>0</SumNum>"), 1) && empty.is_complete());
        let mut wrong = RecordList::default();
        assert!(wrong.take(&page("<SumNum>1</SumNum><RecordList Num=\"2\"><Item/></RecordList>"), 1));
        assert!(!wrong.is_complete());
        let mut refused = RecordList::default();
        assert!(refused.take(&page("<Result>ERROR</Result>"), 1) && refused.refused);
    }
}
