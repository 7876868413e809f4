//! How a command or run ended on each node, and what that means for us.

use crate::{
    error::exit,
    output::{Out, text, time},
};
use jiff::Timestamp;
use meepo_core::{
    api::HostAnswer,
    code::Code,
    run::{RunRecord, RunState},
};

/// How it ended on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The node.
    pub(crate) node: String,
    /// Whether it succeeded.
    pub(crate) ok: bool,
    /// The process's own exit status, if that is why it failed.
    pub(crate) exit_status: Option<u8>,
    /// Why it failed, in words.
    pub(crate) reason: String,
    /// Bytes of output that were not kept.
    pub(crate) dropped: u64,
}

impl Outcome {
    /// From the record of a run that has ended.
    pub(crate) fn of_run(run: &RunRecord) -> Self {
        Self {
            node: run.node.to_string(),
            ok: run.state == RunState::Success,
            exit_status: plain_exit(run),
            reason: describe(run),
            dropped: run.dropped_bytes,
        }
    }

    /// From a node's answer to a synchronous command.
    pub(crate) fn of_answer(answer: &HostAnswer, run: Option<&RunRecord>) -> Self {
        let ok = answer.retcode.is_ok();
        let node = answer.host.clone();
        match run {
            Some(run) if run.state.is_final() => Self { node, ok, ..Self::of_run(run) },
            _ => Self { node, ok, exit_status: None, reason: answer.message.clone(), dropped: 0 },
        }
    }
}

fn plain_exit(run: &RunRecord) -> Option<u8> {
    if run.code != Code::EXIT_STATUS {
        return None;
    }
    run.exit_code.and_then(|c| u8::try_from(c).ok()).filter(|c| *c != 0)
}

/// How a run ended, in words: `exit status 3 after 1.2s`.
pub(crate) fn describe(run: &RunRecord) -> String {
    let mut words = match (run.code, run.exit_code, run.signal) {
        (Code::EXIT_STATUS, Some(status), _) => format!("exit status {status}"),
        (Code::SIGNALED, _, Some(signal)) => format!("ended by signal {signal}"),
        (Code::TIMED_OUT, _, _) => "timed out".to_owned(),
        (code, _, _) => match &run.message {
            Some(message) => message.clone(),
            None if run.state == RunState::Running => "running".to_owned(),
            None => code.meaning().to_owned(),
        },
    };
    if let (Some(_), Some(elapsed)) = (run.ended_at, run.elapsed(Timestamp::UNIX_EPOCH)) {
        words.push_str(&format!(" after {}", time::short(elapsed)));
    }
    words
}

/// The outcomes of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(pub(crate) Vec<Outcome>);

impl Outcomes {
    /// The exit code: 0 if every node succeeded; with exactly one node its own exit
    /// status; else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.0.as_slice() {
            [only] if !only.ok => only.exit_status.unwrap_or(exit::FAILED),
            all if all.iter().all(|o| o.ok) => exit::OK,
            _ => exit::FAILED,
        }
    }

    /// A line for each node that failed or lost output, and a count.
    pub(crate) fn report(&self, out: &Out) {
        for o in &self.0 {
            if !o.ok {
                let text = text::one_line(&format!("{}: {}", o.node, o.reason));
                if out.err_color {
                    eprint_line(&format!("\x1b[31m{text}\x1b[0m"));
                } else {
                    eprint_line(&text);
                }
            }
            if o.dropped > 0 {
                out.note(&format!(
                    "{}: {} of output above the limit were dropped",
                    o.node,
                    text::bytes(o.dropped)
                ));
            }
        }
        let failed = self.0.iter().filter(|o| !o.ok).count();
        if failed > 0 && self.0.len() > 1 {
            out.note(&format!("{failed} of {} failed", text::count(self.0.len(), "node")));
        }
    }
}

fn eprint_line(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn run(extra: serde_json::Value) -> RunRecord {
        let mut v = json!({
            "run_id": "01932f5e-0000-7000-8000-000000000001", "node": "n1", "slot": "2026-01-01T00:00:00Z",
            "attempt": 1, "cause": "exec", "executor": "bash", "cmd": "x", "state": "failed", "code": 0x0101,
            "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:01.25Z"
        });
        v.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn reasons_are_plain() {
        for (extra, words, status) in [
            (json!({"exit_code": 3}), "exit status 3 after 1.2s", Some(3)),
            (json!({"code": 0x0102, "signal": 9}), "ended by signal 9 after 1.2s", None),
            (
                json!({"code": 0x0100, "state": "timeout", "signal": 15}),
                "timed out after 1.2s",
                None,
            ),
            (
                json!({"code": 0x0105, "message": "no such user: x", "ended_at": null, "started_at": null}),
                "no such user: x",
                None,
            ),
        ] {
            let o = Outcome::of_run(&run(extra));
            assert_eq!((o.reason.as_str(), o.exit_status, o.ok), (words, status, false));
        }
    }

    #[test]
    fn one_nodes_exit_status_passes_several_do_not() {
        let failed = Outcome::of_run(&run(json!({"exit_code": 3})));
        let fine = Outcome::of_run(&run(json!({"state": "success", "code": 0})));
        let killed = Outcome::of_run(&run(json!({"state": "killed", "code": 0x0103})));
        for (outcomes, want) in [
            (vec![failed.clone()], 3),
            (vec![killed], exit::FAILED),
            (vec![fine.clone()], exit::OK),
            (vec![fine.clone(), failed], exit::FAILED),
            (vec![fine.clone(), fine], exit::OK),
            (vec![], exit::OK),
        ] {
            assert_eq!(Outcomes(outcomes).exit_code(), want);
        }
    }
}
