//! Reads an INVITE: which channel, which way, where to; and refuses what cannot be served, with a reason an integrator
//! understands.
//! Standard: [GB/T28181-2022 4.2, 4.8, annex G, annex L]; 415 = no SDP, 488 = SDP understood but nothing usable,
//! 406 = the answer's type is not wanted, 400 = unreadable.
//! In: the request. Out: [`Wanted`] or [`Refusal`]. Pure.

use crate::proto::gb28181::{DeviceId, Subject};
use crate::proto::sdp::{MediaOffer, Payload, Sdp, SessionKind};
use crate::proto::sip::header;
use crate::proto::sip::message::Request;

/// A final refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// SIP status.
    pub status: u16,
    /// Reason text for the peer and the log.
    pub reason: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(status: u16, reason: impl Into<String>) -> Self {
        Refusal { status, reason: reason.into() }
    }
}

/// What an INVITE wants.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The channel: the Request-URI's user, or the Subject's sender where the URI names us or nobody.
    pub channel: DeviceId,
    /// The Subject, for finding a stale session of the same stream.
    pub subject: Option<Subject>,
    /// The media line and what belongs to it.
    pub offer: MediaOffer,
    /// RTP payload type of PS in the offer.
    pub payload_type: u8,
}

/// True for an INVITE that asks for a recording, whatever else is in it.
pub fn is_history(request: &Request) -> bool {
    Sdp::parse(&request.body).is_ok_and(|s| SessionKind::parse(&s.session_name).is_some_and(SessionKind::is_history))
}

/// Reads it. `local_id` is our own code towards this platform.
pub fn read(request: &Request, local_id: &DeviceId) -> Result<Wanted, Refusal> {
    if request.body.is_empty() {
        return Err(Refusal::new(488, "INVITE without SDP: send the offer in the INVITE"));
    }
    if !header::content_type_is(&request.headers, "application/sdp") {
        let got: String = request.headers.get("Content-Type").unwrap_or("none").chars().take(60).collect();
        return Err(Refusal::new(415, format!("Content-Type {got} is not application/sdp")));
    }
    if !accepts_sdp(request) {
        return Err(Refusal::new(406, "Accept does not allow application/sdp"));
    }
    let offer = MediaOffer::parse(&request.body).map_err(|e| Refusal::new(e.status(), e.to_string()))?;
    let subject = request.headers.get("Subject").and_then(Subject::parse);
    let by_uri = header::SipUri::parse(&request.uri)
        .ok()
        .and_then(|u| u.user)
        .and_then(|u| DeviceId::parse(&u).ok())
        .filter(|id| id != local_id);
    let by_subject = || subject.as_ref().map(|s| s.sender).filter(|id| id != local_id);
    let by_to = || request.headers.to_user().and_then(|u| DeviceId::parse(&u).ok());
    let channel = by_uri
        .or_else(by_subject)
        .or_else(by_to)
        .ok_or_else(|| Refusal::new(404, "neither Request-URI nor Subject names a channel"))?;
    if offer.kind == SessionKind::Talk {
        return Err(Refusal::new(488, "talk (s=Talk) is not served here"));
    }
    let Payload::Ps(payload_type) = offer.payload else {
        return Err(Refusal::new(488, "the offer has no PS/90000"));
    };
    Ok(Wanted { channel, subject, offer, payload_type })
}

fn accepts_sdp(request: &Request) -> bool {
    let mut any = false;
    for value in request.headers.get_all("Accept") {
        for part in value.split(',') {
            any = true;
            let kind = part.split(';').next().unwrap_or("").trim();
            if ["application/sdp", "application/*", "*/*"].iter().any(|a| kind.eq_ignore_ascii_case(a)) {
                return true;
            }
        }
    }
    !any
}
