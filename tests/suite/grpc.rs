//! The gRPC API of a real server, through generated clients, as grpcurl would use it.

mod history;
mod notify;

use crate::shared::{NODE, gated, open, server};
use futures::StreamExt;
use meepo_proto::v1::{
    self as pb, cron_client::CronClient, exec_client::ExecClient, exec_event,
    jobs_client::JobsClient, nodes_client::NodesClient, output_event, runs_client::RunsClient,
};
use meepo_tests::{Server, TestDir, eventually, secs};
use prost::Message;
use prost_types::value;
use std::collections::BTreeSet;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{
    v1::{
        ServerReflectionRequest as Ask, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    },
    v1alpha,
};

async fn channel(server: &Server) -> Channel {
    Channel::from_shared(server.grpc_url()).unwrap().connect().await.unwrap()
}

fn spec(name: &str, cmd: &str) -> pb::JobSpec {
    pb::JobSpec { name: name.into(), cmd: cmd.into(), ..Default::default() }
}

async fn apply(channel: &Channel, job: pb::JobSpec) -> Result<pb::AppliedJob, Status> {
    let request = pb::ApplyJobRequest { job: Some(job) };
    JobsClient::new(channel.clone()).apply(request).await.map(|r| r.into_inner())
}

async fn trigger(channel: &Channel, name: &str) -> String {
    let request = pb::TriggerRequest { name: name.into(), ..Default::default() };
    let answer = JobsClient::new(channel.clone()).trigger(request).await.unwrap().into_inner();
    assert_eq!(answer.runs[0].node, NODE);
    answer.runs[0].run_id.clone()
}

async fn wait_run(channel: &Channel, run_id: &str, state: &str) -> pb::Run {
    eventually(secs(30), format!("run {run_id} is {state}"), async || {
        let request = pb::RunId { run_id: run_id.into() };
        let run = RunsClient::new(channel.clone()).get(request).await;
        let run = run.map_err(|e| e.to_string())?.into_inner();
        if run.state == state { Ok(run) } else { Err(format!("{run:?}")) }
    })
    .await
}

/// The words of a refusal: status, code, field.
fn words(status: &Status) -> (Code, String, String) {
    let get = |key: &str| {
        let value = status.metadata().get(key).map(|v| v.to_str().unwrap().to_owned());
        value.unwrap_or_default()
    };
    (status.code(), get("meepo-code"), get("meepo-field"))
}

#[tokio::test]
async fn a_job_goes_through_its_life() {
    let server = server().await;
    let channel = channel(&server).await;
    let mut jobs = JobsClient::new(channel.clone());
    let name = || pb::JobName { name: "rpc-life".into(), tree: String::new() };
    let yearly = pb::JobSpec { schedule: "@yearly".into(), ..spec("rpc-life", "echo $1") };
    let number = |n| prost_types::Value { kind: Some(value::Kind::NumberValue(n)) };
    let retry = prost_types::Struct { fields: [("max".to_owned(), number(3.0))].into() };
    let retry = prost_types::Value { kind: Some(value::Kind::StructValue(retry)) };
    let more = Some(prost_types::Struct { fields: [("retry".to_owned(), retry)].into() });
    let job = pb::JobSpec { args: vec!["hi".into()], more, ..yearly };
    for action in ["created", "unchanged"] {
        assert_eq!(apply(&channel, job.clone()).await.unwrap().action, action);
    }
    let got = jobs.get(name()).await.unwrap().into_inner();
    let got_spec = got.spec.unwrap();
    assert_eq!((got.source.as_str(), got_spec.cmd.as_str()), ("definition", "echo $1"));
    assert!(format!("{:?}", got_spec.more).contains("exponential"), "{:?}", got_spec.more);
    // Defaults are spelled out.
    assert_eq!((got_spec.executor.as_str(), got_spec.target.as_str()), ("bash", "all"));
    let slots = jobs.next(pb::NextRequest { name: "rpc-life".into(), n: 2 }).await.unwrap();
    let slots = slots.into_inner().instants;
    assert_eq!((slots.len(), Some(slots[0])), (2, got.next));
    let list = jobs.list(pb::ListJobsRequest::default()).await.unwrap().into_inner();
    assert!(list.jobs.iter().any(|j| j.name == "rpc-life"));
    assert_eq!(jobs.pause(name()).await.unwrap().into_inner().action, "updated");
    assert_eq!(jobs.get(name()).await.unwrap().into_inner().next, None);
    assert_eq!(jobs.resume(name()).await.unwrap().into_inner().action, "updated");
    let run = wait_run(&channel, &trigger(&channel, "rpc-life").await, "success").await;
    assert_eq!(
        (run.job.as_str(), run.cause.as_str(), run.exit_code),
        ("rpc-life", "trigger", Some(0))
    );
    assert_eq!(run.output_bytes, 3);
    assert_eq!(jobs.delete(name()).await.unwrap().into_inner().action, "deleted");
    let status = jobs.get(name()).await.unwrap_err();
    assert_eq!(words(&status), (Code::NotFound, "777".into(), String::new()));
    assert_eq!(status.message(), "no job rpc-life");
    let query = pb::ListRunsRequest { job: "rpc-life".into(), ..Default::default() };
    let runs = RunsClient::new(channel).list(query).await.unwrap().into_inner();
    assert_eq!(runs.runs.len(), 1, "its history stays");
}

