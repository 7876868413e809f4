//! Traces from the request to the end of the process, as a collector gets them, and logs with
//! the fields of what they belong to.

use crate::fleet::{SOON, apply, quick, wait_runs, wait_session};
use meepo_tests::{Cluster, eventually, run};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value as Any,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

/// A span as it was sent.
#[derive(Debug, Clone)]
struct Sent {
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    fields: BTreeMap<String, String>,
}

/// A collector of traces: an OTLP server.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Sent>>>);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn text(value: Option<&Any>) -> String {
    match value {
        Some(Any::StringValue(s)) => s.clone(),
        Some(Any::IntValue(n)) => n.to_string(),
        Some(Any::BoolValue(b)) => b.to_string(),
        other => format!("{other:?}"),
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let attributes = of_resource.resource.unwrap_or_default().attributes;
            let service = attributes.iter().find(|a| a.key == "service.name");
            let value = service.and_then(|s| s.value.as_ref()?.value.as_ref());
            let service = text(value);
            for span in of_resource.scope_spans.into_iter().flat_map(|s| s.spans) {
                let field = |a: &opentelemetry_proto::tonic::common::v1::KeyValue| {
                    (a.key.clone(), text(a.value.as_ref().and_then(|v| v.value.as_ref())))
                };
                self.0.lock().unwrap().push(Sent {
                    service: service.clone(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    fields: span.attributes.iter().map(field).collect(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, String) {
        Self::serve(Server::builder(), "http").await
    }

    /// Over TLS, by a certificate of its own, which is answered as PEM.
    async fn start_tls() -> (Self, String, String) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(&pem, key));
        let server = Server::builder().tls_config(tls).unwrap();
        let (collector, url) = Self::serve(server, "https").await;
        (collector, url, pem)
    }

    async fn serve(mut server: Server, scheme: &str) -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let serving = server
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        (collector, url)
    }

    /// Waits until a span is there that `fits`; answers it.
    async fn wait(&self, what: &str, fits: impl Fn(&Sent) -> bool) -> Sent {
        eventually(SOON, format!("the span {what}"), async || {
            let sent = self.0.lock().unwrap().clone();
            let names: Vec<&String> = sent.iter().map(|s| &s.name).collect();
            sent.iter().find(|s| fits(s)).cloned().ok_or_else(|| format!("{names:?}"))
        })
        .await
    }
}

async fn traced(masters: usize, url: &str) -> Cluster {
    let builder = quick().masters(masters);
    let builder =
        ["--otlp-endpoint", url].iter().fold(builder, |b, arg| b.master_arg(arg).worker_arg(arg));
    let cluster = builder.start().await;
    wait_session(&cluster.api(), "127.0.0.2").await;
    cluster
}

/// The run's span and its parts are children of the request.
async fn check_run(collector: &Collector, request: &Sent, run_id: &str) -> Sent {
    let run = collector
        .wait("run", |s| s.name == "run" && s.fields.get("run_id").is_some_and(|r| r == run_id))
        .await;
    assert_eq!((&run.service, &run.trace), (&"meepo-worker".to_owned(), &request.trace), "{run:?}");
    assert_eq!(run.parent, request.id, "{run:?} {request:?}");
    assert_eq!(run.fields["state"], "success", "{run:?}");
    for part in ["journal", "spawn", "process", "record"] {
        let of_run = |s: &Sent| s.name == part && s.trace == run.trace && s.parent == run.id;
        collector.wait(part, of_run).await;
    }
    run
}

#[tokio::test]
async fn a_trigger_and_a_command_are_one_trace_each_down_to_the_process() {
    let (collector, url) = Collector::start().await;
    let cluster = traced(2, &url).await;
    let api = cluster.api();
    let cmd = "echo $TRACEPARENT $MEEPO_TRACEPARENT";
    apply(&api, json!({"name": "traced", "cmd": cmd})).await;
    cluster.cli(&["job", "trigger", "traced"]).await.ok();
    let runs = wait_runs(&api, "job=traced&state=success", 1).await;
    let run_id = runs[0]["run_id"].as_str().unwrap();
    let request =
        collector.wait("of the trigger", |s| s.name == "POST /v1/jobs/{name}/trigger").await;
    assert_eq!(
        (&*request.service, &*request.fields["status"]),
        ("meepo-master", "202"),
        "{request:?}"
    );
    let run = check_run(&collector, &request, run_id).await;
    let output = cluster.cli(&["logs", run_id]).await;
    let given = format!("00-{}-{}-01", run.trace, run.id);
    assert_eq!(output.ok(), format!("{given} {given}\n"));
    // The parts of a task, too.
    let (status, task) = api.post("/v1/tasks", json!({"target": "all", "cmd": "true"})).await;
    assert_eq!(status, 201, "{task}");
    let put = collector.wait("of the task", |s| s.name == "POST /v1/tasks").await;
    let part = collector.wait("of its part", |s| s.name == "run" && s.trace == put.trace).await;
    assert_eq!((&part.parent, &*part.service), (&put.id, "meepo-worker"), "{part:?}");

    // The audit knows the trace.
    let (_, audit) = api.get("/v1/audit?operation=job.trigger").await;
    assert_eq!(audit["records"][0]["trace_id"], run.trace, "{audit}");

    // A command that goes through the master that does not lead, as a part of something else.
    let leads = async |i: usize| {
        let (_, page) = cluster.master(i).api().get("/metrics").await;
        page.as_str().unwrap().contains("meepo_master_leading 1")
    };
    let follower = usize::from(leads(0).await);
    let base = cluster.master(follower).api().base().to_owned();
    let mut spec = cluster.cli_spec(&["run", "-t", "all", "--", "echo $TRACEPARENT"]);
    spec.env.push(("MEEPO_MASTER".into(), base));
    let outer = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    spec.env.push(("TRACEPARENT".into(), format!("00-{}-{}-01", outer.0, outer.1)));
    let output = run_spec(spec).await;
    assert!(output.contains(&format!("00-{}-", outer.0)), "{output}");
    let asked = |s: &Sent| s.name == "POST /v1/exec/stream" && s.trace == outer.0;
    let asked = collector.wait("of the command", asked).await;
    assert_eq!(asked.parent, outer.1, "{asked:?}");
    let passed_on = |s: &Sent| s.name == "meepo.v1.Exec/Run" && s.trace == outer.0;
    let passed_on = collector.wait("of the leader", passed_on).await;
    assert_eq!(passed_on.parent, asked.id, "{passed_on:?}");
    let of_worker = |s: &Sent| s.name == "run" && s.trace == outer.0;
    let of_worker = collector.wait("of the worker", of_worker).await;
    assert_eq!(of_worker.parent, passed_on.id, "{of_worker:?}");
}

#[tokio::test]
async fn spans_go_over_tls_to_a_collector_that_the_host_trusts() {
    let (collector, url, pem) = Collector::start_tls().await;
    let cluster = quick().start().await;
    let ca = cluster.dir().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let env = [("MEEPO_OTLP_ENDPOINT", &*url), ("SSL_CERT_FILE", ca.to_str().unwrap())];
    let api = cluster.api();
    // It is trusted on the worker's host and not on the master's.
    cluster.worker(0).process().restart_with(&env);
    cluster.master(0).process().restart_with(&env[..1]);
    cluster.master(0).wait_ready().await;
    wait_session(&api, "127.0.0.2").await;
    cluster.cli(&["run", "-t", "all", "--", "true"]).await.ok();
    let run = collector.wait("of the worker", |s| s.name == "run").await;
    assert_eq!(run.service, "meepo-worker", "{run:?}");
    cluster.master(0).process().restart_with(&env);
    cluster.master(0).wait_ready().await;
    wait_session(&api, "127.0.0.2").await;
    collector.wait("of the master", |s| s.service == "meepo-master").await;
}

async fn run_spec(spec: meepo_tests::Spec) -> String {
    run(spec).await.ok().to_owned()
}

#[tokio::test]
async fn without_a_collector_nothing_is_given_and_one_that_is_away_stops_nothing() {
    let cluster = quick().start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    let cmd = "echo [$TRACEPARENT$MEEPO_TRACEPARENT]";
    assert!(cluster.cli(&["run", "-t", "all", "--", cmd]).await.ok().contains("[]"));
    drop(cluster);
    let cluster = traced(1, "http://127.0.0.1:1").await;
    let given = cluster.cli(&["run", "-t", "all", "--", cmd]).await;
    assert!(given.ok().contains("[00-"), "{given:?}");
    apply(&cluster.api(), json!({"name": "ticks", "cmd": "true", "schedule": "* * * * * *"})).await;
    wait_runs(&cluster.api(), "job=ticks&state=success", 2).await;
    // It ends in good time all the same.
    let worker = cluster.worker(0).process();
    worker.term();
    worker.wait_exit(SOON).await;
}

#[tokio::test]
async fn lines_of_json_logs_have_the_run_the_job_the_node_and_the_trace() {
    let (_collector, url) = Collector::start().await;
    let builder = ["--otlp-endpoint", &url, "--log-format", "json"]
        .iter()
        .fold(quick(), |b, arg| b.master_arg(arg).worker_arg(arg));
    let cluster = builder.start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    cluster.worker(0).process().restart_with(&[("MEEPO_LOG", "info,meepo_worker=debug")]);
    wait_session(&api, "127.0.0.2").await;
    apply(&api, json!({"name": "logged", "cmd": "exit 3"})).await;
    let (status, triggered) = api.post("/v1/jobs/logged/trigger", json!({})).await;
    assert_eq!(status, 202, "{triggered}");
    let run_id = triggered["runs"][0]["run_id"].clone();
    wait_runs(&api, "job=logged&state=failed", 1).await;
    let lines = |log: String| -> Vec<Value> {
        log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    };
    let find = async |of: &meepo_tests::Process, message: &str, job: &str| {
        eventually(SOON, format!("a line that says {message}"), async || {
            let all = lines(of.log());
            let fits = |l: &&Value| l["message"] == message && l["job"] == job;
            all.iter().find(fits).cloned().ok_or_else(|| format!("{} lines", all.len()))
        })
        .await
    };
    let on_master = find(cluster.master(0).process(), "triggered", "logged").await;
    assert_eq!(on_master["request"], "POST /v1/jobs/{name}/trigger", "{on_master}");
    let trace = on_master["trace_id"].as_str().unwrap().to_owned();
    assert_eq!(trace.len(), 32, "{on_master}");
    for message in ["process started", "run ended"] {
        let line = find(cluster.worker(0).process(), message, "logged").await;
        assert_eq!(line["run_id"], run_id, "{line}");
        assert_eq!(
            (&line["node"], &line["trace_id"]),
            (&json!("127.0.0.2"), &json!(trace)),
            "{line}"
        );
    }
    let ended = find(cluster.worker(0).process(), "run ended", "logged").await;
    assert_eq!(ended["state"], "failed", "{ended}");
    // The audit is in the log, too.
    let audit = lines(cluster.master(0).process().log());
    let audit = audit.iter().find(|l| l["target"] == "audit" && l["operation"] == "job.trigger");
    assert_eq!(audit.unwrap()["object"], "job/logged");
}
