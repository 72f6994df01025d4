//! One stream and its sinks.

use super::bed::{Bed, Receiver, SLOT, UNIX, fat, ms, picture, some_instant};
use crate::media::MediaOptions;
use crate::media::sink::{MAX_PENDING, SMALL_PAYLOAD, SinkEnd, SinkEvent, SinkTransport};
use crate::media::stream::{CATCH_UP, SILENCE, StreamNote};
use crate::proto::rtp::rtcp;
use crate::sim::clip::{AudioClip, Clip, ClipLibrary};
use bytes::Bytes;
use socket2::{Domain, Socket, Type};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

fn clips() -> [(Arc<Clip>, Arc<AudioClip>); 3] {
    [
        (ClipLibrary::h264(), ClipLibrary::pcma()),
        (ClipLibrary::h265(), ClipLibrary::aac()),
        (ClipLibrary::h264_bframes(), ClipLibrary::pcmu()),
    ]
}

#[test]
fn every_clip_arrives_whole_over_udp_and_tcp() {
    for (video, audio) in clips() {
        let mut bed = Bed::new(Arc::clone(&video), Some(Arc::clone(&audio)));
        let (udp, u) = bed.add_udp();
        let (tcp, t) = bed.add_tcp();
        bed.start(&udp);
        bed.start(&tcp);
        bed.tick();
        bed.run(ms(6_000));
        let got = bed.receivers[u].checked();
        bed.settle(t, bed.receivers[u].packets.len());
        for got in [&got, &bed.receivers[t].checked()] {
            got.expect_clip(&video, 0);
            assert_eq!(got.pictures().len(), 150, "six seconds, over the clip's seam");
            let sounds = got.sounds();
            assert!(sounds.len() > 80, "{}", sounds.len());
            for (i, (pts, data)) in sounds.iter().enumerate() {
                let (sound, ticks) = audio.looped(i as u64);
                assert_eq!(data, &sound.bytes, "sound {i}");
                let ticks = ticks * 90_000 / u64::from(audio.clock());
                assert!((pts - sounds[0].0).abs_diff(ticks) <= 1, "sounds keep their distances");
            }
        }
        assert_eq!(got.ssrc, udp.ssrc);
        // What is presented when is the clip's.
        let times = got.times();
        for (i, (pts, dts)) in times.iter().enumerate() {
            let ticks = video.looped(i as u64).1 - video.looped(0).1;
            assert_eq!(*pts as i64 - times[0].0 as i64, ticks as i64, "picture {i}");
            assert!(pts - dts < 90_000 / 2);
        }
        assert!(bed.was_told(tcp.id, &SinkEvent::Connected));
        assert_eq!((bed.end_of(udp.id), bed.end_of(tcp.id)), (None, None));
    }
}

#[test]
fn nothing_leaves_before_the_ack() {
    let mut bed = Bed::new(ClipLibrary::h264(), None);
    let (udp, u) = bed.add_udp();
    let (tcp, t) = bed.add_tcp();
    bed.run(ms(1_300));
    assert!(bed.receivers[u].packets.is_empty() && bed.receivers[t].packets.is_empty());
    assert!(bed.receivers[u].reports.is_empty());
    bed.start(&udp);
    bed.start(&tcp);
    bed.run(ms(100));
    assert!(!bed.receivers[u].packets.is_empty());
    assert!(bed.told.iter().any(|(id, e, _)| *id == udp.id && matches!(e, SinkEvent::FirstPacket(_))));
}

