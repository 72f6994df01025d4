//! From configuration to what the components take: a camera's catalogue item and how it is pulled.

use crate::config::{
    self, AudioPolicy, Camera, Cidr, Config, Device, DeviceMedia, DevicePlane, DeviceSsrc, DigestAlgorithm, PullPolicy,
    RtspTransport, SourcePolicy,
};
use crate::media::PlanePolicy;
use crate::proto::gb28181::{Charset, DeviceId, UnixMillis, Version};
use crate::proto::manscdp::{CatalogItem, ItemInfo};
use crate::proto::sip::digest::Algorithm;
use crate::proto::sip::registrar::{
    Account, ExpiresLimits, Ids, KeepalivePolicy, LockoutConfig, NatPolicy, Network, Password, PendingPolicy,
    RegistrarConfig, ShortExpires,
};
use crate::southbound::gb28181::{DeviceClass, MediaPolicy, TableConfig};
use crate::southbound::rtsp::{CameraConfig, Policies, PullConfig, Rules};
use std::sync::Arc;
use url::Url;

/// What the catalogue says of a camera; parents and status are added per uplink.
pub fn catalog_item(camera: &Camera) -> Option<CatalogItem> {
    let f = &camera.file;
    let streams = camera.rtsp_urls().len();
    let time = |t: &Option<String>| t.as_deref().and_then(|t| UnixMillis::parse_local(t).ok());
    let list = |v: &[String]| (!v.is_empty()).then(|| v.join("/"));
    let numbers = |v: &[u8]| (!v.is_empty()).then(|| v.iter().map(u8::to_string).collect::<Vec<_>>().join("/"));
    let or_unknown = |v: &Option<String>| Some(v.clone().unwrap_or_else(|| "unknown".into()));
    let mut item = CatalogItem::new(DeviceId::parse(camera.id.as_str()).ok()?, camera.name.clone());
    item.manufacturer = or_unknown(&f.manufacturer);
    item.model = or_unknown(&f.model);
    item.owner = or_unknown(&f.owner);
    item.civil_code = (!f.civil_code.is_empty()).then(|| f.civil_code.clone());
    item.block = f.block.clone();
    item.address = Some(f.address.clone().unwrap_or_else(|| camera.name.clone()));
    item.parental = Some(false);
    item.safety_way = Some(f.safety_way);
    item.register_way = Some(f.register_way);
    item.security_level_code = f.security_level_code.map(|l| format!("{l:?}"));
    item.cert_num = f.cert_num.clone();
    item.certifiable = f.cert_num.is_some().then_some(f.certifiable == 1);
    item.err_code = f.err_code.and_then(|n| i32::try_from(n).ok());
    item.end_time = time(&f.end_time);
    item.secrecy = Some(f.secrecy == 1);
    item.ip_address = f.ip_address.map(|ip| ip.to_string());
    item.port = f.port;
    item.longitude = f.longitude;
    item.latitude = f.latitude;
    item.info = ItemInfo {
        ptz_type: f.ptz_type,
        position_type: f.position_type,
        photoelectric_imaging_type: numbers(&f.photoelectric_imaging_type),
        capture_position_type: f.capture_position_type.clone(),
        room_type: Some(f.room_type),
        use_type: f.use_type,
        supply_light_type: Some(f.supply_light_type),
        direction_type: f.direction_type,
        resolution: f.resolution.clone(),
        stream_number_list: (streams > 1).then(|| (0..streams).map(|n| n.to_string()).collect::<Vec<_>>().join("/")),
        download_speed: f.download_speed.clone(),
        svc_space_support_mode: f.svc_space_support_mode,
        svc_time_support_mode: f.svc_time_support_mode,
        ssvc_ratio_support_list: f.ssvc_ratio_support_list.clone(),
        mobile_device_type: f.mobile_device_type,
        horizontal_field_angle: f.horizontal_field_angle,
        vertical_field_angle: f.vertical_field_angle,
        max_view_distance: f.max_view_distance,
        grassroots_code: Some(f.grassroots_code.clone()),
        point_type: Some(f.point_type),
        point_common_name: f.point_common_name.clone(),
        mac: f.mac.clone(),
        function_type: list(&f.function_type),
        encode_type: f.encode_type.clone(),
        install_time: time(&f.install_time),
        management_unit: f.management_unit.clone(),
        contact_info: f.contact_info.clone(),
        record_save_days: f.record_save_days.map(u32::from),
        industrial_classification: f.industrial_classification.clone(),
    };
    Some(item)
}

