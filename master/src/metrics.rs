//! Counters and gauges, in the Prometheus text format at `/metrics`.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::sync::{Mutex, PoisonError};

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    /// Method of HTTP.
    pub method: String,
    /// Status of the answer.
    pub status: u32,
}

macro_rules! metrics {
    ($($field:ident: $type:ty = $name:literal, $help:literal;)*) => {
        /// What the master counts.
        pub struct Metrics {
            $(#[doc = $help] pub $field: $type,)*
            registry: Mutex<Registry>,
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("meepo_master");
                $(
                    let $field = <$type>::default();
                    registry.register($name, $help, $field.clone());
                )*
                Self { $($field,)* registry: Mutex::new(registry) }
            }
        }
    };
}

metrics! {
    requests: Family<Request, Counter> = "http_requests", "Requests by method and status";
    leading: Gauge = "leading", "1 while this master leads";
    sessions: Gauge = "sessions", "Workers with a session to this master";
    placements: Counter = "placements", "Assignments written or deleted";
    received: Counter = "received_items", "Runs and pieces of output taken for the log store";
}

impl Metrics {
    /// Everything in the text format.
    pub fn text(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut out, &registry);
        out
    }
}
