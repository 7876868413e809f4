//! The command line: what can be said, not what it does.

mod access;
mod audit;
mod doctor;
mod etcd;
mod history;
mod node;
mod notify;
mod signing;
pub(crate) mod task;
mod tls;

pub(crate) use access::{LoginArgs, RoleCommand, TokenCommand, UserCommand};
pub(crate) use audit::{AuditArgs, AuditCommand};
pub(crate) use doctor::DoctorArgs;
pub(crate) use etcd::{EtcdCommand, InitAuthArgs};
pub(crate) use history::{RunsArgs, SpanArgs};
pub(crate) use node::NodeCommand;
pub(crate) use notify::{ChannelCommand, NotifyCommand, RuleCommand};
pub(crate) use signing::{KeyDir, SigningCommand};
use task::TaskCommand;
pub(crate) use tls::{ClientTls, InitArgs, IssueArgs, Kind, Named, RenewArgs, TlsCommand};

use crate::{client::DEFAULT_MASTER, error::EXIT_HELP, events_args::EventsArgs, output::Format};
use clap::{Args, Parser, Subcommand, ValueHint};
use jiff::Timestamp;
use meepo_core::{duration::HumanDuration, id::Name, job::Executor, tree::TreePath};
use meepo_logstore::{Class, Keep};
use meepo_runtime::tls::EtcdTlsSettings;
use std::{net::SocketAddr, path::PathBuf};

/// Run commands and schedules on a fleet of Linux hosts.
#[derive(Debug, Parser)]
#[command(
    name = "meepo",
    version,
    after_help = EXIT_HELP,
    after_long_help = EXIT_HELP,
    infer_subcommands = false,
    arg_required_else_help = true,
    subcommand_required = true
)]
pub(crate) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Address of a master's HTTP API.
    #[arg(long, global = true, env = "MEEPO_MASTER", default_value = DEFAULT_MASTER, value_name = "URL", value_hint = ValueHint::Url)]
    pub(crate) master: String,
    /// How results are printed. Times are local in tables, UTC in JSON and YAML.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
    /// How requests are encrypted.
    #[command(flatten)]
    pub(crate) tls: ClientTls,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a one-process server: master, worker, log store and etcd (also `meepo --server`).
    Server(ServerArgs),
    /// Run a command on nodes now and print its output as it comes.
    Run(RunArgs),
    /// Stored, scheduled commands.
    #[command(subcommand)]
    Job(JobCommand),
    /// Work that is done once.
    #[command(subcommand)]
    Task(TaskCommand),
    /// List past and present runs, newest first.
    Runs(RunsArgs),
    /// Print the output of a run.
    Logs(LogsArgs),
    /// Stop a run.
    Kill(KillArgs),
    /// The hosts of the fleet.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Who is told when something goes wrong, and how.
    #[command(subcommand)]
    Notify(NotifyCommand),
    /// Print what happens in the fleet.
    Events(EventsArgs),
    /// Say what is wrong, and what to do about it.
    Doctor(DoctorArgs),
    /// Who did what.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Who may do what in etcd itself.
    #[command(subcommand)]
    Etcd(EtcdCommand),
    /// An authority of one's own and its certificates.
    #[command(subcommand)]
    Tls(TlsCommand),
    /// Get a token of a master and keep it.
    Login(LoginArgs),
    /// Revoke the token that is kept, and forget it.
    Logout,
    /// Print who you are for a master, and what you may.
    Whoami,
    /// Who may ask.
    #[command(subcommand)]
    User(UserCommand),
    /// By what users and services are known.
    #[command(subcommand)]
    Token(TokenCommand),
    /// What users may.
    #[command(subcommand)]
    Role(RoleCommand),
    /// Cron expressions and crontab files.
    #[command(subcommand)]
    Cron(CronCommand),
    /// Keys with which masters sign what nodes run.
    #[command(subcommand)]
    Signing(SigningCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version,
}

