//! What the machine can do without meepo.

use super::{COMMAND, stats::Round};
use anyhow::{Context, Result, ensure};
use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Bytes of one append.
const APPEND: usize = 512;

/// Does `once` again and again for `span`.
fn repeat(span: Duration, mut once: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let (begin, mut samples) = (Instant::now(), Vec::new());
    while begin.elapsed() < span {
        let start = Instant::now();
        once()?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(samples)
}

/// As a round of one thread.
fn round(span: Duration, once: impl FnMut() -> Result<()>) -> Result<Round> {
    let begin = Instant::now();
    let samples = repeat(span, once)?;
    Ok(Round { rate: samples.len() as f64 / begin.elapsed().as_secs_f64(), samples })
}

/// Starts the command and waits for its end, on `threads` threads of one process.
pub(crate) async fn spawns(threads: usize, span: Duration) -> Result<Round> {
    tokio::task::spawn_blocking(move || lanes_of(threads, span, spawn)).await?
}

/// As a round of `lanes` threads.
fn lanes_of(lanes: usize, span: Duration, once: impl Fn() -> Result<()> + Sync) -> Result<Round> {
    let begin = Instant::now();
    let parts: Vec<Result<Vec<f64>>> = thread::scope(|scope| {
        let all: Vec<_> = (0..lanes).map(|_| scope.spawn(|| repeat(span, &once))).collect();
        let joined = all.into_iter().map(|t| t.join());
        joined.map(|r| r.unwrap_or_else(|_| anyhow::bail!("a thread failed"))).collect()
    });
    let elapsed = begin.elapsed().as_secs_f64();
    let samples = parts.into_iter().collect::<Result<Vec<_>>>()?.concat();
    Ok(Round { rate: samples.len() as f64 / elapsed, samples })
}

fn spawn() -> Result<()> {
    let status = Command::new(COMMAND)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {COMMAND}"))?;
    ensure!(status.success(), "{COMMAND} ended with {status}");
    Ok(())
}

/// Starts `program` in a group of its own and reads what it writes to the end, on `lanes`
/// threads.
pub(crate) async fn captured(program: &Path, lanes: usize, span: Duration) -> Result<Round> {
    let program = program.to_owned();
    tokio::task::spawn_blocking(move || {
        lanes_of(lanes, span, || {
            let output = Command::new(&program)
                .process_group(0)
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("cannot run {}", program.display()))?;
            ensure!(output.status.success(), "{} ended with {}", program.display(), output.status);
            Ok(())
        })
    })
    .await?
}

/// Appends to a file and waits until it is on disk.
pub(crate) async fn syncs(path: &Path, span: Duration) -> Result<Round> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        round(span, || {
            file.write_all(&[b'x'; APPEND])?;
            Ok(file.sync_data()?)
        })
    })
    .await?
}

/// Puts a small value into etcd.
pub(crate) async fn puts(etcd: &etcd_client::Client, span: Duration) -> Result<Round> {
    let mut kv = etcd.kv_client();
    let (begin, mut samples) = (Instant::now(), Vec::new());
    while begin.elapsed() < span {
        let start = Instant::now();
        kv.put("/bench/put", vec![b'x'; 256], None).await.context("etcd refuses a put")?;
        samples.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Round { rate: samples.len() as f64 / begin.elapsed().as_secs_f64(), samples })
}
