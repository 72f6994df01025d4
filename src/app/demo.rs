//! `menshen demo` and `menshen sim`: the whole chain on loopback, or one end of it.
//!
//! The demo is the product itself between simulators that speak the real protocols over real sockets: RTSP cameras and a
//! GB/T 28181 recorder of known content, and an upper platform that plays every channel over UDP and TCP and compares
//! every picture, then searches, replays, steers and downloads a recording.

use super::cli::{SimCommand, SimDeviceArgs};
use super::wiring::{Gateway, StartOptions};
use super::{COMMIT, Exit, complain, daemon, logging, say};
use crate::clock;
use crate::config::{self, Config, ProblemFormat, render_problems};
use crate::proto::gb28181::{DeviceId, IdKind, Profile, Version};
use crate::proto::manscdp::ptz::PresetAction;
use crate::proto::manscdp::{CatalogItem, DeviceControl, PtzCommand};
use crate::proto::mansrtsp::Scale;
use crate::proto::sdp::{MediaTransport, SessionKind};
use crate::proto::sip::message::Transport;
use crate::sim::check::{CheckRow, parse_transport, play_and_check, table_head, table_row};
use crate::sim::clip::{Clip, ClipLibrary};
use crate::sim::device::{DeviceArgs, DeviceHandle, SimChannel, SimDevice, SimDeviceConfig, run_device};
use crate::sim::platform::{
    InviteOptions, PlatformArgs, PlatformEvent, PlatformHandle, SimPlatform, SimPlatformConfig, run_platform,
};
use crate::sim::rtsp_camera::{Account, Mount, SimCamera, SimCameraConfig};
use std::future::Future;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The demonstration's configuration, also a complete example.
const DEMO: &str = include_str!("../../config/demo.toml");
/// Registration, catalogue, first state of the cameras: seconds on any machine.
const STEP: Duration = Duration::from_secs(20);
/// Channels of the recorder: a common size.
const RECORDER_CHANNELS: u32 = 16;
/// Every transport, named from the receiver's side.
const TRANSPORTS: [MediaTransport; 3] = [MediaTransport::Udp, MediaTransport::TcpPassive, MediaTransport::TcpActive];

/// What the simulated camera serves.
fn mounts() -> Vec<Mount> {
    vec![
        Mount::video("/h264", ClipLibrary::h264()).with_audio(ClipLibrary::pcma()),
        Mount::video("/h265", ClipLibrary::h265()).with_audio(ClipLibrary::pcmu()),
        Mount::video("/h264b", ClipLibrary::h264_bframes()).with_audio(ClipLibrary::aac()),
    ]
}

/// The clip behind a mount's path.
fn clip_of(path: &str) -> Option<Arc<Clip>> {
    mounts().into_iter().find(|m| m.path == path).map(|m| m.video)
}

fn with_runtime(work: impl Future<Output = Exit>) -> Exit {
    match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("menshen").build() {
        Ok(runtime) => {
            let exit = runtime.block_on(work);
            runtime.shutdown_timeout(Duration::from_millis(200));
            exit
        }
        Err(e) => {
            complain(format_args!("cannot start the runtime: {e}"));
            Exit::Internal
        }
    }
}

/// `menshen demo`.
pub fn demo(seconds: u64) -> Exit {
    if let Err(e) = logging::start(logging::Format::Text, "warn") {
        complain(e);
        return Exit::Internal;
    }
    with_runtime(async move {
        match chain(Duration::from_secs(seconds)).await {
            Ok(true) => Exit::Ok,
            Ok(false) => Exit::CheckFailed,
            Err((exit, text)) => {
                complain(text);
                exit
            }
        }
    })
}

type Failure = (Exit, String);

fn failed(text: impl std::fmt::Display) -> Failure {
    (Exit::CheckFailed, text.to_string())
}

