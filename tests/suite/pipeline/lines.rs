//! Jobs that write numbered lines, into their output and, as evidence, into a file a run;
//! and the comparison of both.

use crate::fleet::{SOON, apply, runs};
use meepo_tests::{Api, Cluster, eventually, secs};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Lines of one run.
const LINES: u32 = 40;
/// Longest time until everything is stored.
const SETTLED: Duration = secs(240);

/// Evidence by run.
pub(super) type Written = BTreeMap<String, String>;

pub(super) struct Lines {
    dir: PathBuf,
    jobs: usize,
}

/// What was found.
pub(super) struct Found {
    written: Written,
    /// What is stored, and whether the run was ended by its own last line.
    stored: BTreeMap<String, (String, bool, u64)>,
    /// Bytes that the records tell of as dropped.
    pub(super) dropped: u64,
}

impl Lines {
    /// Starts `jobs` jobs, each a run a second on every node.
    pub(super) async fn start(cluster: &Cluster, jobs: usize) -> Self {
        let dir = cluster.dir().join("lines");
        std::fs::create_dir_all(&dir).unwrap();
        for n in 0..jobs {
            // A line goes to the file first: what is in the output must be there.
            let cmd = format!(
                "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); \
                 l=\"$MEEPO_RUN_ID line $i of what a job has to say on this occasion\"; \
                 echo \"$l\" >>{}/$MEEPO_RUN_ID; echo \"$l\"; sleep 0.02; done",
                dir.display()
            );
            let spec = json!({"name": format!("lines-{n}"), "cmd": cmd, "target": "all",
                              "schedule": "* * * * * *", "concurrency": "allow"});
            apply(&cluster.api(), spec).await;
        }
        let lines = Self { dir, jobs };
        eventually(SOON, "jobs write lines", async || {
            let n = lines.written();
            if n > 20 { Ok(()) } else { Err(n.to_string()) }
        })
        .await;
        lines
    }

    /// How many lines were written.
    pub(super) fn written(&self) -> usize {
        self.snapshot().values().map(|text| text.lines().count()).sum()
    }

    /// What was written up to now.
    pub(super) fn snapshot(&self) -> Written {
        let read = |path: &Path| {
            let text = std::fs::read_to_string(path).unwrap();
            let complete = text.rfind('\n').map_or(0, |end| end + 1);
            text[..complete].to_owned()
        };
        let files = std::fs::read_dir(&self.dir).unwrap().map(|f| f.unwrap().path());
        files.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), read(&p))).collect()
    }

    /// Lets no further run begin.
    pub(super) async fn stop(&self, api: &Api) {
        for n in 0..self.jobs {
            let (status, body) = api.post(&format!("/v1/jobs/lines-{n}/pause"), json!({})).await;
            assert!(status < 300, "{status} {body}");
        }
    }

    /// Lets no further run begin, waits until all that there is is stored, and reads it.
    pub(super) async fn settle(&self, cluster: &Cluster) -> Found {
        let api = cluster.api();
        self.stop(&api).await;
        eventually(SETTLED, "every run has its record", async || {
            for i in 0..2 {
                // There may be one worker only.
                if let Some(n @ 1..) = spooled(cluster, i).await {
                    return Err(format!("{n} items in spool {i}"));
                }
            }
            let (_, page) = api.get("/v1/runs?limit=1").await;
            if page["runs"].is_null() {
                return Err(page.to_string());
            }
            let known: BTreeMap<String, String> = runs(&api, "")
                .await
                .iter()
                .map(|r| {
                    (r["run_id"].as_str().unwrap().into(), r["state"].as_str().unwrap().into())
                })
                .collect();
            let over = |id: &&String| known.get(*id).is_some_and(|state| state != "running");
            let written = self.snapshot();
            match written.keys().find(|id| !over(id)) {
                None => Ok(()),
                Some(id) => Err(format!("{id}: {:?}", known.get(id))),
            }
        })
        .await;
        let written = self.snapshot();
        let (mut stored, mut dropped) = (BTreeMap::new(), 0);
        for run in runs(&api, "").await {
            let id = run["run_id"].as_str().unwrap().to_owned();
            if !run["job"].as_str().is_some_and(|job| job.starts_with("lines-")) {
                continue;
            }
            let lost = run["dropped_bytes"].as_u64().unwrap();
            dropped += lost;
            let (_, page) = api.get(&format!("/v1/runs/{id}/output?limit=10000")).await;
            let chunks = page["chunks"].as_array().unwrap();
            let seqs: Vec<u64> = chunks.iter().map(|c| c["seq"].as_u64().unwrap()).collect();
            assert!(seqs.is_sorted_by(|a, b| a < b), "{id}: {seqs:?}");
            let text = chunks.iter().map(|c| c["text"].as_str().unwrap()).collect();
            stored.insert(id, (text, run["state"] == "success", lost));
        }
        Found { written, stored, dropped }
    }
}

