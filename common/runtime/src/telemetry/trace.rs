//! Traces: what a request made masters and workers do, sent to a collector over OTLP. Off
//! unless one is named; then nothing here does anything.

use anyhow::Context as _;
use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, TraceContextExt, TraceState, TracerProvider},
};
use opentelemetry_otlp::{
    WithExportConfig, WithTonicConfig, tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

/// How long the collector may take for some spans.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take for the last ones.
const LAST: Duration = Duration::from_secs(2);

/// How the address of a collector begins that is spoken to over TLS.
const TLS: &str = "https://";

static ON: AtomicBool = AtomicBool::new(false);

/// Where spans go, and as whose.
#[derive(Debug, Clone)]
pub struct Collector {
    /// URL of its OTLP server over gRPC, as `http://127.0.0.1:4317`; with `https` the
    /// authorities are those that the host trusts.
    pub endpoint: String,
    /// The service: `meepo-master`.
    pub service: &'static str,
    /// Which one of them: the node, or the address. Empty: it does not say.
    pub instance: String,
}

/// Sends the last spans when it is dropped.
#[derive(Default)]
pub struct Traces(Option<SdkTracerProvider>);

impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(provider) = self.0.take() {
            // A collector that is away must not keep the process.
            let _ = provider.shutdown_with_timeout(LAST);
        }
    }
}

/// Whether an address can be that of a collector.
///
/// # Errors
/// If it cannot; says what would be right.
pub fn check(endpoint: &str) -> anyhow::Result<()> {
    let secure = endpoint.strip_prefix(TLS);
    let host = secure.or_else(|| endpoint.strip_prefix("http://")).unwrap_or_default();
    anyhow::ensure!(!host.is_empty() && !host.contains(char::is_whitespace), wrong(endpoint));
    Ok(())
}

fn wrong(endpoint: &str) -> String {
    format!(
        "otlp_endpoint: {endpoint:?} is no address of a collector; expected a URL such as \
         http://127.0.0.1:4317 or https://otel.example.org:4317"
    )
}

/// Whether anybody collects traces.
pub fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// The layer that makes spans of `tracing` into those that are sent.
pub(super) fn layer<S>(
    collector: &Collector,
) -> anyhow::Result<(impl Layer<S> + Send + Sync + use<S>, Traces)>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let endpoint = &collector.endpoint;
    check(endpoint)?;
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(PATIENCE);
    if endpoint.starts_with(TLS) {
        exporter = exporter.with_tls_config(ClientTlsConfig::new().with_native_roots());
    }
    let exporter = exporter.build().with_context(|| wrong(endpoint))?;
    let mut resource = Resource::builder()
        .with_service_name(collector.service)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if !collector.instance.is_empty() {
        let instance = KeyValue::new("service.instance.id", collector.instance.clone());
        resource = resource.with_attribute(instance);
    }
    let resource = resource.build();
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let tracer = provider.tracer("meepo");
    ON.store(true, Ordering::Relaxed);
    let layer = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        // Spans of libraries are many and tell nothing of meepo.
        .with_filter(filter_fn(|m| m.is_span() && m.target().starts_with("meepo")));
    Ok((layer, Traces(Some(provider))))
}

/// Lets a span that has not been entered belong to the trace that `traceparent` (W3C Trace
/// Context, version 00) names, if it names one, and notes the trace in its field `trace_id`.
pub fn adopt(span: &Span, traceparent: Option<&str>) {
    if !on() {
        return;
    }
    if let Some(remote) = traceparent.and_then(parse) {
        // Fails only for a span that nobody collects.
        let _ = span.set_parent(Context::new().with_remote_span_context(remote));
    }
    if let Some(id) = id(span) {
        span.record("trace_id", id);
    }
}

/// The `traceparent` by which others become children of a span, if anybody collects it.
pub fn traceparent(span: &Span) -> Option<String> {
    let c = context(span)?;
    let flags = c.trace_flags().to_u8();
    Some(format!("00-{}-{}-{flags:02x}", c.trace_id(), c.span_id()))
}

/// … by which others become children of what goes on now.
pub fn current() -> Option<String> {
    if on() { traceparent(&Span::current()) } else { None }
}

/// The trace of a span, if anybody collects it.
pub fn id(span: &Span) -> Option<String> {
    Some(context(span)?.trace_id().to_string())
}

/// The trace that a `traceparent` names.
pub fn id_of(traceparent: &str) -> Option<String> {
    Some(parse(traceparent)?.trace_id().to_string())
}

fn context(span: &Span) -> Option<SpanContext> {
    if !on() {
        return None;
    }
    let context = span.context().span().span_context().clone();
    context.is_valid().then_some(context)
}

fn parse(text: &str) -> Option<SpanContext> {
    let hex = |t: &str| t.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut parts = text.trim().split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let (span, flags) = (parts.next()?, parts.next()?);
    let lengths = (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2);
    // Later versions may have more behind; `ff` is none.
    let more = version != "00" || parts.next().is_none();
    if !lengths || !more || version == "ff" || ![version, trace, span, flags].iter().all(|t| hex(t))
    {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_or_passed_over() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let c = parse(good).unwrap();
        assert!(c.is_remote() && c.is_sampled());
        assert_eq!(id_of(good).unwrap(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(
            !parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00").unwrap().is_sampled()
        );
        assert!(parse("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some());
        for bad in [
            "",
            "x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_address_has_a_scheme_and_a_host() {
        for good in ["http://127.0.0.1:4317", "https://otel.example.org"] {
            check(good).unwrap();
        }
        for bad in ["", "http://", "https://", "127.0.0.1:4317", "grpc://h", "https://a b"] {
            assert!(check(bad).unwrap_err().to_string().contains("https://otel"), "{bad}");
        }
    }

    #[test]
    fn without_a_collector_nothing_is_carried() {
        assert!(!on() && current().is_none() && id(&Span::current()).is_none());
        adopt(&Span::current(), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
    }
}
