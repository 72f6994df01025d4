//! MANSRTSP: playback control, the text bodies of INFO and of its 200.
//! Standard: [GB/T28181-2022 annex B], [RFC2326 3.5-3.7, 12.29, 12.33, 12.34] for times, speed and RTP-Info.
//! In: body bytes. Out: `Request`, `Response`; bytes from their `to_bytes`.
//! Invariants: at most 4 KiB and 64 lines; times in milliseconds from the start of the recording; what is written here
//! is read as the same value.
//! Deviations read: `MANSRTSP/1.0` for `RTSP/1.0`, a URI before it, any case, bare LF or CR, no CSeq, `ntp=` for `npt=`,
//! hours and minutes in a time, smpte, six decimals in Scale, lines that are no headers.
//! Not here: the dialog INFO belongs to, what a source can do, waiting for answers.

use crate::proto::gb28181::charset;
use std::fmt::{self, Display, Write as _};

/// Longest body: the standard's have five short lines.
pub const MAX_BYTES: usize = 4096;
/// Most lines looked at.
const MAX_LINES: usize = 64;
/// Longest reason kept of a status line, in characters.
const MAX_REASON: usize = 128;
/// Largest position, in milliseconds: a year, longer than any recording that is asked for at once.
pub const MAX_POSITION_MS: u64 = 366 * 24 * 3_600_000;
/// Fastest speed read, in thousandths: sixteen times what the standard asks for.
const MAX_SCALE: i32 = 64_000;

/// Why a body is no MANSRTSP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MansrtspError {
    /// Nothing but blanks.
    #[error("MANSRTSP body: empty: send a start line")]
    Empty,
    /// Above `MAX_BYTES`.
    #[error("MANSRTSP body: {0} bytes: send at most 4096")]
    TooLong(usize),
    /// A start line without a protocol version that is RTSP.
    #[error("MANSRTSP start line: no RTSP/1.0 in it: send e.g. PLAY RTSP/1.0")]
    StartLine,
    /// A method other than PLAY, PAUSE, TEARDOWN.
    #[error("MANSRTSP method: not PLAY, PAUSE or TEARDOWN: correct the sender")]
    Method,
    /// A status that is no number from 100 to 599.
    #[error("MANSRTSP status: not a number from 100 to 599: correct the sender")]
    Status,
    /// CSeq that is no number below 2^32.
    #[error("MANSRTSP CSeq: not a number below 4294967296: correct the sender")]
    CSeq,
    /// Scale that is zero, no number, or above 64.
    #[error("MANSRTSP Scale: not a speed between -64 and 64 other than 0: send 0.25, 0.5, 1, 2, 4 or -1")]
    Scale,
    /// Range of a unknown unit or form, above a year, or that ends before it starts.
    #[error("MANSRTSP Range: not of the form npt=seconds- or npt=now-: correct the sender")]
    Range,
}

impl MansrtspError {
    /// A short fixed name for counters.
    pub fn label(self) -> &'static str {
        match self {
            MansrtspError::Empty => "empty",
            MansrtspError::TooLong(_) => "too_long",
            MansrtspError::StartLine => "start_line",
            MansrtspError::Method => "method",
            MansrtspError::Status => "status",
            MansrtspError::CSeq => "cseq",
            MansrtspError::Scale => "scale",
            MansrtspError::Range => "range",
        }
    }

    /// The status to answer a request with. [RFC2326 11.3]
    pub fn status(self) -> u16 {
        match self {
            MansrtspError::Method => 405,
            MansrtspError::Scale => 451,
            MansrtspError::Range => 457,
            _ => 400,
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Go on, seek, change the speed.
    Play,
    /// Hold.
    Pause,
    /// Stop and end the session.
    Teardown,
}

impl Method {
    const ALL: [Method; 3] = [Method::Play, Method::Pause, Method::Teardown];

    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Play => "PLAY",
            Method::Pause => "PAUSE",
            Method::Teardown => "TEARDOWN",
        }
    }
}

