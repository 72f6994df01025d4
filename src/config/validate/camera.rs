//! Checks of `[[camera]]` and its catalogue file.
//!
//! Standard: [GB/T28181-2022 J] for the code tables, [GB/T28181-2022 O] for places, [GB/T28181-2016 O] for the rest.

use std::collections::BTreeMap;

use jiff::civil::DateTime;
use url::Url;

use super::super::Config;
use super::super::camera::Camera;
use super::super::camera_file::CameraFile;
use super::super::problem::{Report, quoted};
use super::super::units::Span;
use super::{area_exists, codes, plain_text, required_name, span};

/// The standard's stream numbers are small; no camera has more.
const MAX_STREAMS: usize = 8;

/// A URL longer than this is no camera's.
const MAX_URL: usize = 2048;

pub(super) fn check(config: &Config, report: &mut Report) {
    if config.cameras.is_empty() && config.devices.is_empty() {
        report.warning("", "no [[camera]]", "the catalogue is empty", "add a [[camera]]");
    }
    let mut urls: BTreeMap<&str, usize> = BTreeMap::new();
    for (n, camera) in config.cameras.iter().enumerate() {
        one(&format!("camera[{n}]"), camera, config, report);
        for url in camera.rtsp_urls().into_iter().filter(|url| !url.is_empty()) {
            if let Some(first) = urls.insert(url, n)
                && first != n
            {
                let fix = "pull each stream under one code";
                report.warning(
                    &format!("camera[{n}]"),
                    masked(url),
                    format!("camera[{first}] has the same address"),
                    fix,
                );
            }
        }
    }
}

fn one(at: &str, camera: &Camera, config: &Config, report: &mut Report) {
    let key = |name: &str| format!("{at}.{name}");
    codes::check_channel(&key("id"), &camera.id, report);
    required_name(&key("name"), &camera.name, report);
    if let Some(area) = &camera.area {
        area_exists(&key("area"), area, area, config, report);
    }
    match (&camera.rtsp, camera.streams.len()) {
        (None, 0) => {
            report.error(&key("rtsp"), "missing", "rtsp or streams is needed", "write the camera's RTSP address");
        }
        (Some(_), 1..) => {
            report.error(&key("streams"), "a list", "rtsp is written too", "put that address first in streams");
        }
        (None, n) if n > MAX_STREAMS => {
            let fix = "leave out what no platform asks for";
            report.error(&key("streams"), format!("{n} streams"), format!("must be at most {MAX_STREAMS}"), fix);
        }
        _ => {}
    }
    if let Some(rtsp) = &camera.rtsp {
        address(&key("rtsp"), rtsp, &["rtsp"], report);
    }
    for (n, stream) in camera.streams.iter().enumerate() {
        address(&format!("{at}.streams[{n}].rtsp"), &stream.rtsp, &["rtsp"], report);
    }
    if let Some(onvif) = &camera.onvif {
        address(&key("onvif"), onvif, &["http", "https"], report);
        report.warning(
            &key("onvif"),
            masked(onvif),
            "ONVIF is not used yet by this version",
            "leave it; it does no harm",
        );
    }
    plain_text(&key("username"), &camera.username, 64, report);
    if camera.password.is_some() && camera.username.is_empty() {
        report.error(&key("username"), "missing", "is needed with a password", "write the camera's user name");
    }
    span(&key("linger"), camera.linger, Span::default(), Span::secs(3600), report);
    span(&key("probe_interval"), camera.probe_interval, Span::secs(1), Span::secs(3600), report);
    span(&key("connect_timeout"), camera.connect_timeout, Span::secs(1), Span::secs(60), report);
    span(&key("stall_timeout"), camera.stall_timeout, Span::secs(1), Span::secs(60), report);
    // What was derived is reported where it comes from.
    if camera.file.civil_code != config.gateway.civil_code {
        codes::check_division(&key("file.civil_code"), &camera.file.civil_code, report);
    }
    file(&format!("{at}.file"), &camera.file, report);
}

/// A URL as a problem shows it: what may be a password is left out.
fn masked(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(start), Some(end)) if start + 3 <= end => quoted(&format!("{}***{}", &url[..start + 3], &url[end..])),
        (None, Some(end)) => quoted(&format!("***{}", &url[end..])),
        _ => quoted(url),
    }
}