#[tokio::test]
async fn output_is_streamed_live_and_a_run_is_killed() {
    let (server, dir) = (server().await, TestDir::new());
    let (channel, gate) = (channel(&server).await, dir.path().join("gate"));
    let mut runs = RunsClient::new(channel.clone());
    apply(&channel, spec("rpc-live", &gated(&gate, "first", "last"))).await.unwrap();
    let run_id = trigger(&channel, "rpc-live").await;
    let request = pb::OutputRequest { run_id: run_id.clone(), after: None, follow: true };
    let mut events = runs.output(request).await.unwrap().into_inner();
    let mut next = async || events.next().await.unwrap().unwrap().event.unwrap();
    let output_event::Event::Output(first) = next().await else { panic!() };
    assert_eq!((first.data.as_slice(), first.stream.as_str()), (&b"first\n"[..], "stdout"));
    open(&gate);
    let output_event::Event::Output(last) = next().await else { panic!() };
    assert_eq!(last.data, b"last\n");
    let output_event::Event::End(end) = next().await else { panic!() };
    assert_eq!((end.state.as_str(), end.run_id.as_str()), ("success", run_id.as_str()));
    wait_run(&channel, &run_id, "success").await;
    let request = pb::OutputRequest { run_id: run_id.clone(), after: Some(0), follow: false };
    let stored: Vec<_> = runs.output(request).await.unwrap().into_inner().collect().await;
    assert_eq!(stored.len(), 1);

    apply(&channel, spec("rpc-live", "exec sleep 300")).await.unwrap();
    let run_id = trigger(&channel, "rpc-live").await;
    wait_run(&channel, &run_id, "running").await;
    let kill = pb::RunId { run_id: run_id.clone() };
    assert_eq!(runs.kill(kill.clone()).await.unwrap().into_inner().node, NODE);
    assert_eq!(wait_run(&channel, &run_id, "killed").await.code, 0x0103);
    let status = runs.kill(kill).await.unwrap_err();
    assert_eq!(words(&status), (Code::FailedPrecondition, "778".into(), String::new()));
}

#[tokio::test]
async fn commands_run_on_targets_and_on_hosts() {
    let server = server().await;
    let mut exec = ExecClient::new(channel(&server).await);
    let request = pb::ExecRequest {
        hosts: vec![NODE.into(), "10.9.9.9".into()],
        cmd: "echo out; exit 3".into(),
        executor: "sh".into(),
        ..Default::default()
    };
    let events: Vec<_> = exec.run(request).await.unwrap().into_inner().collect().await;
    let mut events = events.into_iter().map(|e| e.unwrap().event.unwrap());
    let Some(exec_event::Event::Start(start)) = events.next() else { panic!() };
    let hosts: Vec<_> = start.hosts.iter().map(|h| h.host.as_str()).collect();
    assert_eq!(hosts, [NODE, "10.9.9.9"]);
    let (mut ends, mut out) = (Vec::new(), Vec::new());
    for event in events {
        match event {
            exec_event::Event::Output(o) => out.extend(o.output.unwrap().data),
            exec_event::Event::End(e) => ends.push((e.host, e.retcode, e.run.is_some())),
            other => panic!("{other:?}"),
        }
    }
    ends.sort();
    assert_eq!(ends, [("10.9.9.9".to_owned(), 0x0200, false), (NODE.to_owned(), 0x0101, true)]);
    assert_eq!(out, b"out\n");
    let request =
        pb::ExecRequest { target: "all".into(), cmd: "true".into(), ..Default::default() };
    let events: Vec<_> = exec.run(request).await.unwrap().into_inner().collect().await;
    let Some(exec_event::Event::End(end)) = events.last().unwrap().as_ref().unwrap().event.clone()
    else {
        panic!("{events:?}")
    };
    assert_eq!(
        (end.resp.as_str(), end.retcode, end.run.unwrap().exit_code),
        ("success", 0, Some(0))
    );

    // Without a command a probe only tells who passed.
    let request =
        pb::ExecRequest { target: "all".into(), probe: "echo yes".into(), ..Default::default() };
    let events: Vec<_> = exec.run(request).await.unwrap().into_inner().collect().await;
    let events: Vec<_> = events.into_iter().map(|e| e.unwrap().event.unwrap()).collect();
    let [exec_event::Event::Probe(probe), exec_event::Event::Chosen(chosen)] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((probe.data.as_deref(), &chosen.hosts[..]), (Some("yes\n"), &[NODE.to_owned()][..]));
}

