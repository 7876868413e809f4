//! Users, tokens and roles as etcd has them, kept by one watch: what is revoked at one master
//! is worth nothing at all others as soon as etcd has told them.

use super::kept::open;
use crate::seal::Seal;
use meepo_coord::{
    Entry, Etcd, keys,
    watch::{Batch, Change, Options, watch},
};
use meepo_core::{
    auth::{ADMIN, BUILT_IN, Grant, Role, Token, User, grants},
    id::Name,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};
use tokio::sync::{mpsc, watch as cell};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Longest wait for the watch to tell of what was written.
const SHOWN: Duration = Duration::from_secs(2);

/// What is known.
#[derive(Default)]
pub(super) struct Data {
    pub(super) users: BTreeMap<Name, Arc<User>>,
    pub(super) tokens: HashMap<String, Arc<Token>>,
    roles: BTreeMap<Name, (Role, Vec<Arc<Grant>>)>,
}

impl Data {
    /// With the roles that are always there.
    fn new() -> Self {
        let mut data = Self::default();
        BUILT_IN.iter().filter_map(|name| Role::built_in(name)).for_each(|r| data.set_role(r));
        data
    }

    fn set_role(&mut self, role: Role) {
        let granted = grants(&role);
        self.roles.insert(role.name.clone(), (role, granted));
    }

    fn put(&mut self, seal: &Seal, entry: &Entry) {
        let key = entry.key.as_str();
        if let Some(name) = keys::last(key, keys::USERS) {
            match open::<User>(seal, entry).filter(|u| u.name == name) {
                Some(user) => self.users.insert(name, Arc::new(user)),
                // What cannot be read allows nothing.
                None => self.users.remove(&name),
            };
        } else if let Some(id) = key.strip_prefix(keys::TOKENS) {
            match open::<Token>(seal, entry).filter(|t| t.id == id) {
                Some(token) => self.tokens.insert(id.to_owned(), Arc::new(token)),
                None => self.tokens.remove(id),
            };
        } else if let Some(name) = keys::last(key, keys::ROLES) {
            // One of these names was put there by hand: it counts for nothing.
            if BUILT_IN.contains(&name.as_str()) {
                return;
            }
            match open::<Role>(seal, entry).filter(|r| r.name == name) {
                Some(role) => self.set_role(role),
                None => drop(self.roles.remove(&name)),
            }
        }
    }

    fn delete(&mut self, key: &str) {
        if let Some(name) = keys::last(key, keys::USERS) {
            self.users.remove(&name);
        } else if let Some(id) = key.strip_prefix(keys::TOKENS) {
            self.tokens.remove(id);
        } else if let Some(name) = keys::last(key, keys::ROLES)
            && !BUILT_IN.contains(&name.as_str())
        {
            self.roles.remove(&name);
        }
    }

    /// The grants of some roles; one that does not exist grants nothing.
    pub(super) fn grants<'a>(&self, roles: impl IntoIterator<Item = &'a Name>) -> Vec<Arc<Grant>> {
        let of = |name: &Name| self.roles.get(name).map(|(_, grants)| grants.clone());
        roles.into_iter().filter_map(of).flatten().collect()
    }

    /// A role.
    pub(super) fn role(&self, name: &Name) -> Option<&Role> {
        self.roles.get(name).map(|(role, _)| role)
    }

    /// The roles that are always there, then the others by name.
    pub(super) fn roles(&self) -> Vec<Role> {
        let always = BUILT_IN.iter().filter_map(|name| Role::built_in(name));
        let others = self.roles.values().map(|(role, _)| role);
        always.chain(others.filter(|r| !BUILT_IN.contains(&r.name.as_str())).cloned()).collect()
    }

    /// Whether somebody besides `name` may everything.
    pub(super) fn other_admin(&self, name: &Name) -> bool {
        let admin = |u: &User| !u.disabled && u.roles.iter().any(|r| r.as_str() == ADMIN);
        self.users.values().any(|u| u.name != *name && admin(u))
    }
}

/// The directory. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Directory {
    data: Arc<RwLock<Data>>,
    /// 0 until etcd has been read once; grows with each change.
    version: Arc<cell::Sender<u64>>,
    seal: Seal,
}

impl Directory {
    pub(super) fn new(seal: Seal) -> Self {
        let data = Arc::new(RwLock::new(Data::new()));
        Self { data, version: Arc::new(cell::Sender::new(0)), seal }
    }

    /// Follows etcd until `stop` is cancelled.
    pub(super) async fn keep(self, etcd: Etcd, stop: CancellationToken) {
        let (tx, mut rx) = mpsc::channel(64);
        let prefixes = [keys::USERS, keys::TOKENS, keys::ROLES].map(str::to_owned).to_vec();
        let watching = watch(etcd, prefixes, Options::default(), tx, stop);
        let applying = async {
            while let Some(batch) = rx.recv().await {
                self.apply(batch);
            }
        };
        tokio::join!(watching, applying);
    }

    fn apply(&self, batch: Batch) {
        let write = || self.data.write().unwrap_or_else(PoisonError::into_inner);
        match batch {
            Batch::Reset { entries, .. } => {
                let mut data = Data::new();
                entries.iter().for_each(|e| data.put(&self.seal, e));
                let there =
                    entries.iter().map(|e| e.key.as_str()).chain([keys::AUTH_KEY]).collect();
                self.seal.close_definitions_but(&there);
                *write() = data;
            }
            Batch::Changes(changes) => {
                let mut data = write();
                for change in &changes {
                    match change {
                        Change::Put(entry) => data.put(&self.seal, entry),
                        Change::Delete { key, .. } => {
                            data.delete(key);
                            // Not to be put back as it was.
                            self.seal.close_definition(key);
                        }
                    }
                }
            }
        }
        self.version.send_modify(|v| *v += 1);
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Data> {
        self.data.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of each change; more than 0 once etcd has been read.
    pub(super) fn changes(&self) -> cell::Receiver<u64> {
        self.version.subscribe()
    }

    /// Waits until what was just written shows here, so that who has written it can rely on it.
    /// Other masters are told at the same time.
    pub(super) async fn shows(&self, is_there: impl Fn(&Data) -> bool) {
        let mut changes = self.changes();
        let shown = changes.wait_for(|_| is_there(&self.read()));
        if tokio::time::timeout(SHOWN, shown).await.is_err() {
            warn!("etcd has not told of what was written to it yet");
        }
    }
}
