//! Alarms of the link: what the outbox owes this platform goes out by NOTIFY where it has subscribed, else by MESSAGE.
//! Standard: [GB/T28181-2022 9.4.2, 9.11.1].
//! Invariants: only while registered; a subscription that covers a channel decides alone which of its alarms are sent; a
//! row leaves the outbox by a verdict of `alarm_notify`.
//! A subscription gets no NOTIFY before there is an alarm: so the standard's flow has it, and platforms fail on empty ones.

use super::super::alarm_notify::{AlarmQueue, AlarmSubscription, Carrier, Verdict, alarm_of, matches, sn_of};
use super::*;
use crate::proto::manscdp::Query;
use crate::proto::manscdp::request::AlarmQuery;
use crate::proto::manscdp::response::read_result;
use crate::store::OutboxEnd;
use tokio::sync::watch;

/// What the link keeps for alarms.
pub(super) struct Alarms {
    pub(super) queue: AlarmQueue,
    pub(super) news: watch::Receiver<u64>,
    subscriptions: Vec<AlarmSubscription>,
}

impl Alarms {
    pub(super) fn new(news: watch::Receiver<u64>, rng: &mut StdRng) -> Self {
        Alarms { queue: AlarmQueue::new(StdRng::from_rng(rng)), news, subscriptions: Vec::new() }
    }
}

/// True for the body of a subscription to alarms.
pub(super) fn is_alarm_query(incoming: &Incoming) -> bool {
    incoming.root == Root::Query && QueryKind::parse(&incoming.cmd_type) == Some(QueryKind::Alarm)
}

impl Link {
    // ---- the outbox ----

    fn alarms_may_go(&self) -> bool {
        self.closing.is_none() && self.registration.state() == State::Registered
    }

    /// When [`Self::serve_alarms`] has something to do that nothing else wakes it for.
    pub(super) fn alarms_due(&self) -> Option<Instant> {
        let queue = self.alarms.queue.next_timeout().filter(|_| self.alarms_may_go());
        self.alarms.subscriptions.iter().map(|s| s.expires_at).chain(queue).min()
    }

    /// Sends what may go and reads what is to come. Cheap when there is nothing of it.
    pub(super) async fn serve_alarms(&mut self, now: Instant) {
        while let Some(at) = self.alarms.subscriptions.iter().position(|s| now >= s.expires_at) {
            tracing::info!(uplink = %self.user, "alarm subscription ran out");
            let subscription = self.alarms.subscriptions.swap_remove(at);
            self.end_alarm_subscription(subscription, "timeout").await;
        }
        if !self.alarms_may_go() {
            return;
        }
        for verdict in self.alarms.queue.timeout(now) {
            if matches!(verdict, Verdict::Done { .. }) {
                tracing::warn!(uplink = %self.user, "the platform answers alarms 200 and sends no Response: \
                    its 200 is taken for delivery from now on");
            }
            self.put_down(verdict);
        }
        while let Some(row) = self.alarms.queue.take(now) {
            self.send_alarm(now, row).await;
        }
        if let Some(read) = self.alarms.queue.read(now) {
            let (store, uplink) = (self.deps.store.clone(), Arc::from(self.cfg.uplink.name.as_str()));
            self.jobs.spawn(async move {
                let rows = store.outbox_page(uplink, read.after, read.limit).await;
                Job::AlarmRows { read, rows }
            });
        }
    }

    async fn send_alarm(&mut self, now: Instant, row: OutboxRow) {
        let Some((channel, carrier)) = self.carrier_of(&row) else {
            let verdict = self.alarms.queue.give_up(&row, OutboxEnd::Unshared);
            return self.put_down(verdict);
        };
        let Some(carrier) = carrier else {
            let verdict = self.alarms.queue.give_up(&row, OutboxEnd::Filtered);
            return self.put_down(verdict);
        };
        let body = alarm_of(&row.alarm, self.profile).write(self.profile, sn_of(&row), &channel);
        let contact = self.contact_header();
        let subscription = match &carrier {
            Carrier::Notify { call_id } => self.alarms.subscriptions.iter_mut().find(|s| s.dialog.call_id() == call_id),
            Carrier::Message => None,
        };
        let (flow, request) = match subscription {
            Some(subscription) => {
                let seconds = subscription.expires_at.saturating_duration_since(now).as_secs();
                let request = notify(subscription, contact, &format!("active;expires={seconds}"), body);
                let made_on = subscription.dialog.flow();
                (self.dialog_flow(made_on), request)
            }
            None => (self.flow(), self.message(body)),
        };
        let pending = Pending::Alarm { seq: row.seq };
        if self.send_on(flow, request, pending).await {
            self.alarms.queue.sent(now, row, carrier);
        } else {
            let verdict = self.alarms.queue.not_sent(now, &row);
            self.put_down(verdict);
        }
    }