async fn chain(length: Duration) -> Result<bool, Failure> {
    let mut config = demo_config()?;
    let began = clock::now();

    let account = config.cameras.first().map(|c| Account {
        username: c.username.clone(),
        password: c.password.as_ref().map(|p| p.expose().to_owned()).unwrap_or_default(),
    });
    let camera_config = SimCameraConfig { account, ..SimCameraConfig::on_loopback(mounts()) };
    let camera = SimCamera::start(camera_config).await.map_err(|e| (Exit::Unavailable, e.to_string()))?;
    say(format_args!(
        "cameras   rtsp://{}/h264 /h265 /h264b (simulated, real H.264 and H.265 with sound)",
        camera.addr
    ));

    let uplink = config.uplinks.first_mut().ok_or_else(|| failed("the demo has no uplink"))?;
    let server_id = DeviceId::parse(uplink.server_id.as_str()).map_err(failed)?;
    let local_id = DeviceId::parse(uplink.local_id.as_str()).map_err(failed)?;
    let password = uplink.password.as_ref().map(|p| p.expose().to_owned());
    let platform = SimPlatform::start(SimPlatformConfig::on_loopback(server_id, password.as_deref()))
        .await
        .map_err(|e| (Exit::Unavailable, e.to_string()))?;
    uplink.server_addr = platform.addr();
    say(format_args!("platform  {} listens on {} (simulated upper platform)", server_id, platform.addr()));

    for section in &mut config.cameras {
        let path = section.rtsp.as_deref().and_then(path_of).unwrap_or_default();
        section.rtsp = Some(format!("rtsp://{}{path}", camera.addr));
    }
    config.sip.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    if std::net::TcpListener::bind(config.http.listen).is_err() {
        // Somebody's gateway runs here already.
        config.http.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    }
    let paths: Vec<(DeviceId, Arc<Clip>)> = config
        .cameras
        .iter()
        .filter_map(|c| {
            let clip = c.rtsp.as_deref().and_then(path_of).and_then(|p| clip_of(&p))?;
            Some((DeviceId::parse(c.id.as_str()).ok()?, clip))
        })
        .collect();
    let options = StartOptions { ephemeral: true, seed: None, commit: COMMIT };
    let gateway = Gateway::start(config, options).await.map_err(|e| (daemon::start_failed(&e), String::new()))?;
    daemon::print_listeners(&gateway);

    let recorder = start_recorder(&gateway, local_id).await?;
    let mut clips = paths;
    let device = recorder.handle();
    clips.extend(device.channels().iter().map(|c| (c.id, c.clip.clone())));
    let handle = platform.handle();
    let outcome = tokio::select! {
        outcome = look(&handle, &device, &local_id, &clips, length, began) => outcome,
        why = gateway.fatal() => Err((Exit::Internal, why)),
        _ = tokio::signal::ctrl_c() => Err((Exit::CheckFailed, "interrupted".into())),
    };
    gateway.shutdown().await;
    let gone = handle.registration(&local_id).is_none_or(|l| !l.is_online());
    say(format_args!("goodbye   {}", if gone { "unregistered" } else { "the platform still believes in us" }));
    recorder.stop().await;
    platform.stop().await;
    camera.stop().await;
    let ok = outcome? && gone;
    say(if ok { "demo ok: every channel's pictures arrived whole" } else { "demo FAILED: see the rows above" });
    Ok(ok)
}

async fn start_recorder(gateway: &Gateway, local_id: DeviceId) -> Result<SimDevice, Failure> {
    let section = gateway.config().devices.first().ok_or_else(|| failed("the demo has no device"))?;
    let id = DeviceId::parse(&section.id).map_err(failed)?;
    let password = section.password.as_ref().map(|p| p.expose().to_owned()).unwrap_or_default();
    let server = gateway.listeners().first().map(|l| l.local).ok_or_else(|| failed("no SIP listener"))?;
    let config = SimDeviceConfig {
        channels: SimChannel::numbered(&id, RECORDER_CHANNELS)
            .unwrap_or_default()
            .into_iter()
            .enumerate()
            // The cameras have the first numbers of this domain already.
            .map(|(n, c)| SimChannel { id: recorder_channel(&id, n).unwrap_or(c.id), ..c })
            .collect(),
        ..SimDeviceConfig::on_loopback(id, &password, local_id, server)
    };
    let recorder = SimDevice::start(config).await.map_err(|e| (Exit::Unavailable, e.to_string()))?;
    say(format_args!("recorder  {id} with {RECORDER_CHANNELS} channels (simulated, registers with the gateway)"));
    Ok(recorder)
}

fn recorder_channel(device: &DeviceId, n: usize) -> Option<DeviceId> {
    DeviceId::mint(device.domain()?, 131, 0, n as u32 + 1).ok()
}