#[tokio::test]
async fn nodes_and_the_calendar_answer() {
    let server = server().await;
    let channel = channel(&server).await;
    let mut nodes = NodesClient::new(channel.clone());
    let target = |t: &str| pb::ListNodesRequest { target: t.to_owned() };
    let list = nodes.list(target("")).await.unwrap().into_inner().nodes;
    let node = nodes.get(pb::NodeName { id: NODE.into() }).await.unwrap().into_inner();
    assert_eq!((list.len(), list[0].id.as_str(), node.online), (1, NODE, true));
    assert_eq!(node.connected, Some(true));
    assert!(node.facts.unwrap().mem_total > 0);
    let label = |set: &[(&str, &str)], remove: &[&str]| pb::LabelRequest {
        id: NODE.into(),
        set: set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        remove: remove.iter().map(|k| (*k).to_owned()).collect(),
    };
    let labelled = nodes.label(label(&[("zone", "a")], &[])).await.unwrap().into_inner();
    assert_eq!(
        (&labelled.labels["zone"], &labelled.labels_set["zone"]),
        (&"a".into(), &"a".into())
    );
    let zone = nodes.list(target("zone=a")).await.unwrap().into_inner();
    assert_eq!((zone.nodes.len(), zone.stale.as_str()), (1, ""));
    assert_eq!(nodes.list(target("zone==")).await.unwrap_err().code(), Code::InvalidArgument);
    let labelled = nodes.label(label(&[], &["zone"])).await.unwrap().into_inner();
    assert!(labelled.labels.is_empty() && labelled.labels_set.is_empty(), "{labelled:?}");
    let from = prost_types::Timestamp { seconds: 1_774_699_200, nanos: 0 }; // 2026-03-28T12:00Z
    let request = pb::CronNextRequest {
        expr: "30 1 * * *".into(),
        tz: "Europe/London".into(),
        from: Some(from),
        n: 1,
    };
    let slots = CronClient::new(channel).next(request).await.unwrap().into_inner().instants;
    assert_eq!(slots.iter().map(|s| s.seconds).collect::<Vec<_>>(), [1_774_746_000]);
}

#[tokio::test]
async fn refusals_say_which_field_and_what_would_be_right() {
    let server = server().await;
    let channel = channel(&server).await;
    let bad = |change: fn(&mut pb::JobSpec)| {
        let mut job = spec("rpc-bad", "true");
        change(&mut job);
        job
    };
    for (job, code, field, expected) in [
        (bad(|j| j.name = "a/b".into()), 0x0306, "name", "letters"),
        (bad(|j| j.cmd = " ".into()), 0x0305, "cmd", "date -u"),
        (bad(|j| j.schedule = "61 * * * *".into()), 0x0303, "schedule", "0-59"),
        (bad(|j| j.timezone = "Mars/Base".into()), 0x0303, "timezone", "Europe/London"),
        (bad(|j| j.executor = "perl".into()), 0x0304, "executor", "python"),
        (bad(|j| j.target = "role=".into()), 0x0307, "target", "a value"),
        (bad(|j| j.timeout = "soon".into()), 0x0302, "timeout", "1h30m"),
        (bad(|j| j.concurrency = "maybe".into()), 0x0302, "concurrency", "queue"),
        (bad(|j| j.placement = "twice".into()), 0x0302, "placement", "once"),
        (bad(|j| j.output_limit = Some(1 << 40)), 0x0302, "output_limit", "16777216"),
        (bad(|j| j.cwd = "here".into()), 0x0302, "cwd", "starts with '/'"),
    ] {
        let status = apply(&channel, job).await.unwrap_err();
        assert_eq!(words(&status), (Code::InvalidArgument, code.to_string(), field.into()));
        let said = status.metadata().get("meepo-expected").unwrap().to_str().unwrap();
        assert!(said.contains(expected), "{said}");
        assert!(status.message().starts_with(field) && status.message().contains(expected));
    }
    let missing = JobsClient::new(channel.clone()).apply(pb::ApplyJobRequest { job: None }).await;
    assert_eq!(words(&missing.unwrap_err()).2, "job");
    let mut runs = RunsClient::new(channel.clone());
    let run = |run_id: &str| pb::RunId { run_id: run_id.into() };
    let status = runs.get(run("zzz")).await.unwrap_err();
    assert_eq!(words(&status), (Code::InvalidArgument, "774".into(), "run_id".into()));
    let status = runs.get(run("01932f5e-0000-7000-8000-000000000001")).await.unwrap_err();
    assert_eq!(words(&status).0, Code::NotFound);
    let query = pb::ListRunsRequest { states: vec!["done".into()], ..Default::default() };
    assert_eq!(words(&runs.list(query).await.unwrap_err()).2, "state");
    let query = pb::ListRunsRequest { cursor: "zzz".into(), ..Default::default() };
    assert_eq!(words(&runs.list(query).await.unwrap_err()).2, "cursor");
    let nodes = NodesClient::new(channel.clone()).get(pb::NodeName { id: "nobody".into() }).await;
    assert_eq!(words(&nodes.unwrap_err()).0, Code::NotFound);
    let request =
        pb::ExecRequest { target: "group=none".into(), cmd: "true".into(), ..Default::default() };
    let status = ExecClient::new(channel.clone()).run(request).await.unwrap_err();
    assert_eq!(words(&status), (Code::FailedPrecondition, "519".into(), String::new()));
    for (expr, tz, field) in [("bad", "", "expr"), ("@daily", "Mars/Base", "tz")] {
        let request = pb::CronNextRequest { expr: expr.into(), tz: tz.into(), from: None, n: 0 };
        let status = CronClient::new(channel.clone()).next(request).await.unwrap_err();
        assert_eq!(words(&status), (Code::InvalidArgument, "771".into(), field.into()));
    }
    // A message over the limit of 1 MiB.
    let large = spec("rpc-large", &"x".repeat(2 << 20));
    let status = apply(&channel, large).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    // And it still works.
    apply(&channel, spec("rpc-good", "true")).await.unwrap();
}

