//! Tasks over gRPC: a thin layer over [`Ops`](crate::ops::Ops).

use super::{
    convert::{json_from, json_value, time},
    public::{Answer, Events, Public, duration, invalid, name},
};
use crate::{error::ApiError, ops::TaskFilter};
use futures::StreamExt;
use meepo_core::{
    error::Invalid,
    input::from_value,
    task::{
        PartView, TaskRef, TaskRequest, TaskView, Verb,
        answer::{ActRequest, TaskEvent},
    },
};
use meepo_proto::v1::{self as pb, task_event, tasks_server::Tasks};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

fn id(text: &str) -> Result<TaskRef, Status> {
    text.parse().map_err(invalid)
}

/// The name JSON has for an enum's value.
fn word<T: serde::Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(s)) => s,
        _ => String::new(),
    }
}

#[tonic::async_trait]
impl Tasks for Public {
    async fn put(&self, request: Request<pb::PutTaskRequest>) -> Answer<pb::PutTaskAnswer> {
        let fields = request.into_inner().task.unwrap_or_default().fields;
        let fields: Map<String, Value> =
            fields.into_iter().map(|(name, value)| (name, json_from(value))).collect();
        let request: TaskRequest = from_value(Value::Object(fields)).map_err(invalid)?;
        let submitted = self.ops.submit_task(&request).await?;
        let answer = pb::PutTaskAnswer { task: Some(task(submitted.task)), created: submitted.new };
        Ok(Response::new(answer))
    }

    async fn get(&self, request: Request<pb::TaskName>) -> Answer<pb::Task> {
        let id = id(&request.into_inner().id)?;
        Ok(Response::new(task(self.ops.get_task(id).await?)))
    }

    async fn list(&self, request: Request<pb::ListTasksRequest>) -> Answer<pb::TaskList> {
        let r = request.into_inner();
        let queue = match r.queue.as_str() {
            "" => None,
            queue => Some(name("queue", queue)?),
        };
        let states = r.states.iter().map(|s| s.parse()).collect::<Result<_, Invalid>>();
        let filter = TaskFilter {
            queue,
            states: states.map_err(invalid)?,
            limit: (r.limit > 0).then_some(r.limit),
            cursor: Some(r.cursor).filter(|c| !c.is_empty()),
        };
        let list = self.ops.list_tasks(&filter).await?;
        Ok(Response::new(pb::TaskList {
            tasks: list.tasks.into_iter().map(task).collect(),
            next: list.next.unwrap_or_default(),
        }))
    }

    async fn act(&self, request: Request<pb::ActOnTaskRequest>) -> Answer<pb::TaskActed> {
        let r = request.into_inner();
        let verb: Verb = r.verb.parse().map_err(invalid)?;
        let what = ActRequest { delay: duration("delay", &r.delay)? };
        let acted = self.ops.act_on_task(id(&r.id)?, verb, &what).await?;
        Ok(Response::new(pb::TaskActed {
            task: acted.task.to_string(),
            control: word(acted.control),
            changed: acted.changed,
            asked: acted.asked,
            refused: acted.refused.into_iter().map(|r| (r.part.to_string(), r.reason)).collect(),
            refused_total: acted.refused_total,
        }))
    }

    type FollowStream = Events<pb::TaskEvent>;

    async fn follow(&self, request: Request<pb::TaskName>) -> Answer<Self::FollowStream> {
        let id = id(&request.into_inner().id)?;
        let events = ReceiverStream::new(self.ops.follow_task(id).await?);
        Ok(Response::new(Box::pin(events.map(|event| {
            let event = match event {
                TaskEvent::Start(t) => task_event::Event::Start(task(*t)),
                TaskEvent::Part(p) => task_event::Event::Part(part(*p)),
                TaskEvent::End(t) => task_event::Event::End(task(*t)),
                TaskEvent::Error(e) => return Err(ApiError(e).into()),
            };
            Ok(pb::TaskEvent { event: Some(event) })
        }))))
    }
}

fn task(t: TaskView) -> pb::Task {
    let more = json!({"policy": t.policy, "commands": t.commands});
    let more = match json_value(more).kind {
        Some(prost_types::value::Kind::StructValue(s)) => Some(s),
        _ => None,
    };
    let counts = match serde_json::to_value(t.counts) {
        Ok(Value::Object(counts)) => counts
            .into_iter()
            .filter_map(|(state, n)| Some((state, u32::try_from(n.as_u64()?).ok()?)))
            .collect(),
        _ => HashMap::new(),
    };
    pb::Task {
        id: t.id.to_string(),
        name: t.name.unwrap_or_default(),
        state: word(t.state),
        queue: t.queue.map(|q| q.to_string()).unwrap_or_default(),
        target: t.target.unwrap_or_default(),
        cmd: t.cmd,
        control: word(t.control),
        submitted_at: Some(time(t.submitted_at)),
        ended_at: t.ended_at.map(time),
        counts,
        parts: t.parts.into_iter().map(part).collect(),
        more,
    }
}

fn part(p: PartView) -> pb::TaskPart {
    let outcome = p.outcome.as_ref();
    pb::TaskPart {
        id: p.id.to_string(),
        node: p.node.map(|n| n.to_string()).unwrap_or_default(),
        command: p.command,
        state: word(p.state),
        since: Some(time(p.since)),
        attempt: p.attempt,
        begun_at: p.begun_at.map(time),
        code: outcome.map(|o| o.code.0.into()),
        exit_code: outcome.and_then(|o| o.exit_code),
        message: outcome.and_then(|o| o.message.clone()).unwrap_or_default(),
        run_ids: p.runs.iter().map(|r| r.run_id.to_string()).collect(),
        waits: p.waits.unwrap_or_default(),
    }
}
