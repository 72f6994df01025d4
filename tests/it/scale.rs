//! Ten thousand devices, and a recorder of ten thousand channels: ignored tests that measure, for a release build.
//!
//! `cargo test --release --test it -- --ignored --nocapture scale`. The devices are a task each with an address of its own
//! out of 127.0.0.0/8; they answer the catalogue query with one channel and send keepalives.

use crate::support::*;
use menshen::proto::gb28181::DeviceId;
use menshen::proto::sip::digest::{DigestClient, pick_challenge};
use menshen::proto::sip::message::Message;
use menshen::proto::sip::parse::parse_datagram;
use menshen::sim::device::{SimChannel, SimDevice, SimDeviceConfig};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

const DEVICES: usize = 10_000;
/// Devices that share a socket: a hundred behind each address.
const SHARED: usize = 100;
const PREFIX: &str = "4113000058111";
const SECRET: &str = "Device-1";

/// Resident bytes, and processor time in milliseconds, of a process.
fn used(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    let rss = kib.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    (rss, ticks * 10)
}

#[derive(Default)]
struct Swarm {
    registered: AtomicUsize,
    refused: AtomicUsize,
    catalogs: AtomicUsize,
    alive: AtomicUsize,
    rejected: AtomicUsize,
    changed: Notify,
}

impl Swarm {
    async fn until(&self, what: &str, limit: Duration, done: impl Fn(&Swarm) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if done(self) {
                    return;
                }
                changed.await;
            }
        };
        let timely = tokio::time::timeout(limit, wait).await;
        assert!(
            timely.is_ok(),
            "{what}: {} registered, {} refused, {} catalogues, {} keepalives, {} rejected",
            self.registered.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
            self.catalogs.load(Ordering::Relaxed),
            self.alive.load(Ordering::Relaxed),
            self.rejected.load(Ordering::Relaxed)
        );
    }
    fn count(&self, counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_waiters();
    }
}

fn device_id(n: usize) -> String {
    format!("{PREFIX}0{:06}", n + 1)
}

