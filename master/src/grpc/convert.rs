//! Between the messages of gRPC and the types of the domain.

use jiff::Timestamp;
use meepo_core::{
    api::{Applied, JobOnNode, JobSource, JobSummary, JobView, NodeView, RunRef},
    code::Code,
    error::Invalid,
    id::RunId,
    input::from_value,
    job::JobSpec,
    node::{Facts, Work},
    placement::{FieldOrigin, JobExplanation, NodeExplanation},
    run::{OutputChunk, RunRecord, Stream},
    tree::{JobDocument, TreeDefinition},
};
use meepo_proto::v1 as pb;
use prost_types::{Timestamp as PbTime, value::Kind};
use serde_json::{Map, Value, json};

/// An instant as a message.
pub fn time(t: Timestamp) -> PbTime {
    PbTime { seconds: t.as_second(), nanos: t.subsec_nanosecond() }
}

/// An instant from a message.
pub fn time_from(field: &str, t: PbTime) -> Result<Timestamp, Invalid> {
    Timestamp::new(t.seconds, t.nanos).map_err(|_| {
        Invalid::new(Code::BAD_VALUE, field, "out of range", "an instant between years 1 and 9999")
    })
}

/// The name JSON has for an enum's value.
pub(super) fn word<T: serde::Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(s)) => s,
        _ => String::new(),
    }
}

/// A definition from a message: empty means absent. Checked like one from JSON, so the
/// errors are the same.
pub fn document_from(job: pb::JobSpec) -> Result<JobDocument, Invalid> {
    let more = job.more.unwrap_or_default();
    let mut o: Map<String, Value> =
        more.fields.into_iter().map(|(name, value)| (name, json_from(value))).collect();
    let mut text = |key: &str, value: String| {
        if !value.is_empty() {
            o.insert(key.into(), Value::String(value));
        }
    };
    text("description", job.description);
    text("executor", job.executor);
    text("schedule", job.schedule);
    text("timezone", job.timezone);
    text("target", job.target);
    text("placement", job.placement);
    text("status", job.status);
    text("timeout", job.timeout);
    text("concurrency", job.concurrency);
    text("misfire", job.misfire);
    text("starting_deadline", job.starting_deadline);
    text("cwd", job.cwd);
    text("user", job.user);
    o.insert("name".into(), Value::String(job.name));
    // At a place in the tree what is not given is inherited.
    let part = o.contains_key("tree");
    for (field, value, empty) in [
        ("cmd", json!(job.cmd), job.cmd.is_empty()),
        ("args", json!(job.args), job.args.is_empty()),
        ("env", json!(job.env), job.env.is_empty()),
    ] {
        if !(part && empty) {
            o.insert(field.into(), value);
        }
    }
    if job.misfire_cap > 0 {
        o.insert("misfire_cap".into(), json!(job.misfire_cap));
    }
    if let Some(stdin) = job.stdin {
        o.insert("stdin".into(), Value::String(stdin));
    }
    if let Some(limit) = job.output_limit {
        o.insert("output_limit".into(), json!(limit));
    }
    JobDocument::from_user(Value::Object(o))
}

/// A definition as a message.
pub fn spec(job: JobSpec) -> pb::JobSpec {
    let duration = |d: Option<meepo_core::duration::HumanDuration>| {
        d.map(|d| d.to_string()).unwrap_or_default()
    };
    let all = match serde_json::to_value(&job) {
        Ok(Value::Object(all)) => all,
        _ => Map::new(),
    };
    let more = all.into_iter().filter(|(name, _)| !TYPED.contains(&name.as_str()));
    let fields = more.map(|(name, value)| (name, json_value(value))).collect();
    let more = Some(prost_types::Struct { fields });
    pb::JobSpec {
        name: job.name.to_string(),
        description: job.description.unwrap_or_default(),
        cmd: job.cmd,
        args: job.args,
        executor: word(job.executor),
        schedule: job.schedule.unwrap_or_default(),
        timezone: job.timezone.unwrap_or_default(),
        target: job.target,
        placement: word(job.placement),
        status: word(job.status),
        timeout: duration(job.timeout),
        concurrency: word(job.concurrency),
        misfire: word(job.misfire),
        misfire_cap: job.misfire_cap.unwrap_or_default(),
        starting_deadline: duration(job.starting_deadline),
        env: job.env.into_iter().collect(),
        cwd: job.cwd.unwrap_or_default(),
        user: job.user.unwrap_or_default(),
        stdin: job.stdin,
        output_limit: job.output_limit,
        more,
    }
}

/// Fields of a job that have a field of their own in the message; the others are in
/// `more`.
const TYPED: [&str; 20] = [
    "name",
    "description",
    "cmd",
    "args",
    "executor",
    "schedule",
    "timezone",
    "target",
    "placement",
    "status",
    "timeout",
    "concurrency",
    "misfire",
    "misfire_cap",
    "starting_deadline",
    "env",
    "cwd",
    "user",
    "stdin",
    "output_limit",
];

