//! Subscriptions of the platform, and the notices they get.
//!
//! Standard: [GB/T28181-2022 9.11, annex N], [RFC6665 4].
//! In: SUBSCRIBE, changes of channels, alarms, time. Out: NOTIFYs in the subscription's dialog.
//! Invariants: the Event header is echoed as it came; a subscription ends with a last NOTIFY, however it ends.
//! Not here: who changes channels (`handle`).

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::answers;
use super::serve::{Pending, Serve};
use super::state::MANSCDP;
use crate::clock;
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::catalog::catalog_notify;
use crate::proto::manscdp::response::result;
use crate::proto::manscdp::{CatalogChange, CatalogEvent, Query, QueryKind, parse};
use crate::proto::sip::dialog::Dialog;
use crate::proto::sip::endpoint::ServerTxId;
use crate::proto::sip::message::{Flow, Headers, Request, Response};

/// Subscriptions at once; a platform has one of each kind.
const MAX_SUBSCRIPTIONS: usize = 64;
/// Longest granted, in seconds.
const MAX_EXPIRES: u32 = 7 * 86_400;
/// What a SUBSCRIBE without Expires gets. [GB/T28181-2022 9.11.2]
const DEFAULT_EXPIRES: u32 = 600;
/// Most changes of one NOTIFY: what a datagram holds.
const MAX_CHANGES: usize = 50;

/// A subscription.
#[derive(Debug)]
pub(super) struct Subscribed {
    kind: QueryKind,
    target: DeviceId,
    event: String,
    dialog: Dialog,
    /// When it expires.
    pub until: Instant,
}

impl Subscribed {
    pub fn call_id(&self) -> &str {
        self.dialog.call_id()
    }
}

impl Serve {
    pub async fn subscribe(&mut self, tx: ServerTxId, request: &Request, flow: Flow) {
        let refused = self.shared.faults().subscriptions.refuse;
        if let Some(status) = refused {
            return self.refuse(tx, status).await;
        }
        let expires = request.headers.expires().unwrap_or(DEFAULT_EXPIRES).min(MAX_EXPIRES);
        let until = clock::now() + Duration::from_secs(expires.into());
        let (Some(call_id), Some(to)) = (request.headers.call_id(), request.headers.get("To")) else {
            return self.refuse(tx, 400).await;
        };
        let mut headers = Headers::new();
        headers.push("Contact", self.shared.contact());
        headers.push("Expires", expires.to_string());
        if request.headers.to_tag().is_some() {
            let Some(at) = self.subscriptions.iter().position(|known| known.call_id() == call_id) else {
                return self.refuse(tx, 481).await;
            };
            self.respond(tx, 200, headers, Bytes::new()).await;
            match expires {
                0 => self.end_subscription(at).await,
                _ => self.subscriptions[at].until = until,
            }
            return;
        }
        let Ok(incoming) = parse(&request.body, None) else {
            return self.refuse(tx, 400).await;
        };
        let kind = match Query::of(&incoming).map(|query| query.kind()) {
            Some(kind @ (QueryKind::Catalog | QueryKind::Alarm)) => kind,
            _ => return self.refuse(tx, 489).await,
        };
        if !self.shared.is_ours(&incoming.device_id) {
            return self.refuse(tx, 404).await;
        }
        headers.push("To", format!("{to};tag={}", self.shared.tag()));
        let profile = self.shared.config.profile;
        let body: Bytes = match profile.subscribe_response_body() {
            true => result(profile, &incoming.cmd_type, incoming.sn, &incoming.device_id, true).into(),
            false => Bytes::new(),
        };
        if !body.is_empty() {
            headers.push("Content-Type", MANSCDP);
        }
        let response = Response { status: 200, reason: String::new(), headers: headers.clone(), body: body.clone() };
        // The answer gets these from the endpoint; the dialog must know them before.
        let Ok(dialog) = Dialog::uas(request, &response, flow) else {
            return self.refuse(tx, 400).await;
        };
        let target = incoming.device_id;
        self.subscriptions.retain(|known| (known.kind, known.target) != (kind, target));
        if self.subscriptions.len() == MAX_SUBSCRIPTIONS {
            return self.refuse(tx, 503).await;
        }
        let event = request.headers.get("Event").unwrap_or("presence").to_owned();
        self.subscriptions.push(Subscribed { kind, target, event, dialog, until });
        self.respond(tx, 200, headers, body).await;
        if kind == QueryKind::Catalog && expires > 0 {
            self.first_notice().await;
        }
        if expires == 0 {
            self.end_subscription(self.subscriptions.len() - 1).await;
        }
    }

