//! The parsed form: what it matches and how it is written.

use super::{glob, lex::is_special, tree};
use crate::{
    id::Name,
    node::{Facts, NodeInfo},
};
use std::{cmp::Ordering, fmt};

/// Words that mean something by themselves.
pub(super) const KEYWORDS: [&str; 6] = ["all", "and", "or", "not", "limit", "prefer"];

/// A condition on a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    Or(Vec<Expr>),
    And(Vec<Expr>),
    Not(Box<Expr>),
    /// Any of these; never empty.
    Ids(Vec<Id>),
    /// The label matches one of the patterns (there is at least one), or none.
    Label {
        key: String,
        equal: bool,
        patterns: Vec<String>,
    },
    Text {
        fact: TextFact,
        equal: bool,
        patterns: Vec<String>,
    },
    Version {
        fact: TextFact,
        op: Op,
        version: String,
    },
    Number {
        fact: NumberFact,
        op: Op,
        /// As it was written, without blanks.
        text: String,
        value: f64,
    },
}

/// A part of a list of ids.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Id {
    All,
    Exact(Name),
    Pattern(String),
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Op {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    fn holds(self, order: Option<Ordering>) -> bool {
        match self {
            Self::Equal => order == Some(Ordering::Equal),
            Self::NotEqual => order != Some(Ordering::Equal),
            Self::Less => order == Some(Ordering::Less),
            Self::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Self::Greater => order == Some(Ordering::Greater),
            Self::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

macro_rules! facts {
    ($(#[$doc:meta])* $name:ident -> $value:ty { $($variant:ident $key:literal $get:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name { $($variant,)* }

        impl $name {
            pub(super) const ALL: &[Self] = &[$(Self::$variant,)*];

            pub(super) fn key(self) -> &'static str {
                match self { $(Self::$variant => $key,)* }
            }

            pub(super) fn by_key(key: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|f| f.key() == key)
            }

            fn of(self, facts: &Facts) -> $value {
                // One function type for all, so that closures need no annotations.
                let get: fn(&Facts) -> $value = match self { $(Self::$variant => $get,)* };
                get(facts)
            }
        }
    };
}

facts! {
    /// A fact that is a text.
    TextFact -> &str {
        Hostname "hostname" |f| &f.hostname;
        Os "os" |f| &f.os;
        OsVersion "os.version" |f| &f.os_version;
        Kernel "kernel" |f| &f.kernel;
        Arch "arch" |f| &f.arch;
    }
}

facts! {
    /// A fact that is a number.
    NumberFact -> f64 {
        CpuCores "cpu.cores" |f| f.cpu_cores as f64;
        CpuUse "cpu.use" |f| f.cpu_use.unwrap_or(f64::NAN);
        Running "running" |f| f.running.map_or(f64::NAN, |n| n as f64);
        Load1 "load1" |f| f.load1;
        MemTotal "mem.total" |f| f.mem_total as f64;
        MemFree "mem.free" |f| f.mem_free as f64;
        DiskTotal "disk.total" |f| f.disk_total as f64;
        DiskFree "disk.free" |f| f.disk_free as f64;
    }
}

impl TextFact {
    /// Whether `<` and the like apply.
    pub(super) fn is_version(self) -> bool {
        matches!(self, Self::OsVersion | Self::Kernel)
    }
}

impl NumberFact {
    /// Whether it counts bytes.
    pub(super) fn is_size(self) -> bool {
        !matches!(self, Self::CpuCores | Self::CpuUse | Self::Running | Self::Load1)
    }

    /// Whether it says how busy the host is at the moment.
    fn is_load(self) -> bool {
        matches!(self, Self::CpuUse | Self::Running | Self::Load1)
    }

    /// Whether it changes while the host is up.
    fn changes(self) -> bool {
        self.is_load() || matches!(self, Self::MemFree | Self::DiskFree)
    }
}

impl Expr {
    pub(super) fn matches(&self, node: &NodeInfo) -> bool {
        match self {
            Self::Or(parts) => parts.iter().any(|p| p.matches(node)),
            Self::And(parts) => parts.iter().all(|p| p.matches(node)),
            Self::Not(part) => !part.matches(node),
            Self::Ids(ids) => ids.iter().any(|id| match id {
                Id::All => true,
                Id::Exact(name) => *name == node.id,
                Id::Pattern(pattern) => glob::matches(pattern, node.id.as_str()),
            }),
            Self::Label { key, equal, patterns } => {
                let matches = if key == tree::LABEL { tree::matches } else { glob::matches };
                let hit =
                    node.labels.get(key).is_some_and(|v| patterns.iter().any(|p| matches(p, v)));
                hit == *equal
            }
            Self::Text { fact, equal, patterns } => {
                let value = fact.of(&node.facts);
                patterns.iter().any(|p| glob::matches(p, value)) == *equal
            }
            Self::Version { fact, op, version } => {
                op.holds(Some(compare_versions(fact.of(&node.facts), version)))
            }
            Self::Number { fact, op, value, .. } => {
                op.holds(fact.of(&node.facts).partial_cmp(value))
            }
        }
    }

    /// Adds the ids written out, but for those under `not`.
    pub(super) fn ids(&self, out: &mut Vec<Name>) {
        match self {
            Self::Or(parts) | Self::And(parts) => parts.iter().for_each(|p| p.ids(out)),
            Self::Ids(ids) => out.extend(ids.iter().filter_map(|id| match id {
                Id::Exact(name) => Some(name.clone()),
                _ => None,
            })),
            _ => {}
        }
    }

    /// Whether some number in it satisfies `which`; answers its key.
    fn number(&self, which: fn(NumberFact) -> bool) -> Option<&'static str> {
        match self {
            Self::Or(parts) | Self::And(parts) => parts.iter().find_map(|p| p.number(which)),
            Self::Not(part) => part.number(which),
            Self::Number { fact, .. } if which(*fact) => Some(fact.key()),
            _ => None,
        }
    }

    /// A fact in it that says how busy hosts are at the moment.
    pub(super) fn load(&self) -> Option<&'static str> {
        self.number(NumberFact::is_load)
    }

    /// Whether a fact in it changes while hosts are up.
    pub(super) fn changes(&self) -> bool {
        self.number(NumberFact::changes).is_some()
    }

    /// How tightly it binds.
    fn rank(&self) -> u8 {
        match self {
            Self::Or(_) => 0,
            Self::And(_) => 1,
            Self::Not(_) => 2,
            _ => 3,
        }
    }

    /// Writes a part of an expression of the given rank, in parentheses if needed.
    fn part(&self, f: &mut fmt::Formatter<'_>, within: u8) -> fmt::Result {
        // `not not a` is fine; `(a and b) and c` would not come back the same.
        let bare = self.rank() > within || (within == 2 && self.rank() == 2);
        if bare { write!(f, "{self}") } else { write!(f, "({self})") }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Or(parts) | Self::And(parts) => {
                for (i, part) in parts.iter().enumerate() {
                    if i > 0 {
                        f.write_str(if self.rank() == 0 { " or " } else { " and " })?;
                    }
                    part.part(f, self.rank())?;
                }
                Ok(())
            }
            Self::Not(part) => {
                f.write_str("not ")?;
                part.part(f, self.rank())
            }
            Self::Ids(ids) => {
                for (i, id) in ids.iter().enumerate() {
                    if i > 0 {
                        f.write_str(",")?;
                    }
                    match id {
                        Id::All => f.write_str("all")?,
                        Id::Exact(name) => word(f, name.as_str(), true)?,
                        Id::Pattern(pattern) => word(f, pattern, true)?,
                    }
                }
                Ok(())
            }
            Self::Label { key, equal, patterns } => {
                let taken = TextFact::by_key(key).is_some()
                    || NumberFact::by_key(key).is_some()
                    || key.starts_with("label.");
                if taken {
                    word(f, &format!("label.{key}"), true)?;
                } else {
                    word(f, key, true)?;
                }
                any_of(f, *equal, patterns)
            }
            Self::Text { fact, equal, patterns } => {
                f.write_str(fact.key())?;
                any_of(f, *equal, patterns)
            }
            Self::Version { fact, op, version } => {
                write!(f, "{} {} ", fact.key(), op.as_str())?;
                word(f, version, false)
            }
            Self::Number { fact, op, text, .. } => {
                write!(f, "{} {} {text}", fact.key(), op.as_str())
            }
        }
    }
}

