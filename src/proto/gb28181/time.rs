//! Times on the wire: local Beijing time without a zone, and the `Date` header.
//! Standard: [GB/T28181-2022 9.10, A.2.1], [RFC3261 20.17] for the other `Date` form.
//! In: text of peers, tolerant. Out: `UnixMillis`, and text in exactly the standard's forms.
//! Invariants: years 1 to 9999; Beijing is UTC+8 without summer time.
//! Not here: clocks (time always comes in as a value).

use std::fmt;
use std::time::Duration;

const MS_PER_DAY: i64 = 86_400_000;
/// Beijing is eight hours ahead of UTC.
const BEIJING_MS: i64 = 8 * 3_600_000;
/// 0001-01-01T00:00:00 and 9999-12-31T23:59:59.999 in Beijing: what four-digit years can say.
const FIRST_MS: i64 = days_from_civil(1, 1, 1) * MS_PER_DAY - BEIJING_MS;
const LAST_MS: i64 = days_from_civil(10_000, 1, 1) * MS_PER_DAY - 1 - BEIJING_MS;

/// Why a text is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimeError {
    /// Not of a known form.
    #[error("time: not of the form YYYY-MM-DDTHH:MM:SS: correct the sender")]
    Form,
    /// A field outside its range, such as month 13, hour 24 or year 0.
    #[error("time: {0} out of range: correct the sender")]
    Range(&'static str),
}

/// Milliseconds since 1970-01-01T00:00:00Z. `Display` is local Beijing time to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// From whole seconds, saturating.
    pub fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Whole seconds, rounded down.
    pub fn secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// `YYYY-MM-DDTHH:MM:SS` in Beijing, as every MANSCDP element has it.
    pub fn to_local(self) -> String {
        let c = Civil::of(self.clamped());
        format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}", c.year, c.month, c.day, c.hour, c.minute, c.second)
    }

    /// `YYYY-MM-DDTHH:MM:SS.mmm` in Beijing: the `Date` header of a REGISTER answer. [GB/T28181-2022 9.10]
    pub fn to_sip_date(self) -> String {
        format!("{}.{:03}", self.to_local(), self.clamped().rem_euclid(1000))
    }

    fn clamped(self) -> i64 {
        self.0.clamp(FIRST_MS, LAST_MS)
    }

    /// Reads a MANSCDP time. Accepts milliseconds, `Z` or an offset, a blank for `T`, and fields without leading zeros.
    /// Without a zone it is Beijing time. Hour 24 and year 0 are errors.
    pub fn parse_local(text: &str) -> Result<Self, TimeError> {
        let text = text.trim();
        let (date, time) = text.split_once(['T', 't', ' ']).ok_or(TimeError::Form)?;
        let [year, month, day] = numbers(date, '-')?;
        let (time, offset) = split_zone(time.trim())?;
        let (time, ms) = match time.split_once('.') {
            Some((whole, fraction)) => (whole, fraction_ms(fraction)?),
            None => (time, 0),
        };
        let [hour, minute, second] = numbers(time, ':')?;
        let local = civil_ms(year, month, day, hour, minute, second)? + ms;
        Ok(Self(local - offset.unwrap_or(BEIJING_MS)))
    }

    /// Reads a `Date` header: the standard's form or `Sat, 13 Nov 2010 23:29:00 GMT`. [RFC3261 20.17]
    pub fn parse_sip_date(text: &str) -> Result<Self, TimeError> {
        let text = text.trim();
        if !text.ends_with("GMT") {
            return Self::parse_local(text);
        }
        let mut words = text.trim_end_matches("GMT").split([' ', ',']).filter(|w| !w.is_empty()).skip(1);
        let mut word = || words.next().ok_or(TimeError::Form);
        let day = number(word()?)?;
        let name = word()?;
        const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let month = MONTHS.iter().position(|m| m.eq_ignore_ascii_case(name)).ok_or(TimeError::Form)? as u32 + 1;
        let year = number(word()?)?;
        let [hour, minute, second] = numbers(word()?, ':')?;
        Ok(Self(civil_ms(year, month, day, hour, minute, second)?))
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_local())
    }
}

