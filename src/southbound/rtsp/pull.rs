//! One pull of one stream by retina, run on the stream's media worker.
//! In: address and policies. Out: frames into the [`FrameFeed`], [`PullEvent`]s to the camera's actor.
//! Invariants: every step has a limit; never waits for a consumer; ends with exactly one `Ended`.
//! Frames come as Annex B with parameter sets before key frames, AAC with ADTS (`FrameFormat::SIMPLE`): what PS wants.

use crate::clock;
use crate::config;
use crate::media::{AudioCodec, Frame, FrameFeed, FrameKind, SourceFailure, Tracks, VideoCodec};
use crate::metrics::{ChannelLabel, Metrics};
use crate::proto::rtp::rtcp;
use bytes::Bytes;
use futures_core::Stream as _;
use retina::client::{
    Credentials, InitialSequenceNumberPolicy, InitialTimestampPolicy, PlayOptions, Session, SessionGroup,
    SessionIdPolicy, SessionOptions, SetupOptions, TcpTransportOptions, TeardownPolicy, Transport, UdpTransportOptions,
    UnassignedChannelDataPolicy, UnknownRtcpSsrcPolicy,
};
use retina::codec::{CodecItem, FrameFormat};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

/// What is done about a camera's faults; each is a key of `[[camera]]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policies {
    /// A session id that changes in the middle.
    pub session_id: config::SessionIdPolicy,
    /// An `RTP-Info` without `rtptime`.
    pub initial_timestamp: config::InitialTimestampPolicy,
    /// The `seq` of `RTP-Info`.
    pub initial_seq: config::InitialSeqPolicy,
    /// RTCP of an SSRC nobody announced.
    pub unknown_rtcp_ssrc: config::UnknownRtcpSsrcPolicy,
    /// Data on an interleaved channel nobody set up.
    pub unassigned_channel: config::UnassignedChannelPolicy,
    /// Whether TEARDOWN is sent.
    pub teardown: config::TeardownPolicy,
}

/// How a camera is pulled.
#[derive(Debug, Clone, PartialEq)]
pub struct PullConfig {
    /// Without credentials in it.
    pub url: Url,
    /// User name and password.
    pub credentials: Option<(String, String)>,
    /// RTP over UDP instead of interleaved in the RTSP connection.
    pub udp: bool,
    /// Leave the audio alone even where we could carry it.
    pub audio: bool,
    /// DESCRIBE, SETUP and PLAY each.
    pub step_limit: Duration,
    /// Without a frame for so long the camera has stalled.
    pub stall_limit: Duration,
    /// What is let through.
    pub policies: Policies,
}

/// What the camera's actor hears of a pull.
#[derive(Debug)]
pub enum PullEvent {
    /// PLAY was answered and the first picture is here.
    Playing,
    /// It is over.
    Ended(SourceFailure),
}

/// The other end of a pull's story: exactly one `Ended`, also when the pull is lost by a panic in the RTSP client or
/// before it began; none when it was cancelled.
#[derive(Debug)]
pub struct Told {
    /// The actor's queue holds more than one event per stream; a full one means that the actor is gone.
    pub events: mpsc::Sender<(u8, u64, PullEvent)>,
    /// GB stream number.
    pub number: u8,
    /// Of this pull.
    pub generation: u64,
    /// Ends it.
    pub cancel: CancellationToken,
    /// What the camera lost and what its clock says.
    pub meters: PullMeters,
}

/// What a pull counts.
#[derive(Debug, Clone)]
pub struct PullMeters {
    /// For the camera's clock.
    pub metrics: Metrics,
    /// The camera.
    pub channel: ChannelLabel,
}

impl PullMeters {
    /// A sender report: its NTP time against our system clock, to a network delay.
    fn clock(&self, raw: &[u8]) {
        rtcp::read(raw, |report| {
            if let rtcp::Report::Sender { ntp, .. } = report {
                let ours = clock::system_unix().as_millis() as i64;
                let offset = rtcp::unix_millis(ntp).saturating_sub(ours);
                self.metrics.camera_clock_offset(&self.channel, offset as f64 / 1000.0);
            }
        });
    }
}

impl Told {
    fn playing(&self) {
        let _ = self.events.try_send((self.number, self.generation, PullEvent::Playing));
    }

    fn ended(self, failure: SourceFailure) {
        let _ = self.events.try_send((self.number, self.generation, PullEvent::Ended(failure)));
        self.cancel.cancel();
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if !self.cancel.is_cancelled() {
            let failure =
                SourceFailure { reason: "broken", text: "a fault in the gateway's RTSP client ended the pull".into() };
            let _ = self.events.try_send((self.number, self.generation, PullEvent::Ended(failure)));
        }
    }
}

