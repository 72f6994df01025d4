//! SSRC values and their ten digits in `y=`.
//! Standard: [GB/T28181-2022 G.1.5].
//! In: a platform's code. Out: values nobody else of that domain uses. Form: digit 1 is 0 live or 1 history, digits 2-6
//! are digits 4-8 of the platform's code, digits 7-10 a serial.
//! Invariants: a serial comes round only after all 10,000 of the domain.
//! Not here: which values are in use (asked of the caller), reading `y=` (`MediaOffer`).

use crate::proto::gb28181::DeviceId;

/// Serials of a domain.
const SERIALS: u32 = 10_000;

/// Ten digits with leading zeros.
pub fn format_y(ssrc: u32) -> String {
    format!("{ssrc:010}")
}

/// Composes a value; `None` if `platform` is no 20-digit code.
pub fn compose(history: bool, platform: &DeviceId, serial: u16) -> Option<u32> {
    Some(u32::from(history) * 1_000_000_000 + domain_part(platform)? + u32::from(serial) % SERIALS)
}

fn domain_part(platform: &DeviceId) -> Option<u32> {
    let digits: u32 = platform.centre_code()?.get(3..8)?.parse().ok()?;
    Some(digits * SERIALS)
}

/// Hands out values of one domain.
#[derive(Debug, Clone)]
pub struct Generator {
    domain: u32,
    next: u32,
}

impl Generator {
    /// For a platform's 20-digit code (`None` if it is none). `start` is where the serials begin: a random number
    /// keeps values of before a restart from coming back at once.
    pub fn new(platform: &DeviceId, start: u16) -> Option<Self> {
        Some(Self { domain: domain_part(platform)?, next: u32::from(start) % SERIALS })
    }

    /// The next value that is not in use; `None` if all are.
    pub fn next(&mut self, history: bool, in_use: impl Fn(u32) -> bool) -> Option<u32> {
        for _ in 0..SERIALS {
            let ssrc = u32::from(history) * 1_000_000_000 + self.domain + self.next;
            self.next = (self.next + 1) % SERIALS;
            if !in_use(ssrc) {
                return Some(ssrc);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn platform(text: &str) -> DeviceId {
        DeviceId::parse(text).unwrap()
    }

    #[test]
    fn standard_example() {
        let p = platform("13010000002000000001");
        assert_eq!(compose(false, &p, 1), Some(100_000_001));
        assert_eq!(format_y(100_000_001), "0100000001");
        assert_eq!(compose(true, &p, 1), Some(0x4190_AB01));
        assert_eq!(format_y(0), "0000000000");
        assert_eq!(compose(false, &platform("3401"), 1), None);
        // the largest value fits
        assert_eq!(compose(true, &platform("99999999992000000001"), 9999).map(format_y).as_deref(), Some("1999999999"));
    }

    #[test]
    fn a_round_takes_every_serial() {
        let mut g = Generator::new(&platform("41130000582000000001"), 9_998).unwrap();
        let first = g.next(false, |_| false).unwrap();
        assert_eq!(format_y(first), "0300009998");
        let mut seen = HashSet::from([first]);
        for _ in 1..SERIALS {
            assert!(seen.insert(g.next(false, |_| false).unwrap()));
        }
        assert_eq!(g.next(false, |_| false), Some(first));
        assert_eq!(g.next(false, |s| s != first), Some(first));
        assert_eq!(g.next(false, |_| true), None);
        assert_eq!(Generator::new(&platform("3402"), 0).map(|_| ()), None);
    }
}
