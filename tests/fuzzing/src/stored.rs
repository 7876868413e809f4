//! What stands in etcd: put there by this version, another, or a person.

use crate::chosen;
use meepo_coord::{
    keys,
    records::{
        ClaimRecord, DrainRecord, KillRecord, LabelsRecord, LeaderRecord, LockRecord, RerunRecord,
        SpentRecord, TaskKeyRecord, TriggerRecord, decode, encode,
    },
};
use meepo_core::{
    api::CronId,
    input::parse_json,
    job::{Assignment, JobSpec},
    node::{Health, NodeRecord},
    notify::{Channel, Flow, Group, Happening, Item, Message, Rule, Subject, Tally},
    signing::{FIELD, Kind, Place, Signature, canonical, message},
    task::{Order, Part, Task},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, hint::black_box};

/// A value that is read is written so that it is read as the same.
fn same<T: DeserializeOwned + Serialize + Debug>(value: &[u8]) {
    let Ok(record) = decode::<T>(value) else { return };
    let written = encode(&record);
    match decode::<T>(&written) {
        Ok(again) => assert_eq!(encode(&again), written, "{record:?}"),
        Err(e) => panic!("{record:?} is written as what cannot be read: {e}"),
    }
}

/// Every kind of value, and every kind of key.
const KINDS: [fn(&[u8]); 28] = [
    assignment,
    same::<JobSpec>,
    same::<ClaimRecord>,
    same::<DrainRecord>,
    same::<KillRecord>,
    same::<LabelsRecord>,
    same::<LeaderRecord>,
    same::<LockRecord>,
    same::<RerunRecord>,
    same::<SpentRecord>,
    same::<TaskKeyRecord>,
    same::<TriggerRecord>,
    same::<CronId>,
    same::<Health>,
    same::<NodeRecord>,
    same::<Channel>,
    same::<Rule>,
    same::<Flow>,
    same::<Group>,
    same::<Happening>,
    same::<Message>,
    same::<Subject>,
    same::<Tally>,
    same::<Task>,
    same::<Part>,
    same::<Order>,
    key,
    signed,
];

pub(crate) fn etcd(data: &[u8]) {
    if let Some((choice, value)) = chosen(data) {
        // Letters, so that seeds can be written by hand.
        let kind = usize::from(choice.wrapping_sub(b'A')) % KINDS.len();
        KINDS[kind](value);
    }
}

fn assignment(value: &[u8]) {
    same::<Assignment>(value);
    if let Ok((assignment, when)) = Assignment::read(value) {
        black_box((assignment.id_at("").is_ok(), assignment.id_at("job").is_ok()));
        if let Some(when) = when {
            black_box(when.next_after(jiff::Timestamp::UNIX_EPOCH));
        }
    }
}

/// What is signed is the same text for whoever has read the value.
fn signed(value: &[u8]) {
    let Ok(value) = parse_json(value) else { return };
    let text = canonical(&value);
    match parse_json(text.as_bytes()) {
        Ok(again) => assert_eq!(canonical(&again), text),
        Err(e) => panic!("{text} cannot be read: {e}"),
    }
    if let Ok(signature) = Signature::read(value.get(FIELD)) {
        let place = Place { kind: Kind::Assignment, node: None, key: "/cron/jobs/n/j" };
        black_box(message(place, &signature, &text));
    }
}

fn key(value: &[u8]) {
    let Ok(key) = std::str::from_utf8(value) else { return };
    if let Some((node, job)) = keys::node_and_job(key, keys::ASSIGNMENTS) {
        assert_eq!(keys::assignment(&node, &job), key);
    }
    if let Some((node, run)) = keys::node_and_run(key, keys::TRIGGERS) {
        assert_eq!(
            keys::node_and_run(&keys::trigger(&node, run), keys::TRIGGERS),
            Some((node, run))
        );
    }
    if let Some((name, path)) = keys::job_and_path(key) {
        assert_eq!(keys::job_and_path(&keys::job_at(&name, &path)), Some((name, path)));
    }
    if let Some(part) = keys::part_of(key) {
        assert_eq!(keys::part_of(&keys::part(part)), Some(part));
    }
    if let Some(item) = keys::item_of(key) {
        assert_eq!(keys::notify_item(&item), key, "{item:?}");
        black_box(matches!(item, Item::Flow(_)));
    }
    black_box((keys::task_of(key), keys::last(key, keys::JOBS)));
}
