//! Controls: decoded, remembered, obeyed where a simulation can, and answered where an answer is due.
//!
//! Standard: [GB/T28181-2022 9.3, A.2.3].
//! In: bodies with root Control. Out: Responses; key pictures, presets, keepalive times.
//! Invariants: a command that cannot be read is refused as the standard wants, and changes nothing.
//! Not here: moving pictures: the clip stays what it is.

use std::time::Duration;

use super::serve::Serve;
use super::state::lock;
use super::stream::Order;
use crate::proto::manscdp::ptz::PresetAction;
use crate::proto::manscdp::request::config_blocks;
use crate::proto::manscdp::{ChecksumPolicy, DeviceControl, Incoming, PtzCommand, Root, device_control};

impl Serve {
    pub async fn control(&mut self, incoming: &Incoming) {
        let target = incoming.device_id;
        if incoming.is(Root::Control, "DeviceConfig") {
            let ok = self.shared.is_ours(&target) && self.configure(incoming);
            self.shared.count(|s| if ok { s.configurations += 1 } else { s.controls_refused += 1 });
            return self.result(incoming, &target, ok).await;
        }
        let control = match incoming.is(Root::Control, "DeviceControl") {
            true => device_control(incoming, ChecksumPolicy::Verify),
            false => Ok(DeviceControl::Unknown(incoming.cmd_type.clone())),
        };
        let (ok, due) = match &control {
            Ok(control) => (self.shared.is_ours(&target), control.response_due()),
            Err(error) => (false, error.response_due()),
        };
        match control {
            Ok(control) if ok => {
                self.obey(incoming, &control);
                self.shared.control_seen(target, control);
            }
            _ => self.shared.count(|s| s.controls_refused += 1),
        }
        if due {
            self.result(incoming, &target, ok).await;
        }
    }

    fn obey(&mut self, incoming: &Incoming, control: &DeviceControl) {
        let target = incoming.device_id;
        match control {
            DeviceControl::KeyFrame => {
                for call in self.calls.values().filter(|call| call.channel == target) {
                    // A stream that has as many orders waiting will send a key picture anyway.
                    let _ = call.orders.try_send(Order::KeyPicture);
                }
            }
            DeviceControl::AlarmReset { .. } => {
                let mut in_alarm = lock(&self.shared.in_alarm);
                // To the device: of all its channels.
                in_alarm.retain(|channel| target != self.shared.config.id && *channel != target);
            }
            DeviceControl::Ptz { command: PtzCommand::Preset { action, number }, name } => match action {
                PresetAction::Set => {
                    let name = name.clone().unwrap_or_else(|| format!("预置位{number}"));
                    self.shared.set_preset(target, *number, Some(name));
                }
                PresetAction::Delete => self.shared.set_preset(target, *number, None),
                PresetAction::Call => {}
            },
            _ => {}
        }
    }

    /// DeviceConfig; false when there is nothing in it that is known.
    fn configure(&mut self, incoming: &Incoming) -> bool {
        let Some(basic) = config_blocks(incoming).find(|block| block.is("BasicParam")) else {
            return config_blocks(incoming).next().is_some();
        };
        let config = &self.shared.config;
        let interval = basic.number_of("HeartBeatInterval").map_or(config.keepalive, Duration::from_secs);
        let missed = basic.number_of("HeartBeatCount").unwrap_or(config.keepalive_max_missed);
        self.set_keepalive(interval, missed);
        true
    }
}
