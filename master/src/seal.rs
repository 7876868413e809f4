//! What masters sign, and what they believe: definitions and tasks that a master has
//! signed. Without a key nothing is signed and everything believed.
//!
//! A master makes work for nodes of what stands in etcd. Would it believe what anybody may
//! have put there, its signature would be worth nothing; so what people ask of a master is
//! signed as it is accepted, and checked when work is made of it.

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{
    keys,
    records::{KillRecord, TriggerRecord, encode},
};
use meepo_core::{
    digest,
    error::Invalid,
    id::{Name, NodeId, RunId},
    job::Assignment,
    signing::{
        Covered, FIELD, Floor, Kind, Place, Refusal, SKEW, Signature, Standing, canonical,
        definition, stand,
    },
    task::{Order, PartId, Task},
};
use meepo_runtime::signing::{Keyring, PublicKey, Signer, read_private};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long the signature of an assignment holds unless set.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long an order waits for its worker at the most.
const ORDER: SignedDuration = SignedDuration::from_hours(24);
/// How long a request outlives its validity, for its worker to say that it was too late.
const AFTER: SignedDuration = SignedDuration::from_hours(24);
/// What travels at once, whatever the clocks.
const NOW: SignedDuration = SignedDuration::from_mins(2 * SKEW.as_mins());
/// Definitions whose newest signature is remembered.
const MOST: usize = 200_000;

/// Settings of signing.
#[derive(Debug, Clone)]
pub struct Signing {
    /// The file with the private key.
    pub key: PathBuf,
    /// Files with further keys whose definitions and tasks are believed.
    pub trusted: Vec<PathBuf>,
    /// How long the signature of an assignment holds.
    pub validity: Duration,
}

/// Signs and checks. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Seal(Option<Arc<Inner>>);

struct Inner {
    signer: Signer,
    trusted: Keyring,
    validity: SignedDuration,
    /// The newest of each definition that this process has seen.
    seen: Mutex<HashMap<String, Floor>>,
}

/// An assignment as text, which many nodes share.
pub struct Text {
    json: Vec<u8>,
    canonical: String,
}

impl Seal {
    /// An assignment as it is written, and as it is signed.
    pub fn text(&self, assignment: &Assignment) -> Text {
        let covered = self.is_on().then(|| canonical(&assignment.covered()));
        Text { json: encode(assignment), canonical: covered.unwrap_or_default() }
    }

    /// What these settings say.
    ///
    /// # Errors
    /// A key cannot be used.
    pub fn open(signing: Option<&Signing>) -> anyhow::Result<Self> {
        let Some(signing) = signing else { return Ok(Self::default()) };
        let signer = read_private(&signing.key).context("signing_key")?;
        let own = PublicKey::new(signer.public())?;
        let trusted = Keyring::open(signing.trusted.clone(), vec![own]).context("trusted_keys")?;
        tracing::info!(key = signer.id(), trusted = ?trusted.ids(), "assignments are signed");
        let validity = SignedDuration::try_from(signing.validity)?;
        let seen = Mutex::default();
        Ok(Self(Some(Arc::new(Inner { signer, trusted, validity, seen }))))
    }

    /// Whether anything is signed.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// How often it is looked for assignments that are to be signed anew.
    pub fn look_every(&self) -> Option<Duration> {
        let validity = self.0.as_ref()?.validity.unsigned_abs();
        Some((validity / 20).clamp(Duration::from_millis(200), Duration::from_secs(600)))
    }

    /// When an assignment with this signature is to be signed anew, in seconds since 1970: at
    /// half of its time; at once, if its key is not this master's.
    pub fn renew_at(&self, signature: Option<&Value>) -> u32 {
        let Some(inner) = &self.0 else { return u32::MAX };
        let own = |s: &Signature| s.key == inner.signer.id();
        let Some(signature) = Signature::read(signature).ok().filter(own) else { return 0 };
        let expires = signature.expires_at.unwrap_or(signature.issued_at);
        let half = expires.checked_sub(inner.validity / 2).unwrap_or(Timestamp::MIN);
        u32::try_from(half.as_second()).unwrap_or(0)
    }

    /// The value of an assignment for a node.
    pub fn assignment(&self, term: i64, node: &NodeId, job: &Name, text: &Text) -> Vec<u8> {
        let Some(inner) = &self.0 else { return text.json.clone() };
        let key = keys::assignment(node, job);
        // Those of a fleet were made together and are not to be due together.
        let spread = digest::pair(&key, &[]) % 1024;
        let less = inner.validity.as_millis() / 8 * i128::from(spread) / 1024;
        let less = SignedDuration::from_millis(i64::try_from(less).unwrap_or(0));
        let place = Place { kind: Kind::Assignment, node: Some(node), key: &key };
        let lives = inner.validity.saturating_sub(less);
        signed(&text.json, &inner.signer.sign(place, term, Some(lives), None, &text.canonical))
    }

    /// The value of an order.
    pub fn order(&self, term: i64, node: &NodeId, id: PartId, order: &Order) -> Vec<u8> {
        let key = keys::order(node, id);
        let place = Place { kind: Kind::Order, node: Some(node), key: &key };
        self.record(place, term, ORDER, order)
    }