fn address(key: &str, text: &str, schemes: &[&str], report: &mut Report) {
    let form = format!("must be an address that begins with {}://", schemes[0]);
    if text.is_empty() {
        return report.error(key, "missing", form, "write the camera's address");
    }
    if text.len() > MAX_URL {
        let allowed = format!("must have at most {MAX_URL} characters");
        return report.error(key, masked(text), allowed, "write the camera's address");
    }
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            let fix = format!("write it as \"{}://192.0.2.10:554/path\"", schemes[0]);
            return report.error(key, masked(text), format!("{form} ({error})"), fix);
        }
    };
    if url.scheme() == "rtsps" {
        let fix = "use the camera's rtsp:// address, in a network you trust";
        report.error(key, masked(text), "RTSP over TLS is not there yet in this version", fix);
    } else if !schemes.contains(&url.scheme()) {
        let fix = format!("write it as \"{}://192.0.2.10:554/path\"", schemes[0]);
        report.error(key, masked(text), form, fix);
    } else if url.host_str().is_none_or(str::is_empty) {
        report.error(key, masked(text), "must name the camera's host", "write its address after the two slashes");
    }
    if !url.username().is_empty() || url.password().is_some() {
        report.error(
            key,
            masked(text),
            "must hold no user name and no password",
            "move them to the keys username and password",
        );
    }
}

