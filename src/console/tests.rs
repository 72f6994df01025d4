//! The console over real loopback connections, with a real SIP driver, store, hub and directory behind it.

use super::*;
use crate::catalog::{Area, Channel, ChannelState, Directory, Share, ViewSpec};
use crate::clock::WallClock;
use crate::config::{Http, Secret};
use crate::console::client;
use crate::console::trace::TraceStore;
use crate::media::{Hub, HubConfig, MediaOptions, SourceHandle, StreamKey};
use crate::metrics::Metrics;
use crate::northbound::UplinkStatus;
use crate::northbound::ladder::{Ladder, Rung};
use crate::proto::gb28181::{DeviceId, Version};
use crate::proto::manscdp::CatalogItem;
use crate::proto::sip::endpoint::EndpointConfig;
use crate::proto::sip::message::{Flow, Transport};
use crate::store::{Location, StoreConfig, StoreHandle};
use crate::transport::sip_driver::{self, Direction, Hooks, Limits, Listener, SipDriverConfig, TraceRecord, UserId};
use crate::transport::tls::{self, test_pki};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

const GATEWAY: &str = "41130000582000000001";
const CAMERA: &str = "41130000581320000001";
const HIDDEN: &str = "41130000581320000002";
const LIMIT: Duration = Duration::from_secs(10);

/// Everything the console looks at; stops when dropped.
struct Site {
    deps: ConsoleDeps,
    uplink: watch::Sender<UplinkStatus>,
    sip_stop: CancellationToken,
    _book: watch::Sender<BTreeMap<String, watch::Receiver<UplinkStatus>>>,
    _tasks: JoinSet<()>,
}

fn status(registered: bool) -> UplinkStatus {
    let mut ladder = Ladder::default();
    ladder.failed(Rung::Register, 5, Some(403), "403 Forbidden");
    UplinkStatus {
        name: "psb".into(),
        server_id: "41130000002000000002".into(),
        server_addr: "127.0.0.1:15060".into(),
        local_id: GATEWAY.into(),
        transport: "udp",
        standard: "2016",
        charset: "GB2312",
        state: if registered { "registered" } else { "waiting" },
        registered,
        since_ms: 5,
        reason: if registered { String::new() } else { "403 Forbidden".into() },
        advertised: "127.0.0.1:5060".into(),
        clock_offset_ms: None,
        ladder,
        calls: Vec::new(),
        subscriptions: 0,
        spec: ViewSpec {
            local_id: DeviceId::parse(GATEWAY).unwrap(),
            name: "大院".into(),
            civil_code: "411300".into(),
            share: vec![Share::Channel(CAMERA.into())],
            groups: true,
            multi_parent: false,
            version: Version::V2016,
        },
    }
}

fn channel(id: &str, name: &str, online: Option<bool>) -> Channel {
    Channel {
        id: id.into(),
        area: Some("gate".into()),
        parent: None,
        item: std::sync::Arc::new(CatalogItem::new(DeviceId::parse(id).unwrap(), name)),
        streams: 1,
        source: SourceHandle::new(mpsc::channel(1).0),
        state: ChannelState { online, reason: "ok", evidence: "200 OK".into(), since_ms: 7 },
        commands: None,
        kind: "rtsp",
    }
}

