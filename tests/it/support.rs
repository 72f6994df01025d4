//! A compound in a box: simulated cameras, the gateway in process, simulated upper platforms.

use menshen::app::{Gateway, StartOptions};
use menshen::config::{self, Config};
use menshen::proto::gb28181::DeviceId;
use menshen::proto::manscdp::CatalogItem;
use menshen::sim::clip::{Clip, ClipLibrary};
use menshen::sim::platform::{InviteOptions, PlatformHandle, Session, SimPlatform, SimPlatformConfig};
use menshen::sim::rtsp_camera::{Account, Mount, SimCamera, SimCameraConfig};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for anything that should come at once.
pub const SOON: Duration = Duration::from_secs(10);
pub const LOCAL: &str = "41130000582000000001";
pub const SERVER: &str = "41130000002000000002";
/// Another platform's code.
pub const SECOND: &str = "41130000002000000003";
pub const PASSWORD: &str = "12345678";

pub fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

/// Code of the n-th camera, from 1.
pub fn camera_id(n: usize) -> String {
    format!("4113000058132{n:07}")
}

pub fn mounts() -> Vec<Mount> {
    vec![
        Mount::video("/h264", ClipLibrary::h264()).with_audio(ClipLibrary::pcma()),
        Mount::video("/h265", ClipLibrary::h265()),
        Mount::video("/h264b", ClipLibrary::h264_bframes()).with_audio(ClipLibrary::aac()),
    ]
}

pub async fn camera_at(listen: SocketAddr) -> SimCamera {
    let account = Some(Account { username: "admin".into(), password: "Pass-1234".into() });
    let config = SimCameraConfig { listen, account, ..SimCameraConfig::on_loopback(mounts()) };
    SimCamera::start(config).await.unwrap()
}

pub async fn camera() -> SimCamera {
    camera_at("127.0.0.1:0".parse().unwrap()).await
}

pub async fn platform() -> SimPlatform {
    platform_of(SERVER).await
}

pub async fn platform_of(code: &str) -> SimPlatform {
    SimPlatform::start(SimPlatformConfig::on_loopback(id(code), Some(PASSWORD))).await.unwrap()
}

/// `[[uplink]]` with more keys.
pub fn uplink(name: &str, platform: &SimPlatform, more: &str) -> String {
    let (server, addr) = (platform.handle().id(), platform.addr());
    format!(
        "[[uplink]]\nname = \"{name}\"\nserver_id = \"{server}\"\nserver_addr = \"{addr}\"\n\
         password = \"{PASSWORD}\"\nkeepalive_interval = \"5s\"\n{more}\n"
    )
}

/// `[[camera]]` number `n` with more keys.
pub fn camera_section(n: usize, url: &str, more: &str) -> String {
    format!(
        "[[camera]]\nid = \"{}\"\nname = \"通道{n}\"\nrtsp = \"{url}\"\nusername = \"admin\"\npassword = \"Pass-1234\"\n\
         probe_interval = \"1s\"\n{more}\n",
        camera_id(n)
    )
}

/// The rest of a file: everything on free loopback ports. Media ports are a slice of their own for each test, so that
/// tests beside each other do not meet.
pub fn base(slice: u16) -> String {
    let first = 20_000 + slice * 400;
    format!(
        "[gateway]\nid = \"{LOCAL}\"\nname = \"大院\"\n[sip]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [media]\nport_range = \"{first}-{}\"\n",
        first + 399
    )
}

pub fn config(text: &str) -> Config {
    let loaded = config::load_text(Path::new("test.toml"), text, std::iter::empty(), 1_795_000_000);
    loaded.config.unwrap_or_else(|| panic!("{:#?}", loaded.problems))
}

pub async fn gateway(text: &str) -> Gateway {
    let options = StartOptions { ephemeral: true, seed: Some(7), commit: "test" };
    Gateway::start(config(text), options).await.unwrap()
}

pub async fn registered(platform: &PlatformHandle) {
    platform.wait_registered(&id(LOCAL), SOON).await.unwrap();
}

pub async fn channels(platform: &PlatformHandle) -> Vec<CatalogItem> {
    let all = platform.query_catalog(&id(LOCAL), SOON).await.unwrap();
    assert!(all.is_complete(), "{all:?}");
    all.items.into_iter().filter(|i| i.device_id.type_code() == Some(132)).collect()
}

pub fn options(clip: Arc<Clip>) -> InviteOptions {
    InviteOptions { clip: Some(clip), ..InviteOptions::default() }
}

pub async fn invite(platform: &PlatformHandle, n: usize, options: InviteOptions) -> Session {
    platform.invite(&id(LOCAL), &id(&camera_id(n)), options).await.unwrap()
}

/// Waits until no session holds a port; a media worker gives one back in its next slot.
pub async fn ports_free(gateway: &Gateway) {
    let free = async {
        while gateway.ports().in_use() > 0 {
            let _ = gateway.hub().snapshot().await;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, free).await.expect("every port is given back");
}

/// Waits for `count` pictures.
pub async fn pictures(session: &mut Session, count: u64) {
    session.wait(SOON, "pictures", |v| v.frames >= count).await.unwrap();
}

/// The binary, running. Killed when the test ends, however it ends.
pub struct Daemon {
    child: std::process::Child,
    lines: tokio::sync::mpsc::Receiver<String>,
}

impl Daemon {
    pub fn start(config: &Path) -> Daemon {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_menshen"))
            .args(["run", "-c"])
            .arg(config)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (tx, lines) = tokio::sync::mpsc::channel(10_000);
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(stderr)).map_while(Result::ok) {
                let _ = tx.blocking_send(line);
            }
        });
        Daemon { child, lines }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Waits for a log line with this text.
    pub async fn said(&mut self, text: &str) {
        let seen = async {
            while let Some(line) = self.lines.recv().await {
                if line.contains(text) {
                    return true;
                }
            }
            false
        };
        assert!(tokio::time::timeout(SOON, seen).await.expect(text), "never said {text:?}");
    }

    /// Waits for its end.
    pub async fn exited(&mut self, limit: Duration) -> std::process::ExitStatus {
        // The end of its log is the end of the process.
        let ended = async { while self.lines.recv().await.is_some() {} };
        tokio::time::timeout(limit, ended).await.expect("the process ends in time");
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