    /// The value of a request to run.
    pub fn trigger(&self, term: i64, node: &NodeId, run: RunId, record: &TriggerRecord) -> Vec<u8> {
        let key = keys::trigger(node, run);
        let place = Place { kind: Kind::Trigger, node: Some(node), key: &key };
        let waits = record.expires_at.duration_since(Timestamp::now());
        self.record(place, term, waits.saturating_add(AFTER).max(NOW), record)
    }

    /// The value of a request to end a run.
    pub fn kill(&self, term: i64, node: &NodeId, run: RunId, record: &KillRecord) -> Vec<u8> {
        let key = keys::kill(node, run);
        let place = Place { kind: Kind::Kill, node: Some(node), key: &key };
        self.record(place, term, NOW, record)
    }

    /// The signature of a synchronous command; empty without a key.
    pub fn exec(&self, term: i64, node: &NodeId, run: RunId, what: &Assignment) -> Vec<u8> {
        let value = || json!({"run_id": run, "assignment": what.covered()});
        self.frame(Kind::Exec, &format!("exec/{run}"), term, node, value)
    }

    /// The signature of the end of one; empty without a key.
    pub fn stop(&self, term: i64, node: &NodeId, run: RunId) -> Vec<u8> {
        self.frame(Kind::Kill, &format!("kill/{run}"), term, node, || json!({"run_id": run}))
    }

