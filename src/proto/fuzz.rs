//! Test support: one body per parser, each taking any bytes and asserting what must hold whatever they are.
//!
//! In: bytes. Out: nothing; a broken promise is a panic. The same bodies run bounded on stable (`fuzz::tests`, the
//! replay of kept inputs) and under a coverage-guided fuzzer.
//! Invariants: a body's result depends on its bytes alone; machines (endpoint, registration, registrar) run in virtual time over
//! an operation list decoded from the bytes, so that every byte sequence is a run and every run can be shortened.
//! Not here: what a parser should make of a sound input (its own unit tests).

use super::codec::annexb::{leading_start_code, nal_starts, nal_units};
use super::codec::{
    AdtsHeader, AdtsParams, AudioCodec, MAX_DIMENSION, ParameterSets, SpsError, SpsFacts, VideoCodec, h264, h265,
    inspect, normalise_access_unit,
};
use super::gb28181::{Charset, DeviceId, Profile, Subject, UnixMillis, Version, charset as charsets};
use super::manscdp::catalog::{CatalogResponse, catalog_page, item_xml, read_catalog_notify};
use super::manscdp::notify::{Alarm, Broadcast, Keepalive, read_media_status};
use super::manscdp::query::{control as write_control, query as write_query};
use super::manscdp::record::{merge, record_page, record_xml};
use super::manscdp::request::config_blocks;
use super::manscdp::response::{DeviceInfo, DeviceStatus, read_result};
use super::manscdp::xml::{MAX_DEPTH, MAX_ELEMENTS};
use super::manscdp::{
    self, Assembly, AssemblyLimits, CatalogItem, CatalogTree, ChecksumPolicy, Chunk, Element, Ending, Incoming,
    Policies, Progress, PtzCommand, Query, RecordResponse, RelayError, Respell, Root,
};
use super::mansrtsp as mansrtsps;
use super::ps::{DemuxConfig, Demuxer, MuxConfig, Muxer, Unit, VideoUnit};
use super::rtp::{self, Framing, Header, ImageWriter, Packet, rtcp as rtcps};
use super::sdp::{MediaAnswer, MediaOffer, Sdp};
use super::sip::digest::{Algorithm, AuthParams, Challenge, DigestClient, DigestError, DigestServer};
use super::sip::endpoint::{
    ApiError, ClientFailure, ClientTxId, Endpoint, EndpointConfig, Event, Input, Output, ServerTxId, response_to,
};
use super::sip::framer::{Frame as SipFrame, Framer as SipFramer, Limits};
use super::sip::header::{self, CSeq, NameAddr, SipUri, Via};
use super::sip::message::{ConnId, Flow, Headers, Message, Request, Response, Transport};
use super::sip::parse::{Malformed, parse_datagram, parse_framed};
use super::sip::registrar::{
    Account, BindingRecord, Change, Ids, KeepalivePolicy, KeepaliveVerdict, LockoutConfig, MAX_PENDING, NatPolicy,
    OfflineReason, RateConfig, Registrar, RegistrarConfig,
};
use super::sip::registration::{Kind, Reason, Registration, RegistrationConfig, RegistrationOutput, State};
use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Takes any bytes; panics where a promise is broken.
pub type Body = fn(&[u8]);

/// All bodies by the name their inputs are kept under.
pub const BODIES: &[(&str, Body)] = &[
    ("sip_message", sip_message),
    ("sip_framer", sip_framer),
    ("sip_endpoint", sip_endpoint),
    ("registration", registration),
    ("registrar", registrar),
    ("digest", digest),
    ("sdp", sdp),
    ("manscdp", manscdp),
    ("manscdp_relay", manscdp_relay),
    ("assembly", assembly),
    ("mansrtsp", mansrtsp),
    ("ptz", ptz),
    ("subject", subject),
    ("time", time),
    ("device_id", device_id),
    ("charset", charset),
    ("rtp", rtp_packet),
    ("rfc4571", rfc4571),
    ("rtcp", rtcp),
    ("ps_demux", ps_demux),
    ("ps_round_trip", ps_round_trip),
    ("annexb", annexb),
    ("h264_sps", h264_sps),
    ("h265_sps", h265_sps),
    ("adts", adts),
];

/// Longest input made by [`mutate`]: beyond it bodies get slow and nothing new happens; longer ones are made by hand.
pub const MAX_MUTATED: usize = 64 * 1024;

/// Numbers at which parsers break.
const NUMBERS: [&str; 14] = [
    "-1",
    "0",
    "1",
    "127",
    "128",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "1e3",
];

/// Changes a seed in one to four ways: bits, lengths, cuts, repeats, numbers, and pieces of `other`.
pub fn mutate(seed: &[u8], other: &[u8], rng: &mut impl Rng) -> Vec<u8> {
    let mut out = seed[..seed.len().min(MAX_MUTATED)].to_vec();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..=out.len());
        let span = rng.random_range(0..=(out.len() - at).min(1 + out.len() / 4));
        match rng.random_range(0..11) {
            0 if at < out.len() => out[at] ^= 1 << rng.random_range(0..8),
            1 if at < out.len() => {
                out[at] = [0, 1, 0x7F, 0x80, 0xFF, b'\r', b'\n', b' ', b'"', b'<'][rng.random_range(0..10)]
            }
            2 => out.truncate(at),
            3 => drop(out.drain(at..at + span)),
            4 => {
                let piece = out[at..at + span].to_vec();
                (0..rng.random_range(1..=3)).for_each(|_| drop(out.splice(at..at, piece.iter().copied())));
            }
            5 => insert(&mut out, at, NUMBERS[rng.random_range(0..NUMBERS.len())].as_bytes()),
            6 => replace_number(&mut out, at, NUMBERS[rng.random_range(0..NUMBERS.len())].as_bytes()),
            7 if at + 2 <= out.len() => {
                let value: u16 = [0, 1, 2, 7, 8, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF][rng.random_range(0..9)];
                out[at..at + 2].copy_from_slice(&value.to_be_bytes());
            }
            8 if at + 2 <= out.len() => {
                // A length that is nearly right.
                let old = u16::from_be_bytes([out[at], out[at + 1]]);
                let new = old.wrapping_add(rng.random_range(0..9)).wrapping_sub(4);
                out[at..at + 2].copy_from_slice(&new.to_be_bytes());
            }
            9 if !other.is_empty() => {
                let from = rng.random_range(0..other.len());
                let to = (from + rng.random_range(1..=other.len() - from)).min(from + MAX_MUTATED / 4);
                out.splice(at..at + span, other[from..to].iter().copied());
            }
            _ => {
                let noise: [u8; 4] = rng.random();
                insert(&mut out, at, &noise[..rng.random_range(1..=4)]);
            }
        }
        out.truncate(MAX_MUTATED);
    }
    out
}

fn insert(out: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    out.splice(at..at, bytes.iter().copied());
}

/// Replaces the first run of digits at or after `at`.
fn replace_number(out: &mut Vec<u8>, at: usize, number: &[u8]) {
    let Some(from) = out[at..].iter().position(u8::is_ascii_digit).map(|n| at + n) else {
        return;
    };
    let length = out[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    out.splice(from..from + length, number.iter().copied());
}

/// Bytes read as choices; an empty tape gives zeros.
struct Tape<'a>(&'a [u8]);

impl<'a> Tape<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A short piece as text.
    fn text(&mut self) -> String {
        let length = self.below(64);
        String::from_utf8_lossy(self.take(length)).into_owned()
    }
}

/// An instant to count from.
#[allow(clippy::disallowed_methods, reason = "virtual time needs some instant to begin at; nothing depends on which")]
fn origin() -> Instant {
    Instant::now()
}

/// Places to cut `data` at, made of its own bytes.
fn cuts(data: &[u8]) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(data.iter().fold(0, |sum, b| sum * 31 % 1_000_003 + u64::from(*b)));
    let mut at = 0;
    std::iter::from_fn(|| {
        at += if rng.random_ratio(1, 4) { rng.random_range(1..=4) } else { rng.random_range(1..=512) };
        (at < data.len()).then_some(at)
    })
    .collect()
}

/// The pieces of `data` between `cuts`.
fn pieces<'a>(data: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([data.len()]);
    starts.zip(ends).map(|(from, to)| &data[from..to]).collect()
}

// ---- SIP ----

