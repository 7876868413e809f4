//! `meepo cron import`: crontab files become jobs.

use super::{
    apply::{self, Definition},
    documents::read,
};
use crate::{
    args::{Global, ImportArgs},
    client::Client,
    error::{CliError, CliResult, exit},
    output::{
        Format, Out,
        table::{Table, cell, maybe},
        text,
    },
};
use meepo_core::{
    calendar,
    crontab::{self, Entry, Import, Kind},
    id::Name,
    job::JobSpec,
    target::Target,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Widest command in the plan, in characters.
const CMD_WIDTH: usize = 60;

/// Prints the plan; applies it unless `--dry-run`. Lines that cannot be taken are
/// reported and do not keep the others; the exit code tells.
pub(crate) async fn run(out: &Out, global: &Global, args: ImportArgs) -> CliResult<u8> {
    Target::parse(&args.target).map_err(|e| CliError::from(e).at("--target"))?;
    let (zone, whose) = match &args.tz {
        Some(name) => {
            calendar::time_zone(name).map_err(|e| CliError::from(e.at("--tz")))?;
            (name.clone(), "--tz")
        }
        None => (host_zone(Path::new("/etc"))?, "this host's; --tz sets another"),
    };
    let mut plan = Plan::default();
    for path in &args.files {
        for file in expand(path, out)? {
            plan.file(&file, &args, &zone)?;
        }
    }
    out.note(&format!("lines without CRON_TZ are read in {zone} ({whose})"));
    for note in &plan.notes {
        out.note(note);
    }
    for problem in &plan.problems {
        out.note(&format!("error: {problem}"));
    }
    let not_taken = if plan.problems.is_empty() { exit::OK } else { exit::USAGE };
    if out.is_table() && !plan.jobs.is_empty() {
        out.text(&table(out, &plan.jobs))?;
    }
    if args.dry_run {
        print(out, &plan.jobs)?;
        return Ok(not_taken);
    }
    let code =
        apply::apply(out, &Client::open(global)?, plan.jobs.into_iter().map(Into::into).collect())
            .await?;
    Ok(if code == exit::OK { not_taken } else { code })
}

/// The definitions for programs, in a form `job apply` takes.
fn print(out: &Out, jobs: &[Definition]) -> CliResult<()> {
    let specs: Vec<&JobSpec> = jobs.iter().map(|d| &d.spec).collect();
    match out.format {
        Format::Table => Ok(()),
        Format::Json => out.value(&specs, |_| String::new()),
        Format::Yaml => specs.iter().try_for_each(|spec| out.event(spec)),
    }
}

fn table(out: &Out, jobs: &[Definition]) -> String {
    let mut table = Table::new(out, &["JOB", "SCHEDULE", "ZONE", "USER", "COMMAND"]);
    for Definition { spec, .. } in jobs {
        // Of another shell the last argument is the command.
        let command = spec.args.last().unwrap_or(&spec.cmd);
        table.row(vec![
            cell(spec.name.as_str()),
            maybe(spec.schedule.as_ref()),
            maybe(spec.timezone.as_ref()),
            maybe(spec.user.as_ref()),
            cell(text::shorten(&text::one_line(command), CMD_WIDTH)),
        ]);
    }
    table.render()
}

/// The files of a directory that cron would read, by name; a file is itself.
fn expand(path: &Path, out: &Out) -> CliResult<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|e| {
        CliError::new(exit::USAGE, format!("cannot read: {e}")).at(path.display().to_string())
    })?;
    for file in entries.into_iter().map(|e| e.path()).filter(|p| p.is_file()) {
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            files.push(file);
        } else if !name.starts_with('.') {
            out.note(&format!("{}: left out, as cron does for such a name", file.display()));
        }
    }
    files.sort();
    Ok(files)
}

#[derive(Default)]
struct Plan {
    jobs: Vec<Definition>,
    notes: Vec<String>,
    problems: Vec<String>,
    names: BTreeMap<String, String>,
}

