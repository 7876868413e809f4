//! What the API does, whatever the transport: HTTP and gRPC are thin layers over this.

mod exec;
mod follow;
mod forward;
mod history;
mod job_list;
mod job_view;
mod jobs;
mod join;
mod labels;
mod leader;
mod live;
mod may;
mod nodes;
mod notify;
mod probe;
mod runs;
mod spent;
mod tasks;
mod tree;
mod trigger;

pub(crate) use exec::describe;
pub use exec::{DEFAULT_TIMEOUT, ExecItem, Host};
pub use follow::{Feeds, FollowItem};
pub use forward::FORWARDED;
pub use job_list::JobFilter;
pub use join::Joining;
pub use leader::LeaderLink;
pub use live::LiveNodes;
pub use tasks::{KeyLease, Submitted, TaskFilter};

use crate::{
    audit::Audit,
    auth::Auth,
    events::Events,
    limits::Limits,
    metrics::{Dependency, Metrics},
    notify::Sender,
    sessions::Sessions,
    tasks::Board,
    view::View,
};
use meepo_coord::{Etcd, election::Leadership};
use meepo_core::breaker::State;
use meepo_logstore::LogStore;
use std::sync::Arc;
use tokio::sync::watch;

/// Everything operations need. Cloning is cheap.
#[derive(Clone)]
pub struct Ops {
    /// The connection to etcd.
    pub etcd: Etcd,
    /// Where runs are kept.
    pub store: Arc<dyn LogStore>,
    /// What is known of the fleet.
    pub view: View,
    /// What is known of tasks.
    pub board: Board,
    /// Most tasks that may be in etcd.
    pub tasks_limit: usize,
    /// What idempotency keys of tasks are bound to.
    pub key_lease: KeyLease,
    /// Streams of workers, while this master leads.
    pub sessions: Sessions,
    /// Runs that are followed at this master.
    pub feeds: Feeds,
    /// What happens in the fleet.
    pub events: Events,
    /// What sends notifications.
    pub sender: Arc<Sender>,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
    /// The way to the leader, while it is another master.
    pub leader: Arc<LeaderLink>,
    /// For nodes that join.
    pub joining: Arc<Joining>,
    /// How much is served at once.
    pub limits: Limits,
    /// Who may do what.
    pub auth: Auth,
    /// Who did what.
    pub audit: Audit,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Ops {
    /// This master's term, if it leads.
    pub fn term(&self) -> Option<i64> {
        self.leadership.borrow().term()
    }

    /// The term of the master that leads, as far as this one knows; else 0.
    pub(crate) fn known_term(&self) -> i64 {
        let leadership = self.leadership.borrow();
        let known = leadership.leader.as_ref().map(|(_, term)| *term);
        leadership.mine.or(known).unwrap_or_default()
    }

    /// Brings the gauges of the circuit breakers up to date.
    pub fn count_breakers(&self) {
        let states = [
            ("etcd", Some(self.etcd.breaker())),
            ("log_store", self.store.breaker()),
            ("leader", Some(self.leader.breaker())),
        ];
        for (of, state) in states {
            let figure = match state {
                None | Some(State::Closed) => 0,
                Some(State::HalfOpen) => 1,
                Some(State::Open) => 2,
            };
            self.metrics.breaker.get_or_create(&Dependency { of: of.into() }).set(figure);
        }
    }
}
