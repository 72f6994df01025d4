//! `[time]`: what our protocol clock follows. Taken at restart only.
//!
//! Standard: [GB/T28181-2022 9.10].
//! Not here: the clock itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::units::{FromText, Span, text_serde};

/// `[time]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Time {
    /// What the protocol clock follows; the operating system's clock is never set.
    pub source: TimeSource,
    /// A larger correction is refused and reported; 2 s to 24 h.
    pub max_step: Span,
}

impl Default for Time {
    fn default() -> Self {
        Self { source: TimeSource::System, max_step: Span::secs(600) }
    }
}

/// What the protocol clock follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeSource {
    /// The operating system's clock (kept by NTP).
    System,
    /// The `Date` header in the REGISTER answers of the uplink of this name [GB/T28181-2022 9.10.3].
    Uplink(String),
}

impl FromText for TimeSource {
    const EXPECT: &'static str = r#""system" or "uplink:NAME""#;
    const FIX: &'static str = "name an uplink, or leave the clock to the system";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "system" => Some(Self::System),
            _ => text.strip_prefix("uplink:").filter(|name| !name.is_empty()).map(|name| Self::Uplink(name.to_owned())),
        }
    }
}

impl fmt::Display for TimeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Uplink(name) => write!(f, "uplink:{name}"),
        }
    }
}

text_serde!(TimeSource);
