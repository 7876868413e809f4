//! `meepo job list | get | delete | pause | resume | trigger | next`.

use super::{
    apply::action,
    follow::{self, Piece},
    job_view,
    outcome::{Outcome, Outcomes},
};
use crate::{
    args::{JobListArgs, TriggerArgs},
    client::Client,
    error::{CliError, CliResult, exit},
    output::{
        Out,
        stream::{Lead, Printer},
        table::{Table, cell},
        time,
    },
};
use futures::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use meepo_core::{
    api::{Applied, JobList, JobView, TriggerRequest, Triggered},
    id::Name,
    tree::TreePath,
};
use reqwest::Method;
use std::cell::RefCell;

/// Jobs asked for at once.
const PAGE: u32 = 1000;

/// `job list`.
pub(crate) async fn list(out: &Out, client: &Client, args: JobListArgs) -> CliResult<u8> {
    let most = args.n.map_or(usize::MAX, |n| n as usize);
    let (mut jobs, mut cursor) = (Vec::new(), None);
    loop {
        let query = [
            ("name", args.name.clone()),
            ("node", args.node.as_ref().map(ToString::to_string)),
            ("tree", args.tree.as_ref().map(ToString::to_string)),
            ("limit", Some((most - jobs.len()).min(PAGE as usize).to_string())),
            ("cursor", cursor),
        ];
        let page: JobList = client.get(&["jobs"], &query).await?;
        jobs.extend(page.jobs);
        cursor = page.next;
        if cursor.is_none() || jobs.len() >= most {
            break;
        }
    }
    let filtered = args.name.is_some() || args.node.is_some() || args.tree.is_some();
    out.value(&jobs, |out| job_view::list(out, &jobs, filtered, Timestamp::now()))?;
    if cursor.is_some() {
        out.note(&format!("there are more; these are the first {}", jobs.len()));
    }
    Ok(exit::OK)
}

/// `job get`.
pub(crate) async fn get(
    out: &Out,
    client: &Client,
    name: &Name,
    definition: bool,
    tree: Option<TreePath>,
) -> CliResult<u8> {
    let at = [("tree", tree.as_ref().map(ToString::to_string))];
    let job: JobView = client.get(&["jobs", name.as_str()], &at).await?;
    if definition {
        // At a place in the tree: what is given there, not what is inherited.
        if let Some(path) = tree.filter(|t| !t.is_root()) {
            let given = job.tree.iter().find(|d| d.tree == path).ok_or_else(|| {
                let problem = format!("job {name} has no definition at {path}, it inherits");
                CliError::new(exit::NOT_FOUND, problem)
            })?;
            out.value(&given.definition, |out| out.yaml(&given.definition).unwrap_or_default())?;
            return Ok(exit::OK);
        }
        let Some(spec) = &job.spec else {
            return Err(CliError::new(
                exit::NOT_FOUND,
                format!("job {name} has no definition: it was put into etcd by hand"),
            )
            .expected("a job made with `meepo job apply`"));
        };
        out.value(spec, |out| out.yaml(spec).unwrap_or_default())?;
        return Ok(exit::OK);
    }
    let slots = if out.is_table() && job.next.is_some() && tree.is_none() && job.spec.is_some() {
        // The page is worth showing without them.
        slots(client, name, 5).await.unwrap_or_default()
    } else {
        Vec::new()
    };
    let stats = match out.is_table() {
        // As before.
        true => client.get(&["jobs", name.as_str(), "stats"], &[]).await.ok(),
        false => None,
    };
    out.value(&job, |out| job_view::page(out, &job, &slots, stats.as_ref(), Timestamp::now()))?;
    Ok(exit::OK)
}

async fn slots(client: &Client, name: &Name, n: u32) -> CliResult<Vec<Timestamp>> {
    client.get(&["jobs", name.as_str(), "next"], &[("n", Some(n.to_string()))]).await
}

/// `job next`.
pub(crate) async fn next(out: &Out, client: &Client, name: &Name, n: u32) -> CliResult<u8> {
    let slots = slots(client, name, n).await?;
    if out.is_table() && slots.is_empty() {
        out.note(&format!("job {name} has no next slot: it is paused, runs only on demand, or its schedule has ended"));
        return Ok(exit::OK);
    }
    out.value(&slots, |out| {
        let now = Timestamp::now();
        let mut table = Table::new(out, &["LOCAL", "UTC", ""]);
        for slot in &slots {
            table.row(vec![
                cell(time::local(*slot)),
                cell(slot.to_string()),
                cell(time::relative(*slot, now)),
            ]);
        }
        table.render()
    })?;
    Ok(exit::OK)
}

