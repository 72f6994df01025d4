//! Device identifiers: the 20-digit code and the shorter codes that stand beside it.
//! Standard: [GB/T28181-2022 annex E], [GB/T28181-2016 annex D rule A].
//! In: text of XML elements, SIP users, configuration. Out: `DeviceId`.
//! Invariants: 1 to 32 ASCII digits; ordering is that of the text, so a prefix sorts before what it prefixes.
//! Not here: rule B (18 digits), which is read like any other odd code and never written.

use super::version::Version;
use std::fmt;
use std::str::FromStr;

/// Longest identifier accepted. The standard has 20 digits; some equipment pads.
pub const MAX_DIGITS: usize = 32;
/// Length of the full code of rule A.
pub const CODE20: usize = 20;

/// Why a text is no identifier, or why a code cannot be minted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceIdError {
    /// Nothing there.
    #[error("device id: empty: give 20 digits")]
    Empty,
    /// Longer than 32 characters.
    #[error("device id: {0} characters: give 20 digits (at most 32 are accepted)")]
    TooLong(usize),
    /// Something other than a decimal digit.
    #[error("device id: character {0} is not a digit: give 20 digits")]
    NotDigit(usize),
    /// `mint`: the prefix is not centre code plus industry code.
    #[error("device id prefix: {0} digits: give 10 (centre code 8, industry code 2)")]
    PrefixLength(usize),
    /// `mint`: type code above 999, network above 9 or serial above 999999.
    #[error("device id field {0}: {1} is too large: {2} digits are available")]
    FieldRange(&'static str, u32, u8),
}

/// What a code stands for, by its length and type digits. [GB/T28181-2022 E.1]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdKind {
    /// 111-130: DVR, NVR, encoder, multi-lens device ...
    FrontEnd,
    /// 131-199: cameras, alarm inputs and outputs, microphones, loudspeakers ...
    Peripheral,
    /// 200-299 but for the two groups below.
    Platform,
    /// 215.
    BusinessGroup,
    /// 216.
    VirtualOrganisation,
    /// 2, 4, 6 or 8 digits.
    Division,
    /// 300-499: users of the centre and of terminals.
    User,
    /// 500-599: servers outside.
    External,
    /// Anything else, among it the 10-digit alarm centre.
    Other,
}

/// A device, channel, platform, group or division code. Copied freely (33 bytes).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    digits: [u8; MAX_DIGITS],
    len: u8,
}

