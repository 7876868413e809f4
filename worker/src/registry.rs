//! The runs this worker knows by id: those that are active, and the latest that have
//! ended, so that a question that comes just after the end is still answered.

use crate::process::{Control, Follower, KillReason, OutputHub};
use meepo_core::{id::RunId, run::RunRecord};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, watch};

/// Ended runs that are remembered.
const REMEMBERED: usize = 128;

/// The runs of one worker. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
    /// Tells those who wait for a run that one was entered.
    entered: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    runs: HashMap<RunId, Entry>,
    ended: VecDeque<RunId>,
}

struct Entry {
    over: bool,
    claimed: bool,
    control: Option<Control>,
    /// Asked for before there was a process.
    kill: Option<KillReason>,
    stage: Stage,
    /// Made for the first who watches: of most runs nobody does, and it costs more than all
    /// else here.
    watched: Option<watch::Sender<Stage>>,
}

impl Entry {
    /// Changes the stage.
    fn tell(&mut self, stage: Stage) {
        if let Some(watched) = &self.watched {
            watched.send_replace(stage.clone());
        }
        self.stage = stage;
    }

    fn watch(&mut self) -> watch::Receiver<Stage> {
        let stage = &self.stage;
        self.watched.get_or_insert_with(|| watch::Sender::new(stage.clone())).subscribe()
    }
}

/// How far a run is.
#[derive(Debug, Clone, Default)]
pub enum Stage {
    /// No process yet.
    #[default]
    Starting,
    /// It runs; this is what it writes.
    Started(OutputHub),
    /// It has ended, with the output if a process was started.
    Ended(Option<OutputHub>, Arc<RunRecord>),
}

impl Registry {
    /// Enters a run that is about to start.
    pub fn enter(&self, record: &RunRecord) {
        let entry = Entry {
            over: record.state.is_final(),
            claimed: record.fence.is_some(),
            control: None,
            kill: None,
            stage: Stage::default(),
            watched: None,
        };
        self.lock().runs.insert(record.run_id, entry);
        self.entered.notify_waiters();
    }

    /// Its process was started.
    pub fn started(&self, run_id: RunId, control: Control, output: OutputHub) {
        let mut inner = self.lock();
        if let Some(entry) = inner.runs.get_mut(&run_id) {
            if let Some(reason) = entry.kill.take() {
                control.kill(reason);
            }
            entry.control = Some(control);
            entry.tell(Stage::Started(output));
        }
    }

    /// It has ended.
    pub fn ended(&self, record: Arc<RunRecord>) {
        // What is forgotten is taken apart when others may go on.
        let _forgotten = self.note_end(record);
    }

    /// Notes an end; answers the run that is forgotten for it.
    fn note_end(&self, record: Arc<RunRecord>) -> Option<Entry> {
        let mut inner = self.lock();
        let run_id = record.run_id;
        let entry = inner.runs.get_mut(&run_id)?;
        entry.control = None;
        entry.over = true;
        let output = match std::mem::take(&mut entry.stage) {
            Stage::Started(output) => Some(output),
            _ => None,
        };
        entry.tell(Stage::Ended(output, record));
        inner.ended.push_back(run_id);
        if inner.ended.len() <= REMEMBERED {
            return None;
        }
        let oldest = inner.ended.pop_front()?;
        inner.runs.remove(&oldest)
    }

    /// It was not to be started after all.
    pub fn forget(&self, run_id: RunId) {
        self.lock().runs.remove(&run_id);
    }

    /// Starts the kill plan of a run. Answers whether the run is known, active, and does
    /// not survive the shutdown that is the reason.
    pub fn kill(&self, run_id: RunId, reason: KillReason) -> bool {
        match self.lock().runs.get_mut(&run_id) {
            Some(entry) if !entry.over => {
                match &entry.control {
                    Some(control) if control.survives() && reason == KillReason::Shutdown => {
                        return false;
                    }
                    Some(control) => control.kill(reason),
                    None => entry.kill = Some(reason),
                }
                true
            }
            _ => false,
        }
    }

    /// Starts the kill plan of every active run and answers how many there are, without
    /// those that survive a shutdown.
    pub fn kill_all(&self, reason: KillReason) -> usize {
        let active = self.active();
        active.iter().filter(|id| self.kill(**id, reason)).count()
    }

    /// Starts the kill plan of every active run that was claimed, and answers how many
    /// there are.
    pub fn kill_claimed(&self, reason: KillReason) -> usize {
        let claimed = |id: &RunId| self.lock().runs.get(id).is_some_and(|e| e.claimed);
        self.active().iter().filter(|id| claimed(id) && self.kill(**id, reason)).count()
    }

    /// The stages of a run, if it is known.
    pub fn watch(&self, run_id: RunId) -> Option<watch::Receiver<Stage>> {
        self.lock().runs.get_mut(&run_id).map(Entry::watch)
    }

