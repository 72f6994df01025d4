//! TLS settings for SIP and HTTP: certificates, trust, pins.
//! Standard: [RFC3261 26.3.1], [RFC8446], [RFC5246]; provider ring, named explicitly.
//! In: PEM files, pins. Out: rustls configurations. Built at start and at reload.
//! Invariants: there is no "accept anything": a peer is trusted by a CA or by the fingerprint of its very certificate,
//! and its signature over the handshake is always checked.
//! Not here: SM2 certificates of GB 35114 (they sign messages, not connections).

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is wrong with a TLS setting. Texts of the libraries below are kept: they name the offending field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file is not there, not readable, or not PEM.
    #[error("cannot read PEM file {}: {why}: check the path, the rights and the format", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// As the reader said it.
        why: String,
    },
    /// PEM, but without a certificate.
    #[error("no certificate in {}: put the certificate (and its intermediates) there as PEM", .path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The private key does not belong to the certificate.
    #[error("private key {} does not belong to certificate {}: give the pair that was made together", .key.display(), .cert.display())]
    KeyMismatch {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// The pair cannot be used.
    #[error("certificate {} or its key cannot be used: {why}: use RSA of 2048 bits or more, ECDSA P-256/P-384 or Ed25519", .path.display())]
    Unusable {
        /// The certificate file.
        path: PathBuf,
        /// As the library said it.
        why: String,
    },
    /// A CA certificate is malformed.
    #[error("CA file {} cannot be used: {why}: give the issuing CA's certificate as PEM", .path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// As the library said it.
        why: String,
    },
    /// Not a SHA-256 fingerprint.
    #[error(
        "pin {0:?} is not a SHA-256 fingerprint: give 64 hex digits, as `openssl x509 -noout -fingerprint -sha256` prints them"
    )]
    Pin(String),
    /// Neither a host name nor an address.
    #[error("server name {0:?} is neither a host name nor an address: give the name in the peer's certificate")]
    ServerName(String),
    /// The provider refused; a fault of this build.
    #[error("TLS cannot be set up: {0}: this is a fault of the program")]
    Provider(String),
}

/// SHA-256 over a certificate's DER form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin of a certificate.
    pub fn of(certificate_der: &[u8]) -> Self {
        Pin(Sha256::digest(certificate_der).into())
    }

    /// From 64 hex digits, upper or lower case, with or without colons, with or without `sha256:` in front.
    ///
    /// # Errors
    /// [`TlsError::Pin`] with the text.
    pub fn parse(text: &str) -> Result<Self, TlsError> {
        let wrong = || TlsError::Pin(text.chars().take(100).collect());
        let body = text.trim();
        let body = match body.get(..7) {
            Some(prefix) if prefix.eq_ignore_ascii_case("sha256:") => &body[7..],
            _ => body,
        };
        let digits: Vec<u8> = body
            .bytes()
            .filter(|b| *b != b':')
            .map(|b| (b as char).to_digit(16).map(|d| d as u8).ok_or_else(wrong))
            .collect::<Result<_, _>>()?;
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut pin = [0; 32];
        for (byte, pair) in pin.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Pin(pin))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

/// A certificate chain and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM: own certificate first, then intermediates.
    pub cert: PathBuf,
    /// PEM: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// What makes us trust a server we connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerTrust {
    /// Certificates issued by the CAs of this PEM file, valid now, for the right name.
    Ca(PathBuf),
    /// Exactly one of these certificates. Name and dates are not looked at: field devices have neither right.
    Pins(Vec<Pin>),
}

/// The one provider of this process. Named in every configuration, so that a second provider somewhere in the
/// dependency tree can never make the choice ambiguous.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |e: rustls::pki_types::pem::Error| TlsError::Pem { path: path.to_path_buf(), why: e.to_string() };
    let chain = CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<Vec<_>, _>>().map_err(pem)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_path_buf() });
    }
    Ok(chain)
}

fn load_identity(identity: &Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = load_chain(&identity.cert)?;
    let key = PrivateKeyDer::from_pem_file(&identity.key)
        .map_err(|e| TlsError::Pem { path: identity.key.clone(), why: e.to_string() })?;
    Ok((chain, key))
}

fn load_roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in load_chain(path)? {
        roots.add(certificate).map_err(|e| TlsError::Ca { path: path.to_path_buf(), why: e.to_string() })?;
    }
    Ok(Arc::new(roots))
}

fn identity_error(identity: &Identity, error: &rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::KeyMismatch { cert: identity.cert.clone(), key: identity.key.clone() }
        }
        other => TlsError::Unusable { path: identity.cert.clone(), why: other.to_string() },
    }
}

