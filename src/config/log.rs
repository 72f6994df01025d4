//! `[log]`: form and level of the log. `level` and `filter` are taken live, `format` at restart only.

use serde::{Deserialize, Serialize};

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// Text for people or JSON lines.
    pub format: LogFormat,
    /// What is written at least, where `filter` says nothing else.
    pub level: LogLevel,
    /// Levels of single modules, as `menshen::northbound=debug,menshen::media=trace`; wins over `level`.
    pub filter: String,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON lines elsewhere.
    #[default]
    Auto,
    /// Text for people.
    Text,
    /// JSON lines.
    Json,
}

/// Least weight of a line that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Failures.
    Error,
    /// And what somebody should look at.
    Warn,
    /// And what happens.
    #[default]
    Info,
    /// And why.
    Debug,
    /// And every message.
    Trace,
}

impl LogLevel {
    /// The name the filter syntax uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Log {
    /// Level and filter as one directive string, the filter last so that it wins.
    pub fn directives(&self) -> String {
        match self.filter.is_empty() {
            true => self.level.as_str().to_owned(),
            false => format!("{},{}", self.level.as_str(), self.filter),
        }
    }
}