/// One datagram: what is taken can be written and is then taken as the same; what is refused may be answered.
pub fn sip_message(data: &[u8]) {
    match parse_datagram(data) {
        Ok(message) => {
            assert_eq!(parse_datagram(&message.to_bytes()), Ok(message.clone()), "written and read back");
            let (Message::Request(Request { headers, .. }) | Message::Response(Response { headers, .. })) = &message;
            typed_headers(headers);
        }
        Err(error) => {
            if let Some(answer) = error.answer {
                let bytes = answer.to_bytes();
                assert!(bytes.len() <= 2 * data.len() + 1024, "an answer does not amplify");
            }
        }
    }
}

fn typed_headers(headers: &Headers) {
    let _ = (header::from(headers), header::to(headers), header::cseq(headers), header::call_id(headers));
    let _ = (header::top_via(headers), header::parse_contacts(headers), header::expires(headers));
    let _ = header::content_type_is(headers, "application/sdp");
    for (name, value) in headers.iter() {
        if let Some(via) = Via::parse(value) {
            assert_eq!(Via::parse(&via.to_string()), Some(via), "Via in {name}");
        }
        if let Some(address) = NameAddr::parse(value) {
            let _ = (address.tag(), address.user(), address.expires());
            assert_eq!(NameAddr::parse(&address.to_string()), Some(address.clone()), "address in {name}");
            if let Ok(uri) = SipUri::parse(&address.uri) {
                assert_eq!(SipUri::parse(&uri.to_string()), Ok(uri), "URI in {name}");
            }
        }
        if let Some(cseq) = CSeq::parse(value) {
            assert_eq!(CSeq::parse(&cseq.to_string()), Some(cseq));
        }
    }
}