async fn site() -> Site {
    let mut tasks = JoinSet::new();
    let wall = WallClock::new();
    let (sip, driver, sip_listeners) = sip_driver::bind(
        SipDriverConfig {
            listeners: vec![Listener { local: "127.0.0.1:0".parse().unwrap(), udp: true, tcp: false, tls: None }],
            tls_clients: Vec::new(),
            limits: Limits::default(),
            endpoint: EndpointConfig::default(),
            hooks: Hooks::default(),
        },
        StdRng::seed_from_u64(1),
    )
    .unwrap();
    let sip_stop = CancellationToken::new();
    let stop = sip_stop.clone();
    tasks.spawn(async move { driver.run(stop).await.unwrap() });
    let store = StoreHandle::open(&StoreConfig { location: Location::Memory, site_id: GATEWAY.into(), created_at: 1 });
    let (hub_task, hub) = Hub::new(
        HubConfig { options: MediaOptions::default(), workers: 1, pin: false },
        wall.clone(),
        Arc::new(|_, _| {}),
    )
    .unwrap();
    tasks.spawn(hub_task.run(CancellationToken::new()));
    let (directory_task, directory) = Directory::new();
    tasks.spawn(directory_task.run(CancellationToken::new()));
    let area = Area { id: "gate".into(), name: "东门".into(), code: "41130000582160000001".into() };
    directory.areas(vec![area], Some("41130000582150000001".into()), "大院".into()).await;
    directory.put(channel(CAMERA, "东门枪机", Some(true))).await;
    directory.put(channel(HIDDEN, "机房", None)).await;
    let mut seen = directory.watch();
    seen.wait_for(|s| s.channels.len() == 2).await.unwrap();
    let (uplink, reader) = watch::channel(status(true));
    let (book, uplinks) = watch::channel(BTreeMap::from([("psb".to_owned(), reader)]));
    let deps = ConsoleDeps {
        commit: "abc",
        gateway_id: GATEWAY.into(),
        gateway_name: "大院".into(),
        trace: TraceStore::new(wall.clone()),
        wall,
        sip,
        sip_listeners,
        store: store.unwrap(),
        hub,
        directory,
        uplinks,
        devices: watch::channel(None).1,
        metrics: Metrics::new("0", "abc"),
    };
    Site { deps, uplink, sip_stop, _book: book, _tasks: tasks }
}

/// A console in front of a site.
struct Console {
    at: SocketAddr,
    site: Site,
    cancel: CancellationToken,
    server: JoinSet<Result<(), ConsoleError>>,
}

async fn console(access: Access) -> Console {
    let site = site().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let cancel = CancellationToken::new();
    let mut server = JoinSet::new();
    server.spawn(run(listener, access, None, site.deps.clone(), cancel.clone()));
    Console { at, site, cancel, server }
}

struct Got {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
    fn header(&self, name: &str) -> Option<&str> {
        let field = |l: &'_ str| l.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().find(|l| field(l)).and_then(|l| l.split_once(':')).map(|(_, v)| v.trim())
    }
}

impl Console {
    async fn raw(&self, request: &str) -> Got {
        let ask = async {
            let mut stream = TcpStream::connect(self.at).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        let bytes = tokio::time::timeout(LIMIT, ask).await.expect("an answer in time");
        let end = memchr::memmem::find(&bytes, b"\r\n\r\n").expect("a whole head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head[9..12].parse().unwrap();
        Got { status, head, body: bytes[end + 4..].to_vec() }
    }

    async fn ask(&self, method: &str, path: &str, headers: &str) -> Got {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n", self.at);
        self.raw(&request).await
    }

    async fn get(&self, path: &str) -> Got {
        self.ask("GET", path, "").await
    }

    async fn json(&self, path: &str) -> Value {
        let got = self.get(path).await;
        assert_eq!((got.status, got.header("content-type")), (200, Some("application/json")), "{path}");
        got.json()
    }
}

fn basic(password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("admin:{password}")))
}

fn paths() -> Vec<String> {
    // No device has registered here.
    let there = routes().into_iter().filter(|(path, _)| !path.contains("{id}"));
    there.map(|(path, _)| path.replace("{name}", "psb")).collect()
}

#[tokio::test]
async fn every_route_answers_with_the_security_headers() {
    let console = console(Access::Local).await;
    for path in paths() {
        let got = console.get(&path).await;
        assert_eq!(got.status, 200, "{path}");
        assert!(!got.body.is_empty());
        for (name, value) in SECURITY_HEADERS {
            assert_eq!(got.header(name.as_str()), Some(value), "{path} {name}");
        }
        let head = console.ask("HEAD", &path, "").await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECTX"] {
            let refused = console.ask(method, &path, "Content-Length: 0\r\n").await;
            assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
            assert_eq!(refused.json()["error"], "method_not_allowed");
        }
    }
}

