//! `menshen sim platform`: a simulated upper platform for people, told line by line.
//!
//! Standard: [GB/T28181-2022 9.1, 9.5, 9.6, 9.2].
//! In: `PlatformArgs`. Out: lines of text; whether all that was played arrived whole.
//! Invariants: one line an event, no control characters from peers, no colour unless asked for.
//! Not here: the command line (`app`).

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::{PlatformError, PlatformEvent, PlatformHandle, SimPlatform, SimPlatformConfig};
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::{CatalogItem, Status};
use crate::proto::sdp::MediaTransport;
use crate::sim::check::{CheckRow, padded, play_and_check, table_head, table_row, transport_name};
use crate::sim::clip::Clip;

/// What a catalogue is given to arrive.
const CATALOGUE_TIME: Duration = Duration::from_secs(60);
/// Longest name and text of a peer shown, in columns.
const TEXT_WIDTH: usize = 40;

/// Says what a channel's camera plays.
pub type ClipOf = Arc<dyn Fn(&DeviceId) -> Option<Arc<Clip>> + Send + Sync>;

/// What `menshen sim platform` is to do.
#[derive(Clone)]
pub struct PlatformArgs {
    /// The platform.
    pub config: SimPlatformConfig,
    /// Play every camera for so long, show what arrived, and end; `None`: go on until cancelled.
    pub play: Option<Duration>,
    /// Over which transports; the role is the platform's.
    pub transports: Vec<MediaTransport>,
    /// What cameras play, where known.
    pub clip_of: Option<ClipOf>,
    /// Colour the results.
    pub colour: bool,
}

impl std::fmt::Debug for PlatformArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlatformArgs").field("config", &self.config).field("play", &self.play).finish_non_exhaustive()
    }
}

/// Runs a platform until `cancel`, or until it has played everything of the first lower platform that registered.
/// True when nothing was played, or everything arrived whole.
///
/// # Errors
/// [`PlatformError`]: the address cannot be had, or `out` cannot be written.
pub async fn run_platform(
    args: PlatformArgs,
    out: &mut (impl Write + Send),
    cancel: CancellationToken,
) -> Result<bool, PlatformError> {
    let platform = SimPlatform::start(args.config.clone()).await?;
    let news = platform.handle().news();
    let mut told = Told { out, handle: platform.handle(), args: &args };
    let config = &args.config;
    let password = match config.password {
        Some(_) => "asks for a password",
        None => "lets everybody in",
    };
    let (id, domain, addr) = (config.id, &config.domain, platform.addr());
    told.line(format_args!("upper platform {id}, domain {domain}, listens on {addr} (UDP and TCP), {password}"))?;
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Ok(true),
        result = told.serve(news) => result,
    };
    platform.stop().await;
    result
}

/// The platform, told to somebody.
struct Told<'a, W> {
    out: &'a mut W,
    handle: PlatformHandle,
    args: &'a PlatformArgs,
}

