//! What masters ask each other.

use crate::{error::ApiError, ops::Ops};
use meepo_core::{error::Invalid, id::Name, node::Live};
use meepo_proto::internal::{self as pb, masters_server::Masters as Service};
use tonic::{Request, Response, Status};

pub(super) struct Masters {
    pub(super) ops: Ops,
}

#[tonic::async_trait]
impl Service for Masters {
    async fn live(
        &self,
        request: Request<pb::LiveRequest>,
    ) -> Result<Response<pb::LiveResponse>, Status> {
        let names = request.into_inner().nodes;
        let nodes: Result<Vec<_>, Invalid> = names.iter().map(|n| Name::new(n)).collect();
        let nodes = nodes.map_err(|e| Status::from(ApiError::from(e.at("nodes"))))?;
        let live = self.ops.live_here(&nodes)?;
        let nodes = live.into_iter().map(|(node, live)| pb::LiveNode {
            node: node.to_string(),
            at_ms: live.as_ref().map_or(0, |l| l.at.as_millisecond()),
            heartbeat: live.map(heartbeat),
        });
        Ok(Response::new(pb::LiveResponse { nodes: nodes.collect() }))
    }
}

fn heartbeat(live: Live) -> pb::Heartbeat {
    pb::Heartbeat {
        load1: live.load1,
        cpu_use: live.cpu_use,
        mem_total: live.mem_total,
        mem_free: live.mem_free,
        disk_total: live.disk_total,
        disk_free: live.disk_free,
        running_total: live.running,
        at_ms: live.clock_skew_ms.map_or(0, |skew| live.at.as_millisecond() + skew),
        ..Default::default()
    }
}
