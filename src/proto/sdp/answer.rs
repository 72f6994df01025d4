//! Writing offers and answers, and reading answers.
//! Standard: [GB/T28181-2022 annex G, 9.2, 9.8, 9.9].
//! In: addresses, the offer answered. Out: SDP text; `MediaAnswer`.
//! Invariants: a port is never 0 (receivers hang up on it); an answer offers PS alone under the offer's payload type;
//! transport follows the offer.
//! Not here: choosing addresses and ports.

use super::offer::{self, AudioPayload, MediaOffer, MediaTransport, OfferError, Payload, SessionKind, YForm};
use super::ssrc::format_y;
use super::{Attribute, Direction, F, Media, RtpMap, Sdp};
use crate::proto::gb28181::DeviceId;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

/// Our answer to an offer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer<'a> {
    /// What is answered.
    pub offer: &'a MediaOffer,
    /// The media sender: the channel.
    pub sender: DeviceId,
    /// Our media address.
    pub address: IpAddr,
    /// Where we send from (UDP, TCP to a listening offerer) or listen.
    pub port: NonZeroU16,
    /// What will be in RTP.
    pub ssrc: u32,
    /// What is sent.
    pub f: Option<F>,
    /// Bytes of a download, where known.
    pub file_size: Option<u64>,
}

impl Answer<'_> {
    /// As a description.
    pub fn to_sdp(&self) -> Sdp {
        let (kind, pt, rtpmap) = match self.offer.payload {
            Payload::Ps(pt) => ("video", pt, map(pt, "PS", 90_000)),
            Payload::Audio(pt, AudioPayload::Pcma) => ("audio", pt, map(pt, "PCMA", 8_000)),
            Payload::Audio(pt, AudioPayload::Pcmu) => ("audio", pt, map(pt, "PCMU", 8_000)),
        };
        let talk = self.offer.kind == SessionKind::Talk;
        Sdp {
            time: self.offer.time,
            f: self.f,
            ..session(
                self.sender,
                self.address,
                self.offer.kind,
                self.ssrc,
                Media {
                    kind: kind.into(),
                    port: self.port.get(),
                    proto: self.offer.transport.proto().into(),
                    pts: vec![pt],
                    rtpmaps: vec![rtpmap],
                    direction: Some(if talk { Direction::SendRecv } else { Direction::SendOnly }),
                    setup: self.offer.transport.answer_setup(),
                    attributes: attributes(
                        self.offer.transport,
                        self.file_size.map(|bytes| Attribute::new("filesize", bytes)),
                    ),
                    connection: None,
                },
            )
        }
    }
}

/// Which recordings `u=` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecordType {
    /// Any.
    #[default]
    All = 0,
    /// Started by hand.
    Manual = 1,
    /// Started by an alarm.
    Alarm = 2,
    /// Started by plan.
    Time = 3,
}

/// The offer of a receiver: an upper platform to a lower one, a platform to a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Invite {
    /// What is asked for.
    pub kind: SessionKind,
    /// Who receives: user of `o=`.
    pub receiver: DeviceId,
    /// The channel asked: `u=` of history.
    pub channel: DeviceId,
    /// The receiver's media address.
    pub address: IpAddr,
    /// The receiver's media port.
    pub port: NonZeroU16,
    /// How media travels.
    pub transport: MediaTransport,
    /// `y=`.
    pub ssrc: u32,
    /// Unix seconds of history.
    pub time: Option<(u64, u64)>,
    /// Which recordings.
    pub record_type: RecordType,
    /// `a=streamnumber`, for peers of 2022.
    pub stream_number: Option<u8>,
    /// `a=downloadspeed`.
    pub download_speed: Option<u32>,
    /// `f=`.
    pub f: Option<F>,
}

