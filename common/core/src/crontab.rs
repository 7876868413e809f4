//! STUB, to be replaced: crontab files.
