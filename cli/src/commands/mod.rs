//! What each command does.

pub(crate) mod access;
pub(crate) mod apply;
pub(crate) mod audit;
pub(crate) mod cron;
pub(crate) mod doctor;
pub(crate) mod documents;
pub(crate) mod etcd;
pub(crate) mod events;
mod explain;
pub(crate) mod follow;
mod grep;
mod history;
pub(crate) mod import;
pub(crate) mod job;
pub(crate) mod job_view;
mod join;
pub(crate) mod node;
mod node_facts;
pub(crate) mod notify;
pub(crate) mod outcome;
mod probe;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod signing;
pub(crate) mod task;
pub(crate) mod task_view;
pub(crate) mod task_wait;
pub(crate) mod tls;

use crate::{
    args::{AuditCommand, Cli, Command, CronCommand, JobCommand, NodeCommand},
    client::Client,
    error::{CliError, CliResult, exit},
    output::Out,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::CommandFactory;
use meepo_core::{api::OutputView, join::CreateJoinToken};

/// Does what the command line says; answers the exit code.
pub(crate) fn dispatch(cli: Cli) -> CliResult<u8> {
    let out = Out::detect(cli.global.output);
    let global = cli.global;
    match cli.command {
        Command::Server(args) => crate::server::run(args),
        Command::Completions { shell } => completions(&out, shell),
        Command::Version => {
            out.text(concat!("meepo ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| exit::OK)
        }
        Command::Tls(command) => tls::run(&out, command),
        Command::Signing(command) => signing::run(&out, command),
        Command::Cron(CronCommand::Next { expr, tz, from, n }) => {
            cron::next(&out, &expr, tz.as_deref(), from.as_deref(), n)
        }
        Command::Cron(CronCommand::Import(args)) => {
            client_command(async move { import::run(&out, &global, args).await })
        }
        Command::Etcd(command) => client_command(async move { etcd::run(&out, command).await }),
        Command::Run(args) => client_command(run::run(&out, Client::open(&global)?, args)),
        Command::Job(command) => {
            let client = Client::open(&global)?;
            client_command(async move { job_command(&out, &client, command).await })
        }
        Command::Task(command) => {
            let client = Client::open(&global)?;
            client_command(async move { task::run(&out, &client, command).await })
        }
        Command::Runs(args) => {
            let client = Client::open(&global)?;
            client_command(async move { runs::list(&out, &client, args).await })
        }
        Command::Logs(args) => {
            let client = Client::open(&global)?;
            client_command(async move { runs::logs(&out, &client, args).await })
        }
        Command::Kill(args) => {
            let client = Client::open(&global)?;
            client_command(async move { runs::kill(&out, &client, args).await })
        }
        Command::Doctor(args) => {
            let client = Client::open(&global)?;
            client_command(async move { doctor::run(&out, &client, args).await })
        }
        Command::Audit(AuditCommand::List(args)) => {
            let client = Client::open(&global)?;
            client_command(async move { audit::list(&out, &client, args).await })
        }
        Command::Login(args) => {
            let client = Client::open(&global)?;
            client_command(async move { access::login(&out, client, args).await })
        }
        Command::Logout => {
            let client = Client::open(&global)?;
            client_command(async move { access::logout(&out, &client).await })
        }
        Command::Whoami => {
            let client = Client::open(&global)?;
            client_command(async move { access::whoami(&out, &client).await })
        }
        Command::User(command) => {
            let client = Client::open(&global)?;
            client_command(async move { access::user(&out, &client, command).await })
        }
        Command::Token(command) => {
            let client = Client::open(&global)?;
            client_command(async move { access::token(&out, &client, command).await })
        }
        Command::Role(command) => {
            let client = Client::open(&global)?;
            client_command(async move { access::role(&out, &client, command).await })
        }
        Command::Events(args) => {
            let client = Client::open(&global)?;
            client_command(async move { events::run(&out, &client, args).await })
        }
        Command::Notify(command) => {
            let client = Client::open(&global)?;
            client_command(async move { notify::run(&out, &client, command).await })
        }
        Command::Node(command) => {
            let client = Client::open(&global)?;
            client_command(async move {
                match command {
                    NodeCommand::List { target } => node::list(&out, &client, target).await,
                    NodeCommand::Facts { target } => node_facts::facts(&out, &client, target).await,
                    NodeCommand::Label { name, changes } => {
                        node_facts::label(&out, &client, &name, changes).await
                    }
                    NodeCommand::Get { name } => node::get(&out, &client, &name).await,
                    NodeCommand::Drain { name, deadline, wait } => {
                        node::drain(&out, &client, &name, deadline, wait).await
                    }
                    NodeCommand::JoinToken { revoke: Some(id), .. } => {
                        join::revoke(&out, &client, &id).await
                    }
                    NodeCommand::JoinToken { list: true, .. } => join::list(&out, &client).await,
                    NodeCommand::JoinToken { node, ttl, hosts, .. } => {
                        let request = CreateJoinToken { node, ttl: Some(ttl), hosts };
                        join::create(&out, &client, &request).await
                    }
                    NodeCommand::Undrain { name } => node::undrain(&out, &client, &name).await,
                }
            })
        }
    }
}

async fn job_command(out: &Out, client: &Client, command: JobCommand) -> CliResult<u8> {
    match command {
        JobCommand::Apply { files } => apply::run(out, client, &files).await,
        JobCommand::List(args) => job::list(out, client, args).await,
        JobCommand::Get { name, definition, tree } => {
            job::get(out, client, &name, definition, tree).await
        }
        JobCommand::Stats { name, span } => history::stats(out, client, &name, span).await,
        JobCommand::Gaps { name, span } => history::gaps(out, client, &name, span).await,
        JobCommand::Delete { names, tree } => job::delete(out, client, &names, tree).await,
        JobCommand::Explain { name, target } => explain::run(out, client, &name, target).await,
        JobCommand::Pause { names } => job::set_status(out, client, &names, "pause").await,
        JobCommand::Resume { names } => job::set_status(out, client, &names, "resume").await,
        JobCommand::Trigger { name, when, follow } => {
            job::trigger(out, client, &name, when, follow).await
        }
        JobCommand::Next { name, n } => job::next(out, client, &name, n).await,
    }
}

/// Runs a command that talks to a master: one thread is plenty.
fn client_command(future: impl Future<Output = CliResult<u8>>) -> CliResult<u8> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::new(exit::INTERNAL, format!("cannot start the runtime: {e}")))?
        .block_on(future)
}

fn completions(out: &Out, shell: clap_complete::Shell) -> CliResult<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "meepo", &mut script);
    out.text(&String::from_utf8_lossy(&script))?;
    Ok(exit::OK)
}

/// The bytes of a piece of output.
pub(crate) fn bytes_of(view: &OutputView) -> CliResult<Vec<u8>> {
    match (&view.text, &view.base64) {
        (Some(text), _) => Ok(text.clone().into_bytes()),
        (None, Some(data)) => STANDARD.decode(data).map_err(|e| {
            CliError::new(exit::INTERNAL, format!("the master sent output that is no base64: {e}"))
        }),
        (None, None) => Ok(Vec::new()),
    }
}
