//! What an upper platform's MESSAGE gets for an answer: the SIP status, then what follows it.
//! Standard: [GB/T28181-2022 9.3, 9.5, A.2], [GB/T28181-2016 9.3.1] for which controls get a Response.
//! In: a parsed body and what this uplink sees and may do. Out: [`Verdict`]. Pure.
//! Invariants: nothing is answered OK that is not done. What a channel's owner can be asked is passed on to it. What a
//! channel has not: a Query's Response says Result=ERROR, a list's SumNum=0; a control with a Response says
//! Result=ERROR, one without is refused 403 with a Reason.
//! Unknown and unshared channels are 404 alike (an empty catalogue: that is what is below them); not permitted is 403.

use crate::catalog::{Channel, DirectorySnapshot, View, ViewSpec, shared_channel};
use crate::proto::gb28181::{DeviceId, IdKind, Profile, UnixMillis};
use crate::proto::manscdp::response::{DeviceInfo, DeviceStatus, device_info, device_status, query_error, result};
use crate::proto::manscdp::{ChecksumPolicy, DeviceControl, Incoming, QueryKind, Root, device_control};
use std::sync::Arc;

/// What a control needs, and whether this uplink has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Live pictures (a key frame belongs to them).
    pub live: bool,
    /// Pan, tilt, zoom.
    pub ptz: bool,
    /// Device configuration, restart, upgrade.
    pub config: bool,
    /// Guard and alarm reset.
    pub guard: bool,
    /// Voice.
    pub talk: bool,
}

/// What the answer depends on.
#[derive(Debug)]
pub struct Context<'a> {
    /// Channels and their state.
    pub snapshot: &'a DirectorySnapshot,
    /// How this uplink sees us.
    pub spec: &'a ViewSpec,
    /// What it sees.
    pub view: &'a View,
    /// Version and charset it speaks.
    pub profile: Profile,
    /// What it may do.
    pub allowed: Allowed,
    /// Now, by our protocol clock.
    pub now: UnixMillis,
}

/// What follows the SIP answer.
#[derive(Debug)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// A Response in a MESSAGE of its own.
    Reply(Vec<u8>),
    /// The catalogue of this id, in pages.
    Catalog {
        /// Repeated in every page.
        sn: u32,
        /// What was asked for.
        device_id: DeviceId,
    },
    /// A key frame for this channel, once it is in the audit log.
    KeyFrame(Arc<Channel>),
    /// A query for the owner of this channel, or (audited, and only once it is in the audit log) a control.
    Relay {
        /// Whose; it has a way to its owner.
        channel: Arc<Channel>,
        /// A Response is due.
        response: bool,
    },
}

/// The answer.
#[derive(Debug)]
pub struct Verdict {
    /// SIP status, sent at once (what is done after the audit record: after it).
    pub status: u16,
    /// Reason text, for a refusal.
    pub reason: String,
    /// What follows.
    pub then: Then,
    /// A control or configuration that goes into the audit log: its name.
    pub audit: Option<&'static str>,
    /// Counted: a Notify nobody here understands.
    pub unknown_notify: bool,
}

impl Verdict {
    fn ok(then: Then) -> Self {
        Verdict { status: 200, reason: String::new(), then, audit: None, unknown_notify: false }
    }
    fn refuse(status: u16, reason: impl Into<String>) -> Self {
        Verdict { status, reason: reason.into(), then: Then::Nothing, audit: None, unknown_notify: false }
    }
    /// The reason, where the SIP answer itself is the refusal.
    pub fn sip_reason(&self) -> &str {
        if self.status >= 300 { &self.reason } else { "" }
    }
    fn audited(self, action: &'static str) -> Self {
        Verdict { audit: Some(action), ..self }
    }
}

/// Decides.
pub fn answer(incoming: &Incoming, cx: &Context<'_>) -> Verdict {
    match incoming.root {
        Root::Query => query(incoming, cx),
        Root::Control => control(incoming, cx),
        Root::Notify => notify(incoming, cx),
        // Answers to what we sent (an alarm's Response among them): taken, never answered.
        Root::Response => Verdict::ok(Then::Nothing),
    }
}

