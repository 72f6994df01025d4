//! What a reload changes.
//!
//! In: the running and the new configuration. Out: what is taken live, and which keys need a restart.
//! Invariants: cameras are known by code, uplinks by name; everything is compared by value, secrets too.
//! Not here: acting on it (`app`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::Config;
use super::http::Http;

/// Elements of one kind that a reload changes, by their key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// New.
    pub added: Vec<String>,
    /// Gone.
    pub removed: Vec<String>,
    /// There before and after, with another value.
    pub changed: Vec<String>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    fn between<T: PartialEq>(old: &[T], new: &[T], key: impl Fn(&T) -> &str) -> Self {
        let before: BTreeMap<&str, &T> = old.iter().map(|element| (key(element), element)).collect();
        let after: BTreeMap<&str, &T> = new.iter().map(|element| (key(element), element)).collect();
        let mut changes = Self::default();
        for (name, element) in &after {
            match before.get(name) {
                None => changes.added.push((*name).to_owned()),
                Some(was) if was != element => changes.changed.push((*name).to_owned()),
                Some(_) => {}
            }
        }
        changes.removed =
            before.keys().filter(|name| !after.contains_key(*name)).map(|name| (*name).to_owned()).collect();
        changes
    }
}

/// What a reload changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Cameras by code; taken live.
    pub cameras: Changes,
    /// Uplinks by name; taken live.
    pub uplinks: Changes,
    /// Devices that register with us; taken live.
    pub devices_changed: bool,
    /// Areas; taken live.
    pub areas_changed: bool,
    /// `log.level` or `log.filter`; taken live.
    pub log_level_changed: bool,
    /// Keys whose change is taken at the next start only; the rest is taken all the same.
    pub restart_needed: Vec<String>,
}

impl Diff {
    /// Whether the two configurations are the same.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Compares the running configuration with a new one.
pub fn diff(old: &Config, new: &Config) -> Diff {
    let mut restart = Vec::new();
    keys_that_differ("gateway", &old.gateway, &new.gateway, &mut restart);
    keys_that_differ("time", &old.time, &new.time, &mut restart);
    keys_that_differ("sip", &old.sip, &new.sip, &mut restart);
    keys_that_differ("media", &old.media, &new.media, &mut restart);
    keys_that_differ("http", &without_secrets(&old.http), &without_secrets(&new.http), &mut restart);
    if old.http.admin_password != new.http.admin_password {
        restart.push("http.admin_password".to_owned());
    }
    if old.http.metrics_token != new.http.metrics_token {
        restart.push("http.metrics_token".to_owned());
    }
    if old.log.format != new.log.format {
        restart.push("log.format".to_owned());
    }
    if old.registrar != new.registrar {
        restart.push("registrar".to_owned());
    }
    Diff {
        cameras: Changes::between(&old.cameras, &new.cameras, |camera| camera.id.as_str()),
        uplinks: Changes::between(&old.uplinks, &new.uplinks, |uplink| uplink.name.as_str()),
        devices_changed: old.devices != new.devices,
        areas_changed: old.areas != new.areas,
        log_level_changed: (old.log.level, &old.log.filter) != (new.log.level, &new.log.filter),
        restart_needed: restart,
    }
}

/// Secrets are written masked, so their text says nothing about a change: they are compared by value instead.
fn without_secrets(http: &Http) -> Http {
    Http { admin_password: None, metrics_token: None, ..http.clone() }
}

fn keys_that_differ<T: Serialize>(section: &str, old: &T, new: &T, keys: &mut Vec<String>) {
    let (old, new) = (serde_json::to_value(old), serde_json::to_value(new));
    match (old.as_ref().map(serde_json::Value::as_object), new.as_ref().map(serde_json::Value::as_object)) {
        (Ok(Some(old)), Ok(Some(new))) => {
            keys.extend(
                new.iter()
                    .filter(|(key, value)| old.get(*key) != Some(value))
                    .map(|(key, _)| format!("{section}.{key}")),
            );
        }
        // Sections are structs and always become tables; if one did not, a restart is the safe answer.
        _ => keys.push(section.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Area, Camera, Code20, LogFormat, LogLevel, Secret, Span, Uplink};
    use super::*;

    fn camera(id: &str) -> Camera {
        Camera { id: Code20::new(id), ..Camera::default() }
    }

    #[test]
    fn the_same_is_no_change() {
        let config = Config { cameras: vec![camera("1")], ..Config::default() };
        assert!(diff(&config, &config.clone()).is_empty());
    }

    #[test]
    fn cameras_uplinks_areas_and_level_are_live() {
        let mut old = Config { cameras: vec![camera("1"), camera("2"), camera("3")], ..Config::default() };
        old.uplinks.push(Uplink { name: "a".into(), password: Some(Secret::inline("x")), ..Uplink::default() });
        let mut new = old.clone();
        new.cameras[0].linger = Span::secs(1);
        new.cameras.remove(1);
        new.cameras.push(camera("4"));
        new.cameras.reverse();
        new.uplinks[0].password = Some(Secret::inline("y"));
        new.areas.push(Area::default());
        new.devices.push(Default::default());
        new.log.level = LogLevel::Debug;
        let found = diff(&old, &new);
        assert_eq!(
            found.cameras,
            Changes { added: vec!["4".into()], removed: vec!["2".into()], changed: vec!["1".into()] }
        );
        assert_eq!(found.uplinks.changed, ["a"]);
        assert!(
            found.devices_changed && found.areas_changed && found.log_level_changed && found.restart_needed.is_empty()
        );
    }

    #[test]
    fn everything_else_needs_a_restart() {
        let old = Config::default();
        let mut new = old.clone();
        new.gateway.name = "x".into();
        new.sip.listen.set_port(5070);
        new.media.slot = Span::millis(5);
        new.http.admin_password = Some(Secret::inline("y"));
        new.log.format = LogFormat::Json;
        new.registrar = Some(Default::default());
        assert_eq!(
            diff(&old, &new).restart_needed,
            ["gateway.name", "sip.listen", "media.slot", "http.admin_password", "log.format", "registrar"]
        );
    }

    #[test]
    fn a_changed_secret_is_a_change_although_it_is_written_the_same() {
        let mut old = Config::default();
        old.http.admin_password = Some(Secret::inline("x"));
        let mut new = old.clone();
        new.http.admin_password = Some(Secret::inline("y"));
        assert_eq!(diff(&old, &new).restart_needed, ["http.admin_password"]);
    }
}
