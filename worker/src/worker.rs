//! Puts the parts together and takes them down again.

use crate::{
    address,
    agent::{Agent, Outlets, Status},
    config::Config,
    cronid,
    custody::Custody,
    deliver::{self, Deliverer, Sink},
    disk,
    drain::{self, Asked, Drain, Stage},
    engine::{BRIEF, Engine},
    failpoint,
    guard::guard,
    health::{self, Identity, Publisher, Registration},
    http,
    http_run::Requests,
    inherited,
    link::MasterLink,
    metrics::Metrics,
    outcomes,
    process::{Cgroups, Leftovers, Runner, RunnerOptions, Surviving, take_in_orphans},
    progress::Progress,
    recover::recover,
    registry::Registry,
    secrets::Source,
    session::{self, Pulse},
    spent,
    state::{State, StateOptions},
    tasks::{self, Standing},
    trust::Trust,
    vitals::{Delivery, Vitals},
};
use anyhow::Context;
use jiff::Timestamp;
use meepo_coord::{
    Etcd,
    election::{self, Leadership},
    keys,
    lease::{self, LeaseState},
    watch,
};
use meepo_core::id::NodeId;
use meepo_runtime::{
    OnError, Tasks,
    tls::{Acceptor, Credentials, Protocol},
};
use std::{
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{Notify, mpsc, oneshot, watch as cell},
    time::timeout,
};
use tracing::{info, warn};

/// Longest time the end of all runs may take at shutdown: the default kill plan of a
/// run, and a little.
const RUNS_END: Duration = Duration::from_secs(8);
/// Longest time the last delivery may take.
const LAST_DELIVERY: Duration = Duration::from_secs(3);
/// Longest time the tasks may take to end.
const TASKS_END: Duration = Duration::from_secs(5);

/// What [`Worker::shutdown`] takes at the longest, roughly.
pub(crate) const LONGEST_SHUTDOWN: Duration = TASKS_END
    .saturating_mul(2)
    .saturating_add(RUNS_END)
    .saturating_add(LAST_DELIVERY)
    .saturating_add(health::LAST_WORD);

/// A worker that runs.
pub struct Worker {
    /// Its node id.
    pub node: NodeId,
    engine: Arc<Engine>,
    delivery: Arc<Delivery>,
    asked: cell::Sender<Asked>,
    stage: cell::Receiver<Option<Stage>>,
    /// Whether etcd may offer slots of this node for parts of tasks.
    offers: cell::Receiver<bool>,
    /// Takes no new work once it is shut down.
    intake: Tasks,
    /// Lives until the last record is delivered.
    base: Tasks,
}

impl Worker {
    /// Starts a worker. etcd, masters and the log store need not be reachable.
    ///
    /// # Errors
    /// When something local is wrong: the settings, the data directory, the port.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        failpoint::check()?;
        let node = match config.node.clone() {
            Some(node) => node,
            None => address::own_id(&config.etcd.endpoints).await?,
        };
        let listener = TcpListener::bind(config.metrics).await.with_context(|| {
            format!(
                "cannot listen on {} for metrics; choose another address with --metrics \
                 (MEEPO_METRICS)",
                config.metrics
            )
        })?;
        let credentials = config.tls.clone().map(Credentials::load).transpose()?;
        let shown = credentials.clone().filter(|_| config.metrics_tls);
        let acceptor = Acceptor::new(shown, Protocol::HttpMutual);
        let metrics = Arc::new(Metrics::default());
        let mut options = StateOptions::new(&config.data_dir);
        options.spool_limit = config.spool_limit;
        options.lost = metrics.spool_errors.clone();
        let state = tokio::task::spawn_blocking(move || State::open(&options)).await??;
        let cgroups = Cgroups::new(config.cgroup_root.as_deref(), &config.data_dir);
        let leftovers = Leftovers::new(cgroups.clone());
        let surviving =
            Surviving::new(&config.data_dir, config.cgroup_root.clone(), leftovers.clone());
        let survivors =
            recover(&state, &leftovers, &surviving).await.context("cannot read the journal")?;
        cgroups.clear(&survivors.iter().map(|s| s.record.run_id).collect());
        let etcd = Etcd::open(config.etcd.clone()).await?.counted(metrics.etcd());
        let me = Identity {
            node: node.clone(),
            instance: uuid::Uuid::now_v7().to_string(),
            started_at: Timestamp::now(),
            labels: config.labels.clone(),
            task_slots: config.task_slots,
            lease_ttl: config.lease_ttl,
        };
        info!(%node, etcd = ?config.etcd.endpoints, data_dir = %config.data_dir.display(), "worker starts");

