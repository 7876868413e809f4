//! STUB: which node holds which job.