/// A stream: the frames do not depend on where it was cut.
pub fn sip_framer(data: &[u8]) {
    const LIMITS: Limits = Limits { head: 8 * 1024, body: 16 * 1024 };
    let run = |pieces: &[&[u8]]| {
        let (mut framer, mut out) = (SipFramer::new(LIMITS), Vec::new());
        for piece in pieces {
            framer.push(piece);
            loop {
                match framer.pull() {
                    Ok(Some(frame)) => out.push(Ok(frame)),
                    Ok(None) => break,
                    Err(error) => {
                        if !matches!(out.last(), Some(Err(_))) {
                            out.push(Err(error.reason));
                        }
                        break;
                    }
                }
            }
        }
        out
    };
    let whole = run(&[data]);
    assert_eq!(run(&data.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    assert_eq!(run(&pieces(data, &cuts(data))), whole, "in pieces");
    let mut used = 0;
    for frame in whole.into_iter().flatten() {
        if let SipFrame::Message { head, body } = frame {
            assert!(head.len() <= LIMITS.head && body.len() <= LIMITS.body);
            used += head.len() + body.len();
            let _ = parse_framed(&head, body);
        }
    }
    assert!(used <= data.len(), "no byte is used twice");
}

/// Most operations of a machine's run: longer runs repeat themselves.
const MAX_OPERATIONS: usize = 200;
/// Transactions a fuzzed endpoint may hold, each way.
const TABLE: usize = 6;

/// Operations on an endpoint: messages, answers, requests, faults and time.
pub fn sip_endpoint(data: &[u8]) {
    let mut world = World::new();
    let mut tape = Tape(data);
    for _ in 0..MAX_OPERATIONS {
        if tape.is_empty() {
            break;
        }
        world.operate(&mut tape);
        world.settle();
    }
    world.run_out();
}

struct World {
    endpoint: Endpoint,
    now: Instant,
    /// Requests sent, and whether their one outcome has come: the To tags of their final responses.
    clients: BTreeMap<ClientTxId, Option<Vec<String>>>,
    /// Requests to answer.
    servers: Vec<(ServerTxId, Request, Flow)>,
    /// The last requests that left, for responses to them.
    sent: Vec<(Flow, Request)>,
    serial: u32,
}

impl World {
    fn new() -> Self {
        let config = EndpointConfig { max_client: TABLE, max_server: TABLE, ..EndpointConfig::default() };
        World {
            endpoint: Endpoint::new(config, StdRng::seed_from_u64(7)),
            now: origin(),
            clients: BTreeMap::new(),
            servers: Vec::new(),
            sent: Vec::new(),
            serial: 0,
        }
    }

    fn flow(tape: &mut Tape<'_>) -> Flow {
        let choice = tape.below(4);
        let transport = if choice < 2 { Transport::Udp } else { Transport::Tcp };
        let address = |last, port| SocketAddr::from((Ipv4Addr::new(192, 0, 2, last), port));
        Flow {
            transport,
            local: address(1, 5060),
            peer: address(2 + choice as u8 % 2, 5060),
            conn: (choice >= 2).then_some(ConnId(choice as u64)),
        }
    }

    fn operate(&mut self, tape: &mut Tape<'_>) {
        let now = self.now;
        match tape.byte() % 11 {
            0 => {
                let flow = Self::flow(tape);
                let length = usize::from(tape.short() % 4096);
                if let Ok(message) = parse_datagram(tape.take(length)) {
                    self.endpoint.handle_input(now, Input::Message { flow, message });
                }
            }
            1 | 2 => {
                let flow = Self::flow(tape);
                let message = Message::Request(Self::request(tape));
                self.endpoint.handle_input(now, Input::Message { flow, message });
            }
            3 | 4 => self.answer_ours(tape),
            5 => self.answer_theirs(tape),
            6 => {
                let flow = Self::flow(tape);
                self.serial += 1;
                let mut request = Self::request(tape);
                request.headers.set("CSeq", format!("{} {}", self.serial, request.method));
                if let Ok(id) = self.endpoint.request(now, flow, None, request) {
                    assert_eq!(self.clients.insert(id, None), None, "ids are never used again");
                }
            }
            7 => {
                let id = self.clients.keys().nth(tape.below(self.clients.len())).copied();
                if let Some(id) = id {
                    let _ = self.endpoint.cancel(now, id);
                }
            }
            8 => {
                let flow = Self::flow(tape);
                let mut request = Self::request(tape);
                request.method = "ACK".to_owned();
                let seq = request.headers.cseq().map_or(1, |cseq| cseq.seq);
                request.headers.set("CSeq", format!("{seq} ACK"));
                self.endpoint.ack(now, flow, None, request);
            }
            9 => {
                let flow = Self::flow(tape);
                let input = match flow.conn {
                    Some(conn) if tape.flag() => Input::ConnClosed { conn },
                    _ => Input::TransportFailed { flow },
                };
                self.endpoint.handle_input(now, input);
            }
            _ => {
                let until = now + Duration::from_millis(u64::from(tape.byte()).pow(2));
                self.advance(until);
            }
        }
    }

    /// A request of few Call-IDs, tags and branches, so that they meet each other.
    fn request(tape: &mut Tape<'_>) -> Request {
        let method = tape.pick(&["INVITE", "INVITE", "ACK", "CANCEL", "BYE", "MESSAGE", "REGISTER", "X"]);
        let (call, branch, seq) = (tape.byte() % 3, tape.byte() % 4, 1 + tape.byte() % 2);
        let cookie = if branch == 3 { "" } else { "z9hG4bK" };
        let mut headers = Headers::new();
        headers.push("Via", format!("SIP/2.0/UDP 192.0.2.2:5060;rport;branch={cookie}{branch}"));
        headers.push("From", format!("<sip:34020000002000000001@192.0.2.2>;tag=f{}", tape.byte() % 2));
        let tag = tape.pick(&["", ";tag=a", ";tag=b"]);
        headers.push("To", format!("<sip:34020000001320000001@192.0.2.1>{tag}"));
        headers.push("Call-ID", format!("call{call}"));
        headers.push("CSeq", format!("{seq} {method}"));
        let length = tape.below(16);
        Request {
            method: method.to_owned(),
            uri: "sip:34020000001320000001@192.0.2.1".to_owned(),
            headers,
            body: Bytes::copy_from_slice(tape.take(length)),
        }
    }

    /// A response to something we sent, perhaps spoilt.
    fn answer_ours(&mut self, tape: &mut Tape<'_>) {
        let Some((flow, request)) = self.sent.get(tape.below(self.sent.len())) else {
            return;
        };
        let status = tape.pick(&[100, 180, 200, 200, 202, 302, 401, 404, 481, 486, 487, 503, 699]);
        let mut response = response_to(request, flow, status, None, tape.pick(&["a", "b", ""]));
        let mut flow = *flow;
        match tape.below(8) {
            0 => flow.peer.set_port(9),
            1 => response.headers.set("CSeq", "1 INVITE"),
            2 => response.headers.remove("To"),
            3 => response.headers.push("Via", "SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKx"),
            _ => {}
        }
        self.endpoint.handle_input(self.now, Input::Message { flow, message: Message::Response(response) });
    }

    fn answer_theirs(&mut self, tape: &mut Tape<'_>) {
        let at = tape.below(self.servers.len());
        let Some((id, request, flow)) = self.servers.get(at) else { return };
        let status = tape.pick(&[99, 100, 180, 200, 202, 302, 404, 487, 500, 699, 700]);
        let response = response_to(request, flow, status, None, tape.pick(&["", "mine"]));
        match self.endpoint.respond(self.now, *id, response) {
            // It may have ended with its connection, or by time: with the endpoint's own 408, if it was an INVITE.
            Ok(()) | Err(ApiError::UnknownTransaction) => {}
            Err(ApiError::AlreadyAnswered) => assert_eq!(request.method, "INVITE"),
            Err(error) => assert_eq!(error, ApiError::BadStatus(status), "an open request can be answered"),
        }
        if (200..700).contains(&status) {
            self.servers.remove(at);
        }
    }

    /// Does what the driver does, and checks what must hold after every call.
    fn settle(&mut self) {
        let mut steps = 0;
        while let Some(output) = self.endpoint.poll_output() {
            steps += 1;
            assert!(steps <= 16 * TABLE, "a call has a bounded effect");
            match output {
                Output::Transmit { flow, bytes } => {
                    let message = parse_datagram(&bytes);
                    // A response goes back the way its request came: with all its Vias.
                    let ours = message.as_ref().is_err_and(|error| error.reason == Malformed::Misrouted);
                    assert!(ours || message.is_ok(), "what we send can be read: {message:?}: {}", bytes.escape_ascii());
                    if let Ok(Message::Request(request)) = message {
                        if self.sent.len() == 8 {
                            self.sent.remove(0);
                        }
                        self.sent.push((flow, request));
                    }
                }
                Output::Event(event) => self.note(event),
            }
        }
        let counts = self.endpoint.counts();
        assert!(counts.client <= 2 * TABLE && counts.server <= TABLE, "tables are bounded: {counts:?}");
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Request { tx, request, flow } => {
                assert!(!matches!(request.method.as_str(), "ACK" | "CANCEL"));
                self.servers.push((tx, request, flow));
            }
            Event::Response { tx, response, repeat, .. } => {
                let outcome = self.clients.get_mut(&tx).expect("responses are to what we asked");
                let tag = response.headers.to_tag().unwrap_or_default();
                match (response.status, outcome) {
                    (..200, outcome) => assert!(outcome.is_none(), "nothing provisional after the end"),
                    (_, None) if repeat => panic!("a repeat repeats something"),
                    (_, Some(_)) if repeat => {}
                    (_, outcome @ None) => *outcome = Some(vec![tag]),
                    // An INVITE that was forked: a 2xx of each branch.
                    (200..300, Some(tags)) if !tags.contains(&tag) => tags.push(tag),
                    (status, Some(tags)) => panic!("one final response: {tags:?}, then {status} of {tag}"),
                }
            }
            Event::ClientFailed { tx, .. } => {
                let outcome = self.clients.get_mut(&tx).expect("failures are of what we asked");
                assert_eq!(outcome.replace(Vec::new()), None, "one outcome");
            }
            Event::Cancelled { tx, .. } => {
                assert!(self.servers.iter().any(|(id, ..)| *id == tx), "only what is open can be cancelled");
            }
            Event::Ack { .. } | Event::NoAck { .. } | Event::ConnClosed { .. } => {}
        }
    }

    /// Lets time pass, waking the endpoint when it wants.
    fn advance(&mut self, until: Instant) {
        for _ in 0..1000 {
            match self.endpoint.next_timeout() {
                Some(at) if at <= until => {
                    self.now = self.now.max(at);
                    self.endpoint.handle_input(self.now, Input::Timeout);
                    let next = self.endpoint.next_timeout();
                    assert!(next.is_none_or(|next| next > self.now), "a timeout that was served is not due again");
                    self.settle();
                }
                _ => {
                    self.now = self.now.max(until);
                    return;
                }
            }
        }
        panic!("time does not pass");
    }

    /// With nothing more coming in, everything ends by itself; what the user owes an answer, he answers.
    fn run_out(&mut self) {
        let hour = self.now + Duration::from_secs(3600);
        self.advance(hour);
        for (id, request, flow) in std::mem::take(&mut self.servers) {
            let _ = self.endpoint.respond(self.now, id, response_to(&request, &flow, 500, None, ""));
        }
        self.settle();
        let hour = self.now + Duration::from_secs(3600);
        self.advance(hour);
        let counts = self.endpoint.counts();
        assert_eq!((counts.client, counts.server, counts.accepted_2xx), (0, 0, 0), "everything is forgotten");
        assert!(self.clients.values().all(Option::is_some), "each request has had its outcome");
        assert_eq!(self.endpoint.next_timeout(), None);
    }
}

/// Operations on a registration: answers of every kind, faults and time.
pub fn registration(data: &[u8]) {
    let mut tape = Tape(data);
    let config = RegistrationConfig {
        server_uri: "sip:34020000002000000001@3402000000".to_owned(),
        local_uri: "sip:34020000002000000002@3402000000".to_owned(),
        contact_uri: "sip:34020000002000000002@192.0.2.2:5060".to_owned(),
        expires: Duration::from_secs(tape.short().into()),
        retry: Duration::from_secs(tape.byte().into()),
        keepalive_interval: Duration::from_secs(tape.byte().into()),
        keepalive_max_missed: u32::from(tape.byte() % 4),
        version: tape.flag().then(|| "3.0".to_owned()),
    };
    let credentials = tape.flag();
    let answer = Box::new(move |_: &Response, _: &Request| {
        credentials.then(|| ("Authorization".to_owned(), "Digest username=\"u\"".to_owned()))
    });
    let mut client = Client {
        machine: Registration::new(config, answer, StdRng::seed_from_u64(3)),
        now: origin(),
        state: State::Idle,
        in_flight: None,
        series: None,
        keepalives: Vec::new(),
        last_sn: 0,
    };
    for _ in 0..MAX_OPERATIONS {
        if tape.is_empty() {
            break;
        }
        client.operate(&mut tape);
        client.settle();
    }
}

struct Client {
    machine: Registration,
    now: Instant,
    state: State,
    in_flight: Option<Request>,
    /// Call-ID and CSeq of the last REGISTER.
    series: Option<(String, u32)>,
    keepalives: Vec<u32>,
    last_sn: u32,
}

impl Client {
    fn operate(&mut self, tape: &mut Tape<'_>) {
        let now = self.now;
        let failure = [ClientFailure::Timeout, ClientFailure::Transport];
        match tape.byte() % 12 {
            0 => self.machine.start(now),
            1 => self.machine.stop(now),
            2 => self.machine.connection_lost(now),
            3 => self.machine.set_contact(now, format!("sip:34020000002000000002@192.0.2.{}", tape.byte())),
            4 => {
                let interval = Duration::from_secs(tape.byte().into());
                self.machine.set_keepalive(now, interval, u32::from(tape.byte() % 4));
            }
            5 => self.machine.keepalive_now(),
            6 => {
                if self.in_flight.take().is_some() {
                    self.machine.failed(now, Kind::Register, tape.pick(&failure));
                }
            }
            7 => {
                if let Some(sn) = self.keepalives.pop() {
                    let kind = Kind::Keepalive { sn };
                    match tape.flag() {
                        true => self.machine.failed(now, kind, tape.pick(&failure)),
                        false => self.machine.response(now, kind, &Self::response(None, tape)),
                    }
                }
            }
            8..=9 => {
                let response = Self::response(self.in_flight.as_ref(), tape);
                if response.status >= 200 && tape.below(8) > 0 {
                    self.in_flight = None;
                }
                self.machine.response(now, Kind::Register, &response);
            }
            10 => self.now += Duration::from_millis(u64::from(tape.short()) * 10),
            _ => {
                if let Some(at) = self.machine.next_timeout() {
                    self.now = now.max(at);
                    self.machine.timeout(self.now);
                    let next = self.machine.next_timeout();
                    assert!(next.is_none_or(|next| next > self.now), "a timeout that was served is not due again");
                }
            }
        }
    }

    fn response(request: Option<&Request>, tape: &mut Tape<'_>) -> Response {
        let status = tape.pick(&[100, 200, 200, 200, 302, 401, 401, 403, 404, 407, 423, 480, 500, 503]);
        let mut headers = Headers::new();
        headers
            .push("Via", format!("SIP/2.0/UDP 192.0.2.2;received=192.0.2.{};rport={}", tape.byte() % 4, tape.byte()));
        match request.and_then(|request| request.headers.get("CSeq")) {
            Some(cseq) if tape.below(8) > 0 => headers.push("CSeq", cseq),
            _ => headers.push("CSeq", format!("{} REGISTER", tape.byte())),
        }
        let numbers = ["0", "1", "30", "3600", "604800", "604801", "4294967295", "4294967296", "x"];
        for name in ["Expires", "Min-Expires", "Contact", "Date", "WWW-Authenticate"] {
            let value = match (tape.byte() % 4, name) {
                (0, _) => continue,
                (1, _) => tape.text(),
                (_, "Contact") => {
                    format!("<sip:3402@192.0.2.{}:{}>;expires={}", tape.byte(), tape.byte(), tape.pick(&numbers))
                }
                (_, "Date") => "2024-01-01T00:00:00.000".to_owned(),
                (_, "WWW-Authenticate") => format!("Digest realm=\"r\", nonce=\"{}\", stale=true", tape.byte() % 3),
                _ => tape.pick(&numbers).to_owned(),
            };
            headers.push(name, value);
        }
        Response { status, reason: String::new(), headers, body: Bytes::new() }
    }

    fn settle(&mut self) {
        let (mut registers, mut keepalives, mut steps) = (0, 0, 0);
        while let Some(output) = self.machine.poll_output() {
            steps += 1;
            assert!(steps <= 16, "a call has a bounded effect");
            match output {
                RegistrationOutput::Send(request) => {
                    registers += 1;
                    let cseq = request.headers.cseq().expect("a REGISTER has a CSeq");
                    let call = request.headers.call_id().expect("a REGISTER has a Call-ID").to_owned();
                    if let Some((old, seq)) = &self.series {
                        assert!(*old != call || cseq.seq > *seq, "CSeq rises");
                    }
                    self.series = Some((call, cseq.seq));
                    let mut routed = request.clone();
                    routed.headers.push_front("Via", "SIP/2.0/UDP 192.0.2.2:5060;branch=z9hG4bK1");
                    assert_eq!(parse_datagram(&routed.to_bytes()), Ok(Message::Request(routed)), "it can be read");
                    self.in_flight = Some(request);
                }
                RegistrationOutput::SendKeepalive { sn } => {
                    keepalives += 1;
                    assert_eq!(sn, self.last_sn + 1, "SN rises by one");
                    self.last_sn = sn;
                    self.keepalives.push(sn);
                    self.keepalives.drain(..self.keepalives.len().saturating_sub(4));
                }
                RegistrationOutput::StateChanged { from, to, reason } => {
                    assert_eq!(from, self.state, "no state is skipped");
                    if let State::Waiting { until, why } = to {
                        assert!(until > self.now, "a wait takes time");
                        let minute = self.now + Duration::from_secs(60);
                        let refused =
                            matches!(why, Reason::Rejected(_) | Reason::BadCredentials | Reason::NoCredentials);
                        assert!(!refused || until >= minute, "after a rejection a minute passes: {reason:?}");
                    }
                    self.state = to;
                }
                RegistrationOutput::Redirected { .. }
                | RegistrationOutput::Date { .. }
                | RegistrationOutput::Learned { .. }
                | RegistrationOutput::Unregistered { .. } => {}
            }
        }
        assert_eq!(self.machine.state(), self.state, "each change is told");
        assert!(registers <= 1 && keepalives <= 1, "one REGISTER at a time");
        if let State::Waiting { .. } = self.state {
            assert!(self.machine.next_timeout().is_some(), "a wait ends");
        }
    }
}

/// Operations on a registrar: REGISTERs with right, wrong and no credentials, signs of life, faults, time, restarts.
pub fn registrar(data: &[u8]) {
    let mut tape = Tape(data);
    let mut site = Site {
        registrar: Registrar::new(Site::config(&mut tape), StdRng::seed_from_u64(5)),
        now: origin(),
        wall: i64::from(tape.short()) * 1000,
        challenge: None,
        registered: BTreeSet::new(),
    };
    for _ in 0..MAX_OPERATIONS {
        if tape.is_empty() {
            break;
        }
        site.operate(&mut tape);
        let bound: BTreeSet<DeviceId> = site.registrar.bindings().map(|binding| binding.id).collect();
        assert_eq!(bound, site.registered, "each change is told");
        assert!(site.registrar.pending().count() <= MAX_PENDING);
        assert_eq!(site.registrar.next_timeout().is_none(), bound.is_empty(), "each registration ends");
    }
}

struct Site {
    registrar: Registrar,
    now: Instant,
    wall: i64,
    challenge: Option<Challenge>,
    registered: BTreeSet<DeviceId>,
}

impl Site {
    const USERS: [&'static str; 5] =
        ["34020000001320000001", "34020000001180000001", "34020000001180000002", "11010000001320000009", "x"];
    const PASSWORD: &'static str = "12345678";

    fn config(tape: &mut Tape<'_>) -> RegistrarConfig {
        let camera = DeviceId::parse(Self::USERS[0]).expect("a good id");
        let prefix = Ids::Prefix { digits: "3402000000118".to_owned(), max: tape.below(3) };
        let mut accounts = vec![Account::new(Ids::One(camera), Self::PASSWORD), Account::new(prefix, Self::PASSWORD)];
        accounts.truncate(2 - tape.below(8) / 7);
        let keepalive =
            KeepalivePolicy { interval: Duration::from_secs(tape.short().into()), count: tape.byte().into() };
        RegistrarConfig {
            realm: "3402000000".to_owned(),
            algorithms: vec![Algorithm::Md5, Algorithm::Sha256],
            qop: tape.flag(),
            accounts,
            nat: tape.pick(&[NatPolicy::SameSource, NatPolicy::SameIp]),
            keepalive,
            lockout: LockoutConfig { failures: tape.below(6), ..LockoutConfig::default() },
            rate: RateConfig { id_per_minute: tape.byte().into(), ..RateConfig::default() },
            ..RegistrarConfig::default()
        }
    }

    fn flow(tape: &mut Tape<'_>) -> Flow {
        let peer = SocketAddr::from(([192, 0, 2, tape.byte() % 2], 5060 + u16::from(tape.byte() % 2)));
        let local = SocketAddr::from(([192, 0, 2, 9], 5060));
        match tape.byte() % 4 {
            0 => Flow { transport: Transport::Tcp, local, peer, conn: Some(ConnId((tape.byte() % 3).into())) },
            _ => Flow { transport: Transport::Udp, local, peer, conn: None },
        }
    }

    fn operate(&mut self, tape: &mut Tape<'_>) {
        match tape.byte() % 10 {
            0..=4 => self.register(tape),
            5 => self.hear(tape),
            6 => {
                let changes = self.registrar.connection_closed(ConnId((tape.byte() % 3).into()));
                self.note(&changes);
            }
            7 => {
                let pass = Duration::from_millis(u64::from(tape.short()) * 10);
                self.now += pass;
                self.wall += i64::try_from(pass.as_millis()).expect("a short time");
            }
            8 => {
                if let Some(at) = self.registrar.next_timeout() {
                    self.now = self.now.max(at);
                    let changes = self.registrar.handle_timeout(self.now);
                    self.note(&changes);
                    let next = self.registrar.next_timeout();
                    assert!(next.is_none_or(|next| next > self.now), "a timeout that was served is not due again");
                }
            }
            _ if tape.flag() => {
                let changes = self.registrar.reconfigure(Self::config(tape));
                self.note(&changes);
            }
            _ => self.restart(tape),
        }
    }

    fn register(&mut self, tape: &mut Tape<'_>) {
        let (user, flow) = (tape.pick(&Self::USERS), Self::flow(tape));
        let to = if tape.below(16) == 0 { tape.pick(&Self::USERS) } else { user };
        let mut headers = Headers::new();
        headers.push("Via", "SIP/2.0/UDP 192.0.2.2:5060;rport;branch=z9hG4bK1");
        headers.push("From", format!("<sip:{user}@3402000000>;tag=1"));
        headers.push("To", format!("<sip:{to}@3402000000>"));
        headers.push("Call-ID", "1");
        headers.push("CSeq", "1 REGISTER");
        for name in ["Contact", "Expires", "User-Agent", "X-GB-Ver"] {
            let value = match (tape.byte() % 8, name) {
                (0, _) => continue,
                (1, _) => tape.text().replace(['\r', '\n'], ""),
                (_, "Contact") => tape.pick(&["<sip:1@10.0.0.1>", "<sip:1@10.0.0.1>;expires=9", "*"]).to_owned(),
                (_, "Expires") => tape.pick(&["3600", "0", "1", "4294967295", "-1"]).to_owned(),
                _ => "3.0".to_owned(),
            };
            headers.push(name, value);
        }
        let mut right = false;
        if let Some(challenge) = &self.challenge
            && tape.below(4) > 0
        {
            right = tape.below(4) > 0;
            let password = if right { Self::PASSWORD } else { "guess" };
            let value = DigestClient::new(challenge.clone()).answer("REGISTER", "sip:x", user, password, "c");
            headers.push("Authorization", value);
        } else if tape.below(4) == 0 {
            headers.push("Authorization", format!("Digest {}", tape.text().replace(['\r', '\n'], "")));
        }
        let request = Request { method: "REGISTER".to_owned(), uri: "sip:x".to_owned(), headers, body: Bytes::new() };
        let verdict = self.registrar.handle_register(self.now, self.wall, &request, &flow);
        let status = verdict.response.status;
        assert!([200, 400, 401, 403, 423, 503].contains(&status), "{status}");
        assert!(status != 200 || right, "only the right password is taken");
        if status == 401 {
            let offers = verdict.response.headers.get_all("WWW-Authenticate");
            self.challenge = offers.map(|value| Challenge::parse(value).expect("what we write can be read")).next();
        }
        let entered = |change: &Change| matches!(change, Change::Registered { .. } | Change::Refreshed { .. });
        assert!(status == 200 || !verdict.changes.iter().any(entered));
        self.note(&verdict.changes);
    }

    fn hear(&mut self, tape: &mut Tape<'_>) {
        let (Ok(id), flow) = (DeviceId::parse(tape.pick(&Self::USERS[..4])), Self::flow(tape)) else { return };
        let known = self.registrar.authenticate_source(self.now, &id, &flow).is_some();
        let verdict = self.registrar.handle_keepalive(self.now, &id, &flow);
        assert_eq!(matches!(verdict, KeepaliveVerdict::Alive { .. }), known);
        if known {
            let binding = self.registrar.binding(&id).expect("it is registered");
            assert!(binding.online && binding.flow == flow && binding.last_seen == self.now);
        }
    }

    /// Another registrar goes on with what the store has kept, or with what it has made of it.
    fn restart(&mut self, tape: &mut Tape<'_>) {
        let bindings = self.registrar.bindings();
        let mut records: Vec<BindingRecord> = bindings.map(|b| b.to_record(self.now, self.wall)).collect();
        records.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(record) = records.first_mut() {
            match tape.byte() % 8 {
                0 => record.peer = tape.text(),
                1 => record.expires_unix_ms = i64::MAX - i64::from(tape.byte()),
                2 => record.last_seen_unix_ms = i64::MIN,
                3 => record.id = tape.text(),
                4 => record.user_agent = tape.text(),
                _ => {}
            }
        }
        self.registrar = Registrar::new(Self::config(tape), StdRng::seed_from_u64(6));
        let count = records.len();
        let restored = self.registrar.restore(self.now, self.wall, records);
        assert_eq!(restored.kept + restored.dropped, count);
        assert_eq!(restored.kept, self.registrar.bindings().count());
        assert!(self.registrar.bindings().all(|b| !b.online && b.flow.transport == Transport::Udp));
        self.registered = self.registrar.bindings().map(|binding| binding.id).collect();
    }

    fn note(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Registered { binding, new, .. } => {
                    assert_eq!(self.registered.insert(binding.id), *new, "new is what was not there");
                }
                Change::Refreshed { binding } => assert!(self.registered.contains(&binding.id)),
                Change::Unregistered { binding } | Change::Expired { binding } | Change::Removed { binding } => {
                    assert!(self.registered.remove(&binding.id), "what ends was there");
                }
                Change::Offline { id, reason: OfflineReason::ConnectionLost } => {
                    assert!(self.registered.remove(id), "what is lost was there");
                }
                Change::Offline { id, reason: OfflineReason::Silent } => assert!(self.registered.contains(id)),
                Change::Refused { .. } | Change::Pending(_) | Change::LockedOut { .. } => {}
            }
        }
    }
}

