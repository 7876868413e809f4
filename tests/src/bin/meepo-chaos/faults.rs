//! The faults: drawn from a seed, made to happen, and undone.

use crate::{net::Link, stage::Stage};
use anyhow::{Context, Result};
use clap::ValueEnum;
use fastrand::Rng;
use meepo_tests::secs;
use std::{collections::BTreeSet, fmt, time::Duration};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// SIGKILL to a master, a worker or an etcd member, which is started again later.
    Kill,
    /// A worker ends itself as by SIGKILL when its next run comes to a certain place in its
    /// life, and is started again later.
    Crash,
    /// SIGSTOP, and later SIGCONT.
    Freeze,
    /// SIGTERM, and a new start when it has ended.
    Restart,
    /// Nothing passes between two parties, in neither direction.
    Cut,
    /// Nothing passes from one party to another; the other way is open.
    CutOneWay,
    /// Connections between two parties break, and new ones are refused.
    Close,
    /// What passes between two parties comes late.
    Slow,
    /// One party is cut off from all others.
    Isolate,
    /// No byte goes on a worker's disk.
    Disk,
    /// The clock of a master or a worker is wrong.
    Clock,
    /// The lease of a worker is revoked while its runs go on.
    Lease,
    /// etcd forgets all but the newest revision.
    Compact,
    /// An etcd member rewrites its file and answers nothing meanwhile.
    Defrag,
    /// MongoDB is stopped in its tracks, and goes on later.
    MongoFreeze,
    /// MongoDB is killed, and started again later.
    MongoKill,
}

/// How often each kind is drawn.
const WEIGHTS: [(Kind, u32); 16] = [
    (Kind::Kill, 20),
    (Kind::Crash, 14),
    (Kind::Freeze, 14),
    (Kind::Restart, 8),
    (Kind::Cut, 12),
    (Kind::CutOneWay, 5),
    (Kind::Close, 5),
    (Kind::Slow, 6),
    (Kind::Isolate, 8),
    (Kind::Disk, 5),
    (Kind::Clock, 6),
    (Kind::Lease, 5),
    (Kind::Compact, 4),
    (Kind::Defrag, 3),
    (Kind::MongoFreeze, 4),
    (Kind::MongoKill, 3),
];

/// Places of [`Kind::Crash`]: the failpoints of the worker's debug builds.
const PLACES: [&str; 7] =
    ["decided", "begun", "spawned", "exited", "ended", "delivering", "delivered"];

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// Whom it happens to.
    pub(crate) of: String,
    /// The other party of a link.
    pub(crate) with: Option<String>,
    /// How much: milliseconds of [`Kind::Slow`], seconds of [`Kind::Clock`]; the place of
    /// [`Kind::Crash`].
    pub(crate) by: i64,
    /// How long after the beginning of its round it happens.
    pub(crate) after: Duration,
    /// How long it lasts.
    pub(crate) hold: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.kind.to_possible_value();
        write!(f, "{} {}", name.as_ref().map_or("", |n| n.get_name()), self.of)?;
        if let Some(with) = &self.with {
            write!(f, " and {with}")?;
        }
        match self.kind {
            Kind::Slow => write!(f, " by {} ms", self.by)?,
            Kind::Clock => write!(f, " by {} s", self.by)?,
            Kind::Crash => write!(f, " at {}", self.place())?,
            _ => {}
        }
        write!(f, " for {:.1} s", self.hold.as_secs_f64())
    }
}

/// What faults are drawn from.
#[derive(Debug)]
pub(crate) struct Draw {
    rng: Rng,
    weights: Vec<(Kind, u32)>,
    members: usize,
    masters: usize,
    workers: usize,
}

impl Draw {
    /// The faults of `seed`; only the kinds in `only`, unless that is empty.
    pub(crate) fn new(seed: u64, only: &[Kind], stage: &Stage) -> Self {
        let wanted = |kind: &Kind| only.is_empty() || only.contains(kind);
        let possible = |kind: &Kind| *kind != Kind::Clock || stage.clocks;
        let weights = WEIGHTS.into_iter().filter(|(k, _)| wanted(k) && possible(k)).collect();
        Self {
            rng: Rng::with_seed(seed),
            weights,
            members: stage.members.len(),
            masters: stage.masters.len(),
            workers: stage.workers.len(),
        }
    }

