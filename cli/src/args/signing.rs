//! `meepo signing`.

use clap::{Args, Subcommand, ValueHint};
use std::path::PathBuf;

/// Keys with which masters sign what nodes run. These commands change files here and talk
/// to nobody.
#[derive(Debug, Subcommand)]
pub(crate) enum SigningCommand {
    /// Make a key: signing.key for the masters, signing.pub for the workers.
    Init(KeyDir),
    /// Say which keys files hold, and print their public halves.
    Show {
        /// Files with private or public keys.
        #[arg(required = true, value_hint = ValueHint::FilePath)]
        files: Vec<PathBuf>,
    },
    /// Make another key in the place of the first; signing.pub then holds both.
    Rotate {
        /// Where the key is.
        #[command(flatten)]
        dir: KeyDir,
        /// End it: signing.pub holds the new key only.
        #[arg(long)]
        finish: bool,
    },
}

/// Where the key is.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeyDir {
    /// Directory of the key.
    #[arg(long, default_value = "/etc/meepo", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
}
