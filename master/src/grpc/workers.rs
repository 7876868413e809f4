//! What workers call: their session, and the delivery of what happened.

use super::intake::Intake;
use crate::{
    error::ApiError,
    mismatches,
    ops::Ops,
    peer,
    sessions::{ORDERS, chunk_from},
};
use meepo_coord::records::decode;
use meepo_core::{
    code::Code,
    error::Invalid,
    id::{Name, NodeId, RunId},
    mismatch::{self, Kind},
    run::RunRecord,
};
use meepo_logstore::LogItem;
use meepo_proto::internal::{
    self as pb, item::Item, worker_frame::Frame, workers_server::Workers as Service,
};
use meepo_runtime::tls::Identity;
use std::{pin::Pin, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

pub(super) struct Workers {
    pub(super) ops: Ops,
    pub(super) intake: Intake,
    pub(super) stop: CancellationToken,
}

/// How long a new session may take to say whose it is.
const HELLO: Duration = Duration::from_secs(5);

type Orders = Pin<Box<dyn Stream<Item = Result<pb::MasterFrame, Status>> + Send>>;

#[tonic::async_trait]
impl Service for Workers {
    type SessionStream = Orders;

    async fn session(
        &self,
        request: Request<Streaming<pb::WorkerFrame>>,
    ) -> Result<Response<Orders>, Status> {
        let identity = identity(&request);
        let mut frames = request.into_inner();
        let first = tokio::time::timeout(HELLO, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let Some(pb::WorkerFrame { frame: Some(Frame::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first frame must be a hello"));
        };
        let node =
            Name::new(&hello.node).map_err(|e| Status::from(ApiError::from(e.at("node"))))?;
        speaks_for(identity.as_ref(), &node)?;
        // Asked last: a leadership that ends later ends the session with it.
        let Some(term) = self.ops.term() else {
            return Err(ApiError::new(Code::NO_LEADER, "this master does not lead").into());
        };
        let registered = {
            let data = self.ops.view.read();
            data.health.get(&node).map(|h| h.instance.clone())
        };
        // A worker that has just taken the node's id over comes again when the view has
        // heard of it too.
        if mismatch::two_sessions(&hello.instance, registered.as_deref()) {
            warn!(%node, instance = hello.instance, ?registered, "a session of another worker");
            mismatches::count(&self.ops.metrics, Kind::TwoSessions, 1);
            let why = format!("another worker process is registered as node {node}");
            return Err(Status::failed_precondition(why));
        }
        let (tx, rx) = mpsc::channel(ORDERS);
        let (id, over) = self.ops.sessions.connect(node.clone(), term, tx);
        self.count();
        let (ops, stop) = (self.ops.clone(), self.stop.clone());
        let sessions_gauge = self.ops.metrics.sessions.clone();
        tokio::spawn(async move {
            loop {
                let frame = tokio::select! {
                    () = stop.cancelled() => break,
                    // A newer session of the same node, or the end of the leadership.
                    () = over.cancelled() => break,
                    frame = frames.message() => frame,
                };
                match frame {
                    Ok(Some(frame)) => take(&ops, &node, id, frame),
                    Ok(None) => break,
                    Err(status) => {
                        debug!(%node, error = %status, "session broke");
                        break;
                    }
                }
            }
            ops.sessions.disconnect(&node, id);
            sessions_gauge.set(i64::try_from(ops.sessions.len()).unwrap_or(i64::MAX));
        });
        Ok(Response::new(Box::pin(futures::StreamExt::map(ReceiverStream::new(rx), Ok))))
    }

    async fn deliver(
        &self,
        request: Request<pb::DeliverRequest>,
    ) -> Result<Response<pb::DeliverResponse>, Status> {
        let identity = identity(&request);
        let request = request.into_inner();
        let _room = self.intake.enter(&self.ops, &request)?;
        let mut batch = Vec::with_capacity(request.items.len());
        for item in request.items {
            match item.item {
                Some(Item::Run(json)) => {
                    // Perhaps of a newer worker: another master may be able to read it.
                    let record: RunRecord =
                        decode(&json).map_err(|e| Status::unimplemented(e.to_string()))?;
                    speaks_for(identity.as_ref(), &record.node)?;
                    batch.push(LogItem::Run(record));
                }
                Some(Item::Output(output)) => {
                    let run_id: RunId =
                        output.run_id.parse().map_err(|e: Invalid| ApiError::from(e))?;
                    batch.extend(
                        output.chunks.into_iter().map(|c| LogItem::Output(chunk_from(run_id, c))),
                    );
                }
                // Of a newer worker: it must not be acknowledged unread.
                None => return Err(Status::unimplemented("an item of an unknown kind")),
            }
        }
        // Never closed.
        let _turn = self.intake.turns.acquire().await;
        self.ops.store.append(&batch).await.map_err(ApiError::from)?;
        self.ops.metrics.received.inc_by(batch.len() as u64);
        Ok(Response::new(pb::DeliverResponse {}))
    }
}

/// Who calls, where the connection tells.
fn identity<T>(request: &Request<T>) -> Option<Identity> {
    peer::of(request.extensions()).and_then(|peer| peer.identity.clone())
}

/// A node with a certificate speaks for itself alone.
fn speaks_for(identity: Option<&Identity>, node: &NodeId) -> Result<(), Status> {
    match identity {
        None => Ok(()),
        Some(Identity::Node(own)) if own == node.as_str() => Ok(()),
        Some(other) => {
            warn!(%node, identity = %other, "somebody speaks for another node");
            let message = format!("the certificate is of {other}, which does not speak for {node}");
            Err(ApiError::new(Code::DENIED, message).into())
        }
    }
}

impl Workers {
    fn count(&self) {
        let n = i64::try_from(self.ops.sessions.len()).unwrap_or(i64::MAX);
        self.ops.metrics.sessions.set(n);
    }
}

fn take(ops: &Ops, node: &NodeId, session: u64, frame: pb::WorkerFrame) {
    match frame.frame {
        Some(Frame::Output(output)) => ops.sessions.output(output),
        Some(Frame::Ended(ended)) => ops.sessions.ended(&ended),
        Some(Frame::UnknownRun(unknown)) => ops.sessions.unknown(&unknown.run_id),
        // Liveness is the stream's own.
        Some(Frame::Heartbeat(beat)) => ops.sessions.beat(node, session, beat),
        Some(Frame::Hello(_)) | None => {}
    }
}