    /// The next round: one to four faults that may overlap, of different parties.
    pub(crate) fn round(&mut self) -> Vec<Fault> {
        let n = [1, 2, 2, 3, 4][self.rng.usize(..5)];
        let mut taken = BTreeSet::new();
        let mut faults = Vec::new();
        // Of one kind there may not be so many parties.
        for _ in 0..8 * n {
            if faults.len() == n {
                break;
            }
            let fault = self.fault();
            let parties: Vec<String> =
                [Some(fault.of.clone()), fault.with.clone()].into_iter().flatten().collect();
            // Of two for the same party the second could undo the first.
            if faults.is_empty() || parties.iter().all(|p| !taken.contains(p)) {
                taken.extend(parties);
                faults.push(fault);
            }
        }
        faults
    }

    fn fault(&mut self) -> Fault {
        let kind = self.kind();
        let after = Duration::from_millis(self.rng.u64(0..2000));
        // Mostly shorter than a lease, now and then longer than all that waits for one.
        let hold = match self.rng.u8(..10) {
            0..5 => self.rng.u64(300..3000),
            5..9 => self.rng.u64(3000..8000),
            _ => self.rng.u64(12_000..20_000),
        };
        let hold = Duration::from_millis(hold);
        let (of, with) = self.parties(kind);
        let by = match kind {
            Kind::Slow => self.rng.i64(50..900),
            // Back by as much as leaves no more than a hundred slots of a job without a record of
            // their own, ahead by as much as can be waited for.
            Kind::Clock if self.rng.bool() => -self.rng.i64(5..180),
            Kind::Clock => self.rng.i64(3..20),
            Kind::Crash => self.rng.i64(0..PLACES.len() as i64),
            _ => 0,
        };
        Fault { kind, of, with, by, after, hold }
    }

    fn kind(&mut self) -> Kind {
        let all: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.u32(..all.max(1));
        for (kind, weight) in &self.weights {
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => return *kind,
            }
        }
        Kind::Kill
    }

    fn member(&mut self) -> String {
        format!("etcd-{}", self.rng.usize(..self.members))
    }

    fn master(&mut self) -> String {
        format!("master-{}", self.rng.usize(..self.masters))
    }

    fn worker(&mut self) -> String {
        format!("worker-{}", self.rng.usize(..self.workers))
    }

    fn anybody(&mut self) -> String {
        match self.rng.u8(..10) {
            0..3 => self.member(),
            3..6 => self.master(),
            _ => self.worker(),
        }
    }

    fn parties(&mut self, kind: Kind) -> (String, Option<String>) {
        match kind {
            Kind::Kill | Kind::Freeze | Kind::Restart | Kind::Isolate => (self.anybody(), None),
            Kind::Cut | Kind::CutOneWay | Kind::Close | Kind::Slow => {
                let (a, b) = self.link();
                if kind == Kind::CutOneWay && self.rng.bool() { (b, Some(a)) } else { (a, Some(b)) }
            }
            Kind::Disk => (format!("worker-{}", crate::stage::ON_DISK), None),
            Kind::Clock if self.rng.u8(..4) == 0 => (self.master(), None),
            Kind::Clock | Kind::Lease | Kind::Crash => (self.worker(), None),
            Kind::Compact | Kind::Defrag => (self.member(), None),
            Kind::MongoFreeze | Kind::MongoKill => ("mongo".to_owned(), None),
        }
    }

    /// Two parties that talk to each other.
    fn link(&mut self) -> (String, String) {
        loop {
            let (a, b) = match self.rng.u8(..12) {
                0..4 => (self.worker(), self.member()),
                4..6 => (self.worker(), self.master()),
                6..8 => (self.master(), self.member()),
                8..10 => (self.member(), self.member()),
                // One does not talk to it.
                10 => match self.rng.usize(..self.workers) {
                    crate::stage::THROUGH_MASTER => continue,
                    i => (format!("worker-{i}"), "mongo".to_owned()),
                },
                _ => (self.master(), "mongo".to_owned()),
            };
            if a != b {
                return (a, b);
            }
        }
    }
}

