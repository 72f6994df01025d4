//! What a camera's actor decides: when to pull, retry, linger, probe, and what the evidence says of the camera.
//! Pure: time comes in, outputs are performed by `camera`. Tested in virtual time.
//! Rules: OFF after two failures in a row (probe or connect; a loss while playing counts as the first), at once when the
//! camera refuses the credentials or has no picture we can carry; ON after one success. A watched camera is tried
//! again at once and then after 1, 2, 4, 5, 5 … s ± 20 %; one that refused the credentials after 60 s, also when somebody
//! wants it (cameras lock accounts). After a refusal only DESCRIBE or a picture proves that it is gone, not OPTIONS.
//! Invariants: at most one pull a stream; a camera with a playing stream is never probed.

use crate::media::SourceFailure;
use rand::Rng;
use rand::rngs::StdRng;
use std::time::{Duration, Instant};

/// Between failed probes, so that OFF is known within two limits and one interval.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// DESCRIBE of a camera that nobody watches.
const DESCRIBE_EVERY: Duration = Duration::from_secs(600);
/// After a DESCRIBE that was not answered, by a camera that then answers OPTIONS.
const DESCRIBE_AGAIN: Duration = Duration::from_secs(60);
/// After refused credentials (cameras lock accounts) and other answers that a quick retry will not change.
const REFUSED_RETRY: Duration = Duration::from_secs(60);
/// Longest wait before a watched camera is tried again.
const MAX_RETRY: Duration = Duration::from_secs(5);
/// A pull is not restarted for a key frame more often than this.
const KEY_FRAME_RESTART: Duration = Duration::from_secs(30);
/// Failures in a row that make a camera offline.
const OFF_AFTER: u32 = 2;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Somebody wants this stream.
    Want(u8),
    /// Nobody does any more.
    Idle(u8),
    /// A viewer asks for a key frame.
    KeyFrame(u8),
    /// The first picture of pull `generation` came.
    Playing(u8, u64),
    /// Pull `generation` ended.
    Ended(u8, u64, SourceFailure),
    /// The probe's result.
    Probed(Result<(), SourceFailure>),
    /// Time passed.
    Timeout,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Run a pull of this stream.
    StartPull(u8, u64),
    /// End it.
    StopPull(u8),
    /// Whoever waits for this stream must be told.
    Failed(u8, SourceFailure),
    /// The stream is not pulled any more.
    Close(u8),
    /// Look whether it is alive; `describe` also checks credentials and encoding.
    Probe {
        /// DESCRIBE instead of OPTIONS.
        describe: bool,
    },
    /// The evidence changed.
    State {
        /// Alive or not.
        online: bool,
        /// Fixed word.
        reason: &'static str,
        /// For people.
        evidence: String,
    },
}

#[derive(Debug, Default)]
struct Stream {
    wanted: bool,
    pull: Option<u64>,
    playing: bool,
    attempts: u32,
    retry_at: Option<Instant>,
    linger_until: Option<Instant>,
    restarted: Option<Instant>,
}

impl Stream {
    fn is_active(&self) -> bool {
        self.pull.is_some() || self.retry_at.is_some()
    }
}

/// When a camera is pulled and probed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Pull stream 0 always.
    pub keep_warm: bool,
    /// How long a pull outlives its last viewer.
    pub linger: Duration,
    /// Between probes of a camera that nobody watches.
    pub probe_interval: Duration,
}

/// See the file's head.
#[derive(Debug)]
pub struct CameraState {
    rules: Rules,
    rng: StdRng,
    streams: Vec<Stream>,
    generation: u64,
    online: Option<bool>,
    reason: &'static str,
    failures: u32,
    probing: bool,
    next_probe: Instant,
    describe_at: Instant,
    /// The probe on its way is a DESCRIBE.
    describing: bool,
    /// Credentials or encoding were refused, then; stays until a DESCRIBE or a picture proves otherwise.
    refused: Option<(Instant, SourceFailure)>,
}