/// Challenges and credentials: read, answered, verified, and never taken without the password.
pub fn digest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(params) = AuthParams::parse(&text) {
        assert!(params.params.len() <= 32 && params.params.iter().all(|(_, value, _)| value.len() <= 512));
    }
    if let Ok(challenge) = Challenge::parse(&text) {
        let mut client = DigestClient::new(challenge.clone());
        for _ in 0..2 {
            let value = client.answer("REGISTER", "sip:a@b", "user", "password", "cnonce");
            let params = AuthParams::parse(&value).expect("what we write can be read");
            assert_eq!(params.value("realm"), Some(challenge.realm.as_str()));
            assert_eq!(params.value("nonce"), Some(challenge.nonce.as_str()));
        }
    }
    let source = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    let both = vec![Algorithm::Md5, Algorithm::Sha256];
    let mut server = DigestServer::new([9; 32], "3402000000".to_owned(), both, true, Duration::from_secs(60));
    let guess = server.verify(1000, source, "REGISTER", |_| Some("a password nobody sends".to_owned()), &text);
    assert!(guess.is_err(), "no input is right by chance");
    // A client with these bytes as name and password gets in once, and not twice with the same words.
    let (username, password): (String, String) =
        text.chars().filter(|c| !c.is_control()).take(100).partition(|c| c.is_alphanumeric());
    for value in server.challenge(1000, source, false) {
        let Ok(challenge) = Challenge::parse(&value) else { panic!("our own challenge can be read: {value}") };
        let said = DigestClient::new(challenge).answer("REGISTER", "sip:a@b", &username, &password, "cnonce");
        let mut verify = |password: String| server.verify(1001, source, "REGISTER", |_| Some(password), &said);
        assert!(verify(format!("{password}x")).is_err(), "a wrong password is refused");
        match verify(password.clone()) {
            Ok(name) => assert_eq!(name, username),
            Err(error) => assert!(password.is_empty(), "the right password is taken: {error}: {said}"),
        }
        assert!(password.is_empty() || verify(password.clone()) == Err(DigestError::Replay), "once only");
    }
}

