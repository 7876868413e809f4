//! How etcd is reached: encrypted or not, by certificate or by password, and again with what
//! is in the files by then.

use super::{CoordError, Etcd, error::LOG_IN};
use etcd_client::{Client, ConnectOptions, TlsOptions};
use meepo_runtime::tls::{EtcdTls, Stamp};
use std::{
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::Duration,
};
use tokio::sync::Mutex;
use tonic::transport::{Certificate, Identity};
use tracing::{info, warn};

/// Where etcd is and who one is there.
#[derive(Debug, Clone, Default)]
pub struct EtcdAccess {
    /// Its URLs, all `https://` or none.
    pub endpoints: Vec<String>,
    /// What connections are encrypted with, where the URLs say that they are. etcd with
    /// `--client-cert-auth` takes the common name of the certificate for the user.
    pub tls: Option<EtcdTls>,
    /// A user that proves who it is by a password instead.
    pub user: Option<EtcdUser>,
}

/// A user of etcd with a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdUser {
    /// Its name.
    pub name: String,
    /// The file that the password stands in, alone on the first line.
    pub password_file: PathBuf,
}

impl EtcdAccess {
    /// Without encryption and without a user.
    pub fn plain(endpoints: &[String]) -> Self {
        Self { endpoints: endpoints.to_vec(), ..Self::default() }
    }

    /// A user with its password, if there is one.
    ///
    /// # Errors
    /// When only one of the two is given.
    pub fn user(
        name: Option<String>,
        password_file: Option<PathBuf>,
    ) -> Result<Option<EtcdUser>, CoordError> {
        match (name, password_file) {
            (None, None) => Ok(None),
            (Some(name), Some(password_file)) => Ok(Some(EtcdUser { name, password_file })),
            _ => Err(CoordError::Access {
                problem: "etcd_user and etcd_password_file belong together; expected both, or \
                          neither"
                    .to_owned(),
            }),
        }
    }

    /// Every file that what is shown to etcd comes from.
    fn files(&self) -> impl Iterator<Item = &Path> {
        let password = self.user.iter().map(|user| user.password_file.as_path());
        self.tls.iter().flat_map(EtcdTls::paths).chain(password)
    }

    fn options(&self) -> Result<ConnectOptions, CoordError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(3))
            .with_keep_alive(Duration::from_secs(5), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = &self.tls {
            let mut config =
                TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
            if let Some((cert, key)) = &tls.pair {
                config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            options = options.with_tls(config);
        }
        Ok(options)
    }

    async fn connect(&self) -> Result<Client, CoordError> {
        Client::connect(&self.endpoints, Some(self.options()?))
            .await
            .map_err(|e| CoordError::new("connect to", &self.endpoints.join(","), e))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CoordError> {
    std::fs::read(path)
        .map_err(|e| CoordError::Access { problem: format!("cannot read {}: {e}", path.display()) })
}

/// The connection as it is now.
pub(super) struct Connection {
    access: EtcdAccess,
    made: RwLock<Made>,
    /// Held by whoever makes it anew, or logs in.
    changing: Mutex<()>,
}

struct Made {
    client: Client,
    /// The files as they were.
    stamp: Stamp,
    logged_in: bool,
}

impl Connection {
    pub(super) async fn new(access: EtcdAccess) -> Result<Self, CoordError> {
        let stamp = Stamp::of(access.files());
        let client = access.connect().await?;
        let made = RwLock::new(Made { client, stamp, logged_in: false });
        Ok(Self { access, made, changing: Mutex::default() })
    }

    pub(super) fn client(&self) -> Client {
        self.read(|made| made.client.clone())
    }

    fn read<T>(&self, look: impl FnOnce(&Made) -> T) -> T {
        // Nothing is left half done while it is held.
        look(&self.made.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, change: impl FnOnce(&mut Made)) {
        change(&mut self.made.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Makes the connection anew if the files have changed, and logs in if that has not been
    /// done. Streams that are open stay.
    pub(super) async fn refresh(&self) -> Result<(), CoordError> {
        if self.access.tls.is_none() && self.access.user.is_none() {
            return Ok(());
        }
        let stamp = Stamp::of(self.access.files());
        if self.read(|made| made.stamp == stamp && made.logged_in == self.has_user()) {
            return Ok(());
        }
        // In a box, as it is seldom needed: every call would carry it along otherwise.
        Box::pin(self.change(stamp)).await
    }

    async fn change(&self, stamp: Stamp) -> Result<(), CoordError> {
        let _one = self.changing.lock().await;
        if self.read(|made| made.stamp != stamp) {
            match self.access.connect().await {
                Ok(client) => {
                    info!("what etcd is shown has changed: connecting anew");
                    self.write(|made| {
                        *made = Made { client, stamp, logged_in: false };
                    });
                }
                Err(error) => {
                    warn!(%error, "what etcd would be shown cannot be used; what was before still is");
                    self.write(|made| made.stamp = stamp);
                }
            }
        }
        match self.read(|made| made.logged_in) {
            true => Ok(()),
            false => self.log_in().await,
        }
    }

    /// Logs in again: etcd does not take the token any more.
    pub(super) async fn renew(&self) -> Result<(), CoordError> {
        let _one = self.changing.lock().await;
        Box::pin(self.log_in()).await
    }

    pub(super) fn has_user(&self) -> bool {
        self.access.user.is_some()
    }

    async fn log_in(&self) -> Result<(), CoordError> {
        let Some(user) = &self.access.user else { return Ok(()) };
        let text = String::from_utf8_lossy(&read(&user.password_file)?).into_owned();
        let password = text.lines().next().unwrap_or_default().to_owned();
        let mut client = self.client();
        client
            .update_user(Some((user.name.clone(), password)))
            .await
            .map_err(|e| CoordError::new(LOG_IN, &user.name, e))?;
        self.write(|made| made.logged_in = true);
        Ok(())
    }
}

impl Etcd {
    /// How each member of etcd is to be connected to.
    pub(crate) fn options(&self) -> Result<ConnectOptions, CoordError> {
        self.connection.access.options()
    }

    /// To be awaited before a stream is opened: what it would be refused for is put right.
    pub(crate) async fn ready(&self) -> Result<(), CoordError> {
        self.connection.refresh().await?;
        if self.connection.has_user() {
            // Streams do not ask for a new token when theirs has expired; a call does. What
            // it answers is of no importance.
            let _ = self.get(crate::keys::LEADER).await;
        }
        Ok(())
    }
}
