//! Synchronous commands: straight to the workers over their sessions, unqueued, with
//! one answer for every host.

use super::{
    Ops,
    live::{LiveNodes, overlay},
};
use crate::{
    audit,
    error::{ApiError, ApiResult},
    sessions::{Event, Subscription},
};
use meepo_core::{
    api::{ExecStreamRequest, HostAnswer},
    code::Code,
    duration::HumanDuration,
    error::Invalid,
    id::{Name, NodeId, RunId},
    job::Assignment,
    run::{OutputChunk, RunRecord, RunState},
    target::Target,
};
use meepo_runtime::telemetry::trace;
use std::{collections::HashSet, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tracing::info;
use uuid::Uuid;

/// Longest time a command may take unless asked otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time beyond the command's own that a host gets to answer: its kill plan takes three
/// seconds, the rest is the way there and back.
const SLACK: Duration = Duration::from_secs(8);
/// Items on their way to the caller.
pub(super) const BACKLOG: usize = 256;

/// A host that is asked.
#[derive(Debug, Clone)]
pub struct Host {
    /// As the caller names it.
    pub host: String,
    /// The run; none for a host that is unknown or away.
    pub run_id: Option<RunId>,
}

/// What the caller is told.
#[derive(Debug)]
pub enum ExecItem {
    /// Who will answer.
    Start(Vec<Host>),
    /// A host's output.
    Output(String, OutputChunk),
    /// A host's answer; every host gives one.
    End(HostAnswer, Option<Box<RunRecord>>),
    /// A host's answer to the probe, with what the probe wrote.
    Probe(HostAnswer, Option<Box<RunRecord>>),
    /// The hosts that passed the probe, up to the limit.
    Chosen(Vec<String>),
    /// The request broke off.
    Error(ApiError),
}

/// What a request is about, for the audit.
pub(super) fn note(hosts: &[String], request: &ExecStreamRequest) {
    match hosts {
        [] => audit::object_at_first("target", &request.target),
        [one] => audit::object_at_first("node", one),
        several => audit::object_at_first("hosts", several.join(",")),
    }
    audit::detail("cmd", &request.cmd);
    audit::detail("executor", request.executor);
    for (key, value) in [("user", &request.user), ("probe", &request.probe)] {
        if let Some(value) = value {
            audit::detail(key, value);
        }
    }
}

/// A host with where it leads.
enum Place {
    Ready(String, RunId, Subscription),
    Refused(String, Code),
}

impl Ops {
    /// The hosts a target means, in its order: those that match, and then those named that
    /// do not exist.
    pub async fn resolve(&self, target: &Target) -> ApiResult<Vec<String>> {
        self.fleet_known()?;
        let live = match target.asks_for_live_facts() {
            true => self.live(&[]).await?,
            false => LiveNodes::new(),
        };
        let mut nodes = self.view.read().all_nodes_now();
        overlay(&mut nodes, &live);
        let meant = target.select(nodes.values()).into_iter().map(|n| n.id.to_string());
        let unknown = target.ids().into_iter().filter(|id| !nodes.contains_key(id));
        let hosts: Vec<String> = meant.chain(unknown.map(|id| id.to_string())).collect();
        if hosts.is_empty() {
            let message = format!("target {target} matches no node");
            return Err(ApiError::new(Code::NO_TARGET, message));
        }
        Ok(hosts)
    }

    /// A master that has only just started does not know yet who there is.
    fn fleet_known(&self) -> ApiResult<()> {
        match self.view.changes().borrow().complete {
            true => Ok(()),
            false => Err(ApiError::new(Code::ETCD, "etcd has not been read yet")),
        }
    }

    /// Runs a command on hosts, each once. Items come until every host has answered; dropping the
    /// receiver kills what still runs. Only the leader can do this.
    pub fn exec(
        &self,
        hosts: Vec<String>,
        request: &ExecStreamRequest,
    ) -> ApiResult<mpsc::Receiver<ExecItem>> {
        let timeout = request.timeout.map_or(DEFAULT_TIMEOUT, |t| t.0);
        let mut assignment = assignment(request, timeout);
        assignment.validate()?;
        assignment.set_traceparent(trace::current());
        self.fleet_known()?;
        let mut named = HashSet::new();
        let hosts: Vec<String> = hosts.into_iter().filter(|h| named.insert(h.clone())).collect();
        let Some(term) = self.term() else {
            return Err(ApiError::new(Code::NO_LEADER, "this master does not lead"));
        };
        info!(term, hosts = hosts.len(), "synchronous command");
        let places: Vec<Place> =
            hosts.into_iter().map(|host| self.place(host, &assignment)).collect();
        let (tx, rx) = mpsc::channel(BACKLOG);
        let ops = self.clone();
        tokio::spawn(async move { ops.gather(places, timeout, tx).await });
        Ok(rx)
    }

    fn place(&self, host: String, assignment: &Assignment) -> Place {
        let known = |id: &NodeId| {
            let data = self.view.read();
            data.nodes.contains_key(id) || data.health.contains_key(id)
        };
        let Some(id) = Name::new(&host).ok().filter(known) else {
            return Place::Refused(host, Code::NO_SUCH_HOST);
        };
        let run_id = RunId(Uuid::now_v7());
        match self.sessions.exec(&id, run_id, assignment) {
            Some(subscription) => Place::Ready(host, run_id, subscription),
            None => Place::Refused(host, Code::HOST_OFFLINE),
        }
    }

    async fn gather(&self, places: Vec<Place>, timeout: Duration, tx: mpsc::Sender<ExecItem>) {
        let hosts = places
            .iter()
            .map(|p| match p {
                Place::Ready(host, run_id, _) => Host { host: host.clone(), run_id: Some(*run_id) },
                Place::Refused(host, _) => Host { host: host.clone(), run_id: None },
            })
            .collect();
        if tx.send(ExecItem::Start(hosts)).await.is_err() {
            self.kill_all(&places);
            return;
        }
        let deadline = Instant::now() + timeout + SLACK;
        let mut asked = tokio::task::JoinSet::new();
        for place in places {
            match place {
                Place::Refused(host, code) => {
                    let answer = answer(host, code, code.meaning().to_owned());
                    let _ = tx.send(ExecItem::End(answer, None)).await;
                }
                Place::Ready(host, run_id, subscription) => {
                    let (ops, tx) = (self.clone(), tx.clone());
                    asked.spawn(async move {
                        ops.listen(host, run_id, subscription, deadline, tx).await;
                    });
                }
            }
        }
        while asked.join_next().await.is_some() {}
    }

    fn kill_all(&self, places: &[Place]) {
        for place in places {
            if let Place::Ready(host, run_id, _) = place
                && let Ok(node) = Name::new(host)
            {
                self.sessions.kill(&node, *run_id);
            }
        }
    }

    /// One host's part.
    async fn listen(
        &self,
        host: String,
        run_id: RunId,
        mut subscription: Subscription,
        deadline: Instant,
        tx: mpsc::Sender<ExecItem>,
    ) {
        let end = loop {
            let event = tokio::select! {
                event = subscription.next() => event,
                () = tokio::time::sleep_until(deadline) => break Err(Code::NO_ANSWER),
                () = tx.closed() => break Err(Code::KILLED),
            };
            match event {
                Event::Output(chunk) => {
                    if tx.send(ExecItem::Output(host.clone(), chunk)).await.is_err() {
                        break Err(Code::KILLED);
                    }
                }
                Event::Ended(record) => break Ok(record),
                Event::Unknown => break Err(Code::LOST),
                Event::Disconnected => break Err(Code::LOST),
            }
        };
        let item = match end {
            Ok(record) => {
                let code = record.code;
                let answer = answer(host, code, describe(&record));
                ExecItem::End(answer, Some(Box::new((*record).clone())))
            }
            Err(code) => {
                // Whoever asked is gone or waits no longer: nobody wants the result.
                if let Ok(node) = Name::new(&host) {
                    self.sessions.kill(&node, run_id);
                }
                ExecItem::End(answer(host, code, code.meaning().to_owned()), None)
            }
        };
        let _ = tx.send(item).await;
    }
}

fn answer(host: String, code: Code, message: String) -> HostAnswer {
    let resp = if code.is_ok() { "success" } else { "failed" };
    HostAnswer { host, resp: resp.to_owned(), retcode: code, message, data: None }
}

/// How a run ended, in words.
pub(crate) fn describe(record: &RunRecord) -> String {
    match (record.state, record.exit_code, record.signal, &record.message) {
        (RunState::Success, ..) => "success".into(),
        (RunState::Failed, Some(status), ..) if record.code == Code::EXIT_STATUS => {
            format!("exit status {status}")
        }
        (RunState::Failed, _, Some(signal), _) => format!("died by signal {signal}"),
        (_, _, _, Some(message)) => message.clone(),
        _ => record.code.meaning().to_owned(),
    }
}

/// Whether a command can be run as it stands.
pub(super) fn check(request: &ExecStreamRequest) -> Result<(), Invalid> {
    let timeout = request.timeout.map_or(DEFAULT_TIMEOUT, |t| t.0);
    assignment(request, timeout).validate().map(drop)
}

/// What a request runs.
pub(super) fn assignment_of(request: &ExecStreamRequest) -> Assignment {
    assignment(request, request.timeout.map_or(DEFAULT_TIMEOUT, |t| t.0))
}

fn assignment(request: &ExecStreamRequest, timeout: Duration) -> Assignment {
    Assignment {
        executor: request.executor,
        args: request.args.clone(),
        timeout: Some(HumanDuration(timeout)),
        env: request.env.clone(),
        cwd: request.cwd.clone(),
        user: request.user.clone(),
        ..Assignment::new(request.cmd.clone())
    }
}
