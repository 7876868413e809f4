//! What comes over the network.

use crate::chosen;
use meepo_coord::records::decode;
use meepo_core::{
    api::{DrainRequest, ExecRequest, ExecStreamRequest, LabelsRequest, TriggerRequest},
    duration::HumanDuration,
    event::EventId,
    id::{Name, RunId},
    input::{from_value, parse_json},
    job::Assignment,
    limits::{ByteSize, Umask},
    notify::{Channel, Rule},
    run::RunRecord,
    task::{TaskRef, TaskRequest, TaskState, Verb, answer::ActRequest},
    tree::{JobDocument, TreePath},
};
use meepo_proto::{internal as pb, v1};
use prost::Message;
use serde_json::Value;
use std::{
    fmt::{Debug, Display},
    hint::black_box,
    str::FromStr,
};

/// A message that is read is written so that it is read as the same.
fn same<M: Message + Debug + Default>(data: &[u8]) -> Option<M> {
    let message = M::decode(data).ok()?;
    let again = M::decode(message.encode_to_vec().as_slice());
    // Numbers that are none differ from themselves.
    let equal = again.as_ref().is_ok_and(|a| a.encode_to_vec() == message.encode_to_vec());
    assert!(equal, "{message:?} is written as {again:?}");
    Some(message)
}

/// Frames of the session between workers and masters, and what stands in them.
pub(crate) fn frames(data: &[u8]) {
    if let Some(frame) = same::<pb::WorkerFrame>(data)
        && let Some(pb::worker_frame::Frame::Ended(ended)) = frame.frame
    {
        black_box(decode::<RunRecord>(&ended.record).is_ok());
        black_box(ended.run_id.parse::<RunId>().is_ok());
    }
    if let Some(frame) = same::<pb::MasterFrame>(data)
        && let Some(pb::master_frame::Frame::Exec(exec)) = frame.frame
    {
        black_box(Assignment::from_etcd(&exec.assignment).is_ok());
    }
    black_box(same::<v1::ExecRequest>(data));
}

/// A text that is accepted is shown so that it is accepted as the same.
fn text<T: FromStr + Display>(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(value) = text.parse::<T>() else { return };
    let shown = value.to_string();
    let again = shown.parse::<T>().map(|v| v.to_string());
    assert_eq!(again.ok(), Some(shown), "{text:?}");
}

fn body<T>(data: &[u8], read: impl Fn(Value) -> T) {
    if let Ok(value) = parse_json(data) {
        black_box(read(value));
    }
}

const KINDS: [fn(&[u8]); 18] = [
    |d| body(d, |v| JobDocument::from_user(v).is_ok()),
    |d| body(d, |v| TaskRequest::from_user(v).is_ok()),
    |d| body(d, |v| Channel::from_user(v).is_ok()),
    |d| body(d, |v| Rule::from_user(v).is_ok()),
    |d| body(d, |v| from_value::<ExecRequest>(v).is_ok()),
    |d| body(d, |v| from_value::<ExecStreamRequest>(v).is_ok()),
    |d| body(d, |v| from_value::<TriggerRequest>(v).is_ok()),
    |d| body(d, |v| from_value::<ActRequest>(v).is_ok()),
    |d| body(d, |v| from_value::<LabelsRequest>(v).is_ok()),
    |d| body(d, |v| from_value::<DrainRequest>(v).is_ok()),
    text::<Name>,
    text::<RunId>,
    text::<TaskRef>,
    text::<Verb>,
    text::<HumanDuration>,
    text::<TreePath>,
    text::<ByteSize>,
    |d| {
        text::<EventId>(d);
        text::<Umask>(d);
        black_box(std::str::from_utf8(d).map(TaskState::from_str).is_ok());
    },
];

/// Bodies of requests, and what paths and queries are made of.
pub(crate) fn api(data: &[u8]) {
    if let Some((choice, rest)) = chosen(data) {
        KINDS[usize::from(choice.wrapping_sub(b'A')) % KINDS.len()](rest);
    }
}