/// Speed in thousandths of the recorded one, negative for reverse; never 0. `Display` is as the standard prints it:
/// `0.5`, `1.0`, `-1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scale(i32);

impl Scale {
    /// The recorded speed.
    pub const NORMAL: Scale = Scale(1000);
    /// The one reverse speed every server has. [GB/T28181-2022 B.8]
    pub const REVERSE: Scale = Scale(-1000);
    /// The speeds every server has. [GB/T28181-2022 B.3]
    pub const STANDARD: [Scale; 5] = [Scale(250), Scale(500), Scale(1000), Scale(2000), Scale(4000)];

    /// From thousandths; `None` for 0 and beyond 64 times.
    pub fn from_thousandths(value: i32) -> Option<Self> {
        (value != 0 && value.abs() <= MAX_SCALE).then_some(Self(value))
    }

    /// Reads a decimal number.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let value = i32::try_from(thousandths(digits)?).ok()?;
        Self::from_thousandths(if negative { -value } else { value })
    }

    /// In thousandths.
    pub fn thousandths(self) -> i32 {
        self.0
    }

    /// As a factor.
    pub fn factor(self) -> f64 {
        f64::from(self.0) / 1000.0
    }

    /// Backwards.
    pub fn is_reverse(self) -> bool {
        self.0 < 0
    }

    /// True if every server has it.
    pub fn is_standard(self) -> bool {
        self == Self::REVERSE || Self::STANDARD.contains(&self)
    }

    /// The speed a server with only the standard's answers with: -1 for any reverse, else the closest (the slower of
    /// two). [GB/T28181-2022 B.8]
    pub fn nearest_standard(self) -> Self {
        if self.is_reverse() {
            return Self::REVERSE;
        }
        Self::STANDARD.into_iter().min_by_key(|s| s.0.abs_diff(self.0)).unwrap_or(Self::NORMAL)
    }
}

impl Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        } else if self.0 % 1000 == 0 {
            return write!(f, "{}.0", self.0 / 1000);
        }
        f.write_str(&decimal(u64::from(self.0.unsigned_abs())))
    }
}

/// Where to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Position {
    /// Where it is.
    Now,
    /// Milliseconds from the start of the recording.
    Npt(u64),
}

/// What to play. `end` before `start` is reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    /// From.
    pub start: Position,
    /// To, in milliseconds from the start of the recording; absent: the end (in reverse the start).
    pub end: Option<u64>,
}

impl Range {
    /// From where it is on.
    pub const NOW: Range = Range { start: Position::Now, end: None };

    /// From a position on.
    pub fn from_ms(ms: u64) -> Self {
        Range { start: Position::Npt(ms), end: None }
    }

    /// Reads `npt=100-`, `npt=now-`, `npt=0:10:20.5-`, `smpte=0:10:20:05-`, `smpte-25=...`; what follows a `;` is
    /// ignored. `clock=` is an error: the standard has no absolute times here.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.split(';').next().unwrap_or("");
        let (unit, times) = text.split_once('=')?;
        let unit = unit.trim().to_ascii_lowercase();
        let frames = match unit.as_str() {
            // the misprint of 2016
            "npt" | "ntp" => None,
            "smpte-25" => Some(25),
            "smpte" | "smpte-30-drop" => Some(30),
            _ => return None,
        };
        let (start, end) = times.split_once('-').unwrap_or((times, ""));
        let (start, end) = (start.trim(), end.trim());
        let start = if start.is_empty() || start.eq_ignore_ascii_case("now") {
            Position::Now
        } else {
            Position::Npt(time(start, frames)?)
        };
        let end = if end.is_empty() { None } else { Some(time(end, frames)?) };
        // `npt=-` and `npt=` say nothing
        let said = end.is_some() || start != Position::Now || times.to_ascii_lowercase().contains("now");
        said.then_some(Range { start, end })
    }
}

