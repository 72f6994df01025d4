//! Subscriptions of the link: SUBSCRIBE in, NOTIFY out; those to alarms go on in `alarms`.

use super::alarms::is_alarm_query;
use super::*;

impl Link {
    pub(super) async fn on_subscribe(&mut self, now: Instant, tx: ServerTxId, request: Request, flow: Flow) {
        let event = request.headers.get("Event").unwrap_or("").trim().to_owned();
        let in_dialog = request.headers.to_tag().is_some();
        let expires = request.headers.expires().unwrap_or(DEFAULT_EXPIRES).min(MAX_EXPIRES);
        let strict = self.cfg.uplink.dialog_match == DialogPolicy::Strict;
        let event_known = event.is_empty()
            || ["catalog", "presence", "alarm"]
                .contains(&event.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str());
        if !event_known {
            return self.refuse_subscription(tx, &request, &flow, &event).await;
        }
        if let Some(at) = self.alarm_subscription(&request) {
            return self.refresh_alarm_subscription(now, tx, request, flow, at, expires).await;
        }
        let at = self.subscriptions.iter().position(|s| s.dialog.matches(&request, strict) != DialogMatch::None);
        // After a restart of ours a refresh comes for a dialog we do not remember; with its query in it we can take it
        // up as it stands.
        if in_dialog && at.is_none() && (expires == 0 || request.body.is_empty()) {
            return self.respond(tx, &request, &flow, 481, "no such subscription").await;
        }
        let known = at.map(|i| self.subscriptions[i].device_id);
        let incoming = match self.parse_body(&request) {
            Ok(incoming) => Some(incoming),
            // A refresh may come without a body.
            Err(_) if known.is_some() && request.body.is_empty() => None,
            Err(refusal) => return self.refuse(tx, &request, &flow, &refusal).await,
        };
        if let Some(incoming) = incoming.as_ref().filter(|i| at.is_none() && is_alarm_query(i)) {
            return self.subscribe_alarms(now, tx, request, flow, event, expires, incoming).await;
        }
        let catalog = incoming
            .as_ref()
            .is_none_or(|i| i.root == Root::Query && QueryKind::parse(&i.cmd_type) == Some(QueryKind::Catalog));
        if !catalog {
            let what: String = incoming.as_ref().map_or_else(|| event.clone(), message::cmd);
            return self.refuse_subscription(tx, &request, &flow, &what).await;
        }
        if let Some(i) = at
            && self.subscriptions[i].dialog.check_cseq(&request).is_err()
        {
            return self.respond(tx, &request, &flow, 500, "CSeq out of order").await;
        }
        let device_id = incoming.as_ref().map(|i| i.device_id).or(known).unwrap_or(self.local_id);
        self.refresh_view();
        if at.is_none() && expires > 0 && !self.can_watch(&device_id) {
            let refusal = Refusal::new(404, format!("{device_id} is unknown or not shared"));
            return self.refuse(tx, &request, &flow, &refusal).await;
        }
        let tag = format!("{:016x}", self.rng.random::<u64>());
        let mut response = response_to(&request, &flow, 200, None, &tag);
        response.headers.push("Contact", self.contact_header());
        response.headers.push("Expires", expires.to_string());
        if self.profile.subscribe_response_body() {
            let sn = incoming.as_ref().map_or(0, |i| i.sn);
            response.headers.push("Content-Type", "Application/MANSCDP+xml");
            response.body = result(self.profile, "Catalog", sn, &device_id, true).into();
        }
        if let Some(i) = at {
            self.respond_with(tx, response).await;
            self.subscriptions[i].dialog.refresh_target(&request.headers);
            self.subscriptions[i].dialog.set_flow(flow);
            if expires == 0 {
                let subscription = self.subscriptions.remove(i);
                return self.terminate(subscription, "timeout").await;
            }
            let telling = self.telling();
            self.subscriptions[i].refresh(now, expires, telling);
            return self.serve_subscriptions(now).await;
        }
        let dialog = match Dialog::uas(&request, &response, flow) {
            Ok(dialog) => dialog,
            Err(e) => return self.respond(tx, &request, &flow, 400, &e.to_string()).await,
        };
        // A refresh outside the dialog replaces the old one of the same scope.
        self.subscriptions.retain(|s| s.device_id != device_id);
        if self.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return self.refuse(tx, &request, &flow, &Refusal::new(503, "too many subscriptions")).await;
        }
        self.respond_with(tx, response).await;
        let event = if event.is_empty() { "Catalog".to_owned() } else { event };
        let asked = Asked { dialog, event, device_id, expires };
        let subscription = Subscription::new(asked, now, Arc::clone(&self.view), self.telling());
        if expires == 0 {
            return self.terminate(subscription, "timeout").await;
        }
        tracing::info!(uplink = %self.user, device = %device_id, expires, "catalogue subscribed");
        self.subscriptions.push(subscription);
        self.serve_subscriptions(now).await;
    }

    pub(super) async fn serve_subscriptions(&mut self, now: Instant) {
        if self.subscriptions.is_empty() {
            return;
        }
        self.refresh_view();
        let (view, profile, telling) = (Arc::clone(&self.view), self.profile, self.telling());
        let mut list = std::mem::take(&mut self.subscriptions);
        let mut kept = Vec::with_capacity(list.len());
        for mut subscription in list.drain(..) {
            if subscription.is_expired(now) {
                tracing::info!(uplink = %self.user, "catalogue subscription ran out");
                self.terminate(subscription, "timeout").await;
                continue;
            }
            subscription.collect(now, &view, telling);
            let sn = self.next_sn();
            if let Some(notice) = subscription.next_notice(now, sn, profile) {
                let state = format!("active;expires={}", notice.expires);
                let request = self.notify(&mut subscription, &state, notice.body);
                let call_id = subscription.dialog.call_id().to_owned();
                let flow = self.dialog_flow(subscription.dialog.flow());
                if !self.send_on(flow, request, Pending::Notify { call_id }).await {
                    subscription.answered();
                }
            }
            kept.push(subscription);
        }
        self.subscriptions = kept;
    }

    fn telling(&self) -> Telling {
        Telling { local_id: self.local_id, profile: self.profile, page: self.page_size() }
    }

    pub(super) fn notify(&self, subscription: &mut Subscription, state: &str, body: Vec<u8>) -> Request {
        let mut request = subscription.dialog.request("NOTIFY");
        request.headers.push("Contact", self.contact_header());
        request.headers.push("Event", subscription.event.clone());
        request.headers.push("Subscription-State", state);
        if !body.is_empty() {
            request.headers.push("Content-Type", "Application/MANSCDP+xml");
            request.body = body.into();
        }
        request
    }

    pub(super) async fn terminate(&mut self, mut subscription: Subscription, reason: &str) {
        let request = self.notify(&mut subscription, &format!("terminated;reason={reason}"), Vec::new());
        let flow = self.dialog_flow(subscription.dialog.flow());
        self.send_on(flow, request, Pending::Reply).await;
    }

    /// Registered anew: what the platform made of our absence is not known, so it is told how everything stands.
    pub(super) async fn restate(&mut self, now: Instant) {
        let telling = self.telling();
        for subscription in &mut self.subscriptions {
            subscription.restate(telling);
        }
        self.serve_subscriptions(now).await;
    }

    /// True for what a catalogue query would find something under.
    pub(super) fn can_watch(&self, id: &DeviceId) -> bool {
        *id == self.local_id
            || self.spec.civil_code.starts_with(id.as_str())
            || !self.view.select(id, &self.local_id).is_empty()
    }

    async fn refuse_subscription(&self, tx: ServerTxId, request: &Request, flow: &Flow, what: &str) {
        let what = plain(what);
        tracing::info!(uplink = %self.user, %what, "subscription refused: only Catalog and Alarm are served");
        self.refuse(tx, request, flow, &Refusal::new(489, format!("subscription to {what} is not built yet"))).await;
    }

    pub(super) async fn on_notified(&mut self, call_id: &str, ok: bool, now: Instant) {
        let Some(at) = self.subscriptions.iter().position(|s| s.dialog.call_id() == call_id) else { return };
        if ok {
            self.subscriptions[at].answered();
            self.serve_subscriptions(now).await;
        } else {
            // RFC 6665 4.2.2: who does not take notices has no subscription; the platform subscribes anew.
            tracing::warn!(uplink = %self.user, "a catalogue notice was not accepted: subscription ended");
            self.subscriptions.remove(at);
        }
    }
}