/// Runs one pull to its end.
pub async fn run(config: PullConfig, group: Arc<SessionGroup>, feed: FrameFeed, told: Told) {
    let failure = match pull(&config, group, &feed, &told).await {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    told.ended(failure);
}

fn options(config: &PullConfig, group: Arc<SessionGroup>) -> SessionOptions {
    let creds = config.credentials.clone().map(|(username, password)| Credentials { username, password });
    SessionOptions::default()
        .creds(creds)
        .session_group(group)
        .user_agent("Menshen".to_owned())
        .session_id(match config.policies.session_id {
            config::SessionIdPolicy::UseFirst => SessionIdPolicy::UseFirst,
            config::SessionIdPolicy::RequireMatch => SessionIdPolicy::RequireMatch,
        })
        .teardown(match config.policies.teardown {
            config::TeardownPolicy::Auto => TeardownPolicy::Auto,
            config::TeardownPolicy::Always => TeardownPolicy::Always,
            config::TeardownPolicy::Never => TeardownPolicy::Never,
        })
        .unassigned_channel_data(match config.policies.unassigned_channel {
            config::UnassignedChannelPolicy::Auto => UnassignedChannelDataPolicy::Auto,
            config::UnassignedChannelPolicy::AssumeStaleSession => UnassignedChannelDataPolicy::AssumeStaleSession,
            config::UnassignedChannelPolicy::Error => UnassignedChannelDataPolicy::Error,
            config::UnassignedChannelPolicy::Ignore => UnassignedChannelDataPolicy::Ignore,
        })
}

fn play_options(policies: Policies) -> PlayOptions {
    PlayOptions::default()
        .initial_timestamp(match policies.initial_timestamp {
            config::InitialTimestampPolicy::Permissive => InitialTimestampPolicy::Permissive,
            config::InitialTimestampPolicy::Require => InitialTimestampPolicy::Require,
            config::InitialTimestampPolicy::Ignore => InitialTimestampPolicy::Ignore,
        })
        .initial_seq(match policies.initial_seq {
            config::InitialSeqPolicy::Ignore => InitialSequenceNumberPolicy::Ignore,
            config::InitialSeqPolicy::Respect => InitialSequenceNumberPolicy::Respect,
            config::InitialSeqPolicy::IgnoreSuspicious => InitialSequenceNumberPolicy::IgnoreSuspiciousValues,
        })
        .unknown_rtcp_ssrc(match policies.unknown_rtcp_ssrc {
            config::UnknownRtcpSsrcPolicy::Drop => UnknownRtcpSsrcPolicy::DropPackets,
            config::UnknownRtcpSsrcPolicy::Abort => UnknownRtcpSsrcPolicy::AbortSession,
            config::UnknownRtcpSsrcPolicy::Process => UnknownRtcpSsrcPolicy::ProcessPackets,
        })
}

/// A retina error in our words; it never carries the password.
fn failure(step: &'static str, e: &retina::Error) -> SourceFailure {
    let reason = match e.status_code() {
        Some(401 | 403) => "unauthorised",
        Some(404) => "no_such_stream",
        // A good status with something in it that cannot be used.
        Some(200..=299) => "broken",
        Some(_) => "refused",
        None if step == "play" || step == "frame" => "broken",
        None => "unreachable",
    };
    let mut text = format!("{step}: {e}");
    // A hostile camera's message may be huge.
    if text.len() > 300 {
        let cut = (0..=300).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    SourceFailure { reason, text: text.replace(['\r', '\n'], " ") }
}

async fn limited<T>(
    step: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, retina::Error>>,
) -> Result<T, SourceFailure> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(failure(step, &e)),
        Err(_) => Err(SourceFailure { reason: "unreachable", text: format!("{step}: no answer within {limit:?}") }),
    }
}

/// DESCRIBE alone: are the credentials right, is there a stream we can carry?
pub async fn describe(config: &PullConfig, group: Arc<SessionGroup>) -> Result<(), SourceFailure> {
    let session =
        limited("describe", config.step_limit, Session::describe(config.url.clone(), options(config, group))).await?;
    pick(config, session.streams()).map(drop)
}

struct Picked {
    video: usize,
    audio: Option<usize>,
    tracks: Tracks,
}

fn pick(config: &PullConfig, streams: &[retina::client::Stream]) -> Result<Picked, SourceFailure> {
    let mut video = None;
    let mut audio = None;
    for (i, s) in streams.iter().enumerate() {
        match (s.media(), s.encoding_name()) {
            ("video", "h264") if video.is_none() => video = Some((i, VideoCodec::H264, s.clock_rate_hz())),
            ("video", "h265") if video.is_none() => video = Some((i, VideoCodec::H265, s.clock_rate_hz())),
            // What the PS cannot say (other rates, two channels) or what the SDP says in a broken way is left alone: the
            // picture must not suffer for it.
            ("audio", "pcma") if audio.is_none() && is_plain_g711(s) => audio = Some((i, AudioCodec::G711A, 8000)),
            ("audio", "pcmu") if audio.is_none() && is_plain_g711(s) => audio = Some((i, AudioCodec::G711U, 8000)),
            ("audio", "mpeg4-generic") if audio.is_none() && s.parameters().is_some() => {
                audio = Some((i, AudioCodec::Aac, s.clock_rate_hz()));
            }
            _ => {}
        }
    }
    let Some((v, codec, clock)) = video else {
        let seen: Vec<_> = streams.iter().take(8).map(|s| format!("{}/{}", s.media(), s.encoding_name())).collect();
        return Err(SourceFailure {
            reason: "no_video",
            text: format!("the camera offers {}: set its video encoding to H.264 or H.265", seen.join(", ")),
        });
    };
    let audio = audio.filter(|_| config.audio);
    Ok(Picked {
        video: v,
        audio: audio.map(|a| a.0),
        tracks: Tracks {
            video: codec,
            audio: audio.map(|a| a.1),
            video_clock: clock,
            audio_clock: audio.map_or(8000, |a| a.2),
            size: None,
        },
    })
}

