//! Calls: the platform invites a channel; media follows its ACK until one side hangs up.
//!
//! Standard: [GB/T28181-2022 9.2, 9.8, 9.9, annexes B, D, G], [RFC3261 13, 15].
//! In: INVITE, ACK, INFO, BYE, ends of streams, time. Out: answers, MediaStatus, BYE; one task for each call's media.
//! Invariants: the socket named in an answer is bound before the answer leaves; a call that is forgotten sends no more;
//! at most `max_streams` calls.
//! Not here: media (`stream`), the text of INFO (`playback`).

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::SimChannel;
use super::serve::{Pending, Serve, respond};
use super::state::MANSCDP;
use super::stream::Place;
use super::stream::{Ending, Order, Packer, Streaming, Way};
use crate::clock;
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::notify::file_finished;
use crate::proto::mansrtsp::{self, Method, Position};
use crate::proto::sdp::ssrc::compose;
use crate::proto::sdp::{Answer, F, MediaOffer, MediaTransport, Payload, SessionKind};
use crate::proto::sip::dialog::Dialog;
use crate::proto::sip::endpoint::ServerTxId;
use crate::proto::sip::message::{Flow, Headers, Request, Response};
use crate::sim::clip::{AudioCodec, VideoCodec};
use crate::transport::sockopt::bind_tcp;

/// Content-Type of playback control.
const MANSRTSP: &str = "Application/MANSRTSP";
/// Orders a stream has not obeyed yet; more are refused with 500.
const ORDER_QUEUE: usize = 16;
/// After the end of a recording the platform's BYE is waited for so long.
const BYE_WAIT: Duration = Duration::from_secs(10);
/// A stream that is stuck in its connection is not waited for longer before INFO is answered.
const ORDER_TIME: Duration = Duration::from_secs(2);
/// Speeds a recording can be played at.
const SCALES: std::ops::RangeInclusive<f64> = 0.125..=16.0;
/// Fastest download, in times real time.
const MAX_DOWNLOAD_SPEED: u32 = 64;

/// A call.
#[derive(Debug)]
pub(super) struct Call {
    pub channel: DeviceId,
    pub orders: mpsc::Sender<Order>,
    /// When we hang up.
    pub bye_at: Option<Instant>,
    invite: ServerTxId,
    dialog: Dialog,
    /// What begins with the ACK.
    streaming: Option<Box<Streaming>>,
    token: CancellationToken,
    /// Seconds of the recording; `None` for live and downloads, which nobody controls.
    length: Option<f64>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

fn f_of(channel: &SimChannel) -> F {
    let codec = match channel.clip.codec() {
        VideoCodec::H264 => 2,
        VideoCodec::H265 => 5,
    };
    let audio = match channel.audio.as_ref().map(|audio| audio.codec()) {
        Some(AudioCodec::Pcma | AudioCodec::Pcmu) => "1/8/1",
        Some(AudioCodec::Aac) => "6//3",
        None => "//",
    };
    F::parse(&format!("v/{codec}//{}//a/{audio}", channel.clip.fps())).unwrap_or_default()
}

impl Serve {
    pub async fn invite(&mut self, tx: ServerTxId, request: &Request, flow: Flow) {
        self.shared.count(|s| s.invites += 1);
        let faults = self.shared.faults().call;
        if faults.no_answer && faults.refuse.is_none() {
            return;
        }
        let answered = match faults.refuse {
            Some(status) => Err(status),
            None => self.answer(tx, request, flow).await,
        };
        if let Err(status) = answered {
            self.shared.count(|s| s.invites_refused += 1);
            self.refuse(tx, status).await;
        }
    }

