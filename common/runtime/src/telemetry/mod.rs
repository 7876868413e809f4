//! Logging to standard error, and traces to whoever collects them.

mod json;
mod shown;
pub mod trace;

use std::{
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
};
use tracing::{Level, Subscriber};
use tracing_subscriber::{
    Layer, filter::Targets, fmt::format::JsonFields, layer::SubscriberExt, registry,
    registry::LookupSpan, util::SubscriberInitExt,
};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, with the fields of the spans around it.
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

/// Whether spans are of use to anybody.
static SPANS: AtomicBool = AtomicBool::new(false);

/// Whether spans are of use to anybody: to traces, or to the fields of JSON lines. Where they
/// are not, none should be made: each costs about a microsecond.
pub fn spans() -> bool {
    SPANS.load(Ordering::Relaxed)
}

/// Starts logging, and traces if somebody collects them. `MEEPO_LOG` holds levels of log
/// lines in the syntax of `tracing`, by module if need be (`info,meepo_worker=debug`; default
/// `info`). A second call does nothing. What is
/// answered sends the last spans when it is dropped. With traces it must be called within a
/// runtime.
///
/// # Errors
/// When traces are to be sent to what is no address.
pub fn init(
    format: LogFormat,
    collector: Option<&trace::Collector>,
) -> anyhow::Result<trace::Traces> {
    // Not the filter that knows spans and fields, too: its regular expressions are a megabyte.
    let levels = std::env::var("MEEPO_LOG").ok().and_then(|levels| levels.parse().ok());
    let filter: Targets = levels.unwrap_or_else(|| Targets::new().with_default(Level::INFO));
    SPANS.store(format == LogFormat::Json || collector.is_some(), Ordering::Relaxed);
    // An error means that a subscriber is there already, as in tests: keep that one.
    let Some(collector) = collector else {
        // Asked first, the filter keeps what nobody wants from costing anything.
        let _ = registry().with(logs(format)).with(filter).try_init();
        return Ok(trace::Traces::default());
    };
    let (layer, traces) = trace::layer(collector)?;
    let _ = registry().with(layer).with(logs(format).with_filter(filter)).try_init();
    Ok(traces)
}

fn logs<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    // A log that cannot be written (its disk is full, say) must cost log lines only: told
    // of the error on standard error, a task would panic, as that cannot be written either.
    let json = format == LogFormat::Json;
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(move || shown::Shown { to: std::io::stderr(), json })
        .log_internal_errors(false);
    match format {
        LogFormat::Json => layer.fmt_fields(JsonFields::new()).event_format(json::Lines).boxed(),
        LogFormat::Text => {
            use std::io::IsTerminal;
            layer.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed()
        }
    }
}