#[test]
fn a_late_joiner_begins_with_the_cached_key_frame_and_loses_nothing() {
    for (video, audio) in clips() {
        // Everywhere in the group of 25, also so late that the next key frame comes before the joiner has caught up.
        for join in [1_010, 1_400, 1_700, 1_900, 1_970] {
            let mut bed = Bed::new(Arc::clone(&video), Some(Arc::clone(&audio)));
            let (first, a) = bed.add_udp();
            bed.start(&first);
            bed.run(ms(join));
            let (late, b) = bed.add_udp();
            let (late_tcp, c) = bed.add_tcp();
            bed.start(&late);
            bed.start(&late_tcp);
            let joined = bed.now;
            bed.run(ms(2_000));
            let (early, got) = (bed.receivers[a].checked(), bed.receivers[b].checked());
            bed.settle(c, bed.receivers[b].packets.len());
            let got_tcp = bed.receivers[c].checked();
            for got in [&got, &got_tcp] {
                got.expect_clip(&video, 25);
                assert_eq!(got.pictures().len(), early.pictures().len() - 25, "join at {join}");
                let sounds = got.sounds();
                assert_eq!(sounds[..], early.sounds()[early.sounds().len() - sounds.len()..]);
            }
            // The same frames with the same timestamps, clock and rate, whether muxed alone or shared.
            let skipped = early.frames.len() - got.frames.len();
            for (e, g) in early.frames[skipped..].iter().zip(&got.frames) {
                assert_eq!((e.timestamp, e.mux_rate, e.map), (g.timestamp, g.mux_rate, g.map));
            }
            // The first packet leaves at once, the rest at no more than four times the stream's rate.
            assert_eq!(bed.receivers[b].packets[0].0, joined);
            let mean = video.units().iter().map(|u| u.bytes.len()).sum::<usize>() as f64 / 5.0
                + audio.frames().iter().map(|f| f.bytes.len()).sum::<usize>() as f64
                    / audio.due(audio.frames().len() as u64).as_secs_f64();
            let live_from = got.frames.iter().zip(&early.frames[skipped..]).position(|(g, e)| g.first == e.first);
            let live_from = live_from.expect("it catches up");
            let caught_up = got.frames[live_from].first - joined;
            let bytes: usize = got.frames[..live_from].iter().map(|f| f.bytes).sum();
            let rate = bytes as f64 / caught_up.as_secs_f64().max(0.002);
            let age = ms(join % 1000).as_secs_f64();
            println!(
                "{:?} joined {age:.2} s into the group: live after {:.3} s at {:.2} times the rate",
                video.codec(),
                caught_up.as_secs_f64(),
                rate / mean
            );
            // Headers are not counted in the stream's rate; the measured rate of a group varies with its pictures.
            assert!(rate <= CATCH_UP * mean * 1.45 + 3_000.0 / caught_up.as_secs_f64().max(0.002), "{rate} of {mean}");
            assert!(caught_up.as_secs_f64() <= 0.1 + age, "{caught_up:?} for {age}");
        }
    }
}

#[test]
fn sinks_of_one_packaging_share_the_bytes() {
    let mut bed = Bed::new(ClipLibrary::h264(), Some(ClipLibrary::pcma()));
    let handles: Vec<_> = (0..3).map(|_| bed.add_udp()).collect();
    for (handle, _) in &handles {
        bed.start(handle);
    }
    bed.tick();
    bed.run(ms(1_500));
    let strip = |i: usize| -> Vec<Vec<u8>> {
        let cut = |p: &Vec<u8>| [&p[..2], &p[4..8], &p[12..]].concat();
        bed.receivers[i].packets.iter().map(|(_, p)| cut(p)).collect()
    };
    assert!(strip(0).len() > 50);
    assert!(strip(0) == strip(1) && strip(1) == strip(2));
    let ssrcs: Vec<u32> = (0..3).map(|i| bed.receivers[i].checked().ssrc).collect();
    assert_eq!(ssrcs, handles.iter().map(|(h, _)| h.ssrc).collect::<Vec<_>>());
}

#[test]
fn timestamps_rise_over_restarts_jumps_and_another_codec() {
    let mut bed = Bed::new(ClipLibrary::h264_bframes(), Some(ClipLibrary::pcma()));
    let (udp, u) = bed.add_udp();
    let (tcp, t) = bed.add_tcp();
    bed.start(&udp);
    bed.start(&tcp);
    bed.tick();
    bed.run(ms(1_500));
    // The camera's clock: an hour ahead, five seconds back, five seconds ahead.
    for jump in [3600 * 90_000, -5 * 90_000, 5 * 90_000] {
        bed.player.jump += jump;
        bed.run(ms(1_000));
    }
    // It restarts within a group of pictures, and 3 s later again with another codec.
    bed.restart(ClipLibrary::h264_bframes(), Some(ClipLibrary::pcma()));
    bed.run(ms(1_220));
    bed.player.on = false;
    bed.run(ms(3_000));
    bed.restart(ClipLibrary::h265(), Some(ClipLibrary::aac()));
    bed.run(ms(2_000));
    // And one that begins in the middle of a group: nothing until its key frame.
    bed.restart(ClipLibrary::h264(), None);
    bed.player.pictures = 10;
    bed.player.began -= ms(400);
    bed.run(ms(2_000));
    let got = bed.receivers[u].checked();
    bed.settle(t, bed.receivers[u].packets.len());
    assert_eq!(bed.receivers[t].checked().units, got.units);
    let clips = [ClipLibrary::h264_bframes(), ClipLibrary::h265(), ClipLibrary::h264()];
    for (key, data) in got.pictures() {
        assert!(clips.iter().any(|c| c.find(&data).is_some_and(|i| c.units()[i].key == key)));
    }
    let total = 38 + 75 + 31 + 50 + 35;
    assert!((total - 2..=total + 2).contains(&got.pictures().len()), "{}", got.pictures().len());
    // Time on the wire is the time that passed.
    let (first, last) = (&got.frames[0], got.frames.last().unwrap());
    let passed = (last.first - first.first).as_secs_f64();
    let told = f64::from(last.timestamp.wrapping_sub(first.timestamp)) / 90_000.0;
    assert!((passed - told).abs() < 0.3, "{passed} s passed, {told} s on the wire");
    // Each change of tracks is another version of the map.
    let mut versions: Vec<u8> = got.frames.iter().filter_map(|f| f.map).collect();
    versions.dedup();
    assert_eq!(versions, [0, 1, 2]);
    let stats = bed.stream.stats();
    assert_eq!(stats.clock_jumps, 3);
}