/// `job delete`.
pub(crate) async fn delete(
    out: &Out,
    client: &Client,
    names: &[Name],
    tree: Option<TreePath>,
) -> CliResult<u8> {
    each(out, names, |name| {
        let (name, tree) = (name.clone(), tree.clone());
        async move {
            let path = ["jobs", name.as_str()];
            let place = tree.as_ref().map_or_else(String::new, |t| format!(" at {t}"));
            let at = [("tree", tree.map(|t| t.to_string()))];
            let a: Applied = client.call(Method::DELETE, &path, &at, None::<&()>).await?;
            Ok((format!("job {}{place} {}", a.name, action(a.action)), a))
        }
    })
    .await
}

/// `job pause` and `job resume`; `verb` is the last part of the path.
pub(crate) async fn set_status(
    out: &Out,
    client: &Client,
    names: &[Name],
    verb: &str,
) -> CliResult<u8> {
    each(out, names, |name| {
        let name = name.clone();
        async move {
            let path = ["jobs", name.as_str(), verb];
            let a: Applied = client.call(Method::POST, &path, &[], None::<&()>).await?;
            let done = match (a.action, verb) {
                (meepo_core::api::Action::Unchanged, "pause") => "was paused already",
                (meepo_core::api::Action::Unchanged, _) => "was not paused",
                (_, "pause") => "paused",
                _ => "resumed",
            };
            Ok((format!("job {} {done}", a.name), a))
        }
    })
    .await
}

/// Does something to each name; one that is not there does not keep the others.
async fn each<T: serde::Serialize, F: Future<Output = CliResult<(String, T)>>>(
    out: &Out,
    names: &[Name],
    act: impl Fn(&Name) -> F,
) -> CliResult<u8> {
    let (mut done, mut code) = (Vec::new(), exit::OK);
    for name in names {
        match act(name).await {
            Ok((line, value)) => {
                if out.is_table() {
                    out.text(&(line + "\n"))?;
                }
                done.push(value);
            }
            Err(e) => {
                let e = if e.place.is_none() { e.at(name.as_str()) } else { e };
                if names.len() == 1 || e.exit == exit::UNAVAILABLE {
                    return Err(e);
                }
                out.note(&format!("error: {e}"));
                code = e.exit;
            }
        }
    }
    if !out.is_table() {
        out.value(&done, |_| String::new())?;
    }
    Ok(code)
}

/// `job trigger`.
pub(crate) async fn trigger(
    out: &Out,
    client: &Client,
    name: &Name,
    TriggerArgs { target, ttl, delay, at }: TriggerArgs,
    follow: bool,
) -> CliResult<u8> {
    let request = TriggerRequest { target, ttl, delay, at };
    let triggered: Triggered =
        client.call(Method::POST, &["jobs", name.as_str(), "trigger"], &[], Some(&request)).await?;
    if !follow {
        out.value(&triggered, |out| {
            let mut table = Table::new(out, &["RUN", "NODE"]);
            for r in &triggered.runs {
                table.row(vec![cell(r.run_id.to_string()), cell(r.node.as_str())]);
            }
            table.render()
        })?;
        return Ok(exit::OK);
    }
    for r in &triggered.runs {
        out.note(&format!("run {} on {}", r.run_id, r.node));
    }
    tokio::select! {
        code = follow_all(out, client, &triggered) => code,
        _ = tokio::signal::ctrl_c() => {
            out.note("interrupted; the runs go on (stop them with `meepo kill`)");
            Ok(exit::INTERRUPTED)
        }
    }
}

/// Prints what all runs write, as it comes, until all have ended.
async fn follow_all(out: &Out, client: &Client, triggered: &Triggered) -> CliResult<u8> {
    let mut printer = Printer::new(out, Lead::Source);
    printer.sources(triggered.runs.iter().map(|r| r.node.as_str()));
    let printer = RefCell::new(printer);
    let mut runs: FuturesUnordered<_> = triggered
        .runs
        .iter()
        .map(|r| {
            let (node, printer) = (r.node.as_str(), &printer);
            async move {
                let ended = follow::follow(client, r.run_id, |piece| match piece {
                    Piece::Output(stream, at, data) if out.is_table() => {
                        Ok(printer.borrow_mut().chunk(node, stream, at, data)?)
                    }
                    Piece::Event(event) if !out.is_table() => out.event(event),
                    _ => Ok(()),
                })
                .await;
                (node, ended)
            }
        })
        .collect();
    let (mut outcomes, mut broken) = (Outcomes::default(), None);
    while let Some((node, ended)) = runs.next().await {
        printer.borrow_mut().finish(node)?;
        match ended {
            Ok(record) => outcomes.0.push(Outcome::of_run(&record)),
            Err(e) if e.is_silent() => return Err(e),
            Err(e) => broken = Some(e.at(node)),
        }
    }
    if out.is_table() {
        outcomes.report(out);
    }
    broken.map_or(Ok(outcomes.exit_code()), Err)
}
