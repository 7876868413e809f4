//! The report: a page of text, made from what happened.

use crate::{
    check::{Counts, Verdict, Wrong},
    faults::{Fault, Kind},
};
use anyhow::{Context, Result};
use clap::ValueEnum;
use jiff::Timestamp;
use std::{collections::BTreeMap, fmt::Write, fs, path::Path, time::Duration};

/// A fault that happened.
#[derive(Debug, Clone)]
pub(crate) struct Happened {
    pub(crate) fault: Fault,
    /// From the end of its round until everything worked again; `None`: that took too long.
    pub(crate) recovered: Option<Duration>,
}

/// What the page is about.
#[derive(Debug)]
pub(crate) struct Report {
    /// The command that does it again.
    pub(crate) replay: String,
    pub(crate) began: Timestamp,
    pub(crate) ended: Timestamp,
    pub(crate) rounds: u32,
    pub(crate) faults: Vec<Happened>,
    /// Faults that could not be brought about, such as a request to an etcd without quorum.
    pub(crate) not_made: Vec<String>,
    pub(crate) repeated: u64,
    pub(crate) verdict: Verdict,
}

const BEGIN: &str = "<!-- written by meepo-chaos from here -->";
const END: &str = "<!-- to here -->";

impl Report {
    /// Whether everything held.
    pub(crate) fn is_good(&self) -> bool {
        self.verdict.complaints.is_empty() && self.faults.iter().all(|f| f.recovered.is_some())
    }

    /// The page, as Markdown.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    /// Puts the page in place of what the last run has written into a file.
    ///
    /// # Errors
    /// When the file cannot be read or written, or has no place for it.
    pub(crate) fn put_into(&self, file: &Path) -> Result<()> {
        let old =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let place = || format!("{} has no lines {BEGIN} and {END}", file.display());
        let (head, rest) = old.split_once(BEGIN).with_context(place)?;
        let (_, tail) = rest.split_once(END).with_context(place)?;
        fs::write(file, format!("{head}{BEGIN}\n\n{}\n{END}{tail}", self.text()))?;
        Ok(())
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let v = &self.verdict;
        let took = self.ended.duration_since(self.began).as_secs_f64() / 60.0;
        writeln!(out, "## The newest run\n")?;
        let began = self.began.strftime("%Y-%m-%d %H:%M");
        writeln!(
            out,
            "`{}`, begun {began} UTC: {took:.1} minutes, {} faults in {} rounds.\n",
            self.replay,
            self.faults.len(),
            self.rounds
        )?;
        let unrecovered = self.faults.iter().filter(|f| f.recovered.is_none()).count();
        writeln!(out, "| what must not be | found |\n|---|---|")?;
        for (wrong, what) in [
            (
                Wrong::Doubled,
                "a slot, an attempt at a part or a command run twice, or recorded twice",
            ),
            (
                Wrong::Lost,
                "a slot without run or record, a lost run not run again although promised, a task that never ended",
            ),
            (
                Wrong::Record,
                "a run without a record, or a record that contradicts what the run has noted",
            ),
            (Wrong::Fence, "a fencing token that is not newer, or given twice"),
            (
                Wrong::Stale,
                "an attempt that went on beside a later one although its worker could have ended it",
            ),
            (Wrong::Output, "output lines doubled, out of order, or dropped without being counted"),
            (Wrong::LeftOver, "processes or keys left over"),
        ] {
            writeln!(out, "| {what} | {} |", v.count(wrong))?;
        }
        writeln!(out, "| a fault from which the cluster did not recover | {unrecovered} |\n")?;
        for complaint in &v.complaints {
            writeln!(out, "- {complaint}")?;
        }
        self.write_jobs(out)?;
        counts(out, "Tasks", &v.tasks)?;
        counts(out, "Synchronous commands", &v.commands)?;
        counts(out, "Output", &v.output)?;
        counts(out, "Writes to fenced registers", &v.register)?;
        writeln!(
            out,
            "Requests that were repeated, as no master could serve them: {}.\n",
            self.repeated
        )?;
        self.write_faults(out)
    }

    fn write_jobs(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "### Slots\n\n| job | what | slots |\n|---|---|---|")?;
        for (job, counts) in &self.verdict.jobs {
            for (what, n) in counts {
                writeln!(out, "| `{job}` | {what} | {n} |")?;
            }
        }
        writeln!(out)
    }

    fn write_faults(&self, out: &mut String) -> std::fmt::Result {
        let mut kinds: BTreeMap<Kind, Vec<&Happened>> = BTreeMap::new();
        for fault in &self.faults {
            kinds.entry(fault.fault.kind).or_default().push(fault);
        }
        writeln!(out, "### Time to recover\n")?;
        writeln!(
            out,
            "From the end of a round of faults until every master is ready, every worker connected, \
             and a slot that came after has run on every node: faults of one round overlap, and count \
             together.\n"
        )?;
        writeln!(out, "| fault | how often | median | longest |\n|---|---|---|---|")?;
        for (kind, all) in kinds {
            let mut took: Vec<Duration> = all.iter().filter_map(|f| f.recovered).collect();
            took.sort();
            let name = kind.to_possible_value();
            let name = name.as_ref().map_or("", |n| n.get_name()).to_owned();
            let at = |i: usize| {
                took.get(i).map_or("-".to_owned(), |t| format!("{:.1} s", t.as_secs_f64()))
            };
            let longest = at(took.len().saturating_sub(1));
            writeln!(out, "| `{name}` | {} | {} | {longest} |", all.len(), at(took.len() / 2))?;
        }
        if !self.not_made.is_empty() {
            writeln!(
                out,
                "\nNot brought about, as another fault was in the way, and not counted: {}.",
                self.not_made.len()
            )?;
        }
        Ok(())
    }
}

fn counts(out: &mut String, title: &str, counts: &Counts) -> std::fmt::Result {
    writeln!(out, "### {title}\n\n| what | how many |\n|---|---|")?;
    for (what, n) in counts {
        writeln!(out, "| {what} | {n} |")?;
    }
    writeln!(out)
}