impl Plan {
    fn file(&mut self, file: &Path, args: &ImportArgs, zone: &str) -> CliResult<()> {
        let shown =
            if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() };
        let text = read(file).map_err(|e| e.at(shown.as_str()))?;
        let form = form(file, &text, args.user.as_deref(), args.system, |name| {
            nix::unistd::User::from_name(name).is_ok_and(|u| u.is_some())
        })
        .map_err(|e| e.at(shown.as_str()))?;
        let (kind, user) = match &form {
            Form::System => (Kind::System, None),
            Form::User(user) => (Kind::User, user.as_deref()),
        };
        let (entries, problems) = crontab::parse(&text, kind);
        let format = match (kind, user) {
            (Kind::System, _) => "with a user column".to_owned(),
            (Kind::User, Some(user)) => format!("the crontab of {user}"),
            (Kind::User, None) => {
                "without a user column, to run as the worker's own user (--user sets another)"
                    .into()
            }
        };
        self.notes.push(format!("{shown}: {}, {format}", jobs_of(entries.len())));
        if entries.iter().any(|e| e.env.get("MAILTO").is_some_and(|m| !m.is_empty())) {
            self.notes.push(format!("{shown}: output is kept, not mailed to MAILTO"));
        }
        self.problems.extend(problems.iter().map(|p| format!("{shown}: {p}")));
        let import = Import { file: &shown, target: &args.target, timezone: Some(zone), user };
        for entry in &entries {
            match self.job(entry, &import, &args.prefix) {
                Ok(job) => self.jobs.push(job),
                Err(e) => {
                    self.problems.push(e.at(format!("{shown}: line {}", entry.line)).to_string())
                }
            }
        }
        Ok(())
    }

    fn job(&mut self, entry: &Entry, import: &Import<'_>, prefix: &str) -> CliResult<Definition> {
        let mut spec = entry.to_job(import);
        spec.name = Name::new(&format!("{prefix}{}", spec.name)).map_err(|e| e.at("--prefix"))?;
        spec.validate()?;
        let place = format!("{}, line {}", import.file, entry.line);
        if let Some(first) = self.names.insert(spec.name.to_string(), place.clone()) {
            return Err(CliError::usage(
                "name",
                format!("{} is the job of {first} already", spec.name),
                "each file once; --prefix keeps files of different hosts apart",
            ));
        }
        Ok(Definition { place, spec })
    }
}

fn jobs_of(n: usize) -> String {
    text::count(n, "job")
}

/// How a crontab file is written.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// With a user column.
    System,
    /// Without one; the user whose it is, if known.
    User(Option<String>),
}

/// Tells the form by option, then by path, then by whether the words where a user
/// would stand are users.
fn form(
    file: &Path,
    text: &str,
    user: Option<&str>,
    system: bool,
    is_user: impl Fn(&str) -> bool,
) -> CliResult<Form> {
    if let Some(user) = user {
        return Ok(Form::User(Some(user.to_owned())));
    }
    let part = |p: Option<&std::ffi::OsStr>| p.map(|n| n.to_string_lossy().into_owned());
    let name = part(file.file_name()).unwrap_or_default();
    let folder = part(file.parent().and_then(Path::file_name)).unwrap_or_default();
    if system || name == "crontab" || folder == "cron.d" {
        return Ok(Form::System);
    }
    if folder == "crontabs" || file.parent() == Some(Path::new("/var/spool/cron")) {
        return Ok(Form::User(Some(name)));
    }
    let (as_system, _) = crontab::parse(text, Kind::System);
    let (as_user, _) = crontab::parse(text, Kind::User);
    let users = as_system.iter().filter(|e| e.user.as_deref().is_some_and(&is_user)).count();
    match (users, as_user.len()) {
        (0, _) => Ok(Form::User(None)),
        (users, all) if users == all => Ok(Form::System),
        _ => Err(CliError::new(
            exit::USAGE,
            "cannot tell whether its lines have a user column: in some a user stands before the command",
        )
        .expected("--system for a file such as /etc/crontab, --user NAME for a user's crontab")),
    }
}