impl Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.start {
            Position::Now => f.write_str("npt=now-")?,
            Position::Npt(ms) => write!(f, "npt={}-", decimal(ms))?,
        }
        self.end.map_or(Ok(()), |ms| f.write_str(&decimal(ms)))
    }
}

/// `12`, `12.5` to thousandths; further digits are cut off.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.len() <= 9 && t.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction = fraction.bytes().chain(*b"000").take(3).fold(0, |sum, b| sum * 10 + u64::from(b - b'0'));
    Some(whole * 1000 + fraction)
}

/// Thousandths without trailing zeros.
fn decimal(thousandths: u64) -> String {
    let (whole, fraction) = (thousandths / 1000, thousandths % 1000);
    match fraction {
        0 => whole.to_string(),
        _ => format!("{whole}.{fraction:03}").trim_end_matches('0').to_owned(),
    }
}

/// Seconds, `h:m:s`, and in smpte `h:m:s:frames` of so many a second; to milliseconds.
fn time(text: &str, frames_a_second: Option<u64>) -> Option<u64> {
    let parts: Vec<&str> = text.splitn(5, ':').collect();
    let whole = |t: &str| thousandths(t).filter(|ms| ms % 1000 == 0).map(|ms| ms / 1000);
    let clock = |h: &str, m: &str, s: u64| {
        let (h, m) = (whole(h)?, whole(m).filter(|m| *m < 60)?);
        (s < 60_000).then_some((h * 3600 + m * 60) * 1000 + s)
    };
    let ms = match (parts.as_slice(), frames_a_second) {
        ([s], _) => thousandths(s)?,
        ([h, m, s], _) => clock(h, m, thousandths(s)?)?,
        // the part after a dot is hundredths of a frame
        ([h, m, s, f], Some(rate)) => {
            let frames = thousandths(f).filter(|f| *f < rate * 1000)?;
            clock(h, m, whole(s)? * 1000)? + frames / rate
        }
        _ => return None,
    };
    (ms <= MAX_POSITION_MS).then_some(ms)
}

/// The lines of a body: start line, then headers.
fn lines(body: &[u8]) -> Result<(String, Vec<(String, String)>), MansrtspError> {
    if body.len() > MAX_BYTES {
        return Err(MansrtspError::TooLong(body.len()));
    }
    let text = charset::decode(body, None);
    let mut lines = text.split(['\r', '\n']).map(str::trim).filter(|l| !l.is_empty());
    let start = lines.next().ok_or(MansrtspError::Empty)?.to_owned();
    let headers = lines.take(MAX_LINES).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    });
    Ok((start, headers.collect()))
}

/// The first header of a name that has a value.
fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, v)| n.eq_ignore_ascii_case(name) && !v.is_empty()).map(|(_, v)| v.as_str())
}

fn is_protocol(word: &str) -> bool {
    let (name, version) = word.split_once('/').unwrap_or((word, ""));
    (name.eq_ignore_ascii_case("RTSP") || name.eq_ignore_ascii_case("MANSRTSP")) && version.starts_with("1.")
}

fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// True if the body begins as an answer does.
pub fn is_response(body: &[u8]) -> bool {
    let first = body.trim_ascii_start();
    let is = |name: &[u8]| first.get(..name.len()).is_some_and(|head| head.eq_ignore_ascii_case(name));
    is(b"RTSP/") || is(b"MANSRTSP/")
}

/// A command. PAUSE is at once, whatever its PauseTime: the standard has `now` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub method: Method,
    /// Repeated in the answer; absent where the sender forgot it.
    pub cseq: Option<u32>,
    /// Speed; absent: the last one asked for. [GB/T28181-2022 B.3]
    pub scale: Option<Scale>,
    /// Where; absent: where it is.
    pub range: Option<Range>,
}

impl Request {
    /// Go on from where it is held. [GB/T28181-2022 B.3]
    pub fn resume(cseq: u32) -> Self {
        Request { method: Method::Play, cseq: Some(cseq), scale: None, range: Some(Range::NOW) }
    }

