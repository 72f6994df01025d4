//! The actor of one RTSP camera: performs what `state` decides.
//! In: [`SourceRequest`]s of the hub, events of its pulls and probes. Out: pulls on their workers, evidence for the
//! directory. Owner: one task per camera.
//! Bounds: [`REQUESTS`] queued requests, one probe at a time.

use super::probe;
use super::pull::{self, PullConfig, PullEvent, PullMeters, Told};
use super::state::{CameraState, Input, Output, Rules};
use crate::catalog::{ChannelState, DirectoryHandle};
use crate::clock::{self, WallClock};
use crate::media::{HubHandle, Seat, SourceFailure, SourceHandle, SourceRequest, StreamKey};
use crate::metrics::Metrics;
use rand::SeedableRng;
use rand::rngs::StdRng;
use retina::client::SessionGroup;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A hundred INVITEs on one camera are one request here; more is a bound.
const REQUESTS: usize = 256;

/// One camera.
#[derive(Debug, Clone, PartialEq)]
pub struct CameraConfig {
    /// Its channel's code.
    pub id: Arc<str>,
    /// One pull per GB stream number.
    pub streams: Vec<PullConfig>,
    /// When to pull and probe.
    pub rules: Rules,
}

/// What it works with.
#[derive(Debug, Clone)]
pub struct CameraDeps {
    /// For seats.
    pub hub: HubHandle,
    /// For evidence.
    pub directory: DirectoryHandle,
    /// For the evidence's time.
    pub wall: WallClock,
    /// For losses and clocks.
    pub metrics: Metrics,
}

/// A camera before its task runs: the handle is needed for the directory.
#[derive(Debug)]
pub struct Camera {
    config: CameraConfig,
    deps: CameraDeps,
    requests: mpsc::Receiver<SourceRequest>,
    source: SourceHandle,
}

struct Running {
    seat: Seat,
    cancel: Option<CancellationToken>,
}

impl Camera {
    /// The camera and the way to it.
    pub fn new(config: CameraConfig, deps: CameraDeps) -> (Camera, SourceHandle) {
        let (tx, requests) = mpsc::channel(REQUESTS);
        let source = SourceHandle::new(tx);
        (Camera { config, deps, requests, source: source.clone() }, source)
    }

    /// Runs until cancelled; then its pulls end and its streams are taken away.
    pub async fn run(mut self, cancel: CancellationToken, seed: u64) {
        let streams = self.config.streams.len().min(usize::from(u8::MAX)) as u8;
        let mut state = CameraState::new(clock::now(), self.config.rules, streams, StdRng::seed_from_u64(seed));
        let group = Arc::new(SessionGroup::default().named(self.config.id.to_string()));
        let (events_tx, mut events) = mpsc::channel(64);
        let mut probes: JoinSet<Result<(), SourceFailure>> = JoinSet::new();
        let mut running: HashMap<u8, Running> = HashMap::new();
        let label = self.deps.metrics.camera(&self.config.id);
        let mut outputs = state.start(clock::now());
        loop {
            for output in outputs.drain(..) {
                match output {
                    Output::StartPull(number, generation) => {
                        if let Entry::Vacant(vacant) = running.entry(number) {
                            let key = StreamKey::live(self.config.id.clone(), number);
                            // Only keep-warm comes here without a seat; the hub answers without waiting for us.
                            match self.deps.hub.open(key, self.source.clone()).await {
                                Some(seat) => drop(vacant.insert(Running { seat, cancel: None })),
                                None => {
                                    let failure =
                                        SourceFailure { reason: "overloaded", text: "no media worker took it".into() };
                                    let _ = events_tx.try_send((number, generation, PullEvent::Ended(failure)));
                                    continue;
                                }
                            }
                        }
                        let Some(run) = running.get_mut(&number) else { continue };
                        let token = cancel.child_token();
                        run.cancel = Some(token.clone());
                        let (config, group) = (self.config.streams[usize::from(number)].clone(), group.clone());
                        let told = Told {
                            events: events_tx.clone(),
                            number,
                            generation,
                            cancel: token.child_token(),
                            meters: PullMeters { metrics: self.deps.metrics.clone(), channel: label.clone() },
                        };
                        if !run.seat.run(token, move |feed| pull::run(config, group, feed, told)) {
                            tracing::warn!(channel = %self.config.id, number, "the media worker is stuck");
                        }
                    }
                    Output::StopPull(number) => {
                        if let Some(token) = running.get_mut(&number).and_then(|r| r.cancel.take()) {
                            token.cancel();
                        }
                    }
                    Output::Failed(number, failure) => {
                        tracing::info!(channel = %self.config.id, number, reason = failure.reason, error = %failure.text, "pull ended");
                        if let Some(run) = running.get(&number) {
                            run.seat.failed(failure);
                        }
                    }
                    Output::Close(number) => {
                        if let Some(run) = running.remove(&number) {
                            if let Some(token) = run.cancel {
                                token.cancel();
                            }
                            run.seat.close();
                        }
                    }
                    Output::Probe { describe } => {
                        if let Some(config) = self.config.streams.first().cloned() {
                            let group = group.clone();
                            probes.spawn(async move {
                                if describe {
                                    return pull::describe(&config, group).await;
                                }
                                match probe::options(&config.url).await {
                                    Ok(_) => Ok(()),
                                    Err(text) => Err(SourceFailure { reason: "unreachable", text }),
                                }
                            });
                        }
                    }
                    Output::State { online, reason, evidence } => {
                        let since_ms = self.deps.wall.unix().as_millis() as i64;
                        let state = ChannelState { online: Some(online), reason, evidence, since_ms };
                        self.deps.directory.state(self.config.id.clone(), state);
                    }
                }
            }
            let due = state.next_timeout();
            let sleep = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let input = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(request) = self.requests.recv() => match request {
                    SourceRequest::Want { seat } => {
                        let number = seat.key().number;
                        match running.get_mut(&number) {
                            Some(run) => run.seat = seat,
                            None => drop(running.insert(number, Running { seat, cancel: None })),
                        }
                        Input::Want(number)
                    }
                    SourceRequest::Idle { key } => Input::Idle(key.number),
                    SourceRequest::KeyFrame { key } => Input::KeyFrame(key.number),
                    // Told of recordings alone, and a camera plays none.
                    SourceRequest::Started { .. } => {
                        outputs = Vec::new();
                        continue;
                    }
                },
                Some((number, generation, event)) = events.recv() => match event {
                    PullEvent::Playing => Input::Playing(number, generation),
                    PullEvent::Ended(failure) => Input::Ended(number, generation, failure),
                },
                Some(result) = probes.join_next() => Input::Probed(result.unwrap_or_else(|e| {
                    Err(SourceFailure { reason: "unreachable", text: format!("the probe failed: {e}") })
                })),
                () = sleep => Input::Timeout,
            };
            outputs = state.handle(clock::now(), input);
        }
        for (_, run) in running {
            if let Some(token) = run.cancel {
                token.cancel();
            }
            run.seat.remove();
        }
    }
}
