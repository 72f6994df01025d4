//! The packet path measured against the kernel: one camera of 4 Mbit/s to 200 receivers over UDP on one core.
//!
//! One round sends the same pictures in each of these ways, in rotated order, over loopback to sinks that read all:
//! - `ours`: the product's media engine (`media::Hub`, one worker on core 0, its sinks and a source of its own);
//! - `mmsg`: the same packets made beforehand, by `sendmmsg`;
//! - `gso`: the same by segmentation offload (`UDP_SEGMENT`), all of a picture at once;
//! - `gso-slots`: the same in the engine's slots, large pictures spread as the engine spreads them.
//!
//! Then PS over RTP of 100 devices in and out, a sink each: `relay`, `remux` by the engine; `mmsg`, `gso` by bare loops.
//! The sender is on core 0, everything else on core 1; CPU time is the sending thread's own, packets are counted at the
//! sinks. Figures drift from minute to minute: only ratios of one round are worth quoting, and their median.
//! `cargo bench --bench packet_path -- [--quick] [--rounds N] [--seconds S] [--sinks N] [--streams N] [--way W]`;
//! results in `target/packet_path.json`. Fails (exit 1) when our path lost a packet or was off its rate by more than 2 %.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program of its own that measures in real time and talks to a person"
)]
#![allow(unsafe_code, reason = "the yardsticks are system calls")]

use bytes::{Bytes, BytesMut};
use menshen::clock::WallClock;
use menshen::media::{
    Frame, FrameFeed, FrameKind, Hub, HubConfig, MediaOptions, PlanePolicy, ReceiveMeters, ReceiveSpec,
    ReceiveTransport, SinkMeters, SinkSpec, SinkTransport, SourceHandle, SourceRequest, SsrcRule, StreamKey, Tracks,
    VideoCodec, receive,
};
use menshen::proto::ps::{MuxConfig, Muxer, VideoUnit};
use menshen::proto::rtp::{Framing, ImageWriter, PT_PS, restamp};
use menshen::sim::clip::ClipLibrary;
use menshen::transport::sockopt::bind_udp;
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The system's allocator, counting what the worker's thread asks of it.
struct Counting;

