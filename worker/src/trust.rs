//! What this node believes and what it runs: signatures of masters, and its own lists,
//! which hold whatever masters say.

use crate::{metrics::Metrics, state::State};
use jiff::Timestamp;
use meepo_core::{
    code::Code,
    id::NodeId,
    job::{Assignment, Executor},
    policy::{Allow, Host},
    signing::{FIELD, Floor, Kind, Place, Refusal, Signature, Standing, canonical, stand},
};
use meepo_runtime::signing::{Keyring, sha256_hex};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tracing::{info, warn};

/// Keys that are remembered before those are looked for that need not be.
const PRUNE: usize = 4096;

/// What becomes of a job whose signature has run out while the node has heard of no newer
/// one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expired {
    /// It goes on: it was accepted when its signature held.
    #[default]
    Keep,
    /// Its runs are refused.
    Stop,
}

/// The settings of it.
#[derive(Debug, Clone, Default)]
pub struct TrustOptions {
    /// Files of the keys that are trusted; none: signatures are not asked for.
    pub keys: Option<Vec<PathBuf>>,
    /// What becomes of jobs whose signature has run out.
    pub expired: Expired,
    /// The lists.
    pub allow: Allow,
}

/// Believes and allows. Shared by everything in the worker.
pub struct Trust {
    node: NodeId,
    state: State,
    metrics: Arc<Metrics>,
    /// None: everything is believed.
    keys: Option<Keyring>,
    expired: Expired,
    floors: Mutex<HashMap<String, Floor>>,
    allow: Allow,
    host: OwnHost,
}

struct OwnHost {
    user: String,
}

impl Host for OwnHost {
    fn own_user(&self) -> &str {
        &self.user
    }

    fn sha256(&self, text: &str) -> String {
        sha256_hex(text.as_bytes())
    }
}

impl Trust {
    /// One that believes and allows everything.
    pub fn everything(node: NodeId, state: State, metrics: Arc<Metrics>) -> Self {
        let host = OwnHost { user: own_user() };
        let (expired, allow) = (Expired::default(), Allow::default());
        Self { node, state, metrics, keys: None, expired, floors: Mutex::default(), allow, host }
    }

    /// What the settings say, with what the state remembers.
    ///
    /// # Errors
    /// A key cannot be read, or the state not be read.
    pub async fn open(
        node: NodeId,
        options: TrustOptions,
        state: State,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let TrustOptions { keys, expired, allow } = options;
        let keys = keys.map(|files| Keyring::open(files, Vec::new())).transpose()?;
        let mut floors = HashMap::new();
        if let Some(keys) = &keys {
            info!(trusted = ?keys.ids(), "only what these keys have signed is run");
            state.forget_accepted_later(Timestamp::now()).await?;
            floors.extend(state.accepted().await?);
        }
        let floors = Mutex::new(floors);
        Ok(Self { keys, expired, floors, allow, ..Self::everything(node, state, metrics) })
    }

    /// Whether only what is signed is run.
    pub fn is_strict(&self) -> bool {
        self.keys.is_some()
    }

