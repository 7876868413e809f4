//! The exec helper: changes user and directory, then becomes the command.
//!
//! A worker that runs as root starts itself again as
//! `<exe> __exec-helper --nonce N --user U --uid 1 --gid 1 --cwd D -- prog args…`
//! with the command's environment, pipes and process group. An error before the
//! command takes over must not look like the command's own: the helper then writes one
//! line that begins with [`MARK`] and the nonce to standard error and exits with
//! [`EXIT`]. The nonce is random and gone once the command has taken over, so a command
//! cannot forge that line.

use super::{
    env::{Account, default_cwd},
    error::{StartError, StartProblem},
    resolve,
};
use nix::unistd::{Gid, Uid, initgroups, setgid, setuid};
use std::{
    ffi::{CString, OsStr, OsString},
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
};

/// The first argument that turns a meepo program into the exec helper.
pub const EXEC_HELPER_ARG: &str = "__exec-helper";

/// What a helper's line on standard error begins with.
const MARK: &str = "meepo-exec-helper";

/// The helper's exit status when the command could not be started.
const EXIT: i32 = 125;

/// A line must fit into a pipe in one piece (4096 bytes), prefix included.
const MAX_MESSAGE: usize = 3000;

/// To be called first thing in `main`, before threads, runtimes or argument parsing:
/// if this process was started as an exec helper it becomes the command and the call
/// does not return; otherwise nothing happens.
pub fn exec_helper_entry() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|a| a == EXEC_HELPER_ARG) {
        exec_helper_main(args);
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

/// What a helper is to do.
struct Plan {
    nonce: String,
    user: String,
    uid: Uid,
    gid: Gid,
    cwd: Option<PathBuf>,
    program: OsString,
    args: Vec<OsString>,
}

/// The helper's arguments for running `program` as `account`, [`EXEC_HELPER_ARG`] first.
pub(super) fn arguments(
    nonce: &str,
    account: &Account,
    cwd: Option<&Path>,
    program: OsString,
    args: Vec<OsString>,
) -> Vec<OsString> {
    let mut out: Vec<OsString> = vec![
        EXEC_HELPER_ARG.into(),
        "--nonce".into(),
        nonce.into(),
        "--user".into(),
        OsString::from(&account.name),
        "--uid".into(),
        account.uid.to_string().into(),
        "--gid".into(),
        account.gid.to_string().into(),
    ];
    if let Some(cwd) = cwd {
        out.extend(["--cwd".into(), cwd.into()]);
    }
    out.extend(["--".into(), program]);
    out.extend(args);
    out
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
        let (mut nonce, mut user, mut uid, mut gid, mut cwd) = (None, None, None, None, None);
        while let Some(name) = args.next() {
            if name == "--" {
                let missing = |what: &str| bad(&format!("{what} is missing"));
                return Ok(Self {
                    nonce: nonce.unwrap_or_default(),
                    user: user.ok_or_else(|| missing("--user"))?,
                    uid: Uid::from_raw(uid.ok_or_else(|| missing("--uid"))?),
                    gid: Gid::from_raw(gid.ok_or_else(|| missing("--gid"))?),
                    cwd,
                    program: args.next().ok_or_else(|| missing("the program"))?,
                    args: args.collect(),
                });
            }
            let value = args.next().ok_or_else(|| bad("an option lacks its value"))?;
            let text =
                || value.clone().into_string().map_err(|_| bad("an option's value is not UTF-8"));
            let number = || text()?.parse().map_err(|_| bad("an id is not a number"));
            match name.to_str() {
                Some("--nonce") => nonce = Some(text()?),
                Some("--user") => user = Some(text()?),
                Some("--uid") => uid = Some(number()?),
                Some("--gid") => gid = Some(number()?),
                Some("--cwd") => cwd = Some(PathBuf::from(value)),
                _ => return Err(bad("unknown option")),
            }
        }
        Err(bad("the command is missing"))
    }

    /// Becomes the command; comes back only with an error.
    fn run(&self) -> StartError {
        self.switch().err().unwrap_or_else(|| self.exec())
    }

    /// Groups first: without root they cannot be changed any more.
    fn switch(&self) -> Result<(), StartError> {
        let failed = |what: &str, e: nix::errno::Errno| {
            StartError::new(
                StartProblem::UserSwitch,
                format!("cannot become user {:?}: {what}: {}", self.user, e.desc()),
            )
        };
        let name = CString::new(self.user.as_str())
            .map_err(|_| failed("name contains NUL", nix::errno::Errno::EINVAL))?;
        initgroups(&name, self.gid).map_err(|e| failed("setting the groups", e))?;
        setgid(self.gid).map_err(|e| failed("setting the group", e))?;
        setuid(self.uid).map_err(|e| failed("setting the user", e))
    }

    /// Looks for directory and program with the rights of the user it now is.
    fn exec(&self) -> StartError {
        let home = std::env::var_os("HOME").map(PathBuf::from);
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
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = match resolve::program(&self.program, &path, cwd) {
            Ok(program) => program,
            Err(e) => return e,
        };
        let error = std::process::Command::new(&program)
            .arg0(&self.program as &OsStr)
            .args(&self.args)
            .exec();
        resolve::explain(&error, &program, cwd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_the_trip() {
        let account = Account {
            name: "x".into(),
            uid: Uid::from_raw(7),
            gid: Gid::from_raw(8),
            home: "/".into(),
        };
        let args = arguments(
            "n1",
            &account,
            Some(Path::new("/tmp")),
            "prog".into(),
            vec!["--".into(), "--user".into()],
        );
        assert_eq!(args[0], EXEC_HELPER_ARG);
        let plan = Plan::parse(args.into_iter().skip(1)).ok().unwrap();
        assert_eq!((plan.nonce.as_str(), plan.user.as_str()), ("n1", "x"));
        assert_eq!((plan.uid.as_raw(), plan.gid.as_raw()), (7, 8));
        assert_eq!((plan.program.to_str(), plan.args.len()), (Some("prog"), 2));
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
        for args in [&[][..], &["--uid"], &["--uid", "x"], &["--user", "u", "--"], &["--what", "x"]]
        {
            let e = Plan::parse(args.iter().map(OsString::from)).err().unwrap();
            assert!(e.message.contains("meepo's own use"), "{e}");
        }
    }
}
