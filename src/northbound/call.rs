//! One media session an upper platform asked for: what follows what.
//! Standard: [GB/T28181-2022 9.2.2, 4.7 annex K], [RFC3261 13, 15]; no packet before the ACK.
//! In: [`CallInput`]. Out: [`CallOutput`]s, performed by the link. Pure: no time of its own (the SIP endpoint repeats
//! the 200 and tells of a missing ACK; the hub bounds the wait for a picture).
//! Invariants: exactly one final response; `Release` comes exactly once, last; a 200 after CANCEL is never sent.

/// What happened to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallInput {
    /// The sink is there and the first picture is in hand.
    Ready,
    /// There will be no sink: answer with this status.
    Failed(u16),
    /// The ACK of our 200.
    Ack,
    /// The endpoint gave up waiting for it.
    NoAck,
    /// CANCEL (already answered 200).
    Cancel,
    /// BYE of the peer (the link answers it 200).
    Bye,
    /// Our end of the media is over.
    MediaEnded,
    /// A newer INVITE for the same Subject, or the uplink or the process is going away.
    Drop,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutput {
    /// 200 with the SDP answer.
    Accept,
    /// A final refusal.
    Refuse(u16),
    /// Packets may leave.
    Start,
    /// BYE to the peer.
    Bye,
    /// Give sink and port back and forget the call.
    Release,
}

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallState {
    /// 100 is out, the source is being asked.
    Preparing,
    /// 200 is out, no ACK yet.
    Answered,
    /// ACKed: media flows.
    Established,
    /// Over.
    Ended,
}

/// See the file's head.
#[derive(Debug)]
pub struct Call {
    state: CallState,
    /// The peer or we want it over before the ACK came: BYE when it does [RFC3261 15: not before the ACK].
    bye_after_ack: bool,
}

impl Default for Call {
    fn default() -> Self {
        Self::new()
    }
}

impl Call {
    /// An INVITE was accepted for consideration.
    pub fn new() -> Self {
        Call { state: CallState::Preparing, bye_after_ack: false }
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
            (S::Preparing, I::Ready) => {
                self.state = S::Answered;
                vec![O::Accept]
            }
            (S::Preparing, I::Failed(status)) => self.end(vec![O::Refuse(status)]),
            (S::Preparing, I::Cancel) => self.end(vec![O::Refuse(487)]),
            (S::Preparing, I::Drop) => self.end(vec![O::Refuse(503)]),
            (S::Preparing, I::MediaEnded) => self.end(vec![O::Refuse(503)]),
            (S::Preparing, I::Bye) => self.end(vec![O::Refuse(487)]),
            (S::Answered, I::Ack) if self.bye_after_ack => self.end(vec![O::Bye]),
            (S::Answered, I::Ack) => {
                self.state = S::Established;
                vec![O::Start]
            }
            (S::Answered, I::NoAck) => self.end(vec![O::Bye]),
            // Too late to cancel: the 200 is out. The peer must ACK and BYE; if it only wanted out, we say BYE.
            (S::Answered, I::Cancel | I::MediaEnded | I::Drop) => {
                self.bye_after_ack = true;
                vec![]
            }
            (S::Answered | S::Established, I::Bye) => self.end(vec![]),
            (S::Established, I::MediaEnded | I::Drop) => self.end(vec![O::Bye]),
            _ => vec![],
        }
    }

    fn end(&mut self, mut outputs: Vec<CallOutput>) -> Vec<CallOutput> {
        self.state = CallState::Ended;
        outputs.push(CallOutput::Release);
        outputs
    }
}

#[cfg(test)]
mod tests {
    use super::CallInput as I;
    use super::CallOutput as O;
    use super::*;

    fn run(inputs: &[CallInput]) -> Vec<CallOutput> {
        let mut call = Call::new();
        inputs.iter().flat_map(|i| call.handle(*i)).collect()
    }

    #[test]
    fn the_good_life() {
        assert_eq!(run(&[I::Ready, I::Ack, I::Ack, I::Bye]), [O::Accept, O::Start, O::Release]);
        assert_eq!(run(&[I::Ready, I::Ack, I::MediaEnded, I::Bye]), [O::Accept, O::Start, O::Bye, O::Release]);
    }

    #[test]
    fn cancel_before_and_after_the_answer() {
        assert_eq!(run(&[I::Cancel, I::Ready, I::Ack]), [O::Refuse(487), O::Release]);
        assert_eq!(run(&[I::Ready, I::Cancel, I::Ack]), [O::Accept, O::Bye, O::Release]);
        assert_eq!(run(&[I::Ready, I::Cancel, I::Bye]), [O::Accept, O::Release]);
    }

    #[test]
    fn no_ack_is_said_goodbye() {
        assert_eq!(run(&[I::Ready, I::NoAck, I::Ack]), [O::Accept, O::Bye, O::Release]);
    }

    #[test]
    fn failures_refuse_once() {
        assert_eq!(run(&[I::Failed(504), I::Failed(503), I::Ready, I::Bye]), [O::Refuse(504), O::Release]);
        assert_eq!(run(&[I::Drop, I::Ready]), [O::Refuse(503), O::Release]);
    }

    /// Whatever comes in whatever order: one final response, one release, nothing after it, never Start before Ack.
    #[test]
    fn every_sequence_keeps_the_invariants() {
        let all = [I::Ready, I::Failed(503), I::Ack, I::NoAck, I::Cancel, I::Bye, I::MediaEnded, I::Drop];
        let mut stack = vec![Vec::new()];
        while let Some(seq) = stack.pop() {
            let out = run(&seq);
            let finals = out.iter().filter(|o| matches!(o, O::Accept | O::Refuse(_))).count();
            let releases = out.iter().filter(|o| **o == O::Release).count();
            assert!(finals <= 1 && releases <= 1, "{seq:?} -> {out:?}");
            if releases == 1 {
                assert_eq!(out.last(), Some(&O::Release), "{seq:?}");
            }
            if let Some(at) = out.iter().position(|o| *o == O::Start) {
                assert!(out[..at].contains(&O::Accept) && seq.contains(&I::Ack));
            }
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