impl From<Duration> for UnixMillis {
    fn from(since_epoch: Duration) -> Self {
        Self(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }
}

/// One to four digits.
fn number(text: &str) -> Result<u32, TimeError> {
    if text.is_empty() || text.len() > 4 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(TimeError::Form);
    }
    text.parse().map_err(|_| TimeError::Form)
}

fn numbers(text: &str, separator: char) -> Result<[u32; 3], TimeError> {
    let mut parts = text.split(separator);
    let mut out = [0; 3];
    for slot in &mut out {
        *slot = number(parts.next().ok_or(TimeError::Form)?.trim())?;
    }
    if parts.next().is_some() { Err(TimeError::Form) } else { Ok(out) }
}

fn fraction_ms(digits: &str) -> Result<i64, TimeError> {
    if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(TimeError::Form);
    }
    let ms = digits.bytes().chain(*b"00").take(3).fold(0, |acc, b| acc * 10 + i64::from(b - b'0'));
    Ok(ms)
}

/// Takes `Z`, `+08:00`, `+0800` off the end of a time of day; the offset in milliseconds.
fn split_zone(time: &str) -> Result<(&str, Option<i64>), TimeError> {
    if let Some(rest) = time.strip_suffix(['Z', 'z']) {
        return Ok((rest, Some(0)));
    }
    let Some(at) = time.find(['+', '-']) else {
        return Ok((time, None));
    };
    let sign = if time[at..].starts_with('-') { -1 } else { 1 };
    let zone = &time[at + 1..];
    let (hour, minute) = match zone.split_once(':') {
        Some((h, m)) => (number(h)?, number(m)?),
        None => match number(zone)? {
            n if zone.len() == 4 => (n / 100, n % 100),
            n => (n, 0),
        },
    };
    if hour > 14 || minute > 59 {
        return Err(TimeError::Range("zone"));
    }
    Ok((&time[..at], Some(sign * i64::from(hour * 60 + minute) * 60_000)))
}

fn civil_ms(year: u32, month: u32, day: u32, hour: u32, minute: u32, second: u32) -> Result<i64, TimeError> {
    if year == 0 {
        return Err(TimeError::Range("year"));
    }
    if !(1..=12).contains(&month) {
        return Err(TimeError::Range("month"));
    }
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let last = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 31,
    };
    if day == 0 || day > last {
        return Err(TimeError::Range("day"));
    }
    if hour > 23 {
        return Err(TimeError::Range("hour"));
    }
    if minute > 59 {
        return Err(TimeError::Range("minute"));
    }
    if second > 59 {
        return Err(TimeError::Range("second"));
    }
    let days = days_from_civil(year.into(), month.into(), day.into());
    Ok(days * MS_PER_DAY + i64::from(hour * 3600 + minute * 60 + second) * 1000)
}

