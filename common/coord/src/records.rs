//! Small records of the coordination keys. Unknown fields are kept.

use jiff::Timestamp;
use meepo_core::{
    duration::HumanDuration,
    error::Invalid,
    id::{Name, NodeId, RunId},
    input::{from_value, parse_json},
    job::Assignment,
    signing::Covered,
    task::TaskId,
    tree::TreePath,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::BTreeMap;

/// Unknown fields of a record.
pub type Extra = BTreeMap<String, Value>;

/// Asks a worker to run a job once, now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TriggerRecord {
    /// The job.
    pub job: Name,
    /// What to run. The copy makes the run independent of when the assignment
    /// reaches the node or leaves it.
    pub assignment: Assignment,
    /// When it was asked for: the slot of the run. UTC.
    pub requested_at: Timestamp,
    /// Not to be started before. Absent: at once. UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Not started by then, it is dropped and recorded as expired. UTC.
    pub expires_at: Timestamp,
    /// Present when it takes the place of a run that was lost with its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun: Option<Rerun>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a run takes the place of. Its fencing token is the revision of the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rerun {
    /// The slot. UTC.
    pub slot: Timestamp,
    /// Which try of the slot this is.
    pub attempt: u32,
    /// The run that was lost.
    pub of: RunId,
}

/// Stands for a run that is started again elsewhere should its node be lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RerunRecord {
    /// The job.
    pub job: Name,
    /// Where in the product tree the definition stands that it is run by.
    #[serde(default, skip_serializing_if = "TreePath::is_root")]
    pub tree: TreePath,
    /// The slot. UTC.
    pub slot: Timestamp,
    /// Which try of the slot this is.
    pub attempt: u32,
    /// How often the slot was started again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reruns: u32,
    /// The process of the worker that has the run, as in its health record.
    pub instance: String,
    /// How long the node's lease lives: so much later it has ended what it claimed.
    pub lease_ttl: HumanDuration,
    /// The node had to end the run, as it had lost its lease.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Asks a worker to end a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KillRecord {
    /// When it was asked for. UTC.
    pub requested_at: Timestamp,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Asks a node to take nothing new, for as long as the key is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrainRecord {
    /// When it was asked for. UTC.
    pub requested_at: Timestamp,
    /// What runs then is killed. UTC. Absent: it may run to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Labels that the API set on a node; they win over those of the worker's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelsRecord {
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The last slot of a job that was claimed. Compared and replaced by revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// The slot. UTC.
    pub slot: Timestamp,
    /// Who claimed it.
    pub node: NodeId,
    /// For which run.
    pub run_id: RunId,
    /// How many slots were claimed to be run so far, this one included if it was.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub runs: u32,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How many slots of a job have run on a node, which are as many as may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentRecord {
    /// Runs that began.
    pub runs: u32,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The task that came with an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskKeyRecord {
    /// The task.
    pub task: TaskId,
    /// [`meepo_core::task::TaskRequest::digest`] of its request.
    pub digest: String,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A holder of, or a waiter for, a named lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LockRecord {
    /// Who, for people.
    pub owner: String,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A token with which a node may join. What its holder knows is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRecord {
    /// SHA-256 of the secret, in hexadecimal. The secret is 256 random bits: nobody tries them
    /// out.
    pub hash: String,
    /// The node that may join. Absent: any that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// What its certificate is to be valid for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// UTC.
    pub expires_at: Timestamp,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The leading master. Its term is the key's `create_revision`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// Random per master process.
    pub id: String,
    /// URL of its HTTP API.
    pub http: String,
    /// URL of its gRPC server.
    pub grpc: String,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What masters know each other's word by.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthKeyRecord {
    /// 32 random bytes in base64.
    pub key: String,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Covered for TriggerRecord {
    fn covered(&self) -> Value {
        let assignment = Assignment { extra: Extra::new(), ..self.assignment.clone() };
        whole(&Self { extra: Extra::new(), assignment, ..self.clone() })
    }
}

impl Covered for KillRecord {
    fn covered(&self) -> Value {
        whole(&Self { extra: Extra::new(), ..self.clone() })
    }
}

/// As in [`encode`], this cannot fail.
fn whole(record: &impl Serialize) -> Value {
    serde_json::to_value(record).unwrap_or_default()
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Reads a record, naming the field that does not fit.
pub fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, Invalid> {
    from_value(parse_json(value)?)
}

/// Writes a record.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Invariant: records have string keys and no fallible Serialize, the only two
    // ways in which serde_json can fail to write to memory.
    #[allow(clippy::expect_used)]
    serde_json::to_vec(record).expect("records always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use meepo_core::{
        api::CronId,
        job::JobSpec,
        node::{Health, NodeRecord},
    };

    /// Decodes, encodes, decodes: nothing is lost, unknown fields included.
    fn round_trip<T: Serialize + DeserializeOwned>(json: &str) {
        let value: Value = serde_json::from_str(json).unwrap();
        let record: T = decode(json.as_bytes()).unwrap();
        let back: Value = serde_json::from_slice(&encode(&record)).unwrap();
        for (k, v) in value.as_object().unwrap() {
            assert_eq!(back.get(k), Some(v), "{k} in {back}");
        }
    }

    #[test]
    fn every_record_survives_the_round_trip_with_unknown_fields() {
        let run = "0190a5d2-7c4e-7b1a-8000-000000000001";
        let t = "2026-01-02T03:04:05.678Z";
        round_trip::<TriggerRecord>(&format!(
            r#"{{"job":"a","assignment":{{"cmd":"date","express":"","status":"running","executor":"bash","zz":1}},
                "requested_at":"{t}","expires_at":"{t}","new":[1]}}"#
        ));
        round_trip::<DrainRecord>(&format!(r#"{{"requested_at":"{t}","deadline":"{t}","new":1}}"#));
        round_trip::<RerunRecord>(&format!(
            r#"{{"job":"a","slot":"{t}","attempt":1,"instance":"i","lease_ttl":"10s","new":1}}"#
        ));
        round_trip::<KillRecord>(&format!(r#"{{"requested_at":"{t}","new":1}}"#));
        round_trip::<ClaimRecord>(&format!(
            r#"{{"slot":"{t}","node":"127.0.0.1","run_id":"{run}","new":{{"a":1}}}}"#
        ));
        round_trip::<SpentRecord>(r#"{"runs":3,"new":true}"#);
        round_trip::<LockRecord>(r#"{"owner":"x","new":true}"#);
        round_trip::<LeaderRecord>(r#"{"id":"x","http":"h","grpc":"g","new":null}"#);
        round_trip::<AuthKeyRecord>(r#"{"key":"x","new":1}"#);
        round_trip::<meepo_core::auth::User>(&format!(
            r#"{{"name":"ann","id":"{run}","created_at":"{t}","new":1}}"#
        ));
        round_trip::<meepo_core::auth::Token>(&format!(
            r#"{{"id":"a","user":"ann","user_id":"{run}","hash":"h","created_at":"{t}","created_by":"b","expires_at":"{t}","new":1}}"#
        ));
        round_trip::<JobSpec>(
            r#"{"name":"a","cmd":"date","executor":"sh","target":"all","placement":"each","status":"pause","new":1}"#,
        );
        round_trip::<Assignment>(
            r#"{"cmd":"date","express":"* * * * *","task_id":"a","status":"running","executor":"bash"}"#,
        );
        round_trip::<Health>(r#"{"status":"Online","version":"v.1.1.0","new":1}"#);
        round_trip::<NodeRecord>(&format!(r#"{{"registered_at":"{t}","version":"1","new":1}}"#));
        let id: CronId =
            decode(format!(r#"{{"cronid":"{run}","state":"running","slot":"{t}"}}"#).as_bytes())
                .unwrap();
        assert_eq!(decode::<CronId>(&encode(&id)).unwrap(), id);
    }

    #[test]
    fn a_bad_record_names_its_field() {
        let e = decode::<KillRecord>(br#"{"requested_at":"yesterday"}"#).unwrap_err();
        assert_eq!(e.field, "requested_at");
    }
}