async fn look(
    platform: &PlatformHandle,
    device: &DeviceHandle,
    local_id: &DeviceId,
    clips: &[(DeviceId, Arc<Clip>)],
    length: Duration,
    began: std::time::Instant,
) -> Result<bool, Failure> {
    platform.wait_registered(local_id, STEP).await.map_err(failed)?;
    let after = clock::now().saturating_duration_since(began);
    say(format_args!("register  {local_id} registered {} ms after the start", after.as_millis()));
    device.wait_registered(STEP).await.map_err(failed)?;
    // Its catalogue comes in pieces; until all of it is here the platform sees less.
    let deadline = clock::now() + STEP;
    let is_channel = |i: &&CatalogItem| i.device_id.kind() == IdKind::Peripheral;
    let catalog = loop {
        let catalog = platform.query_catalog(local_id, STEP).await.map_err(failed)?;
        if catalog.items.iter().filter(is_channel).count() >= clips.len() || clock::now() > deadline {
            break catalog;
        }
    };
    let (items, sum) = (catalog.items.len(), catalog.sum_num.unwrap_or(0));
    say(format_args!(
        "catalogue {items} of {sum} items in {} messages, the largest {} bytes, {} ms",
        catalog.messages,
        catalog.max_message_bytes,
        catalog.took.as_millis()
    ));
    for item in &catalog.items {
        say(format_args!("          {} {}", item.device_id, item.name));
    }
    let channels: Vec<CatalogItem> = catalog.items.into_iter().filter(|i| is_channel(&i)).collect();
    let whole = items as u32 == sum && channels.len() == clips.len();
    if !whole {
        say("catalogue is not what was configured");
    }
    let colour = std::io::stdout().is_terminal();
    say(format_args!(
        "play      every camera over UDP and both TCP roles, every channel of the recorder once, for {} s, all at once",
        length.as_secs()
    ));
    say(table_head().trim_end());
    let recorded = device.channels();
    let (of_recorder, cameras): (Vec<_>, Vec<_>) =
        channels.iter().cloned().partition(|i| recorded.iter().any(|c| c.id == i.device_id));
    let clip_of = |id: &DeviceId| clips.iter().find(|(known, _)| known == id).map(|(_, clip)| clip.clone());
    let tell = |row: &CheckRow| say(table_row(row, colour).trim_end());
    let share = |n: usize| of_recorder.iter().skip(n).step_by(TRANSPORTS.len()).cloned().collect::<Vec<_>>();
    let (first, second, third) = (share(0), share(1), share(2));
    let part = |items, transports| play_and_check(platform, local_id, items, clip_of, transports, length, tell);
    let (rows, a, b, c) = tokio::join!(
        part(&cameras, &TRANSPORTS),
        part(&first, &TRANSPORTS[..1]),
        part(&second, &TRANSPORTS[1..2]),
        part(&third, &TRANSPORTS[2..]),
    );
    let expected = cameras.len() * TRANSPORTS.len() + of_recorder.len();
    let rows: Vec<_> = [rows, a, b, c].concat();
    let played = whole && rows.len() == expected && rows.iter().all(|r| r.ok);
    let channel = recorded.first().ok_or_else(|| failed("the recorder has no channel"))?;
    Ok(records(platform, device, local_id, channel).await? && played)
}

