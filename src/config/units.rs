//! Values a TOML string is turned into: durations, sizes, port ranges, networks, "auto or a value".
//!
//! In: text such as `"60s"`, `"4MiB"`, `"20000-27999"`, `"10.0.0.0/8"`, `"auto"`. Out: typed values.
//! Invariants: what `Display` writes, `from_text` reads back to the same value.
//! Not here: limits of single keys (`validate`), secrets (`secret.rs`), 20-digit codes (`code.rs`).

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// A value that is written as text in TOML.
pub trait FromText: Sized {
    /// What is expected, to follow "must be".
    const EXPECT: &'static str;
    /// How to mend a value that does not fit.
    const FIX: &'static str;

    /// The value, or `None` where the text does not fit.
    fn from_text(text: &str) -> Option<Self>;
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: FromText> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECT)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).ok_or_else(|| E::custom(format_args!("must be {}: {}", T::EXPECT, T::FIX)))
    }
}

/// Deserialises a [`FromText`] value from a string; for `#[serde(deserialize_with)]` on foreign types.
///
/// # Errors
/// The deserialiser's error, with the text "must be …: how to mend it".
pub fn text<'de, D: Deserializer<'de>, T: FromText>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_str(TextVisitor(PhantomData))
}

/// Serde through text for types with `FromText` and `Display`.
macro_rules! text_serde {
    ($($ty:ty),+) => {$(
        impl<'de> serde::Deserialize<'de> for $ty {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::config::units::text(deserializer)
            }
        }
        impl serde::Serialize for $ty {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}
pub(super) use text_serde;

/// A length of time, written as `"2ms"`, `"60s"`, `"10m"`, `"1h"`, `"7d"` or joined, `"1h30m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

impl Span {
    /// So many milliseconds.
    pub const fn millis(n: u64) -> Self {
        Self(Duration::from_millis(n))
    }

    /// So many seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }

    /// The standard library's form.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl FromText for Span {
    const EXPECT: &'static str = "a duration with its unit in quotes";
    const FIX: &'static str = r#"write it as "2ms", "60s", "10m", "1h" or "7d""#;

    fn from_text(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut millis: u64 = 0;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
            let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
            let factor: u64 = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" | "min" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return None,
            };
            millis = millis.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
            rest = tail;
        }
        Some(Self::millis(millis))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (factor, unit) = match millis {
            0 => (1_000, "s"),
            n if n % 86_400_000 == 0 => (86_400_000, "d"),
            n if n % 3_600_000 == 0 => (3_600_000, "h"),
            n if n % 60_000 == 0 => (60_000, "m"),
            n if n % 1_000 == 0 => (1_000, "s"),
            _ => (1, "ms"),
        };
        write!(f, "{}{unit}", millis / factor)
    }
}

