//! Logs: text for people on a terminal, JSON lines otherwise; to standard error, rotated by whoever reads it.
//! The level is taken live on reload. retina logs through the `log` crate, which is bridged.

use std::io::IsTerminal;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Always text.
    Text,
    /// Always JSON.
    Json,
}

/// Changes the filter of the running process.
#[derive(Clone)]
pub struct LogHandle {
    reload: reload::Handle<EnvFilter, Registry>,
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogHandle")
    }
}

impl LogHandle {
    /// Takes a new filter; a bad one changes nothing and is told.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let filter = parse(filter)?;
        self.reload.reload(filter).map_err(|e| e.to_string())
    }
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    // retina tells each lost packet at warn: a camera on a bad line must not flood the log.
    let text = if filter.contains("retina") { filter.to_owned() } else { format!("{filter},retina=error") };
    EnvFilter::builder().parse(&text).map_err(|e| format!("log filter {filter:?}: {e}"))
}

/// Starts logging. Once per process; a second call (tests) is told by Err.
pub fn start(format: Format, filter: &str) -> Result<LogHandle, String> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let text = match format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Text => true,
        Format::Json => false,
    };
    let layer: Box<dyn Layer<_> + Send + Sync> = if text {
        Box::new(
            fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(false),
        )
    } else {
        Box::new(
            fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .with_writer(std::io::stderr),
        )
    };
    tracing_subscriber::registry().with(filter).with(layer).try_init().map_err(|e| e.to_string())?;
    Ok(LogHandle { reload: handle })
}
