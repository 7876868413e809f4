//! Questions about what was: statistics, what did not run, text in output.

use super::Ops;
use crate::error::ApiResult;
use jiff::{SignedDuration, Timestamp};
use meepo_coord::keys;
use meepo_core::{
    auth::Permission,
    code::Code,
    error::Invalid,
    history::{Gaps, JobStats, SearchPage, Seen, gaps},
    id::{Name, NodeId},
    job::{Assignment, JobStatus, When},
    run::{Cause, to_millis},
    target,
};
use meepo_logstore::{RunQuery, job_stats, search};
use std::collections::{BTreeMap, BTreeSet};

/// How far back statistics go unless asked otherwise.
const STATS_SPAN: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How far back gaps are looked for unless asked otherwise.
const GAPS_SPAN: SignedDuration = SignedDuration::from_hours(24);
/// A slot this young, and the job's jitter more, may be on its way to the log store.
const SETTLED: SignedDuration = SignedDuration::from_secs(60);
/// Most slots looked at in one answer, over all nodes.
const MAX_DUE: usize = 10_000;
/// Most records looked at in one answer, in pages of as many as a page can have.
const MAX_PAGES: usize = 20;
/// Most nodes of which the past is looked up one by one.
const MAX_LOOKUPS: usize = 50;
/// Most jobs that a pattern may mean.
const MAX_JOBS: usize = 1_000;

impl Ops {
    /// The jobs that `text` names: names and patterns with `*` and `?`, separated by commas.
    /// Patterns mean jobs that are there now.
    pub async fn jobs_named(&self, text: &str) -> ApiResult<Vec<Name>> {
        let (mut names, mut patterns) = (BTreeSet::new(), Vec::new());
        for part in text.split(',') {
            if part.contains(['*', '?']) {
                patterns.push(part);
            } else {
                names.insert(Name::new(part).map_err(|e| e.at("job"))?);
            }
        }
        if !patterns.is_empty() {
            let jobs = self.job_names().await?.into_iter();
            let fits = |name: &Name| patterns.iter().any(|p| target::glob(p, name.as_str()));
            names.extend(jobs.filter(fits));
        }
        let bad = |problem: String, expected: &str| -> ApiResult<Vec<Name>> {
            Err(Invalid::new(Code::BAD_VALUE, "job", problem, expected).into())
        };
        match names.len() {
            0 => bad(
                format!("no job matches {text}"),
                "the name of a job, or a pattern such as backup-*",
            ),
            n if n > MAX_JOBS => bad(format!("{n} jobs match {text}"), "a pattern of fewer jobs"),
            _ => Ok(names.into_iter().collect()),
        }
    }

    /// Runs in whose output a text stands, newest first.
    pub async fn search_runs(&self, query: &RunQuery, text: &str) -> ApiResult<SearchPage> {
        let mut page = search(&*self.store, query, text.as_bytes()).await?;
        let sight = self.sight(Permission::RunRead);
        page.hits.retain(|hit| sight.node(&hit.run.node));
        Ok(page)
    }

