//! Menshen 门神: a GB/T 28181 video-surveillance gateway. RTSP cameras and GB/T 28181 devices of a compound in, a lower
//! GB/T 28181 platform out. This page is the architecture; read it first, then `proto/sip/mod.rs`, `northbound/link/mod.rs`, `media/mod.rs`,
//! `app/wiring.rs`.
//!
//! ```text
//!   the compound (south)                    menshen                          public security (north)
//!
//!   RTSP cameras ── retina ──┬ southbound ─→ catalog ─→ media hub ─→ northbound ──┬── uplink "psb"     SIP: REGISTER
//!                            │    │            ↑           │             ↑       │                    MESSAGE INVITE …
//!   GB/T 28181 devices ──────┘    ├── pulls ───┼──→ media workers ───────┼───────┤                    media: PS in RTP
//!   (register with us)            │            │   (relay, or demux,     │       └── uplink "county"  (UDP, TCP)
//!                                 │         evidence mux; send)      SIP driver
//!                                 └── alarm ─→ store ─→ outbox ──────────┘
//!
//!   beside them: config (TOML) · store (SQLite: codes, bindings, alarms, audit) · metrics · console (HTTP)
//! ```
//!
//! # Layers
//!
//! An arrow is "may use"; nothing points left.
//!
//! ```text
//! main → app → { console, sim } → { southbound | northbound } → alarm → catalog → { media, transport, store, metrics, config, task, clock } → proto
//! ```
//!
//! * **proto** (L1) is sans-IO: bytes, time, randomness and addresses come in as arguments; no socket, clock, task or
//!   configuration. `cargo check --no-default-features --lib` builds it with no tokio in the graph.
//! * **engines** (L2, feature `daemon` from here up) own one thing each: `transport` the SIP sockets and media ports,
//!   `media` streams and sinks, `store` the SQLite thread. They do not know each other, but for `media → transport`
//!   (sockets) and everybody's use of `metrics`, `task`, `clock`.
//! * **domain** (L3): `catalog` (what exists, what each platform sees), `alarm` (what happened, and who is owed it),
//!   `southbound` (cameras and devices), `northbound` (upper platforms). South and north never import each other: they
//!   meet in `catalog`, in `alarm` and at the media hub. Where a lower module must reach an upper one, the lower owns the
//!   type and the upper hands in a sender (`media::SourceHandle`, `catalog::CommandHandle`).
//! * **shell** (L4): `console`, `sim` (simulated camera and upper platform: demo, tests, integrators), `app` (command
//!   line, wiring, reload, shutdown).
//!
//! Every piece of mutable state has one owner: a tokio task (`sip_driver`, `hub`, `directory`, one `link` per uplink, one
//! `camera` per camera, one `device_table` for all registered devices) or a named thread (`store`, the media workers). Requests go down the layer order and are
//! answered over a oneshot; events go up with `try_send`; every queue is bounded and says what happens at the bound.
//!
//! # Lives
//!
//! **An INVITE.** `transport::sip_driver` frames and parses it, answers 100, and routes it by source address and
//! platform code to its `northbound::link`. `invite` reads channel and SDP, the link checks sharing, permissions,
//! `media_networks`, takes a port pair, and subscribes at the `media::Hub`. If nobody pulls the stream the hub asks the
//! camera's actor, which runs a retina session on the stream's worker. With the first key frame in hand the hub answers;
//! the link sends 200; with the ACK the sink starts. BYE, a lost source, a lost platform or a missing ACK end the `call`,
//! whose one `Release` drops the sink's lease, which frees port and stream.
//!
//! **A picture.** Camera bytes become a frame on the stream's media worker (the worker drives the retina session inside
//! its 2 ms slots), are stamped on one monotone 90 kHz line (`timeline`), kept since the last key frame (`gop_cache`),
//! muxed once per packaging straight into one contiguous RTP image (`proto::ps`, `proto::rtp`), and sent to every sink
//! by restamping sequence and SSRC in place: UDP in trains by segmentation offload, TCP one write a frame.
//!
//! **A device's channel.** A REGISTER that proves itself binds the device; the table asks what it has; the catalogue comes in
//! pieces (`proto::manscdp::assembly`), what to believe of it is decided (`tree`), the store gives every channel its code,
//! the directory shows it. An INVITE of an upper platform makes the hub want the stream; the table INVITEs the device and
//! runs `media::receive` on the stream's worker: its packets pass under new headers (`relay`), or, where something in them
//! needs mending, are demuxed and muxed like a camera's pictures.
//!
//! **A configuration value.** File, then `MENSHEN__…` environment → `config::load` (all problems at once, with lines) →
//! `app::wiring` hands each component its part by value → SIGHUP: load again, `config::diff`, cameras, uplinks, areas and
//! the log level are taken live, the rest is named and left. TOML holds what people decide, the store what the program
//! learnt; nothing lives in both.
//!
//! # Glossary
//!
//! | here | 中文 | type |
//! |---|---|---|
//! | upper platform, uplink | 上级平台、级联 | `northbound::link`, `config::Uplink` |
//! | lower platform (we) | 下级平台 | – |
//! | channel | 通道 | `catalog::Channel` |
//! | key area | 重点部位 | `catalog::Area` |
//! | business group, virtual organisation | 业务分组、虚拟组织 | `proto::gb28181::IdKind` |
//! | catalogue, subscription, notice | 目录、订阅、通知 | `catalog::View`, `northbound::subscription` |
//! | registrar, device, binding | 注册服务器、前端设备 | `proto::sip::registrar::Registrar`, `southbound::gb28181::DeviceTable` |
//! | recording: playback, download | 历史视频回放、下载 | `catalog::RecordSession` |
//! | keepalive | 心跳 | `proto::manscdp::notify::Keepalive` |
//! | live play | 点播 | `northbound::call::Call` |
//! | program stream | PS 流 | `proto::ps::Muxer` |
//! | source, sink, seat, lease | 源、收流方 | `media::SourceHandle`, `media::SinkSpec`, `media::Seat`, `media::SinkLease` |
//! | uplink ladder | 上级链路诊断 | `northbound::ladder::Ladder` |
//! | audit log | 审计日志 | `store::AuditEntry` |
//! | alarm; reset of a device alarm | 报警、报警复位 | `alarm::AlarmEvent`, `alarm::AlarmReset` |
//! | what a platform has still to be told | – | `store::OutboxRow`, `northbound::alarm_notify` |

// Clauses are cited as `[GB/T28181-2022 9.1]` and `[RFC3261 17.2.1]`, which rustdoc takes for links.
#![allow(rustdoc::broken_intra_doc_links)]

pub mod proto;

#[cfg(feature = "daemon")]
pub mod clock;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod task;

#[cfg(feature = "daemon")]
pub mod transport;

#[cfg(feature = "daemon")]
pub mod media;

#[cfg(feature = "daemon")]
pub mod catalog;

#[cfg(feature = "daemon")]
pub mod alarm;

#[cfg(feature = "daemon")]
pub mod northbound;
#[cfg(feature = "daemon")]
pub mod southbound;

#[cfg(feature = "daemon")]
pub mod console;
#[cfg(feature = "daemon")]
pub mod sim;

#[cfg(feature = "daemon")]
pub mod app;