#[test]
fn sound_ahead_of_the_picture_leaves_its_timestamps_alone() {
    let mut bed = Bed::new(ClipLibrary::h264(), Some(ClipLibrary::pcma()));
    let (udp, u) = bed.add_udp();
    bed.start(&udp);
    bed.tick();
    bed.slot();
    // 800 ms ahead from here on; its packets still come every 20 ms.
    bed.player.sounds += 40;
    bed.player.began -= ms(800);
    bed.player.pictures += 20;
    bed.player.jump = -72_000;
    bed.player.audio = None;
    let audio = ClipLibrary::pcma();
    for i in 0..100u64 {
        let frame = crate::media::Frame {
            kind: crate::media::FrameKind::Audio,
            ticks: 6_400 + i as i64 * 160,
            data: audio.looped(i).0.bytes.clone(),
            loss: 0,
            arrived: bed.now,
        };
        bed.stream.push(frame);
        bed.run(ms(20));
    }
    let got = bed.receivers[u].checked();
    let of_pictures: Vec<u32> =
        got.frames.iter().filter(|f| f.packets > 1 || f.map.is_some()).map(|f| f.timestamp).collect();
    for (ts, (_, dts)) in of_pictures.iter().zip(got.times()) {
        assert!(u64::from(*ts) - dts <= 200, "{ts} for DTS {dts}");
    }
    assert!(got.sounds().len() >= 98);
}

#[test]
fn the_mux_rate_is_one_and_a_half_times_the_peak() {
    let mut bed = Bed::new(ClipLibrary::h264(), None);
    bed.player.fat = Some((120_000, 30_000));
    let (first, a) = bed.add_udp();
    bed.start(&first);
    bed.tick();
    bed.run(ms(3_000));
    // A TCP receiver has a mux of its own, and it is new.
    let (tcp, b) = bed.add_tcp();
    bed.start(&tcp);
    bed.run(ms(1_500));
    let peak = 120_000 + 24 * 30_000;
    for i in [a, b] {
        let got = bed.receivers[i].checked();
        let map = got.frames.iter().rfind(|f| f.map.is_some()).unwrap();
        assert!(map.mux_rate * 50 >= peak * 3 / 2, "{}", map.mux_rate * 50);
        assert!(map.rate_bound.unwrap() >= map.mux_rate);
    }
    assert_eq!(
        bed.receivers[a].checked().frames.last().unwrap().mux_rate,
        bed.receivers[b].checked().frames[0].mux_rate
    );
}

#[test]
fn large_frames_are_paced_and_small_ones_are_not() {
    let mut bed = Bed::new(ClipLibrary::h264(), None);
    bed.player.fat = Some((200 * 1_400 - 3_000, 60 * 1_400));
    let (udp, u) = bed.add_udp();
    let (tcp, t) = bed.add_tcp();
    bed.start(&udp);
    bed.start(&tcp);
    bed.tick();
    bed.run(ms(3_000));
    let got = bed.receivers[u].checked();
    assert_eq!(got.frames.len(), 75);
    for frame in &got.frames {
        let took = frame.last - frame.first;
        if frame.map.is_some() {
            assert!((195..=200).contains(&frame.packets), "{}", frame.packets);
            let in_slot = |n: u32| {
                let at = frame.first + SLOT * n;
                bed.receivers[u].packets.iter().filter(|(t, _)| *t == at).count()
            };
            let slots: Vec<usize> = (0..6).map(in_slot).collect();
            assert!(slots.iter().filter(|n| **n > 0).count() >= 3, "{slots:?}");
            assert!(took <= MediaOptions::default().pacing_max, "{took:?}");
            assert!(slots.iter().all(|n| *n <= 48), "{slots:?}");
        } else {
            assert_eq!((took, frame.packets <= 64), (ms(0), true));
        }
    }
    bed.settle(t, bed.receivers[u].packets.len());
    assert_eq!(bed.receivers[t].checked().units, got.units);
}

