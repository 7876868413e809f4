//! From an executor and a command to a program and its arguments, and from an error
//! of the system to a sentence that says what is wrong.

use super::error::{StartError, StartProblem};
use meepo_core::job::Executor;
use nix::unistd::{AccessFlags, eaccess};
use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
};

/// The program's name and its arguments, `argv[0]` not included.
pub(super) fn argv(executor: Executor, cmd: &str, args: &[String]) -> (OsString, Vec<OsString>) {
    let args = args.iter().map(OsString::from);
    // A shell takes the first argument after the script for `$0`.
    let script = |zero: Option<&str>| {
        let head = ["-c", cmd].into_iter().chain(zero).map(OsString::from);
        head.chain(args.clone()).collect()
    };
    match executor {
        Executor::Bash => ("bash".into(), script(Some("bash"))),
        Executor::Sh => ("sh".into(), script(Some("sh"))),
        Executor::Python => ("python3".into(), script(None)),
        // Requests do not come here; taken for a program a URL is not found.
        Executor::Exec | Executor::Http => (cmd.into(), args.collect()),
    }
}

/// The absolute path of `program`: as given, relative to `cwd` if it contains a slash,
/// else the first executable file of that name in `path`.
pub(super) fn program(program: &OsStr, path: &OsStr, cwd: &Path) -> Result<PathBuf, StartError> {
    let shown = program.to_string_lossy();
    if shown.contains('/') {
        return Ok(cwd.join(program));
    }
    let mut not_executable = None;
    for dir in std::env::split_paths(path) {
        let file = cwd.join(dir).join(program);
        match file.metadata() {
            Ok(m) if m.is_file() => {
                if eaccess(&file, AccessFlags::X_OK).is_ok() {
                    return Ok(file);
                }
                not_executable.get_or_insert(file);
            }
            _ => {}
        }
    }
    Err(match not_executable {
        Some(file) => denied(&file),
        None => StartError::new(
            StartProblem::NotFound,
            format!(
                "program {shown:?} not found in PATH ({}); install it or give its absolute path",
                path.to_string_lossy()
            ),
        ),
    })
}

fn denied(file: &Path) -> StartError {
    StartError::new(
        StartProblem::PermissionDenied,
        format!("permission denied: {} is not executable for this user", file.display()),
    )
}

/// Checks that `dir` can be entered.
pub(super) fn check_cwd(dir: &Path) -> Result<(), StartError> {
    let bad = |why: &str| {
        Err(StartError::new(
            StartProblem::WorkingDirectory,
            format!("the working directory {} {why}", dir.display()),
        ))
    };
    match dir.metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => bad("does not exist"),
        Err(e) => bad(&format!("cannot be entered: {e}")),
        Ok(m) if !m.is_dir() => bad("is not a directory"),
        Ok(_) if eaccess(dir, AccessFlags::X_OK).is_err() => {
            bad("cannot be entered: permission denied")
        }
        Ok(_) => Ok(()),
    }
}

/// Explains why `program` could not be executed in `cwd`.
pub(super) fn explain(error: &io::Error, program: &Path, cwd: &Path) -> StartError {
    use io::ErrorKind as Kind;
    if let Err(e) = check_cwd(cwd) {
        return e;
    }
    let shown = program.display();
    match error.kind() {
        Kind::NotFound if program.exists() => StartError::new(
            StartProblem::NotFound,
            format!("{shown} exists, but the interpreter that its first line names does not"),
        ),
        Kind::NotFound | Kind::NotADirectory => {
            StartError::new(StartProblem::NotFound, format!("program {shown} not found"))
        }
        Kind::PermissionDenied if program.is_dir() => StartError::new(
            StartProblem::PermissionDenied,
            format!("{shown} is a directory, not a program"),
        ),
        Kind::PermissionDenied => denied(program),
        Kind::ArgumentListTooLong => StartError::new(
            StartProblem::Other,
            "command, arguments and environment together are larger than the system allows \
             (128 KiB for each argument); put the script into a file",
        ),
        Kind::InvalidInput => StartError::new(
            StartProblem::Other,
            "command, arguments or environment contain a NUL character",
        ),
        Kind::WouldBlock | Kind::OutOfMemory => StartError::new(
            StartProblem::Resources,
            format!("the node is out of processes or memory for {shown}: {error}"),
        ),
        // ENOEXEC, EMFILE and ENFILE have no kind of their own.
        _ => match error.raw_os_error().map(nix::errno::Errno::from_raw) {
            Some(nix::errno::Errno::ENOEXEC) => StartError::new(
                StartProblem::Other,
                format!(
                    "{shown} is neither a program nor a script whose first line begins with #!"
                ),
            ),
            Some(nix::errno::Errno::EMFILE | nix::errno::Errno::ENFILE) => StartError::new(
                StartProblem::Resources,
                format!("out of file descriptors while starting {shown}: {error}"),
            ),
            _ => StartError::new(StartProblem::Other, format!("cannot start {shown}: {error}")),
        },
    }
}
