//! Capture files: messages as IP packets, for Wireshark.
//! Standard: the classic pcap file (LINKTYPE_RAW); [RFC791 3.1], [RFC8200 3], [RFC768], [RFC9293 3.1], [RFC1071].
//! In: messages with their addresses and times. Out: the bytes of a file.
//! Invariants: ports, lengths and checksums are right; the TCP messages of one direction follow each other without gap.
//! Deviations: TCP handshakes are not made up; a stream begins with its first message. What is decrypted TLS goes into
//! the file as TCP.
//! Not here: catching packets, removing secrets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Microsecond time stamps, in the byte order they are written in.
const MAGIC: u32 = 0xa1b2_c3d4;
/// Longest packet of the file.
const SNAP_LENGTH: u32 = 65_535;
/// LINKTYPE_RAW: the packet begins with its IP header, of either version.
const LINK_RAW: u32 = 101;
/// Most bytes of a message in one packet: with any of the headers below, it stays under [`SNAP_LENGTH`].
const PAYLOAD_MAX: usize = 65_000;
const HOP_LIMIT: u8 = 64;

/// What a message travelled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// One datagram.
    Udp,
    /// A part of a stream.
    Tcp,
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Since the Unix epoch.
    pub at: Duration,
    /// UDP or TCP.
    pub carrier: Carrier,
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// What was kept of the message.
    pub payload: &'a [u8],
    /// Its length on the wire; not less than `payload`'s.
    pub size: usize,
}

/// Writes a file in memory. Grows with what is pushed: the caller bounds it.
#[derive(Debug)]
pub struct PcapWriter {
    out: Vec<u8>,
    identification: u16,
    /// The next sequence number from one address to another.
    next: BTreeMap<(SocketAddr, SocketAddr), u32>,
}

impl Default for PcapWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl PcapWriter {
    /// A file without packets.
    pub fn new() -> Self {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&2u16.to_le_bytes());
        out.extend_from_slice(&4u16.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&SNAP_LENGTH.to_le_bytes());
        out.extend_from_slice(&LINK_RAW.to_le_bytes());
        PcapWriter { out, identification: 0, next: BTreeMap::new() }
    }

    /// Appends a message. Where `from` and `to` are of different IP versions (a wildcard socket), both become IPv6.
    pub fn push(&mut self, packet: &Packet<'_>) {
        let payload = &packet.payload[..packet.payload.len().min(PAYLOAD_MAX)];
        let on_wire = packet.size.clamp(payload.len(), PAYLOAD_MAX);
        let (from, to) = one_version(packet.from, packet.to);
        let mut segment = match packet.carrier {
            Carrier::Udp => udp_header(from, to, on_wire),
            Carrier::Tcp => {
                let sequence = self.next.get(&(from, to)).copied().unwrap_or(1);
                let acknowledged = self.next.get(&(to, from)).copied().unwrap_or(1);
                // A message is never longer than a stream's numbers reach, but for a caller's mistake: they wrap.
                self.next.insert((from, to), sequence.wrapping_add(packet.size.max(payload.len()) as u32));
                tcp_header(from, to, sequence, acknowledged)
            }
        };
        let header = segment.len();
        segment.extend_from_slice(payload);
        let (protocol, checksum_at) = match packet.carrier {
            Carrier::Udp => (17, 6),
            Carrier::Tcp => (6, 16),
        };
        let checksum = transport_checksum(from.ip(), to.ip(), protocol, &segment);
        // In UDP zero means "none". [RFC768]
        let checksum = if checksum == 0 && protocol == 17 { 0xffff } else { checksum };
        segment[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());

        let ip = self.ip_header(from.ip(), to.ip(), protocol, header + on_wire);
        let original = ip.len() + header + on_wire;
        let kept = ip.len() + segment.len();
        self.out.extend_from_slice(&(packet.at.as_secs() as u32).to_le_bytes());
        self.out.extend_from_slice(&packet.at.subsec_micros().to_le_bytes());
        self.out.extend_from_slice(&(kept as u32).to_le_bytes());
        self.out.extend_from_slice(&(original as u32).to_le_bytes());
        self.out.extend_from_slice(&ip);
        self.out.extend_from_slice(&segment);
    }

    /// The file.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    fn ip_header(&mut self, from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut ip = vec![0x45, 0];
                ip.extend_from_slice(&((20 + length) as u16).to_be_bytes());
                ip.extend_from_slice(&self.identification.to_be_bytes());
                self.identification = self.identification.wrapping_add(1);
                ip.extend_from_slice(&[0x40, 0, HOP_LIMIT, protocol, 0, 0]);
                ip.extend_from_slice(&from.octets());
                ip.extend_from_slice(&to.octets());
                let checksum = fold(sum(&ip));
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
                ip
            }
            (from, to) => {
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend_from_slice(&(length as u16).to_be_bytes());
                ip.extend_from_slice(&[protocol, HOP_LIMIT]);
                ip.extend_from_slice(&as_v6(from).octets());
                ip.extend_from_slice(&as_v6(to).octets());
                ip
            }
        }
    }
}

