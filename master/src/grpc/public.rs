//! The public services: thin layers over [`Ops`].

use super::{
    convert,
    history::{self, instant, run_query},
};
use crate::{
    audit,
    error::ApiError,
    ops::{ExecItem, FORWARDED, FollowItem, JobFilter, Ops},
};
use futures::StreamExt;
use jiff::Timestamp;
use meepo_core::{
    api::{DrainRequest, ExecStreamRequest, HostAnswer, LabelsRequest, TriggerRequest},
    calendar::{self, Schedule},
    code::Code,
    duration::HumanDuration,
    error::Invalid,
    id::{Name, RunId},
    job::{Executor, JobStatus},
    run::RunRecord,
    target::Target,
    tree::TreePath,
};
use meepo_proto::v1::{
    self as pb, cron_server::Cron, exec_event, exec_server::Exec, jobs_server::Jobs,
    nodes_server::Nodes, output_event, runs_server::Runs,
};
use std::pin::Pin;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

/// All public services.
#[derive(Clone)]
pub(super) struct Public {
    pub(super) ops: Ops,
}

pub(super) type Answer<T> = Result<Response<T>, Status>;
pub(super) type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) fn invalid(e: Invalid) -> Status {
    ApiError::from(e).into()
}

pub(super) fn name(field: &str, text: &str) -> Result<Name, Status> {
    Name::new(text).map_err(|e| invalid(e.at(field)))
}

fn run_id(text: &str) -> Result<RunId, Status> {
    text.parse().map_err(invalid)
}

/// `None` for an empty text.
pub(super) fn duration(field: &str, text: &str) -> Result<Option<HumanDuration>, Status> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|e: Invalid| invalid(e.at(field))),
    }
}

pub(super) fn optional(text: String) -> Option<String> {
    Some(text).filter(|t| !t.is_empty())
}

/// `None` for an empty text.
fn tree(text: String) -> Result<Option<TreePath>, Status> {
    optional(text).map(|t| TreePath::new(&t)).transpose().map_err(invalid)
}

fn count(n: u32) -> usize {
    if n == 0 { 5 } else { n.min(1000) as usize }
}

#[tonic::async_trait]
impl Jobs for Public {
    async fn apply(&self, request: Request<pb::ApplyJobRequest>) -> Answer<pb::AppliedJob> {
        let missing = || Invalid::new(Code::BAD_VALUE, "job", "missing", "the definition of a job");
        let job = request.into_inner().job.ok_or_else(|| invalid(missing()))?;
        // Also what is refused is about something.
        audit::object("job", &job.name);
        let document = convert::document_from(job).map_err(invalid)?;
        Ok(Response::new(convert::applied(self.ops.apply(document).await?)))
    }

    async fn get(&self, request: Request<pb::JobName>) -> Answer<pb::Job> {
        let request = request.into_inner();
        let name = name("name", &request.name)?;
        let view = match tree(request.tree)? {
            Some(path) => self.ops.get_job_at(&name, &path).await?,
            None => self.ops.get_job(&name).await?,
        };
        Ok(Response::new(convert::job(view)))
    }

    async fn list(&self, request: Request<pb::ListJobsRequest>) -> Answer<pb::JobList> {
        let request = request.into_inner();
        let filter = JobFilter {
            name: optional(request.name),
            node: optional(request.node).map(|n| name("node", &n)).transpose()?,
            tree: tree(request.tree)?,
            limit: Some(request.limit).filter(|n| *n > 0),
            cursor: optional(request.cursor),
        };
        let list = self.ops.list_jobs(&filter).await?;
        let jobs = list.jobs.into_iter().map(convert::job_summary).collect();
        Ok(Response::new(pb::JobList { jobs, next: list.next.unwrap_or_default() }))
    }

    async fn delete(&self, request: Request<pb::JobName>) -> Answer<pb::AppliedJob> {
        let request = request.into_inner();
        let name = name("name", &request.name)?;
        let path = tree(request.tree)?.unwrap_or_default();
        Ok(Response::new(convert::applied(self.ops.delete_job(&name, &path).await?)))
    }

    async fn pause(&self, request: Request<pb::JobName>) -> Answer<pb::AppliedJob> {
        let name = name("name", &request.into_inner().name)?;
        let applied = self.ops.set_status(&name, JobStatus::Pause).await?;
        Ok(Response::new(convert::applied(applied)))
    }

    async fn resume(&self, request: Request<pb::JobName>) -> Answer<pb::AppliedJob> {
        let name = name("name", &request.into_inner().name)?;
        let applied = self.ops.set_status(&name, JobStatus::Running).await?;
        Ok(Response::new(convert::applied(applied)))
    }

