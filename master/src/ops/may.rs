//! What whoever a request is served for may see and do of the fleet. Whether the operation is
//! allowed at all was asked before; here it is about which nodes, jobs and commands.
//!
//! What a caller may not see is not there for it; what it may see and not do is refused.

use super::Ops;
use crate::{
    auth::{Caller, current},
    error::{ApiError, ApiResult},
    events::{Begin, Item},
    view::{Data, View},
};
use meepo_core::{
    api::{ExecStreamRequest, JobView},
    auth::{Command, Permission},
    code::Code,
    event::{Event, Filter},
    id::{Name, NodeId, RunId},
    job::Assignment,
    node::NodeInfo,
    target::Target,
    task::{PartView, Task, TaskRequest, TaskView},
    tree::{Definitions, TreePath},
};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Hosts that a refusal names.
const NAMED: usize = 10;
/// Events on their way to a listener.
const BACKLOG: usize = 64;

/// What a caller may do this to.
pub(super) struct Sight {
    /// `None`: to everything.
    limited: Option<Arc<Caller>>,
    permission: Permission,
    view: View,
}

impl Sight {
    /// Whether nothing is out of it.
    pub(super) fn all(&self) -> bool {
        self.limited.is_none()
    }

    fn at(&self, data: &Data, id: &NodeId) -> bool {
        let Some(caller) = &self.limited else { return true };
        caller.access.may_on(self.permission, data.fleet.nodes().get(id), None)
    }

    /// Whether a node is in it.
    pub(super) fn node(&self, id: &NodeId) -> bool {
        self.all() || self.at(&self.view.read(), id)
    }

    /// Whether a node as it stands in etcd is in it.
    pub(super) fn info(&self, node: &NodeInfo) -> bool {
        let Some(caller) = &self.limited else { return true };
        caller.access.may_on(self.permission, Some(node), None)
    }

    /// Whether everything that a target can mean is in it.
    fn target(&self, data: &Data, target: &str) -> bool {
        let Some(caller) = &self.limited else { return true };
        let Ok(target) = Target::parse(target) else { return false };
        caller.access.may_at(self.permission, &target, data.fleet.nodes(), None)
    }

    /// Whether a job is in it: one of its nodes is, or all of what its target means.
    pub(super) fn job(&self, name: &Name) -> bool {
        self.all() || self.job_in(&self.view.read(), name)
    }

    pub(super) fn job_in(&self, data: &Data, name: &Name) -> bool {
        if self.all() {
            return true;
        }
        let by_hand = data.by_hand.get(name).into_iter().flatten().map(|(node, _)| node);
        let mut nodes = data.fleet.holders(name).map(|(node, _)| node).chain(by_hand);
        if nodes.any(|node| self.at(data, node)) {
            return true;
        }
        let Some(all) = data.fleet.definitions(name) else { return false };
        let mut resolved = all.0.keys().filter_map(|path| all.resolve(path).ok());
        resolved.any(|r| self.target(data, &r.spec.target))
    }

    /// Whether all nodes of a task, or all that may serve its queue, are in it.
    pub(super) fn task(&self, view: &TaskView) -> bool {
        self.task_on(view.target.as_deref(), view.parts.iter().map(|p: &PartView| p.node.as_ref()))
    }

    /// The same, of a task as it stands in etcd.
    pub(super) fn task_of(&self, task: &Task) -> bool {
        self.task_on(task.target.as_deref(), task.parts.iter().map(|p| p.node.as_ref()))
    }

    fn task_on<'a>(
        &self,
        target: Option<&str>,
        nodes: impl IntoIterator<Item = Option<&'a NodeId>>,
    ) -> bool {
        if self.all() {
            return true;
        }
        let data = self.view.read();
        let (mut nodes, mut any) = (nodes.into_iter(), false);
        let all = nodes.all(|node| {
            any = true;
            match node {
                Some(node) => self.at(&data, node),
                None => self.target(&data, target.unwrap_or("all")),
            }
        });
        all && any
    }
}

fn denied(who: &str, permission: Permission, what: &str) -> ApiError {
    ApiError::new(Code::DENIED, format!("{who} may not do this to {what} ({permission})"))
}