fn udp_header(from: SocketAddr, to: SocketAddr, length: usize) -> Vec<u8> {
    let mut header = Vec::with_capacity(8);
    header.extend_from_slice(&from.port().to_be_bytes());
    header.extend_from_slice(&to.port().to_be_bytes());
    header.extend_from_slice(&((8 + length) as u16).to_be_bytes());
    header.extend_from_slice(&[0, 0]);
    header
}

fn tcp_header(from: SocketAddr, to: SocketAddr, sequence: u32, acknowledged: u32) -> Vec<u8> {
    let mut header = Vec::with_capacity(20);
    header.extend_from_slice(&from.port().to_be_bytes());
    header.extend_from_slice(&to.port().to_be_bytes());
    header.extend_from_slice(&sequence.to_be_bytes());
    header.extend_from_slice(&acknowledged.to_be_bytes());
    // Five words of header, PSH and ACK, full window, no urgent data.
    header.extend_from_slice(&[0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

/// An address with the IP version it is really of.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V6(ip) => ip,
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
    }
}

/// Both addresses in one IP version. A wildcard takes that of the other; else IPv4 is mapped into IPv6.
fn one_version(from: SocketAddr, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    let (mut from, mut to) = (canonical(from), canonical(to));
    if from.is_ipv4() != to.is_ipv4() {
        let wildcard_like = |other: SocketAddr| -> IpAddr {
            if other.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
        };
        if from.ip().is_unspecified() {
            from.set_ip(wildcard_like(to));
        } else if to.ip().is_unspecified() {
            to.set_ip(wildcard_like(from));
        }
    }
    if from.is_ipv4() != to.is_ipv4() {
        from.set_ip(as_v6(from.ip()).into());
        to.set_ip(as_v6(to.ip()).into());
    }
    (from, to)
}

/// The sum of 16-bit words; an odd last byte is the high half of one.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|c| u64::from(c[0]) << 8 | u64::from(c.get(1).copied().unwrap_or(0))).sum()
}