/// Search, replay with pause, 4× and seek, download, preset: of one channel of the recorder.
async fn records(
    platform: &PlatformHandle,
    device: &DeviceHandle,
    local_id: &DeviceId,
    channel: &SimChannel,
) -> Result<bool, Failure> {
    let now = clock::system_unix().as_secs();
    let hour = (now - 7200, now - 3600);
    let list = platform.record_info(local_id, &channel.id, hour, STEP).await.map_err(failed)?;
    say(format_args!(
        "records   {} of {} found, in {} messages, the largest {} bytes",
        list.items.len(),
        list.sum_num.unwrap_or(0),
        list.messages,
        list.max_message_bytes
    ));
    let mut ok = list.is_complete() && !list.items.is_empty();

    let mut session =
        platform.playback(local_id, &channel.id, hour, MediaTransport::TcpPassive).await.map_err(failed)?;
    session.wait(STEP, "pictures", |v| v.frames >= 25).await.map_err(failed)?;
    let mut steps = vec![("pause", session.pause(STEP).await.map_err(failed)?)];
    steps.push(("go on", session.resume(STEP).await.map_err(failed)?));
    let four = Scale::from_thousandths(4000).ok_or_else(|| failed("no such speed"))?;
    steps.push(("4x", session.speed(four, STEP).await.map_err(failed)?));
    let before = session.verdict().frames;
    session.wait(STEP, "pictures at 4x", |v| v.frames >= before + 100).await.map_err(failed)?;
    steps.push(("seek to 59:58", session.seek(3_598_000, STEP).await.map_err(failed)?));
    let finished = session.wait_finished(STEP).await;
    let end = session.bye().await;
    let steered = steps.iter().all(|(_, answer)| answer.is_ok());
    let told: Vec<String> = steps.iter().map(|(what, answer)| format!("{what} {}", answer.status)).collect();
    say(format_args!(
        "replay    an hour: {} pictures, {} lost; {}; end told {}",
        end.verdict.frames,
        end.verdict.lost,
        told.join(", "),
        finished.map_or("never".to_owned(), |n| n.to_string()),
    ));
    ok &= steered && finished == Some(121) && end.verdict.lost == 0 && end.verdict.altered == 0;

    let options = InviteOptions {
        kind: SessionKind::Download,
        time: Some((hour.0, hour.0 + 8)),
        download_speed: Some(4),
        transport: MediaTransport::TcpPassive,
        clip: Some(channel.clip.clone()),
        ..InviteOptions::default()
    };
    let mut session = platform.invite(local_id, &channel.id, options).await.map_err(failed)?;
    session.wait(STEP, "half of the download", |v| v.frames >= 100).await.map_err(failed)?;
    let halfway = session.progress();
    let (finished, end) = session.play_to_end(STEP).await;
    say(format_args!(
        "download  8 s at 4x: {} on the way, then {} pictures, {} lost, {} altered; end told {}",
        halfway.map_or("no progress".to_owned(), |p| format!("{:.0} %", p * 100.0)),
        end.verdict.frames,
        end.verdict.lost,
        end.verdict.altered,
        finished.map_or("never".to_owned(), |n| n.to_string()),
    ));
    ok &= halfway.is_some() && finished == Some(121) && end.verdict.frames == 200 && end.verdict.lost == 0;

    let preset = PtzCommand::Preset { action: PresetAction::Call, number: 1 };
    let outcome = platform.ptz(local_id, &channel.id, preset, STEP).await.map_err(failed)?;
    let seen = |s: &crate::sim::device::Snapshot| s.controls > 0;
    let reached = device.wait(STEP, "steered", seen).await.is_ok()
        && device.controls().iter().any(|c| {
            c.target == channel.id && matches!(&c.control, DeviceControl::Ptz { command, .. } if *command == preset)
        });
    say(format_args!(
        "preset    1 called: answered {}, {}",
        outcome.status,
        if reached { "the camera got it" } else { "the camera never got it" }
    ));
    ok &= outcome.status == 200 && reached;
    Ok(alarm(platform, device, local_id, channel).await? && ok)
}

/// An alarm of the recorder, and its reset from above.
async fn alarm(
    platform: &PlatformHandle,
    device: &DeviceHandle,
    local_id: &DeviceId,
    channel: &SimChannel,
) -> Result<bool, Failure> {
    let mut news = platform.news();
    device.raise_alarm(&channel.id, 2, Some(1), "演示报警").await.map_err(failed)?;
    let came = async {
        loop {
            match news.recv().await {
                Ok(PlatformEvent::Alarm { device, alarm, .. }) if device == channel.id => return Some(alarm),
                Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(_) => return None,
            }
        }
    };
    let came = tokio::time::timeout(STEP, came).await.ok().flatten();
    let answered = device.wait(STEP, "alarms answered", |s| s.alarms_answered == s.alarms).await.is_ok();
    let before = device.snapshot().controls;
    let reset = platform.reset_alarm(local_id, &channel.id, STEP).await.map_err(failed)?;
    let reached = device.wait(STEP, "reset", |s| s.controls > before).await.is_ok();
    say(format_args!(
        "alarm     {}; {}; reset answered {}, {}",
        came.as_ref().map_or("never came".to_owned(), |a| format!("came, method {}", a.method)),
        if answered { "acknowledged to the recorder" } else { "never acknowledged" },
        reset.status,
        if reached { "the recorder got it" } else { "the recorder never got it" }
    ));
    Ok(came.is_some() && answered && reset.status == 200 && reached)
}

/// `/h264` of `rtsp://127.0.0.1:18554/h264`.
fn path_of(url: &str) -> Option<String> {
    url::Url::parse(url).ok().map(|u| u.path().to_owned())
}

fn demo_config() -> Result<Config, Failure> {
    let now = clock::system_unix().as_secs() as i64;
    let loaded = config::load_text(Path::new("demo.toml"), DEMO, std::iter::empty(), now);
    loaded.config.ok_or_else(|| (Exit::Internal, render_problems(&loaded.problems, ProblemFormat::Text)))
}

