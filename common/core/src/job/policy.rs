//! What a job's fields may say: executors and policies.

use crate::{code::Code, error::Invalid, input::from_text};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What turns `cmd` into a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Executor {
    /// `bash -c CMD ARGS…`
    #[default]
    Bash,
    /// `sh -c CMD ARGS…`
    Sh,
    /// The program `CMD` with the arguments `ARGS…`; no shell.
    Exec,
    /// `python3 -c CMD ARGS…`
    Python,
    /// A request to the URL `CMD`, made by the worker; no process.
    Http,
}

impl Executor {
    /// Every executor, for messages and documentation.
    pub const ALL: [Executor; 5] = [Self::Bash, Self::Sh, Self::Exec, Self::Python, Self::Http];

    /// The name as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Sh => "sh",
            Self::Exec => "exec",
            Self::Python => "python",
            Self::Http => "http",
        }
    }
}

impl std::fmt::Display for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Executor {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|e| e.as_str() == s).ok_or_else(|| {
            Invalid::new(
                Code::UNKNOWN_EXECUTOR,
                "executor",
                format!("unknown executor {s:?}"),
                "one of bash, sh, exec, python, http",
            )
        })
    }
}

/// Whether a job's schedule is followed. `pause` keeps the job and starts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// The schedule is followed.
    #[default]
    Running,
    /// The schedule is not followed; slots that pass are not made up for.
    Pause,
}

/// On how many of the matching nodes a slot runs. Written `each`, `once` or `any(3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// On every matching node.
    #[default]
    Each,
    /// On exactly one of them, whichever claims the slot.
    Once,
    /// On so many of them; which ones stays the same while they take work.
    Any(u32),
}

/// The largest number in `any(N)`.
pub const MAX_ANY: u32 = 100_000;

impl std::fmt::Display for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Each => f.pad("each"),
            Self::Once => f.pad("once"),
            Self::Any(n) => write!(f, "any({n})"),
        }
    }
}

impl std::str::FromStr for Placement {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let number = |n: &str| n.trim().parse().ok().filter(|n| (1..=MAX_ANY).contains(n));
        let any = |s: &str| {
            let n = s.strip_prefix("any")?;
            match n.strip_prefix('(') {
                Some(n) => number(n.strip_suffix(')')?),
                // `any 3`, as people say it.
                None => number(n.strip_prefix(' ')?),
            }
        };
        match s {
            "each" => Ok(Self::Each),
            "once" => Ok(Self::Once),
            _ => any(s).map(Self::Any).ok_or_else(|| {
                Invalid::new(
                    Code::BAD_VALUE,
                    "placement",
                    format!("{s:?} is no placement"),
                    "each, once or any(N) with N from 1 to 100000",
                )
            }),
        }
    }
}

impl Serialize for Placement {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Placement {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        from_text(d)
    }
}

/// What happens when a run is to start while others of the same job are active on the
/// same node. Written `forbid`, `allow`, `replace`, `queue`, `queue(5)` or `max(3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Concurrency {
    /// The new one is skipped and recorded as skipped.
    #[default]
    Forbid,
    /// All run.
    Allow,
    /// The earlier run is killed, then the new one starts.
    Replace,
    /// One runs and at most so many wait for it, in order; more are skipped.
    Queue(u32),
    /// At most so many run at the same time; more are skipped.
    Max(u32),
}

/// The largest number in `queue(N)` and `max(N)`.
pub const MAX_CONCURRENCY: u32 = 1_000;

impl std::fmt::Display for Concurrency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Forbid => f.pad("forbid"),
            Self::Allow => f.pad("allow"),
            Self::Replace => f.pad("replace"),
            Self::Queue(1) => f.pad("queue"),
            Self::Queue(n) => write!(f, "queue({n})"),
            Self::Max(n) => write!(f, "max({n})"),
        }
    }
}

impl std::str::FromStr for Concurrency {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let number = |name: &str| {
            let n = s.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')?;
            n.trim().parse().ok().filter(|n| (1..=MAX_CONCURRENCY).contains(n))
        };
        match s {
            "forbid" => Ok(Self::Forbid),
            "allow" => Ok(Self::Allow),
            "replace" => Ok(Self::Replace),
            "queue" => Ok(Self::Queue(1)),
            _ => number("queue")
                .map(Self::Queue)
                .or_else(|| number("max").map(Self::Max))
                .ok_or_else(|| {
                    Invalid::new(
                        Code::BAD_VALUE,
                        "concurrency",
                        format!("{s:?} is no policy"),
                        "forbid, allow, replace, queue, queue(N) or max(N) with N from 1 to 1000",
                    )
                }),
        }
    }
}

impl Serialize for Concurrency {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Concurrency {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        from_text(d)
    }
}

/// What becomes of a claimed run whose node is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnNodeLoss {
    /// It is recorded as lost.
    #[default]
    Fail,
    /// It is recorded as lost, and its slot is run again on another node.
    Rerun,
}

/// Which bytes of a run's output are kept when it writes more than `output_limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum OutputKeep {
    /// The first.
    #[default]
    Head,
    /// The last; they are shown when the run has ended.
    Tail,
    /// Half of them the first, half the last.
    Both,
}

/// What happens to slots that passed while the worker could not run them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Misfire {
    /// They are recorded as missed.
    #[default]
    Skip,
    /// The latest runs now, the others are recorded as missed.
    Once,
    /// All run now, oldest first, up to `misfire_cap`; the others are recorded as missed.
    All,
}
