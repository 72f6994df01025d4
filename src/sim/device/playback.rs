//! The text inside INFO that controls a playback, as far as a device must understand it.
//!
//! Standard: [GB/T28181-2022 annex B] MANSRTSP, [RFC2326 3.6] npt.
//! In: a body. Out: `PlaybackRequest`; the text of an answer.
//! Invariants: any bytes give a request or `None`; numbers are finite.
//! Not here: doing it (`stream`).

use std::fmt::Write;

/// Longest body read: the longest meaningful one has about 100 bytes.
const MAX_BODY: usize = 4096;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PlaybackAction {
    /// Go on, at another speed or from another place where told.
    Play {
        /// Speed; `None` keeps it.
        scale: Option<f64>,
        /// Seconds from the start of the recording; `None`: from where it is.
        from: Option<f64>,
    },
    /// Stop for now.
    Pause,
    /// Stop for good.
    Teardown,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlaybackRequest {
    /// Its number.
    pub cseq: Option<u32>,
    /// What.
    pub action: PlaybackAction,
}

/// Reads a body; `None` when it is no request.
pub(super) fn parse(body: &[u8]) -> Option<PlaybackRequest> {
    let text = std::str::from_utf8(body.get(..body.len().min(MAX_BODY))?).ok()?;
    let mut lines = text.lines().map(str::trim).skip_while(|line| line.is_empty());
    let mut words = lines.next()?.split_whitespace();
    let method = words.next()?;
    // `PLAY RTSP/1.0`, also with MANSRTSP or a URI between
    words.last().filter(|version| version.to_ascii_uppercase().contains("RTSP/1."))?;
    let (mut cseq, mut scale, mut from) = (None, None, None);
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match name.trim().to_ascii_lowercase().as_str() {
            "cseq" => cseq = value.parse().ok(),
            "scale" => scale = Some(value.parse().ok().filter(|v: &f64| v.is_finite())?),
            "range" => from = npt(value),
            _ => {}
        }
    }
    let action = match method.to_ascii_uppercase().as_str() {
        "PLAY" => PlaybackAction::Play { scale, from },
        "PAUSE" => PlaybackAction::Pause,
        "TEARDOWN" => PlaybackAction::Teardown,
        _ => return None,
    };
    Some(PlaybackRequest { cseq, action })
}

/// The start of `npt=100-`, `ntp=100-` (2016's misprint), `npt=0:01:40-`; `None` for `now`.
fn npt(value: &str) -> Option<f64> {
    let (_, range) = value.split_once('=')?;
    let start = range.split('-').next()?.trim();
    let mut seconds = 0.0;
    for part in start.split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>().ok()?;
    }
    (seconds.is_finite() && seconds >= 0.0).then_some(seconds)
}

/// Where a stream stands: what an answer to PLAY tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Position {
    /// Sequence number of the next packet.
    pub sequence: u16,
    /// Its timestamp.
    pub timestamp: u32,
    /// Seconds from the start of the recording.
    pub npt: f64,
}

/// An answer. [GB/T28181-2022 B.4]
pub(super) fn answer(status: u16, cseq: Option<u32>, at: Option<Position>) -> String {
    let reason = match status {
        200 => "OK",
        457 => "Invalid Range",
        _ => "Header Field Not Valid",
    };
    let mut text = format!("RTSP/1.0 {status} {reason}\r\n");
    // Writing to a String does not fail.
    if let Some(cseq) = cseq {
        let _ = write!(text, "CSeq: {cseq}\r\n");
    }
    if let Some(at) = at {
        let _ = write!(text, "Range: npt={}-\r\nRTP-Info: seq={};rtptime={}\r\n", at.npt, at.sequence, at.timestamp);
    }
    text + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_platforms_send() {
        let play = |scale, from| Some(PlaybackAction::Play { scale, from });
        for (text, cseq, action) in [
            ("PLAY RTSP/1.0\r\nCSeq: 3\r\nRange: npt=now-\r\n\r\n", Some(3), play(None, None)),
            ("PLAY MANSRTSP/1.0\nCSeq:5\nScale: 2.000000\n", Some(5), play(Some(2.0), None)),
            ("play rtsp://x/ RTSP/1.0\r\nRange: ntp=196.5-\r\nscale: 0.25\r\n", None, play(Some(0.25), Some(196.5))),
            ("PLAY RTSP/1.0\r\nRange: npt=0:01:40-200\r\n", None, play(None, Some(100.0))),
            ("PAUSE RTSP/1.0\r\nCSeq: 1\r\nPauseTime: now\r\n", Some(1), Some(PlaybackAction::Pause)),
            ("TEARDOWN RTSP/1.0\r\nCSeq: 9\r\n\r\n", Some(9), Some(PlaybackAction::Teardown)),
            ("PLAY RTSP/1.0\r\nScale: fast\r\n", None, None),
            ("PLAY\r\n", None, None),
            ("RTSP/1.0 200 OK\r\n", None, None),
            ("", None, None),
        ] {
            let found = parse(text.as_bytes());
            assert_eq!(found.map(|r| r.action), action, "{text}");
            assert_eq!(found.and_then(|r| r.cseq), cseq, "{text}");
        }
        assert_eq!(parse(&[0xFF; 5000]), None);
    }

    #[test]
    fn answers_with_the_place() {
        let at = Position { sequence: 7, timestamp: 90, npt: 12.0 };
        let text = "RTSP/1.0 200 OK\r\nCSeq: 4\r\nRange: npt=12-\r\nRTP-Info: seq=7;rtptime=90\r\n\r\n";
        assert_eq!(answer(200, Some(4), Some(at)), text);
    }
}
