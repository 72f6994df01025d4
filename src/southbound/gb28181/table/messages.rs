//! MESSAGE and NOTIFY of devices, and the questions they answer.
//! Standard: [GB/T28181-2022 9.3, 9.4, 9.5, 9.6, 9.11]: 200 means received; what it is good for comes after.

use super::*;
use crate::alarm::AlarmEvent;
use crate::catalog::CommandAnswer;
use crate::proto::manscdp::assembly::{Assembly, AssemblyLimits, Chunk, Keyed, Progress};
use crate::proto::manscdp::catalog::{CatalogResponse, read_catalog_notify};
use crate::proto::manscdp::policy::Policies;
use crate::proto::manscdp::response::{self, DeviceInfo};
use crate::proto::manscdp::{self, CatalogItem, Element, Incoming, Root, notify};
use crate::proto::sip::header;

/// An answer in one message comes within this, or never. Upper platforms wait 10 s and more.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(8);
/// Alarms of one device that are being stored, and answers of ours that it has not acknowledged, at most: one device must
/// not take the room of all.
const MAX_ALARMS: usize = 64;
const MAX_ANSWERS: usize = 32;
/// A list another platform waits for: it must begin and go on sooner than a catalogue nobody waits for.
const COMMAND_LIST: AssemblyLimits = AssemblyLimits {
    first: Duration::from_secs(12),
    idle: Duration::from_secs(8),
    overall: Duration::from_secs(120),
    settle: Duration::from_millis(500),
    max_items: 20_000,
    max_bytes: 32 << 20,
};

/// What becomes of an answer.
pub(super) enum Wanted {
    Catalog,
    DeviceInfo,
    Command {
        reply: oneshot::Sender<Result<CommandAnswer, CommandError>>,
        /// The list element, where it is a list.
        list: Option<&'static str>,
    },
}

/// An item of any list: told apart by all it says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ListItem(Element);

impl Keyed for ListItem {
    type Key = String;

    fn key(&self) -> String {
        let mut key = String::new();
        let mut open = vec![&self.0];
        // Readers bound the depth of a body and the number of its elements.
        while let Some(element) = open.pop() {
            key.push_str(&element.name);
            key.push('\u{1}');
            key.push_str(&element.text);
            key.push('\u{2}');
            open.extend(&element.children);
        }
        key
    }
}

enum Gathering {
    One,
    Catalog(Box<Assembly<CatalogItem>>),
    List(Box<Assembly<ListItem>>, Option<Box<Incoming>>),
}

/// A question that is open.
pub(super) struct Query {
    pub(super) device: DeviceId,
    /// It holds one of the slots for catalogue queries.
    pub(super) slot: bool,
    cmd_type: String,
    wanted: Wanted,
    gathering: Gathering,
}

impl Query {
    pub(super) fn new(device: DeviceId, cmd_type: String, wanted: Wanted) -> Self {
        let gathering = match &wanted {
            Wanted::Catalog => Gathering::Catalog(Box::new(Assembly::new(AssemblyLimits::default(), clock::now()))),
            Wanted::Command { list: Some(_), .. } => {
                Gathering::List(Box::new(Assembly::new(COMMAND_LIST, clock::now())), None)
            }
            _ => Gathering::One,
        };
        let slot = matches!(wanted, Wanted::Catalog);
        Query { device, slot, cmd_type, wanted, gathering }
    }

    fn next_timeout(&self) -> Option<Instant> {
        match &self.gathering {
            Gathering::One => None,
            Gathering::Catalog(a) => Some(a.next_timeout()),
            Gathering::List(a, _) => Some(a.next_timeout()),
        }
    }
}

