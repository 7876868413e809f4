//! The product tree: jobs attached to a path such as `shop/cart` are inherited by every
//! node whose label `tree` is at or below it.
//!
//! Of all definitions of a job the ones on the way from the root to the node count. They
//! are laid over each other field by field, the deepest on top: a field that a definition
//! does not name is inherited, one that it sets to `null` has its default. `disabled: true`
//! switches the job off, `disabled: false` further down on again. The definition without a
//! path is the root.

mod definitions;
mod document;
#[cfg(test)]
mod tests;

pub use definitions::{Definition, Definitions, Resolved};
pub use document::{JobDocument, TreeDefinition};

use definitions::check_partial;

use crate::{code::Code, error::Invalid, id::Name};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Borrow, borrow::Cow, fmt, str::FromStr};

/// The label that says where in the tree a node stands.
pub const LABEL: &str = "tree";
/// Deepest path.
pub const MAX_DEPTH: usize = 16;
/// Longest path in bytes.
pub const MAX_PATH: usize = 512;

/// A place in the tree: names joined by `/`. The root is written `/`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, example = "shop/cart"))]
pub struct TreePath(Cow<'static, str>);

impl TreePath {
    /// Above everything.
    pub const ROOT: TreePath = TreePath(Cow::Borrowed(""));

    /// Reads a path. The error's field is `tree`.
    ///
    /// # Errors
    /// When it is empty, too long, or has parts that are no names.
    pub fn new(s: &str) -> Result<Self, Invalid> {
        let bad = |problem: String| {
            let expected = "names joined by '/', as shop/cart, or / for the root";
            Err(Invalid::new(Code::BAD_VALUE, "tree", problem, expected))
        };
        if s == "/" {
            return Ok(Self::ROOT);
        }
        if s.len() > MAX_PATH {
            return bad(format!("a path of {} bytes is too long", s.len()));
        }
        if s.split('/').count() > MAX_DEPTH {
            return bad(format!("more than {MAX_DEPTH} parts"));
        }
        match s.split('/').map(Name::new).find_map(Result::err) {
            Some(e) => bad(format!("{s:?}: {}", e.problem)),
            None => Ok(Self(s.to_owned().into())),
        }
    }

    /// The path as it stands in keys: empty for the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is above everything.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a node at `place` (its label) inherits what is defined here.
    pub fn covers(&self, place: &str) -> bool {
        above(place).any(|p| p == self.as_str())
    }
}

/// The path itself and all above it, deepest first; the root, which is empty, is last.
pub(crate) fn above(place: &str) -> impl Iterator<Item = &str> {
    let first = Some(place).filter(|p| !p.is_empty());
    let rest = std::iter::successors(first, |p| p.rsplit_once('/').map(|(up, _)| up));
    rest.chain([""])
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if self.is_root() { "/" } else { &self.0 })
    }
}

impl FromStr for TreePath {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::new(s)
    }
}

impl Borrow<str> for TreePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for TreePath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TreePath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        crate::input::from_text(d)
    }
}