    async fn trigger(&self, request: Request<pb::TriggerRequest>) -> Answer<pb::Triggered> {
        let request = request.into_inner();
        let name = name("name", &request.name)?;
        let ttl = duration("ttl", &request.ttl)?;
        let delay = duration("delay", &request.delay)?;
        let at = request.at.map(|t| convert::time_from("at", t)).transpose().map_err(invalid)?;
        let what = TriggerRequest { target: optional(request.target), ttl, delay, at };
        let runs = self.ops.trigger(&name, &what).await?.runs;
        Ok(Response::new(pb::Triggered { runs: runs.into_iter().map(convert::run_ref).collect() }))
    }

    async fn next(&self, request: Request<pb::NextRequest>) -> Answer<pb::Instants> {
        let request = request.into_inner();
        let slots = self.ops.next_slots(&name("name", &request.name)?, count(request.n)).await?;
        Ok(Response::new(pb::Instants { instants: slots.into_iter().map(convert::time).collect() }))
    }

    async fn explain(&self, request: Request<pb::ExplainRequest>) -> Answer<pb::JobExplanation> {
        let request = request.into_inner();
        let name = name("name", &request.name)?;
        let target = optional(request.target).unwrap_or_else(|| "all".into());
        let target = Target::parse(&target).map_err(invalid)?;
        Ok(Response::new(convert::explanation(self.ops.explain(&name, &target).await?)))
    }

    async fn stats(&self, request: Request<pb::HistoryRequest>) -> Answer<pb::JobStats> {
        let r = request.into_inner();
        let name = name("name", &r.name)?;
        let (since, until) = (instant("since", r.since)?, instant("until", r.until)?);
        let stats = self.ops.job_stats(&name, since, until).await?;
        Ok(Response::new(history::job_stats(stats)))
    }

    async fn gaps(&self, request: Request<pb::HistoryRequest>) -> Answer<pb::JobGaps> {
        let r = request.into_inner();
        let name = name("name", &r.name)?;
        let (since, until) = (instant("since", r.since)?, instant("until", r.until)?);
        Ok(Response::new(history::job_gaps(self.ops.job_gaps(&name, since, until).await?)))
    }
}

#[tonic::async_trait]
impl Runs for Public {
    type OutputStream = Events<pb::OutputEvent>;

    async fn list(&self, request: Request<pb::ListRunsRequest>) -> Answer<pb::RunList> {
        let query = run_query(&self.ops, request.into_inner()).await?;
        let list = self.ops.list_runs(&query).await?;
        Ok(Response::new(pb::RunList {
            runs: list.runs.into_iter().map(convert::run).collect(),
            next: list.next.unwrap_or_default(),
        }))
    }

    async fn search(&self, request: Request<pb::SearchRunsRequest>) -> Answer<pb::SearchPage> {
        let r = request.into_inner();
        let query = run_query(&self.ops, r.runs.unwrap_or_default()).await?;
        Ok(Response::new(history::search_page(self.ops.search_runs(&query, &r.q).await?)))
    }

    async fn get(&self, request: Request<pb::RunId>) -> Answer<pb::Run> {
        let id = run_id(&request.into_inner().run_id)?;
        Ok(Response::new(convert::run(self.ops.get_run(id).await?)))
    }

    async fn output(&self, request: Request<pb::OutputRequest>) -> Answer<Self::OutputStream> {
        refuse_loop(&self.ops, &request)?;
        let r = request.into_inner();
        let id = run_id(&r.run_id)?;
        if !r.follow {
            let (chunks, _) =
                self.ops.output(id, r.after, meepo_logstore::MAX_OUTPUT_CHUNKS).await?;
            let events = chunks.into_iter().map(|c| {
                let event = Some(output_event::Event::Output(convert::chunk(c)));
                Ok(pb::OutputEvent { event })
            });
            return Ok(Response::new(Box::pin(tokio_stream::iter(events.collect::<Vec<_>>()))));
        }
        let items = ReceiverStream::new(self.ops.follow(id, r.after).await?);
        Ok(Response::new(Box::pin(items.map(|item| {
            let event = match item {
                FollowItem::Output(chunk) => output_event::Event::Output(convert::chunk(chunk)),
                FollowItem::End(record) => output_event::Event::End(convert::run(*record)),
                FollowItem::Error(e) => return Err(e.into()),
            };
            Ok(pb::OutputEvent { event: Some(event) })
        }))))
    }

    async fn kill(&self, request: Request<pb::RunId>) -> Answer<pb::RunRef> {
        refuse_loop(&self.ops, &request)?;
        let id = run_id(&request.into_inner().run_id)?;
        Ok(Response::new(convert::run_ref(self.ops.kill(id).await?)))
    }
}

#[tonic::async_trait]
impl Nodes for Public {
    async fn list(&self, request: Request<pb::ListNodesRequest>) -> Answer<pb::NodeList> {
        let target = optional(request.into_inner().target).map(|t| Target::parse(&t)).transpose();
        let list = self.ops.list_nodes(target.map_err(invalid)?.as_ref()).await?;
        Ok(Response::new(pb::NodeList {
            nodes: list.nodes.into_iter().map(convert::node).collect(),
            stale: list.stale.unwrap_or_default(),
        }))
    }