    /// Hold.
    pub fn pause(cseq: u32) -> Self {
        Request { method: Method::Pause, cseq: Some(cseq), scale: None, range: None }
    }

    /// Another speed from where it is.
    pub fn speed(cseq: u32, scale: Scale) -> Self {
        Request { method: Method::Play, cseq: Some(cseq), scale: Some(scale), range: None }
    }

    /// Another place at the same speed.
    pub fn seek(cseq: u32, ms: u64) -> Self {
        Request { method: Method::Play, cseq: Some(cseq), scale: None, range: Some(Range::from_ms(ms)) }
    }

    /// Stop.
    pub fn teardown(cseq: u32) -> Self {
        Request { method: Method::Teardown, cseq: Some(cseq), scale: None, range: None }
    }

    /// Reads the body of an INFO. Scale and Range count for PLAY alone.
    ///
    /// # Errors
    /// [`MansrtspError`]: a start line, CSeq, Scale or Range that cannot be obeyed.
    pub fn parse(body: &[u8]) -> Result<Self, MansrtspError> {
        let (start, headers) = lines(body)?;
        let words: Vec<&str> = start.split_ascii_whitespace().collect();
        let [method, .., protocol] = words.as_slice() else {
            return Err(MansrtspError::StartLine);
        };
        if !is_protocol(protocol) || is_protocol(method) {
            return Err(MansrtspError::StartLine);
        }
        let method =
            Method::ALL.into_iter().find(|m| method.eq_ignore_ascii_case(m.as_str())).ok_or(MansrtspError::Method)?;
        let cseq = header(&headers, "CSeq").map(|t| digits(t).ok_or(MansrtspError::CSeq)).transpose()?;
        let of_play = |name| header(&headers, name).filter(|_| method == Method::Play);
        let scale = of_play("Scale").map(|t| Scale::parse(t).ok_or(MansrtspError::Scale)).transpose()?;
        let range = of_play("Range").map(|t| Range::parse(t).ok_or(MansrtspError::Range)).transpose()?;
        if let (Some(scale), Some(Range { start: Position::Npt(start), end: Some(end) })) = (scale, range)
            && !scale.is_reverse()
            && end < start
        {
            return Err(MansrtspError::Range);
        }
        Ok(Request { method, cseq, scale, range })
    }

    /// The body, as the standard's samples have it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = format!("{} RTSP/1.0\r\n", self.method.as_str());
        line(&mut out, "CSeq", self.cseq);
        match self.method {
            Method::Play => {
                line(&mut out, "Scale", self.scale);
                line(&mut out, "Range", self.range);
            }
            Method::Pause => line(&mut out, "PauseTime", Some("now")),
            Method::Teardown => {}
        }
        out.push_str("\r\n");
        out.into_bytes()
    }
}

fn line(out: &mut String, name: &str, value: Option<impl Display>) {
    if let Some(value) = value {
        write!(out, "{name}: {value}\r\n").expect("a String takes all that is written to it");
    }
}

/// The first packet of the new position. [RFC2326 12.33]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RtpInfo {
    /// Sequence number.
    pub seq: u16,
    /// Timestamp.
    pub rtptime: u32,
}

impl RtpInfo {
    /// Reads `seq=1;rtptime=2`, in any order, with a `url` or without; the first stream of several.
    pub fn parse(text: &str) -> Option<Self> {
        let of = |name: &str| {
            let parts = text.split(',').next().unwrap_or("").split(';').filter_map(|p| p.split_once('='));
            parts.map(|(n, v)| (n.trim(), v.trim())).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
        };
        Some(RtpInfo { seq: digits(of("seq")?)?, rtptime: digits(of("rtptime")?)? })
    }
}

impl Display for RtpInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seq={};rtptime={}", self.seq, self.rtptime)
    }
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 200, or 4xx and 5xx of RTSP.
    pub status: u16,
    /// In words.
    pub reason: String,
    /// That of the command.
    pub cseq: Option<u32>,
    /// The speed taken, where it is not the one asked for. [GB/T28181-2022 B.8]
    pub scale: Option<Scale>,
    /// The place taken.
    pub range: Option<Range>,
    /// Its first packet.
    pub rtp_info: Option<RtpInfo>,
}

