//! Spans of runs, for traces and for the fields of JSON logs.

use crate::plan::Plan;
use meepo_core::id::NodeId;
use meepo_runtime::telemetry::{self, trace};
use tracing::{Span, field::Empty, info_span};

/// The span of a run, in the trace of whoever asked for it. None where nobody wants it.
pub(crate) fn run(plan: &Plan, node: &NodeId) -> Span {
    if !telemetry::spans() {
        return Span::none();
    }
    let span = info_span!(
        "run",
        run_id = %plan.run_id,
        job = plan.job.as_ref().map(tracing::field::display),
        node = %node,
        attempt = plan.attempt,
        cause = ?plan.cause,
        state = Empty,
        trace_id = Empty
    );
    trace::adopt(&span, plan.assignment.traceparent());
    span
}

/// A part of a run. None where nobody collects traces.
pub(crate) fn stage(name: &'static str) -> Span {
    match trace::on() {
        true => info_span!("stage", otel.name = name),
        false => Span::none(),
    }
}