impl<W: Write> Told<'_, W> {
    fn line(&mut self, text: std::fmt::Arguments<'_>) -> Result<(), PlatformError> {
        self.text(&format!("{text}\n"))
    }

    fn text(&mut self, text: &str) -> Result<(), PlatformError> {
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        written.map_err(|error| PlatformError::Output(error.kind()))
    }

    async fn serve(&mut self, mut news: Receiver<PlatformEvent>) -> Result<bool, PlatformError> {
        loop {
            let event = match news.recv().await {
                Ok(event) => event,
                Err(RecvError::Lagged(lost)) => {
                    self.line(format_args!("({lost} events not shown)"))?;
                    continue;
                }
                Err(RecvError::Closed) => return Ok(true),
            };
            if let Some(done) = self.event(event).await? {
                return Ok(done);
            }
        }
    }

    /// Tells one event; `Some` when all is done.
    async fn event(&mut self, event: PlatformEvent) -> Result<Option<bool>, PlatformError> {
        match event {
            PlatformEvent::Registered { id, flow, expires, fresh } => {
                let (what, seconds) = (if fresh { "registered" } else { "registered again" }, expires.as_secs());
                let (transport, peer) = (flow.transport.as_str(), flow.peer);
                self.line(format_args!("{id} {what} from {peer} over {transport} for {seconds} s"))?;
                if fresh {
                    return self.newcomer(&id).await;
                }
            }
            PlatformEvent::RegisterRefused { id, status } => {
                let id = clean(&id);
                self.line(format_args!("{id} not registered: {status}"))?;
            }
            PlatformEvent::Redirected { id, to } => self.line(format_args!("{id} sent to {to}"))?,
            PlatformEvent::Offline { id, why } => self.line(format_args!("{id} is offline: {why:?}"))?,
            PlatformEvent::Keepalive { id, count, ok, faulty } => {
                let ok = if ok { "OK" } else { "ERROR" };
                let faulty: Vec<&str> = faulty.iter().map(DeviceId::as_str).collect();
                let faulty = match faulty.is_empty() {
                    true => String::new(),
                    false => format!(", faulty: {}", faulty.join(" ")),
                };
                self.line(format_args!("{id} keepalive {count}: {ok}{faulty}"))?;
            }
            PlatformEvent::Alarm { id, device, alarm } => {
                let text = clean(alarm.description.as_deref().unwrap_or_default());
                let (priority, method) = (alarm.priority, alarm.method);
                self.line(format_args!("{id} alarm of {device}: priority {priority}, method {method} {text}"))?;
            }
            PlatformEvent::MediaStatus { id, channel, notify_type } => {
                self.line(format_args!("{id} media status of {channel}: {notify_type}"))?
            }
            PlatformEvent::Hangup { channel } => self.line(format_args!("{channel} hung up by the lower platform"))?,
            PlatformEvent::Message { id, cmd_type } => {
                let cmd_type = clean(&cmd_type);
                self.line(format_args!("{id} MESSAGE {cmd_type}"))?;
            }
            PlatformEvent::MessageRefused { id, status } => {
                let id = clean(&id);
                self.line(format_args!("{id} MESSAGE refused: {status}"))?;
            }
        }
        Ok(None)
    }

    async fn newcomer(&mut self, id: &DeviceId) -> Result<Option<bool>, PlatformError> {
        let catalog = match self.handle.query_catalog(id, CATALOGUE_TIME).await {
            Ok(catalog) => catalog,
            Err(error) => {
                self.line(format_args!("{id} no catalogue: {error}"))?;
                return Ok(self.args.play.map(|_| false));
            }
        };
        let (items, messages, took) = (catalog.items.len(), catalog.messages, catalog.took.as_millis());
        let announced = catalog.sum_num.map_or("no SumNum".to_owned(), |sum| format!("SumNum {sum}"));
        let largest = catalog.max_message_bytes;
        self.line(format_args!(
            "{id} catalogue: {items} items ({announced}) in {messages} messages of at most {largest} bytes, {took} ms"
        ))?;
        for item in &catalog.items {
            self.item(item)?;
        }
        let Some(length) = self.args.play else { return Ok(None) };
        let cameras: Vec<CatalogItem> = catalog.cameras().cloned().collect();
        let over: Vec<&str> = self.args.transports.iter().copied().map(transport_name).collect();
        let (count, over, seconds) = (cameras.len(), over.join(", "), length.as_secs());
        self.line(format_args!("playing {count} cameras for {seconds} s over {over}"))?;
        let rows = self.play(id, &cameras, length).await?;
        let good = rows.iter().filter(|row| row.ok).count();
        let due = cameras.len() * self.args.transports.len();
        self.line(format_args!("{good} of {due} arrived whole"))?;
        Ok(Some(good == due && due > 0))
    }

    async fn play(
        &mut self,
        id: &DeviceId,
        cameras: &[CatalogItem],
        length: Duration,
    ) -> Result<Vec<CheckRow>, PlatformError> {
        self.text(&table_head())?;
        let (handle, args) = (self.handle.clone(), self.args);
        let clip_of = |channel: &DeviceId| args.clip_of.as_ref().and_then(|clip_of| clip_of(channel));
        let mut written = Ok(());
        let rows = play_and_check(&handle, id, cameras, clip_of, &args.transports, length, |row| {
            if written.is_ok() {
                written = self.text(&table_row(row, args.colour));
            }
        })
        .await;
        written.map(|()| rows)
    }

    fn item(&mut self, item: &CatalogItem) -> Result<(), PlatformError> {
        let status = item.status.map_or("-", Status::as_str);
        let name = padded(&item.name, TEXT_WIDTH);
        self.line(format_args!("  {:<20}  {name}  {status}", item.device_id.as_str()))
    }
}

/// A peer's text, fit for a terminal.
fn clean(text: &str) -> String {
    padded(text, TEXT_WIDTH).trim_end().to_owned()
}
