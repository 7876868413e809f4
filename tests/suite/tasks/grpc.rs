//! Tasks over gRPC: the same as over HTTP.

use super::{get, wait};
use meepo_proto::v1::{self as pb, task_event::Event, tasks_client::TasksClient};
use meepo_tests::Cluster;
use prost_types::{Struct, Value, value::Kind};

fn request(fields: &[(&str, Kind)]) -> pb::PutTaskRequest {
    let field =
        |(name, kind): &(&str, Kind)| ((*name).to_owned(), Value { kind: Some(kind.clone()) });
    pb::PutTaskRequest { task: Some(Struct { fields: fields.iter().map(field).collect() }) }
}

fn text(s: &str) -> Kind {
    Kind::StringValue(s.to_owned())
}

#[tokio::test]
async fn a_task_goes_through_its_life_over_grpc() {
    let cluster = Cluster::builder().start().await;
    let mut tasks = TasksClient::connect(cluster.master(0).grpc_url()).await.unwrap();
    let wanted = request(&[
        ("queue", text("q")),
        ("cmd", text("exit 3")),
        ("key", text("k1")),
        ("priority", Kind::NumberValue(7.0)),
        ("on_failure", text("bury")),
    ]);
    let put = tasks.put(wanted.clone()).await.unwrap().into_inner();
    assert!(put.created);
    let id = put.task.unwrap().id;
    let again = tasks.put(wanted).await.unwrap().into_inner();
    assert_eq!((again.created, again.task.unwrap().id), (false, id.clone()));
    let name = || pb::TaskName { id: id.clone() };
    let mut events = tasks.follow(name()).await.unwrap().into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.event;
    }
    let Some(Event::End(end)) = last else { panic!("{last:?}") };
    assert_eq!((end.state.as_str(), end.counts["buried"]), ("buried", 1));
    let part = &tasks.get(name()).await.unwrap().into_inner().parts[0];
    assert_eq!((part.exit_code, part.code, part.run_ids.len()), (Some(3), Some(0x0101), 1));
    let act =
        |verb: &str| pb::ActOnTaskRequest { id: id.clone(), verb: verb.into(), delay: "".into() };
    let acted = tasks.act(act("delete")).await.unwrap().into_inner();
    assert_eq!(acted.changed, 1);
    wait(&cluster.api(), &id, "failed").await;
    assert_eq!(get(&cluster.api(), &id).await["policy"]["priority"], 7);
    let refused = tasks.act(act("kick")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    let list = pb::ListTasksRequest { states: vec!["failed".into()], ..Default::default() };
    let list = tasks.list(list).await.unwrap().into_inner();
    assert_eq!(list.tasks.iter().map(|t| &t.id).collect::<Vec<_>>(), [&id]);
    for (wrong, field) in [
        (request(&[("cmd", text("x"))]), "target"),
        (request(&[("queue", text("q")), ("cmd", text("x")), ("nope", text("x"))]), "nope"),
    ] {
        let refused = tasks.put(wrong).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert_eq!(refused.metadata().get("meepo-field").unwrap(), field);
    }
}
