//! `meepo task`: handing in, listing, showing and changing.

use super::{documents, run::command_line, task_view, task_wait};
use crate::{
    args::task::{Ids, ListArgs, PutArgs, TaskCommand},
    client::Client,
    error::{CliError, CliResult, exit},
    output::{Out, text},
};
use jiff::Timestamp;
use meepo_core::{
    duration::HumanDuration,
    id::Name,
    input::from_value,
    job::Executor,
    task::{
        TaskRef, TaskRequest, TaskView, Verb,
        answer::{ActRequest, TaskActed, TaskList},
    },
};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::time::Duration;
use uuid::Uuid;

/// Tasks asked for at once.
const PAGE: u32 = 500;

/// Wait before a task is handed in again.
const AGAIN: Duration = Duration::from_millis(500);

/// What the command line says.
pub(crate) async fn run(out: &Out, client: &Client, command: TaskCommand) -> CliResult<u8> {
    match command {
        TaskCommand::Put(args) => put(out, client, &args).await,
        TaskCommand::List(args) => list(out, client, &args).await,
        TaskCommand::Get { id } => {
            let task: TaskView = client.get(&["tasks", &id.to_string()], &[]).await?;
            out.value(&task, |out| task_view::page(out, &task, Timestamp::now()))?;
            Ok(exit::OK)
        }
        TaskCommand::Wait(args) => task_wait::wait(out, client, &[args.id], args.follow).await,
        TaskCommand::Cancel(ids) => act(out, client, Verb::Cancel, &ids, None).await,
        TaskCommand::Stop(ids) => act(out, client, Verb::Stop, &ids, None).await,
        TaskCommand::Release { ids, delay } => act(out, client, Verb::Release, &ids, delay).await,
        TaskCommand::Bury(ids) => act(out, client, Verb::Bury, &ids, None).await,
        TaskCommand::Kick(ids) => act(out, client, Verb::Kick, &ids, None).await,
        TaskCommand::Touch(ids) => act(out, client, Verb::Touch, &ids, None).await,
        TaskCommand::Delete(ids) => act(out, client, Verb::Delete, &ids, None).await,
        TaskCommand::Pause(ids) => act(out, client, Verb::Pause, &ids, None).await,
        TaskCommand::Resume(ids) => act(out, client, Verb::Resume, &ids, None).await,
    }
}

async fn put(out: &Out, client: &Client, args: &PutArgs) -> CliResult<u8> {
    let waits = args.wait || args.follow;
    let mut tasks = Vec::new();
    for mut request in requests(args)? {
        // With a key it can be handed in again when nobody knows what came of it.
        if request.key.is_none() {
            request.key = Name::new(&format!("cli-{}", Uuid::now_v7())).ok();
        }
        let task = hand_in(client, &request).await?;
        if out.is_table() {
            let parts = text::count(task.counts.all() as usize, "part");
            // The id alone goes to standard output, for scripts.
            out.note(&format!("task {} accepted: {parts}", task.id));
            if !waits {
                out.text(&format!("{}\n", task.id))?;
            }
        } else if !waits {
            out.value(&task, |_| String::new())?;
        }
        tasks.push(TaskRef::Task(task.id));
    }
    match waits {
        true => task_wait::wait(out, client, &tasks, args.follow).await,
        false => Ok(exit::OK),
    }
}

/// Hands a task in; once more if the connection or etcd fails meanwhile.
async fn hand_in(client: &Client, request: &TaskRequest) -> CliResult<TaskView> {
    let path = ["tasks"];
    let first = client.call(Method::POST, &path, &[], Some(request)).await;
    match first {
        Err(e) if e.exit == exit::UNAVAILABLE => {
            tokio::time::sleep(AGAIN).await;
            let second = client.call(Method::POST, &path, &[], Some(request)).await;
            second.map_err(|e: CliError| match &request.key {
                Some(key) if e.exit == exit::UNAVAILABLE => CliError {
                    problem: format!("{} (safe to repeat with --key {key})", e.problem),
                    ..e
                },
                _ => e,
            })
        }
        answer => answer,
    }
}

/// What is sent: the documents of the file, or one request, with the options over it.
fn requests(args: &PutArgs) -> CliResult<Vec<TaskRequest>> {
    let options = options(args);
    let values = match &args.file {
        None => vec![(String::new(), options)],
        Some(path) => {
            let (documents, errors) = documents::load(std::slice::from_ref(path));
            if let Some(e) = errors.into_iter().next() {
                return Err(e);
            }
            let mut values = Vec::new();
            for document in documents {
                let Value::Object(mut fields) = document.value else {
                    let expected = "an object with fields such as `target` and `cmd`";
                    return Err(CliError::usage(document.place, "not an object", expected));
                };
                fields.extend(options.clone());
                values.push((document.place, fields));
            }
            values
        }
    };
    let mut requests = Vec::new();
    for (place, fields) in values {
        let request: TaskRequest = from_value(Value::Object(fields))?;
        request.validate().map_err(|e| {
            let e = CliError::from(e);
            if place.is_empty() { e } else { e.at(place) }
        })?;
        requests.push(request);
    }
    Ok(requests)
}

