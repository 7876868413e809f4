//! One shape for everything a user can get wrong.

use crate::code::Code;

/// A value that cannot be accepted: where it stood, what was wrong with it and
/// what would have been right. Retrying the same request never helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; expected {expected}")]
pub struct Invalid {
    /// The outcome code, of type [`crate::code::VALIDATION`].
    pub code: Code,
    /// Path of the offending field, e.g. `schedule` or `env.PATH`.
    pub field: String,
    /// What was wrong, quoting the value where it is short.
    pub problem: String,
    /// What would be right.
    pub expected: String,
}

impl Invalid {
    /// A new error for `field`.
    pub fn new(
        code: Code,
        field: impl Into<String>,
        problem: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self { code, field: field.into(), problem: problem.into(), expected: expected.into() }
    }

    /// The same error, seen from the struct that holds the field.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }
}
