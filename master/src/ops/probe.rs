//! Synchronous commands as they are asked for: on a target or on hosts, perhaps only on
//! those where a probe succeeds.

use super::{
    ExecItem, Ops,
    exec::{BACKLOG, check, note},
};
use crate::{
    auth::{acting_for, current},
    error::{ApiError, ApiResult},
};
use meepo_core::{
    api::{ExecStreamRequest, HostAnswer},
    code::Code,
    error::Invalid,
    job::Executor,
    target::Target,
};
use std::collections::{HashMap, HashSet};
use tokio::sync::mpsc;
use tracing::Instrument;

/// Bytes of a probe's output that are told.
const MAX_SAID: usize = 4096;

impl Ops {
    /// Runs a request on `hosts`, or on those its target means if there are none.
    /// With a probe, that runs on all of them first, and the command on those where it
    /// exits with 0, at most as many as the target's limit.
    pub async fn exec_request(
        &self,
        hosts: Vec<String>,
        request: &ExecStreamRequest,
    ) -> ApiResult<mpsc::Receiver<ExecItem>> {
        note(&hosts, request);
        let (target, limit) = match hosts.is_empty() {
            true => {
                let target = Target::parse(&request.target)?;
                match request.probe {
                    // The limit is for those that pass.
                    Some(_) => target.without_limit(),
                    None => (target, None),
                }
            }
            false => return self.exec_named(hosts, request).await,
        };
        let hosts = self.resolve(&target).await?;
        match &request.probe {
            Some(probe) => self.exec_probed(hosts, limit.map(Into::into), probe, request).await,
            None => self.exec_anywhere(hosts, request).await,
        }
    }

    async fn exec_named(
        &self,
        hosts: Vec<String>,
        request: &ExecStreamRequest,
    ) -> ApiResult<mpsc::Receiver<ExecItem>> {
        match &request.probe {
            Some(probe) => self.exec_probed(hosts, None, probe, request).await,
            None => self.exec_anywhere(hosts, request).await,
        }
    }

    async fn exec_probed(
        &self,
        hosts: Vec<String>,
        limit: Option<usize>,
        probe: &str,
        request: &ExecStreamRequest,
    ) -> ApiResult<mpsc::Receiver<ExecItem>> {
        if probe.trim().is_empty() {
            let expected = "a script whose exit status selects, such as `test -e /srv/data`";
            return Err(Invalid::new(Code::EMPTY_COMMAND, "probe", "empty", expected).into());
        }
        // Nobody is asked for a command that would be refused in the end.
        let command =
            (!request.cmd.is_empty()).then(|| ExecStreamRequest { probe: None, ..request.clone() });
        if let Some(command) = &command {
            check(command)?;
        }
        let probing = ExecStreamRequest {
            cmd: probe.to_owned(),
            args: Vec::new(),
            executor: Executor::Bash,
            probe: None,
            ..request.clone()
        };
        let answers = self.exec_anywhere(hosts.clone(), &probing).await?;
        let (tx, rx) = mpsc::channel(BACKLOG);
        let ops = self.clone();
        let probing = async move {
            let probed = ops.probe(hosts, limit, command, answers, &tx).await;
            if let Err(e) = probed {
                // Who asked may be gone.
                let _ = tx.send(ExecItem::Error(e)).await;
            }
        };
        // The command is asked for by who has asked for the probe.
        tokio::spawn(acting_for(current(), probing).in_current_span());
        Ok(rx)
    }

    /// Waits for the probes' answers and runs the command on the hosts that passed.
    async fn probe(
        &self,
        mut hosts: Vec<String>,
        limit: Option<usize>,
        command: Option<ExecStreamRequest>,
        mut answers: mpsc::Receiver<ExecItem>,
        tx: &mpsc::Sender<ExecItem>,
    ) -> ApiResult<()> {
        let mut said: HashMap<String, Vec<u8>> = HashMap::new();
        let mut passed = HashSet::new();
        // Whoever goes away drops the receiver, and so ends what runs.
        while let Some(item) = or_gone(tx, answers.recv()).await {
            match item {
                ExecItem::Output(host, chunk) => {
                    let said = said.entry(host).or_default();
                    let room = MAX_SAID - said.len().min(MAX_SAID);
                    said.extend(chunk.data.iter().take(room));
                }
                ExecItem::End(answer, run) => {
                    if answer.retcode.is_ok() {
                        passed.insert(answer.host.clone());
                    }
                    let said = said.remove(&answer.host).unwrap_or_default();
                    let data = run.is_some().then(|| String::from_utf8_lossy(&said).into_owned());
                    let answer = HostAnswer { data, ..answer };
                    if tx.send(ExecItem::Probe(answer, run)).await.is_err() {
                        return Ok(());
                    }
                }
                ExecItem::Error(e) => return Err(e),
                ExecItem::Start(_) | ExecItem::Probe(..) | ExecItem::Chosen(_) => {}
            }
        }
        hosts.retain(|host| passed.remove(host));
        hosts.truncate(limit.unwrap_or(usize::MAX));
        if tx.send(ExecItem::Chosen(hosts.clone())).await.is_err() {
            return Ok(());
        }
        let Some(command) = command else { return Ok(()) };
        if hosts.is_empty() {
            return Err(ApiError::new(Code::NO_TARGET, "no node passed the probe"));
        }
        let mut items = self.exec_anywhere(hosts, &command).await?;
        while let Some(item) = or_gone(tx, items.recv()).await {
            if tx.send(item).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// What comes next; nothing once nobody listens any more.
async fn or_gone<T>(
    tx: &mpsc::Sender<ExecItem>,
    next: impl Future<Output = Option<T>>,
) -> Option<T> {
    tokio::select! {
        () = tx.closed() => None,
        next = next => next,
    }
}
