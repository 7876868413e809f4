//! Tasks: work that is done once, or a number of times, on many nodes or by whoever is free.
//!
//! | module | what it holds |
//! |---|---|
//! | [`state`] | the states of a part and every way from one to another |
//! | [`record`] | what etcd holds of a task, its parts and the orders to workers |
//! | [`request`] | what a user sends, and how it becomes a task |
//! | [`end`] | what becomes of a part when its run has ended, or nobody runs it any more |
//! | [`verb`] | what users do to parts |
//! | [`release`] | which parts of a task may begin: the place of roll-outs |
//! | [`repeat`] | work that is done over and over |
//! | [`dispatch`] | who gets what next: `(snapshot, now) -> effects` |
//! | [`answer`] | what the API takes and answers |
//! | [`view`] | how tasks are shown, and kept once they are over |
//! | [`waits`] | why a part that is ready waits, in words |

pub mod answer;
pub mod dispatch;
pub mod end;
pub mod id;
pub mod record;
pub mod release;
pub mod repeat;
pub mod request;
pub mod state;
#[cfg(test)]
mod tests;
pub mod verb;
pub mod view;
pub mod waits;

pub use id::{PartId, TaskId, TaskRef};
pub use record::{Ask, Control, OnFailure, OnLoss, Order, Part, PartSpec, Policy, Task};
pub use repeat::Repeat;
pub use request::TaskRequest;
pub use state::{Event, PartState};
pub use verb::Verb;
pub use view::{Counts, PartView, TaskState, TaskView};
