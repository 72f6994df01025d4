//! Servers that answer what no camera should. Whatever they say: a reason within the step's limit (or the stall limit
//! once they play), no fault in the client, and the next good session works.
//! The bytes they flood are bounded here; how much a client holds is bounded by the limit's time, not by its size.

use super::rig::{RULES, Rig, Running, ms, pull};
use crate::media::SourceFailure;
use crate::sim::clip::ClipLibrary;
use crate::sim::rtsp_camera::{Mount, SimCamera, SimCameraConfig};
use crate::southbound::rtsp::PullConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Floods end here: enough to be a flood, little enough for any machine.
const FLOOD: usize = 8 << 20;
/// Steps and stalls.
const LIMIT: Duration = Duration::from_millis(250);

enum Do {
    /// Send this.
    Say(Vec<u8>),
    /// Send this again and again, [`FLOOD`] bytes at most.
    Flood(Vec<u8>),
    /// Send this every 20 ms, for as long as the client listens.
    Drip(Vec<u8>),
    /// Close the connection.
    Close,
}

struct Ask {
    method: String,
    cseq: String,
    addr: SocketAddr,
    /// Requests on this connection so far.
    count: u32,
}

type Script = fn(&Ask) -> Vec<Do>;

struct Server {
    addr: SocketAddr,
    connections: Arc<AtomicU32>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// `greet`: what is said without being asked.
    async fn start(greet: &'static [u8], script: Script) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&connections);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                served.spawn(async move {
                    let _ = serve(stream, addr, greet, script).await;
                });
            }
        });
        Server { addr, connections, _tasks: tasks }
    }

    fn pull(&self) -> PullConfig {
        PullConfig { step_limit: LIMIT, stall_limit: LIMIT, ..pull(&format!("rtsp://{}/main", self.addr), false) }
    }
}

async fn serve(mut stream: TcpStream, addr: SocketAddr, greet: &[u8], script: Script) -> std::io::Result<()> {
    stream.write_all(greet).await?;
    let (mut buf, mut count) = (Vec::new(), 0);
    loop {
        let head = loop {
            if buf.first() == Some(&b'$') && buf.len() >= 4 {
                let length = 4 + usize::from(u16::from_be_bytes([buf[2], buf[3]]));
                if buf.len() >= length {
                    buf.drain(..length);
                    continue;
                }
            } else if let Some(at) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
                break String::from_utf8_lossy(&buf.drain(..at + 4).collect::<Vec<_>>()).into_owned();
            }
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await? {
                0 => return Ok(()),
                n => buf.extend_from_slice(&piece[..n]),
            }
        };
        count += 1;
        let cseq = head.lines().find_map(|l| l.strip_prefix("CSeq: ")).unwrap_or("0").to_owned();
        let method = head.split(' ').next().unwrap_or_default().to_owned();
        for action in script(&Ask { method, cseq, addr, count }) {
            match action {
                Do::Say(bytes) => stream.write_all(&bytes).await?,
                Do::Flood(bytes) => {
                    for _ in 0..FLOOD / bytes.len() {
                        stream.write_all(&bytes).await?;
                    }
                }
                Do::Drip(bytes) => loop {
                    stream.write_all(&bytes).await?;
                    tokio::time::sleep(ms(20)).await;
                },
                Do::Close => return Ok(()),
            }
        }
    }
}

fn say(ask: &Ask, status: &str, headers: &str, body: &str) -> Do {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    Do::Say(format!("RTSP/1.0 {status}\r\nCSeq: {}\r\n{headers}{length}\r\n{body}", ask.cseq).into_bytes())
}

fn describe(ask: &Ask, sdp: &str) -> Do {
    let headers = format!("Content-Base: rtsp://{}/main/\r\nContent-Type: application/sdp\r\n", ask.addr);
    say(ask, "200 OK", &headers, sdp)
}

const SDP: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\na=control:*\r\n\
    m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:track1\r\n\
    a=fmtp:96 packetization-mode=1;profile-level-id=64000a;sprop-parameter-sets=Z2QACqxyhEQmhAAAAwAEAAADAMo8SJYRgA==,aOhDjyyL\r\n";