/// What a picture or a packet would take, by its size; smaller ones are the runtime's (one a slot) and the sender
/// reports' (a few a sink in 5 s).
const LARGE: usize = 1024;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LARGE_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
thread_local! {
    static COUNTED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn count_allocation(size: usize) {
    if COUNTED.get() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LARGE_ALLOCATIONS.fetch_add(u64::from(size >= LARGE), Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_allocation(layout.size());
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_allocation(size);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FPS: u64 = 25;
const FRAME: Duration = Duration::from_millis(1000 / FPS);
/// Of one stream, bits a second.
const RATE: u64 = 4_000_000;
/// RTP payload bytes of a packet: the product's default.
const PAYLOAD: u16 = 1400;
/// Packets of one train, as the product sends them.
const TRAIN: usize = 16;
const SENDER_CORE: usize = 0;
const OTHER_CORE: usize = 1;

struct Options {
    sinks: usize,
    /// Of devices.
    streams: usize,
    rounds: usize,
    settle: Duration,
    measure: Duration,
    quick: bool,
    /// One way alone, for a profiler.
    only: Option<Way>,
}

impl Options {
    fn read() -> Self {
        let args: Vec<String> = std::env::args().collect();
        let value = |name: &str| args.iter().skip_while(|a| *a != name).nth(1);
        let number = |name: &str| value(name).and_then(|n| n.parse::<usize>().ok());
        // Without `--bench` this is `cargo test`: it must run, not measure.
        let quick = args.iter().any(|a| a == "--quick" || a == "--test") || !args.iter().any(|a| a == "--bench");
        let seconds = number("--seconds").unwrap_or(5) as u64;
        Options {
            sinks: number("--sinks").unwrap_or(if quick { 20 } else { 200 }),
            streams: number("--streams").unwrap_or(if quick { 10 } else { 100 }),
            rounds: number("--rounds").unwrap_or(if quick { 1 } else { 5 }),
            settle: Duration::from_millis(if quick { 200 } else { 3000 }),
            measure: if quick { Duration::from_millis(400) } else { Duration::from_secs(seconds) },
            quick,
            only: value("--way").and_then(|name| Way::ALL.into_iter().find(|way| way.name() == name)),
        }
    }
}

fn pin(core: usize) {
    // SAFETY: a zeroed cpu_set_t is a valid empty set, CPU_SET writes inside it for the small index, and the kernel only
    // reads it.
    let rc = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if rc != 0 {
        eprintln!("cannot pin to core {core}: figures will be worse than they are");
    }
}

/// CPU time of a thread of ours.
fn cpu_time(tid: i32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

fn own_tid() -> i32 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// The thread of this name.
fn tid_of(name: &str) -> Option<i32> {
    std::fs::read_dir("/proc/self/task").unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let found = std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
        found.then(|| path.file_name().unwrap().to_str().unwrap().parse().unwrap())
    })
}

// ---- the pictures ----

struct Picture {
    data: Bytes,
    key: bool,
    /// 90 kHz ticks from the beginning.
    ticks: u64,
}

/// The H.264 clip, its pictures lengthened to the wanted rate.
fn pictures() -> Arc<Vec<Picture>> {
    let clip = ClipLibrary::h264();
    let units = clip.units();
    let bytes: u64 = units.iter().map(|unit| unit.bytes.len() as u64).sum();
    let wanted = RATE / 8 * units.len() as u64 / FPS;
    Arc::new(
        units
            .iter()
            .enumerate()
            .map(|(i, unit)| {
                let mut data = BytesMut::from(&unit.bytes[..]);
                let length = (unit.bytes.len() as u64 * wanted / bytes) as usize;
                (data.len()..length).for_each(|n| data.extend_from_slice(&[n as u8 | 1]));
                Picture { data: data.freeze(), key: unit.key, ticks: i as u64 * 90_000 / FPS }
            })
            .collect(),
    )
}

/// The `n`-th picture of the endless loop and its time.
fn looped(pictures: &[Picture], n: u64) -> (&Picture, u64) {
    let length = pictures.len() as u64;
    let picture = &pictures[(n % length) as usize];
    (picture, n / length * length * 90_000 / FPS + picture.ticks)
}

/// A picture as RTP packets, ready but for sequence numbers and SSRC.
struct Packed {
    bytes: BytesMut,
    block: usize,
    packets: usize,
}

fn pack(muxer: &mut Muxer, out: &mut BytesMut, picture: &Picture, ticks: u64) -> (usize, usize) {
    out.clear();
    let mut writer = ImageWriter::new(out, PAYLOAD.into(), Framing::Datagram);
    let unit = VideoUnit { annexb: &picture.data, pts: ticks, dts: ticks, key: picture.key };
    muxer.write_video(&mut writer, &unit);
    let image = writer.finish(true, PT_PS, ticks as u32);
    (image.block, image.packets)
}

fn muxer() -> Muxer {
    Muxer::new(MuxConfig { video: Some(menshen::proto::codec::VideoCodec::H264), audio: None })
}

fn packed(pictures: &[Picture]) -> Vec<Packed> {
    let mut muxer = muxer();
    pictures
        .iter()
        .map(|picture| {
            let mut bytes = BytesMut::new();
            let (block, packets) = pack(&mut muxer, &mut bytes, picture, picture.ticks);
            Packed { bytes, block, packets }
        })
        .collect()
}

// ---- the sinks ----

#[derive(Default)]
struct Counts {
    packets: AtomicU64,
    bytes: AtomicU64,
    frames: AtomicU64,
    lost: AtomicU64,
}

#[derive(Clone, Copy)]
struct Snapshot {
    packets: u64,
    bytes: u64,
    frames: u64,
    lost: u64,
}

/// Sockets that read and count all they get, on a thread of their own.
struct Sinks {
    addresses: Vec<SocketAddr>,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Datagrams read by one system call.
const BATCH: usize = 64;
/// Of each datagram only the head is looked at; the kernel copies all of it.
const ROOM: usize = 2048;

impl Sinks {
    fn open(count: usize) -> Self {
        let sockets: Vec<UdpSocket> = (0..count).map(|_| bind_udp("127.0.0.1:0".parse().unwrap()).unwrap()).collect();
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let (their_counts, their_stop) = (Arc::clone(&counts), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("sinks".into()).spawn(move || {
            pin(OTHER_CORE);
            read_all(&sockets, &their_counts, &their_stop);
        });
        Sinks { addresses, counts, stop, thread: Some(thread.unwrap()) }
    }

    fn snapshot(&self) -> Snapshot {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { packets, bytes, frames, lost } = &*self.counts;
        Snapshot { packets: of(packets), bytes: of(bytes), frames: of(frames), lost: of(lost) }
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn read_all(sockets: &[UdpSocket], counts: &Counts, stop: &AtomicBool) {
    // SAFETY: plain system calls on descriptors that live as long as `sockets`; every pointer handed to the kernel is
    // into `events`, `buffers`, `vectors` or `headers`, whose lengths are those given, and which outlive the calls.
    unsafe {
        let epoll = libc::epoll_create1(0);
        for (i, socket) in sockets.iter().enumerate() {
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: i as u64 };
            libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &raw mut event);
        }
        let mut buffers = vec![0u8; BATCH * ROOM];
        let mut vectors: Vec<libc::iovec> = (0..BATCH)
            .map(|i| libc::iovec { iov_base: buffers.as_mut_ptr().add(i * ROOM).cast(), iov_len: ROOM })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = (0..BATCH)
            .map(|i| {
                let mut header: libc::mmsghdr = std::mem::zeroed();
                header.msg_hdr.msg_iov = &raw mut vectors[i];
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        let mut events: Vec<libc::epoll_event> = vec![std::mem::zeroed(); sockets.len()];
        let mut expected: Vec<Option<u16>> = vec![None; sockets.len()];
        while !stop.load(Ordering::Relaxed) {
            let ready = libc::epoll_wait(epoll, events.as_mut_ptr(), events.len() as i32, 50);
            for event in &events[..ready.max(0) as usize] {
                let sink = event.u64 as usize;
                loop {
                    let fd = sockets[sink].as_raw_fd();
                    let got = libc::recvmmsg(
                        fd,
                        headers.as_mut_ptr(),
                        BATCH as u32,
                        libc::MSG_DONTWAIT,
                        std::ptr::null_mut(),
                    );
                    let got = got.max(0) as usize;
                    for (i, header) in headers[..got].iter().enumerate() {
                        count(&buffers[i * ROOM..], header.msg_len as usize, &mut expected[sink], counts);
                    }
                    if got < BATCH {
                        break;
                    }
                }
            }
        }
        libc::close(epoll);
    }
}

fn count(packet: &[u8], length: usize, expected: &mut Option<u16>, counts: &Counts) {
    // Sender reports of a neighbour may come to this port.
    if length < 12 || packet[1] & 0x7F != PT_PS {
        return;
    }
    let sequence = u16::from_be_bytes([packet[2], packet[3]]);
    let add = |counter: &AtomicU64, n: u64| counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    if let Some(expected) = *expected {
        // Loopback neither reorders nor repeats: a step is a loss.
        add(&counts.lost, u64::from(sequence.wrapping_sub(expected)));
    }
    *expected = Some(sequence.wrapping_add(1));
    add(&counts.packets, 1);
    add(&counts.bytes, length as u64);
    add(&counts.frames, u64::from(packet[1] >> 7));
}

// ---- the ways of sending ----

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ours,
    Mmsg,
    Gso,
    GsoSlots,
}

impl Way {
    const ALL: [Way; 4] = [Way::Ours, Way::Mmsg, Way::Gso, Way::GsoSlots];

    fn name(self) -> &'static str {
        match self {
            Way::Ours => "ours",
            Way::Mmsg => "mmsg",
            Way::Gso => "gso",
            Way::GsoSlots => "gso-slots",
        }
    }
}

/// What one way did in one round.
#[derive(Clone, Copy)]
struct Result {
    cpu: Duration,
    wall: Duration,
    packets: u64,
    bytes: u64,
    /// Pictures a second that each sink got.
    fps: f64,
    lost: u64,
    /// Allocations of our worker's thread, and the large among them.
    allocations: [u64; 2],
}

impl Result {
    fn ns_per_packet(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.packets.max(1) as f64
    }
    fn cpu_s_per_gbit(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.bytes as f64 * 8.0 / 1e9)
    }
    fn core(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }
    fn mbit(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / self.wall.as_secs_f64()
    }
    fn off_rate(&self) -> f64 {
        (self.fps / FPS as f64 - 1.0).abs()
    }
}

/// Lets a sender settle, and measures it.
fn measure(options: &Options, sinks: &Sinks, tid: i32) -> Result {
    std::thread::sleep(options.settle);
    let counted = || [&ALLOCATIONS, &LARGE_ALLOCATIONS].map(|counter| counter.load(Ordering::Relaxed));
    let allocations = counted();
    let (start, before, cpu) = (Instant::now(), sinks.snapshot(), cpu_time(tid));
    std::thread::sleep(options.measure);
    let (wall, after, cpu_after) = (start.elapsed(), sinks.snapshot(), cpu_time(tid));
    let frames = after.frames - before.frames;
    Result {
        cpu: cpu_after - cpu,
        wall,
        packets: after.packets - before.packets,
        bytes: after.bytes - before.bytes,
        fps: frames as f64 / sinks.addresses.len() as f64 / wall.as_secs_f64(),
        // From the beginning: what was lost while settling is lost too.
        lost: after.lost,
        allocations: [0, 1].map(|i| counted()[i] - allocations[i]),
    }
}

fn run(way: Way, options: &Options, pictures: &Arc<Vec<Picture>>) -> Result {
    let sinks = Sinks::open(options.sinks);
    match way {
        Way::Ours => run_ours(options, &sinks, pictures),
        _ => run_raw(way, options, &sinks, pictures),
    }
}

fn run_ours(options: &Options, sinks: &Sinks, pictures: &Arc<Vec<Picture>>) -> Result {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cancel = CancellationToken::new();
    let config = HubConfig { options: MediaOptions::default(), workers: 1, pin: true };
    let (hub, handle) = Hub::new(config, WallClock::new(), Arc::new(|_, _| {})).unwrap();
    let hub = runtime.spawn(hub.run(cancel.clone()));
    let (source, mut wants) = mpsc::channel(16);
    let source = SourceHandle::new(source);
    let (events, _heard) = mpsc::channel(1024);
    let key = StreamKey::live("34020000001320000001", 0);
    let subscribe = |(i, destination): (usize, &SocketAddr)| {
        let any = "127.0.0.1:0".parse().unwrap();
        let spec = SinkSpec {
            ssrc: 1000 + i as u32,
            first_sequence: 7 * i as u16,
            payload_max: PAYLOAD,
            payload_type: PT_PS,
            transport: SinkTransport::Udp {
                socket: bind_udp(any).unwrap(),
                rtcp: Some(bind_udp(any).unwrap()),
                destination: *destination,
            },
            port: None,
            cname: "menshen".into(),
            meters: SinkMeters::default(),
            events: events.clone(),
        };
        handle.subscribe(key.clone(), spec, source.clone()).unwrap()
    };
    let answers: Vec<_> = sinks.addresses.iter().enumerate().map(subscribe).collect();
    let stop_pull = cancel.child_token();
    let leases: Vec<_> = runtime.block_on(async {
        let Some(SourceRequest::Want { seat }) = wants.recv().await else { panic!("the stream is wanted") };
        let pictures = Arc::clone(pictures);
        assert!(seat.run(stop_pull.clone(), move |feed| pull(feed, pictures)));
        let mut leases = Vec::new();
        for answer in answers {
            let ready = answer.await.unwrap().unwrap();
            assert!(ready.lease.start());
            leases.push(ready.lease);
        }
        leases
    });
    let result = measure(options, sinks, tid_of("media-0").expect("the worker runs"));
    drop(leases);
    cancel.cancel();
    runtime.block_on(hub).unwrap();
    result
}

/// A camera that is never late.
async fn pull(feed: FrameFeed, pictures: Arc<Vec<Picture>>) {
    COUNTED.set(true);
    feed.started(Tracks { video: VideoCodec::H264, audio: None, video_clock: 90_000, audio_clock: 8000, size: None });
    let start = tokio::time::Instant::now();
    for n in 0.. {
        tokio::time::sleep_until(start + FRAME * n as u32).await;
        let (picture, ticks) = looped(&pictures, n);
        feed.push(Frame {
            kind: FrameKind::Video { key: picture.key },
            ticks: ticks as i64,
            data: picture.data.clone(),
            loss: 0,
            arrived: Instant::now(),
        });
    }
}

struct RawSink {
    socket: UdpSocket,
    ssrc: u32,
    sequence: u16,
}

fn raw_sinks(addresses: &[SocketAddr]) -> Vec<RawSink> {
    let sink = |(i, address): (usize, &SocketAddr)| {
        let socket = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        socket.connect(address).unwrap();
        RawSink { socket, ssrc: 1000 + i as u32, sequence: 7 * i as u16 }
    };
    addresses.iter().enumerate().map(sink).collect()
}

fn run_raw(way: Way, options: &Options, sinks: &Sinks, pictures: &Arc<Vec<Picture>>) -> Result {
    let mut images = packed(pictures);
    let mut raw = raw_sinks(&sinks.addresses);
    let stop = Arc::new(AtomicBool::new(false));
    let (their_stop, (tid, told)) = (Arc::clone(&stop), std::sync::mpsc::sync_channel(1));
    let sender = std::thread::spawn(move || {
        pin(SENDER_CORE);
        tid.send(own_tid()).unwrap();
        match way {
            Way::GsoSlots => send_in_slots(&mut raw, &mut images, &their_stop),
            _ => send_at_once(way, &mut raw, &mut images, &their_stop),
        }
    });
    let result = measure(options, sinks, told.recv().unwrap());
    stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    result
}

fn sleep_until(at: Instant) {
    let now = Instant::now();
    if at > now {
        std::thread::sleep(at - now);
    }
}

fn send_at_once(way: Way, sinks: &mut [RawSink], images: &mut [Packed], stop: &AtomicBool) {
    let start = Instant::now();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        sleep_until(start + FRAME * n);
        let at = n as usize % images.len();
        let image = &mut images[at];
        for sink in sinks.iter_mut() {
            sink.sequence = restamp(&mut image.bytes, image.block, sink.sequence, sink.ssrc);
            match way {
                Way::Mmsg => send_mmsg(&sink.socket, &image.bytes, image.block),
                _ => send_gso(&sink.socket, &image.bytes, image.block),
            }
        }
        n += 1;
    }
}

fn send_in_slots(sinks: &mut [RawSink], images: &mut [Packed], stop: &AtomicBool) {
    let MediaOptions { slot, pacing_max, .. } = MediaOptions::default();
    let slots = (pacing_max.as_micros() / slot.as_micros()) as usize;
    let start = Instant::now();
    let (mut n, mut sent, mut wake) = (0u32, 0, start);
    while !stop.load(Ordering::Relaxed) {
        wake += slot;
        sleep_until(wake);
        if start + FRAME * n > Instant::now() {
            continue;
        }
        let at = n as usize % images.len();
        let Packed { bytes, block, packets } = &mut images[at];
        let budget = if *packets <= 64 { *packets } else { packets.div_ceil(slots).max(TRAIN).min(*packets - sent) };
        let part = sent * *block..((sent + budget) * *block).min(bytes.len());
        for sink in sinks.iter_mut() {
            sink.sequence = restamp(&mut bytes[part.clone()], *block, sink.sequence, sink.ssrc);
            send_gso(&sink.socket, &bytes[part.clone()], *block);
        }
        sent += budget;
        if sent >= *packets {
            (n, sent) = (n + 1, 0);
        }
    }
}

fn send_mmsg(socket: &UdpSocket, bytes: &[u8], block: usize) {
    // SAFETY: all-zero is a valid empty header; each vector points at bytes that outlive the call, and the kernel only
    // reads them.
    unsafe {
        let mut vectors: [libc::iovec; 64] = std::mem::zeroed();
        let mut headers: [libc::mmsghdr; 64] = std::mem::zeroed();
        for train in bytes.chunks(64 * block) {
            let mut count = 0;
            for packet in train.chunks(block) {
                vectors[count] = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
                headers[count].msg_hdr.msg_iov = &raw mut vectors[count];
                headers[count].msg_hdr.msg_iovlen = 1;
                count += 1;
            }
            libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count as u32, 0);
        }
    }
}

fn send_gso(socket: &UdpSocket, bytes: &[u8], block: usize) {
    /// `UDP_SEGMENT` and its level.
    const SEGMENT: (i32, i32) = (17, 103);
    #[repr(align(8))]
    struct Control([u8; 24]);
    for train in bytes.chunks(TRAIN * block) {
        // SAFETY: all-zero is a valid empty header; the vector points at bytes that outlive the call; the control buffer
        // is aligned and holds one message of two bytes (CMSG_SPACE(2) is 24 on 64-bit Linux).
        unsafe {
            let mut vector = libc::iovec { iov_base: train.as_ptr().cast_mut().cast(), iov_len: train.len() };
            let mut control = Control([0; 24]);
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &raw mut vector;
            header.msg_iovlen = 1;
            if train.len() > block {
                header.msg_control = control.0.as_mut_ptr().cast();
                header.msg_controllen = libc::CMSG_SPACE(2) as _;
                let message = libc::CMSG_FIRSTHDR(&raw const header);
                (*message).cmsg_level = SEGMENT.0;
                (*message).cmsg_type = SEGMENT.1;
                (*message).cmsg_len = libc::CMSG_LEN(2) as _;
                libc::CMSG_DATA(message).cast::<u16>().write_unaligned(block as u16);
            }
            libc::sendmsg(socket.as_raw_fd(), &raw const header, 0);
        }
    }
}

// ---- devices in, sinks out ----

/// How PS over RTP gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    Relay,
    Remux,
    Mmsg,
    Gso,
}

