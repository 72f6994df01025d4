//! Uplinks over TCP and TLS, and a network that goes away for a while.

use crate::support::*;
use menshen::sim::clip::ClipLibrary;
use menshen::sim::platform::{SimPlatform, SimPlatformConfig};
use menshen::transport::tls::{Identity, server_config};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uplink_over_tcp_uses_one_connection_for_everything() {
    let (camera, platform) = (camera().await, platform().await);
    let text = [
        base(6),
        uplink("psb", &platform, "transport = \"tcp\""),
        camera_section(1, &camera.url("/h264"), ""),
        camera_section(2, &camera.url("/h265"), ""),
    ]
    .concat();
    let gateway = gateway(&text).await;
    let handle = platform.handle();
    registered(&handle).await;
    let all = handle.query_catalog(&id(LOCAL), SOON).await.unwrap();
    assert!(all.is_complete() && all.messages == 1, "a stream carries it in one message: {all:?}");
    let mut session = invite(&handle, 1, options(ClipLibrary::h264())).await;
    pictures(&mut session, 10).await;
    assert!(session.bye().await.bye_status == Some(200));
    // We connect; the platform's requests come back on that connection.
    let counters = gateway.sip().counters();
    assert_eq!(counters.value(menshen::transport::sip_driver::Count::Opened), 1);
    assert_eq!(counters.value(menshen::transport::sip_driver::Count::Accepted), 0);
    gateway.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uplink_over_tls_trusts_only_what_is_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["platform.test".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    assert!(menshen::transport::tls::expires_at(&cert).is_some_and(|at| at > 1_795_000_000));
    assert_eq!(menshen::transport::tls::expires_at(&key), None);
    let tls = server_config(&Identity { cert, key }, None).unwrap();
    let platform = SimPlatform::start(SimPlatformConfig {
        tls: Some(tls),
        ..SimPlatformConfig::on_loopback(id(SERVER), Some(PASSWORD))
    })
    .await
    .unwrap();
    let camera = camera().await;
    let pin = menshen::transport::tls::Pin::of(certified.cert.der());
    let uplink = |pin: &str| {
        let section = format!("transport = \"tls\"\n[uplink.tls]\npin_sha256 = \"{pin}\"");
        [base(7), uplink("psb", &platform, &section), camera_section(1, &camera.url("/h264"), "")].concat()
    };
    let handle = platform.handle();

    let stranger = gateway(&uplink(&"00".repeat(32))).await;
    let mut book = stranger.uplinks().borrow()["psb"].clone();
    tokio::time::timeout(SOON, book.wait_for(|s| s.state == "waiting")).await.unwrap().unwrap();
    assert!(handle.registration(&id(LOCAL)).is_none(), "another certificate than the pinned one is not spoken to");
    stranger.shutdown().await;

    let gateway = gateway(&uplink(&pin.to_string())).await;
    registered(&handle).await;
    assert_eq!(channels(&handle).await.len(), 1);
    let mut session = invite(&handle, 1, options(ClipLibrary::h264())).await;
    pictures(&mut session, 10).await;
    session.bye().await;
    gateway.shutdown().await;
}

/// A wire between gateway and platform that can be cut; it forwards datagrams both ways.
struct Wire {
    addr: SocketAddr,
    cut: Arc<AtomicBool>,
    passed: Arc<(AtomicU64, Notify)>,
    _tasks: JoinSet<()>,
}

async fn wire(platform: SocketAddr) -> Wire {
    let (near, far) = (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    far.connect(platform).await.unwrap();
    let addr = near.local_addr().unwrap();
    let cut = Arc::new(AtomicBool::new(false));
    let passed = Arc::new((AtomicU64::new(0), Notify::new()));
    let (c, p) = (cut.clone(), passed.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut gateway, mut a, mut b) = (None, vec![0; 65_536], vec![0; 65_536]);
        loop {
            tokio::select! {
                Ok((n, from)) = near.recv_from(&mut a) => {
                    gateway = Some(from);
                    if !c.load(Ordering::SeqCst) {
                        let _ = far.send(&a[..n]).await;
                    }
                    p.0.fetch_add(1, Ordering::SeqCst);
                    p.1.notify_waiters();
                }
                Ok(n) = far.recv(&mut b) => {
                    if let (Some(to), false) = (gateway, c.load(Ordering::SeqCst)) {
                        let _ = near.send_to(&b[..n], to).await;
                    }
                }
            }
        }
    });
    Wire { addr, cut, passed, _tasks: tasks }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_network_heals_by_itself() {
    let platform = platform().await;
    let wire = wire(platform.addr()).await;
    let section = uplink("psb", &platform, "keepalive_max_missed = 1")
        .replace(&platform.addr().to_string(), &wire.addr.to_string());
    let gateway = gateway(&[base(8), section].concat()).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut book = gateway.uplinks().borrow()["psb"].clone();
    tokio::time::timeout(SOON, book.wait_for(|s| s.registered)).await.unwrap().unwrap();
    wire.cut.store(true, Ordering::SeqCst);
    let limit = std::time::Duration::from_secs(15);
    // A keepalive goes unanswered until the next is due: registration is lost, and one REGISTER goes out at once.
    tokio::time::timeout(limit, book.wait_for(|s| !s.registered)).await.unwrap().unwrap();
    let seen = wire.passed.0.load(Ordering::SeqCst);
    tokio::time::timeout(limit, async {
        while wire.passed.0.load(Ordering::SeqCst) <= seen {
            wire.passed.1.notified().await;
        }
    })
    .await
    .expect("it goes on trying");
    wire.cut.store(false, Ordering::SeqCst);
    // The REGISTER under way is repeated by the transaction and heals it.
    tokio::time::timeout(limit, book.wait_for(|s| s.registered)).await.unwrap().unwrap();
    gateway.shutdown().await;
}
