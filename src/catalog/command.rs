//! What may be asked of the owner of a channel beyond its live streams: controls, queries, recordings.
//! In: commands of `northbound` and the console. Out: answers over a oneshot. Defined here, filled by `southbound`, carried
//! by [`super::Channel`]; a channel without an owner that can be asked (an RTSP camera) carries none.
//! Invariants: every command is answered exactly once, the owner bounds the wait; a dropped reply is a failure.
//! Bounds: the owner's queue; a full one refuses at once.

use crate::media::{SourceHandle, StreamKey};
use crate::proto::manscdp::{Element, Incoming};
use crate::proto::sdp::{SessionKind, Uri};
use bytes::Bytes;
use std::sync::{Arc, OnceLock};
use tokio::sync::{mpsc, oneshot};

/// Why a command came to nothing. The text is for the peer and the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The device is not registered now.
    #[error("the device is offline")]
    Offline,
    /// The device refused, with this SIP status.
    #[error("the device refused: {0}")]
    Refused(u16),
    /// The device answered Result=ERROR.
    #[error("the device answered ERROR")]
    Failed,
    /// No answer in time.
    #[error("the device did not answer in time")]
    Timeout,
    /// The device cannot take more, or a queue is full.
    #[error("busy: {0}")]
    Busy(&'static str),
    /// This device's edition, or this kind of channel, has no such command.
    #[error("not supported by this channel")]
    Unsupported,
    /// The owner is gone.
    #[error("the channel is going away")]
    Gone,
}

/// The answer to a control, a configuration or a query.
#[derive(Debug, Clone, PartialEq)]
pub enum CommandAnswer {
    /// Taken; no application answer is due for it.
    Accepted,
    /// The device's own answer, whole: identifiers are the device's.
    Message(Incoming),
    /// A list answer, put together from all its messages.
    List {
        /// The first message, without its list: Name and the like.
        head: Incoming,
        /// The items, in order; identifiers are the device's.
        items: Vec<Element>,
        /// False when part of it never came.
        complete: bool,
    },
}

/// Part of a recording that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordRequest {
    /// Playback or download.
    pub kind: SessionKind,
    /// Unix seconds, as the `t=` line.
    pub start: u64,
    /// Unix seconds.
    pub end: u64,
    /// `u=` of the offer; its source is ours.
    pub uri: Option<Uri>,
    /// `a=downloadspeed`: times real speed.
    pub speed: u32,
    /// Which stream of the channel, as for live.
    pub stream_number: Option<u8>,
}

/// What the device said of a recording in its answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordFacts {
    /// Bytes (`a=filesize`).
    pub file_size: Option<u64>,
}

/// A message from the running session of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordEvent {
    /// The device has sent everything (MediaStatus 121).
    Finished,
    /// The device ended the session, or it was lost. The text is for the log.
    Ended(String),
}

/// A playback control to pass on.
#[derive(Debug)]
pub struct RecordControl {
    /// A MANSRTSP request, as it came.
    pub body: Bytes,
    /// SIP status and MANSRTSP body of the device's answer.
    pub reply: oneshot::Sender<Result<(u16, Bytes), CommandError>>,
}

/// A recording that was opened for one viewer: subscribe `key` at the hub with `source`. The device is invited when the
/// hub wants the stream, and sends when the first sink has started. Dropping `control` and the sink ends it.
#[derive(Debug)]
pub struct RecordSession {
    /// A stream of its own.
    pub key: StreamKey,
    /// Who pulls it.
    pub source: SourceHandle,
    /// Filled in before the hub says that the stream is ready.
    pub facts: Arc<OnceLock<RecordFacts>>,
    /// PLAY, PAUSE, TEARDOWN.
    pub control: mpsc::Sender<RecordControl>,
    /// What becomes of it.
    pub events: mpsc::Receiver<RecordEvent>,
}

/// To the owner of a channel.
#[derive(Debug)]
pub enum ChannelCommand {
    /// A Control (DeviceControl, DeviceConfig) or Query as it came from an upper platform, identifiers ours.
    Message {
        /// The channel.
        channel: Arc<str>,
        /// The message.
        message: Box<Incoming>,
        /// The device's answer.
        reply: oneshot::Sender<Result<CommandAnswer, CommandError>>,
    },
    /// Opens a recording.
    Open {
        /// The channel.
        channel: Arc<str>,
        /// Which part.
        request: RecordRequest,
        /// The session.
        reply: oneshot::Sender<Result<RecordSession, CommandError>>,
    },
}

/// The way to the owner of a channel.
#[derive(Debug, Clone)]
pub struct CommandHandle {
    tx: mpsc::Sender<ChannelCommand>,
}

impl CommandHandle {
    /// Wraps the owner's queue.
    pub fn new(tx: mpsc::Sender<ChannelCommand>) -> Self {
        CommandHandle { tx }
    }

    /// Passes a control or query on.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn message(&self, channel: Arc<str>, message: Incoming) -> Result<CommandAnswer, CommandError> {
        let message = Box::new(message);
        self.ask(|reply| ChannelCommand::Message { channel, message, reply }).await
    }

    /// Opens a recording.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn open(&self, channel: Arc<str>, request: RecordRequest) -> Result<RecordSession, CommandError> {
        self.ask(|reply| ChannelCommand::Open { channel, request, reply }).await
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, CommandError>>) -> ChannelCommand,
    ) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        match self.tx.try_send(make(reply)) {
            Ok(()) => answer.await.unwrap_or(Err(CommandError::Gone)),
            Err(mpsc::error::TrySendError::Full(_)) => Err(CommandError::Busy("its owner has too much to do")),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(CommandError::Gone),
        }
    }
}
