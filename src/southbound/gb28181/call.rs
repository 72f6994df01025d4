//! One media session we ask a device for: what follows what.
//! Standard: [GB/T28181-2022 9.2.1, 9.8.1, 9.9.1], [RFC3261 13, 15]: BYE not before the final answer, a 200 after CANCEL is
//! acknowledged and said goodbye to.
//! In: [`CallInput`]. Out: [`CallOutput`]s, performed by the table. Pure: no time of its own.
//! Invariants: every INVITE that was answered 200 is ACKed and later BYEd exactly once; `Close` comes once, last; a live
//! session is tried again, later each time, as long as somebody wants it and its device is there; a recording never is.
//! Not here: SDP, sockets, which device.

use std::time::Duration;

/// First wait before a live session that failed is tried again, and the longest one: a recorder that reboots is back within
/// a minute and must not be hammered meanwhile.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// The endpoint tells the end of every INVITE within 64·T1 and a CANCEL's wait; after this it was lost on the way.
const ANSWER: Duration = Duration::from_secs(75);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallInput {
    /// Somebody wants the stream.
    Want,
    /// Nobody does any more.
    Idle,
    /// The linger time, or the time before the next try, is over. Old ones are told apart by their number.
    Timer(u32),
    /// 2xx with a usable description.
    Answered,
    /// A final refusal, a 2xx that cannot be used, or no answer.
    Refused {
        /// The INVITE had its 2xx: ACK and BYE are due.
        answered: bool,
    },
    /// The first viewer's sink has started.
    Started,
    /// The receiver says that media plays.
    Playing,
    /// The receiver has ended: the source is lost.
    MediaLost,
    /// BYE of the device (answered by the table).
    PeerBye,
    /// The device went offline.
    Offline,
    /// The device is there again.
    Online,
    /// The channel or the table goes away.
    Shutdown,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutput {
    /// Send an INVITE (take ports, SSRC).
    Invite,
    /// Cancel it.
    Cancel,
    /// Acknowledge the 2xx.
    Ack,
    /// BYE.
    Bye,
    /// Run the receiver on the seat.
    Receive,
    /// End the receiver, give ports back.
    StopReceive,
    /// Tell the hub that a recording is ready.
    Ready,
    /// Tell the hub that there is nothing for now.
    Failed,
    /// Call back with `Timer(number)` after this.
    After(Duration, u32),
    /// Give the seat back and forget the call.
    Close,
}

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallState {
    /// Nothing is going on: failed, waiting for its time or its device.
    Resting,
    /// INVITE is out.
    Inviting,
    /// INVITE is out and was cancelled.
    Cancelling,
    /// The 2xx of a recording is here; its ACK waits for the viewer.
    Held,
    /// Media flows, or should.
    Established,
    /// Over.
    Closed,
}

/// See the file's head.
#[derive(Debug)]
pub struct Call {
    state: CallState,
    /// Live, shared, tried again; else a recording for one viewer.
    live: bool,
    wanted: bool,
    /// The viewer started before the device answered.
    started: bool,
    online: bool,
    /// The channel or the table goes away: nothing is tried again.
    leaving: bool,
    linger: Duration,
    wait: Duration,
    timer: u32,
}

impl Call {
    /// A session that is not wanted yet.
    pub fn new(live: bool, linger: Duration) -> Self {
        Call {
            state: CallState::Resting,
            live,
            wanted: false,
            started: false,
            online: true,
            leaving: false,
            linger,
            wait: RETRY.0,
            timer: 0,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> CallState {
        self.state
    }

    /// One input, all its outputs in order.
    pub fn handle(&mut self, input: CallInput) -> Vec<CallOutput> {
        use CallInput as I;
        use CallOutput as O;
        use CallState as S;
        match (self.state, input) {
            (S::Closed, _) => vec![],
            (_, I::Shutdown) => {
                self.leaving = true;
                self.close()
            }
            (_, I::Online) => {
                self.online = true;
                self.wait = RETRY.0;
                if self.state == S::Resting && self.wanted { self.invite() } else { vec![] }
            }
            (S::Resting, I::Offline) => {
                self.online = false;
                self.timer += 1;
                vec![]
            }
            (_, I::Offline) => {
                self.online = false;
                self.lost(true)
            }
            (_, I::Want) => {
                self.wanted = true;
                match self.state {
                    S::Resting if self.online => self.invite(),
                    S::Resting => vec![O::Failed],
                    // Back within the linger time.
                    S::Established => {
                        self.timer += 1;
                        vec![]
                    }
                    _ => vec![],
                }
            }
            (S::Resting, I::Idle) => self.close(),
            (S::Inviting | S::Held | S::Cancelling, I::Idle) => self.close(),
            (S::Established, I::Idle) => {
                self.wanted = false;
                if self.live && !self.linger.is_zero() {
                    self.timer += 1;
                    vec![O::After(self.linger, self.timer)]
                } else {
                    self.close()
                }
            }
            (S::Established, I::Timer(n)) if n == self.timer && !self.wanted => self.close(),
            (S::Resting, I::Timer(n)) if n == self.timer && self.wanted && self.online => self.invite(),
            (S::Inviting, I::Answered) if self.live || self.started => {
                self.state = S::Established;
                let ready = (!self.live).then_some(O::Ready);
                [O::Ack, O::Receive].into_iter().chain(ready).collect()
            }
            (S::Inviting, I::Answered) => {
                self.state = S::Held;
                vec![O::Receive, O::Ready]
            }
            (S::Held, I::Started) => {
                self.state = S::Established;
                vec![O::Ack]
            }
            (S::Inviting, I::Started) => {
                self.started = true;
                vec![]
            }
            (S::Cancelling, I::Answered) => self.cancelled(true),
            (S::Cancelling, I::Refused { answered }) => self.cancelled(answered),
            // No answer and no failure: the news of it was lost.
            (S::Cancelling, I::Timer(n)) if n == self.timer => self.cancelled(false),
            (S::Inviting, I::Timer(n)) if n == self.timer => self.handle(I::Refused { answered: false }),
            (S::Inviting, I::Refused { answered }) => {
                let mut out = if answered { vec![O::Ack, O::Bye] } else { vec![] };
                out.extend([O::StopReceive, O::Failed]);
                out.extend(self.rest());
                out
            }
            (S::Established, I::Playing) => {
                self.wait = RETRY.0;
                vec![]
            }
            (S::Held | S::Established, I::MediaLost) => self.lost(true),
            (S::Held | S::Established, I::PeerBye) => self.lost(false),
            _ => vec![],
        }
    }

    fn invite(&mut self) -> Vec<CallOutput> {
        self.state = CallState::Inviting;
        self.timer += 1;
        vec![CallOutput::Invite, CallOutput::After(ANSWER, self.timer)]
    }

    /// The end of an INVITE nobody waited for. Somebody may want the stream again meanwhile.
    fn cancelled(&mut self, answered: bool) -> Vec<CallOutput> {
        use CallOutput as O;
        let mut out = if answered { vec![O::Ack, O::Bye] } else { vec![] };
        out.push(O::StopReceive);
        if self.wanted && self.live && !self.leaving {
            self.state = CallState::Resting;
            out.extend(if self.online { self.invite() } else { vec![O::Failed] });
        } else {
            self.state = CallState::Closed;
            out.push(O::Close);
        }
        out
    }

    /// After a failure: wait for the next try, or end.
    fn rest(&mut self) -> Vec<CallOutput> {
        if !self.live || !self.wanted {
            self.state = CallState::Closed;
            return vec![CallOutput::Close];
        }
        self.state = CallState::Resting;
        self.timer += 1;
        if !self.online {
            return vec![];
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(RETRY.1);
        vec![CallOutput::After(wait, self.timer)]
    }

    fn lost(&mut self, bye: bool) -> Vec<CallOutput> {
        use CallOutput as O;
        let mut out = match self.state {
            CallState::Inviting | CallState::Cancelling => vec![O::Cancel],
            CallState::Held if bye => vec![O::Ack, O::Bye],
            CallState::Held => vec![O::Ack],
            CallState::Established if bye => vec![O::Bye],
            _ => vec![],
        };
        out.extend([O::StopReceive, O::Failed]);
        out.extend(self.rest());
        out
    }

    fn close(&mut self) -> Vec<CallOutput> {
        use CallOutput as O;
        let before = self.state;
        self.wanted = false;
        match before {
            // What becomes of the INVITE is seen to before it is forgotten.
            CallState::Inviting => {
                self.state = CallState::Cancelling;
                return vec![O::Cancel];
            }
            CallState::Cancelling => return vec![],
            _ => self.state = CallState::Closed,
        }
        match before {
            CallState::Held => vec![O::Ack, O::Bye, O::StopReceive, O::Close],
            CallState::Established => vec![O::Bye, O::StopReceive, O::Close],
            _ => vec![O::Close],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::CallInput as I;
    use super::CallOutput as O;
    use super::*;

    const LINGER: Duration = Duration::from_secs(20);

    fn run(live: bool, inputs: &[CallInput]) -> Vec<CallOutput> {
        let mut call = Call::new(live, LINGER);
        let out = inputs.iter().flat_map(|i| call.handle(*i));
        // The limit of an answer is a test of its own.
        out.filter(|o| !matches!(o, O::After(ANSWER, _))).collect()
    }

    #[test]
    fn a_live_session_is_shared_and_lingers() {
        let out = run(true, &[I::Want, I::Answered, I::Started, I::Playing, I::Idle, I::Timer(2)]);
        assert_eq!(out, [O::Invite, O::Ack, O::Receive, O::After(LINGER, 2), O::Bye, O::StopReceive, O::Close]);
        // Wanted again within the linger: the timer is an old one.
        let out = run(true, &[I::Want, I::Answered, I::Idle, I::Want, I::Timer(2)]);
        assert_eq!(out, [O::Invite, O::Ack, O::Receive, O::After(LINGER, 2)]);
    }

    #[test]
    fn a_recording_is_acknowledged_when_its_viewer_is() {
        let out = run(false, &[I::Want, I::Answered, I::Started, I::PeerBye]);
        assert_eq!(out, [O::Invite, O::Receive, O::Ready, O::Ack, O::StopReceive, O::Failed, O::Close]);
        let out = run(false, &[I::Want, I::Answered, I::Idle]);
        assert_eq!(out, [O::Invite, O::Receive, O::Ready, O::Ack, O::Bye, O::StopReceive, O::Close]);
        assert_eq!(
            run(false, &[I::Want, I::Refused { answered: false }]),
            [O::Invite, O::StopReceive, O::Failed, O::Close]
        );
    }

    #[test]
    fn whoever_leaves_while_it_rings_is_cancelled_and_a_late_200_is_seen_to() {
        let gone = [I::Want, I::Idle];
        assert_eq!(run(true, &gone), [O::Invite, O::Cancel]);
        let late = run(true, &[I::Want, I::Idle, I::Answered]);
        assert_eq!(late[2..], [O::Ack, O::Bye, O::StopReceive, O::Close]);
        let refused = run(true, &[I::Want, I::Idle, I::Refused { answered: false }]);
        assert_eq!(refused[2..], [O::StopReceive, O::Close]);
    }

    #[test]
    fn whoever_comes_back_while_it_is_cancelled_is_served() {
        let out = run(true, &[I::Want, I::Idle, I::Want, I::Refused { answered: false }, I::Answered]);
        assert_eq!(out, [O::Invite, O::Cancel, O::StopReceive, O::Invite, O::Ack, O::Receive]);
        let out = run(true, &[I::Want, I::Idle, I::Want, I::Answered]);
        assert_eq!(out[2..], [O::Ack, O::Bye, O::StopReceive, O::Invite]);
        let out = run(true, &[I::Want, I::Shutdown, I::Want, I::Answered]);
        assert_eq!(out[2..], [O::Ack, O::Bye, O::StopReceive, O::Close]);
    }

    #[test]
    fn an_answer_that_is_lost_does_not_hold_the_channel() {
        let mut call = Call::new(true, LINGER);
        let Some(O::After(ANSWER, n)) = call.handle(I::Want).pop() else { panic!("it has a limit") };
        let out = call.handle(I::Timer(n));
        assert_eq!(out[..2], [O::StopReceive, O::Failed]);
        assert_eq!(call.state(), CallState::Resting);
    }

    #[test]
    fn losses_are_retried_later_each_time_and_not_while_the_device_is_away() {
        let mut call = Call::new(true, LINGER);
        call.handle(I::Want);
        let mut waits = Vec::new();
        for _ in 0..7 {
            let out = call.handle(I::Refused { answered: false });
            let Some(O::After(wait, n)) = out.last() else { panic!("{out:?}") };
            waits.push(wait.as_millis());
            assert_eq!(call.handle(I::Timer(*n))[0], O::Invite);
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        call.handle(I::Answered);
        call.handle(I::Playing);
        let lost = call.handle(I::MediaLost);
        assert_eq!(lost[..3], [O::Bye, O::StopReceive, O::Failed]);
        assert!(matches!(lost[3], O::After(RETRY_FIRST, _)), "{lost:?}");
        assert_eq!(call.handle(I::Offline), []);
        assert_eq!(call.handle(I::Want), [O::Failed]);
        assert_eq!(call.handle(I::Online)[0], O::Invite);
    }
    const RETRY_FIRST: Duration = RETRY.0;

    /// Whatever comes in whatever order: each INVITE ends in what its answer demands, and nothing comes after Close.
    #[test]
    fn every_sequence_keeps_the_invariants() {
        let all = [
            I::Want,
            I::Idle,
            I::Answered,
            I::Refused { answered: false },
            I::Refused { answered: true },
            I::Started,
            I::MediaLost,
            I::PeerBye,
            I::Offline,
            I::Online,
            I::Shutdown,
        ];
        for live in [true, false] {
            let mut stack = vec![Vec::new()];
            while let Some(seq) = stack.pop() {
                let mut call = Call::new(live, LINGER);
                let (mut open, mut closed) = (0, false);
                for input in &seq {
                    // Answers come to open INVITEs alone.
                    let answer = matches!(input, I::Answered | I::Refused { .. });
                    let awaits = matches!(call.state(), CallState::Inviting | CallState::Cancelling);
                    if answer && !awaits {
                        break;
                    }
                    for output in call.handle(*input) {
                        assert!(!closed, "{seq:?}");
                        match output {
                            O::Ack => open += 1,
                            O::Bye => open -= 1,
                            O::Close => closed = true,
                            _ => {}
                        }
                    }
                    if *input == I::PeerBye && call.state() != CallState::Established && open > 0 {
                        open -= 1;
                    }
                    assert!((0..=1).contains(&open), "{seq:?}");
                }
                assert!(!closed || open == 0, "{seq:?}");
                if seq.len() < 5 {
                    for i in all {
                        let mut next = seq.clone();
                        next.push(i);
                        stack.push(next);
                    }
                }
            }
        }
    }
}