    /// What is OFF, for the newest subscription: the rest counts as ON. [GB/T28181-2022 N.1]
    async fn first_notice(&mut self) {
        let channels = self.shared.channels();
        let newest = self.subscriptions.len() - 1;
        let target = self.subscriptions[newest].target;
        let ours = target == self.shared.config.id;
        let off: Vec<CatalogChange> = channels
            .iter()
            .filter(|channel| !channel.online && (ours || channel.id == target))
            .map(|channel| CatalogChange::of(CatalogEvent::Off, answers::item(channel, self.shared.config.id)))
            .collect();
        self.catalog_notices(newest, &off).await;
    }

    /// Tells every subscription of the catalogue that covers them.
    pub async fn notify_changes(&mut self, changes: &[CatalogChange]) {
        for at in 0..self.subscriptions.len() {
            let target = self.subscriptions[at].target;
            let ours = target == self.shared.config.id;
            let covered: Vec<CatalogChange> =
                changes.iter().filter(|change| ours || change.device_id == target).cloned().collect();
            if self.subscriptions[at].kind == QueryKind::Catalog && !covered.is_empty() {
                self.catalog_notices(at, &covered).await;
            }
        }
    }

    /// Changes in as many NOTIFYs as they need, one at least.
    async fn catalog_notices(&mut self, at: usize, changes: &[CatalogChange]) {
        let (profile, target) = (self.shared.config.profile, self.subscriptions[at].target);
        let mut pages: Vec<&[CatalogChange]> = changes.chunks(MAX_CHANGES).collect();
        if pages.is_empty() {
            pages.push(&[]);
        }
        for page in pages {
            let body = catalog_notify(profile, self.shared.next_sn(), &target, page);
            self.notify_one(at, body.into(), false).await;
        }
    }

    /// One body to every subscription of a kind.
    pub async fn notify(&mut self, kind: QueryKind, body: &[u8]) {
        for at in 0..self.subscriptions.len() {
            if self.subscriptions[at].kind == kind {
                self.notify_one(at, Bytes::copy_from_slice(body), false).await;
            }
        }
    }

    async fn notify_one(&mut self, at: usize, body: Bytes, last: bool) {
        if self.shared.faults().subscriptions.silent {
            return;
        }
        let contact = self.shared.contact();
        let subscribed = &mut self.subscriptions[at];
        let mut request = subscribed.dialog.request("NOTIFY");
        let left = subscribed.until.saturating_duration_since(clock::now()).as_secs();
        let state = if last { "terminated;reason=timeout".to_owned() } else { format!("active;expires={left}") };
        request.headers.push("Event", subscribed.event.as_str());
        request.headers.push("Subscription-State", state);
        request.headers.push("Contact", contact);
        if !body.is_empty() {
            request.headers.push("Content-Type", MANSCDP);
        }
        request.body = body;
        let (flow, call_id) = (subscribed.dialog.flow(), subscribed.call_id().to_owned());
        self.shared.count(|s| s.notifies += 1);
        self.send(flow, request, Pending::Notify(call_id)).await;
    }

    async fn end_subscription(&mut self, at: usize) {
        self.notify_one(at, Bytes::new(), true).await;
        self.subscriptions.swap_remove(at);
    }

    pub async fn subscriptions_due(&mut self, now: Instant) {
        while let Some(at) = self.subscriptions.iter().position(|subscribed| subscribed.until <= now) {
            self.end_subscription(at).await;
        }
    }
}
