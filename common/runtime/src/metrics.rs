//! Sets of metrics, declared once and shown in the OpenMetrics text format.

#[doc(hidden)]
pub use prometheus_client;
use prometheus_client::{encoding::text::encode, registry::Registry};
use std::sync::{Mutex, PoisonError};

/// The content type of [`Exposition::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of a process, ready to be shown.
pub struct Exposition(Mutex<Registry>);

impl From<Registry> for Exposition {
    fn from(registry: Registry) -> Self {
        Self(Mutex::new(registry))
    }
}

impl Exposition {
    /// Every metric with its present value.
    pub fn text(&self) -> String {
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut out, &registry);
        out
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
                Self { $($field,)* exposition: registry.into() }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    metrics! {
        /// For the test.
        Sample, "sample";
        hits: Counter = "hits", "How often";
    }

    #[test]
    fn a_set_shows_its_values() {
        let sample = Sample::default();
        sample.hits.inc();
        let text = sample.exposition.text();
        assert!(text.contains("sample_hits_total 1"), "{text}");
        assert!(text.contains("# HELP sample_hits How often"), "{text}");
    }
}
