//! Plays many channels and judges each: what the demonstration and `menshen sim platform --play` show.
//!
//! Standard: [GB/T28181-2022 9.2].
//! In: a platform's handle, a catalogue, what each camera plays. Out: one `CheckRow` a channel and transport; a table.
//! Invariants: a row is ok only when every picture arrived whole; at most `PARALLEL` calls at once; plain text unless
//! colour is asked for.
//! Not here: what is wrong with a stream (`sim::receiver`).

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::proto::codec::VideoCodec;
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::CatalogItem;
use crate::proto::sdp::MediaTransport;
use crate::sim::clip::{self, Clip};
use crate::sim::platform::{InviteOptions, PlatformHandle};
use crate::sim::receiver::{Problem, Verdict};

/// Calls at once: a duty room's wall of screens.
const PARALLEL: usize = 32;
/// Of the pictures that the time played should bring, so many must come: the start and the end take their share.
const PICTURES_DUE: f64 = 0.6;
/// Longest name shown, in columns.
const NAME_WIDTH: usize = 28;

/// One channel over one transport.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckRow {
    /// The channel.
    pub channel: DeviceId,
    /// Its name in the catalogue.
    pub name: String,
    /// What came.
    pub codec: Option<VideoCodec>,
    /// How it travelled; the role is the receiver's.
    pub transport: MediaTransport,
    /// From the INVITE to its 200.
    pub setup_ms: Option<u64>,
    /// From the INVITE to the first packet.
    pub first_packet_ms: Option<u64>,
    /// Pictures received.
    pub frames: u64,
    /// Of them the camera's to the last bit.
    pub exact: u64,
    /// Sound frames received.
    pub audio_frames: u64,
    /// RTP packets lost.
    pub lost: u64,
    /// Everything arrived whole.
    pub ok: bool,
    /// What is wrong; empty when nothing is.
    pub why: String,
}

/// How a transport is called on the command line and in the table.
pub fn transport_name(transport: MediaTransport) -> &'static str {
    match transport {
        MediaTransport::Udp => "udp",
        MediaTransport::TcpPassive => "tcp-passive",
        MediaTransport::TcpActive => "tcp-active",
    }
}

/// Reads such a name.
pub fn parse_transport(name: &str) -> Option<MediaTransport> {
    [MediaTransport::Udp, MediaTransport::TcpPassive, MediaTransport::TcpActive]
        .into_iter()
        .find(|transport| name.eq_ignore_ascii_case(transport_name(*transport)))
}

/// Plays every one of `items` for `length` over each of `transports`, and judges what arrives. `clip_of` says what a
/// channel's camera plays; without it only the stream itself is judged. `progress` sees each row as it is done.
/// The rows come back in the order of transports, then items.
pub async fn play_and_check(
    handle: &PlatformHandle,
    lower: &DeviceId,
    items: &[CatalogItem],
    clip_of: impl Fn(&DeviceId) -> Option<Arc<Clip>>,
    transports: &[MediaTransport],
    length: Duration,
    mut progress: impl FnMut(&CheckRow),
) -> Vec<CheckRow> {
    let pairs = transports.iter().flat_map(|t| items.iter().map(move |item| (*t, item)));
    let mut waiting: VecDeque<(usize, MediaTransport, &CatalogItem)> =
        pairs.enumerate().map(|(n, (t, item))| (n, t, item)).collect();
    let mut rows: Vec<Option<CheckRow>> = vec![None; waiting.len()];
    let mut playing = JoinSet::new();
    loop {
        while playing.len() < PARALLEL
            && let Some((n, transport, item)) = waiting.pop_front()
        {
            let (handle, lower, clip) = (handle.clone(), *lower, clip_of(&item.device_id));
            let row = CheckRow {
                channel: item.device_id,
                name: item.name.clone(),
                codec: None,
                transport,
                setup_ms: None,
                first_packet_ms: None,
                frames: 0,
                exact: 0,
                audio_frames: 0,
                lost: 0,
                ok: false,
                why: String::new(),
            };
            playing.spawn(async move { (n, play(&handle, &lower, row, clip, length).await) });
        }
        match playing.join_next().await {
            Some(Ok((n, row))) => {
                progress(&row);
                rows[n] = Some(row);
            }
            // Cancelled with the runtime, or a panic that has been reported: its row is missing.
            Some(Err(_)) => {}
            None => return rows.into_iter().flatten().collect(),
        }
    }
}

