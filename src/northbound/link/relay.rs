//! Controls and queries the owner of a channel is asked for an uplink, and what becomes of them.
//! Invariants: a control is done only once it is on record, and controls are handed over in the order they came, or a stop
//! could overtake its start; the link never waits: each answer comes back as a job; every answer that is due is
//! given, ERROR or an empty list where the device gave none.

use super::*;
use std::task::Poll;

/// Controls waiting for their record, and questions with owners: more than any operator's screen asks at once.
const MAX_RELAYS: usize = 512;
/// An owner bounds its own wait, far below this; nobody waits longer for one that does not.
const OWNER_LIMIT: Duration = Duration::from_secs(60);

/// A control that waits for its audit record.
pub(super) struct Control {
    number: u64,
    /// Whether it is on record; None while that is not known.
    recorded: Option<bool>,
    relay: Relay,
    incoming: Incoming,
    tx: ServerTxId,
    request: Request,
    flow: Flow,
}

/// What is with the owner of a channel.
pub(super) struct Relay {
    channel: Arc<Channel>,
    asked: AskedOf,
    /// Name of the control; None for a query.
    control: Option<&'static str>,
    /// A Response is due.
    response: bool,
    flow: Flow,
}

impl Link {
    fn relay_number(&mut self) -> u64 {
        self.next_relay += 1;
        self.next_relay
    }

    #[allow(clippy::too_many_arguments, reason = "a MESSAGE, its channel, and what is to be done with both")]
    pub(super) async fn relay_control(
        &mut self,
        action: &'static str,
        channel: Arc<Channel>,
        response: bool,
        incoming: Incoming,
        tx: ServerTxId,
        request: Request,
        flow: Flow,
    ) {
        if self.controls.len() + self.relays.len() >= MAX_RELAYS {
            return self.respond(tx, &request, &flow, 503, "too many controls at once").await;
        }
        let number = self.relay_number();
        let entry = self.entry(action, "channel", channel.id.to_string(), Outcome::Ok, String::new(), &flow);
        let asked = AskedOf::of(&incoming, &channel.item.name);
        let relay = Relay { channel, asked, control: Some(action), response, flow };
        self.controls.push_back(Control { number, recorded: None, relay, incoming, tx, request, flow });
        let store = self.deps.store.clone();
        self.jobs.spawn(async move {
            let recorded = store.audit(entry).await.is_ok();
            Job::ControlRecorded { number, recorded }
        });
    }

    pub(super) async fn on_control_recorded(&mut self, number: u64, recorded: bool) {
        if let Some(control) = self.controls.iter_mut().find(|c| c.number == number) {
            control.recorded = Some(recorded);
        }
        while let Some(control) = self.controls.pop_front_if(|c| c.recorded.is_some()) {
            let Control { number, recorded, relay, incoming, tx, request, flow } = control;
            if recorded == Some(true) {
                self.respond(tx, &request, &flow, 200, "").await;
                self.hand_over(number, relay, incoming).await;
            } else {
                let refusal = Refusal::new(503, "the audit log cannot be written: controls are refused");
                self.refuse(tx, &request, &flow, &refusal).await;
            }
        }
    }

    pub(super) async fn relay_query(
        &mut self,
        channel: Arc<Channel>,
        incoming: Incoming,
        tx: ServerTxId,
        request: &Request,
        flow: &Flow,
    ) {
        if self.controls.len() + self.relays.len() >= MAX_RELAYS {
            return self.respond(tx, request, flow, 503, "too many queries at once").await;
        }
        self.respond(tx, request, flow, 200, "").await;
        let number = self.relay_number();
        let asked = AskedOf::of(&incoming, &channel.item.name);
        if asked.is_list() {
            // The answer to the one before would be thrown away.
            self.relays.retain(|_, old| {
                !old.asked.cmd_type.eq_ignore_ascii_case(&asked.cmd_type) || old.asked.device_id != asked.device_id
            });
        }
        let relay = Relay { channel, asked, control: None, response: true, flow: *flow };
        self.hand_over(number, relay, incoming).await;
    }