impl CameraState {
    /// `streams` GB streams; the first probe is spread over one interval, so that a hundred cameras are not asked in
    /// the same moment.
    pub fn new(now: Instant, rules: Rules, streams: u8, mut rng: StdRng) -> Self {
        let spread = rules.probe_interval.mul_f64(rng.random_range(0.0..0.2));
        CameraState {
            rules,
            rng,
            streams: (0..streams).map(|_| Stream::default()).collect(),
            generation: 0,
            online: None,
            reason: "not_probed",
            failures: 0,
            probing: false,
            next_probe: now + spread,
            describe_at: now,
            describing: false,
            refused: None,
        }
    }

    /// What a start does (keep-warm).
    pub fn start(&mut self, now: Instant) -> Vec<Output> {
        if self.rules.keep_warm { self.handle(now, Input::Want(0)) } else { Vec::new() }
    }

    /// When `Timeout` is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let probe = (!self.probing && !self.is_pulled()).then_some(self.next_probe);
        self.streams.iter().flat_map(|s| [s.retry_at, s.linger_until]).flatten().chain(probe).min()
    }

    fn is_pulled(&self) -> bool {
        self.streams.iter().any(Stream::is_active)
    }

    /// One input, all its outputs.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Want(n) => {
                let locked = self.locked_until(now);
                let start = match self.streams.get_mut(usize::from(n)) {
                    Some(s) => {
                        s.wanted = true;
                        s.linger_until = None;
                        if let Some((until, failure)) = locked.filter(|_| s.pull.is_none()) {
                            s.retry_at = Some(until);
                            out.push(Output::Failed(n, failure));
                        }
                        !s.is_active()
                    }
                    None => {
                        // It is closed when nobody wants it any more, as every other one.
                        let text = format!("the camera has no stream number {n}");
                        out.push(Output::Failed(n, SourceFailure { reason: "no_such_stream", text }));
                        false
                    }
                };
                if start {
                    self.start_pull(n, &mut out);
                }
            }
            Input::Idle(n) => {
                let warm = self.rules.keep_warm && n == 0;
                if usize::from(n) >= self.streams.len() {
                    out.push(Output::Close(n));
                } else if let Some(s) = self.streams.get_mut(usize::from(n)).filter(|_| !warm) {
                    s.wanted = false;
                    if s.pull.is_some() {
                        s.linger_until = Some(now + self.rules.linger);
                    } else {
                        s.retry_at = None;
                        s.attempts = 0;
                        out.push(Output::Close(n));
                        self.probe_after(now, SECOND_LOOK);
                    }
                }
            }
            Input::KeyFrame(n) => {
                let restart = self.streams.get_mut(usize::from(n)).is_some_and(|s| {
                    let due = s.restarted.is_none_or(|t| now.saturating_duration_since(t) >= KEY_FRAME_RESTART);
                    let restart = s.playing && due;
                    if restart {
                        s.restarted = Some(now);
                    }
                    restart
                });
                if restart {
                    out.push(Output::StopPull(n));
                    self.start_pull(n, &mut out);
                }
            }
            Input::Playing(n, generation) => {
                if let Some(s) = self.streams.get_mut(usize::from(n)).filter(|s| s.pull == Some(generation)) {
                    s.playing = true;
                    s.attempts = 0;
                    self.refused = None;
                    self.succeeded("ok", format!("stream {n} is playing"), &mut out);
                }
            }
            Input::Ended(n, generation, failure) => self.ended(now, n, generation, failure, &mut out),
            Input::Probed(result) => self.probed(now, result, &mut out),
            Input::Timeout => self.timeout(now, &mut out),
        }
        out
    }

    fn start_pull(&mut self, n: u8, out: &mut Vec<Output>) {
        self.generation += 1;
        let generation = self.generation;
        if let Some(s) = self.streams.get_mut(usize::from(n)) {
            s.pull = Some(generation);
            s.playing = false;
            s.retry_at = None;
            out.push(Output::StartPull(n, generation));
        }
    }

    fn ended(&mut self, now: Instant, n: u8, generation: u64, failure: SourceFailure, out: &mut Vec<Output>) {
        let jitter = self.rng.random_range(0.8..1.2);
        let Some(s) = self.streams.get_mut(usize::from(n)).filter(|s| s.pull == Some(generation)) else {
            return;
        };
        let was_playing = std::mem::take(&mut s.playing);
        s.pull = None;
        let refused = is_refusal(&failure);
        if s.wanted {
            let wait = if refused {
                REFUSED_RETRY
            } else if was_playing {
                Duration::ZERO
            } else {
                Duration::from_secs(1 << s.attempts.min(3)).min(MAX_RETRY).mul_f64(jitter)
            };
            s.attempts = if was_playing { 0 } else { s.attempts.saturating_add(1) };
            s.retry_at = Some(now + wait);
        } else {
            s.linger_until = None;
            s.attempts = 0;
            out.push(Output::Close(n));
            self.probe_after(now, SECOND_LOOK);
        }
        out.push(Output::Failed(n, failure.clone()));
        if was_playing {
            self.failures = 1;
        } else if refused && n != 0 && failure.reason != "unauthorised" {
            // The camera answered; that a sub stream is not set up says nothing against it.
            self.failures = 0;
        } else {
            self.failed(now, &failure, refused, out);
        }
    }

    fn probed(&mut self, now: Instant, result: Result<(), SourceFailure>, out: &mut Vec<Output>) {
        self.probing = false;
        let described = std::mem::take(&mut self.describing);
        match result {
            Ok(()) => {
                let returned = self.online == Some(false) && !described;
                if described {
                    self.describe_at = now + DESCRIBE_EVERY;
                    self.refused = None;
                }
                self.succeeded("ok", "it answered the probe".to_owned(), out);
                if returned {
                    self.describe_at = now;
                    self.next_probe = now;
                } else {
                    self.next_probe = now + self.rules.probe_interval;
                }
            }
            Err(failure) => {
                let refused = is_refusal(&failure);
                self.failed(now, &failure, refused, out);
                if described {
                    self.describe_at = now + DESCRIBE_AGAIN;
                }
                if refused {
                    self.next_probe = now + REFUSED_RETRY;
                } else if self.online == Some(false) {
                    self.next_probe = now + self.rules.probe_interval;
                } else {
                    self.next_probe = now + SECOND_LOOK;
                }
            }
        }
    }

    fn timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        for n in 0..self.streams.len() {
            let number = n as u8;
            let s = &mut self.streams[n];
            if s.linger_until.is_some_and(|t| now >= t) {
                s.linger_until = None;
                s.pull = None;
                s.playing = false;
                s.attempts = 0;
                out.push(Output::StopPull(number));
                out.push(Output::Close(number));
                self.describe_at = now + DESCRIBE_EVERY;
                self.probe_after(now, self.rules.probe_interval);
            } else if s.retry_at.is_some_and(|t| now >= t) {
                self.start_pull(number, out);
            }
        }
        if !self.probing && !self.is_pulled() && now >= self.next_probe {
            self.probing = true;
            // After a failure the quick look comes first.
            self.describing = self.refused.is_some() || (now >= self.describe_at && self.failures == 0);
            out.push(Output::Probe { describe: self.describing });
        }
    }

    /// Until when refused credentials are not tried again, and what was said.
    fn locked_until(&self, now: Instant) -> Option<(Instant, SourceFailure)> {
        let (at, failure) = self.refused.as_ref().filter(|(_, f)| f.reason == "unauthorised")?;
        let until = *at + REFUSED_RETRY;
        (now < until).then(|| (until, failure.clone()))
    }

    fn probe_after(&mut self, now: Instant, wait: Duration) {
        if let Some((at, _)) = &self.refused {
            self.next_probe = now.max(*at + REFUSED_RETRY);
            return;
        }
        self.next_probe = self.next_probe.max(now + wait).min(now + self.rules.probe_interval.max(wait));
    }

    fn succeeded(&mut self, reason: &'static str, evidence: String, out: &mut Vec<Output>) {
        self.failures = 0;
        if self.online != Some(true) || self.reason != reason {
            self.online = Some(true);
            self.reason = reason;
            out.push(Output::State { online: true, reason, evidence });
        }
    }

    fn failed(&mut self, now: Instant, failure: &SourceFailure, at_once: bool, out: &mut Vec<Output>) {
        if self.streams.iter().any(|s| s.playing) {
            // Another stream of the camera plays: the camera is there.
            return;
        }
        if at_once {
            self.refused = Some((now, failure.clone()));
        }
        self.failures = self.failures.saturating_add(1);
        if (at_once || self.failures >= OFF_AFTER) && (self.online != Some(false) || self.reason != failure.reason) {
            self.online = Some(false);
            self.reason = failure.reason;
            out.push(Output::State { online: false, reason: failure.reason, evidence: failure.text.clone() });
        }
    }
}

