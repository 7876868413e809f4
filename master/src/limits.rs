//! How much is served at once. Beyond that a request is turned away at once with 429 and
//! `Retry-After`, so that a pile of waiting requests never fills the memory.

use crate::{
    error::ApiError,
    metrics::{Kind, Metrics},
};
use axum::{body::Body, extract::Request, middleware::Next, response::Response};
use http_body_util::BodyExt;
use meepo_core::code::Code;
use prometheus_client::metrics::gauge::Gauge;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests that are answered as soon as etcd or the log store has answered.
pub const SHORT: usize = 512;
/// Requests that last as long as what they look at: commands, followed output, events.
pub const LONG: usize = 1024;

/// What is still free. Cloning is cheap.
#[derive(Clone)]
pub struct Limits {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Health, metrics, what workers call: never turned away.
    Free,
    Short,
    /// Counts until the last byte of the answer has gone. What kind it is of.
    Long(&'static str),
}

fn class(path: &str) -> Class {
    if let Some(rest) = path.strip_prefix("/v1/") {
        return match rest {
            "events" => Class::Long("events"),
            "exec" | "exec/stream" => Class::Long("exec"),
            // As long as the other side takes.
            _ if rest.starts_with("notify/channels/") && rest.ends_with("/test") => {
                Class::Long("notify")
            }
            _ if rest.starts_with("runs/") && rest.ends_with("/output") => Class::Long("output"),
            _ if rest.starts_with("tasks/") && rest.ends_with("/events") => Class::Long("tasks"),
            _ => Class::Short,
        };
    }
    match path.strip_prefix("/meepo.v1.") {
        Some(call) if call.starts_with("Exec/") => Class::Long("exec"),
        Some(call) if call.starts_with("Events/") => Class::Long("events"),
        Some("Runs/Output") => Class::Long("output"),
        Some("Tasks/Follow") => Class::Long("tasks"),
        Some(_) => Class::Short,
        None => Class::Free,
    }
}

impl Limits {
    /// Nothing is taken yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let [short, long] = [SHORT, LONG].map(|n| Arc::new(Semaphore::new(n)));
        Self { short, long, metrics }
    }

    fn take(&self, class: Class) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let (places, n) = match class {
            Class::Free => return Ok(None),
            Class::Short => (&self.short, SHORT),
            Class::Long(_) => (&self.long, LONG),
        };
        places.clone().try_acquire_owned().map(Some).map_err(|_| {
            self.metrics.turned_away.inc();
            let message = format!("this master serves {n} such requests at once already");
            ApiError::new(Code::BUSY, message)
        })
    }

    /// Serves a request, or turns it away in the words of its transport.
    pub async fn serve(
        &self,
        request: Request,
        next: Next,
        refuse: impl FnOnce(ApiError) -> Response,
    ) -> Response {
        let class = class(request.uri().path());
        let permit = match self.take(class) {
            Ok(permit) => permit,
            Err(e) => return refuse(e),
        };
        let Class::Long(kind) = class else { return next.run(request).await };
        let held = (permit, Counted::new(&self.metrics, kind));
        next.run(request).await.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held = &held;
                frame
            }))
        })
    }
}

/// Counts a stream as long as it lives.
struct Counted(Gauge);

impl Counted {
    fn new(metrics: &Metrics, kind: &'static str) -> Self {
        let gauge = metrics.streams.get_or_create_owned(&Kind { kind });
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_has_places_of_its_own_and_health_needs_none() {
        for (path, want) in [
            ("/healthz", Class::Free),
            ("/metrics", Class::Free),
            ("/meepo.internal.v1.Workers/Session", Class::Free),
            ("/grpc.health.v1.Health/Check", Class::Free),
            ("/v1/jobs", Class::Short),
            ("/v1/runs/x", Class::Short),
            ("/meepo.v1.Jobs/Apply", Class::Short),
            ("/v1/events", Class::Long("events")),
            ("/v1/exec", Class::Long("exec")),
            ("/v1/runs/x/output", Class::Long("output")),
            ("/v1/tasks/x/events", Class::Long("tasks")),
            ("/v1/tasks/x/cancel", Class::Short),
            ("/meepo.v1.Tasks/Follow", Class::Long("tasks")),
            ("/meepo.v1.Exec/Run", Class::Long("exec")),
            ("/meepo.v1.Runs/Output", Class::Long("output")),
        ] {
            assert_eq!(class(path), want, "{path}");
        }
    }

    #[test]
    fn beyond_the_limit_a_request_is_turned_away_and_a_place_comes_back() {
        let limits = Limits::new(Arc::default());
        let mut held: Vec<_> = (0..SHORT).map(|_| limits.take(Class::Short).unwrap()).collect();
        let refused = limits.take(Class::Short).unwrap_err();
        assert_eq!((refused.0.code, limits.metrics.turned_away.get()), (Code::BUSY, 1));
        assert!(limits.take(Class::Long("exec")).is_ok() && limits.take(Class::Free).is_ok());
        held.pop();
        assert!(limits.take(Class::Short).is_ok());
    }
}
