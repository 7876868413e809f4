use super::*;
use crate::job::{Concurrency, Executor, JobSpec};
use proptest::prelude::*;

const IMPORT: Import<'_> =
    Import { file: "/etc/cron.d/sample", target: "web1", timezone: None, user: None };

fn clean(text: &str, kind: Kind) -> Vec<Entry> {
    let (entries, problems) = parse(text, kind);
    assert_eq!(problems, [], "{text}");
    entries
}

fn job(entry: &Entry) -> JobSpec {
    let job = entry.to_job(&IMPORT);
    job.validate().unwrap_or_else(|e| panic!("{job:?}: {e}"));
    job
}

/// In the style of Debian's /etc/crontab.
const DEBIAN: &str = "\
# /etc/crontab: system-wide crontab

SHELL=/bin/sh
# PATH=/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin
PATH=/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin

# Example of job definition:
# .---------------- minute (0 - 59)
# *  *  *  *  * user-name command to be executed
17 *\t* * *\troot\tcd / && run-parts --report /etc/cron.hourly
25 6\t* * *\troot\ttest -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.daily; }
47 6\t* * 7\troot\ttest -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.weekly; }
52 6\t1 * *\troot\ttest -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.monthly; }
#
";

#[test]
fn debians_own_file() {
    let entries = clean(DEBIAN, Kind::System);
    let lines: Vec<_> = entries.iter().map(|e| (e.line, e.schedule.as_str())).collect();
    assert_eq!(
        lines,
        [(10, "17 * * * *"), (11, "25 6 * * *"), (12, "47 6 * * 7"), (13, "52 6 1 * *")]
    );
    let job = job(&entries[0]);
    assert_eq!(job.cmd, "cd / && run-parts --report /etc/cron.hourly");
    assert_eq!((job.executor, job.concurrency), (Executor::Sh, Concurrency::Allow));
    assert_eq!(job.user.as_deref(), Some("root"));
    assert_eq!(job.env["PATH"], "/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin");
    assert_eq!((job.target.as_str(), job.timezone), ("web1", None));
    assert_eq!(job.description.as_deref(), Some("from /etc/cron.d/sample, line 10"));
    assert!(job.name.as_str().starts_with("crontab-sample-cd-run-parts-report-cron-hourly-"));
    let other = entries[0].to_job(&Import { file: "/etc/crontab", ..IMPORT });
    assert!(other.name.as_str().starts_with("crontab-cd-run-parts"), "{}", other.name);
}

#[test]
fn files_of_packages() {
    let e2scrub = "\
30 3 * * 0 root test -e /run/systemd/system || SERVICE_MODE=1 /usr/lib/x86_64-linux-gnu/e2fsprogs/e2scrub_all_cron
10 3 * * * root test -e /run/systemd/system || SERVICE_MODE=1 /sbin/e2scrub_all -A -r
";
    let entries = clean(e2scrub, Kind::System);
    assert_eq!(entries.len(), 2, "an assignment inside a command is no assignment");
    assert_eq!(
        entries[1].command,
        "test -e /run/systemd/system || SERVICE_MODE=1 /sbin/e2scrub_all -A -r"
    );

    let php = "\
# Look for and purge old sessions every 30 minutes
09,39 *     * * *     root   [ -x /usr/lib/php/sessionclean ] && if [ ! -d /run/systemd/system ]; then /usr/lib/php/sessionclean; fi
";
    let entries = clean(php, Kind::System);
    assert_eq!(entries[0].schedule, "09,39 * * * *");

    let sysstat = "\
PATH=/usr/lib/sysstat:/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin

5-55/10 * * * * root command -v debian-sa1 > /dev/null && debian-sa1 1 1
59 23 * * * root command -v debian-sa1 > /dev/null && debian-sa1 60 2
";
    let entries = clean(sysstat, Kind::System);
    assert_eq!(entries[1].command, "command -v debian-sa1 > /dev/null && debian-sa1 60 2");
    assert_ne!(job(&entries[0]).name, job(&entries[1]).name);

    let certbot = "\
SHELL=/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin

0 */12 * * * root test -x /usr/bin/certbot -a \\! -d /run/systemd/system && perl -e 'sleep int(rand(43200))' && certbot -q renew
";
    let entries = clean(certbot, Kind::System);
    assert!(entries[0].command.contains("-a \\! -d"), "other backslashes stay");
}