    /// How an alarm goes out: `None` if it is no longer for this platform, `Some(None)` if the platform has subscribed to
    /// others of this channel only.
    fn carrier_of(&mut self, row: &OutboxRow) -> Option<(DeviceId, Option<Carrier>)> {
        let id = DeviceId::parse(&row.alarm.channel).ok()?;
        let snapshot = self.deps.directory.now();
        // A channel that is not there (yet, or any more) was shared when its alarm came.
        if snapshot.channels.get(id.as_str()).is_some_and(|channel| !self.spec.shares(channel)) {
            return None;
        }
        self.refresh_view();
        let covering = self.alarms.subscriptions.iter().filter(|s| {
            s.device_id == self.local_id
                || s.device_id == id
                || self.view.select(&s.device_id, &self.local_id).iter().any(|item| item.device_id == id)
        });
        let mut covered = false;
        for subscription in covering {
            covered = true;
            if matches(&subscription.query, &row.alarm) {
                let call_id = subscription.dialog.call_id().to_owned();
                return Some((id, Some(Carrier::Notify { call_id })));
            }
        }
        Some((id, (!covered).then_some(Carrier::Message)))
    }

    fn put_down(&mut self, verdict: Verdict) {
        let ms = self.now_ms();
        let stored = match verdict {
            Verdict::Done { seq, end } => {
                let metrics = &self.deps.metrics;
                metrics.alarm_outbox_moved(&self.label, -1);
                match end {
                    OutboxEnd::Delivered | OutboxEnd::Unconfirmed => metrics.alarm_delivered(&self.label),
                    OutboxEnd::Filtered | OutboxEnd::Unshared | OutboxEnd::Refused => {
                        metrics.alarm_dropped(end.as_str(), 1);
                    }
                }
                match end {
                    OutboxEnd::Refused => {
                        tracing::warn!(uplink = %self.user, seq, "the platform does not take an alarm")
                    }
                    end => tracing::debug!(uplink = %self.user, seq, end = end.as_str(), "alarm"),
                }
                self.deps.store.outbox_done(seq, end, ms)
            }
            Verdict::Retry { seq, tries, wait } => {
                self.deps.metrics.alarm_retried(&self.label);
                tracing::info!(uplink = %self.user, seq, tries, again_s = wait.as_secs(), "alarm not delivered");
                self.deps.store.outbox_failed(seq, tries, ms + wait.as_millis() as i64)
            }
        };
        if let Err(error) = stored {
            // It is sent once more than needed.
            tracing::warn!(uplink = %self.user, %error, "the outcome of an alarm is not on record");
        }
    }

    pub(super) fn on_alarm_answered(&mut self, now: Instant, seq: i64, status: Option<u16>) {
        if !matches!(status, Some(200..300))
            && let Some(call_id) = self.alarms.queue.subscription_of(seq).map(str::to_owned)
        {
            // RFC 6665 4.2.2: who does not take notices has no subscription; the platform subscribes anew.
            tracing::warn!(uplink = %self.user, status, "an alarm notice was not accepted: subscription ended");
            self.alarms.subscriptions.retain(|s| s.dialog.call_id() != call_id);
        }
        if let Some(verdict) = self.alarms.queue.answered(now, seq, status) {
            self.put_down(verdict);
        }
    }

    /// A MESSAGE may be the platform's Response to an alarm of ours [GB/T28181-2022 9.4.2].
    pub(super) fn on_alarm_response(&mut self, incoming: &Incoming) {
        if !incoming.is(Root::Response, "Alarm") {
            return;
        }
        let ok = read_result(incoming).unwrap_or(true);
        if let Some(verdict) = self.alarms.queue.response(clock::now(), incoming.sn, ok) {
            self.put_down(verdict);
        }
    }

    // ---- subscriptions ----

    /// The alarm subscription in whose dialog this is.
    pub(super) fn alarm_subscription(&self, request: &Request) -> Option<usize> {
        let strict = self.cfg.uplink.dialog_match == DialogPolicy::Strict;
        self.alarms.subscriptions.iter().position(|s| s.dialog.matches(request, strict) != DialogMatch::None)
    }

