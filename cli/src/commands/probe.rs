//! What a probe has found, for people.

use crate::{
    error::{CliResult, exit},
    output::{
        Out,
        table::{Table, cell},
        text,
    },
};
use meepo_core::{api::HostAnswer, code::Code};

/// Most nodes that a line names.
const NAMED: usize = 8;
/// Most of a probe's output that is shown in a row.
const SAID: usize = 80;

/// The answers so far.
#[derive(Debug, Default)]
pub(super) struct Probes {
    answers: Vec<HostAnswer>,
    chosen: Vec<String>,
}

impl Probes {
    pub(super) fn answered(&mut self, answer: HostAnswer) {
        self.answers.push(answer);
    }

    /// All have answered. Says how it went, unless programs read it.
    pub(super) fn chosen(&mut self, out: &Out, hosts: Vec<String>, only_told: bool) {
        self.chosen = hosts;
        if !out.is_table() {
            return;
        }
        for line in self.summary(only_told) {
            out.note(&line);
        }
    }

    fn summary(&self, only_told: bool) -> Vec<String> {
        let passed = self.answers.iter().filter(|a| a.retcode.is_ok()).count();
        let all = text::count(self.answers.len(), "node");
        let mut first = format!("probe: {passed} of {all} passed");
        let chosen = self.chosen.len();
        if !only_told && chosen > 0 {
            let on = if chosen == passed { String::new() } else { format!("{chosen} of them: ") };
            first += &format!("; the command runs on {on}{}", few(self.chosen.iter()));
        }
        // A node that says no is no news; one that could not be asked is.
        let silent = |a: &&HostAnswer| !a.retcode.is_ok() && a.retcode != Code::EXIT_STATUS;
        let mut lines = vec![first];
        for a in self.answers.iter().filter(silent) {
            lines.push(format!("probe: {}: {}", a.host, a.message));
        }
        lines
    }

    /// Who passed, with what the probe wrote there; the exit code says whether anybody did.
    pub(super) fn print(&self, out: &Out) -> CliResult<u8> {
        if out.is_table() && !self.chosen.is_empty() {
            let mut table = Table::new(out, &["NODE", "PROBE SAID"]);
            for host in &self.chosen {
                let answer = self.answers.iter().find(|a| a.host == *host);
                let said = answer.and_then(|a| a.data.as_deref()).unwrap_or_default();
                let said = said.trim().lines().next().unwrap_or_default();
                table.row(vec![cell(host), cell(text::shorten(said, SAID))]);
            }
            out.text(&table.render())?;
        }
        Ok(if self.chosen.is_empty() { exit::NOT_FOUND } else { exit::OK })
    }
}

fn few<'a>(hosts: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = hosts.len().saturating_sub(NAMED);
    let named = hosts.take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_who_passed_and_who_could_not_be_asked() {
        let answer = |host: &str, retcode: Code, message: &str| HostAnswer {
            host: host.into(),
            resp: String::new(),
            retcode,
            message: message.into(),
            data: None,
        };
        let mut probes = Probes::default();
        for (host, code, message) in [
            ("a", Code::OK, "success"),
            ("b", Code::EXIT_STATUS, "exit status 1"),
            ("c", Code::HOST_OFFLINE, "the host is known but not connected"),
            ("d", Code::OK, "success"),
        ] {
            probes.answered(answer(host, code, message));
        }
        probes.chosen = vec!["d".into()];
        assert_eq!(
            probes.summary(false),
            [
                "probe: 2 of 4 nodes passed; the command runs on 1 of them: d",
                "probe: c: the host is known but not connected"
            ]
        );
        probes.chosen = (0..10).map(|i| format!("n{i}")).collect();
        assert_eq!(probes.summary(true)[0], "probe: 2 of 4 nodes passed");
        assert!(few(probes.chosen.iter()).ends_with("n7 and 2 more"));
    }
}