/// Writes `=web`, or ` in (web, db)`.
fn any_of(f: &mut fmt::Formatter<'_>, equal: bool, patterns: &[String]) -> fmt::Result {
    if let [pattern] = patterns {
        f.write_str(if equal { "=" } else { "!=" })?;
        return word(f, pattern, false);
    }
    f.write_str(if equal { " in (" } else { " not in (" })?;
    for (i, pattern) in patterns.iter().enumerate() {
        f.write_str(if i > 0 { ", " } else { "" })?;
        word(f, pattern, false)?;
    }
    f.write_str(")")
}

/// Writes a word, in quotes where it would not be read back otherwise.
pub(super) fn word(f: &mut fmt::Formatter<'_>, text: &str, keywords_matter: bool) -> fmt::Result {
    let quoted = text.is_empty()
        || text.contains(is_special)
        || (keywords_matter && KEYWORDS.iter().any(|k| k.eq_ignore_ascii_case(text)));
    if !quoted {
        return f.write_str(text);
    }
    write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Compares runs of digits as numbers and other runs as text; what is longer is
/// greater: `9 < 12 < 12.4`, `6.1.0-9 < 6.1.0-13-amd64`.
fn compare_versions(a: &str, b: &str) -> Ordering {
    runs(a).cmp(runs(b))
}

/// The runs of digits (without leading zeros, so that length orders them) and of other
/// letters; separators are dropped.
fn runs(text: &str) -> impl Iterator<Item = (bool, usize, &str)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_alphanumeric());
        let digits = rest.starts_with(|c: char| c.is_ascii_digit());
        let end = rest
            .find(|c: char| !c.is_alphanumeric() || c.is_ascii_digit() != digits)
            .unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        let number = run.trim_start_matches('0');
        match (run.is_empty(), digits) {
            (true, _) => None,
            (_, true) => Some((true, number.len(), number)),
            // All texts have the same length here: they are compared as texts.
            (_, false) => Some((false, 0, run)),
        }
    })
}
