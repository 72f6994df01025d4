//! Digest authentication, both sides.
//! Standard: [RFC2617 3], [RFC7616 3], [RFC3261 22.4], [GB/T28181-2022 9.1.2.1].
//! In: header values, credentials, the time in Unix seconds. Out: header values, the verified user name.
//! Invariants: nonces are signed, so a challenge costs no memory; the server alone picks scheme and algorithm; it
//! compares responses in constant time and an unknown user costs what a wrong password costs; an empty password never
//! passes.
//! Deviations: `uri` is hashed as quoted and need not be the Request-URI (Hikvision sends another one); a client that
//! leaves out the offered `qop` is still verified (devices written to RFC 2069).
//! Not here: limits on tries, looking up passwords, certificate schemes of GB 35114 (they use `AuthParams`).

use super::header::{quote, unquote};
use super::normalize::is_token;
use md5::Md5;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// Longest parameter value in bytes: four times the longest nonce seen in the field.
const MAX_VALUE: usize = 512;
/// Most parameters in one header: RFC 7616 has fourteen.
const MAX_PARAMS: usize = 32;
/// Most nonces with a use on record: six times the devices of the largest site, all registering within one lifetime.
const MAX_TRACKED: usize = 65_536;
/// Bytes of a nonce: time, number, signature.
const NONCE_BYTES: usize = 4 + 4 + MAC_BYTES;
/// Bytes of the signature kept: 96 bits cannot be guessed within a nonce's life, and old devices cut long nonces.
const MAC_BYTES: usize = 12;

/// Why credentials or a challenge were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// Right password, old nonce: challenge again with `stale=true`.
    #[error("credentials refused: nonce is too old or not ours: challenge again")]
    Stale,
    /// No Digest credentials for our realm: challenge.
    #[error("no credentials: none for this scheme and realm: challenge")]
    NoCredentials,
    /// No such user. Answer like `Wrong`.
    #[error("credentials refused: user is unknown: answer as for a wrong password")]
    Unknown,
    /// The password does not fit, or is empty on our side.
    #[error("credentials refused: response does not fit: check the password")]
    Wrong,
    /// Breaks the grammar, or asks for what is not supported (auth-int, MD5-sess, SM3).
    #[error("credentials refused: header is malformed or unsupported: answer 400 or challenge")]
    Malformed,
    /// A nonce count that was used before.
    #[error("credentials refused: nonce count does not rise: challenge again")]
    Replay,
}

/// `scheme name=value, name="value"`: Authorization, WWW-Authenticate and their like, of any scheme. [RFC3261 20.7]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthParams {
    /// First word, as written.
    pub scheme: String,
    /// Name, value without quotes and escapes, whether it was quoted.
    pub params: Vec<(String, String, bool)>,
}

impl AuthParams {
    /// Reads a header value. Parameters may be parted by commas, blanks or both; commas and escapes inside quotes are
    /// part of the value.
    ///
    /// # Errors
    /// `Malformed` for broken grammar, a name that comes twice, over 32 parameters, a value over 512 bytes.
    pub fn parse(value: &str) -> Result<AuthParams, DigestError> {
        let value = value.trim();
        let (scheme, mut rest) = value.split_once([' ', '\t']).unwrap_or((value, ""));
        if !is_token(scheme) {
            return Err(DigestError::Malformed);
        }
        let mut out = AuthParams { scheme: scheme.to_owned(), params: Vec::new() };
        let separators = [',', ' ', '\t'];
        loop {
            rest = rest.trim_start_matches(separators);
            if rest.is_empty() {
                return Ok(out);
            }
            let (name, after) = rest.split_once('=').ok_or(DigestError::Malformed)?;
            let (name, after) = (name.trim(), after.trim_start());
            let length = match after.starts_with('"') {
                true => quoted_length(after).ok_or(DigestError::Malformed)?,
                false => after.find(separators).unwrap_or(after.len()),
            };
            let (raw, next) = after.split_at(length);
            let known = out.params.iter().any(|(other, ..)| other.eq_ignore_ascii_case(name));
            if !is_token(name) || known || raw.len() > MAX_VALUE || out.params.len() == MAX_PARAMS {
                return Err(DigestError::Malformed);
            }
            if !next.is_empty() && !next.starts_with(separators) {
                return Err(DigestError::Malformed);
            }
            let unquoted = unquote(raw);
            let quoted = unquoted.is_some();
            out.params.push((name.to_owned(), unquoted.unwrap_or_else(|| raw.to_owned()), quoted));
            rest = next;
        }
    }

