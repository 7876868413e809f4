//! Which master leads.

use crate::fleet::SOON;
use meepo_tests::{Cluster, eventually};

/// The number of the master that leads.
pub(crate) async fn leader(cluster: &Cluster) -> usize {
    eventually(SOON, "a master leads", async || {
        let out = cluster.etcd().ctl(&["get", "/meepo/leader", "--print-value-only"]).await;
        if out.stdout.trim().is_empty() {
            return Err("none".to_owned());
        }
        let leader = out.json();
        let leads = |i: &usize| leader["http"] == cluster.master(*i).api().base();
        (0..cluster.masters()).find(leads).ok_or_else(|| leader.to_string())
    })
    .await
}
