//! Alarms: a MESSAGE repeated until the platform's Response comes, and a NOTIFY to whom has subscribed.
//!
//! Standard: [GB/T28181-2022 9.4.2, A.2.5.3].
//! In: alarms of the handle, Responses, time. Out: messages.
//! Invariants: the repetition has the SN of the first; it is sent `alarm_tries` times at most.
//! Not here: what makes an alarm.

use std::time::Instant;

use super::serve::{Pending, Serve};
use crate::clock;
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::QueryKind;
use crate::proto::manscdp::notify::Alarm;

/// Alarms without answer at once; the oldest is given up for a new one.
const MAX_WAITING: usize = 256;

/// An alarm whose Response has not come.
#[derive(Debug)]
pub(super) struct Waiting {
    sn: u32,
    body: Vec<u8>,
    /// When it is sent again, or given up.
    pub again_at: Instant,
    sent: u32,
}

impl Serve {
    /// Sends an alarm; its SN.
    pub async fn raise(&mut self, channel: DeviceId, alarm: &Alarm) -> u32 {
        let sn = self.shared.next_sn();
        let body = alarm.write(self.shared.config.profile, sn, &channel);
        if self.alarms.len() == MAX_WAITING {
            self.alarms.remove(0);
            self.shared.count(|s| s.alarms_given_up += 1);
        }
        let again_at = clock::now() + self.shared.config.alarm_repeat;
        self.alarms.push(Waiting { sn, body: body.clone(), again_at, sent: 1 });
        self.shared.count(|s| s.alarms += 1);
        self.notify(QueryKind::Alarm, &body).await;
        self.message(body, Pending::Other).await;
        sn
    }

    /// The platform's Response has come.
    pub fn alarm_answered(&mut self, sn: u32) {
        if let Some(at) = self.alarms.iter().position(|waiting| waiting.sn == sn) {
            self.alarms.remove(at);
            self.shared.count(|s| s.alarms_answered += 1);
        }
    }

    pub async fn alarms_due(&mut self, now: Instant) {
        let (repeat, tries) = (self.shared.config.alarm_repeat, self.shared.config.alarm_tries);
        let mut again = Vec::new();
        let mut given_up = 0;
        self.alarms.retain_mut(|waiting| {
            if waiting.again_at > now {
                return true;
            }
            if waiting.sent >= tries {
                given_up += 1;
                return false;
            }
            waiting.sent += 1;
            waiting.again_at = now + repeat;
            again.push(waiting.body.clone());
            true
        });
        if given_up > 0 {
            self.shared.count(|s| s.alarms_given_up += given_up);
        }
        for body in again {
            self.shared.count(|s| s.alarms_repeated += 1);
            self.message(body, Pending::Other).await;
        }
    }
}
