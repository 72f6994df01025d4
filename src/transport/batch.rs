//! UDP out in trains: one system call for up to sixteen packets of one frame, cut apart by segmentation offload.
//! In: contiguous blocks of equal size, the last one may be shorter.
//! Invariants: a train never exceeds what one datagram may hold; where the kernel, the card or the path refuses
//! offload, packets go one by one from then on. Packets may be fragmented on the way (no "don't fragment"): a tunnel
//! with a smaller MTU must not swallow them.
//! Decision: the socket is told its segment size once (`UDP_SEGMENT`) and is connected, so that a train is one plain
//! `send`: a size, an address and a type of service with every call cost an allocation and a route look-up each.
#![allow(unsafe_code)]

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Longer bursts overflow the receive buffers of small receivers and switches.
pub const TRAIN: usize = 16;
/// The most bytes of a UDP datagram over IPv4.
const MAX_DATAGRAM: usize = 65_507;
/// A path that is too narrow even for packets of this many bytes gets them in fragments; larger ones are refused
/// (`EMSGSIZE`), so that the caller makes smaller ones.
const SMALL: usize = 1320;

/// A UDP socket connected to one receiver.
#[derive(Debug)]
pub struct UdpTrainSender {
    socket: UdpSocket,
    destination: SocketAddr,
    /// The segment size the socket has; 0: none.
    segment: usize,
    offload: bool,
}

impl UdpTrainSender {
    /// Takes a bound socket, makes it non-blocking and connects it, so that only the receiver's packets reach it
    /// and the route is looked up once.
    pub fn new(socket: UdpSocket, destination: SocketAddr) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.connect(destination)?;
        allow_fragmentation(&socket)?;
        Ok(UdpTrainSender { socket, destination, segment: 0, offload: true })
    }

    /// The receiver.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// One packet a system call from now on: a train must fit the interface's MTU packet by packet, a single packet is
    /// cut by the system where it does not.
    pub fn send_singly(&mut self) {
        self.offload = false;
    }

    /// Sends `blocks` (`block` bytes each, the last may be shorter) and returns how many packets left. Stops at the
    /// first error; `WouldBlock` means the socket buffer is full.
    pub fn send(&mut self, blocks: &[u8], block: usize) -> (usize, io::Result<()>) {
        let block = block.max(1);
        let mut sent = 0;
        let mut rest = blocks;
        while !rest.is_empty() {
            let packets = if self.cuts_at(block) { (MAX_DATAGRAM / block).clamp(1, TRAIN) } else { 1 };
            let train = &rest[..rest.len().min(packets * block)];
            match self.socket.send(train) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if self.offload && refuses_offload(&e, block) => {
                    tracing::info!(destination = %self.destination, error = %e, "no segmentation offload: packets go one by one");
                    self.offload = false;
                    continue;
                }
                Err(e) => return (sent, Err(e)),
            }
            sent += train.len().div_ceil(block);
            rest = &rest[train.len()..];
        }
        (sent, Ok(()))
    }

    /// Sees to it that the socket cuts at `block` bytes; false where packets must go one by one.
    fn cuts_at(&mut self, block: usize) -> bool {
        let wanted = if self.offload { block } else { 0 };
        if self.segment != wanted {
            match i32::try_from(wanted).map(|size| set_option(&self.socket, libc::SOL_UDP, libc::UDP_SEGMENT, size)) {
                Ok(Ok(())) => self.segment = wanted,
                // Kernels before 4.18 have no such option, and then the socket never cuts.
                Ok(Err(_)) | Err(_) => (self.offload, self.segment) = (false, 0),
            }
        }
        self.offload
    }

    /// Reads and throws away what the receiver sent (stray RTCP on the RTP port); true if its host said that nobody
    /// listens there.
    pub fn drain(&self) -> bool {
        let mut scratch = [0u8; 256];
        for _ in 0..8 {
            match self.socket.recv(&mut scratch) {
                Ok(_) => {}
                Err(e) => return e.kind() == io::ErrorKind::ConnectionRefused,
            }
        }
        false
    }
}

/// `EIO`: no checksum offload on the card, or IPsec on the way; `EINVAL`, since Linux 6.14 `EMSGSIZE`: the path's MTU is
/// below the segment size.
fn refuses_offload(error: &io::Error, block: usize) -> bool {
    match error.raw_os_error() {
        Some(libc::EIO | libc::EINVAL) => true,
        Some(libc::EMSGSIZE) => block <= SMALL,
        _ => false,
    }
}

/// Video must rather be fragmented than lost.
fn allow_fragmentation(socket: &UdpSocket) -> io::Result<()> {
    match socket.local_addr()?.is_ipv4() {
        true => set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        false => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
    }
}

fn set_option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for the life of `socket`, and the pointer and length describe one c_int on the
    // stack, which the kernel only reads. Tested by `fragmentation_is_allowed`.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            std::mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trains_arrive_packet_by_packet() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let mut sender =
            UdpTrainSender::new(UdpSocket::bind("127.0.0.1:0").unwrap(), receiver.local_addr().unwrap()).unwrap();
        let mut blocks = Vec::new();
        for i in 0..40u8 {
            blocks.extend(std::iter::repeat_n(i, 1412));
        }
        blocks.extend_from_slice(&[99; 7]);
        let (sent, result) = sender.send(&blocks, 1412);
        result.unwrap();
        assert_eq!(sent, 41);
        let mut buf = [0u8; 2000];
        for i in 0..41u8 {
            let n = receiver.recv(&mut buf).unwrap();
            assert_eq!((n, buf[0]), if i == 40 { (7, 99) } else { (1412, i) });
        }
    }

    #[test]
    fn segment_size_follows_the_blocks_and_one_by_one_needs_no_offload() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let mut sender =
            UdpTrainSender::new(UdpSocket::bind("127.0.0.1:0").unwrap(), receiver.local_addr().unwrap()).unwrap();
        for (block, offload) in [(1412, true), (500, true), (1412, true), (700, false), (1412, false)] {
            sender.offload = offload;
            let blocks = vec![5; 3 * block + 9];
            assert!(matches!(sender.send(&blocks, block), (4, Ok(()))));
            let mut buf = [0u8; 2000];
            let sizes: Vec<usize> = (0..4).map(|_| receiver.recv(&mut buf).unwrap()).collect();
            assert_eq!(sizes, [block, block, block, 9], "offload: {offload}");
        }
    }

    #[test]
    fn fragmentation_is_allowed() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender =
            UdpTrainSender::new(UdpSocket::bind("127.0.0.1:0").unwrap(), receiver.local_addr().unwrap()).unwrap();
        let mut value: libc::c_int = -1;
        let mut len = std::mem::size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: an open descriptor, and an out pointer to a c_int with its true length.
        let rc = unsafe {
            libc::getsockopt(
                sender.socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                (&raw mut value).cast(),
                &raw mut len,
            )
        };
        assert_eq!((rc, value), (0, libc::IP_PMTUDISC_DONT));
    }
}
