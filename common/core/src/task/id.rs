//! How tasks and their parts are named.

use crate::{code::Code, error::Invalid, id::Name, input::from_text};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// The id of a task: a UUIDv7, so that ids sort by time of submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, format = "uuid"))]
#[serde(transparent)]
pub struct TaskId(pub Uuid);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for TaskId {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        s.parse().map(Self).map_err(|_| bad(s))
    }
}

fn bad(s: &str) -> Invalid {
    Invalid::new(
        Code::BAD_NAME,
        "id",
        format!("{s:?} is not the id of a task or of a part of one"),
        "a UUID as printed by `meepo task list`, for a part with its number after a dot",
    )
}

/// The id of a part: that of its task, a dot, and its number from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartId {
    /// The task.
    pub task: TaskId,
    /// Which of its parts, from 1.
    pub n: u32,
}

impl PartId {
    /// The id as a name: the `job` of the part's runs.
    pub fn name(self) -> Name {
        // 36 characters of the UUID, a dot and ten digits at most.
        Name::new(&self.to_string()).unwrap_or_else(|_| unreachable!("digits, dots and dashes"))
    }
}

impl fmt::Display for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.task, self.n)
    }
}

impl FromStr for PartId {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let (task, n) = s.split_once('.').ok_or_else(|| bad(s))?;
        let digits = n.bytes().all(|b| b.is_ascii_digit()) && !n.starts_with('0');
        let n = n.parse().ok().filter(|_| digits).ok_or_else(|| bad(s))?;
        Ok(Self { task: task.parse().map_err(|_| bad(s))?, n })
    }
}

impl Serialize for PartId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PartId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        from_text(d)
    }
}

/// A task, or one part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskRef {
    /// All of it.
    Task(TaskId),
    /// One part.
    Part(PartId),
}

impl TaskRef {
    /// The task.
    pub fn task(self) -> TaskId {
        match self {
            Self::Task(id) => id,
            Self::Part(id) => id.task,
        }
    }

    /// Whether part `n` of the task is meant.
    pub fn means(self, n: u32) -> bool {
        match self {
            Self::Task(_) => true,
            Self::Part(part) => part.n == n,
        }
    }
}

impl fmt::Display for TaskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(id) => id.fmt(f),
            Self::Part(id) => id.fmt(f),
        }
    }
}

impl FromStr for TaskRef {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        match s.contains('.') {
            true => s.parse().map(Self::Part),
            false => s.parse().map(Self::Task),
        }
    }
}