#[tokio::test]
async fn the_description_has_exactly_the_routes() {
    let openapi: Value = serde_json::from_str(include_str!("assets/openapi.json")).unwrap();
    let described: BTreeSet<&str> = openapi["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let there: BTreeSet<&str> = routes().into_iter().map(|(path, _)| path).collect();
    assert_eq!(described, there);
    let text = openapi.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(openapi.pointer(pointer).is_some(), "{pointer}");
    }
}

/// Every field an answer has is described, one level of `$ref` and list deep.
#[tokio::test]
async fn the_description_has_the_fields_of_the_answers() {
    let console = console(Access::Local).await;
    let openapi: Value = serde_json::from_str(include_str!("assets/openapi.json")).unwrap();
    let fields = |schema: &str| openapi["components"]["schemas"][schema]["properties"].clone();
    let check = |schema: &str, value: &Value| {
        let described = fields(schema);
        for key in value.as_object().unwrap().keys() {
            assert!(described.get(key).is_some(), "{schema}.{key}");
        }
    };
    let (deps, key) = (&console.site.deps, StreamKey::live(CAMERA, 0));
    deps.hub.open(key, SourceHandle::new(mpsc::channel(1).0)).await.unwrap();
    let entry = AuditEntry::new(1, Actor::system("test"), "start", "gateway", "", Outcome::Ok);
    deps.store.audit(entry).await.unwrap();
    record(&deps.trace, Some("psb"), "OPTIONS sip:a SIP/2.0\r\n\r\n");
    check("Health", &console.json("/healthz").await);
    check("Ready", &console.json("/readyz").await);
    check("Status", &console.json("/api/v1/status").await);
    check("Uplink", &console.json("/api/v1/uplinks/psb").await);
    check("Step", &console.json("/api/v1/uplinks/psb").await["ladder"][0]);
    check("TraceMessage", &console.json("/api/v1/uplinks/psb/trace").await["items"][0]);
    check("Channel", &console.json("/api/v1/channels").await["items"][0]);
    check("Stream", &console.json("/api/v1/streams").await["items"][0]);
    check("AuditRecord", &console.json("/api/v1/audit").await["items"][0]);
}

fn record(trace: &TraceStore, user: Option<&str>, text: &str) {
    let flow = Flow {
        transport: Transport::Udp,
        local: "127.0.0.1:5060".parse().unwrap(),
        peer: "127.0.0.1:15060".parse().unwrap(),
        conn: None,
    };
    let bytes = text.to_owned().into();
    trace.record(&TraceRecord { direction: Direction::Out, flow, bytes, user: user.map(UserId::new) });
}

#[tokio::test]
async fn values_are_those_of_the_program() {
    let console = console(Access::Local).await;
    let status = console.json("/api/v1/status").await;
    assert_eq!(status["gateway"]["id"], GATEWAY);
    assert_eq!(status["uplinks"], serde_json::json!({ "total": 1, "registered": 1 }));
    assert_eq!(status["channels"], serde_json::json!({ "total": 2, "online": 1, "offline": 0, "unknown": 1 }));
    assert_eq!(status["sip"]["listeners"][0]["udp"], true);

    let uplinks = console.json("/api/v1/uplinks").await;
    assert_eq!((&uplinks["count"], &uplinks["items"][0]["name"]), (&1.into(), &"psb".into()));
    let one = console.json("/api/v1/uplinks/psb").await;
    assert_eq!(one["ladder"][1]["rung"], "register");
    assert_eq!(one["ladder"][1]["state"], "failed");
    assert!(one["ladder"][1]["advice"].as_str().unwrap().contains("local_id"));

    let all = console.json("/api/v1/channels").await;
    assert_eq!((&all["count"], &all["items"][0]["id"]), (&2.into(), &CAMERA.into()));
    assert_eq!(all["items"][0]["evidence"], "200 OK");
    let page = console.json("/api/v1/channels?offset=1&limit=1").await;
    assert_eq!((&page["count"], &page["items"][0]["id"]), (&2.into(), &HIDDEN.into()));
    let unknown = console.json("/api/v1/channels?state=unknown&q=%E6%9C%BA").await;
    assert_eq!(
        (&unknown["count"], &unknown["total"], &unknown["items"][0]["id"]),
        (&1.into(), &2.into(), &HIDDEN.into())
    );
    assert_eq!(console.json("/api/v1/channels?q=nothing").await["items"], serde_json::json!([]));

    let key = StreamKey::live(CAMERA, 1);
    console.site.deps.hub.open(key, SourceHandle::new(mpsc::channel(1).0)).await.unwrap();
    let streams = console.json("/api/v1/streams").await;
    assert_eq!((&streams["count"], &streams["items"][0]["stream"]), (&1.into(), &1.into()));
}