impl Found {
    /// Nothing is lost but what was counted, nothing is there twice, and all is in order. Of a
    /// run that was killed with its worker, all that was written up to `kept` is there.
    pub(super) fn check(&self, kept: &Written) {
        assert!(!self.written.is_empty());
        for (id, written) in &self.written {
            let Some((stored, whole, dropped)) = self.stored.get(id) else {
                panic!("no record of {id}, which wrote {written:?}")
            };
            match (whole, dropped) {
                (true, 0) => assert_eq!(stored, written, "{id}"),
                (true, dropped) => {
                    assert_eq!(stored.len() as u64 + dropped, written.len() as u64, "{id}");
                    // What is left is a part of it, in order.
                    let mut all = written.lines();
                    for line in stored.lines() {
                        // Pieces are cut as they were read, mostly at the ends of lines.
                        assert!(all.any(|w| w == line || w.ends_with(line)), "{id}: {line}");
                    }
                }
                (false, _) => {
                    assert!(written.starts_with(stored), "{id}: {stored:?} {written:?}");
                    let before = kept.get(id).map_or("", String::as_str);
                    assert!(stored.starts_with(before), "{id}: {stored:?} lacks of {before:?}");
                }
            }
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |text: &str| text.lines().count();
        let written: usize = self.written.values().map(|t| count(t)).sum();
        let stored: usize = self.stored.values().map(|(t, ..)| count(t)).sum();
        let cut = self.stored.values().filter(|(_, whole, _)| !whole).count();
        write!(
            f,
            "{} runs wrote {written} lines; stored: {} runs, {stored} lines; dropped and counted: \
             {} bytes; ended with their worker: {cut} runs",
            self.written.len(),
            self.stored.len(),
            self.dropped
        )
    }
}

async fn spooled(cluster: &Cluster, i: usize) -> Option<i64> {
    if i >= cluster.workers() {
        return None;
    }
    Some(metric(cluster, i, "spool_items").await)
}

/// A metric of worker `i`.
pub(super) async fn metric(cluster: &Cluster, i: usize, name: &str) -> i64 {
    let (_, text) = cluster.worker(i).metrics().get("/metrics").await;
    let text = text.as_str().unwrap();
    let full = format!("meepo_worker_{name} ");
    let line = text.lines().find_map(|l| l.strip_prefix(&full));
    line.unwrap_or_else(|| panic!("no {full}: {text}")).parse().unwrap()
}

/// Waits until a metric of worker `i` is as `wanted`.
pub(super) async fn wait_metric(
    cluster: &Cluster,
    i: usize,
    name: &str,
    wanted: impl Fn(i64) -> bool,
) {
    eventually(SOON, format!("{name} is as expected"), async || {
        let n = metric(cluster, i, name).await;
        if wanted(n) { Ok(()) } else { Err(n.to_string()) }
    })
    .await;
}
