//! Crontab files: what cron would run, and the jobs that run the same.
//!
//! [`parse`] reads a file as crontab(5) of cronie and Debian describe it. A line that
//! cannot be taken becomes a [`LineProblem`] and never stops the others. Assignments
//! (`NAME=value`, blanks and quotes allowed around either side) apply to the entries
//! below them.
//!
//! | in the file | in the job ([`Entry::to_job`]) |
//! |---|---|
//! | `SHELL` | `sh` and `bash` become executors; another shell is run as `SHELL -c COMMAND` |
//! | `PATH`, `MAILTO` and all others | environment; cron's defaults `PATH=/usr/bin:/bin` and `SHELL=/bin/sh` are filled in |
//! | `HOME` | environment and working directory |
//! | `CRON_TZ` | time zone |
//! | `%` | the first ends the command and starts its standard input, further ones are line ends; `\%` is a percent sign |
//!
//! Nothing is mailed: `MAILTO` only reaches the command. What cron does not do either
//! stays off: runs may overlap, missed slots are not made up for.

mod assignment;
mod job;
#[cfg(test)]
mod tests;

use crate::calendar::{self, Schedule};
use assignment::Assignment;
pub use job::Import;
use std::{collections::BTreeMap, sync::Arc};

/// Most variables a file may set.
pub const MAX_VARIABLES: usize = 256;

/// Whether entries name a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `/etc/crontab` and `/etc/cron.d/*`: a user stands before the command.
    System,
    /// A user's own crontab.
    User,
}

/// A line that names a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Line number, from 1.
    pub line: usize,
    /// The five fields or the `@` form, separated by single blanks.
    pub schedule: String,
    /// Whom the command runs as; only in [`Kind::System`].
    pub user: Option<String>,
    /// What the shell is given.
    pub command: String,
    /// Text for its standard input.
    pub stdin: Option<String>,
    /// The variables set above the line, without `CRON_TZ`.
    pub env: Arc<BTreeMap<String, String>>,
    /// `CRON_TZ`, if set above the line; a valid name.
    pub timezone: Option<String>,
    /// How many earlier entries have the same user, command and input.
    pub twins: usize,
}

/// A line that could not be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineProblem {
    /// Line number, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
    /// What is wrong with it and what would be right.
    pub reason: String,
}

impl std::fmt::Display for LineProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.reason, self.text)
    }
}

/// Reads a crontab file: its entries and the lines that could not be taken, both in
/// the order of the file.
pub fn parse(text: &str, kind: Kind) -> (Vec<Entry>, Vec<LineProblem>) {
    let mut reader = Reader { kind, ..Reader::new() };
    let mut problems = Vec::new();
    // Editors of other systems leave a byte order mark and carriage returns.
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    for (i, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if let Err(reason) = reader.line(i + 1, line.trim_start_matches(BLANKS)) {
            problems.push(LineProblem { line: i + 1, text: line.to_owned(), reason });
        }
    }
    (reader.entries, problems)
}

const BLANKS: [char; 2] = [' ', '\t'];

/// The state between lines.
struct Reader {
    kind: Kind,
    env: Arc<BTreeMap<String, String>>,
    zone: Zone,
    entries: Vec<Entry>,
    seen: BTreeMap<(Option<String>, String, Option<String>), usize>,
}

enum Zone {
    None,
    Named(String),
    /// `CRON_TZ` on this line is not usable; running in another zone would be wrong.
    Broken(usize),
}

impl Reader {
    fn new() -> Self {
        Self {
            kind: Kind::User,
            env: Arc::default(),
            zone: Zone::None,
            entries: Vec::new(),
            seen: BTreeMap::new(),
        }
    }

