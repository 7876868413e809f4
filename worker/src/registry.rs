//! The runs this worker knows by id: those that are active, and the latest that have
//! ended, so that a question that comes just after the end is still answered.

use crate::process::{Control, Follower, KillReason, OutputHub};
use meepo_core::{id::RunId, run::RunRecord};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Ended runs that are remembered.
const REMEMBERED: usize = 128;

/// The runs of one worker. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    runs: HashMap<RunId, Entry>,
    ended: VecDeque<RunId>,
}

struct Entry {
    record: RunRecord,
    control: Option<Control>,
    /// Asked for before there was a process.
    kill: Option<KillReason>,
    stage: watch::Sender<Stage>,
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
    pub fn enter(&self, record: RunRecord) {
        let run_id = record.run_id;
        let entry = Entry { record, control: None, kill: None, stage: watch::Sender::default() };
        self.lock().runs.insert(run_id, entry);
    }

    /// Its process was started.
    pub fn started(&self, record: &RunRecord, control: Control, output: OutputHub) {
        let mut inner = self.lock();
        if let Some(entry) = inner.runs.get_mut(&record.run_id) {
            entry.record = record.clone();
            if let Some(reason) = entry.kill.take() {
                control.kill(reason);
            }
            entry.control = Some(control);
            entry.stage.send_replace(Stage::Started(output));
        }
    }

    /// It has ended.
    pub fn ended(&self, record: Arc<RunRecord>) {
        let mut inner = self.lock();
        let run_id = record.run_id;
        if let Some(entry) = inner.runs.get_mut(&run_id) {
            entry.control = None;
            entry.record = (*record).clone();
            entry.stage.send_modify(|stage| {
                let output = match stage {
                    Stage::Started(output) => Some(output.clone()),
                    _ => None,
                };
                *stage = Stage::Ended(output, record);
            });
            inner.ended.push_back(run_id);
            if inner.ended.len() > REMEMBERED
                && let Some(oldest) = inner.ended.pop_front()
            {
                inner.runs.remove(&oldest);
            }
        }
    }

    /// It was not to be started after all.
    pub fn forget(&self, run_id: RunId) {
        self.lock().runs.remove(&run_id);
    }

    /// Starts the kill plan of a run. Answers whether the run is known and active.
    pub fn kill(&self, run_id: RunId, reason: KillReason) -> bool {
        match self.lock().runs.get_mut(&run_id) {
            Some(entry) if !entry.record.state.is_final() => {
                match &entry.control {
                    Some(control) => control.kill(reason),
                    None => entry.kill = Some(reason),
                }
                true
            }
            _ => false,
        }
    }

    /// Starts the kill plan of every active run and answers how many there are.
    pub fn kill_all(&self, reason: KillReason) -> usize {
        let active = self.active();
        active.iter().filter(|id| self.kill(**id, reason)).count()
    }

    /// The stages of a run, if it is known.
    pub fn watch(&self, run_id: RunId) -> Option<watch::Receiver<Stage>> {
        self.lock().runs.get(&run_id).map(|entry| entry.stage.subscribe())
    }

    /// Ids of the runs that have not ended.
    pub fn active(&self) -> Vec<RunId> {
        let inner = self.lock();
        inner.runs.iter().filter(|(_, e)| !e.record.state.is_final()).map(|(id, _)| *id).collect()
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
        Self { stage, follower: None, from }
    }

    /// What happens next; `None` after the end or when the run is forgotten.
    pub async fn next(&mut self) -> Option<Event> {
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