#[test]
fn a_slow_tcp_receiver_goes_on_with_a_key_frame_and_no_other_notices() {
    let video = ClipLibrary::h264();
    let mut bed = Bed::new(Arc::clone(&video), None);
    bed.player.fat = Some((400_000, 150_000));
    let (udp, u) = bed.add_udp();
    let (tcp, t) = bed.add_tcp();
    bed.start(&udp);
    bed.start(&tcp);
    bed.tick();
    bed.run(ms(1_000));
    bed.receivers[t].asleep = true;
    // The kernel's buffers take some MB, then ours, then frames are dropped.
    let give_up = bed.now + ms(8_000);
    while tcp.meters.dropped_slow.get() == 0 && bed.now < give_up {
        bed.slot();
    }
    bed.run(ms(500));
    let dropped = tcp.meters.dropped_slow.get();
    assert!(dropped > 1_000, "the frames up to the next key frame count as well: {dropped}");
    bed.receivers[t].asleep = false;
    bed.run(ms(3_000));
    let whole = bed.receivers[u].checked();
    assert_eq!(whole.pictures().len() as u64, bed.player.pictures, "the other receiver has every picture");
    assert_eq!(udp.meters.dropped_slow.get(), 0);
    // Virtual time runs ahead of the kernel's: let it deliver what was sent.
    let give_up = some_instant() + ms(10_000);
    loop {
        let before = bed.receivers[t].packets.len();
        for _ in 0..50 {
            bed.stream.tick(bed.now, SLOT, false, UNIX);
            bed.receivers[t].read(bed.now);
            std::thread::yield_now();
        }
        let marker = bed.receivers[t].packets.last().is_some_and(|(_, p)| p[1] & 0x80 != 0);
        if (marker && bed.receivers[t].packets.len() == before) || some_instant() > give_up {
            break;
        }
    }
    let got = bed.receivers[t].checked();
    let all = whole.pictures();
    let mut at = 0;
    let mut gaps = 0;
    for (key, data) in got.pictures() {
        let found =
            at + all[at..].iter().position(|(_, d)| *d == data).expect("whole pictures of the stream, in order");
        if found != at {
            gaps += 1;
            assert!(key, "what is dropped is dropped up to a key frame");
        }
        at = found + 1;
    }
    assert!(gaps >= 1 && at == all.len(), "{gaps} gaps, {at} of {}", all.len());
    assert_eq!(bed.end_of(tcp.id), None);
}

#[test]
fn a_frame_larger_than_the_bound_still_gets_through_tcp() {
    let video = ClipLibrary::h264();
    let mut bed = Bed::new(Arc::clone(&video), None);
    bed.player.on = false;
    let (tcp, t) = bed.add_tcp();
    bed.start(&tcp);
    bed.tick();
    let data = fat(&video, 0, MAX_PENDING + MAX_PENDING / 2);
    bed.stream.push(picture(true, 0, data.clone(), bed.now));
    let give_up = some_instant() + ms(20_000);
    while bed.receivers[t].packets.last().is_none_or(|(_, p)| p[1] & 0x80 == 0) && some_instant() < give_up {
        bed.tick();
        bed.now += SLOT;
    }
    assert_eq!(bed.receivers[t].checked().pictures(), [(true, data)]);
}

#[test]
fn a_tcp_receiver_that_takes_nothing_any_more_is_ended() {
    let mut bed = Bed::new(ClipLibrary::h264(), None);
    bed.player.fat = Some((400_000, 300_000));
    let (tcp, t) = bed.add_tcp();
    let (udp, u) = bed.add_udp();
    bed.start(&tcp);
    bed.start(&udp);
    bed.tick();
    bed.run(ms(400));
    bed.receivers[t].asleep = true;
    let asleep = bed.now;
    while bed.end_of(tcp.id).is_none() && bed.now < asleep + ms(25_000) {
        bed.slot();
    }
    let (why, at) = bed.end_of(tcp.id).unwrap();
    assert_eq!(why, SinkEnd::Stalled);
    assert!(at - asleep > ms(9_900) && at - asleep < ms(20_000), "{:?}", at - asleep);
    bed.run(ms(1_020));
    assert_eq!(bed.receivers[u].checked().pictures().len() as u64, bed.player.pictures);
}

