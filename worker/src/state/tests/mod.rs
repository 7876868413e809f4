//! Tests against real files.

mod durability;
mod lanes;
mod room;
mod runs;
mod spooling;
mod tallies;

use super::*;
use meepo_core::{
    code::Code,
    job::Executor,
    run::{Cause, RunState, Stream},
};
use tempfile::TempDir;

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(dir: &TempDir) -> State {
    State::open(&StateOptions::new(dir.path())).unwrap()
}

fn job(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn new_id() -> RunId {
    RunId(uuid::Uuid::now_v7())
}

fn record(state: RunState) -> RunRecord {
    RunRecord {
        run_id: new_id(),
        job: Some(job("backup")),
        node: job("127.0.0.1"),
        slot: at(1_000),
        attempt: 1,
        cause: Cause::Schedule,
        executor: Executor::Sh,
        cmd: "true".into(),
        user: None,
        state,
        code: Code::OK,
        message: None,
        exit_code: None,
        signal: None,
        fence: None,
        pid: None,
        started_at: None,
        ended_at: None,
        output_bytes: 0,
        dropped_bytes: 0,
    }
}

fn chunk(seq: u64, data: &[u8]) -> OutputChunk {
    OutputChunk {
        run_id: RunId(uuid::Uuid::nil()),
        seq,
        stream: if seq.is_multiple_of(2) { Stream::Stdout } else { Stream::Stderr },
        at: at(7),
        data: data.to_vec(),
    }
}
