//! What runs have noted themselves: lines in a file that each opened for appending.

use jiff::Timestamp;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The run has begun.
    Start,
    /// It is about to end; [`Line::extra`] is how much it has written.
    End,
    /// The register took its token.
    Write,
    /// The register knew a newer one.
    Refused,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) kind: Kind,
    /// The job, the part of a task, or the command's own name.
    pub(crate) job: String,
    pub(crate) run_id: String,
    pub(crate) slot: Timestamp,
    pub(crate) attempt: u32,
    pub(crate) fence: Option<i64>,
    pub(crate) node: String,
    pub(crate) pid: u64,
    /// When it was written, by the right clock.
    pub(crate) at: Timestamp,
    pub(crate) extra: u64,
}

/// Shell functions: `ev KIND [EXTRA]` writes a line at once, `reg FILE` hands the fencing token
/// to a register.
pub(crate) const PRELUDE: &str = r#"
ev() { echo "$1 ${MEEPO_JOB:-$NAME} $MEEPO_RUN_ID $MEEPO_SLOT $MEEPO_ATTEMPT ${MEEPO_FENCE:--} $MEEPO_NODE $$ $EPOCHREALTIME ${2:-0}" >> "$EVIDENCE"; }
reg() {
    local last=0
    { flock 9
      [ -s "$1" ] && read -r last < "$1"
      if [ "$MEEPO_FENCE" -lt "$last" ]; then ev refused; else echo "$MEEPO_FENCE" > "$1"; ev write; fi
    } 9>> "$1.lock"
}
ev start
"#;

impl Line {
    /// Reads a line; `None` where it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [kind, job, run_id, slot, attempt, fence, node, pid, at, extra] = words[..] else {
            return None;
        };
        let kind = match kind {
            "start" => Kind::Start,
            "end" => Kind::End,
            "write" => Kind::Write,
            "refused" => Kind::Refused,
            _ => return None,
        };
        let (seconds, micros) = at.split_once('.')?;
        let at = Timestamp::new(seconds.parse().ok()?, micros.parse::<i32>().ok()? * 1000).ok()?;
        let fence = match fence {
            "-" => None,
            fence => Some(fence.parse().ok()?),
        };
        Some(Self {
            kind,
            job: job.to_owned(),
            run_id: run_id.to_owned(),
            slot: slot.parse().ok()?,
            attempt: attempt.parse().ok()?,
            fence,
            node: node.to_owned(),
            pid: pid.parse().ok()?,
            at,
            extra: extra.parse().ok()?,
        })
    }
}

/// The file, read as far as it has come.
#[derive(Debug)]
pub(crate) struct Evidence {
    path: PathBuf,
    read: u64,
    /// Every whole line so far, in the order in which they were written.
    pub(crate) lines: Vec<Line>,
    /// Lines that are none.
    pub(crate) broken: Vec<String>,
}

impl Evidence {
    /// The file at `path`, which need not be there yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: 0, lines: Vec::new(), broken: Vec::new() }
    }

    /// Reads what has come since.
    pub(crate) fn refresh(&mut self) {
        let mut text = Vec::new();
        let Ok(mut file) = File::open(&self.path) else { return };
        if file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_end(&mut text)).is_err()
        {
            return;
        }
        let Some(end) = text.iter().rposition(|b| *b == b'\n') else { return };
        self.read += end as u64 + 1;
        for line in String::from_utf8_lossy(&text[..end]).split('\n') {
            match Line::parse(line) {
                Some(line) => self.lines.push(line),
                None => self.broken.push(line.to_owned()),
            }
        }
    }
}
