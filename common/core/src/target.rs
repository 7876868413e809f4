//! STUB, to be replaced: which nodes are meant.
use crate::{error::Invalid, node::NodeInfo};

/// A parsed target expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Target;

impl Target {
    /// Parses.
    pub fn parse(_s: &str) -> Result<Self, Invalid> {
        Ok(Self)
    }
    /// The nodes meant, sorted by id.
    pub fn select<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeInfo>) -> Vec<&'a NodeInfo> {
        nodes.into_iter().collect()
    }
}