        let (intake, base) = (Tasks::new(), Tasks::new());
        // Before the first run: what one leaves behind must not get out of sight.
        match take_in_orphans(base.token()) {
            Ok(reaping) => drop(base.spawn("orphans", OnError::Log, reaping)),
            Err(e) => warn!(error = %e, "cannot become the parent of what runs leave behind"),
        }
        let (lease_tx, lease) = cell::channel(LeaseState::None);
        let keeping = lease::keep(etcd.clone(), config.lease_ttl, lease_tx, base.token());
        base.spawn("lease", OnError::Shutdown, async {
            keeping.await;
            Ok(())
        });
        let (leader_tx, leadership) = cell::channel(Leadership::default());
        let observing = election::observe(etcd.clone(), leader_tx, base.token());
        base.spawn("leader watch", OnError::Shutdown, async {
            observing.await;
            Ok(())
        });
        let link = MasterLink::follow(leadership, credentials.clone());
        let sink = Arc::new(match &config.logs {
            Some(url) => {
                let pool = meepo_logstore::mongo::WORKER_POOL;
                let store = meepo_logstore::open_observed(url, pool, metrics.store()).await;
                Sink::Store(store.context("logs")?)
            }
            None => Sink::Master(link.clone()),
        });
        let registry = Registry::default();
        let vitals = Vitals {
            progress: Arc::new(Progress::default()),
            state: state.clone(),
            registry: registry.clone(),
            delivery: Arc::new(Delivery::default()),
            spool_limit: config.spool_limit,
        };
        base.spawn(
            "disk",
            OnError::Shutdown,
            disk::watch(state.clone(), config.data_dir.clone(), base.token()),
        );
        let cronid = Arc::new(cronid::Board::default());
        base.spawn(
            "cronid",
            OnError::Shutdown,
            cronid::write(etcd.clone(), node.clone(), lease.clone(), cronid.clone(), base.token()),
        );
        let spent = Arc::new(spent::Board::default());
        base.spawn(
            "spent jobs",
            OnError::Shutdown,
            spent::write(etcd.clone(), node.clone(), spent.clone(), base.token()),
        );
        base.spawn(
            "outcomes",
            OnError::Shutdown,
            outcomes::publish(state.clone(), etcd.clone(), node.clone(), base.token()),
        );
        base.spawn(
            "delivery",
            OnError::Shutdown,
            Deliverer {
                state: state.clone(),
                sink,
                node: node.clone(),
                metrics: metrics.clone(),
                delivery: vitals.delivery.clone(),
                spool_limit: config.spool_limit,
                max_age: config.spool_max_age,
                catchup_rate: config.catchup_rate,
            }
            .run(base.token()),
        );
        base.spawn(
            "metrics",
            OnError::Log,
            http::serve(listener, acceptor, metrics.clone(), vitals.clone(), base.token()),
        );
        let (asked, drains) = cell::channel(drain::remembered(&config.data_dir));
        let (heard, drain_known) = oneshot::channel();
        intake.spawn(
            "drain watch",
            OnError::Shutdown,
            drain::follow(
                etcd.clone(),
                node.clone(),
                config.data_dir.clone(),
                asked.clone(),
                heard,
                intake.token(),
            ),
        );
        let (stage_tx, stage) = cell::channel(None);
        base.spawn(
            "drain",
            OnError::Shutdown,
            drain::carry_out(
                drains.clone(),
                registry.clone(),
                vitals.progress.clone(),
                stage_tx,
                base.token(),
            ),
        );
        let trust = Trust::open(node.clone(), config.trust, state.clone(), metrics.clone()).await?;
        let engine = Arc::new(Engine {
            node: node.clone(),
            state,
            runner: Runner::new(RunnerOptions {
                cgroups: Some(cgroups),
                brief: BRIEF,
                ..RunnerOptions::default()
            })?,
            requests: Requests::default(),
            secrets: Source { dir: config.secrets_dir, command: config.secrets_command },
            surviving,
            registry,
            cronid,
            spent,
            trust,
            custody: Custody::new(node.clone(), me.instance.clone(), config.lease_ttl),
            cut_off: AtomicI64::new(0),
            metrics,
            drain: drains,
            etcd: etcd.clone(),
            tasks: Handle::current(),
            stop: base.token(),
        });