/// All a reflection server says to `ask`.
async fn reflect(channel: &Channel, ask: MessageRequest) -> MessageResponse {
    let request = Ask { host: String::new(), message_request: Some(ask) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream_once(request)).await.unwrap();
    let answer = answers.into_inner().next().await.unwrap().unwrap();
    answer.message_response.unwrap()
}

fn tokio_stream_once<T>(item: T) -> impl futures::Stream<Item = T> {
    futures::stream::once(std::future::ready(item))
}

const SERVICES: [&str; 6] = ["Jobs", "Runs", "Nodes", "Exec", "Cron", "Notify"];

#[tokio::test]
async fn reflection_lists_and_describes_the_services() {
    let server = server().await;
    let channel = channel(&server).await;
    let listed = reflect(&channel, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(list) = listed else { panic!("{listed:?}") };
    let names: BTreeSet<String> = list.service.into_iter().map(|s| s.name).collect();
    assert!(names.contains("grpc.health.v1.Health"), "{names:?}");
    for service in SERVICES {
        let name = format!("meepo.v1.{service}");
        assert!(names.contains(&name), "{name} in {names:?}");
        let found = reflect(&channel, MessageRequest::FileContainingSymbol(name)).await;
        let MessageResponse::FileDescriptorResponse(files) = found else { panic!("{found:?}") };
        let files: Vec<prost_types::FileDescriptorProto> = files
            .file_descriptor_proto
            .iter()
            .map(|bytes| Message::decode(bytes.as_slice()).unwrap())
            .collect();
        let described = files.iter().flat_map(|f| &f.service).find(|s| s.name() == service);
        assert!(described.is_some_and(|s| !s.method.is_empty()), "{service}");
    }
    let unknown = MessageRequest::FileContainingSymbol("meepo.v1.Nothing".into());
    let request = Ask { host: String::new(), message_request: Some(unknown) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream_once(request)).await;
    let answer = match answers {
        Ok(answers) => answers.into_inner().next().await.unwrap(),
        Err(status) => Err(status),
    };
    assert!(
        match &answer {
            Err(status) => status.code() == Code::NotFound,
            Ok(a) => matches!(a.message_response, Some(MessageResponse::ErrorResponse(_))),
        },
        "{answer:?}"
    );
    // Older tools ask in the older dialect.
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut old = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = old.server_reflection_info(tokio_stream_once(request)).await.unwrap();
    assert!(answers.into_inner().next().await.unwrap().is_ok());
}

#[tokio::test]
async fn health_is_serving() {
    let server = server().await;
    let mut health = HealthClient::new(channel(&server).await);
    for service in ["", "meepo.v1.Jobs"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status().as_str_name(), "SERVING", "{service:?}");
    }
    let unknown = HealthCheckRequest { service: "meepo.v1.Nothing".into() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
}