impl Invite {
    /// As a description. Talk asks for audio both ways, the rest for video.
    pub fn to_sdp(&self) -> Sdp {
        let talk = self.kind == SessionKind::Talk;
        let rtpmaps = match talk {
            true => vec![map(8, "PCMA", 8_000)],
            false => vec![map(96, "PS", 90_000), map(98, "H264", 90_000), map(97, "MPEG4", 90_000)],
        };
        let more = self
            .stream_number
            .map(|n| Attribute::new("streamnumber", n))
            .into_iter()
            .chain(self.download_speed.map(|n| Attribute::new("downloadspeed", n)));
        let history = self.kind.is_history();
        Sdp {
            uri: history.then(|| format!("{}:{}", self.channel, self.record_type as u8)),
            time: Some(self.time.filter(|_| history).unwrap_or((0, 0))),
            f: self.f,
            ..session(
                self.receiver,
                self.address,
                self.kind,
                self.ssrc,
                Media {
                    kind: if talk { "audio" } else { "video" }.into(),
                    port: self.port.get(),
                    proto: self.transport.proto().into(),
                    pts: rtpmaps.iter().map(|m| m.pt).collect(),
                    rtpmaps,
                    direction: Some(if talk { Direction::SendRecv } else { Direction::RecvOnly }),
                    setup: self.transport.offer_setup(),
                    attributes: attributes(self.transport, more),
                    connection: None,
                },
            )
        }
    }
}

fn map(pt: u8, encoding: &str, clock: u32) -> RtpMap {
    RtpMap { pt, encoding: encoding.into(), clock }
}

fn attributes(transport: MediaTransport, more: impl IntoIterator<Item = Attribute>) -> Vec<Attribute> {
    let connection = transport.is_tcp().then(|| Attribute::new("connection", "new"));
    connection.into_iter().chain(more).collect()
}

fn session(user: DeviceId, address: IpAddr, kind: SessionKind, ssrc: u32, media: Media) -> Sdp {
    Sdp {
        origin_user: user.to_string(),
        origin_address: address.to_string(),
        session_name: kind.as_str().into(),
        connection: Some(address.to_string()),
        time: Some((0, 0)),
        media: vec![media],
        y: Some(format_y(ssrc)),
        ..Sdp::default()
    }
}

/// A sender's answer, as far as a receiver needs it. The transport is the offer's whatever the answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MediaAnswer {
    /// Where media comes from, or where to connect.
    pub remote: SocketAddr,
    /// Payload type of PS; `None` in an answer of bare audio.
    pub ps_payload_type: Option<u8>,
    /// The SSRC that will come, if told.
    pub ssrc: Option<u32>,
    /// What y= looked like.
    pub y_form: YForm,
    /// Bytes of a download.
    pub file_size: Option<u64>,
}

