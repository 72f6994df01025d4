//! Round trips: muxer, RTP image, packets, demuxer; what goes in comes out.

use bytes::BytesMut;
use proptest::prelude::*;

use super::{DemuxConfig, Demuxer, MuxConfig, Muxer, Unit, VideoUnit};
use crate::proto::codec::{AudioCodec, VideoCodec};
use crate::proto::rtp::{Framing, ImageWriter, Packet, restamp};

/// One access unit or audio frame of a synthetic stream.
#[derive(Debug, Clone)]
pub(super) enum Input {
    Video { key: bool, body: Vec<u8>, delay: u64 },
    Audio(Vec<u8>),
}

/// Annex B bytes of a synthetic access unit; `body` holds no zeros.
pub(super) fn annexb(codec: VideoCodec, key: bool, body: &[u8]) -> Vec<u8> {
    let nals: &[&[u8]] = match (codec, key) {
        (VideoCodec::H264, true) => &[&[0x67, 0x64, 0x33, 0x1F], &[0x68, 0xEE, 0x3C], &[0x65, 0x88, 0x84]],
        (VideoCodec::H264, false) => &[&[0x41, 0x9A, 0x24]],
        (VideoCodec::H265, true) => &[&[0x40, 1, 0x0C], &[0x42, 1, 7], &[0x44, 1, 0xC1], &[0x26, 1, 0xAF]],
        (VideoCodec::H265, false) => &[&[0x02, 1, 0xD0]],
    };
    let mut au = Vec::new();
    for nal in nals {
        au.extend_from_slice(&[0, 0, 0, 1]);
        au.extend_from_slice(nal);
    }
    au.extend_from_slice(body);
    au
}

/// Feeds a stream through the muxer; gives the expected units, and each frame's PS bytes or image.
pub(super) fn expected(video: VideoCodec, audio: AudioCodec, inputs: &[Input], start: u64) -> Vec<Unit> {
    let mut pts = start;
    inputs
        .iter()
        .map(|input| {
            pts += 3600;
            match input {
                Input::Video { key, body, delay } => Unit::Video {
                    codec: video,
                    pts: pts + delay,
                    dts: pts,
                    key: *key,
                    annexb: annexb(video, *key, body).into(),
                },
                Input::Audio(payload) => Unit::Audio { codec: audio, pts, payload: payload.clone().into() },
            }
        })
        .collect()
}

pub(super) fn mux(muxer: &mut Muxer, out: &mut impl crate::proto::rtp::PutBytes, unit: &Unit) {
    match unit {
        Unit::Video { pts, dts, key, annexb, .. } => {
            muxer.write_video(out, &VideoUnit { annexb, pts: *pts, dts: *dts, key: *key })
        }
        Unit::Audio { pts, payload, .. } => muxer.write_audio(out, payload, *pts),
        Unit::Gap => 0,
    };
}

pub(super) fn pull_all(demuxer: &mut Demuxer) -> Vec<Unit> {
    std::iter::from_fn(|| demuxer.pull()).collect()
}

/// Audio comes out when its PES ends, a frame when the next begins: in order of kind, not of each other.
pub(super) fn by_kind(units: Vec<Unit>) -> (Vec<Unit>, Vec<Unit>) {
    units.into_iter().partition(|unit| matches!(unit, Unit::Video { .. }))
}

fn body(range: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    (range, 1u8..).prop_map(|(len, seed)| (0..len).map(|i| (i as u8).wrapping_mul(seed) | 1).collect())
}

fn input() -> impl Strategy<Value = Input> {
    let size = || prop_oneof![8 => 0usize..3000, 1 => 65_000usize..66_000, 1 => 130_000usize..132_000];
    prop_oneof![
        3 => (any::<bool>(), size().prop_flat_map(|n| body(n..n + 1)), prop_oneof![Just(0u64), Just(3600), Just(7200)])
            .prop_map(|(key, body, delay)| Input::Video { key, body, delay }),
        1 => body(1..700).prop_map(Input::Audio),
    ]
}

