//! What the program counts and shows on `/metrics`.
//!
//! In: methods named for what happened. Out: [`Metrics::encode`], Prometheus text 0.0.4 or OpenMetrics.
//! Invariants: label values are bounded: a name from the configuration or `other`, an enum, a text of the program;
//! nothing a stranger can invent. Series of an uplink or camera that left the configuration are removed.
//! Hot paths keep a handle ([`RtpSent`], [`RtpReceived`], [`Counter`]): an increment is one atomic, no lock, no
//! look-up.
//! Not here: serving (console), where the numbers come from.

mod labels;
mod machine;
mod series;
mod text;

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

pub use labels::{
    ChannelLabel, ChannelState, Direction, OTHER, PeerLabel, SessionKind, SessionTransport, SipTransport,
};
pub use prometheus_client::metrics::counter::Counter;
pub use text::{CONTENT_TYPE_OPENMETRICS, CONTENT_TYPE_TEXT};

use labels::CodeLabel;
use series::Series;

/// Every metric, as a scraper of the text format sees it; sorted. Rename none without need.
pub const NAMES: &[&str] = &[
    "menshen_alarm_delivered_total",
    "menshen_alarm_dropped_total",
    "menshen_alarm_outbox_pending",
    "menshen_alarm_retries_total",
    "menshen_alarms_received_total",
    "menshen_build_info",
    "menshen_camera_bitrate_bps",
    "menshen_camera_clock_offset_seconds",
    "menshen_camera_fps",
    "menshen_camera_up",
    "menshen_certificate_expiry_days",
    "menshen_channels",
    "menshen_device_catalog_age_seconds",
    "menshen_device_dropped_total",
    "menshen_device_keepalive_missed_total",
    "menshen_device_policy_applied_total",
    "menshen_device_register_refused_total",
    "menshen_devices",
    "menshen_gb35114_failures_total",
    "menshen_media_first_packet_seconds",
    "menshen_media_ports_in_use",
    "menshen_media_ports_size",
    "menshen_media_sessions",
    "menshen_ps_resyncs_total",
    "menshen_registrar_events_total",
    "menshen_registrar_refused_total",
    "menshen_rtp_alien_ssrc_total",
    "menshen_rtp_bytes_received_total",
    "menshen_rtp_bytes_sent_total",
    "menshen_rtp_duplicates_total",
    "menshen_rtp_late_total",
    "menshen_rtp_packets_dropped_total",
    "menshen_rtp_packets_lost_total",
    "menshen_rtp_packets_received_total",
    "menshen_rtp_packets_sent_total",
    "menshen_rtp_reordered_total",
    "menshen_sip_lenient_total",
    "menshen_sip_malformed_total",
    "menshen_sip_oversize_total",
    "menshen_sip_requests_total",
    "menshen_sip_responses_total",
    "menshen_task_panics_total",
    "menshen_udp_receive_buffer_errors_total",
    "menshen_uplink_clock_offset_seconds",
    "menshen_uplink_keepalive_missed_total",
    "menshen_uplink_keepalive_rtt_seconds",
    "menshen_uplink_register_failures_total",
    "menshen_uplink_registered",
    "process_open_fds",
    "process_resident_memory_bytes",
];

/// Names of one sort (uplinks, cameras) that get a series of their own: above what one gateway can hold; the rest is
/// `other`.
pub const NAMES_MAX: usize = 20_000;

/// 5 ms to 10 s: a keepalive answered later has been missed.
const RTT_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// 50 ms to 30 s: from a stream that runs already to a camera that has to be woken.
const FIRST_PACKET_BUCKETS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 3.0, 10.0, 30.0];