impl MediaAnswer {
    /// Reads an answer: its first medium with a port. The session name is the sender's business. `fileszie`, the
    /// misprint of 2014, is read too.
    pub fn from_sdp(sdp: &Sdp) -> Result<Self, OfferError> {
        let media = sdp.media.iter().find(|m| m.port != 0).or(sdp.media.first()).ok_or(OfferError::NoMedia)?;
        let ps_payload_type = match media.kind.as_str() {
            "audio" => None,
            _ => match offer::ps(media)? {
                Payload::Ps(pt) => Some(pt),
                Payload::Audio(..) => None,
            },
        };
        let (ssrc, y_form) = offer::ssrc_of(sdp);
        let size = ["filesize", "fileszie"].iter().find_map(|name| sdp.attribute_of(media, name)?.parse().ok());
        Ok(Self { remote: offer::remote(sdp, media)?, ps_payload_type, ssrc, y_form, file_size: size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: &str = include_str!("../../../proto-fixtures/sdp/standard-2016-offer-tcp-passive.sdp");
    const ANSWER: &str = include_str!("../../../proto-fixtures/sdp/standard-2016-answer-tcp-active.sdp");

    fn id(text: &str) -> DeviceId {
        DeviceId::parse(text).unwrap()
    }

    fn answer(offer: &MediaOffer) -> Answer<'_> {
        Answer {
            offer,
            sender: id("34020000001320000001"),
            address: "198.51.100.8".parse().unwrap(),
            port: NonZeroU16::new(15060).unwrap(),
            ssrc: 100_000_001,
            f: None,
            file_size: None,
        }
    }

    fn invite(kind: SessionKind, transport: MediaTransport) -> Invite {
        Invite {
            kind,
            receiver: id("34010000002000000001"),
            channel: id("34020000001320000001"),
            address: "192.0.2.20".parse().unwrap(),
            port: NonZeroU16::new(30000).unwrap(),
            transport,
            ssrc: 100_000_001,
            time: Some((1_763_863_200, 1_763_866_800)),
            record_type: RecordType::All,
            stream_number: None,
            download_speed: None,
            f: F::parse("v/2/6/25/1/4096a///"),
        }
    }

    #[test]
    fn both_samples() {
        let sdp = invite(SessionKind::Play, MediaTransport::TcpPassive).to_sdp();
        assert_eq!(sdp.to_string(), OFFER);
        let offer = MediaOffer::from_sdp(&sdp).unwrap();
        assert_eq!(answer(&offer).to_sdp().to_string(), ANSWER);
    }

    #[test]
    fn every_kind_over_every_transport() {
        for kind in [SessionKind::Play, SessionKind::Playback, SessionKind::Download, SessionKind::Talk] {
            for transport in [MediaTransport::Udp, MediaTransport::TcpPassive, MediaTransport::TcpActive] {
                let invite = Invite { stream_number: Some(1), download_speed: Some(4), ..invite(kind, transport) };
                let text = invite.to_sdp().to_string();
                let offer = MediaOffer::from_sdp(&Sdp::parse(text.as_bytes()).unwrap()).unwrap();
                assert_eq!((offer.kind, offer.transport), (kind, transport));
                assert_eq!((offer.stream_number, offer.download_speed), (Some(1), 4));
                assert_eq!(offer.time, invite.time.filter(|_| kind.is_history()));
                assert_eq!(offer.uri.map(|u| u.source), kind.is_history().then_some(invite.channel));

                let reply = Answer { file_size: Some(10_485_760), ..answer(&offer) };
                let text = reply.to_sdp().to_string();
                let setup = ["a=setup:active", "a=setup:passive"].map(|s| text.contains(s));
                let expected = match transport {
                    MediaTransport::Udp => [false, false],
                    MediaTransport::TcpPassive => [true, false],
                    MediaTransport::TcpActive => [false, true],
                };
                assert_eq!(setup, expected);
                assert_eq!(text.contains("t=1763863200 1763866800"), kind.is_history());
                let back = MediaAnswer::from_sdp(&Sdp::parse(text.as_bytes()).unwrap()).unwrap();
                assert_eq!(back.remote, "198.51.100.8:15060".parse().unwrap());
                assert_eq!((back.ssrc, back.file_size), (Some(100_000_001), Some(10_485_760)));
                assert_eq!(back.ps_payload_type, (kind != SessionKind::Talk).then_some(96));
            }
        }
    }

    #[test]
    fn payload_type_and_family_follow() {
        let sdp = Sdp::parse(OFFER.replace("96 PS", "112 PS").as_bytes()).unwrap();
        let offer = MediaOffer::from_sdp(&sdp).unwrap();
        let text = Answer { address: "2001:db8::8".parse().unwrap(), ..answer(&offer) }.to_sdp().to_string();
        assert!(text.contains("m=video 15060 TCP/RTP/AVP 112\r\n") && text.contains("a=rtpmap:112 PS/90000"));
        assert!(text.contains("c=IN IP6 2001:db8::8\r\n"));
    }

    #[test]
    fn answers_of_the_field() {
        let read = |from: &str, to: &str| {
            assert!(ANSWER.contains(from));
            MediaAnswer::from_sdp(&Sdp::parse(ANSWER.replace(from, to).as_bytes()).unwrap())
        };
        assert_eq!(read("s=Play", "s=EmbeddedNetDVR").map(|a| a.ssrc), Ok(Some(100_000_001)));
        assert_eq!(read("y=0100000001", "y=100000001").map(|a| a.y_form), Ok(YForm::OddLength));
        assert_eq!(read("a=connection:new", "a=fileszie:77").map(|a| a.file_size), Ok(Some(77)));
        assert_eq!(read("TCP/RTP/AVP", "RTP/AVP").map(|a| a.remote.port()), Ok(15060));
        assert_eq!(read("m=video 15060", "m=video 0"), Err(OfferError::ZeroPort));
        assert_eq!(read("96 PS", "96 DAHUA"), Err(OfferError::VendorPayload));
    }
}
