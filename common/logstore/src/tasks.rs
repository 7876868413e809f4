//! Tasks that are over: what every store keeps of one, and which ones are asked for.

use crate::StoreError;
use meepo_core::{
    id::Name,
    task::{TaskId, TaskState, TaskView},
};

/// Tasks on a page unless asked otherwise.
pub const DEFAULT_TASKS: u32 = 50;
/// Most tasks on a page; a higher limit is cut to it.
pub const MAX_TASKS: u32 = 1_001;
/// Largest task in bytes: MongoDB takes documents up to 16 MB.
pub const MAX_TASK_BYTES: usize = 14 * 1024 * 1024;

/// Which tasks to list. All filters must hold; an absent one holds for every task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskQuery {
    /// Tasks of this queue.
    pub queue: Option<Name>,
    /// Tasks in one of these states; empty means any.
    pub states: Vec<TaskState>,
    /// Tasks with smaller ids, which are older ones.
    pub before: Option<TaskId>,
    /// Most tasks: 1 to [`MAX_TASKS`], [`DEFAULT_TASKS`] if absent.
    pub limit: Option<u32>,
}

impl TaskQuery {
    /// The limit that holds.
    pub(crate) fn page_size(&self) -> u32 {
        self.limit.unwrap_or(DEFAULT_TASKS).clamp(1, MAX_TASKS)
    }

    /// The states asked for, each once; empty means any.
    pub(crate) fn distinct_states(&self) -> Vec<TaskState> {
        TaskState::ALL.into_iter().filter(|s| self.states.contains(s)).collect()
    }
}

/// A task as it is written: what is sought by, and the rest as JSON.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: [u8; 16],
    pub(crate) queue: Option<String>,
    pub(crate) state: &'static str,
    /// Milliseconds since 1970.
    pub(crate) ended_at: i64,
    /// Without its parts, for lists.
    pub(crate) summary: String,
    /// All of it.
    pub(crate) doc: String,
}

impl Row {
    /// Writes a task. One that is too large loses the memory of earlier runs of its parts:
    /// these stand in the log store by themselves.
    pub(crate) fn new(task: &TaskView) -> Result<Self, StoreError> {
        let refuse = |problem: String| StoreError::Refused {
            op: "keep task",
            problem: format!("task {}: {problem}", task.id),
            expected: format!("at most {MAX_TASK_BYTES} bytes of JSON"),
        };
        let json = |t: &TaskView| serde_json::to_string(t).map_err(|e| refuse(e.to_string()));
        let mut doc = json(task)?;
        if doc.len() > MAX_TASK_BYTES {
            let mut less = task.clone();
            for part in &mut less.parts {
                let last = part.runs.pop();
                part.runs = last.into_iter().collect();
            }
            doc = json(&less)?;
        }
        if doc.len() > MAX_TASK_BYTES {
            return Err(refuse(format!("{} bytes", doc.len())));
        }
        Ok(Self {
            id: *task.id.0.as_bytes(),
            queue: task.queue.as_ref().map(ToString::to_string),
            state: task.state.as_str(),
            ended_at: task.ended_at.unwrap_or(task.submitted_at).as_millisecond(),
            summary: json(&task.clone().without_parts())?,
            doc,
        })
    }
}