/// A size in bytes, written as `"512B"`, `"64KiB"`, `"4MiB"`, `"1GiB"` (KB, MB, GB: powers of ten), or `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromText for ByteSize {
    const EXPECT: &'static str = "a size with its unit in quotes";
    const FIX: &'static str = r#"write it as "512KiB", "4MiB" or "1GiB""#;

    fn from_text(text: &str) -> Option<Self> {
        if text == "0" {
            return Some(Self(0));
        }
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let factor: u64 = match unit.trim_start() {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "KB" | "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return None,
        };
        Some(Self(number.parse::<u64>().ok()?.checked_mul(factor)?))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0"),
            n if n % (1 << 30) == 0 => write!(f, "{}GiB", n >> 30),
            n if n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n if n % (1 << 10) == 0 => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}B"),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(ByteSize::EXPECT)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                TextVisitor(PhantomData).visit_str(text)
            }

            /// A bare `0` needs no unit; any other number does.
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<ByteSize, E> {
                match n {
                    0 => Ok(ByteSize(0)),
                    _ => Err(E::invalid_type(de::Unexpected::Unsigned(n), &self)),
                }
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A closed range of ports, written as `"20000-27999"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port, not below `first`.
    pub last: u16,
}

impl PortRange {
    /// How many ports there are: at least 1.
    pub const fn size(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }

    /// Whether the port lies inside.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromText for PortRange {
    const EXPECT: &'static str = "two ports joined by a hyphen, the smaller first";
    const FIX: &'static str = r#"write it as "20000-27999""#;

    fn from_text(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A network, written as `"10.0.0.0/8"` or `"fd00::/8"`; a bare address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The network of one or more addresses; `None` where the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Self { address, prefix })
    }

    /// Its address and prefix length.
    pub fn parts(&self) -> (IpAddr, u8) {
        (self.address, self.prefix)
    }

    /// Whether the address lies in this network. An IPv4 address never lies in an IPv6 network, and one that is
    /// written as IPv6 (`::ffff:192.0.2.1`) counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let shift = 32 - u32::from(self.prefix);
                net.to_bits().checked_shr(shift).unwrap_or(0) == ip.to_bits().checked_shr(shift).unwrap_or(0)
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let shift = 128 - u32::from(self.prefix);
                net.to_bits().checked_shr(shift).unwrap_or(0) == ip.to_bits().checked_shr(shift).unwrap_or(0)
            }
            _ => false,
        }
    }
}

impl FromText for Cidr {
    const EXPECT: &'static str = "a network";
    const FIX: &'static str = r#"write it as "10.0.0.0/8", or a single address"#;

    fn from_text(text: &str) -> Option<Self> {
        match text.split_once('/') {
            None => {
                let address: IpAddr = text.parse().ok()?;
                Self::new(address, if address.is_ipv4() { 32 } else { 128 })
            }
            Some((address, prefix)) => Self::new(address.parse().ok()?, prefix.parse().ok()?),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

text_serde!(Span, PortRange, Cidr);

impl FromText for IpAddr {
    const EXPECT: &'static str = "an IP address";
    const FIX: &'static str = r#"write it as "192.0.2.10"; names are not resolved"#;

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl FromText for SocketAddr {
    const EXPECT: &'static str = "an IP address and a port";
    const FIX: &'static str = r#"write it as "192.0.2.10:5060"; names are not resolved"#;

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl FromText for u16 {
    const EXPECT: &'static str = "a whole number 0-65535";
    const FIX: &'static str = "write the number";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// `"auto"`, or a value that a person decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auto<T> {
    /// The program finds it.
    #[default]
    Auto,
    /// This and no other.
    Set(T),
}

impl<T: Copy> Auto<T> {
    /// The value a person decided, if one did.
    pub fn set(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Set(value) => Some(value),
        }
    }
}

impl<'de, T: FromText> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AutoVisitor<T>(PhantomData<T>);
        impl<T: FromText> Visitor<'_> for AutoVisitor<T> {
            type Value = Auto<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"auto\" or {}", T::EXPECT)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Auto<T>, E> {
                if text == "auto" {
                    return Ok(Auto::Auto);
                }
                T::from_text(text)
                    .map(Auto::Set)
                    .ok_or_else(|| E::custom(format_args!("must be \"auto\" or {}: {}", T::EXPECT, T::FIX)))
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Auto<T>, E> {
                self.visit_str(&n.to_string())
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Auto<T>, E> {
                self.visit_str(&n.to_string())
            }
        }
        deserializer.deserialize_any(AutoVisitor(PhantomData))
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Set(value) => value.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_need_a_unit_and_do_not_overflow() {
        assert_eq!(Span::from_text("2ms"), Some(Span::millis(2)));
        assert_eq!(Span::from_text("1h30m"), Some(Span::secs(5400)));
        for bad in ["", "60", "s", "1.5s", "-1s", "60 s", "1w", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(Span::from_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!(ByteSize::from_text("4MiB"), Some(ByteSize::mib(4)));
        assert_eq!(ByteSize::from_text("1MB"), Some(ByteSize(1_000_000)));
        assert_eq!(ByteSize::from_text("0"), Some(ByteSize(0)));
        for bad in ["", "4", "4M", "MiB", "-4MiB", "99999999999999GiB"] {
            assert_eq!(ByteSize::from_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn port_ranges_are_ordered() {
        assert_eq!(PortRange::from_text("20000-27999").map(PortRange::size), Some(8000));
        for bad in ["20000", "5-4", "1-70000", "-", "a-b"] {
            assert_eq!(PortRange::from_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn networks_hold_their_addresses() {
        let holds = |net: &str, ip: &str| Cidr::from_text(net).unwrap().contains(ip.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1"));
        assert!(!holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("0.0.0.0/0", "203.0.113.9"));
        assert!(holds("192.0.2.1", "192.0.2.1"));
        assert!(!holds("192.0.2.1", "192.0.2.2"));
        assert!(holds("fd00::/8", "fd12::1"));
        assert!(!holds("::/0", "192.0.2.1"));
        assert!(holds("192.0.2.0/24", "::ffff:192.0.2.1") && !holds("::/0", "::ffff:192.0.2.1"));
        for bad in ["10.0.0.0/33", "fd00::/129", "10.0.0/8", "/8", "10.0.0.0/", "10.0.0.0/-1"] {
            assert_eq!(Cidr::from_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn auto_takes_text_and_numbers() {
        assert_eq!(serde_json::from_str::<Auto<u16>>("\"auto\"").unwrap(), Auto::Auto);
        assert_eq!(serde_json::from_str::<Auto<u16>>("4").unwrap(), Auto::Set(4));
        assert_eq!(serde_json::from_str::<Auto<u16>>("\"4\"").unwrap(), Auto::Set(4));
        assert!(serde_json::from_str::<Auto<u16>>("-1").is_err());
        assert!(serde_json::from_str::<Auto<IpAddr>>("\"gate.example\"").is_err());
    }

    proptest! {
        #[test]
        fn display_reads_back(ms in any::<u64>(), bytes in any::<u64>(), a in any::<u16>(), b in any::<u16>()) {
            prop_assert_eq!(Span::from_text(&Span::millis(ms).to_string()), Some(Span::millis(ms)));
            prop_assert_eq!(ByteSize::from_text(&ByteSize(bytes).to_string()), Some(ByteSize(bytes)));
            let range = PortRange { first: a.min(b), last: a.max(b) };
            prop_assert_eq!(PortRange::from_text(&range.to_string()), Some(range));
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = (Span::from_text(&text), ByteSize::from_text(&text), PortRange::from_text(&text), Cidr::from_text(&text));
        }
    }
}