    /// The value of `name`, ignoring case.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(n, ..)| n.eq_ignore_ascii_case(name)).map(|(_, v, _)| v.as_str())
    }

    /// True for `Digest` credentials and challenges.
    pub fn is_digest(&self) -> bool {
        self.scheme.eq_ignore_ascii_case("Digest")
    }
}

/// Length of the quoted string `text` starts with, quotes included.
fn quoted_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Hash of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// What the standard and nearly all devices use. [RFC2617 3.2.1]
    Md5,
    /// [RFC7616 3.2]
    Sha256,
}

impl Algorithm {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Md5 => "MD5",
            Algorithm::Sha256 => "SHA-256",
        }
    }

    /// No name means MD5. [RFC2617 3.2.1]
    fn from_name(name: Option<&str>) -> Result<Algorithm, DigestError> {
        match name {
            None => Ok(Algorithm::Md5),
            Some(name) if name.eq_ignore_ascii_case("MD5") => Ok(Algorithm::Md5),
            Some(name) if name.eq_ignore_ascii_case("SHA-256") => Ok(Algorithm::Sha256),
            Some(_) => Err(DigestError::Malformed),
        }
    }

    /// Lower-case hex of the hash over `parts` joined by colons.
    fn hash(self, parts: &[&str]) -> String {
        let joined = parts.join(":");
        match self {
            Algorithm::Md5 => hex(&Md5::digest(joined.as_bytes())),
            Algorithm::Sha256 => hex(&Sha256::digest(joined.as_bytes())),
        }
    }
}

/// What a response is made of. [RFC2617 3.2.2.1]
struct Proof<'a> {
    algorithm: Algorithm,
    username: &'a str,
    realm: &'a str,
    password: &'a str,
    method: &'a str,
    uri: &'a str,
    nonce: &'a str,
    /// nc and cnonce, with qop=auth.
    qop_auth: Option<(&'a str, &'a str)>,
}

impl Proof<'_> {
    fn response(&self) -> String {
        let ha1 = self.algorithm.hash(&[self.username, self.realm, self.password]);
        let ha2 = self.algorithm.hash(&[self.method, self.uri]);
        match self.qop_auth {
            Some((nc, cnonce)) => self.algorithm.hash(&[&ha1, self.nonce, nc, cnonce, "auth", &ha2]),
            None => self.algorithm.hash(&[&ha1, self.nonce, &ha2]),
        }
    }
}

/// A server's Digest challenge. [RFC3261 22.4], [RFC7616 3.3]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Protection space.
    pub realm: String,
    /// To be given back.
    pub nonce: String,
    /// To be given back, when there.
    pub opaque: Option<String>,
    /// MD5 when the server names none.
    pub algorithm: Algorithm,
    /// The server offers qop=auth.
    pub qop_auth: bool,
    /// The password was right, only the nonce was old.
    pub stale: bool,
}

impl Challenge {
    /// Reads one WWW-Authenticate or Proxy-Authenticate value.
    ///
    /// # Errors
    /// `NoCredentials` for another scheme; `Malformed` without realm or nonce, for an algorithm other than MD5 and
    /// SHA-256, and when only auth-int is offered.
    pub fn parse(value: &str) -> Result<Challenge, DigestError> {
        let params = AuthParams::parse(value)?;
        if !params.is_digest() {
            return Err(DigestError::NoCredentials);
        }
        let need = |name| params.value(name).map(str::to_owned).ok_or(DigestError::Malformed);
        let qop_auth = match params.value("qop").map(str::trim).filter(|offer| !offer.is_empty()) {
            None => false,
            Some(offer) if offer.split(',').any(|qop| qop.trim().eq_ignore_ascii_case("auth")) => true,
            Some(_) => return Err(DigestError::Malformed),
        };
        Ok(Challenge {
            realm: need("realm")?,
            nonce: need("nonce")?,
            opaque: params.value("opaque").map(str::to_owned),
            algorithm: Algorithm::from_name(params.value("algorithm"))?,
            qop_auth,
            stale: params.value("stale").is_some_and(|stale| stale.eq_ignore_ascii_case("true")),
        })
    }
}