// ---- text ----

/// A description: reading and writing settle after one round; offers and answers made of it hold.
pub fn sdp(data: &[u8]) {
    let Ok(first) = Sdp::parse(data) else {
        let _ = MediaOffer::parse(data);
        return;
    };
    assert!(first.media.len() <= super::sdp::MAX_MEDIA && first.attributes.len() <= super::sdp::MAX_ATTRIBUTES);
    let text = first.to_string();
    // The character set of text beyond ASCII is guessed anew each time.
    if text.is_ascii() && text.len() <= super::sdp::MAX_BYTES {
        let second = Sdp::parse(text.as_bytes()).expect("what is written can be read");
        assert_eq!(Sdp::parse(second.to_string().as_bytes()).as_ref(), Ok(&second), "written and read back");
    }
    if let Ok(offer) = MediaOffer::from_sdp(&first) {
        assert!(offer.remote.port() > 0 && !offer.remote.ip().is_multicast() && !offer.remote.ip().is_unspecified());
        assert!(!offer.kind.is_history() || offer.time.is_some_and(|(from, to)| from < to), "history has a time");
    }
    let _ = (MediaOffer::audio_from_sdp(&first), MediaAnswer::from_sdp(&first));
}

/// A body, and every typed view of it; what is written of a view is read as the same.
pub fn manscdp(data: &[u8]) {
    if data.len() <= MAX_MUTATED {
        let _ = (Element::parse(data, Some(Charset::Utf8)), Element::parse(data, Some(Charset::Gb2312)));
    }
    let Ok(incoming) = manscdp::parse(data, None) else {
        return;
    };
    let (count, depth) = measure(&incoming.element);
    assert!(count <= MAX_ELEMENTS && depth <= MAX_DEPTH, "{count} elements, {depth} deep");
    let profile = Profile::new(Version::V2022);
    let _ = (Keepalive::read(&incoming), Alarm::read(&incoming), Broadcast::read(&incoming), read_result(&incoming));
    let _ = (read_media_status(&incoming), DeviceInfo::read(&incoming), DeviceStatus::read(&incoming));
    let _ = (read_catalog_notify(&incoming), config_blocks(&incoming).count());
    if let Some(catalog) = CatalogResponse::read(&incoming) {
        catalog_round_trip(&incoming, &catalog);
    }
    if let Some(records) = RecordResponse::read(&incoming) {
        let items: Vec<String> = records.items.iter().take(50).map(|item| record_xml(item, profile)).collect();
        let page = record_page(profile, incoming.sn, &incoming.device_id, &records.name, items.len(), &items);
        let read = manscdp::parse(&page, None).expect("what is written can be read");
        let read = RecordResponse::read(&read).expect("an answer stays one");
        let key = |r: &manscdp::RecordItem| (r.device_id, r.start.map(UnixMillis::secs), r.file_size, r.stream_number);
        assert!(read.items.iter().map(key).eq(records.items.iter().take(50).map(key)), "written and read back");
        assert!(merge(records.items.iter().cloned()).len() <= records.items.len());
    }
    if let Some(query) = Query::of(&incoming) {
        let again = |query: &Query| {
            let body = write_query(profile, incoming.sn, &incoming.device_id, query);
            Query::of(&manscdp::parse(&body, None).expect("what is written can be read"))
        };
        let second = again(&query).expect("a query stays one");
        assert_eq!((second.kind(), again(&second)), (query.kind(), Some(second.clone())), "written and read back");
    }
    if incoming.is(Root::Control, "DeviceControl") {
        let _ = manscdp::device_control(&incoming, ChecksumPolicy::Verify);
        if let Ok(control) = manscdp::device_control(&incoming, ChecksumPolicy::Ignore)
            && let Some(body) = write_control(profile, incoming.sn, &incoming.device_id, &control)
        {
            let again = manscdp::parse(&body, None).expect("what is written can be read");
            assert!(manscdp::device_control(&again, ChecksumPolicy::Verify).is_ok(), "{control:?}");
        }
    }
}

