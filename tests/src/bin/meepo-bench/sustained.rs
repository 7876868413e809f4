//! Runs per second that a worker sustains, as a share of what the machine can start.
//!
//! Thousands of jobs are due at one instant; the worker works them off with its places
//! always full. Each run goes the whole way: calendar, journal, process, capture, record,
//! delivery to the log store through the master, state of the job in etcd. Just before
//! and just after, a plain loop starts the same program with the same pipes and as many
//! at the same time.
//!
//! On a machine with neighbours the rates tell who got the CPUs; the CPU time of all that
//! takes part in a run, processes included, is compared too and hardly minds them.

use super::{
    COMMAND,
    idle::{self, TICKS, cpu_ticks, family_ticks},
    raw,
    stats::{Round, Series, quantile, spread},
};
use anyhow::{Context, Result, anyhow, ensure};
use etcd_client::{Client, Txn, TxnOp};
use jiff::{SignedDuration, Timestamp};
use meepo_core::run::RunState;
use meepo_logstore::{LogStore, RunQuery};
use meepo_tests::{Cluster, secs};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Processes at the same time.
const PLACES: usize = 32;
/// Longest time a round may take.
const PATIENCE: Duration = secs(60);
/// Between two looks at how far the worker is.
const LOOK: Duration = Duration::from_millis(20);
/// Between the last change of a job and its slot: the worker has taken all in by then.
const LEAD: SignedDuration = SignedDuration::from_secs(4);

/// A statically linked program for x86-64 that does nothing but end with status 0:
/// what remains of a start when the program itself costs nothing. One segment that is
/// the whole file (elf(5)), and `exit(0)` (syscall(2)).
#[rustfmt::skip]
const NOTHING: [u8; 129] = [
    // ELF header: magic, 64 bits, little endian, version 1, System V
    0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    2, 0, 0x3e, 0, 1, 0, 0, 0,              // executable, x86-64, version 1
    0x78, 0, 0x40, 0, 0, 0, 0, 0,           // entry: 0x400078, right after the headers
    0x40, 0, 0, 0, 0, 0, 0, 0,              // the program header follows at 64
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,     // no sections, no flags
    0x40, 0, 0x38, 0, 1, 0, 0, 0, 0, 0, 0, 0, // sizes: 64, 56; one program header
    // program header: load, readable and executable
    1, 0, 0, 0, 5, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0,                 // from the start of the file
    0, 0, 0x40, 0, 0, 0, 0, 0,              // to 0x400000
    0, 0, 0x40, 0, 0, 0, 0, 0,
    0x81, 0, 0, 0, 0, 0, 0, 0,              // 129 bytes in the file
    0x81, 0, 0, 0, 0, 0, 0, 0,              // and in memory
    0, 0x10, 0, 0, 0, 0, 0, 0,              // aligned to a page
    0x31, 0xff,                             // xor edi, edi
    0xb8, 0x3c, 0, 0, 0,                    // mov eax, 60 (exit)
    0x0f, 0x05,                             // syscall
];

/// What was found for one program.
pub(crate) struct Sustained {
    what: &'static str,
    limit: Series,
    ended: Series,
    stored: Series,
    /// CPU time of a run in milliseconds, by process.
    cpu: BTreeMap<&'static str, Vec<f64>>,
    /// CPU time of the plain loop for a start, as a part of that of all processes for a run.
    frugality: Vec<f64>,
}

/// Measures both programs, `count` runs in each of `rounds` rounds.
pub(crate) async fn measure(rounds: u32, count: u32) -> Result<Vec<Sustained>> {
    let cluster = Cluster::builder()
        .worker_arg("--max-running")
        .worker_arg(&PLACES.to_string())
        .start()
        .await;
    let store = meepo_logstore::open(cluster.logs()).await?;
    let etcd = cluster.etcd().client().await;
    let nothing = cluster.dir().join("nothing");
    write_program(&nothing)?;
    let mut programs = vec![("/bin/true", PathBuf::from(COMMAND))];
    if cfg!(target_arch = "x86_64") {
        programs.push(("a static program", nothing));
    }
    let bench = Bench { cluster, store, etcd, count };
    let mut all = Vec::new();
    for (what, program) in programs {
        let mut found = Sustained {
            what,
            limit: Series::default(),
            ended: Series::default(),
            stored: Series::default(),
            cpu: BTreeMap::new(),
            frugality: Vec::new(),
        };
        for n in 1..=rounds {
            bench.round(&program, &mut found).await?;
            eprintln!("sustained, {what}: round {n} of {rounds}");
        }
        all.push(found);
    }
    Ok(all)
}