/// JSON as a message.
pub(super) fn json_value(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(f64::NAN)),
        Value::String(s) => Kind::StringValue(s),
        Value::Array(items) => Kind::ListValue(prost_types::ListValue {
            values: items.into_iter().map(json_value).collect(),
        }),
        Value::Object(o) => Kind::StructValue(prost_types::Struct {
            fields: o.into_iter().map(|(k, v)| (k, json_value(v))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// JSON from a message, whose only numbers are doubles: whole ones become integers.
pub(super) fn json_from(value: prost_types::Value) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => Value::Bool(b),
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() <= EXACT => json!(n as i64),
        Some(Kind::NumberValue(n)) => json!(n),
        Some(Kind::StringValue(s)) => Value::String(s),
        Some(Kind::ListValue(l)) => l.values.into_iter().map(json_from).collect(),
        Some(Kind::StructValue(s)) => {
            Value::Object(s.fields.into_iter().map(|(k, v)| (k, json_from(v))).collect())
        }
    }
}

/// The answer to a change as a message.
pub fn applied(a: Applied) -> pb::AppliedJob {
    pb::AppliedJob { name: a.name.to_string(), action: word(a.action), revision: a.revision }
}

/// A job as a message.
pub fn job(view: JobView) -> pb::Job {
    pb::Job {
        name: view.name.to_string(),
        source: match view.source {
            JobSource::Definition => "definition".into(),
            JobSource::Etcd => "etcd".into(),
        },
        spec: view.spec.map(spec),
        revision: view.revision.unwrap_or_default(),
        next: view.next.map(time),
        nodes: view.nodes.into_iter().map(on_node).collect(),
        last_run: view.last_run.map(run),
        tree: view.tree.into_iter().map(tree_definition).collect(),
    }
}

/// A job of a list, as a message.
pub fn job_summary(job: JobSummary) -> pb::JobSummary {
    pb::JobSummary {
        name: job.name.to_string(),
        source: word(job.source),
        spec: job.spec.map(spec),
        revision: job.revision.unwrap_or_default(),
        next: job.next.map(time),
        nodes: job.counts.nodes,
        online: job.counts.online,
        problems: job.counts.problems,
        last_run: job.last_run.map(run),
        tree: job.tree.into_iter().map(tree_definition).collect(),
        by_hand: job.by_hand.map(|b| pb::JobByHand {
            status: word(b.status),
            express: b.express,
            cmd: b.cmd,
        }),
    }
}

fn tree_definition(t: TreeDefinition) -> pb::TreeDefinition {
    let fields = t.definition.into_iter().map(|(name, value)| (name, json_value(value)));
    let definition = Some(prost_types::Struct { fields: fields.collect() });
    pb::TreeDefinition { tree: t.tree.to_string(), revision: t.revision, definition }
}

/// Why nodes have a job, as a message.
pub fn explanation(e: JobExplanation) -> pb::JobExplanation {
    let node = |n: NodeExplanation| pb::NodeExplanation {
        node: n.node.to_string(),
        place: n.place.unwrap_or_default(),
        gets: n.gets,
        holds: n.holds,
        reason: word(n.reason),
        text: n.text,
        tree: n.tree.map(|t| t.to_string()).unwrap_or_default(),
        fields: n.fields.into_iter().map(field_origin).collect(),
    };
    pb::JobExplanation { job: e.job.to_string(), nodes: e.nodes.into_iter().map(node).collect() }
}

fn field_origin(f: FieldOrigin) -> pb::FieldOrigin {
    pb::FieldOrigin { field: f.field, value: Some(json_value(f.value)), from: f.from }
}

fn on_node(j: JobOnNode) -> pb::JobOnNode {
    pb::JobOnNode {
        node: j.node.to_string(),
        online: j.online,
        status: word(j.status),
        express: j.express,
        cmd: j.cmd,
        problem: j.problem.unwrap_or_default(),
        spent: j.spent,
    }
}

/// A run and its node as a message.
pub fn run_ref(r: RunRef) -> pb::RunRef {
    pb::RunRef { run_id: r.run_id.to_string(), node: r.node.to_string() }
}

/// A run as a message.
pub fn run(r: RunRecord) -> pb::Run {
    pb::Run {
        run_id: r.run_id.to_string(),
        job: r.job.map(|j| j.to_string()).unwrap_or_default(),
        node: r.node.to_string(),
        slot: Some(time(r.slot)),
        attempt: r.attempt,
        cause: word(r.cause),
        executor: word(r.executor),
        cmd: r.cmd,
        state: word(r.state),
        code: r.code.0.into(),
        message: r.message.unwrap_or_default(),
        exit_code: r.exit_code,
        signal: r.signal,
        fence: r.fence,
        pid: r.pid,
        started_at: r.started_at.map(time),
        ended_at: r.ended_at.map(time),
        output_bytes: r.output_bytes,
        dropped_bytes: r.dropped_bytes,
        user: r.user.unwrap_or_default(),
    }
}

/// A run from a message of another master.
pub fn run_from(r: pb::Run) -> Result<RunRecord, Invalid> {
    let optional = |s: String| if s.is_empty() { Value::Null } else { Value::String(s) };
    let instant = |field: &str, t: Option<PbTime>| -> Result<Value, Invalid> {
        t.map_or(Ok(Value::Null), |t| Ok(json!(time_from(field, t)?)))
    };
    from_value(json!({
        "run_id": r.run_id, "job": optional(r.job), "node": r.node,
        "slot": instant("slot", r.slot)?, "attempt": r.attempt, "cause": r.cause,
        "executor": r.executor, "cmd": r.cmd, "user": optional(r.user), "state": r.state, "code": r.code,
        "message": optional(r.message), "exit_code": r.exit_code, "signal": r.signal,
        "fence": r.fence, "pid": r.pid,
        "started_at": instant("started_at", r.started_at)?,
        "ended_at": instant("ended_at", r.ended_at)?,
        "output_bytes": r.output_bytes, "dropped_bytes": r.dropped_bytes,
    }))
}

/// A piece of output as a message.
pub fn chunk(c: OutputChunk) -> pb::Output {
    pb::Output { seq: c.seq, stream: word(c.stream), at: Some(time(c.at)), data: c.data }
}

/// A piece of output from a message of another master.
pub fn chunk_from(run_id: RunId, o: pb::Output) -> OutputChunk {
    OutputChunk {
        run_id,
        seq: o.seq,
        stream: if o.stream == "stderr" { Stream::Stderr } else { Stream::Stdout },
        at: o.at.and_then(|t| time_from("at", t).ok()).unwrap_or_default(),
        data: o.data,
    }
}

/// A node as a message.
pub fn node(n: NodeView) -> pb::Node {
    let problems = n.problems.into_iter();
    pb::Node {
        id: n.id.to_string(),
        online: n.online,
        connected: n.connected,
        version: n.version,
        labels: n.labels.into_iter().collect(),
        facts: Some(facts(n.facts)),
        started_at: n.started_at.map(time),
        registered_at: n.registered_at.map(time),
        jobs: n.jobs,
        problems: problems.map(|p| pb::Problem { subject: p.subject, reason: p.reason }).collect(),
        drain: n.drain.map(|d| pb::Drain {
            state: word(d.state),
            requested_at: Some(time(d.requested_at)),
            deadline: d.deadline.map(time),
        }),
        work: n.work.map(work),
        facts_at: n.facts_at.map(time),
        labels_configured: n.labels_configured.into_iter().collect(),
        labels_set: n.labels_set.into_iter().collect(),
    }
}

fn work(w: Work) -> pb::Work {
    pb::Work {
        looked_at: w.looked_at.map(time),
        lag_ms: w.lag_ms,
        lag_max_ms: w.lag_max_ms,
        running: w.running,
        ready: w.ready,
        waiting: w.waiting,
        spool_items: w.spool_items,
        spool_bytes: w.spool_bytes,
        spool_oldest: w.spool_oldest.map(time),
        flush_ms: w.flush_ms,
    }
}

fn facts(f: Facts) -> pb::Facts {
    pb::Facts {
        hostname: f.hostname,
        os: f.os,
        os_version: f.os_version,
        kernel: f.kernel,
        arch: f.arch,
        cpu_cores: f.cpu_cores,
        load1: f.load1,
        mem_total: f.mem_total,
        mem_free: f.mem_free,
        disk_total: f.disk_total,
        disk_free: f.disk_free,
        cpu_use: f.cpu_use,
        running: f.running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_survives_both_ways() {
        let spec_in = JobSpec::from_user(json!({
            "name": "a", "description": "d", "cmd": "date", "args": ["x"], "executor": "sh",
            "schedule": "*/5 * * * *", "timezone": "Europe/London", "target": "all",
            "placement": "once", "status": "pause", "timeout": "5m", "concurrency": "queue",
            "misfire": "all", "misfire_cap": 3, "starting_deadline": "1h", "env": {"A": "b"},
            "cwd": "/tmp", "user": "root", "stdin": "", "output_limit": 0, "umask": "0027",
            "rlimits": {"fsize": 1099511627776u64, "cpu": "unlimited"}, "session": true,
            "cgroup": {"cpu": 1.5, "tasks": 5}, "kill_plan": ["TERM 1s"]
        }))
        .unwrap();
        assert_eq!(document_from(spec(spec_in.clone())).unwrap(), spec_in.into());
    }

    #[test]
    fn a_run_survives_both_ways() {
        let r: RunRecord = serde_json::from_value(json!({
            "run_id": "0190a5d2-7c4e-7b1a-8000-000000000001", "job": "a", "node": "n",
            "slot": "2026-01-02T03:04:05.678Z", "attempt": 1, "cause": "exec",
            "executor": "bash", "cmd": "x", "state": "timeout", "code": 256,
            "message": "m", "exit_code": 3, "signal": 9, "fence": 7, "pid": 1,
            "started_at": "2026-01-02T03:04:05.679Z", "output_bytes": 5, "dropped_bytes": 6
        }))
        .unwrap();
        assert_eq!(run_from(run(r.clone())).unwrap(), r);
    }
}
