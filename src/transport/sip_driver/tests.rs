//! The driver over real loopback sockets. Every wait has a limit; nothing sleeps.

use super::*;
use crate::proto::sip::endpoint::{ClientFailure, Counts, EndpointConfig};
use crate::proto::sip::message::{Headers, Request};
use crate::transport::sockopt::BindFault;
use crate::transport::tls::{self, Pin, ServerTrust, test_pki};
use rand::SeedableRng;
use std::future::Future;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PLATFORM: &str = "41130000002000000002";
const GATEWAY: &str = "41130000582000000001";
const ANY: &str = "127.0.0.1:0";

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("in time")
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn listener() -> Listener {
    Listener { local: addr(ANY), udp: true, tcp: true, tls: None }
}

fn config(listeners: Vec<Listener>) -> SipDriverConfig {
    SipDriverConfig {
        listeners,
        tls_clients: Vec::new(),
        limits: Limits::default(),
        endpoint: EndpointConfig::default(),
        hooks: Hooks::default(),
    }
}

/// A running driver; dropping it ends it.
struct Side {
    handle: SipHandle,
    local: SocketAddr,
    cancel: CancellationToken,
    task: JoinSet<Result<(), DriverError>>,
}

impl Side {
    fn new(config: SipDriverConfig) -> Side {
        let (handle, driver, bound) = bind(config, StdRng::seed_from_u64(1)).unwrap();
        let cancel = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(driver.run(cancel.clone()));
        Side { handle, local: bound[0].local, cancel, task }
    }

    fn plain() -> Side {
        Side::new(config(vec![listener()]))
    }

    /// A user whose peer is anything on loopback that calls itself `server_id`.
    async fn user(&self, name: &str, server_id: &str) -> mpsc::Receiver<SipEvent> {
        let route =
            Route { peers: vec![addr(ANY).ip().into()], server_id: Some(server_id.to_string()), ..Route::default() };
        self.handle.register_user(UserId::new(name), vec![route]).await.unwrap()
    }

    fn flow(&self, transport: Transport, peer: &Side) -> Flow {
        Flow { transport, local: self.local, peer: peer.local, conn: None }
    }