    /// Whether a value is believed: genuine, at its place, in its time and not put back. What
    /// is believed is remembered. `extra` are the fields beside those that are `covered`.
    ///
    /// # Errors
    /// It is not.
    pub async fn admit(
        &self,
        kind: Kind,
        key: &str,
        extra: &BTreeMap<String, Value>,
        covered: impl FnOnce() -> Value,
    ) -> Result<(), Refusal> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let admitted = Signature::among(extra).and_then(|signature| {
            let place = Place { kind, node: Some(&self.node), key };
            let genuine = keys.verify(place, &signature, &canonical(&covered()));
            genuine.map_err(|e| match e {
                Refusal::Forged { .. } => {
                    let unknown = extra.keys().filter(|k| *k != FIELD).cloned().collect();
                    Refusal::Forged { unknown }
                }
                other => other,
            })?;
            self.rank(kind, key, &signature)
        });
        let outcome = match admitted {
            Ok(Some(floor)) => {
                // Before anything of it begins. A disk that refuses this refuses that as well.
                let _ = self.state.accept_later(vec![(key.to_owned(), floor)]).await;
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = &outcome {
            self.metrics.refused_signature(kind.as_str(), e.name());
        }
        outcome
    }

    /// Whether a genuine signature is to be accepted now; answers what is to be remembered.
    fn rank(&self, kind: Kind, key: &str, signature: &Signature) -> Result<Option<Floor>, Refusal> {
        let now = Timestamp::now();
        let mut floors = self.lock();
        match stand(kind, signature, floors.get(key), now)? {
            Standing::Known { expired: true } if self.expired == Expired::Stop => {
                Err(Refusal::Expired(signature.expires_at.unwrap_or(now)))
            }
            Standing::Known { .. } => Ok(None),
            Standing::New(floor) => {
                if floors.len() >= PRUNE && floors.len().is_power_of_two() {
                    floors.retain(|_, floor| floor.keep_until >= now);
                }
                floors.insert(key.to_owned(), floor);
                Ok(Some(floor))
            }
        }
    }

    /// Whether a frame of the session stream is believed; `signature` is its JSON.
    ///
    /// # Errors
    /// It is not.
    pub async fn admit_frame(
        &self,
        kind: Kind,
        key: &str,
        signature: &[u8],
        covered: impl FnOnce() -> Value,
    ) -> Result<(), Refusal> {
        if !self.is_strict() {
            return Ok(());
        }
        let signature = serde_json::from_slice(signature).ok().map(|s| (FIELD.to_owned(), s));
        self.admit(kind, key, &signature.into_iter().collect(), covered).await
    }

    /// What stood at a key is gone: it is not to be put back as it was.
    pub async fn withdraw(&self, key: &str) {
        self.close(|k| k == key).await;
    }

    /// The same for all keys that begin with `prefix` and are not among `there`.
    pub async fn withdraw_others(&self, prefix: &str, there: &HashSet<String>) {
        if self.is_strict() {
            self.close(|k| k.starts_with(prefix) && !there.contains(k)).await;
        }
    }

    async fn close(&self, of: impl Fn(&str) -> bool) {
        let mut closed = Vec::new();
        for (key, floor) in self.lock().iter_mut().filter(|(k, f)| !f.closed && of(k)) {
            floor.closed = true;
            closed.push((key.clone(), *floor));
        }
        if !closed.is_empty() {
            let _ = self.state.accept_later(closed).await;
        }
    }

    /// Whether this node runs it.
    ///
    /// # Errors
    /// It does not: the code of the refusal, and the reason.
    pub fn allows(&self, job: &Assignment) -> Result<(), (Code, String)> {
        self.permits(job).map_err(|why| (Code::NOT_ALLOWED, why))?;
        // What was accepted may have run out since. Requests are judged as they come.
        if self.is_strict()
            && self.expired == Expired::Stop
            && let Ok(signature) = Signature::among(&job.extra)
            && let Some(at) = signature.expires_at.filter(|at| *at <= Timestamp::now())
        {
            return Err((Code::UNTRUSTED, Refusal::Expired(at).to_string()));
        }
        Ok(())
    }

    /// Whether the lists of this node let it through.
    ///
    /// # Errors
    /// They do not: the list, and what it allows.
    pub fn permits(&self, job: &Assignment) -> Result<(), String> {
        if self.allow.is_open() {
            return Ok(());
        }
        self.allow.check(job, &self.host).map_err(|denied| denied.to_string())?;
        // Where links lead counts, too.
        let cwd = job.cwd.as_deref().filter(|_| job.executor != Executor::Http);
        let real = cwd.and_then(|cwd| std::fs::canonicalize(cwd).ok());
        match real {
            Some(real) if !self.allow.has_directory(&real.to_string_lossy()) => Err(format!(
                "allow.directories: this node does not allow to work in {}, where cwd leads",
                real.display()
            )),
            _ => Ok(()),
        }
    }

    /// Notes that something was not run.
    pub(crate) fn note(&self, code: Code, job: Option<&impl std::fmt::Display>, why: &str) {
        if code == Code::NOT_ALLOWED {
            self.metrics.commands_denied.inc();
        }
        let job = job.map(ToString::to_string);
        warn!(job, code = %code, why, "refused");
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Floor>> {
        self.floors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of the user that this process runs as, or its number.
fn own_user() -> String {
    let uid = nix::unistd::geteuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use meepo_core::{id::Name, signing::Covered};
    use meepo_runtime::signing::{Signer, generate};

    const KEY: &str = "/cron/jobs/127.0.0.9/a";

    struct Bench {
        dir: tempfile::TempDir,
        signer: Signer,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let signer = Signer::from_pem(&generate().unwrap()).unwrap();
            std::fs::write(dir.path().join("key.pub"), signer.public_pem()).unwrap();
            Self { dir, signer }
        }

        async fn trust(&self, expired: Expired) -> (Trust, State) {
            let state = State::open(&crate::state::StateOptions::new(self.dir.path())).unwrap();
            let keys = Some(vec![self.dir.path().join("key.pub")]);
            let options = TrustOptions { keys, expired, allow: Allow::default() };
            let node = Name::new("127.0.0.9").unwrap();
            let trust = Trust::open(node, options, state.clone(), Arc::default()).await.unwrap();
            (trust, state)
        }

        fn signed(&self, cmd: &str, term: i64, lives_ms: i64) -> Assignment {
            let mut job = Assignment::new(cmd);
            let node = Name::new("127.0.0.9").unwrap();
            let place = Place { kind: Kind::Assignment, node: Some(&node), key: KEY };
            let lives = Some(SignedDuration::from_millis(lives_ms));
            let value = canonical(&job.covered());
            let signature = self.signer.sign(place, term, lives, None, &value);
            job.extra.insert(FIELD.into(), serde_json::to_value(signature).unwrap());
            job
        }
    }

    async fn admit(trust: &Trust, job: &Assignment) -> &'static str {
        let admitted = trust.admit(Kind::Assignment, KEY, &job.extra, || job.covered()).await;
        admitted.err().map_or("", |e| e.name())
    }

    #[tokio::test]
    async fn an_old_one_stays_old_over_a_restart() {
        let bench = Bench::new();
        let (trust, state) = bench.trust(Expired::Keep).await;
        let (old, new) = (bench.signed("1", 5, 60_000), bench.signed("2", 5, 60_000));
        assert_eq!(admit(&trust, &old).await, "");
        assert_eq!(admit(&trust, &new).await, "");
        assert_eq!(admit(&trust, &old).await, "replayed");
        assert_eq!(admit(&trust, &new).await, "");
        let mut changed = new.clone();
        changed.cmd = "rm".into();
        assert_eq!(admit(&trust, &changed).await, "forged");
        assert_eq!(admit(&trust, &Assignment::new("2")).await, "unsigned");
        assert_eq!(admit(&trust, &bench.signed("3", 4, 60_000)).await, "replayed", "older term");
        state.close().await;
        let (trust, state) = bench.trust(Expired::Keep).await;
        assert_eq!(admit(&trust, &old).await, "replayed");
        assert_eq!(admit(&trust, &new).await, "");
        trust.withdraw(KEY).await;
        assert_eq!(admit(&trust, &new).await, "withdrawn");
        state.close().await;
        let (trust, _) = bench.trust(Expired::Keep).await;
        assert_eq!(admit(&trust, &new).await, "withdrawn");
        assert_eq!(admit(&trust, &bench.signed("2", 5, 60_000)).await, "", "a new one");
    }

    #[tokio::test]
    async fn what_has_run_out_goes_on_or_does_not_as_is_set() {
        for (expired, again) in [(Expired::Keep, ""), (Expired::Stop, "expired")] {
            let bench = Bench::new();
            let (trust, _) = bench.trust(expired).await;
            let lives = 2000;
            let job = bench.signed("1", 5, lives);
            assert_eq!(admit(&trust, &job).await, "");
            assert!(trust.allows(&job).is_ok());
            // What is waited for is the end of its time.
            tokio::time::sleep(std::time::Duration::from_millis(lives as u64 + 100)).await;
            assert_eq!(admit(&trust, &job).await, again);
            assert_eq!(trust.allows(&job).is_ok(), again.is_empty());
            // One that was never accepted never is.
            let late = bench.signed("2", 6, -1);
            assert_eq!(admit(&trust, &late).await, "expired");
        }
    }

    #[tokio::test]
    async fn links_do_not_lead_out_of_allowed_directories() {
        let bench = Bench::new();
        let (mut trust, _) = bench.trust(Expired::Keep).await;
        let dir = bench.dir.path().canonicalize().unwrap();
        let inside = dir.join("inside");
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink("/", inside.join("out")).unwrap();
        let directories = Some(vec![inside.to_string_lossy().into_owned()]);
        trust.allow = Allow { directories, ..Allow::default() };
        let cwd = |path: PathBuf| {
            let mut job = Assignment::new("pwd");
            job.cwd = Some(path.to_string_lossy().into_owned());
            trust.permits(&job).is_ok()
        };
        assert!(cwd(inside.clone()));
        assert!(!cwd(inside.join("out")) && !cwd(dir));
    }
}
