//! The first start: nobody is there who could let anybody in.

use super::{Auth, kept, secret};
use crate::error::{ApiError, ApiResult};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{Etcd, keys, records::AuthKeyRecord};
use meepo_core::{
    auth::{ADMIN, Token, TokenText, User},
    code::Code,
    id::Name,
    run::to_millis,
};
use std::{io::Write, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long the first token is worth something.
const FIRST_TTL: SignedDuration = SignedDuration::from_hours(30 * 24);

impl Auth {
    /// Keeps what is known of users up to date until `stop` is cancelled. With `auth` on and
    /// nobody there, makes one user who may everything and prints its token, once in the
    /// cluster.
    ///
    /// # Errors
    /// When secrets cannot be made here.
    pub async fn run(self, etcd: Etcd, stop: CancellationToken) -> anyhow::Result<()> {
        let keeping = self.inner.directory.clone().keep(etcd.clone(), stop.clone());
        let first = async {
            if !self.inner.on {
                return Ok(());
            }
            let mut changes = self.inner.directory.changes();
            if changes.wait_for(|v| *v > 0).await.is_err() {
                return Ok(());
            }
            self.begin(&etcd).await
        };
        let first = async {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                begun = first => begun,
            }
        };
        let ((), begun) = tokio::join!(keeping, first);
        begun
    }

    /// Reads, or makes, the key of the masters, and the first user.
    async fn begin(&self, etcd: &Etcd) -> anyhow::Result<()> {
        let mut backoff = meepo_runtime::backoff::Backoff::new(Duration::from_secs(10));
        loop {
            match self.try_begin(etcd).await {
                Ok(()) => return Ok(()),
                Err(e) if e.0.code == Code::BUG => anyhow::bail!("auth: {}", e.0.message),
                Err(e) => {
                    let wait = backoff.next_wait();
                    warn!(error = %e, ?wait, "cannot prepare auth yet, will try again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn try_begin(&self, etcd: &Etcd) -> ApiResult<()> {
        self.masters_key(etcd).await?;
        if !self.inner.directory.read().users.is_empty() {
            return Ok(());
        }
        let name = Name::new(ADMIN)?;
        let now = to_millis(Timestamp::now());
        let user = User {
            name: name.clone(),
            id: uuid::Uuid::now_v7(),
            description: Some("made at the first start".into()),
            roles: vec![name],
            password: None,
            disabled: false,
            created_at: now,
            extra: Default::default(),
        };
        let text = secret::token()?;
        let expires_at = now.checked_add(FIRST_TTL).unwrap_or(Timestamp::MAX);
        let hash = self.inner.hashing.hash(text.secret.clone()).await?;
        let token = Token {
            id: text.id.clone(),
            user: user.name.clone(),
            user_id: user.id,
            description: Some("of the first start".into()),
            hash,
            roles: None,
            from: None,
            login: false,
            created_at: now,
            created_by: "the first start".into(),
            expires_at,
            extra: Default::default(),
        };
        // Of several masters that start at once one is the first.
        let nobody = Compare::create_revision(keys::USERS, CompareOp::Equal, 0).with_prefix();
        let lease = etcd.grant(FIRST_TTL.unsigned_abs()).await?;
        let leased = PutOptions::new().with_lease(lease);
        let seal = &self.inner.seal;
        let (of_user, of_token) = (keys::user(&user.name), keys::token(&token.id));
        let (of_user_value, of_token_value) =
            (kept::write(seal, &of_user, &user, None), kept::write(seal, &of_token, &token, None));
        let txn = Txn::new().when([nobody]).and_then([
            TxnOp::put(of_user, of_user_value, None),
            TxnOp::put(of_token, of_token_value, Some(leased)),
        ]);
        match etcd.txn("the first user", txn).await? {
            Some(_) => show(&text, expires_at),
            // Another master was faster, or nobody who is there was put there by a master.
            None => warn!(
                "there are users in etcd that another master has just made, or that no master \
                 has signed: in that case delete /meepo/users/ and start again"
            ),
        }
        Ok(())
    }

    /// What masters sign their word with; the first one makes it.
    async fn masters_key(&self, etcd: &Etcd) -> ApiResult<()> {
        let record = AuthKeyRecord { key: secret::key()?, extra: Default::default() };
        let absent = Compare::create_revision(keys::AUTH_KEY, CompareOp::Equal, 0);
        let seal = &self.inner.seal;
        let put =
            TxnOp::put(keys::AUTH_KEY, kept::write(seal, keys::AUTH_KEY, &record, None), None);
        etcd.txn(keys::AUTH_KEY, Txn::new().when([absent]).and_then([put])).await?;
        let entry = etcd.get(keys::AUTH_KEY).await?;
        let missing = || ApiError::new(Code::ETCD, "the key of the masters is gone again");
        let entry = entry.ok_or_else(missing)?;
        let record: Option<AuthKeyRecord> = kept::open(seal, &entry);
        let foreign = || {
            let message = "/meepo/auth/key was not written by a master: delete it";
            ApiError::new(Code::ETCD, message)
        };
        let record = record.ok_or_else(foreign)?;
        self.inner.key.send_replace(Some(record.key.into_bytes().into()));
        Ok(())
    }
}

/// Tells the one who has started this master. The log is kept and read by others.
fn show(token: &TokenText, expires_at: Timestamp) {
    info!(token = token.id, "the first start: a token of the user admin is printed");
    let text = format!(
        "\nNobody may do anything here yet. This is a token of the user `admin`, who may\n\
         everything; it is shown once and ends at {expires_at}:\n\n    {}\n\n\
         Make users (`meepo user put`), then revoke it (`meepo token revoke {}`).\n\n",
        token.reveal(),
        token.id
    );
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        warn!("the first token could not be printed: delete /meepo/users/admin and start again");
    }
}