#[test]
fn a_users_file() {
    let text = "\
MAILTO=\"ops@example.org\"
CRON_TZ = Europe/Berlin
SHELL='/bin/bash'
 HOME = /srv/app
   GREETING = \"  hello  world \"
EMPTY=
'ODD NAME'=x
@daily   ./backup --full
@reboot echo up
30 2 * * 1-5 date +\\%F > \"$HOME/day\"
CRON_TZ=
0 0 * * * last
";
    let entries = clean(text, Kind::User);
    assert_eq!(entries.len(), 4);
    let first =
        entries[0].to_job(&Import { user: Some("ann"), timezone: Some("Asia/Tokyo"), ..IMPORT });
    assert_eq!(
        (first.schedule.as_deref(), first.cmd.as_str()),
        (Some("@daily"), "./backup --full")
    );
    assert_eq!((first.executor, first.user.as_deref()), (Executor::Bash, Some("ann")));
    assert_eq!(
        (first.cwd.as_deref(), first.timezone.as_deref()),
        (Some("/srv/app"), Some("Europe/Berlin"))
    );
    for (name, value) in [
        ("MAILTO", "ops@example.org"),
        ("GREETING", "  hello  world "),
        ("EMPTY", ""),
        ("ODD NAME", "x"),
        ("PATH", "/usr/bin:/bin"),
    ] {
        assert_eq!(first.env[name], value, "{name}");
    }
    assert!(!first.env.contains_key("CRON_TZ"));
    assert_eq!(entries[1].schedule, "@reboot");
    assert_eq!(entries[2].command, "date +%F > \"$HOME/day\"");
    let last = entries[3].to_job(&Import { timezone: Some("Asia/Tokyo"), ..IMPORT });
    assert_eq!(last.timezone.as_deref(), Some("Asia/Tokyo"));
}

#[test]
fn variables_apply_to_the_lines_below_them() {
    let text = "* * * * * a\nX=1\n* * * * * b\nX=2\n* * * * * c";
    let seen: Vec<_> = clean(text, Kind::User).iter().map(|e| e.env.get("X").cloned()).collect();
    assert_eq!(seen, [None, Some("1".into()), Some("2".into())]);
}

#[test]
fn shells() {
    for (shell, executor) in [
        ("/bin/sh", Executor::Sh),
        ("/usr/bin/sh", Executor::Sh),
        ("/bin/bash", Executor::Bash),
        ("/usr/bin/bash", Executor::Bash),
        ("/usr/bin/zsh", Executor::Exec),
        ("/usr/local/bin/bash", Executor::Exec),
    ] {
        let entries = clean(&format!("SHELL={shell}\n* * * * * echo \"$0\""), Kind::User);
        let job = job(&entries[0]);
        assert_eq!(job.executor, executor, "{shell}");
        assert_eq!(job.env["SHELL"], shell);
        if executor == Executor::Exec {
            assert_eq!(
                (job.cmd.as_str(), job.args),
                (shell, vec!["-c".into(), "echo \"$0\"".into()])
            );
        }
    }
}

/// Each row: what stands in the file, the command, its standard input.
#[test]
fn percent_signs() {
    for (text, command, stdin) in [
        ("mail -s hi bob%Dear Bob,%%Bye", "mail -s hi bob", Some("Dear Bob,\n\nBye\n")),
        ("date +\\%F", "date +%F", None),
        ("date +\\%F%in", "date +%F", Some("in\n")),
        ("cat%", "cat", None),
        ("cat%%", "cat", Some("\n")),
        ("cat%100\\%%done", "cat", Some("100%\ndone\n")),
        ("echo \\\\%in", "echo \\\\", Some("in\n")),
        ("echo \\n%a\\b", "echo \\n", Some("a\\b\n")),
    ] {
        let entries = clean(&format!("* * * * * {text}"), Kind::User);
        assert_eq!(entries[0].command, command, "{text}");
        assert_eq!(entries[0].stdin.as_deref(), stdin, "{text}");
    }
}