#[tokio::test]
async fn the_catalogue_shown_is_what_the_uplink_sees() {
    let console = console(Access::Local).await;
    let catalog = console.json("/api/v1/uplinks/psb/catalog").await;
    let deps = &console.site.deps;
    let view = crate::catalog::view(&deps.directory.now(), &console.site.uplink.borrow().spec);
    let ids: Vec<&str> =
        catalog["items"].as_array().unwrap().iter().map(|i| i["device_id"].as_str().unwrap()).collect();
    let expected: Vec<&str> = view.items().iter().map(|i| i.device_id.as_str()).collect();
    assert_eq!(ids, expected);
    assert_eq!((&catalog["count"], &catalog["devices"]), (&ids.len().into(), &1.into()));
    let camera = catalog["items"].as_array().unwrap().last().unwrap();
    assert_eq!((&camera["name"], &camera["status"]), (&"东门枪机".into(), &"ON".into()));
    assert_eq!(camera["parent_id"], serde_json::json!(["41130000582160000001"]));
    assert!(!ids.contains(&HIDDEN));
    let page = console.json("/api/v1/uplinks/psb/catalog?offset=1&limit=1").await;
    assert_eq!((&page["count"], page["items"][0]["device_id"].as_str()), (&ids.len().into(), Some(ids[1])));
}

#[tokio::test]
async fn the_trace_comes_as_json_and_as_a_capture() {
    let console = console(Access::Local).await;
    let none = console.json("/api/v1/uplinks/psb/trace").await;
    assert_eq!(none["count"], 0, "configured, nothing yet");
    assert_eq!(console.get("/api/v1/uplinks/psb/trace?format=pcap").await.body.len(), 24);
    record(
        &console.site.deps.trace,
        Some("psb"),
        "REGISTER sip:a SIP/2.0\r\nAuthorization: Digest response=\"geheim\"\r\n\r\n",
    );
    record(&console.site.deps.trace, None, "OPTIONS sip:b SIP/2.0\r\n\r\n");
    let trace = console.json("/api/v1/uplinks/psb/trace").await;
    assert_eq!(trace["items"][0]["summary"], "REGISTER sip:a SIP/2.0");
    assert_eq!(console.json("/api/v1/uplinks/other/trace?format=json").await["count"], 1);
    let pcap = console.get("/api/v1/uplinks/psb/trace?format=pcap").await;
    assert_eq!(pcap.header("content-disposition"), Some("attachment; filename=\"menshen-psb.pcap\""));
    assert!(pcap.body.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]));
    for body in [serde_json::to_vec(&trace).unwrap(), pcap.body] {
        assert!(memchr::memmem::find(&body, b"geheim").is_none());
    }
}

#[tokio::test]
async fn metrics_come_in_the_form_asked_for() {
    let console = console(Access::Local).await;
    let text = console.get("/metrics").await;
    assert_eq!(text.header("content-type"), Some(crate::metrics::CONTENT_TYPE_TEXT));
    assert!(String::from_utf8(text.body).unwrap().contains("menshen_build_info"));
    let open =
        console.ask("GET", "/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n").await;
    assert_eq!(open.header("content-type"), Some(crate::metrics::CONTENT_TYPE_OPENMETRICS));
    assert!(open.body.ends_with(b"# EOF\n"));
}