impl Response {
    /// An answer to `request` without details.
    pub fn to(request: &Request, status: u16) -> Self {
        let reason = reason(status).to_owned();
        Response { status, reason, cseq: request.cseq, scale: None, range: None, rtp_info: None }
    }

    /// True for 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Reads the body of the 200 to an INFO. A header that is unsound is absent: the status is what counts.
    ///
    /// # Errors
    /// [`MansrtspError`]: no status line.
    pub fn parse(body: &[u8]) -> Result<Self, MansrtspError> {
        let (start, headers) = lines(body)?;
        let (protocol, rest) = start.split_once([' ', '\t']).unwrap_or((&start, ""));
        if !is_protocol(protocol) {
            return Err(MansrtspError::StartLine);
        }
        let (status, reason) = rest.trim().split_once([' ', '\t']).unwrap_or((rest.trim(), ""));
        let status = digits(status).filter(|s| (100..600).contains(s)).ok_or(MansrtspError::Status)?;
        Ok(Response {
            status,
            reason: reason.trim().chars().filter(|c| !c.is_control()).take(MAX_REASON).collect(),
            cseq: header(&headers, "CSeq").and_then(digits),
            scale: header(&headers, "Scale").and_then(Scale::parse),
            range: header(&headers, "Range").and_then(Range::parse),
            rtp_info: header(&headers, "RTP-Info").and_then(RtpInfo::parse),
        })
    }

    /// The body.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = format!("RTSP/1.0 {} ", self.status);
        out.extend(self.reason.chars().filter(|c| !c.is_control()).take(MAX_REASON));
        out.push_str("\r\n");
        line(&mut out, "CSeq", self.cseq);
        line(&mut out, "Scale", self.scale);
        line(&mut out, "Range", self.range);
        line(&mut out, "RTP-Info", self.rtp_info);
        out.push_str("\r\n");
        out.into_bytes()
    }
}

