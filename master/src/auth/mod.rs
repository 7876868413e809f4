//! Who asks, and whether they may: once for both APIs, before anything is served.
//!
//! ```text
//! request ─► Guard: how often ─► who (token, bearer token, certificate, word of a master)
//!                └► what the operation needs (operations) ─► audit ─► ops, which look at
//!                   nodes and commands for the caller of their task (caller::current)
//! ```
//!
//! While `auth` is off nobody is asked, and everything is served as it always was.

mod bootstrap;
mod caller;
mod directory;
mod forward;
mod guard;
mod jws;
mod kept;
mod oidc;
pub mod operations;
mod rate;
pub mod reference;
mod secret;
mod settings;
mod users;

pub use caller::{Caller, acting_for, current};
pub(crate) use forward::CALLER;
pub use guard::{Admitted, Asking, Refused};
pub use oidc::OidcSettings;
pub use settings::{AuthSettings, DEFAULT_CLIENT_TIMEOUT, DEFAULT_CONNECTIONS, DEFAULT_RATE};

use crate::{
    error::{ApiError, ApiResult},
    seal::Seal,
};
use directory::Directory;
use jiff::Timestamp;
use kept::open;
use meepo_coord::{Etcd, keys};
use meepo_core::{
    auth::{ADMIN, Access, Rate, Token, TokenText, User, Via},
    code::Code,
    id::Name,
};
use meepo_runtime::tls::Identity;
use oidc::Oidc;
use rate::Rates;
use secret::Hashing;
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch as cell;

/// Wrong secrets of one client: one a second after a burst of twenty.
const FAILURES: Rate = Rate { per_second: 1.0, burst: 20.0 };

/// The name of a master that does what nobody alone has asked for.
const MASTER: &str = "(master)";
/// Longest wait of a request for a master that has just started.
const READY: Duration = Duration::from_secs(2);
/// How long the watch may take to tell of a token that was just made.
const NEW: Duration = Duration::from_secs(10);

/// What masters know of who may do what. Cloning is cheap.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

struct Inner {
    on: bool,
    settings: AuthSettings,
    directory: Directory,
    /// What masters sign their records with.
    seal: Seal,
    hashing: Hashing,
    oidc: Option<Oidc>,
    /// What masters sign their word with, once it is known.
    key: cell::Sender<Option<Arc<[u8]>>>,
    /// Requests of each client; `None`: not counted.
    rates: Option<Rates>,
    failures: Rates,
    etcd: Etcd,
}

/// A refusal that says no more than that.
fn unknown(why: &str) -> ApiError {
    ApiError::new(Code::UNAUTHENTICATED, why)
}

