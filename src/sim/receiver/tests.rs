//! Ports and connections; the reading of packets is tested with the platform's calls.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use super::verify::Verifier;
use super::*;
use crate::proto::codec::VideoCodec;
use crate::proto::ps::{MuxConfig, Muxer, VideoUnit};
use crate::proto::rtp::{Framing, Header, ImageWriter, Packet, restamp};
use crate::sim::clip::{Clip, ClipLibrary};
use bytes::BytesMut;
use proptest::prelude::*;

const LIMIT: Duration = Duration::from_secs(10);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn expected(clip: Option<Arc<Clip>>) -> Expected {
    Expected { ssrc: Some(7), payload_type: 96, clip }
}

fn plan(remote: SocketAddr) -> ReceivePlan {
    ReceivePlan { remote, expected: expected(None), began: clock::now(), dump: None }
}

/// The packets of some pictures of a clip, each with what `prefix` says before it.
fn packets(clip: &Clip, numbers: std::ops::Range<u64>, prefix: impl Fn(u64) -> Vec<u8>) -> Vec<Vec<u8>> {
    let mut muxer = Muxer::new(MuxConfig { video: Some(VideoCodec::H264), audio: None });
    let (mut image, mut sequence, mut out) = (BytesMut::new(), 0, Vec::new());
    for n in numbers {
        let (unit, pts) = clip.looped(n);
        let picture = [prefix(n), unit.bytes.to_vec()].concat();
        image.clear();
        let mut writer = ImageWriter::new(&mut image, 1400, Framing::Datagram);
        let video = VideoUnit { annexb: &picture, pts, dts: pts, key: unit.key };
        muxer.write_video(&mut writer, &video);
        let shape = writer.finish(true, 96, pts as u32);
        sequence = restamp(&mut image, shape.block, sequence, 7);
        out.extend(image.chunks(shape.block).map(<[u8]>::to_vec));
    }
    out
}

fn verdict(packets: &[Vec<u8>], clip: &Arc<Clip>) -> Verdict {
    let now = clock::now();
    let mut verifier = Verifier::new(expected(Some(clip.clone())), now, false);
    for packet in packets {
        verifier.packet(now, packet);
    }
    verifier.finish(now);
    verifier.verdict()
}

#[test]
fn parameter_sets_and_a_delimiter_may_stand_before_a_picture() {
    let clip = ClipLibrary::h264();
    let sets: Vec<u8> = clip.parameter_sets().iter().flat_map(|set| [&[0, 0, 0, 1], &set[..]].concat()).collect();
    let delimiter = [0, 0, 0, 1, 9, 0xF0];
    let before = |n: u64| match n {
        0 => [&delimiter[..], &sets].concat(),
        _ => delimiter.to_vec(),
    };
    let whole = verdict(&packets(&clip, 0..30, before), &clip);
    assert_eq!((whole.exact, whole.problems()), (30, vec![]));
    let alien = |n: u64| if n == 5 { vec![0, 0, 0, 1, 0x67, 1, 2, 3] } else { Vec::new() };
    let spoilt = verdict(&packets(&clip, 0..30, alien), &clip);
    assert_eq!((spoilt.exact, spoilt.altered), (29, 1));
}

#[test]
fn disorder_and_repetition_do_no_harm_but_are_counted() {
    let clip = ClipLibrary::h264();
    let mut all = packets(&clip, 0..10, |_| Vec::new());
    all.swap(5, 6);
    let again = all[9].clone();
    all.insert(10, again);
    let found = verdict(&all, &clip);
    assert_eq!((found.exact, found.altered, found.lost), (10, 0, 0));
    assert_eq!((found.reordered, found.duplicates), (1, 1));
    assert_eq!(found.problems(), [Problem::Duplicates(1)]);
}

