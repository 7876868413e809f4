//! `meepo run`: a command on nodes, now.

use super::{
    bytes_of,
    outcome::{Outcome, Outcomes},
    probe::Probes,
};
use crate::{
    args::RunArgs,
    client::Client,
    error::{CliError, CliResult, exit},
    output::{
        Out,
        stream::{Lead, Printer},
    },
};
use meepo_core::{
    api::{ExecEvent, ExecStreamRequest},
    job::{Executor, check_command},
    target::Target,
};
use reqwest::Method;
use std::collections::{BTreeMap, BTreeSet};

/// Sends the command, prints what comes, answers the exit code.
pub(crate) async fn run(out: &Out, client: Client, args: RunArgs) -> CliResult<u8> {
    let request = request(&args)?;
    let mut state = Session {
        out,
        printer: Printer::new(out, Lead::Source),
        no_prefix: args.no_prefix,
        open: BTreeSet::new(),
        outcomes: Outcomes::default(),
        probes: Probes::default(),
    };
    let done = tokio::select! {
        r = state.follow(&client, &request) => r,
        // Dropping the request ends it; the master then kills what still runs.
        _ = tokio::signal::ctrl_c() => {
            state.printer.finish_all()?;
            out.note("interrupted; what still ran is being killed");
            return Ok(exit::INTERRUPTED);
        }
    };
    state.printer.finish_all()?;
    if out.is_table() {
        state.outcomes.report(out);
    }
    done?;
    if args.command.is_empty() {
        return state.probes.print(out);
    }
    Ok(state.outcomes.exit_code())
}

struct Session<'a> {
    out: &'a Out,
    printer: Printer<std::io::Stdout, std::io::Stderr>,
    no_prefix: bool,
    /// Hosts that have not ended yet.
    open: BTreeSet<String>,
    outcomes: Outcomes,
    probes: Probes,
}

impl Session<'_> {
    async fn follow(&mut self, client: &Client, request: &ExecStreamRequest) -> CliResult<()> {
        let mut events =
            client.stream(Method::POST, &["exec", "stream"], &[], Some(request)).await?;
        let mut started = false;
        while let Some(event) = events.next::<ExecEvent>().await? {
            if !self.out.is_table() {
                self.out.event(&event)?;
            }
            match event {
                ExecEvent::Probe(answer) => self.probes.answered(answer),
                ExecEvent::Chosen { hosts } => {
                    let last = request.cmd.is_empty();
                    self.probes.chosen(self.out, hosts, last);
                    started |= last;
                }
                ExecEvent::Start { hosts } => {
                    started = true;
                    self.printer.sources(hosts.iter().map(|h| h.host.as_str()));
                    self.open = hosts.into_iter().map(|h| h.host).collect();
                    if self.no_prefix {
                        let lead = if self.open.len() == 1 { Lead::Raw } else { Lead::Lines };
                        self.printer = Printer::new(self.out, lead);
                    }
                }
                ExecEvent::Output { host, output } if self.out.is_table() => {
                    let data = bytes_of(&output)?;
                    self.printer.chunk(&host, output.stream, output.at, &data)?;
                }
                ExecEvent::Output { .. } => {}
                ExecEvent::End { answer, run } => {
                    self.printer.finish(&answer.host)?;
                    self.open.remove(&answer.host);
                    self.outcomes.0.push(Outcome::of_answer(&answer, run.as_deref()));
                }
                ExecEvent::Error(e) => return Err(e.into()),
            }
        }
        if !started || !self.open.is_empty() {
            let problem = if started {
                let open: Vec<&str> = self.open.iter().map(String::as_str).take(5).collect();
                let more = if self.open.len() > 5 { " and others" } else { "" };
                format!("the master ended the request before {}{more} answered", open.join(", "))
            } else {
                "the master ended the request before it began".to_owned()
            };
            return Err(CliError::new(exit::UNAVAILABLE, problem));
        }
        Ok(())
    }
}

fn request(args: &RunArgs) -> CliResult<ExecStreamRequest> {
    Target::parse(&args.target)?;
    let (cmd, rest) = command_line(args.executor, &args.command);
    if args.probe.is_none() || !args.command.is_empty() {
        check_command(args.executor, &cmd, &rest)?;
    }
    Ok(ExecStreamRequest {
        target: args.target.clone(),
        cmd,
        args: rest,
        executor: args.executor,
        timeout: args.timeout,
        env: args.env.iter().cloned().collect::<BTreeMap<_, _>>(),
        cwd: args.cwd.clone(),
        user: args.user.clone(),
        probe: args.probe.clone(),
    })
}