    /// How a job did since an instant, or in the last 30 days.
    pub async fn job_stats(
        &self,
        job: &Name,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> ApiResult<JobStats> {
        self.demand_whole_job(job).await?;
        let since = since.unwrap_or_else(|| ago(STATS_SPAN));
        // Of a job that is no more there are still its runs.
        let next = match self.find_job(job).await {
            Ok(view) => view.next,
            Err(e) if e.0.code == Code::NOT_FOUND => None,
            Err(e) => return Err(e),
        };
        let stats = job_stats(&*self.store, job, Some(since), until).await?;
        Ok(JobStats { next, ..stats })
    }

    /// The slots of a job since an instant, or in the last day, that did not run: recorded
    /// as missed or skipped, or due by the schedule as it is now and on no record.
    pub async fn job_gaps(
        &self,
        job: &Name,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> ApiResult<Gaps> {
        self.demand_whole_job(job).await?;
        let nodes: Vec<NodeId> =
            self.find_job(job).await?.nodes.into_iter().map(|n| n.node).collect();
        let wanted: Vec<_> = nodes.iter().map(|node| keys::assignment(node, job)).collect();
        let entries = self.etcd.get_all(&wanted).await?;
        let assignments: Vec<(NodeId, Assignment)> = entries
            .iter()
            .filter_map(|e| {
                let (node, _) = keys::node_and_job(&e.key, keys::ASSIGNMENTS)?;
                Some((node, Assignment::from_etcd(&e.value).ok()?))
            })
            .collect();
        let jitter = assignments.iter().filter_map(|(_, a)| a.jitter).map(|j| j.0).max();
        let settled =
            ago(SETTLED + SignedDuration::try_from(jitter.unwrap_or_default()).unwrap_or_default());
        let until = until.map_or(settled, |u| u.min(settled));
        let since = to_millis(since.unwrap_or_else(|| ago(GAPS_SPAN))).min(until);

        let (seen, since, all_read) = self.seen(job, since, until).await?;
        let mut answer = Gaps {
            job: job.clone(),
            since,
            until,
            due: 0,
            ran: 0,
            gaps: Vec::new(),
            silent: Vec::new(),
            complete: all_read,
        };
        let due = self.due(&mut answer, &assignments, &seen).await?;
        let seen: Vec<Seen> = seen.into_iter().filter(|s| s.slot <= answer.until).collect();
        answer.due = due.len() as u64;
        (answer.ran, answer.gaps) = gaps(&due, &seen);
        Ok(answer)
    }

    /// What is recorded of a job's scheduled slots in `(since, until]`; from where on that is
    /// all there is; and whether that is the whole time.
    async fn seen(
        &self,
        job: &Name,
        since: Timestamp,
        until: Timestamp,
    ) -> ApiResult<(Vec<Seen>, Timestamp, bool)> {
        let mut query = RunQuery {
            job: Some(job.clone()),
            since: Some(since + SignedDuration::from_millis(1)),
            until: Some(until + SignedDuration::from_millis(1)),
            limit: Some(meepo_logstore::MAX_RUNS),
            ..RunQuery::default()
        };
        let mut seen: Vec<Seen> = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = self.store.list_runs(&query).await?;
            let by_schedule = page
                .runs
                .into_iter()
                .filter(|r| matches!(r.cause, Cause::Schedule | Cause::Misfire));
            seen.extend(by_schedule.map(|r| Seen {
                node: r.node,
                slot: r.slot,
                state: r.state,
                run_id: r.run_id,
                message: r.message,
            }));
            match page.next {
                Some(next) => query.cursor = Some(next),
                None => return Ok((seen, since, true)),
            }
        }
        let oldest = seen.last().map_or(since, |s| s.slot);
        Ok((seen, oldest, false))
    }

    /// The slots that were due on nodes of which is known that they had the job then. May
    /// draw `until` nearer, where there are too many.
    async fn due(
        &self,
        answer: &mut Gaps,
        assignments: &[(NodeId, Assignment)],
        seen: &[Seen],
    ) -> ApiResult<Vec<(Timestamp, Option<NodeId>)>> {
        let mut first: BTreeMap<&NodeId, Timestamp> = BTreeMap::new();
        for s in seen {
            let at = first.entry(&s.node).or_insert(s.slot);
            *at = s.slot.min(*at);
        }
        let once = assignments.iter().any(|(_, a)| a.is_once());
        let mut places: Vec<(Option<&NodeId>, When, Timestamp)> = Vec::new();
        let mut lookups = 0;
        for (node, a) in assignments {
            // What `max_runs` leaves is counted elsewhere, and since when it is paused is not
            // known: of these there is only what is recorded.
            let running = a.status == JobStatus::Running && a.max_runs.is_none();
            let Some(when) = a.validate()?.filter(|_| running) else { continue };
            let (place, first) = match once {
                // Whoever ran it: it was there.
                true => (None, first.values().min()),
                false => (Some(node), first.get(node)),
            };
            let from_start =
                first.is_some_and(|f| when.next_after(answer.since).is_some_and(|slot| *f <= slot));
            let before = from_start || {
                lookups += 1;
                lookups <= MAX_LOOKUPS
                    && self.known_before(&answer.job, place, answer.since).await?
            };
            match (before, first) {
                (true, _) => places.push((place, when, answer.since)),
                // It begins with its first slot.
                (false, Some(first)) => {
                    places.push((place, when, *first - SignedDuration::from_millis(1)));
                }
                (false, None) => answer.silent.push(node.clone()),
            }
            if once {
                let others = assignments.iter().map(|(node, _)| node.clone());
                answer.silent = if places.is_empty() { others.collect() } else { Vec::new() };
                break;
            }
        }
        let share = MAX_DUE / places.len().max(1);
        let mut due = Vec::new();
        for (node, when, from) in places {
            let mut slots = when.iter_after(from).take_while(|s| *s <= answer.until);
            let mine: Vec<_> = slots.by_ref().take(share.max(1)).collect();
            if let (Some(last), Some(_)) = (mine.last(), slots.next()) {
                (answer.until, answer.complete) = (*last, false);
            }
            due.extend(mine.into_iter().map(|slot| (slot, node.cloned())));
        }
        due.retain(|(slot, _)| *slot <= answer.until);
        Ok(due)
    }

    /// Whether a job was run or missed on a node (or any) at `until` or before.
    async fn known_before(
        &self,
        job: &Name,
        node: Option<&NodeId>,
        until: Timestamp,
    ) -> ApiResult<bool> {
        let query = RunQuery {
            job: Some(job.clone()),
            node: node.cloned(),
            until: Some(until + SignedDuration::from_millis(1)),
            limit: Some(1),
            ..RunQuery::default()
        };
        Ok(!self.store.list_runs(&query).await?.runs.is_empty())
    }
}

fn ago(span: SignedDuration) -> Timestamp {
    let now = to_millis(Timestamp::now());
    now.checked_sub(span).unwrap_or(Timestamp::UNIX_EPOCH)
}
