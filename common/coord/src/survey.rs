//! How etcd itself is: each of its members, its size, its alarms.

use crate::{
    etcd::{CoordError, Etcd, is_endpoint},
    keys,
};
use etcd_client::{AlarmAction, AlarmType, Client};
use std::time::{Duration, Instant};

/// How long a member may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// How etcd is.
#[derive(Debug)]
pub struct Survey {
    /// How long a read confirmed by a quorum took.
    pub read: Result<Duration, CoordError>,
    /// Its members, as far as one that answers knows them.
    pub members: Vec<Member>,
    /// Alarms that are raised.
    pub alarms: Vec<Alarm>,
}

/// One member.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where it serves clients.
    pub url: String,
    /// What it says of itself, or why it does not.
    pub state: Result<MemberState, String>,
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberState {
    /// Its version.
    pub version: String,
    /// Size of its database file in bytes.
    pub db_size: u64,
    /// Whether it knows a leader.
    pub has_leader: bool,
    /// What it complains of.
    pub errors: Vec<String>,
}

/// What etcd raises an alarm for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// The database has reached its quota: writes are refused.
    NoSpace,
    /// The members' data differ.
    Corrupt,
}

impl Etcd {
    /// Looks at etcd: a few requests to each member, two seconds at most for each.
    pub async fn survey(&self) -> Survey {
        let begun = Instant::now();
        let read = self.get(keys::LEADER).await.map(|_| begun.elapsed());
        let mut cluster = self.client().cluster_client();
        let members = match tokio::time::timeout(PATIENCE, cluster.member_list()).await {
            Ok(Ok(list)) => list.members().to_vec(),
            // Whoever cannot list them says so in `read`.
            _ => Vec::new(),
        };
        let mut surveyed = Vec::new();
        for member in members {
            let url = member.client_urls().first().cloned().unwrap_or_default();
            surveyed.push(Member {
                name: member.name().to_owned(),
                state: state(self, &url).await,
                url,
            });
        }
        let mut maintenance = self.client().maintenance_client();
        let alarms = maintenance.alarm(AlarmAction::Get, AlarmType::None, None);
        let alarms = match tokio::time::timeout(PATIENCE, alarms).await {
            Ok(Ok(response)) => response.alarms().iter().filter_map(|a| alarm(a.alarm())).collect(),
            _ => Vec::new(),
        };
        Survey { read, members: surveyed, alarms }
    }
}

fn alarm(kind: AlarmType) -> Option<Alarm> {
    match kind {
        AlarmType::Nospace => Some(Alarm::NoSpace),
        AlarmType::Corrupt => Some(Alarm::Corrupt),
        AlarmType::None => None,
    }
}

/// What the member at `url` says of itself.
async fn state(etcd: &Etcd, url: &str) -> Result<MemberState, String> {
    if !is_endpoint(url) {
        return Err("it has announced no address for clients".to_owned());
    }
    let options = etcd.options().map_err(|e| e.to_string())?;
    let ask = async {
        let client = Client::connect([url], Some(options)).await?;
        client.maintenance_client().status().await
    };
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok(s)) => Ok(MemberState {
            version: s.version().to_owned(),
            db_size: u64::try_from(s.db_size()).unwrap_or(0),
            has_leader: s.leader() != 0,
            errors: s.errors().to_vec(),
        }),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}
