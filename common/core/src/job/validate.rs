//! What the types of a job's fields alone do not check.

use super::{
    Assignment, Executor, JobSpec, MAX_JITTER, MAX_MISFIRE_CAP, MAX_OUTPUT_LIMIT, MAX_TIMEOUT,
    MIN_WATCH, OnNodeLoss, Placement, When,
};
use crate::{
    calendar::{self, Schedule},
    code::Code,
    error::Invalid,
    http_job::{HttpRequest, parse_url},
    retry::{Outcome, Retry},
    secret,
    target::Target,
};

impl JobSpec {
    /// Checks every field that its type alone does not.
    pub fn validate(&self) -> Result<(), Invalid> {
        if let Some(what) = Target::parse(&self.target)?.asks_for_load() {
            let problem =
                format!("`{what}` changes from moment to moment: the job would move with it");
            let expected = "labels and facts that stay; for commands and tasks it is fine";
            return Err(Invalid::new(Code::BAD_TARGET, "target", problem, expected));
        }
        let at_boot = self.schedule.as_ref().is_some_and(|s| s.trim().starts_with("@reboot"));
        if at_boot && self.placement == Placement::Once {
            let expected = "`each`: hosts start at different times";
            return bad("placement", "`once` and @reboot have no meaning together", expected);
        }
        let reruns = self.on_node_loss == OnNodeLoss::Rerun;
        if reruns && self.placement != Placement::Once {
            let problem = "`rerun` only has a meaning where one node runs a slot for all";
            return bad("on_node_loss", problem, "`placement: once`, or `fail`");
        }
        let tries_lost = |r: &Retry| r.on.as_ref().is_some_and(|on| on.contains(&Outcome::Lost));
        if reruns && self.retry.as_ref().is_some_and(tries_lost) {
            let problem = "beside `retry` on `lost`: the slot would run on two nodes";
            return bad("on_node_loss", problem, "one of them");
        }
        if self.survive_restart && self.placement == Placement::Once {
            return alone("placement", "`placement: each`");
        }
        self.assignment(None, Vec::new()).validate().map(drop)
    }
}

fn bad<T>(field: &str, problem: impl Into<String>, expected: &str) -> Result<T, Invalid> {
    Err(Invalid::new(Code::BAD_VALUE, field, problem, expected))
}

/// `survive_restart` and a field that needs a living worker.
fn alone<T>(other: &str, instead: &str) -> Result<T, Invalid> {
    let problem = format!(
        "cannot be combined with `{other}`: while no worker lives, nobody could end a run that has \
         lost its right to run"
    );
    bad("survive_restart", problem, &format!("{instead}, or no `survive_restart`"))
}

impl Assignment {
    /// Checks every field that its type alone does not; answers when it fires
    /// (`None`: only on demand).
    pub fn validate(&self) -> Result<Option<When>, Invalid> {
        check_command(self.executor, &self.cmd, &self.args)?;
        secret::check(self)?;
        self.check_process()?;
        self.check_request()?;
        self.check_policies()?;
        self.when()
    }

    /// The process' surroundings.
    fn check_process(&self) -> Result<(), Invalid> {
        for (k, v) in &self.env {
            if k.is_empty() || k.contains(['=', '\0']) || v.contains('\0') {
                let expected = "a name without '=' and text without NUL";
                return bad(&format!("env.{k}"), "not a valid environment variable", expected);
            }
        }
        if self.cwd.as_ref().is_some_and(|c| !c.starts_with('/') || c.contains('\0')) {
            return bad("cwd", "not an absolute path", "a path that starts with '/'");
        }
        if self.user.as_ref().is_some_and(|u| u.is_empty() || u.contains(['\0', ':'])) {
            return bad("user", "not a user name", "the name of a user on the node");
        }
        if self.group.as_ref().is_some_and(|g| g.is_empty() || g.contains(['\0', ':'])) {
            return bad("group", "not a group name", "the name of a group on the node");
        }
        if self.nice.is_some_and(|n| !(-20..=19).contains(&n)) {
            return bad("nice", "out of range", "-20 (first) to 19 (last)");
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.validate()?;
        }
        if let Some(plan) = &self.kill_plan {
            plan.validate()?;
        }
        if self.output_limit.is_some_and(|l| l > MAX_OUTPUT_LIMIT) {
            let problem = format!("more than {MAX_OUTPUT_LIMIT}");
            return bad("output_limit", problem, "a number of bytes up to 16777216");
        }
        Ok(())
    }

