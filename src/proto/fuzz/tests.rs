//! The bodies on stable: every fixture, each fixture changed in seeded ways, and by name the inputs that broke other
//! programs of this kind. A row is handled within `LIMIT`, whatever it is, and is taken or refused as it says.

use super::*;
use std::path::Path;
use std::sync::LazyLock;

/// Longest a row may take in a debug build.
const LIMIT: Duration = Duration::from_secs(1);
/// Changed inputs of one body, in number and in bytes of all: what a debug build does in about a second.
const ROUNDS: usize = 2000;
const VOLUME: usize = 1_000_000;
/// The same for bodies that are slow for each byte: machines, hashes, sets of characters.
const SLOW_VOLUME: usize = 300_000;
/// Seeds are cut to this: what follows repeats what came before.
const SEED: usize = 6 * 1024;

/// All fixture files under `folder`, in order of their names.
fn fixtures(folder: &str) -> Vec<Vec<u8>> {
    let mut paths = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("proto-fixtures").join(folder)];
    let mut files = Vec::new();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if !path.ends_with("README.md") && !path.ends_with("MANIFEST.toml") {
            files.push(path);
        }
    }
    files.sort();
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn texts(of: &[&str]) -> Vec<Vec<u8>> {
    of.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// What the changed inputs of a body begin as.
fn seeds(body: &str) -> Vec<Vec<u8>> {
    let mut seeds = match body {
        "sip_message" | "sip_framer" => fixtures("sip"),
        // Operation 0 takes a message off the tape.
        "sip_endpoint" => fixtures("sip")
            .iter()
            .map(|message| [&[0, 1], &(message.len() as u16).to_be_bytes()[..], message, &[5, 0, 7, 10, 255]].concat())
            .chain((0..16).map(operations))
            .collect(),
        "registration" | "registrar" | "ps_round_trip" | "assembly" => (0..16).map(operations).collect(),
        "digest" => texts(&[
            "Digest realm=\"3402000000\", nonce=\"44010b73623249f6916a6acf7c316b8e\", algorithm=MD5, qop=\"auth\"",
            "Digest username=\"34020000001320000001\",realm=\"3402000000\",nonce=\"44010b73623249f6916a6acf7c316b8e\",\
             uri=\"sip:34020000002000000001@3402000000\",response=\"e4ca3fdc5869fa1c544ea7af60014444\",algorithm=MD5",
            "Unidirection algorithm=\"A:SM2;H:SM3;S:SM4/OFB/PKCS5;SI:SM3-SM2\"",
        ]),
        "sdp" => fixtures("sdp"),
        "manscdp" | "charset" => fixtures("manscdp"),
        "manscdp_relay" => fixtures("manscdp")
            .into_iter()
            .chain(texts(&[
                "<Control><CmdType>DeviceControl</CmdType><SN>1</SN><DeviceID>34</DeviceID><IFameCmd>Send</IFameCmd>\
                 <Info>a</Info><Info><AlarmMethod>1/2</AlarmMethod></Info></Control>",
                "<Response><CmdType>PresetQuery</CmdType><SN>1</SN><DeviceID>34</DeviceID><PresetList Num=\"1\"><Item>\
                 <PresetID>1</PresetID></Item></PresetList></Response>",
            ]))
            .collect(),
        "mansrtsp" => fixtures("mansrtsp"),
        "ptz" => texts(&["A50F01021F0000D6", "A50F4D1000001021", "a50f018100040 3e", "A50F01008FA07056"]),
        "subject" => texts(&["34020000001320000001:0200000001,34020000002000000001:1", "34020000001320000001"]),
        "time" => texts(&["2024-02-29T23:59:59", "2010-11-12T10:00:00.123+08:00", "Sat, 13 Nov 2010 23:29:00 GMT"]),
        "device_id" => texts(&["34020000001320000001", "3402000000", "41130000582150000001"]),
        "rtp" => vec![rtp(96, 1, &[1; 40]), [&[0xB1, 96][..], &[7; 40]].concat()],
        "rfc4571" => vec![
            (0..6).flat_map(|i| framed(&rtp(96, i, &[i as u8; 60]))).collect(),
            (0..6).flat_map(|i| [&[b'$', 0, 0, 32][..], &rtp(96, i, &[3; 20])].concat()).collect(),
            fixtures("ps").swap_remove(0),
        ],
        "rtcp" => vec![report(), [report(), vec![0x81, 203, 0, 1, 1, 2, 3, 4]].concat()],
        "ps_demux" => fixtures("ps").into_iter().chain([program_stream(VideoCodec::H265)]).collect(),
        "adts" => {
            vec![fixtures("media").pop().unwrap(), vec![0x14, 0x08], vec![0xFF, 0xF1, 0x60, 0x40, 0x0D, 0x7F, 0xFC]]
        }
        "annexb" => fixtures("media"),
        "h264_sps" | "h265_sps" => fixtures("media")
            .iter()
            .flat_map(|stream| nal_units(&stream[..1024]).take(4).map(<[u8]>::to_vec).collect::<Vec<_>>())
            .collect(),
        other => panic!("no seeds for {other}"),
    };
    seeds.push(Vec::new());
    seeds.extend(rows().into_iter().filter(|row| row.body == body && row.bytes.len() <= SEED).map(|row| row.bytes));
    seeds.iter_mut().for_each(|seed| seed.truncate(SEED));
    seeds
}

/// A tape of seeded choices.
fn operations(seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..600).map(|_| rng.random()).collect()
}

