//! A node that takes nothing new: asked for by a key in etcd, which stays until it is
//! taken back, or of the worker itself before it ends.
//!
//! What has begun goes on to its end or to the deadline. The key's value is kept in a
//! file, so that a worker that starts while etcd is away knows it.

use crate::{process::KillReason, progress::Progress, registry::Registry};
use jiff::Timestamp;
use meepo_coord::{
    Entry, Etcd, keys,
    records::{DrainRecord, decode},
    watch::{Batch, Change, Options, watch},
};
use meepo_core::{id::NodeId, node, run::to_millis};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch as cell};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// File in the data directory with the value of the key, while there is one.
const FILE: &str = "drain";
/// How often it is looked at whether anything runs still.
const LOOK: Duration = Duration::from_millis(100);

/// A drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// What runs then is killed.
    pub deadline: Option<Timestamp>,
}

/// Who has asked for one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// The key in etcd.
    pub key: Option<Drain>,
    /// The worker is about to end.
    pub ending: Option<Drain>,
}

impl Asked {
    /// The drain that counts; `None`: the node takes work.
    pub fn drain(&self) -> Option<Drain> {
        self.key.or(self.ending)
    }
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Which drain.
    pub requested_at: Timestamp,
    /// Nothing runs any more.
    pub done: bool,
}

/// The word for the health record.
pub fn status(stage: Option<Stage>) -> &'static str {
    match stage {
        None => node::ONLINE,
        Some(Stage { done: false, .. }) => node::DRAINING,
        Some(Stage { done: true, .. }) => node::DRAINED,
    }
}

fn drain_of(value: &[u8]) -> Drain {
    match decode::<DrainRecord>(value) {
        Ok(record) => Drain { requested_at: record.requested_at, deadline: record.deadline },
        // Somebody meant something by it.
        Err(e) => {
            warn!(error = %e, "the request to drain this node is not readable: it has no deadline");
            Drain { requested_at: to_millis(Timestamp::now()), deadline: None }
        }
    }
}

/// What the last life of the worker knew.
pub fn remembered(data_dir: &Path) -> Asked {
    let key = std::fs::read(data_dir.join(FILE)).ok().map(|value| drain_of(&value));
    Asked { key, ending: None }
}

/// Keeps to the key of this node until `stop` is cancelled. `heard` is told once etcd
/// has been.
pub async fn follow(
    etcd: Etcd,
    node: NodeId,
    data_dir: PathBuf,
    asked: cell::Sender<Asked>,
    heard: oneshot::Sender<()>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let key = keys::drain(&node);
    let (tx, mut batches) = mpsc::channel(16);
    let watching = watch(etcd, vec![key.clone()], Options::default(), tx, stop);
    let file = data_dir.join(FILE);
    let applying = async {
        let mut heard = Some(heard);
        while let Some(batch) = batches.recv().await {
            // The prefix of a node is that of others as well: 10.0.0.2 and 10.0.0.20.
            let own = |e: &Entry| e.key == key;
            let news = match batch {
                Batch::Reset { entries, .. } => Some(entries.into_iter().find(own)),
                Batch::Changes(changes) => changes.into_iter().rev().find_map(|c| match c {
                    Change::Put(entry) => own(&entry).then_some(Some(entry)),
                    Change::Delete { key: gone, .. } => (gone == key).then_some(None),
                }),
            };
            if let Some(entry) = news {
                keep(&file, entry.as_ref()).await;
                let drain = entry.map(|e| drain_of(&e.value));
                asked.send_if_modified(|asked| std::mem::replace(&mut asked.key, drain) != drain);
            }
            if let Some(heard) = heard.take() {
                let _ = heard.send(());
            }
        }
    };
    tokio::join!(watching, applying);
    Ok(())
}

/// Remembers the key's value for a start without etcd.
async fn keep(file: &Path, entry: Option<&Entry>) {
    let kept = match entry {
        Some(entry) => tokio::fs::write(file, &entry.value).await,
        None => match tokio::fs::remove_file(file).await {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        },
    };
    if let Err(e) = kept {
        warn!(file = %file.display(), error = %e, "cannot keep for times without etcd whether this node is drained");
    }
}