/// Days from 1970-01-01 in the Gregorian calendar. The year begins in March here, so that the leap day comes last.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Civil {
    /// The Beijing calendar of `unix_ms`.
    fn of(unix_ms: i64) -> Self {
        let local = unix_ms + BEIJING_MS;
        let second_of_day = local.rem_euclid(MS_PER_DAY) / 1000;
        let z = local.div_euclid(MS_PER_DAY) + 719_468;
        let day_of_era = z.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        Self {
            year: year_of_era + z.div_euclid(146_097) * 400 + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * shifted + 2) / 5 + 1,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // 2026-11-23T21:15:04 in Beijing
    const SAMPLE: i64 = 1_795_439_704_000;

    #[test]
    fn standard_forms() {
        assert_eq!(UnixMillis(SAMPLE).to_local(), "2026-11-23T21:15:04");
        assert_eq!(UnixMillis(SAMPLE + 128).to_sip_date(), "2026-11-23T21:15:04.128");
        assert_eq!(UnixMillis(0).to_local(), "1970-01-01T08:00:00");
        assert_eq!(UnixMillis::parse_sip_date("2026-11-23T21:15:04.128"), Ok(UnixMillis(SAMPLE + 128)));
        assert_eq!(UnixMillis::parse_sip_date("Mon, 23 Nov 2026 13:15:04 GMT"), Ok(UnixMillis(SAMPLE)));
    }

    #[test]
    fn tolerated_forms() {
        for text in [
            "2026-11-23T21:15:04",
            " 2026-11-23 21:15:04 ",
            "2026-11-23t21:15:04.000",
            "2026-11-23T21:15:04+08:00",
            "2026-11-23T21:15:04+0800",
            "2026-11-23T13:15:04Z",
            "2026-11-23T13:15:04.0z",
            "2026-11-23T08:15:04-05:00",
        ] {
            assert_eq!(UnixMillis::parse_local(text), Ok(UnixMillis(SAMPLE)), "{text:?}");
        }
        assert_eq!(UnixMillis::parse_local("2024-1-2T3:4:5"), UnixMillis::parse_local("2024-01-02T03:04:05"));
        assert_eq!(UnixMillis::parse_local("2026-11-23T21:15:04.1234567").map(|t| t.0), Ok(SAMPLE + 123));
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "T",
            "2026-11-23",
            "21:15:04",
            "2026-11-23T",
            "2026-11-23T21:15",
            "2026-11-23T21:15:04:05",
            "20261-01-01T00:00:00",
            "2026-11-23T21:15:04.",
            "2026-11-23T21:15:04.x",
            "２026-11-23T21:15:04",
            "2026-11-23T21:15:04+",
            "-1-1-1T0:0:0",
            "Mon, 23 Nov",
            "GMT",
            "Mon, 23 Foo 2026 13:15:04 GMT",
        ] {
            assert_eq!(UnixMillis::parse_sip_date(text), Err(TimeError::Form), "{text:?}");
        }
        for (text, field) in [
            ("0000-01-01T00:00:00", "year"),
            ("2026-13-01T00:00:00", "month"),
            ("2026-00-01T00:00:00", "month"),
            ("2026-02-29T00:00:00", "day"),
            ("1900-02-29T00:00:00", "day"),
            ("2026-04-31T00:00:00", "day"),
            ("2026-11-23T24:00:00", "hour"),
            ("2026-11-23T23:60:00", "minute"),
            ("2026-11-23T23:59:60", "second"),
            ("2026-11-23T23:59:59+15:00", "zone"),
        ] {
            assert_eq!(UnixMillis::parse_local(text), Err(TimeError::Range(field)), "{text:?}");
        }
        assert!(UnixMillis::parse_local("2000-02-29T00:00:00").is_ok());
    }

    #[test]
    fn outside_four_digit_years_is_clamped() {
        assert_eq!(UnixMillis(i64::MAX).to_sip_date(), "9999-12-31T23:59:59.999");
        assert_eq!(UnixMillis(i64::MIN).to_local(), "0001-01-01T00:00:00");
        assert_eq!(UnixMillis::from(Duration::MAX), UnixMillis(i64::MAX));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn round_trip(ms in FIRST_MS..=LAST_MS) {
            let t = UnixMillis(ms);
            prop_assert_eq!(UnixMillis::parse_sip_date(&t.to_sip_date()), Ok(t));
            prop_assert_eq!(UnixMillis::parse_local(&t.to_local()).map(UnixMillis::secs), Ok(t.secs()));
        }

        #[test]
        fn any_text(text in "[0-9TZ:+ .,GMTa-z-]{0,40}|\\PC{0,20}") {
            let _ = UnixMillis::parse_sip_date(&text);
        }
    }
}