impl DeviceTable {
    pub(super) async fn on_message(
        &mut self,
        now: Instant,
        tx: ServerTxId,
        request: Request,
        flow: Flow,
        device: Option<DeviceId>,
    ) {
        let xml = request.headers.get("Content-Type").is_none_or(|_| {
            let types = ["application/manscdp+xml", "application/xml", "text/xml"];
            types.iter().any(|t| header::content_type_is(&request.headers, t))
        });
        if !xml {
            return self.respond(tx, &request, &flow, 415, "the body is not Application/MANSCDP+xml").await;
        }
        let incoming = match manscdp::parse(&request.body, None) {
            Ok(incoming) => incoming,
            Err(e) if device.is_some() => {
                tracing::debug!(peer = %flow.peer, error = %e, "MESSAGE of a device not understood");
                return self.respond(tx, &request, &flow, 400, &e.to_string()).await;
            }
            Err(_) => return self.respond(tx, &request, &flow, 403, "register first").await,
        };
        if incoming.is(Root::Notify, "Keepalive") {
            // From names the device, DeviceID too; a device that is not there yet is none of ours.
            let from = request.headers.from_user().and_then(|user| DeviceId::parse(&user).ok());
            let id = from.filter(|id| self.devices.contains_key(id)).unwrap_or(incoming.device_id);
            let status = self.on_keepalive(now, &id, &flow).await;
            return self.respond(tx, &request, &flow, status, if status == 200 { "" } else { "register first" }).await;
        }
        let Some(device) = device else {
            return self.respond(tx, &request, &flow, 403, "register first").await;
        };
        let verdict = self.registrar.touch(now, &device, &flow);
        self.respond(tx, &request, &flow, 200, "").await;
        self.heard(device, &flow, verdict, "message").await;
        match incoming.root {
            Root::Response => self.on_answer(device, incoming, request.body.len()).await,
            Root::Notify if notify::read_media_status(&incoming).is_some() => {
                self.record_finished(request.headers.call_id(), &incoming.device_id, &device);
            }
            Root::Notify if incoming.is(Root::Notify, "Catalog") => self.on_catalog_news(device, &incoming).await,
            Root::Notify if incoming.is(Root::Notify, "Alarm") => self.on_alarm(device, &incoming),
            Root::Notify => {
                tracing::debug!(%device, cmd = %incoming.cmd_type, "Notify of a device that has no taker");
            }
            Root::Query | Root::Control => {
                tracing::debug!(%device, cmd = %incoming.cmd_type, "a device asks or commands: not answered");
            }
        }
    }

    pub(super) async fn on_notify(&mut self, tx: ServerTxId, request: Request, flow: Flow, device: DeviceId) {
        let Some(topic) = self.devices.get_mut(&device).and_then(|d| d.inventory.notified(&request)) else {
            return self.respond(tx, &request, &flow, 481, "no such subscription").await;
        };
        let verdict = self.registrar.touch(clock::now(), &device, &flow);
        self.respond(tx, &request, &flow, 200, "").await;
        self.heard(device, &flow, verdict, "notify").await;
        let over = request
            .headers
            .get("Subscription-State")
            .is_some_and(|s| s.trim_start().get(..10).is_some_and(|word| word.eq_ignore_ascii_case("terminated")));
        if let Ok(incoming) = manscdp::parse(&request.body, None) {
            match incoming.root {
                Root::Notify if incoming.is(Root::Notify, "Catalog") => self.on_catalog_news(device, &incoming).await,
                Root::Notify if incoming.is(Root::Notify, "Alarm") => self.on_alarm(device, &incoming),
                // 2016's sample, and what 2011 has: items in the form of an answer.
                Root::Response if topic == Topic::Catalog => self.catalog_soon(device),
                _ => {}
            }
        }
        if over {
            self.subscription_failed(device, topic, 0);
        }
    }

    /// An alarm: kept first, then answered, so that nothing a device believes delivered is lost [GB/T28181-2022 9.4].
    fn on_alarm(&mut self, device: DeviceId, incoming: &Incoming) {
        let subject = incoming.device_id;
        let Some(alarm) = notify::Alarm::read(incoming) else {
            return tracing::debug!(%device, channel = %subject, "an alarm without priority, method or time: not answered");
        };
        let Some(d) = self.devices.get_mut(&device) else { return };
        if d.alarms >= MAX_ALARMS {
            // It has not been answered: the device sends it again.
            return self.deps.metrics.device_dropped(&d.label, "alarms");
        }
        d.alarms += 1;
        let channel = d.inventory.place_of(&subject, &device);
        let event = AlarmEvent::of(channel, subject, incoming.sn, alarm, self.now_ms());
        let receipt = self.deps.alarms.submit(event);
        let sn = incoming.sn;
        self.jobs.spawn(async move { Job::Alarm { device, subject, sn, receipt: receipt.await } });
    }