    /// What belongs to a request, and what does not.
    fn check_request(&self) -> Result<(), Invalid> {
        if self.executor != Executor::Http {
            return match self.http {
                Some(_) => bad("http", "of no use to a process", "`executor: http`, or no `http`"),
                None => Ok(()),
            };
        }
        let given = [
            ("env", !self.env.is_empty()),
            ("cwd", self.cwd.is_some()),
            ("user", self.user.is_some()),
            ("group", self.group.is_some()),
            ("umask", self.umask.is_some()),
            ("nice", self.nice.is_some()),
            ("rlimits", self.rlimits.given().next().is_some()),
            ("session", self.session),
            ("cgroup", self.cgroup.is_some()),
            ("kill_plan", self.kill_plan.is_some()),
            ("stdin", self.stdin.is_some()),
            ("survive_restart", self.survive_restart),
        ];
        if let Some((field, _)) = given.into_iter().find(|(_, given)| *given) {
            let expected = "no such field with `executor: http`; a body stands in http.body";
            return bad(field, "a request is made without a process", expected);
        }
        self.http.as_ref().map_or(Ok(()), HttpRequest::validate)
    }

    /// Limits and policies.
    fn check_policies(&self) -> Result<(), Invalid> {
        if self.timeout.is_some_and(|t| t.0.is_zero() || t.0 > MAX_TIMEOUT) {
            let expected = "a positive duration such as 30s, at most a year";
            return bad("timeout", "out of range", expected);
        }
        if self.misfire_cap.is_some_and(|c| c == 0 || c > MAX_MISFIRE_CAP) {
            return bad("misfire_cap", "out of range", "1 to 1000");
        }
        if self.max_runs == Some(0) {
            let expected = "1 or more; `status: pause` keeps a job from running";
            return bad("max_runs", "no runs at all", expected);
        }
        if self.jitter.is_some_and(|j| j.0 > MAX_JITTER) {
            return bad("jitter", "out of range", "a duration of at most a day, such as 30s");
        }
        if let (Some(start), Some(end)) = (self.start_at, self.end_at)
            && end < start
        {
            return bad("end_at", format!("{end} is before start_at"), "a later instant");
        }
        if self.survive_restart && self.is_once() {
            return alone("once", "no `once`");
        }
        if self.survive_restart && self.lock.is_some() {
            return alone("lock", "no `lock`");
        }
        if let Some(lock) = &self.lock {
            lock.validate()?;
        }
        if let Some(retry) = &self.retry {
            retry.validate()?;
        }
        self.check_watch()
    }

    /// What is told of it.
    fn check_watch(&self) -> Result<(), Invalid> {
        let watched = MIN_WATCH..=MAX_TIMEOUT;
        for (field, given) in
            [("warn_after", self.warn_after), ("expect_success_within", self.expect_success_within)]
        {
            if given.is_some_and(|d| !watched.contains(&d.0)) {
                return bad(field, "out of range", "a duration of 1s to a year, such as 30m");
            }
        }
        if let (Some(warn), Some(timeout)) = (self.warn_after, self.timeout)
            && warn >= timeout
        {
            let problem = "no run takes that long: it is ended before";
            return bad("warn_after", problem, "less than `timeout`");
        }
        self.notify.as_ref().map_or(Ok(()), |notify| notify.validate())
    }

    /// When it fires (`None`: only on demand).
    fn when(&self) -> Result<Option<When>, Invalid> {
        let zone = self.timezone.as_deref().unwrap_or("UTC");
        let timezone = calendar::time_zone(zone)?;
        if self.express.trim().is_empty() {
            return Ok(None);
        }
        // In etcd the field is called `express`, in job files `schedule`: the error keeps
        // the name that people write most.
        let schedule = Schedule::parse(&self.express)?;
        if schedule.is_reboot() && self.is_once() {
            let problem = "stands beside @reboot: hosts start at different times, so there is no \
                           slot that one of them could claim";
            return bad("once", problem, "no `once` (it fires on each node), or another schedule");
        }
        Ok(Some(When::new(schedule, timezone).between(self.start_at, self.end_at)))
    }
}

/// Checks that `cmd` and `args` can be handed to `execve(2)`, or are a URL and nothing.
pub fn check_command(executor: Executor, cmd: &str, args: &[String]) -> Result<(), Invalid> {
    if cmd.trim().is_empty() {
        let expected = match executor {
            Executor::Exec => "the path of a program",
            Executor::Http => "a URL such as https://example.org/hook",
            _ => "a command such as `date -u`",
        };
        return Err(Invalid::new(Code::EMPTY_COMMAND, "cmd", "empty command", expected));
    }
    if cmd.contains('\0') || args.iter().any(|a| a.contains('\0')) {
        return bad("cmd", "contains a NUL character", "text without NUL");
    }
    if executor == Executor::Http {
        if !args.is_empty() {
            return bad("args", "a request takes none", "a URL as cmd, and nothing else");
        }
        parse_url(cmd)?;
    }
    Ok(())
}
