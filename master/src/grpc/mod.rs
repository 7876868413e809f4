//! The gRPC server: the public services, those for workers, health and reflection.

pub mod convert;
mod events;
mod history;
mod intake;
mod masters;
mod public;
mod tasks;
mod workers;

use crate::{limits, ops::Ops};
use axum::middleware;
use intake::Intake;
use meepo_proto::{
    internal::{masters_server::MastersServer, workers_server::WorkersServer},
    v1::{
        cron_server::CronServer, events_server::EventsServer, exec_server::ExecServer,
        jobs_server::JobsServer, nodes_server::NodesServer, runs_server::RunsServer,
        tasks_server::TasksServer,
    },
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

/// Largest message of the public services, as the largest body of HTTP.
const MAX_MESSAGE: usize = crate::http::MAX_BODY;
/// Largest message of workers.
const MAX_WORKER_MESSAGE: usize = 16 << 20;

/// Largest answer to another master: some hundred bytes a node.
const MAX_LIVE: usize = 64 << 20;

/// Serves until `stop` is cancelled.
pub async fn serve(listener: TcpListener, ops: Ops, stop: CancellationToken) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<JobsServer<public::Public>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(meepo_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let old_reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(meepo_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()?;
    let limits = ops.limits.clone();
    let public = public::Public { ops: ops.clone() };
    macro_rules! limited {
        ($server:ident) => {
            $server::new(public.clone()).max_decoding_message_size(MAX_MESSAGE)
        };
    }
    let masters = MastersServer::new(masters::Masters { ops: ops.clone() })
        .max_encoding_message_size(MAX_LIVE);
    let workers =
        WorkersServer::new(workers::Workers { ops, intake: Intake::new(), stop: stop.clone() })
            .max_decoding_message_size(MAX_WORKER_MESSAGE)
            .max_encoding_message_size(MAX_WORKER_MESSAGE);
    // The builder's own setting does not hold for connections accepted elsewhere. Without
    // it an order to a worker waits until the worker acknowledged the one before, which
    // takes up to 40 ms.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let routes = Routes::new(health_service)
        .add_service(reflection)
        .add_service(old_reflection)
        .add_service(limited!(JobsServer))
        .add_service(limited!(RunsServer))
        .add_service(limited!(NodesServer))
        .add_service(limited!(ExecServer))
        .add_service(limited!(CronServer))
        .add_service(limited!(EventsServer))
        .add_service(limited!(TasksServer))
        .add_service(workers)
        .add_service(masters)
        .into_axum_router()
        .layer(middleware::from_fn_with_state(limits, limits::grpc));
    Server::builder()
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(5)))
        .add_routes(routes.into())
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await?;
    Ok(())
}
