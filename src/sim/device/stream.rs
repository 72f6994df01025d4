//! The media of one call: the channel's clip as PS over RTP, in real time or faster, under control.
//!
//! Standard: [GB/T28181-2022 annex C] PS over RTP, [annex D] over TCP, [annex B] playback control.
//! In: where to send, a clip, commands. Out: RTP; the end of the recording, or of the connection, as an event.
//! Invariants: pictures leave in the clip's order, one timestamp each, marker on the last packet; RTP timestamps and
//! sequence numbers run on over pauses and jumps, times inside PS are those of the recording.
//! Not here: signalling (`call`).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::MediaFaults;
use super::state::Shared;
use crate::clock;
use crate::proto::codec::{AudioCodec, VideoCodec};
use crate::proto::ps::{MuxConfig, Muxer, VideoUnit};
use crate::proto::rtp::{Framing, ImageWriter, restamp};
use crate::sim::clip::{self, AccessUnit, AudioClip, Clip};

/// RTP payload of a packet. [GB/T28181-2022 C.2]
const PAYLOAD: usize = 1400;
/// Where the times of PS begin, so that nothing is due before 0.
const START_TICKS: u64 = 90_000;
/// Tries to connect, the pause between them, and the time of one. [GB/T28181-2022 annex D]
const CONNECT_TRIES: usize = 3;
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long the platform may take to connect to us.
const ACCEPT_TIME: Duration = Duration::from_secs(10);
/// A stream that is later than this does not catch up.
const MAX_LATE: Duration = Duration::from_secs(1);
/// Pictures a file's size is counted over; a longer file is taken in proportion: ten minutes at 25 a second.
const COUNTED_PICTURES: u64 = 15_000;
/// Start codes that may stand before the first PES of a pack [ISO13818-1 2.5.3.5, 2.5.4.1].
const SYSTEM_HEADER: u8 = 0xBB;
const STREAM_MAP: u8 = 0xBC;
/// Length of the pack headers the muxer writes.
const PACK_HEADER: usize = 14;

/// Where media goes.
#[derive(Debug)]
pub(super) enum Way {
    /// From this socket to that address.
    Udp(UdpSocket, SocketAddr),
    /// Connect from this address to that one.
    Connect(SocketAddr, SocketAddr),
    /// The platform connects.
    Listen(TcpListener),
}

/// Where a stream stands: what an answer to PLAY tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    /// Sequence number of the next packet.
    pub sequence: u16,
    /// Its timestamp.
    pub timestamp: u32,
    /// Seconds from the start of the recording.
    pub npt: f64,
}

/// What a stream is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Go on.
    Play {
        /// At this speed from now on.
        scale: Option<f64>,
        /// From this second on.
        from: Option<f64>,
        /// Told where the stream then stands.
        reply: oneshot::Sender<Place>,
    },
    /// Send nothing until told.
    Pause(oneshot::Sender<Place>),
    /// The next picture is to be a key picture.
    KeyPicture,
}

/// How a stream ended. It is ended for good by its token alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The recording has been played.
    Finished,
    /// There is no connection.
    Broken,
}

/// Everything a stream begins with.
#[derive(Debug)]
pub(super) struct Streaming {
    pub call_id: String,
    pub shared: Arc<Shared>,
    pub packer: Packer,
    pub way: Way,
    pub ssrc: u32,
    pub payload_type: u8,
    /// Pictures of the recording; `None` for live.
    pub pictures: Option<u64>,
    /// Times real time.
    pub pace: f64,
    pub orders: mpsc::Receiver<Order>,
    pub endings: mpsc::Sender<(String, Ending)>,
    pub rng: StdRng,
}

/// Turns a clip into program stream packs.
#[derive(Debug)]
pub(super) struct Packer {
    clip: Arc<Clip>,
    audio: Option<Arc<AudioClip>>,
    muxer: Muxer,
    /// Pictures since the start of the recording.
    position: u64,
    /// The clip's picture that is next; runs ahead of `position` once a key picture was asked for.
    unit: u64,
    /// The sound that is next.
    sound: u64,
}

