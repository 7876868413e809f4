//! A master that does not lead hands what needs the workers' sessions to the one that
//! does.

use super::{
    ExecItem, FollowItem, Host, LiveNodes, Ops,
    exec::note,
    leader::{broken, unknown_outcome},
};
use crate::{
    auth::{Auth, CALLER},
    error::{ApiError, ApiResult},
    grpc::convert,
    sessions::live_from,
};
use meepo_core::{
    api::{ExecStreamRequest, HostAnswer, RunRef},
    code::Code,
    id::{Name, NodeId, RunId},
};
use meepo_proto::{
    internal::{self, masters_client::MastersClient},
    v1::{self as pb, exec_client::ExecClient, exec_event, output_event, runs_client::RunsClient},
};
use meepo_runtime::telemetry::trace;
use tokio::sync::mpsc;
use tonic::{Request, transport::Channel};

/// Set on forwarded calls, so that two masters who both think that the other leads do
/// not send a call back and forth.
pub const FORWARDED: &str = "meepo-forwarded";
const BACKLOG: usize = 256;
/// Largest such answer: some hundred bytes a node.
const MAX_LIVE: usize = 64 << 20;

impl Ops {
    /// Runs a command wherever the leader is.
    pub async fn exec_anywhere(
        &self,
        hosts: Vec<String>,
        request: &ExecStreamRequest,
    ) -> ApiResult<mpsc::Receiver<ExecItem>> {
        note(&hosts, request);
        self.demand_exec(&hosts, request)?;
        if self.term().is_some() {
            return self.exec(hosts, request);
        }
        // Large and seldom needed: every request would carry it along otherwise.
        Box::pin(self.exec_at_leader(hosts, request)).await
    }

    async fn exec_at_leader(
        &self,
        hosts: Vec<String>,
        request: &ExecStreamRequest,
    ) -> ApiResult<mpsc::Receiver<ExecItem>> {
        let message = pb::ExecRequest {
            target: String::new(),
            cmd: request.cmd.clone(),
            args: request.args.clone(),
            executor: request.executor.to_string(),
            timeout: request.timeout.map(|t| t.to_string()).unwrap_or_default(),
            env: request.env.clone().into_iter().collect(),
            cwd: request.cwd.clone().unwrap_or_default(),
            user: request.user.clone().unwrap_or_default(),
            hosts,
            // The master that was asked does that itself.
            probe: String::new(),
        };
        let (channel, term) = self.leader_channel()?;
        let mut client = ExecClient::new(channel);
        let begun = self
            .leader
            .begin(term, client.run(forwarded(&self.auth, "/meepo.v1.Exec/Run", message)));
        let mut events = begun.await?.into_inner();
        let (tx, rx) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            loop {
                let item = tokio::select! {
                    () = tx.closed() => return,
                    event = events.message() => match event {
                        Ok(Some(event)) => exec_item(event),
                        Ok(None) => return,
                        // It had started: to ask again would run the command twice.
                        Err(_) => Some(ExecItem::Error(unknown_outcome())),
                    },
                };
                let last = matches!(item, Some(ExecItem::Error(_)));
                if let Some(item) = item
                    && tx.send(item).await.is_err()
                {
                    return;
                }
                if last {
                    return;
                }
            }
        });
        Ok(rx)
    }

    /// The connection to the leader and its term.
    fn leader_channel(&self) -> ApiResult<(Channel, i64)> {
        let leadership = self.leadership.borrow().clone();
        self.leader.channel(&leadership)
    }

    pub(super) async fn follow_at_leader(
        &self,
        run_id: RunId,
        after: Option<u64>,
    ) -> ApiResult<mpsc::Receiver<FollowItem>> {
        let request = pb::OutputRequest { run_id: run_id.to_string(), after, follow: true };
        let (channel, term) = self.leader_channel()?;
        let mut client = RunsClient::new(channel);
        let begun = self
            .leader
            .begin(term, client.output(forwarded(&self.auth, "/meepo.v1.Runs/Output", request)));
        let mut events = begun.await.map_err(only_read)?.into_inner();
        let (tx, rx) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    () = tx.closed() => return,
                    event = events.message() => event,
                };
                let item = match event {
                    Ok(Some(pb::OutputEvent { event: Some(output_event::Event::Output(o)) })) => {
                        FollowItem::Output(convert::chunk_from(run_id, o))
                    }
                    Ok(Some(pb::OutputEvent { event: Some(output_event::Event::End(run)) })) => {
                        match convert::run_from(run) {
                            Ok(record) => FollowItem::End(Box::new(record)),
                            Err(e) => FollowItem::Error(e.into()),
                        }
                    }
                    Ok(Some(_)) => continue,
                    Ok(None) => return,
                    Err(status) => FollowItem::Error(only_read(broken(&status))),
                };
                let last = !matches!(item, FollowItem::Output(_));
                if tx.send(item).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(rx)
    }

    /// Asks the leader to end a run.
    pub(super) async fn kill_at_leader(&self, run_id: RunId) -> ApiResult<RunRef> {
        let (channel, term) = self.leader_channel()?;
        let mut client = RunsClient::new(channel);
        let request = pb::RunId { run_id: run_id.to_string() };
        let request = forwarded(&self.auth, "/meepo.v1.Runs/Kill", request);
        let answer = self.leader.begin(term, client.kill(request)).await?.into_inner();
        let node = Name::new(&answer.node)?;
        Ok(RunRef { run_id, node })
    }

    /// How the hosts are that have a session with the leader.
    pub(super) async fn live_at_leader(&self, nodes: &[NodeId]) -> ApiResult<LiveNodes> {
        let request =
            internal::LiveRequest { nodes: nodes.iter().map(NodeId::to_string).collect() };
        let (channel, term) = self.leader_channel()?;
        let client = MastersClient::new(channel);
        let mut client = client.max_decoding_message_size(MAX_LIVE);
        let asked = Box::pin(self.leader.begin(
            term,
            client.live(forwarded(&self.auth, "/meepo.internal.v1.Masters/Live", request)),
        ))
        .await;
        let answer = asked.map_err(only_read)?.into_inner();
        let live = answer.nodes.into_iter().filter_map(|n| {
            let at = jiff::Timestamp::from_millisecond(n.at_ms).ok()?;
            let live = n.heartbeat.map(|beat| live_from(&beat, at));
            Some((Name::new(&n.node).ok()?, live))
        });
        Ok(live.collect())
    }
}