async fn play(
    handle: &PlatformHandle,
    lower: &DeviceId,
    mut row: CheckRow,
    clip: Option<Arc<Clip>>,
    length: Duration,
) -> CheckRow {
    let options = InviteOptions { transport: row.transport, clip: clip.clone(), ..InviteOptions::default() };
    let mut session = match handle.invite(lower, &row.channel, options).await {
        Ok(session) => session,
        Err(failed) => {
            row.why = match failed.status {
                Some(status) => format!("INVITE: {status} {}", failed.reason),
                None => format!("INVITE: {}", failed.reason),
            };
            return row;
        }
    };
    row.setup_ms = Some(millis(session.setup));
    let hung_up = session.play(length).await;
    let end = session.bye().await;
    judge(&mut row, &end.verdict, clip.as_deref(), length);
    if hung_up {
        complain(&mut row, "the lower platform hung up".to_owned());
    } else if end.bye_status != Some(200) {
        complain(&mut row, "BYE was not answered 200".to_owned());
    }
    row
}

fn complain(row: &mut CheckRow, why: String) {
    row.ok = false;
    if !row.why.is_empty() {
        row.why.push_str("; ");
    }
    row.why.push_str(&why);
}

fn judge(row: &mut CheckRow, verdict: &Verdict, clip: Option<&Clip>, length: Duration) {
    row.codec = verdict.video;
    row.first_packet_ms = verdict.first_packet_after.map(millis);
    row.frames = verdict.frames;
    row.exact = verdict.exact;
    row.audio_frames = verdict.audio_frames;
    row.lost = verdict.lost;
    row.ok = true;
    for problem in verdict.problems() {
        complain(row, problem.to_string());
    }
    if let Some(clip) = clip {
        let want = f64::from(clip.fps()) * length.as_secs_f64();
        if verdict.packets > 0 && (verdict.frames as f64) < want * PICTURES_DUE {
            let (have, want) = (verdict.frames, want as u64);
            complain(row, Problem::Starved { have, want }.to_string());
        }
        let codec = match clip.codec() {
            clip::VideoCodec::H264 => VideoCodec::H264,
            clip::VideoCodec::H265 => VideoCodec::H265,
        };
        if verdict.video.is_some_and(|video| video != codec) {
            complain(row, format!("the camera plays {}", codec_name(Some(codec))));
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn codec_name(codec: Option<VideoCodec>) -> &'static str {
    match codec {
        Some(VideoCodec::H264) => "H.264",
        Some(VideoCodec::H265) => "H.265",
        None => "-",
    }
}

/// Columns a character takes on a terminal: two for the scripts of China, Japan and Korea and their punctuation.
fn columns(c: char) -> usize {
    match u32::from(c) {
        0x1100..=0x115F | 0x2E80..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF => 2,
        0xFE30..=0xFE6F | 0xFF00..=0xFF60 | 0xFFE0..=0xFFE6 | 0x1F300..=0x1F64F | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

/// `text` in exactly `width` columns; control characters, which a peer may have sent, are left out.
pub fn padded(text: &str, width: usize) -> String {
    let (mut out, mut used) = (String::new(), 0);
    for c in text.chars().filter(|c| !c.is_control()) {
        if used + columns(c) > width {
            break;
        }
        used += columns(c);
        out.push(c);
    }
    out.extend(std::iter::repeat_n(' ', width - used));
    out
}

/// The table's first line.
pub fn table_head() -> String {
    let name = padded("name", NAME_WIDTH);
    format!(
        "{:<20}  {name}  {:<5}  {:<11}  {:>8}  {:>8}  {:>7}  {:>7}  {:>5}  result\n",
        "channel", "codec", "transport", "setup ms", "first ms", "frames", "exact", "lost"
    )
}

/// One line of the table.
pub fn table_row(row: &CheckRow, colour: bool) -> String {
    let number = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
    let result = match (row.ok, colour) {
        (true, false) => "ok".to_owned(),
        (true, true) => "\x1b[32mok\x1b[0m".to_owned(),
        (false, false) => format!("FAILED: {}", row.why),
        (false, true) => format!("\x1b[31mFAILED\x1b[0m: {}", row.why),
    };
    let mut line = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(
        line,
        "{:<20}  {}  {:<5}  {:<11}  {:>8}  {:>8}  {:>7}  {:>7}  {:>5}  {result}",
        row.channel.as_str(),
        padded(&row.name, NAME_WIDTH),
        codec_name(row.codec),
        transport_name(row.transport),
        number(row.setup_ms),
        number(row.first_packet_ms),
        row.frames,
        row.exact,
        row.lost,
    );
    line
}

/// The whole table.
pub fn render_table(rows: &[CheckRow], colour: bool) -> String {
    let lines = rows.iter().map(|row| table_row(row, colour));
    std::iter::once(table_head()).chain(lines).collect()
}

#[cfg(test)]
mod tests;
