//! Named locks and semaphores that runs need: what a job says of them.

use crate::{code::Code, duration::HumanDuration, error::Invalid, id::Name};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a run waits for its lock if the job does not say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(3600);
/// Most permits a lock may have.
pub const MAX_PERMITS: u32 = 1_000;

/// A lock in the cluster that each run of a job holds while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LockSpec {
    /// Its name; jobs that name the same lock share it.
    pub name: Name,
    /// How many runs may hold it at the same time. Default 1. Jobs that share a lock
    /// should agree on this.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub permits: u32,
    /// How long a run waits for it before it is skipped. Default 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<HumanDuration>,
}

fn one() -> u32 {
    1
}

fn is_one(n: &u32) -> bool {
    *n == 1
}

impl LockSpec {
    /// How long a run waits for it.
    pub fn wait(&self) -> Duration {
        self.wait.map_or(DEFAULT_WAIT, |w| w.0)
    }

    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        if (1..=MAX_PERMITS).contains(&self.permits) {
            return Ok(());
        }
        let problem = format!("{} permits", self.permits);
        Err(Invalid::new(Code::BAD_VALUE, "lock.permits", problem, "1 to 1000"))
    }
}