/// The words of a status. [RFC2326 11]
pub fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        451 => "Parameter Not Understood",
        454 => "Session Not Found",
        455 => "Method Not Valid in This State",
        456 => "Header Field Not Valid for Resource",
        457 => "Invalid Range",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Time-out",
        551 => "Option not supported",
        _ => match status / 100 {
            1 => "Continue",
            2 => "OK",
            3 => "Moved",
            4 => "Client Error",
            _ => "Server Error",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../../proto-fixtures/mansrtsp/", $name))
        };
    }

    fn request(text: &str) -> Result<Request, MansrtspError> {
        Request::parse(text.as_bytes())
    }

    #[test]
    fn samples_are_read_and_written_byte_for_byte() {
        let both = Request { scale: Some(Scale::NORMAL), ..Request::seek(3, 196_000) };
        let reverse = Range { start: Position::Npt(600_000), end: Some(120_000) };
        let reverse = Request { range: Some(reverse), ..Request::speed(4, Scale::REVERSE) };
        let cases: [(&[u8], Request); 8] = [
            (fixture!("standard-2022-resume.txt"), Request::resume(2)),
            (fixture!("standard-2022-pause.txt"), Request::pause(1)),
            (fixture!("standard-2022-speed.txt"), Request::speed(3, Scale::STANDARD[3])),
            (fixture!("standard-2022-slow.txt"), Request::speed(3, Scale::STANDARD[0])),
            (fixture!("standard-2022-seek.txt"), Request::seek(5, 196_000)),
            (fixture!("standard-2016-seek-and-speed.txt"), both),
            (fixture!("standard-2022-reverse.txt"), reverse),
            (fixture!("standard-2022-teardown.txt"), Request::teardown(6)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Request::parse(bytes), Ok(expected));
            assert_eq!(String::from_utf8_lossy(&expected.to_bytes()), String::from_utf8_lossy(bytes));
            assert!(!is_response(bytes));
        }
        let answer: &[u8] = fixture!("standard-2022-answer.txt");
        let expected = Response {
            range: Some(Range::from_ms(196_000)),
            rtp_info: Some(RtpInfo { seq: 18139, rtptime: 3_119_600_838 }),
            ..Response::to(&Request::seek(5, 0), 200)
        };
        assert_eq!(Response::parse(answer), Ok(expected.clone()));
        assert_eq!(expected.to_bytes(), answer);
        assert!(is_response(answer) && expected.is_success());
    }

    #[test]
    fn tolerated() {
        for text in [
            "PLAY MANSRTSP/1.0\r\nCSeq: 2\r\nRange: npt=now-\r\n\r\n",
            "PLAY RTSP/1.0\nCSeq:2\nRange:npt=now-",
            "\r\n\r\nplay rtsp/1.0\rcseq : 2\rRANGE: NTP=NOW-\r",
            "PLAY rtsp://198.51.100.7/34020000001320000001 RTSP/1.0\r\nCSeq: 2\r\nno header\r\nRange: npt = now -;time=1\r\n",
            "PLAY RTSP/1.0\r\nCSeq: 2\r\nScale:\r\nRange: npt=now-\r\nRange: npt=5-\r\n\0\0",
        ] {
            assert_eq!(request(text), Ok(Request::resume(2)), "{text:?}");
        }
        assert_eq!(request("PAUSE RTSP/1.0\r\nPauseTime: 12\r\nScale: x\r\n").unwrap().cseq, None);
    }

    #[test]
    fn ranges() {
        for (text, start, end) in [
            ("npt=0-", Position::Npt(0), None),
            ("npt=100-", Position::Npt(100_000), None),
            ("npt=100", Position::Npt(100_000), None),
            ("npt=100.1239-", Position::Npt(100_123), None),
            ("npt=.5-", Position::Npt(500), None),
            ("npt=1:02:03.5-2:00:00", Position::Npt(3_723_500), Some(7_200_000)),
            ("npt=now-30", Position::Now, Some(30_000)),
            ("npt=-30", Position::Now, Some(30_000)),
            ("npt=600-120", Position::Npt(600_000), Some(120_000)),
            ("smpte=0:10:20-", Position::Npt(620_000), None),
            ("smpte-25=10:07:00-10:07:33:05.01", Position::Npt(36_420_000), Some(36_453_200)),
            ("smpte-30-drop=0:00:01:15-", Position::Npt(1500), None),
        ] {
            assert_eq!(Range::parse(text), Some(Range { start, end }), "{text}");
        }
        for text in [
            "",
            "npt",
            "npt=",
            "npt=-",
            "npt=--5",
            "npt=-5-",
            "npt=x-",
            "npt=1e3-",
            "npt=1:2-",
            "npt=0:60:00-",
            "npt=0:00:60-",
            "npt=1:2:3:4-",
            "smpte=0:0:0:30-",
            "npt=31622401-",
            "npt=99999999999999999999-",
            "clock=20261123T080000Z-",
            "utc=5-",
        ] {
            assert_eq!(Range::parse(text), None, "{text}");
        }
        assert_eq!(Range::from_ms(100_050).to_string(), "npt=100.05-");
    }

    #[test]
    fn speeds() {
        for (text, written) in [
            ("2.000000", "2.0"),
            ("1", "1.0"),
            ("0.25", "0.25"),
            (".5", "0.5"),
            ("-1.0", "-1"),
            ("-0.5", "-0.5"),
            ("+4", "4.0"),
            ("3.7", "3.7"),
        ] {
            assert_eq!(Scale::parse(text).unwrap().to_string(), written, "{text}");
        }
        for text in ["", "0", "0.0", "-0", "0.0001", "NaN", "inf", "1e3", "65", "-65", "--1", "2x", "4294967297"] {
            assert_eq!(Scale::parse(text), None, "{text}");
        }
        assert!(Scale::STANDARD.into_iter().chain([Scale::REVERSE]).all(Scale::is_standard));
        for (asked, given) in [("8", "4.0"), ("0.1", "0.25"), ("3", "2.0"), ("-4", "-1"), ("0.9", "1.0")] {
            let asked = Scale::parse(asked).unwrap();
            assert!(!asked.is_standard());
            assert_eq!(asked.nearest_standard().to_string(), given);
        }
    }

    #[test]
    fn answers() {
        let read = |text: &str| Response::parse(text.as_bytes());
        let bare = read("MANSRTSP/1.0 200 OK").unwrap();
        assert_eq!((bare.status, bare.reason.as_str(), bare.cseq), (200, "OK", None));
        let odd =
            read("rtsp/1.0  454\nCSeq: -1\nRange: x\nRTP-Info: url=rtsp://a;rtptime=7;seq= 65535 ,seq=1\n").unwrap();
        assert_eq!((odd.status, odd.reason.as_str(), odd.cseq, odd.range), (454, "", None, None));
        assert_eq!(odd.rtp_info, Some(RtpInfo { seq: 65535, rtptime: 7 }));
        assert!(!odd.is_success());
        assert_eq!(RtpInfo::parse("seq=65536;rtptime=1"), None);
        for (text, error) in [
            ("", MansrtspError::Empty),
            ("HTTP/1.1 200 OK", MansrtspError::StartLine),
            ("RTSP/2.0 200 OK", MansrtspError::StartLine),
            ("RTSP/1.0", MansrtspError::Status),
            ("RTSP/1.0 99 x", MansrtspError::Status),
            ("RTSP/1.0 600 x", MansrtspError::Status),
            ("RTSP/1.0 4294967496 x", MansrtspError::Status),
            ("PLAY RTSP/1.0", MansrtspError::StartLine),
        ] {
            assert_eq!(read(text), Err(error), "{text}");
        }
        // no line end of the reason gets out
        let evil = Response { reason: "OK\r\nX: 1".into(), ..Response::to(&Request::pause(1), 200) };
        assert_eq!(evil.to_bytes(), b"RTSP/1.0 200 OKX: 1\r\nCSeq: 1\r\n\r\n");
        for error in [MansrtspError::Method, MansrtspError::Range, MansrtspError::CSeq] {
            assert!(!reason(error.status()).is_empty());
        }
    }

    /// Every file says in its name what it is refused for (`ok`: it is read).
    #[test]
    fn malformed_fixtures() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/proto-fixtures/mansrtsp/malformed");
        let mut seen = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let body = std::fs::read(&path).unwrap();
            let label = match is_response(&body) {
                true => Response::parse(&body).map_or_else(MansrtspError::label, |_| "ok"),
                false => Request::parse(&body).map_or_else(MansrtspError::label, |_| "ok"),
            };
            assert_eq!(Some(label), name.split('-').nth(1), "{name}");
            seen.insert(label);
        }
        assert_eq!(seen.len(), 9, "every error has its file: {seen:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn requests_round_trip(method in 0usize..3, cseq in proptest::option::of(any::<u32>()),
                               scale in proptest::option::of(-64_000i32..=64_000),
                               start in proptest::option::of(0..=MAX_POSITION_MS), length in proptest::option::of(0u64..9_999_999),
                               ranged in any::<bool>()) {
            let method = Method::ALL[method];
            let end = length.map(|l| (start.unwrap_or(0) + l).min(MAX_POSITION_MS));
            let range = Range { start: start.map_or(Position::Now, Position::Npt), end };
            let play = method == Method::Play;
            let request = Request {
                method,
                cseq,
                scale: scale.and_then(Scale::from_thousandths).filter(|_| play),
                range: (ranged && play).then_some(range),
            };
            prop_assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
            let response = Response { scale: request.scale, range: request.range, ..Response::to(&request, 200) };
            prop_assert_eq!(Response::parse(&response.to_bytes()), Ok(response));
        }
    }
}