/// An address of ours that is free now.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn the_connecting_side_tries_four_times_a_second_apart() {
    let video = ClipLibrary::h264();
    let mut bed = Bed::new(Arc::clone(&video), None);
    let (local, destination) = (free(), free());
    let tcp = bed.add(SinkTransport::TcpActive { local, destination }, 1400);
    bed.run(ms(500));
    bed.start(&tcp);
    let started = bed.now;
    // Refused at once and a second later; the third attempt finds somebody.
    bed.run(ms(1_500));
    assert!(!bed.was_told(tcp.id, &SinkEvent::Connected));
    let listener = TcpListener::bind(destination).unwrap();
    bed.run(ms(2_000));
    let connected = bed.told.iter().find(|(_, e, _)| *e == SinkEvent::Connected).expect("it connects").2;
    assert!(connected - started >= ms(2_000) && connected - started < ms(2_100), "{:?}", connected - started);
    let (stream, from) = listener.accept().unwrap();
    assert_eq!(from, local, "from the port the answer named");
    bed.receivers.push(Receiver::tcp(stream));
    bed.run(ms(500));
    bed.receivers[0].checked().expect_clip(&video, 50);

    // Nobody there at all.
    let tcp = bed.add(SinkTransport::TcpActive { local: free(), destination: free() }, 1400);
    bed.start(&tcp);
    let started = bed.now;
    bed.run(ms(5_000));
    let (why, at) = bed.end_of(tcp.id).unwrap();
    assert_eq!(why, SinkEnd::ConnectFailed);
    assert!(at - started >= ms(3_000) && at - started < ms(3_200), "{:?}", at - started);
}

