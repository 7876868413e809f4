//! `meepo server`: master, worker, log store and etcd in one process.

use crate::{
    args::ServerArgs,
    error::{CliError, CliResult, exit},
    etcd_child::{EtcdChild, EtcdOptions},
};
use std::process::ExitCode;

/// Entry point of the copy of ourselves that turns into a job's process.
pub(crate) fn exec_helper() -> ExitCode {
    ExitCode::from(exit::INTERNAL)
}

/// Runs until it is told to stop.
pub(crate) fn run(args: ServerArgs) -> CliResult<u8> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::new(exit::INTERNAL, format!("cannot start the runtime: {e}")))?
        .block_on(serve(args))
}

async fn serve(args: ServerArgs) -> CliResult<u8> {
    let etcd = EtcdChild::start(EtcdOptions::new(&args.data_dir, args.etcd_port))
        .await
        .map_err(|e| CliError::new(exit::UNAVAILABLE, format!("{e:#}")))?;
    tracing::info!(endpoint = etcd.endpoint(), "etcd is ready");
    let _ = tokio::signal::ctrl_c().await;
    etcd.stop().await;
    Ok(exit::OK)
}
