//! The gRPC server: the public services, those for workers, health and reflection.

mod access;
mod audit;
mod connection;
pub mod convert;
mod doctor;
mod events;
mod history;
mod intake;
mod masters;
mod notify;
mod public;
mod tasks;
mod workers;

use crate::{audit::Asked, auth::Asking, metrics::Call, ops::Ops, spans};
use axum::{
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use connection::Connection;
use intake::Intake;
use meepo_proto::{
    internal::{masters_server::MastersServer, workers_server::WorkersServer},
    v1::{
        access_server::AccessServer, audit_server::AuditServer, cron_server::CronServer,
        doctor_server::DoctorServer, events_server::EventsServer, exec_server::ExecServer,
        jobs_server::JobsServer, nodes_server::NodesServer, notify_server::NotifyServer,
        runs_server::RunsServer, tasks_server::TasksServer,
    },
};
use meepo_runtime::tls::{Acceptor, incoming};
use prost::Message;
use std::{collections::BTreeSet, convert::Infallible, sync::LazyLock};
use tokio::net::TcpListener;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Status, service::Routes, transport::Server};
use tracing::{Instrument, Span};

/// Largest message of the public services, as the largest body of HTTP.
const MAX_MESSAGE: usize = crate::http::MAX_BODY;
/// Largest message of workers.
const MAX_WORKER_MESSAGE: usize = 16 << 20;

/// Largest head of a call, in bytes: a bearer token may be 16 KiB.
const MAX_HEAD: u32 = 64 << 10;

/// Largest answer to another master: some hundred bytes a node.
const MAX_LIVE: usize = 64 << 20;

/// Serves until `stop` is cancelled.
pub async fn serve(
    listener: TcpListener,
    acceptor: Acceptor,
    ops: Ops,
    stop: CancellationToken,
) -> anyhow::Result<()> {
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
    let around_ops = ops.clone();
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
    let connections = ReceiverStream::new(incoming(listener, acceptor, stop.clone()));
    let connections = connections.map(|(io, peer)| Ok::<_, Infallible>(Connection { io, peer }));
    let routes = Routes::new(health_service)
        .add_service(reflection)
        .add_service(old_reflection)
        .add_service(limited!(AccessServer))
        .add_service(limited!(JobsServer))
        .add_service(limited!(RunsServer))
        .add_service(limited!(NodesServer))
        .add_service(limited!(ExecServer))
        .add_service(limited!(CronServer))
        .add_service(limited!(EventsServer))
        .add_service(limited!(AuditServer))
        .add_service(limited!(DoctorServer))
        .add_service(limited!(NotifyServer))
        .add_service(limited!(TasksServer))
        .add_service(workers)
        .add_service(masters)
        .into_axum_router()
        .layer(middleware::from_fn_with_state(around_ops, around));
    Server::builder()
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(5)))
        .http2_max_header_list_size(Some(MAX_HEAD))
        .add_routes(routes.into())
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await?;
    Ok(())
}

/// Every method there is, as `meepo.v1.Jobs/Apply`.
static METHODS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let set = prost_types::FileDescriptorSet::decode(meepo_proto::DESCRIPTORS).unwrap_or_default();
    let mut methods = BTreeSet::new();
    for file in &set.file {
        for service in &file.service {
            let name = |method: &str| format!("{}.{}/{method}", file.package(), service.name());
            methods.extend(service.method.iter().map(|m| name(m.name())));
        }
    }
    methods
});

/// What happens to every call: limits, counters, the audit.
async fn around(State(ops): State<Ops>, request: Request, next: Next) -> Response {
    // Anybody can make up methods; labels must stay few.
    let method = METHODS.get(request.uri().path().trim_start_matches('/'));
    let method = method.map_or("other", String::as_str).to_owned();
    let refuse = |e| Status::from(e).into_http();
    let span = match method.starts_with("meepo.v1.") {
        true => spans::request(&method, request.headers()),
        false => Span::none(),
    };
    let asked = span.in_scope(|| Asked::grpc(&request));
    let asking = Asking::grpc(&request);
    let admitted = ops.auth.admit(asking).await;
    let asked = crate::http::who(asked, &admitted);
    let serve = async {
        match admitted {
            Ok(admitted) => {
                let serve = ops.limits.serve(request, next, refuse);
                ops.auth.serve(admitted, serve).await
            }
            Err(refused) => refuse(refused.error),
        }
    };
    let response = ops.audit.around(asked, serve).instrument(span.clone()).await;
    // A stream that breaks off later has begun well.
    let status = Status::from_header_map(response.headers());
    let code = format!("{:?}", status.map_or(tonic::Code::Ok, |s| s.code()));
    span.record("status", code.as_str());
    ops.metrics.grpc.get_or_create(&Call { method, code }).inc();
    response
}