/// The name of the zone that cron on this host uses. `etc` is `/etc`.
fn host_zone(etc: &Path) -> CliResult<String> {
    let link = etc.join("localtime");
    let from_link = std::fs::read_link(&link).ok().and_then(|to| {
        let to = to.to_string_lossy().into_owned();
        to.split_once("/zoneinfo/").map(|(_, name)| name.to_owned())
    });
    let from_file =
        || std::fs::read_to_string(etc.join("timezone")).ok().map(|s| s.trim().to_owned());
    let name = match from_link.or_else(from_file) {
        Some(name) => name,
        // Without the file the C library, and so cron, uses UTC.
        None if !link.exists() => return Ok("UTC".to_owned()),
        None => String::new(),
    };
    calendar::time_zone(&name).map(|_| name).map_err(|_| {
        CliError::usage(
            "--tz",
            "the name of this host's time zone is not known",
            "a zone such as Europe/Berlin",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> ImportArgs {
        ImportArgs {
            files: Vec::new(),
            user: None,
            system: false,
            tz: None,
            target: "all".into(),
            prefix: String::new(),
            dry_run: true,
        }
    }

    const SYSTEM: &str =
        "SHELL=/bin/bash\nMAILTO=ops\n17 * * * * root cd / && run-parts /etc/cron.hourly\n";
    const USER: &str = "0 3 * * * /usr/local/bin/backup --all\n61 * * * * x\n";

    #[test]
    fn the_form_is_told_by_option_path_and_content() {
        let root = |n: &str| n == "root";
        let tell = |file: &str, text, user, system| form(Path::new(file), text, user, system, root);
        assert_eq!(tell("/etc/crontab", USER, None, false), Ok(Form::System));
        assert_eq!(tell("/etc/cron.d/x", USER, None, false), Ok(Form::System));
        assert_eq!(
            tell("/var/spool/cron/crontabs/ann", SYSTEM, None, false),
            Ok(Form::User(Some("ann".into())))
        );
        assert_eq!(tell("/tmp/x", SYSTEM, None, false), Ok(Form::System));
        assert_eq!(tell("-", USER, None, false), Ok(Form::User(None)));
        assert_eq!(tell("/tmp/x", USER, None, true), Ok(Form::System));
        assert_eq!(
            tell("/etc/crontab", USER, Some("bob"), false),
            Ok(Form::User(Some("bob".into())))
        );
        let mixed = format!("{SYSTEM}{USER}");
        let e = tell("/tmp/x", &mixed, None, false).unwrap_err().to_string();
        assert!(e.contains("--system") && e.contains("--user NAME"), "{e}");
    }

    #[test]
    fn the_hosts_zone_is_found_as_the_c_library_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path();
        assert_eq!(host_zone(etc).unwrap(), "UTC");
        std::fs::write(etc.join("localtime"), "TZif").unwrap();
        let e = host_zone(etc).unwrap_err().to_string();
        assert!(e.starts_with("--tz: "), "{e}");
        std::fs::write(etc.join("timezone"), "Asia/Tokyo\n").unwrap();
        assert_eq!(host_zone(etc).unwrap(), "Asia/Tokyo");
        std::fs::remove_file(etc.join("localtime")).unwrap();
        std::os::unix::fs::symlink("../usr/share/zoneinfo/Europe/Berlin", etc.join("localtime"))
            .unwrap();
        assert_eq!(host_zone(etc).unwrap(), "Europe/Berlin");
    }

    #[test]
    fn a_plan_takes_what_it_can_and_names_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let (system, user) = (dir.path().join("crontab"), dir.path().join("mine"));
        std::fs::write(&system, SYSTEM).unwrap();
        std::fs::write(&user, USER).unwrap();
        let mut plan = Plan::default();
        let args = ImportArgs { prefix: "web-".into(), ..args() };
        plan.file(&system, &args, "Europe/Berlin").unwrap();
        plan.file(&user, &args, "Europe/Berlin").unwrap();
        assert_eq!(plan.jobs.len(), 2);
        let first = &plan.jobs[0].spec;
        assert!(first.name.as_str().starts_with("web-crontab-"), "{}", first.name);
        assert_eq!(
            (first.user.as_deref(), first.timezone.as_deref()),
            (Some("root"), Some("Europe/Berlin"))
        );
        assert_eq!(plan.problems.len(), 1);
        assert!(plan.problems[0].contains("mine: line 2: "), "{:?}", plan.problems);
        assert!(plan.notes.iter().any(|n| n.contains("not mailed")), "{:?}", plan.notes);
        // The same file again is a mistake, not a second job.
        plan.file(&system, &args, "Europe/Berlin").unwrap();
        assert_eq!((plan.jobs.len(), plan.problems.len()), (2, 2));
        assert!(plan.problems[1].contains("already"), "{:?}", plan.problems);
    }

    #[test]
    fn the_plan_is_printed_in_a_form_that_apply_reads() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("crontab");
        std::fs::write(
            &file,
            "SHELL=/bin/dash\n@daily root x%line one%two: 'three'\n* * * * * ann y\n",
        )
        .unwrap();
        let mut plan = Plan::default();
        plan.file(&file, &args(), "UTC").unwrap();
        let yaml: String = plan
            .jobs
            .iter()
            .map(|d| format!("---\n{}", crate::output::yaml(&d.spec).unwrap()))
            .collect();
        let again = dir.path().join("jobs.yaml");
        std::fs::write(&again, yaml).unwrap();
        let (documents, errors) = super::super::documents::load(&[again]);
        assert_eq!(errors, []);
        let (definitions, errors) = apply::validate(documents);
        assert_eq!(errors, []);
        let read: Vec<_> = definitions.iter().map(|d| d.job.spec().unwrap()).collect();
        let meant: Vec<_> = plan.jobs.iter().map(|d| d.spec.clone()).collect();
        assert_eq!(read, meant);
    }
}
