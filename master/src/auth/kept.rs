//! Records as etcd has them. Where masters sign what they write, only what a master has written
//! counts: whoever can write to etcd alone makes no users, tokens or roles.

use crate::seal::Seal;
use meepo_coord::{Entry, records::decode};
use meepo_core::input::from_value;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tracing::warn;

/// Reads a record; `None`: it cannot be read, or no master has written it, or it is older than
/// one that was there.
pub(super) fn open<T: DeserializeOwned>(seal: &Seal, entry: &Entry) -> Option<T> {
    let key = &entry.key;
    let mut fields: Map<String, Value> =
        decode(&entry.value).inspect_err(|e| warn!(key, error = %e, "unreadable value")).ok()?;
    if let Err(e) = seal.open_definition(key, &mut fields) {
        warn!(key, error = %e, "a record that no master has written counts for nothing");
        return None;
    }
    let record = from_value(Value::Object(fields));
    record.inspect_err(|e| warn!(key, error = %e, "unreadable value")).ok()
}

/// Writes a record in place of `old`.
pub(super) fn write(
    seal: &Seal,
    key: &str,
    record: &impl Serialize,
    old: Option<&[u8]>,
) -> Vec<u8> {
    match serde_json::to_value(record) {
        Ok(Value::Object(fields)) => seal.definition(key, &fields, old),
        // Records are objects.
        _ => Vec::new(),
    }
}
