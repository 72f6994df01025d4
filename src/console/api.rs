//! What the routes answer: values of the running program as JSON.
//! Standard: none.
//! In: the handles of [`ConsoleDeps`], parsed queries. Out: JSON, metrics text, capture files.
//! Invariants: a snapshot is taken, no lock is held while it is written out; every wait has a limit; long lists are
//! made on the blocking pool, so that the SIP loop's runtime goes on; every list tells its count.
//! Not here: who may ask (`guard`), paths (`router`).

use super::ConsoleDeps;
use super::error::ApiError;
use crate::catalog::{Channel, view};
use crate::clock;
use crate::media::{AudioCodec, StreamSnapshot, VideoCodec};
use crate::metrics::{CONTENT_TYPE_OPENMETRICS, CONTENT_TYPE_TEXT};
use crate::northbound::UplinkStatus;
use crate::proto::manscdp::{CatalogItem, ItemInfo};
use crate::store::{AuditRecord, PAGE_MAX};
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The SIP loop, the store and the hub answer within this, or are not well.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// A health answer is used again for this long: asking often costs nothing.
const HEALTH_AGE: Duration = Duration::from_millis(500);
/// Records of the audit log in a page that names no limit.
const AUDIT_PAGE: u32 = 100;

/// State of all handlers.
pub(super) struct App {
    pub deps: ConsoleDeps,
    pub access: super::guard::Access,
    started_ms: i64,
    health: tokio::sync::Mutex<Option<(Instant, Health)>>,
}

type Answer = Result<Response, ApiError>;
type Named = Result<Path<String>, PathRejection>;
type Asked<T> = Result<Query<T>, QueryRejection>;

impl App {
    pub fn new(deps: ConsoleDeps, access: super::guard::Access) -> Self {
        let mut app = App { deps, access, started_ms: 0, health: tokio::sync::Mutex::new(None) };
        app.started_ms = app.now_ms();
        app
    }

    /// Our clock, Unix milliseconds.
    pub fn now_ms(&self) -> i64 {
        i64::try_from(self.deps.wall.unix().as_millis()).unwrap_or(i64::MAX)
    }

    /// One look at SIP loop and store serves all who ask at the time.
    async fn health(&self) -> Health {
        let mut last = self.health.lock().await;
        let now = clock::now();
        if let Some((at, health)) = &*last
            && now.duration_since(*at) < HEALTH_AGE
        {
            return *health;
        }
        let sip = tokio::time::timeout(ANSWER_TIME, self.deps.sip.counts());
        let store = tokio::time::timeout(ANSWER_TIME, self.deps.store.ping());
        let (sip, store) = tokio::join!(sip, store);
        let health = Health { sip: Part::of(sip), store: Part::of(store) };
        *last = Some((clock::now(), health));
        health
    }

    fn uplinks(&self) -> Vec<UplinkStatus> {
        self.deps.uplinks.borrow().values().map(|uplink| uplink.borrow().clone()).collect()
    }

    fn uplink(&self, name: &str) -> Result<UplinkStatus, ApiError> {
        let book = self.deps.uplinks.borrow();
        let status = book.get(name).map(|uplink| uplink.borrow().clone());
        status.ok_or(ApiError::UnknownUplink)
    }
}

/// How a part of the program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Ok,
    Failed,
    NoAnswer,
}