/// `meepo server`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    /// Directory for everything that must survive a restart.
    #[arg(long, env = "MEEPO_DATA_DIR", default_value = "meepo-data", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data_dir: PathBuf,
    /// Join the fleet behind this etcd instead of starting one; several with commas.
    #[arg(long, env = "MEEPO_ETCD", value_name = "URL", value_delimiter = ',')]
    pub(crate) etcd: Vec<String>,
    /// User of etcd, where it does not take the common name of the certificate for it.
    #[arg(long, env = "MEEPO_ETCD_USER", value_name = "USER")]
    pub(crate) etcd_user: Option<String>,
    /// File with the password of that user.
    #[arg(long, env = "MEEPO_ETCD_PASSWORD_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) etcd_password_file: Option<PathBuf>,
    /// What etcd is shown.
    #[command(flatten)]
    pub(crate) etcd_tls: EtcdTlsSettings,
    /// Where runs and output are kept: `mongodb://…` or `sqlite:PATH` [default: SQLite in the data directory].
    #[arg(long, env = "MEEPO_LOGS", value_name = "URL")]
    pub(crate) logs: Option<String>,
    /// How long what is over is kept: success, failed, missed, output, tasks, audit
    /// [default: success=30d,failed=90d,missed=30d,output=30d,tasks=90d,audit=365d].
    #[arg(long, env = "MEEPO_RETENTION", value_name = "CLASS=DURATION", value_delimiter = ',', value_parser = meepo_master::config::keep)]
    pub(crate) retention: Vec<(Class, Keep)>,
    /// Address of the HTTP API.
    #[arg(long, env = "MEEPO_HTTP", default_value = "127.0.0.1:7600", value_name = "ADDR")]
    pub(crate) http: SocketAddr,
    /// Address of the gRPC API.
    #[arg(long, env = "MEEPO_GRPC", default_value = "127.0.0.1:7601", value_name = "ADDR")]
    pub(crate) grpc: SocketAddr,
    /// Address of the worker's metrics.
    #[arg(long, env = "MEEPO_METRICS", default_value = "127.0.0.1:7602", value_name = "ADDR")]
    pub(crate) metrics: SocketAddr,
    /// Listen beyond loopback although this server has no TLS.
    #[arg(long, env = "MEEPO_ALLOW_INSECURE_LISTEN", value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub(crate) allow_insecure_listen: bool,
    /// Ask everybody who they are: true or false [default: true beyond loopback, false on it and
    /// with --allow-insecure-listen].
    #[arg(long, env = "MEEPO_AUTH", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) auth: Option<bool>,
    /// Client port of the etcd child.
    #[arg(
        long,
        env = "MEEPO_ETCD_PORT",
        default_value_t = 2379,
        value_name = "PORT",
        conflicts_with = "etcd"
    )]
    pub(crate) etcd_port: u16,
    /// Id of this node [default: its primary IP; 127.0.0.1 with an own etcd].
    #[arg(long, env = "MEEPO_NODE", value_name = "ID")]
    pub(crate) node: Option<Name>,
    /// URL of a collector of traces (OTLP over gRPC), as http://127.0.0.1:4317.
    #[arg(long, env = "MEEPO_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
    /// Directory of job definitions that are applied at start where they do not exist yet.
    #[arg(long, env = "MEEPO_JOBS", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) jobs: Option<PathBuf>,
}

/// `meepo run`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "One word after `--` is a script, as it stands: -- 'ls | wc -l'\n\
    Several words are quoted, so that each arrives as it is: -- echo \"a  b\"\n\
    With --executor exec they are the program and its arguments; no shell is involved.")]
pub(crate) struct RunArgs {
    /// Which nodes: `all`, a node, `group=web`, `role=db and disk.free > 1TB limit 3`.
    #[arg(short, long, value_name = "TARGET")]
    pub(crate) target: String,
    /// Run this bash script on all of them first and the command only where it exits with 0,
    /// at most on as many nodes as the target's limit. Without a command: tell who passed.
    #[arg(long, value_name = "SCRIPT")]
    pub(crate) probe: Option<String>,
    /// Longest time the command may take on a node [default: 30s].
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<HumanDuration>,
    /// What turns the words into a run: bash, sh, exec, python or http.
    #[arg(long, default_value = "bash")]
    pub(crate) executor: Executor,
    /// User to run as [default: the worker's own].
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Set an environment variable; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) env: Vec<(String, String)>,
    /// Working directory on the nodes.
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// Do not print the node in front of each line.
    #[arg(long)]
    pub(crate) no_prefix: bool,
    /// The command.
    #[arg(
        required_unless_present = "probe",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(crate) command: Vec<String>,
}