fn write_program(path: &Path) -> Result<()> {
    std::fs::write(path, NOTHING)?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

struct Bench {
    cluster: Cluster,
    store: Arc<dyn LogStore>,
    etcd: Client,
    count: u32,
}

impl Bench {
    async fn round(&self, program: &Path, found: &mut Sustained) -> Result<()> {
        let span = secs(1);
        let (before, limit_ms) = self.limit(program, span).await?;
        let ended = self.seen().await?.0 + u64::from(self.count);
        let slot = self.arm(program).await?;
        let wait = slot.duration_since(Timestamp::now()).unsigned_abs();
        let processes = idle::processes(&self.cluster);
        // Loading is over by then: its CPU time is not counted.
        tokio::time::sleep(wait.saturating_sub(Duration::from_millis(20))).await;
        let ticks = processes.map(|(_, pid)| cpu_ticks(pid));
        let all_ticks = processes.map(|(_, pid)| family_ticks(pid));
        self.wait_stored(ended).await?;
        let stored_in = Timestamp::now().duration_since(slot).as_secs_f64();
        for ((process, pid), before) in processes.into_iter().zip(ticks) {
            let ms = (cpu_ticks(pid)? - before?) as f64 * 1e3 / TICKS / f64::from(self.count);
            found.cpu.entry(process).or_default().push(ms);
        }
        let mut all_ms = 0.0;
        for ((_, pid), before) in processes.into_iter().zip(all_ticks) {
            all_ms += (family_ticks(pid)? - before?) as f64 * 1e3 / TICKS / f64::from(self.count);
        }
        let ended_in = self.verify(slot).await?;
        let (after, limit_ms_after) = self.limit(program, span).await?;
        found.frugality.push((limit_ms + limit_ms_after) / 2.0 / all_ms);
        let n = f64::from(self.count);
        let round = |seconds: f64| Round { samples: vec![seconds * 1e3], rate: n / seconds };
        found.ended.rounds.push(round(ended_in));
        found.stored.rounds.push(round(stored_in));
        let rate = (before.rate + after.rate) / 2.0;
        found.limit.rounds.push(Round { samples: [before.samples, after.samples].concat(), rate });
        Ok(())
    }

    /// What the machine can do: the rate, and milliseconds of CPU time for one.
    async fn limit(&self, program: &Path, span: Duration) -> Result<(Round, f64)> {
        let me = std::process::id();
        let before = family_ticks(me)?;
        let round = raw::captured(program, PLACES, span).await?;
        let ms = (family_ticks(me)? - before) as f64 * 1e3 / TICKS;
        let each = ms / round.samples.len() as f64;
        Ok((round, each))
    }

    /// Gives the node its jobs, all due at the instant that is answered.
    async fn arm(&self, program: &Path) -> Result<Timestamp> {
        let node = self.cluster.worker(0).node();
        let at = Timestamp::from_second((Timestamp::now() + LEAD).as_second())?;
        let express = at.strftime("%-S %-M %-H %-d %-m * %Y").to_string();
        let put = |n: u32| {
            let key = format!("/cron/jobs/{node}/due-{n}");
            let job = json!({
                "cmd": program, "executor": "exec", "express": express,
                "task_id": format!("due-{n}"), "status": "running",
            });
            TxnOp::put(key, job.to_string(), None)
        };
        let all: Vec<u32> = (0..self.count).collect();
        for some in all.chunks(128) {
            let puts: Vec<TxnOp> = some.iter().copied().map(put).collect();
            self.etcd.kv_client().txn(Txn::new().and_then(puts)).await?;
        }
        ensure!(Timestamp::now() + LEAD / 2 < at, "the jobs were not put in time");
        Ok(at)
    }

    /// Waits until `ended` runs have ended in all and nothing is left to be delivered.
    async fn wait_stored(&self, ended: u64) -> Result<()> {
        let begin = Instant::now();
        loop {
            let seen = self.seen().await?;
            if seen.0 >= ended && seen.1 == 0 {
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "{ended} runs were not stored: {seen:?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Runs that succeeded since the worker was started, and items in its spool.
    async fn seen(&self) -> Result<(u64, u64)> {
        let metrics = self.cluster.worker(0).metrics();
        let answer = metrics.try_http("GET", "/metrics", None).await.map_err(|e| anyhow!(e))?;
        let text = answer.1.as_str().context("no metrics")?;
        let value = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|v| v.parse().ok()).unwrap_or(0)
        };
        let ended = value("meepo_worker_runs_total{state=\"success\"}");
        Ok((ended, value("meepo_worker_spool_items")))
    }

    /// Every run of the slot must be in the log store, once. Answers the seconds from
    /// the slot to the last end.
    async fn verify(&self, slot: Timestamp) -> Result<f64> {
        let mut query = RunQuery { since: Some(slot), limit: Some(1000), ..RunQuery::default() };
        let (mut jobs, mut last) = (BTreeSet::new(), slot);
        loop {
            let page = self.store.list_runs(&query).await?;
            for run in page.runs {
                let fine = run.state == RunState::Success && run.slot == slot;
                ensure!(fine && jobs.insert(run.job.clone()), "not as it should be: {run:?}");
                last = last.max(run.ended_at.context("a run without its end")?);
            }
            query.cursor = page.next;
            if query.cursor.is_none() {
                break;
            }
        }
        ensure!(jobs.len() == self.count as usize, "{} of {} runs", jobs.len(), self.count);
        // Records cut times to milliseconds.
        Ok(last.duration_since(slot).as_secs_f64() + 0.0005)
    }
}

/// As lines of a table.
pub(crate) fn table(all: &[Sustained]) -> String {
    let mut out = format!("\nsustained by the worker, {PLACES} at a time");
    out.push_str(
        "                limit/s  ended/s  stored/s   share ended  stored  ±%  CPU time\n",
    );
    for s in all {
        let (ended, stored) = (s.share(&s.ended), s.share(&s.stored));
        out.push_str(&format!(
            "{:50} {:>9.0} {:>8.0} {:>9.0} {:>13.2} {:>7.2} {:>3.0} {:>9.2}\n",
            s.what,
            s.limit.rate(),
            s.ended.rate(),
            s.stored.rate(),
            quantile(ended, 0.5),
            quantile(stored.clone(), 0.5),
            spread(&stored) * 100.0,
            quantile(s.frugality.clone(), 0.5),
        ));
        for (process, ms) in &s.cpu {
            let ms = quantile(ms.clone(), 0.5);
            out.push_str(&format!("  CPU time of the {process} for a run: {ms:.3} ms\n"));
        }
    }
    out
}

/// For programs.
pub(crate) fn json(all: &[Sustained]) -> Value {
    let one = |s: &Sustained| {
        let (ended, stored) = (s.share(&s.ended), s.share(&s.stored));
        json!({
            "program": s.what,
            "limit_per_second": s.limit.rates(),
            "ended_per_second": s.ended.rates(),
            "stored_per_second": s.stored.rates(),
            "ended_share": quantile(ended, 0.5),
            "stored_share": quantile(stored, 0.5),
            "cpu_ms_of_a_run": s.cpu,
            "cpu_share": quantile(s.frugality.clone(), 0.5),
        })
    };
    all.iter().map(one).collect()
}

impl Sustained {
    /// A rate as a part of the limit, in each round.
    fn share(&self, of: &Series) -> Vec<f64> {
        of.rates().into_iter().zip(self.limit.rates()).map(|(a, b)| a / b).collect()
    }
}
