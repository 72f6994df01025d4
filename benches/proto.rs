//! The pure protocol code: what one message, one catalogue and one picture cost.
//! `cargo bench --bench proto`; needs none of the daemon's features.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench of fixtures that are known to be sound")]

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use menshen::proto::codec::annexb::START_CODE;
use menshen::proto::codec::{VideoCodec, access_unit, inspect, nal_units};
use menshen::proto::gb28181::{DeviceId, Profile, Version};
use menshen::proto::manscdp::catalog::{CatalogItem, CatalogResponse, catalog_page, item_xml, items_that_fit};
use menshen::proto::manscdp::parse;
use menshen::proto::ps::{DemuxConfig, Demuxer, MuxConfig, Muxer, VideoUnit};
use menshen::proto::rtp::{Framing, ImageWriter, PT_PS, Packet, restamp};
use menshen::proto::sip::framer::{Frame, Framer, Limits};
use menshen::proto::sip::parse::parse_datagram;
use std::hint::black_box;
use std::time::Duration;

const REGISTER: &[u8] = include_bytes!("../proto-fixtures/sip/gb/register_uri_differs.dat");
const INVITE: &[u8] = include_bytes!("../proto-fixtures/sip/gb/invite_play.dat");
const H264: &[u8] = include_bytes!("../proto-fixtures/media/h264.h264");
/// Channels of a large site.
const CHANNELS: u32 = 10_000;
/// RTP payload bytes of a packet.
const PAYLOAD: usize = 1400;

fn sip(c: &mut Criterion) {
    let mut group = c.benchmark_group("sip");
    for (name, bytes) in [("register", REGISTER), ("invite", INVITE)] {
        let message = parse_datagram(bytes).unwrap();
        group.bench_function(format!("parse {name}"), |b| b.iter(|| parse_datagram(black_box(bytes))));
        group.bench_function(format!("write {name}"), |b| b.iter(|| black_box(&message).to_bytes()));
        let stream = message.to_bytes();
        group.bench_function(format!("frame {name}"), |b| {
            let mut framer = Framer::new(Limits::default());
            b.iter(|| {
                framer.push(&stream);
                assert!(matches!(framer.pull(), Ok(Some(Frame::Message { .. }))));
            })
        });
    }
    group.finish();
}

fn catalog(c: &mut Criterion) {
    let profile = Profile::new(Version::V2022);
    let platform = DeviceId::parse("34020000002000000001").unwrap();
    let items: Vec<CatalogItem> = (0..CHANNELS)
        .map(|i| {
            let id = DeviceId::mint("3402000000", 132, 0, i).unwrap();
            let mut item = CatalogItem::new(id, format!("东门枪机{i}"));
            item.manufacturer = Some("Hikvision".into());
            item.model = Some("DS-2CD3T46".into());
            item.parent_id = vec![platform];
            item
        })
        .collect();
    let texts: Vec<String> = items.iter().map(|item| item_xml(item, profile)).collect();
    // All in one would be over the limit of a body.
    let bodies: Vec<_> =
        texts.chunks(2500).map(|page| catalog_page(profile, 1, &platform, texts.len(), page)).collect();
    let mut group = c.benchmark_group("catalogue of 10,000");
    group.throughput(Throughput::Elements(CHANNELS.into()));
    group.bench_function("read from four bodies", |b| {
        b.iter(|| {
            let read = |body| CatalogResponse::read(&parse(body, None).unwrap()).unwrap().items.len();
            assert_eq!(black_box(&bodies).iter().map(|body| read(body)).sum::<usize>(), CHANNELS as usize);
        })
    });
    group.bench_function("write items", |b| {
        b.iter(|| items.iter().map(|item| item_xml(black_box(item), profile).len()).sum::<usize>())
    });
    group.bench_function("write pages of 1,300 bytes", |b| {
        b.iter(|| {
            let (mut rest, mut bytes) = (&texts[..], 0);
            while !rest.is_empty() {
                let (page, later) = rest.split_at(items_that_fit(profile, &platform, rest, 1300));
                bytes += catalog_page(profile, 1, &platform, texts.len(), page).len();
                rest = later;
            }
            bytes
        })
    });
    group.finish();
}

/// The clip cut into access units.
fn pictures() -> Vec<Vec<u8>> {
    let mut pictures: Vec<Vec<u8>> = Vec::new();
    let mut complete = true;
    for nal in nal_units(H264) {
        if complete && (pictures.is_empty() || access_unit::opens_access_unit(VideoCodec::H264, nal)) {
            pictures.push(Vec::new());
            complete = false;
        }
        complete |= access_unit::is_picture(VideoCodec::H264, nal);
        let picture = pictures.last_mut().unwrap();
        picture.extend_from_slice(&START_CODE);
        picture.extend_from_slice(nal);
    }
    pictures
}

fn media(c: &mut Criterion) {
    let pictures = pictures();
    let unit = |i: usize| VideoUnit {
        annexb: &pictures[i],
        pts: i as u64 * 3600,
        dts: i as u64 * 3600,
        key: inspect(VideoCodec::H264, &pictures[i]).key,
    };
    let units: Vec<_> = (0..pictures.len()).map(unit).collect();
    let config = MuxConfig { video: Some(VideoCodec::H264), audio: None };
    let image_of = |muxer: &mut Muxer, out: &mut BytesMut, unit: &VideoUnit<'_>| {
        let mut writer = ImageWriter::new(out, PAYLOAD, Framing::Datagram);
        muxer.write_video(&mut writer, unit);
        writer.finish(true, PT_PS, unit.dts as u32)
    };

    let mut group = c.benchmark_group("clip of 150 pictures");
    group.throughput(Throughput::Elements(pictures.len() as u64));
    group.bench_function("mux into an image", |b| {
        let (mut muxer, mut out) = (Muxer::new(config), BytesMut::new());
        b.iter(|| {
            for unit in &units {
                out.clear();
                black_box(image_of(&mut muxer, &mut out, unit));
            }
        })
    });
    let mut muxer = Muxer::new(config);
    let packets: Vec<Vec<u8>> = units
        .iter()
        .flat_map(|unit| {
            let mut out = BytesMut::new();
            let image = image_of(&mut muxer, &mut out, unit);
            out.chunks(image.block).map(<[u8]>::to_vec).collect::<Vec<_>>()
        })
        .collect();
    group.bench_function("demux from packets", |b| {
        b.iter_batched_ref(
            || Demuxer::new(DemuxConfig::default()),
            |demuxer| {
                let mut frames = 0;
                for packet in &packets {
                    let packet = Packet::parse(packet).unwrap();
                    demuxer.push(packet.payload);
                    if packet.marker {
                        demuxer.end_of_frame();
                    }
                    while demuxer.pull().is_some() {
                        frames += 1;
                    }
                }
                assert_eq!(frames, units.len());
            },
            BatchSize::SmallInput,
        )
    });
    group.bench_function("look through for start codes", |b| b.iter(|| nal_units(black_box(H264)).count()));
    group.finish();

    let mut group = c.benchmark_group("image of 16 packets");
    group.throughput(Throughput::Elements(16));
    let mut out = BytesMut::new();
    let mut writer = ImageWriter::new(&mut out, PAYLOAD, Framing::Datagram);
    writer.write(&vec![7; 16 * PAYLOAD]);
    let block = writer.finish(true, PT_PS, 0).block;
    group.bench_function("restamp", |b| {
        let mut sequence = 0;
        b.iter(|| sequence = restamp(black_box(&mut out), block, sequence, 100_000_001))
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots();
    targets = sip, catalog, media
}
criterion_main!(benches);