/// Settings of a listener. With `client_ca` every client must show a certificate issued by it.
///
/// # Errors
/// [`TlsError`], naming the file.
pub fn server_config(identity: &Identity, client_ca: Option<&Path>) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = load_identity(identity)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Provider(e.to_string()))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(load_roots(path)?, provider())
                .build()
                .map_err(|e| TlsError::Ca { path: path.to_path_buf(), why: e.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder.with_single_cert(chain, key).map_err(|e| identity_error(identity, &e))?;
    Ok(Arc::new(config))
}

/// Settings towards one peer. With `identity` we show a certificate when asked.
///
/// # Errors
/// [`TlsError`], naming the file.
pub fn client_config(trust: &ServerTrust, identity: Option<&Identity>) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Provider(e.to_string()))?;
    let builder = match trust {
        ServerTrust::Ca(path) => builder.with_root_certificates(load_roots(path)?),
        ServerTrust::Pins(pins) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinVerifier { pins: pins.clone(), provider: provider() })),
    };
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = load_identity(identity)?;
            builder.with_client_auth_cert(chain, key).map_err(|e| identity_error(identity, &e))?
        }
    };
    Ok(Arc::new(config))
}

/// The name to expect in a peer's certificate: a host name or an address.
///
/// # Errors
/// [`TlsError::ServerName`].
pub fn server_name(text: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(text.to_string()).map_err(|_| TlsError::ServerName(text.chars().take(100).collect()))
}

/// Trusts certificates by fingerprint. The peer must still prove that it holds the certificate's key.
#[derive(Debug)]
struct PinVerifier {
    pins: Vec<Pin>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = Pin::of(end_entity);
        if self.pins.contains(&shown) {
            return Ok(ServerCertVerified::assertion());
        }
        // The operator needs the fingerprint that was shown, to compare it with the peer's and to configure it.
        Err(rustls::Error::General(format!("the peer's certificate has sha256 {shown}, which is not pinned")))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A CA, a server and a client certificate in a directory of their own, for tests.
/// Last second of the first certificate in a PEM file, Unix seconds; None where there is none that can be read.
pub fn expires_at(cert: &Path) -> Option<i64> {
    let first = CertificateDer::from_pem_file(cert).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&first).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
pub(crate) mod test_pki {
    use super::{Identity, Pin};
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use std::path::PathBuf;

    pub(crate) struct TestPki {
        pub dir: tempfile::TempDir,
        /// Valid for 127.0.0.1.
        pub server: Identity,
        pub server_pin: Pin,
        pub client: Identity,
        pub ca: PathBuf,
    }