fn query(incoming: &Incoming, cx: &Context<'_>) -> Verdict {
    let (profile, sn, id) = (cx.profile, incoming.sn, &incoming.device_id);
    let kind = QueryKind::parse(&incoming.cmd_type);
    if kind != Some(QueryKind::Catalog)
        && let Target::Channel(channel) = target(id, cx)
        && channel.commands.is_some()
    {
        return Verdict::ok(Then::Relay { channel, response: true });
    }
    match kind {
        Some(QueryKind::Catalog) => Verdict::ok(Then::Catalog { sn, device_id: *id }),
        Some(QueryKind::DeviceInfo) => Verdict::ok(Then::Reply(match target(id, cx) {
            Target::Us => device_info(profile, sn, id, &our_info(cx)),
            Target::Channel(c) => device_info(profile, sn, id, &channel_info(&c)),
            Target::Unknown => return unknown(id, cx, || device_info(profile, sn, id, &DeviceInfo::default())),
        })),
        Some(QueryKind::DeviceStatus) => Verdict::ok(Then::Reply(match target(id, cx) {
            Target::Us => device_status(profile, sn, id, &our_status(cx)),
            Target::Channel(c) => device_status(profile, sn, id, &channel_status(&c, cx.now)),
            Target::Unknown => return unknown(id, cx, || device_status(profile, sn, id, &DeviceStatus::failed())),
        })),
        _ => {
            let refusal = || query_error(profile, &incoming.cmd_type, sn, id);
            match target(id, cx) {
                Target::Unknown => unknown(id, cx, refusal),
                _ => Verdict::ok(Then::Reply(refusal())),
            }
        }
    }
}

/// A query for what is no channel: 404, but for our areas, which exist and have no such thing to tell.
fn unknown(id: &DeviceId, cx: &Context<'_>, refusal: impl FnOnce() -> Vec<u8>) -> Verdict {
    match is_shared_group(id, cx) {
        true => Verdict::ok(Then::Reply(refusal())),
        false => Verdict::refuse(404, format!("channel {id} is unknown or not shared")),
    }
}

enum Target {
    Us,
    Channel(Arc<Channel>),
    Unknown,
}

fn target(id: &DeviceId, cx: &Context<'_>) -> Target {
    if *id == cx.spec.local_id {
        return Target::Us;
    }
    match shared_channel(cx.snapshot, cx.spec, id) {
        Ok(channel) => Target::Channel(channel),
        Err(_) => Target::Unknown,
    }
}

fn our_info(cx: &Context<'_>) -> DeviceInfo {
    DeviceInfo {
        device_name: Some(cx.spec.name.clone()),
        ok: true,
        manufacturer: Some("Menshen".into()),
        model: Some("Menshen".into()),
        firmware: Some(env!("CARGO_PKG_VERSION").into()),
        channel: Some(cx.view.devices().count() as u32),
    }
}

fn channel_info(channel: &Channel) -> DeviceInfo {
    DeviceInfo {
        device_name: Some(channel.item.name.clone()),
        ok: true,
        manufacturer: channel.item.manufacturer.clone(),
        model: channel.item.model.clone(),
        firmware: None,
        channel: Some(1),
    }
}

fn our_status(cx: &Context<'_>) -> DeviceStatus {
    DeviceStatus {
        ok: true,
        online: true,
        working: true,
        encode: Some(true),
        record: Some(false),
        device_time: Some(cx.now),
        ..DeviceStatus::default()
    }
}

/// What we know of a channel ourselves.
pub fn channel_status(channel: &Channel, now: UnixMillis) -> DeviceStatus {
    let online = channel.state.online == Some(true);
    DeviceStatus {
        ok: true,
        online,
        working: online,
        reason: (!online).then(|| channel.state.reason.to_owned()),
        encode: Some(online),
        record: Some(false),
        device_time: Some(now),
        ..DeviceStatus::default()
    }
}

