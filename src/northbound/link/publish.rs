//! How the link tells how it stands.

use super::*;

impl Link {
    /// Publishes now; with many sessions, where only they changed, as soon as [`PUBLISH_GAP`] allows.
    pub(super) fn publish_soon(&mut self, now: Instant) {
        let state = self.state_name();
        let due = self.published.map_or(now, |(at, _)| at + PUBLISH_GAP);
        let same = self.published.is_some_and(|(_, told)| told == state);
        if same && due > now && self.calls.len() > CHEAP_TO_PUBLISH {
            self.publish_due = Some(due);
        } else {
            self.published = Some((now, state));
            self.publish_due = None;
            self.publish();
        }
    }

    fn state_name(&self) -> &'static str {
        match self.registration.state() {
            State::Idle => "idle",
            State::Registering => "registering",
            State::Registered => "registered",
            State::Waiting { .. } => "waiting",
            State::Unregistering => "unregistering",
            State::Stopped => "stopped",
        }
    }

    pub(super) fn publish(&self) {
        let state = self.state_name();
        let mut calls: Vec<CallStatus> = self
            .calls
            .values()
            .map(|c| CallStatus {
                call_id: c.call_id.clone(),
                kind: kind_word(c.kind()),
                channel: c.channel.to_string(),
                time: c.wanted.offer.time,
                stream: c.number,
                transport: transport_name(c.transport),
                remote: c.remote.to_string(),
                ssrc: format_y(c.ssrc),
                state: match c.call.state() {
                    CallState::Preparing => "preparing",
                    CallState::Answered => "answered",
                    CallState::Established => "established",
                    CallState::Ended => "ended",
                },
                since_ms: c.since_ms,
                plane: "mux",
            })
            .collect();
        calls.sort_by(|a, b| (a.since_ms, &a.call_id).cmp(&(b.since_ms, &b.call_id)));
        let status = UplinkStatus {
            name: self.cfg.uplink.name.clone(),
            server_id: self.server_id().to_owned(),
            server_addr: self.peer.to_string(),
            local_id: self.local_id.to_string(),
            transport: match self.transport() {
                Transport::Udp => "udp",
                Transport::Tcp => "tcp",
                Transport::Tls => "tls",
            },
            standard: match self.profile.version() {
                Version::V2011 => "2011",
                Version::V2011Amd => "2014",
                Version::V2016 => "2016",
                Version::V2022 => "2022",
            },
            charset: self.profile.charset().label(),
            state,
            registered: state == "registered",
            since_ms: self.state_since,
            reason: self.why.clone(),
            advertised: self.sent_by(),
            clock_offset_ms: self.clock_offset,
            ladder: self.ladder.clone(),
            calls,
            subscriptions: self.subscriptions.len(),
            spec: self.spec.clone(),
        };
        self.deps.status.send_if_modified(|old| {
            let changed = *old != status;
            if changed {
                *old = status;
            }
            changed
        });
    }
}