impl Auth {
    /// With these settings; [`Auth::run`] keeps it up to date. `seal` is one of its own.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn new(settings: AuthSettings, etcd: Etcd, seal: Seal) -> anyhow::Result<Self> {
        let inner = Inner {
            on: settings.on,
            directory: Directory::new(seal.clone()),
            seal,
            hashing: Hashing::new()?,
            oidc: settings.oidc.clone().map(Oidc::new).transpose()?,
            key: cell::Sender::new(None),
            rates: settings.rate().map(Rates::new),
            failures: Rates::new(FAILURES),
            etcd,
            settings,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What is set.
    pub fn settings(&self) -> &AuthSettings {
        &self.inner.settings
    }

    /// Whether everybody is asked who they are.
    pub fn is_on(&self) -> bool {
        self.inner.on
    }

    /// Waits until users are known and other masters can be told of them.
    async fn ready(&self) -> ApiResult<()> {
        let (mut changes, mut key) = (self.inner.directory.changes(), self.inner.key.subscribe());
        if *changes.borrow() > 0 && key.borrow().is_some() {
            return Ok(());
        }
        let both = async {
            let known = changes.wait_for(|v| *v > 0).await.is_ok();
            known && key.wait_for(Option::is_some).await.is_ok()
        };
        match tokio::time::timeout(READY, both).await {
            Ok(true) => Ok(()),
            _ => Err(ApiError::new(Code::ETCD, "users have not been read from etcd yet")),
        }
    }

    /// Who a bearer token is of.
    async fn bearer(&self, text: &str, address: Option<IpAddr>) -> ApiResult<Caller> {
        if TokenText::is_like(text) {
            let token = text.parse::<TokenText>();
            let token = token
                .map_err(|_| unknown("the token is not whole; expected meepo_<id>_<secret>"))?;
            return self.token(&token, address).await;
        }
        let Some(oidc) = &self.inner.oidc else {
            return Err(unknown("not a token of meepo, and no others count here (see `oidc`)"));
        };
        let known = oidc.verify(text).await?;
        let caller = self.caller(known.name, Via::Oidc, known.roles, address);
        Ok(Caller { expires_at: known.expires_at, ..caller })
    }

    async fn token(&self, text: &TokenText, address: Option<IpAddr>) -> ApiResult<Caller> {
        // The same for a token that never was, one that is revoked and a wrong secret.
        let nobody = || unknown("the token is worth nothing: it is wrong, revoked or expired");
        let token = self.find_token(&text.id).await?.ok_or_else(nobody)?;
        if !self.inner.hashing.is_token(text, &token.hash).await? {
            return Err(nobody());
        }
        let user = self.find_user(&token.user).await?.ok_or_else(nobody)?;
        self.of_token(&token, &user, address).ok_or_else(nobody)
    }

    /// Whom a token stands for, if anybody.
    fn of_token(&self, token: &Token, user: &User, address: Option<IpAddr>) -> Option<Caller> {
        let here = match (&token.from, address) {
            (None, _) => true,
            (Some(ranges), Some(address)) => ranges.iter().any(|r| r.contains(address)),
            (Some(_), None) => false,
        };
        let whole =
            token.user_id == user.id && !user.disabled && token.expires_at > Timestamp::now();
        if !here || !whole {
            return None;
        }
        // Never more than the user has now.
        let among = |r: &&Name| token.roles.as_ref().is_none_or(|only| only.contains(r));
        let roles = user.roles.iter().filter(among).cloned().collect();
        let caller = self.caller(user.name.to_string(), Via::Token, roles, address);
        Some(Caller {
            known: self.inner.directory.read().tokens.contains_key(&token.id),
            token: Some(token.id.clone()),
            expires_at: Some(token.expires_at),
            ..caller
        })
    }

    /// A token. One that the watch has not told of yet may have been made a moment ago, at
    /// another master.
    async fn find_token(&self, id: &str) -> ApiResult<Option<Arc<Token>>> {
        if let Some(token) = self.inner.directory.read().tokens.get(id) {
            return Ok(Some(token.clone()));
        }
        let Some(entry) = self.inner.etcd.get(&keys::token(id)).await? else { return Ok(None) };
        let token: Option<Token> = open(&self.inner.seal, &entry);
        Ok(token.filter(|t| t.id == id).map(Arc::new))
    }

    async fn find_user(&self, name: &Name) -> ApiResult<Option<Arc<User>>> {
        if let Some(user) = self.inner.directory.read().users.get(name) {
            return Ok(Some(user.clone()));
        }
        let Some(entry) = self.inner.etcd.get(&keys::user(name)).await? else { return Ok(None) };
        let user: Option<User> = open(&self.inner.seal, &entry);
        Ok(user.filter(|u| u.name == *name).map(Arc::new))
    }

    /// Who has shown a client's certificate: the user of that name.
    fn certificate(&self, identity: &Identity, address: Option<IpAddr>) -> Option<Caller> {
        let Identity::Client(name) = identity else { return None };
        let data = self.inner.directory.read();
        let user = data.users.get(name.as_str()).filter(|u| !u.disabled)?.clone();
        drop(data);
        Some(self.caller(user.name.to_string(), Via::Certificate, user.roles.clone(), address))
    }

    fn caller(&self, name: String, via: Via, roles: Vec<Name>, address: Option<IpAddr>) -> Caller {
        let grants = self.inner.directory.read().grants(&roles);
        let access = Access::new(grants, address);
        Caller {
            name,
            via,
            roles,
            address,
            token: None,
            expires_at: None,
            forwarded: false,
            known: true,
            since: Instant::now(),
            access,
        }
    }

    /// Whom another master works for, as it tells. What they may is looked up here.
    async fn told(&self, word: &str, method: &str) -> Option<Caller> {
        let key = self.inner.key.borrow().clone()?;
        let told = forward::open(&key, word, method, Timestamp::now().as_second())?;
        let user = async {
            let name = Name::new(&told.name).ok()?;
            self.find_user(&name).await.ok().flatten()
        };
        let caller = match (told.via, &told.token) {
            (Via::Token, Some(id)) => {
                let token = self.find_token(id).await.ok().flatten()?;
                self.of_token(&token, &*user.await?, told.address)?
            }
            (Via::Certificate, _) => {
                let user = user.await.filter(|u| !u.disabled)?;
                self.caller(told.name.clone(), Via::Certificate, user.roles.clone(), told.address)
            }
            (Via::Oidc, _) => {
                self.caller(told.name.clone(), Via::Oidc, told.roles.clone(), told.address)
            }
            // A master by itself, for several callers that it has looked at.
            (Via::Nothing, _) => {
                self.caller(MASTER.to_owned(), Via::Nothing, vec![Name::new(ADMIN).ok()?], None)
            }
            (Via::Token, None) => return None,
        };
        Some(Caller { forwarded: true, ..caller })
    }

    /// What is told another master of whom this task works for, be it the master itself.
    pub(crate) fn word(&self, method: &str) -> Option<String> {
        let key = self.inner.key.borrow().clone().filter(|_| self.inner.on)?;
        let caller = current();
        let told = forward::Told {
            name: caller.as_ref().map_or_else(|| MASTER.to_owned(), |c| c.name.clone()),
            via: caller.as_ref().map_or(Via::Nothing, |c| c.via),
            roles: caller.as_ref().map(|c| c.roles.clone()).unwrap_or_default(),
            address: caller.as_ref().and_then(|c| c.address),
            token: caller.as_ref().and_then(|c| c.token.clone()),
            method: method.to_owned(),
            at: Timestamp::now().as_second(),
        };
        Some(forward::seal(&key, &told))
    }

    /// Whether a caller is still who it was when its request began.
    fn still(&self, caller: &Caller) -> bool {
        if caller.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return false;
        }
        let data = self.inner.directory.read();
        let enabled = |name: &str| data.users.get(name).is_some_and(|u| !u.disabled);
        match (caller.via, &caller.token) {
            (Via::Token, Some(id)) => {
                // One that this master's watch has not told of yet was good when it was read.
                let new = !caller.known && caller.since.elapsed() < NEW;
                new || (data.tokens.contains_key(id) && enabled(&caller.name))
            }
            (Via::Certificate, _) => enabled(&caller.name),
            _ => true,
        }
    }
}
