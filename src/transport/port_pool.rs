//! Media ports: one contiguous range, a pair (RTP even, RTCP odd) for each session.
//! Standard: [RFC3550 11] even RTP port, [GB/T28181-2022 9.2.2] the port in the answer's `m=` line.
//! In: local address, kind of session, `now`. Out: a lease with bound sockets. Shared by links and media workers.
//! Invariants: a port is leased to one session at a time; it rests before it is used again, so that the late packets
//! of the session before do not enter the next; ports are used in turn over the whole range.
//! Not here: reading and writing the sockets (`media`).

use super::sockopt::{ActiveSocket, BindError, BindFault, bind_active, bind_tcp, bind_udp};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a freed port rests, unless configured otherwise.
pub const DEFAULT_QUARANTINE: Duration = Duration::from_secs(30);
/// The least rest, kept even when every port is taken.
pub const MIN_QUARANTINE: Duration = Duration::from_secs(2);
/// Pairs tried in one allocation when other programs hold ports of our range; bounds the time of a call.
const MAX_TRIES: usize = 128;

/// What the session needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortUse {
    /// RTP and RTCP over UDP.
    Udp,
    /// RTP over TCP, the peer connects to us.
    TcpPassive,
    /// RTP over TCP, we connect.
    TcpActive,
}

/// The bound sockets of a lease, non-blocking.
#[derive(Debug)]
pub enum MediaSockets {
    /// RTP on the even port, RTCP on the odd one above.
    Udp {
        /// RTP.
        rtp: UdpSocket,
        /// RTCP.
        rtcp: UdpSocket,
    },
    /// Listening on the even port.
    TcpPassive(TcpListener),
    /// Bound to the even port, to be connected.
    TcpActive(ActiveSocket),
}

/// Why there is no port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Every pair is leased, or freed less than [`MIN_QUARANTINE`] ago, or held by other programs.
    #[error("no media port is free: {in_use} of {size} in use: widen media.port_range or lower max_sessions")]
    Exhausted {
        /// Pairs leased.
        in_use: usize,
        /// Pairs in the range.
        size: usize,
    },
    /// The local address or the system is at fault, not the port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The configured range holds no even port with its odd neighbour.
    #[error("media.port_range {from}-{to} holds no pair of ports: give at least an even port and the one above it")]
    EmptyRange {
        /// First port.
        from: u16,
        /// Last port.
        to: u16,
    },
}

#[derive(Debug)]
struct State {
    /// Longest unused first.
    free: VecDeque<u16>,
    /// Longest resting first.
    resting: VecDeque<(u16, Instant)>,
    in_use: usize,
}

/// The range of media ports. Cheap to clone; all clones share it.
#[derive(Debug, Clone)]
pub struct PortPool {
    // The one lock of this layer: leases end wherever their session ends, also on a worker's plain thread.
    // It is held for a few queue operations, never across a system call or an await.
    state: Arc<Mutex<State>>,
    size: usize,
    quarantine: Duration,
}