fn measure(element: &Element) -> (usize, usize) {
    let (mut count, mut depth) = (1, 0);
    for child in &element.children {
        let (c, d) = measure(child);
        (count, depth) = (count + c, depth.max(d));
    }
    (count, depth + 1)
}

fn catalog_round_trip(incoming: &Incoming, catalog: &CatalogResponse) {
    for version in [Version::V2011, Version::V2016, Version::V2022] {
        let profile = Profile::new(version);
        let items: Vec<String> = catalog.items.iter().take(50).map(|item| item_xml(item, profile)).collect();
        let page = catalog_page(profile, incoming.sn, &incoming.device_id, items.len(), &items);
        let read = manscdp::parse(&page, None).expect("what is written can be read");
        let read = CatalogResponse::read(&read).expect("a catalogue stays one");
        assert_eq!((read.sum_num, read.dropped), (Some(items.len() as u32), 0));
        for (read, sent) in read.items.iter().zip(&catalog.items) {
            assert_eq!((read.device_id, &read.name), (sent.device_id, &sent.name));
        }
        assert_eq!(read.items.len(), items.len());
    }
}

/// A body passed on: read again it has the new head and all its elements, and passed on once more it is the same.
pub fn manscdp_relay(data: &[u8]) {
    let Ok(incoming) = manscdp::parse(data, None) else {
        return;
    };
    let device_id = DeviceId::mint("3402000000", 132, 0, 1).expect("all parts are short enough");
    for version in [Version::V2011, Version::V2016, Version::V2022] {
        let profile = Profile::new(version).with_charset(Charset::Utf8);
        let respell = Respell { sn: 9, device_id, profile, cmd_type: None, map_id: &|id| *id };
        let body = match respell.write(&incoming) {
            Ok(body) => body,
            Err(RelayError::Name(_) | RelayError::TooLong(_)) => return,
        };
        assert!(body.len() <= super::manscdp::xml::MAX_BYTES);
        let again = manscdp::parse(&body, Some(Charset::Utf8)).expect("what is written can be read");
        assert_eq!((again.root, again.sn, again.device_id), (incoming.root, 9, device_id));
        // The head is written anew, whatever stood inside its fields; an SN may be added. Presets may lose SumNum.
        let heads = ["CmdType", "SN", "DeviceID", "TargetID"];
        let plain_head = |e: &Element| e.children.is_empty() || !heads.iter().any(|head| e.is(head));
        if incoming.element.children.iter().all(plain_head) && incoming.element.child("PresetList").is_none() {
            let (before, after) = (measure(&incoming.element).0, measure(&again.element).0);
            assert!(after == before || after == before + 1, "{before} elements, then {after}");
        }
        let twice = respell.write(&again).expect("what was passed on can be");
        assert!(twice == body, "passed on twice: {} and {}", body.escape_ascii(), twice.escape_ascii());
    }
}

/// Chunks with any counts at any times: bounded, each id once, an end in time; and the tree of what came.
pub fn assembly(data: &[u8]) {
    const LIMITS: AssemblyLimits = AssemblyLimits {
        first: Duration::from_secs(30),
        idle: Duration::from_secs(5),
        overall: Duration::from_secs(60),
        settle: Duration::from_secs(1),
        max_items: 100,
        max_bytes: 4000,
    };
    let mut tape = Tape(data);
    let start = origin();
    let mut now = start;
    let mut assembly = Assembly::new(LIMITS, now);
    let types = [118, 131, 132, 134, 200, 215, 216];
    let id = |tape: &mut Tape<'_>| {
        let type_code = tape.pick(&types);
        DeviceId::mint("3402000000", type_code, 0, tape.below(24) as u32).expect("all parts are short enough")
    };
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..MAX_OPERATIONS {
        if tape.is_empty() || assembly.is_due(now) {
            break;
        }
        now += Duration::from_millis(u64::from(tape.byte()) * 8);
        let count = tape.below(6);
        let items: Vec<CatalogItem> = (0..count)
            .map(|_| CatalogItem {
                parent_id: (0..tape.below(3)).map(|_| id(&mut tape)).collect(),
                business_group_id: tape.flag().then(|| id(&mut tape)),
                parental: tape.flag().then(|| tape.flag()),
                ..CatalogItem::new(id(&mut tape), "n")
            })
            .collect();
        seen.extend(items.iter().map(|item| item.device_id));
        let number = |tape: &mut Tape<'_>| tape.flag().then(|| u32::from(tape.byte()) / 8);
        let chunk = Chunk {
            sum_num: number(&mut tape),
            num: number(&mut tape),
            items,
            dropped: tape.below(2),
            bytes: tape.byte().into(),
            policies: Policies::default(),
        };
        let before = assembly.len();
        let progress = assembly.push(now, chunk);
        assert!(assembly.len() >= before && assembly.len() <= LIMITS.max_items);
        assert!(assembly.next_timeout() <= start + LIMITS.overall);
        assert!(progress != Progress::Full || assembly.is_due(now));
    }
    let outcome = assembly.finish(now);
    let ids: std::collections::BTreeSet<_> = outcome.items.iter().map(|item| item.device_id).collect();
    assert_eq!(ids.len(), outcome.items.len(), "each id once");
    assert!(ids.is_subset(&seen) && (outcome.ending == Ending::Full || ids == seen), "all that came is there");
    if outcome.is_complete() {
        assert!(outcome.expected.is_some_and(|sum| outcome.counted >= sum as usize));
    }
    let root = DeviceId::mint("3402000000", 118, 0, 0).expect("all parts are short enough");
    let mut tree = CatalogTree::build(root, outcome.items);
    let (mut open, mut reached) = (vec![root], 0);
    while let Some(at) = open.pop() {
        for child in tree.children(&at) {
            reached += 1;
            assert!(reached <= tree.len(), "a circle");
            open.push(child.device_id);
        }
    }
    assert_eq!(reached, tree.len(), "all are reached");
    assert!(tree.channels().iter().all(|plan| plan.chain.len() < super::manscdp::tree::MAX_DEPTH));
}

/// A playback control: what is taken is written and then taken as the same.
pub fn mansrtsp(data: &[u8]) {
    if let Ok(request) = mansrtsps::Request::parse(data) {
        assert_eq!(mansrtsps::Request::parse(&request.to_bytes()), Ok(request));
    }
    if let Ok(response) = mansrtsps::Response::parse(data) {
        let written = response.to_bytes();
        assert!(mansrtsps::is_response(&written));
        let again = mansrtsps::Response::parse(&written).expect("what is written can be read");
        // The character set of a reason beyond ASCII is guessed anew.
        if response.reason.is_ascii() {
            assert_eq!(again, response);
        }
    }
}

