//! The figures as a table and as JSON.

use super::{
    Args, Found,
    entries::Entries,
    fleet::FleetFigures,
    idle::Usage,
    machine,
    schedule::Schedule,
    stats::{quantile, spread},
    sustained::{self, Sustained},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fmt::Write;

/// What a row of the table is called, in the order of the table.
const ROWS: [(&str, &str); 27] = [
    ("raw", "spawn + wait, one thread"),
    ("raw_all", "spawn + wait, a thread per CPU"),
    ("http", "GET /healthz, one at a time"),
    ("exec", "POST /v1/exec, one at a time"),
    ("exec_8", "POST /v1/exec, 8 in flight"),
    ("etcd_put", "etcd put, one at a time"),
    ("fdatasync", "append 512 bytes + fdatasync"),
    ("job_accepted", "job: trigger accepted (202)"),
    ("job_started", "job: process started"),
    ("job_stored", "job: record in the log store"),
    ("burst_accepted", "burst: trigger accepted, 16 in flight"),
    ("burst_started", "burst: process started / all ended"),
    ("burst_stored", "burst: all records in the log store"),
    ("request", "plain requests, 256 in flight"),
    ("request_runs", "runs of executor http, 256 in flight"),
    ("request_cpu", "plain requests (s of CPU time)"),
    ("request_runs_cpu", "runs of executor http (s of CPU time)"),
    ("cat", "512 MiB to cat > /dev/null (MiB per s)"),
    ("flood", "512 MiB of a job, head kept (MiB/s)"),
    ("flood_tail", "512 MiB of a job, tail kept (MiB/s)"),
    ("spool_raw", "512 lines to a plain table (lines/s)"),
    ("spool", "512 lines to the spool (lines/s)"),
    ("mongo_bulk", "2,048 lines, plain insert (lines/s)"),
    ("mongo_lines", "64 lines, spool to MongoDB (lines/s)"),
    ("follow_leader", "a line to a follower at the leader"),
    ("follow_other", "the same at another master"),
    ("follow_many", "the same, 300 followers at both"),
];
/// What is concluded from which two series.
const CONCLUSIONS: [(&str, &str, &str, &str, How); 13] = [
    ("exec_overhead_ms", "/v1/exec takes longer than a raw command by", "exec", "raw", How::Longer),
    ("exec_to_raw", "/v1/exec to a raw command, time", "exec", "raw", How::Times),
    ("exec_8_to_raw_all", "/v1/exec, 8 in flight, to raw, rate", "exec_8", "raw_all", How::Share),
    (
        "burst_to_raw_all",
        "burst to raw, rate of ended runs",
        "burst_started",
        "raw_all",
        How::Share,
    ),
    (
        "stored_to_raw_all",
        "burst to raw, rate of stored runs",
        "burst_stored",
        "raw_all",
        How::Share,
    ),
    (
        "job_started_to_put",
        "start of a job to an etcd put, time",
        "job_started",
        "etcd_put",
        How::Times,
    ),
    ("job_stored_to_raw", "whole way of a job to a raw command", "job_stored", "raw", How::Times),
    (
        "request_runs_to_plain",
        "runs of executor http to plain requests, rate",
        "request_runs",
        "request",
        How::Share,
    ),
    (
        "request_runs_to_plain_cpu",
        "the same, by CPU time",
        "request_runs_cpu",
        "request_cpu",
        How::Share,
    ),
    ("flood_to_cat", "flood of output, head kept, to cat, rate", "flood", "cat", How::Share),
    ("flood_tail_to_cat", "the same, tail kept", "flood_tail", "cat", How::Share),
    ("spool_to_raw", "lines to the spool to a plain table, rate", "spool", "spool_raw", How::Share),
    (
        "lines_to_bulk",
        "lines from a worker to MongoDB to a plain insert",
        "mongo_lines",
        "mongo_bulk",
        How::Share,
    ),
];
const BINARIES: [&str; 3] = ["meepo", "meepo-master", "meepo-worker"];
const MIB: f64 = (1 << 20) as f64;

/// Processes with nothing to do, in one situation.
pub(crate) struct Memory {
    pub(crate) what: String,
    pub(crate) of: Vec<Usage>,
}

/// All that was found.
pub(crate) struct Report<'a> {
    pub(crate) found: Found,
    pub(crate) memory: Vec<Memory>,
    pub(crate) sustained: Vec<Sustained>,
    pub(crate) schedule: Option<Schedule>,
    pub(crate) entries: Option<Entries>,
    pub(crate) fleet: Option<FleetFigures>,
    /// Load average before and after.
    pub(crate) load: (f64, f64),
    pub(crate) args: &'a Args,
}

/// How two series are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// How many milliseconds the first takes longer, by medians.
    Longer,
    /// How many times as long the first takes, by medians.
    Times,
    /// The first's rate as a part of the second's.
    Share,
}

/// A statement that holds from machine to machine.
struct Conclusion {
    name: &'static str,
    what: &'static str,
    /// Its value in each round.
    rounds: Vec<f64>,
    how: How,
}

impl Conclusion {
    fn value(&self) -> f64 {
        quantile(self.rounds.clone(), 0.5)
    }
}

