//! Logging to standard error.

use std::str::FromStr;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{s:?} is not a log format; expected text or json")),
        }
    }
}

/// Starts logging. `MEEPO_LOG` holds a filter in the syntax of `tracing` (default
/// `info`). A second call does nothing.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("MEEPO_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A log that cannot be written (its disk is full, say) must cost log lines only: told
    // of the error on standard error, a task would panic, as that cannot be written either.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    // An error means that a subscriber is there already, as in tests: keep that one.
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => {
            use std::io::IsTerminal;
            builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init()
        }
    };
}