fn connect_from(local: &str, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&format!("{local}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

#[test]
fn the_listening_side_takes_only_the_receiver_and_waits_ten_seconds() {
    let video = ClipLibrary::h264();
    let mut bed = Bed::new(Arc::clone(&video), None);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let tcp = bed.add(SinkTransport::TcpPassive { listener, from: vec!["127.0.0.2".parse().unwrap()] }, 1400);
    // Time before the ACK does not count.
    bed.run(ms(11_000));
    bed.start(&tcp);
    bed.receivers.push(Receiver::tcp(connect_from("127.0.0.3", to)));
    bed.run(ms(1_000));
    assert!(bed.receivers[0].closed && bed.receivers[0].packets.is_empty(), "a stranger is closed");
    bed.receivers.push(Receiver::tcp(connect_from("127.0.0.2", to)));
    bed.run(ms(1_100));
    assert!(bed.was_told(tcp.id, &SinkEvent::Connected));
    bed.receivers[1].checked().expect_clip(&video, 300);
    assert!(TcpStream::connect_timeout(&to, ms(200)).is_err(), "one connection is all it takes");
    // The receiver hangs up.
    bed.receivers.clear();
    bed.run(ms(1_500));
    assert_eq!(bed.end_of(tcp.id).unwrap().0, SinkEnd::PeerClosed);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = bed.add(SinkTransport::TcpPassive { listener, from: vec!["127.0.0.2".parse().unwrap()] }, 1400);
    bed.start(&tcp);
    let started = bed.now;
    bed.run(ms(11_000));
    let (why, at) = bed.end_of(tcp.id).unwrap();
    assert_eq!((why, at - started), (SinkEnd::NeverConnected, ms(10_000)));
}

#[test]
fn a_group_too_large_is_told_and_a_joiner_waits_for_the_next() {
    let options = MediaOptions { gop_cache: 200_000, ..MediaOptions::default() };
    let video = ClipLibrary::h264();
    let mut bed = Bed::with(Arc::clone(&video), None, options);
    bed.player.fat = Some((120_000, 8_000));
    bed.run(ms(1_700));
    let long = |bed: &Bed| bed.notes.iter().filter(|n| matches!(n, StreamNote::LongGop)).count();
    assert_eq!(long(&bed), 2, "once a group");
    assert_eq!(bed.stream.stats().gop_bytes, 0);
    let (udp, u) = bed.add_udp();
    bed.start(&udp);
    bed.run(ms(600));
    let got = bed.receivers[u].checked();
    assert_eq!(got.pictures()[0], (true, fat(&video, 50, 120_000)));
    // Short enough again: the next joiner begins at once.
    bed.player.fat = Some((20_000, 1_000));
    bed.run(ms(1_500));
    let (udp, u) = bed.add_udp();
    bed.start(&udp);
    bed.slot();
    bed.slot();
    assert!(!bed.receivers[u].packets.is_empty());
    bed.run(ms(500));
    assert!(bed.receivers[u].checked().pictures()[0].0);
}

#[test]
fn never_silent_for_longer_than_15_s() {
    // The source is gone.
    let mut bed = Bed::new(ClipLibrary::h264(), Some(ClipLibrary::pcma()));
    let (udp, _) = bed.add_udp();
    let (tcp, _) = bed.add_tcp();
    let (unanswered, _) = bed.add_udp();
    bed.start(&udp);
    bed.start(&tcp);
    bed.run(ms(2_000));
    bed.player.on = false;
    let lost = bed.now;
    bed.run(ms(16_000));
    for id in [udp.id, tcp.id] {
        let (why, at) = bed.end_of(id).unwrap();
        assert_eq!(why, SinkEnd::SourceLost);
        assert!(at - lost >= SILENCE - ms(100) && at - lost <= ms(15_000), "{:?}", at - lost);
    }
    assert_eq!(bed.end_of(unanswered.id), None, "one that is not started is silent by right");

    // The source lives, but its key frames are a minute apart.
    let video = ClipLibrary::h264();
    let options = MediaOptions { gop_cache: 10_000, ..MediaOptions::default() };
    let mut bed = Bed::with(Arc::clone(&video), None, options);
    bed.player.on = false;
    let push = |bed: &mut Bed, i: u64| {
        let n = if i == 0 { 0 } else { 1 + i % 24 };
        let (unit, data) = (video.looped(n).0, fat(&video, n, 4_000));
        bed.stream.push(picture(unit.key, i as i64 * 3600, data, bed.now));
        bed.run(ms(40));
    };
    (0..50).for_each(|i| push(&mut bed, i));
    let (udp, _) = bed.add_udp();
    bed.start(&udp);
    let started = bed.now;
    (50..450).for_each(|i| push(&mut bed, i));
    let (why, at) = bed.end_of(udp.id).unwrap();
    assert_eq!(why, SinkEnd::SourceLost);
    assert!(at - started <= ms(15_000), "{:?}", at - started);
}

#[test]
fn sender_reports_tell_the_truth() {
    let mut bed = Bed::new(ClipLibrary::h264(), None);
    let (udp, u) = bed.add_udp();
    bed.start(&udp);
    bed.run(ms(12_000));
    let receiver = &bed.receivers[u];
    assert!((2..=3).contains(&receiver.reports.len()), "one in 5 s: {}", receiver.reports.len());
    let mut spacing: Vec<_> = receiver.reports.windows(2).map(|w| w[1].0 - w[0].0).collect();
    spacing.dedup();
    assert!(spacing.iter().all(|s| (ms(5_000)..ms(5_600)).contains(s)), "{spacing:?}");
    for (at, report) in &receiver.reports {
        let mut seen = Vec::new();
        assert_eq!(rtcp::read(report, |r| seen.push(r)), 0);
        let [rtcp::Report::Sender { ssrc, ntp, rtp_timestamp, packets, octets }] = seen[..] else { panic!("{seen:?}") };
        let before: Vec<_> = receiver.packets.iter().filter(|(t, _)| t < at).collect();
        assert_eq!((ssrc, packets as usize), (udp.ssrc, before.len()));
        assert_eq!(octets as usize, before.iter().map(|(_, p)| p.len() - 12).sum::<usize>());
        assert_eq!(ntp >> 32, (UNIX + (*at - bed.base)).as_secs() + 2_208_988_800);
        let last = before.last().unwrap();
        let timestamp = u32::from_be_bytes(last.1[4..8].try_into().unwrap());
        let since = (*at - last.0).as_micros() as u32 * 9 / 100;
        assert!(rtp_timestamp.wrapping_sub(timestamp + since) <= 200, "{rtp_timestamp} after {timestamp} + {since}");
        assert!(report.windows(20).any(|w| w == b"34020000002000000001"));
    }
}

#[test]
fn a_burst_after_a_pause_loses_nothing() {
    let video = ClipLibrary::h264();
    let audio = ClipLibrary::pcma();
    let mut bed = Bed::new(Arc::clone(&video), Some(Arc::clone(&audio)));
    let (udp, u) = bed.add_udp();
    let (tcp, t) = bed.add_tcp();
    bed.start(&udp);
    bed.start(&tcp);
    bed.tick();
    bed.run(ms(1_000));
    // The way from the camera is blocked for four seconds, then all of it comes in one slot.
    for _ in 0..2_000 {
        bed.tick();
        bed.now += SLOT;
    }
    bed.run(ms(1_000));
    let got = bed.receivers[u].checked();
    got.expect_clip(&video, 0);
    assert_eq!(got.pictures().len(), 150);
    assert_eq!(got.sounds().len() as u64, bed.player.sounds);
    bed.settle(t, bed.receivers[u].packets.len());
    assert_eq!(bed.receivers[t].checked().units, got.units);
    assert_eq!(bed.stream.stats().overruns, 0);
}

#[test]
fn a_dropped_lease_stops_the_packets_and_is_noted() {
    let mut bed = Bed::new(ClipLibrary::h264(), None);
    let (udp, u) = bed.add_udp();
    let (other, _) = bed.add_udp();
    bed.start(&udp);
    bed.start(&other);
    bed.run(ms(1_000));
    udp.drop_lease();
    bed.slot();
    let had = bed.receivers[u].packets.len();
    bed.run(ms(500));
    assert_eq!(bed.receivers[u].packets.len(), had);
    assert!(matches!(bed.notes[..], [StreamNote::Ready(_), StreamNote::SinkGone(id)] if id == udp.id));
    assert_eq!((bed.end_of(udp.id), bed.stream.sinks()), (None, 1));
    bed.stream.close();
    bed.tick();
    assert_eq!(bed.end_of(other.id).unwrap().0, SinkEnd::StreamClosed);
}

#[test]
fn an_end_that_found_the_channel_full_is_told_later() {
    let mut bed = Bed::new(ClipLibrary::h264(), None);
    let (tcp, _) = bed.add_tcp();
    bed.start(&tcp);
    bed.run(ms(600));
    while bed.events_tx.try_send((crate::media::SinkId(99), SinkEvent::Connected)).is_ok() {}
    bed.receivers.clear();
    for _ in 0..300 {
        bed.stream.tick(bed.now, SLOT, true, UNIX);
        bed.now += SLOT;
    }
    assert_eq!(bed.end_of(tcp.id), None);
    bed.tick();
    bed.tick();
    assert_eq!(bed.end_of(tcp.id).unwrap().0, SinkEnd::PeerClosed);
}

#[test]
fn a_closed_udp_port_ends_the_sink_even_if_its_host_says_so_but_once_a_second() {
    let mut bed = Bed::new(ClipLibrary::h264(), None);
    bed.player.on = false;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut receiver = Some(UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = receiver.as_ref().unwrap().local_addr().unwrap();
    let udp = bed.add(SinkTransport::Udp { socket, rtcp: None, destination: to }, 1400);
    bed.start(&udp);
    bed.tick();
    let clip = ClipLibrary::h264();
    let push = |bed: &mut Bed, n: u64| {
        let (unit, ticks) = clip.looped(n);
        bed.stream.push(picture(unit.key, ticks as i64, unit.bytes.clone(), bed.now));
        bed.run(ms(40));
    };
    // The port is open: 31 s without a complaint.
    (0..775).for_each(|n| push(&mut bed, n));
    assert_eq!(bed.end_of(udp.id), None);
    // Closed, but only every 25th packet gets the ICMP answer; the other times somebody else holds the port.
    let closed = bed.now;
    for n in 775..1_600 {
        if n % 25 == 0 {
            receiver = None;
        }
        push(&mut bed, n);
        receiver.get_or_insert_with(|| UdpSocket::bind(to).unwrap());
        if bed.end_of(udp.id).is_some() {
            break;
        }
    }
    let (why, at) = bed.end_of(udp.id).expect("nobody is there");
    assert_eq!(why, SinkEnd::Refused);
    assert!(at - closed >= ms(30_000) && at - closed <= ms(33_000), "{:?}", at - closed);
}

#[test]
fn empty_and_odd_frames_do_no_harm() {
    let video = ClipLibrary::h264();
    let mut bed = Bed::new(Arc::clone(&video), None);
    let (udp, u) = bed.add_udp();
    bed.start(&udp);
    bed.tick();
    for (key, data) in
        [(true, Bytes::new()), (false, Bytes::from_static(b"\0")), (true, Bytes::from_static(b"\0\0\0\x01"))]
    {
        bed.stream.push(picture(key, 0, data, bed.now));
        bed.tick();
    }
    bed.receivers[u].packets.clear();
    bed.run(ms(1_000));
    // Key frames without parameter sets get those seen last.
    let unit = video.looped(0).0;
    let bare = unit.nals.iter().filter(|n| video.codec().nal_type(n) == 5).fold(Vec::new(), |mut all, n| {
        all.extend_from_slice(&[0, 0, 0, 1]);
        all.extend_from_slice(n);
        all
    });
    bed.player.on = false;
    bed.stream.push(picture(true, 90_000, bare.clone().into(), bed.now));
    bed.tick();
    let got = bed.receivers[u].checked();
    let (key, last) = got.pictures().last().unwrap().clone();
    assert!(key && last.ends_with(&bare) && last.len() > bare.len());
    for set in video.parameter_sets() {
        assert!(last.windows(set.len()).any(|w| w == set));
    }
}

/// Runs `test` on a thread in a network of its own whose loopback carries packets of `mtu` bytes at most.
/// False where the system does not allow that (it takes root).
#[allow(unsafe_code)]
fn with_mtu(mtu: i32, test: impl FnOnce() + Send + 'static) -> bool {
    let thread = std::thread::spawn(move || {
        // SAFETY: unshare touches this thread alone; the ioctls get a zeroed ifreq with a short name, which they read.
        let ready = unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
                *to = *from as libc::c_char;
            }
            libc::unshare(libc::CLONE_NEWNET) == 0 && {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
                request.ifr_ifru.ifru_mtu = mtu;
                let sized = libc::ioctl(socket, libc::SIOCSIFMTU, &raw mut request) == 0;
                request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
                let up = libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw mut request) == 0;
                libc::close(socket);
                sized && up
            }
        };
        if ready {
            test();
        }
        ready
    });
    thread.join().expect("the test on its own network passes")
}