impl Report<'_> {
    fn conclusions(&self) -> Vec<Conclusion> {
        let conclude = |(name, what, a, b, how): (_, _, &str, &str, How)| {
            let (a, b) = (self.found.get(a)?, self.found.get(b)?);
            let (a, b) = match how {
                How::Share => (a.rates(), b.rates()),
                How::Longer | How::Times => (a.medians(), b.medians()),
            };
            // Round by round: what both had in common cancels out.
            let rounds = a.into_iter().zip(b);
            let rounds: Vec<f64> = match how {
                How::Longer => rounds.map(|(a, b)| a - b).collect(),
                How::Times | How::Share => rounds.map(|(a, b)| a / b).collect(),
            };
            Some(Conclusion { name, what, rounds, how })
        };
        CONCLUSIONS.into_iter().filter_map(conclude).collect()
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{} · {} CPUs ({}) · Linux {} · etcd {} · load {:.2} before, {:.2} after",
            Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"),
            machine::cpus(),
            machine::cpu_model(),
            machine::kernel(),
            machine::etcd(),
            self.load.0,
            self.load.1
        )?;
        writeln!(
            out,
            "{} rounds; p50 and p99 in ms over all samples; per second: median of the rounds; \
             ±: largest less smallest round, in percent of the median\n",
            self.args.rounds
        )?;
        let head = ["", "p50", "±%", "p99", "per s", "±%", "samples"];
        let [a, b, c, d, e, f, g] = head;
        writeln!(out, "{a:38} {b:>9} {c:>5} {d:>9} {e:>9} {f:>5} {g:>8}")?;
        for (name, what) in ROWS {
            let Some(s) = self.found.get(name) else { continue };
            writeln!(
                out,
                "{what:38} {:>9.3} {:>5.0} {:>9.3} {:>9.0} {:>5.0} {:>8}",
                s.quantile(0.5),
                spread(&s.medians()) * 100.0,
                s.quantile(0.99),
                s.rate(),
                spread(&s.rates()) * 100.0,
                s.count()
            )?;
        }
        writeln!(out)?;
        for c in self.conclusions() {
            let unit = if c.how == How::Longer { "ms" } else { "x" };
            let (value, spread) = (c.value(), spread(&c.rounds) * 100.0);
            writeln!(out, "{:50} {value:>7.2} {unit:2} ±{spread:.0}%", c.what)?;
        }
        if !self.sustained.is_empty() {
            out.push_str(&sustained::table(&self.sustained));
        }
        out.push_str(&self.schedule.as_ref().map(Schedule::table).unwrap_or_default());
        out.push_str(&self.entries.as_ref().map(Entries::table).unwrap_or_default());
        out.push_str(&self.fleet.as_ref().map(FleetFigures::table).unwrap_or_default());
        if !self.memory.is_empty() {
            writeln!(
                out,
                "\nwith nothing to do        resident  anonymous  threads  CPU (of one)"
            )?;
        }
        for memory in &self.memory {
            for u in &memory.of {
                let what = format!("{}, {}", u.process, memory.what);
                let (resident, anonymous) = (u.resident as f64 / MIB, u.anonymous as f64 / MIB);
                writeln!(
                    out,
                    "{what:24} {resident:>5.1} MiB  {anonymous:>5.1} MiB  {:>7}  {:>11.2}%",
                    u.threads, u.cpu
                )?;
            }
        }
        writeln!(out)?;
        for binary in BINARIES {
            writeln!(out, "{binary:24} {:>5.1} MiB on disk", machine::size(binary) as f64 / MIB)?;
        }
        Ok(())
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let measures: serde_json::Map<String, Value> = ROWS
            .into_iter()
            .filter_map(|(name, what)| Some((name, what, self.found.get(name)?)))
            .map(|(name, what, s)| {
                let value = json!({
                    "what": what,
                    "p50_ms": s.quantile(0.5),
                    "p99_ms": s.quantile(0.99),
                    "per_second": s.rate(),
                    "samples": s.count(),
                    "rounds": {"p50_ms": s.medians(), "per_second": s.rates()},
                });
                (name.to_owned(), value)
            })
            .collect();
        let ratios: serde_json::Map<String, Value> = self
            .conclusions()
            .into_iter()
            .map(|c| {
                let value = json!({"what": c.what, "value": c.value(), "rounds": c.rounds});
                (c.name.to_owned(), value)
            })
            .collect();
        let memory: Vec<Value> = self
            .memory
            .iter()
            .flat_map(|m| {
                m.of.iter().map(|u| {
                    json!({
                        "process": u.process,
                        "situation": m.what,
                        "resident_bytes": u.resident,
                        "anonymous_bytes": u.anonymous,
                        "threads": u.threads,
                        "cpu_percent": u.cpu,
                    })
                })
            })
            .collect();
        let binaries: serde_json::Map<String, Value> =
            BINARIES.into_iter().map(|b| (b.to_owned(), machine::size(b).into())).collect();
        json!({
            "at": Timestamp::now().to_string(),
            "machine": {
                "cpus": machine::cpus(),
                "cpu": machine::cpu_model(),
                "kernel": machine::kernel(),
                "etcd": machine::etcd(),
                "load_before": self.load.0,
                "load_after": self.load.1,
            },
            "options": {
                "rounds": self.args.rounds,
                "seconds": self.args.seconds,
                "burst": self.args.burst,
                "idle": self.args.idle,
                "jobs": self.args.jobs,
            },
            "measures": measures,
            "ratios": ratios,
            "memory": memory,
            "sustained": sustained::json(&self.sustained),
            "schedule": self.schedule.as_ref().map(Schedule::json),
            "entries": self.entries.as_ref().map(Entries::json),
            "fleet": self.fleet.as_ref().map(FleetFigures::json),
            "binaries_bytes": binaries,
        })
    }
}
