//! The exec helper: does what `posix_spawn(3)` cannot, then becomes the command.
//!
//! A worker starts itself again as `<exe> __exec-helper --nonce N … -- prog args…` with
//! the command's pipes and process group. The options are those of [`Wishes`]; what is
//! absent stays as the worker has it. The command's environment comes in names that mean
//! nothing to the helper ([`wrapped`]): it may run as root, and `LD_PRELOAD` and its like
//! are for the user it becomes. An error before the command
//! takes over must not look like the command's own: the helper then writes one line that
//! begins with [`MARK`] and the nonce to standard error and exits with [`EXIT`]. The nonce
//! is random and gone once the command has taken over, so a command cannot forge that line.

use super::{
    env::{Account, default_cwd},
    error::{StartError, StartProblem},
    procfs::RUN_VARIABLE,
    resolve, surviving,
};
use meepo_core::limits::{Limit, Rlimits, Umask};
use nix::{
    errno::Errno,
    sys::{
        resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, initgroups, setgid, setsid, setuid},
};
use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr, OsString},
    io::Write,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
};

/// The first argument that turns a meepo program into the exec helper.
pub const EXEC_HELPER_ARG: &str = "__exec-helper";

/// What a helper's line on standard error begins with.
const MARK: &str = "meepo-exec-helper";

/// The helper's exit status when the command could not be started.
const EXIT: i32 = 125;

/// What the names of the command's variables begin with as long as the helper runs.
const WRAPPED: &str = "MEEPO_ENV_";

/// A line must fit into a pipe in one piece (4096 bytes), prefix included.
const MAX_MESSAGE: usize = 3000;

/// To be called first thing in `main`, before threads, runtimes or argument parsing:
/// if this process was started as an exec helper it becomes the command, if it was started
/// as the supervisor of a [surviving](super::Surviving) run it serves as that, and the call
/// does not return; otherwise nothing happens.
pub fn exec_helper_entry() {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(a) if a == EXEC_HELPER_ARG => exec_helper_main(args),
        Some(a) if a == surviving::SUPERVISE_ARG => surviving::supervise(args),
        _ => {}
    }
}

/// The exec helper; `args` are those after [`EXEC_HELPER_ARG`].
pub fn exec_helper_main(args: impl IntoIterator<Item = OsString>) -> ! {
    let (nonce, error) = match Plan::parse(args) {
        Ok(plan) => {
            let error = plan.run();
            (plan.nonce, error)
        }
        Err(error) => (String::new(), error),
    };
    let mut message = error.message.replace('\n', " ");
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    }
    let line = format!("{MARK} {nonce} {} {message}\n", error.problem);
    // If even this fails the exit status has to do.
    let _ = std::io::stderr().write_all(line.as_bytes());
    std::process::exit(EXIT)
}

/// What is to be done before the command takes over.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// The control group to enter, as a directory.
    pub(super) cgroup: Option<PathBuf>,
    /// Priority.
    pub(super) nice: Option<i32>,
    /// The account to become.
    pub(super) account: Option<Account>,
    /// Resource limits.
    pub(super) rlimits: Rlimits,
    /// Permissions taken from new files.
    pub(super) umask: Option<Umask>,
    /// Whether to lead a session.
    pub(super) session: bool,
    /// Where to start. Default: the home of the user, else `/`.
    pub(super) cwd: Option<PathBuf>,
}

impl Wishes {
    /// Whether there is anything for which a helper is needed.
    pub(super) fn any(&self) -> bool {
        let Self { cgroup, nice, account, rlimits, umask, session, cwd: _ } = self;
        cgroup.is_some()
            || nice.is_some()
            || account.is_some()
            || rlimits.given().next().is_some()
            || umask.is_some()
            || *session
    }

