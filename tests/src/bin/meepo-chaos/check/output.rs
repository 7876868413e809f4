//! Output: complete and in order, or counted.

use super::{Counts, Facts, Verdict, Wrong, add};
use crate::evidence::Kind;
use std::collections::BTreeMap;

/// What is kept of each run is what it has written: all of it, or what is missing is counted;
/// of one that was cut off, the beginning.
pub(super) fn check_output(facts: &Facts, verdict: &mut Verdict) {
    let mut counts = Counts::new();
    let produced: BTreeMap<&str, u64> = facts
        .lines
        .iter()
        .filter(|l| l.kind == Kind::End && !l.job.starts_with("command"))
        .map(|l| (&*l.run_id, l.extra))
        .collect();
    for run in &facts.runs {
        let (Some(text), true) = (facts.outputs.get(&run.id), run.job.is_some()) else { continue };
        let line_of = |n: u64| format!("{} {n}\n", run.id);
        let mut rest = text.as_str();
        let (mut kept, mut next, mut gaps) = (0, 1, false);
        while let Some((line, more)) = rest.split_once('\n') {
            let number =
                line.strip_prefix(&*run.id).and_then(|n| n.trim_start().parse::<u64>().ok());
            match number {
                Some(n) if n == next => {}
                Some(n) if n > next => gaps = true,
                _ => {
                    let text = format!("{:?} {}: {line:?} where {next} was due", run.job, run.id);
                    verdict.complain(Wrong::Output, text);
                    break;
                }
            }
            next = number.unwrap_or(next) + 1;
            kept += 1;
            rest = more;
        }
        add(&mut counts, "lines kept", kept);
        add(&mut counts, "bytes dropped and counted", run.dropped);
        if gaps && run.dropped == 0 {
            let text = format!("{:?} {}: lines are missing in between", run.job, run.id);
            verdict.complain(Wrong::Output, text);
        }
        let Some(lines) = produced.get(&*run.id) else { continue };
        if run.state != "success" {
            add(&mut counts, "lines of runs that were cut off", *lines);
            continue;
        }
        add(&mut counts, "lines of runs that succeeded", *lines);
        let bytes: u64 = (1..=*lines).map(|n| line_of(n).len() as u64).sum();
        if text.len() as u64 + run.dropped != bytes {
            let text = format!(
                "{:?} {} on {} wrote {bytes} bytes: {} are kept and {} counted as dropped",
                run.job,
                run.id,
                run.node,
                text.len(),
                run.dropped
            );
            verdict.complain(Wrong::Output, text);
        }
    }
    verdict.output = counts;
}