    /// Accepts an INVITE, or names the status to refuse it with.
    async fn answer(&mut self, tx: ServerTxId, request: &Request, flow: Flow) -> Result<(), u16> {
        let (Some(call_id), Some(to)) = (request.headers.call_id(), request.headers.get("To")) else {
            return Err(400);
        };
        // Nothing of a call can be changed.
        if request.headers.to_tag().is_some() || self.calls.contains_key(call_id) {
            return Err(488);
        }
        let user = request.headers.to_user().and_then(|user| DeviceId::parse(&user).ok());
        let channel = user.and_then(|id| self.shared.channel(&id)).ok_or(404u16)?;
        let offer = MediaOffer::parse(&request.body).map_err(|error| error.status())?;
        let Payload::Ps(payload_type) = offer.payload else { return Err(488) };
        if !channel.online {
            return Err(480);
        }
        if self.calls.len() >= self.shared.config.max_streams {
            return Err(486);
        }
        let (way, local) = self.open(&offer).await.map_err(|error| {
            tracing::debug!(%error, "a simulated device has no socket for media");
            500u16
        })?;
        let port = NonZeroU16::new(local.port()).ok_or(500u16)?;
        let packer = || Packer::new(channel.clip.clone(), channel.audio.clone());
        let pictures = offer.time.filter(|_| offer.kind.is_history()).map(|(start, end)| {
            let asked = end.saturating_sub(start);
            let seconds = self.shared.config.recorded.map_or(asked as f64, |have| have.as_secs_f64().min(asked as f64));
            (seconds * f64::from(channel.clip.fps())) as u64
        });
        let ssrc = self.ssrc(&offer);
        let download = offer.kind == SessionKind::Download;
        let answer = Answer {
            offer: &offer,
            sender: channel.id,
            address: self.shared.advertised.ip(),
            port,
            ssrc,
            f: Some(f_of(&channel)),
            file_size: pictures.filter(|_| download).map(|pictures| packer().size(pictures)),
        };
        let mut headers = Headers::new();
        headers.push("To", format!("{to};tag={}", self.shared.tag()));
        headers.push("Contact", self.shared.contact());
        headers.push("Content-Type", "APPLICATION/SDP");
        let body: Bytes = answer.to_sdp().to_string().into();
        let response = Response { status: 200, reason: String::new(), headers: headers.clone(), body: body.clone() };
        let dialog = Dialog::uas(request, &response, flow).map_err(|_| 400u16)?;
        let (orders, queue) = mpsc::channel(ORDER_QUEUE);
        let speed = if download { offer.download_speed.min(MAX_DOWNLOAD_SPEED) } else { 1 };
        let streaming = Streaming {
            call_id: call_id.to_owned(),
            shared: self.shared.clone(),
            packer: packer(),
            way,
            ssrc,
            payload_type,
            pictures,
            pace: f64::from(speed) * f64::from(self.shared.config.speed),
            orders: queue,
            endings: self.endings.clone(),
            rng: StdRng::seed_from_u64(self.shared.random()),
        };
        let call = Call {
            channel: channel.id,
            orders,
            bye_at: None,
            invite: tx,
            dialog,
            streaming: Some(Box::new(streaming)),
            token: self.scope.token().child_token(),
            length: pictures.filter(|_| !download).map(|pictures| pictures as f64 / f64::from(channel.clip.fps())),
        };
        self.calls.insert(call_id.to_owned(), call);
        self.respond(tx, 200, headers, body).await;
        Ok(())
    }

    fn ssrc(&self, offer: &MediaOffer) -> u32 {
        let own = || compose(offer.kind.is_history(), &self.shared.config.id, self.shared.random());
        let own_wanted = self.shared.faults().call.own_ssrc;
        let echoed = offer.ssrc.filter(|_| !own_wanted);
        echoed.or_else(own).unwrap_or_else(|| self.shared.random())
    }

    /// Binds what the offer needs on a free port.
    async fn open(&self, offer: &MediaOffer) -> std::io::Result<(Way, SocketAddr)> {
        let any = SocketAddr::new(self.shared.local.ip(), 0);
        match offer.transport {
            MediaTransport::Udp => {
                let socket = UdpSocket::bind(any).await?;
                let local = socket.local_addr()?;
                Ok((Way::Udp(socket, offer.remote), local))
            }
            MediaTransport::TcpPassive => {
                // A free port, so that the answer can name the one the connection will come from.
                let free = bind_tcp(any, "TCP").map_err(std::io::Error::other)?.local_addr()?;
                Ok((Way::Connect(free, offer.remote), free))
            }
            MediaTransport::TcpActive => {
                let listener = TcpListener::bind(any).await?;
                let local = listener.local_addr()?;
                Ok((Way::Listen(listener), local))
            }
        }
    }

    /// The ACK has come: media begins.
    pub fn acknowledged(&mut self, request: &Request) {
        let call = request.headers.call_id().and_then(|call_id| self.calls.get_mut(call_id));
        let Some(call) = call else { return };
        if let Some(streaming) = call.streaming.take() {
            self.shared.count(|s| s.calls_started += 1);
            self.scope.spawn("media", streaming.run(call.token.clone()));
        }
    }

    pub async fn not_acknowledged(&mut self, tx: ServerTxId) {
        self.hang_up(|call| call.invite == tx).await;
    }

    pub async fn bye_received(&mut self, tx: ServerTxId, request: &Request) {
        let call = request.headers.call_id().and_then(|call_id| self.calls.remove(call_id));
        if call.is_none() {
            return self.refuse(tx, 481).await;
        }
        drop(call);
        self.refuse(tx, 200).await;
        self.shared.count(|s| s.byes_received += 1);
    }