/// One's complement of the folded sum. [RFC1071]
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Over pseudo header and segment. Both IP versions' pseudo headers hold the same words, in another order.
fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let addresses = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => sum(&from.octets()) + sum(&to.octets()),
        (from, to) => sum(&as_v6(from).octets()) + sum(&as_v6(to).octets()),
    };
    fold(addresses + u64::from(protocol) + segment.len() as u64 + sum(segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::from_micros(1_700_000_000_123_456);

    fn packet<'a>(carrier: Carrier, from: &str, to: &str, payload: &'a [u8]) -> Packet<'a> {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        Packet { at: AT, carrier, from, to, payload, size: payload.len() }
    }

    fn written(packets: &[Packet<'_>]) -> Vec<u8> {
        let mut w = PcapWriter::new();
        packets.iter().for_each(|p| w.push(p));
        w.finish()
    }

    /// The records of a file: kept bytes and original length.
    fn records(mut file: &[u8]) -> Vec<(&[u8], usize)> {
        file = &file[24..];
        let mut out = Vec::new();
        while !file.is_empty() {
            let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
            let (kept, original) = (word(8), word(12));
            out.push((&file[16..16 + kept], original));
            file = &file[16 + kept..];
        }
        out
    }

    #[test]
    fn a_datagram_is_this_file_byte_for_byte() {
        let file = written(&[packet(Carrier::Udp, "192.0.2.1:5060", "192.0.2.2:15060", b"hi!")]);
        #[rustfmt::skip]
        let golden = [
            0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 101, 0, 0, 0,
            0x00, 0xf1, 0x53, 0x65, 0x40, 0xe2, 0x01, 0x00, 31, 0, 0, 0, 31, 0, 0, 0,
            0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0xb6, 0xca, 192, 0, 2, 1, 192, 0, 2, 2,
            0x13, 0xc4, 0x3a, 0xd4, 0, 11, 0xa3, 0xd2, b'h', b'i', b'!',
        ];
        assert_eq!(file, golden);
    }

    #[test]
    fn checksums_hold_in_both_versions_and_both_carriers() {
        for (from, to) in [("192.0.2.1:5060", "198.51.100.9:1"), ("[2001:db8::1]:5060", "[2001:db8::2]:65535")] {
            for carrier in [Carrier::Udp, Carrier::Tcp] {
                for payload in [&b""[..], b"a", b"odd", b"even"] {
                    let file = written(&[packet(carrier, from, to, payload)]);
                    let [(bytes, original)] = records(&file)[..] else { panic!() };
                    assert_eq!(bytes.len(), original);
                    let protocol = if carrier == Carrier::Udp { 17 } else { 6 };
                    let (addresses, segment) = match bytes[0] >> 4 {
                        4 => {
                            assert_eq!(fold(sum(&bytes[..20])), 0);
                            assert_eq!(usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), bytes.len());
                            assert_eq!(bytes[9], protocol);
                            (&bytes[12..20], &bytes[20..])
                        }
                        _ => {
                            assert_eq!(usize::from(u16::from_be_bytes([bytes[4], bytes[5]])), bytes.len() - 40);
                            assert_eq!(bytes[6], protocol);
                            (&bytes[8..40], &bytes[40..])
                        }
                    };
                    let pseudo = sum(addresses) + u64::from(protocol) + segment.len() as u64;
                    assert_eq!(fold(pseudo + sum(segment)), 0, "{carrier:?} {from} {payload:?}");
                }
            }
        }
    }

    #[test]
    fn tcp_messages_follow_each_other_per_direction() {
        let (a, b) = ("192.0.2.1:5060", "192.0.2.2:40000");
        let mut cut = packet(Carrier::Tcp, a, b, b"begin");
        cut.size = 9000;
        let file = written(&[
            packet(Carrier::Tcp, a, b, b"12345"),
            packet(Carrier::Tcp, b, a, b"123"),
            cut,
            packet(Carrier::Tcp, a, b, b"x"),
        ]);
        let numbers: Vec<_> = records(&file)
            .iter()
            .map(|(bytes, _)| {
                let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
                (word(24), word(28))
            })
            .collect();
        assert_eq!(numbers, [(1, 1), (1, 6), (6, 4), (9006, 4)]);
        let (kept, original) = records(&file)[2];
        assert_eq!((kept.len(), original), (45, 9040));
        assert_eq!(u16::from_be_bytes([kept[2], kept[3]]), 9040);
    }

    #[test]
    fn wildcards_and_mixed_versions_become_one() {
        let pair = |from: &str, to: &str| one_version(from.parse().unwrap(), to.parse().unwrap());
        let (from, to) = pair("[::]:5060", "192.0.2.2:1");
        assert_eq!((from.to_string(), to.to_string()), ("0.0.0.0:5060".into(), "192.0.2.2:1".into()));
        let (from, to) = pair("[2001:db8::1]:1", "0.0.0.0:5060");
        assert_eq!((from.is_ipv6(), to.to_string()), (true, "[::]:5060".into()));
        let (from, to) = pair("[::ffff:192.0.2.1]:1", "192.0.2.2:2");
        assert!(from.is_ipv4() && to.is_ipv4());
        let (from, to) = pair("192.0.2.1:1", "[2001:db8::1]:2");
        assert!(from.is_ipv6() && to.is_ipv6());
    }

    #[test]
    fn a_huge_message_stays_within_the_file_s_limits() {
        let long = vec![b'a'; 200_000];
        for carrier in [Carrier::Udp, Carrier::Tcp] {
            let file = written(&[packet(carrier, "[2001:db8::1]:1", "[2001:db8::2]:2", &long)]);
            let [(bytes, original)] = records(&file)[..] else { panic!() };
            assert!(bytes.len() == original && original <= SNAP_LENGTH as usize);
        }
    }
}
