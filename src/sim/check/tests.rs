//! Rows judged, and the table they make.

use super::*;
use crate::sim::clip::ClipLibrary;
use crate::sim::platform::lower::{Fault, LOWER, Lower, LowerConfig, UPPER, camera, id};
use crate::sim::platform::{SimPlatform, SimPlatformConfig};

fn row(name: &str, ok: bool) -> CheckRow {
    CheckRow {
        channel: camera(1),
        name: name.to_owned(),
        codec: Some(VideoCodec::H264),
        transport: MediaTransport::Udp,
        setup_ms: Some(12),
        first_packet_ms: None,
        frames: 50,
        exact: 50,
        audio_frames: 0,
        lost: 0,
        ok,
        why: if ok { String::new() } else { "2 RTP packets lost".to_owned() },
    }
}

#[test]
fn columns_line_up_whatever_the_script() {
    let rows = [row("东门入口", true), row("Gate \x1b[31m1", true), row(&"楼".repeat(40), true)];
    let text = render_table(&rows, false);
    let ends: Vec<usize> = text
        .lines()
        .map(|line| {
            let cut = line.find("H.264").or_else(|| line.find("codec")).unwrap();
            line[..cut].chars().map(columns).sum()
        })
        .collect();
    assert_eq!(ends, [52, 52, 52, 52], "{text}");
    assert!(!text.contains('\x1b'));
    let bad = table_row(&row("a", false), false);
    assert!(bad.ends_with("FAILED: 2 RTP packets lost\n"));
    assert!(table_row(&row("a", true), true).contains("\x1b[32mok\x1b[0m"));
}

#[test]
fn transports_have_names() {
    for transport in [MediaTransport::Udp, MediaTransport::TcpPassive, MediaTransport::TcpActive] {
        assert_eq!(parse_transport(transport_name(transport)), Some(transport));
    }
    assert_eq!(parse_transport("sctp"), None);
}

#[test]
fn too_few_pictures_or_the_wrong_codec_are_no_success() {
    let verdict = Verdict {
        packets: 10,
        frames: 10,
        exact: 10,
        video: Some(VideoCodec::H265),
        first_is_key: Some(true),
        ..Verdict::default()
    };
    let mut judged = row("a", false);
    judged.why.clear();
    judge(&mut judged, &verdict, Some(&ClipLibrary::h264()), Duration::from_secs(2));
    assert_eq!(judged.why, "only 10 of about 50 pictures came; the camera plays H.264");
    let mut judged = row("a", false);
    judged.why.clear();
    judge(&mut judged, &verdict, Some(&ClipLibrary::h265()), Duration::from_millis(400));
    assert!(judged.ok, "{}", judged.why);
}

#[tokio::test]
async fn rows_come_in_order_and_say_what_failed() {
    let config = SimPlatformConfig::on_loopback(id(UPPER), Some("12345678"));
    let platform = SimPlatform::start(config).await.unwrap();
    let mut lower_config = LowerConfig::new(platform.addr());
    lower_config.fault = Fault::Altered(3, 50);
    let clips = lower_config.clips.clone();
    let _lower = Lower::start(lower_config).await;
    let handle = platform.handle();
    let limit = Duration::from_secs(10);
    handle.wait_registered(&id(LOWER), limit).await.unwrap();
    let catalog = handle.query_catalog(&id(LOWER), limit).await.unwrap();
    let mut items: Vec<CatalogItem> = catalog.cameras().cloned().collect();
    items.push(CatalogItem::new(camera(9), "没有"));
    let mut seen = 0;
    let rows = play_and_check(
        &handle,
        &id(LOWER),
        &items,
        |channel| clips.get(channel).cloned(),
        &[MediaTransport::Udp, MediaTransport::TcpActive],
        Duration::from_millis(300),
        |_| seen += 1,
    )
    .await;
    assert_eq!((rows.len(), seen), (8, 8));
    let order: Vec<_> = rows.iter().map(|row| (row.transport, row.channel)).collect();
    assert_eq!(order[3], (MediaTransport::Udp, camera(9)));
    assert_eq!(order[4], (MediaTransport::TcpActive, camera(1)));
    for row in &rows {
        assert!(!row.ok);
        let expected = if row.channel == camera(9) { "INVITE: 404 Not Found" } else { "1 pictures altered" };
        assert!(row.why.starts_with(expected), "{row:?}");
    }
    assert_eq!((rows[1].codec, rows[1].frames, rows[1].exact), (Some(VideoCodec::H265), 50, 49));
}
