//! STUB: what the HTTP API takes and answers.
