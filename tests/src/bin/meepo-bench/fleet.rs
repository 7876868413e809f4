//! One master and one etcd with thousands of workers, which are simulated: what all of
//! them cost while nothing happens, a command to all of them, a job placed on all of them.

use super::{idle, stats::quantile};
use anyhow::{Context, Result, anyhow, bail, ensure};
use etcd_client::{Client, GetOptions, Txn, TxnOp};
use futures::{StreamExt, TryStreamExt, stream};
use meepo_tests::{
    Cluster, secs,
    sim::{Count, Fleet},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Longest time for anything that concerns all workers: on a machine that others use, too.
const PATIENCE: Duration = secs(900);
/// Operations in a transaction and transactions at the same time, without meepo: the best
/// this etcd can do.
const RAW_GROUP: usize = 128;
const RAW_AT_ONCE: usize = 8;
/// How often such a transaction is tried that etcd does not answer in time, and the wait after
/// the first time; it doubles up to the longest.
const RAW_TRIES: u32 = 30;
const RAW_PAUSE: Duration = Duration::from_millis(100);
const RAW_PAUSE_MAX: Duration = secs(5);
/// Arguments of etcd: with thousands of watches on a few CPUs its own patience (5 s and
/// twice the election's time) is too short, and a snapshot in between would be measured, too.
const ETCD: [&str; 6] =
    ["--heartbeat-interval", "1000", "--election-timeout", "10000", "--snapshot-count", "1000000"];
/// Nothing comes any more when nothing has come for so long.
const QUIET: Duration = secs(2);
/// Between two looks at how far a placement is.
const LOOK: Duration = Duration::from_millis(5);
/// Where assignments are, and keys that nobody watches.
const ASSIGNMENTS: &str = "/cron/jobs/";
const UNWATCHED: &str = "/bench/jobs/";

/// What was found.
pub(crate) struct FleetFigures {
    workers: u32,
    /// Seconds until all have written their records; until all have a session.
    registered: f64,
    connected: f64,
    /// Resident bytes before and with all workers, by process.
    memory: Vec<(&'static str, u64, u64)>,
    /// CPU time in percent of one CPU while nothing happens.
    cpu: Vec<(&'static str, f64)>,
    /// Seconds until the last answer to a command.
    command: Vec<f64>,
    /// Keys per second without meepo: where nobody watches; as assignments put by hand.
    raw: Vec<f64>,
    watched: Vec<f64>,
    /// Transactions among these that were tried again, as etcd did not answer in time.
    retried: u64,
    /// Assignments per second: until all are in etcd; until all workers know.
    placed: Vec<f64>,
    known: Vec<f64>,
    /// CPU time for each of these assignments in microseconds, by process.
    cost: Vec<(&'static str, f64)>,
    /// Seconds of one `GET /v1/nodes` and `GET /v1/jobs`.
    nodes: f64,
    jobs: f64,
}

/// Starts `workers` simulated workers and measures; `idle` is how long nothing happens.
pub(crate) async fn measure(workers: u32, rounds: u32, idle: Duration) -> Result<FleetFigures> {
    let builder = Cluster::builder().workers(0);
    let cluster = ETCD.iter().fold(builder, |b, arg| b.etcd_arg(arg)).start().await;
    let processes = [
        ("master", cluster.master(0).process().pid()),
        ("etcd", cluster.member(0).process().pid()),
    ];
    let before = processes.map(|(_, pid)| idle::resident(pid));
    let n = u64::from(workers);
    eprintln!("fleet: {workers} workers register");
    let begin = Instant::now();
    let fleet = Fleet::start(&cluster.etcd().urls(), 0..workers as usize).await?;
    reach(&fleet, Count::Registered, n).await?;
    let registered = begin.elapsed().as_secs_f64();
    reach(&fleet, Count::Sessions, n).await?;
    let connected = begin.elapsed().as_secs_f64();

    eprintln!("fleet: nothing happens for {:.0} s", idle.as_secs_f64());
    tokio::time::sleep(idle).await;
    let ticks = processes.map(|(_, pid)| idle::cpu_ticks(pid));
    tokio::time::sleep(idle).await;
    let (mut memory, mut cpu) = (Vec::new(), Vec::new());
    for (((process, pid), before), ticks) in processes.into_iter().zip(before).zip(ticks) {
        let used = (idle::cpu_ticks(pid)? - ticks?) as f64;
        cpu.push((process, used / idle::TICKS / idle.as_secs_f64() * 100.0));
        memory.push((process, before?, idle::resident(pid)?));
    }

    // Without a limit of time: one call deletes the keys of all workers.
    let etcd = Client::connect([cluster.member(0).url()], None).await?;
    let retried = AtomicU64::new(0);
    let all = All { fleet: &fleet, cluster: &cluster, etcd, n, retried: &retried };
    let mut figures = FleetFigures {
        workers,
        registered,
        connected,
        memory,
        cpu,
        command: Vec::new(),
        raw: Vec::new(),
        watched: Vec::new(),
        retried: 0,
        placed: Vec::new(),
        known: Vec::new(),
        cost: Vec::new(),
        nodes: all.get("/v1/nodes").await?,
        jobs: 0.0,
    };
    for round in 0..rounds {
        eprintln!("fleet: round {} of {rounds}", round + 1);
        figures.command.push(all.command().await?);
        figures.raw.push(all.raw(UNWATCHED).await?);
        let known = fleet.counts().get(Count::Assigned);
        figures.watched.push(all.raw(ASSIGNMENTS).await?);
        reach(&fleet, Count::Assigned, known + n).await?;
        all.settle().await;
        let measured = [processes[0], processes[1], ("workers", std::process::id())];
        let ticks = measured.map(|(_, pid)| idle::cpu_ticks(pid));
        let (placed, known) = all.place(round).await?;
        for ((process, pid), ticks) in measured.into_iter().zip(ticks) {
            let used = (idle::cpu_ticks(pid)? - ticks?) as f64 / idle::TICKS;
            figures.cost.push((process, used / n as f64 * 1e6));
        }
        // With ten thousand workers a later round may fail: what was found until then counts.
        let [command, raw, watched] =
            [&figures.command, &figures.raw, &figures.watched].map(|v| v[v.len() - 1]);
        eprintln!(
            "fleet: command {command:.2} s; keys a second: raw {raw:.0}, watched {watched:.0}, \
             placed {placed:.0}, known {known:.0}"
        );
        figures.placed.push(placed);
        figures.known.push(known);
        if round + 1 == rounds {
            figures.jobs = all.get("/v1/jobs").await?;
        }
        all.unplace(round).await?;
    }
    figures.retried = retried.load(Ordering::Relaxed);
    fleet.end().await;
    Ok(figures)
}

async fn reach(fleet: &Fleet, count: Count, n: u64) -> Result<()> {
    let reached = fleet.counts().reach(count, n, PATIENCE).await;
    reached.map_err(|there| anyhow!("{there} of {n} {count:?} after {PATIENCE:?}"))
}

/// What is done with all workers.
struct All<'a> {
    fleet: &'a Fleet,
    cluster: &'a Cluster,
    etcd: Client,
    n: u64,
    retried: &'a AtomicU64,
}

impl All<'_> {
    /// Seconds of a request.
    async fn get(&self, path: &str) -> Result<f64> {
        let begin = Instant::now();
        let answer = self.cluster.api().try_http("GET", path, None).await;
        let (status, answer) = answer.map_err(|e| anyhow!(e))?;
        ensure!(status == 200, "{path} answers {status} {answer}");
        Ok(begin.elapsed().as_secs_f64())
    }

    /// A command to all of them: seconds until the last answer.
    async fn command(&self) -> Result<f64> {
        let hosts: Vec<&str> = self.fleet.nodes().iter().map(|n| n.as_str()).collect();
        let body = json!({"id": "bench", "hosts": hosts, "method": "sync.bash", "cmd": "true"});
        let begin = Instant::now();
        let answer = self.cluster.api().try_http("POST", "/v1/exec", Some(&body)).await;
        let (status, answer) = answer.map_err(|e| anyhow!(e))?;
        let took = begin.elapsed().as_secs_f64();
        ensure!(status == 200, "/v1/exec answers {status} {answer}");
        let answers = answer["response"].as_array().context("no answers")?;
        let good = answers.iter().filter(|a| a["resp"] == "success").count() as u64;
        ensure!(good == self.n, "{good} of {} hosts succeeded", self.n);
        Ok(took)
    }

    /// As many keys below `prefix` as the job has assignments, of the same size, without
    /// meepo: keys per second.
    async fn raw(&self, prefix: &str) -> Result<f64> {
        let value = assignment(0).to_string();
        let begin = Instant::now();
        stream::iter(self.fleet.nodes().chunks(RAW_GROUP))
            .map(|nodes| {
                let puts: Vec<TxnOp> = nodes
                    .iter()
                    .map(|node| TxnOp::put(format!("{prefix}{node}/by-hand"), value.clone(), None))
                    .collect();
                self.write(puts)
            })
            .buffer_unordered(RAW_AT_ONCE)
            .try_collect::<()>()
            .await?;
        let rate = self.n as f64 / begin.elapsed().as_secs_f64();
        let all = etcd_client::DeleteOptions::new().with_prefix();
        self.write(vec![TxnOp::delete(prefix, Some(all))]).await?;
        Ok(rate)
    }

    /// One transaction. What is not answered is tried again: the outcome is the same.
    async fn write(&self, ops: Vec<TxnOp>) -> Result<()> {
        let (mut wait, mut tries) = (RAW_PAUSE, 1);
        loop {
            let txn = Txn::new().and_then(ops.clone());
            match self.etcd.kv_client().txn(txn).await {
                Ok(_) => return Ok(()),
                Err(e) if tries == RAW_TRIES => {
                    return Err(e).with_context(|| format!("etcd has not answered {tries} times"));
                }
                Err(_) => {}
            }
            self.retried.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
            (wait, tries) = ((wait * 2).min(RAW_PAUSE_MAX), tries + 1);
        }
    }

    /// Waits until all workers have heard what was put twice as it was not answered.
    async fn settle(&self) {
        if self.retried.load(Ordering::Relaxed) == 0 {
            return;
        }
        let counts = self.fleet.counts();
        while counts.reach(Count::Assigned, counts.get(Count::Assigned) + 1, QUIET).await.is_ok() {}
    }

    /// A job for all of them: keys per second until all are in etcd, until all workers know.
    async fn place(&self, round: u32) -> Result<(f64, f64)> {
        let known = self.fleet.counts().get(Count::Assigned);
        let spec = json!({
            "name": format!("fleet-{round}"), "cmd": "true", "schedule": "0 0 29 2 *",
        });
        let (begin, status, answer) = self.ask("POST", "/v1/jobs", Some(&spec)).await?;
        ensure!(status == 201, "the job is not accepted: {status} {answer}");
        let (in_etcd, all_know) = tokio::join!(self.count(self.n, begin), async {
            let reached =
                self.fleet.counts().reach(Count::Assigned, known + self.n, PATIENCE).await;
            reached
                .map(|()| begin.elapsed())
                .map_err(|there| anyhow!("{} workers know", there - known))
        });
        let rate = |took: Duration| self.n as f64 / took.as_secs_f64();
        Ok((rate(in_etcd?), rate(all_know?)))
    }

    /// One request, and when it was made. With 503 nothing has been done, and it is made again, as
    /// a client would.
    async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(Instant, u16, Value)> {
        let mut wait = RAW_PAUSE;
        let mut tries = 0;
        loop {
            tries += 1;
            let begin = Instant::now();
            let answer = self.cluster.api().try_http(method, path, body).await;
            let (status, answer) = answer.map_err(|e| anyhow!(e))?;
            if status != 503 || tries == RAW_TRIES {
                return Ok((begin, status, answer));
            }
            self.retried.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RAW_PAUSE_MAX);
        }
    }

    /// Takes the job away again.
    async fn unplace(&self, round: u32) -> Result<()> {
        let path = format!("/v1/jobs/fleet-{round}");
        let (_, status, answer) = self.ask("DELETE", &path, None).await?;
        ensure!(status == 200, "{path} answers {status} {answer}");
        self.count(0, Instant::now()).await.map(drop)
    }

    /// Waits until etcd has as many assignments; answers the time since `begin`.
    async fn count(&self, wanted: u64, begin: Instant) -> Result<Duration> {
        let options = GetOptions::new().with_prefix().with_count_only();
        let mut kv = self.etcd.kv_client();
        while begin.elapsed() < PATIENCE {
            // What is not answered in time is asked again below.
            let found = kv.get(ASSIGNMENTS, Some(options.clone())).await;
            if found.is_ok_and(|found| u64::try_from(found.count()) == Ok(wanted)) {
                return Ok(begin.elapsed());
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("etcd does not have {wanted} assignments after {PATIENCE:?}")
    }
}

/// What stands at an assignment's key, of the same size. It is no master's: the leader would
/// take it away.
fn assignment(round: u32) -> Value {
    json!({
        "cmd": "true", "express": "0 0 29 2 *", "task_id": format!("fleet-{round}"),
        "status": "running", "executor": "bash", "put_by_hand": 123_456,
    })
}

impl FleetFigures {
    fn median(of: &[f64]) -> f64 {
        quantile(of.to_vec(), 0.5)
    }

    /// The share of a rate without meepo, round by round.
    fn share(&self, of: &[f64]) -> f64 {
        let rounds: Vec<f64> = self.placed.iter().zip(of).map(|(p, r)| p / r).collect();
        Self::median(&rounds)
    }

    /// As lines of a table.
    pub(crate) fn table(&self) -> String {
        let n = f64::from(self.workers);
        let mut out = format!(
            "\n{} simulated workers, one master, one etcd, all on this machine\n  \
             registered after {:.1} s, all sessions open after {:.1} s\n",
            self.workers, self.registered, self.connected
        );
        for ((process, before, with), (_, cpu)) in self.memory.iter().zip(&self.cpu) {
            let each = with.saturating_sub(*before) as f64 / n / 1024.0;
            out.push_str(&format!(
                "  {process}: {:.0} MiB, {each:.1} KiB for each worker; CPU while nothing \
                 happens: {cpu:.0}% of one\n",
                *with as f64 / f64::from(1 << 20)
            ));
        }
        out.push_str(&format!(
            "  a command to all of them: last answer after {:.2} s\n  \
             a job on all of them: {:.0} assignments/s in etcd, {:.0}/s known to the workers\n  \
             without meepo, {RAW_GROUP} keys in a transaction, {RAW_AT_ONCE} at once: {:.0}/s \
             where nobody watches (share {:.2}), {:.0}/s as assignments put by hand (share \
             {:.2}); {} transactions of these were tried again\n  GET /v1/nodes: {:.2} s, GET /v1/jobs: {:.2} s\n",
            Self::median(&self.command),
            Self::median(&self.placed),
            Self::median(&self.known),
            Self::median(&self.raw),
            self.share(&self.raw),
            Self::median(&self.watched),
            self.share(&self.watched),
            self.retried,
            self.nodes,
            self.jobs,
        ));
        let cost = ["master", "etcd", "workers"].map(|process| {
            let of = self.cost.iter().filter(|(p, _)| *p == process).map(|(_, us)| *us);
            format!("{process} {:.0} us", Self::median(&of.collect::<Vec<_>>()))
        });
        out.push_str(&format!("  CPU time for each assignment placed: {}\n", cost.join(", ")));
        out
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let memory = self.memory.iter().map(|(p, before, with)| (*p, [*before, *with]));
        json!({
            "workers": self.workers,
            "registered_s": self.registered,
            "connected_s": self.connected,
            "memory_bytes": memory.collect::<BTreeMap<_, _>>(),
            "cpu_percent": self.cpu.iter().copied().collect::<BTreeMap<_, _>>(),
            "command_s": self.command,
            "placed_per_s": self.placed,
            "known_per_s": self.known,
            "raw_per_s": self.raw,
            "watched_per_s": self.watched,
            "raw_retried": self.retried,
            "placed_to_raw": self.share(&self.raw),
            "placed_to_watched": self.share(&self.watched),
            "cost_us": self.cost,
            "get_nodes_s": self.nodes,
            "get_jobs_s": self.jobs,
        })
    }
}
