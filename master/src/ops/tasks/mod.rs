//! What the API does with tasks.

mod act;
mod follow;
mod read;
mod submit;

pub use read::TaskFilter;
pub use submit::{KeyLease, Submitted};