#[tokio::test]
async fn ready_names_what_is_missing_and_health_does_not_mind_uplinks() {
    let console = console(Access::Local).await;
    assert_eq!(console.json("/readyz").await["ready"], true);
    console.site.uplink.send_replace(status(false));
    let got = console.get("/readyz").await;
    assert_eq!(got.status, 503);
    let missing = &got.json()["missing"][0];
    assert_eq!(
        (&missing["part"], &missing["name"], &missing["why"]),
        (&"uplink".into(), &"psb".into(), &"403 Forbidden".into())
    );
    assert_eq!(console.json("/healthz").await["status"], "ok");
    assert_eq!(console.json("/api/health").await["status"], "ok");
}

#[tokio::test]
async fn a_dead_sip_loop_and_a_closed_store_are_not_healthy() {
    let console = console(Access::Local).await;
    console.site.sip_stop.cancel();
    console.site.deps.store.close(LIMIT).await.unwrap();
    while console.site.deps.sip.counts().await.is_ok() {}
    let got = console.get("/healthz").await;
    assert_eq!(got.status, 503);
    assert_eq!(got.json(), serde_json::json!({ "status": "failed", "sip": "failed", "store": "failed" }));
    let parts = console.get("/readyz").await.json();
    assert_eq!((&parts["missing"][0]["part"], &parts["missing"][1]["part"]), (&"sip".into(), &"store".into()));
    for path in ["/api/v1/status", "/api/v1/audit"] {
        assert_eq!(console.get(path).await.json()["error"], "unavailable");
    }
}