impl Part {
    fn of<T, E>(answer: Result<Result<T, E>, tokio::time::error::Elapsed>) -> Self {
        match answer {
            Ok(Ok(_)) => Part::Ok,
            Ok(Err(_)) => Part::Failed,
            Err(_) => Part::NoAnswer,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Health {
    sip: Part,
    store: Part,
}

/// `/healthz`, `/api/health`
pub(super) async fn healthz(State(app): State<Arc<App>>) -> Response {
    let health = app.health().await;
    let well = health.sip == Part::Ok && health.store == Part::Ok;
    let body = json!({
        "status": if well { "ok" } else { "failed" },
        "sip": health.sip,
        "store": health.store,
    });
    (status_of(well), Json(body)).into_response()
}

/// `/readyz`
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let health = app.health().await;
    let mut missing = Vec::new();
    if app.deps.sip_listeners.is_empty() {
        missing.push(json!({ "part": "sip", "why": "no SIP address is bound" }));
    } else if health.sip != Part::Ok {
        missing.push(json!({ "part": "sip", "why": health.sip }));
    }
    if health.store != Part::Ok {
        missing.push(json!({ "part": "store", "why": health.store }));
    }
    for uplink in app.uplinks().iter().filter(|u| !u.registered) {
        missing.push(json!({
            "part": "uplink", "name": uplink.name, "state": uplink.state, "since_ms": uplink.since_ms,
            "why": uplink.reason,
        }));
    }
    let ready = missing.is_empty();
    (status_of(ready), Json(json!({ "ready": ready, "missing": missing }))).into_response()
}

fn status_of(well: bool) -> StatusCode {
    if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// `/metrics`
pub(super) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Answer {
    let wanted = |v: &HeaderValue| v.to_str().is_ok_and(|v| v.contains("application/openmetrics-text"));
    let openmetrics = headers.get_all(header::ACCEPT).iter().any(wanted);
    let kind = if openmetrics { CONTENT_TYPE_OPENMETRICS } else { CONTENT_TYPE_TEXT };
    // Reads files of /proc.
    let text = blocking(move || app.deps.metrics.encode(openmetrics)).await?;
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// `/api/v1/status`
pub(super) async fn status(State(app): State<Arc<App>>) -> Answer {
    let deps = &app.deps;
    let counts = within(deps.sip.counts(), "the SIP loop").await?;
    let uplinks = app.uplinks();
    let mut channels = [0usize; 3];
    for channel in deps.directory.now().channels.values() {
        channels[STATES.iter().position(|s| *s == state_of(channel)).unwrap_or(2)] += 1;
    }
    let listeners: Vec<_> = deps
        .sip_listeners
        .iter()
        .map(|l| json!({ "local": l.local, "udp": l.udp, "tcp": l.tcp, "tls": l.tls }))
        .collect();
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": deps.commit,
        "gateway": { "id": deps.gateway_id, "name": deps.gateway_name },
        "now_ms": app.now_ms(),
        "started_ms": app.started_ms,
        "clock_offset_ms": deps.wall.offset_ms(),
        "sip": {
            "listeners": listeners,
            "connections": deps.sip.counters().connections(),
            "client_transactions": counts.client,
            "server_transactions": counts.server,
        },
        "uplinks": { "total": uplinks.len(), "registered": uplinks.iter().filter(|u| u.registered).count() },
        "channels": {
            "total": channels.iter().sum::<usize>(),
            "online": channels[0],
            "offline": channels[1],
            "unknown": channels[2],
        },
        "sessions": uplinks.iter().map(|u| u.calls.len()).sum::<usize>(),
    }))
    .into_response())
}

/// `/api/v1/uplinks`
pub(super) async fn uplinks(State(app): State<Arc<App>>) -> Answer {
    let items = app.uplinks();
    Ok(Json(json!({ "count": items.len(), "items": items })).into_response())
}

/// `/api/v1/uplinks/{name}`
pub(super) async fn uplink(State(app): State<Arc<App>>, name: Named) -> Answer {
    Ok(Json(app.uplink(&named(name)?)?).into_response())
}

/// `/api/v1/devices`: those that register with us, and strangers that would like to.
pub(super) async fn devices(State(app): State<Arc<App>>) -> Answer {
    let table = app.deps.devices.borrow().clone();
    let (items, pending) = match table {
        Some(table) => table.snapshot().await,
        None => Default::default(),
    };
    Ok(Json(json!({ "count": items.len(), "items": items, "pending": pending })).into_response())
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TraceFormat {
    #[default]
    Json,
    Pcap,
}

/// Query of the trace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceQuery {
    #[serde(default)]
    format: TraceFormat,
}

