//! Who asks.

use jiff::Timestamp;
use meepo_core::{
    auth::{Access, Permission, Via, WhoAmI},
    id::Name,
};
use std::{net::IpAddr, sync::Arc, time::Instant};

/// Who asks, found out before anything is served.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The name, as the audit has it.
    pub name: String,
    /// By what it is known.
    pub via: Via,
    /// The roles it has here.
    pub roles: Vec<Name>,
    /// Where it asks from: not a master that hands a request on.
    pub address: Option<IpAddr>,
    /// The id of the token of meepo, if it is one.
    pub token: Option<String>,
    /// From then on it is nobody.
    pub expires_at: Option<Timestamp>,
    /// The master that hands the request on, and so has counted it.
    pub forwarded: bool,
    /// Whether this master's watch had told of its token.
    pub(super) known: bool,
    /// When its request began.
    pub(super) since: Instant,
    /// What it may.
    pub access: Access,
}

tokio::task_local! {
    /// Who asked for what this task does. Absent: nobody did, or nobody is asked.
    static CALLER: Arc<Caller>;
    /// Where the request comes from that is served.
    static ORIGIN: IpAddr;
}

/// Serves a request that comes from there.
pub(super) async fn coming_from<T>(origin: Option<IpAddr>, work: impl Future<Output = T>) -> T {
    match origin {
        Some(origin) => ORIGIN.scope(origin, work).await,
        None => work.await,
    }
}

/// Where the request comes from that this task serves.
pub(super) fn origin() -> Option<IpAddr> {
    ORIGIN.try_with(|origin| *origin).ok()
}

/// Does something for a caller: what is served looks here.
pub async fn acting_for<T>(caller: Option<Arc<Caller>>, work: impl Future<Output = T>) -> T {
    match caller {
        Some(caller) => CALLER.scope(caller, work).await,
        None => work.await,
    }
}

/// Whom this task works for. `None`: it is the master's own work, or everybody may everything.
pub fn current() -> Option<Arc<Caller>> {
    CALLER.try_with(Arc::clone).ok()
}

impl Caller {
    /// As it is shown to itself.
    pub fn who_am_i(&self) -> WhoAmI {
        let has = |p: &&Permission| self.access.may(**p);
        WhoAmI {
            auth: true,
            user: self.name.clone(),
            via: self.via,
            roles: self.roles.clone(),
            permissions: Permission::ALL.iter().filter(has).map(ToString::to_string).collect(),
            token: self.token.clone(),
            expires_at: self.expires_at,
            address: self.address.map(|a| a.to_string()),
        }
    }
}