/// Watches over drains until `stop` is cancelled: says how far one is, and kills what
/// runs at its deadline.
pub async fn carry_out(
    mut asked: cell::Receiver<Asked>,
    registry: Registry,
    progress: Arc<Progress>,
    stage: cell::Sender<Option<Stage>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut told: Option<Drain> = None;
    loop {
        let drain = asked.borrow_and_update().drain();
        if drain != told {
            match drain {
                Some(d) => {
                    info!(deadline = ?d.deadline, "this node is drained: it takes nothing new")
                }
                None => info!("this node takes work again"),
            }
            told = drain;
        }
        let now = drain.map(|d| {
            if d.deadline.is_some_and(|at| Timestamp::now() >= at) {
                let killed = registry.kill_all(KillReason::Drained);
                if killed > 0 {
                    warn!(killed, "the deadline of the drain has passed: what runs is killed");
                }
            }
            let done = progress.rests() && registry.active().is_empty();
            Stage { requested_at: d.requested_at, done }
        });
        stage.send_if_modified(|stage| std::mem::replace(stage, now) != now);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = asked.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(LOOK), if drain.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::{Engine, Plan},
        progress::Queue,
    };
    use meepo_core::{
        code::Code,
        id::RunId,
        run::{Cause, RunState},
    };

    #[test]
    fn a_key_counts_before_the_workers_own_end() {
        let drain =
            |s| Some(Drain { requested_at: Timestamp::from_second(s).unwrap(), deadline: None });
        assert_eq!(Asked::default().drain(), None);
        assert_eq!(Asked { key: None, ending: drain(2) }.drain(), drain(2));
        assert_eq!(Asked { key: drain(1), ending: drain(2) }.drain(), drain(1));
    }

    #[tokio::test]
    async fn the_key_is_remembered_whatever_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(remembered(dir.path()), Asked::default());
        let entry = |value: &str| Entry {
            key: "/meepo/drain/n".into(),
            value: value.into(),
            mod_revision: 1,
            create_revision: 1,
        };
        let file = dir.path().join(FILE);
        let t = "2026-01-02T03:04:05Z";
        keep(&file, Some(&entry(&format!(r#"{{"requested_at":"{t}"}}"#)))).await;
        let drain = remembered(dir.path()).drain().unwrap();
        assert_eq!((drain.requested_at, drain.deadline), (t.parse().unwrap(), None));
        keep(&file, Some(&entry("yes"))).await;
        assert!(remembered(dir.path()).drain().is_some());
        keep(&file, None).await;
        keep(&file, None).await;
        assert_eq!(remembered(dir.path()).drain(), None);
    }

    #[tokio::test]
    async fn at_the_deadline_what_runs_is_killed_and_then_the_node_is_drained() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::in_dir(dir.path()).await;
        let plan = Plan {
            run_id: RunId(uuid::Uuid::now_v7()),
            job: None,
            assignment: Arc::new(serde_json::from_str(r#"{"cmd":"sleep 600"}"#).unwrap()),
            slot: Timestamp::UNIX_EPOCH,
            attempt: 1,
            cause: Cause::Exec,
            fence: None,
            permit: None,
        };
        let begun = engine.begin(&plan).await;
        let runs = engine.clone();
        let running = tokio::spawn(async move { runs.execute(plan, begun, None, |_| None).await });
        let progress = Arc::new(Progress::default());
        let (asking, asked) = cell::channel(Asked::default());
        let (stage_tx, mut stage) = cell::channel(None);
        let stop = CancellationToken::new();
        let registry = engine.registry.clone();
        let task =
            tokio::spawn(carry_out(asked, registry, progress.clone(), stage_tx, stop.clone()));
        let now = Timestamp::now();
        let ask = |deadline| {
            asking.send_replace(Asked {
                key: Some(Drain { requested_at: now, deadline }),
                ending: None,
            })
        };
        ask(None);
        let want = Some(Stage { requested_at: now, done: false });
        stage.wait_for(|s| *s == want).await.unwrap();
        progress.passed(now, None, Queue { held: true, ..Queue::default() });
        ask(Some(now));
        let ended = tokio::time::timeout(Duration::from_secs(30), running).await;
        let ended = ended.unwrap().unwrap().unwrap().record;
        assert_eq!((ended.state, ended.code), (RunState::Killed, Code::DRAINED));
        let done = Some(Stage { requested_at: now, done: true });
        tokio::time::timeout(Duration::from_secs(30), stage.wait_for(|s| *s == done))
            .await
            .unwrap()
            .unwrap();
        asking.send_replace(Asked::default());
        stage.wait_for(Option::is_none).await.unwrap();
        stop.cancel();
        task.await.unwrap().unwrap();
    }
}