/// `/api/v1/uplinks/{name}/trace`: of an uplink, or `other`.
pub(super) async fn trace(State(app): State<Arc<App>>, name: Named, query: Asked<TraceQuery>) -> Answer {
    let (name, format) = (named(name)?, asked(query)?.format);
    let configured = app.deps.uplinks.borrow().contains_key(name.as_str());
    blocking(move || {
        let trace = &app.deps.trace;
        match format {
            TraceFormat::Json => {
                let items = match trace.messages(&name) {
                    Some(items) => items,
                    None if configured => Vec::new(),
                    None => return Err(ApiError::UnknownUplink),
                };
                Ok(Json(json!({ "count": items.len(), "items": items })).into_response())
            }
            TraceFormat::Pcap => {
                let file = match trace.pcap(&name) {
                    Some(file) => file,
                    None if configured => crate::proto::pcap::PcapWriter::new().finish(),
                    None => return Err(ApiError::UnknownUplink),
                };
                Ok(capture(&name, file))
            }
        }
    })
    .await?
}

/// `/api/v1/devices/{id}/trace`: of a device that is, or was, registered.
pub(super) async fn device_trace(State(app): State<Arc<App>>, id: Named, query: Asked<TraceQuery>) -> Answer {
    let (id, format) = (named(id)?, asked(query)?.format);
    let table = app.deps.devices.borrow().clone();
    let (devices, _) = match table {
        Some(table) => table.snapshot().await,
        None => Default::default(),
    };
    let device = devices.into_iter().find(|d| d.id == id).ok_or(ApiError::UnknownDevice)?;
    let source = device.source.parse().map_err(|_| ApiError::UnknownDevice)?;
    blocking(move || {
        let trace = &app.deps.trace;
        Ok(match format {
            TraceFormat::Json => {
                let items = trace.device_messages(&id, source);
                Json(json!({ "count": items.len(), "items": items })).into_response()
            }
            TraceFormat::Pcap => capture(&id, trace.device_pcap(&id, source)),
        })
    })
    .await?
}

fn capture(name: &str, file: Vec<u8>) -> Response {
    let disposition = format!("attachment; filename=\"menshen-{}.pcap\"", file_name(name));
    let headers =
        [(header::CONTENT_TYPE, "application/vnd.tcpdump.pcap".to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    (headers, Body::from(file)).into_response()
}

/// Letters, digits, `-` and `_` of a name: nothing that means something to a shell, a path or a header.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(64).collect()
}

/// Query of a page of a long list; without a limit it is all of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
}

/// `/api/v1/uplinks/{name}/catalog`: exactly what this uplink is told.
pub(super) async fn catalog(State(app): State<Arc<App>>, name: Named, query: Asked<PageQuery>) -> Answer {
    let page = asked(query)?;
    let spec = app.uplink(&named(name)?)?.spec;
    blocking(move || {
        let view = view(&app.deps.directory.now(), &spec);
        let shown = view.items().iter().skip(page.offset).take(page.limit.unwrap_or(usize::MAX));
        let items: Vec<Value> = shown.map(item_json).collect();
        Json(json!({ "count": view.items().len(), "devices": view.devices().count(), "items": items })).into_response()
    })
    .await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateFilter {
    Online,
    Offline,
    Unknown,
}

const STATES: [&str; 3] = ["online", "offline", "unknown"];

/// Query of the channels.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChannelQuery {
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
    state: Option<StateFilter>,
    /// A part of id, name or area.
    #[serde(default)]
    q: String,
}

/// `/api/v1/channels`
pub(super) async fn channels(State(app): State<Arc<App>>, query: Asked<ChannelQuery>) -> Answer {
    let query = asked(query)?;
    blocking(move || {
        let directory = app.deps.directory.now();
        let state = query.state.map(|s| STATES[s as usize]);
        let fits = |c: &&Channel| {
            state.is_none_or(|s| s == state_of(c))
                && (query.q.is_empty()
                    || c.id.contains(&query.q)
                    || c.item.name.contains(&query.q)
                    || c.area.as_deref().is_some_and(|a| a.contains(&query.q)))
        };
        let mut count = 0;
        let mut items = Vec::new();
        for channel in directory.channels.values().filter(fits) {
            if count >= query.offset && items.len() < query.limit.unwrap_or(usize::MAX) {
                items.push(channel_json(channel));
            }
            count += 1;
        }
        Json(json!({ "count": count, "total": directory.channels.len(), "items": items })).into_response()
    })
    .await
}