/// A PTZCmd: what is understood is written as the same command.
pub fn ptz(data: &[u8]) {
    let check = |command: PtzCommand| {
        assert_eq!(PtzCommand::parse(&command.to_hex(), ChecksumPolicy::Verify), Ok(command));
    };
    let text = String::from_utf8_lossy(data);
    let strict = PtzCommand::parse(&text, ChecksumPolicy::Verify);
    let lenient = PtzCommand::parse(&text, ChecksumPolicy::Ignore);
    assert!(strict.is_err() || strict == lenient, "a good checksum changes nothing");
    lenient.into_iter().for_each(check);
    for chunk in data.chunks(4) {
        // Past the fixed bytes and the sum, which chance does not find.
        let mut frame = [0xA5, 0x0F, 0x01, 0, 0, 0, 0, 0];
        frame[3..3 + chunk.len()].copy_from_slice(chunk);
        frame[7] = frame[..7].iter().fold(0, |sum: u8, b| sum.wrapping_add(*b));
        PtzCommand::decode(frame, ChecksumPolicy::Verify).into_iter().for_each(check);
    }
}

/// A Subject header: bounded, and read back as written.
pub fn subject(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(first) = Subject::parse(&text) {
        let limit = super::gb28181::subject::MAX_SERIAL;
        assert!([&first.sender_serial, &first.receiver_serial].iter().all(|s| s.chars().count() <= limit));
        let second = Subject::parse(&first.to_string()).expect("what is written can be read");
        assert_eq!((second.sender, second.receiver), (first.sender, first.receiver));
        assert_eq!(Subject::parse(&second.to_string()), Some(second), "written and read back");
    }
}

/// Times of bodies and of the Date header.
pub fn time(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(time) = UnixMillis::parse_local(&text) {
        let again = UnixMillis::parse_local(&time.to_local()).expect("what is written can be read");
        assert_eq!(again.secs(), time.secs());
    }
    if let Ok(time) = UnixMillis::parse_sip_date(&text) {
        assert_eq!(UnixMillis::parse_sip_date(&time.to_sip_date()), Ok(time));
    }
    let mut number = [0; 8];
    number[..data.len().min(8)].copy_from_slice(&data[..data.len().min(8)]);
    let far = UnixMillis(i64::from_be_bytes(number));
    let shown = UnixMillis::parse_local(&far.to_local()).expect("any value is shown as a time");
    assert_eq!(shown.to_local(), far.to_local());
    assert_eq!(UnixMillis::from_secs(far.0).to_sip_date().len(), "2024-01-01T00:00:00.000".len());
}

/// A code: what is taken is kept as it is, and can be described.
pub fn device_id(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(id) = DeviceId::parse(&text) else { return };
    assert!(id.as_str().len() <= super::gb28181::device_id::MAX_DIGITS);
    assert_eq!(DeviceId::parse(id.as_str()), Ok(id));
    let _ = (id.centre_code(), id.civil_code(), id.industry(), id.domain(), id.network(), id.kind());
    for version in [Version::V2011, Version::V2016, Version::V2022] {
        let _ = id.describe(version);
    }
    if let (true, Some(type_code), Some(network), Some(serial)) =
        (id.is_code20(), id.type_code(), id.network(), id.serial())
    {
        assert_eq!(
            DeviceId::mint(&id.as_str()[..10], type_code, network, serial),
            Ok(id),
            "taken apart and put together"
        );
    }
}

/// Decoding takes any bytes, grows by a factor at most, and keeps what encoding wrote.
pub fn charset(data: &[u8]) {
    for forced in [None, Some(Charset::Utf8), Some(Charset::Gb2312), Some(Charset::Gb18030)] {
        let text = charsets::decode(data, forced);
        assert!(text.len() <= 3 * data.len(), "{} bytes became {}", data.len(), text.len());
        for set in [Charset::Utf8, Charset::Gb2312, Charset::Gb18030] {
            let (xml, plain) = (set.encode_xml(&text), set.encode_plain(&text));
            assert!(xml.len() <= 12 * text.len() && plain.len() <= 4 * text.len());
            // A private-use character has no place of its own in GB 18030, and a mark in front is taken off.
            let odd = |c: char| matches!(c, '\u{E000}'..='\u{F8FF}' | '\u{FEFF}');
            if set != Charset::Gb2312 && !text.contains(odd) && !plain.starts_with(b"\xEF\xBB\xBF") {
                let trimmed = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
                assert_eq!(charsets::decode(&plain, Some(set)), trimmed, "{set:?}");
            }
        }
    }
}

// ---- media ----

/// One RTP packet: the payload lies inside, and its fixed header can be written again.
pub fn rtp_packet(data: &[u8]) {
    let Ok(packet) = Packet::parse(data) else { return };
    assert!(!rtp::is_rtcp(data));
    let inside = packet.payload_offset..packet.payload_offset + packet.payload.len();
    assert_eq!(data.get(inside), Some(packet.payload));
    let Packet { marker, payload_type, sequence, timestamp, ssrc, .. } = packet;
    let bytes = Header { marker, payload_type, sequence, timestamp, ssrc }.to_bytes();
    let again = Packet::parse(&bytes).expect("a written header can be read");
    assert_eq!(
        (again.marker, again.payload_type, again.sequence, again.timestamp, again.ssrc),
        (marker, payload_type, sequence, timestamp, ssrc)
    );
}

/// RTP over TCP: the packets do not depend on where the stream was cut.
pub fn rfc4571(data: &[u8]) {
    #[derive(Debug, PartialEq)]
    enum Piece {
        Rtp(Vec<u8>),
        Rtcp(Vec<u8>),
        Raw(Vec<u8>),
        Broken(bool),
    }
    let run = |pieces: &[&[u8]]| {
        let (mut framer, mut out) = (rtp::Framer::new(), Vec::new());
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let taken = framer.push(rest);
                rest = &rest[taken..];
                loop {
                    match framer.pull() {
                        Ok(Some(rtp::Frame::Rtp(bytes))) => out.push(Piece::Rtp(bytes.to_vec())),
                        Ok(Some(rtp::Frame::Rtcp(bytes))) => out.push(Piece::Rtcp(bytes.to_vec())),
                        Ok(Some(rtp::Frame::RawPs(bytes))) => match out.last_mut() {
                            Some(Piece::Raw(all)) => all.extend_from_slice(bytes),
                            _ => out.push(Piece::Raw(bytes.to_vec())),
                        },
                        Ok(None) => break,
                        Err(error) => {
                            // How much had been looked at when it was given up depends on what was there.
                            out.push(Piece::Broken(matches!(error, rtp::FramerError::LostSync(_))));
                            return (out, framer.counters());
                        }
                    }
                }
                assert!(taken > 0, "there is room once all frames are pulled");
            }
        }
        (out, framer.counters())
    };
    let (whole, counters) = run(&[data]);
    let (single, _) = run(&data.chunks(1).collect::<Vec<_>>());
    assert_eq!(single, whole, "byte by byte");
    assert_eq!(run(&pieces(data, &cuts(data))).0, whole, "in pieces");
    let used: usize = whole
        .iter()
        .map(|piece| match piece {
            Piece::Rtp(bytes) | Piece::Rtcp(bytes) | Piece::Raw(bytes) => bytes.len(),
            Piece::Broken(_) => 0,
        })
        .sum();
    assert!(used + counters.garbage_bytes as usize <= data.len(), "no byte is used twice");
}

/// An RTCP datagram: the reports are as few as its bytes allow.
pub fn rtcp(data: &[u8]) {
    let mut reports = 0;
    let malformed = rtcps::read(data, |_| reports += 1);
    assert!(reports <= data.len() / 4 && malformed <= 17, "{reports} reports, {malformed} malformed");
}