    /// The helper's arguments for running `program`, [`EXEC_HELPER_ARG`] first.
    pub(super) fn arguments(
        &self,
        nonce: &str,
        program: OsString,
        args: Vec<OsString>,
    ) -> Vec<OsString> {
        let mut out: Vec<OsString> = vec![EXEC_HELPER_ARG.into()];
        let mut put = |name: &str, value: OsString| out.extend([name.into(), value]);
        put("--nonce", nonce.into());
        if let Some(dir) = &self.cgroup {
            put("--cgroup", dir.into());
        }
        if let Some(nice) = self.nice {
            put("--nice", nice.to_string().into());
        }
        if let Some(account) = &self.account {
            put("--user", OsString::from(&account.name));
            put("--uid", account.uid.to_string().into());
            put("--gid", account.gid.to_string().into());
        }
        for (name, limit) in self.rlimits.given() {
            put("--rlimit", format!("{name}={limit}").into());
        }
        if let Some(umask) = self.umask {
            put("--umask", umask.to_string().into());
        }
        if self.session {
            put("--session", "own".into());
        }
        if let Some(cwd) = &self.cwd {
            put("--cwd", cwd.into());
        }
        out.extend(["--".into(), program]);
        out.extend(args);
        out
    }
}

/// The environment of a helper whose command is to have `env`. The run's id stays in
/// sight, as the helper is a process of the run.
pub(super) fn wrapped(env: BTreeMap<OsString, OsString>) -> BTreeMap<OsString, OsString> {
    let run = env.get(OsStr::new(RUN_VARIABLE)).map(|id| (RUN_VARIABLE.into(), id.clone()));
    let wrap = |(name, value)| {
        let mut wrapped = OsString::from(WRAPPED);
        wrapped.push::<OsString>(name);
        (wrapped, value)
    };
    env.into_iter().map(wrap).chain(run).collect()
}

/// The environment of the command, from the helper's.
fn unwrapped(env: impl IntoIterator<Item = (OsString, OsString)>) -> BTreeMap<OsString, OsString> {
    let unwrap = |(name, value): (OsString, OsString)| {
        let name = name.as_bytes().strip_prefix(WRAPPED.as_bytes())?;
        Some((OsStr::from_bytes(name).to_owned(), value))
    };
    env.into_iter().filter_map(unwrap).collect()
}

/// What a helper is to do, as read from its arguments.
#[derive(Default)]
struct Plan {
    nonce: String,
    cgroup: Option<PathBuf>,
    nice: Option<i32>,
    user: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    rlimits: Vec<(String, Resource, Limit)>,
    umask: Option<Umask>,
    session: bool,
    cwd: Option<PathBuf>,
    program: OsString,
    args: Vec<OsString>,
}

/// The problem a helper reports, if `stderr`, the beginning of a process' standard
/// error, is such a report.
pub(super) fn report(nonce: &str, stderr: &[u8]) -> Option<StartError> {
    let rest = stderr.strip_prefix(format!("{MARK} {nonce} ").as_bytes())?;
    let text = String::from_utf8_lossy(rest);
    let (problem, message) = text.trim_end().split_once(' ')?;
    // Infallible: what is not known is `Other`.
    let problem = problem.parse().unwrap_or(StartProblem::Other);
    Some(StartError::new(problem, message))
}

impl Plan {
    fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, StartError> {
        let bad = |what: &str| {
            StartError::new(
                StartProblem::Other,
                format!("{EXEC_HELPER_ARG} is for meepo's own use; {what}"),
            )
        };
        let mut args = args.into_iter();
        let mut plan = Self::default();
        while let Some(name) = args.next() {
            if name == "--" {
                plan.program = args.next().ok_or_else(|| bad("the program is missing"))?;
                plan.args = args.collect();
                return Ok(plan);
            }
            let value = args.next().ok_or_else(|| bad("an option lacks its value"))?;
            let text =
                || value.clone().into_string().map_err(|_| bad("an option's value is not UTF-8"));
            let id = || text()?.parse().map_err(|_| bad("an id is not a number"));
            match name.to_str() {
                Some("--nonce") => plan.nonce = text()?,
                Some("--cgroup") => plan.cgroup = Some(value.into()),
                Some("--nice") => {
                    let nice = text()?.parse().map_err(|_| bad("the priority is not a number"))?;
                    plan.nice = Some(nice);
                }
                Some("--user") => plan.user = Some(text()?),
                Some("--uid") => plan.uid = Some(id()?),
                Some("--gid") => plan.gid = Some(id()?),
                Some("--rlimit") => {
                    let limit = rlimit(&text()?).ok_or_else(|| bad("a limit is not name=value"))?;
                    plan.rlimits.push(limit);
                }
                Some("--umask") => {
                    let mask = text()?.parse().map_err(|_| bad("the mask is not octal"))?;
                    plan.umask = Some(mask);
                }
                Some("--session") => plan.session = true,
                Some("--cwd") => plan.cwd = Some(value.into()),
                _ => return Err(bad("unknown option")),
            }
        }
        Err(bad("the command is missing"))
    }

