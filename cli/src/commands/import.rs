//! `meepo cron import`. (to come)
use crate::{args::ImportArgs, error::CliResult, output::Out};

pub(crate) async fn run(_out: &Out, _master: &str, _args: ImportArgs) -> CliResult<u8> {
    Ok(0)
}