/// The challenge to answer out of all of a response's: MD5 first as the field does, unless `prefer_sha256`; the other
/// algorithm when offered alone.
///
/// # Errors
/// The first challenge's error when none can be answered; `NoCredentials` when there is none.
pub fn pick_challenge<'a>(
    values: impl IntoIterator<Item = &'a str>,
    prefer_sha256: bool,
) -> Result<Challenge, DigestError> {
    let wanted = if prefer_sha256 { Algorithm::Sha256 } else { Algorithm::Md5 };
    let mut second_best = None;
    let mut error = None;
    for value in values {
        match Challenge::parse(value) {
            Ok(challenge) if challenge.algorithm == wanted => return Ok(challenge),
            Ok(challenge) => {
                second_best.get_or_insert(challenge);
            }
            Err(refused) => {
                error.get_or_insert(refused);
            }
        }
    }
    second_best.ok_or(error.unwrap_or(DigestError::NoCredentials))
}

/// Answers challenges, and signs later requests with the nonce it has. [RFC2617 3.3]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestClient {
    challenge: Challenge,
    nc: u32,
}

impl DigestClient {
    /// A client that has just been challenged.
    pub fn new(challenge: Challenge) -> DigestClient {
        DigestClient { challenge, nc: 0 }
    }

    /// The challenge in use.
    pub fn challenge(&self) -> &Challenge {
        &self.challenge
    }

    /// The Authorization value for one request; `uri` is its Request-URI as text. The nonce count rises with each call.
    /// `cnonce` must be fresh and hard to guess; it goes out only with qop=auth.
    pub fn answer(&mut self, method: &str, uri: &str, username: &str, password: &str, cnonce: &str) -> String {
        let Challenge { realm, nonce, opaque, algorithm, qop_auth, .. } = &self.challenge;
        self.nc = self.nc.saturating_add(1);
        let nc = format!("{:08x}", self.nc);
        let qop_auth = qop_auth.then_some((nc.as_str(), cnonce));
        let proof = Proof { algorithm: *algorithm, username, realm, password, method, uri, nonce, qop_auth };
        let mut out = format!(
            "Digest username={}, realm={}, nonce={}, uri={}, response=\"{}\", algorithm={}",
            quote(username),
            quote(realm),
            quote(nonce),
            quote(uri),
            proof.response(),
            algorithm.as_str()
        );
        if let Some((nc, cnonce)) = qop_auth {
            let _ = write!(out, ", qop=auth, nc={nc}, cnonce={}", quote(cnonce));
        }
        if let Some(opaque) = opaque {
            let _ = write!(out, ", opaque={}", quote(opaque));
        }
        out
    }
}

/// Last use of a nonce.
#[derive(Debug)]
struct Used {
    issued: u32,
    nc: u32,
    owner: [u8; 8],
}

/// Challenges and verifies. [RFC3261 22.1]
#[derive(Debug)]
pub struct DigestServer {
    secret: [u8; 32],
    realm: String,
    algorithms: Vec<Algorithm>,
    qop: bool,
    lifetime: u32,
    single_use: bool,
    issued: u32,
    used: HashMap<[u8; 8], Used>,
}

impl DigestServer {
    /// `secret` is random for each start of the process; `algorithms` are offered in this order; `qop` offers auth;
    /// a nonce lives for `nonce_lifetime`, counted in whole seconds.
    pub fn new(
        secret: [u8; 32],
        realm: String,
        algorithms: Vec<Algorithm>,
        qop: bool,
        nonce_lifetime: Duration,
    ) -> DigestServer {
        let lifetime = u32::try_from(nonce_lifetime.as_secs()).unwrap_or(u32::MAX);
        DigestServer { secret, realm, algorithms, qop, lifetime, single_use: false, issued: 0, used: HashMap::new() }
    }

    /// A nonce answered without qop is good once: with no count to rise, its answer could be sent again by whoever has
    /// seen it. For methods a client challenges anew each time, as REGISTER. [RFC2617 4.9]
    pub fn single_use(mut self) -> DigestServer {
        self.single_use = true;
        self
    }

    /// True when the credentials answer a nonce of ours that was made for this source and has not outlived itself: the
    /// client has received what we sent to that address. Says nothing about the password.
    pub fn nonce_is_fresh(&self, now_unix: u64, source: IpAddr, credentials: &AuthParams) -> bool {
        let nonce = credentials.value("nonce").and_then(|nonce| self.own_nonce(nonce, source));
        nonce.is_some_and(|(issued, _)| self.is_young(now_unix as u32, issued))
    }

