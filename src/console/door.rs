//! Who may connect to the console, how many at a time, and for how long without saying anything.
//! Standard: [RFC8446], [RFC9112 9.5].
//! In: a bound socket. Out: connections for `axum::serve`, TLS done.
//! Invariants: at most [`CONNECTIONS`], of one source [`PER_SOURCE`]; handshakes, requests and answers have their time
//! limits, so whoever is slow or silent gives the place back; nobody's handshake delays another's.
//! Not here: what a request may do (`guard`).

use crate::clock;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use rustls::ServerConfig;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Open connections: a few desks with six connections each, a scraper, a health check; the rest is misuse.
pub(super) const CONNECTIONS: usize = 256;
/// Of these from one address, so that one source cannot shut out all others.
pub(super) const PER_SOURCE: usize = 64;
/// Pause after the system refused a connection for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Bytes taken in before anything is answered: the largest head and the largest body allowed.
const REQUEST_BYTES: usize = super::guard::BODY_BYTES as usize + (32 << 10);

/// Time limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// From a request's first byte to its answer's.
    pub request: Duration,
    /// Between an answer and the next request, or for an answer that is not fetched.
    pub idle: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Times { handshake: Duration::from_secs(10), request: Duration::from_secs(10), idle: Duration::from_secs(30) }
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source(pub IpAddr);

impl Connected<IncomingStream<'_, Door>> for Source {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        Source(stream.remote_addr().ip().to_canonical())
    }
}

/// The listener.
pub(super) struct Door {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
    times: Times,
    places: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    handshakes: JoinSet<Option<(Conn, SocketAddr)>>,
}

impl Door {
    pub fn new(tcp: TcpListener, tls: Option<Arc<ServerConfig>>, times: Times) -> Self {
        Door {
            tcp,
            tls: tls.map(TlsAcceptor::from),
            times,
            places: Arc::new(Semaphore::new(CONNECTIONS)),
            taken: Arc::default(),
            handshakes: JoinSet::new(),
        }
    }
}

