//! What is wrong, in words, with what to do about it.

use crate::{
    api::{DrainState, NodeView},
    node::Work,
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Clocks that differ by more than this start slots late or early.
const SKEW: i64 = 1_000;
/// … and by more than this, not on time by any measure. Milliseconds.
const BAD_SKEW: i64 = 10_000;
/// What waits in a spool for longer is late.
const OLD: SignedDuration = SignedDuration::from_secs(60);
/// Slots looked at later than this. Milliseconds.
const LATE: u64 = 1_000;
/// A flush of the journal that takes longer. Milliseconds.
const SLOW_FLUSH: u64 = 500;

/// How grave something is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It is as it should be.
    #[default]
    Ok,
    /// It works, and somebody should look.
    Warn,
    /// Something does not work.
    Error,
}

impl Severity {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// What it is about: `etcd`, `leader`, `log store`, `master`, `node/10.0.0.7`,
    /// `job/backup`, `task/…`.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// Something is as it should be.
    pub fn ok(subject: impl Into<String>, message: impl Into<String>) -> Self {
        let (subject, message) = (subject.into(), message.into());
        Self { severity: Severity::Ok, subject, message, remedy: None }
    }

    /// Somebody should look.
    pub fn warn(
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { severity: Severity::Warn, remedy, ..Self::ok(subject, message) }
    }

    /// Something does not work.
    pub fn error(
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Error, ..Self::warn(subject, message, remedy) }
    }
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Diagnosis {
    /// The gravest of the findings.
    pub status: Severity,
    /// When it was looked. UTC.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "date-time"))]
    pub at: Timestamp,
    /// Who looked: a master by the URL of its API, or `this host`.
    pub by: String,
    /// What was found, the gravest first.
    pub findings: Vec<Finding>,
    /// Findings beyond those that are listed.
    #[serde(default)]
    pub more: u64,
}

/// Most findings in a diagnosis; of more, the gravest.
pub const MAX_FINDINGS: usize = 500;

impl Diagnosis {
    /// Puts findings together.
    pub fn new(by: impl Into<String>, at: Timestamp, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
        let more = findings.len().saturating_sub(MAX_FINDINGS) as u64;
        findings.truncate(MAX_FINDINGS);
        let status = findings.first().map_or(Severity::Ok, |f| f.severity);
        Self { status, at, by: by.into(), findings, more }
    }
}

/// What is to be said of a node, the gravest first; one finding that all is well if nothing
/// is. `version` is that of the master.
pub fn node(n: &NodeView, version: &str, now: Timestamp) -> Vec<Finding> {
    let subject = format!("node/{}", n.id);
    let mut found = Vec::new();
    if !n.online {
        let since = match n.offline_since {
            Some(at) => format!("since {} ({})", second(at), ago(at, now)),
            None => "for longer than this master has been running".to_owned(),
        };
        return vec![Finding::error(
            subject,
            format!("it is offline {since}: its worker does not renew its lease"),
            format!(
                "see whether the host runs and reaches etcd, and `meepo-worker status` there; a host \
                 that is gone for good: etcdctl del /meepo/nodes/{}",
                n.id
            ),
        )];
    }
    if n.connected == Some(false) {
        found.push(Finding::warn(
            &subject,
            "its worker has no session with the leading master: jobs run, but commands \
             (`meepo run`) and live output do not reach it",
            "a session comes back within seconds; if it does not, see whether the host reaches the \
             master's gRPC address (setting `advertise`) and what the worker logs",
        ));
    }
    if let Some(skew) = n.clock_skew_ms.filter(|s| s.abs() > SKEW) {
        let (amount, side) =
            (skew.abs() as f64 / 1000.0, if skew > 0 { "ahead" } else { "behind" });
        let message = format!("its clock is {amount:.1} s {side} of the master's");
        let remedy = "keep the clocks of all hosts in step (chrony, systemd-timesyncd): slots start by \
                      the node's own clock";
        found.push(match skew.abs() > BAD_SKEW {
            true => Finding::error(&subject, message, remedy),
            false => Finding::warn(&subject, message, remedy),
        });
    }
    for p in &n.problems {
        let message = format!("{}: {}", p.subject, p.reason);
        found.push(match p.subject.as_str() {
            "disk" => Finding::error(
                &subject,
                message,
                "make room or repair the disk of its data directory; held back runs start by themselves",
            ),
            "log store" => Finding::error(
                &subject,
                message,
                "see whether the node reaches the log store (or the leading master, where results go \
                 through it); nothing is lost while the spool has room",
            ),
            "spool" => Finding::error(
                &subject,
                message,
                "bring the log store back, or give the spool more room (setting `spool_limit`)",
            ),
            "scheduler" => Finding::error(
                &subject,
                message,
                "a host that is overloaded or was suspended recovers by itself; if it stays, restart the \
                 worker and report it with its log",
            ),
            _ => Finding::warn(
                &subject,
                message,
                "correct the definition (`meepo job apply`), or the key with etcdctl if it was put there \
                 by hand",
            ),
        });
    }
    if let Some(work) = &n.work {
        found.extend(of_work(&subject, n, work, now));
    }
    if n.version != version && !n.version.is_empty() {
        found.push(Finding::warn(
            &subject,
            format!("its worker is of version {}, the master of {version}", n.version),
            "versions may differ during an upgrade; finish it",
        ));
    }
    if let Some(drain) = &n.drain {
        let state = match drain.state {
            DrainState::Asked => "has been asked to take nothing new and has not confirmed it",
            DrainState::Draining => "takes nothing new and still runs something",
            DrainState::Drained => "takes nothing new and runs nothing",
        };
        let since = ago(drain.requested_at, now);
        found.push(Finding::warn(
            &subject,
            format!("it {state}; asked for {since}"),
            format!("when the work on it is done: meepo node undrain {}", n.id),
        ));
    }
    if found.is_empty() {
        let jobs = if n.jobs == 1 { "1 job".to_owned() } else { format!("{} jobs", n.jobs) };
        found.push(Finding::ok(&subject, format!("it is online and holds {jobs}")));
    }
    found.sort_by_key(|f| std::cmp::Reverse(f.severity));
    found
}