impl PortPool {
    /// A pool of the pairs within `range`. `start` (any number, best a random one) turns the ring, so that a restarted
    /// process does not begin with the ports its predecessor's peers still send to.
    ///
    /// # Errors
    /// [`PoolError::EmptyRange`].
    pub fn new(range: RangeInclusive<u16>, quarantine: Duration, start: u32) -> Result<Self, PoolError> {
        let (from, to) = (*range.start(), *range.end());
        let mut free: VecDeque<u16> = range.filter(|p| *p != 0 && p % 2 == 0 && *p < to).collect();
        if free.is_empty() {
            return Err(PoolError::EmptyRange { from, to });
        }
        let size = free.len();
        free.rotate_left(start as usize % size);
        let state = State { free, resting: VecDeque::new(), in_use: 0 };
        Ok(PortPool { state: Arc::new(Mutex::new(state)), size, quarantine: quarantine.max(MIN_QUARANTINE) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pair of ports and its sockets, bound to `ip`.
    ///
    /// # Errors
    /// [`PoolError::Exhausted`] (answer 486), [`PoolError::Bind`] when the address itself cannot be bound.
    pub fn allocate(
        &self,
        now: Instant,
        ip: IpAddr,
        port_use: PortUse,
    ) -> Result<(PortLease, MediaSockets), PoolError> {
        for _ in 0..MAX_TRIES.min(self.size) {
            let Some(port) = self.take(now) else { break };
            // From here the lease gives the port back, whatever happens.
            let lease = PortLease { pool: self.clone(), port, open: true };
            match open(SocketAddr::new(ip, port), port_use) {
                Ok(sockets) => return Ok((lease, sockets)),
                // Somebody else's port: let it rest and try the next.
                Err(e) if e.fault == BindFault::InUse => lease.release(now),
                Err(e) => {
                    self.untake(port);
                    lease.forget();
                    return Err(e.into());
                }
            }
        }
        Err(PoolError::Exhausted { in_use: self.in_use(), size: self.size })
    }

    fn take(&self, now: Instant) -> Option<u16> {
        let mut guard = self.lock();
        let state = &mut *guard;
        while let Some((port, since)) = state.resting.front().copied() {
            if now.saturating_duration_since(since) < self.quarantine {
                break;
            }
            state.resting.pop_front();
            state.free.push_back(port);
        }
        let port = match state.free.pop_front() {
            Some(port) => port,
            None => {
                let (port, since) = state.resting.front().copied()?;
                if now.saturating_duration_since(since) < MIN_QUARANTINE {
                    return None;
                }
                state.resting.pop_front();
                port
            }
        };
        state.in_use += 1;
        Some(port)
    }

    /// Back to the front of the ring without rest: the port was never used.
    fn untake(&self, port: u16) {
        let mut state = self.lock();
        state.in_use -= 1;
        state.free.push_front(port);
    }

    fn give_back(&self, port: u16, now: Instant) {
        let mut state = self.lock();
        state.in_use -= 1;
        state.resting.push_back((port, now));
    }

    /// Pairs leased now.
    pub fn in_use(&self) -> usize {
        self.lock().in_use
    }

    /// Pairs in the range.
    pub fn size(&self) -> usize {
        self.size
    }
}

fn open(addr: SocketAddr, port_use: PortUse) -> Result<MediaSockets, BindError> {
    Ok(match port_use {
        PortUse::Udp => {
            let rtcp_addr = SocketAddr::new(addr.ip(), addr.port() + 1);
            MediaSockets::Udp { rtp: bind_udp(addr)?, rtcp: bind_udp(rtcp_addr)? }
        }
        PortUse::TcpPassive => MediaSockets::TcpPassive(bind_tcp(addr, "TCP")?),
        PortUse::TcpActive => MediaSockets::TcpActive(bind_active(addr)?),
    })
}

/// A pair of ports in use. Freed (into rest) on drop; drop it after the sockets.
#[derive(Debug)]
pub struct PortLease {
    pool: PortPool,
    port: u16,
    open: bool,
}

impl PortLease {
    /// The even port: what SDP names.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Frees the pair at `now`. Dropping does the same at the machine's time.
    pub fn release(mut self, now: Instant) {
        self.open = false;
        self.pool.give_back(self.port, now);
    }

    fn forget(mut self) {
        self.open = false;
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        if self.open {
            self.pool.give_back(self.port, crate::clock::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicU16, Ordering};

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// A pool of `pairs` pairs that are free at this moment. Tests run side by side: each starts at another place.
    fn pool(pairs: u16, start: u32) -> PortPool {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let free = |p: u16| {
            let addr = SocketAddr::new(LOOPBACK, p);
            bind_udp(addr).is_ok() && bind_tcp(addr, "TCP").is_ok()
        };
        for _ in 0..90 {
            let from = 23_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 90 * 64;
            if (from..from + pairs * 2).all(free) {
                return PortPool::new(from..=from + pairs * 2 - 1, DEFAULT_QUARANTINE, start).unwrap();
            }
        }
        panic!("no free range");
    }

    #[test]
    fn ranges_are_cut_to_whole_pairs() {
        assert_eq!(PortPool::new(20_001..=20_010, DEFAULT_QUARANTINE, 0).unwrap().size(), 4);
        assert_eq!(
            PortPool::new(20_001..=20_002, DEFAULT_QUARANTINE, 0).unwrap_err(),
            PoolError::EmptyRange { from: 20_001, to: 20_002 }
        );
        assert_eq!(PortPool::new(65_534..=65_535, DEFAULT_QUARANTINE, 0).unwrap().size(), 1);
        assert!(PortPool::new(0..=1, DEFAULT_QUARANTINE, 0).is_err());
    }

    #[test]
    fn a_port_is_never_handed_out_twice_and_rests_before_reuse() {
        let pool = pool(3, 1);
        let t0 = crate::clock::now();
        let mut leases: Vec<_> = (0..3).map(|_| pool.allocate(t0, LOOPBACK, PortUse::Udp).unwrap()).collect();
        let ports: HashSet<u16> = leases.iter().map(|(l, _)| l.port()).collect();
        assert_eq!((ports.len(), pool.in_use()), (3, 3));
        assert!(ports.iter().all(|p| p % 2 == 0));
        let MediaSockets::Udp { rtp, rtcp } = &leases[0].1 else { panic!("udp asked for") };
        assert_eq!(rtp.local_addr().unwrap().port(), leases[0].0.port());
        assert_eq!(rtcp.local_addr().unwrap().port(), leases[0].0.port() + 1);

        let full = pool.allocate(t0, LOOPBACK, PortUse::Udp).unwrap_err();
        assert_eq!(full, PoolError::Exhausted { in_use: 3, size: 3 });

        let (lease, sockets) = leases.remove(1);
        let freed = lease.port();
        drop(sockets);
        lease.release(t0);
        assert_eq!(pool.in_use(), 2);
        // Exhausted: two seconds of rest are enough, less are not.
        assert!(pool.allocate(t0 + Duration::from_millis(1999), LOOPBACK, PortUse::Udp).is_err());
        let (again, _sockets) = pool.allocate(t0 + MIN_QUARANTINE, LOOPBACK, PortUse::Udp).unwrap();
        assert_eq!(again.port(), freed);
    }

    #[test]
    fn while_others_are_free_a_freed_port_rests_its_full_time_and_the_ring_turns() {
        let pool = pool(4, 0);
        let t0 = crate::clock::now();
        let mut order = Vec::new();
        for _ in 0..3 {
            let (lease, sockets) = pool.allocate(t0, LOOPBACK, PortUse::TcpPassive).unwrap();
            order.push(lease.port());
            drop(sockets);
            lease.release(t0);
        }
        assert!(order.windows(2).all(|w| w[1] == w[0] + 2), "{order:?}");
        let late = t0 + DEFAULT_QUARANTINE;
        let (fourth, _s4) = pool.allocate(late, LOOPBACK, PortUse::TcpPassive).unwrap();
        assert_eq!(fourth.port(), order[2] + 2, "unused before rested");
        let (first, _s1) = pool.allocate(late, LOOPBACK, PortUse::TcpPassive).unwrap();
        assert_eq!(first.port(), order[0]);
    }

    #[test]
    fn a_port_held_by_another_program_is_passed_over() {
        let pool = pool(2, 0);
        let t0 = crate::clock::now();
        let (probe, sockets) = pool.allocate(t0, LOOPBACK, PortUse::Udp).unwrap();
        drop(sockets);
        let first = probe.port();
        let alien = bind_udp(SocketAddr::new(LOOPBACK, first + 3)).unwrap(); // the second pair's RTCP port
        assert_eq!(pool.allocate(t0, LOOPBACK, PortUse::Udp).unwrap_err(), PoolError::Exhausted { in_use: 1, size: 2 });
        drop(alien);
        let (second, _sockets) = pool.allocate(t0 + MIN_QUARANTINE, LOOPBACK, PortUse::Udp).unwrap();
        assert_eq!(second.port(), first + 2);
    }

    #[test]
    fn a_wrong_local_address_is_an_error_of_its_own_and_costs_no_port() {
        let pool = pool(1, 0);
        let t0 = crate::clock::now();
        let error = pool.allocate(t0, "192.0.2.1".parse().unwrap(), PortUse::Udp).unwrap_err();
        assert!(matches!(error, PoolError::Bind(BindError { fault: BindFault::NotOurAddress, .. })), "{error}");
        assert_eq!(pool.in_use(), 0);
        assert!(pool.allocate(t0, LOOPBACK, PortUse::TcpActive).is_ok());
    }

    #[test]
    fn dropping_a_lease_frees_it() {
        let pool = pool(1, 0);
        let t0 = crate::clock::now();
        let held = pool.allocate(t0, LOOPBACK, PortUse::TcpActive).unwrap();
        assert_eq!(pool.in_use(), 1);
        drop(held);
        assert_eq!(pool.in_use(), 0);
    }
}