impl Fault {
    /// Makes it happen.
    ///
    /// # Errors
    /// When it cannot be brought about; etcd may not answer what is asked of it because of
    /// another fault.
    pub(crate) async fn begin(&self, stage: &Stage) -> Result<()> {
        match self.kind {
            Kind::Kill => stage.process(&self.of).kill9(),
            Kind::Crash => {
                stage.process(&self.of).restart_with(&[("MEEPO_FAILPOINT", self.place())]);
            }
            Kind::Freeze => stage.process(&self.of).stop(),
            Kind::Restart => {
                let process = stage.process(&self.of);
                process.term();
                process.wait_exit(secs(60)).await;
            }
            Kind::Cut | Kind::CutOneWay | Kind::Close | Kind::Slow | Kind::Isolate => {
                self.link(stage, Some(self.state()));
            }
            Kind::Disk => stage.fill_disk(true)?,
            Kind::Clock => stage.set_clock(&self.of, self.by)?,
            Kind::Lease => self.revoke(stage).await?,
            Kind::Compact => {
                let text = stage.etcdctl(self.member(), &["get", "/", "-w", "json"]).await?;
                let text = text.split_once("\"revision\":").context("etcd's revision")?.1;
                let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
                stage.etcdctl(self.member(), &["compact", &digits]).await?;
            }
            Kind::Defrag => drop(stage.etcdctl(self.member(), &["defrag"]).await?),
            Kind::MongoFreeze => stage.mongo.pause(),
            Kind::MongoKill => stage.mongo.kill(),
        }
        Ok(())
    }

    /// Undoes it.
    ///
    /// # Errors
    /// When it cannot be undone.
    pub(crate) async fn end(&self, stage: &Stage) -> Result<()> {
        match self.kind {
            Kind::Kill | Kind::Crash | Kind::Restart => stage.process(&self.of).restart(),
            Kind::Freeze => stage.process(&self.of).cont(),
            Kind::Cut | Kind::CutOneWay | Kind::Close | Kind::Slow | Kind::Isolate => {
                self.link(stage, None);
            }
            Kind::Disk => stage.fill_disk(false)?,
            Kind::Clock => stage.set_clock(&self.of, 0)?,
            Kind::Lease | Kind::Compact | Kind::Defrag => {}
            Kind::MongoFreeze => stage.mongo.resume(),
            Kind::MongoKill => stage.mongo.restart().await,
        }
        Ok(())
    }

    /// Whether it keeps a worker from ending its own runs.
    pub(crate) fn disables(&self) -> bool {
        matches!(self.kind, Kind::Kill | Kind::Crash | Kind::Freeze)
            && self.of.starts_with("worker")
    }

    fn place(&self) -> &'static str {
        usize::try_from(self.by).ok().and_then(|i| PLACES.get(i)).copied().unwrap_or_default()
    }

    fn member(&self) -> usize {
        self.of.rsplit_once('-').and_then(|(_, i)| i.parse().ok()).unwrap_or(0)
    }

    fn state(&self) -> Link {
        match self.kind {
            Kind::Slow => Link::Slow(Duration::from_millis(self.by.unsigned_abs())),
            Kind::Close => Link::Closed,
            _ => Link::Cut,
        }
    }

    fn link(&self, stage: &Stage, state: Option<Link>) {
        let others = match &self.with {
            Some(with) => vec![with.clone()],
            None => stage.parties().into_iter().filter(|p| *p != self.of).collect(),
        };
        for other in &others {
            stage.net.set(&self.of, other, state);
            if self.kind != Kind::CutOneWay {
                stage.net.set(other, &self.of, state);
            }
        }
    }

    async fn revoke(&self, stage: &Stage) -> Result<()> {
        let node = stage.workers.iter().find(|w| w.name == self.of).context("a worker")?;
        let key = format!("/agent/health/{}", node.node);
        let mut refused = None;
        // Any member does; another fault may have one of them.
        for member in 0..stage.members.len() {
            match stage.etcdctl(member, &["get", &key, "-w", "json"]).await {
                Ok(text) => {
                    let Some((_, rest)) = text.split_once("\"lease\":") else { return Ok(()) };
                    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    let lease = format!("{:x}", digits.parse::<i64>()?);
                    stage.etcdctl(member, &["lease", "revoke", &lease]).await?;
                    return Ok(());
                }
                Err(e) => refused = Some(e),
            }
        }
        Err(refused.context("an etcd member")?)
    }
}