        let (status_tx, status) = cell::channel(Status::default());
        let (registration_tx, registration) = cell::channel(Registration::default());
        let outlets = Outlets {
            status: status_tx,
            progress: vitals.progress.clone(),
            registration: registration.clone(),
            lease: lease.clone(),
            lease_ttl: config.lease_ttl,
            late: None,
        };
        let mut agent =
            Agent::new(engine.clone(), etcd.clone(), config.max_running, outlets, intake.token())
                .await?;
        agent.adopt(survivors);
        let (batches_tx, batches) = mpsc::channel(64);
        let compare = Arc::new(Notify::new());
        let prefixes =
            vec![keys::assignments_of(&node), keys::triggers_of(&node), keys::kills_of(&node)];
        let watching = watch::watch(
            etcd.clone(),
            prefixes,
            watch::Options { asked: compare.clone(), ..watch::Options::default() },
            batches_tx,
            intake.token(),
        );
        let (tasks_may, tasks_known) = oneshot::channel();
        let (offers_tx, offers) = cell::channel(true);
        let standing = Standing { registration: registration.clone(), offers: offers.clone() };
        base.spawn(
            "tasks",
            OnError::Shutdown,
            tasks::run(
                engine.clone(),
                config.task_slots,
                standing,
                tasks_known,
                intake.token(),
                base.token(),
            ),
        );
        let stop = intake.token();
        intake.spawn("watch", OnError::Shutdown, async move {
            // A drained node takes nothing: so that is asked first.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = drain_known => {}
            }
            // The other one may have ended.
            let _ = tasks_may.send(());
            watching.await;
            Ok(())
        });
        intake.spawn("agent", OnError::Shutdown, agent.run(batches));
        base.spawn(
            "lease guard",
            OnError::Shutdown,
            guard(engine.clone(), lease.clone(), config.lease_ttl, base.token()),
        );
        let handing = inherited::hand_over(
            engine.clone(),
            me.instance.clone(),
            registration.clone(),
            intake.token(),
        );
        intake.spawn("claims of the last life", OnError::Log, handing);
        let pulse = Pulse::new(vitals.clone(), config.heartbeat);
        let delivery = vitals.delivery.clone();
        let publisher = Publisher {
            etcd,
            me: me.clone(),
            data_dir: config.data_dir.clone(),
            lease,
            status,
            vitals,
            drain: stage.clone(),
            registration: registration_tx,
            offers: offers_tx,
        };
        base.spawn("health", OnError::Shutdown, health::publish(publisher, intake.token()));
        intake.spawn(
            "session",
            OnError::Shutdown,
            session::keep(engine.clone(), me, pulse, compare, link, registration, intake.token()),
        );
        Ok(Self { node, engine, delivery, asked, stage, offers, intake, base })
    }

    /// Takes nothing new from now on. [`Worker::drained`] waits until nothing runs.
    pub fn drain(&self) {
        let now = Drain { requested_at: Timestamp::now(), deadline: None };
        self.asked.send_modify(|asked| asked.ending = asked.ending.or(Some(now)));
    }

    /// Waits until a drain has begun and nothing runs any more.
    pub async fn drained(&self) {
        let mut stage = self.stage.clone();
        // The sender ends with the worker, which is then drained in its way.
        let _ = stage.wait_for(|s| s.is_some_and(|s| s.done)).await;
    }

    /// Waits until a part fails that the worker cannot do without; answers which.
    pub async fn failed(&self) -> String {
        let (intake, base) = (self.intake.token(), self.base.token());
        tokio::select! {
            () = intake.cancelled() => {}
            () = base.cancelled() => {}
        }
        let failure = self.intake.failure().or_else(|| self.base.failure());
        failure.unwrap_or_else(|| "a task ended".into())
    }

    /// Takes nothing new, ends what runs, delivers what it can, and goes.
    pub async fn shutdown(mut self) {
        info!("worker shuts down");
        report(self.intake.shutdown(TASKS_END).await);
        // What is ended now would be given to this node again.
        let _ = timeout(health::LAST_WORD, self.offers.wait_for(|offers| !offers)).await;
        let active = self.engine.shut_down();
        if active > 0 {
            info!(active, "ending runs");
            let over = async {
                let mut tick = tokio::time::interval(Duration::from_millis(20));
                // Again each time: a run may just have been about to start.
                while self.engine.shut_down() > 0 {
                    tick.tick().await;
                }
            };
            if timeout(RUNS_END, over).await.is_err() {
                warn!(active = self.engine.registry.active().len(), "runs are left behind");
            }
        }
        let survive = self.engine.registry.active();
        if !survive.is_empty() {
            info!(runs = ?survive, "these go on without this worker");
        }
        deliver::flush(&self.engine.state, &self.delivery, LAST_DELIVERY).await;
        report(self.base.shutdown(TASKS_END).await);
        self.engine.state.close().await;
        info!("worker has ended");
    }
}

fn report(stuck: Vec<&'static str>) {
    if !stuck.is_empty() {
        warn!(tasks = ?stuck, "tasks did not end in time");
    }
}