fn stream() -> impl Strategy<Value = Vec<Input>> {
    proptest::collection::vec(input(), 1..14).prop_map(|mut inputs| {
        // the codec is told by a key frame: begin with one
        inputs.insert(0, Input::Video { key: true, body: vec![9; 20], delay: 0 });
        inputs
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn mux_image_packets_demux(inputs in stream(), h265: bool, payload_max in 100usize..1460, markers: bool, start: u32)
    {
        let video = if h265 { VideoCodec::H265 } else { VideoCodec::H264 };
        let audio = if h265 { AudioCodec::G711U } else { AudioCodec::G711A };
        let units = expected(video, audio, &inputs, start.into());
        let mut muxer = Muxer::new(MuxConfig { video: Some(video), audio: Some(audio) });
        let (mut demuxer, mut image, mut sequence) = (Demuxer::new(DemuxConfig::default()), BytesMut::new(), 65_530);
        let mut out = Vec::new();
        for unit in &units {
            image.clear();
            let mut writer = ImageWriter::new(&mut image, payload_max, Framing::Datagram);
            mux(&mut muxer, &mut writer, unit);
            let shape = writer.finish(true, 96, 1);
            sequence = restamp(&mut image, shape.block, sequence, 7);
            for packet in image.chunks(shape.block) {
                let packet = Packet::parse(packet).unwrap();
                demuxer.push(packet.payload);
                if markers && packet.marker {
                    demuxer.end_of_frame();
                }
            }
            if markers {
                let now = pull_all(&mut demuxer);
                prop_assert_eq!(&now[..], std::slice::from_ref(unit), "complete at the marker");
                out.extend(now);
            }
        }
        demuxer.finish();
        out.extend(pull_all(&mut demuxer));
        prop_assert_eq!(by_kind(out), by_kind(units));
        let counters = demuxer.counters();
        prop_assert_eq!((counters.resyncs, counters.skipped_bytes, counters.codec_lies, counters.marker_lies), (0, 0, 0, 0));
    }

    #[test]
    fn markers_after_every_packet_are_found_out(inputs in stream(), payload_max in 100usize..1460) {
        let units = expected(VideoCodec::H264, AudioCodec::G711A, &inputs, 0);
        let mut muxer = Muxer::new(MuxConfig { video: Some(VideoCodec::H264), audio: Some(AudioCodec::G711A) });
        let mut demuxer = Demuxer::new(DemuxConfig::default());
        for unit in &units {
            let mut ps = Vec::new();
            mux(&mut muxer, &mut ps, unit);
            ps.chunks(payload_max).for_each(|payload| {
                demuxer.push(payload);
                demuxer.end_of_frame();
            });
        }
        demuxer.finish();
        let (video, audio) = by_kind(pull_all(&mut demuxer));
        let (sent_video, sent_audio) = by_kind(units);
        prop_assert_eq!(audio, sent_audio);
        // at most two frames were cut in two before the markers were distrusted
        prop_assert!(video.len() <= sent_video.len() + 2);
        let whole = video.iter().filter(|unit| sent_video.contains(unit)).count();
        prop_assert!(whole + 2 >= sent_video.len());
    }

    #[test]
    fn a_lost_packet_costs_its_frame_only(inputs in stream(), lost in 0usize..10_000, payload_max in 100usize..1460) {
        let units = expected(VideoCodec::H264, AudioCodec::G711A, &inputs, 0);
        let mut muxer = Muxer::new(MuxConfig { video: Some(VideoCodec::H264), audio: Some(AudioCodec::G711A) });
        let mut packets = Vec::new();
        for (frame, unit) in units.iter().enumerate() {
            let mut ps = Vec::new();
            mux(&mut muxer, &mut ps, unit);
            let count = ps.len().div_ceil(payload_max);
            packets.extend(ps.chunks(payload_max).enumerate().map(|(i, p)| (frame, i + 1 == count, p.to_vec())));
        }
        let lost = lost % packets.len();
        let mut demuxer = Demuxer::new(DemuxConfig::default());
        for (i, (_, marker, payload)) in packets.iter().enumerate() {
            if i == lost {
                demuxer.discontinuity();
                continue;
            }
            demuxer.push(payload);
            if *marker {
                demuxer.end_of_frame();
            }
        }
        demuxer.finish();
        let out: Vec<_> = pull_all(&mut demuxer).into_iter().filter(|unit| *unit != Unit::Gap).collect();
        let damaged = packets[lost].0;
        let intact: Vec<_> = units.iter().enumerate().filter(|(i, _)| *i != damaged).map(|(_, u)| u.clone()).collect();
        // the first frame carries what tells the codecs
        if damaged > 0 {
            prop_assert_eq!(out, intact);
        } else {
            prop_assert!(out.iter().all(|unit| intact.contains(unit)));
        }
    }
}

#[test]
fn cut_at_every_byte() {
    let inputs = [
        Input::Video { key: true, body: vec![5; 40], delay: 0 },
        Input::Audio(vec![0x55; 30]),
        Input::Video { key: false, body: vec![6; 30], delay: 3600 },
        Input::Video { key: false, body: vec![], delay: 0 },
        Input::Audio(vec![0, 0, 1, 0xBA, 0, 0, 0]),
        Input::Video { key: true, body: vec![7; 9], delay: 0 },
    ];
    for video in [VideoCodec::H264, VideoCodec::H265] {
        let units = expected(video, AudioCodec::G711U, &inputs, (1 << 33) - 9000);
        let mut ps = Vec::new();
        let mut muxer = Muxer::new(MuxConfig { video: Some(video), audio: Some(AudioCodec::G711U) });
        units.iter().for_each(|unit| mux(&mut muxer, &mut ps, unit));
        let run = |cuts: &[&[u8]]| {
            let mut demuxer = Demuxer::new(DemuxConfig::default());
            cuts.iter().for_each(|cut| demuxer.push(cut));
            demuxer.finish();
            by_kind(pull_all(&mut demuxer))
        };
        let whole = by_kind(units);
        for cut in 0..ps.len() {
            assert_eq!(run(&[&ps[..cut], &ps[cut..]]), whole, "cut at {cut}");
        }
        assert_eq!(run(&ps.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    }
}

#[test]
fn frames_reuse_one_buffer_when_dropped_in_time() {
    let mut muxer = Muxer::new(MuxConfig { video: Some(VideoCodec::H264), audio: None });
    let (mut demuxer, mut ps) = (Demuxer::new(DemuxConfig::default()), Vec::new());
    let mut seen = std::collections::BTreeSet::new();
    for i in 0..200u64 {
        let annexb = annexb(VideoCodec::H264, i % 25 == 0, &vec![7; 20_000 + 700 * (i as usize % 7)]);
        ps.clear();
        muxer.write_video(&mut ps, &VideoUnit { annexb: &annexb, pts: i * 3600, dts: i * 3600, key: i % 25 == 0 });
        ps.chunks(1388).for_each(|payload| demuxer.push(payload));
        demuxer.end_of_frame();
        let Some(Unit::Video { annexb, .. }) = demuxer.pull() else { panic!("a frame is due at its marker") };
        if i >= 25 {
            seen.insert(annexb.as_ptr() as usize);
        }
    }
    let (first, last) = (seen.first().unwrap(), seen.last().unwrap());
    assert!(last - first < 256 * 1024, "all within one buffer: {}", last - first);
}