    fn is_young(&self, now: u32, issued: u32) -> bool {
        now.wrapping_sub(issued) <= self.lifetime
    }

    /// The WWW-Authenticate values of a 401, one an algorithm. Each call makes new nonces and keeps nothing.
    pub fn challenge(&mut self, now_unix: u64, source: IpAddr, stale: bool) -> Vec<String> {
        let mut values = Vec::with_capacity(self.algorithms.len());
        for algorithm in self.algorithms.clone() {
            self.issued = self.issued.wrapping_add(1);
            let nonce = self.nonce(now_unix as u32, self.issued, source);
            let mut value = format!(
                "Digest realm={}, nonce=\"{}\", algorithm={}",
                quote(&self.realm),
                hex(&nonce),
                algorithm.as_str()
            );
            if self.qop {
                value.push_str(", qop=\"auth\"");
            }
            if stale {
                value.push_str(", stale=true");
            }
            values.push(value);
        }
        values
    }

    /// Checks an Authorization value; gives the user name. `password_of` is asked once, with the user name sent.
    ///
    /// # Errors
    /// See `DigestError`. `Unknown`, `Wrong` and their timing must not differ to the peer.
    pub fn verify(
        &mut self,
        now_unix: u64,
        source: IpAddr,
        method: &str,
        password_of: impl FnOnce(&str) -> Option<String>,
        authorization: &str,
    ) -> Result<String, DigestError> {
        let params = AuthParams::parse(authorization)?;
        let mut held = None;
        let slot = &mut held;
        let password_of = move |username: &str| {
            *slot = password_of(username);
            slot.as_deref()
        };
        self.verify_parsed(now_unix, source, method, password_of, &params)
    }

    /// The same for credentials that are parsed already and a password that is not to be copied.
    ///
    /// # Errors
    /// As `verify`.
    pub fn verify_parsed<'p>(
        &mut self,
        now_unix: u64,
        source: IpAddr,
        method: &str,
        password_of: impl FnOnce(&str) -> Option<&'p str>,
        params: &AuthParams,
    ) -> Result<String, DigestError> {
        if !params.is_digest() {
            return Err(DigestError::NoCredentials);
        }
        let need = |name| params.value(name).ok_or(DigestError::Malformed);
        let (username, realm, nonce) = (need("username")?, need("realm")?, need("nonce")?);
        let (uri, response) = (need("uri")?, need("response")?.to_ascii_lowercase());
        if realm != self.realm {
            return Err(DigestError::NoCredentials);
        }
        let algorithm = Algorithm::from_name(params.value("algorithm"))?;
        if !self.algorithms.contains(&algorithm) {
            return Err(DigestError::Malformed);
        }
        let qop_auth = match params.value("qop") {
            None => None,
            Some(qop) if qop.eq_ignore_ascii_case("auth") => Some((need("nc")?, need("cnonce")?)),
            Some(_) => return Err(DigestError::Malformed),
        };
        let nc = match qop_auth {
            None => None,
            Some((nc, _)) if nc.len() == 8 && nc.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Some(u32::from_str_radix(nc, 16).map_err(|_| DigestError::Malformed)?)
            }
            Some(_) => return Err(DigestError::Malformed),
        };
        let password = password_of(username);
        let known = password.is_some();
        let password = password.unwrap_or_default();
        let proof = Proof { algorithm, username, realm, password, method, uri, nonce, qop_auth };
        let expected = proof.response();
        if response.len() != expected.len() || !response.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(DigestError::Malformed);
        }
        let fits = bool::from(expected.as_bytes().ct_eq(response.as_bytes()));
        match (known, fits && !password.is_empty()) {
            (false, _) => return Err(DigestError::Unknown),
            (true, false) => return Err(DigestError::Wrong),
            (true, true) => {}
        }
        // Only who knows the password learns anything about nonces, and only then is anything kept.
        let (issued, number) = self.own_nonce(nonce, source).ok_or(DigestError::Stale)?;
        let now = now_unix as u32;
        if !self.is_young(now, issued) {
            return Err(DigestError::Stale);
        }
        self.note_use(now, issued, number, username, nc)?;
        Ok(username.to_owned())
    }

    /// One owner a nonce, and a rising count where there is one. [RFC2617 4.9]
    fn note_use(
        &mut self,
        now: u32,
        issued: u32,
        number: u32,
        username: &str,
        nc: Option<u32>,
    ) -> Result<(), DigestError> {
        let mut key = [0; 8];
        key[..4].copy_from_slice(&issued.to_be_bytes());
        key[4..].copy_from_slice(&number.to_be_bytes());
        let mut owner = [0; 8];
        owner.copy_from_slice(&Sha256::digest(username.as_bytes())[..8]);
        if let Some(used) = self.used.get_mut(&key) {
            if used.owner != owner {
                return Err(DigestError::Stale);
            }
            return match nc {
                Some(nc) if nc <= used.nc => Err(DigestError::Replay),
                Some(nc) => {
                    used.nc = nc;
                    Ok(())
                }
                // A counted nonce cannot be used on without its count.
                None if used.nc > 0 || self.single_use => Err(DigestError::Replay),
                None => Ok(()),
            };
        }
        if nc == Some(0) {
            return Err(DigestError::Replay);
        }
        if self.used.len() >= MAX_TRACKED {
            let lifetime = self.lifetime;
            self.used.retain(|_, used| now.wrapping_sub(used.issued) <= lifetime);
        }
        if self.used.len() >= MAX_TRACKED {
            // Without a record the use could be replayed; the client comes back with a new nonce.
            return Err(DigestError::Stale);
        }
        self.used.insert(key, Used { issued, nc: nc.unwrap_or(0), owner });
        Ok(())
    }

    fn nonce(&self, issued: u32, number: u32, source: IpAddr) -> [u8; NONCE_BYTES] {
        let mut text = Vec::with_capacity(8 + 16 + self.realm.len());
        text.extend(issued.to_be_bytes());
        text.extend(number.to_be_bytes());
        let v6 = match source.to_canonical() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        text.extend(v6.octets());
        text.extend(self.realm.as_bytes());
        let mut nonce = [0; NONCE_BYTES];
        nonce[..8].copy_from_slice(&text[..8]);
        nonce[8..].copy_from_slice(&hmac_sha256(&self.secret, &text)[..MAC_BYTES]);
        nonce
    }

    /// Time and number of a nonce of ours for this source.
    fn own_nonce(&self, nonce: &str, source: IpAddr) -> Option<(u32, u32)> {
        let got = unhex::<NONCE_BYTES>(nonce)?;
        let issued = u32::from_be_bytes(got[..4].try_into().ok()?);
        let number = u32::from_be_bytes(got[4..8].try_into().ok()?);
        bool::from(self.nonce(issued, number, source).ct_eq(&got)).then_some((issued, number))
    }
}

