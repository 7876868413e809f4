//! `meepo audit …`.

use clap::{Args, Subcommand};
use meepo_core::audit::AuditResult;

/// `meepo audit …`.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// List requests that were to change something, newest first.
    List(AuditArgs),
}

/// `meepo audit list`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AuditArgs {
    /// Only since then: `1h`, or a time.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Only before then: `1h` (ago), or a time.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Only what this one did.
    #[arg(long, value_name = "NAME")]
    pub(crate) actor: Option<String>,
    /// Only this: `job.apply`; `job.` means all that begin so.
    #[arg(long, value_name = "NAME")]
    pub(crate) operation: Option<String>,
    /// Only what was done to this: `job/backup`; `job/` means all that begin so.
    #[arg(long, value_name = "NAME")]
    pub(crate) object: Option<String>,
    /// Only what came to this: ok, refused, failed or unknown.
    #[arg(long)]
    pub(crate) result: Option<AuditResult>,
    /// At most so many.
    #[arg(short, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) n: u32,
}
