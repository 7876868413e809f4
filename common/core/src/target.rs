//! Which nodes are meant: the target language.
//!
//! ```text
//! 10.0.0.7                              a node by its id
//! 10.0.0.7, db-1, web-*, 10.0.0.?       several, also by pattern
//! all                                   every node
//! group=web and not arch=aarch64        labels and facts
//! role=db and disk.free > 1TB limit 3   at most three of them
//! ```
//!
//! - `and` binds tighter than `or`, `not` tighter than both; parentheses group.
//!   Commas join ids and patterns only and bind tightest. Keywords may be written in
//!   capitals.
//! - A key is a fact if it is one of `hostname`, `os`, `os.version`, `kernel`, `arch`,
//!   `cpu.cores`, `load1`, `mem.total`, `mem.free`, `disk.total`, `disk.free`; any
//!   other is a label. `label.os` is the label `os`.
//! - Labels and text facts take `=` and `!=` with patterns: `*` is any run of
//!   characters, also none and also with `/`, `?` is one character. A node without the
//!   label does not match `=`, whatever the pattern, and does match `!=`.
//! - Numbers take `= != < <= > >=`. Sizes are bytes: `B`, `KB` to `PB` are powers of
//!   1000, `KiB` to `PiB` of 1024. `os.version` and `kernel` take these operators too
//!   and are compared part by part, so `9` is less than `12.4`.
//! - `limit N`, at the end, keeps N nodes: those online before the others, each by id.
//! - Double quotes make a plain word of anything (`\"` and `\\` inside): `zone="eu west"`,
//!   or `"all"` for a node of that name.

mod expr;
mod glob;
mod lex;
mod parse;
#[cfg(test)]
mod tests;

use crate::{error::Invalid, id::Name, node::NodeInfo};
use expr::Expr;
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

    /// The nodes meant, sorted by id.
    pub fn select<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeInfo>) -> Vec<&'a NodeInfo> {
        let mut meant: Vec<_> = nodes.into_iter().filter(|n| self.matches(n)).collect();
        if let Some(limit) = self.limit {
            meant.sort_by_key(|n| (!n.online, &n.id));
            meant.truncate(limit.get());
        }
        meant.sort_by_key(|n| &n.id);
        meant
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
        match self.limit {
            Some(limit) => write!(f, " limit {limit}"),
            None => Ok(()),
        }
    }
}