pub(crate) fn key_value(s: &str) -> Result<(String, String), String> {
    match s.split_once('=') {
        Some((k, v)) if !k.is_empty() => Ok((k.to_owned(), v.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Where and when a run on request starts.
#[derive(Debug, Args)]
pub(crate) struct TriggerArgs {
    /// Only on those of its nodes that match.
    #[arg(short, long)]
    pub(crate) target: Option<String>,
    /// Give up if it has not started so long after it could [default: 1h].
    #[arg(long, value_name = "DURATION")]
    pub(crate) ttl: Option<HumanDuration>,
    /// Start so much later, at most 30 days.
    #[arg(long, value_name = "DURATION", conflicts_with = "at")]
    pub(crate) delay: Option<HumanDuration>,
    /// Start at this instant, as 2026-12-24T18:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<Timestamp>,
}

/// `meepo job …`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Create or change jobs from YAML or JSON files.
    Apply {
        /// A file, a directory (its *.yaml, *.yml and *.json), or `-` for standard input.
        #[arg(short, long = "file", required = true, num_args = 1.., value_name = "FILE", value_hint = ValueHint::AnyPath)]
        files: Vec<PathBuf>,
    },
    /// List jobs.
    List(JobListArgs),
    /// Show a job, its nodes, its next slots and its last run.
    Get {
        /// The job.
        name: Name,
        /// Print only the definition, in the form `job apply` takes.
        #[arg(long)]
        definition: bool,
        /// As it is at a place in the product tree.
        #[arg(long, value_name = "PATH")]
        tree: Option<TreePath>,
    },
    /// Tell how a job did: successes, durations, day by day.
    Stats {
        /// The job; it may be gone.
        name: Name,
        #[command(flatten)]
        span: SpanArgs,
    },
    /// List the slots of a job that should have run and did not.
    Gaps {
        /// The job.
        name: Name,
        #[command(flatten)]
        span: SpanArgs,
    },
    /// Delete jobs.
    Delete {
        /// The jobs.
        #[arg(required = true)]
        names: Vec<Name>,
        /// Only what is defined at a place in the product tree.
        #[arg(long, value_name = "PATH")]
        tree: Option<TreePath>,
    },
    /// Tell why nodes have a job or have it not, and where its fields come from.
    Explain {
        /// The job.
        name: Name,
        /// Which nodes.
        #[arg(short, long, default_value = "all")]
        target: String,
    },
    /// Stop following the schedule of jobs.
    Pause {
        /// The jobs.
        #[arg(required = true)]
        names: Vec<Name>,
    },
    /// Follow the schedule of jobs again.
    Resume {
        /// The jobs.
        #[arg(required = true)]
        names: Vec<Name>,
    },
    /// Run a job now, or later.
    Trigger {
        /// The job.
        name: Name,
        #[command(flatten)]
        when: TriggerArgs,
        /// Print the output until the end; exit as `meepo run` does.
        #[arg(short, long)]
        follow: bool,
    },
    /// Print when a job runs next.
    Next {
        /// The job.
        name: Name,
        /// How many slots.
        #[arg(short, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        n: u32,
    },
}

/// `meepo job list`.
#[derive(Debug, Clone, Args)]
pub(crate) struct JobListArgs {
    /// Only names that match: `web-*`.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) name: Option<String>,
    /// Only those that this node holds.
    #[arg(long)]
    pub(crate) node: Option<Name>,
    /// Only those that a place in the product tree has or inherits, as they are there.
    #[arg(long, value_name = "PATH")]
    pub(crate) tree: Option<TreePath>,
    /// At most so many [default: all].
    #[arg(short, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) n: Option<u32>,
}

/// `meepo logs`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogsArgs {
    /// The run: its id or an unambiguous beginning of it.
    pub(crate) run: String,
    /// Go on until the run ends.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print the local time in front of each line.
    #[arg(long)]
    pub(crate) timestamps: bool,
}

/// `meepo kill`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KillArgs {
    /// The runs: ids or unambiguous beginnings of them.
    #[arg(required = true)]
    pub(crate) runs: Vec<String>,
}

/// `meepo cron …`.
#[derive(Debug, Subcommand)]
pub(crate) enum CronCommand {
    /// Print when a cron expression fires next. Needs no master.
    Next {
        /// The expression, as one argument: '*/5 * * * *'.
        #[arg(required = true, value_name = "EXPR")]
        expr: Vec<String>,
        /// IANA time zone the fields are read in [default: UTC].
        #[arg(long, value_name = "ZONE")]
        tz: Option<String>,
        /// Slots after this time [default: now].
        #[arg(long, value_name = "TIME")]
        from: Option<String>,
        /// How many slots.
        #[arg(short, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        n: u32,
    },
    /// Turn crontab files into jobs.
    Import(ImportArgs),
}

/// `meepo cron import`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImportArgs {
    /// Crontab files, or directories such as /etc/cron.d; `-` for standard input.
    #[arg(required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) files: Vec<PathBuf>,
    /// The files are this user's crontabs: lines have no user column.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Lines have a user column, as in /etc/crontab [default: told by path and content].
    #[arg(long, conflicts_with = "user")]
    pub(crate) system: bool,
    /// IANA time zone of the lines [default: this host's].
    #[arg(long, value_name = "ZONE")]
    pub(crate) tz: Option<String>,
    /// Which nodes the jobs run on.
    #[arg(short, long, default_value = "all")]
    pub(crate) target: String,
    /// Begin the jobs' names with this.
    #[arg(long, default_value = "")]
    pub(crate) prefix: String,
    /// Only print what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// The arguments with `--server` in front turned into the command `server`.
pub(crate) fn normalise(
    args: impl IntoIterator<Item = std::ffi::OsString>,
) -> Vec<std::ffi::OsString> {
    let mut args: Vec<_> = args.into_iter().collect();
    let options_first = args.get(1).is_some_and(|a| a.as_encoded_bytes().starts_with(b"-"));
    let end = args.iter().position(|a| a == "--").unwrap_or(args.len());
    if let Some(i) = args[..end].iter().position(|a| a == "--server").filter(|_| options_first) {
        args.remove(i);
        args.insert(1, "server".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        let args = std::iter::once("meepo").chain(args.iter().copied()).map(Into::into);
        Cli::try_parse_from(normalise(args))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn server_has_two_spellings() {
        for args in [
            &["--server", "--data-dir", "/x"][..],
            &["--data-dir", "/x", "--server"],
            &["server", "--data-dir", "/x"],
        ] {
            let Command::Server(s) = parse(args).unwrap().command else { panic!("{args:?}") };
            assert_eq!(s.data_dir, PathBuf::from("/x"));
            assert_eq!(s.http.port(), 7600);
        }
        // A remote command may well have an option of that name.
        let Command::Run(r) = parse(&["run", "-t", "all", "--", "x", "--server"]).unwrap().command
        else {
            panic!()
        };
        assert_eq!(r.command, ["x", "--server"]);
    }

    #[test]
    fn run_takes_the_words_as_they_are() {
        for (args, words) in [
            (&["run", "-t", "all", "--", "uname", "-a"][..], &["uname", "-a"][..]),
            (&["run", "-t", "all", "uname", "-a"], &["uname", "-a"]),
            (&["run", "-t", "all", "--", "-x"], &["-x"]),
            (
                &["run", "-t", "all", "--", "grep", "--", "-o", "json"],
                &["grep", "--", "-o", "json"],
            ),
        ] {
            let cli = parse(args).unwrap();
            assert_eq!(cli.global.output, Format::Table);
            let Command::Run(r) = cli.command else { panic!() };
            assert_eq!(r.command, words, "{args:?}");
        }
        assert!(parse(&["run", "-t", "all"]).is_err());
        assert!(parse(&["run", "-t", "all", "--probe", "true"]).is_ok());
        assert!(parse(&["run", "uname"]).is_err());
    }

    #[test]
    fn bad_values_say_what_would_be_right() {
        for (args, want) in [
            (&["run", "-t", "a", "--timeout", "soon", "--", "x"][..], "30s, 5m or 1h30m"),
            (&["run", "-t", "a", "--executor", "perl", "--", "x"], "bash, sh, exec, python, http"),
            (&["run", "-t", "a", "--env", "x", "--", "x"], "KEY=VALUE"),
            (&["job", "get", "a/b"], "letters, digits"),
            (&["runs", "--state", "failed,done"], "one of running, success"),
        ] {
            let text = parse(args).unwrap_err().to_string();
            assert!(text.contains(want), "{args:?}: {text}");
        }
    }

    #[test]
    fn options_may_follow_an_expression() {
        let cli =
            parse(&["cron", "next", "*/5 * * * *", "--tz", "UTC", "-n3", "-o", "json"]).unwrap();
        let Command::Cron(CronCommand::Next { expr, tz, n, .. }) = cli.command else { panic!() };
        assert_eq!((expr.len(), tz.as_deref(), n), (1, Some("UTC"), 3));
    }

    #[test]
    fn several_files_can_be_given_in_either_way() {
        for args in [&["job", "apply", "-f", "a", "-f", "b"][..], &["job", "apply", "-f", "a", "b"]]
        {
            let Command::Job(JobCommand::Apply { files }) = parse(args).unwrap().command else {
                panic!()
            };
            assert_eq!(files.len(), 2);
        }
    }
}