    /// The alarm is on the disk: the device may forget it.
    pub(super) async fn alarm_kept(&mut self, device: DeviceId, subject: DeviceId, sn: u32, receipt: Receipt) {
        let Some(d) = self.devices.get_mut(&device) else { return };
        d.alarms = d.alarms.saturating_sub(1);
        if d.answers >= MAX_ANSWERS {
            return self.deps.metrics.device_dropped(&d.label, "answers");
        }
        if let Receipt::Refused(why) = &receipt {
            tracing::warn!(%device, channel = %subject, error = %why, "an alarm was not taken: the device sends it again");
            return;
        }
        let Some((flow, profile)) = self.devices.get(&device).map(|d| (d.flow, d.profile)) else { return };
        let body = response::result(profile, "Alarm", sn, &subject, true);
        let request = self.message(&flow, &device, body);
        if self.send(flow, request, Pending::Answer { device }).await.is_ok()
            && let Some(d) = self.devices.get_mut(&device)
        {
            d.answers += 1;
        }
    }

    /// News of a catalogue: states at once, the rest by asking for the whole.
    async fn on_catalog_news(&mut self, device: DeviceId, incoming: &Incoming) {
        let Some(changes) = read_catalog_notify(incoming) else { return };
        let Some(d) = self.devices.get_mut(&device) else { return };
        let (mut states, mut whole) = (HashSet::new(), false);
        for change in changes {
            match change.event.status() {
                Some(status) => {
                    if d.inventory.set_status(&change.device_id, status) {
                        states.insert(change.device_id);
                    }
                }
                None => whole = true,
            }
        }
        if !states.is_empty() {
            self.tell_states(&device, Some(&states)).await;
        }
        if whole {
            self.catalog_soon(device);
        }
    }

    async fn on_answer(&mut self, device: DeviceId, incoming: Incoming, bytes: usize) {
        let fits = |q: &Query| q.device == device && q.cmd_type.eq_ignore_ascii_case(&incoming.cmd_type);
        let mut sn = incoming.sn;
        if sn == 0 {
            // Some devices leave the SN out: then it is the only question of that kind.
            let mut found = self.queries.iter().filter(|(_, q)| fits(q)).map(|(sn, _)| *sn);
            if let (Some(only), None) = (found.next(), found.next()) {
                sn = only;
            }
        }
        if !self.queries.get(&sn).is_some_and(fits) {
            return tracing::debug!(%device, cmd = %incoming.cmd_type, sn, "an answer nobody waits for");
        }
        let Some(query) = self.queries.get_mut(&sn) else { return };
        let now = clock::now();
        let progress = match &mut query.gathering {
            Gathering::One => {
                let Some(query) = self.queries.remove(&sn) else { return };
                return self.answer_query(query, Ok(CommandAnswer::Message(incoming))).await;
            }
            Gathering::Catalog(assembly) => match CatalogResponse::read(&incoming) {
                Some(page) => assembly.push(now, page.into_chunk(bytes)),
                None => return,
            },
            Gathering::List(assembly, head) => {
                let Wanted::Command { list: Some(list), .. } = &query.wanted else { return };
                let (chunk, rest) = list_chunk(incoming, list, bytes);
                head.get_or_insert_with(|| Box::new(rest));
                assembly.push(now, chunk)
            }
        };
        match progress {
            Progress::Full => self.finish_query(now, sn).await,
            Progress::Waiting => self.assembly_timer(now, sn),
            // Those that count wrong are given a moment more, but nobody waits for it.
            Progress::Counted => {
                self.slot_overdue(&device, sn).await;
                self.assembly_timer(now, sn);
            }
        }
    }

    fn assembly_timer(&mut self, now: Instant, sn: u32) {
        if let Some(at) = self.queries.get(&sn).and_then(Query::next_timeout) {
            self.after(at.saturating_duration_since(now), Timer::Assembly(sn));
        }
    }

    pub(super) async fn assembly_overdue(&mut self, now: Instant, sn: u32) {
        match self.queries.get(&sn).and_then(Query::next_timeout) {
            Some(at) if at <= now => self.finish_query(now, sn).await,
            // It has moved on since.
            _ => {}
        }
    }

