//! STUB, to be replaced: cron expressions and the instants they name.
use crate::error::Invalid;
use jiff::{Timestamp, tz::TimeZone};

/// A compiled schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule;

impl Schedule {
    /// Parses.
    pub fn parse(_expr: &str) -> Result<Self, Invalid> {
        Ok(Self)
    }
    /// First slot strictly after `after`.
    pub fn next_after(&self, _after: Timestamp, _tz: &TimeZone) -> Option<Timestamp> {
        None
    }
    /// `@reboot`
    pub fn is_reboot(&self) -> bool {
        false
    }
}

/// Looks up a zone.
pub fn time_zone(name: &str) -> Result<TimeZone, Invalid> {
    let _ = name;
    Ok(TimeZone::UTC)
}