fn control(incoming: &Incoming, cx: &Context<'_>) -> Verdict {
    let (profile, sn, id) = (cx.profile, incoming.sn, &incoming.device_id);
    let refused = |action: &'static str, response: bool, status: u16, reason: &str| {
        let verdict = if response {
            Verdict::ok(Then::Reply(result(profile, &incoming.cmd_type, sn, id, false)))
        } else {
            Verdict::refuse(status, reason)
        };
        Verdict { reason: reason.to_owned(), ..verdict }.audited(action)
    };
    let known = *id == cx.spec.local_id || matches!(target(id, cx), Target::Channel(_)) || is_shared_group(id, cx);
    if !known {
        return Verdict::refuse(404, format!("channel {id} is unknown or not shared")).audited("control");
    }
    if incoming.is(Root::Control, "DeviceConfig") {
        if !cx.allowed.config {
            return Verdict::refuse(403, "config is not permitted for this platform").audited("device_config");
        }
        return match target(id, cx) {
            Target::Channel(channel) if channel.commands.is_some() => {
                Verdict::ok(Then::Relay { channel, response: true }).audited("device_config")
            }
            _ => refused("device_config", true, 403, "device_config is not supported by this channel"),
        };
    }
    if !incoming.is(Root::Control, "DeviceControl") {
        return Verdict::refuse(403, format!("control {} is not known here", cmd(incoming))).audited("control");
    }
    let control = match device_control(incoming, ChecksumPolicy::Ignore) {
        Ok(control) => control,
        Err(e) if e.response_due() => return refused("control", true, 400, &e.to_string()),
        Err(e) => return Verdict::refuse(400, e.to_string()).audited("control"),
    };
    let (action, allowed): (&'static str, bool) = match &control {
        DeviceControl::KeyFrame => ("key_frame", cx.allowed.live),
        DeviceControl::Ptz { .. } => ("ptz", cx.allowed.ptz),
        DeviceControl::DragZoom { .. } => ("drag_zoom", cx.allowed.ptz),
        DeviceControl::PtzPrecise { .. } => ("ptz_precise", cx.allowed.ptz),
        DeviceControl::HomePosition { .. } => ("home_position", cx.allowed.ptz),
        DeviceControl::TargetTrack { .. } => ("target_track", cx.allowed.ptz),
        DeviceControl::Guard { .. } => ("guard", cx.allowed.guard),
        DeviceControl::AlarmReset { .. } => ("alarm_reset", cx.allowed.guard),
        DeviceControl::TeleBoot => ("tele_boot", cx.allowed.config),
        DeviceControl::Upgrade { .. } => ("device_upgrade", cx.allowed.config),
        DeviceControl::FormatSdCard(_) => ("format_sd_card", cx.allowed.config),
        DeviceControl::Record { .. } => ("record", cx.allowed.config),
        DeviceControl::Unknown(_) => ("control", false),
    };
    let response = control.response_due();
    if matches!(control, DeviceControl::Unknown(_)) {
        return refused(action, response, 403, "the control is not known here");
    }
    if !allowed {
        return Verdict::refuse(403, format!("{action} is not permitted for this platform")).audited(action);
    }
    match (control, target(id, cx)) {
        (DeviceControl::KeyFrame, Target::Channel(channel)) => Verdict::ok(Then::KeyFrame(channel)).audited(action),
        (DeviceControl::KeyFrame, _) => Verdict::refuse(404, format!("{id} is no channel")).audited(action),
        (_, Target::Channel(channel)) if channel.commands.is_some() => {
            Verdict::ok(Then::Relay { channel, response }).audited(action)
        }
        _ => refused(action, response, 403, &format!("{action} is not supported by this channel")),
    }
}

fn is_shared_group(id: &DeviceId, cx: &Context<'_>) -> bool {
    matches!(id.kind(), IdKind::BusinessGroup | IdKind::VirtualOrganisation) && cx.view.get(id).is_some()
}

fn notify(incoming: &Incoming, cx: &Context<'_>) -> Verdict {
    if incoming.is(Root::Notify, "Broadcast") {
        let reason = if cx.allowed.talk { "voice broadcast is not served here" } else { "talk is not permitted" };
        let body = result(cx.profile, "Broadcast", incoming.sn, &incoming.device_id, false);
        return Verdict { reason: reason.into(), ..Verdict::ok(Then::Reply(body)) }.audited("broadcast");
    }
    let known = incoming.is(Root::Notify, "Keepalive");
    Verdict { unknown_notify: !known, ..Verdict::ok(Then::Nothing) }
}