impl Through {
    const ALL: [Through; 4] = [Through::Relay, Through::Remux, Through::Mmsg, Through::Gso];

    fn name(self) -> &'static str {
        match self {
            Through::Relay => "relay",
            Through::Remux => "remux",
            Through::Mmsg => "mmsg",
            Through::Gso => "gso",
        }
    }
}

/// Devices that send the same pictures, each at a phase of its own.
struct Devices {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Devices {
    fn start(to: &[SocketAddr], pictures: &Arc<Vec<Picture>>) -> Self {
        let mut images = packed(pictures);
        let mut raw: Vec<RawSink> = raw_sinks(to);
        let stop = Arc::new(AtomicBool::new(false));
        let their_stop = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("devices".into()).spawn(move || {
            pin(OTHER_CORE);
            let (start, mut wake) = (Instant::now(), Instant::now());
            let phases = raw.len() as u32;
            let mut next = vec![0u32; raw.len()];
            while !their_stop.load(Ordering::Relaxed) {
                wake += Duration::from_millis(1);
                sleep_until(wake);
                let now = Instant::now();
                for (i, device) in raw.iter_mut().enumerate() {
                    while start + FRAME * next[i] + FRAME * i as u32 / phases <= now {
                        let count = images.len();
                        let image = &mut images[next[i] as usize % count];
                        let ticks = next[i] * (90_000 / FPS as u32);
                        for packet in image.bytes.chunks_mut(image.block) {
                            packet[4..8].copy_from_slice(&ticks.to_be_bytes());
                        }
                        device.sequence = restamp(&mut image.bytes, image.block, device.sequence, device.ssrc);
                        send_gso(&device.socket, &image.bytes, image.block);
                        next[i] += 1;
                    }
                }
            }
        });
        Devices { stop, thread: Some(thread.unwrap()) }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn run_through(way: Through, options: &Options, pictures: &Arc<Vec<Picture>>) -> Result {
    let sinks = Sinks::open(options.streams);
    let sockets: Vec<UdpSocket> =
        (0..options.streams).map(|_| bind_udp("127.0.0.1:0".parse().unwrap()).unwrap()).collect();
    let addresses: Vec<SocketAddr> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
    match way {
        Through::Relay => engine_through(PlanePolicy::Relay, options, &sinks, sockets, &addresses, pictures),
        Through::Remux => engine_through(PlanePolicy::Remux, options, &sinks, sockets, &addresses, pictures),
        Through::Mmsg | Through::Gso => {
            let raw = raw_sinks(&sinks.addresses);
            let stop = Arc::new(AtomicBool::new(false));
            let (their_stop, (tid, told)) = (Arc::clone(&stop), std::sync::mpsc::sync_channel(1));
            let thread = std::thread::spawn(move || {
                pin(SENDER_CORE);
                tid.send(own_tid()).unwrap();
                forward(way, &sockets, raw, &their_stop);
            });
            let tid = told.recv().unwrap();
            let devices = Devices::start(&addresses, pictures);
            let result = measure(options, &sinks, tid);
            drop(devices);
            stop.store(true, Ordering::Relaxed);
            thread.join().unwrap();
            result
        }
    }
}

fn engine_through(
    plane: PlanePolicy,
    options: &Options,
    sinks: &Sinks,
    sockets: Vec<UdpSocket>,
    addresses: &[SocketAddr],
    pictures: &Arc<Vec<Picture>>,
) -> Result {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cancel = CancellationToken::new();
    let config = HubConfig { options: MediaOptions::default(), workers: 1, pin: true };
    let (hub, handle) = Hub::new(config, WallClock::new(), Arc::new(|_, _| {})).unwrap();
    let hub = runtime.spawn(hub.run(cancel.clone()));
    let (source, mut wants) = mpsc::channel(1024);
    let source = SourceHandle::new(source);
    let (events, _heard) = mpsc::channel(1024);
    let (told, _told) = mpsc::channel(1024);
    let devices = Devices::start(addresses, pictures);
    let leases: Vec<_> = runtime.block_on(async {
        let mut leases = Vec::new();
        for (i, (socket, destination)) in sockets.into_iter().zip(&sinks.addresses).enumerate() {
            let any = "127.0.0.1:0".parse().unwrap();
            let spec = SinkSpec {
                ssrc: 1000 + i as u32,
                first_sequence: 7 * i as u16,
                payload_max: PAYLOAD,
                payload_type: PT_PS,
                transport: SinkTransport::Udp {
                    socket: bind_udp(any).unwrap(),
                    rtcp: Some(bind_udp(any).unwrap()),
                    destination: *destination,
                },
                port: None,
                cname: "menshen".into(),
                meters: SinkMeters::default(),
                events: events.clone(),
            };
            let key = StreamKey::live(format!("device-{i}"), 0);
            let answer = handle.subscribe(key, spec, source.clone()).unwrap();
            let Some(SourceRequest::Want { seat }) = wants.recv().await else { panic!("the stream is wanted") };
            let receiver = ReceiveSpec {
                transport: ReceiveTransport::Udp { rtp: socket, rtcp: None, from: Vec::new() },
                port: None,
                ssrc: SsrcRule::Learn(1000 + i as u32),
                plane,
                session: false,
                first_packet_limit: Duration::from_secs(10),
                silence_limit: Duration::from_secs(10),
                meters: ReceiveMeters::default(),
                events: told.clone(),
                token: i as u64,
            };
            assert!(seat.run(cancel.child_token(), move |feed| {
                COUNTED.set(true);
                receive(receiver, feed)
            }));
            leases.push(answer);
        }
        let mut ready = Vec::new();
        for answer in leases {
            let sink = answer.await.unwrap().unwrap();
            assert!(sink.lease.start());
            ready.push(sink.lease);
        }
        ready
    });
    let result = measure(options, sinks, tid_of("media-0").expect("the worker runs"));
    drop(devices);
    drop(leases);
    cancel.cancel();
    runtime.block_on(hub).unwrap();
    result
}

/// The least that passes packets on: in slots, `recvmmsg` until nothing is there, header, send.
fn forward(way: Through, sockets: &[UdpSocket], mut sinks: Vec<RawSink>, stop: &AtomicBool) {
    let slot = MediaOptions::default().slot;
    let block = usize::from(PAYLOAD) + 12;
    let mut buffer = vec![0u8; BATCH * block + ROOM];
    let mut wake = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        wake += slot;
        sleep_until(wake);
        for (socket, sink) in sockets.iter().zip(&mut sinks) {
            loop {
                // Whole packets lie back to back; a shorter one ends its picture, and a run.
                let lengths = receive_batch(socket, &mut buffer, block);
                let mut at = 0;
                while at < lengths.len() {
                    let whole = lengths[at..].iter().take_while(|l| **l == block).count();
                    let count = (whole + 1).min(lengths.len() - at);
                    let bytes = &mut buffer[at * block..(at + count - 1) * block + lengths[at + count - 1]];
                    sink.sequence = restamp(bytes, block, sink.sequence, sink.ssrc);
                    match way {
                        Through::Gso => send_gso(&sink.socket, bytes, block),
                        _ => send_mmsg(&sink.socket, bytes, block),
                    }
                    at += count;
                }
                if lengths.len() < BATCH {
                    break;
                }
            }
        }
    }
}

/// Datagrams at a stride of `block` bytes, and their lengths.
fn receive_batch(socket: &UdpSocket, buffer: &mut [u8], block: usize) -> Vec<usize> {
    // SAFETY: all-zero is a valid empty header; the vectors point at `block` bytes each within the buffer, which outlives
    // the call.
    unsafe {
        let mut vectors: [libc::iovec; BATCH] = std::mem::zeroed();
        let mut headers: [libc::mmsghdr; BATCH] = std::mem::zeroed();
        for i in 0..BATCH {
            vectors[i] = libc::iovec { iov_base: buffer[i * block..].as_mut_ptr().cast(), iov_len: block };
            headers[i].msg_hdr.msg_iov = &raw mut vectors[i];
            headers[i].msg_hdr.msg_iovlen = 1;
        }
        let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
        let got = libc::recvmmsg(fd, headers.as_mut_ptr(), BATCH as u32, flags, std::ptr::null_mut()).max(0);
        headers[..got as usize].iter().map(|h| h.msg_len as usize).collect()
    }
}

/// Measures [`Through::ALL`] and says how they compare; false when ours lost a packet or its rate.
fn through(options: &Options, pictures: &Arc<Vec<Picture>>) -> (bool, Value) {
    println!(
        "\n{} devices of {} Mbit/s, PS over RTP in and out by UDP, a sink each",
        options.streams,
        RATE / 1_000_000
    );
    println!("round  way        ns/packet  cpu-s/Gbit  core %   Mbit/s    fps    lost");
    let mut rounds: Vec<[Result; 4]> = Vec::new();
    for round in 0..options.rounds {
        let mut results = [None; 4];
        for step in 0..Through::ALL.len() {
            let at = (round + step) % Through::ALL.len();
            let result = run_through(Through::ALL[at], options, pictures);
            println!(
                "{round:5}  {:<9} {:10.0} {:11.3} {:7.1} {:8.0} {:6.2} {:7}",
                Through::ALL[at].name(),
                result.ns_per_packet(),
                result.cpu_s_per_gbit(),
                100.0 * result.core(),
                result.mbit(),
                result.fps,
                result.lost
            );
            results[at] = Some(result);
        }
        if let [Some(relay), Some(remux), Some(mmsg), Some(gso)] = results {
            rounds.push([relay, remux, mmsg, gso]);
        }
    }
    let mut document = serde_json::Map::new();
    for way in Through::ALL {
        let of = |figure: fn(&Result) -> f64| spread(rounds.iter().map(|round| figure(&round[way as usize])));
        let (packet, gbit) = (of(Result::ns_per_packet), of(Result::cpu_s_per_gbit));
        println!(
            "  {:<9} {:6.0} ns/packet   {:.3} cpu-s/Gbit ({:.3}, {:.3})",
            way.name(),
            packet[0],
            gbit[0],
            gbit[1],
            gbit[2]
        );
        document.insert(way.name().to_owned(), json!({ "ns_per_packet": packet, "cpu_s_per_gbit": gbit }));
    }
    for ours in [Through::Relay, Through::Remux] {
        for raw in [Through::Mmsg, Through::Gso] {
            let of = |r: &[Result; 4]| r[ours as usize].ns_per_packet() / r[raw as usize].ns_per_packet();
            let ratio = spread(rounds.iter().map(of));
            println!("  {} / {:<5} {:.3} ({:.3}, {:.3})", ours.name(), raw.name(), ratio[0], ratio[1], ratio[2]);
            document.insert(format!("{}_to_{}", ours.name(), raw.name()), json!(ratio));
        }
        let one = |round: &[Result; 4]| round[ours as usize];
        let pictures = |r: &Result| (r.fps * r.wall.as_secs_f64() * options.streams as f64).max(1.0);
        let [small, large] =
            [0, 1].map(|i| spread(rounds.iter().map(one).map(|r| r.allocations[i] as f64 / pictures(&r))));
        println!(
            "  {}: allocations a picture {:.2}, {:.3} of them of {LARGE} bytes or more",
            ours.name(),
            small[0],
            large[0]
        );
    }
    let ours = || rounds.iter().flat_map(|round| [&round[0], &round[1]]);
    let sound = ours().all(|r| r.lost == 0 && r.off_rate() <= 0.02);
    (sound, Value::Object(document))
}

// ---- user space alone ----

/// Nanoseconds a packet of muxing and packing, and of restamping for one further receiver.
fn user_space(pictures: &[Picture], passes: usize) -> (f64, f64) {
    let (mut muxer, mut out) = (muxer(), BytesMut::new());
    let mut timed = |count: usize| {
        let (start, mut packets) = (Instant::now(), 0);
        for n in 0..count as u64 {
            let (picture, ticks) = looped(pictures, n);
            packets += pack(&mut muxer, &mut out, picture, ticks).1;
        }
        start.elapsed().as_nanos() as f64 / packets as f64
    };
    timed(pictures.len());
    let mux = timed(passes * pictures.len());
    let mut images = packed(pictures);
    let (start, mut packets, mut sequence) = (Instant::now(), 0, 0);
    for _ in 0..passes {
        for image in &mut images {
            for ssrc in 0..20 {
                sequence = restamp(std::hint::black_box(&mut image.bytes), image.block, sequence, ssrc);
            }
            packets += 20 * image.packets;
        }
    }
    (mux, start.elapsed().as_nanos() as f64 / packets as f64)
}

// ---- the report ----

/// Median, least and most.
fn spread(values: impl IntoIterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (values.first(), values.last()) else { return [0.0; 3] };
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
    [median, *least, *most]
}

fn main() {
    let options = Options::read();
    pin(OTHER_CORE);
    let pictures = pictures();
    let per_second: usize = packed(&pictures).iter().map(|p| p.packets).sum::<usize>() * FPS as usize / pictures.len();
    println!(
        "1 camera of {} Mbit/s, {FPS} pictures and {per_second} packets a second, to {} sinks over UDP on loopback",
        RATE / 1_000_000,
        options.sinks
    );
    let (mux, stamp) = user_space(&pictures, if options.quick { 2 } else { 40 });
    println!("user space: mux and pack {mux:.1} ns/packet, restamp {stamp:.2} ns/packet\n");
    println!("round  way        ns/packet  cpu-s/Gbit  core %   Mbit/s    fps    lost");
    let mut rounds: Vec<[Result; 4]> = Vec::new();
    for round in 0..options.rounds {
        let mut results = [None; 4];
        for step in 0..Way::ALL.len() {
            let at = (round + step) % Way::ALL.len();
            let way = Way::ALL[at];
            if options.only.is_some_and(|only| only != way) {
                continue;
            }
            let result = run(way, &options, &pictures);
            println!(
                "{round:5}  {:<9} {:10.0} {:11.3} {:7.1} {:8.0} {:6.2} {:7}",
                way.name(),
                result.ns_per_packet(),
                result.cpu_s_per_gbit(),
                100.0 * result.core(),
                result.mbit(),
                result.fps,
                result.lost
            );
            results[at] = Some(result);
        }
        if let [Some(ours), Some(mmsg), Some(gso), Some(slots)] = results {
            rounds.push([ours, mmsg, gso, slots]);
        }
    }
    if rounds.is_empty() {
        return;
    }
    let (through_sound, through) = through(&options, &pictures);
    println!();
    let sound = report(&options, &rounds, mux, stamp, &through) && through_sound;
    if !sound && !options.quick {
        std::process::exit(1);
    }
}

fn report(options: &Options, rounds: &[[Result; 4]], mux: f64, stamp: f64, through: &Value) -> bool {
    // A round in which the yardstick itself was off had a noisy neighbour.
    let yardstick = |round: &[Result; 4]| round[Way::GsoSlots as usize].ns_per_packet();
    let [usual, ..] = spread(rounds.iter().map(yardstick));
    let kept: Vec<&[Result; 4]> = rounds.iter().filter(|r| (yardstick(r) / usual - 1.0).abs() <= 0.25).collect();
    println!("\nmedians of {} rounds of {} (least, most):", kept.len(), rounds.len());
    let mut ways = serde_json::Map::new();
    for way in Way::ALL {
        let of = |figure: fn(&Result) -> f64| spread(kept.iter().map(|round| figure(&round[way as usize])));
        let (packet, gbit, core) = (of(Result::ns_per_packet), of(Result::cpu_s_per_gbit), of(Result::core));
        println!(
            "  {:<9} {:6.0} ns/packet ({:.0}, {:.0})   {:.3} cpu-s/Gbit ({:.3}, {:.3})   {:.1} % of a core",
            way.name(),
            packet[0],
            packet[1],
            packet[2],
            gbit[0],
            gbit[1],
            gbit[2],
            100.0 * core[0]
        );
        ways.insert(way.name().to_owned(), json!({ "ns_per_packet": packet, "cpu_s_per_gbit": gbit, "core": core }));
    }
    let mut ratios = serde_json::Map::new();
    for way in [Way::Mmsg, Way::Gso, Way::GsoSlots] {
        let ratio = spread(kept.iter().map(|r| r[0].ns_per_packet() / r[way as usize].ns_per_packet()));
        println!("  ours / {:<9} {:.3} ({:.3}, {:.3})", way.name(), ratio[0], ratio[1], ratio[2]);
        ratios.insert(way.name().to_owned(), json!(ratio));
    }
    let ours = || rounds.iter().map(|round| &round[Way::Ours as usize]);
    let lost: u64 = ours().map(|r| r.lost).sum();
    let off = ours().map(Result::off_rate).fold(0.0, f64::max);
    let core = spread(kept.iter().map(|r| r[Way::Ours as usize].core()));
    println!(
        "  {} sinks of {} Mbit/s over UDP on one core: {:.1} % of it, {lost} packets lost, rate off by {:.1} %",
        options.sinks,
        RATE / 1_000_000,
        100.0 * core[0],
        100.0 * off
    );
    let pictures = |r: &Result| (r.fps * r.wall.as_secs_f64()).max(1.0);
    let [small, large] = [0, 1].map(|i| spread(ours().map(|r| r.allocations[i] as f64 / pictures(r))));
    println!(
        "  allocations on the worker's thread: {:.1} a picture, {:.2} of them of {LARGE} bytes or more",
        small[0], large[0]
    );
    let all: Vec<Value> = rounds
        .iter()
        .map(|round| {
            let figures = |way: Way| {
                let r = &round[way as usize];
                json!({ "ns_per_packet": r.ns_per_packet(), "cpu_s_per_gbit": r.cpu_s_per_gbit(), "core": r.core(),
                        "mbit": r.mbit(), "fps": r.fps, "lost": r.lost })
            };
            Value::Object(Way::ALL.into_iter().map(|way| (way.name().to_owned(), figures(way))).collect())
        })
        .collect();
    let sound = lost == 0 && off <= 0.02;
    let document = json!({
        "quick": options.quick, "sinks": options.sinks, "rate": RATE, "seconds": options.measure.as_secs_f64(),
        "mux_and_pack_ns_per_packet": mux, "restamp_ns_per_packet": stamp,
        "allocations_per_picture": small, "large_allocations_per_picture": large, "median_least_most": ways, "ours_to": ratios, "ours_lost": lost, "ours_off_rate": off, "sound": sound,
        "rounds": all, "through": through, "streams": options.streams,
    });
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), std::path::PathBuf::from);
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("packet_path.json");
    match std::fs::write(&file, format!("{document:#}\n")) {
        Ok(()) => println!("  written to {}", file.display()),
        Err(error) => eprintln!("cannot write {}: {error}", file.display()),
    }
    sound
}