fn state_of(channel: &Channel) -> &'static str {
    match channel.state.online {
        Some(true) => STATES[0],
        Some(false) => STATES[1],
        None => STATES[2],
    }
}

fn channel_json(channel: &Channel) -> Value {
    json!({
        "id": &*channel.id,
        "name": channel.item.name,
        "area": channel.area.as_deref(),
        "kind": channel.kind,
        "streams": channel.streams,
        "state": state_of(channel),
        "reason": channel.state.reason,
        "evidence": channel.state.evidence,
        "since_ms": channel.state.since_ms,
    })
}

/// `/api/v1/streams`
pub(super) async fn streams(State(app): State<Arc<App>>) -> Answer {
    let snapshot = app.deps.hub.snapshot();
    let snapshot =
        tokio::time::timeout(ANSWER_TIME, snapshot).await.map_err(|_| ApiError::Unavailable("the media hub"))?;
    let items: Vec<Value> = snapshot.iter().map(stream_json).collect();
    Ok(Json(json!({ "count": items.len(), "items": items })).into_response())
}

fn stream_json(stream: &StreamSnapshot) -> Value {
    let (tracks, stats) = (stream.tracks, stream.stats);
    let size = stats.size.or(tracks.and_then(|t| t.size));
    json!({
        "channel": &*stream.key.channel,
        "stream": stream.key.number,
        "video": tracks.map(|t| video_name(t.video)),
        "audio": tracks.and_then(|t| t.audio).map(audio_name),
        "width": size.map(|s| s.0),
        "height": size.map(|s| s.1),
        "sinks": stream.sinks,
        "fps": stats.fps,
        "bitrate_bps": stats.bytes_per_second * 8.0,
        "gop_ms": millis(stats.gop),
        "gop_cache_bytes": stats.gop_bytes,
        "lost_packets": stats.lost,
        "clock_jumps": stats.clock_jumps,
        "overruns": stats.overruns,
        "session": stream.key.session,
        "plane": stats.plane,
        "plane_reason": stats.plane_reason,
    })
}

fn video_name(codec: VideoCodec) -> String {
    format!("{codec:?}").to_ascii_lowercase()
}

fn audio_name(codec: AudioCodec) -> String {
    format!("{codec:?}").to_ascii_lowercase()
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Query of the audit log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    before: Option<u64>,
    limit: Option<u32>,
}

/// `/api/v1/audit`: newest first.
pub(super) async fn audit(State(app): State<Arc<App>>, query: Asked<AuditQuery>) -> Answer {
    let query = asked(query)?;
    let limit = query.limit.unwrap_or(AUDIT_PAGE).min(PAGE_MAX);
    let records = within(app.deps.store.audit_page(query.before, limit), "the store").await?;
    let head = within(app.deps.store.audit_head(), "the store").await?;
    let items: Vec<Value> = records.iter().map(audit_json).collect();
    let head = json!({ "seq": head.seq, "hash": hex(&head.hash) });
    Ok(Json(json!({ "count": items.len(), "head": head, "items": items })).into_response())
}

fn audit_json(r: &AuditRecord) -> Value {
    json!({
        "seq": r.seq,
        "at_ms": r.at,
        "actor_kind": r.actor.kind.as_str(),
        "actor": r.actor.name,
        "role": r.role,
        "source": r.source,
        "action": r.action,
        "object_type": r.object_type,
        "object_id": r.object_id,
        "reason": r.reason,
        "outcome": r.outcome.as_str(),
        "before_hash": r.before_hash.as_ref().map(|h| hex(h)),
        "after_hash": r.after_hash.as_ref().map(|h| hex(h)),
        // As text: the chain's hash is over these very bytes.
        "details": r.details,
        "prev": hex(&r.prev),
        "this": hex(&r.this),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        for digit in [b >> 4, b & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
        text
    })
}

/// A catalogue item with the fields it has.
fn item_json(item: &CatalogItem) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            out.insert(name.to_owned(), value);
        }
    };
    put("device_id", json!(item.device_id.as_str()));
    put("name", json!(item.name));
    put("manufacturer", json!(item.manufacturer));
    put("model", json!(item.model));
    put("owner", json!(item.owner));
    put("civil_code", json!(item.civil_code));
    put("block", json!(item.block));
    put("address", json!(item.address));
    put("parental", json!(item.parental));
    put("parent_id", json!(item.parent_id.iter().map(|id| id.as_str()).collect::<Vec<_>>()));
    put("safety_way", json!(item.safety_way));
    put("register_way", json!(item.register_way));
    put("security_level_code", json!(item.security_level_code));
    put("cert_num", json!(item.cert_num));
    put("certifiable", json!(item.certifiable));
    put("err_code", json!(item.err_code));
    put("end_time_ms", json!(item.end_time.map(|t| t.0)));
    put("secrecy", json!(item.secrecy));
    put("ip_address", json!(item.ip_address));
    put("port", json!(item.port));
    put("status", json!(item.status.map(|s| s.as_str())));
    put("longitude", json!(item.longitude));
    put("latitude", json!(item.latitude));
    put("business_group_id", json!(item.business_group_id.as_ref().map(|id| id.as_str())));
    put("info", info_json(&item.info));
    Value::Object(out)
}