    async fn label(&self, request: Request<pb::LabelRequest>) -> Answer<pb::Node> {
        let r = request.into_inner();
        let id = name("id", &r.id)?;
        let set = r.set.into_iter().map(|(key, value)| (key, Some(value)));
        let labels = r.remove.into_iter().map(|key| (key, None)).chain(set).collect();
        let node = self.ops.label_node(&id, &LabelsRequest { labels }).await?;
        Ok(Response::new(convert::node(node)))
    }

    async fn get(&self, request: Request<pb::NodeName>) -> Answer<pb::Node> {
        let id = name("id", &request.into_inner().id)?;
        Ok(Response::new(convert::node(self.ops.get_node(&id).await?)))
    }

    async fn drain(&self, request: Request<pb::DrainRequest>) -> Answer<pb::Node> {
        let r = request.into_inner();
        let id = name("id", &r.id)?;
        let what = DrainRequest { deadline: duration("deadline", &r.deadline)? };
        Ok(Response::new(convert::node(self.ops.drain_node(&id, &what).await?)))
    }

    async fn undrain(&self, request: Request<pb::NodeName>) -> Answer<pb::Node> {
        let id = name("id", &request.into_inner().id)?;
        Ok(Response::new(convert::node(self.ops.undrain_node(&id).await?)))
    }
}

#[tonic::async_trait]
impl Exec for Public {
    type RunStream = Events<pb::ExecEvent>;

    async fn run(&self, request: Request<pb::ExecRequest>) -> Answer<Self::RunStream> {
        refuse_loop(&self.ops, &request)?;
        let r = request.into_inner();
        let executor = match r.executor.as_str() {
            "" => Executor::default(),
            name => name.parse().map_err(invalid)?,
        };
        let what = ExecStreamRequest {
            target: r.target,
            cmd: r.cmd,
            args: r.args,
            executor,
            timeout: duration("timeout", &r.timeout)?,
            env: r.env.into_iter().collect(),
            cwd: optional(r.cwd),
            user: optional(r.user),
            probe: optional(r.probe),
        };
        let items = ReceiverStream::new(self.ops.exec_request(r.hosts, &what).await?);
        Ok(Response::new(Box::pin(items.map(|item| {
            let event = match item {
                ExecItem::Start(hosts) => exec_event::Event::Start(pb::ExecStart {
                    hosts: hosts
                        .into_iter()
                        .map(|h| pb::ExecHost {
                            host: h.host,
                            run_id: h.run_id.map(|id| id.to_string()).unwrap_or_default(),
                        })
                        .collect(),
                }),
                ExecItem::Output(host, chunk) => exec_event::Event::Output(pb::ExecOutput {
                    host,
                    output: Some(convert::chunk(chunk)),
                }),
                ExecItem::End(answer, run) => exec_event::Event::End(exec_end(answer, run)),
                ExecItem::Probe(answer, run) => exec_event::Event::Probe(exec_end(answer, run)),
                ExecItem::Chosen(hosts) => exec_event::Event::Chosen(pb::ExecChosen { hosts }),
                ExecItem::Error(e) => return Err(e.into()),
            };
            Ok(pb::ExecEvent { event: Some(event) })
        }))))
    }
}

#[tonic::async_trait]
impl Cron for Public {
    async fn next(&self, request: Request<pb::CronNextRequest>) -> Answer<pb::Instants> {
        let r = request.into_inner();
        let schedule = Schedule::parse(&r.expr).map_err(|e| invalid(e.at("expr")))?;
        let zone = calendar::time_zone(if r.tz.is_empty() { "UTC" } else { &r.tz });
        let zone = zone.map_err(|e| invalid(e.at("tz")))?;
        let from = r.from.map(|t| convert::time_from("from", t)).transpose().map_err(invalid)?;
        let slots = schedule.iter_after(from.unwrap_or_else(Timestamp::now), &zone);
        let instants = slots.take(count(r.n)).map(convert::time).collect();
        Ok(Response::new(pb::Instants { instants }))
    }
}

fn exec_end(answer: HostAnswer, run: Option<Box<RunRecord>>) -> pb::ExecEnd {
    pb::ExecEnd {
        host: answer.host,
        resp: answer.resp,
        retcode: answer.retcode.0.into(),
        message: answer.message,
        run: run.map(|r| convert::run(*r)),
        data: answer.data,
    }
}

/// A forwarded call that meets no leader is not forwarded again.
fn refuse_loop<T>(ops: &Ops, request: &Request<T>) -> Result<(), Status> {
    if request.metadata().contains_key(FORWARDED) && ops.term().is_none() {
        return Err(ApiError::new(Code::NO_LEADER, "this master does not lead").into());
    }
    Ok(())
}