    pub(crate) fn make() -> TestPki {
        let dir = tempfile::tempdir().unwrap();
        let mut ca_params = CertificateParams::new(Vec::new()).unwrap();
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca_params, KeyPair::generate().unwrap()).unwrap();
        let write = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let issue = |name: &str, host: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![host.to_string()]).unwrap();
            let cert = params.signed_by(&key, &ca).unwrap();
            let identity = Identity {
                cert: write(&format!("{name}.crt"), cert.pem()),
                key: write(&format!("{name}.key"), key.serialize_pem()),
            };
            (identity, Pin::of(cert.der()))
        };
        let (server, server_pin) = issue("server", "127.0.0.1");
        let (client, _) = issue("client", "gateway.example");
        let ca = write("ca.crt", ca.pem());
        TestPki { dir, server, server_pin, client, ca }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConnection, ServerConnection};

    /// Runs a handshake in memory; the error is that of the side that refused.
    fn handshake(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
        name: &str,
    ) -> Result<rustls::ProtocolVersion, rustls::Error> {
        let mut client = ClientConnection::new(client, server_name(name).unwrap()).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        for _ in 0..10 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(client.protocol_version().unwrap())
    }

    #[test]
    fn a_ca_is_trusted_for_the_right_name_only() {
        let pki = test_pki::make();
        let server = server_config(&pki.server, None).unwrap();
        let client = client_config(&ServerTrust::Ca(pki.ca.clone()), None).unwrap();
        assert!(handshake(client.clone(), server.clone(), "127.0.0.1").is_ok());
        assert!(handshake(client, server.clone(), "127.0.0.2").is_err());
        let other = client_config(&ServerTrust::Ca(test_pki::make().ca), None).unwrap();
        assert!(handshake(other, server, "127.0.0.1").is_err());
    }

    #[test]
    fn a_pin_trusts_one_certificate_whatever_its_name() {
        let pki = test_pki::make();
        let server = server_config(&pki.server, None).unwrap();
        let right = client_config(&ServerTrust::Pins(vec![Pin::of(b"old"), pki.server_pin]), None).unwrap();
        assert!(handshake(right, server.clone(), "no.such.name").is_ok());
        let wrong = client_config(&ServerTrust::Pins(vec![Pin::of(b"old")]), None).unwrap();
        let error = handshake(wrong, server, "127.0.0.1").unwrap_err().to_string();
        assert!(error.contains(&pki.server_pin.to_string()), "names what was shown: {error}");
    }

    #[test]
    fn a_pinned_certificate_without_its_key_is_refused() {
        // A server that shows the pinned certificate but signs with another key.
        let pki = test_pki::make();
        let (chain, _) = load_identity(&pki.server).unwrap();
        let (_, thief_key) = load_identity(&pki.client).unwrap();
        let signer = provider().key_provider.load_private_key(thief_key).unwrap();
        #[derive(Debug)]
        struct Fixed(Arc<rustls::sign::CertifiedKey>);
        impl rustls::server::ResolvesServerCert for Fixed {
            fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
                Some(self.0.clone())
            }
        }
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let thief = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(Fixed(Arc::new(rustls::sign::CertifiedKey::new(
                    chain.clone(),
                    signer.clone(),
                )))));
            let client = client_config(&ServerTrust::Pins(vec![pki.server_pin]), None).unwrap();
            let error = handshake(client, Arc::new(thief), "127.0.0.1").unwrap_err();
            assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error}");
        }
    }

    #[test]
    fn with_a_client_ca_a_client_must_show_a_certificate() {
        let pki = test_pki::make();
        let server = server_config(&pki.server, Some(&pki.ca)).unwrap();
        let trust = ServerTrust::Ca(pki.ca.clone());
        let bare = client_config(&trust, None).unwrap();
        assert_eq!(handshake(bare, server.clone(), "127.0.0.1").unwrap_err(), rustls::Error::NoCertificatesPresented);
        let known = client_config(&trust, Some(&pki.client)).unwrap();
        assert!(handshake(known, server.clone(), "127.0.0.1").is_ok());
        let alien = client_config(&trust, Some(&test_pki::make().client)).unwrap();
        assert!(handshake(alien, server, "127.0.0.1").is_err());
    }

    #[test]
    fn wrong_files_are_named() {
        let pki = test_pki::make();
        let missing = Identity { cert: "/nonexistent/a.crt".into(), key: pki.server.key.clone() };
        let error = server_config(&missing, None).unwrap_err();
        assert!(error.to_string().starts_with("cannot read PEM file /nonexistent/a.crt: "), "{error}");

        let swapped = Identity { cert: pki.server.cert.clone(), key: pki.client.key.clone() };
        assert_eq!(
            server_config(&swapped, None).unwrap_err(),
            TlsError::KeyMismatch { cert: pki.server.cert.clone(), key: pki.client.key.clone() }
        );
        assert!(matches!(
            client_config(&ServerTrust::Ca(pki.ca.clone()), Some(&swapped)).unwrap_err(),
            TlsError::KeyMismatch { .. }
        ));

        let empty = pki.dir.path().join("empty.crt");
        std::fs::write(&empty, "not pem").unwrap();
        assert_eq!(
            server_config(&pki.server, Some(&empty)).unwrap_err(),
            TlsError::NoCertificate { path: empty.clone() }
        );
        let key_as_cert = Identity { cert: pki.server.key.clone(), key: pki.server.key.clone() };
        assert!(matches!(server_config(&key_as_cert, None).unwrap_err(), TlsError::NoCertificate { .. }));
        let cert_as_key = Identity { cert: pki.server.cert.clone(), key: pki.server.cert.clone() };
        assert!(matches!(server_config(&cert_as_key, None).unwrap_err(), TlsError::Pem { .. }));
    }

    #[test]
    fn pins_are_read_as_openssl_prints_them() {
        let pin = Pin::of(b"abc");
        let hex = pin.to_string();
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let upper = hex.to_uppercase();
        let pairs: Vec<&str> = upper.as_bytes().chunks(2).map(|c| std::str::from_utf8(c).unwrap()).collect();
        assert_eq!(Pin::parse(&pairs.join(":")), Ok(pin));
        assert_eq!(Pin::parse(&format!("SHA256:{hex}")), Ok(pin));
        assert_eq!(Pin::parse(&format!(" {hex}\n")), Ok(pin));
        for bad in ["", "sha256:", &hex[1..], &format!("{hex}0"), &hex.replace('b', "g"), "中文中文"] {
            assert!(matches!(Pin::parse(bad), Err(TlsError::Pin(_))), "{bad}");
        }
    }

    #[test]
    fn server_names_are_hosts_or_addresses() {
        assert!(server_name("sip.example").is_ok() && server_name("10.0.0.1").is_ok());
        assert_eq!(server_name("a b"), Err(TlsError::ServerName("a b".into())));
    }
}