/// Null without any field.
fn info_json(info: &ItemInfo) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            out.insert(name.to_owned(), value);
        }
    };
    put("ptz_type", json!(info.ptz_type));
    put("position_type", json!(info.position_type));
    put("photoelectric_imaging_type", json!(info.photoelectric_imaging_type));
    put("capture_position_type", json!(info.capture_position_type));
    put("room_type", json!(info.room_type));
    put("use_type", json!(info.use_type));
    put("supply_light_type", json!(info.supply_light_type));
    put("direction_type", json!(info.direction_type));
    put("resolution", json!(info.resolution));
    put("stream_number_list", json!(info.stream_number_list));
    put("download_speed", json!(info.download_speed));
    put("svc_space_support_mode", json!(info.svc_space_support_mode));
    put("svc_time_support_mode", json!(info.svc_time_support_mode));
    put("ssvc_ratio_support_list", json!(info.ssvc_ratio_support_list));
    put("mobile_device_type", json!(info.mobile_device_type));
    put("horizontal_field_angle", json!(info.horizontal_field_angle));
    put("vertical_field_angle", json!(info.vertical_field_angle));
    put("max_view_distance", json!(info.max_view_distance));
    put("grassroots_code", json!(info.grassroots_code));
    put("point_type", json!(info.point_type));
    put("point_common_name", json!(info.point_common_name));
    put("mac", json!(info.mac));
    put("function_type", json!(info.function_type));
    put("encode_type", json!(info.encode_type));
    put("install_time_ms", json!(info.install_time.map(|t| t.0)));
    put("management_unit", json!(info.management_unit));
    put("contact_info", json!(info.contact_info));
    put("record_save_days", json!(info.record_save_days));
    put("industrial_classification", json!(info.industrial_classification));
    if out.is_empty() { Value::Null } else { Value::Object(out) }
}

/// No uplink has a name that is not UTF-8.
fn named(name: Named) -> Result<String, ApiError> {
    name.map(|Path(n)| n).map_err(|_| ApiError::UnknownUplink)
}

fn asked<T>(query: Asked<T>) -> Result<T, ApiError> {
    query.map(|Query(q)| q).map_err(|_| ApiError::BadQuery)
}

async fn within<T, E: std::fmt::Display>(
    work: impl Future<Output = Result<T, E>>,
    who: &'static str,
) -> Result<T, ApiError> {
    match tokio::time::timeout(ANSWER_TIME, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => {
            tracing::warn!(error = %e, "{who} could not answer the console");
            Err(ApiError::Unavailable(who))
        }
        Err(_) => Err(ApiError::Unavailable(who)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        tracing::error!(error = %e, "a console answer could not be made");
        ApiError::Internal
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_have_nothing_special() {
        assert_eq!(file_name("psb-1"), "psb-1");
        assert_eq!(file_name("../a\r\nX: \"b\"/公安"), "___a__X___b____");
        assert_eq!(file_name(&"a".repeat(100)).len(), 64);
    }

    #[test]
    fn bytes_as_hex() {
        assert_eq!(hex(&[0, 0x1f, 0xa0]), "001fa0");
    }
}