/// `a, b and 3 more`.
fn named(hosts: &[&str]) -> String {
    let some = hosts.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match hosts.len().saturating_sub(NAMED) {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}

impl Ops {
    /// What the caller may do this to.
    pub(super) fn sight(&self, permission: Permission) -> Sight {
        let limited = current().filter(|c| !c.access.may_everywhere(permission));
        Sight { limited, permission, view: self.view.clone() }
    }

    /// # Errors
    /// When the caller may not do this to a node.
    pub(super) fn demand_node(&self, permission: Permission, id: &NodeId) -> ApiResult<()> {
        let sight = self.sight(permission);
        match &sight.limited {
            Some(caller) if !sight.node(id) => {
                Err(denied(&caller.name, permission, &format!("node {id}")))
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// When the caller may not run this on one of the hosts; names those.
    pub(super) fn demand_hosts<'a>(
        &self,
        permission: Permission,
        hosts: impl IntoIterator<Item = (&'a str, &'a Command)>,
    ) -> ApiResult<()> {
        let Some(caller) = current() else { return Ok(()) };
        let data = self.view.read();
        let may = |host: &str, command: &Command| {
            let node = Name::new(host).ok().and_then(|id| data.fleet.nodes().get(&id));
            caller.access.may_on(permission, node, Some(command))
        };
        let mut refused: Vec<&str> = Vec::new();
        for (host, command) in hosts {
            if !may(host, command) && refused.last() != Some(&host) {
                refused.push(host);
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        let what = format!("{}, or not with this command and user", named(&refused));
        Err(denied(&caller.name, permission, &what))
    }

    /// # Errors
    /// As [`Ops::demand_hosts`], for a command that is to run now.
    pub(super) fn demand_exec(
        &self,
        hosts: &[String],
        request: &ExecStreamRequest,
    ) -> ApiResult<()> {
        let command = Command::of(&super::exec::assignment_of(request));
        self.demand_hosts(Permission::Exec, hosts.iter().map(|h| (h.as_str(), &command)))
    }

    /// # Errors
    /// When the caller may not do this wherever the definitions of a job lead, now or later.
    /// With `commands`, what they run counts, too. Those that `which` names alone.
    pub(super) fn demand_job(
        &self,
        permission: Permission,
        all: &Definitions,
        commands: bool,
        which: impl Fn(&TreePath) -> bool,
    ) -> ApiResult<()> {
        let Some(caller) = current() else { return Ok(()) };
        let data = self.view.read();
        for path in all.0.keys().filter(|path| which(path)) {
            let Ok(resolved) = all.resolve(path) else {
                if caller.access.may_everywhere(permission) {
                    continue;
                }
                return Err(denied(&caller.name, permission, "a definition that cannot be read"));
            };
            let spec = resolved.spec;
            let command = commands.then(|| Command::of(&spec.assignment(None, Vec::new())));
            let target = Target::parse(&spec.target)?;
            let nodes = data.fleet.nodes();
            if !caller.access.may_at(permission, &target, nodes, command.as_ref()) {
                let with = if commands { ", or not with its command and user" } else { "" };
                let what = format!("all of target `{target}` of job {}{with}", spec.name);
                return Err(denied(&caller.name, permission, &what));
            }
        }
        Ok(())
    }

    /// # Errors
    /// When the caller may not do this to a job of which there are perhaps no definitions, but
    /// assignments that were put by hand.
    pub(super) async fn demand_job_named(
        &self,
        permission: Permission,
        name: &Name,
    ) -> ApiResult<()> {
        let sight = self.sight(permission);
        if sight.all() {
            return Ok(());
        }
        self.demand_job(permission, &self.definitions(name).await?, false, |_| true)?;
        let entries = self.assignments_of(name).await?;
        for (node, _) in entries.iter().filter_map(super::job_view::id_of) {
            self.demand_node(permission, &node)?;
        }
        Ok(())
    }

    /// # Errors
    /// When the caller may not run these on their nodes.
    pub(super) fn demand_places(
        &self,
        permission: Permission,
        places: &[(NodeId, Assignment)],
    ) -> ApiResult<()> {
        if current().is_none() {
            return Ok(());
        }
        let commands: Vec<Command> = places.iter().map(|(_, a)| Command::of(a)).collect();
        let hosts = places.iter().zip(&commands).map(|((node, _), c)| (node.as_str(), c));
        self.demand_hosts(permission, hosts)
    }

    /// # Errors
    /// When the caller may not run the commands of a task on the nodes of its parts, or on all
    /// that may serve its queue.
    pub(super) fn demand_task(&self, request: &TaskRequest, task: &Task) -> ApiResult<()> {
        let Some(caller) = current() else { return Ok(()) };
        let commands: Vec<Command> =
            task.commands.iter().map(|c| Command::of(&c.assignment())).collect();
        if task.queue.is_some() {
            let target = Target::parse(request.target.as_deref().unwrap_or("all"))?;
            let data = self.view.read();
            let nodes = data.fleet.nodes();
            let may =
                |c: &Command| caller.access.may_at(Permission::TaskWrite, &target, nodes, Some(c));
            if !commands.iter().all(may) {
                let what = format!("all of target `{target}`, or not with this command and user");
                return Err(denied(&caller.name, Permission::TaskWrite, &what));
            }
            return Ok(());
        }
        let hosts = task
            .parts
            .iter()
            .filter_map(|p| Some((p.node.as_ref()?.as_str(), commands.get(p.command as usize)?)));
        self.demand_hosts(Permission::TaskWrite, hosts)
    }

    /// # Errors
    /// When a task is not all of it one that the caller may do this to.
    pub(super) fn demand_whole_task(&self, permission: Permission, task: &Task) -> ApiResult<()> {
        let sight = self.sight(permission);
        let nodes = task.parts.iter().map(|p| p.node.as_ref());
        match &sight.limited {
            Some(caller) if !sight.task_on(task.target.as_deref(), nodes) => {
                Err(denied(&caller.name, permission, &format!("all nodes of task {}", task.id)))
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// When a run is on a node that the caller may not see, or nobody knows where.
    pub(super) async fn demand_run(&self, permission: Permission, id: RunId) -> ApiResult<()> {
        let sight = self.sight(permission);
        if sight.all() {
            return Ok(());
        }
        let node = match self.store.get_run(id).await {
            Ok(Some(record)) => Some(record.node),
            _ => self.find_run(id).await?.or_else(|| self.sessions.node_of(id)),
        };
        match node {
            Some(node) if sight.node(&node) => Ok(()),
            _ => Err(ApiError::not_found("run", id)),
        }
    }

    /// A job as the caller may see it: with those of its nodes alone.
    pub(super) fn as_seen(&self, mut view: JobView) -> ApiResult<JobView> {
        let sight = self.sight(Permission::JobRead);
        if sight.all() {
            return Ok(view);
        }
        if !sight.job(&view.name) {
            return Err(ApiError::not_found("job", &view.name));
        }
        view.nodes.retain(|n| sight.node(&n.node));
        Ok(view)
    }

    /// # Errors
    /// When there are nodes of a job that the caller may not see: what is counted over all of
    /// them would tell of those.
    pub(super) async fn demand_whole_job(&self, name: &Name) -> ApiResult<()> {
        let sight = self.sight(Permission::JobRead);
        let Some(caller) = &sight.limited else { return Ok(()) };
        let whole = self.demand_job_named(Permission::JobRead, name).await.is_ok();
        match (sight.job(name), whole) {
            (true, true) => Ok(()),
            (true, false) => {
                let what = format!("all nodes of job {name}");
                Err(denied(&caller.name, Permission::JobRead, &what))
            }
            (false, _) => Err(ApiError::not_found("job", name)),
        }
    }

    /// What happens, as far as the caller may hear it.
    pub async fn listen_events(
        &self,
        filter: Filter,
        begin: Begin,
        follow: bool,
    ) -> ApiResult<mpsc::Receiver<Item>> {
        let mut items = self.events.listen(filter, begin, follow).await?;
        let sight = self.sight(Permission::EventRead);
        if sight.all() {
            return Ok(items);
        }
        let (tx, rx) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            loop {
                let item = tokio::select! {
                    () = tx.closed() => return,
                    item = items.recv() => item,
                };
                let Some(item) = item else { return };
                let heard = match &item {
                    Item::Event(event) => hears(&sight, event),
                    Item::At(_) | Item::End(_) => true,
                };
                if heard && tx.send(item).await.is_err() {
                    return;
                }
            }
        });
        Ok(rx)
    }
}

/// Whether an event is of something in sight. What is of neither a node nor a job is told to
/// who sees everything.
fn hears(sight: &Sight, event: &Event) -> bool {
    match (&event.node, &event.job) {
        (Some(node), _) => sight.node(node),
        (None, Some(job)) => sight.job(job),
        (None, None) => false,
    }
}
