//! What the suites over whole clusters share: quick leases, runs as the API tells
//! them, and evidence that jobs leave in a file.

use jiff::Timestamp;
use meepo_tests::{Api, Builder, Cluster, eventually, secs};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

/// Longest wait for anything that should be quick.
pub(crate) const SOON: Duration = secs(60);

/// A cluster in which the dead are missed after two seconds.
pub(crate) fn quick() -> Builder {
    ["--lease-ttl", "2s"]
        .iter()
        .fold(Cluster::builder(), |b, arg| b.master_arg(arg).worker_arg(arg))
}

/// Runs, newest first; `query` as in `job=a&state=lost`.
pub(crate) async fn runs(api: &Api, query: &str) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = api.get(&format!("/v1/runs?limit=1000&{query}{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        all.extend(page["runs"].as_array().unwrap().iter().cloned());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

/// Waits until `query` finds at least `n` runs; answers them.
pub(crate) async fn wait_runs(api: &Api, query: &str, n: usize) -> Vec<Value> {
    eventually(SOON, format!("there are {n} runs with {query}"), async || {
        let found = runs(api, query).await;
        if found.len() >= n { Ok(found) } else { Err(format!("{} are there", found.len())) }
    })
    .await
}

/// Creates or replaces a definition.
pub(crate) async fn apply(api: &Api, spec: Value) {
    let (status, body) = api.post("/v1/jobs", spec).await;
    assert!(status == 200 || status == 201, "{status} {body}");
}

/// Waits until the session of a node with the leading master stands, by using it.
pub(crate) async fn wait_session(api: &Api, node: &str) {
    eventually(SOON, format!("a command reaches {node}"), async || {
        let body = serde_json::json!({"target": node, "cmd": "true"});
        let (status, answer) = api
            .try_http("POST", "/v1/exec/stream", Some(&body))
            .await
            .map_err(|e| e.chars().take(200).collect::<String>())?;
        let text = match &answer {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if status == 200 && text.contains(r#""resp":"success""#) {
            Ok(())
        } else {
            Err(format!("{status} {text}"))
        }
    })
    .await;
}

/// Waits until the wall clock has passed `at`.
pub(crate) async fn clock_past(at: Timestamp) {
    eventually(SOON, format!("the clock passes {at}"), async || {
        let now = Timestamp::now();
        if now > at { Ok(()) } else { Err(format!("it is {now}")) }
    })
    .await;
}

/// Whether a process is there and not a zombie.
pub(crate) fn alive(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(") ")?.1.starts_with('Z')))
        .is_some_and(|zombie| !zombie)
}

/// Waits until a process is gone.
pub(crate) async fn wait_gone(pid: u64) {
    eventually(SOON, format!("process {pid} is gone"), async || {
        if alive(pid) { Err("it is alive") } else { Ok(()) }.map_err(str::to_owned)
    })
    .await;
}

/// A file into which every run of a job writes a line.
pub(crate) struct Evidence(PathBuf);

/// A line of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    pub(crate) slot: Timestamp,
    pub(crate) fence: Option<i64>,
    pub(crate) node: String,
}

impl Evidence {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        Self(dir.join(format!("{name}.evidence")))
    }

    /// The command that writes a line: opened for appending and written at once.
    pub(crate) fn cmd(&self) -> String {
        format!(r#"echo "$MEEPO_SLOT ${{MEEPO_FENCE:--}} $MEEPO_NODE" >> {}"#, self.0.display())
    }

    pub(crate) fn marks(&self) -> Vec<Mark> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let mark = |line: &str| {
            let [slot, fence, node] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("a broken line: {line:?}")
            };
            Mark {
                slot: slot.parse().unwrap(),
                fence: (fence != "-").then(|| fence.parse().unwrap()),
                node: node.to_owned(),
            }
        };
        complete.lines().map(mark).collect()
    }

    /// Waits until `n` marks satisfy `which`.
    pub(crate) async fn wait(&self, n: usize, which: impl Fn(&Mark) -> bool) -> Vec<Mark> {
        eventually(SOON, format!("{n} such marks in {}", self.0.display()), async || {
            let found: Vec<Mark> = self.marks().into_iter().filter(|m| which(m)).collect();
            if found.len() >= n { Ok(found) } else { Err(format!("{} so far", found.len())) }
        })
        .await
    }

    /// The slots marked; panics if one is there twice on the same node (`each`) or at
    /// all (`once`).
    pub(crate) fn distinct(&self, once: bool) -> BTreeSet<Timestamp> {
        let marks = self.marks();
        let mut seen = BTreeSet::new();
        for m in &marks {
            let node = if once { "" } else { m.node.as_str() };
            assert!(seen.insert((m.slot, node)), "slot {} ran twice: {marks:?}", m.slot);
        }
        marks.iter().map(|m| m.slot).collect()
    }
}

/// The whole seconds in `(after, upto]`.
pub(crate) fn seconds(after: Timestamp, upto: Timestamp) -> BTreeSet<Timestamp> {
    (after.as_second() + 1..=upto.as_second()).map(|s| Timestamp::from_second(s).unwrap()).collect()
}