#[test]
fn every_body_has_seeds_and_every_name_is_said_once() {
    let names: std::collections::BTreeSet<_> = BODIES.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), BODIES.len());
    for name in &names {
        assert!(seeds(name).len() > 1, "{name}");
    }
    assert!(rows().iter().all(|row| names.contains(row.body)));
}

fn run_changed(body: &str) {
    let seeds = seeds(body);
    let run = BODIES.iter().find(|(name, _)| *name == body).unwrap().1;
    seeds.iter().for_each(|seed| run(seed));
    let mut rng = StdRng::seed_from_u64(28181);
    let slow = ["sip_endpoint", "sip_framer", "registration", "registrar", "digest", "charset", "ps_round_trip"]
        .contains(&body);
    let mut left = if slow { SLOW_VOLUME } else { VOLUME };
    for _ in 0..ROUNDS {
        let (seed, other) = (rng.random_range(0..seeds.len()), rng.random_range(0..seeds.len()));
        let input = mutate(&seeds[seed], &seeds[other], &mut rng);
        if let Err(panic) = std::panic::catch_unwind(|| run(&input)) {
            eprintln!("{body}: {}", input.escape_ascii());
            std::panic::resume_unwind(panic);
        }
        match left.checked_sub(input.len()) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

macro_rules! changed {
    ($($body:ident)*) => {
        mod changed {
            $(#[test]
            fn $body() {
                super::run_changed(stringify!($body));
            })*
        }
        #[test]
        fn each_body_is_run_changed() {
            assert_eq!([$(stringify!($body)),*].as_slice(), BODIES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        }
    };
}

changed! {
    sip_message sip_framer sip_endpoint registration registrar digest sdp manscdp manscdp_relay assembly mansrtsp ptz
    subject time device_id charset rtp rfc4571 rtcp ps_demux ps_round_trip annexb h264_sps h265_sps adts
}

// ---- the named rows ----

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Taken,
    Refused,
    /// Either is right; it is here for the time it takes and for what the body asserts.
    Survived,
}
use Verdict::{Refused, Survived, Taken};

struct Row {
    body: &'static str,
    name: &'static str,
    verdict: Verdict,
    bytes: Vec<u8>,
}

fn row(body: &'static str, name: &'static str, verdict: Verdict, bytes: impl Into<Vec<u8>>) -> Row {
    Row { body, name, verdict, bytes: bytes.into() }
}

/// Whether the parser of a body takes these bytes, where that is one question.
fn taken(body: &str, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    match body {
        "sip_message" => parse_datagram(bytes).is_ok(),
        "sip_framer" => {
            let mut framer = SipFramer::new(Limits::default());
            framer.push(bytes);
            matches!(framer.pull(), Ok(Some(SipFrame::Message { .. })))
        }
        "digest" => match text.contains("response") {
            true => AuthParams::parse(&text).is_ok(),
            false => Challenge::parse(&text).is_ok(),
        },
        "sdp" => MediaOffer::parse(bytes).is_ok(),
        "manscdp" => manscdp::parse(bytes, None).is_ok(),
        "mansrtsp" => match mansrtsps::is_response(bytes) {
            true => mansrtsps::Response::parse(bytes).is_ok(),
            false => mansrtsps::Request::parse(bytes).is_ok(),
        },
        "ptz" => PtzCommand::parse(&text, ChecksumPolicy::Verify).is_ok(),
        "time" => UnixMillis::parse_local(&text).is_ok(),
        "rtp" => Packet::parse(bytes).is_ok(),
        "rfc4571" => {
            let mut framer = rtp::Framer::new();
            framer.push(bytes);
            matches!(framer.pull(), Ok(Some(_)))
        }
        "rtcp" => rtcps::read(bytes, |_| {}) == 0,
        "ps_demux" => {
            let mut demuxer = Demuxer::new(DemuxConfig::default());
            demuxer.push(bytes);
            demuxer.finish();
            demuxer.pull().is_some()
        }
        "h264_sps" => h264::sps_facts(bytes).is_ok(),
        "h265_sps" => h265::sps_facts(bytes).is_ok(),
        other => panic!("{other} has no verdict"),
    }
}

/// Processor time of this thread: what other tests take beside it does not count. Real time where the kernel does not tell.
#[allow(clippy::disallowed_methods, reason = "the time limit is of real time")]
fn used() -> Duration {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = told.and_then(|text| text.split(' ').next()?.parse().ok());
    nanos.map_or_else(|| BEGAN.elapsed(), Duration::from_nanos)
}

#[test]
fn every_row_is_handled_in_time_and_as_it_should() {
    let mut wrong = Vec::new();
    for Row { body, name, verdict, bytes } in rows() {
        let run = BODIES.iter().find(|(known, _)| *known == body).unwrap().1;
        // Another try forgives a machine that was busy elsewhere.
        let quick = (0..3).any(|_| {
            let start = used();
            run(&bytes);
            used() - start < LIMIT
        });
        if !quick {
            wrong.push(format!("{body}: {name}: too slow"));
        }
        if verdict != Survived && taken(body, &bytes) != (verdict == Taken) {
            wrong.push(format!("{body}: {name}: not {verdict:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn rows() -> Vec<Row> {
    [
        sip_rows(),
        stream_rows(),
        digest_rows(),
        xml_rows(),
        control_rows(),
        sdp_rows(),
        rtp_rows(),
        ps_rows(),
        nal_rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const FROM: &str = "From: <sip:34020000001320000001@3402000000>;tag=1\r\n";

/// A request with a sound head in which `lines` come after the first line.
fn request(method: &str, lines: &str, body: &str) -> Vec<u8> {
    format!(
        "{method} sip:34020000002000000001@3402000000 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.2:5060;rport;branch=z9hG4bK1\r\n\
         {FROM}To: <sip:34020000002000000001@3402000000>\r\nCall-ID: c@192.0.2.2\r\nCSeq: 1 {method}\r\nMax-Forwards: 70\r\n\
         {lines}\r\n{body}"
    )
    .into_bytes()
}

/// The same with one field's line replaced.
fn with(field: &str, line: &str) -> Vec<u8> {
    let text = String::from_utf8(request("MESSAGE", "", "")).unwrap();
    let at = text.find(&format!("\r\n{field}:")).unwrap() + 2;
    let end = at + text[at..].find("\r\n").unwrap();
    format!("{}{line}{}", &text[..at], &text[end..]).into_bytes()
}

fn response(status: &str) -> Vec<u8> {
    format!(
        "SIP/2.0 {status} What\r\nVia: SIP/2.0/UDP 192.0.2.2;branch=z9hG4bK1\r\n{FROM}To: <sip:a@b>;tag=2\r\nCall-ID: c\r\n\
         CSeq: 1 REGISTER\r\n\r\n"
    )
    .into_bytes()
}

fn sip_rows() -> Vec<Row> {
    let b = "sip_message";
    let length = |value: &str| request("MESSAGE", &format!("Content-Length: {value}\r\n"), "abcde");
    let big = |n: usize| "x".repeat(n);
    vec![
        row(b, "sound", Taken, request("MESSAGE", "", "")),
        row(b, "empty datagram", Refused, ""),
        row(b, "keepalive of four bytes", Refused, "\r\n\r\n"),
        row(b, "64 KiB of A", Refused, vec![b'A'; 64 << 10]),
        row(b, "no blank line", Refused, "MESSAGE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP a"),
        row(b, "bare line feeds", Taken, String::from_utf8(request("MESSAGE", "", "")).unwrap().replace("\r\n", "\n")),
        row(b, "NUL in a header", Survived, request("MESSAGE", "X-A: a\0b\r\n", "")),
        row(b, "10,000 headers", Refused, request("MESSAGE", &"X-A: 1\r\n".repeat(10_000), "")),
        row(b, "10,000 short headers", Refused, request("MESSAGE", &"X:\r\n".repeat(10_000), "")),
        row(b, "1,000 Via", Refused, request("MESSAGE", &"Via: SIP/2.0/UDP a\r\n".repeat(1000), "")),
        row(
            b,
            "1,000 Via in one line",
            Refused,
            request("MESSAGE", &format!("Via: a{}\r\n", ",SIP/2.0/UDP a".repeat(1000)), ""),
        ),
        row(
            b,
            "folded line of 60 KiB",
            Survived,
            request("MESSAGE", &format!("X-A: 1{}\r\n", "\r\n a".repeat(15_000)), ""),
        ),
        row(b, "header without colon", Survived, request("MESSAGE", "nothing\r\n", "")),
        row(
            b,
            "compact forms mixed",
            Taken,
            request("MESSAGE", "l: 2\r\nc: Application/MANSCDP+xml\r\nk: x\r\n", "ab"),
        ),
        row(b, "Content-Length twice", Refused, request("MESSAGE", "l: 2\r\nContent-Length: 2\r\n", "ab")),
        row(b, "Content-Length 1e3", Refused, length("1e3")),
        row(b, "Content-Length +5", Refused, length("+5")),
        row(b, "Content-Length 0x10", Refused, length("0x10")),
        row(b, "Content-Length 2^32", Refused, length("4294967296")),
        row(b, "Content-Length 2^32 - 1", Refused, length("4294967295")),
        row(b, "Content-Length 2^64", Refused, length("18446744073709551616")),
        row(b, "Content-Length short of what follows", Taken, length("3")),
        row(b, "Content-Length beyond the datagram", Refused, length("6")),
        row(b, "CSeq 2^31", Refused, with("CSeq", "CSeq: 2147483648 MESSAGE")),
        row(b, "CSeq 2^32", Refused, with("CSeq", "CSeq: 4294967296 MESSAGE")),
        row(b, "CSeq of another method", Refused, with("CSeq", "CSeq: 1 INVITE")),
        row(b, "Expires -1", Survived, request("REGISTER", "Expires: -1\r\n", "")),
        row(b, "Expires 2^32", Survived, request("REGISTER", "Expires: 4294967296\r\n", "")),
        row(b, "branch empty", Survived, with("Via", "Via: SIP/2.0/UDP 192.0.2.2;branch=")),
        row(
            b,
            "branch of 10 KiB",
            Refused,
            with("Via", &format!("Via: SIP/2.0/UDP 192.0.2.2;branch={}", big(10 << 10))),
        ),
        row(b, "Call-ID of 10 KiB", Refused, with("Call-ID", &format!("Call-ID: {}", big(10 << 10)))),
        row(b, "only semicolons", Survived, with("Via", "Via: SIP/2.0/UDP 192.0.2.2;;;")),
        row(b, "unclosed quote", Survived, with("From", "From: \"a <sip:a@b>;tag=1")),
        row(b, "unclosed bracket", Refused, with("From", "From: <sip:a@b;tag=1")),
        row(b, "IPv6 without brackets", Refused, with("Via", "Via: SIP/2.0/UDP 2001:db8::1;branch=z9hG4bK1")),
        row(b, "method of 1 KiB", Survived, request(&big(1024), "", "")),
        row(b, "status 099", Refused, response("099")),
        row(b, "status 700", Refused, response("700")),
        row(b, "status 4294967301", Refused, response("4294967301")),
        row(b, "status 200", Taken, response("200")),
        row(b, "id of 19 digits", Taken, with("From", "From: <sip:3402000000132000001@3402000000>;tag=1")),
        row(b, "id of letters", Taken, with("From", "From: <sip:abcdefghijklmnopqrst@3402000000>;tag=1")),
        row(b, "10,000 quotes", Survived, with("From", &format!("From: {}<sip:a@b>;tag=1", "\"".repeat(10_000)))),
        row(b, "10,000 parameters", Survived, with("From", &format!("From: <sip:a@b>;tag=1{}", ";a=1".repeat(10_000)))),
        row(
            b,
            "10,000 contacts",
            Survived,
            request("REGISTER", &format!("Contact: <sip:a@b>{}\r\n", ",<sip:a@b>".repeat(6000)), ""),
        ),
        row("sip_endpoint", "a response never asked for", Survived, [&[0, 0, 1, 0][..], &response("200")].concat()),
        row("sip_endpoint", "CANCEL without INVITE", Survived, [1, 0, 3, 0, 0, 0, 0, 0, 0, 5, 0, 2]),
        row("sip_endpoint", "the same INVITE 80 times", Survived, [1, 0, 0, 0, 0, 0, 0, 0, 0].repeat(80)),
        row(
            "sip_endpoint",
            "requests beyond the table",
            Survived,
            (0..180).flat_map(|i| [6, i, 0, i, i, 0, 0, 0]).collect::<Vec<_>>(),
        ),
    ]
}

fn stream_rows() -> Vec<Row> {
    let b = "sip_framer";
    let length = |value: &str, body: &str| request("MESSAGE", &format!("Content-Length: {value}\r\n"), body);
    let whole = length("5", "abcde");
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3];
    vec![
        row(b, "two messages in one segment", Taken, whole.repeat(2)),
        row(b, "half a message", Refused, &whole[..whole.len() / 2]),
        row(b, "Content-Length larger than sent", Refused, length("500", "abcde")),
        row(b, "Content-Length 2^32 - 1", Refused, length("4294967295", "abcde")),
        row(b, "binary before the start line", Refused, [&[0x80, 0x90, 1][..], &whole].concat()),
        row(b, "RTP on the SIP port", Refused, framed(&rtp(96, 1, &[1; 400])).repeat(4)),
        row(b, "TLS hello on the plain port", Refused, hello),
        row(b, "keepalives alone", Refused, "\r\n\r\n".repeat(2000)),
        row(b, "keepalives between", Taken, [&whole[..], b"\r\n\r\n\0\0", &whole].concat()),
        row(b, "64 KiB without an end", Refused, vec![b'A'; 64 << 10]),
        row(b, "10,000 headers", Survived, request("MESSAGE", &"X-A: 1\r\n".repeat(10_000), "")),
    ]
}

fn digest_rows() -> Vec<Row> {
    let b = "digest";
    let nonce = "44010b73623249f6916a6acf7c316b8e";
    let challenge = |more: &str| format!("Digest realm=\"3402000000\",nonce=\"{nonce}\"{more}");
    let answer = |response: &str, more: &str| {
        format!(
            "Digest username=\"a\",realm=\"3402000000\",nonce=\"{nonce}\",uri=\"sip:192.0.2.1:5060\",response=\"{response}\"{more}"
        )
    };
    vec![
        row(b, "sound", Taken, challenge("")),
        row(b, "nonce of 64 KiB", Refused, format!("Digest realm=\"r\",nonce=\"{}\"", "a".repeat(64 << 10))),
        row(b, "unknown algorithm", Refused, challenge(",algorithm=ROT13")),
        row(b, "algorithm=SM3", Refused, challenge(",algorithm=SM3")),
        row(b, "missing realm", Refused, format!("Digest nonce=\"{nonce}\"")),
        row(b, "parameter twice", Refused, challenge(",realm=\"x\"")),
        row(b, "10,000 parameters", Refused, challenge(&(0..10_000).map(|i| format!(",p{i}=1")).collect::<String>())),
        row(b, "quotes inside", Taken, "Digest realm=\"a \\\"b\\\", c\",nonce=\"1\""),
        row(b, "quote not closed", Refused, "Digest realm=\"a,nonce=1"),
        row(b, "ends in an escape", Refused, "Digest realm=\"a\\"),
        row(b, "only auth-int", Refused, challenge(",qop=\"auth-int\"")),
        row(b, "response of 31 digits", Taken, answer(&"a".repeat(31), "")),
        row(b, "response of 33 digits", Taken, answer(&"a".repeat(33), "")),
        row(b, "response in capitals", Taken, answer(&"A".repeat(32), "")),
        row(b, "nc of letters", Taken, answer(&"a".repeat(32), ",qop=auth,nc=zzzzzzzz,cnonce=\"1\"")),
        row(b, "empty", Refused, ""),
    ]
}

/// A Response/Catalog around `inner`.
fn catalog(inner: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<Response><CmdType>Catalog</CmdType><SN>1</SN>\
         <DeviceID>34020000001320000001</DeviceID>{inner}</Response>"
    )
}

fn xml_rows() -> Vec<Row> {
    let b = "manscdp";
    let nested = |depth: usize| format!("<Query>{}{}</Query>", "<a>".repeat(depth), "</a>".repeat(depth));
    let entities: String =
        (1..20).map(|i| format!("<!ENTITY l{i} \"{}\">", format!("&l{};", i - 1).repeat(10))).collect();
    let item = "<Item><DeviceID>34020000001320000002</DeviceID><Name>a</Name></Item>";
    let keepalive =
        |id: &str| format!("<Notify><CmdType>Keepalive</CmdType><SN>1</SN><DeviceID>{id}</DeviceID></Notify>");
    vec![
        row(b, "sound", Taken, catalog(&format!("<SumNum>1</SumNum><DeviceList Num=\"1\">{item}</DeviceList>"))),
        row(b, "billion laughs", Refused, format!("<!DOCTYPE l [<!ENTITY l0 \"lol\">{entities}]>{}", catalog("&l19;"))),
        row(
            b,
            "external entity",
            Refused,
            format!("<!DOCTYPE a [<!ENTITY x SYSTEM \"file:///etc/passwd\">]>{}", catalog("&x;")),
        ),
        row(b, "parameter entity", Refused, format!("<!DOCTYPE a [<!ENTITY % x \"y\">%x;]>{}", catalog(""))),
        row(b, "entity without declaration", Survived, catalog("<Name>&x;</Name>")),
        row(b, "depth 10,000", Refused, nested(10_000)),
        row(b, "depth 200,000", Refused, "<a>".repeat(200_000)),
        row(b, "text of 1 MiB", Taken, catalog(&format!("<Name>{}</Name>", "x".repeat(1 << 20)))),
        row(b, "text of 1 MiB of brackets", Survived, catalog(&"< ".repeat(1 << 19))),
        row(b, "text of 1 MiB of ampersands", Survived, catalog(&"&".repeat(1 << 20))),
        row(b, "1 MiB of half a comment", Survived, catalog(&"<!-".repeat(350_000))),
        row(b, "1 MiB of opened comments", Survived, catalog(&"<!--".repeat(260_000))),
        row(b, "1 MiB of opened CDATA", Survived, catalog(&"<![CDATA[".repeat(116_000))),
        row(b, "1 MiB of ends", Survived, catalog(&"</a>".repeat(260_000))),
        row(b, "40,000 attributes", Survived, format!("<Query {}></Query>", "a=\"1\" ".repeat(40_000))),
        row(b, "100,000 elements", Survived, catalog(&"<a/>".repeat(100_000))),
        row(b, "300,000 elements", Refused, catalog(&"<a/>".repeat(300_000))),
        row(b, "over the limit", Refused, vec![b' '; (4 << 20) + 1]),
        row(b, "SumNum 10^9", Taken, catalog("<SumNum>1000000000</SumNum>")),
        row(b, "SumNum -1", Taken, catalog("<SumNum>-1</SumNum><DeviceList Num=\"-1\"></DeviceList>")),
        row(
            b,
            "Item twice",
            Taken,
            catalog(&format!("<SumNum>2</SumNum><DeviceList Num=\"1\">{item}{item}</DeviceList>")),
        ),
        row(
            b,
            "ParentID loop",
            Taken,
            catalog("<DeviceList><Item><DeviceID>1</DeviceID><ParentID>1</ParentID></Item></DeviceList>"),
        ),
        row(
            b,
            "12,000 items",
            Taken,
            catalog(&format!("<DeviceList>{}</DeviceList>", "<Item><DeviceID>1</DeviceID></Item>".repeat(12_000))),
        ),
        row(b, "SN 2^63", Refused, keepalive("1").replace("<SN>1", "<SN>9223372036854775808")),
        row(b, "no XML at all", Refused, vec![0xFF; 2000]),
        row("time", "24:00:00", Refused, "2024-01-01T24:00:00"),
        row("time", "year 0", Refused, "0000-01-01T00:00:00"),
        row("time", "64 KiB of digits", Refused, "1".repeat(64 << 10)),
        row("time", "30 February", Refused, "2024-02-30T00:00:00"),
        row("ptz", "15 digits", Refused, "A50F01021F0000D"),
        row("ptz", "17 digits", Refused, "A50F01021F0000D61"),
        row("ptz", "bad checksum", Refused, "A50F01021F0000D7"),
        row("charset", "broken multibyte at the end", Survived, b"\xb1\xb1\xbe\xa9\xd6".as_slice()),
        row("charset", "16 KiB of broken bytes", Survived, [0x81, 0x20].repeat(1 << 13)),
    ]
}

fn control_rows() -> Vec<Row> {
    let play = |lines: &str| format!("PLAY RTSP/1.0\r\nCSeq: 1\r\n{lines}\r\n");
    let b = "mansrtsp";
    let item = "<Item><DeviceID>1</DeviceID><x a=\"&lt;\">&amp;</x></Item>";
    vec![
        row(b, "sound", Taken, play("Range: npt=196-\r\n")),
        row(b, "no CSeq", Taken, "PAUSE RTSP/1.0\nPauseTime: now\n"),
        row(b, "empty", Refused, ""),
        row(b, "64 KiB", Refused, play(&"A".repeat(64 << 10))),
        row(b, "4 KiB of line ends", Refused, "\r".repeat(4096)),
        row(b, "4 KiB of colons", Taken, play(&":\n".repeat(2000))),
        row(b, "Scale 0", Refused, play("Scale: 0\r\n")),
        row(b, "Scale 1e309", Refused, play("Scale: 1e309\r\n")),
        row(b, "Range of 2^64", Refused, play("Range: npt=18446744073709551616-\r\n")),
        row(b, "Range of 4 KiB", Refused, play(&format!("Range: npt={}-\r\n", "9".repeat(4000)))),
        row(b, "CSeq 2^32", Refused, "PLAY RTSP/1.0\r\nCSeq: 4294967296\r\n\r\n"),
        row(b, "status of 2^32 and 200", Refused, "RTSP/1.0 4294967496 OK\r\n\r\n"),
        row(b, "RTP-Info that lies", Taken, "RTSP/1.0 200 OK\r\nRTP-Info: seq=-1;rtptime=x\r\n\r\n"),
        row(
            "manscdp_relay",
            "5,000 items",
            Survived,
            catalog(&format!("<DeviceList>{}</DeviceList>", item.repeat(5000))),
        ),
        row("manscdp_relay", "1 MiB of quotes", Survived, catalog(&format!("<Name>{}</Name>", "\"".repeat(1 << 20)))),
        row("assembly", "64 KiB of zeros", Survived, [0; 64 << 10]),
        row("assembly", "64 KiB of ones", Survived, [0xFF; 64 << 10]),
    ]
}

/// A Play offer with `lines` for its media part.
fn offer(lines: &str) -> String {
    format!("v=0\r\no=34020000002000000001 0 0 IN IP4 192.0.2.1\r\ns=Play\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n{lines}")
}

fn sdp_rows() -> Vec<Row> {
    let b = "sdp";
    let video = "m=video 6000 RTP/AVP 96\r\na=rtpmap:96 PS/90000\r\na=recvonly\r\n";
    vec![
        row(b, "sound", Taken, offer(&format!("{video}y=0100000001\r\n"))),
        row(
            b,
            "m= before c=",
            Survived,
            "v=0\r\ns=Play\r\nm=video 6000 RTP/AVP 96\r\na=rtpmap:96 PS/90000\r\nc=IN IP4 192.0.2.1\r\n",
        ),
        row(b, "64 KiB of attributes", Survived, offer(&format!("{video}{}", "a=x:1\r\n".repeat(9000)))),
        row(
            b,
            "64 KiB of payload types",
            Survived,
            offer(&format!("m=video 6000 RTP/AVP {}\r\n", "96 ".repeat(20_000))),
        ),
        row(b, "65 KiB", Refused, offer(&"a=x\r\n".repeat(14_000))),
        row(b, "64 KiB of line ends", Refused, "\r".repeat(64 << 10)),
        row(b, "f= of 60 KiB", Taken, offer(&format!("{video}f=v/{}\r\n", "/".repeat(60_000)))),
        row(
            b,
            "time end before start",
            Refused,
            offer(video).replace("s=Play", "s=Playback").replace("t=0 0", "t=9 5"),
        ),
        row(
            b,
            "TCP/RTP/AVP passive",
            Taken,
            offer(&video.replace("RTP/AVP", "TCP/RTP/AVP").replace("a=recv", "a=setup:passive\r\na=recv")),
        ),
        row(b, "y= of 5 digits", Taken, offer(&format!("{video}y=12345\r\n"))),
    ]
}

fn rtp(payload_type: u8, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let header = Header { marker: false, payload_type, sequence, timestamp: 9000, ssrc: 0x0100_0001 };
    [&header.to_bytes()[..], payload].concat()
}

fn framed(packet: &[u8]) -> Vec<u8> {
    [&(packet.len() as u16).to_be_bytes()[..], packet].concat()
}

/// A sender report.
fn report() -> Vec<u8> {
    let stream = rtcps::SentStream {
        ssrc: 0x0100_0001,
        unix: Duration::from_secs(1_700_000_000),
        rtp_timestamp: 9000,
        packets: 5,
        octets: 700,
    };
    let mut out = [0; rtcps::MAX_COMPOUND];
    let length = rtcps::write_sender_report(&mut out, &stream, "34020000001320000001").unwrap();
    out[..length].to_vec()
}

fn rtp_rows() -> Vec<Row> {
    let (b, t, c) = ("rtp", "rfc4571", "rtcp");
    let sound = rtp(96, 1, &[1; 20]);
    let first = |byte: u8, rest: &[u8]| [&[byte], rest].concat();
    let stream: Vec<u8> = (0..200).flat_map(|i| framed(&rtp(96, i, &[i as u8; 300]))).collect();
    let mut holed = stream.clone();
    holed.splice(3140..3140, [0x55; 5000]);
    let mut rows = vec![
        row(b, "sound", Taken, sound.clone()),
        row(b, "version 0", Refused, first(0x00, &sound[1..])),
        row(b, "version 1", Refused, first(0x40, &sound[1..])),
        row(b, "version 3", Refused, first(0xC0, &sound[1..])),
        row(b, "15 sources in 12 bytes", Refused, first(0x8F, &sound[1..12])),
        row(
            b,
            "extension of 65,535 words",
            Refused,
            [&first(0x90, &sound[1..12])[..], &[0, 0, 0xFF, 0xFF], &[0; 40]].concat(),
        ),
        row(b, "padding 0", Refused, [&first(0xA0, &sound[1..])[..], &[0]].concat()),
        row(b, "padding beyond the payload", Refused, [&first(0xA0, &sound[1..12])[..], &[9, 9, 9]].concat()),
        row(b, "SSRC 0", Taken, [&sound[..8], &[0; 24]].concat()),
        row(t, "sound", Taken, stream.clone()),
        row(t, "length 0", Taken, [&[0, 0].repeat(1000)[..], &stream].concat()),
        row(t, "length 1", Survived, [&[0, 1, 7].repeat(1000)[..], &stream].concat()),
        row(t, "length 65,535", Survived, [&[0xFF, 0xFF, 0x80, 96][..], &vec![0; 70_000]].concat()),
        row(t, "cut inside the prefix", Refused, [0]),
        row(t, "missing prefix: bare PS", Taken, program_stream(VideoCodec::H264)),
        row(
            t,
            "RTSP framing",
            Taken,
            (0..50).flat_map(|i| [&[b'$', 0, 0, 112][..], &rtp(96, i, &[3; 100])].concat()).collect::<Vec<_>>(),
        ),
        row(t, "garbage in between", Taken, holed),
        row(t, "garbage without end", Survived, [&stream[..], &vec![0x55; 300_000]].concat()),
        row(t, "text", Refused, "GET / HTTP/1.1\r\n".repeat(100)),
        row(c, "sound", Taken, report()),
        row(c, "length lies", Refused, [0x80, 200, 0xFF, 0xFF, 0, 0, 0, 0]),
        row(c, "compound without sender report", Taken, [0x81, 203, 0, 1, 1, 2, 3, 4]),
        row(c, "BYE for another source", Taken, [report(), vec![0x81, 203, 0, 1, 9, 9, 9, 9]].concat()),
        row(c, "31 report blocks in 8 bytes", Refused, [0x9F, 201, 0, 1, 1, 2, 3, 4]),
        row(c, "64 KiB of empty parts", Survived, [0x80, 204, 0, 0].repeat(16_000)),
    ];
    rows.extend((72..=76).map(|pt| {
        row(b, "payload type that clashes with RTCP", Refused, first(0x80, &[&[0x80 | pt], &sound[2..]].concat()))
    }));
    rows.extend((0..12).map(|n| row(b, "shorter than a header", Refused, &sound[..n])));
    rows
}

/// Four frames as our muxer writes them.
fn program_stream(codec: VideoCodec) -> Vec<u8> {
    let (mut muxer, mut out) =
        (Muxer::new(MuxConfig { video: Some(codec), audio: Some(AudioCodec::G711A) }), Vec::new());
    for i in 0..4u64 {
        let frame = picture(codec, i == 0, 300, 7);
        muxer.write_video(&mut out, &VideoUnit { annexb: &frame, pts: 3600 * i, dts: 3600 * i, key: i == 0 });
        muxer.write_audio(&mut out, &[0xD5; 160], 3600 * i);
    }
    out
}

fn ps_rows() -> Vec<Row> {
    let b = "ps_demux";
    let sound = program_stream(VideoCodec::H264);
    let find = |code: u8| sound.windows(4).position(|w| w == [0, 0, 1, code]).unwrap();
    let (system, map, video) = (find(0xBB), find(0xBC), find(0xE0));
    // Overwrites bytes at `at`.
    let patched = |at: usize, bytes: &[u8]| {
        let mut out = sound.clone();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        out
    };
    let spliced = |at: usize, bytes: &[u8]| [&sound[..at], bytes, &sound[at..]].concat();
    let map_end = map + 6 + usize::from(sound[map + 5]);
    let without_map = [&sound[..system], &sound[map_end..]].concat();
    let mut unbounded = sound.clone();
    unbounded[video + 4..video + 6].copy_from_slice(&[0, 0]);
    let mut changed = sound.clone();
    (0..4).for_each(|i| changed.extend(program_stream(if i % 2 == 0 { VideoCodec::H265 } else { VideoCodec::H264 })));
    let mut private = vec![0, 0, 1, 0xBD, 0, 20, 0x80, 0, 0];
    private.resize(26, 7);
    vec![
        row(b, "sound", Taken, sound.clone()),
        row(b, "PES length 0", Taken, unbounded),
        row(b, "PES length 1", Survived, patched(video + 4, &[0, 1])),
        row(b, "PES length 65,535", Survived, patched(video + 4, &[0xFF, 0xFF])),
        row(b, "PES header longer than its packet", Survived, patched(video + 8, &[0xFF])),
        row(b, "stamp flags 01", Survived, patched(video + 7, &[0x40])),
        row(b, "stuffing 7", Taken, [&sound[..13], &[0xFF; 8], &sound[14..]].concat()),
        row(b, "no pack header", Survived, &sound[system..]),
        row(b, "system header length lies", Survived, patched(system + 4, &[0xFF, 0xFF])),
        row(b, "map length 0", Survived, patched(map + 4, &[0, 0])),
        row(b, "map length 1,023", Survived, patched(map + 4, &[3, 0xFF])),
        row(b, "map length odd", Survived, patched(map + 4, &[0, 17])),
        row(b, "map entries longer than the map", Survived, patched(map + 10, &[0xFF, 0xFF])),
        row(b, "map with a wrong sum", Taken, patched(map_end - 4, &[1, 2, 3, 4])),
        row(b, "map of an unknown type", Taken, patched(map + 12, &[0x77])),
        row(b, "pack header in the payload", Survived, spliced(video + 40, &[0, 0, 1, 0xBA])),
        row(b, "two changes of codec", Taken, changed),
        row(b, "no map, codec by its units", Taken, without_map),
        row(b, "private stream", Taken, spliced(system, &private)),
        row(b, "vendor prefix", Taken, [&b"IMKH"[..], &[0; 36], &sound].concat()),
        row(b, "60 KiB of pack headers", Survived, sound[..14].repeat(4400)),
        row(b, "60 KiB of start codes", Survived, [0, 0, 1].repeat(20_000)),
        row(b, "60 KiB of zeros", Refused, vec![0; 60_000]),
        row(b, "60 KiB of empty PES", Survived, [0, 0, 1, 0xE0, 0, 3, 0x80, 0, 0].repeat(6600)),
        row(b, "60 KiB of audio of one byte", Survived, [0, 0, 1, 0xC0, 0, 4, 0x80, 0, 0, 5].repeat(6000)),
    ]
}

fn nal_rows() -> Vec<Row> {
    let (a, s, t) = ("annexb", "h264_sps", "h265_sps");
    // Profile 66, level 30, then Exp-Golomb codes.
    let head = [0x67, 66, 0, 30];
    let long_picture = [&[0, 0, 0, 1, 0x65][..], &vec![0x88; 4 << 20]].concat();
    vec![
        row(a, "empty unit", Survived, [0, 0, 0, 1, 0, 0, 0, 1]),
        row(a, "forbidden bit", Survived, [0, 0, 0, 1, 0xE7, 0, 0, 1, 0xE5, 1]),
        row(a, "unit of 4 MiB", Survived, long_picture),
        row(a, "4 MiB of zeros", Survived, vec![0; 4 << 20]),
        row(a, "1 MiB of start codes", Survived, [0, 0, 1].repeat(350_000)),
        row(a, "1 MiB of parameter sets", Survived, [0, 0, 1, 0x67, 1, 0, 0, 1, 0x68, 2].repeat(100_000)),
        row(a, "parameter set of 1 MiB", Survived, [&[0, 0, 1, 0x67][..], &vec![1; 1 << 20]].concat()),
        row(a, "parameter set after its picture", Survived, [0, 0, 1, 0x65, 1, 0, 0, 1, 0x67, 66, 0, 30]),
        row(a, "fragment without its start", Survived, [0x7C, 0x05, 1, 2, 3]),
        row(a, "security SEI cut short", Survived, [0, 0, 1, 6, 5, 0xFF, 0xFF, 0xFF]),
        row(a, "emulation bytes at the end", Survived, [0, 0, 1, 0x67, 66, 0, 0, 3, 0, 0, 3]),
        row(s, "empty", Refused, ""),
        row(s, "forbidden bit", Refused, [0xE7, 66, 0, 30, 0xFF]),
        row(s, "code of 2^32", Refused, [&head[..], &[0; 4], &[0x80; 8]].concat()),
        row(s, "zeros only", Refused, [&head[..], &[0; 4000]].concat()),
        row(s, "ones only", Survived, [&head[..], &[0xFF; 4000]].concat()),
        row(s, "64 KiB of emulation bytes", Survived, [&head[..], &[0, 0, 3].repeat(21_000)].concat()),
        row(t, "empty", Refused, ""),
        row(t, "zeros only", Refused, [&[0x42, 1][..], &[0; 4000]].concat()),
        row(t, "ones only", Survived, [&[0x42, 1][..], &[0xFF; 4000]].concat()),
    ]
}