    async fn hand_over(&mut self, number: u64, relay: Relay, message: Incoming) {
        let channel = relay.channel.id.clone();
        let commands = relay.channel.commands.clone();
        self.relays.insert(number, relay);
        let mut answer = Box::pin(async move {
            match commands {
                Some(commands) => bounded(OWNER_LIMIT, commands.message(channel, message)).await,
                None => Err(CommandError::Unsupported),
            }
        });
        // Polled once here it is in the owner's queue before the next one can be.
        let early = std::future::poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await;
        self.jobs.spawn(async move {
            let result = match early {
                Poll::Ready(result) => result,
                Poll::Pending => answer.await,
            };
            Job::Relayed { number, result }
        });
    }

    pub(super) async fn on_relayed(&mut self, number: u64, result: Result<CommandAnswer, CommandError>) {
        // None: superseded by a newer query.
        let Some(relay) = self.relays.remove(&number) else { return };
        let channel = &relay.channel.id;
        if let Err(e) = &result {
            tracing::info!(uplink = %self.user, cmd = %relay.asked.cmd_type, %channel, error = %e, "no answer of the channel");
        }
        match relay.control {
            Some(action) => self.on_controlled(action, &relay, result).await,
            None => self.on_queried(&relay, result).await,
        }
    }

    async fn on_controlled(&mut self, action: &str, relay: &Relay, result: Result<CommandAnswer, CommandError>) {
        let (done, why) = match &result {
            Ok(CommandAnswer::Accepted) => (true, String::new()),
            Ok(CommandAnswer::Message(answer)) if read_result(answer) == Some(true) => (true, String::new()),
            Ok(_) => (false, CommandError::Failed.to_string()),
            Err(e) => (false, e.to_string()),
        };
        if !done {
            let id = relay.channel.id.to_string();
            let entry = self.entry(action, "channel", id, Outcome::Error, why, &relay.flow);
            self.record(entry);
        }
        if relay.response {
            let asked = &relay.asked;
            let body = manscdp::response::result(self.profile, &asked.cmd_type, asked.sn, &asked.device_id, done);
            let message = self.message(body);
            self.send(message, Pending::Reply).await;
        }
    }

    async fn on_queried(&mut self, relay: &Relay, result: Result<CommandAnswer, CommandError>) {
        let (profile, asked) = (self.profile, &relay.asked);
        let body = match &result {
            Ok(CommandAnswer::List { head, items, complete }) => {
                if !complete {
                    let channel = &relay.channel.id;
                    tracing::warn!(uplink = %self.user, cmd = %asked.cmd_type, %channel, items = items.len(),
                        "the device's list is not complete: what came of it is passed on");
                }
                match asked.recordings(profile, head, items) {
                    Some(list) => return self.start_reply(asked.device_id, list).await,
                    None => asked.whole(profile, head, items),
                }
            }
            Ok(CommandAnswer::Message(answer)) => {
                let items = answer.element.child("RecordList").map_or(&[][..], |l| &l.children);
                match asked.recordings(profile, answer, items) {
                    Some(list) => return self.start_reply(asked.device_id, list).await,
                    None => asked.message(profile, answer),
                }
            }
            Err(CommandError::Offline) if QueryKind::parse(&asked.cmd_type) == Some(QueryKind::DeviceStatus) => {
                // That it is offline is the answer.
                let state = crate::catalog::ChannelState { online: Some(false), ..relay.channel.state.clone() };
                let channel = Channel { state, ..Channel::clone(&relay.channel) };
                let status = message::channel_status(&channel, UnixMillis(self.now_ms()));
                device_status(profile, asked.sn, &asked.device_id, &status)
            }
            _ => asked.failed(profile),
        };
        let message = self.message(body);
        self.send(message, Pending::Reply).await;
    }
}

/// The owner's answer, or Timeout after `limit`.
pub(super) async fn bounded<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, CommandError>>,
) -> Result<T, CommandError> {
    tokio::time::timeout(limit, answer).await.unwrap_or(Err(CommandError::Timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_never_answers_is_given_up() {
        let silent = std::future::pending::<Result<(), CommandError>>();
        assert_eq!(bounded(OWNER_LIMIT, silent).await, Err(CommandError::Timeout));
        assert_eq!(bounded(OWNER_LIMIT, async { Ok(1) }).await, Ok(1));
    }
}