    /// Waits until a run is known; answers its stages.
    pub async fn appears(&self, run_id: RunId) -> watch::Receiver<Stage> {
        loop {
            let entered = self.entered.notified();
            tokio::pin!(entered);
            // Before the look, so that nothing is missed in between.
            entered.as_mut().enable();
            if let Some(stage) = self.watch(run_id) {
                return stage;
            }
            entered.await;
        }
    }

    /// Ids of the runs that have not ended.
    pub fn active(&self) -> Vec<RunId> {
        let inner = self.lock();
        inner.runs.iter().filter(|(_, e)| !e.over).map(|(id, _)| *id).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half done in the critical sections above.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads along with a run from the chunk `from` on; see [`Stages::next`].
pub struct Stages {
    stage: watch::Receiver<Stage>,
    follower: Option<Follower>,
    from: u64,
    /// The end was told.
    over: bool,
}

/// What happens to a run that is followed.
pub enum Event {
    /// It wrote something.
    Output(Vec<Arc<meepo_core::run::OutputChunk>>),
    /// It ended; nothing follows.
    Ended(Arc<RunRecord>),
}

impl Stages {
    /// Follows the run behind `stage`.
    pub fn new(stage: watch::Receiver<Stage>, from: u64) -> Self {
        Self { stage, follower: None, from, over: false }
    }

    /// The position this started from.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// What happens next; `None` after the end or when the run is forgotten.
    pub async fn next(&mut self) -> Option<Event> {
        // The stage stays at the end: without this the end would be told for ever.
        if self.over {
            return None;
        }
        let event = self.look().await;
        self.over = matches!(event, Some(Event::Ended(_)) | None);
        event
    }

    async fn look(&mut self) -> Option<Event> {
        loop {
            if let Some(follower) = &mut self.follower {
                if let Some(chunks) = follower.next().await {
                    return Some(Event::Output(chunks));
                }
                // The output is complete; the record comes in a moment.
                let ended = self.stage.wait_for(|s| matches!(s, Stage::Ended(..))).await.ok()?;
                return match &*ended {
                    Stage::Ended(_, record) => Some(Event::Ended(record.clone())),
                    _ => None,
                };
            }
            let stage = self.stage.borrow_and_update().clone();
            match stage {
                Stage::Starting => self.stage.changed().await.ok()?,
                Stage::Started(output) | Stage::Ended(Some(output), _) => {
                    self.follower = Some(output.follow(self.from));
                }
                Stage::Ended(None, record) => return Some(Event::Ended(record)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::{id::Name, run::RunState};

    fn record(state: RunState) -> RunRecord {
        let json = serde_json::json!({
            "run_id": "0190a5d2-7c4e-7b1a-8000-000000000001", "node": "n", "slot":
            "2026-01-01T00:00:00Z", "attempt": 1, "cause": "exec", "executor": "exec",
            "cmd": "x", "state": "running", "code": 0, "output_bytes": 0, "dropped_bytes": 0,
        });
        RunRecord { state, node: Name::new("n").unwrap(), ..serde_json::from_value(json).unwrap() }
    }

    #[tokio::test]
    async fn who_waits_for_a_run_is_told_when_it_is_entered() {
        let registry = Registry::default();
        let running = record(RunState::Running);
        let waiting = registry.appears(running.run_id);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        registry.enter(&RunRecord { run_id: RunId(uuid::Uuid::nil()), ..running.clone() });
        assert!(futures::poll!(&mut waiting).is_pending());
        registry.enter(&running);
        waiting.await;
        registry.appears(running.run_id).await;
    }

    #[tokio::test]
    async fn an_end_is_told_once() {
        let registry = Registry::default();
        let running = record(RunState::Running);
        let run_id = running.run_id;
        registry.enter(&running);
        let mut stages = Stages::new(registry.watch(run_id).unwrap(), 0);
        registry.ended(Arc::new(record(RunState::Success)));
        assert!(matches!(stages.next().await, Some(Event::Ended(r)) if r.run_id == run_id));
        assert!(stages.next().await.is_none() && stages.next().await.is_none());
    }

    #[tokio::test]
    async fn an_end_is_told_once_after_the_output() {
        let registry = Registry::default();
        let running = record(RunState::Running);
        let run_id = running.run_id;
        registry.enter(&running);
        let mut stages = Stages::new(registry.watch(run_id).unwrap(), 0);
        let options = crate::process::RunnerOptions::default();
        let runner = crate::process::Runner::new(options).unwrap();
        let command = crate::process::Command::new(meepo_core::job::Executor::Sh, "echo hello");
        let mut process = runner.spawn(run_id, command).await.unwrap();
        let (control, output) = (process.control.clone(), process.output.clone());
        registry.started(run_id, control, output);
        process.wait().await;
        registry.ended(Arc::new(record(RunState::Success)));
        assert!(matches!(stages.next().await, Some(Event::Output(c)) if c[0].data == b"hello\n"));
        assert!(matches!(stages.next().await, Some(Event::Ended(_))));
        assert!(stages.next().await.is_none() && stages.next().await.is_none());
    }
}
