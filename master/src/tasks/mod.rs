//! Tasks on the master's side: what every master knows of them, and what the leader does.

mod archive;
mod board;
mod fleet;
mod leader;
mod write;

pub use board::{Board, Version};
pub use leader::{Leader, run};
pub(crate) use write::transaction;