    /// Becomes the command; comes back only with an error.
    fn run(&self) -> StartError {
        self.prepare().err().unwrap_or_else(|| self.exec())
    }

    /// Everything that needs root comes before root is given up. Limits come after the
    /// groups, as looking those up may need files and memory.
    fn prepare(&self) -> Result<(), StartError> {
        let limits = |message: String| StartError::new(StartProblem::Limits, message);
        if let Some(dir) = &self.cgroup {
            // 0 stands for the writer.
            std::fs::write(dir.join("cgroup.procs"), "0").map_err(|e| {
                limits(format!("cannot enter the control group {}: {e}", dir.display()))
            })?;
        }
        if let Some(nice) = self.nice {
            rustix::process::setpriority_process(None, nice).map_err(|e| {
                let hint = "raising it needs CAP_SYS_NICE";
                limits(format!("cannot set the priority to {nice}: {e}; {hint}"))
            })?;
        }
        let user = self.user.as_deref().unwrap_or_default();
        let failed = |what: &str, e: Errno| {
            let message = format!("cannot become user {user:?}: {what}: {}", e.desc());
            StartError::new(StartProblem::UserSwitch, message)
        };
        if let Some(gid) = self.gid.map(Gid::from_raw) {
            let name =
                CString::new(user).map_err(|_| failed("name contains NUL", Errno::EINVAL))?;
            initgroups(&name, gid).map_err(|e| failed("setting the groups", e))?;
            setgid(gid).map_err(|e| failed("setting the group", e))?;
        }
        for (name, resource, limit) in &self.rlimits {
            let value = limit.0.unwrap_or(RLIM_INFINITY);
            setrlimit(*resource, value, value).map_err(|e| {
                let now = getrlimit(*resource).map_or(None, |(_, hard)| Some(hard));
                let now = Limit(now.filter(|hard| *hard != RLIM_INFINITY));
                limits(format!(
                    "cannot set the limit {name} to {limit}: {}; the hard limit is {now}, and \
                     raising it needs CAP_SYS_RESOURCE",
                    e.desc()
                ))
            })?;
        }
        if let Some(uid) = self.uid.map(Uid::from_raw) {
            setuid(uid).map_err(|e| failed("setting the user", e))?;
        }
        if let Some(mask) = self.umask {
            umask(Mode::from_bits_truncate(mask.bits().into()));
        }
        if self.session {
            setsid().map_err(|e| limits(format!("cannot lead a session: {}", e.desc())))?;
        }
        Ok(())
    }

    /// Looks for directory and program with the rights of the user it now is.
    fn exec(&self) -> StartError {
        let env = unwrapped(std::env::vars_os());
        let home = env.get(OsStr::new("HOME")).map(PathBuf::from);
        let mut cwd = match &self.cwd {
            Some(dir) => dir.as_path(),
            None => default_cwd(home.as_deref()),
        };
        if let Err(e) = std::env::set_current_dir(cwd) {
            if self.cwd.is_some() {
                return resolve::check_cwd(cwd).err().unwrap_or_else(|| {
                    StartError::new(
                        StartProblem::WorkingDirectory,
                        format!("the working directory {} cannot be entered: {e}", cwd.display()),
                    )
                });
            }
            cwd = Path::new("/");
            if let Err(e) = std::env::set_current_dir(cwd) {
                return resolve::explain(&e, Path::new(&self.program), cwd);
            }
        }
        let path = env.get(OsStr::new("PATH")).map(OsString::as_os_str).unwrap_or_default();
        let program = match resolve::program(&self.program, path, cwd) {
            Ok(program) => program,
            Err(e) => return e,
        };
        let error = std::process::Command::new(&program)
            .arg0(&self.program as &OsStr)
            .args(&self.args)
            .env_clear()
            .envs(env)
            .exec();
        resolve::explain(&error, &program, cwd)
    }
}