/// Each row: a line, part of the reason.
#[test]
fn a_bad_line_is_reported_and_stops_no_other() {
    for (kind, line, reason) in [
        (Kind::User, "61 * * * * x", "minute \"61\" is out of range; expected 0-59"),
        (Kind::User, "0 0 30 2 * x", "no date ever matches"),
        (Kind::User, "hello", "only 1 of the five"),
        (Kind::User, "* * * *", "only 4 of the five"),
        (Kind::User, "* * * * *", "no command after the schedule"),
        (Kind::User, "* * * * * %in", "no command after the schedule"),
        (Kind::User, "@daily", "no command after the schedule"),
        (Kind::User, "@every 5m x", "\"@every\" is not known to cron"),
        (Kind::User, "@fortnightly x", "\"@fortnightly\" is not known to cron"),
        (Kind::User, "-*/15 * * * * x", "leading `-`"),
        (Kind::User, "CRON_TZ=Mars/Olympus", "unknown time zone \"Mars/Olympus\""),
        (Kind::User, "=x", "no name before"),
        (Kind::User, "A=\"x", "the \" is not closed"),
        (Kind::User, "A='x' y", "\" y\" after the closing '"),
        (Kind::User, "LOGNAME=root", "cannot be set"),
        (Kind::User, "HOME=tmp", "absolute"),
        (Kind::User, "SHELL=", "SHELL is empty"),
        (Kind::User, "* * * * * a\0b", "NUL"),
        (Kind::System, "* * * * *", "no user and no command"),
        (Kind::System, "* * * * * root", "no command after the user \"root\""),
        (Kind::System, "* * * * * root:wheel x", "not a plain user name"),
        (Kind::System, "@hourly root", "no command after the user \"root\""),
    ] {
        let text = format!("* * * * * root first\n\n{line}\n# c\n@daily root second\n");
        let (entries, problems) = parse(&text, kind);
        assert_eq!(problems.first().map(|p| (p.line, p.text.as_str())), Some((3, line)));
        assert!(problems[0].reason.contains(reason), "{line}: {}", problems[0]);
        if !line.starts_with("CRON_TZ") {
            assert_eq!((entries.len(), problems.len()), (2, 1), "{line}");
        }
    }
}

#[test]
fn entries_under_a_broken_zone_are_not_run_in_another() {
    let text = "* * * * * a\nCRON_TZ=Mars\n* * * * * b\nCRON_TZ=UTC\n* * * * * c";
    let (entries, problems) = parse(text, Kind::User);
    assert_eq!(entries.iter().map(|e| e.command.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [2, 3]);
    assert!(problems[1].reason.contains("CRON_TZ of line 2"), "{}", problems[1]);
}

#[test]
fn names_survive_other_edits_and_tell_entries_apart() {
    let name = |text: &str, i: usize| job(&clean(text, Kind::User)[i]).name;
    let before = "0 1 * * * /opt/a.sh\n0 2 * * * /opt/b.sh";
    let after = "# new\nX=1\n5 5 * * * other\n0 1 * * * /opt/a.sh\n30 4 * * * /opt/b.sh";
    assert_eq!(name(before, 0), name(after, 1));
    assert_eq!(name(before, 1), name(after, 2), "a new schedule is the same job");
    // The same command twice is two jobs.
    let twice = "0 1 * * * x\n0 2 * * * x\n0 3 * * * x%in";
    let names: std::collections::BTreeSet<_> = (0..3).map(|i| name(twice, i)).collect();
    assert_eq!(names.len(), 3);
    assert!(name(twice, 1).as_str().ends_with("-2"));
    let elsewhere = clean(before, Kind::User)[0].to_job(&Import { target: "web2", ..IMPORT });
    assert_ne!(elsewhere.name, name(before, 0), "another host's file makes other jobs");
    // Pinned: jobs imported by an earlier version must be found again.
    assert_eq!(name("0 1 * * * /opt/a.sh --x", 0).as_str(), "crontab-sample-a-sh-x-0d887b18");
}

#[test]
fn line_ends_and_marks_of_other_systems() {
    let entries = clean("\u{FEFF}A=b\r\n* * * * * x\r\n", Kind::User);
    assert_eq!((entries[0].command.as_str(), entries[0].env["A"].as_str()), ("x", "b"));
    assert_eq!(clean("", Kind::User), []);
    assert_eq!(clean("* * * * * no newline at the end", Kind::User).len(), 1);
}

#[test]
fn variables_are_bounded() {
    let text: String = (0..300).map(|i| format!("V{i}=x\n")).collect();
    let (_, problems) = parse(&(text + "V0=again\n"), Kind::User);
    assert_eq!(problems.len(), 300 - MAX_VARIABLES);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_text_gives_valid_jobs_or_problems(
        lines in prop::collection::vec(prop_oneof![
            "\\PC{0,40}",
            "[A-Z]{1,6} ?= ?['\" a-z/%]{0,12}",
            "(@daily|\\* \\* \\* \\* [0-9]) [a-z/%\\\\ é:.-]{0,60}",
        ], 0..12),
        file in "\\PC{0,60}",
        system in any::<bool>(),
    ) {
        let kind = if system { Kind::System } else { Kind::User };
        let (entries, _) = parse(&lines.join("\n"), kind);
        let import = Import { file: &file, ..IMPORT };
        let mut names = std::collections::BTreeSet::new();
        for entry in &entries {
            let job = entry.to_job(&import);
            prop_assert!(job.validate().is_ok(), "{:?}", job.validate());
            prop_assert!(names.insert(job.name));
        }
    }
}
