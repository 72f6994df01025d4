//! Subscriptions of the platform, and the notices they bring.
//!
//! Standard: [GB/T28181-2022 9.11, annex N], [RFC6665 4].
//! In: an expiry. Out: notices in order of arrival.
//! Invariants: a NOTIFY that overtakes the 200 is not lost; a subscription that is dropped hears nothing more.
//! Not here: answering NOTIFY (`serve`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::PlatformError;
use super::handle::{MANSCDP, PlatformHandle, accepted, within};
use super::state::{MAX_WAITING, Shared, lock};
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::request::CatalogQuery;
use crate::proto::manscdp::{CatalogChange, Incoming, Query, QueryKind, query};
use crate::proto::sip::dialog::Dialog;
use crate::proto::sip::message::{Request, Response};

/// Notices nobody has fetched yet; further ones are lost.
const NOTICE_QUEUE: usize = 1024;

/// One NOTIFY.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Its `Event`.
    pub event: String,
    /// Its `Subscription-State`.
    pub state: String,
    /// Its CSeq number.
    pub cseq: u32,
    /// The catalogue changes in it.
    pub changes: Vec<CatalogChange>,
    /// The whole body; `None` where it is none, or cannot be read.
    pub incoming: Option<Incoming>,
    /// Bytes of the whole SIP message.
    pub bytes: usize,
}

impl Notice {
    /// The notifier has ended the subscription.
    pub fn is_terminated(&self) -> bool {
        let state = self.state.split(';').next().unwrap_or_default().trim();
        state.eq_ignore_ascii_case("terminated")
    }
}

/// A running subscription.
#[derive(Debug)]
pub struct Subscription {
    handle: PlatformHandle,
    guard: Guard,
    dialog: Dialog,
    event: String,
    target: DeviceId,
    query: Query,
    granted: u32,
    notices: mpsc::Receiver<Notice>,
}

/// Forgets the subscription when dropped.
#[derive(Debug)]
struct Guard {
    shared: Arc<Shared>,
    call_id: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&self.shared.subscriptions).remove(&self.call_id);
    }
}

impl PlatformHandle {
    /// Subscribes to the catalogue of `lower` for `expires` seconds.
    ///
    /// # Errors
    /// [`PlatformError`]: not registered, refused, or not answered within `limit`.
    pub async fn subscribe_catalog(
        &self,
        lower: &DeviceId,
        expires: u32,
        limit: Duration,
    ) -> Result<Subscription, PlatformError> {
        let query = Query::Catalog(CatalogQuery::default());
        self.subscribe(lower, lower, query, expires, limit).await
    }

    /// Subscribes to whatever `query` names: catalogue, alarms, positions.
    ///
    /// # Errors
    /// As [`Self::subscribe_catalog`].
    pub async fn subscribe(
        &self,
        lower: &DeviceId,
        target: &DeviceId,
        query: Query,
        expires: u32,
        limit: Duration,
    ) -> Result<Subscription, PlatformError> {
        let known = self.shared.online(lower)?;
        let mut request = self.shared.out_of_dialog("SUBSCRIBE", lower, &known);
        let event = match query.kind() {
            QueryKind::Catalog => self.shared.config.profile.catalog_event(self.shared.next_sn()),
            _ => "presence".to_owned(),
        };
        request.headers.push("Contact", self.shared.contact(known.flow));
        self.fill(&mut request, &event, target, &query, expires);
        let call_id = request.headers.call_id().unwrap_or_default().to_owned();
        let (subscriber, notices) = mpsc::channel(NOTICE_QUEUE);
        {
            let mut subscriptions = lock(&self.shared.subscriptions);
            if subscriptions.len() >= MAX_WAITING {
                return Err(PlatformError::TooMany("subscriptions"));
            }
            subscriptions.insert(call_id.clone(), subscriber);
        }
        let shared = self.shared.clone();
        let guard = Guard { shared, call_id };
        let answered = async {
            let mut sent = self.send(known.flow, request.clone()).await?;
            sent.outcome().await
        };
        let (response, flow, _) = within(limit, "response to the SUBSCRIBE", answered).await??;
        accepted("SUBSCRIBE", response.status)?;
        let dialog = Dialog::uac(&request, &response, flow).map_err(|_| PlatformError::NoDialog)?;
        Ok(Subscription {
            handle: self.clone(),
            guard,
            dialog,
            event,
            target: *target,
            query,
            granted: granted(&response, expires),
            notices,
        })
    }

    fn fill(&self, request: &mut Request, event: &str, target: &DeviceId, query: &Query, expires: u32) {
        let sn = self.shared.next_sn();
        request.headers.push("Event", event);
        request.headers.push("Expires", expires.to_string());
        request.headers.push("Content-Type", MANSCDP);
        request.body = query::query(self.shared.config.profile, sn, target, query).into();
    }
}

fn granted(response: &Response, asked: u32) -> u32 {
    response.headers.expires().unwrap_or(asked)
}

impl Subscription {
    /// Seconds granted last.
    pub fn granted(&self) -> u32 {
        self.granted
    }

    /// The `Event` sent, which every NOTIFY repeats.
    pub fn event(&self) -> &str {
        &self.event
    }

    /// The next NOTIFY.
    ///
    /// # Errors
    /// [`PlatformError::Timeout`], [`PlatformError::Stopped`].
    pub async fn next(&mut self, limit: Duration) -> Result<Notice, PlatformError> {
        let notice = within(limit, "NOTIFY", self.notices.recv()).await?;
        notice.ok_or(PlatformError::Stopped)
    }

    /// Renews it for `expires` seconds, in the same dialog.
    ///
    /// # Errors
    /// [`PlatformError`]: refused, or not answered within `limit`.
    pub async fn refresh(&mut self, expires: u32, limit: Duration) -> Result<(), PlatformError> {
        let mut request = self.dialog.request("SUBSCRIBE");
        let flow = self.dialog.flow();
        request.headers.push("Contact", self.guard.shared.contact(flow));
        self.handle.fill(&mut request, &self.event, &self.target, &self.query, expires);
        let answered = async {
            let mut sent = self.handle.send(flow, request).await?;
            sent.outcome().await
        };
        let (response, _, _) = within(limit, "response to the SUBSCRIBE", answered).await??;
        accepted("SUBSCRIBE", response.status)?;
        self.granted = granted(&response, expires);
        Ok(())
    }

    /// Ends it: SUBSCRIBE with `Expires: 0`. A last NOTIFY may follow.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub async fn cancel(&mut self, limit: Duration) -> Result<(), PlatformError> {
        self.refresh(0, limit).await
    }
}