impl DeviceId {
    /// Reads 1 to 32 digits. Anything around them (blanks too) is an error: the caller trims.
    pub fn parse(text: &str) -> Result<Self, DeviceIdError> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err(DeviceIdError::Empty);
        }
        if let Some(at) = bytes.iter().take(MAX_DIGITS).position(|b| !b.is_ascii_digit()) {
            return Err(DeviceIdError::NotDigit(at + 1));
        }
        if bytes.len() > MAX_DIGITS {
            return Err(DeviceIdError::TooLong(bytes.len()));
        }
        let mut digits = [0; MAX_DIGITS];
        digits[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { digits, len: bytes.len() as u8 })
    }

    /// Composes a 20-digit code from `prefix` (centre code 8, industry code 2), type, network and serial.
    pub fn mint(prefix: &str, type_code: u16, network: u8, serial: u32) -> Result<Self, DeviceIdError> {
        if prefix.len() != 10 {
            return Err(DeviceIdError::PrefixLength(prefix.len()));
        }
        if type_code > 999 {
            return Err(DeviceIdError::FieldRange("type", type_code.into(), 3));
        }
        if network > 9 {
            return Err(DeviceIdError::FieldRange("network", network.into(), 1));
        }
        if serial > 999_999 {
            return Err(DeviceIdError::FieldRange("serial", serial, 6));
        }
        Self::parse(&format!("{prefix}{type_code:03}{network}{serial:06}"))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.digits[..usize::from(self.len)]).expect("only ASCII digits are stored")
    }

    /// True for the full code of rule A.
    pub fn is_code20(&self) -> bool {
        usize::from(self.len) == CODE20
    }

    fn part(&self, from: usize, to: usize) -> Option<&str> {
        if self.is_code20() { self.as_str().get(from..to) } else { None }
    }

    /// Digits 1-8.
    pub fn centre_code(&self) -> Option<&str> {
        self.part(0, 8)
    }

    /// The administrative division the code lies in: digits 1-6 of a full code, the whole of a division code.
    pub fn civil_code(&self) -> Option<&str> {
        if self.kind() == IdKind::Division { Some(self.as_str()) } else { self.part(0, 6) }
    }

    /// Digits 9-10.
    pub fn industry(&self) -> Option<u8> {
        self.part(8, 10)?.parse().ok()
    }

    /// Digits 1-10: the SIP domain that belongs to the code. [GB/T28181-2022 6.1.2]
    pub fn domain(&self) -> Option<&str> {
        self.part(0, 10)
    }

    /// Digits 11-13.
    pub fn type_code(&self) -> Option<u16> {
        self.part(10, 13)?.parse().ok()
    }

    /// Digit 14.
    pub fn network(&self) -> Option<u8> {
        self.part(13, 14)?.parse().ok()
    }

    /// Digits 15-20.
    pub fn serial(&self) -> Option<u32> {
        self.part(14, 20)?.parse().ok()
    }

    /// What the code stands for.
    pub fn kind(&self) -> IdKind {
        if matches!(self.len, 2 | 4 | 6 | 8) {
            return IdKind::Division;
        }
        match self.type_code() {
            Some(111..=130) => IdKind::FrontEnd,
            Some(131..=199) => IdKind::Peripheral,
            Some(215) => IdKind::BusinessGroup,
            Some(216) => IdKind::VirtualOrganisation,
            Some(200..=299) => IdKind::Platform,
            Some(300..=499) => IdKind::User,
            Some(500..=599) => IdKind::External,
            _ => IdKind::Other,
        }
    }

    /// The parts of a full code with their meaning, for people; `None` for other lengths.
    pub fn describe(&self, version: Version) -> Option<Description> {
        Some(Description {
            id: *self,
            industry: industry_name(self.industry()?, version),
            kind: type_name(self.type_code()?),
            network: network_name(self.network()?, version),
        })
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DeviceId {
    type Err = DeviceIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// A full code taken apart. `Display` writes it grouped 8-2-3-1-6 with the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// The code.
    pub id: DeviceId,
    /// What digits 9-10 mean; `None` where the version reserves them.
    pub industry: Option<&'static str>,
    /// What digits 11-13 mean; `None` where reserved or left to extensions.
    pub kind: Option<&'static str>,
    /// What digit 14 means.
    pub network: Option<&'static str>,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.id.as_str();
        write!(
            f,
            "centre {}, industry {} ({}), type {} ({}), network {} ({}), serial {}",
            &s[..8],
            &s[8..10],
            self.industry.unwrap_or("not assigned"),
            &s[10..13],
            self.kind.unwrap_or("not assigned"),
            &s[13..14],
            self.network.unwrap_or("not assigned"),
            &s[14..],
        )
    }
}

