//! What the API does with users, tokens and roles.

use super::{Auth, caller, current, kept, secret};
use crate::{
    audit,
    error::{ApiError, ApiResult},
};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{
    Entry,
    etcd::{Cas, MAX_TXN_OPS},
    keys,
};
use meepo_core::{
    api::{Action, Applied},
    auth::{
        ADMIN, BUILT_IN, CreateToken, LoginRequest, NewToken, PasswordRequest, Permission, PutUser,
        Role, RoleList, Token, TokenList, TokenText, TokenView, User, UserList, UserView, Via,
        WhoAmI, check_password,
    },
    code::Code,
    duration::HumanDuration,
    error::Invalid,
    id::Name,
    run::to_millis,
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tracing::info;

/// Users there may be, and roles.
const MOST: usize = 1000;
/// Tokens of one user.
const MOST_TOKENS: usize = 100;
/// Longest description, in bytes, and the most roles of one user.
const MAX_TEXT: usize = 200;
const MAX_ROLES: usize = 50;
/// How long a token is worth something unless asked otherwise, and at most.
const TOKEN_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
const MAX_TOKEN_TTL: Duration = Duration::from_secs(3660 * 24 * 3600);
/// … and one of a login.
const LOGIN_TTL: Duration = Duration::from_secs(12 * 3600);
const MAX_LOGIN_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whether whoever this task works for has a permission.
fn has(permission: Permission) -> bool {
    current().is_none_or(|c| c.access.may(permission))
}

fn demand(permission: Permission, what: &str) -> ApiResult<()> {
    if has(permission) {
        return Ok(());
    }
    Err(ApiError::new(Code::DENIED, format!("{what}: {permission} is missing")))
}

fn bad<T>(field: &str, problem: impl Into<String>, expected: &str) -> ApiResult<T> {
    Err(Invalid::new(Code::BAD_VALUE, field, problem, expected).into())
}

fn until(ttl: Option<HumanDuration>, usual: Duration, most: Duration) -> ApiResult<Timestamp> {
    let ttl = ttl.map_or(usual, |d| d.0);
    if ttl < Duration::from_secs(1) || ttl > most {
        let expected = format!("1s to {}", HumanDuration(most));
        return bad("ttl", "out of range", &expected);
    }
    let span = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
    Ok(to_millis(Timestamp::now()).checked_add(span).unwrap_or(Timestamp::MAX))
}

fn line(field: &str, text: &Option<String>) -> ApiResult<()> {
    match text {
        Some(t) if t.len() > MAX_TEXT || t.chars().any(char::is_control) => {
            bad(field, "too long, or more than a line", "a line of at most 200 bytes")
        }
        _ => Ok(()),
    }
}

impl Auth {
    /// Who asks, as this master sees it.
    pub fn who_am_i(&self) -> WhoAmI {
        match current() {
            Some(caller) => caller.who_am_i(),
            None => WhoAmI {
                auth: self.inner.on,
                user: "anonymous".into(),
                via: Via::Nothing,
                roles: Vec::new(),
                permissions: Permission::ALL.iter().map(ToString::to_string).collect(),
                token: None,
                expires_at: None,
                address: caller::origin().map(|a| a.to_string()),
            },
        }
    }

    /// Makes a token for who knows the password.
    pub async fn login(&self, request: LoginRequest) -> ApiResult<NewToken> {
        audit::object("user", &request.user);
        self.may_try()?;
        let expires_at = until(request.ttl, LOGIN_TTL, MAX_LOGIN_TTL)?;
        if request.password.len() > meepo_core::auth::MAX_PASSWORD {
            return bad("password", "too long", "at most 1024 bytes");
        }
        let user = self.find_user(&request.user).await?.filter(|u| !u.disabled);
        let hash = user.as_ref().and_then(|u| u.password.as_deref());
        let right = self.inner.hashing.is_password(request.password, hash).await?;
        let Some(user) = user.filter(|_| right) else {
            self.was_wrong();
            let message = "the user or the password is wrong";
            return Err(ApiError::new(Code::UNAUTHENTICATED, message));
        };
        let created_by = user.name.to_string();
        let what = CreateToken { description: Some("login".into()), ..CreateToken::default() };
        self.make_token(&user, what, expires_at, true, created_by).await
    }

    /// Revokes the token that the request came with.
    pub async fn logout(&self) -> ApiResult<Applied> {
        let caller = current();
        let Some(id) = caller.as_ref().and_then(|c| c.token.clone()) else {
            let message = "there is no token of meepo to revoke";
            return Err(ApiError::new(Code::CONFLICT, message));
        };
        self.remove_token(&id).await
    }

    /// All users.
    pub async fn list_users(&self) -> ApiResult<UserList> {
        let (entries, _) = self.inner.etcd.list(keys::USERS, None).await?;
        let users = entries.iter().filter_map(|e| self.open::<User>(e));
        Ok(UserList { users: users.map(|u| UserView::from(&u)).collect() })
    }

    /// Creates or changes a user; the password stays as it is.
    pub async fn put_user(&self, name: &Name, request: PutUser) -> ApiResult<Applied> {
        audit::object("user", name);
        let roles: Vec<&str> = request.roles.iter().map(Name::as_str).collect();
        audit::detail("roles", roles.join(", "));
        audit::detail("disabled", request.disabled);
        line("description", &request.description)?;
        if name.as_str().contains(':') {
            return bad(
                "name",
                "a colon in it",
                "a name without `:`, which stands in others' names",
            );
        }
        if request.roles.len() > MAX_ROLES {
            return bad("roles", "too many", "at most 50");
        }
        if let Some(missing) =
            request.roles.iter().find(|r| self.inner.directory.read().role(r).is_none())
        {
            let problem = format!("there is no role {:?}", missing.as_str());
            return bad("roles", problem, "roles that exist (`meepo role list`)");
        }
        let key = keys::user(name);
        let there = self.inner.etcd.get(&key).await?;
        let old: Option<User> = there.as_ref().and_then(|e| self.open(e));
        let stays = !request.disabled && request.roles.iter().any(|r| r.as_str() == ADMIN);
        self.keeps_an_admin(name, old.as_ref(), stays)?;
        let new = old.is_none();
        if new && self.inner.directory.read().users.len() >= MOST {
            return Err(ApiError::new(Code::CONFLICT, format!("there are {MOST} users already")));
        }
        let user = User {
            name: name.clone(),
            id: old.as_ref().map_or_else(uuid::Uuid::now_v7, |u| u.id),
            description: request.description,
            roles: request.roles,
            password: old.as_ref().and_then(|u| u.password.clone()),
            disabled: request.disabled,
            created_at: old.as_ref().map_or_else(|| to_millis(Timestamp::now()), |u| u.created_at),
            extra: old.as_ref().map(|u| u.extra.clone()).unwrap_or_default(),
        };
        let expect = there.as_ref().map_or(0, |e| e.mod_revision);
        if old.as_ref() == Some(&user) {
            let action = Action::Unchanged;
            return Ok(Applied { name: name.clone(), action, revision: expect });
        }
        let revision = self.write_user(&user, there.as_ref()).await?;
        let action = if new { Action::Created } else { Action::Updated };
        Ok(Applied { name: name.clone(), action, revision })
    }

    fn open<T: DeserializeOwned>(&self, entry: &Entry) -> Option<T> {
        kept::open(&self.inner.seal, entry)
    }

    async fn write_user(&self, user: &User, there: Option<&Entry>) -> ApiResult<i64> {
        let key = keys::user(&user.name);
        let expect = there.map_or(0, |e| e.mod_revision);
        let old = there.map(|e| e.value.as_slice());
        let value = kept::write(&self.inner.seal, &key, user, old);
        match self.inner.etcd.put_if(&key, Some(value), expect, None).await? {
            Cas::Done(revision) => {
                info!(user = %user.name, revision, "a user is written");
                let there = |u: &Arc<User>| **u == *user;
                self.inner
                    .directory
                    .shows(|data| data.users.get(&user.name).is_some_and(there))
                    .await;
                Ok(revision)
            }
            Cas::Conflict(_) => {
                let message = format!("user {} is being changed by others", user.name);
                Err(ApiError::new(Code::CONFLICT, message))
            }
        }
    }

    /// Refuses what would leave nobody who may everything.
    fn keeps_an_admin(&self, name: &Name, old: Option<&User>, stays: bool) -> ApiResult<()> {
        let was = old.is_some_and(|u| !u.disabled && u.roles.iter().any(|r| r.as_str() == ADMIN));
        if was && !stays && !self.inner.directory.read().other_admin(name) {
            let message = format!("{name} is the last user with the role {ADMIN}");
            return Err(ApiError::new(Code::CONFLICT, message));
        }
        Ok(())
    }

    /// Deletes a user and all of its tokens.
    pub async fn delete_user(&self, name: &Name) -> ApiResult<Applied> {
        audit::object("user", name);
        let key = keys::user(name);
        let entry = self.inner.etcd.get(&key).await?;
        let entry = entry.ok_or_else(|| ApiError::not_found("user", name))?;
        let old: Option<User> = self.open(&entry);
        self.keeps_an_admin(name, old.as_ref(), false)?;
        let tokens = self.tokens_of(name, |_| true).await?;
        let mut ops = vec![TxnOp::delete(key, None)];
        ops.extend(tokens.iter().map(|t| TxnOp::delete(keys::token(&t.id), None)));
        // What is left without its user is worth nothing.
        for some in ops.chunks(MAX_TXN_OPS) {
            self.inner.etcd.txn("delete user", Txn::new().and_then(some)).await?;
        }
        info!(user = %name, tokens = tokens.len(), "a user is deleted");
        self.inner.directory.shows(|data| !data.users.contains_key(name)).await;
        Ok(Applied { name: name.clone(), action: Action::Deleted, revision: entry.mod_revision })
    }

    /// Sets a password, or takes it away. What was logged in with the old one is not any more.
    pub async fn set_password(&self, name: &Name, request: PasswordRequest) -> ApiResult<Applied> {
        audit::object("user", name);
        let key = keys::user(name);
        let others = has(Permission::UserWrite);
        if !others && current().is_none_or(|c| c.name != name.as_str() || c.via == Via::Oidc) {
            let message = format!("the password of others: {} is missing", Permission::UserWrite);
            return Err(ApiError::new(Code::DENIED, message));
        }
        if let Some(password) = &request.password {
            check_password(name, password)?;
        }
        let entry = self.inner.etcd.get(&key).await?;
        let entry = entry.ok_or_else(|| ApiError::not_found("user", name))?;
        let user: User = self.open(&entry).ok_or_else(|| ApiError::not_found("user", name))?;
        if !others {
            self.may_try()?;
            let old = request.old.unwrap_or_default();
            if old.len() > meepo_core::auth::MAX_PASSWORD
                || !self.inner.hashing.is_password(old, user.password.as_deref()).await?
            {
                self.was_wrong();
                let message = "the old password is wrong";
                return Err(ApiError::new(Code::DENIED, message));
            }
        }
        let password = match request.password {
            Some(password) => Some(self.inner.hashing.hash(password).await?),
            None => None,
        };
        let user = User { password, ..user };
        let revision = self.write_user(&user, Some(&entry)).await?;
        let own = current().and_then(|c| c.token.clone());
        let logins = self.tokens_of(name, |t| t.login && own.as_ref() != Some(&t.id)).await?;
        for token in &logins {
            self.inner.etcd.delete(&keys::token(&token.id)).await?;
        }
        audit::detail("ended_logins", logins.len());
        Ok(Applied { name: name.clone(), action: Action::Updated, revision })
    }

    async fn tokens_of(
        &self,
        user: &Name,
        which: impl Fn(&Token) -> bool,
    ) -> ApiResult<Vec<Token>> {
        let (entries, _) = self.inner.etcd.list(keys::TOKENS, None).await?;
        let tokens = entries.iter().filter_map(|e| self.open::<Token>(e));
        Ok(tokens.filter(|t| t.user == *user && which(t)).collect())
    }

    /// Tokens: all with `token.read`, else one's own.
    pub async fn list_tokens(&self) -> ApiResult<TokenList> {
        let (entries, _) = self.inner.etcd.list(keys::TOKENS, None).await?;
        let own = current().filter(|c| !c.access.may(Permission::TokenRead));
        let mine = |t: &Token| {
            own.as_ref().is_none_or(|c| c.via != Via::Oidc && c.name == t.user.as_str())
        };
        let tokens = entries.iter().filter_map(|e| self.open::<Token>(e)).filter(mine);
        let mut tokens: Vec<TokenView> = tokens.map(|t| TokenView::from(&t)).collect();
        tokens.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        Ok(TokenList { tokens })
    }

    /// Makes a token, for oneself or with `token.write` for others.
    pub async fn create_token(&self, mut request: CreateToken) -> ApiResult<NewToken> {
        if let Some(name) = &request.user {
            audit::object("user", name);
        }
        line("description", &request.description)?;
        let expires_at = until(request.ttl, TOKEN_TTL, MAX_TOKEN_TTL)?;
        let caller = current();
        let own = caller.as_ref().filter(|c| c.via != Via::Oidc);
        let name = match (&request.user, own) {
            (Some(name), _) => name.clone(),
            (None, Some(own)) => Name::new(&own.name)?,
            (None, None) => return bad("user", "missing", "the user that the token is for"),
        };
        audit::object("user", &name);
        let mine = own.is_some_and(|c| c.name == name.as_str());
        if !mine {
            demand(Permission::TokenWrite, "tokens of others")?;
        }
        let user = self.find_user(&name).await?;
        let user = user.ok_or_else(|| ApiError::not_found("user", &name))?;
        if let Some(missing) = request.roles.iter().flatten().find(|r| !user.roles.contains(r)) {
            let problem = format!("{name} has no role {:?}", missing.as_str());
            return bad("roles", problem, "some of the user's roles");
        }
        if let Some(own) = own.filter(|_| mine) {
            self.no_more_than(own, &mut request).await?;
        }
        let by = caller.map_or_else(|| "anonymous".to_owned(), |c| c.name.clone());
        self.make_token(&user, request, expires_at, false, by).await
    }

    /// A token that is made with a token is worth no more than that one.
    async fn no_more_than(&self, own: &super::Caller, request: &mut CreateToken) -> ApiResult<()> {
        let Some(id) = &own.token else { return Ok(()) };
        let Some(token) = self.find_token(id).await? else { return Ok(()) };
        if let Some(only) = &token.roles {
            match &request.roles {
                None => request.roles = Some(only.clone()),
                Some(roles) => {
                    if let Some(more) = roles.iter().find(|r| !only.contains(r)) {
                        let message = format!("the token that asks has not the role {more}");
                        return Err(ApiError::new(Code::DENIED, message));
                    }
                }
            }
        }
        if token.from.is_some() {
            if request.from.is_some() && request.from != token.from {
                let message = "the token that asks counts from some addresses only";
                return Err(ApiError::new(Code::DENIED, message));
            }
            request.from = token.from.clone();
        }
        Ok(())
    }

    async fn make_token(
        &self,
        user: &User,
        request: CreateToken,
        expires_at: Timestamp,
        login: bool,
        created_by: String,
    ) -> ApiResult<NewToken> {
        let there = {
            let data = self.inner.directory.read();
            data.tokens.values().filter(|t| t.user == user.name).count()
        };
        if there >= MOST_TOKENS {
            let message = format!("{} has {there} tokens already; revoke some first", user.name);
            return Err(ApiError::new(Code::CONFLICT, message));
        }
        let text = secret::token()?;
        let now = to_millis(Timestamp::now());
        let token = Token {
            id: text.id.clone(),
            user: user.name.clone(),
            user_id: user.id,
            description: request.description,
            hash: self.inner.hashing.hash(text.secret.clone()).await?,
            roles: request.roles,
            from: request.from,
            login,
            created_at: now,
            created_by,
            expires_at,
            extra: BTreeMap::new(),
        };
        audit::detail("token", &token.id);
        audit::detail("expires_at", expires_at);
        let lease = self.inner.etcd.grant(expires_at.duration_since(now).unsigned_abs()).await?;
        let leased = PutOptions::new().with_lease(lease);
        let key = keys::token(&token.id);
        let put = TxnOp::put(
            key.as_str(),
            kept::write(&self.inner.seal, &key, &token, None),
            Some(leased),
        );
        // Not for somebody who was deleted meanwhile.
        let there = Compare::version(keys::user(&user.name), CompareOp::Greater, 0);
        if self.inner.etcd.txn("token", Txn::new().when([there]).and_then([put])).await?.is_none() {
            return Err(ApiError::not_found("user", &user.name));
        }
        info!(token = token.id, user = %user.name, by = token.created_by, "a token is made");
        self.inner.directory.shows(|data| data.tokens.contains_key(&token.id)).await;
        Ok(NewToken { token: text.reveal(), id: token.id, user: token.user, expires_at })
    }

    /// Revokes a token: one's own, or with `token.write` anybody's.
    pub async fn revoke_token(&self, id: &str) -> ApiResult<Applied> {
        audit::object("token", id);
        if !TokenText::is_id(id) {
            return bad(
                "id",
                "not the id of a token",
                "20 digits, as `meepo token list` shows them",
            );
        }
        let token = self.find_token(id).await?;
        let own =
            |t: &Token| current().is_some_and(|c| c.via != Via::Oidc && c.name == t.user.as_str());
        if !has(Permission::TokenWrite) && !token.as_deref().is_some_and(own) {
            // Whether it exists is nobody else's affair.
            return Err(ApiError::not_found("token", id));
        }
        self.remove_token(id).await
    }

    async fn remove_token(&self, id: &str) -> ApiResult<Applied> {
        audit::object("token", id);
        if !self.inner.etcd.delete(&keys::token(id)).await? {
            return Err(ApiError::not_found("token", id));
        }
        info!(token = id, "a token is revoked");
        self.inner.directory.shows(|data| !data.tokens.contains_key(id)).await;
        Ok(Applied { name: Name::new(id)?, action: Action::Deleted, revision: 0 })
    }

    /// All roles.
    pub async fn list_roles(&self) -> ApiResult<RoleList> {
        Ok(RoleList { roles: self.inner.directory.read().roles() })
    }

    /// Creates or replaces a role.
    pub async fn put_role(&self, role: Role) -> ApiResult<Applied> {
        audit::object("role", &role.name);
        audit::detail("grants", serde_json::to_string(&role.grants).unwrap_or_default());
        let key = keys::role(&role.name);
        let there = self.inner.etcd.get(&key).await?;
        let expect = there.as_ref().map_or(0, |e| e.mod_revision);
        let old: Option<Role> = there.as_ref().and_then(|e| self.open(e));
        let value =
            kept::write(&self.inner.seal, &key, &role, there.as_ref().map(|e| e.value.as_slice()));
        if old.as_ref() == Some(&role) {
            let action = Action::Unchanged;
            return Ok(Applied { name: role.name, action, revision: expect });
        }
        if expect == 0 && self.inner.directory.read().roles().len() >= MOST {
            return Err(ApiError::new(Code::CONFLICT, format!("there are {MOST} roles already")));
        }
        match self.inner.etcd.put_if(&key, Some(value), expect, None).await? {
            Cas::Done(revision) => {
                info!(role = %role.name, revision, "a role is written");
                self.inner.directory.shows(|data| data.role(&role.name) == Some(&role)).await;
                let action = if expect == 0 { Action::Created } else { Action::Updated };
                Ok(Applied { name: role.name, action, revision })
            }
            Cas::Conflict(_) => {
                let message = format!("role {} is being changed by others", role.name);
                Err(ApiError::new(Code::CONFLICT, message))
            }
        }
    }

    /// Deletes a role that nobody has.
    pub async fn delete_role(&self, name: &Name) -> ApiResult<Applied> {
        audit::object("role", name);
        if BUILT_IN.contains(&name.as_str()) {
            return Err(ApiError::new(Code::CONFLICT, format!("the role {name} is always there")));
        }
        let key = keys::role(name);
        let entry = self.inner.etcd.get(&key).await?;
        let entry = entry.ok_or_else(|| ApiError::not_found("role", name))?;
        let users = self.list_users().await?.users;
        let having: Vec<&str> =
            users.iter().filter(|u| u.roles.contains(name)).map(|u| u.name.as_str()).collect();
        if !having.is_empty() {
            let some = having.iter().take(10).copied().collect::<Vec<_>>().join(", ");
            let message = format!("role {name} is one of the roles of {some}");
            return Err(ApiError::new(Code::CONFLICT, message));
        }
        self.inner.etcd.delete(&key).await?;
        info!(role = %name, "a role is deleted");
        self.inner.directory.shows(|data| data.role(name).is_none()).await;
        Ok(Applied { name: name.clone(), action: Action::Deleted, revision: entry.mod_revision })
    }
}
