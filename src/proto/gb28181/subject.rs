//! The Subject header of INVITE: who sends which stream to whom.
//! Standard: [GB/T28181-2022 annex L], [GB/T28181-2016 annex K].
//! In: the header's value, lenient. Out: `Subject`. Form: `sender:serial,receiver:serial`.
//! Invariants: serials are at most 20 characters (longer ones are cut on reading).
//! Not here: which channel an INVITE means (the caller falls back to the Request-URI when this is absent).

use super::device_id::DeviceId;
use std::fmt;

/// Longest stream serial. [GB/T28181-2022 annex L]
pub const MAX_SERIAL: usize = 20;

/// A Subject value. What a peer left out is `None` or empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The sender of media: the channel.
    pub sender: DeviceId,
    /// First character `0` for live (same for the same live stream), `1` for history (unique).
    pub sender_serial: String,
    /// The receiver of media.
    pub receiver: Option<DeviceId>,
    /// Unique at the receiver while the stream runs.
    pub receiver_serial: String,
}

impl Subject {
    /// Reads a value; blanks, a missing serial and a missing receiver are tolerated. `None` without a sender id.
    pub fn parse(value: &str) -> Option<Self> {
        let mut halves = value.splitn(3, ',').map(half);
        let (sender, sender_serial) = halves.next()?;
        let (receiver, receiver_serial) = halves.next().unwrap_or_default();
        Some(Self { sender: sender?, sender_serial, receiver, receiver_serial })
    }
}

fn half(text: &str) -> (Option<DeviceId>, String) {
    let (id, serial) = text.split_once(':').unwrap_or((text, ""));
    (DeviceId::parse(id.trim()).ok(), serial.trim().chars().take(MAX_SERIAL).collect())
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sender, self.sender_serial)?;
        match &self.receiver {
            Some(receiver) => write!(f, ",{receiver}:{}", self.receiver_serial),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_form() {
        let text = "34020000001320000001:0100000001,34010000002000000001:0";
        let s = Subject::parse(text).unwrap();
        assert_eq!(s.sender.as_str(), "34020000001320000001");
        assert_eq!(s.sender_serial, "0100000001");
        assert_eq!(s.receiver.unwrap().as_str(), "34010000002000000001");
        assert_eq!(s.receiver_serial, "0");
        assert_eq!(s.to_string(), text);
    }

    #[test]
    fn lenient_forms() {
        let s = Subject::parse(" 34020000001320000001 : 0 , 34010000002000000001 : 1 ").unwrap();
        assert_eq!((s.sender_serial.as_str(), s.receiver_serial.as_str()), ("0", "1"));
        let s = Subject::parse("34020000001320000001").unwrap();
        assert_eq!((s.sender_serial.as_str(), s.receiver), ("", None));
        assert_eq!(s.to_string(), "34020000001320000001:");
        let s = Subject::parse("34020000001320000001:0,").unwrap();
        assert_eq!(s.receiver, None);
        let s = Subject::parse(&format!("34020000001320000001:{},1:2,3:4", "路".repeat(50))).unwrap();
        assert_eq!(s.sender_serial.chars().count(), MAX_SERIAL);
        for bad in ["", ",", ":", "camera:0,34:1", ",34020000001320000001:0"] {
            assert_eq!(Subject::parse(bad), None, "{bad:?}");
        }
    }
}