fn mux_config(clip: &Clip, audio: Option<&AudioClip>, faults: &MediaFaults) -> MuxConfig {
    let h264 = (clip.codec() == clip::VideoCodec::H264) != faults.wrong_psm;
    let audio = audio.map(|audio| match audio.codec() {
        clip::AudioCodec::Pcma => AudioCodec::G711A,
        clip::AudioCodec::Pcmu => AudioCodec::G711U,
        clip::AudioCodec::Aac => AudioCodec::Aac,
    });
    MuxConfig { video: Some(if h264 { VideoCodec::H264 } else { VideoCodec::H265 }), audio }
}

impl Packer {
    pub fn new(clip: Arc<Clip>, audio: Option<Arc<AudioClip>>) -> Self {
        let muxer = Muxer::new(mux_config(&clip, audio.as_deref(), &MediaFaults::default()));
        Packer { clip, audio, muxer, position: 0, unit: 0, sound: 0 }
    }

    /// Bytes of the program stream of so many pictures and their sound.
    pub fn size(mut self, pictures: u64) -> u64 {
        let (mut pack, mut bytes) = (BytesMut::new(), 0u64);
        let counted = pictures.min(COUNTED_PICTURES);
        for _ in 0..counted {
            pack.clear();
            self.picture(&MediaFaults::default(), &mut pack);
            self.sounds(&mut pack);
            bytes += pack.len() as u64;
        }
        match counted {
            0 => 0,
            _ => (u128::from(bytes) * u128::from(pictures) / u128::from(counted)) as u64,
        }
    }

    fn ticks(&self, pictures: u64) -> u64 {
        pictures.saturating_mul(u64::from(clip::VIDEO_CLOCK)) / u64::from(self.clip.fps())
    }

    /// Appends the next picture's pack.
    fn picture(&mut self, faults: &MediaFaults, out: &mut BytesMut) {
        self.muxer.set_config(mux_config(&self.clip, self.audio.as_deref(), faults));
        let (unit, shown) = self.clip.looped(self.unit);
        let ahead = shown.saturating_sub(self.ticks(self.unit));
        let dts = START_TICKS + if faults.frozen_timestamps { 0 } else { self.ticks(self.position) };
        let bare = (faults.no_parameter_sets && unit.key).then(|| without_parameter_sets(&self.clip, unit));
        let annexb: &[u8] = bare.as_deref().unwrap_or(&unit.bytes);
        let start = out.len();
        self.muxer.write_video(out, &VideoUnit { annexb, pts: dts + ahead, dts, key: unit.key });
        if unit.key && (faults.no_psm || faults.no_system_header) {
            let pack = out.split_off(start);
            out.unsplit(trimmed(&pack, faults));
        }
        self.position += 1;
        self.unit += 1;
    }

    /// Appends a pack with the sound due before the next picture; false when there is none.
    fn sounds(&mut self, out: &mut BytesMut) -> bool {
        let Some(audio) = &self.audio else { return false };
        let (first, mut payload) = (self.sound, Vec::new());
        while audio.due(self.sound) < self.clip.due(self.position) {
            payload.extend_from_slice(&audio.looped(self.sound).0.bytes);
            self.sound += 1;
        }
        let samples = first.saturating_mul(u64::from(audio.frame_ticks()));
        let ticks = samples.saturating_mul(u64::from(clip::VIDEO_CLOCK)) / u64::from(audio.clock());
        self.muxer.write_audio(out, &payload, START_TICKS + ticks) > 0
    }

    /// Goes to the key picture at or before `second`.
    fn seek(&mut self, second: f64) {
        // A negative or absurd number becomes the nearest that fits.
        let mut at = (second * f64::from(self.clip.fps())) as u64;
        while !self.clip.looped(at).0.key {
            // The first picture of every pass is a key picture.
            at -= 1;
        }
        (self.position, self.unit) = (at, at);
        self.align_sound();
        self.muxer.restart_clock();
    }

    /// The next sound is that of the present place.
    fn align_sound(&mut self) {
        if let Some(audio) = &self.audio {
            let frame = audio.due(1).as_nanos().max(1);
            self.sound = self.clip.due(self.position).as_nanos().div_ceil(frame) as u64;
        }
    }