/// Waits for a free place, then for somebody to take it.
async fn knock(tcp: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let permit = places.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match tcp.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(e) if is_the_peers(&e) => {}
            Err(e) => {
                tracing::warn!(error = %e, "the console cannot accept connections for now");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_the_peers(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(e.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}

impl Listener for Door {
    type Io = Conn;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Conn, SocketAddr) {
        loop {
            let (stream, peer, permit) = tokio::select! {
                Some(shaken) = self.handshakes.join_next(), if !self.handshakes.is_empty() => match shaken {
                    Ok(Some(conn)) => return conn,
                    // It failed or took too long; a panic there costs its own connection only.
                    _ => continue,
                },
                caller = knock(&self.tcp, &self.places) => caller,
            };
            let Some(place) = Place::take(&self.taken, peer.ip().to_canonical(), permit) else {
                tracing::debug!(%peer, "too many console connections from one address");
                continue;
            };
            // Small answers go out at once. Where the system refuses, they are merely slower.
            let _ = stream.set_nodelay(true);
            let times = self.times;
            let Some(tls) = &self.tls else { return (Conn::new(Stream::Plain(stream), place, times), peer) };
            let handshake = tls.accept(stream);
            self.handshakes.spawn(async move {
                match tokio::time::timeout(times.handshake, handshake).await {
                    Ok(Ok(stream)) => Some((Conn::new(Stream::Tls(Box::new(stream)), place, times), peer)),
                    Ok(Err(e)) => {
                        tracing::debug!(%peer, error = %e, "TLS handshake of a console connection failed");
                        None
                    }
                    Err(_) => None,
                }
            });
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// One of the connections allowed; given back when dropped.
#[derive(Debug)]
struct Place {
    ip: IpAddr,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn take(taken: &Arc<Mutex<HashMap<IpAddr, usize>>>, ip: IpAddr, permit: OwnedSemaphorePermit) -> Option<Self> {
        let mut table = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(ip).or_default();
        if *count >= PER_SOURCE {
            return None;
        }
        *count += 1;
        Some(Place { ip, taken: taken.clone(), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.ip);
            }
        }
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection with its clock running.
#[derive(Debug)]
pub(super) struct Conn {
    stream: Stream,
    times: Times,
    timer: Pin<Box<Sleep>>,
    /// Bytes of the request that is coming in; 0 between requests.
    received: usize,
    _place: Place,
}

impl Conn {
    fn new(stream: Stream, place: Place, times: Times) -> Self {
        // Who connects has something to ask.
        let timer = Box::pin(tokio::time::sleep(times.request));
        Conn { stream, times, timer, received: 0, _place: place }
    }

    fn allow(&mut self, time: Duration) {
        self.timer.as_mut().reset(Instant::from_std(clock::now() + time));
    }

    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.timer.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// What any kind of writing does to the clock.
    fn written<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match done {
            Poll::Ready(_) => {
                self.received = 0;
                self.allow(self.times.idle);
            }
            Poll::Pending => self.in_time(cx)?,
        }
        done
    }
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.in_time(cx)?;
        let before = buf.filled().len();
        ready!(match &mut this.stream {
            Stream::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_read(cx, buf),
        })?;
        let count = buf.filled().len() - before;
        if this.received == 0 && count > 0 {
            this.allow(this.times.request);
        }
        this.received += count;
        if this.received > REQUEST_BYTES {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = match &mut this.stream {
            Stream::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_write(cx, buf),
        };
        this.written(cx, done)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = match &mut this.stream {
            Stream::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Stream::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        };
        this.written(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(s) => s.is_write_vectored(),
            Stream::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = match &mut this.stream {
            Stream::Plain(s) => Pin::new(s).poll_flush(cx),
            Stream::Tls(s) => Pin::new(s).poll_flush(cx),
        };
        if done.is_pending() {
            this.in_time(cx)?;
        }
        done
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = match &mut this.stream {
            Stream::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Tls(s) => Pin::new(s).poll_shutdown(cx),
        };
        if done.is_pending() {
            this.in_time(cx)?;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const SHORT: Times = Times {
        handshake: Duration::from_millis(30),
        request: Duration::from_millis(30),
        idle: Duration::from_millis(30),
    };

    async fn door(times: Times) -> (Door, SocketAddr) {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = tcp.local_addr().unwrap();
        (Door::new(tcp, None, times), at)
    }

    #[tokio::test]
    async fn a_slow_request_is_cut_however_often_it_says_something() {
        let (mut door, at) = door(SHORT).await;
        let mut client = TcpStream::connect(at).await.unwrap();
        let (mut conn, _) = door.accept().await;
        let drip = async {
            loop {
                if client.write_all(b"x").await.is_err() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let read = async {
            let mut buf = [0; 16];
            loop {
                if let Err(e) = conn.read(&mut buf).await {
                    return e.kind();
                }
            }
        };
        tokio::select! {
            () = drip => unreachable!(),
            kind = read => assert_eq!(kind, io::ErrorKind::TimedOut),
        }
    }

    #[tokio::test]
    async fn an_answer_that_nobody_fetches_is_given_up() {
        let (mut door, at) = door(SHORT).await;
        let _client = TcpStream::connect(at).await.unwrap();
        let (mut conn, _) = door.accept().await;
        let block = vec![0; 1 << 20];
        let kind = loop {
            if let Err(e) = conn.write_all(&block).await {
                break e.kind();
            }
        };
        assert_eq!(kind, io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn an_endless_request_is_cut() {
        let (mut door, at) = door(Times::default()).await;
        let mut client = TcpStream::connect(at).await.unwrap();
        let (mut conn, _) = door.accept().await;
        let flood = async {
            let block = vec![b'a'; 64 << 10];
            while client.write_all(&block).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        let read = async {
            let (mut buf, mut total) = (vec![0; 16 << 10], 0);
            loop {
                match conn.read(&mut buf).await {
                    Ok(n) => total += n,
                    Err(e) => return (e.kind(), total),
                }
            }
        };
        tokio::select! {
            () = flood => unreachable!(),
            (kind, total) = read => {
                assert_eq!(kind, io::ErrorKind::InvalidData);
                assert!(total <= REQUEST_BYTES);
            }
        }
    }

    #[tokio::test]
    async fn one_source_gets_its_share_and_places_come_back() {
        let (mut door, at) = door(Times::default()).await;
        let mut kept = Vec::new();
        for _ in 0..PER_SOURCE {
            let client = TcpStream::connect(at).await.unwrap();
            kept.push((client, door.accept().await));
        }
        let mut extra = TcpStream::connect(at).await.unwrap();
        let refused = async { extra.read(&mut [0; 1]).await };
        tokio::select! {
            _ = door.accept() => panic!("one too many"),
            got = refused => assert_eq!(got.unwrap_or(0), 0),
        }
        kept.pop();
        let _client = TcpStream::connect(at).await.unwrap();
        let _conn = door.accept().await;
        assert_eq!(door.taken.lock().unwrap().values().sum::<usize>(), PER_SOURCE);
        kept.clear();
    }
}