    pub(super) async fn query_overdue(&mut self, sn: u32) {
        let now = clock::now();
        match self.queries.get(&sn).map(|q| (q.next_timeout(), &q.gathering)) {
            Some((None, _)) => {
                if let Some(query) = self.queries.remove(&sn) {
                    self.answer_query(query, Err(CommandError::Timeout)).await;
                }
            }
            Some((Some(at), _)) if at > now => self.after(at.saturating_duration_since(now), Timer::Assembly(sn)),
            Some((Some(_), _)) => self.finish_query(now, sn).await,
            None => {}
        }
    }

    async fn finish_query(&mut self, now: Instant, sn: u32) {
        let Some(query) = self.queries.remove(&sn) else { return };
        let Query { device, slot, cmd_type, wanted, gathering } = query;
        match gathering {
            Gathering::Catalog(assembly) => {
                let outcome = assembly.finish(now);
                self.interview_over(&device, slot);
                self.catalog_came(device, outcome).await;
            }
            Gathering::List(assembly, head) => {
                let outcome = assembly.finish(now);
                let answer = match head {
                    // Nothing at all came.
                    None => Err(CommandError::Timeout),
                    Some(head) => Ok(CommandAnswer::List {
                        head: *head,
                        complete: outcome.is_complete(),
                        items: outcome.items.into_iter().map(|item| item.0).collect(),
                    }),
                };
                let query = Query { device, slot, cmd_type, wanted, gathering: Gathering::One };
                self.answer_query(query, answer).await;
            }
            Gathering::One => {}
        }
    }

    /// The end of a question, whatever it is.
    pub(super) async fn answer_query(&mut self, query: Query, answer: Result<CommandAnswer, CommandError>) {
        match query.wanted {
            Wanted::Command { reply, .. } => {
                let _ = reply.send(answer);
            }
            Wanted::DeviceInfo => {
                let told = match answer {
                    Ok(CommandAnswer::Message(incoming)) => DeviceInfo::read(&incoming),
                    _ => None,
                };
                if let (Some(told), Some(device)) = (told, self.devices.get_mut(&query.device)) {
                    device.inventory.told = told;
                    self.publish(&query.device).await;
                }
            }
            Wanted::Catalog => {
                self.interview_over(&query.device, query.slot);
                let why = answer.err().map_or_else(String::new, |e| e.to_string());
                self.catalog_failed(query.device, why);
            }
        }
    }

    /// The MESSAGE of a question was refused or not answered: there will be no answer.
    pub(super) async fn message_refused(&mut self, device: DeviceId, sn: Option<u32>, status: u16) {
        tracing::debug!(%device, status, "a device refused a MESSAGE");
        if let Some(query) = sn.and_then(|sn| self.queries.remove(&sn)) {
            let error = if status == 408 { CommandError::Timeout } else { CommandError::Refused(status) };
            self.answer_query(query, Err(error)).await;
        }
    }

    /// A device is gone: nobody waits for it any more.
    pub(super) fn drop_queries(&mut self, device: &DeviceId) {
        let gone: Vec<u32> = self.queries.iter().filter(|(_, q)| q.device == *device).map(|(sn, _)| *sn).collect();
        for sn in gone {
            if let Some(query) = self.queries.remove(&sn) {
                match query.wanted {
                    Wanted::Command { reply, .. } => drop(reply.send(Err(CommandError::Offline))),
                    Wanted::Catalog => self.interview_over(&query.device, query.slot),
                    Wanted::DeviceInfo => {}
                }
            }
        }
        self.interviews.retain(|id| id != device);
    }
}

/// The items of one message of a list answer, and the message without them.
fn list_chunk(mut incoming: Incoming, list: &str, bytes: usize) -> (Chunk<ListItem>, Incoming) {
    let sum_num = incoming.element.number_of("SumNum");
    let (mut num, mut items) = (None, Vec::new());
    incoming.element.children.retain_mut(|child| {
        if child.is(list) {
            num = num.or_else(|| child.attr("Num").and_then(|n| n.parse().ok()));
            items.extend(std::mem::take(&mut child.children).into_iter().filter(|c| c.is("Item")).map(ListItem));
            return false;
        }
        !child.is("SumNum")
    });
    // A failure without any list says so by Result [GB/T28181-2022 A.2.6.7].
    let failed = incoming.element.text_of("Result").is_some_and(|r| r.eq_ignore_ascii_case("ERROR"));
    let sum_num = if failed && items.is_empty() { Some(0) } else { sum_num };
    (Chunk { sum_num, num, items, dropped: 0, bytes, policies: Policies::default() }, incoming)
}
