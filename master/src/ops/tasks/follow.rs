//! A task as it goes on: from what this master knows, whoever leads.

use crate::{
    error::{ApiError, ApiResult},
    ops::Ops,
    tasks::Version,
};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    task::{PartId, PartState, PartView, TaskRef, TaskView, answer::TaskEvent},
};
use std::{collections::HashMap, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// Events on their way to the caller.
const BACKLOG: usize = 256;
/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(5);
/// How long this master may take to learn of a task that is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was told of a part: told again when it differs.
type Told = (PartState, u32, bool, bool);

fn told(part: &PartView) -> Told {
    (part.state, part.attempt, part.begun_at.is_some(), part.ask.is_some())
}

impl Ops {
    /// Tells what happens to a task, or to one part of it, until all of it has ended or is
    /// buried. First what stands now.
    pub async fn follow_task(&self, what: TaskRef) -> ApiResult<mpsc::Receiver<TaskEvent>> {
        // What changes while the task is read must wake the follower: with a roll-out that
        // stops, nothing may come after it.
        let changes = self.board.changes();
        let view = self.get_task(what).await?;
        let (tx, rx) = mpsc::channel(BACKLOG);
        let follower = Follower { ops: self.clone(), what, told: HashMap::new(), tx };
        tokio::spawn(follower.run(view, changes));
        Ok(rx)
    }
}

struct Follower {
    ops: Ops,
    what: TaskRef,
    told: HashMap<u32, Told>,
    tx: mpsc::Sender<TaskEvent>,
}

/// The caller is gone.
struct Gone;

impl Follower {
    async fn run(mut self, view: TaskView, changes: watch::Receiver<Version>) {
        // The caller being gone is the one end nobody needs to hear of.
        let _ = self.tell(view, changes).await;
    }

    async fn tell(
        &mut self,
        view: TaskView,
        mut changes: watch::Receiver<Version>,
    ) -> Result<(), Gone> {
        self.send(TaskEvent::Start(Box::new(view.clone().without_parts()))).await?;
        let (mut unknown_since, mut seen) = (None, None);
        let mut next = Some(view);
        loop {
            if let Some(view) = next.take() {
                let over = self.parts_over(&view);
                self.parts(view.parts.clone()).await?;
                if over {
                    return self.send(TaskEvent::End(Box::new(view.without_parts()))).await;
                }
            }
            tokio::select! {
                () = self.tx.closed() => return Err(Gone),
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
            }
            tokio::time::sleep(GATHER).await;
            changes.borrow_and_update();
            // Most changes are of other tasks.
            let revision = self.revision();
            if revision.is_some() && revision == seen {
                continue;
            }
            seen = revision;
            next = self.known();
            if next.is_some() {
                unknown_since = None;
                continue;
            }
            // Over and in the log store; or so new that this master has not heard of it.
            match self.ops.get_task(self.what).await {
                Ok(view) if view.state.is_final() => next = Some(view),
                Ok(_) => {
                    let since: Instant = *unknown_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > PATIENCE {
                        let message = "this master does not hear of changes in etcd";
                        return self.error(ApiError::new(Code::ETCD, message)).await;
                    }
                }
                Err(e) => return self.error(e).await,
            }
        }
    }

    /// Whether nothing more comes of what is followed.
    fn parts_over(&self, view: &TaskView) -> bool {
        match self.what {
            TaskRef::Task(_) => view.rests(),
            TaskRef::Part(id) => {
                let rests = |s: PartState| s.is_final() || s == PartState::Buried;
                view.parts.iter().any(|p| p.id == id && rests(p.state))
            }
        }
    }

    /// How new the task and its parts are, as this master knows them.
    fn revision(&self) -> Option<i64> {
        let board = self.ops.board.read();
        let task = board.tasks.get(&self.what.task())?;
        let parts = board.parts_of(task.value.id).map(|(_, part)| part.revision);
        Some(parts.fold(task.revision, i64::max))
    }

    /// The task as this master knows it, with those parts that are new to the caller.
    fn known(&self) -> Option<TaskView> {
        let board = self.ops.board.read();
        let task = &board.tasks.get(&self.what.task())?.value;
        let part = |id: PartId| board.parts.get(&id).map(|p| &p.value);
        let now = Timestamp::now();
        let mut view = TaskView::summary(task, part).with_rollout(task, part, now);
        let parts = board.parts_of(task.id).filter(|(id, _)| self.what.means(id.n));
        let views = parts.filter_map(|(id, p)| PartView::new(task, id, Some(&p.value)));
        view.parts = views.filter(|p| self.told.get(&p.id.n) != Some(&told(p))).collect();
        if let TaskRef::Part(id) = self.what {
            // Needed to tell whether it is over, new or not.
            view.parts =
                part(id).and_then(|p| PartView::new(task, id, Some(p))).into_iter().collect();
        }
        Some(view)
    }

    async fn parts(&mut self, parts: Vec<PartView>) -> Result<(), Gone> {
        for part in parts {
            let now = told(&part);
            if self.told.insert(part.id.n, now) != Some(now) {
                self.send(TaskEvent::Part(Box::new(part))).await?;
            }
        }
        Ok(())
    }

    async fn error(&self, e: ApiError) -> Result<(), Gone> {
        self.send(TaskEvent::Error(e.0)).await
    }

    async fn send(&self, event: TaskEvent) -> Result<(), Gone> {
        self.tx.send(event).await.map_err(|_| Gone)
    }
}