    /// Waits until a counter has at least this value. Each turn is a round through the driver's loop.
    async fn counted(&self, count: Count, at_least: u64) {
        within(async {
            while self.handle.counters().value(count) < at_least {
                self.handle.counts().await.unwrap();
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn connections(&self, wanted: u64) {
        within(async {
            while self.handle.counters().connections() != wanted {
                self.handle.counts().await.unwrap();
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn stop(mut self) {
        self.cancel.cancel();
        within(self.task.join_next()).await.unwrap().unwrap().unwrap();
    }
}

fn request(method: &str, from: &str, to: &str, call_id: &str) -> Request {
    let mut headers = Headers::new();
    headers.push("From", format!("<sip:{from}@4113000000>;tag=f1"));
    headers.push("To", format!("<sip:{to}@4113000000>"));
    headers.push("Call-ID", call_id);
    headers.push("CSeq", format!("1 {method}"));
    Request { method: method.to_string(), uri: format!("sip:{to}@4113000000"), headers, body: Bytes::new() }
}

fn response(status: u16) -> Response {
    Response { status, reason: String::new(), headers: Headers::new(), body: Bytes::new() }
}

fn raw(method: &str, n: usize, body: &str) -> String {
    format!(
        "{method} sip:{GATEWAY}@4113000000 SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1:9;rport;branch=z9hG4bK{n}\r\n\
         From: <sip:{PLATFORM}@4113000000>;tag=f\r\nTo: <sip:{GATEWAY}@4113000000>\r\nCall-ID: c{n}\r\n\
         CSeq: 1 {method}\r\nMax-Forwards: 70\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Reads until `ends` whole heads have come.
async fn read_heads(stream: &mut TcpStream, ends: usize) -> String {
    within(async {
        let mut text = String::new();
        let mut buf = [0; 4096];
        while text.matches("\r\n\r\n").count() < ends {
            let n = stream.read(&mut buf).await.unwrap();
            assert!(n > 0, "closed after {text:?}");
            text.push_str(std::str::from_utf8(&buf[..n]).unwrap());
        }
        text
    })
    .await
}

/// True when the peer closes without (more than `answer`) saying anything.
async fn closes(stream: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    // A reset is a close too.
    let _ = within(stream.read_to_end(&mut rest)).await;
    String::from_utf8(rest).unwrap()
}

/// The next event that is not the end of some connection.
async fn next(events: &mut mpsc::Receiver<SipEvent>) -> Option<SipEvent> {
    loop {
        match within(events.recv()).await {
            Some(Event::ConnClosed { .. }) => {}
            other => return other,
        }
    }
}

async fn take_request(events: &mut mpsc::Receiver<SipEvent>) -> (ServerTxId, Request, Flow) {
    match next(events).await {
        Some(Event::Request { tx, request, flow }) => (tx, request, flow),
        other => panic!("a request expected: {other:?}"),
    }
}

async fn take_status(events: &mut mpsc::Receiver<SipEvent>) -> (ClientTxId, u16) {
    match next(events).await {
        Some(Event::Response { tx, response, .. }) => (tx, response.status),
        other => panic!("a response expected: {other:?}"),
    }
}

async fn take_failure(events: &mut mpsc::Receiver<SipEvent>, wanted: ClientTxId) -> ClientFailure {
    match next(events).await {
        Some(Event::ClientFailed { tx, reason }) if tx == wanted => reason,
        other => panic!("a failure expected: {other:?}"),
    }
}

/// REGISTER there, 200 back; then MESSAGE back on the way the REGISTER came.
async fn round_trip(gateway: &Side, platform: &Side, transport: Transport) {
    let mut link = gateway.user("psb", PLATFORM).await;
    let mut registrar = platform.user("registrar", GATEWAY).await;
    let user = UserId::new("psb");
    let flow = gateway.flow(transport, platform);
    let sent =
        gateway.handle.request(&user, flow, None, request("REGISTER", GATEWAY, PLATFORM, "reg-1")).await.unwrap();
    let (tx, register, came) = take_request(&mut registrar).await;
    assert_eq!((register.method.as_str(), came.transport, came.local), ("REGISTER", transport, platform.local));
    assert_eq!(came.conn.is_some(), transport != Transport::Udp);
    platform.handle.respond(tx, response(200)).await.unwrap();
    assert_eq!(take_status(&mut link).await, (sent, 200));

    let back = UserId::new("registrar");
    let query = request("MESSAGE", PLATFORM, GATEWAY, "query-1");
    let asked = platform.handle.request(&back, came, None, query).await.unwrap();
    let (tx, _, _) = take_request(&mut link).await;
    gateway.handle.respond(tx, response(200)).await.unwrap();
    assert_eq!(take_status(&mut registrar).await, (asked, 200));

    // A second request of the gateway's takes the same connection.
    gateway.handle.request(&user, flow, None, request("MESSAGE", GATEWAY, PLATFORM, "ka-1")).await.unwrap();
    let (tx, _, second) = take_request(&mut registrar).await;
    assert_eq!(second, came);
    platform.handle.respond(tx, response(200)).await.unwrap();
    assert_eq!(take_status(&mut link).await.1, 200);
    let opened = u64::from(transport != Transport::Udp);
    assert_eq!(gateway.handle.counters().value(Count::Opened), opened);
    assert_eq!(platform.handle.counters().value(Count::Opened), 0);
    assert_eq!(platform.handle.counters().value(Count::Accepted), opened);
}

#[tokio::test]
async fn round_trip_over_udp() {
    round_trip(&Side::plain(), &Side::plain(), Transport::Udp).await;
}

#[tokio::test]
async fn round_trip_over_tcp_stays_on_one_connection() {
    round_trip(&Side::plain(), &Side::plain(), Transport::Tcp).await;
}

fn tls_listener(pki: &test_pki::TestPki, client_ca: bool) -> Listener {
    let ca = client_ca.then_some(pki.ca.as_path());
    Listener { local: addr(ANY), udp: false, tcp: false, tls: Some(tls::server_config(&pki.server, ca).unwrap()) }
}

fn tls_client(trust: &ServerTrust, identity: Option<&tls::Identity>) -> Option<TlsClient> {
    let config = tls::client_config(trust, identity).unwrap();
    Some(TlsClient { config, server_name: tls::server_name("127.0.0.1").unwrap() })
}

#[tokio::test]
async fn round_trip_over_tls_with_both_certificates() {
    let pki = test_pki::make();
    let (gateway, platform) = (Side::plain(), Side::new(config(vec![tls_listener(&pki, true)])));
    let client = tls_client(&ServerTrust::Ca(pki.ca.clone()), Some(&pki.client));
    gateway.handle.set_tls_client(platform.local, client).await.unwrap();
    round_trip(&gateway, &platform, Transport::Tls).await;
}

#[tokio::test]
async fn tls_that_is_not_trusted_fails_the_request_and_new_settings_mend_it() {
    let pki = test_pki::make();
    let (gateway, platform) = (Side::plain(), Side::new(config(vec![tls_listener(&pki, true)])));
    let mut link = gateway.user("psb", PLATFORM).await;
    let mut registrar = platform.user("registrar", GATEWAY).await;
    let send = async |n: usize| {
        let flow = gateway.flow(Transport::Tls, &platform);
        let register = request("REGISTER", GATEWAY, PLATFORM, &format!("reg-{n}"));
        gateway.handle.request(&UserId::new("psb"), flow, None, register).await.unwrap()
    };
    let pin = |text: &[u8]| ServerTrust::Pins(vec![Pin::of(text)]);
    let right = ServerTrust::Pins(vec![pki.server_pin]);
    // No settings at all, the wrong pin, the right pin without a certificate of ours.
    for (n, client) in
        [None, tls_client(&pin(b"x"), Some(&pki.client)), tls_client(&right, None)].into_iter().enumerate()
    {
        gateway.handle.set_tls_client(platform.local, client).await.unwrap();
        let tx = send(n).await;
        assert_eq!(take_failure(&mut link, tx).await, ClientFailure::Transport);
    }
    gateway.handle.set_tls_client(platform.local, tls_client(&right, Some(&pki.client))).await.unwrap();
    let sent = send(9).await;
    let (tx, _, first) = take_request(&mut registrar).await;
    platform.handle.respond(tx, response(200)).await.unwrap();
    assert_eq!(take_status(&mut link).await, (sent, 200));
    // The same settings anew: another object, so what was open under the old one goes.
    gateway.handle.set_tls_client(platform.local, tls_client(&right, Some(&pki.client))).await.unwrap();
    send(10).await;
    loop {
        match within(registrar.recv()).await {
            Some(Event::ConnClosed { conn }) => assert_eq!(Some(conn), first.conn),
            Some(Event::Request { flow, .. }) => break assert_ne!(flow.conn, first.conn),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_stream_is_cut_into_messages_wherever_the_segments_end() {
    let side = Side::plain();
    let mut events = side.user("psb", PLATFORM).await;
    let mut peer = TcpStream::connect(side.local).await.unwrap();
    peer.set_nodelay(true).unwrap();
    for byte in raw("MESSAGE", 1, "<a/>").as_bytes() {
        peer.write_all(&[*byte]).await.unwrap();
    }
    let (tx, first, _) = take_request(&mut events).await;
    assert_eq!(&first.body[..], b"<a/>");
    side.handle.respond(tx, response(200)).await.unwrap();
    assert!(read_heads(&mut peer, 1).await.starts_with("SIP/2.0 200 OK\r\n"));

    // Two messages and a ping in one segment, the second message in GB2312.
    let mut both = raw("MESSAGE", 2, "").into_bytes();
    both.extend_from_slice(raw("MESSAGE", 3, "12").replace("12", "").as_bytes());
    both.extend_from_slice(&[0xb6, 0xab]);
    both.extend_from_slice(b"\r\n\r\n");
    peer.write_all(&both).await.unwrap();
    let (tx2, _, _) = take_request(&mut events).await;
    let (tx3, third, _) = take_request(&mut events).await;
    assert_eq!(&third.body[..], [0xb6, 0xab]);
    side.handle.respond(tx2, response(200)).await.unwrap();
    side.handle.respond(tx3, response(200)).await.unwrap();
    let mut text = String::new();
    while text.matches("SIP/2.0 200 OK\r\n").count() < 2 || !text.contains("\r\n\r\n\r\n") && !text.starts_with("\r\n")
    {
        let mut buf = [0; 4096];
        let n = within(peer.read(&mut buf)).await.unwrap();
        assert!(n > 0);
        text.push_str(std::str::from_utf8(&buf[..n]).unwrap());
    }
}

#[tokio::test]
async fn what_is_not_sip_closes_its_own_connection_only() {
    let reasons: Arc<Mutex<Vec<(Transport, &'static str)>>> = Arc::default();
    let seen = reasons.clone();
    let mut cfg = config(vec![listener()]);
    cfg.hooks.on_malformed = Some(Arc::new(move |transport, reason| seen.lock().unwrap().push((transport, reason))));
    let side = Side::new(cfg);
    let mut events = side.user("psb", PLATFORM).await;
    let mut good = TcpStream::connect(side.local).await.unwrap();

    let rtp: &[u8] = &[0x05, 0x80, 0x80, 0x60, 0, 1, 0, 0, 0, 0, 0x0b, 0xeb, 0xc2, 0x7b];
    let tls_hello: &[u8] = &[0x16, 0x03, 0x01, 0x00, 0xa5, 0x01, 0x00, 0x00, 0xa1, 0x03, 0x03];
    let huge = raw("MESSAGE", 1, "").replace("Content-Length: 0", "Content-Length: 4294967295");
    for bytes in [rtp, tls_hello, b"\xff\xfe\x00garbage", huge.as_bytes()] {
        let mut bad = TcpStream::connect(side.local).await.unwrap();
        bad.write_all(bytes).await.unwrap();
        let answer = closes(&mut bad).await;
        assert!(answer.is_empty() || answer.starts_with("SIP/2.0 4"), "{answer}");
        // Over UDP the same bytes are only dropped.
        let udp = tokio::net::UdpSocket::bind(ANY).await.unwrap();
        udp.send_to(bytes, side.local).await.unwrap();
    }
    side.counted(Count::Framing, 4).await;
    side.counted(Count::Malformed, 8).await;
    side.connections(1).await;
    let reasons = reasons.lock().unwrap().clone();
    assert!(reasons.contains(&(Transport::Tcp, "not_sip")), "{reasons:?}");

    good.write_all(raw("MESSAGE", 1, "").as_bytes()).await.unwrap();
    take_request(&mut events).await;
}

#[tokio::test]
async fn half_messages_do_not_stay() {
    let mut cfg = config(vec![listener()]);
    cfg.limits.message_time = Duration::from_millis(100);
    cfg.limits.idle_close = Duration::from_millis(300);
    let side = Side::new(cfg);
    let mut slow = TcpStream::connect(side.local).await.unwrap();
    slow.write_all(b"MESSAGE sip:x SIP/2.0\r\n").await.unwrap();
    assert_eq!(closes(&mut slow).await, "");
    assert_eq!(side.handle.counters().value(Count::MessageTimeout), 1);

    // A lone CRLF is a sign of life and no half message.
    let mut quiet = TcpStream::connect(side.local).await.unwrap();
    quiet.write_all(b"\r\n").await.unwrap();
    assert_eq!(closes(&mut quiet).await, "");
    assert_eq!(side.handle.counters().value(Count::MessageTimeout), 1);
    assert_eq!(side.handle.counters().value(Count::Idle), 1);

    let mut gone = TcpStream::connect(side.local).await.unwrap();
    gone.write_all(b"MESSAGE sip:x SIP/2.0\r\n").await.unwrap();
    drop(gone);
    side.counted(Count::Accepted, 3).await;
    side.connections(0).await;
}

#[tokio::test]
async fn a_tls_handshake_has_its_limit() {
    let pki = test_pki::make();
    let mut cfg = config(vec![tls_listener(&pki, false)]);
    cfg.limits.handshake_time = Duration::from_millis(100);
    let side = Side::new(cfg);
    let mut mute = TcpStream::connect(side.local).await.unwrap();
    assert_eq!(closes(&mut mute).await, "");
    side.counted(Count::HandshakeFailed, 1).await;
}

#[tokio::test]
async fn connections_are_counted_for_each_source_and_in_all() {
    let mut cfg = config(vec![listener()]);
    cfg.limits.connections = 3;
    cfg.limits.connections_per_ip = 2;
    let side = Side::new(cfg);
    let from = async |ip: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((ip, 0))).unwrap();
        let mut stream = socket.connect(side.local).await.unwrap();
        // An answer shows that the connection was let in.
        let _ = stream.write_all(raw("MESSAGE", 1, "").as_bytes()).await;
        let mut buf = [0; 12];
        let let_in = within(stream.read_exact(&mut buf)).await.is_ok();
        (let_in, stream)
    };
    let first = from([127, 0, 0, 2]).await;
    let second = from([127, 0, 0, 2]).await;
    assert_eq!((first.0, second.0), (true, true));
    assert!(!from([127, 0, 0, 2]).await.0, "two for each address");
    let third = from([127, 0, 0, 3]).await;
    assert!(third.0);
    assert!(!from([127, 0, 0, 4]).await.0, "three in all");
    let route = Route { peers: vec![addr("127.0.0.5:0").ip().into()], ..Route::default() };
    let mut events = side.handle.register_user(UserId::new("psb"), vec![route]).await.unwrap();
    let (trusted, request) = tokio::join!(from([127, 0, 0, 5]), async {
        let (tx, request, _) = take_request(&mut events).await;
        side.handle.respond(tx, response(200)).await.unwrap();
        request
    });
    assert!(trusted.0, "a configured peer is let in all the same");
    assert_eq!(request.method, "MESSAGE");
    drop(first);
    drop(second);
    drop(third);
    side.connections(1).await;
    assert!(from([127, 0, 0, 2]).await.0, "room again");
}

#[tokio::test]
async fn requests_are_limited_for_each_source_and_responses_are_not() {
    let mut cfg = config(vec![listener()]);
    cfg.limits.request_rate = RateLimit { per_second: 1, burst: 2 };
    cfg.limits.trusted_factor = 10;
    let side = Side::new(cfg);
    let udp = tokio::net::UdpSocket::bind("127.0.0.2:0").await.unwrap();
    for n in 0..10 {
        udp.send_to(raw("MESSAGE", n, "").as_bytes(), side.local).await.unwrap();
        udp.send_to(b"SIP/2.0 200 OK\r\n\r\n", side.local).await.unwrap();
    }
    side.counted(Count::RateLimited, 8).await;
    side.counted(Count::Malformed, 10).await;
    assert_eq!(side.handle.counters().value(Count::Stranger), 2);

    let route = Route { peers: vec![addr("127.0.0.2:0").ip().into()], ..Route::default() };
    let mut events = side.handle.register_user(UserId::new("psb"), vec![route]).await.unwrap();
    for n in 0..25 {
        udp.send_to(raw("MESSAGE", 100 + n, "").as_bytes(), side.local).await.unwrap();
    }
    for _ in 0..20 {
        take_request(&mut events).await;
    }
    side.counted(Count::RateLimited, 13).await;
}

#[tokio::test]
async fn strangers_get_one_stateless_answer() {
    let side = Side::plain();
    let _psb = side.handle.register_user(
        UserId::new("psb"),
        vec![Route { peers: vec![addr("127.0.0.9:5060").into()], ..Route::default() }],
    );
    let udp = tokio::net::UdpSocket::bind(ANY).await.unwrap();
    let ask = async |text: String| {
        udp.send_to(text.as_bytes(), side.local).await.unwrap();
        let mut buf = vec![0; 2000];
        let n = within(udp.recv(&mut buf)).await.unwrap();
        String::from_utf8(buf[..n].to_vec()).unwrap()
    };
    let first = ask(raw("INVITE", 1, "")).await;
    assert!(first.starts_with("SIP/2.0 403 Not a Configured Peer\r\n"), "{first}");
    assert!(first.contains(&format!("rport={}", udp.local_addr().unwrap().port())), "{first}");
    assert_eq!(ask(raw("INVITE", 1, "")).await, first, "a repetition hears the same");
    assert!(ask(raw("FOO", 2, "")).await.starts_with("SIP/2.0 403 "), "no hint at what we know");
    let options = ask(raw("OPTIONS", 3, "")).await;
    assert!(options.starts_with("SIP/2.0 200 OK\r\n") && options.contains("\r\nAllow: INVITE, "), "{options}");
    for n in 0..20 {
        udp.send_to(raw("OPTIONS", 10 + n, "").as_bytes(), side.local).await.unwrap();
    }
    side.counted(Count::StrangerMuted, 16).await;
    udp.send_to(raw("ACK", 1, "").as_bytes(), side.local).await.unwrap();
    side.counted(Count::Stranger, 25).await;
    assert_eq!(side.handle.counts().await.unwrap(), Counts::default(), "nothing is left behind");
}

#[tokio::test]
async fn bad_requests_of_a_peer_are_answered_before_the_user_sees_them() {
    let side = Side::plain();
    let mut events = side.user("psb", PLATFORM).await;
    let mut peer = TcpStream::connect(side.local).await.unwrap();
    let cases = [
        (raw("FOO", 1, ""), "SIP/2.0 501 "),
        (raw("PUBLISH", 2, ""), "SIP/2.0 405 "),
        (raw("MESSAGE", 3, "").replace("Max-Forwards", "Require: 100rel\r\nMax-Forwards"), "SIP/2.0 420 "),
        (raw("MESSAGE", 4, "").replace("CSeq: 1 MESSAGE", "CSeq: 1 INFO"), "SIP/2.0 400 "),
    ];
    for (text, status) in cases {
        peer.write_all(text.as_bytes()).await.unwrap();
        let answer = read_heads(&mut peer, 1).await;
        assert!(answer.starts_with(status), "{answer}");
    }
    peer.write_all(raw("MESSAGE", 5, "").as_bytes()).await.unwrap();
    assert_eq!(take_request(&mut events).await.1.headers.call_id(), Some("c5"));
}

#[tokio::test]
async fn a_user_that_does_not_keep_up_costs_503() {
    let side = Side::plain();
    let mut events = side.user("psb", PLATFORM).await;
    let mut peer = TcpStream::connect(side.local).await.unwrap();
    const MORE: usize = 3;
    for n in 0..EVENT_QUEUE + MORE {
        peer.write_all(raw("MESSAGE", n, "").as_bytes()).await.unwrap();
    }
    let answers = read_heads(&mut peer, MORE).await;
    assert_eq!(answers.matches("SIP/2.0 503 ").count(), MORE);
    assert_eq!(answers.matches("\r\nRetry-After: 5\r\n").count(), MORE);
    for _ in 0..EVENT_QUEUE {
        take_request(&mut events).await;
    }
    peer.write_all(raw("MESSAGE", 9999, "").as_bytes()).await.unwrap();
    take_request(&mut events).await;
    // A user that has gone is no better.
    drop(events);
    peer.write_all(raw("MESSAGE", 10_000, "").as_bytes()).await.unwrap();
    assert!(read_heads(&mut peer, 1).await.starts_with("SIP/2.0 503 "));
}

#[tokio::test]
async fn nobody_listening_fails_at_once() {
    let side = Side::plain();
    let mut link = side.user("psb", PLATFORM).await;
    let free = std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let flow = Flow { transport: Transport::Tcp, local: side.local, peer: free, conn: None };
    let user = UserId::new("psb");
    let tx = side.handle.request(&user, flow, None, request("REGISTER", GATEWAY, PLATFORM, "r")).await.unwrap();
    assert_eq!(take_failure(&mut link, tx).await, ClientFailure::Transport);
    assert_eq!(side.handle.counters().value(Count::OpenFailed), 1);
    side.connections(0).await;
    let other = UserId::new("nobody");
    assert_eq!(
        side.handle.request(&other, flow, None, request("REGISTER", GATEWAY, PLATFORM, "r")).await,
        Err(HandleError::UnknownUser(other))
    );
}

#[tokio::test]
async fn a_connection_lost_before_the_answer_fails_the_request() {
    let side = Side::plain();
    let mut link = side.user("psb", PLATFORM).await;
    let platform = tokio::net::TcpListener::bind(ANY).await.unwrap();
    let flow = Flow { transport: Transport::Tcp, local: side.local, peer: platform.local_addr().unwrap(), conn: None };
    let user = UserId::new("psb");
    let tx = side.handle.request(&user, flow, None, request("REGISTER", GATEWAY, PLATFORM, "r")).await.unwrap();
    let (mut stream, _) = within(platform.accept()).await.unwrap();
    read_heads(&mut stream, 1).await;
    drop(stream);
    let failed = Event::ClientFailed { tx, reason: ClientFailure::Transport };
    assert_eq!(within(link.recv()).await, Some(failed), "the failure first");
    assert!(matches!(within(link.recv()).await, Some(Event::ConnClosed { .. })));
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_let_go_and_others_are_not_touched() {
    let mut cfg = config(vec![listener()]);
    cfg.limits.write_queue = 256 << 10;
    let side = Side::new(cfg);
    let mut link = side.user("psb", PLATFORM).await;
    let deaf = tokio::net::TcpListener::bind(ANY).await.unwrap();
    let flow = Flow { transport: Transport::Tcp, local: side.local, peer: deaf.local_addr().unwrap(), conn: None };
    let user = UserId::new("psb");
    within(async {
        for n in 0.. {
            let mut message = request("MESSAGE", GATEWAY, PLATFORM, &n.to_string());
            message.body = Bytes::from(vec![b'x'; 60_000]);
            side.handle.request(&user, flow, None, message).await.unwrap();
            if side.handle.counters().value(Count::SlowPeer) > 0 {
                break;
            }
        }
    })
    .await;
    side.connections(0).await;
    assert!(matches!(within(link.recv()).await, Some(Event::ClientFailed { reason: ClientFailure::Transport, .. })));
}

#[tokio::test]
async fn listeners_come_and_go_while_running() {
    let side = Side::plain();
    let mut events = side.user("psb", PLATFORM).await;
    let added = side.handle.add_listener(listener()).await.unwrap();
    assert!(added.udp && added.tcp && !added.tls && added.local != side.local);
    let mut peer = TcpStream::connect(added.local).await.unwrap();
    peer.write_all(raw("MESSAGE", 1, "").as_bytes()).await.unwrap();
    let (_, _, flow) = take_request(&mut events).await;
    assert_eq!(flow.local, added.local);

    let again = side.handle.add_listener(Listener { local: added.local, ..listener() }).await;
    assert!(matches!(again, Err(HandleError::Bind(BindError { fault: BindFault::InUse, .. }))), "{again:?}");

    side.handle.remove_listener(added.local).await.unwrap();
    closes(&mut peer).await;
    assert!(matches!(within(events.recv()).await, Some(Event::ConnClosed { conn }) if Some(conn) == flow.conn));
    assert_eq!(side.handle.remove_listener(added.local).await, Err(HandleError::UnknownListener(added.local)));
    // The tasks end a moment after the call; then the address is free.
    within(async {
        while side.handle.add_listener(Listener { local: added.local, ..listener() }).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[test]
fn an_address_that_cannot_be_had_is_named() {
    let taken = std::net::UdpSocket::bind(ANY).unwrap();
    let local = taken.local_addr().unwrap();
    let error = bind(config(vec![Listener { local, ..listener() }]), StdRng::seed_from_u64(1)).unwrap_err();
    assert!(error.to_string().contains(&format!("port {} is in use", local.port())), "{error}");
    let nothing = Listener { udp: false, tcp: false, ..listener() };
    let error = bind(config(vec![nothing]), StdRng::seed_from_u64(1)).unwrap_err();
    assert_eq!(error.fault, BindFault::Contradiction);
}

#[tokio::test]
async fn stopping_lets_answers_leave() {
    let side = Side::plain();
    let mut events = side.user("psb", PLATFORM).await;
    let mut peer = TcpStream::connect(side.local).await.unwrap();
    peer.write_all(raw("MESSAGE", 1, "").as_bytes()).await.unwrap();
    let (tx, _, _) = take_request(&mut events).await;
    side.handle.respond(tx, response(200)).await.unwrap();
    let handle = side.handle.clone();
    side.stop().await;
    assert!(closes(&mut peer).await.starts_with("SIP/2.0 200 OK\r\n"));
    assert_eq!(handle.counts().await, Err(HandleError::Stopped));
    assert_eq!(within(events.recv()).await, None);
}

#[tokio::test]
async fn messages_are_told_to_the_hooks_with_their_user() {
    let seen: Arc<Mutex<Vec<MessageSeen>>> = Arc::default();
    let traced: Arc<Mutex<Vec<TraceRecord>>> = Arc::default();
    let mut cfg = config(vec![listener()]);
    let (s, t) = (seen.clone(), traced.clone());
    cfg.hooks.on_message = Some(Arc::new(move |m| s.lock().unwrap().push(m.clone())));
    cfg.hooks.trace = Some(Arc::new(move |r| t.lock().unwrap().push(r.clone())));
    let side = Side::new(cfg);
    let mut events = side.user("psb", PLATFORM).await;
    let mut peer = TcpStream::connect(side.local).await.unwrap();
    let text = raw("MESSAGE", 1, "<a/>");
    peer.write_all(text.as_bytes()).await.unwrap();
    let (tx, _, flow) = take_request(&mut events).await;
    side.handle.respond(tx, response(200)).await.unwrap();
    let answer = read_heads(&mut peer, 1).await;
    let seen = seen.lock().unwrap().clone();
    let expected = |direction, kind, size| MessageSeen {
        direction,
        transport: Transport::Tcp,
        user: Some(UserId::new("psb")),
        kind,
        method: "MESSAGE",
        size,
    };
    assert_eq!(
        seen,
        [
            expected(Direction::In, MessageKind::Request, text.len()),
            expected(Direction::Out, MessageKind::Response(200), answer.len()),
        ]
    );
    let traced = traced.lock().unwrap().clone();
    assert_eq!(traced.len(), 2);
    assert_eq!((&traced[0].bytes[..], traced[0].flow), (text.as_bytes(), flow));
    assert_eq!(&traced[1].bytes[..], answer.as_bytes());
}

#[tokio::test]
async fn an_invite_lives_through_ringing_cancel_and_answer() {
    let (gateway, platform) = (Side::plain(), Side::plain());
    let mut link = gateway.user("psb", PLATFORM).await;
    let mut upper = platform.user("gateway", GATEWAY).await;
    let user = UserId::new("gateway");
    let flow = platform.flow(Transport::Udp, &gateway);
    let invite = |call: &str| request("INVITE", PLATFORM, GATEWAY, call);

    let first = platform.handle.request(&user, flow, None, invite("call-1")).await.unwrap();
    let (tx, _, _) = take_request(&mut link).await;
    assert_eq!(take_status(&mut upper).await, (first, 100));
    platform.handle.cancel(first).await.unwrap();
    assert!(matches!(within(link.recv()).await, Some(Event::Cancelled { tx: cancelled, .. }) if cancelled == tx));
    gateway.handle.respond(tx, response(487)).await.unwrap();
    assert_eq!(take_status(&mut upper).await, (first, 487));

    let second = platform.handle.request(&user, flow, None, invite("call-2")).await.unwrap();
    let (tx, asked, _) = take_request(&mut link).await;
    gateway.handle.respond(tx, response(200)).await.unwrap();
    assert_eq!(take_status(&mut upper).await, (second, 100));
    let Some(Event::Response { response: ok, .. }) = within(upper.recv()).await else { panic!("200 expected") };
    let mut ack = request("ACK", PLATFORM, GATEWAY, "call-2");
    ack.headers.set("To", ok.headers.get("To").unwrap());
    platform.handle.ack(&user, flow, None, ack).await.unwrap();
    assert!(matches!(within(link.recv()).await, Some(Event::Ack { .. })));

    // In the dialog another code in From does no harm: the Call-ID says whose it is.
    let _other = gateway.user("county", "41130000002000000009").await;
    let mut bye = request("BYE", "41130000002000000009", GATEWAY, "call-2");
    bye.headers.set("To", ok.headers.get("To").unwrap());
    bye.headers.set("CSeq", "2 BYE");
    platform.handle.request(&user, flow, None, bye).await.unwrap();
    let (_, bye, _) = take_request(&mut link).await;
    assert_eq!((bye.method.as_str(), bye.headers.call_id()), ("BYE", asked.headers.call_id()));
}