/// `name=value` of [`Wishes::arguments`]: the name, what the kernel calls it, the value.
fn rlimit(text: &str) -> Option<(String, Resource, Limit)> {
    let (name, value) = text.split_once('=')?;
    let resource = match name {
        "nofile" => Resource::RLIMIT_NOFILE,
        "nproc" => Resource::RLIMIT_NPROC,
        "core" => Resource::RLIMIT_CORE,
        "fsize" => Resource::RLIMIT_FSIZE,
        "as" => Resource::RLIMIT_AS,
        "cpu" => Resource::RLIMIT_CPU,
        "stack" => Resource::RLIMIT_STACK,
        "memlock" => Resource::RLIMIT_MEMLOCK,
        "data" => Resource::RLIMIT_DATA,
        _ => return None,
    };
    let value = if value == "unlimited" { None } else { Some(value.parse().ok()?) };
    Some((name.to_owned(), resource, Limit(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_the_trip() {
        let every = r#"{"nofile": 1, "nproc": 2, "core": 3, "fsize": 4, "as": 5, "cpu": 6,
                        "stack": 7, "memlock": 8, "data": "unlimited"}"#;
        let wishes = Wishes {
            cgroup: Some("/sys/fs/cgroup/x".into()),
            nice: Some(-5),
            account: Some(Account {
                name: "x".into(),
                uid: Uid::from_raw(7),
                gid: Gid::from_raw(8),
                home: "/".into(),
            }),
            rlimits: serde_json::from_str(every).unwrap(),
            umask: Some("0027".parse().unwrap()),
            session: true,
            cwd: Some("/tmp".into()),
        };
        let args = wishes.arguments("n1", "prog".into(), vec!["--".into(), "--user".into()]);
        assert_eq!(args[0], EXEC_HELPER_ARG);
        let plan = Plan::parse(args.into_iter().skip(1)).ok().unwrap();
        assert_eq!((plan.nonce.as_str(), plan.user.as_deref()), ("n1", Some("x")));
        assert_eq!((plan.uid, plan.gid, plan.nice), (Some(7), Some(8), Some(-5)));
        assert_eq!((plan.session, plan.umask), (true, wishes.umask));
        assert_eq!((plan.cgroup, plan.cwd), (wishes.cgroup, wishes.cwd));
        let limits: Vec<_> = plan.rlimits.iter().map(|(n, _, l)| (n.as_str(), *l)).collect();
        assert_eq!(limits, wishes.rlimits.given().collect::<Vec<_>>());
        assert_eq!((plan.program.to_str(), plan.args.len()), (Some("prog"), 2));
        let none = Wishes::default().arguments("n1", "prog".into(), Vec::new());
        assert_eq!(none, [EXEC_HELPER_ARG, "--nonce", "n1", "--", "prog"]);
    }

    #[test]
    fn no_variable_of_the_command_means_anything_to_the_helper() {
        let pair = |(k, v): (&str, &str)| (OsString::from(k), OsString::from(v));
        let env = [("LD_PRELOAD", "/x.so"), ("MEEPO_ENV_A", "b"), (RUN_VARIABLE, "r")].map(pair);
        let env = BTreeMap::from(env);
        let helpers = wrapped(env.clone());
        let seen = [
            ("MEEPO_ENV_LD_PRELOAD", "/x.so"),
            ("MEEPO_ENV_MEEPO_ENV_A", "b"),
            ("MEEPO_ENV_MEEPO_RUN_ID", "r"),
            ("MEEPO_RUN_ID", "r"),
        ];
        assert_eq!(helpers, BTreeMap::from(seen.map(pair)));
        assert_eq!(unwrapped(helpers), env);
    }

    #[test]
    fn only_the_right_nonce_makes_a_report() {
        let line = b"meepo-exec-helper n1 cwd no such place\n";
        let e = report("n1", line).unwrap();
        assert_eq!(
            (e.problem, e.message.as_str()),
            (StartProblem::WorkingDirectory, "no such place")
        );
        assert_eq!(report("n2", line), None);
        assert_eq!(report("n1", b"something else"), None);
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        for args in [
            &[][..],
            &["--uid"],
            &["--uid", "x"],
            &["--user", "u", "--"],
            &["--what", "x"],
            &["--rlimit", "rss=1"],
            &["--nice", "x"],
        ] {
            let e = Plan::parse(args.iter().map(OsString::from)).err().unwrap();
            assert!(e.message.contains("meepo's own use"), "{e}");
        }
    }
}
