//! What signatures cost: `cargo run --release -p meepo-runtime --example signing [N]`.
//!
//! Signs N assignments for as many nodes as a leader does, the text of the job made once, and
//! checks them as workers do, each from its text in etcd. One thread.
#![allow(clippy::unwrap_used)]

use jiff::SignedDuration;
use meepo_core::{
    id::{Name, NodeId},
    job::{Assignment, JobSpec},
    signing::{Covered, FIELD, Kind, Place, Signature, canonical},
};
use meepo_runtime::signing::{Keyring, PublicKey, Signer, generate};
use std::time::{Duration, Instant};

fn main() {
    let n: usize = std::env::args().nth(1).map_or(10_000, |n| n.parse().unwrap());
    let signer = Signer::from_pem(&generate().unwrap()).unwrap();
    let own = vec![PublicKey::new(signer.public()).unwrap()];
    let ring = Keyring::open(Vec::new(), own).unwrap();
    let mut spec = JobSpec::new(Name::new("backup").unwrap(), "tar -czf /tmp/etc.tar.gz -C / etc");
    spec.schedule = Some("30 2 * * *".into());
    spec.timeout = Some("1h".parse().unwrap());
    spec.env = [("LANG".to_owned(), "C".to_owned())].into();
    let assignment = spec.assignment(Some(4711), Vec::new());
    let json = serde_json::to_string(&assignment).unwrap();
    let nodes: Vec<(NodeId, String)> = (0..n)
        .map(|i| {
            let node = format!("10.{}.{}.{}", i >> 16, i >> 8 & 255, i & 255);
            let key = format!("/cron/jobs/{node}/backup");
            (Name::new(&node).unwrap(), key)
        })
        .collect();
    let place =
        |(node, key): &'_ (NodeId, String)| (Kind::Assignment, node.clone(), key.to_owned());

    let begun = Instant::now();
    let covered = canonical(&assignment.covered());
    let values: Vec<String> = nodes
        .iter()
        .map(|at| {
            let (kind, node, key) = place(at);
            let place = Place { kind, node: Some(&node), key: &key };
            let lives = Some(SignedDuration::from_hours(168));
            let signature = signer.sign(place, 3187, lives, None, &covered);
            let signature = serde_json::to_string(&signature).unwrap();
            format!("{},\"{FIELD}\":{signature}}}", &json[..json.len() - 1])
        })
        .collect();
    tell("sign", n, begun.elapsed());

    let begun = Instant::now();
    let read: Vec<Assignment> =
        values.iter().map(|v| Assignment::from_etcd(v.as_bytes()).unwrap()).collect();
    let reading = begun.elapsed();
    tell("read, as without signatures", n, reading);

    let begun = Instant::now();
    for (at, a) in nodes.iter().zip(&read) {
        let (kind, node, key) = place(at);
        let place = Place { kind, node: Some(&node), key: &key };
        let signature = Signature::among(&a.extra).unwrap();
        ring.verify(place, &signature, &canonical(&a.covered())).unwrap();
    }
    tell("verify", n, begun.elapsed());

    let begun = Instant::now();
    let bytes: usize = read.iter().map(|a| canonical(&a.covered()).len()).sum();
    tell("canonical bytes alone", n, begun.elapsed());
    println!(
        "{} bytes of JSON, {} with a signature; {} canonical",
        json.len(),
        values[0].len(),
        bytes / n
    );
}

fn tell(what: &str, n: usize, took: Duration) {
    let each = took.as_secs_f64() * 1e6 / n as f64;
    println!("{what}: {each:.1} us each, {:.0} in a second", 1e6 / each);
}