    pub(super) async fn refresh_alarm_subscription(
        &mut self,
        now: Instant,
        tx: ServerTxId,
        request: Request,
        flow: Flow,
        at: usize,
        expires: u32,
    ) {
        let query = match self.parse_body(&request) {
            Ok(incoming) => alarm_query(&incoming).map(|query| (incoming.sn, query)),
            Err(_) if request.body.is_empty() => None,
            Err(refusal) => return self.refuse(tx, &request, &flow, &refusal).await,
        };
        if self.alarms.subscriptions[at].dialog.check_cseq(&request).is_err() {
            return self.respond(tx, &request, &flow, 500, "CSeq out of order").await;
        }
        let id = self.alarms.subscriptions[at].device_id;
        let response = self.subscribed(&request, &flow, "", expires, query.as_ref().map_or(0, |q| q.0), &id);
        self.respond_with(tx, response).await;
        let subscription = &mut self.alarms.subscriptions[at];
        subscription.dialog.refresh_target(&request.headers);
        subscription.dialog.set_flow(flow);
        if let Some((_, query)) = query {
            subscription.query = query;
        }
        subscription.expires_at = now + Duration::from_secs(u64::from(expires));
        if expires == 0 {
            let subscription = self.alarms.subscriptions.remove(at);
            self.end_alarm_subscription(subscription, "timeout").await;
        }
    }

    #[allow(clippy::too_many_arguments, reason = "a SUBSCRIBE and what was read of it")]
    pub(super) async fn subscribe_alarms(
        &mut self,
        now: Instant,
        tx: ServerTxId,
        request: Request,
        flow: Flow,
        event: String,
        expires: u32,
        incoming: &Incoming,
    ) {
        let device_id = incoming.device_id;
        self.refresh_view();
        if expires > 0 && !self.can_watch(&device_id) {
            let refusal = Refusal::new(404, format!("{device_id} is unknown or not shared"));
            return self.refuse(tx, &request, &flow, &refusal).await;
        }
        let tag = format!("{:016x}", self.rng.random::<u64>());
        let response = self.subscribed(&request, &flow, &tag, expires, incoming.sn, &device_id);
        let dialog = match Dialog::uas(&request, &response, flow) {
            Ok(dialog) => dialog,
            Err(e) => return self.respond(tx, &request, &flow, 400, &e.to_string()).await,
        };
        // A refresh outside the dialog replaces the old one of the same scope.
        self.alarms.subscriptions.retain(|s| s.device_id != device_id);
        if self.alarms.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return self.refuse(tx, &request, &flow, &Refusal::new(503, "too many subscriptions")).await;
        }
        self.respond_with(tx, response).await;
        let event = if event.is_empty() { "presence".to_owned() } else { event };
        let query = alarm_query(incoming).unwrap_or_default();
        let expires_at = now + Duration::from_secs(u64::from(expires));
        let subscription = AlarmSubscription { dialog, event, device_id, query, expires_at };
        if expires == 0 {
            return self.end_alarm_subscription(subscription, "timeout").await;
        }
        tracing::info!(uplink = %self.user, device = %device_id, expires, "alarms subscribed");
        self.alarms.subscriptions.push(subscription);
    }

    /// The 200 to a SUBSCRIBE.
    fn subscribed(&self, request: &Request, flow: &Flow, tag: &str, expires: u32, sn: u32, id: &DeviceId) -> Response {
        let mut response = response_to(request, flow, 200, None, tag);
        response.headers.push("Contact", self.contact_header());
        response.headers.push("Expires", expires.to_string());
        if self.profile.subscribe_response_body() {
            response.headers.push("Content-Type", "Application/MANSCDP+xml");
            response.body = result(self.profile, "Alarm", sn, id, true).into();
        }
        response
    }

    pub(super) async fn end_alarm_subscriptions(&mut self) {
        for subscription in std::mem::take(&mut self.alarms.subscriptions) {
            self.end_alarm_subscription(subscription, "deactivated").await;
        }
    }

    async fn end_alarm_subscription(&mut self, mut subscription: AlarmSubscription, reason: &str) {
        let state = format!("terminated;reason={reason}");
        let request = notify(&mut subscription, self.contact_header(), &state, Vec::new());
        let flow = self.dialog_flow(subscription.dialog.flow());
        self.send_on(flow, request, Pending::Reply).await;
    }
}

fn alarm_query(incoming: &Incoming) -> Option<AlarmQuery> {
    match Query::of(incoming)? {
        Query::Alarm(query) => Some(query),
        _ => None,
    }
}

fn notify(subscription: &mut AlarmSubscription, contact: String, state: &str, body: Vec<u8>) -> Request {
    let mut request = subscription.dialog.request("NOTIFY");
    request.headers.push("Contact", contact);
    request.headers.push("Event", subscription.event.clone());
    request.headers.push("Subscription-State", state);
    if !body.is_empty() {
        request.headers.push("Content-Type", "Application/MANSCDP+xml");
        request.body = body.into();
    }
    request
}