fn head(
    (method, n): (&str, u64),
    id: &str,
    to: &str,
    (local, server): (SocketAddr, SocketAddr),
    more: &str,
    body: &str,
) -> String {
    format!(
        "{method} sip:{LOCAL}@{server} SIP/2.0\r\nVia: SIP/2.0/UDP {local};rport;branch=z9hG4bK{id}{n}\r\n\
         From: <sip:{id}@4113000058>;tag=t{n}\r\nTo: <sip:{to}@4113000058>\r\nCall-ID: {id}-{n}\r\nCSeq: {n} {method}\r\n\
         Contact: <sip:{id}@{local}>\r\nMax-Forwards: 70\r\n{more}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Asks until it is answered.
async fn listens(server: SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let local = socket.local_addr().unwrap();
    let mut buffer = [0; 2048];
    let asking = async {
        for n in 1.. {
            let text = head(("OPTIONS", n), "1", LOCAL, (local, server), "", "");
            let _ = socket.send_to(text.as_bytes(), server).await;
            let answer = tokio::time::timeout(Duration::from_millis(50), socket.recv_from(&mut buffer)).await;
            if matches!(answer, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, asking).await.expect("it listens");
}

/// The devices behind one socket. `orders`: keepalives wanted of all.
async fn serve(
    first: usize,
    socket: UdpSocket,
    server: SocketAddr,
    swarm: Arc<Swarm>,
    mut orders: tokio::sync::watch::Receiver<usize>,
    register: bool,
) {
    let local = socket.local_addr().unwrap();
    let mut buffer = vec![0u8; 65_536];
    let mut sequence = 1_000u64;
    // A few at a time: devices repeat what is lost, these do not.
    let mut waiting: Vec<usize> = if register { (first..first + SHARED).rev().collect() } else { Vec::new() };
    let register = async |n: usize| {
        let id = device_id(n);
        let text = head(("REGISTER", 1), &id, &id, (local, server), "Expires: 86400\r\n", "");
        socket.send_to(text.as_bytes(), server).await.unwrap();
    };
    if let Some(n) = waiting.pop() {
        register(n).await;
    }
    let mut beats: Vec<usize> = Vec::new();
    let beat = async |n: usize, sequence: u64| {
        let id = device_id(n);
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<Notify><CmdType>Keepalive</CmdType><SN>1</SN><DeviceID>{id}</DeviceID>\
             <Status>OK</Status></Notify>"
        );
        let kind = "Content-Type: Application/MANSCDP+xml\r\n";
        let text = head(("MESSAGE", sequence), &id, LOCAL, (local, server), kind, &body);
        socket.send_to(text.as_bytes(), server).await.unwrap();
    };
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            changed = orders.changed() => {
                if changed.is_err() {
                    return;
                }
                beats = (first..first + SHARED).rev().collect();
                if let Some(n) = beats.pop() {
                    sequence += 1;
                    beat(n, sequence).await;
                }
                continue;
            }
        };
        let (length, from) = received.unwrap();
        match parse_datagram(&buffer[..length]) {
            Ok(Message::Response(response)) => {
                let cseq = response.headers.cseq().unwrap();
                let id = response.headers.from_user().unwrap();
                match (cseq.method.as_str(), response.status) {
                    ("REGISTER", 401) => {
                        let challenge = pick_challenge(response.headers.get_all("WWW-Authenticate"), false).unwrap();
                        let uri = format!("sip:{LOCAL}@{server}");
                        let answer = DigestClient::new(challenge).answer("REGISTER", &uri, &id, SECRET, "abcd");
                        let more = format!("Authorization: {answer}\r\nExpires: 86400\r\n");
                        let text = head(("REGISTER", u64::from(cseq.seq) + 1), &id, &id, (local, server), &more, "");
                        socket.send_to(text.as_bytes(), server).await.unwrap();
                    }
                    ("REGISTER", 200) => {
                        swarm.count(&swarm.registered);
                        if let Some(n) = waiting.pop() {
                            register(n).await;
                        }
                    }
                    ("REGISTER", 503) => {
                        // Too fast: once more.
                        let text = head(
                            ("REGISTER", u64::from(cseq.seq) + 10),
                            &id,
                            &id,
                            (local, server),
                            "Expires: 86400\r\n",
                            "",
                        );
                        socket.send_to(text.as_bytes(), server).await.unwrap();
                    }
                    ("REGISTER", _) => swarm.count(&swarm.refused),
                    ("MESSAGE", 200) if (1_000..1_000_000).contains(&cseq.seq) => {
                        swarm.count(&swarm.alive);
                        if let Some(n) = beats.pop() {
                            sequence += 1;
                            beat(n, sequence).await;
                        }
                    }
                    ("MESSAGE", 200) => {}
                    (method, status) => {
                        if swarm.rejected.fetch_add(1, Ordering::Relaxed) == 0 {
                            eprintln!("{method} of {id} was answered {status} {}", response.reason);
                        }
                        swarm.changed.notify_waiters();
                    }
                }
            }
            Ok(Message::Request(request)) => {
                let headers = &request.headers;
                let all = |name| headers.get_all(name).map(|v| format!("{name}: {v}\r\n")).collect::<String>();
                let answer = |status: &str| {
                    format!(
                        "SIP/2.0 {status}\r\n{}{}{}{}{}Content-Length: 0\r\n\r\n",
                        all("Via"),
                        all("From"),
                        all("To").replace("\r\n", ";tag=d\r\n"),
                        all("Call-ID"),
                        all("CSeq")
                    )
                };
                if request.method != "MESSAGE" {
                    socket.send_to(answer("489 Bad Event").as_bytes(), from).await.unwrap();
                    continue;
                }
                socket.send_to(answer("200 OK").as_bytes(), from).await.unwrap();
                let body = String::from_utf8_lossy(&request.body).into_owned();
                let between =
                    |a: &str, b: &str| body.split(a).nth(1).and_then(|r| r.split(b).next()).unwrap_or("").to_owned();
                let (sn, id) = (between("<SN>", "</SN>"), between("<DeviceID>", "</DeviceID>"));
                let reply = match between("<CmdType>", "</CmdType>").as_str() {
                    "Catalog" => format!(
                        "<?xml version=\"1.0\"?>\r\n<Response><CmdType>Catalog</CmdType><SN>{sn}</SN>\
                        <DeviceID>{id}</DeviceID><SumNum>1</SumNum><DeviceList Num=\"1\"><Item><DeviceID>{}</DeviceID>\
                        <Name>C</Name><Manufacturer>M</Manufacturer><Model>M</Model><Parental>0</Parental>\
                        <ParentID>{id}</ParentID><Status>ON</Status></Item></DeviceList></Response>",
                        id.replacen("111", "132", 1)
                    ),
                    "DeviceInfo" => format!(
                        "<?xml version=\"1.0\"?>\r\n<Response><CmdType>DeviceInfo</CmdType><SN>{sn}</SN>\
                        <DeviceID>{id}</DeviceID><Result>OK</Result><Manufacturer>M</Manufacturer><Model>M</Model></Response>"
                    ),
                    _ => continue,
                };
                sequence += 1;
                let text = head(
                    ("MESSAGE", 1_000_000 + sequence),
                    &id,
                    LOCAL,
                    (local, server),
                    "Content-Type: Application/MANSCDP+xml\r\n",
                    &reply,
                );
                socket.send_to(text.as_bytes(), from).await.unwrap();
                if reply.contains("Catalog") {
                    swarm.count(&swarm.catalogs);
                }
            }
            Err(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: ten thousand devices, a minute of keepalives, a restart"]
#[allow(clippy::disallowed_methods, reason = "it measures real time")]
async fn scale_ten_thousand_devices() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("menshen.toml");
    let server: SocketAddr = "127.0.0.1:18060".parse().unwrap();
    std::fs::write(&file, format!(
        "[gateway]\nid = \"{LOCAL}\"\nname = \"大院\"\ndata_dir = \"{}\"\n[sip]\nlisten = \"{server}\"\n[http]\n\
         listen = \"127.0.0.1:0\"\n[log]\nlevel = \"warn\"\n[[device]]\nid = \"{PREFIX}*\"\nmax = {DEVICES}\npassword = \"{SECRET}\"\n\
         catalog_subscribe = false\nalarm_subscribe = false\n", folder.path().display())).unwrap();
    let mut daemon = Daemon::start(&file);
    listens(server).await;
    let base = used(daemon.pid()).0;
    let swarm = Arc::new(Swarm::default());
    let (orders, reader) = tokio::sync::watch::channel(0);
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..DEVICES / SHARED {
        let socket = UdpSocket::bind((
            "127.0.1.1"
                .parse::<std::net::Ipv4Addr>()
                .map(|ip| std::net::Ipv4Addr::from(u32::from(ip) + n as u32))
                .unwrap(),
            0,
        ))
        .await
        .unwrap();
        tasks.spawn(serve(n * SHARED, socket, server, swarm.clone(), reader.clone(), true));
    }
    swarm.until("registered", Duration::from_secs(120), |s| s.registered.load(Ordering::Relaxed) >= DEVICES).await;
    let registered = began.elapsed();
    swarm.until("catalogues", Duration::from_secs(300), |s| s.catalogs.load(Ordering::Relaxed) >= DEVICES).await;
    let listed = began.elapsed();
    let (_, before) = used(daemon.pid());
    // A minute has 167 keepalives a second; here a hundred are under way at any time, once round: the answers of half a
    // minute are kept (RFC 3261 17.2.2), 50,000 at most, and the registrations are among them.
    let keepalives = Instant::now();
    orders.send_replace(1);
    let all = |s: &Swarm| s.alive.load(Ordering::Relaxed) + s.rejected.load(Ordering::Relaxed) >= DEVICES;
    swarm.until("keepalives", Duration::from_secs(60), all).await;
    let (rss, after) = used(daemon.pid());
    let answered = swarm.alive.load(Ordering::Relaxed);
    eprintln!(
        "registered {DEVICES} in {registered:?} ({:.0}/s), all catalogues after {listed:?}; RSS {} KiB base, {} KiB held: {:.1} KiB a device; \
         {answered} keepalives in {:?}: {:.1} us CPU each, {:.2} % of a core at 167/s",
        DEVICES as f64 / registered.as_secs_f64(),
        base / 1024,
        rss / 1024,
        (rss - base) as f64 / 1024.0 / DEVICES as f64,
        keepalives.elapsed(),
        (after - before) as f64 * 1000.0 / answered as f64,
        (after - before) as f64 / answered as f64 * 167.0 / 10.0
    );
    assert_eq!(answered, DEVICES);
    // A restart: what is bound answers its keepalives as if nothing had been.
    daemon.signal("-KILL");
    daemon.exited(SOON).await;
    let again = Instant::now();
    let daemon = Daemon::start(&file);
    listens(server).await;
    let serving = again.elapsed();
    orders.send_replace(2);
    swarm
        .until("back", Duration::from_secs(60), |s| {
            s.alive.load(Ordering::Relaxed) + s.rejected.load(Ordering::Relaxed) >= 2 * DEVICES
        })
        .await;
    let back = swarm.alive.load(Ordering::Relaxed) - answered;
    eprintln!(
        "restarted after kill -9: listens after {serving:?}; {back} of {DEVICES} back after {:?} by their next keepalive",
        again.elapsed()
    );
    assert!(back >= DEVICES * 99 / 100, "{back}");
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: a recorder of ten thousand channels"]
#[allow(clippy::disallowed_methods, reason = "it measures real time")]
async fn scale_a_recorder_of_ten_thousand_channels() {
    let platform = platform().await;
    let nvr = "41130000581180000001";
    let text =
        [base(28), uplink("psb", &platform, ""), format!("[[device]]\nid = \"{nvr}\"\npassword = \"{SECRET}\"\n")]
            .concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let server = gateway.listeners()[0].local;
    let id_of = |text: &str| DeviceId::parse(text).unwrap();
    let config = SimDeviceConfig {
        channels: SimChannel::numbered(&id_of(nvr), 10_000).unwrap(),
        items_per_message: 4,
        ..SimDeviceConfig::on_loopback(id_of(nvr), SECRET, id_of(LOCAL), server)
    };
    let began = Instant::now();
    let _device = SimDevice::start(config).await.unwrap();
    let mut directory = gateway.directory().watch();
    let all = directory.wait_for(|d| d.channels.values().filter(|c| c.state.online == Some(true)).count() == 10_000);
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("every channel is there").unwrap();
    let listed = began.elapsed();
    let asked = Instant::now();
    let all = handle.query_catalog(&id_of(LOCAL), Duration::from_secs(60)).await.unwrap();
    eprintln!(
        "10,000 channels in after {listed:?}; out to the uplink: {} items in {} messages, the largest {} bytes, {:?}",
        all.items.len(),
        all.messages,
        all.max_message_bytes,
        asked.elapsed()
    );
    assert!(all.is_complete() && all.items.len() >= 10_001 && all.max_message_bytes <= 1300);
    gateway.shutdown().await;
}