/// How a camera is pulled and watched. None for an address that is no URL (validation has told it before).
pub fn camera_config(camera: &Camera) -> Option<CameraConfig> {
    let password = camera.password.as_ref().map(|p| p.expose().to_owned()).unwrap_or_default();
    let credentials = (!camera.username.is_empty()).then(|| (camera.username.clone(), password));
    let policies = Policies {
        session_id: camera.session_id_policy,
        initial_timestamp: camera.initial_timestamp_policy,
        initial_seq: camera.initial_seq_policy,
        unknown_rtcp_ssrc: camera.unknown_rtcp_ssrc_policy,
        unassigned_channel: camera.unassigned_channel_policy,
        teardown: camera.teardown_policy,
    };
    let mut streams = Vec::new();
    for url in camera.rtsp_urls() {
        streams.push(PullConfig {
            url: Url::parse(url).ok()?,
            credentials: credentials.clone(),
            udp: camera.rtsp_transport == RtspTransport::Udp,
            audio: camera.audio == AudioPolicy::Auto,
            step_limit: camera.connect_timeout.duration(),
            stall_limit: camera.stall_timeout.duration(),
            policies,
        });
    }
    Some(CameraConfig {
        id: Arc::from(camera.id.as_str()),
        streams,
        rules: Rules {
            keep_warm: camera.pull == PullPolicy::KeepWarm,
            linger: camera.linger.duration(),
            probe_interval: camera.probe_interval.duration(),
        },
    })
}

fn networks(list: &[Cidr]) -> Vec<Network> {
    let network = |(address, prefix_length)| Network { address, prefix_length };
    list.iter().map(|cidr| network(cidr.parts())).collect()
}

fn version(standard: config::Standard) -> Option<Version> {
    match standard {
        config::Standard::Auto => None,
        config::Standard::V2011 => Some(Version::V2011),
        config::Standard::V2016 => Some(Version::V2016),
        config::Standard::V2022 => Some(Version::V2022),
    }
}

fn charset(charset: config::Charset) -> Option<Charset> {
    match charset {
        config::Charset::Auto => None,
        config::Charset::Gb2312 => Some(Charset::Gb2312),
        config::Charset::Gb18030 => Some(Charset::Gb18030),
        config::Charset::Utf8 => Some(Charset::Utf8),
    }
}

/// What `[[device]]` says of who may register. None without a usable code or password (validation has told it before).
fn account(device: &Device) -> Option<Account> {
    let ids = match device.id.strip_suffix('*') {
        Some(digits) => Ids::Prefix { digits: digits.to_owned(), max: device.max.unwrap_or(1) as usize },
        None => Ids::One(DeviceId::parse(&device.id).ok()?),
    };
    Some(Account {
        ids,
        username: (!device.username.is_empty()).then(|| device.username.clone()),
        password: Some(Password::new(device.password.as_ref()?.expose())),
        networks: networks(&device.networks),
        date: Some(device.date),
        version: version(device.standard),
        keepalive: Some(KeepalivePolicy {
            interval: device.keepalive_interval.duration(),
            count: device.keepalive_max_missed,
        }),
        expires: None,
        nat: Some(match device.source_policy {
            SourcePolicy::SameSource => NatPolicy::SameSource,
            SourcePolicy::SameIp => NatPolicy::SameIp,
        }),
    })
}