#[test]
fn a_path_that_refuses_the_size_gets_smaller_packets() {
    let joined = with_mtu(1_380, || {
        let video = ClipLibrary::h264();
        let mut bed = Bed::new(Arc::clone(&video), None);
        bed.player.fat = Some((100_000, 20_000));
        bed.run(ms(1_300));
        let (udp, u) = bed.add_udp();
        let (tcp, t) = bed.add_tcp();
        bed.start(&udp);
        bed.start(&tcp);
        bed.run(ms(1_000));
        let got = bed.receivers[u].checked();
        let largest = bed.receivers[u].packets.iter().map(|(_, p)| p.len()).max().unwrap();
        assert!(largest <= usize::from(SMALL_PAYLOAD) + 12, "{largest}");
        // Nothing had left yet, so it still began with the cached group.
        assert_eq!(got.pictures()[0], (true, fat(&video, 25, 100_000)));
        assert_eq!(got.pictures().len() as u64, bed.player.pictures - 25);
        assert!(udp.meters.dropped_error.get() > 0);
        // The TCP receiver keeps its own size.
        bed.settle(t, bed.receivers[t].packets.len());
        assert!(bed.receivers[t].packets.iter().any(|(_, p)| p.len() == 1_412));
    });
    // Smaller still: the system cuts the packets.
    let cut = with_mtu(1_280, || {
        let video = ClipLibrary::h264();
        let mut bed = Bed::new(Arc::clone(&video), None);
        bed.player.fat = Some((100_000, 20_000));
        let (udp, u) = bed.add_udp();
        bed.start(&udp);
        bed.tick();
        bed.run(ms(2_000));
        let got = bed.receivers[u].checked();
        assert!(got.pictures().len() >= 25, "{}", got.pictures().len());
        assert!(bed.receivers[u].packets.iter().any(|(_, p)| p.len() == usize::from(SMALL_PAYLOAD) + 12));
        assert_eq!(bed.end_of(udp.id), None);
    });
    if !joined || !cut {
        println!("not run: a network of one's own takes root");
    }
}

#[test]
fn a_recording_pauses_without_end_and_is_played_from_its_beginning() {
    let mut bed = Bed::recording(ClipLibrary::h264());
    let (udp, u) = bed.add_udp();
    bed.run(ms(6_000));
    assert!(bed.receivers[u].packets.is_empty());
    bed.start(&udp);
    bed.run(ms(500));
    let resume = bed.now + SILENCE * 3;
    while bed.now < resume {
        bed.tick();
        bed.now += SLOT;
    }
    bed.player.began += SILENCE * 3;
    assert_eq!(bed.end_of(udp.id), None, "a pause is no end");
    // A download at sixteen times the speed of the recording.
    for _ in 0..16 {
        bed.player.began -= ms(1_000);
        bed.run(ms(60));
    }
    let got = bed.receivers[u].checked();
    got.expect_clip(&ClipLibrary::h264(), 0);
    assert!(got.pictures().len() > 162 + 400, "{}", got.pictures().len());
    assert_eq!(bed.notes.iter().filter(|n| matches!(n, StreamNote::Started)).count(), 1);
}
