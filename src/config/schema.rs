//! Which sections and keys there are, read off the types themselves.
//!
//! In: the `Deserialize` derives of the sections. Out: names for suggestions, environment variables and printing.
//! Invariants: no hand-kept list of keys; only the list of sections and nested tables is written here.
//! Not here: values and limits.

use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

use super::area::Area;
use super::camera::{Camera, CameraStream};
use super::camera_file::CameraFile;
use super::gateway::Gateway;
use super::http::Http;
use super::log::Log;
use super::media::Media;
use super::registrar::{Device, Registrar};
use super::sip::{Sip, SipTls};
use super::time::Time;
use super::uplink::{Security, Uplink, UplinkTls};

/// Whether a section is one table or an array of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SectionKind {
    Table,
    Array,
}

/// Every section, in the order a person reads them.
pub(super) const SECTIONS: [(&str, SectionKind); 11] = [
    ("gateway", SectionKind::Table),
    ("time", SectionKind::Table),
    ("sip", SectionKind::Table),
    ("media", SectionKind::Table),
    ("http", SectionKind::Table),
    ("log", SectionKind::Table),
    ("uplink", SectionKind::Array),
    ("area", SectionKind::Array),
    ("camera", SectionKind::Array),
    ("registrar", SectionKind::Table),
    ("device", SectionKind::Array),
];

/// Keys that hold a secret; their values never appear in a problem.
pub(super) const SECRET_KEYS: [&str; 3] = ["password", "admin_password", "metrics_token"];

/// Names from other programs of this kind, and what they are called here.
const ALIASES: [(&str, &str); 9] = [
    ("realm", "domain"),
    ("server_domain", "domain"),
    ("auth_username", "username"),
    ("device_id", "local_id"),
    ("media_address", "advertised_address"),
    ("media_port_range", "port_range"),
    ("url", "rtsp"),
    ("user", "username"),
    ("lang", "charset"),
];

/// The keys of the table with this path (without indices: `uplink.tls`); `None` where there is no such table.
pub(super) fn fields(table: &str) -> Option<&'static [&'static str]> {
    Some(match table {
        "gateway" => fields_of::<Gateway>(),
        "time" => fields_of::<Time>(),
        "sip" => fields_of::<Sip>(),
        "sip.tls" => fields_of::<SipTls>(),
        "media" => fields_of::<Media>(),
        "http" => fields_of::<Http>(),
        "log" => fields_of::<Log>(),
        "uplink" => fields_of::<Uplink>(),
        "uplink.tls" => fields_of::<UplinkTls>(),
        "uplink.security" => fields_of::<Security>(),
        "area" => fields_of::<Area>(),
        "camera" => fields_of::<Camera>(),
        "camera.streams" => fields_of::<CameraStream>(),
        "camera.file" => fields_of::<CameraFile>(),
        "registrar" => fields_of::<Registrar>(),
        "device" => fields_of::<Device>(),
        _ => return None,
    })
}

/// A key's path without its indices: `uplink[3].tls.ca` becomes `uplink.tls.ca`.
pub(super) fn without_indices(path: &str) -> String {
    let mut inside = false;
    path.chars()
        .filter(|c| {
            match c {
                '[' => inside = true,
                ']' => {
                    inside = false;
                    return false;
                }
                _ => {}
            }
            !inside
        })
        .collect()
}

/// Whether a change of this key (path without indices) is taken live; all others need a restart.
pub fn is_taken_live(key: &str) -> bool {
    let section = key.split('.').next().unwrap_or(key);
    matches!(section, "camera" | "uplink" | "area" | "device") || matches!(key, "log.level" | "log.filter")
}

/// How a key may be set from the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VariableKind {
    Value,
    List,
}

/// Every key the environment may name, by its path.
pub(super) fn variable_keys() -> Vec<(String, VariableKind)> {
    let mut keys = Vec::new();
    let mut tables: Vec<String> =
        SECTIONS.iter().filter(|(_, kind)| *kind == SectionKind::Table).map(|(name, _)| (*name).to_owned()).collect();
    while let Some(table) = tables.pop() {
        for field in fields(&table).unwrap_or_default() {
            let key = format!("{table}.{field}");
            if fields(&key).is_some() {
                tables.push(key);
            } else if SECRET_KEYS.contains(field) {
                keys.push((format!("{key}.env"), VariableKind::Value));
                keys.push((format!("{key}.file"), VariableKind::Value));
                keys.push((key, VariableKind::Value));
            } else {
                let kind = if matches!(key.as_str(), "registrar.networks" | "registrar.algorithms") {
                    VariableKind::List
                } else {
                    VariableKind::Value
                };
                keys.push((key, kind));
            }
        }
    }
    keys
}

/// The known name nearest to a mistyped one, if one is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Longer names are not typing mistakes of ours.
    const MAX_NAME: usize = 80;
    if name.len() > MAX_NAME {
        return None;
    }
    let alias = ALIASES.iter().find(|(foreign, _)| *foreign == name).map(|(_, ours)| *ours);
    let allowed = (name.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|candidate| (if Some(candidate) == alias { 0 } else { edit_distance(name, candidate) }, candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

/// The field names of a struct, as its derived `Deserialize` tells them to a deserialiser.
fn fields_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    struct Probe<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(Self::Error::custom("only structs are asked"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(Self::Error::custom("the names are all that was wanted"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut fields: &'static [&'static str] = &[];
    // The error is how the probe ends.
    let _ = T::deserialize(Probe(&mut fields));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_from_the_types() {
        assert_eq!(fields("gateway"), Some(&["id", "name", "civil_code", "data_dir"][..]));
        assert!(fields("uplink").unwrap().contains(&"keepalive_interval"));
        assert_eq!(fields("uplink.name"), None);
        assert!(SECTIONS.iter().all(|(name, _)| !fields(name).unwrap().is_empty()));
    }

    #[test]
    fn the_environment_reaches_tables_only() {
        let keys = variable_keys();
        let has = |key: &str| keys.iter().any(|(k, _)| k == key);
        assert!(has("http.listen") && has("sip.tls.cert") && has("http.admin_password.file"));
        assert!(!keys.iter().any(|(key, _)| key.starts_with("uplink") || key.starts_with("camera")));
    }

    #[test]
    fn suggestions_are_near_or_absent() {
        let known = ["password", "server_id", "domain", "username"];
        assert_eq!(nearest("pasword", known), Some("password"));
        assert_eq!(nearest("serverid", known), Some("server_id"));
        assert_eq!(nearest("realm", known), Some("domain"));
        assert_eq!(nearest("colour_of_the_door", known), None);
        assert_eq!(nearest(&"x".repeat(100_000), known), None);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }

    #[test]
    fn indices_are_left_out() {
        assert_eq!(without_indices("uplink[3].tls.ca"), "uplink.tls.ca");
        assert_eq!(without_indices("camera[0].streams[1].rtsp"), "camera.streams.rtsp");
    }

    #[test]
    fn what_is_live() {
        assert!(is_taken_live("camera.file.mac") && is_taken_live("log.level") && is_taken_live("uplink"));
        assert!(!is_taken_live("log.format") && !is_taken_live("sip.listen") && is_taken_live("device.max"));
    }
}