/// The CmdType, cut for a log line or a header.
pub fn cmd(incoming: &Incoming) -> String {
    incoming.cmd_type.chars().filter(char::is_ascii_graphic).take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{ChannelState, Share};
    use crate::media::SourceHandle;
    use crate::proto::gb28181::Version;
    use crate::proto::manscdp::{CatalogItem, parse};

    const LOCAL: &str = "41130000582000000001";
    const CAM: &str = "41130000581320000001";

    struct World {
        snapshot: DirectorySnapshot,
        spec: ViewSpec,
        view: View,
    }

    fn world(online: bool) -> World {
        let (tx, _rx) = tokio::sync::mpsc::channel(1);
        let mut snapshot = DirectorySnapshot::default();
        let channel = Channel {
            id: CAM.into(),
            area: None,
            parent: None,
            item: Arc::new(CatalogItem::new(DeviceId::parse(CAM).unwrap(), "东门")),
            streams: 1,
            source: SourceHandle::new(tx),
            state: ChannelState { online: Some(online), reason: "unreachable", ..ChannelState::unknown() },
            commands: None,
            kind: "rtsp",
        };
        snapshot.channels.insert(channel.id.clone(), channel);
        let spec = ViewSpec {
            local_id: DeviceId::parse(LOCAL).unwrap(),
            name: "大院".into(),
            civil_code: "411300".into(),
            share: vec![Share::All],
            groups: false,
            multi_parent: false,
            version: Version::V2016,
        };
        let view = crate::catalog::view(&snapshot, &spec);
        World { snapshot, spec, view }
    }

    const ALL: Allowed = Allowed { live: true, ptz: true, config: true, guard: true, talk: true };

    fn ask(world: &World, allowed: Allowed, xml: &str) -> Verdict {
        let incoming = parse(xml.as_bytes(), None).unwrap();
        let cx = Context {
            snapshot: &world.snapshot,
            spec: &world.spec,
            view: &world.view,
            profile: Profile::new(Version::V2016),
            allowed,
            now: UnixMillis(1_700_000_000_000),
        };
        answer(&incoming, &cx)
    }

    fn body(verdict: Verdict) -> String {
        match verdict.then {
            Then::Reply(body) => crate::proto::gb28181::charset::decode(&body, None).into_owned(),
            other => panic!("no reply: {other:?}"),
        }
    }

    fn query(cmd: &str, id: &str) -> String {
        format!("<?xml version=\"1.0\"?><Query><CmdType>{cmd}</CmdType><SN>3</SN><DeviceID>{id}</DeviceID></Query>")
    }

    fn control(id: &str, inner: &str) -> String {
        format!("<Control><CmdType>DeviceControl</CmdType><SN>4</SN><DeviceID>{id}</DeviceID>{inner}</Control>")
    }

    #[test]
    fn queries_we_know_are_answered_truthfully() {
        let w = world(false);
        assert!(matches!(ask(&w, ALL, &query("Catalog", LOCAL)).then, Then::Catalog { sn: 3, .. }));
        let info = body(ask(&w, ALL, &query("DeviceInfo", LOCAL)));
        assert!(info.contains("<Result>OK</Result>") && info.contains("大院") && info.contains("<Channel>1</Channel>"));
        let status = body(ask(&w, ALL, &query("DeviceStatus", CAM)));
        assert!(status.contains("OFFLINE") && status.contains("unreachable"), "{status}");
        let status = body(ask(&world(true), ALL, &query("DeviceStatus", CAM)));
        assert!(status.contains("<Online>ONLINE</Online>"));
        for cmd in ["DeviceStatus", "DeviceInfo", "RecordInfo", "NoSuchQuery"] {
            assert_eq!(ask(&w, ALL, &query(cmd, "41130000581320000999")).status, 404, "{cmd}");
        }
    }

    #[test]
    fn queries_a_channel_has_no_answer_to_say_error_or_empty_list() {
        let w = world(true);
        for (cmd, expect) in [
            ("RecordInfo", "<SumNum>0</SumNum>"),
            ("CruiseTrackListQuery", "<SumNum>0</SumNum>"),
            ("ConfigDownload", "<Result>ERROR</Result>"),
            ("NoSuchQuery", "<Result>ERROR</Result>"),
        ] {
            let text = body(ask(&w, ALL, &query(cmd, CAM)));
            assert!(text.contains(expect) && text.contains("<SN>3</SN>"), "{cmd}: {text}");
        }
    }

    #[test]
    fn controls_without_response_are_refused_not_swallowed() {
        let w = world(true);
        for inner in
            ["<PTZCmd>A50F0001400000F5</PTZCmd>", "<TeleBoot>Boot</TeleBoot>", "<FormatSDCard>1</FormatSDCard>"]
        {
            let v = ask(&w, ALL, &control(CAM, inner));
            assert_eq!(v.status, 403, "{inner}");
            assert!(!v.reason.is_empty() && v.audit.is_some());
        }
        let v = ask(&w, ALL, &control(CAM, "<GuardCmd>SetGuard</GuardCmd>"));
        assert_eq!(v.status, 200);
        assert!(body(v).contains("<Result>ERROR</Result>"));
        let config = format!(
            "<Control><CmdType>DeviceConfig</CmdType><SN>5</SN><DeviceID>{CAM}</DeviceID><BasicParam/></Control>"
        );
        let v = ask(&w, ALL, &config);
        assert_eq!(v.status, 200);
        assert!(body(v).contains("<CmdType>DeviceConfig</CmdType>"));
    }

    #[test]
    fn what_is_not_permitted_is_403_whatever_answer_is_due() {
        let w = world(true);
        let config = format!(
            "<Control><CmdType>DeviceConfig</CmdType><SN>5</SN><DeviceID>{CAM}</DeviceID><BasicParam/></Control>"
        );
        for xml in [
            config,
            control(CAM, "<GuardCmd>SetGuard</GuardCmd>"),
            control(CAM, "<RecordCmd>Record</RecordCmd>"),
            control(CAM, "<PTZCmd>A50F0001400000F5</PTZCmd>"),
        ] {
            let v = ask(&w, Allowed { live: true, ..Allowed::default() }, &xml);
            assert_eq!(v.status, 403, "{xml}");
            assert!(v.reason.contains("permitted") && v.audit.is_some() && matches!(v.then, Then::Nothing));
        }
    }

    #[test]
    fn key_frames_are_done_for_shared_channels_only() {
        let w = world(true);
        for spelling in ["<IFameCmd>Send</IFameCmd>", "<IFrameCmd>Send</IFrameCmd>"] {
            let v = ask(&w, ALL, &control(CAM, spelling));
            assert!(matches!(v.then, Then::KeyFrame(_)) && v.status == 200);
        }
        assert_eq!(ask(&w, ALL, &control("41130000581320000999", "<IFameCmd>Send</IFameCmd>")).status, 404);
        assert_eq!(ask(&w, Allowed::default(), &control(CAM, "<IFameCmd>Send</IFameCmd>")).status, 403);
    }

    #[test]
    fn notifies_are_taken_and_broadcast_is_refused_in_its_answer() {
        let w = world(true);
        let v = ask(&w, ALL, "<Notify><CmdType>Strange</CmdType><SN>1</SN><DeviceID>1</DeviceID></Notify>");
        assert!(v.status == 200 && v.unknown_notify);
        let v = ask(
            &w,
            ALL,
            &format!(
                "<Notify><CmdType>Broadcast</CmdType><SN>9</SN><SourceID>{LOCAL}</SourceID><TargetID>{CAM}</TargetID></Notify>"
            ),
        );
        let text = body(v);
        assert!(text.contains("<Result>ERROR</Result>") && text.contains(CAM));
    }

    #[test]
    fn what_an_owner_can_be_asked_is_passed_on_to_it() {
        let mut w = world(true);
        let (tx, _rx) = tokio::sync::mpsc::channel(1);
        let id: Arc<str> = CAM.into();
        w.snapshot.channels.get_mut(&id).unwrap().commands = Some(crate::catalog::CommandHandle::new(tx));
        for cmd in ["DeviceStatus", "DeviceInfo", "RecordInfo", "PersetQuery", "ConfigDownload", "NoSuchQuery"] {
            let v = ask(&w, ALL, &query(cmd, CAM));
            assert!(matches!(v.then, Then::Relay { response: true, .. }) && v.audit.is_none(), "{cmd}");
        }
        assert!(matches!(ask(&w, ALL, &query("Catalog", CAM)).then, Then::Catalog { .. }));
        let ptz = control(CAM, "<PTZCmd>A50F0001400000F5</PTZCmd>");
        let v = ask(&w, ALL, &ptz);
        assert!(matches!(v.then, Then::Relay { response: false, .. }) && v.audit == Some("ptz"));
        let v = ask(&w, ALL, &control(CAM, "<GuardCmd>SetGuard</GuardCmd>"));
        assert!(matches!(v.then, Then::Relay { response: true, .. }));
        assert!(matches!(ask(&w, ALL, &control(CAM, "<IFameCmd>Send</IFameCmd>")).then, Then::KeyFrame(_)));
        let config = format!(
            "<Control><CmdType>DeviceConfig</CmdType><SN>5</SN><DeviceID>{CAM}</DeviceID><BasicParam/></Control>"
        );
        assert!(matches!(ask(&w, ALL, &config).then, Then::Relay { response: true, .. }));
        for xml in [&ptz, &config] {
            assert_eq!(ask(&w, Allowed { live: true, ..Allowed::default() }, xml).status, 403);
        }
        // Nothing of this is for ourselves.
        assert_eq!(ask(&w, ALL, &control(LOCAL, "<PTZCmd>A50F0001400000F5</PTZCmd>")).status, 403);
    }
}
