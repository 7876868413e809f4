//! Runs that have survived the last life of this worker.

use super::{Agent, Report, waits::promise};
use crate::recover::Survivor;
use jiff::Timestamp;
use meepo_core::run::RunRecord;
use tracing::debug;

impl Agent {
    /// Takes them in before anything starts: they are active, and what would overlap with
    /// them follows the policy of its job. They take places, beyond the limit if need be.
    pub fn adopt(&mut self, survivors: Vec<Survivor>) {
        for Survivor { plan, record, running } in survivors {
            let (run_id, engine, reports) =
                (plan.run_id, self.engine.clone(), self.reports.clone());
            let place = self.places.clone().try_acquire_owned().ok();
            debug!(%run_id, job = ?plan.job, "a surviving run is followed");
            // At once: who asks for the run, or wants it killed, is to find it.
            engine.registry.enter(&record);
            if let Some(job) = &plan.job {
                self.overlap.adopt(job, run_id);
            }
            self.tasks.spawn(async move {
                let again = |ended: &RunRecord| promise(&plan, ended, Timestamp::now());
                let over = engine.attend(&plan.assignment, record, running, again).await;
                drop(place);
                if let Some(job) = plan.job {
                    let next = over.and_then(|over| over.next);
                    let _ = reports.send(Report::Ended { job, run_id, next }).await;
                }
            });
        }
    }
}