fn is_plain_g711(stream: &retina::client::Stream) -> bool {
    stream.clock_rate_hz() == 8000 && stream.channels().is_none_or(|n| n.get() == 1)
}

enum Never {}

async fn pull(
    config: &PullConfig,
    group: Arc<SessionGroup>,
    feed: &FrameFeed,
    told: &Told,
) -> Result<Never, SourceFailure> {
    let limit = config.step_limit;
    let lost = told.meters.metrics.rtp_lost(&told.meters.channel);
    let mut session = limited("describe", limit, Session::describe(config.url.clone(), options(config, group))).await?;
    let picked = pick(config, session.streams())?;
    for index in [Some(picked.video), picked.audio].into_iter().flatten() {
        let transport = if config.udp {
            Transport::Udp(UdpTransportOptions::default())
        } else {
            Transport::Tcp(TcpTransportOptions::default())
        };
        let setup = SetupOptions::default().transport(transport).frame_format(FrameFormat::SIMPLE);
        limited("setup", limit, session.setup(index, setup)).await?;
    }
    let session = limited("play", limit, session.play(play_options(config.policies))).await?;
    let mut demuxed = session.demuxed().map_err(|e| failure("play", &e))?;
    feed.started(picked.tracks);
    let mut playing = false;
    // Only a picture moves this on: a camera whose encoder hangs may still send sound and sender reports.
    let mut deadline = Instant::from_std(clock::now()) + config.stall_limit;
    loop {
        let next = std::future::poll_fn(|cx| Pin::new(&mut demuxed).poll_next(cx));
        let item = match tokio::time::timeout_at(deadline, next).await {
            Ok(Some(Ok(item))) => item,
            Ok(Some(Err(e))) => return Err(failure("frame", &e)),
            Ok(None) => {
                return Err(SourceFailure { reason: "broken", text: "the camera ended the session".into() });
            }
            Err(_) => {
                let text = format!("no picture for {:?}", config.stall_limit);
                return Err(SourceFailure { reason: "stalled", text });
            }
        };
        match item {
            CodecItem::VideoFrame(frame) if frame.stream_id() == picked.video => {
                let arrived = clock::now();
                deadline = Instant::from_std(arrived) + config.stall_limit;
                let key = frame.is_random_access_point();
                let (loss, ticks) = (frame.loss(), frame.timestamp().elapsed());
                if loss > 0 {
                    lost.inc_by(u64::from(loss));
                }
                feed.push(Frame {
                    kind: FrameKind::Video { key },
                    ticks,
                    data: Bytes::from(frame.into_data()),
                    loss,
                    arrived,
                });
                if !playing {
                    playing = true;
                    told.playing();
                }
            }
            CodecItem::AudioFrame(frame) if Some(frame.stream_id()) == picked.audio => {
                feed.push(Frame {
                    kind: FrameKind::Audio,
                    ticks: frame.timestamp().elapsed(),
                    data: Bytes::copy_from_slice(frame.data()),
                    loss: frame.loss(),
                    arrived: clock::now(),
                });
            }
            CodecItem::Rtcp(report) if report.stream_id() == picked.video => told.meters.clock(report.raw()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> (Told, mpsc::Receiver<(u8, u64, PullEvent)>) {
        let (events, rx) = mpsc::channel(4);
        let metrics = Metrics::new("1", "x");
        let meters = PullMeters { channel: metrics.camera("34020000001320000001"), metrics };
        (Told { events, number: 1, generation: 7, cancel: CancellationToken::new(), meters }, rx)
    }

    #[test]
    fn the_end_is_told_once_whatever_ends_the_pull() {
        let (one, mut rx) = told();
        one.ended(SourceFailure { reason: "stalled", text: "x".into() });
        assert!(matches!(rx.try_recv(), Ok((1, 7, PullEvent::Ended(f))) if f.reason == "stalled"));
        assert!(rx.try_recv().is_err());

        let (one, mut rx) = told();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _told = one;
            panic!("a fault in the client");
        }));
        assert!(panicked.is_err());
        assert!(matches!(rx.try_recv(), Ok((1, 7, PullEvent::Ended(f))) if f.reason == "broken"));
        assert!(rx.try_recv().is_err());

        let (one, mut rx) = told();
        one.cancel.cancel();
        drop(one);
        assert!(rx.try_recv().is_err(), "who cancels it knows");
    }
}