/// A program stream: the units do not depend on where the stream was cut, and hold no more than it did.
pub fn ps_demux(data: &[u8]) {
    /// Longest piece: what one brings must fit into the queue of units.
    const PIECE: usize = 2048;
    let mut all = cuts(data);
    all.extend((PIECE / 2..data.len()).step_by(PIECE / 2));
    all.sort_unstable();
    // A piece that begins with a pack header is believed over a PES length that runs past it: by design, not by cut.
    let proper =
        |cuts: Vec<usize>| cuts.into_iter().filter(|at| !data[*at..].starts_with(&[0, 0, 1, 0xBA])).collect::<Vec<_>>();
    let run = |pieces: &[&[u8]]| {
        let (mut demuxer, mut out) = (Demuxer::new(DemuxConfig::default()), Vec::new());
        let mut pull = |demuxer: &mut Demuxer| {
            while let Some(unit) = demuxer.pull() {
                // Two gaps in one queue are one; in two queues they are told apart.
                if unit != Unit::Gap || out.last() != Some(&Unit::Gap) {
                    out.push(unit);
                }
            }
        };
        for piece in pieces {
            demuxer.push(piece);
            pull(&mut demuxer);
        }
        demuxer.finish();
        pull(&mut demuxer);
        (out, demuxer.counters())
    };
    let whole = run(&pieces(data, &proper((PIECE / 2..data.len()).step_by(PIECE / 2).collect())));
    assert_eq!(run(&data.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    assert_eq!(run(&pieces(data, &proper(all.clone()))), whole, "in pieces");
    let (units, counters) = whole;
    let mut held = 0;
    for unit in &units {
        match unit {
            Unit::Video { annexb, .. } => {
                assert!(leading_start_code(annexb).is_some(), "a picture begins with a start code");
                held += annexb.len();
            }
            Unit::Audio { payload, .. } => held += payload.len(),
            Unit::Gap => {}
        }
    }
    assert!(held <= data.len() && counters.skipped_bytes as usize <= data.len(), "no byte is used twice");
    // Markers and losses anywhere: nothing is promised but to go on.
    let mut demuxer = Demuxer::new(DemuxConfig::default());
    for (i, piece) in pieces(data, &all).into_iter().enumerate() {
        demuxer.push(piece);
        match data.get(i).map_or(3, |byte| byte % 4) {
            0 => demuxer.end_of_frame(),
            1 => demuxer.discontinuity(),
            _ => {}
        }
        std::iter::from_fn(|| demuxer.pull()).for_each(drop);
    }
}

/// Frames made of the bytes, muxed, packed, unpacked and demuxed: what goes in comes out.
pub fn ps_round_trip(data: &[u8]) {
    let mut tape = Tape(data);
    let h265 = tape.flag();
    let video = if h265 { VideoCodec::H265 } else { VideoCodec::H264 };
    let audio = tape.pick(&[AudioCodec::G711A, AudioCodec::G711U]);
    let payload_max = 64 + usize::from(tape.short() % 1400);
    let markers = tape.flag();
    let mut muxer = Muxer::new(MuxConfig { video: Some(video), audio: Some(audio) });
    let mut demuxer = Demuxer::new(DemuxConfig::default());
    let (mut image, mut sequence, mut pts) = (BytesMut::new(), tape.short(), u64::from(tape.short()) << 17);
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    while !tape.is_empty() && sent.len() < 64 {
        pts += 3600;
        // The codec is told by the first key frame.
        let key = sent.is_empty() || tape.below(8) == 0;
        let unit = if !sent.is_empty() && tape.below(4) == 0 {
            let length = 1 + tape.below(200);
            let payload: Vec<u8> = tape.take(length).iter().copied().chain([0xD5]).collect();
            Unit::Audio { codec: audio, pts, payload: payload.into() }
        } else {
            // Most are small; some need several PES.
            let length = usize::from(tape.short()) >> tape.pick(&[0, 4, 6, 6, 6, 6, 6, 6]);
            let (seed, delay) = (tape.byte(), 3600 * u64::from(tape.byte() % 3));
            let frame = picture(video, key, length, seed);
            Unit::Video { codec: video, pts: pts + delay, dts: pts, key, annexb: frame.into() }
        };
        image.clear();
        let mut writer = ImageWriter::new(&mut image, payload_max, Framing::Datagram);
        match &unit {
            Unit::Video { pts, dts, key, annexb, .. } => {
                muxer.write_video(&mut writer, &VideoUnit { annexb, pts: *pts, dts: *dts, key: *key })
            }
            Unit::Audio { payload, pts, .. } => muxer.write_audio(&mut writer, payload, *pts),
            Unit::Gap => 0,
        };
        let shape = writer.finish(true, rtp::PT_PS, pts as u32);
        assert_eq!(shape.length(), image.len());
        sequence = rtp::restamp(&mut image, shape.block, sequence, 7);
        for packet in image.chunks(shape.block) {
            let packet = Packet::parse(packet).expect("what is packed can be unpacked");
            demuxer.push(packet.payload);
            if markers && packet.marker {
                demuxer.end_of_frame();
            }
        }
        received.extend(std::iter::from_fn(|| demuxer.pull()));
        sent.push(unit);
    }
    demuxer.finish();
    received.extend(std::iter::from_fn(|| demuxer.pull()));
    // Audio comes out when its PES ends, a picture when the next begins: in order of kind, not of each other.
    let by_kind =
        |units: Vec<Unit>| units.into_iter().partition::<Vec<_>, _>(|unit| matches!(unit, Unit::Video { .. }));
    assert!(by_kind(received) == by_kind(sent), "what goes in comes out");
}

/// An access unit of about `length` bytes without zeros.
fn picture(codec: VideoCodec, key: bool, length: usize, seed: u8) -> Vec<u8> {
    let nals: &[&[u8]] = match (codec, key) {
        (VideoCodec::H264, true) => &[&[0x67, 0x64, 0x33, 0x1F], &[0x68, 0xEE, 0x3C], &[0x65, 0x88, 0x84]],
        (VideoCodec::H264, false) => &[&[0x41, 0x9A, 0x24]],
        (VideoCodec::H265, true) => &[&[0x40, 1, 0x0C], &[0x42, 1, 7], &[0x44, 1, 0xC1], &[0x26, 1, 0xAF]],
        (VideoCodec::H265, false) => &[&[0x02, 1, 0xD0]],
    };
    let mut out = Vec::with_capacity(length + 32);
    for nal in nals {
        out.extend_from_slice(&[0, 0, 0, 1]);
        out.extend_from_slice(nal);
    }
    out.extend((0..length).map(|i| (i as u8).wrapping_mul(seed) | 1));
    out
}

/// An Annex B run: units without start codes, in order, inside the input; facts and parameter sets of it.
pub fn annexb(data: &[u8]) {
    let mut last = 0;
    for nal in nal_units(data) {
        assert!(!nal.is_empty() && nal.last() != Some(&0) && nal_starts(nal).next().is_none());
        let at = nal.as_ptr().addr() - data.as_ptr().addr();
        assert!(at >= last + 3 && at + nal.len() <= data.len(), "in order and inside");
        last = at + nal.len();
        let _ = super::codec::sniff(nal);
    }
    for codec in [VideoCodec::H264, VideoCodec::H265] {
        let facts = inspect(codec, data);
        if let Ok(unit) = normalise_access_unit(codec, data) {
            assert!(unit.facts.has_picture && leading_start_code(unit.annexb).is_some());
            assert!(unit.annexb.len() <= data.len() && (!unit.facts.key || facts.key));
        }
        let mut sets = ParameterSets::new(codec);
        let news = sets.observe(data);
        assert!(!sets.observe(data) || news, "the same sets are no news");
        assert!(sets.prefix().len() <= 3 * (4096 + 4), "what is kept is bounded");
        let _ = (sets.is_complete(), sets.facts());
    }
}

fn check_facts(facts: Result<SpsFacts, SpsError>) {
    if let Ok(facts) = facts {
        let side = 1..=MAX_DIMENSION;
        assert!(side.contains(&facts.width) && side.contains(&facts.height), "{facts:?}");
    }
}

/// A sequence parameter set of H.264, with and without its right first byte.
pub fn h264_sps(data: &[u8]) {
    check_facts(h264::sps_facts(data));
    check_facts(h264::sps_facts(&[&[0x67], data].concat()));
}

/// A sequence parameter set of H.265, with and without its right first bytes.
pub fn h265_sps(data: &[u8]) {
    check_facts(h265::sps_facts(data));
    check_facts(h265::sps_facts(&[&[0x42, 0x01], data].concat()));
}

/// ADTS headers and AudioSpecificConfig.
pub fn adts(data: &[u8]) {
    if let Ok(header) = AdtsHeader::parse(data) {
        assert!(header.frame_length >= header.header_length && header.frame_length < 1 << 13);
        let _ = header.params.sample_rate();
        if let Ok(bytes) = header.params.header(header.frame_length - header.header_length) {
            let again = AdtsHeader::parse(&bytes).expect("a written header can be read");
            assert_eq!(again.params, header.params);
        }
    }
    if let Ok(params) = AdtsParams::from_audio_specific_config(data) {
        assert!(
            params.header(0).is_ok_and(|bytes| AdtsHeader::parse(&bytes).is_ok_and(|header| header.params == params))
        );
    }
}

#[cfg(test)]
mod tests;
