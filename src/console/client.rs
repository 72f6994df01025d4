//! A small HTTP/1.1 client: one GET to our own daemon, for `menshen health`.
//! Standard: [RFC9112].
//! In: the address, how to speak, a path. Out: status and body.
//! Invariants: everything together takes at most [`TIME`] and [`ANSWER_BYTES`]; an unverified certificate is accepted
//! from this very host only.
//! Not here: redirects, chunked answers, other methods: our daemon needs none.

use crate::config::Http;
use crate::transport::tls::{Pin, ServerTrust, TlsError, client_config};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// For connecting, handshake, request and answer together: less than what a container's health check waits.
pub const TIME: Duration = Duration::from_secs(3);
/// Most bytes of an answer: the longest readiness report of a thousand uplinks.
pub const ANSWER_BYTES: usize = 1 << 20;

/// How to speak.
#[derive(Debug, Clone)]
pub enum Scheme {
    /// Plain, on this host.
    Http,
    /// TLS on this host: the certificate is not looked at, there is nobody in between.
    HttpsUnverified,
    /// TLS with these rules, see `transport::tls::client_config`; for an address that is not loopback.
    Https(Arc<ClientConfig>),
}

/// Whom to ask.
#[derive(Clone)]
pub struct Target {
    /// As configured in `http.listen`; a wildcard means this host.
    pub address: SocketAddr,
    /// How.
    pub scheme: Scheme,
    /// User name and password, where a login is asked for.
    pub login: Option<(String, String)>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Status, and the body as text; what is not UTF-8 in it is replaced.
pub type Answer = (u16, String);

/// Why nothing came back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there, or the connection broke.
    #[error("{address} cannot be asked: {why}: check that the daemon runs with this configuration")]
    Connection {
        /// The address asked.
        address: SocketAddr,
        /// The system's reason.
        why: String,
    },
    /// Too slow.
    #[error("{address} did not answer within {}s: see the daemon's log", TIME.as_secs())]
    Timeout {
        /// The address asked.
        address: SocketAddr,
    },
    /// Plain HTTP or an unverified certificate, but not on this host.
    #[error("{address} is not this host: give a certificate to check it by")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The certificate to check the daemon by cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An answer, but not one of our daemon's.
    #[error("{address} answered with {what}: something else than this daemon listens there")]
    NotOurs {
        /// The address asked.
        address: SocketAddr,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Asks the daemon of this configuration. Where it listens for others too, it must show the certificate configured, and
/// the configured password is given.
///
/// # Errors
/// [`ClientError`]; a status that is not 200 is no error.
pub async fn ask(http: &Http, path: &str) -> Result<Answer, ClientError> {
    let address = this_host(http.listen);
    let local = address.ip().to_canonical().is_loopback();
    let scheme = match &http.tls_cert {
        None => Scheme::Http,
        Some(_) if local => Scheme::HttpsUnverified,
        Some(cert) => {
            let own = CertificateDer::from_pem_file(cert)
                .map_err(|e| TlsError::Pem { path: cert.clone(), why: e.to_string() })?;
            Scheme::Https(client_config(&ServerTrust::Pins(vec![Pin::of(&own)]), None)?)
        }
    };
    // A daemon on loopback asks for no login, so it is not told one.
    let open = http.listen.ip().to_canonical().is_loopback();
    let password = http.admin_password.as_ref().filter(|_| !open);
    let login = password.map(|p| (super::guard::USER.to_owned(), p.expose().to_owned()));
    get(&Target { address, scheme, login }, path).await
}

/// Asks for `path` (which begins with `/` and has no blanks).
///
/// # Errors
/// [`ClientError`]; a status that is not 200 is no error.
pub async fn get(target: &Target, path: &str) -> Result<Answer, ClientError> {
    let address = this_host(target.address);
    let local = address.ip().to_canonical().is_loopback();
    if !local && !matches!(target.scheme, Scheme::Https(_)) {
        return Err(ClientError::NotLoopback { address });
    }
    let answer = tokio::time::timeout(TIME, connect(address, target, path)).await;
    answer.map_err(|_| ClientError::Timeout { address })?
}

/// A wildcard listens on loopback too.
fn this_host(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

async fn connect(address: SocketAddr, target: &Target, path: &str) -> Result<Answer, ClientError> {
    let broken = |e: std::io::Error| ClientError::Connection { address, why: e.to_string() };
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nUser-Agent: menshen\r\n");
    if let Some((user, password)) = &target.login {
        request.push_str(&format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}"))));
    }
    request.push_str("\r\n");

    let stream = TcpStream::connect(address).await.map_err(broken)?;
    let config = match &target.scheme {
        Scheme::Http => return exchange(stream, address, &request).await,
        Scheme::HttpsUnverified => unverified().map_err(|why| ClientError::Connection { address, why })?,
        Scheme::Https(config) => config.clone(),
    };
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(broken)?;
    exchange(stream, address, &request).await
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    request: &str,
) -> Result<Answer, ClientError> {
    let broken = |e: std::io::Error| ClientError::Connection { address, why: e.to_string() };
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut bytes = Vec::new();
    loop {
        match parse(&bytes) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(what) => return Err(ClientError::NotOurs { address, what }),
        }
        if bytes.len() > ANSWER_BYTES {
            return Err(ClientError::NotOurs { address, what: "too many bytes" });
        }
        if stream.read_buf(&mut bytes).await.map_err(broken)? == 0 {
            return Err(ClientError::NotOurs { address, what: "less than a whole answer" });
        }
    }
}

/// `None`: more bytes are needed.
fn parse(bytes: &[u8]) -> Result<Option<Answer>, &'static str> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is no text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|l| l.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
    let status = status.ok_or("no HTTP/1 status line")?;
    let mut length = None;
    for (name, value) in lines.filter_map(|l| l.split_once(':')) {
        if name.eq_ignore_ascii_case("Content-Length") {
            length = Some(value.trim().parse::<usize>().map_err(|_| "a length that is no number")?);
        }
    }
    let length = length.ok_or("no Content-Length")?;
    let body = &bytes[end + 4..];
    Ok(body.get(..length).map(|body| (status, String::from_utf8_lossy(body).into_owned())))
}

fn unverified() -> Result<Arc<ClientConfig>, String> {
    let provider = crate::transport::tls::provider();
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Takes any certificate, provided its key signed this handshake.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_whatever_the_split() {
        let whole = b"HTTP/1.1 503 Service Unavailable\r\ncontent-LENGTH: 5\r\nx: y\r\n\r\nhello";
        for n in 0..whole.len() {
            assert_eq!(parse(&whole[..n]), Ok(None), "{n}");
        }
        assert_eq!(parse(whole), Ok(Some((503, "hello".to_owned()))));
        for bad in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn strangers_are_not_asked_and_silence_is_told() {
        let target = |address: &str, scheme| Target { address: address.parse().unwrap(), scheme, login: None };
        for scheme in [Scheme::Http, Scheme::HttpsUnverified] {
            let asked = get(&target("192.0.2.1:80", scheme), "/healthz").await;
            assert!(matches!(asked, Err(ClientError::NotLoopback { .. })));
        }
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let asked = get(&target(&closed.to_string(), Scheme::Http), "/healthz").await;
        assert!(matches!(asked, Err(ClientError::Connection { .. })), "{asked:?}");
        assert_eq!(this_host("0.0.0.0:5".parse().unwrap()).to_string(), "127.0.0.1:5");
        assert_eq!(this_host("[::]:5".parse().unwrap()).to_string(), "[::1]:5");
    }
}