/// What a quick retry will not change.
fn is_refusal(failure: &SourceFailure) -> bool {
    matches!(failure.reason, "unauthorised" | "no_video" | "no_such_stream")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const RULES: Rules =
        Rules { keep_warm: false, linger: Duration::from_secs(20), probe_interval: Duration::from_secs(5) };

    #[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn start(rules: Rules) -> (Instant, CameraState) {
        let now = Instant::now();
        (now, CameraState::new(now, rules, 2, StdRng::seed_from_u64(1)))
    }

    fn fail(reason: &'static str) -> SourceFailure {
        SourceFailure { reason, text: "x".into() }
    }

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    /// Runs the clock to the next timeout.
    fn tick(now: &mut Instant, s: &mut CameraState) -> Vec<Output> {
        *now = (*now).max(s.next_timeout().expect("a timeout is due"));
        s.handle(*now, Input::Timeout)
    }

    #[test]
    fn probing_finds_loss_within_12_s_and_return_within_8_s() {
        let (mut now, mut s) = start(RULES);
        assert_eq!(tick(&mut now, &mut s), vec![Output::Probe { describe: true }]);
        let out = s.handle(now, Input::Probed(Ok(())));
        assert!(matches!(out[..], [Output::State { online: true, .. }]));
        // It dies just after a good probe and does not even refuse connections.
        let died = now;
        for _ in 0..2 {
            assert_eq!(tick(&mut now, &mut s), vec![Output::Probe { describe: false }]);
            now += secs(3);
            let out = s.handle(now, Input::Probed(Err(fail("unreachable"))));
            if let [Output::State { online: false, reason: "unreachable", .. }] = out[..] {
                assert!(now - died <= secs(12), "{:?}", now - died);
            }
        }
        assert_eq!(s.online, Some(false));
        let back = now;
        assert_eq!(tick(&mut now, &mut s), vec![Output::Probe { describe: false }]);
        let out = s.handle(now, Input::Probed(Ok(())));
        assert!(matches!(out[..], [Output::State { online: true, .. }]));
        assert!(now - back <= secs(8));
        assert_eq!(
            tick(&mut now, &mut s),
            vec![Output::Probe { describe: true }],
            "credentials are looked at after a return"
        );
    }

    #[test]
    fn one_failed_probe_is_not_offline() {
        let (mut now, mut s) = start(RULES);
        tick(&mut now, &mut s);
        s.handle(now, Input::Probed(Ok(())));
        tick(&mut now, &mut s);
        assert!(s.handle(now, Input::Probed(Err(fail("unreachable")))).is_empty());
        tick(&mut now, &mut s);
        s.handle(now, Input::Probed(Ok(())));
        assert_eq!(s.online, Some(true));
    }

    #[test]
    fn refused_credentials_are_offline_at_once_and_tried_every_minute() {
        let (mut now, mut s) = start(RULES);
        tick(&mut now, &mut s);
        let out = s.handle(now, Input::Probed(Err(fail("unauthorised"))));
        assert!(matches!(out[..], [Output::State { online: false, reason: "unauthorised", .. }]));
        let then = now;
        assert_eq!(tick(&mut now, &mut s), vec![Output::Probe { describe: true }]);
        assert_eq!(now - then, secs(60));
    }

    #[test]
    fn a_loss_while_watched_is_retried_at_once_then_backs_off() {
        let (mut now, mut s) = start(RULES);
        assert_eq!(s.handle(now, Input::Want(0)), vec![Output::StartPull(0, 1)]);
        assert!(s.handle(now, Input::Want(0)).is_empty(), "one pull");
        s.handle(now, Input::Playing(0, 1));
        let out = s.handle(now, Input::Ended(0, 1, fail("stalled")));
        assert_eq!(out, vec![Output::Failed(0, fail("stalled"))], "a loss alone is not offline");
        assert_eq!(tick(&mut now, &mut s), vec![Output::StartPull(0, 2)]);
        let out = s.handle(now, Input::Ended(0, 2, fail("unreachable")));
        assert!(matches!(out[..], [Output::Failed(..), Output::State { online: false, .. }]));
        let mut waits = Vec::new();
        for generation in 3..8 {
            let before = now;
            assert_eq!(tick(&mut now, &mut s), vec![Output::StartPull(0, generation)]);
            waits.push((now - before).as_secs_f64());
            s.handle(now, Input::Ended(0, generation, fail("unreachable")));
        }
        for (got, want) in waits.iter().zip([1.0, 2.0, 4.0, 5.0, 5.0]) {
            assert!((got / want - 1.0).abs() <= 0.2, "{waits:?}");
        }
        assert!(s.handle(now, Input::Ended(0, 1, fail("stalled"))).is_empty(), "a late end of an old pull");
    }

    #[test]
    fn linger_then_close_then_probe() {
        let (mut now, mut s) = start(RULES);
        s.handle(now, Input::Want(0));
        s.handle(now, Input::Playing(0, 1));
        s.handle(now, Input::Idle(0));
        now += secs(19);
        assert!(s.handle(now, Input::Timeout).is_empty());
        assert!(s.handle(now, Input::Want(0)).is_empty(), "a viewer within the linger finds it running");
        s.handle(now, Input::Idle(0));
        let before = now;
        assert_eq!(tick(&mut now, &mut s), vec![Output::StopPull(0), Output::Close(0)]);
        assert_eq!(now - before, secs(20));
        assert_eq!(tick(&mut now, &mut s), vec![Output::Probe { describe: false }]);
    }

    #[test]
    fn a_failed_pull_nobody_waits_for_is_closed_not_retried() {
        let (now, mut s) = start(RULES);
        s.handle(now, Input::Want(1));
        s.handle(now, Input::Ended(1, 1, fail("unreachable")));
        assert_eq!(s.handle(now, Input::Idle(1)), vec![Output::Close(1)]);
        assert!(!s.is_pulled());
    }

    #[test]
    fn keep_warm_pulls_without_viewers() {
        let (now, mut s) = start(Rules { keep_warm: true, ..RULES });
        assert_eq!(s.start(now), vec![Output::StartPull(0, 1)]);
        assert!(s.handle(now, Input::Idle(0)).is_empty());
        assert_eq!(s.next_timeout(), None);
    }

    #[test]
    fn key_frames_are_asked_for_rarely() {
        let (now, mut s) = start(RULES);
        assert!(s.handle(now, Input::KeyFrame(0)).is_empty(), "nothing plays");
        s.handle(now, Input::Want(0));
        s.handle(now, Input::Playing(0, 1));
        assert_eq!(s.handle(now, Input::KeyFrame(0)), vec![Output::StopPull(0), Output::StartPull(0, 2)]);
        s.handle(now, Input::Playing(0, 2));
        assert!(s.handle(now + secs(29), Input::KeyFrame(0)).is_empty());
        assert!(!s.handle(now + secs(30), Input::KeyFrame(0)).is_empty());
    }

    #[test]
    fn unknown_stream_numbers_are_refused() {
        let (now, mut s) = start(RULES);
        assert!(matches!(s.handle(now, Input::Want(9))[..], [Output::Failed(9, _)]));
        assert_eq!(s.handle(now, Input::Idle(9)), vec![Output::Close(9)], "closed once the hub wants it no more");
    }

    #[test]
    fn refused_credentials_stay_offline_until_describe_proves_otherwise() {
        let (mut now, mut s) = start(RULES);
        tick(&mut now, &mut s);
        s.handle(now, Input::Probed(Ok(())));
        // A viewer finds that the password was changed.
        s.handle(now, Input::Want(0));
        let refused_at = now;
        let out = s.handle(now, Input::Ended(0, 1, fail("unauthorised")));
        assert!(matches!(out[..], [Output::Failed(..), Output::State { online: false, reason: "unauthorised", .. }]));
        assert_eq!(s.handle(now, Input::Idle(0)), vec![Output::Close(0)]);
        // The next one is told at once, without another attempt.
        now += secs(10);
        assert_eq!(s.handle(now, Input::Want(0)), vec![Output::Failed(0, fail("unauthorised"))]);
        assert_eq!(s.handle(now, Input::Idle(0)), vec![Output::Close(0)]);
        // No OPTIONS answer turns it on in between.
        assert_eq!(tick(&mut now, &mut s), vec![Output::Probe { describe: true }]);
        assert_eq!(now - refused_at, secs(60));
        // Out of reach and back: still it is the DESCRIBE that counts.
        s.handle(now, Input::Probed(Err(fail("unreachable"))));
        assert_eq!(tick(&mut now, &mut s), vec![Output::Probe { describe: true }]);
        let out = s.handle(now, Input::Probed(Ok(())));
        assert!(matches!(out[..], [Output::State { online: true, reason: "ok", .. }]));
        assert_eq!(tick(&mut now, &mut s), vec![Output::Probe { describe: false }]);
        assert_eq!(s.handle(now, Input::Want(0)), vec![Output::StartPull(0, 2)]);
    }

    #[test]
    fn a_viewer_who_stays_while_credentials_are_refused_is_served_after_60_s() {
        let (mut now, mut s) = start(RULES);
        s.handle(now, Input::Want(0));
        s.handle(now, Input::Playing(0, 1));
        s.handle(now, Input::Ended(0, 1, fail("broken")));
        assert_eq!(tick(&mut now, &mut s), vec![Output::StartPull(0, 2)]);
        let then = now;
        s.handle(now, Input::Ended(0, 2, fail("unauthorised")));
        now += secs(30);
        assert_eq!(s.handle(now, Input::Want(0)), vec![Output::Failed(0, fail("unauthorised"))]);
        assert_eq!(tick(&mut now, &mut s), vec![Output::StartPull(0, 3)]);
        assert_eq!(now - then, secs(60));
    }

    #[test]
    fn a_sub_stream_that_is_not_there_does_not_make_the_camera_offline() {
        let (mut now, mut s) = start(RULES);
        tick(&mut now, &mut s);
        s.handle(now, Input::Probed(Ok(())));
        s.handle(now, Input::Want(1));
        let out = s.handle(now, Input::Ended(1, 1, fail("no_such_stream")));
        assert_eq!(out, vec![Output::Failed(1, fail("no_such_stream"))]);
        assert_eq!(s.online, Some(true));
    }

    #[test]
    fn a_failed_describe_is_made_good_a_minute_later() {
        let (mut now, mut s) = start(RULES);
        assert_eq!(tick(&mut now, &mut s), vec![Output::Probe { describe: true }]);
        s.handle(now, Input::Probed(Err(fail("unreachable"))));
        let failed = now;
        let mut described = None;
        while described.is_none() && now - failed < secs(120) {
            if tick(&mut now, &mut s) == vec![Output::Probe { describe: true }] {
                described = Some(now - failed);
            }
            s.handle(now, Input::Probed(Ok(())));
        }
        assert!(described.is_some_and(|d| (secs(60)..=secs(66)).contains(&d)), "{described:?}");
    }
}