const SDP_SOUND: &str = "m=audio 0 RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\na=control:track2\r\n";

/// A good server up to PLAY; `then` follows its answer.
fn play(ask: &Ask, sdp: &str, session: &str, then: Vec<Do>) -> Vec<Do> {
    match ask.method.as_str() {
        "DESCRIBE" => vec![describe(ask, sdp)],
        "SETUP" => {
            let channel = 2 * (ask.count - 2);
            let headers = format!(
                "Session: {session}\r\nTransport: RTP/AVP/TCP;unicast;interleaved={channel}-{};ssrc=00000001\r\n",
                channel + 1
            );
            vec![say(ask, "200 OK", &headers, "")]
        }
        "PLAY" => {
            let mut all = vec![say(ask, "200 OK", &format!("Session: {session}\r\nRange: npt=0-\r\n"), "")];
            all.extend(then);
            all
        }
        _ => vec![say(ask, "200 OK", "", "")],
    }
}

fn interleaved(channel: u8, packet: &[u8]) -> Vec<u8> {
    let mut out = vec![b'$', channel];
    out.extend_from_slice(&(packet.len() as u16).to_be_bytes());
    out.extend_from_slice(packet);
    out
}

fn rtp(payload_type: u8, sequence: u16, timestamp: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x80, payload_type];
    out.extend_from_slice(&sequence.to_be_bytes());
    out.extend_from_slice(&timestamp.to_be_bytes());
    out.extend_from_slice(&1u32.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn sender_report() -> Vec<u8> {
    let mut out = vec![0x80, 200, 0, 6, 0, 0, 0, 1];
    out.extend_from_slice(&[0; 20]);
    out
}

struct Bed {
    rig: Rig,
    good: SimCamera,
    good_camera: Running,
}

impl Bed {
    async fn new() -> Bed {
        let mut config = SimCameraConfig::on_loopback(vec![Mount::video("/main", ClipLibrary::h264())]);
        config.speed = 4;
        let good = SimCamera::start(config).await.unwrap();
        let mut rig = Rig::new();
        let good_camera = rig.camera(vec![pull(&good.url("/main"), false)], RULES).await;
        Bed { rig, good, good_camera }
    }

    /// What is told of this server; then a good session on the same worker.
    async fn told(&mut self, name: &str, config: PullConfig) -> SourceFailure {
        let camera = self.rig.camera(vec![config], RULES).await;
        let (failure, after) = self.rig.refusal(&camera, 0).await;
        // At most DESCRIBE, two SETUPs, PLAY and a stall, each with its limit; a loaded machine gets some more.
        assert!(after <= LIMIT * 5 + ms(2_000), "{name}: {after:?}");
        assert!(!failure.text.contains("a fault in the gateway"), "{name}: {failure:?}");
        assert!(failure.text.len() <= 310 && !failure.text.contains('\n'), "{name}: {failure:?}");
        println!("{name}: {} after {after:?}: {}", failure.reason, failure.text);
        camera.cancel.cancel();
        self.rig.subscribe(&self.good_camera, 0).await.expect(name).pictures(2).await;
        failure
    }

    async fn stop(self) {
        self.rig.stop().await;
        self.good.stop().await;
    }
}

async fn run(cases: &[(&str, &[&str], &'static [u8], Script)]) {
    let mut bed = Bed::new().await;
    for (name, reasons, greet, script) in cases {
        let server = Server::start(greet, *script).await;
        let failure = bed.told(name, server.pull()).await;
        assert!(reasons.contains(&failure.reason), "{name}: {failure:?}");
    }
    bed.stop().await;
}

#[tokio::test]
async fn answers_to_describe() {
    run(&[
        ("1 GiB announced and begun", &["unreachable"], b"", |ask| {
            let head = format!("RTSP/1.0 200 OK\r\nCSeq: {}\r\nContent-Length: 1073741824\r\n\r\n", ask.cseq);
            vec![Do::Say(head.into_bytes()), Do::Flood(vec![b'x'; 65_536])]
        }),
        ("more than a machine has", &["unreachable", "broken"], b"", |ask| {
            let head =
                format!("RTSP/1.0 200 OK\r\nCSeq: {}\r\nContent-Length: 99999999999999999999\r\n\r\nv=0", ask.cseq);
            vec![Do::Say(head.into_bytes())]
        }),
        ("headers without end", &["unreachable"], b"", |ask| {
            let head = format!("RTSP/1.0 200 OK\r\nCSeq: {}\r\n", ask.cseq);
            vec![Do::Say(head.into_bytes()), Do::Flood(b"X-Header: and one more of them\r\n".repeat(2_000))]
        }),
        ("one header without end", &["unreachable"], b"", |ask| {
            let head = format!("RTSP/1.0 200 OK\r\nCSeq: {}\r\nX: ", ask.cseq);
            vec![Do::Say(head.into_bytes()), Do::Flood(vec![b'x'; 65_536])]
        }),
        ("401 for ever", &["unauthorised"], b"", |ask| {
            let nonce = format!("WWW-Authenticate: Digest realm=\"x\", nonce=\"{}\"\r\n", ask.count);
            vec![say(ask, "401 Unauthorized", &nonce, "")]
        }),
        ("401 with nothing to answer to", &["unauthorised"], b"", |ask| vec![say(ask, "401 Unauthorized", "", "")]),
        ("401 with an algorithm nobody has", &["unauthorised", "unreachable"], b"", |ask| {
            let asks = "WWW-Authenticate: Digest realm=\"x\", nonce=\"1\", algorithm=ROT13\r\n";
            vec![say(ask, "401 Unauthorized", asks, "")]
        }),
        ("401 with a realm of 64 KiB", &["unauthorised"], b"", |ask| {
            let asks = format!("WWW-Authenticate: Digest realm=\"{}\", nonce=\"1\"\r\n", "r".repeat(65_536));
            vec![say(ask, "401 Unauthorized", &asks, "")]
        }),
        ("403", &["unauthorised"], b"", |ask| vec![say(ask, "403 Forbidden", "", "")]),
        ("404", &["no_such_stream"], b"", |ask| vec![say(ask, "404 Not Found", "", "")]),
        ("500", &["refused"], b"", |ask| vec![say(ask, "500 Oops", "", "")]),
        ("another CSeq", &["unreachable", "broken"], b"", |ask| {
            vec![say(&Ask { cseq: "4711".into(), method: String::new(), ..*ask }, "200 OK", "", "")]
        }),
        ("closed at once", &["unreachable"], b"", |_| vec![Do::Close]),
        ("half a status line", &["unreachable"], b"", |_| vec![Do::Say(b"RTSP/1.0 2".to_vec()), Do::Close]),
        ("silence", &["unreachable"], b"", |_| vec![]),
        ("SSH", &["unreachable"], b"SSH-2.0-OpenSSH_9.6\r\n", |_| vec![]),
        ("HTTP", &["unreachable"], b"", |_| {
            vec![Do::Say(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec()), Do::Close]
        }),
        ("TLS", &["unreachable"], b"\x15\x03\x01\x00\x02\x02\x46", |_| vec![Do::Close]),
        ("zeros", &["unreachable"], b"", |_| vec![Do::Flood(vec![0; 65_536])]),
        ("empty lines", &["unreachable"], b"", |_| vec![Do::Flood(b"\r\n".repeat(32_768))]),
        ("media before it is asked for", &["unreachable"], b"", |_| vec![Do::Flood(interleaved(0, &[0x80; 1_400]))]),
    ])
    .await;
}

#[tokio::test]
async fn descriptions() {
    run(&[
        ("no body", &["broken", "no_video"], b"", |ask| vec![describe(ask, "")]),
        ("not SDP", &["broken", "no_video"], b"", |ask| vec![describe(ask, "<html>please log in</html>")]),
        ("control characters", &["broken", "no_video"], b"", |ask| {
            vec![describe(ask, "v=0\r\n\0\x01\x02m=\r\n=\r\n\r\nm")]
        }),
        ("no video", &["no_video"], b"", |ask| {
            vec![describe(ask, &format!("v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\n{SDP_SOUND}"))]
        }),
        ("MJPEG", &["no_video"], b"", |ask| vec![describe(ask, &SDP.replace("H264", "JPEG"))]),
        ("a hundred thousand streams", &["broken", "no_video", "unreachable", "stalled", "refused"], b"", |ask| {
            let many = format!("v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\n{}", SDP_SOUND.repeat(100_000));
            if ask.method == "DESCRIBE" { vec![describe(ask, &many)] } else { vec![] }
        }),
        ("rates of zero and beyond", &["broken", "no_video", "stalled", "refused"], b"", |ask| {
            play(ask, &SDP.replace("90000", "0").replace("t=0 0", "t=99999999999999999999 -1"), "1", vec![])
        }),
        ("parameter sets that are no base64", &["broken", "stalled"], b"", |ask| {
            let (head, _) = SDP.split_once("sprop").unwrap();
            play(ask, &format!("{head}sprop-parameter-sets=!!!!,####\r\n"), "1", vec![])
        }),
        ("parameter sets that are none", &["broken", "stalled"], b"", |ask| {
            let (head, _) = SDP.split_once("sprop").unwrap();
            play(ask, &format!("{head}sprop-parameter-sets=/////////w==,AAAAAA==\r\n"), "1", vec![])
        }),
        ("an AAC configuration that is none", &["stalled"], b"", |ask| {
            let sound = "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 mpeg4-generic/16000/1\r\na=control:track2\r\n\
                a=fmtp:97 mode=AAC-hbr;config=ZZZZ;sizelength=13;indexlength=3\r\n";
            play(ask, &format!("{SDP}{sound}"), "1", vec![])
        }),
    ])
    .await;
}

#[tokio::test]
async fn sessions() {
    run(&[
        ("nothing is played", &["stalled"], b"", |ask| play(ask, SDP, "1", vec![])),
        ("SETUP refused", &["refused"], b"", |ask| match ask.method.as_str() {
            "SETUP" => vec![say(ask, "461 Unsupported Transport", "", "")],
            _ => play(ask, SDP, "1", vec![]),
        }),
        ("SETUP without Transport", &["broken", "unreachable"], b"", |ask| match ask.method.as_str() {
            "SETUP" => vec![say(ask, "200 OK", "Session: 1\r\n", "")],
            _ => play(ask, SDP, "1", vec![]),
        }),
        ("interleaved=300-301", &["broken", "unreachable"], b"", |ask| match ask.method.as_str() {
            "SETUP" => vec![say(ask, "200 OK", "Session: 1\r\nTransport: RTP/AVP/TCP;interleaved=300-301\r\n", "")],
            _ => play(ask, SDP, "1", vec![]),
        }),
        ("channels 255 and 0", &["broken", "unreachable", "stalled"], b"", |ask| match ask.method.as_str() {
            "SETUP" => vec![say(ask, "200 OK", "Session: 1\r\nTransport: RTP/AVP/TCP;interleaved=255-0\r\n", "")],
            _ => play(ask, SDP, "1", vec![]),
        }),
        ("a session id of 10 KiB", &["stalled"], b"", |ask| play(ask, SDP, &"A".repeat(10_240), vec![])),
        ("a session id of odd bytes", &["stalled", "broken", "unreachable"], b"", |ask| {
            play(ask, SDP, "\u{7f}\t\u{e9}\"\\;timeout=x", vec![])
        }),
        ("a session of no time", &["broken", "stalled"], b"", |ask| play(ask, SDP, "1;timeout=0", vec![])),
        ("RTP-Info that lies", &["stalled", "broken"], b"", |ask| match ask.method.as_str() {
            "PLAY" => {
                let lies = "Session: 1\r\nRTP-Info: url=rtsp://10.0.0.1/x;seq=99999999;rtptime=-5,url=;seq;,,;=\r\n";
                vec![say(ask, "200 OK", lies, "")]
            }
            _ => play(ask, SDP, "1", vec![]),
        }),
        ("data on channel 255", &["broken", "stalled"], b"", |ask| {
            play(ask, SDP, "1", vec![Do::Drip(interleaved(255, &[0x80; 200]))])
        }),
        ("sender reports alone", &["stalled"], b"", |ask| {
            play(ask, SDP, "1", vec![Do::Drip(interleaved(1, &sender_report()))])
        }),
        ("sound alone", &["stalled"], b"", |ask| {
            let packets = (0..50u16).flat_map(|i| interleaved(2, &rtp(8, i, u32::from(i) * 160, &[0xD5; 160])));
            play(
                ask,
                &format!("{SDP}{SDP_SOUND}"),
                "1",
                vec![Do::Say(packets.collect()), Do::Drip(interleaved(3, &sender_report()))],
            )
        }),
        ("a picture without end", &["stalled", "broken"], b"", |ask| {
            let mut all = vec![interleaved(0, &rtp(96, 0, 0, &[0x7C, 0x85, 1, 2, 3]))];
            all.extend(
                (1..2_000u16).map(|i| interleaved(0, &rtp(96, i, 0, &[&[0x7C, 0x05][..], &[7; 1_400]].concat()))),
            );
            play(ask, SDP, "1", vec![Do::Say(all.concat()), Do::Drip(interleaved(1, &sender_report()))])
        }),
        ("closed inside a picture", &["broken"], b"", |ask| {
            let begun = interleaved(0, &rtp(96, 0, 0, &[0x7C, 0x85, 1, 2, 3]));
            play(ask, SDP, "1", vec![Do::Say([&begun[..], b"$\0\x05\xdc\x80"].concat()), Do::Close])
        }),
        ("RTP that is none", &["stalled", "broken"], b"", |ask| {
            let odd: Vec<Vec<u8>> =
                (0..64usize).map(|i| interleaved((i % 2) as u8, &vec![(i * 37) as u8; i])).collect();
            play(ask, SDP, "1", vec![Do::Say(odd.concat())])
        }),
        ("a request in the middle", &["broken", "stalled"], b"", |ask| {
            play(ask, SDP, "1", vec![Do::Say(b"ANNOUNCE rtsp://x/ RTSP/1.0\r\nCSeq: 1\r\n\r\n".to_vec())])
        }),
        ("a message of 1 GiB in the middle", &["stalled", "broken"], b"", |ask| {
            let head = b"RTSP/1.0 200 OK\r\nCSeq: 9\r\nContent-Length: 1073741824\r\n\r\n".to_vec();
            play(ask, SDP, "1", vec![Do::Say(head), Do::Flood(vec![b'x'; 65_536])])
        }),
    ])
    .await;
}

#[tokio::test]
async fn nobody_is_led_elsewhere() {
    let mut bed = Bed::new().await;
    let elsewhere = Server::start(b"", |ask| play(ask, SDP, "1", vec![])).await;
    // The scripts are plain functions, so the other server's port comes to them this way.
    static OTHER: AtomicU32 = AtomicU32::new(0);
    OTHER.store(elsewhere.addr.port().into(), Ordering::Relaxed);
    let redirect = Server::start(b"", |ask| {
        let to = format!("Location: rtsp://127.0.0.1:{}/x\r\n", OTHER.load(Ordering::Relaxed));
        vec![say(ask, "302 Found", &to, "")]
    })
    .await;
    assert_eq!(bed.told("a redirection", redirect.pull()).await.reason, "refused");
    let control = Server::start(b"", |ask| {
        let to = format!("rtsp://127.0.0.1:{}/x", OTHER.load(Ordering::Relaxed));
        play(ask, &SDP.replace("control:track1", &format!("control:{to}")), "1", vec![])
    })
    .await;
    bed.told("a control URL elsewhere", control.pull()).await;
    assert_eq!(elsewhere.connections.load(Ordering::Relaxed), 0);
    bed.stop().await;
}

/// Not a matter of loopback: addresses nobody answers from, ports nobody listens on, names that are none.
#[tokio::test]
async fn nobody_there() {
    let mut bed = Bed::new().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for url in [format!("rtsp://{free}/main"), "rtsp://no-such-host.invalid/main".into()] {
        let config = PullConfig { step_limit: LIMIT, stall_limit: LIMIT, ..pull(&url, false) };
        assert_eq!(bed.told(&url, config).await.reason, "unreachable");
    }
    bed.stop().await;
}
