//! Files the configuration names: they exist, can be read, are valid today, and fit together.
//!
//! Standard: [RFC5280 4.1.2.5] for validity.
//! In: paths and the wall clock as an argument. Out: problems.
//! Invariants: files are opened for reading only, and read to a bound.

use std::io;
use std::path::{Path, PathBuf};

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys};
use x509_parser::prelude::parse_x509_certificate;
use zeroize::Zeroizing;

use super::super::Config;
use super::super::problem::{Report, quoted};
use super::super::resolve::readable_by_all;
use super::super::source::{ReadError, read_text};

/// A bundle of all authorities of an operating system has a quarter of this.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// From here on somebody should order the next certificate.
const EXPIRES_SOON_DAYS: i64 = 30;

const DAY: i64 = 86_400;

pub(super) fn check(config: &Config, now_unix: i64, report: &mut Report) {
    data_dir(&config.gateway.data_dir, report);
    if let Some(tls) = &config.sip.tls {
        for (key, path) in [("sip.tls.cert", &tls.cert), ("sip.tls.key", &tls.key)] {
            if path.is_none() {
                report.error(key, "missing", "is needed in [sip.tls]", "name a PEM file");
            }
        }
        pair("sip.tls.cert", &tls.cert, "sip.tls.key", &tls.key, now_unix, report);
        bundle("sip.tls.client_ca", &tls.client_ca, now_unix, report);
    }
    let http = &config.http;
    pair("http.tls_cert", &http.tls_cert, "http.tls_key", &http.tls_key, now_unix, report);
    for (n, uplink) in config.uplinks.iter().enumerate() {
        if let Some(tls) = &uplink.tls {
            let key = |name: &str| format!("uplink[{n}].tls.{name}");
            bundle(&key("ca"), &tls.ca, now_unix, report);
            pair(&key("cert"), &tls.cert, &key("key"), &tls.key, now_unix, report);
        }
    }
}

/// A certificate without its key is as useless as a key without its certificate.
pub(super) fn check_both(
    cert_key: &str,
    cert: &Option<PathBuf>,
    key_key: &str,
    key: &Option<PathBuf>,
    report: &mut Report,
) {
    match (cert, key) {
        (Some(_), None) => {
            report.error(key_key, "missing", format!("is needed with {cert_key}"), "name its key's PEM file")
        }
        (None, Some(_)) => {
            report.error(cert_key, "missing", format!("is needed with {key_key}"), "name its certificate's PEM file");
        }
        _ => {}
    }
}

fn shown(path: &Path) -> String {
    quoted(&path.display().to_string())
}

fn data_dir(path: &Path, report: &mut Report) {
    let key = "gateway.data_dir";
    if path.as_os_str().is_empty() {
        return report.error(key, "\"\"", "must be a folder", "write \"/var/lib/menshen\"");
    }
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => report.error(key, shown(path), "must be a folder, this is a file", "name a folder"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !path.parent().is_some_and(Path::is_dir) {
                let fix = "create the folder above it, or name another";
                report.warning(key, shown(path), "the folder above it does not exist on this machine", fix);
            }
        }
        Err(error) => {
            report.error(key, shown(path), format!("must be readable ({error})"), "let the service's user in")
        }
    }
}

fn pem(key: &str, path: &Path, report: &mut Report) -> Option<Zeroizing<String>> {
    match read_text(path, MAX_PEM_BYTES) {
        Ok(text) => Some(text),
        Err(ReadError::Io(error)) => {
            let fix = "name a file the service's user may read";
            report.error(key, shown(path), format!("must be readable ({error})"), fix);
            None
        }
        Err(error) => {
            report.error(key, shown(path), format!("must be PEM ({error})"), "name a PEM file");
            None
        }
    }
}