/// HMAC with a key shorter than the hash's block. [RFC2104 2]
fn hmac_sha256(key: &[u8; 32], text: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let pad = |fill: u8| {
        let mut block = [fill; BLOCK];
        block.iter_mut().zip(key).for_each(|(b, k)| *b ^= k);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in out.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const USER: &str = "34020000002000000001";
    const URI: &str = "sip:34010000002000000001@192.0.2.10:5060";
    const NOW: u64 = 1_790_000_000;

    fn source() -> IpAddr {
        "198.51.100.7".parse().unwrap()
    }

    fn server(qop: bool) -> DigestServer {
        DigestServer::new([7; 32], "3402000000".into(), vec![Algorithm::Md5], qop, Duration::from_secs(60))
    }

    fn password(user: &str) -> Option<String> {
        (user == USER).then(|| "12345678".to_owned())
    }

    fn client(server: &mut DigestServer) -> DigestClient {
        let values = server.challenge(NOW, source(), false);
        DigestClient::new(pick_challenge(values.iter().map(String::as_str), false).unwrap())
    }

    fn answer(client: &mut DigestClient, secret: &str) -> String {
        client.answer("REGISTER", URI, USER, secret, "0a4f113b")
    }

    fn verify(server: &mut DigestServer, value: &str) -> Result<String, DigestError> {
        server.verify(NOW + 1, source(), "REGISTER", password, value)
    }

    #[test]
    fn known_vectors_with_and_without_qop() {
        let plain = Challenge::parse("Digest realm=\"3402000000\",nonce=\"6fe9ba44a76be22a\"").unwrap();
        assert_eq!((plain.algorithm, plain.qop_auth), (Algorithm::Md5, false));
        let value = answer(&mut DigestClient::new(plain), "12345678");
        assert_eq!(
            value,
            "Digest username=\"34020000002000000001\", realm=\"3402000000\", nonce=\"6fe9ba44a76be22a\", \
             uri=\"sip:34010000002000000001@192.0.2.10:5060\", response=\"59fa74bb22b9f6518a042a9a8f5906c7\", \
             algorithm=MD5"
        );
        let qop = "Digest realm=\"3402000000\", nonce=\"6fe9ba44a76be22a\", qop=\"auth,auth-int\", opaque=\"o\\\"p\"";
        let value = answer(&mut DigestClient::new(Challenge::parse(qop).unwrap()), "12345678");
        assert!(value.contains("response=\"75282fe6b68b1856537210ad7f4bc23f\""));
        assert!(value.ends_with(", qop=auth, nc=00000001, cnonce=\"0a4f113b\", opaque=\"o\\\"p\""));
    }

    #[test]
    fn rfc_7616_vector_for_sha_256() {
        let proof = Proof {
            algorithm: Algorithm::Sha256,
            username: "Mufasa",
            realm: "http-auth@example.org",
            password: "Circle of Life",
            method: "GET",
            uri: "/dir/index.html",
            nonce: "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
            qop_auth: Some(("00000001", "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ")),
        };
        assert_eq!(proof.response(), "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1");
    }

    #[test]
    fn hmac_vector() {
        let key: [u8; 32] = std::array::from_fn(|i| if i < 20 { 0x0b } else { 0 });
        let got = hex(&hmac_sha256(&key, b"Hi There"));
        assert_eq!(got, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    }

    #[test]
    fn client_and_server_agree_for_both_algorithms_and_with_or_without_qop() {
        for (algorithm, qop) in [(Algorithm::Md5, false), (Algorithm::Md5, true), (Algorithm::Sha256, true)] {
            let mut server =
                DigestServer::new([9; 32], "a \"b\", c".into(), vec![algorithm], qop, Duration::from_secs(60));
            let mut client = client(&mut server);
            for _ in 0..3 {
                let value = answer(&mut client, "12345678");
                assert_eq!(verify(&mut server, &value).as_deref(), Ok(USER));
            }
        }
    }

    #[test]
    fn sha_256_is_taken_when_alone_or_wanted() {
        let (md5, sha) = ("Digest realm=\"r\",nonce=\"1\"", "Digest realm=\"r\",nonce=\"2\",algorithm=SHA-256");
        let picked =
            |values: &[&'static str], prefer| pick_challenge(values.iter().copied(), prefer).map(|c| c.algorithm);
        assert_eq!(picked(&[sha, md5], false), Ok(Algorithm::Md5));
        assert_eq!(picked(&[md5, sha], true), Ok(Algorithm::Sha256));
        assert_eq!(picked(&["Basic realm=\"r\"", sha], false), Ok(Algorithm::Sha256));
        assert_eq!(picked(&["Basic realm=\"r\""], false), Err(DigestError::NoCredentials));
        assert_eq!(picked(&[], false), Err(DigestError::NoCredentials));
    }

    #[test]
    fn challenges_that_cannot_be_answered_are_refused() {
        for value in [
            "Digest nonce=\"1\"",
            "Digest realm=\"r\"",
            "Digest realm=\"r\",nonce=\"1\",algorithm=SM3",
            "Digest realm=\"r\",nonce=\"1\",algorithm=MD5-sess",
            "Digest realm=\"r\",nonce=\"1\",qop=\"auth-int\"",
            "Digest realm=\"r\",nonce=\"1\",realm=\"s\"",
            "Digest realm=\"r,nonce=\"1\"",
            "Digest realm",
            "",
        ] {
            assert_eq!(Challenge::parse(value), Err(DigestError::Malformed), "{value}");
        }
        let huge = format!("Digest realm=\"r\",nonce=\"{}\"", "A".repeat(64 * 1024));
        assert_eq!(Challenge::parse(&huge), Err(DigestError::Malformed));
        let many: String = (0..40).map(|i| format!("p{i}=1,")).collect();
        assert_eq!(AuthParams::parse(&format!("Digest {many}")), Err(DigestError::Malformed));
    }

    #[test]
    fn parameters_hold_commas_escapes_and_spaces() {
        let got = AuthParams::parse("Digest  a = \"x, \\\"y\\\\\" , b=z==,\tC=\"\"  d=1,").unwrap();
        let want = [("a", "x, \"y\\", true), ("b", "z==", false), ("C", "", true), ("d", "1", false)];
        assert_eq!(got.params, want.map(|(n, v, q)| (n.to_owned(), v.to_owned(), q)));
        assert_eq!(got.value("c"), Some(""));
        let gb =
            AuthParams::parse("Capability algorithm=\"A:SM2;H:SM3;S:SM4/OFB/PKCS5\", keyversion=\"2026\"").unwrap();
        assert_eq!((gb.scheme.as_str(), gb.value("algorithm")), ("Capability", Some("A:SM2;H:SM3;S:SM4/OFB/PKCS5")));
        for bad in ["Digest a=\"x\"y", "Digest =1", "Digest a b=1", "Dig\"est a=1"] {
            assert_eq!(AuthParams::parse(bad), Err(DigestError::Malformed), "{bad}");
        }
    }

    #[test]
    fn what_devices_do_differently_still_verifies() {
        let mut server = server(true);
        let value = answer(&mut client(&mut server), "12345678");
        let upper = value.find("response=\"").unwrap() + 10;
        let upper = format!("{}{}{}", &value[..upper], value[upper..upper + 32].to_uppercase(), &value[upper + 32..]);
        assert_eq!(verify(&mut server, &upper).as_deref(), Ok(USER));
        let value = answer(&mut client(&mut server), "12345678")
            .replace("qop=auth", "qop=\"auth\"")
            .replace("algorithm=MD5, ", "");
        assert_eq!(verify(&mut server, &value).as_deref(), Ok(USER));
        let mut client = client(&mut server);
        let other_uri = client.answer("REGISTER", "sip:34010000002000000001@3401000000", USER, "12345678", "x");
        assert_eq!(verify(&mut server, &other_uri).as_deref(), Ok(USER));
        let mut challenge = client.challenge().clone();
        challenge.qop_auth = false;
        challenge.nonce = self::client(&mut server).challenge().nonce.clone();
        let without_qop = answer(&mut DigestClient::new(challenge), "12345678");
        assert_eq!(verify(&mut server, &without_qop).as_deref(), Ok(USER));
    }

    #[test]
    fn refusals_are_told_apart() {
        let mut server = server(true);
        let mut client = client(&mut server);
        let wrong = answer(&mut client, "87654321");
        assert_eq!(verify(&mut server, &wrong), Err(DigestError::Wrong));
        let value = answer(&mut client, "12345678");
        let unknown = value.replace(USER, "34020000002000000009");
        assert_eq!(verify(&mut server, &unknown), Err(DigestError::Unknown));
        assert_eq!(server.verify(NOW, source(), "INVITE", password, &value), Err(DigestError::Wrong));
        for (from, to) in [
            ("algorithm=MD5", "algorithm=SM3"),
            ("algorithm=MD5", "algorithm=MD5-sess"),
            ("algorithm=MD5", "algorithm=SHA-256"),
            ("qop=auth", "qop=auth-int"),
            ("nc=00000002", "nc=2"),
            ("nc=00000002", "nc=0000000g"),
            ("nc=00000002", "nc=+0000002"),
            ("cnonce=", "xnonce="),
            ("username=", "realm="),
            ("response=\"", "response=\"0"),
        ] {
            assert!(value.contains(from));
            assert_eq!(verify(&mut server, &value.replacen(from, to, 1)), Err(DigestError::Malformed), "{from} {to}");
        }
        assert_eq!(verify(&mut server, &value.replace("3402000000\"", "other\"")), Err(DigestError::NoCredentials));
        assert_eq!(verify(&mut server, "NoOneKnowsThisScheme opaque-data=here"), Err(DigestError::NoCredentials));
        let no_password = |_: &str| Some(String::new());
        let empty = answer(&mut client, "");
        assert_eq!(server.verify(NOW, source(), "REGISTER", no_password, &empty), Err(DigestError::Wrong));
    }

    #[test]
    fn old_foreign_and_moved_nonces_are_stale_only_for_who_knows_the_password() {
        let mut server = server(true);
        let mut client = client(&mut server);
        let value = answer(&mut client, "12345678");
        let at = |server: &mut DigestServer, now, from: &str, value: &str| {
            server.verify(now, from.parse().unwrap(), "REGISTER", password, value)
        };
        assert_eq!(at(&mut server, NOW + 61, "198.51.100.7", &value), Err(DigestError::Stale));
        assert_eq!(at(&mut server, NOW - 1, "198.51.100.7", &value), Err(DigestError::Stale));
        assert_eq!(at(&mut server, NOW, "198.51.100.8", &value), Err(DigestError::Stale));
        assert_eq!(at(&mut server, NOW + 60, "::ffff:198.51.100.7", &value).as_deref(), Ok(USER));
        let wrong = answer(&mut client, "x");
        assert_eq!(at(&mut server, NOW + 61, "198.51.100.7", &wrong), Err(DigestError::Wrong));
        let foreign = Challenge { nonce: "6fe9ba44a76be22a".into(), ..client.challenge().clone() };
        let value = answer(&mut DigestClient::new(foreign), "12345678");
        assert_eq!(verify(&mut server, &value), Err(DigestError::Stale));
        assert!(server.challenge(NOW, source(), true)[0].ends_with(", stale=true"));
    }

    #[test]
    fn a_count_is_good_once_and_a_nonce_is_one_users() {
        let mut server = server(true);
        let mut client = client(&mut server);
        let (first, second) = (answer(&mut client, "12345678"), answer(&mut client, "12345678"));
        assert!(verify(&mut server, &second).is_ok());
        assert_eq!(verify(&mut server, &second), Err(DigestError::Replay));
        assert_eq!(verify(&mut server, &first), Err(DigestError::Replay));
        let mut challenge = client.challenge().clone();
        challenge.qop_auth = false;
        let uncounted = answer(&mut DigestClient::new(challenge), "12345678");
        assert_eq!(verify(&mut server, &uncounted), Err(DigestError::Replay));
        let other = client.answer("REGISTER", URI, "34020000002000000002", "p", "c");
        let p = |_: &str| Some("p".to_owned());
        assert_eq!(server.verify(NOW, source(), "REGISTER", p, &other), Err(DigestError::Stale));
    }

    #[test]
    fn a_single_use_nonce_without_count_is_good_once_and_freshness_tells_the_source() {
        let mut server = server(false).single_use();
        let value = answer(&mut client(&mut server), "12345678");
        let params = AuthParams::parse(&value).unwrap();
        assert!(server.nonce_is_fresh(NOW + 60, source(), &params));
        assert!(!server.nonce_is_fresh(NOW + 61, source(), &params));
        assert!(!server.nonce_is_fresh(NOW, "198.51.100.8".parse().unwrap(), &params));
        assert_eq!(verify(&mut server, &value).as_deref(), Ok(USER));
        assert_eq!(verify(&mut server, &value), Err(DigestError::Replay));
    }

    #[test]
    fn challenges_keep_nothing_and_never_repeat_a_nonce() {
        let mut server = server(false);
        let nonces: std::collections::HashSet<String> =
            (0..1_000).flat_map(|_| server.challenge(NOW, source(), false)).collect();
        assert_eq!((nonces.len(), server.used.len()), (1_000, 0));
    }

    #[test]
    fn the_table_of_uses_is_bounded_and_makes_room_by_age() {
        let mut server = server(true);
        for number in 0..MAX_TRACKED as u32 {
            server.note_use(NOW as u32, NOW as u32, 1_000 + number, USER, Some(1)).unwrap();
        }
        let mut late = client(&mut server);
        let value = answer(&mut late, "12345678");
        assert_eq!(verify(&mut server, &value), Err(DigestError::Stale));
        assert_eq!(server.used.len(), MAX_TRACKED);
        server.note_use(NOW as u32 + 61, NOW as u32 + 61, 0, USER, Some(1)).unwrap();
        assert_eq!(server.used.len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_text_in_a_header_is_survived(text in "(Digest )?[ -~\\u{4e00}\"=,\\\\]{0,80}") {
            let mut server = server(true);
            let _ = Challenge::parse(&text);
            let _ = verify(&mut server, &text);
        }

        #[test]
        fn any_name_realm_and_password_verify(
            user in "[ -~\\u{4e00}]{1,30}", realm in "[ -~]{0,30}", secret in "[ -~\\u{4e00}]{1,30}",
            cnonce in "[ -~]{1,20}",
        ) {
            let mut server = DigestServer::new([1; 32], realm, vec![Algorithm::Md5], true, Duration::from_secs(60));
            let value = client(&mut server).answer("MESSAGE", URI, &user, &secret, &cnonce);
            let got = server.verify(NOW, source(), "MESSAGE", |_| Some(secret.clone()), &value);
            prop_assert_eq!(got, Ok(user));
        }
    }
}