/// Name of a type code. [GB/T28181-2022 E.1]
pub fn type_name(code: u16) -> Option<&'static str> {
    Some(match code {
        111 => "DVR",
        112 => "video server",
        113 => "encoder",
        114 => "decoder",
        115 => "video switching matrix",
        116 => "audio switching matrix",
        117 => "alarm controller",
        118 => "network video recorder",
        120 => "online video collection system",
        121 => "video checkpoint",
        122 => "multi-lens device",
        123 => "car-park access device",
        124 => "personnel access device",
        125 => "security-inspection device",
        130 => "hybrid DVR",
        131 => "camera",
        132 => "network camera",
        133 => "display",
        134 => "alarm input",
        135 => "alarm output",
        136 => "voice input",
        137 => "voice output",
        138 => "mobile transmission device",
        139 => "other peripheral",
        140 => "relay-driven alarm output",
        141 => "barrier gate",
        142 => "smart door",
        143 => "credential reader",
        200 => "platform",
        201 => "web application server",
        202 => "media distribution server",
        203 => "proxy server",
        204 => "security server",
        205 => "alarm server",
        206 => "database server",
        207 => "GIS server",
        208 => "management server",
        209 => "access gateway",
        210 => "media storage server",
        211 => "secure signalling routing gateway",
        215 => "business group",
        216 => "virtual organisation",
        300 => "central user",
        301..=343 => "central user by industry role",
        400 => "terminal user",
        401..=443 => "terminal user by industry role",
        500 => "integrated application platform",
        501 => "operation and maintenance platform",
        502 => "image analysis system",
        503 => "image information database",
        505 => "image analysis device",
        _ => return None,
    })
}

/// Name of an industry code. 2022 rewrote 12 and above. [GB/T28181-2022 E.2], [GB/T28181-2016 D.3]
pub fn industry_name(code: u8, version: Version) -> Option<&'static str> {
    let shared = match code {
        0 => "public security, road",
        1 => "public security, community",
        2 => "public security, internal",
        3 => "public security, other",
        4 => "traffic, road",
        5 => "traffic, checkpoint",
        6 => "traffic, internal",
        7 => "traffic, other",
        8 => "city management",
        9 => "health and environment",
        10 => "customs and inspection",
        11 => "education department",
        40 => "agriculture",
        41 => "mining",
        42 => "manufacturing",
        90..=99 => "custom",
        _ => "",
    };
    if !shared.is_empty() {
        return Some(shared);
    }
    if version < Version::V2022 {
        return Some(match code {
            43 => "metallurgy",
            44 => "electric power",
            45 => "gas",
            46 => "construction",
            47 => "logistics",
            48 => "post",
            49 => "information",
            50 => "hotel",
            51 => "finance",
            52 => "real estate",
            53 => "business",
            54 => "water",
            55 => "entertainment",
            80..=89 => "resident-built",
            _ => return None,
        });
    }
    Some(match code {
        12 => "civil aviation",
        13 => "railway",
        14 => "shipping",
        43 => "electricity, heat, gas and water",
        44 => "construction",
        45 => "wholesale and retail",
        46 => "transport, storage and post",
        47 => "hotel and catering",
        48 => "information technology",
        49 => "finance",
        50 => "real estate",
        51 => "leasing and business services",
        52 => "scientific research",
        53 => "water, environment and public facilities",
        54 => "residential services",
        55 => "education",
        56 => "health and social work",
        57 => "culture, sport and entertainment",
        58 => "public administration",
        59 => "international organisations",
        _ => return None,
    })
}

