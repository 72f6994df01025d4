//! The light probe: is an RTSP camera that nobody watches still alive?
//! One OPTIONS on a fresh connection; any RTSP answer is life (also 401: the credentials are DESCRIBE's business).
//! Bounds: [`LIMIT`] for all of it, [`ANSWER`] bytes read.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

/// A camera that does not answer within this does not answer.
pub const LIMIT: Duration = Duration::from_secs(3);
/// The status line is all we need.
const ANSWER: usize = 512;

/// Asks; Err says what was seen, for people.
pub async fn options(url: &Url) -> Result<u16, String> {
    match tokio::time::timeout(LIMIT, ask(url)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer to OPTIONS within {} s", LIMIT.as_secs())),
    }
}

async fn ask(url: &Url) -> Result<u16, String> {
    let host = url.host_str().ok_or("the RTSP address has no host")?.trim_matches(['[', ']']);
    let port = url.port().unwrap_or(554);
    let mut stream =
        TcpStream::connect((host, port)).await.map_err(|e| format!("cannot connect to port {port}: {e}"))?;
    let request = format!("OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: Menshen\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| format!("cannot send OPTIONS: {e}"))?;
    let mut answer = Vec::with_capacity(ANSWER);
    while answer.len() < ANSWER && !answer.contains(&b'\n') {
        let mut piece = [0u8; 128];
        match stream.read(&mut piece).await {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&piece[..n]),
            Err(e) => return Err(format!("the connection broke: {e}")),
        }
    }
    status(&answer).ok_or_else(|| "what answers there is not an RTSP server".to_owned())
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|b| *b == b'\r' || *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("RTSP/1.0 ").or_else(|| line.strip_prefix("RTSP/2.0 "))?;
    rest.split(' ').next()?.parse().ok().filter(|code| (100..700).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_status_lines_and_refuses_others() {
        assert_eq!(status(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n"), Some(200));
        assert_eq!(status(b"RTSP/1.0 401 Unauthorized\r\n"), Some(401));
        for bad in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"RTSP/1.0 99 x\r\n", b"RTSP/1.0 xyz\r\n", b"\xff\xfe\r\n"] {
            assert_eq!(status(bad), None);
        }
    }
}