    fn skip_to_key_picture(&mut self) {
        while !self.clip.looped(self.unit).0.key {
            self.unit += 1;
        }
    }

    fn npt(&self) -> f64 {
        self.position as f64 / f64::from(self.clip.fps())
    }
}

fn without_parameter_sets(clip: &Clip, unit: &AccessUnit) -> Bytes {
    let mut bytes = BytesMut::new();
    for nal in unit.nals.iter().filter(|nal| !clip.parameter_sets().contains(nal)) {
        bytes.put_slice(&[0, 0, 0, 1]);
        bytes.put_slice(nal);
    }
    bytes.freeze()
}

/// A pack of the muxer without its system header or stream map.
fn trimmed(pack: &[u8], faults: &MediaFaults) -> BytesMut {
    let (head, mut rest) = pack.split_at(pack.len().min(PACK_HEADER));
    let mut out = BytesMut::from(head);
    while let [0, 0, 1, code @ (SYSTEM_HEADER | STREAM_MAP), high, low, ..] = *rest {
        let length = 6 + usize::from(u16::from_be_bytes([high, low]));
        let (part, after) = rest.split_at(rest.len().min(length));
        let gone = if code == STREAM_MAP { faults.no_psm } else { faults.no_system_header };
        if !gone {
            out.put_slice(part);
        }
        rest = after;
    }
    out.put_slice(rest);
    out
}

enum Line {
    Udp(UdpSocket, SocketAddr),
    Tcp(TcpStream),
}

impl Streaming {
    /// Streams until `token`.
    pub async fn run(self, token: CancellationToken) {
        let (call_id, shared, endings) = (self.call_id.clone(), self.shared.clone(), self.endings.clone());
        let streamed = tokio::select! {
            () = token.cancelled() => return,
            streamed = self.stream() => streamed,
        };
        if let Err(error) = streamed {
            tracing::debug!(%error, "a simulated device's media ended");
            shared.count(|s| s.media_failures += 1);
            // A closed queue means that the device has ended.
            let _ = endings.send((call_id, Ending::Broken)).await;
        }
    }

    async fn stream(self) -> io::Result<()> {
        let Streaming {
            call_id,
            shared,
            packer,
            way,
            ssrc,
            payload_type,
            pictures,
            pace,
            mut orders,
            endings,
            mut rng,
        } = self;
        let line = open(way).await?;
        let (sequence, timestamp) = (rng.random(), rng.random());
        let mut sender = Sender {
            shared,
            packer,
            line,
            ssrc,
            payload_type,
            sequence,
            timestamp,
            scale: 1.0,
            rng,
            image: BytesMut::new(),
            pack: BytesMut::new(),
        };
        let (mut playing, mut due) = (true, clock::now());
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    None => return Ok(()),
                    Some(Order::KeyPicture) => sender.packer.skip_to_key_picture(),
                    Some(Order::Pause(reply)) => {
                        playing = false;
                        // Nobody may wait for it any more.
                        let _ = reply.send(sender.place());
                    }
                    Some(Order::Play { scale, from, reply }) => {
                        sender.play(scale, from);
                        (playing, due) = (true, clock::now());
                        let _ = reply.send(sender.place());
                    }
                },
                () = tokio::time::sleep_until(due.into()), if playing => {
                    if pictures.is_some_and(|all| sender.packer.position >= all) {
                        playing = false;
                        sender.shared.count(|s| s.recordings_finished += 1);
                        if endings.send((call_id.clone(), Ending::Finished)).await.is_err() {
                            return Ok(());
                        }
                        continue;
                    }
                    sender.picture().await?;
                    // A stream that is late must not keep its receiver from reading.
                    tokio::task::yield_now().await;
                    due = next_due(due, clock::now(), sender.interval(pace));
                }
            }
        }
    }
}

fn next_due(due: Instant, now: Instant, interval: Duration) -> Instant {
    let next = due + interval;
    if next + MAX_LATE < now { now } else { next }
}