/// Name of a network digit. 2022 gave 0-4 and 8 new meanings. [GB/T28181-2022 E.1], [GB/T28181-2016 D.1]
pub fn network_name(digit: u8, version: Version) -> Option<&'static str> {
    let new = version >= Version::V2022;
    Some(match digit {
        0 | 1 if new => "public-security video network",
        2 if new => "industry private network",
        3 if new => "politics-and-law network",
        4 if new => "public-security mobile network",
        0..=4 => "surveillance private network",
        5 => "public-security information network",
        6 => "government network",
        7 => "Internet",
        8 if new => "leased line",
        8 => "social-resource access network",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_of_the_full_code() {
        let id = DeviceId::parse("34020000581320000042").unwrap();
        assert_eq!(id.centre_code(), Some("34020000"));
        assert_eq!(id.civil_code(), Some("340200"));
        assert_eq!(id.domain(), Some("3402000058"));
        assert_eq!(id.industry(), Some(58));
        assert_eq!(id.type_code(), Some(132));
        assert_eq!(id.network(), Some(0));
        assert_eq!(id.serial(), Some(42));
        let text = id.describe(Version::V2022).unwrap().to_string();
        assert_eq!(
            text,
            "centre 34020000, industry 58 (public administration), type 132 (network camera), \
             network 0 (public-security video network), serial 000042"
        );
        assert!(id.describe(Version::V2016).unwrap().industry.is_none());
    }

    #[test]
    fn kinds() {
        let of = |t: &str| DeviceId::parse(t).unwrap().kind();
        for (code, kind) in [
            ("111", IdKind::FrontEnd),
            ("130", IdKind::FrontEnd),
            ("131", IdKind::Peripheral),
            ("199", IdKind::Peripheral),
            ("200", IdKind::Platform),
            ("214", IdKind::Platform),
            ("215", IdKind::BusinessGroup),
            ("216", IdKind::VirtualOrganisation),
            ("217", IdKind::Platform),
            ("300", IdKind::User),
            ("499", IdKind::User),
            ("500", IdKind::External),
            ("600", IdKind::Other),
            ("110", IdKind::Other),
        ] {
            assert_eq!(of(&format!("3402000000{code}0000001")), kind, "{code}");
        }
        for division in ["34", "3402", "340200", "34020001"] {
            assert_eq!(of(division), IdKind::Division);
        }
        assert_eq!(of("3402000000"), IdKind::Other);
        assert_eq!(DeviceId::parse("3402").unwrap().civil_code(), Some("3402"));
    }

    #[test]
    fn odd_lengths_are_read_but_have_no_parts() {
        for text in ["3402000000132000001", "340200000013200000011", "1", &"9".repeat(32)] {
            let id = DeviceId::parse(text).unwrap();
            assert_eq!(id.as_str(), text);
            assert_eq!((id.type_code(), id.centre_code(), id.is_code20()), (None, None, false));
        }
        assert_eq!(DeviceId::parse(""), Err(DeviceIdError::Empty));
        assert_eq!(DeviceId::parse(&"1".repeat(33)), Err(DeviceIdError::TooLong(33)));
        assert_eq!(DeviceId::parse("3402000000132000000A"), Err(DeviceIdError::NotDigit(20)));
        assert_eq!(DeviceId::parse("3402００"), Err(DeviceIdError::NotDigit(5)));
        assert_eq!(DeviceId::parse(" 34"), Err(DeviceIdError::NotDigit(1)));
    }

    #[test]
    fn mint_refuses_what_does_not_fit() {
        assert_eq!(DeviceId::mint("3402000058", 132, 0, 7).unwrap().as_str(), "34020000581320000007");
        assert_eq!(DeviceId::mint("34020000", 132, 0, 7), Err(DeviceIdError::PrefixLength(8)));
        assert_eq!(DeviceId::mint("3402000058", 1000, 0, 7), Err(DeviceIdError::FieldRange("type", 1000, 3)));
        assert_eq!(DeviceId::mint("3402000058", 132, 10, 7), Err(DeviceIdError::FieldRange("network", 10, 1)));
        assert!(DeviceId::mint("3402000058", 132, 0, 1_000_000).is_err());
        assert_eq!(DeviceId::mint("34020000x8", 132, 0, 7), Err(DeviceIdError::NotDigit(9)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn text_and_order_survive(a in "[0-9]{1,32}", b in "[0-9]{1,32}") {
            let (x, y) = (DeviceId::parse(&a).unwrap(), DeviceId::parse(&b).unwrap());
            prop_assert_eq!(x.to_string(), a.clone());
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }

        #[test]
        fn minted_codes_read_back(t in 0u16..1000, n in 0u8..10, s in 0u32..1_000_000) {
            let id = DeviceId::mint("1101050004", t, n, s).unwrap();
            prop_assert_eq!((id.type_code(), id.network(), id.serial()), (Some(t), Some(n), Some(s)));
        }
    }
}