fn certificates(key: &str, path: &Path, report: &mut Report) -> Vec<CertificateDer<'static>> {
    let Some(text) = pem(key, path, report) else {
        return Vec::new();
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let allowed = match certificates {
        Ok(certificates) if !certificates.is_empty() => return certificates,
        Ok(_) => "must hold a certificate in PEM".to_owned(),
        Err(error) => format!("must hold a certificate in PEM ({error})"),
    };
    report.error(key, shown(path), allowed, "it begins with -----BEGIN CERTIFICATE-----");
    Vec::new()
}

/// First and last second of a certificate, in seconds since 1970; `None` where it is no X.509 certificate.
fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    Some((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
}

/// A certificate of ours and its key.
fn pair(
    cert_key: &str,
    cert: &Option<PathBuf>,
    key_key: &str,
    key: &Option<PathBuf>,
    now_unix: i64,
    report: &mut Report,
) {
    let chain = cert.as_deref().map(|path| (path, certificates(cert_key, path, report)));
    if let Some((path, chain)) = &chain
        && let Some(leaf) = chain.first()
    {
        valid_today(cert_key, path, leaf, now_unix, report);
    }
    let Some(key_path) = key.as_deref() else { return };
    let Some(text) = pem(key_key, key_path, report) else {
        return;
    };
    if readable_by_all(key_path) {
        let fix = format!("chmod 600 {}", key_path.display());
        report.warning(key_key, shown(key_path), "every user may read this private key", fix);
    }
    let private = match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
        Ok(private) => private,
        Err(error) => {
            let fix = "it begins with -----BEGIN PRIVATE KEY----- and has no password";
            return report.error(key_key, shown(key_path), format!("must hold a private key in PEM ({error})"), fix);
        }
    };
    let signer = match any_supported_type(&private) {
        Ok(signer) => signer,
        Err(error) => {
            let fix = "use RSA of 2048 bits and more, ECDSA P-256 or P-384, or Ed25519";
            return report.error(key_key, shown(key_path), format!("must be a key TLS can use ({error})"), fix);
        }
    };
    if let Some((_, chain)) = chain
        && !chain.is_empty()
        && CertifiedKey::new(chain, signer).keys_match()
            == Err(TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch))
    {
        let fix = "name the key the certificate was made with, or put our certificate first in its file";
        report.error(key_key, shown(key_path), format!("must belong to {cert_key}"), fix);
    }
}

fn valid_today(key: &str, path: &Path, certificate: &CertificateDer<'_>, now_unix: i64, report: &mut Report) {
    match validity(certificate) {
        None => report.error(key, shown(path), "must be an X.509 certificate", "make a new one"),
        Some((from, _)) if now_unix < from => {
            let fix = "check this machine's clock, or wait";
            report.error(key, shown(path), format!("is not valid before {}", date(from)), fix);
        }
        Some((_, until)) if now_unix > until => {
            let fix = "order a new certificate, or check this machine's clock";
            report.error(key, shown(path), format!("expired on {}", date(until)), fix);
        }
        Some((_, until)) if now_unix > until - EXPIRES_SOON_DAYS * DAY => {
            report.warning(key, shown(path), format!("expires on {}", date(until)), "order a new certificate now");
        }
        Some(_) => {}
    }
}

fn date(unix: i64) -> String {
    jiff::Timestamp::from_second(unix).map_or_else(|_| unix.to_string(), |time| time.to_string())
}

/// Authorities we trust: one dead certificate among them is only worth a word, all of them dead is an error.
fn bundle(key: &str, path: &Option<PathBuf>, now_unix: i64, report: &mut Report) {
    let Some(path) = path.as_deref() else { return };
    let all = certificates(key, path, report);
    let alive = |certificate: &&CertificateDer<'_>| {
        validity(certificate).is_some_and(|(from, until)| (from..=until).contains(&now_unix))
    };
    match all.iter().filter(alive).count() {
        _ if all.is_empty() => {}
        0 => report.error(key, shown(path), "holds no certificate that is valid today", "ask for the current one"),
        n if n < all.len() => {
            let found = format!("{} certificates that are not valid today", all.len() - n);
            report.warning(key, found, "are of no use", "remove them from the file");
        }
        _ => {}
    }
}