async fn open(way: Way) -> io::Result<Line> {
    match way {
        Way::Udp(socket, remote) => Ok(Line::Udp(socket, remote)),
        Way::Listen(listener) => {
            let accepted = tokio::time::timeout(ACCEPT_TIME, listener.accept()).await;
            Ok(Line::Tcp(accepted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??.0))
        }
        Way::Connect(local, remote) => {
            let mut tries = CONNECT_TRIES;
            loop {
                tries -= 1;
                match connect(local, remote).await {
                    Ok(stream) => return Ok(Line::Tcp(stream)),
                    Err(error) if tries == 0 => return Err(error),
                    Err(_) => tokio::time::sleep(CONNECT_PAUSE).await,
                }
            }
        }
    }
}

async fn connect(local: SocketAddr, remote: SocketAddr) -> io::Result<TcpStream> {
    let socket = if local.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(local)?;
    let connected = tokio::time::timeout(CONNECT_TIME, socket.connect(remote)).await;
    connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Sends packs as RTP.
struct Sender {
    shared: Arc<Shared>,
    packer: Packer,
    line: Line,
    ssrc: u32,
    payload_type: u8,
    sequence: u16,
    timestamp: u32,
    scale: f64,
    rng: StdRng,
    image: BytesMut,
    pack: BytesMut,
}

impl Sender {
    fn place(&self) -> Place {
        Place { sequence: self.sequence, timestamp: self.timestamp, npt: self.packer.npt() }
    }

    fn play(&mut self, scale: Option<f64>, from: Option<f64>) {
        if let Some(scale) = scale {
            if self.scale != 1.0 && scale == 1.0 {
                self.packer.align_sound();
            }
            self.scale = scale;
        }
        if let Some(second) = from {
            self.packer.seek(second);
        }
    }

    /// Between two pictures.
    fn interval(&self, pace: f64) -> Duration {
        Duration::from_secs_f64(1.0 / (f64::from(self.packer.clip.fps()) * self.scale * pace))
    }

    /// The next picture, and the sound that goes with it at normal speed.
    async fn picture(&mut self) -> io::Result<()> {
        let faults = self.shared.media_faults();
        let step = (self.packer.ticks(1) as f64 / self.scale).max(2.0) as u32;
        self.pack.clear();
        self.packer.picture(&faults, &mut self.pack);
        self.send(&faults, self.timestamp).await?;
        self.pack.clear();
        if self.scale == 1.0 && self.packer.sounds(&mut self.pack) {
            // A frame of its own has a timestamp of its own. [GB/T28181-2022 4.3.6]
            let half = if faults.frozen_timestamps { 0 } else { step / 2 };
            self.send(&faults, self.timestamp.wrapping_add(half)).await?;
        }
        if !faults.frozen_timestamps {
            self.timestamp = self.timestamp.wrapping_add(step);
        }
        self.shared.count(|s| s.pictures += 1);
        Ok(())
    }

    async fn send(&mut self, faults: &MediaFaults, timestamp: u32) -> io::Result<()> {
        let mut writer = ImageWriter::new(&mut self.image, PAYLOAD, Framing::Datagram);
        writer.write(&self.pack);
        let shape = writer.finish(true, self.payload_type, timestamp);
        let ssrc = if faults.wrong_ssrc { self.ssrc ^ 1 } else { self.ssrc };
        self.sequence = restamp(&mut self.image, shape.block, self.sequence, ssrc);
        let image = self.image.split().freeze();
        let packets = (0..shape.packets).map(|n| n * shape.block);
        let packets: Vec<Bytes> =
            packets.map(|start| image.slice(start..(start + shape.block).min(image.len()))).collect();
        if faults.mute {
            return Ok(());
        }
        let packets = self.struck(faults, packets);
        match &mut self.line {
            Line::Udp(socket, remote) => {
                for packet in &packets {
                    // A datagram that does not leave is a lost one.
                    let _ = socket.send_to(packet, *remote).await;
                }
            }
            Line::Tcp(stream) => {
                let mut bytes = BytesMut::with_capacity(image.len() + packets.len() * 4);
                for packet in &packets {
                    if faults.interleaved {
                        bytes.put_slice(b"$\0");
                    }
                    // A block is far below 64 KiB.
                    bytes.put_u16(packet.len() as u16);
                    bytes.put_slice(packet);
                }
                stream.write_all(&bytes).await?;
            }
        }
        self.shared.count(|s| s.packets += packets.len() as u64);
        Ok(())
    }

    /// The packets as the faults leave them.
    fn struck(&mut self, faults: &MediaFaults, mut packets: Vec<Bytes>) -> Vec<Bytes> {
        let random = [faults.drop_percent, faults.reorder_percent, faults.duplicate_percent, faults.alien_percent];
        if random == [0; 4] {
            return packets;
        }
        let mut strikes = |percent: u8| percent > 0 && self.rng.random_range(0..100) < percent;
        for n in 1..packets.len() {
            if strikes(faults.reorder_percent) {
                packets.swap(n - 1, n);
            }
        }
        let mut sent = Vec::with_capacity(packets.len() * 2);
        for packet in packets {
            if strikes(faults.drop_percent) {
                continue;
            }
            if strikes(faults.duplicate_percent) {
                sent.push(packet.clone());
            }
            let alien = strikes(faults.alien_percent).then(|| {
                let mut alien = BytesMut::from(&packet[..]);
                // The SSRC's first byte: far from any `y=` of ten digits. [RFC3550 5.1]
                alien[8] ^= 0x80;
                alien.freeze()
            });
            sent.push(packet);
            sent.extend(alien);
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ps::{DemuxConfig, Demuxer, Unit};
    use crate::sim::clip::ClipLibrary;

    fn units(packs: &[u8]) -> Vec<Unit> {
        let mut demuxer = Demuxer::new(DemuxConfig::default());
        demuxer.push(packs);
        demuxer.end_of_frame();
        std::iter::from_fn(|| demuxer.pull()).collect()
    }

    #[test]
    fn a_seek_goes_back_to_a_key_picture_with_the_times_of_the_recording() {
        for (clip, audio) in [
            (ClipLibrary::h264(), Some(ClipLibrary::pcma())),
            (ClipLibrary::h265(), None),
            (ClipLibrary::h264_bframes(), Some(ClipLibrary::aac())),
        ] {
            let (mut packer, mut out) = (Packer::new(clip.clone(), audio), BytesMut::new());
            packer.seek(61.5);
            assert_eq!(packer.npt(), 61.0);
            packer.picture(&MediaFaults::default(), &mut out);
            packer.sounds(&mut out);
            let found = units(&out).into_iter().find_map(|unit| match unit {
                Unit::Video { dts, key, annexb, .. } => Some((dts, key, clip.find(&annexb).is_some())),
                _ => None,
            });
            assert_eq!(found, Some((START_TICKS + 61 * 90_000, true, true)));
        }
    }

    #[test]
    fn headers_and_parameter_sets_go_where_told() {
        let contains = |pack: &[u8], code: u8| pack.windows(4).any(|w| w == [0, 0, 1, code]);
        let clip = ClipLibrary::h264();
        let pack = |faults: MediaFaults| {
            let mut out = BytesMut::new();
            Packer::new(clip.clone(), None).picture(&faults, &mut out);
            out
        };
        let whole = pack(MediaFaults::default());
        assert!(contains(&whole, SYSTEM_HEADER) && contains(&whole, STREAM_MAP));
        let no_psm = pack(MediaFaults { no_psm: true, ..MediaFaults::default() });
        assert!(contains(&no_psm, SYSTEM_HEADER) && !contains(&no_psm, STREAM_MAP));
        let neither = pack(MediaFaults { no_psm: true, no_system_header: true, ..MediaFaults::default() });
        assert!(!contains(&neither, SYSTEM_HEADER) && !contains(&neither, STREAM_MAP));
        assert!(whole.ends_with(&neither[PACK_HEADER..]));
        let bare = pack(MediaFaults { no_parameter_sets: true, ..MediaFaults::default() });
        let sets = clip.parameter_sets();
        assert!(sets.iter().all(|set| whole.windows(set.len()).any(|w| w == set)));
        assert!(sets.iter().all(|set| !bare.windows(set.len()).any(|w| w == set)));
        let lying = pack(MediaFaults { wrong_psm: true, ..MediaFaults::default() });
        assert_eq!(lying.iter().zip(&whole).filter(|(a, b)| a != b).count(), 6); // version, stream type, CRC
    }
}