    /// Hangs up every call `which` says.
    pub async fn hang_up(&mut self, which: impl Fn(&Call) -> bool) {
        let calls: Vec<String> =
            self.calls.iter().filter(|(_, call)| which(call)).map(|(call_id, _)| call_id.clone()).collect();
        for call_id in calls {
            if let Some(mut call) = self.calls.remove(&call_id) {
                let (flow, request) = (call.dialog.flow(), call.dialog.request("BYE"));
                self.shared.count(|s| s.byes_sent += 1);
                self.send(flow, request, Pending::Other).await;
            }
        }
    }

    pub async fn calls_due(&mut self, now: Instant) {
        self.hang_up(|call| call.bye_at.is_some_and(|at| at <= now)).await;
    }

    /// A stream has ended by itself.
    pub async fn stream_ended(&mut self, call_id: &str, ending: Ending) {
        let faults = self.shared.faults().call;
        let profile = self.shared.config.profile;
        let sn = self.shared.next_sn();
        let Some(call) = self.calls.get_mut(call_id) else { return };
        if ending == Ending::Finished && !faults.no_media_status {
            // [GB/T28181-2022 9.8]: in the dialog.
            let mut request = call.dialog.request("MESSAGE");
            request.headers.push("Content-Type", MANSCDP);
            request.body = file_finished(profile, sn, &call.channel).into();
            let flow = call.dialog.flow();
            call.bye_at = Some(clock::now() + BYE_WAIT);
            self.send(flow, request, Pending::Other).await;
        }
        if ending == Ending::Broken || faults.bye_at_end {
            self.hang_up(|call| call.dialog.call_id() == call_id).await;
        }
    }

    // ---- playback control ----

    pub async fn playback_control(&mut self, tx: ServerTxId, request: &Request) {
        let call = request.headers.call_id().and_then(|call_id| self.calls.get_mut(call_id));
        let Some(call) = call else {
            return self.refuse(tx, 481).await;
        };
        let (Ok(asked), Some(length)) = (mansrtsp::Request::parse(&request.body), call.length) else {
            return self.refuse(tx, 400).await;
        };
        self.shared.playback_seen(call.channel, asked);
        let (reply, told) = oneshot::channel();
        let ordered = match asked.method {
            Method::Play => {
                let scale = asked.scale.map(mansrtsp::Scale::factor);
                let from = match asked.range.map(|range| range.start) {
                    Some(Position::Npt(ms)) => Some(ms as f64 / 1000.0),
                    Some(Position::Now) | None => None,
                };
                if scale.is_some_and(|scale| !SCALES.contains(&scale)) {
                    return self.playback_answer(tx, 456, asked).await;
                }
                if from.is_some_and(|second| second > length) {
                    return self.playback_answer(tx, 457, asked).await;
                }
                call.bye_at = None;
                call.orders.try_send(Order::Play { scale, from, reply })
            }
            Method::Pause => call.orders.try_send(Order::Pause(reply)),
            Method::Teardown => {
                // The platform's BYE is to follow.
                call.token.cancel();
                call.bye_at = Some(clock::now() + BYE_WAIT);
                return self.playback_answer(tx, 200, asked).await;
            }
        };
        if ordered.is_err() {
            return self.refuse(tx, 500).await;
        }
        let sip = self.sip.clone();
        self.scope.spawn("playback answer", async move {
            let place = tokio::time::timeout(ORDER_TIME, told).await.ok().and_then(Result::ok);
            respond_playback(&sip, tx, 200, asked, place).await;
        });
    }

    async fn playback_answer(&self, tx: ServerTxId, status: u16, asked: mansrtsp::Request) {
        respond_playback(&self.sip, tx, status, asked, None).await;
    }
}

/// 200, with an answer of its own inside. [GB/T28181-2022 B.4]
async fn respond_playback(
    sip: &crate::transport::sip_driver::SipHandle,
    tx: ServerTxId,
    status: u16,
    asked: mansrtsp::Request,
    place: Option<Place>,
) {
    let mut headers = Headers::new();
    headers.push("Content-Type", MANSRTSP);
    let mut answer = mansrtsp::Response::to(&asked, status);
    if let Some(place) = place {
        answer.range = Some(mansrtsp::Range::from_ms((place.npt * 1000.0) as u64));
        answer.rtp_info = Some(mansrtsp::RtpInfo { seq: place.sequence, rtptime: place.timestamp });
    }
    respond(sip, tx, 200, headers, answer.to_bytes().into()).await;
}