    fn line(&mut self, number: usize, line: &str) -> Result<(), String> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if line.contains('\0') {
            return Err("a NUL character cannot be part of a command or a variable".into());
        }
        match assignment::parse(line)? {
            Some(assignment) => self.assign(number, assignment),
            None => self.entry(number, line),
        }
    }

    fn assign(
        &mut self,
        number: usize,
        Assignment { name, value }: Assignment,
    ) -> Result<(), String> {
        match name.as_str() {
            "CRON_TZ" if value.is_empty() => self.zone = Zone::None,
            "CRON_TZ" => match calendar::time_zone(&value) {
                Ok(_) => self.zone = Zone::Named(value),
                Err(e) => {
                    self.zone = Zone::Broken(number);
                    return Err(format!("{}; expected {}", e.problem, e.expected));
                }
            },
            "LOGNAME" => return Err("LOGNAME is always the user's name and cannot be set".into()),
            "SHELL" if value.is_empty() => {
                return Err("SHELL is empty; expected a path such as /bin/sh".into());
            }
            "HOME" if !value.starts_with('/') => {
                return Err("HOME is not an absolute path".into());
            }
            _ => {
                if self.env.len() >= MAX_VARIABLES && !self.env.contains_key(&name) {
                    return Err(format!("more than {MAX_VARIABLES} variables"));
                }
                Arc::make_mut(&mut self.env).insert(name, value);
            }
        }
        Ok(())
    }

    fn entry(&mut self, number: usize, line: &str) -> Result<(), String> {
        let (schedule, mut rest) = schedule(line)?;
        let mut user = None;
        if self.kind == Kind::System {
            let (name, after) = word(rest);
            if name.is_empty() {
                return Err("no user and no command after the schedule".into());
            }
            if name.contains(':') {
                return Err(format!("{name:?} is not a plain user name"));
            }
            user = Some(name.to_owned());
            rest = after;
        }
        let (command, stdin) = split_percent(rest);
        if command.trim().is_empty() {
            return Err(match &user {
                Some(user) => format!("no command after the user {user:?}"),
                None => "no command after the schedule".into(),
            });
        }
        let timezone = match &self.zone {
            Zone::None => None,
            Zone::Named(name) => Some(name.clone()),
            Zone::Broken(line) => return Err(format!("the CRON_TZ of line {line} is not usable")),
        };
        let key = (user.clone(), command.clone(), stdin.clone());
        let count = self.seen.entry(key).or_default();
        let twins = *count;
        *count += 1;
        let env = Arc::clone(&self.env);
        self.entries.push(Entry {
            line: number,
            schedule,
            user,
            command,
            stdin,
            env,
            timezone,
            twins,
        });
        Ok(())
    }
}

/// The schedule of an entry, checked, and what follows it.
fn schedule(line: &str) -> Result<(String, &str), String> {
    const FORMS: [&str; 8] = [
        "@reboot",
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    let (first, mut rest) = word(line);
    let schedule = if first.starts_with('@') {
        if !FORMS.contains(&first) {
            return Err(format!("{first:?} is not known to cron; expected {}", FORMS.join(" ")));
        }
        first.to_owned()
    } else if first.starts_with('-') {
        return Err("a leading `-` (do not log) is not supported; remove it".into());
    } else {
        let mut fields = vec![first];
        while fields.len() < 5 {
            let (field, after) = word(rest);
            if field.is_empty() {
                return Err(format!(
                    "only {} of the five schedule fields; expected these and a command, or NAME=value",
                    fields.len()
                ));
            }
            fields.push(field);
            rest = after;
        }
        fields.join(" ")
    };
    Schedule::parse(&schedule).map_err(|e| format!("{}; expected {}", e.problem, e.expected))?;
    Ok((schedule, rest))
}

/// The first word and what follows the blanks after it.
fn word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_at(text.find(BLANKS).unwrap_or(text.len()));
    (word, rest.trim_start_matches(BLANKS))
}

/// Splits at the first `%` that no backslash precedes, as cronie does: the command
/// with `\%` as `%`, and the input with `%` as line ends, ended by one.
fn split_percent(text: &str) -> (String, Option<String>) {
    let mut command = String::new();
    let mut chars = text.chars();
    let mut escaped = false;
    loop {
        match chars.next() {
            None => return (command, None),
            Some('%') if escaped => {
                command.pop();
                command.push('%');
                escaped = false;
            }
            Some('%') => break,
            Some(c) => {
                command.push(c);
                escaped = c == '\\' && !escaped;
            }
        }
    }
    let mut input = String::new();
    escaped = false;
    for c in chars {
        match c {
            '%' if escaped => {
                input.pop();
                input.push('%');
            }
            '%' => input.push('\n'),
            c => input.push(c),
        }
        escaped = c == '\\';
    }
    if !input.is_empty() && !input.ends_with('\n') {
        input.push('\n');
    }
    (command, (!input.is_empty()).then_some(input))
}