#[tokio::test]
async fn what_is_not_there_is_404_in_json() {
    let console = console(Access::Local).await;
    for path in [
        "/nothing",
        "/..%2f..%2fetc%2fpasswd",
        "/../../etc/passwd",
        "/console.js/",
        "/assets/index.html",
        "//healthz",
        "/api/v1/uplinks/..%2f..%2fhealthz",
        "/api/v1/uplinks/nobody",
        "/api/v1/uplinks/nobody/trace",
        "/api/v1/uplinks/a%0d%0aX:%20y/trace?format=pcap",
        "/api/v1/uplinks/%ff/catalog",
        "/api/v1/uplinks//trace",
    ] {
        let got = console.get(path).await;
        assert_eq!(got.status, 404, "{path}");
        assert!(got.json()["error"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn wrong_queries_and_too_large_requests_are_told() {
    let console = console(Access::Local).await;
    for path in [
        "/api/v1/audit?limit=x",
        "/api/v1/audit?before=-1",
        "/api/v1/audit?limit=99999999999",
        "/api/v1/channels?state=on",
        "/api/v1/channels?page=2",
        "/api/v1/uplinks/psb/trace?format=exe",
    ] {
        let got = console.get(path).await;
        assert_eq!((got.status, got.json()["error"].as_str()), (400, Some("bad_query")), "{path}");
    }
    let long = console.get(&format!("/api/v1/channels?q={}", "a".repeat(2000))).await;
    assert_eq!(long.status, 414);
    assert_eq!(console.ask("GET", "/", "Content-Length: 1073741824\r\n").await.status, 413);
    assert_eq!(console.json("/api/v1/audit?limit=5000").await["count"], 0);
}

#[tokio::test]
async fn pages_of_the_audit_log_go_back_in_time() {
    let console = console(Access::Local).await;
    for n in 0..5 {
        let id = n.to_string();
        let entry = AuditEntry::new(n, Actor::system("test"), "count", "thing", &id, Outcome::Ok);
        console.site.deps.store.audit(entry).await.unwrap();
    }
    let newest = console.json("/api/v1/audit?limit=2").await;
    let seqs =
        |page: &Value| page["items"].as_array().unwrap().iter().map(|r| r["seq"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(seqs(&newest), [5, 4]);
    assert_eq!(newest["head"]["hash"], newest["items"][0]["this"]);
    assert_eq!(seqs(&console.json("/api/v1/audit?before=3").await), [2, 1]);
}

#[tokio::test]
async fn a_foreign_name_reads_nothing() {
    let console = console(Access::Local).await;
    for path in paths() {
        for host in
            ["Host: evil.example\r\n", "Host: evil.example:28181\r\n", "Host: localhost\r\nHost: evil.example\r\n", ""]
        {
            let got = console.raw(&format!("GET {path} HTTP/1.1\r\n{host}Connection: close\r\n\r\n")).await;
            assert_eq!(got.status, 421, "{path} {host:?}");
            assert_eq!(got.json()["error"], "foreign_host");
        }
    }
    let got = console.raw("GET /healthz HTTP/1.1\r\nHost: LocalHost:1\r\nConnection: close\r\n\r\n").await;
    assert_eq!(got.status, 200);
}

#[tokio::test]
async fn without_a_login_nothing_but_healthz_is_told() {
    let console = console(Access::login("geheim", "t0ken")).await;
    for path in paths().into_iter().chain([
        "/nothing".to_owned(),
        "/api/v1/uplinks/x".to_owned(),
        "/api/v1/devices/41130000581180000001/trace".to_owned(),
    ]) {
        let got = console.get(&path).await;
        if path == "/healthz" {
            assert_eq!(got.status, 200);
            continue;
        }
        assert_eq!((got.status, got.json()["error"].as_str()), (401, Some("unauthorised")), "{path}");
        let scheme = if path == "/metrics" { "Bearer " } else { "Basic " };
        assert!(got.header("www-authenticate").unwrap().starts_with(scheme), "{path}");
        assert_eq!(got.header("x-frame-options"), Some("DENY"));
        let given = if path == "/metrics" { "Authorization: Bearer t0ken\r\n".to_owned() } else { basic("geheim") };
        let status = console.ask("GET", &path, &given).await.status;
        let there = !path.starts_with("/nothing") && !path.ends_with("/x") && !path.contains("/devices/");
        assert_eq!(status, if there { 200 } else { 404 }, "{path}");
    }
    let foreign = format!("GET / HTTP/1.1\r\nHost: gate.example\r\nConnection: close\r\n{}\r\n", basic("geheim"));
    assert_eq!(console.raw(&foreign).await.status, 200, "with a login any name will do");
}

#[tokio::test]
async fn guessing_is_locked_out_and_audited_once() {
    let console = console(Access::login("geheim", "t0ken")).await;
    for _ in 0..4 {
        assert_eq!(console.ask("GET", "/", &basic("x")).await.status, 401);
    }
    for _ in 0..3 {
        let got = console.ask("GET", "/", &basic("x")).await;
        assert_eq!(got.status, 429);
        let wait: u64 = got.header("retry-after").unwrap().parse().unwrap();
        assert!((590..=601).contains(&wait));
    }
    assert_eq!(console.ask("GET", "/", &basic("geheim")).await.status, 429);
    assert_eq!(console.ask("GET", "/metrics", "Authorization: Bearer t0ken\r\n").await.status, 429);
    assert_eq!(console.get("/healthz").await.status, 200);
    let records = console.site.deps.store.audit_page(None, 10).await.unwrap();
    let [one] = &records[..] else { panic!("{records:?}") };
    assert_eq!((one.action.as_str(), one.outcome, one.source.as_str()), ("login", Outcome::Deny, "127.0.0.1"));
}

#[tokio::test]
async fn where_others_are_it_serves_only_with_tls_and_secrets() {
    let site = site().await;
    let pki = test_pki::make();
    let tls = Some(tls::server_config(&pki.server, None).unwrap());
    let (password, token) = (Some(Secret::inline("geheim")), Some(Secret::inline("t0ken")));
    let whole = ConsoleConfig { admin_password: password, metrics_token: token, tls };
    let empty = Some(Secret::inline(""));
    for (cfg, what) in [
        (ConsoleConfig { tls: None, ..whole.clone() }, "tls_cert and tls_key"),
        (ConsoleConfig { admin_password: None, ..whole.clone() }, "admin_password"),
        (ConsoleConfig { admin_password: empty.clone(), ..whole.clone() }, "admin_password"),
        (ConsoleConfig { metrics_token: empty, ..whole.clone() }, "metrics_token"),
    ] {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let listen = listener.local_addr().unwrap();
        let refused = serve(listener, cfg, site.deps.clone(), CancellationToken::new()).await;
        assert_eq!(refused, Err(ConsoleError::Unprotected { listen, what }));
    }

    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let listen = listener.local_addr().unwrap();
    let cancel = CancellationToken::new();
    let mut server = JoinSet::new();
    server.spawn(serve(listener, whole, site.deps.clone(), cancel.clone()));
    let mut http = Http { listen, admin_password: Some(Secret::inline("geheim")), ..Http::default() };
    http.tls_cert = Some(pki.server.cert.clone());
    let (status, body) = client::ask(&http, "/healthz").await.unwrap();
    assert_eq!(status, 200, "{body}");
    let (status, body) = client::ask(&http, "/readyz").await.unwrap();
    assert_eq!((status, body.contains("\"ready\":true")), (200, true));
    http.admin_password = None;
    assert_eq!(client::ask(&http, "/readyz").await.unwrap().0, 401);
    // Somebody who says nothing does not keep others waiting.
    let _silent = TcpStream::connect(("127.0.0.1", listen.port())).await.unwrap();
    assert_eq!(client::ask(&http, "/healthz").await.unwrap().0, 200);
    let address = SocketAddr::from(([127, 0, 0, 1], listen.port()));
    let pinned = |pin| {
        let config = tls::client_config(&tls::ServerTrust::Pins(vec![pin]), None).unwrap();
        client::Target { address, scheme: client::Scheme::Https(config), login: None }
    };
    assert_eq!(client::get(&pinned(pki.server_pin), "/healthz").await.unwrap().0, 200);
    let other = client::get(&pinned(tls::Pin::of(b"another")), "/healthz").await;
    assert!(matches!(other, Err(client::ClientError::Connection { .. })), "{other:?}");
    let plain = client::Target { address, scheme: client::Scheme::Http, login: None };
    assert!(client::get(&plain, "/healthz").await.is_err());
    cancel.cancel();
    let ended = tokio::time::timeout(LIMIT, server.join_next()).await.unwrap();
    assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
}

#[tokio::test]
async fn it_stops_at_once_though_connections_are_open() {
    let mut console = console(Access::Local).await;
    let mut stream = TcpStream::connect(console.at).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(stream.read(&mut [0; 2048]).await.unwrap() > 0);
    let (status, _) =
        client::get(&client::Target { address: console.at, scheme: client::Scheme::Http, login: None }, "/healthz")
            .await
            .unwrap();
    assert_eq!(status, 200);
    console.cancel.cancel();
    let ended = tokio::time::timeout(LIMIT, console.server.join_next()).await.unwrap();
    assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed");
}

#[tokio::test]
async fn a_flood_of_headers_is_refused() {
    let console = console(Access::Local).await;
    let many: String = (0..500).map(|n| format!("X-{n}: y\r\n")).collect();
    let got = console.ask("GET", "/", &many).await;
    assert_eq!(got.status, 431);
}

#[test]
fn the_page_has_no_script_or_style_of_its_own_and_asks_nobody_else() {
    let page = include_str!("assets/index.html");
    for forbidden in ["<script>", "<style", "style=", "onclick=", "http://", "https://"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    let program = include_str!("assets/console.js");
    for forbidden in ["innerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://"] {
        assert!(!program.contains(forbidden), "{forbidden}");
    }
    for part in program.split("$(\"").skip(1).chain(program.split("show(\"").skip(1)) {
        let id = part.split('"').next().unwrap();
        assert!(page.contains(&format!("id=\"{id}\"")), "{id} is on the page");
    }
}