fn options(args: &PutArgs) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    let duration = |d: Option<HumanDuration>| d.map(|d| json!(d));
    set("target", args.target.as_ref().map(|t| json!(t)));
    set("queue", args.queue.as_ref().map(|q| json!(q)));
    set("name", args.name.as_ref().map(|n| json!(n)));
    set("key", args.key.as_ref().map(|k| json!(k)));
    set("priority", args.priority.map(|p| json!(p)));
    set("delay", duration(args.delay));
    set("at", args.at.map(|t| json!(t)));
    set("ttl", duration(args.ttl));
    set("ttr", duration(args.ttr));
    if let Some(max) = args.retries {
        let mut retry = json!({"max": max});
        if let Some(delay) = args.retry_delay {
            retry["delay"] = json!(delay);
        }
        set("retry", Some(retry));
    }
    set("on_failure", args.on_failure.as_ref().map(|w| json!(w)));
    set("on_loss", args.on_loss.as_ref().map(|w| json!(w)));
    let mut rollout = Map::new();
    for (name, amount) in [("batch", args.batch), ("max_failures", args.max_failures)] {
        rollout.extend(amount.map(|a| (name.to_owned(), json!(a))));
    }
    rollout.extend(args.pause.map(|p| ("pause".to_owned(), json!(p))));
    if let Some(size) = args.canary {
        let mut canary = json!({"size": size});
        if let Some(soak) = args.soak {
            canary["soak"] = json!(soak);
        }
        rollout.insert("canary".to_owned(), canary);
    }
    set("rollout", (!rollout.is_empty()).then_some(Value::Object(rollout)));
    let mut repeat = Map::new();
    repeat.extend(args.repeat.map(|n| ("times".to_owned(), json!(n))));
    repeat.extend(args.every.map(|d| ("every".to_owned(), json!(d))));
    set("repeat", (!repeat.is_empty()).then_some(Value::Object(repeat)));
    set("executor", args.executor.map(|e| json!(e)));
    set("user", args.user.as_ref().map(|u| json!(u)));
    set("cwd", args.cwd.as_ref().map(|c| json!(c)));
    if !args.env.is_empty() {
        let env: Map<_, _> = args.env.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        set("env", Some(Value::Object(env)));
    }
    if !args.command.is_empty() {
        let executor = args.executor.unwrap_or(Executor::Bash);
        let (cmd, rest) = command_line(executor, &args.command);
        set("cmd", Some(json!(cmd)));
        if !rest.is_empty() {
            set("args", Some(json!(rest)));
        }
    }
    fields
}

async fn list(out: &Out, client: &Client, args: &ListArgs) -> CliResult<u8> {
    let states: Vec<_> = args.state.iter().map(|s| s.as_str()).collect();
    let (mut tasks, mut cursor) = (Vec::new(), None);
    loop {
        let left = args.n - tasks.len() as u32;
        let query = [
            ("queue", args.queue.as_ref().map(|q| q.to_string())),
            ("state", (!states.is_empty()).then(|| states.join(","))),
            ("limit", Some(left.min(PAGE).to_string())),
            ("cursor", cursor.take()),
        ];
        let page: TaskList = client.get(&["tasks"], &query).await?;
        tasks.extend(page.tasks.into_iter().take(left as usize));
        cursor = page.next;
        if cursor.is_none() || tasks.len() >= args.n as usize {
            break;
        }
    }
    out.value(&tasks, |out| task_view::list(out, &tasks, Timestamp::now()))?;
    Ok(exit::OK)
}

async fn act(
    out: &Out,
    client: &Client,
    verb: Verb,
    ids: &Ids,
    delay: Option<HumanDuration>,
) -> CliResult<u8> {
    let (mut answers, mut failed) = (Vec::new(), None);
    for id in &ids.ids {
        let id = id.to_string();
        let path = ["tasks", id.as_str(), verb.as_str()];
        let body = ActRequest { delay };
        let acted: CliResult<TaskActed> = client.call(Method::POST, &path, &[], Some(&body)).await;
        match acted {
            Ok(acted) => {
                if out.is_table() {
                    out.text(&format!("{}\n", task_view::acted(&id, &acted)))?;
                }
                answers.push(acted);
            }
            // What can be done for the others is done.
            Err(e) => {
                if let Some(earlier) = failed.replace(e) {
                    out.note(&format!("error: {earlier}"));
                }
            }
        }
    }
    if !out.is_table() {
        match answers.as_slice() {
            [one] if ids.ids.len() == 1 => out.value(one, |_| String::new())?,
            all => out.value(&all, |_| String::new())?,
        }
    }
    failed.map_or(Ok(exit::OK), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Reply, fake_master};

    #[tokio::test]
    async fn a_task_is_handed_in_again_with_the_same_key_until_somebody_knows() {
        let unknown = json!({"error": {"code": 0x0404, "name": "unknown_outcome",
            "message": "m", "retry": false}});
        let reply = || Reply::new("504 Gateway Timeout", unknown.to_string());
        let master = fake_master(vec![reply(), reply()]).await;
        let request = TaskRequest::from_user(json!({"queue": "q", "cmd": "x", "key": "k1"}));
        let e = hand_in(&master.client(), &request.unwrap()).await.unwrap_err();
        assert!(e.to_string().contains("--key k1"), "{e}");
        let requests = master.requests();
        assert_eq!(requests.len(), 2, "{requests:?}");
        assert!(requests[0] == requests[1] && requests[0].contains("\"key\":\"k1\""));
    }
}
