//! UDP out in trains: one system call for up to sixteen packets of one frame, cut apart by segmentation offload. UDP in
//! by batches: one system call for up to sixteen datagrams, each up to a train that the kernel has put together.
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

/// Datagrams (or trains) taken by one system call.
const BATCH: usize = 16;
/// Bytes of each: what one datagram may hold, or the kernel may put together.
const SLOT: usize = 64 * 1024;
/// Room for one control message of an int, aligned; CMSG_SPACE(4) is 24 on 64-bit Linux.
type Control = [u64; 8];

/// Asks the kernel to hand over trains of equal datagrams in one piece (`UDP_GRO`); [`UdpBatch`] cuts them apart. Costs
/// nothing where they come one by one. False where the kernel (before 5.0) cannot.
pub fn receive_trains(socket: &UdpSocket) -> bool {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok()
}

/// Buffers to receive into. One serves all sockets of a thread, for it is read out after each call.
pub struct UdpBatch {
    buffers: Box<[u8]>,
    /// Bytes, segment size and sender of each.
    got: [(usize, usize, Option<SocketAddr>); BATCH],
    count: usize,
}

impl Default for UdpBatch {
    fn default() -> Self {
        // A mebibyte of address space; only what datagrams reach is ever touched.
        UdpBatch { buffers: vec![0; BATCH * SLOT].into_boxed_slice(), got: [(0, 0, None); BATCH], count: 0 }
    }
}

impl std::fmt::Debug for UdpBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpBatch").field("count", &self.count).finish_non_exhaustive()
    }
}

impl UdpBatch {
    /// Takes what is there, up to a batch; true when there may be more.
    ///
    /// # Errors
    /// The system's; `WouldBlock` when nothing is there.
    pub fn receive(&mut self, socket: &impl AsRawFd) -> io::Result<bool> {
        self.count = 0;
        // SAFETY: all-zero is a valid value of these C structures. Every pointer handed to the kernel is into `buffers`,
        // `vectors`, `names` or `controls`, with their true lengths; all of them outlive the call. The control messages are
        // walked by the kernel's own macros within the length it wrote. Tested by `a_batch_is_cut_into_datagrams`.
        unsafe {
            let mut names: [libc::sockaddr_storage; BATCH] = std::mem::zeroed();
            let mut controls: [Control; BATCH] = [[0; 8]; BATCH];
            let mut vectors: [libc::iovec; BATCH] = std::mem::zeroed();
            let mut headers: [libc::mmsghdr; BATCH] = std::mem::zeroed();
            let base = self.buffers.as_mut_ptr();
            for i in 0..BATCH {
                vectors[i] = libc::iovec { iov_base: base.add(i * SLOT).cast(), iov_len: SLOT };
                let header = &mut headers[i].msg_hdr;
                header.msg_name = (&raw mut names[i]).cast();
                header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
                header.msg_iov = &raw mut vectors[i];
                header.msg_iovlen = 1;
                header.msg_control = (&raw mut controls[i]).cast();
                header.msg_controllen = size_of::<Control>() as _;
            }
            let flags = libc::MSG_DONTWAIT;
            let got = libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                flags as _,
                std::ptr::null_mut(),
            );
            if got < 0 {
                return Err(io::Error::last_os_error());
            }
            self.count = (got as usize).min(BATCH);
            for i in 0..self.count {
                let length = (headers[i].msg_len as usize).min(SLOT);
                let mut segment = length;
                let mut message = libc::CMSG_FIRSTHDR(&raw const headers[i].msg_hdr);
                while let Some(head) = message.as_ref() {
                    if head.cmsg_level == libc::SOL_UDP && head.cmsg_type == libc::UDP_GRO {
                        segment = libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned().max(0) as usize;
                    }
                    message = libc::CMSG_NXTHDR(&raw const headers[i].msg_hdr, message);
                }
                self.got[i] = (length, segment.max(1), address(&names[i]));
            }
        }
        Ok(self.count == BATCH)
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// The datagrams of the last call with their senders, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        self.got[..self.count].iter().zip(self.buffers.chunks(SLOT)).flat_map(|((length, segment, from), buffer)| {
            let train = from.map(|from| buffer[..*length].chunks(*segment).map(move |datagram| (datagram, from)));
            train.into_iter().flatten()
        })
    }
}

/// An address as the kernel writes it.
fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: `sockaddr_storage` is large enough and aligned for either structure, and any bytes are valid ones.
    unsafe {
        match i32::from(name.ss_family) {
            libc::AF_INET => {
                let v4 = &*std::ptr::from_ref(name).cast::<libc::sockaddr_in>();
                Some(SocketAddr::new(u32::from_be(v4.sin_addr.s_addr).to_be_bytes().into(), u16::from_be(v4.sin_port)))
            }
            libc::AF_INET6 => {
                let v6 = &*std::ptr::from_ref(name).cast::<libc::sockaddr_in6>();
                Some(SocketAddr::new(v6.sin6_addr.s6_addr.into(), u16::from_be(v6.sin6_port)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_into_datagrams() {
        for (trains, to) in [(true, "127.0.0.1:0"), (false, "127.0.0.1:0"), (true, "[::1]:0")] {
            let Ok(receiver) = UdpSocket::bind(to) else { continue };
            receiver.set_nonblocking(true).unwrap();
            if trains {
                receive_trains(&receiver);
            }
            let socket = UdpSocket::bind(to).unwrap();
            let from = socket.local_addr().unwrap();
            let mut sender = UdpTrainSender::new(socket, receiver.local_addr().unwrap()).unwrap();
            let mut batch = UdpBatch::default();
            assert_eq!(batch.receive(&receiver).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert_eq!(batch.datagrams().count(), 0);
            let mut blocks: Vec<u8> = (0..40u8).flat_map(|i| [i; 700]).collect();
            blocks.extend_from_slice(&[99; 7]);
            sender.send(&blocks, 700).1.unwrap();
            sender.send(&[100; 50], 50).1.unwrap();
            let mut got = Vec::new();
            while got.len() < 42 {
                let more = batch.receive(&receiver).unwrap();
                assert!(batch.datagrams().all(|(_, sender)| sender == from));
                got.extend(batch.datagrams().map(|(bytes, _)| (bytes.len(), bytes[0])));
                assert!(more || got.len() == 42);
            }
            assert_eq!(got[..40], (0..40u8).map(|i| (700, i)).collect::<Vec<_>>()[..]);
            assert_eq!(got[40..], [(7, 99), (50, 100)]);
        }
    }

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
