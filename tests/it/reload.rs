//! SIGHUP's work: cameras and uplinks come, change and go without touching the others' streams.

use crate::support::*;
use menshen::sim::clip::ClipLibrary;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_leaves_running_streams_alone() {
    let (camera, platform, second) = (camera().await, platform().await, platform_of(SECOND).await);
    let common = [base(3), uplink("psb", &platform, "")].concat();
    let one = camera_section(1, &camera.url("/h264"), "");
    let two = camera_section(2, &camera.url("/h265"), "");
    let mut gateway = gateway(&[common.as_str(), &one].concat()).await;
    let handle = platform.handle();
    registered(&handle).await;
    let mut session = invite(&handle, 1, options(ClipLibrary::h264())).await;
    pictures(&mut session, 5).await;

    // A second camera and a second uplink; the first camera gets another name.
    let renamed = one.replace("通道1", "北门");
    let more = uplink("county", &second, "");
    let summary = gateway.reload(config(&[common.as_str(), &more, &renamed, &two].concat())).await.unwrap();
    assert!(summary.restart_needed.is_empty(), "{summary:?}");
    assert_eq!(summary.done.len(), 3, "{summary:?}");
    registered(&second.handle()).await;
    let names: Vec<String> = channels(&handle).await.into_iter().map(|i| i.name).collect();
    assert_eq!(names, ["北门", "通道2"]);
    let before = session.verdict().frames;
    pictures(&mut session, before + 25).await;
    assert_eq!(camera.handle.counters().plays, 1, "the running pull was not touched");

    // The second camera and uplink go again.
    let summary = gateway.reload(config(&[common.as_str(), &renamed].concat())).await.unwrap();
    assert_eq!(summary.done.len(), 2, "{summary:?}");
    second.handle().wait(&id(LOCAL), SOON, "goodbye", |l| !l.is_online()).await.unwrap();
    assert_eq!(channels(&handle).await.len(), 1);

    // What needs a restart is named and not taken.
    let summary = gateway.reload(config(&[common.as_str(), &renamed].concat().replace("大院", "别院"))).await.unwrap();
    assert_eq!(summary.restart_needed, ["gateway.name"]);
    let before = session.verdict().frames;
    pictures(&mut session, before + 5).await;

    // A camera that is taken away ends its calls with a BYE.
    gateway.reload(config(&common)).await.unwrap();
    assert!(session.wait_bye(SOON).await.is_some());
    let end = session.bye().await;
    assert_eq!((end.verdict.lost, end.verdict.altered), (0, 0));
    gateway.shutdown().await;
}

fn ask(config: &std::path::Path, what: &str) -> (Option<i32>, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_menshen"))
        .args(["health", what, "-c"])
        .arg(config)
        .output()
        .unwrap();
    let said = [out.stdout, out.stderr].concat();
    (out.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_takes_a_good_file_and_leaves_a_broken_one() {
    let (platform, second) = (platform().await, platform_of(SECOND).await);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("menshen.toml");
    // health asks where the file says; a free port found a moment ago.
    let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let common = [
        base(9)
            .replace("[sip]", &format!("data_dir = \"{}\"\n[sip]", dir.path().join("data").display()))
            .replace("[http]\nlisten = \"127.0.0.1:0\"", &format!("[http]\nlisten = \"{http}\"")),
        uplink("psb", &platform, ""),
    ]
    .concat();
    std::fs::write(&path, &common).unwrap();
    let mut daemon = Daemon::start(&path);
    daemon.said("\"message\":\"registered\"").await;
    // Half-written: refused, the old one stays.
    std::fs::write(&path, &common[..common.len() - 20]).unwrap();
    daemon.signal("-HUP");
    daemon.said("reload refused").await;
    std::fs::write(&path, [common.as_str(), &uplink("county", &second, "")].concat()).unwrap();
    let (code, said) = ask(&path, "--ready");
    assert_eq!(code, Some(0), "still registered: {said}");
    daemon.signal("-HUP");
    daemon.said("\"uplink\":\"county\",\"platform\"").await;
    let (code, said) = ask(&path, "--ready");
    assert_eq!(code, Some(0), "{said}");
    assert!(platform.handle().registration(&id(LOCAL)).is_some_and(|l| l.is_online()), "the first uplink never left");
    daemon.signal("-TERM");
    assert!(daemon.exited(SOON).await.success());
}
