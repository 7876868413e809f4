//! After a restart: what the last life of this worker left open.

use crate::{
    agent::promise,
    engine::Plan,
    process::{Found, Leftover, Leftovers, Running, Surviving},
    state::{OpenRun, State, StateError, WaitEntry},
};
use anyhow::Context;
use jiff::Timestamp;
use meepo_coord::keys;
use meepo_core::{
    code::Code,
    id::Name,
    job::{Assignment, Executor},
    notify::Outcome,
    run::{RunRecord, RunState, to_millis},
};
use std::{collections::HashSet, sync::Arc};
use tracing::{error, info, warn};

/// A run that has survived the last life of this worker.
#[derive(Debug)]
pub struct Survivor {
    /// As it was begun.
    pub plan: Plan,
    /// As it was begun; to be ended by [`Engine::attend`](crate::engine::Engine::attend).
    pub record: RunRecord,
    /// Its process, which may have ended by now.
    pub running: Running,
}

/// Takes over the runs that survive their worker, and ends every other that was open when
/// the worker died: processes of it that are still there are killed, as nobody reads their
/// output any more, and the run is recorded as lost. A further attempt that its job wants
/// is promised with that.
///
/// What is left is found by the pid of the command together with its start time, by its
/// group, session and control group, by the run's id in the environment, and by descent
/// from one of these.
pub async fn recover(
    state: &State,
    leftovers: &Leftovers,
    surviving: &Surviving,
) -> anyhow::Result<Vec<Survivor>> {
    let mut all = state.recover().await?;
    let ids: HashSet<_> = all.iter().map(|open| open.record.run_id).collect();
    surviving.sweep(&ids).await;
    let survivors = take_over(state, surviving, &mut all).await?;
    // Together, as they can share their looks at all processes.
    let ended = all.iter().map(|open| leftovers.end(open.record.run_id, open.process));
    let ended = futures::future::join_all(ended).await;
    for (open, leftover) in all.into_iter().zip(ended) {
        let mut record = open.record;
        let run_id = record.run_id;
        record.pid = open.process.map(|(pid, _)| pid);
        let message = match leftover {
            Leftover { left, .. } if !left.is_empty() => {
                warn!(%run_id, pid = ?record.pid, ?left, "cannot kill a leftover");
                "the worker died while it ran; what is left of it could not be killed"
            }
            Leftover { found: 1.., .. } => {
                "the worker died while it ran; what was left of it was killed"
            }
            _ if record.pid.is_some() => {
                "the worker died while it ran; its process has ended since"
            }
            _ if record.executor == Executor::Http => {
                "the worker died during the request; whether the server has acted is not known"
            }
            _ => "the worker died when it had started or was about to start",
        };
        info!(%run_id, message, "run of the last life");
        record.state = RunState::Lost;
        record.code = Code::LOST;
        record.message = Some(message.to_owned());
        record.ended_at = Some(to_millis(Timestamp::now()));
        end(state, &record).await?;
        surviving.forget(run_id).await;
    }
    Ok(survivors)
}

/// Takes the runs out of `open` that survive or have ended on their own.
async fn take_over(
    state: &State,
    surviving: &Surviving,
    open: &mut Vec<OpenRun>,
) -> anyhow::Result<Vec<Survivor>> {
    let mut survivors = Vec::new();
    for entry in std::mem::take(open) {
        let run_id = entry.record.run_id;
        let found = match surviving.find(run_id).await {
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                error!(%run_id, error = %e, "a surviving run cannot be taken over and is ended");
                surviving.abandon(run_id).await;
                Found::Nothing
            }
            found => found.with_context(|| format!("cannot look for surviving run {run_id}"))?,
        };
        match found {
            Found::Nothing => open.push(entry),
            Found::Ended(ended) => {
                let mut record = entry.record;
                ended.enter(&mut record);
                end(state, &record).await?;
                surviving.forget(run_id).await;
            }
            Found::Taken(assignment, running) => {
                info!(%run_id, pid = running.pid, "a run has survived the last life");
                let plan = Plan::of(&entry.record, assignment);
                survivors.push(Survivor { plan, record: entry.record, running });
            }
        }
    }
    Ok(survivors)
}

