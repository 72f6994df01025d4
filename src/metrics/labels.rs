//! Label values that cannot grow without bound.
//!
//! Invariants: a name can only be made by `Metrics` from those the configuration added; everything else is [`OTHER`].

use std::fmt::{Error, Write};
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// Stands for every value that is not known beforehand.
pub const OTHER: &str = "other";

/// An uplink's name, or one of the fixed words.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerLabel(pub(super) Arc<str>);

impl PeerLabel {
    /// Everybody we do not know.
    pub fn other() -> Self {
        PeerLabel(OTHER.into())
    }

    /// All southbound GB/T 28181 devices together: there can be thousands, too many for a series each.
    pub fn devices() -> Self {
        PeerLabel("devices".into())
    }

    /// The value as shown.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A configured camera's or channel's id, or [`OTHER`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChannelLabel(pub(super) Arc<str>);

impl ChannelLabel {
    /// The value as shown.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A SIP status code, 0 standing for `other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CodeLabel(u16);

impl CodeLabel {
    pub(super) fn new(code: u16) -> Self {
        CodeLabel(if (100..700).contains(&code) { code } else { 0 })
    }
}

/// The method as a label: [RFC3261 7.1] methods are case-sensitive.
pub(super) fn method(method: &str) -> &'static str {
    crate::proto::sip::known_method(method).unwrap_or(OTHER)
}

macro_rules! label_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), Error> {
                encoder.write_str(match self { $($name::$variant => $text,)* })
            }
        }
    };
}

label_enum!(
    /// Which way a message went.
    Direction {
        /// To us.
        In => "in",
        /// From us.
        Out => "out",
    }
);

label_enum!(
    /// How a SIP message came.
    SipTransport {
        /// UDP.
        Udp => "udp",
        /// TCP.
        Tcp => "tcp",
        /// TLS.
        Tls => "tls",
    }
);

label_enum!(
    /// What is known about a channel.
    ChannelState {
        /// It answers.
        Online => "online",
        /// It does not.
        Offline => "offline",
        /// Nobody has asked yet.
        Unknown => "unknown",
    }
);

label_enum!(
    /// What a media session is for.
    SessionKind {
        /// Live pictures.
        Play => "play",
        /// A recording at its own pace.
        Playback => "playback",
        /// A recording as fast as agreed.
        Download => "download",
        /// Sound to the device.
        Broadcast => "broadcast",
        /// Sound both ways.
        Talk => "talk",
    }
);

label_enum!(
    /// How a media session's packets travel, seen from us.
    SessionTransport {
        /// UDP.
        Udp => "udp",
        /// TCP, we connect.
        TcpActive => "tcp_active",
        /// TCP, we listen.
        TcpPassive => "tcp_passive",
    }
);

impl EncodeLabelValue for PeerLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), Error> {
        encoder.write_str(&self.0)
    }
}

impl EncodeLabelValue for ChannelLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), Error> {
        encoder.write_str(&self.0)
    }
}

impl EncodeLabelValue for CodeLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), Error> {
        match self.0 {
            0 => encoder.write_str(OTHER),
            code => write!(encoder, "{code}"),
        }
    }
}