/// The failure of a call that changes nothing: it may be made again.
fn only_read(e: ApiError) -> ApiError {
    match e.0.code {
        Code::UNKNOWN_OUTCOME => {
            ApiError::new(Code::NO_LEADER, "the leading master does not answer")
        }
        _ => e,
    }
}

/// A call to the leader, which is told of whom this task works for.
fn forwarded<T>(auth: &Auth, method: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(word) = auth.word(method).and_then(|word| word.parse().ok()) {
        request.metadata_mut().insert(CALLER, word);
    }
    request.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
    if let Some(traceparent) = trace::current().and_then(|t| t.parse().ok()) {
        request.metadata_mut().insert("traceparent", traceparent);
    }
    request
}

fn exec_item(event: pb::ExecEvent) -> Option<ExecItem> {
    Some(match event.event? {
        exec_event::Event::Start(start) => ExecItem::Start(
            start
                .hosts
                .into_iter()
                .map(|h| Host { host: h.host, run_id: h.run_id.parse().ok() })
                .collect(),
        ),
        exec_event::Event::Output(o) => {
            // The run is known by its host; the id in the chunk is not shown.
            ExecItem::Output(o.host, convert::chunk_from(RunId(Default::default()), o.output?))
        }
        exec_event::Event::End(end) => {
            let run = end.run.and_then(|r| convert::run_from(r).ok()).map(Box::new);
            let answer = HostAnswer {
                host: end.host,
                resp: end.resp,
                retcode: Code(u16::try_from(end.retcode).unwrap_or(Code::BUG.0)),
                message: end.message,
                data: None,
            };
            ExecItem::End(answer, run)
        }
        // Nothing that is forwarded has a probe.
        exec_event::Event::Probe(_) | exec_event::Event::Chosen(_) => return None,
    })
}
