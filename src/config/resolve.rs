//! Values that are written somewhere else: relative paths, secrets, and what is derived from other keys.
//!
//! In: the typed configuration as written. Out: the same, filled in.
//! Invariants: nothing a person wrote is changed but a relative path, which starts at the configuration's folder.
//! Not here: whether files exist or fit (`validate/files.rs`).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use zeroize::Zeroizing;

use super::Config;
use super::load::Origin;
use super::problem::{Report, quoted};
use super::secret::{Secret, SecretSource};
use super::source;

/// A secret is a password or token: a larger file is a wrong file.
const MAX_SECRET_BYTES: u64 = 64 << 10;

pub(super) fn resolve(
    config: &mut Config,
    path: &Path,
    env: &BTreeMap<String, String>,
    report: &mut Report,
    sources: &mut BTreeMap<String, Origin>,
) {
    let folder = path.parent().unwrap_or(Path::new(""));
    for (key, file) in paths(config) {
        absolute(&key, folder, file, report);
    }
    let mut inline_in_file = false;
    for (key, secret) in secrets(config) {
        if let SecretSource::File(file) = secret.source() {
            let mut file = file.clone();
            absolute(&key, folder, &mut file, report);
            secret.set_file(file);
        }
        fill(&key, secret, env, report);
        inline_in_file |= *secret.source() == SecretSource::Inline && report.variable(&key).is_none();
    }
    if inline_in_file && readable_by_all(path) {
        report.warning(
            "",
            "secrets in a file every user may read",
            "only the service's user should read it",
            format!("chmod 600 {}, or use {{ file = … }}", path.display()),
        );
    }
    derive(config, sources);
}

/// Whether every user of the machine may read the file.
pub(super) fn readable_by_all(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.mode() & 0o004 != 0)
}

/// Every path of the configuration with its key, but those of secrets.
pub(super) fn paths(config: &mut Config) -> Vec<(String, &mut PathBuf)> {
    let mut all = vec![("gateway.data_dir".to_owned(), &mut config.gateway.data_dir)];
    if let Some(tls) = &mut config.sip.tls {
        for (name, path) in [("cert", &mut tls.cert), ("key", &mut tls.key), ("client_ca", &mut tls.client_ca)] {
            all.extend(path.as_mut().map(|path| (format!("sip.tls.{name}"), path)));
        }
    }
    for (name, path) in [("tls_cert", &mut config.http.tls_cert), ("tls_key", &mut config.http.tls_key)] {
        all.extend(path.as_mut().map(|path| (format!("http.{name}"), path)));
    }
    for (n, uplink) in config.uplinks.iter_mut().enumerate() {
        if let Some(tls) = &mut uplink.tls {
            for (name, path) in [("ca", &mut tls.ca), ("cert", &mut tls.cert), ("key", &mut tls.key)] {
                all.extend(path.as_mut().map(|path| (format!("uplink[{n}].tls.{name}"), path)));
            }
        }
        let security = &mut uplink.security;
        for (name, path) in [
            ("sign_cert", &mut security.sign_cert),
            ("sign_key", &mut security.sign_key),
            ("trust", &mut security.trust),
            ("encrypt_cert", &mut security.encrypt_cert),
            ("encrypt_key", &mut security.encrypt_key),
            ("crl", &mut security.crl),
        ] {
            all.extend(path.as_mut().map(|path| (format!("uplink[{n}].security.{name}"), path)));
        }
    }
    all
}

/// Every secret of the configuration with its key.
fn secrets(config: &mut Config) -> Vec<(String, &mut Secret)> {
    let mut all = Vec::new();
    let http = &mut config.http;
    for (name, secret) in [("admin_password", &mut http.admin_password), ("metrics_token", &mut http.metrics_token)] {
        all.extend(secret.as_mut().map(|secret| (format!("http.{name}"), secret)));
    }
    for (n, uplink) in config.uplinks.iter_mut().enumerate() {
        all.extend(uplink.password.as_mut().map(|secret| (format!("uplink[{n}].password"), secret)));
    }
    for (n, camera) in config.cameras.iter_mut().enumerate() {
        all.extend(camera.password.as_mut().map(|secret| (format!("camera[{n}].password"), secret)));
    }
    for (n, device) in config.devices.iter_mut().enumerate() {
        all.extend(device.password.as_mut().map(|secret| (format!("device[{n}].password"), secret)));
    }
    all
}

fn absolute(key: &str, folder: &Path, path: &mut PathBuf, report: &mut Report) {
    if path.is_absolute() {
        return;
    }
    if path.components().any(|part| part == Component::ParentDir) {
        report.warning(
            key,
            quoted(&path.display().to_string()),
            "leads out of the configuration's folder",
            "write an absolute path",
        );
    }
    *path = folder.join(&*path);
}

/// Fetches a secret's value from where it is written; an empty one is refused, it would be an open door.
fn fill(key: &str, secret: &mut Secret, env: &BTreeMap<String, String>, report: &mut Report) {
    let found = match secret.source().clone() {
        SecretSource::Inline => super::secret::MASK.to_owned(),
        SecretSource::Env(name) => {
            let found = format!("{{ env = {} }}", quoted(&name));
            match env.get(&name) {
                Some(value) => secret.fill(Zeroizing::new(value.clone())),
                None => {
                    let fix = "set it in the service's environment";
                    return report.error(key, found, "the variable must be set", fix);
                }
            }
            found
        }
        SecretSource::File(path) => {
            let found = format!("{{ file = {} }}", quoted(&path.display().to_string()));
            match source::read_text(&path, MAX_SECRET_BYTES) {
                Ok(text) => secret.fill(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned())),
                Err(error) => {
                    let fix = "name a file this user may read";
                    return report.error(key, format!("{found} ({error})"), "the file must be readable", fix);
                }
            }
            if readable_by_all(&path) {
                report.warning(
                    key,
                    found.clone(),
                    "every user may read this secret",
                    format!("chmod 600 {}", path.display()),
                );
            }
            found
        }
    };
    if secret.expose().is_empty() {
        report.error(key, found, "must not be empty", "write the secret, or leave the key out");
    } else if secret.expose().chars().any(char::is_control) {
        report.error(key, found, "must be one line of text", "remove the control characters");
    }
}

/// Defaults that depend on other keys.
fn derive(config: &mut Config, sources: &mut BTreeMap<String, Origin>) {
    let mut note = |key: String, from: &str| {
        sources.insert(key, Origin::Derived { from: from.to_owned() });
    };
    let gateway = &mut config.gateway;
    if gateway.civil_code.is_empty() {
        gateway.civil_code = gateway.id.civil_code().to_owned();
        note("gateway.civil_code".to_owned(), "gateway.id");
    }
    for (n, uplink) in config.uplinks.iter_mut().enumerate() {
        let at = format!("uplink[{n}]");
        if uplink.domain.is_empty() {
            uplink.domain = uplink.server_id.domain().to_owned();
            note(format!("{at}.domain"), &format!("{at}.server_id"));
        }
        if uplink.local_id.is_empty() {
            uplink.local_id = gateway.id.clone();
            note(format!("{at}.local_id"), "gateway.id");
        }
        if uplink.username.is_empty() {
            uplink.username = uplink.local_id.as_str().to_owned();
            note(format!("{at}.username"), &format!("{at}.local_id"));
        }
    }
    for (n, camera) in config.cameras.iter_mut().enumerate() {
        if camera.file.civil_code.is_empty() {
            camera.file.civil_code = gateway.civil_code.clone();
            note(format!("camera[{n}].file.civil_code"), "gateway.civil_code");
        }
    }
}