type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: String,
    commit: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByUplink {
    uplink: PeerLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByUplinkReason {
    uplink: PeerLabel,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByUplinkKind {
    uplink: PeerLabel,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySession {
    uplink: PeerLabel,
    kind: SessionKind,
    transport: SessionTransport,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRequest {
    peer: PeerLabel,
    method: &'static str,
    direction: Direction,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResponse {
    peer: PeerLabel,
    method: &'static str,
    code: CodeLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMalformed {
    transport: SipTransport,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPeer {
    peer: PeerLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPeerRule {
    peer: PeerLabel,
    rule: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKindState {
    kind: &'static str,
    state: ChannelState,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySource {
    source: ChannelLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByChannel {
    channel: ChannelLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDevice {
    device: ChannelLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDeviceState {
    device: ChannelLabel,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDeviceReason {
    device: ChannelLabel,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDevicePolicy {
    device: ChannelLabel,
    policy: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMethod {
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByEvent {
    event: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTask {
    task: &'static str,
}

/// Registry and counters; cheap to clone, all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    uplinks: RwLock<HashSet<Arc<str>>>,
    channel_names: RwLock<HashSet<Arc<str>>>,

    uplink_registered: Series<ByUplink, Gauge>,
    uplink_register_failures: Series<ByUplink, Counter>,
    uplink_keepalive_missed: Series<ByUplink, Counter>,
    uplink_keepalive_rtt: Series<ByUplink, Histogram>,
    uplink_clock_offset: Series<ByUplink, FloatGauge>,
    certificate_expiry: Series<ByUplinkKind, Gauge>,
    gb35114_failures: Series<ByUplinkReason, Counter>,

    sip_requests: Series<ByRequest, Counter>,
    sip_responses: Series<ByResponse, Counter>,
    sip_malformed: Series<ByMalformed, Counter>,
    sip_oversize: Series<ByPeer, Counter>,
    sip_lenient: Series<ByPeerRule, Counter>,

    channels: Series<ByKindState, Gauge>,
    media_sessions: Series<BySession, Gauge>,
    media_first_packet: Series<ByUplink, Histogram>,
    media_ports_in_use: Gauge,
    media_ports_size: Gauge,

    rtp_packets_sent: Series<ByUplink, Counter>,
    rtp_bytes_sent: Series<ByUplink, Counter>,
    rtp_packets_dropped: Series<ByUplinkReason, Counter>,
    rtp_packets_received: Series<BySource, Counter>,
    rtp_bytes_received: Series<BySource, Counter>,
    rtp_packets_lost: Series<BySource, Counter>,
    rtp_alien_ssrc: Series<BySource, Counter>,
    rtp_reordered: Series<BySource, Counter>,
    rtp_duplicates: Series<BySource, Counter>,
    rtp_late: Series<BySource, Counter>,
    ps_resyncs: Series<BySource, Counter>,

    devices: Series<ByDeviceState, Gauge>,
    device_keepalive_missed: Series<ByDevice, Counter>,
    device_refused: Series<ByDeviceReason, Counter>,
    device_catalog_age: Series<ByDevice, Gauge>,
    device_policies: Series<ByDevicePolicy, Counter>,
    device_dropped: Series<ByDeviceReason, Counter>,
    registrar_events: Series<ByEvent, Counter>,
    registrar_refused: Series<ByReason, Counter>,

    camera_up: Series<ByChannel, Gauge>,
    camera_fps: Series<ByChannel, FloatGauge>,
    camera_bitrate: Series<ByChannel, Gauge>,
    camera_clock_offset: Series<ByChannel, FloatGauge>,

    alarms_received: Series<ByMethod, Counter>,
    alarm_outbox_pending: Series<ByUplink, Gauge>,
    alarm_delivered: Series<ByUplink, Counter>,
    alarm_retries: Series<ByUplink, Counter>,
    alarm_dropped: Series<ByReason, Counter>,

    task_panics: Series<ByTask, Counter>,
}

/// Counts what is sent to one uplink.
#[derive(Debug, Clone, Default)]
pub struct RtpSent {
    packets: Counter,
    bytes: Counter,
}

impl RtpSent {
    /// `packets` RTP packets of `bytes` bytes in all (headers included) were handed to the network.
    pub fn sent(&self, packets: u64, bytes: u64) {
        self.packets.inc_by(packets);
        self.bytes.inc_by(bytes);
    }
}

/// Counts what comes from one source.
#[derive(Debug, Clone, Default)]
pub struct SourceCounters {
    /// RTP packets.
    pub packets: Counter,
    /// Their bytes, headers included.
    pub bytes: Counter,
    /// Packets missing by their sequence numbers.
    pub lost: Counter,
    /// Packets of an SSRC or address nobody negotiated.
    pub alien_ssrc: Counter,
    /// Packets that came out of order and were put in order.
    pub reordered: Counter,
    /// Packets that came twice.
    pub duplicates: Counter,
    /// Packets that came after their place was given up.
    pub late: Counter,
    /// Times a program stream's structure was lost although no packet was.
    pub resyncs: Counter,
}

/// One running media session: counted until dropped.
#[derive(Debug)]
#[must_use = "the session counts as ended when this is dropped"]
pub struct SessionCount(Gauge);

impl Drop for SessionCount {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Makes metrics and registers them.
struct Registrar(Registry);

impl Registrar {
    fn one<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    fn series<L, M>(&mut self, name: &str, help: &str, make: fn() -> M) -> Series<L, M>
    where
        L: Clone + std::hash::Hash + Eq,
        M: Clone,
        Family<L, M, fn() -> M>: Metric,
    {
        let series = Series::new(make);
        self.0.register(name, help, series.family());
        series
    }
}

impl Metrics {
    /// `commit`: the source's revision, or `unknown`.
    pub fn new(version: &str, commit: &str) -> Self {
        let mut r = Registrar(Registry::default());
        let build: Series<Build, Gauge> =
            r.series("menshen_build_info", "Always 1; the labels say what is running", Gauge::default);
        build.of(&Build { version: version.to_owned(), commit: commit.to_owned() }).set(1);
        r.0.register_collector(Box::new(machine::Machine));
        let inner = Inner {
            uplinks: RwLock::default(),
            channel_names: RwLock::default(),
            uplink_registered: r.series(
                "menshen_uplink_registered",
                "Whether we are registered at the upper platform",
                Gauge::default,
            ),
            uplink_register_failures: r.series(
                "menshen_uplink_register_failures",
                "Registrations refused or not answered",
                Counter::default,
            ),
            uplink_keepalive_missed: r.series(
                "menshen_uplink_keepalive_missed",
                "Keepalives without an answer",
                Counter::default,
            ),
            uplink_keepalive_rtt: r.series(
                "menshen_uplink_keepalive_rtt_seconds",
                "Time from a keepalive to its answer",
                || Histogram::new(RTT_BUCKETS),
            ),
            uplink_clock_offset: r.series(
                "menshen_uplink_clock_offset_seconds",
                "The upper platform's clock minus ours",
                FloatGauge::default,
            ),
            certificate_expiry: r.series(
                "menshen_certificate_expiry_days",
                "Days until a certificate ends; negative afterwards",
                Gauge::default,
            ),
            gb35114_failures: r.series("menshen_gb35114_failures", "GB 35114 checks that failed", Counter::default),
            sip_requests: r.series("menshen_sip_requests", "SIP requests", Counter::default),
            sip_responses: r.series(
                "menshen_sip_responses",
                "SIP responses received and sent, by the method they answer",
                Counter::default,
            ),
            sip_malformed: r.series("menshen_sip_malformed", "Messages that could not be understood", Counter::default),
            sip_oversize: r.series(
                "menshen_sip_oversize",
                "Messages sent by UDP above the size that passes every path",
                Counter::default,
            ),
            sip_lenient: r.series(
                "menshen_sip_lenient",
                "Messages against the standard that were accepted by a lenient rule",
                Counter::default,
            ),
            channels: r.series("menshen_channels", "Channels in the directory", Gauge::default),
            media_sessions: r.series("menshen_media_sessions", "Media sessions now running", Gauge::default),
            media_first_packet: r.series(
                "menshen_media_first_packet_seconds",
                "Time from an INVITE to the first RTP packet sent",
                || Histogram::new(FIRST_PACKET_BUCKETS),
            ),
            media_ports_in_use: r.one("menshen_media_ports_in_use", "Media ports now in use"),
            media_ports_size: r.one("menshen_media_ports_size", "Media ports there are"),
            rtp_packets_sent: r.series("menshen_rtp_packets_sent", "RTP packets sent", Counter::default),
            rtp_bytes_sent: r.series(
                "menshen_rtp_bytes_sent",
                "Bytes of RTP packets sent, headers included",
                Counter::default,
            ),
            rtp_packets_dropped: r.series("menshen_rtp_packets_dropped", "RTP packets not sent", Counter::default),
            rtp_packets_received: r.series("menshen_rtp_packets_received", "RTP packets received", Counter::default),
            rtp_bytes_received: r.series(
                "menshen_rtp_bytes_received",
                "Bytes of RTP packets received, headers included",
                Counter::default,
            ),
            rtp_packets_lost: r.series(
                "menshen_rtp_packets_lost",
                "RTP packets missing by their sequence numbers",
                Counter::default,
            ),
            rtp_alien_ssrc: r.series(
                "menshen_rtp_alien_ssrc",
                "RTP packets with an SSRC nobody negotiated",
                Counter::default,
            ),
            rtp_reordered: r.series(
                "menshen_rtp_reordered",
                "RTP packets that came out of order and were put in order",
                Counter::default,
            ),
            rtp_duplicates: r.series("menshen_rtp_duplicates", "RTP packets that came twice", Counter::default),
            rtp_late: r.series(
                "menshen_rtp_late",
                "RTP packets that came after their place was given up",
                Counter::default,
            ),
            ps_resyncs: r.series(
                "menshen_ps_resyncs",
                "Program streams whose structure was lost although no packet was",
                Counter::default,
            ),
            devices: r.series("menshen_devices", "Devices that register with us, by state", Gauge::default),
            device_keepalive_missed: r.series(
                "menshen_device_keepalive_missed",
                "Devices that fell silent: as many keepalives in a row as are allowed were missing",
                Counter::default,
            ),
            device_refused: r.series(
                "menshen_device_register_refused",
                "Registrations of configured devices that were refused",
                Counter::default,
            ),
            device_catalog_age: r.series(
                "menshen_device_catalog_age_seconds",
                "Age of the oldest catalogue of a device that is online",
                Gauge::default,
            ),
            device_policies: r.series(
                "menshen_device_policy_applied",
                "Catalogues with something odd that was mended, by rule",
                Counter::default,
            ),
            device_dropped: r.series(
                "menshen_device_dropped",
                "What a device said or asked for beyond a bound of ours, and was dropped",
                Counter::default,
            ),
            registrar_events: r.series(
                "menshen_registrar_events",
                "What happened at the registrar, of devices and strangers alike",
                Counter::default,
            ),
            registrar_refused: r.series(
                "menshen_registrar_refused",
                "REGISTERs that were refused, of devices and strangers alike",
                Counter::default,
            ),
            camera_up: r.series("menshen_camera_up", "Whether the camera answers", Gauge::default),
            camera_fps: r.series("menshen_camera_fps", "Pictures a second from the camera", FloatGauge::default),
            camera_bitrate: r.series("menshen_camera_bitrate_bps", "Bits a second from the camera", Gauge::default),
            camera_clock_offset: r.series(
                "menshen_camera_clock_offset_seconds",
                "The camera's clock minus ours",
                FloatGauge::default,
            ),
            alarms_received: r.series("menshen_alarms_received", "Alarms taken in", Counter::default),
            alarm_outbox_pending: r.series(
                "menshen_alarm_outbox_pending",
                "Alarms the upper platform has still to be told of",
                Gauge::default,
            ),
            alarm_delivered: r.series("menshen_alarm_delivered", "Alarms the upper platform has got", Counter::default),
            alarm_retries: r.series(
                "menshen_alarm_retries",
                "Attempts to tell the upper platform of an alarm that failed and are made again",
                Counter::default,
            ),
            alarm_dropped: r.series(
                "menshen_alarm_dropped",
                "Alarms not taken in, or given up for an upper platform",
                Counter::default,
            ),
            task_panics: r.series("menshen_task_panics", "Tasks ended by a fault of this program", Counter::default),
            registry: r.0,
        };
        Metrics(Arc::new(inner))
    }

    /// The exposition: OpenMetrics 1.0 ([`CONTENT_TYPE_OPENMETRICS`]) or Prometheus text 0.0.4 ([`CONTENT_TYPE_TEXT`]).
    /// Reads a few files of `/proc`.
    pub fn encode(&self, openmetrics: bool) -> String {
        let mut out = String::new();
        if encode(&mut out, &self.0.registry).is_err() {
            // Only a metric's own encoder can fail, as a string takes everything.
            tracing::error!("the metrics could not be encoded completely");
        }
        if openmetrics { out } else { text::from_openmetrics(&out) }
    }

    // ---- who may be named

    /// `name` is an uplink of the configuration: it gets series of its own, beginning with zeros.
    pub fn add_uplink(&self, name: &str) -> PeerLabel {
        let uplink = PeerLabel(admit(&self.0.uplinks, name));
        let by = ByUplink { uplink: uplink.clone() };
        self.0.uplink_registered.of(&by);
        self.0.uplink_register_failures.of(&by);
        self.0.uplink_keepalive_missed.of(&by);
        self.0.alarm_outbox_pending.of(&by);
        self.0.alarm_delivered.of(&by);
        self.0.alarm_retries.of(&by);
        uplink
    }

    /// The label of an uplink; `other` for any name not added.
    pub fn peer(&self, name: &str) -> PeerLabel {
        PeerLabel(known(&self.0.uplinks, name))
    }

    /// The uplink has left the configuration and its tasks have ended: its series end. Handles still held count
    /// nowhere; a label still held would begin a series anew.
    pub fn remove_uplink(&self, name: &str) {
        let Some(name) = write(&self.0.uplinks).take(name) else {
            return;
        };
        let gone = PeerLabel(name);
        let m = &self.0;
        m.uplink_registered.remove_where(|l| l.uplink == gone);
        m.uplink_register_failures.remove_where(|l| l.uplink == gone);
        m.uplink_keepalive_missed.remove_where(|l| l.uplink == gone);
        m.uplink_keepalive_rtt.remove_where(|l| l.uplink == gone);
        m.uplink_clock_offset.remove_where(|l| l.uplink == gone);
        m.certificate_expiry.remove_where(|l| l.uplink == gone);
        m.gb35114_failures.remove_where(|l| l.uplink == gone);
        m.sip_requests.remove_where(|l| l.peer == gone);
        m.sip_responses.remove_where(|l| l.peer == gone);
        m.sip_oversize.remove_where(|l| l.peer == gone);
        m.sip_lenient.remove_where(|l| l.peer == gone);
        m.media_sessions.remove_where(|l| l.uplink == gone);
        m.media_first_packet.remove_where(|l| l.uplink == gone);
        m.rtp_packets_sent.remove_where(|l| l.uplink == gone);
        m.rtp_bytes_sent.remove_where(|l| l.uplink == gone);
        m.rtp_packets_dropped.remove_where(|l| l.uplink == gone);
        m.alarm_outbox_pending.remove_where(|l| l.uplink == gone);
        m.alarm_delivered.remove_where(|l| l.uplink == gone);
        m.alarm_retries.remove_where(|l| l.uplink == gone);
    }

    /// `id` is a camera or channel of the configuration: it gets series of its own.
    pub fn add_camera(&self, id: &str) -> ChannelLabel {
        ChannelLabel(admit(&self.0.channel_names, id))
    }

    /// The label of a camera; `other` for any id not added.
    pub fn camera(&self, id: &str) -> ChannelLabel {
        ChannelLabel(known(&self.0.channel_names, id))
    }

    /// As [`Metrics::remove_uplink`], for a camera.
    pub fn remove_camera(&self, id: &str) {
        let Some(id) = write(&self.0.channel_names).take(id) else {
            return;
        };
        let gone = ChannelLabel(id);
        let m = &self.0;
        m.camera_up.remove_where(|l| l.channel == gone);
        m.camera_fps.remove_where(|l| l.channel == gone);
        m.camera_bitrate.remove_where(|l| l.channel == gone);
        m.camera_clock_offset.remove_where(|l| l.channel == gone);
        self.remove_source(&gone);
    }

    fn remove_source(&self, gone: &ChannelLabel) {
        let m = &self.0;
        for series in [
            &m.rtp_packets_received,
            &m.rtp_bytes_received,
            &m.rtp_packets_lost,
            &m.rtp_alien_ssrc,
            &m.rtp_reordered,
            &m.rtp_duplicates,
            &m.rtp_late,
            &m.ps_resyncs,
        ] {
            series.remove_where(|l| l.source == *gone);
        }
    }

    // ---- devices that register with us

    /// `class` is a `[[device]]` of the configuration (a code, or a prefix with `*`): it gets series of its own.
    pub fn add_device(&self, class: &str) -> ChannelLabel {
        let label = ChannelLabel(admit(&self.0.channel_names, class));
        let by = ByDevice { device: label.clone() };
        self.0.device_keepalive_missed.of(&by);
        self.source(&label);
        label
    }

    /// The class has left the configuration.
    pub fn remove_device(&self, class: &str) {
        let Some(name) = write(&self.0.channel_names).take(class) else {
            return;
        };
        let gone = ChannelLabel(name);
        let m = &self.0;
        m.devices.remove_where(|l| l.device == gone);
        m.device_keepalive_missed.remove_where(|l| l.device == gone);
        m.device_refused.remove_where(|l| l.device == gone);
        m.device_catalog_age.remove_where(|l| l.device == gone);
        m.device_policies.remove_where(|l| l.device == gone);
        m.device_dropped.remove_where(|l| l.device == gone);
        self.remove_source(&gone);
    }

    /// How many devices of a class stand where (online, silent, offline), and the age of the oldest catalogue.
    pub fn devices_counted(&self, class: &ChannelLabel, counts: [usize; 3], oldest: Duration) {
        for (state, count) in ["online", "silent", "offline"].into_iter().zip(counts) {
            let by = ByDeviceState { device: class.clone(), state };
            self.0.devices.of(&by).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.0.device_catalog_age.of(&ByDevice { device: class.clone() }).set(integer(oldest.as_secs()));
    }

    /// A device fell silent.
    pub fn device_silent(&self, class: &ChannelLabel) {
        self.0.device_keepalive_missed.of(&ByDevice { device: class.clone() }).inc();
    }

    /// A configured device was not let in.
    pub fn device_refused(&self, class: &ChannelLabel, reason: &'static str) {
        self.0.device_refused.of(&ByDeviceReason { device: class.clone(), reason }).inc();
    }

    /// Something odd in a catalogue was mended.
    pub fn device_policy(&self, class: &ChannelLabel, policy: &'static str) {
        self.0.device_policies.of(&ByDevicePolicy { device: class.clone(), policy }).inc();
    }

    /// Something of a device was dropped at a bound: `alarms`, `answers`.
    pub fn device_dropped(&self, class: &ChannelLabel, reason: &'static str) {
        self.0.device_dropped.of(&ByDeviceReason { device: class.clone(), reason }).inc();
    }

    /// The registrar's own counts since the start: events, and refusals by reason.
    pub fn registrar_counted(
        &self,
        events: impl IntoIterator<Item = (&'static str, u64)>,
        refused: impl IntoIterator<Item = (&'static str, u64)>,
    ) {
        let raise = |counter: Counter, to: u64| {
            counter.inc_by(to.saturating_sub(counter.get()));
        };
        for (event, count) in events {
            raise(self.0.registrar_events.of(&ByEvent { event }), count);
        }
        for (reason, count) in refused {
            raise(self.0.registrar_refused.of(&ByReason { reason }), count);
        }
    }

    // ---- uplinks

    /// We are registered at the uplink, or no longer.
    pub fn uplink_registered(&self, uplink: &PeerLabel, registered: bool) {
        self.0.uplink_registered.of(&ByUplink { uplink: uplink.clone() }).set(registered.into());
    }

    /// A registration was refused or not answered.
    pub fn uplink_register_failed(&self, uplink: &PeerLabel) {
        self.0.uplink_register_failures.of(&ByUplink { uplink: uplink.clone() }).inc();
    }

    /// A keepalive got no answer.
    pub fn uplink_keepalive_missed(&self, uplink: &PeerLabel) {
        self.0.uplink_keepalive_missed.of(&ByUplink { uplink: uplink.clone() }).inc();
    }

    /// A keepalive was answered after `rtt`.
    pub fn uplink_keepalive_answered(&self, uplink: &PeerLabel, rtt: Duration) {
        self.0.uplink_keepalive_rtt.of(&ByUplink { uplink: uplink.clone() }).observe(rtt.as_secs_f64());
    }

    /// The uplink's clock minus ours, in seconds.
    pub fn uplink_clock_offset(&self, uplink: &PeerLabel, seconds: f64) {
        self.0.uplink_clock_offset.of(&ByUplink { uplink: uplink.clone() }).set(seconds);
    }

    /// A certificate used with the uplink (`kind`: `sign`, `encrypt`, `platform`, …) ends in `days`.
    pub fn certificate_expires_in(&self, uplink: &PeerLabel, kind: &'static str, days: i64) {
        self.0.certificate_expiry.of(&ByUplinkKind { uplink: uplink.clone(), kind }).set(days);
    }

    /// A check of GB 35114 failed.
    pub fn gb35114_failed(&self, uplink: &PeerLabel, reason: &'static str) {
        self.0.gb35114_failures.of(&ByUplinkReason { uplink: uplink.clone(), reason }).inc();
    }

    // ---- SIP

    /// A request came in or went out; unknown methods count as `other`.
    pub fn sip_request(&self, peer: &PeerLabel, method: &str, direction: Direction) {
        let method = labels::method(method);
        self.0.sip_requests.of(&ByRequest { peer: peer.clone(), method, direction }).inc();
    }

    /// A response to a request of `method` came in or went out; codes outside 100-699 count as `other`.
    pub fn sip_response(&self, peer: &PeerLabel, method: &str, code: u16) {
        let method = labels::method(method);
        self.0.sip_responses.of(&ByResponse { peer: peer.clone(), method, code: CodeLabel::new(code) }).inc();
    }

    /// A message could not be understood.
    pub fn sip_malformed(&self, transport: SipTransport, reason: &'static str) {
        self.0.sip_malformed.of(&ByMalformed { transport, reason }).inc();
    }

    /// A message went out by UDP although it is larger than what passes every path.
    pub fn sip_oversize(&self, peer: &PeerLabel) {
        self.0.sip_oversize.of(&ByPeer { peer: peer.clone() }).inc();
    }

    /// A message against the standard was accepted by the lenient rule `rule`.
    pub fn sip_lenient(&self, peer: &PeerLabel, rule: &'static str) {
        self.0.sip_lenient.of(&ByPeerRule { peer: peer.clone(), rule }).inc();
    }

    // ---- channels and media

    /// So many channels of `kind` (`rtsp`, `gb28181`, …) are in `state`.
    pub fn channels_counted(&self, kind: &'static str, state: ChannelState, count: usize) {
        self.0.channels.of(&ByKindState { kind, state }).set(integer(count as u64));
    }

    /// A media session began; it ends when the returned value is dropped.
    pub fn media_session_started(
        &self,
        uplink: &PeerLabel,
        kind: SessionKind,
        transport: SessionTransport,
    ) -> SessionCount {
        let sessions = self.0.media_sessions.of(&BySession { uplink: uplink.clone(), kind, transport });
        sessions.inc();
        SessionCount(sessions)
    }

    /// The first RTP packet of a session left `after` its INVITE had come.
    pub fn media_first_packet(&self, uplink: &PeerLabel, after: Duration) {
        self.0.media_first_packet.of(&ByUplink { uplink: uplink.clone() }).observe(after.as_secs_f64());
    }

    /// `in_use` of `size` media ports are taken.
    pub fn media_ports(&self, in_use: usize, size: usize) {
        self.0.media_ports_in_use.set(integer(in_use as u64));
        self.0.media_ports_size.set(integer(size as u64));
    }

    /// The counters of what is sent to `uplink`.
    pub fn rtp_sent(&self, uplink: &PeerLabel) -> RtpSent {
        let by = ByUplink { uplink: uplink.clone() };
        RtpSent { packets: self.0.rtp_packets_sent.of(&by), bytes: self.0.rtp_bytes_sent.of(&by) }
    }

    /// The counter of packets for `uplink` that were dropped for `reason`.
    pub fn rtp_dropped(&self, uplink: &PeerLabel, reason: &'static str) -> Counter {
        self.0.rtp_packets_dropped.of(&ByUplinkReason { uplink: uplink.clone(), reason })
    }

    /// The counters of what comes from `source`.
    pub fn source(&self, source: &ChannelLabel) -> SourceCounters {
        let by = BySource { source: source.clone() };
        SourceCounters {
            packets: self.0.rtp_packets_received.of(&by),
            bytes: self.0.rtp_bytes_received.of(&by),
            lost: self.0.rtp_packets_lost.of(&by),
            alien_ssrc: self.0.rtp_alien_ssrc.of(&by),
            reordered: self.0.rtp_reordered.of(&by),
            duplicates: self.0.rtp_duplicates.of(&by),
            late: self.0.rtp_late.of(&by),
            resyncs: self.0.ps_resyncs.of(&by),
        }
    }

    /// What a source lost, where its packets are not counted here (the RTSP client does not tell them).
    pub fn rtp_lost(&self, source: &ChannelLabel) -> Counter {
        self.0.rtp_packets_lost.of(&BySource { source: source.clone() })
    }

    // ---- cameras

    /// The camera answers, or no longer.
    pub fn camera_up(&self, camera: &ChannelLabel, up: bool) {
        self.0.camera_up.of(&ByChannel { channel: camera.clone() }).set(up.into());
    }

    /// What the camera sends: pictures a second, bits a second.
    pub fn camera_measured(&self, camera: &ChannelLabel, fps: f64, bits_per_second: u64) {
        let by = ByChannel { channel: camera.clone() };
        self.0.camera_fps.of(&by).set(fps);
        self.0.camera_bitrate.of(&by).set(integer(bits_per_second));
    }

    /// The camera's clock minus ours, in seconds.
    pub fn camera_clock_offset(&self, camera: &ChannelLabel, seconds: f64) {
        self.0.camera_clock_offset.of(&ByChannel { channel: camera.clone() }).set(seconds);
    }

    // ---- alarms

    /// An alarm was taken in; `method`: AlarmMethod [GB/T28181-2022 A.2.5.3].
    pub fn alarm_received(&self, method: u8) {
        let method = match method {
            1 => "telephone",
            2 => "device",
            3 => "sms",
            4 => "gps",
            5 => "video",
            6 => "fault",
            _ => OTHER,
        };
        self.0.alarms_received.of(&ByMethod { method }).inc();
    }

    /// So many alarms wait for `uplink`.
    pub fn alarm_outbox(&self, uplink: &PeerLabel, pending: u64) {
        self.0.alarm_outbox_pending.of(&ByUplink { uplink: uplink.clone() }).set(integer(pending));
    }

    /// One alarm more waits for `uplink`, or one less.
    pub fn alarm_outbox_moved(&self, uplink: &PeerLabel, by: i64) {
        self.0.alarm_outbox_pending.of(&ByUplink { uplink: uplink.clone() }).inc_by(by);
    }

    /// `uplink` has got an alarm.
    pub fn alarm_delivered(&self, uplink: &PeerLabel) {
        self.0.alarm_delivered.of(&ByUplink { uplink: uplink.clone() }).inc();
    }

    /// An attempt to tell `uplink` of an alarm failed; another is made.
    pub fn alarm_retried(&self, uplink: &PeerLabel) {
        self.0.alarm_retries.of(&ByUplink { uplink: uplink.clone() }).inc();
    }

    /// An alarm was not taken in, or given up for an uplink (`reason`: `duplicate`, `overloaded`, `storage`,
    /// `overrun`, `expired`, `filtered`, `unshared`, `refused`).
    pub fn alarm_dropped(&self, reason: &'static str, count: u64) {
        self.0.alarm_dropped.of(&ByReason { reason }).inc_by(count);
    }

    // ---- ourselves

    /// A task panicked.
    pub fn task_panicked(&self, task: &'static str) {
        self.0.task_panics.of(&ByTask { task }).inc();
    }
}

/// Gauges are signed.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn write(names: &RwLock<HashSet<Arc<str>>>) -> std::sync::RwLockWriteGuard<'_, HashSet<Arc<str>>> {
    // A set of names is whole after every step, so a panic elsewhere did not break it.
    names.write().unwrap_or_else(PoisonError::into_inner)
}

fn admit(names: &RwLock<HashSet<Arc<str>>>, name: &str) -> Arc<str> {
    let mut names = write(names);
    if let Some(known) = names.get(name) {
        return known.clone();
    }
    if names.len() >= NAMES_MAX {
        return OTHER.into();
    }
    let name: Arc<str> = name.into();
    names.insert(name.clone());
    name
}

fn known(names: &RwLock<HashSet<Arc<str>>>, name: &str) -> Arc<str> {
    names.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned().unwrap_or_else(|| OTHER.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Everything has happened once, at `psb` and `cam-1`.
    fn busy() -> (Metrics, SessionCount) {
        let m = Metrics::new("1.2.3", "abc");
        let (psb, cam) = (m.add_uplink("psb"), m.add_camera("cam-1"));
        m.uplink_registered(&psb, true);
        m.uplink_register_failed(&psb);
        m.uplink_keepalive_missed(&psb);
        m.uplink_keepalive_answered(&psb, Duration::from_millis(20));
        m.uplink_clock_offset(&psb, -0.25);
        m.certificate_expires_in(&psb, "sign", 29);
        m.gb35114_failed(&psb, "signature");
        m.sip_request(&psb, "INVITE", Direction::In);
        m.sip_response(&psb, "INVITE", 200);
        m.sip_malformed(SipTransport::Udp, "no_call_id");
        m.sip_oversize(&psb);
        m.sip_lenient(&psb, "wrong_tag");
        m.channels_counted("rtsp", ChannelState::Online, 3);
        m.media_first_packet(&psb, Duration::from_millis(700));
        m.media_ports(4, 8000);
        m.rtp_sent(&psb).sent(10, 14_000);
        m.rtp_dropped(&psb, "slow_sink").inc();
        let received = m.source(&cam);
        received.packets.inc_by(100);
        received.lost.inc_by(2);
        received.alien_ssrc.inc();
        let class = m.add_device("4113000058118*");
        m.devices_counted(&class, [3, 1, 0], Duration::from_secs(60));
        m.device_silent(&class);
        m.device_refused(&class, "digest");
        m.device_policy(&class, "zero_sum_num");
        m.device_dropped(&class, "alarms");
        m.registrar_counted([("locked_out", 3)], [("wrong_password", 2)]);
        m.registrar_counted([("locked_out", 4)], [("wrong_password", 2)]);
        m.camera_up(&cam, true);
        m.camera_measured(&cam, 25.0, 4_000_000);
        m.camera_clock_offset(&cam, 1.5);
        m.task_panicked("link");
        m.alarm_received(5);
        m.alarm_outbox(&psb, 3);
        m.alarm_outbox_moved(&psb, -1);
        m.alarm_delivered(&psb);
        m.alarm_retried(&psb);
        m.alarm_dropped("duplicate", 2);
        let session = m.media_session_started(&psb, SessionKind::Play, SessionTransport::TcpPassive);
        (m, session)
    }

    fn has(text: &str, line: &str) -> bool {
        text.lines().any(|l| l == line)
    }

    #[test]
    fn names_lists_every_metric_and_no_other() {
        let text = busy().0.encode(false);
        let types = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next());
        let found: BTreeSet<&str> = types.collect();
        let listed: BTreeSet<&str> = NAMES.iter().copied().collect();
        assert_eq!(found, listed);
        assert!(NAMES.is_sorted());
    }

    #[test]
    fn both_formats_say_the_same_in_their_own_words() {
        let (m, session) = busy();
        let text = m.encode(false);
        for line in [
            "# TYPE menshen_sip_requests_total counter",
            "# HELP menshen_sip_requests_total SIP requests.",
            r#"menshen_sip_requests_total{peer="psb",method="INVITE",direction="in"} 1"#,
            r#"menshen_sip_responses_total{peer="psb",method="INVITE",code="200"} 1"#,
            r#"menshen_build_info{version="1.2.3",commit="abc"} 1"#,
            r#"menshen_uplink_registered{uplink="psb"} 1"#,
            "# TYPE menshen_uplink_keepalive_rtt_seconds histogram",
            r#"menshen_uplink_keepalive_rtt_seconds_bucket{le="0.025",uplink="psb"} 1"#,
            r#"menshen_uplink_clock_offset_seconds{uplink="psb"} -0.25"#,
            r#"menshen_channels{kind="rtsp",state="online"} 3"#,
            r#"menshen_media_sessions{uplink="psb",kind="play",transport="tcp_passive"} 1"#,
            r#"menshen_rtp_bytes_sent_total{uplink="psb"} 14000"#,
            r#"menshen_rtp_packets_lost_total{source="cam-1"} 2"#,
            "menshen_media_ports_in_use 4",
            r#"menshen_task_panics_total{task="link"} 1"#,
            r#"menshen_alarms_received_total{method="video"} 1"#,
            r#"menshen_alarm_outbox_pending{uplink="psb"} 2"#,
            r#"menshen_registrar_events_total{event="locked_out"} 4"#,
            r#"menshen_registrar_refused_total{reason="wrong_password"} 2"#,
            r#"menshen_alarm_dropped_total{reason="duplicate"} 2"#,
        ] {
            assert!(has(&text, line), "{line}\n{text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT") && text.ends_with('\n'));

        drop(session);
        let open = m.encode(true);
        assert!(has(&open, "# TYPE menshen_sip_requests counter"));
        assert!(has(&open, r#"menshen_media_sessions{uplink="psb",kind="play",transport="tcp_passive"} 0"#));
        assert!(open.ends_with("# EOF\n"));
    }

    #[test]
    fn what_a_stranger_invents_is_other() {
        let m = Metrics::new("1", "x");
        m.add_uplink("psb");
        for n in 0..100 {
            let stranger = m.peer(&format!("41130000002000{n:06}"));
            m.sip_request(&stranger, &format!("EVIL{n}"), Direction::In);
            m.sip_response(&stranger, "register", 700 + n);
            m.camera_up(&m.camera(&format!("cam-{n}")), false);
        }
        m.sip_response(&m.peer("psb"), "REGISTER", 99);
        let text = m.encode(false);
        assert!(has(&text, r#"menshen_sip_requests_total{peer="other",method="other",direction="in"} 100"#), "{text}");
        assert!(has(&text, r#"menshen_sip_responses_total{peer="other",method="other",code="other"} 100"#));
        assert!(has(&text, r#"menshen_sip_responses_total{peer="psb",method="REGISTER",code="other"} 1"#));
        assert!(has(&text, r#"menshen_camera_up{channel="other"} 0"#));
        assert_eq!(text.matches("menshen_sip_requests_total{").count(), 1);
    }

    #[test]
    fn what_leaves_the_configuration_leaves_no_series() {
        let (m, session) = busy();
        let psb = m.peer("psb");
        m.add_uplink("county");
        m.uplink_register_failed(&m.peer("county"));
        m.remove_uplink("psb");
        m.remove_camera("cam-1");
        m.remove_uplink("never there");
        drop(session);
        let text = m.encode(false);
        assert!(!text.contains("psb") && !text.contains("cam-1"), "{text}");
        assert!(has(&text, r#"menshen_uplink_register_failures_total{uplink="county"} 1"#));
        assert_eq!(m.peer("psb").as_str(), OTHER);
        assert_eq!(psb.as_str(), "psb");
    }

    #[test]
    fn an_uplink_begins_with_zeros_and_its_name_is_escaped() {
        let m = Metrics::new("1", "x");
        m.add_uplink("a\"b\\市局\n");
        assert!(has(&m.encode(false), r#"menshen_uplink_registered{uplink="a\"b\\市局\n"} 0"#));
    }

    #[test]
    fn names_are_bounded() {
        let m = Metrics::new("1", "x");
        for n in 0..NAMES_MAX {
            m.add_camera(&n.to_string());
        }
        assert_eq!(m.add_camera("one too many").as_str(), OTHER);
        assert_eq!(m.add_camera("7").as_str(), "7");
        m.remove_camera("7");
        assert_eq!(m.add_camera("one too many").as_str(), "one too many");
    }
}