#[test]
fn rules_of_rtp_are_watched() {
    let clip = ClipLibrary::h264();
    let good = packets(&clip, 0..6, |_| Vec::new());
    let header = |packet: &mut Vec<u8>, edit: &dyn Fn(&mut Header)| {
        let read = Packet::parse(packet).unwrap();
        let mut header = Header {
            marker: read.marker,
            payload_type: read.payload_type,
            sequence: read.sequence,
            timestamp: read.timestamp,
            ssrc: read.ssrc,
        };
        edit(&mut header);
        packet[..12].copy_from_slice(&header.to_bytes());
    };
    let first_end = good.iter().position(|p| Packet::parse(p).unwrap().marker).unwrap();
    assert!(first_end > 1, "the key picture takes several packets");
    type Edit<'a> = (usize, &'a dyn Fn(&mut Header), Problem);
    let edits: [Edit<'_>; 4] = [
        (0, &|h| h.marker = true, Problem::MarkerEarly(1)),
        (first_end, &|h| h.timestamp += 1, Problem::TimestampMixed(1)),
        (good.len() - 1, &|h| h.payload_type = 98, Problem::WrongPayloadType { packets: 1, have: 98 }),
        (good.len() - 1, &|h| h.timestamp = 5, Problem::TimestampBack(1)),
    ];
    for (at, edit, problem) in edits {
        let mut packets = good.clone();
        header(&mut packets[at], edit);
        let problems = verdict(&packets, &clip).problems();
        assert!(problems.contains(&problem), "{problem:?} in {problems:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_are_survived(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..40)) {
        let clip = ClipLibrary::h264();
        let mut all = packets;
        for (n, packet) in all.iter_mut().enumerate() {
            // Half of them look like RTP.
            if n % 2 == 0 && packet.len() > 12 {
                packet[0] = 0x80;
                packet[1] = 96;
                packet[8..12].copy_from_slice(&[0, 0, 0, 7]);
            }
        }
        let found = verdict(&all, &clip);
        prop_assert_eq!(found.exact, 0);
    }
}

#[test]
fn a_udp_port_is_even_and_has_its_neighbour() {
    let port = ReceiverPort::bind(LOCAL, MediaTransport::Udp).unwrap();
    assert_eq!(port.port().get() % 2, 0);
    let above = SocketAddr::new(LOCAL, port.port().get() + 1);
    assert!(std::net::UdpSocket::bind(above).is_err());
    assert!(ReceiverPort::bind("192.0.2.1".parse().unwrap(), MediaTransport::TcpPassive).is_err());
}

#[tokio::test]
async fn a_refused_connection_and_a_stream_that_is_no_rtp_are_reported() {
    let (publish, mut found) = watch::channel(Verdict::default());
    let cancel = CancellationToken::new();
    let passive = ReceiverPort::bind(LOCAL, MediaTransport::TcpPassive).unwrap();
    let addr = SocketAddr::new(LOCAL, passive.port().get());
    let task = async {
        let mut peer = TcpStream::connect(addr).await.unwrap();
        peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let reported = found.wait_for(|verdict| verdict.framing_error.is_some());
        let verdict = tokio::time::timeout(LIMIT, reported).await.unwrap().unwrap().clone();
        assert!(matches!(verdict.problems()[0], Problem::Framing(_)));
        cancel.cancel();
    };
    tokio::join!(passive.run(plan(addr), publish, cancel.clone()), task);
}

#[tokio::test]
async fn datagrams_from_elsewhere_and_rtcp_are_counted() {
    let (publish, mut found) = watch::channel(Verdict::default());
    let cancel = CancellationToken::new();
    let port = ReceiverPort::bind(LOCAL, MediaTransport::Udp).unwrap();
    let to = SocketAddr::new(LOCAL, port.port().get());
    let task = async {
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for packet in packets(&ClipLibrary::h264(), 1..3, |_| Vec::new()) {
            sender.send_to(&packet, to).await.unwrap();
        }
        let report = [0x80, 200, 0, 6, 0, 0, 0, 7];
        sender.send_to(&report, to).await.unwrap();
        sender.send_to(&report, SocketAddr::new(LOCAL, to.port() + 1)).await.unwrap();
        let reported = found.wait_for(|verdict| verdict.rtcp == 2);
        let verdict = tokio::time::timeout(LIMIT, reported).await.unwrap().unwrap().clone();
        assert!(verdict.from_elsewhere > 0 && verdict.from_elsewhere == verdict.packets);
        cancel.cancel();
    };
    let remote = SocketAddr::new(LOCAL, 9);
    tokio::join!(port.run(plan(remote), publish, cancel.clone()), task);
}