/// Records the end of a run together with the promise of the next attempt.
async fn end(state: &State, record: &RunRecord) -> Result<(), StateError> {
    let assignment = match &record.job {
        Some(job) => last_known(state, record, job).await?,
        None => None,
    };
    let heeded = assignment.as_ref().is_some_and(Assignment::heeds_success);
    let promised = |a| promise(&Plan::of(record, Arc::new(a)), record, Timestamp::now());
    let next: Option<WaitEntry> = assignment.and_then(promised);
    let outcome = Outcome::of(record, next.is_none(), heeded, None);
    state.end_run_with(record, &[], next.as_ref(), outcome.as_ref()).await.map(drop)
}

/// The job of a run as this node knew it last.
async fn last_known(
    state: &State,
    record: &RunRecord,
    job: &Name,
) -> Result<Option<Assignment>, StateError> {
    let prefix = keys::assignments_of(&record.node);
    // The second is the oldest form of key.
    for rest in [job.as_str(), ""] {
        let value = state.snapshot(format!("{prefix}{rest}")).await?;
        let assignment = value.and_then(|value| Assignment::from_etcd(&value).ok());
        let its = |a: &Assignment| a.id_at(rest).is_ok_and(|id| id == *job);
        if let Some(found) = assignment.filter(its) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        process::Cgroups,
        state::{SnapshotEntry, SpoolItem, StateOptions},
    };
    use serde_json::{Value, json};
    use std::process::{Child, Command, Stdio};

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn open_run() -> RunRecord {
        let json = serde_json::json!({
            "run_id": uuid::Uuid::now_v7(), "node": "n", "slot": "2026-01-01T00:00:00Z",
            "attempt": 1, "cause": "exec", "executor": "exec", "cmd": "x", "state": "running",
            "code": 0, "output_bytes": 0, "dropped_bytes": 0,
        });
        serde_json::from_value(json).unwrap()
    }

    fn process(run_id: &str) -> Killed {
        let mut command = Command::new("sleep");
        command.arg("600").env("MEEPO_RUN_ID", run_id).stdout(Stdio::null());
        Killed(command.spawn().unwrap())
    }

    #[tokio::test]
    async fn leftovers_are_found_by_their_environment_and_others_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&StateOptions::new(dir.path())).unwrap();
        let (unnoted, led) = (open_run(), open_run());
        for run in [&unnoted, &led] {
            state.begin_run(run, None).await.unwrap();
        }
        let mut first = process(&unnoted.run_id.to_string());
        let mut second = process(&led.run_id.to_string());
        let mut other = process(&uuid::Uuid::now_v7().to_string());
        // The pid is another process' by now: the start time is not the same.
        state.started(led.run_id, other.0.id(), 1).await.unwrap();
        let leftovers = Leftovers::new(Cgroups::new(None, dir.path()));
        let surviving = Surviving::new(dir.path(), None, leftovers.clone());
        let survivors = recover(&state, &leftovers, &surviving).await.unwrap();
        assert!(survivors.is_empty());
        for gone in [&mut first, &mut second] {
            assert!(!gone.0.wait().unwrap().success());
        }
        assert!(other.0.try_wait().unwrap().is_none(), "it is no business of ours");
        assert!(state.recover().await.unwrap().is_empty());
        for item in state.peek(10, usize::MAX).await.unwrap().items {
            let SpoolItem::Record(record) = item else { panic!("{item:?}") };
            assert_eq!(record.state, RunState::Lost);
            assert!(record.message.unwrap().contains("was killed"));
        }
    }

    /// A run of `job` that was begun.
    fn of_job(job: &str, more: &Value) -> RunRecord {
        let mut json = serde_json::to_value(open_run()).unwrap();
        let fields = json.as_object_mut().unwrap();
        fields.extend([("job".into(), job.into()), ("cause".into(), "schedule".into())]);
        fields.extend(more.as_object().unwrap().clone());
        serde_json::from_value(json).unwrap()
    }

    #[tokio::test]
    async fn a_lost_run_is_tried_again_where_its_job_wants_that() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&StateOptions::new(dir.path())).unwrap();
        let lost = json!({"max": 2, "delay": "1h", "backoff": "fixed", "on": ["lost"]});
        let assignment = |more: Value| {
            let mut all = json!({"cmd": "true", "retry": lost});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let known = [
            ("plain", assignment(json!({}))),
            ("usual", assignment(json!({"retry": {"max": 2}}))),
            ("claimed", assignment(json!({"express": "@hourly", "once": ["n"]}))),
            ("locked", assignment(json!({"lock": {"name": "l"}}))),
            ("", assignment(json!({"task_id": "oldest"}))),
        ];
        let entry = |(rest, value): (&str, Value)| SnapshotEntry {
            key: format!("/cron/jobs/n/{rest}"),
            value: value.to_string().into_bytes(),
            mod_revision: 1,
        };
        state.put_snapshots_later(known.map(entry).into()).await.unwrap();
        // Fields of the run, and the attempt and the token that are promised.
        let cases = [
            ("plain", json!({}), Some((2, Value::Null))),
            ("plain", json!({"cause": "trigger", "attempt": 2}), Some((3, Value::Null))),
            ("plain", json!({"attempt": 3}), None),
            ("usual", json!({}), None),
            ("claimed", json!({"fence": 7}), Some((2, json!(7)))),
            // Its own token, and that of its lock, which it does not hold any more.
            ("locked", json!({"fence": 9}), Some((2, Value::Null))),
            ("oldest", json!({}), Some((2, Value::Null))),
            ("unknown", json!({}), None),
        ];
        let mut wanted = Vec::new();
        for (job, more, promised) in cases {
            let run = of_job(job, &more);
            state.begin_run(&run, None).await.unwrap();
            wanted.extend(promised.map(|(attempt, fence)| {
                json!([
                    job,
                    attempt,
                    fence,
                    run.slot,
                    more.get("cause").unwrap_or(&json!("schedule"))
                ])
            }));
        }
        let leftovers = Leftovers::new(Cgroups::new(None, dir.path()));
        let surviving = Surviving::new(dir.path(), None, leftovers.clone());
        recover(&state, &leftovers, &surviving).await.unwrap();
        let mut found = Vec::new();
        for wait in state.waits().await.unwrap() {
            assert!(wait.due > Timestamp::now() + std::time::Duration::from_secs(3500));
            let plan: Value = serde_json::from_str(&wait.plan).unwrap();
            let fields = ["job", "attempt", "fence", "slot", "cause"].map(|f| plan[f].clone());
            found.push(Value::from(fields.to_vec()));
        }
        let text = |v: &Value| v.to_string();
        wanted.sort_by_key(text);
        found.sort_by_key(text);
        assert_eq!(found, wanted);
        // In the next life nothing is open, so nothing is promised again.
        recover(&state, &leftovers, &surviving).await.unwrap();
        assert_eq!(state.waits().await.unwrap().len(), wanted.len());
    }

    #[tokio::test]
    async fn a_request_that_was_under_way_may_have_been_served() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&StateOptions::new(dir.path())).unwrap();
        let request = RunRecord { executor: Executor::Http, ..open_run() };
        state.begin_run(&request, None).await.unwrap();
        let leftovers = Leftovers::new(Cgroups::new(None, dir.path()));
        let surviving = Surviving::new(dir.path(), None, leftovers.clone());
        recover(&state, &leftovers, &surviving).await.unwrap();
        let items = state.peek(10, usize::MAX).await.unwrap().items;
        let [SpoolItem::Record(record)] = &items[..] else { panic!("{items:?}") };
        assert_eq!(record.state, RunState::Lost);
        assert!(record.message.as_ref().unwrap().contains("whether the server has acted"));
    }
}
