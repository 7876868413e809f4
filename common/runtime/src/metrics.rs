//! Sets of metrics, declared once and shown in the OpenMetrics text format.

mod process;

#[doc(hidden)]
pub use prometheus_client;
use prometheus_client::{
    encoding::{
        EncodeLabelSet, EncodeMetric, MetricEncoder,
        text::{encode_eof, encode_registry},
    },
    metrics::{
        MetricType, TypedMetric, counter::Counter, family::Family, histogram::Histogram, info::Info,
    },
    registry::Registry,
};
use std::{
    borrow::Cow,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The content type of [`Exposition::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper ends of the buckets of every [`Seconds`]: from what a call on one machine takes to
/// what nobody waits for any more.
const BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// The metrics of a process, ready to be shown.
pub struct Exposition {
    own: Mutex<Registry>,
    /// Those of the process itself, under the names that every program has for them.
    process: Registry,
}

impl Exposition {
    /// Adds what every service shows: its version, and how its process is.
    #[doc(hidden)]
    pub fn new(mut own: Registry) -> Self {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        own.register("build", "The version that runs; always 1", Info::new(version));
        let mut process = Registry::default();
        process.register_collector(Box::new(process::Collector::default()));
        Self { own: Mutex::new(own), process }
    }

    /// Every metric with its present value.
    pub fn text(&self) -> String {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = encode_registry(&mut out, &own);
        let _ = encode_registry(&mut out, &self.process);
        let _ = encode_eof(&mut out);
        out
    }
}

/// A histogram of durations, in seconds.
#[derive(Debug, Clone)]
pub struct Seconds(Histogram);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new(BUCKETS))
    }
}

impl Seconds {
    /// Something took that long.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

impl EncodeMetric for Seconds {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

impl TypedMetric for Seconds {
    const TYPE: MetricType = MetricType::Histogram;
}

/// Label of a call to something meepo stands on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Operation {
    /// What was asked for: `get`, `append`, …
    pub operation: Cow<'static, str>,
}

/// Calls to something meepo stands on. Cloning is cheap and counts in the same place.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    /// How long they took.
    pub duration: Family<Operation, Seconds>,
    /// Those that failed.
    pub errors: Family<Operation, Counter>,
}

impl Calls {
    /// A call was made and took that long.
    pub fn observe(&self, operation: impl Into<Cow<'static, str>>, took: Duration, ok: bool) {
        let mut operation = operation.into();
        if operation.contains(' ') {
            operation = operation.replace(' ', "_").into();
        }
        let label = Operation { operation };
        self.duration.get_or_create(&label).observe(took);
        if !ok {
            self.errors.get_or_create(&label).inc();
        }
    }
}

/// Declares a struct of metrics under a prefix. A line is `field: Type = "name", "help";`
/// and the struct has, besides the fields, `exposition`, an [`Exposition`] of them all.
#[macro_export]
macro_rules! metrics {
    (
        $(#[$meta:meta])* $vis:vis $set:ident, $prefix:literal;
        $($field:ident: $type:ty = $name:literal, $help:literal;)*
    ) => {
        $(#[$meta])*
        $vis struct $set {
            $(#[doc = $help] $vis $field: $type,)*
            /// All of them, ready to be shown.
            $vis exposition: $crate::metrics::Exposition,
        }

        impl Default for $set {
            fn default() -> Self {
                let mut registry =
                    $crate::metrics::prometheus_client::registry::Registry::with_prefix($prefix);
                $(
                    let $field = <$type>::default();
                    registry.register($name, $help, $field.clone());
                )*
                let exposition = $crate::metrics::Exposition::new(registry);
                Self { $($field,)* exposition }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    metrics! {
        /// For the test.
        Sample, "sample";
        hits: Counter = "hits", "How often";
        took: Seconds = "took_seconds", "How long";
        calls: Family<Operation, Seconds> = "call_duration_seconds", "Calls";
    }

    #[test]
    fn a_set_shows_its_values_its_version_and_its_process() {
        let sample = Sample::default();
        sample.hits.inc();
        sample.took.observe(Duration::from_millis(3));
        let calls = Calls { duration: sample.calls.clone(), ..Calls::default() };
        calls.observe("get run", Duration::from_secs(90), false);
        let text = sample.exposition.text();
        for line in [
            "# HELP sample_hits How often",
            "sample_hits_total 1",
            "# TYPE sample_took_seconds histogram",
            "sample_took_seconds_bucket{le=\"0.0025\"} 0",
            "sample_took_seconds_bucket{le=\"0.005\"} 1",
            "sample_took_seconds_sum 0.003",
            "sample_call_duration_seconds_bucket{le=\"60.0\",operation=\"get_run\"} 0",
            "sample_call_duration_seconds_count{operation=\"get_run\"} 1",
            concat!("sample_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|l| l.starts_with(line)), "{line}\n{text}");
        }
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|l| l.starts_with(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name}: {text}"))[name.len() + 1..].parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0, "{text}");
        assert!(value("process_open_fds") >= 3.0 && value("process_threads") >= 1.0, "{text}");
        let now = jiff::Timestamp::now().as_millisecond() as f64 / 1000.0;
        assert!((now - value("process_start_time_seconds")).abs() < 60.0, "{text}");
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(calls.errors.get_or_create(&Operation { operation: "get_run".into() }).get(), 1);
    }
}