fn of_work(subject: &str, n: &NodeView, work: &Work, now: Timestamp) -> Vec<Finding> {
    let mut found = Vec::new();
    let told = |what: &str| n.problems.iter().any(|p| p.subject == what);
    if work.lag_max_ms > LATE && !told("scheduler") {
        let seconds = work.lag_max_ms as f64 / 1000.0;
        found.push(Finding::warn(
            subject,
            format!("slots were looked at up to {seconds:.1} s late within a minute"),
            "the host is overloaded, or was suspended",
        ));
    }
    if let Some(oldest) = work.spool_oldest.filter(|at| now.duration_since(*at) > OLD)
        && !told("log store")
    {
        found.push(Finding::warn(
            subject,
            format!(
                "{} results wait in its spool ({} bytes), the oldest from {}",
                work.spool_items,
                work.spool_bytes,
                ago(oldest, now)
            ),
            "if it does not shrink, see whether the log store is reachable and quick enough",
        ));
    }
    if work.spool_dropped_bytes > 0 {
        found.push(Finding::warn(
            subject,
            format!(
                "its spool was full: {} bytes of output were dropped since its worker started",
                work.spool_dropped_bytes
            ),
            "the runs' records are complete and count what is missing; a larger `spool_limit` outlasts \
             longer outages of the log store",
        ));
    }
    if work.flush_ms > SLOW_FLUSH && !told("disk") {
        found.push(Finding::warn(
            subject,
            format!("its disk is slow: the last flush of the journal took {} ms", work.flush_ms),
            "every run waits for two of them; put the worker's data directory on a quicker disk",
        ));
    }
    found
}

/// To the second.
fn second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// How long ago, in words.
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    let s = now.duration_since(at).as_secs().max(0);
    match s {
        0..120 => format!("{s} s ago"),
        120..7_200 => format!("{} min ago", s / 60),
        7_200..172_800 => format!("{} h ago", s / 3_600),
        _ => format!("{} days ago", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn view(more: Value) -> NodeView {
        let mut node = json!({"id": "10.0.0.7", "online": true, "connected": true, "version": "1",
            "labels": {}, "facts": {}, "jobs": 2, "problems": []});
        node.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn a_node_is_judged_in_words() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let problem = |s: &str| json!({"problems": [{"subject": s, "reason": "why"}]});
        use Severity::{Error, Ok, Warn};
        for (more, severity, words) in [
            (json!({}), Ok, "online and holds 2 jobs"),
            (json!({"online": false}), Error, "for longer than this master"),
            (
                json!({"online": false, "offline_since": "2026-01-01T00:30:00.5Z"}),
                Error,
                "since 2026-01-01T00:30:00Z (29 min ago)",
            ),
            (json!({"connected": false}), Warn, "no session"),
            (json!({"connected": null}), Ok, "online"),
            (json!({"clock_skew_ms": 900}), Ok, "online"),
            (json!({"clock_skew_ms": -2500}), Warn, "2.5 s behind"),
            (json!({"clock_skew_ms": 60_000}), Error, "60.0 s ahead"),
            (problem("disk"), Error, "disk: why"),
            (problem("log store"), Error, "log store: why"),
            (problem("spool"), Error, "spool: why"),
            (problem("scheduler"), Error, "scheduler: why"),
            (problem("/cron/jobs/10.0.0.7/x"), Warn, "/cron/jobs/10.0.0.7/x: why"),
            (json!({"work": {"lag_max_ms": 1500}}), Warn, "1.5 s late"),
            (json!({"work": {"flush_ms": 700}}), Warn, "took 700 ms"),
            (
                json!({"work": {"spool_items": 5, "spool_bytes": 99, "spool_oldest": "2026-01-01T00:50:00Z"}}),
                Warn,
                "5 results wait in its spool (99 bytes), the oldest from 10 min ago",
            ),
            (json!({"work": {"spool_dropped_bytes": 7}}), Warn, "7 bytes of output were dropped"),
            (json!({"version": "2"}), Warn, "version 2, the master of 1"),
            (
                json!({"drain": {"state": "drained", "requested_at": "2026-01-01T00:00:00Z"}}),
                Warn,
                "runs nothing; asked for 60 min ago",
            ),
        ] {
            let found = node(&view(more.clone()), "1", now);
            let [one] = found.as_slice() else { panic!("{more}: {found:?}") };
            assert_eq!(one.severity, severity, "{more}: {one:?}");
            assert!(one.message.contains(words), "{more}: {one:?}");
            assert_eq!(one.remedy.is_none(), severity == Ok, "{one:?}");
        }
    }

    #[test]
    fn the_gravest_stand_first_and_the_rest_is_counted() {
        let mut all = vec![Finding::ok("a", "fine"); MAX_FINDINGS];
        all.push(Finding::warn("b", "hm", "look"));
        all.push(Finding::error("c", "bad", "mend"));
        let d = Diagnosis::new("m", Timestamp::UNIX_EPOCH, all);
        assert_eq!((d.status, d.more, d.findings.len()), (Severity::Error, 2, MAX_FINDINGS));
        assert_eq!((&*d.findings[0].subject, &*d.findings[1].subject), ("c", "b"));
        assert_eq!(Diagnosis::new("m", Timestamp::UNIX_EPOCH, Vec::new()).status, Severity::Ok);
    }
}