/// `menshen sim …`.
pub fn sim(which: SimCommand) -> Exit {
    if let Err(e) = logging::start(logging::Format::Auto, "warn") {
        complain(e);
        return Exit::Internal;
    }
    match which {
        SimCommand::Camera { listen, username, password } => with_runtime(sim_camera(listen, username.zip(password))),
        SimCommand::Platform { listen, id, password, media, play } => {
            let Ok(id) = DeviceId::parse(&id) else {
                complain(format_args!("--id {id}: must be 20 digits"));
                return Exit::Usage;
            };
            let transports: Option<Vec<MediaTransport>> = if media == "all" {
                Some(TRANSPORTS.to_vec())
            } else {
                media.split(',').map(parse_transport).collect()
            };
            let Some(transports) = transports else {
                complain(format_args!("--media {media}: must be udp, tcp-passive, tcp-active, a list of them, or all"));
                return Exit::Usage;
            };
            let config = SimPlatformConfig {
                listen,
                password: (!password.is_empty()).then_some(password),
                ..SimPlatformConfig::on_loopback(id, None)
            };
            let args = PlatformArgs {
                config,
                play: (play > 0).then(|| Duration::from_secs(play)),
                transports,
                clip_of: None,
                colour: std::io::stdout().is_terminal(),
            };
            with_runtime(sim_platform(args))
        }
        SimCommand::Device(args) => match device_args(args) {
            Ok(args) => with_runtime(sim_device(args)),
            Err(text) => {
                complain(text);
                Exit::Usage
            }
        },
    }
}

fn device_args(args: SimDeviceArgs) -> Result<DeviceArgs, String> {
    let code = |option: &str, text: &str| {
        DeviceId::parse(text).ok().filter(DeviceId::is_code20).ok_or(format!("{option} {text}: must be 20 digits"))
    };
    let (id, server_id) = (code("--id", &args.id)?, code("--server-id", &args.server_id)?);
    let transport = match args.transport.as_str() {
        "udp" => Transport::Udp,
        "tcp" => Transport::Tcp,
        other => return Err(format!("--transport {other}: must be udp or tcp")),
    };
    let version = match args.version.as_str() {
        "2011" => Version::V2011,
        "2016" => Version::V2016,
        "2022" => Version::V2022,
        other => return Err(format!("--version {other}: must be 2011, 2016 or 2022")),
    };
    let config = SimDeviceConfig {
        listen: args.listen,
        transport,
        profile: Profile::new(version),
        channels: SimChannel::numbered(&id, args.channels).unwrap_or_default(),
        ..SimDeviceConfig::on_loopback(id, &args.password, server_id, args.server)
    };
    Ok(DeviceArgs { config, length: (args.seconds > 0).then(|| Duration::from_secs(args.seconds)) })
}

/// Runs a simulator until it ends, or Ctrl-C stops it in its own good order.
async fn until_interrupted<E: std::fmt::Display>(
    run: impl Future<Output = Result<bool, E>>,
    stop: CancellationToken,
) -> Exit {
    tokio::pin!(run);
    let result = tokio::select! {
        result = &mut run => result,
        _ = tokio::signal::ctrl_c() => {
            stop.cancel();
            run.await
        }
    };
    match result {
        Ok(true) => Exit::Ok,
        Ok(false) => Exit::CheckFailed,
        Err(e) => {
            complain(e);
            Exit::Unavailable
        }
    }
}

async fn sim_device(args: DeviceArgs) -> Exit {
    let stop = CancellationToken::new();
    until_interrupted(run_device(args, &mut std::io::stdout(), stop.clone()), stop).await
}

async fn sim_camera(listen: SocketAddr, account: Option<(String, String)>) -> Exit {
    let account = account.map(|(username, password)| Account { username, password });
    let config = SimCameraConfig { listen, account, ..SimCameraConfig::on_loopback(mounts()) };
    match SimCamera::start(config).await {
        Ok(camera) => {
            for mount in mounts() {
                say(format_args!("rtsp://{}{}", camera.addr, mount.path));
            }
            let _ = tokio::signal::ctrl_c().await;
            camera.stop().await;
            Exit::Ok
        }
        Err(e) => {
            complain(e);
            Exit::Unavailable
        }
    }
}

async fn sim_platform(args: PlatformArgs) -> Exit {
    let stop = CancellationToken::new();
    until_interrupted(run_platform(args, &mut std::io::stdout(), stop.clone()), stop).await
}
