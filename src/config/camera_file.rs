//! `[camera.file]`: the camera's file as the catalogue carries it. Taken live.
//!
//! Standard: [GB/T28181-2022 J], [GB/T28181-2022 O] for places, [GB/T28181-2016 O] for what 2022 removed.
//! Invariants: a key left out is left out of the catalogue, unless a default is stated here.
//! Not here: Parental, ParentID, Status, StreamNumberList (learnt or counted), Password (never sent).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::uplink::SecurityLevel;

/// `[camera.file]`. Codes are the standard's own numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CameraFile {
    /// Manufacturer; unset: as learnt from the camera, else `unknown`.
    pub manufacturer: Option<String>,
    /// Model; unset: as learnt from the camera, else `unknown`.
    pub model: Option<String>,
    /// Owner, 2011/2016 only; unset: `unknown`.
    pub owner: Option<String>,
    /// Administrative division, 2, 4, 6 or 8 digits. Default: `gateway.civil_code`.
    pub civil_code: String,
    /// Police district.
    pub block: Option<String>,
    /// Where it is mounted; unset: its name.
    pub address: Option<String>,
    /// Signalling security, 2011/2016 only: 0 none, 2 S/MIME signed, 3 signed and encrypted, 4 digest.
    pub safety_way: u8,
    /// Registration: 1 digest, 2 password both ways, 3 certificate both ways, 4 certificate one way.
    pub register_way: u8,
    /// GB 35114 level.
    pub security_level_code: Option<SecurityLevel>,
    /// Certificate number, 2011/2016 only.
    pub cert_num: Option<String>,
    /// Certificate valid, 2011/2016 only: 0 or 1.
    pub certifiable: u8,
    /// Why a certificate is not valid, 2011/2016 only.
    pub err_code: Option<u32>,
    /// End of the certificate, 2011/2016 only: `YYYY-MM-DDThh:mm:ss`.
    pub end_time: Option<String>,
    /// 0 not secret, 1 secret.
    pub secrecy: u8,
    /// Its address in the catalogue; unset: not told.
    pub ip_address: Option<IpAddr>,
    /// Its port in the catalogue; unset: not told.
    pub port: Option<u16>,
    /// Degrees east, WGS-84, -180 to 180.
    pub longitude: Option<f64>,
    /// Degrees north, WGS-84, -90 to 90.
    pub latitude: Option<f64>,
    /// 1 dome, 2 half-dome, 3 fixed bullet, 4 PTZ bullet, 5 PTZ half-dome, 6 stitched channel, 7 split channel.
    pub ptz_type: Option<u8>,
    /// Kind of place, 2016 only: 1 to 10.
    pub position_type: Option<u8>,
    /// 1 visible, 2 thermal, 3 radar, 4 X-ray, 5 depth light field, 9 other.
    pub photoelectric_imaging_type: Vec<u8>,
    /// Seven digits of annex O: class, middle, small; government entrances are `0110100`.
    pub capture_position_type: Option<String>,
    /// 1 outdoor, 2 indoor.
    pub room_type: u8,
    /// Use, 2016 only: 1 public security, 2 traffic, 3 key.
    pub use_type: Option<u8>,
    /// Fill light: 1 none, 2 infrared, 3 white, 4 laser, 9 other.
    pub supply_light_type: u8,
    /// Looking: 1 east, 2 west, 3 south, 4 north, 5 south-east, 6 north-east, 7 south-west, 8 north-west.
    pub direction_type: Option<u8>,
    /// Resolutions, as in SDP `f=`, joined by `/`.
    pub resolution: Option<String>,
    /// Download speeds, such as `1/2/4`.
    pub download_speed: Option<String>,
    /// Spatial scalability, 0 to 3.
    pub svc_space_support_mode: Option<u8>,
    /// Temporal scalability, 0 to 3.
    pub svc_time_support_mode: Option<u8>,
    /// Ratios, such as `4:3/2:1`.
    pub ssvc_ratio_support_list: Option<String>,
    /// 1 robot, 2 body-worn recorder, 3 soldier unit, 4 vehicle recorder, 5 unmanned aircraft, 9 other.
    pub mobile_device_type: Option<u8>,
    /// Degrees, above 0, at most 360.
    pub horizontal_field_angle: Option<f64>,
    /// Degrees, above 0, at most 360.
    pub vertical_field_angle: Option<f64>,
    /// Metres, above 0.
    pub max_view_distance: Option<f64>,
    /// Six digits of the statistical sub-county code; `000000` where none applies.
    pub grassroots_code: String,
    /// Class of surveillance point: 1, 2, 3, or 9 other.
    pub point_type: u8,
    /// What people call the point.
    pub point_common_name: Option<String>,
    /// Hardware address, `XX-XX-XX-XX-XX-XX`.
    pub mac: Option<String>,
    /// `01` face, `02` person, `03` motor vehicle, `04` non-motor vehicle, `05` article, `99` other.
    pub function_type: Vec<String>,
    /// Video code, as in SDP `f=`.
    pub encode_type: Option<String>,
    /// Mounted at, `YYYY-MM-DDThh:mm:ss`; class 1 points must have it.
    pub install_time: Option<String>,
    /// Who manages it.
    pub management_unit: Option<String>,
    /// Telephone numbers, joined by `/`; class 1 points must have it.
    pub contact_info: Option<String>,
    /// Days a recording is kept; class 1 points must have it.
    pub record_save_days: Option<u16>,
    /// GB/T 4754 code of the industry.
    pub industrial_classification: Option<String>,
}

impl Default for CameraFile {
    fn default() -> Self {
        Self {
            manufacturer: None,
            model: None,
            owner: None,
            civil_code: String::new(),
            block: None,
            address: None,
            safety_way: 0,
            register_way: 1,
            security_level_code: None,
            cert_num: None,
            certifiable: 0,
            err_code: None,
            end_time: None,
            secrecy: 0,
            ip_address: None,
            port: None,
            longitude: None,
            latitude: None,
            ptz_type: None,
            position_type: None,
            photoelectric_imaging_type: Vec::new(),
            capture_position_type: None,
            room_type: 1,
            use_type: None,
            supply_light_type: 1,
            direction_type: None,
            resolution: None,
            download_speed: None,
            svc_space_support_mode: None,
            svc_time_support_mode: None,
            ssvc_ratio_support_list: None,
            mobile_device_type: None,
            horizontal_field_angle: None,
            vertical_field_angle: None,
            max_view_distance: None,
            grassroots_code: "000000".to_owned(),
            point_type: 9,
            point_common_name: None,
            mac: None,
            function_type: Vec::new(),
            encode_type: None,
            install_time: None,
            management_unit: None,
            contact_info: None,
            record_save_days: None,
            industrial_classification: None,
        }
    }
}
