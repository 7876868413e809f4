//! Which nodes are meant: the target language.
//!
//! ```text
//! 10.0.0.7                              a node by its id
//! 10.0.0.7, db-1, web-*, 10.0.0.?       several, also by pattern
//! all                                   every node
//! group=web and not arch=aarch64        labels and facts
//! role=db and disk.free > 1TB limit 3   at most three of them
//! group in (web, api) prefer spread     in the order in which zones take turns
//! ```
//!
//! - `and` binds tighter than `or`, `not` tighter than both; parentheses group.
//!   Commas join ids and patterns only and bind tightest. Keywords may be written in
//!   capitals.
//! - A key is a fact if it is one of `hostname`, `os`, `os.version`, `kernel`, `arch`,
//!   `cpu.cores`, `cpu.use`, `load1`, `running`, `mem.total`, `mem.free`, `disk.total`,
//!   `disk.free`; any other is a label. `label.os` is the label `os`.
//! - Labels and text facts take `=` and `!=` with patterns: `*` is any run of
//!   characters, also none and also with `/`, `?` is one character. `in (a, b)` is any of
//!   several, `not in (a, b)` none. A node without the label does not match `=`, whatever
//!   the pattern, and does match `!=`.
//! - The label `tree` is a path and matched [level by level](tree::matches): `*` stays
//!   within one, `**` is any number of levels.
//! - Numbers take `= != < <= > >=`. Sizes are bytes: `B`, `KB` to `PB` are powers of
//!   1000, `KiB` to `PiB` of 1024. `os.version` and `kernel` take these operators too
//!   and are compared part by part, so `9` is less than `12.4`. What is not known of a node
//!   matches `!=` only.
//! - `limit N`, at the end, keeps N nodes: those that take work before the others, each by
//!   id unless `prefer` says otherwise.
//! - `prefer least-loaded` puts those with the least load first, `prefer spread(zone)`
//!   lets the values of a label take turns, `prefer spread(zone), least-loaded` both.
//! - Double quotes make a plain word of anything (`\"` and `\\` inside): `zone="eu west"`,
//!   or `"all"` for a node of that name.

mod expr;
mod glob;
mod lex;
mod parse;
mod prefer;
#[cfg(test)]
mod tests;
pub mod tree;
mod within;

pub use glob::matches as glob;

use crate::{error::Invalid, id::Name, node::NodeInfo};
use expr::Expr;
use prefer::Prefer;
use std::{fmt, num::NonZeroUsize, str::FromStr};

/// Longest target in bytes.
pub const MAX_TARGET: usize = 4096;
/// Deepest nesting of parentheses and `not`.
pub const MAX_DEPTH: usize = 64;

/// A parsed target; see the [module](self) for the language.
///
/// Displayed, it parses back to the same value (unless added blanks make it longer than
/// [`MAX_TARGET`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    expr: Expr,
    prefer: Prefer,
    limit: Option<NonZeroUsize>,
}

impl Target {
    /// Parses a target of at most [`MAX_TARGET`] bytes.
    ///
    /// Errors have the code [`crate::code::Code::BAD_TARGET`] and the field `target`;
    /// the problem begins with the column, counted in characters from 1.
    pub fn parse(s: &str) -> Result<Self, Invalid> {
        parse::parse(s)
    }

    /// Whether a node is meant, leaving `limit` aside.
    pub fn matches(&self, node: &NodeInfo) -> bool {
        self.expr.matches(node)
    }

    /// Whether a node is meant or not depends on other nodes.
    pub fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// The nodes meant: sorted by id, or in the order that `prefer` asks for.
    ///
    /// Whatever the order of `nodes`, the same facts, labels and states give the same
    /// answer. So a selection is as stable as what it is made from: for a stored job
    /// that must be facts that do not change from moment to moment.
    pub fn select<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeInfo>) -> Vec<&'a NodeInfo> {
        let mut meant: Vec<_> = nodes.into_iter().filter(|n| self.matches(n)).collect();
        if self.limit.is_some() || !self.prefer.is_none() {
            self.prefer.sort(&mut meant);
            meant.truncate(self.limit.map_or(usize::MAX, NonZeroUsize::get));
        }
        if self.prefer.is_none() {
            meant.sort_by_key(|n| &n.id);
        }
        meant
    }

    /// The same without `limit`, and the limit.
    pub fn without_limit(self) -> (Self, Option<NonZeroUsize>) {
        (Self { limit: None, ..self }, self.limit)
    }

    /// What in it asks how busy hosts are at the moment, if anything does: such a target
    /// is for commands, tasks and queries. A stored job would move with the load.
    pub fn asks_for_load(&self) -> Option<&'static str> {
        self.expr.load().or(self.prefer.least_loaded.then_some("prefer least-loaded"))
    }

    /// Whether it selects by facts that change while a host is up, so that facts of this
    /// moment make a difference.
    pub fn asks_for_live_facts(&self) -> bool {
        self.prefer.least_loaded || self.expr.changes()
    }

    /// The ids written out in it, sorted, so that a caller can tell which of them do not
    /// exist. Those under `not` are left out: excluding what is gone is no mistake.
    pub fn ids(&self) -> Vec<Name> {
        let mut ids = Vec::new();
        self.expr.ids(&mut ids);
        ids.sort();
        ids.dedup();
        ids
    }
}

impl FromStr for Target {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::parse(s)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.expr)?;
        if !self.prefer.is_none() {
            write!(f, " prefer {}", self.prefer)?;
        }
        match self.limit {
            Some(limit) => write!(f, " limit {limit}"),
            None => Ok(()),
        }
    }
}
