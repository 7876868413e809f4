//! A master that does not lead hands what needs the workers' sessions to the one that
//! does.

use super::{ExecItem, FollowItem, Host, LiveNodes, Ops};
use crate::{
    error::{ApiError, ApiResult},
    grpc::convert,
    sessions::live_from,
};
use meepo_core::{
    api::{ExecStreamRequest, HostAnswer},
    code::Code,
    id::{Name, NodeId, RunId},
};
use meepo_proto::{
    internal::{self, masters_client::MastersClient},
    v1::{self as pb, exec_client::ExecClient, exec_event, output_event, runs_client::RunsClient},
};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

/// Set on forwarded calls, so that two masters who both think that the other leads do
/// not send a call back and forth.
pub const FORWARDED: &str = "meepo-forwarded";
const BACKLOG: usize = 256;
/// How long the leader may take to tell how the hosts are.
const LIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest such answer: some hundred bytes a node.
const MAX_LIVE: usize = 64 << 20;

impl Ops {
    /// Runs a command wherever the leader is.
    pub async fn exec_anywhere(
        &self,
        hosts: Vec<String>,
        request: &ExecStreamRequest,
    ) -> ApiResult<mpsc::Receiver<ExecItem>> {
        if self.term().is_some() {
            return self.exec(hosts, request);
        }
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
        let mut client = ExecClient::new(self.leader_channel()?);
        let mut events = client.run(forwarded(message)).await.map_err(broken)?.into_inner();
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

    pub(super) async fn follow_at_leader(
        &self,
        run_id: RunId,
        after: Option<u64>,
    ) -> ApiResult<mpsc::Receiver<FollowItem>> {
        let request = pb::OutputRequest { run_id: run_id.to_string(), after, follow: true };
        let mut client = RunsClient::new(self.leader_channel()?);
        let mut events = client.output(forwarded(request)).await.map_err(broken)?.into_inner();
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
                    Err(status) => FollowItem::Error(broken(status)),
                };
                let last = !matches!(item, FollowItem::Output(_));
                if tx.send(item).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(rx)
    }

    /// How the hosts are that have a session with the leader.
    pub(super) async fn live_at_leader(&self, nodes: &[NodeId]) -> ApiResult<LiveNodes> {
        let request =
            internal::LiveRequest { nodes: nodes.iter().map(NodeId::to_string).collect() };
        let client = MastersClient::new(self.leader_channel()?);
        let mut client = client.max_decoding_message_size(MAX_LIVE);
        let asked = tokio::time::timeout(LIVE_TIMEOUT, client.live(forwarded(request))).await;
        let late = |_| ApiError::new(Code::NO_LEADER, "the leading master does not answer");
        let answer = asked.map_err(late)?.map_err(broken)?.into_inner();
        let live = answer.nodes.into_iter().filter_map(|n| {
            let at = jiff::Timestamp::from_millisecond(n.at_ms).ok()?;
            let live = n.heartbeat.map(|beat| live_from(&beat, at));
            Some((Name::new(&n.node).ok()?, live))
        });
        Ok(live.collect())
    }

    fn leader_channel(&self) -> ApiResult<Channel> {
        let no_leader = || ApiError::new(Code::NO_LEADER, Code::NO_LEADER.meaning());
        let (leader, _) = self.leadership.borrow().leader.clone().ok_or_else(no_leader)?;
        let endpoint = Endpoint::from_shared(leader.grpc).map_err(|_| no_leader())?;
        // Without keep-alive a leader that lost its power would be waited for without end.
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(3))
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .tcp_nodelay(true);
        Ok(endpoint.connect_lazy())
    }
}

fn forwarded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
    request
}

fn broken(status: Status) -> ApiError {
    let known = status.metadata().get("meepo-code").and_then(|v| v.to_str().ok()?.parse().ok());
    let code = known.map_or(Code::NO_LEADER, Code);
    ApiError::new(code, status.message())
}

fn unknown_outcome() -> ApiError {
    ApiError::new(Code::UNKNOWN_OUTCOME, "the connection to the leading master broke")
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