    fn frame(
        &self,
        kind: Kind,
        key: &str,
        term: i64,
        node: &NodeId,
        value: impl FnOnce() -> Value,
    ) -> Vec<u8> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let place = Place { kind, node: Some(node), key };
        encode(&inner.signer.sign(place, term, Some(NOW), None, &canonical(&value())))
    }

    fn record(
        &self,
        place: Place<'_>,
        term: i64,
        lives: SignedDuration,
        record: &(impl Serialize + Covered),
    ) -> Vec<u8> {
        let text = encode(record);
        let Some(inner) = &self.0 else { return text };
        let covered = canonical(&record.covered());
        signed(&text, &inner.signer.sign(place, term, Some(lives), None, &covered))
    }

    /// The value of a task.
    pub fn task(&self, task: &Task) -> Vec<u8> {
        let text = encode(task);
        let Some(inner) = &self.0 else { return text };
        let key = keys::task(task.id);
        let place = Place { kind: Kind::Task, node: None, key: &key };
        signed(&text, &inner.signer.sign(place, 0, None, None, &canonical(&task.covered())))
    }

    /// Whether a master has accepted a task.
    ///
    /// # Errors
    /// Its signature does not hold.
    pub fn check_task(&self, task: &Task) -> Result<(), Invalid> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let key = keys::task(task.id);
        let place = Place { kind: Kind::Task, node: None, key: &key };
        let signature = Signature::among(&task.extra)?;
        Ok(inner.trusted.verify(place, &signature, &canonical(&task.covered()))?)
    }

    /// The value of a definition in the place of `old`.
    pub fn definition(
        &self,
        key: &str,
        fields: &Map<String, Value>,
        old: Option<&[u8]>,
    ) -> Vec<u8> {
        let value = definition(fields);
        let Some(inner) = &self.0 else { return encode(&value) };
        let old: Option<Value> = old.and_then(|old| serde_json::from_slice(old).ok());
        let old = old.and_then(|old| Signature::read(old.get(FIELD)).ok());
        // Also than one that was deleted, whatever clock its master had.
        let seen = inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.get(key).map(|floor| floor.issued_at);
        let newer_than = old.map(|old| old.issued_at).max(seen);
        let place = Place { kind: Kind::Definition, node: None, key };
        let signature = inner.signer.sign(place, 0, None, newer_than, &canonical(&value));
        signed(&encode(&value), &signature)
    }

    /// Takes the signature out of a definition; answers whether a master has accepted it.
    ///
    /// # Errors
    /// Its signature does not hold, or a newer one has been seen.
    pub fn open_definition(
        &self,
        key: &str,
        fields: &mut Map<String, Value>,
    ) -> Result<(), Invalid> {
        let signature = fields.remove(FIELD);
        let Some(inner) = &self.0 else { return Ok(()) };
        let signature = Signature::read(signature.as_ref())?;
        let place = Place { kind: Kind::Definition, node: None, key };
        let value = canonical(&Value::Object(fields.clone()));
        inner.trusted.verify(place, &signature, &value)?;
        let mut seen = inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match stand(Kind::Definition, &signature, seen.get(key), Timestamp::now()) {
            Ok(Standing::New(floor)) if seen.len() < MOST || seen.contains_key(key) => {
                seen.insert(key.to_owned(), floor);
                Ok(())
            }
            Ok(_) => Ok(()),
            // It was believed by whoever accepted it; only clocks differ.
            Err(Refusal::Early(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// A definition is gone: it is not to be put back as it was.
    pub fn close_definition(&self, key: &str) {
        let Some(inner) = &self.0 else { return };
        let mut seen = inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(floor) = seen.get_mut(key) {
            floor.closed = true;
        }
    }

    /// The same for all definitions that are not among `there`, of which all are.
    pub fn close_definitions_but(&self, there: &HashSet<&str>) {
        let Some(inner) = &self.0 else { return };
        let mut seen = inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, floor) in seen.iter_mut().filter(|(key, _)| !there.contains(key.as_str())) {
            floor.closed = true;
        }
    }

    /// Whether a definition is signed, and by this master's key.
    pub fn is_own(&self, value: &[u8]) -> bool {
        let Some(inner) = &self.0 else { return true };
        let value: Option<Value> = serde_json::from_slice(value).ok();
        let signature = value.and_then(|v| Signature::read(v.get(FIELD)).ok());
        signature.is_some_and(|s| s.key == inner.signer.id())
    }
}

/// An object with its signature as the last field.
fn signed(object: &[u8], signature: &Signature) -> Vec<u8> {
    let mut text = object.to_vec();
    text.pop();
    if text.len() > 1 {
        text.push(b',');
    }
    text.extend_from_slice(format!("{:?}:", FIELD).as_bytes());
    text.extend_from_slice(&encode(signature));
    text.push(b'}');
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use meepo_core::job::JobSpec;
    use std::os::unix::fs::PermissionsExt;

    /// A seal with a key of its own, and where that is.
    pub(crate) fn seal(dir: &std::path::Path, validity: u64) -> (Seal, Signing) {
        let key = dir.join("key.pem");
        if !key.exists() {
            std::fs::write(&key, meepo_runtime::signing::generate().unwrap()).unwrap();
            std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        }
        let validity = Duration::from_secs(validity);
        let signing = Signing { key, trusted: Vec::new(), validity };
        (Seal::open(Some(&signing)).unwrap(), signing)
    }

    fn fields(cmd: &str) -> Map<String, Value> {
        json!({"name": "a", "cmd": cmd}).as_object().unwrap().clone()
    }

    #[test]
    fn an_assignment_reads_as_before_and_is_due_at_half_of_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let (seal, _) = seal(dir.path(), 1000);
        let spec = JobSpec::new(Name::new("a").unwrap(), "date");
        let (node, job) = (Name::new("n").unwrap(), spec.name.clone());
        let assignment = spec.assignment(Some(3), Vec::new());
        let text = seal.text(&assignment);
        let mut read = Assignment::from_etcd(&seal.assignment(7, &node, &job, &text)).unwrap();
        let signature = read.extra.remove(FIELD);
        assert_eq!(read, assignment);
        let now = u32::try_from(Timestamp::now().as_second()).unwrap();
        let due = seal.renew_at(signature.as_ref());
        assert!((now + 370..=now + 501).contains(&due), "{due} {now}");
        assert_eq!(seal.renew_at(None), 0, "unsigned: at once");
        let other = tempfile::tempdir().unwrap();
        let (other, _) = super::tests::seal(other.path(), 1000);
        assert_eq!(other.renew_at(signature.as_ref()), 0, "of another key: at once");
        assert_eq!(Seal::default().renew_at(None), u32::MAX);
        let plain = Seal::default();
        let text = plain.text(&assignment);
        assert_eq!(plain.assignment(7, &node, &job, &text), encode(&assignment));
    }

    #[test]
    fn a_definition_is_believed_as_it_was_accepted_and_not_as_it_was_once() {
        let dir = tempfile::tempdir().unwrap();
        let (seal, _) = seal(dir.path(), 1000);
        let open = |key: &str, value: &[u8]| {
            let mut fields: Map<String, Value> = serde_json::from_slice(value).unwrap();
            let opened = seal.open_definition(key, &mut fields);
            assert!(!fields.contains_key(FIELD));
            opened.map(|()| fields).map_err(|e| e.problem)
        };
        let first = seal.definition("/k", &fields("1"), None);
        assert_eq!(open("/k", &first), Ok(fields("1")));
        assert!(open("/other", &first).unwrap_err().contains("does not fit"));
        let second = seal.definition("/k", &fields("2"), Some(&first));
        assert_eq!(open("/k", &second), Ok(fields("2")));
        assert!(open("/k", &first).unwrap_err().contains("accepted before"), "put back");
        assert!(open("/k", &encode(&fields("3"))).unwrap_err().contains("missing"));
        let forged = String::from_utf8(second.clone()).unwrap().replace("\"2\"", "\"rm\"");
        assert!(open("/k", forged.as_bytes()).unwrap_err().contains("does not fit"));
        seal.close_definition("/k");
        assert!(open("/k", &second).unwrap_err().contains("taken away"), "deleted, put back");
        let third = seal.definition("/k", &fields("2"), None);
        assert_eq!(open("/k", &third), Ok(fields("2")));
        assert!(seal.is_own(&third) && !seal.is_own(&encode(&fields("2"))));
        // Without a key everything is believed, and what is signed reads the same.
        let mut there = serde_json::from_slice(&third).unwrap();
        assert_eq!(Seal::default().open_definition("/k", &mut there), Ok(()));
        assert_eq!(there, fields("2"));
    }
}