/// What is sent as `cmd` and `args` for the words after `--`. For a shell one word
/// is a script; of several each arrives as it is.
pub(crate) fn command_line(executor: Executor, words: &[String]) -> (String, Vec<String>) {
    match (executor, words) {
        (_, []) => (String::new(), Vec::new()),
        (Executor::Bash | Executor::Sh, [_, _, ..]) => {
            (words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "), Vec::new())
        }
        (_, [first, rest @ ..]) => (first.clone(), rest.to_vec()),
    }
}

/// `word` so that a POSIX shell reads it back as it is.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        output::Format,
        testing::{Reply, fake_master},
    };
    use serde_json::json;
    use std::process::Command;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn a_shell_reads_every_word_back() {
        let tricky = words(&[
            "printf", "%s|", "a  b", "it's", "$HOME", "`id`", "", "*", "-n", "a\nb", "ü\\", "~",
            "#", "!x",
        ]);
        let (cmd, args) = command_line(Executor::Bash, &tricky);
        assert!(args.is_empty());
        for shell in ["bash", "sh"] {
            let got = Command::new(shell).args(["-c", &cmd]).output().unwrap().stdout;
            assert_eq!(
                String::from_utf8(got).unwrap(),
                tricky[2..].join("|") + "|",
                "{shell}: {cmd}"
            );
        }
    }

    #[test]
    fn one_word_is_a_script_and_exec_has_no_shell() {
        for (executor, given, cmd, args) in [
            (Executor::Bash, &["ls | wc -l"][..], "ls | wc -l", &[][..]),
            (Executor::Sh, &["uname", "-a"], "uname -a", &[]),
            (Executor::Exec, &["/bin/echo", "a  b", "*"], "/bin/echo", &["a  b", "*"]),
            (
                Executor::Python,
                &["import sys; print(sys.argv)", "x"],
                "import sys; print(sys.argv)",
                &["x"],
            ),
        ] {
            assert_eq!(command_line(executor, &words(given)), (cmd.to_owned(), words(args)));
        }
    }

    async fn session(body: String, cut: bool) -> (CliResult<u8>, Vec<String>) {
        let reply = Reply::new("200 OK", body);
        let master = fake_master(vec![if cut { reply.cut() } else { reply }]).await;
        let out = Out {
            format: Format::Table,
            terminal: false,
            color: false,
            err_terminal: false,
            err_color: false,
        };
        let args = RunArgs {
            target: "all".into(),
            timeout: None,
            executor: Executor::Bash,
            user: None,
            env: vec![("A".into(), "1".into())],
            cwd: None,
            no_prefix: false,
            probe: None,
            command: words(&["exit 3"]),
        };
        (run(&out, master.client(), args).await, master.requests())
    }

    fn event(v: serde_json::Value) -> String {
        v.to_string() + "\n"
    }

    #[tokio::test]
    async fn the_exit_status_of_a_single_node_is_ours() {
        let end = json!({"type": "end", "host": "n1", "resp": "failed", "retcode": 257, "message": "exit status 3",
            "run": super::super::outcome::tests::run(json!({"exit_code": 3}))});
        let body = event(json!({"type": "start", "hosts": [{"host": "n1"}]}))
            + &event(
                json!({"type": "output", "host": "n1", "seq": 0, "stream": "stdout", "at": "2026-01-01T00:00:00Z", "text": ""}),
            )
            + &event(end);
        let (code, requests) = session(body, false).await;
        assert_eq!(code, Ok(3));
        let sent: serde_json::Value =
            serde_json::from_str(requests[0].split_once('\n').unwrap().1).unwrap();
        assert!(requests[0].starts_with("POST /v1/exec/stream "), "{requests:?}");
        assert_eq!(sent["cmd"], "exit 3");
        assert_eq!(sent["env"], json!({"A": "1"}));
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_is_no_success() {
        let start = event(json!({"type": "start", "hosts": [{"host": "n1"}]}));
        for cut in [false, true] {
            let (code, _) = session(start.clone(), cut).await;
            assert_eq!(code.unwrap_err().exit, exit::UNAVAILABLE);
        }
        let error = json!({"type": "error", "code": 0x0402, "name": "no_leader", "message": "m", "retry": true});
        let (code, _) = session(start + &event(error), false).await;
        assert_eq!(code.unwrap_err().exit, exit::UNAVAILABLE);
    }
}
