//! The worker's durable state.