fn class(device: &Device) -> DeviceClass {
    DeviceClass {
        id: device.id.trim_end_matches('*').to_owned(),
        prefix: device.id.ends_with('*'),
        max: device.max.unwrap_or(1) as usize,
        area: device.area.clone(),
        version: version(device.standard),
        charset: charset(device.charset),
        catalog_interval: device.catalog_interval.duration(),
        catalog_subscribe: device.catalog_subscribe,
        alarm_subscribe: device.alarm_subscribe,
        media: match device.media {
            DeviceMedia::Auto => MediaPolicy::Auto,
            DeviceMedia::TcpPassive => MediaPolicy::TcpPassive,
            DeviceMedia::TcpActive => MediaPolicy::TcpActive,
            DeviceMedia::Udp => MediaPolicy::Udp,
        },
        ssrc_strict: device.ssrc == DeviceSsrc::Strict,
        plane: match device.plane {
            DevicePlane::Auto => PlanePolicy::Auto,
            DevicePlane::Relay => PlanePolicy::Relay,
            DevicePlane::Remux => PlanePolicy::Remux,
        },
        max_streams: device.max_streams as usize,
        linger: device.linger.duration(),
    }
}

/// Registrar and devices; None where nobody may register.
pub fn table_config(config: &Config) -> Option<TableConfig> {
    if config.registrar.is_none() && config.devices.is_empty() {
        return None;
    }
    let registrar = config.registrar.clone().unwrap_or_default();
    let gateway_id = DeviceId::parse(config.gateway.id.as_str()).ok()?;
    let domain = config.gateway.id.domain().to_owned();
    let cameras = config.cameras.iter().map(|c| c.id.to_string());
    let uplinks = config.uplinks.iter().flat_map(|u| [u.server_id.to_string(), u.local_id.to_string()]);
    let own: Vec<String> = uplinks.chain([config.gateway.id.to_string()]).collect();
    let expires_max = registrar.expires_max.duration().as_secs() as u32;
    let usable: Vec<(Account, DeviceClass)> =
        config.devices.iter().filter_map(|d| Some((account(d)?, class(d)))).collect();
    let (accounts, classes) = usable.into_iter().unzip();
    Some(TableConfig {
        gateway_id,
        registrar: RegistrarConfig {
            realm: if registrar.realm.is_empty() { domain.clone() } else { registrar.realm.clone() },
            algorithms: registrar
                .algorithms
                .iter()
                .map(|a| match a {
                    DigestAlgorithm::Md5 => Algorithm::Md5,
                    DigestAlgorithm::Sha256 => Algorithm::Sha256,
                })
                .collect(),
            accounts,
            reserved: own.iter().filter_map(|id| DeviceId::parse(id).ok()).collect(),
            networks: networks(&registrar.networks),
            pending: match registrar.pending {
                config::PendingPolicy::List => PendingPolicy::List,
                config::PendingPolicy::Refuse => PendingPolicy::Refuse,
            },
            expires: ExpiresLimits {
                min: registrar.expires_min.duration().as_secs() as u32,
                max: expires_max,
                default: expires_max,
                short: ShortExpires::Raise,
            },
            lockout: LockoutConfig {
                failures: registrar.lockout_failures as usize,
                hold: registrar.lockout_time.duration(),
                ..LockoutConfig::default()
            },
            ..RegistrarConfig::default()
        },
        classes,
        sip_advertised: config.sip.advertised_address.set(),
        media_advertised: config.media.advertised_address.set(),
        reserved: own.into_iter().chain(cameras).collect(),
        mint: (domain.clone(), config.gateway.id.as_str().as_bytes().get(13).map_or(0, |d| d.saturating_sub(b'0'))),
        domain,
    })
}

/// Level and filter of the log.
pub fn log_format(format: config::LogFormat) -> super::logging::Format {
    match format {
        config::LogFormat::Auto => super::logging::Format::Auto,
        config::LogFormat::Text => super::logging::Format::Text,
        config::LogFormat::Json => super::logging::Format::Json,
    }
}