fn file(at: &str, file: &CameraFile, report: &mut Report) {
    let key = |name: &str| format!("{at}.{name}");
    for (name, value, allowed) in [
        ("safety_way", Some(file.safety_way), &[0, 2, 3, 4][..]),
        ("register_way", Some(file.register_way), &[1, 2, 3, 4]),
        ("certifiable", Some(file.certifiable), &[0, 1]),
        ("secrecy", Some(file.secrecy), &[0, 1]),
        ("ptz_type", file.ptz_type, &[1, 2, 3, 4, 5, 6, 7]),
        ("position_type", file.position_type, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("room_type", Some(file.room_type), &[1, 2]),
        ("use_type", file.use_type, &[1, 2, 3]),
        ("supply_light_type", Some(file.supply_light_type), &[1, 2, 3, 4, 9]),
        ("direction_type", file.direction_type, &[1, 2, 3, 4, 5, 6, 7, 8]),
        ("svc_space_support_mode", file.svc_space_support_mode, &[0, 1, 2, 3]),
        ("svc_time_support_mode", file.svc_time_support_mode, &[0, 1, 2, 3]),
        ("mobile_device_type", file.mobile_device_type, &[1, 2, 3, 4, 5, 9]),
        ("point_type", Some(file.point_type), &[1, 2, 3, 9]),
    ] {
        if let Some(value) = value {
            listed(&key(name), value, allowed, report);
        }
    }
    for (n, value) in file.photoelectric_imaging_type.iter().enumerate() {
        listed(&format!("{at}.photoelectric_imaging_type[{n}]"), *value, &[1, 2, 3, 4, 5, 9], report);
    }
    for (n, value) in file.function_type.iter().enumerate() {
        if !["01", "02", "03", "04", "05", "99"].contains(&value.as_str()) {
            let key = format!("{at}.function_type[{n}]");
            report.error(&key, quoted(value), "must be one of 01, 02, 03, 04, 05, 99", "write the standard's code");
        }
    }

    for (name, value, min, max) in [
        ("longitude", file.longitude, -180.0, 180.0),
        ("latitude", file.latitude, -90.0, 90.0),
        ("horizontal_field_angle", file.horizontal_field_angle, f64::MIN_POSITIVE, 360.0),
        ("vertical_field_angle", file.vertical_field_angle, f64::MIN_POSITIVE, 360.0),
        ("max_view_distance", file.max_view_distance, f64::MIN_POSITIVE, 100_000.0),
    ] {
        if let Some(value) = value.filter(|value| !(min..=max).contains(value)) {
            let allowed = match min {
                f64::MIN_POSITIVE => format!("must be above 0, at most {max}"),
                _ => format!("must be {min} to {max}"),
            };
            report.error(&key(name), value.to_string(), allowed, "write degrees or metres as a decimal number");
        }
    }
    if file.longitude.is_some() != file.latitude.is_some() {
        let missing = if file.longitude.is_none() { "longitude" } else { "latitude" };
        report.error(&key(missing), "missing", "longitude and latitude go together", "write both, or neither");
    }

    if let Some(code) = &file.capture_position_type
        && !is_place(code)
    {
        let fix = "write the seven digits of annex O: government entrances are \"0110100\", their halls \"0110200\"";
        report.error(&key("capture_position_type"), quoted(code), "must be seven digits of a known class", fix);
    }
    if file.grassroots_code.len() != 6 || !file.grassroots_code.bytes().all(|b| b.is_ascii_digit()) {
        let found = quoted(&file.grassroots_code);
        report.error(&key("grassroots_code"), found, "must be 6 digits", "write \"000000\" where none applies");
    }
    if let Some(mac) = &file.mac
        && !is_mac(mac)
    {
        report.error(
            &key("mac"),
            quoted(mac),
            "must be six pairs joined by hyphens",
            "write it as \"00-11-22-AA-BB-CC\"",
        );
    }
    for (name, value) in [("install_time", &file.install_time), ("end_time", &file.end_time)] {
        if let Some(value) = value
            && value.parse::<DateTime>().is_err()
        {
            let fix = "write it as \"2026-01-31T08:00:00\"";
            report.error(&key(name), quoted(value), "must be a date and time without zone", fix);
        }
    }
    for (name, value, extra) in [
        ("resolution", &file.resolution, "*xX"),
        ("download_speed", &file.download_speed, "."),
        ("ssvc_ratio_support_list", &file.ssvc_ratio_support_list, ":"),
        ("encode_type", &file.encode_type, ""),
    ] {
        if let Some(value) = value
            && !is_slash_list(value, extra)
        {
            report.error(&key(name), quoted(value), "must be numbers joined by '/'", "write it as \"1/2/4\"");
        }
    }
    for (name, value) in [
        ("manufacturer", &file.manufacturer),
        ("model", &file.model),
        ("owner", &file.owner),
        ("block", &file.block),
        ("address", &file.address),
        ("cert_num", &file.cert_num),
        ("point_common_name", &file.point_common_name),
        ("management_unit", &file.management_unit),
        ("contact_info", &file.contact_info),
        ("industrial_classification", &file.industrial_classification),
    ] {
        if let Some(value) = value {
            plain_text(&key(name), value, 256, report);
        }
    }
    let needed: &[(&str, bool)] = &[
        ("longitude", file.longitude.is_none() && file.latitude.is_none()),
        ("install_time", file.install_time.is_none() && file.point_type == 1),
        ("contact_info", file.contact_info.is_none() && file.point_type == 1),
        ("record_save_days", file.record_save_days.is_none() && file.point_type == 1),
    ];
    if matches!(file.point_type, 1 | 2) {
        for (name, _) in needed.iter().filter(|(_, missing)| *missing) {
            let allowed = format!("the 2022 catalogue wants it for a class {} point", file.point_type);
            report.warning(&key(name), "missing", allowed, "write it, or point_type = 9");
        }
    }
}

fn listed(key: &str, value: u8, allowed: &[u8], report: &mut Report) {
    if !allowed.contains(&value) {
        let list = allowed.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        report.error(key, value.to_string(), format!("must be one of {list}"), "write the standard's code");
    }
}

/// Class 001-032, 998 or 999 (029 and 030 are reserved), middle not 00, then the small class [GB/T28181-2022 O].
fn is_place(code: &str) -> bool {
    if code.len() != 7 || !code.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let class: u16 = code[..3].parse().unwrap_or(0);
    matches!(class, 1..=28 | 31..=32 | 998 | 999) && &code[3..5] != "00"
}

fn is_mac(text: &str) -> bool {
    text.split('-').count() == 6
        && text.split('-').all(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_slash_list(text: &str, extra: &str) -> bool {
    text.len() <= 64
        && text.split('/').all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit() || extra.contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown_with_an_address() {
        assert_eq!(masked("rtsp://admin:p@ss@10.0.0.1/x"), "\"rtsp://***@10.0.0.1/x\"");
        assert_eq!(masked("admin:secret@10.0.0.1"), "\"***@10.0.0.1\"");
        assert_eq!(masked("rtsp://10.0.0.1/x"), "\"rtsp://10.0.0.1/x\"");
        assert_eq!(masked("@://"), "\"@://\"");
    }

    #[test]
    fn places_of_annex_o() {
        for good in ["0110100", "0110200", "0119900", "0170100", "9989900"] {
            assert!(is_place(good), "{good}");
        }
        for bad in ["011010", "01101000", "0110000", "0290100", "0330100", "abcdefg", "０１１０１００"] {
            assert!(!is_place(bad), "{bad}");
        }
    }

    #[test]
    fn hardware_addresses_and_lists() {
        assert!(is_mac("00-11-22-aA-Bb-Cc"));
        assert!(!is_mac("00:11:22:33:44:55") && !is_mac("00-11-22-33-44") && !is_mac("00-11-22-33-44-5g"));
        assert!(is_slash_list("1/2/4", "") && is_slash_list("4:3/2:1", ":") && is_slash_list("1920*1080/6", "*"));
        assert!(!is_slash_list("1//2", "") && !is_slash_list("", "") && !is_slash_list("1,2", ""));
    }
}
