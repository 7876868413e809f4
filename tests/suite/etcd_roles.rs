//! etcd's own users and roles: a worker's credential opens nothing but the keys of its node, and
//! is all that a worker needs.

use crate::fleet::{apply, runs, wait_runs, wait_session};
use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, Permission, PutOptions, Txn, TxnOp, WatchOptions,
};
use meepo_coord::{
    access::{FAMILIES, Scope},
    keys,
    users::{MASTER, ROOT, worker_user},
};
use meepo_core::id::Name;
use meepo_tests::{Cluster, Etcd, Output, Spec, TestDir, binary, eventually, run, secs};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

const SOON: Duration = secs(60);
const NODE: &str = "127.0.0.2";
/// Another node, and one whose name begins like the thief's own.
const OTHERS: [&str; 2] = ["127.0.0.3", "127.0.0.20"];
/// What a worker may read and write of other nodes, too. Written down apart from the table that
/// the users are made from: that one is what is tested.
const SHARED: [(&str, bool, bool); 5] = [
    (keys::CLAIMS, true, true),
    (keys::LOCKS, true, true),
    (keys::TASKS, true, false),
    (keys::PARTS, false, true),
    (keys::LEADER, true, false),
];

/// Runs `meepo etcd init-auth` to its end.
async fn init_auth(etcd: &Etcd, dir: &Path, name: &str, more: &[&str]) -> Output {
    let urls = etcd.urls();
    let args = [&["etcd", "init-auth", "--etcd", &urls], more].concat();
    run(Spec::new(name, binary("meepo"), &args, dir)).await
}

fn password(dir: &Path, user: &str) -> String {
    fs::read_to_string(dir.join(user)).unwrap().trim().to_owned()
}

/// An etcd that asks everybody who they are, with users for these nodes. Answers the directory
/// of the passwords.
async fn guard(etcd: &Etcd, dir: &Path, nodes: &[&str]) -> std::path::PathBuf {
    let passwords = dir.join("passwords");
    let place = passwords.display().to_string();
    let mut args = vec!["--passwords", &place, "--enable"];
    nodes.iter().for_each(|node| args.extend(["--node", node]));
    init_auth(etcd, dir, "init-auth", &args).await.ok();
    etcd.log_in(ROOT, &password(&passwords, ROOT));
    passwords
}

fn refused<T>(what: &str, done: Result<T, Error>) {
    match done {
        Err(Error::GRpcStatus(status)) if status.message().contains("permission denied") => {}
        Err(e) => panic!("{what}: refused, but not for want of a permission: {e}"),
        Ok(_) => panic!("{what}: it was not refused"),
    }
}

/// Whether a watch on a key is let.
async fn may_watch(thief: &Client, key: &str, end: Option<&str>) -> bool {
    let mut options = WatchOptions::new();
    if let Some(end) = end {
        options = options.with_range(end);
    }
    // A refusal is the first answer, or comes in the place of the stream.
    let Ok(mut stream) = thief.clone().watch(key, Some(options)).await else { return false };
    matches!(stream.message().await, Ok(Some(r)) if !r.canceled())
}

/// Tries everything with one key.
async fn try_all(thief: &Client, key: &str, reads: bool, writes: bool) {
    let mut kv = thief.kv_client();
    let read = kv.get(key, None).await;
    assert!(reads || read.is_err(), "{key} can be read");
    match reads {
        true => drop(read.unwrap_or_else(|e| panic!("{key} cannot be read: {e}"))),
        false => refused(&format!("get {key}"), read),
    }
    assert_eq!(may_watch(thief, key, None).await, reads, "watch {key}");
    let compare = Compare::create_revision(key, CompareOp::Greater, 0);
    let spied = kv.txn(Txn::new().when([compare])).await;
    assert_eq!(spied.is_ok(), reads, "compare {key}");
    let put = kv.put(key, "stolen", None).await;
    let put_in_txn = kv.txn(Txn::new().and_then([TxnOp::put(key, "stolen", None)])).await;
    let deleted = kv.delete(key, None).await;
    match writes {
        true => {
            put.and(deleted).unwrap_or_else(|e| panic!("{key} cannot be written: {e}"));
            put_in_txn.unwrap_or_else(|e| panic!("{key} cannot be written: {e}"));
        }
        false => {
            refused(&format!("put {key}"), put);
            refused(&format!("put {key} in a transaction"), put_in_txn);
            refused(&format!("delete {key}"), deleted);
        }
    }
}

#[tokio::test]
async fn a_stolen_credential_of_a_worker_opens_no_other_key() {
    let dir = TestDir::new();
    let etcd = Etcd::start(1, dir.path()).await;
    let passwords = guard(&etcd, dir.path(), &[NODE, OTHERS[0], OTHERS[1]]).await;
    let user = worker_user(&Name::new(NODE).unwrap());
    let secret = password(&passwords, &user);
    let thief = etcd.client_as(Some((&user, &secret))).await;
    let root = etcd.client().await;
    for family in FAMILIES {
        let prefix = family.prefix;
        let theirs = SHARED.iter().find(|(shared, ..)| *shared == prefix);
        let theirs = theirs.map_or((false, false), |&(_, reads, writes)| (reads, writes));
        // The whole family, unless it belongs to no node.
        if prefix.ends_with('/') {
            let all = GetOptions::new().with_prefix();
            let listed = thief.clone().get(prefix, Some(all)).await;
            match theirs.0 {
                true => drop(listed.unwrap()),
                false => refused(&format!("list {prefix}"), listed),
            }
        }
        let key = |node: &str| match family.worker {
            Scope::Own(_) => format!("{prefix}{node}"),
            _ if prefix.ends_with('/') => format!("{prefix}{node}/x"),
            _ => prefix.to_owned(),
        };
        let mine = match family.worker {
            Scope::Nothing => (false, false),
            Scope::Below(a) | Scope::Own(a) | Scope::Shared(a) => (a.reads(), a.writes()),
        };
        for (node, (reads, writes)) in [(NODE, mine), (OTHERS[0], theirs), (OTHERS[1], theirs)] {
            let key = key(node);
            root.clone().put(key.as_str(), "precious", None).await.unwrap();
            try_all(&thief, &key, reads, writes).await;
            if !writes {
                let there = root.clone().get(key.as_str(), None).await.unwrap();
                assert_eq!(there.kvs()[0].value(), b"precious", "{key}");
            }
        }
    }
    others(&etcd, &thief, &root).await;
}

/// What is not about one family.
async fn others(etcd: &Etcd, thief: &Client, root: &Client) {
    let everything = GetOptions::new().with_all_keys();
    refused("list everything", thief.clone().get("", Some(everything)).await);
    let (from, to) = keys::EVERYTHING;
    refused(
        "list all of meepo",
        thief.clone().get(from, Some(GetOptions::new().with_range(to))).await,
    );
    assert!(!may_watch(thief, from, Some(to)).await, "watch all of meepo");
    for foreign in ["/", "/registry/secrets", "/zzz"] {
        try_all(thief, foreign, false, false).await;
    }
    // Nobody's lease but its own ends by it.
    let lease = root.clone().lease_grant(600, None).await.unwrap().id();
    let bound = PutOptions::new().with_lease(lease);
    root.clone().put(keys::LEADER, "{}", Some(bound)).await.unwrap();
    refused("end the leader's lease", thief.clone().lease_revoke(lease).await);
    // Users and roles are root's.
    let node = worker_user(&Name::new(NODE).unwrap());
    refused("give itself root", thief.clone().user_grant_role(node.as_str(), ROOT).await);
    let all = Permission::read_write("/").with_prefix();
    refused("widen its role", thief.clone().role_grant_permission(node.as_str(), all).await);
    refused("add a user", thief.clone().user_add("thief", "thief", None).await);
    refused("see users", thief.clone().user_list().await);
    refused("read the masters' role", thief.clone().role_get(MASTER).await);
    refused("switch it off", thief.clone().auth_disable().await);
    // And whoever has no credential has nothing.
    let nobody = etcd.client_as(None).await;
    let read = nobody.clone().get("/cron/jobs/", Some(GetOptions::new().with_prefix())).await;
    assert!(read.is_err(), "nobody reads");
    assert!(nobody.clone().put("/cron/jobs/127.0.0.2/x", "{}", None).await.is_err());
}

/// A master and a worker that etcd knows by their passwords.
async fn cluster(passwords: &Path) -> Cluster {
    let file = |user: &str| passwords.join(user).display().to_string();
    let (master, worker) = (file(MASTER), file(&worker_user(&Name::new(NODE).unwrap())));
    let worker_name = worker_user(&Name::new(NODE).unwrap());
    let mut builder = Cluster::builder().masters(0).workers(0);
    for arg in ["--lease-ttl", "2s"] {
        builder = builder.master_arg(arg).worker_arg(arg);
    }
    for (arg, of_master, of_worker) in [
        ("--etcd-user", MASTER, worker_name.as_str()),
        ("--etcd-password-file", master.as_str(), worker.as_str()),
    ] {
        builder = builder.master_arg(arg).master_arg(of_master);
        builder = builder.worker_arg(arg).worker_arg(of_worker);
    }
    builder.start().await
}

#[tokio::test]
async fn a_worker_does_all_its_work_under_its_role() {
    let dir = TestDir::new();
    let passwords = dir.path().join("passwords");
    let mut cluster = cluster(&passwords).await;
    assert_eq!(guard(cluster.etcd(), dir.path(), &[NODE]).await, passwords);
    cluster.add_master().await;
    cluster.add_worker().await;
    let api = cluster.api();
    wait_session(&api, NODE).await;
    // Schedules, claims, locks, requests, what is told of ends, and what is rerun.
    let every = "* * * * * *";
    for job in [
        json!({"name": "each", "cmd": "true", "schedule": every, "max_runs": 2}),
        json!({"name": "once", "cmd": "true", "schedule": every, "placement": "once",
               "on_node_loss": "rerun"}),
        json!({"name": "locked", "cmd": "true", "schedule": every, "lock": {"name": "door"}}),
        json!({"name": "fails", "cmd": "exit 3", "schedule": every}),
        json!({"name": "asked", "cmd": "sleep 600"}),
    ] {
        apply(&api, job).await;
    }
    for (job, state) in
        [("each", "success"), ("once", "success"), ("locked", "success"), ("fails", "failed")]
    {
        wait_runs(&api, &format!("job={job}&state={state}"), 2).await;
    }
    let kv = cluster.etcd().client().await;
    let there = async |key: String| {
        eventually(SOON, format!("{key} is there"), async || {
            let found = kv.clone().get(key.as_str(), Some(GetOptions::new().with_prefix())).await;
            let found = found.map_err(|e| e.to_string())?;
            if found.count() > 0 { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
    };
    for key in [
        format!("{}once", keys::CLAIMS),
        format!("{}{NODE}/each", keys::SPENT),
        format!("{}{NODE}/fails", keys::OUTCOMES),
        format!("{}{NODE}/each", keys::CRONIDS),
        format!("{}{NODE}", keys::NODES),
        format!("{}{NODE}", keys::HEALTH),
    ] {
        there(key).await;
    }
    // A run on request, and its end.
    let (status, body) = api.post("/v1/jobs/asked/trigger", json!({})).await;
    assert_eq!(status, 202, "{body}");
    let running = wait_runs(&api, "job=asked&state=running", 1).await;
    let id = running[0]["run_id"].as_str().unwrap().to_owned();
    cluster.cli(&["kill", &id]).await.ok();
    wait_runs(&api, "job=asked&state=killed", 1).await;
    // A task for the node, and one that is withdrawn.
    task(&api, json!({"target": NODE, "cmd": "echo done"}), "success").await;
    task(&api, json!({"queue": "q", "cmd": "exit 1", "on_failure": "fail"}), "failed").await;
    // It is drained, and takes work again.
    cluster.cli(&["node", "drain", NODE, "--wait"]).await.ok();
    cluster.cli(&["node", "undrain", NODE]).await.ok();
    let before = runs(&api, "job=locked&state=success").await.len();
    wait_runs(&api, "job=locked&state=success", before + 1).await;
    let restarted = cluster.worker(0).process();
    restarted.kill9();
    restarted.restart();
    cluster.wait_online(0).await;
    let before = runs(&api, "job=once&state=success").await.len();
    wait_runs(&api, "job=once&state=success", before + 1).await;
    for log in [cluster.worker(0).process().log(), cluster.master(0).process().log()] {
        let denied: Vec<&str> = log.lines().filter(|l| l.contains("permission denied")).collect();
        assert!(denied.is_empty(), "{denied:#?}");
    }
}

#[tokio::test]
async fn certificates_are_enough_for_masters_and_workers() {
    let builder = Cluster::builder().masters(0).workers(0).tls_everywhere();
    let mut cluster = builder.start().await;
    let pki = cluster.pki();
    let (root, thief, ca) = (pki.user("root"), pki.node(NODE), pki.ca().display().to_string());
    let [cert, key] = [root.cert, root.key].map(|path| path.display().to_string());
    let more =
        ["--etcd-ca", &ca, "--etcd-cert", &cert, "--etcd-key", &key, "--node", NODE, "--enable"];
    init_auth(cluster.etcd(), cluster.dir(), "init-auth", &more).await.ok();
    cluster.add_master().await;
    cluster.add_worker().await;
    let api = cluster.api();
    apply(&api, json!({"name": "tick", "cmd": "true", "schedule": "* * * * * *"})).await;
    wait_runs(&api, "job=tick&state=success", 1).await;
    // As root it can be called once more.
    let more = &more[..more.len() - 1];
    let again = init_auth(cluster.etcd(), cluster.dir(), "again", more).await;
    assert!(again.ok().starts_with("nothing was to be done"), "{again:?}");
    // The worker's certificate opens what its role says.
    let [cert, key] = [thief.cert, thief.key].map(|path| path.display().to_string());
    let url = cluster.etcd().urls();
    let as_thief = ["--endpoints", &url, "--cacert", &ca, "--cert", &cert, "--key", &key];
    for (n, (words, may)) in [
        (["get", "/cron/jobs/127.0.0.2/tick"], true),
        (["get", "/cron/jobs/127.0.0.3/tick"], false),
        (["get", "/meepo/jobs/tick"], false),
        (["del", "/meepo/jobs/tick"], false),
    ]
    .into_iter()
    .enumerate()
    {
        let args = [&as_thief[..], &words[..]].concat();
        let mut spec = Spec::new(&format!("thief-{n}"), "etcdctl", &args, cluster.dir());
        spec.env.push(("ETCDCTL_API".into(), "3".into()));
        let out = run(spec).await;
        assert_eq!(out.code == 0, may, "{words:?}: {out:?}");
        assert!(may || out.stderr.contains("permission denied"), "{words:?}: {out:?}");
    }
}

async fn task(api: &meepo_tests::Api, request: Value, state: &str) {
    let (status, body) = api.post("/v1/tasks", request).await;
    assert_eq!(status, 201, "{body}");
    let path = format!("/v1/tasks/{}", body["id"].as_str().unwrap());
    eventually(SOON, format!("{path} is {state}"), async || {
        let (_, task) = api.get(&path).await;
        if task["state"] == state { Ok(()) } else { Err(task.to_string()) }
    })
    .await;
}

/// Users with their roles, and roles with what they may do, as etcdctl tells them.
async fn state(etcd: &Etcd) -> Vec<String> {
    let mut all = Vec::new();
    for kind in ["user", "role"] {
        let list = etcd.ctl(&[kind, "list"]).await;
        for name in list.ok().lines() {
            all.push(format!("{kind} {}", etcd.ctl(&[kind, "get", name]).await.ok()));
        }
    }
    all
}

#[tokio::test]
async fn what_is_there_is_not_done_again_and_a_dry_run_says_it_in_commands_of_etcdctl() {
    let dir = TestDir::new();
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    [&first, &second].iter().for_each(|d| fs::create_dir(d).unwrap());
    let (one, two) = (Etcd::start(1, &first).await, Etcd::start(1, &second).await);
    let nodes = ["--node", NODE, "--node", OTHERS[0]];
    let dry = init_auth(&one, dir.path(), "dry", &[&nodes[..], &["--dry-run"]].concat()).await;
    assert!(state(&one).await.is_empty(), "a dry run changes nothing");
    let done = init_auth(&one, dir.path(), "done", &nodes).await;
    assert!(done.ok().starts_with(dry.ok()), "what is done is what was said: {done:?}");
    // The same by hand.
    let mut by_hand = Spec::new("by-hand", "sh", &["-e", "-c", dry.ok()], dir.path());
    by_hand.env.extend([
        ("ETCDCTL_API".to_owned(), "3".to_owned()),
        ("ETCDCTL_ENDPOINTS".to_owned(), two.urls()),
    ]);
    run(by_hand).await.ok();
    assert_eq!(state(&one).await, state(&two).await);
    assert!(state(&one).await.len() > 6);
    // Once more: nothing is left to do; and what was added by somebody is taken away again.
    let again = init_auth(&one, dir.path(), "again", &nodes).await;
    assert!(again.ok().starts_with("nothing was to be done"), "{again:?}");
    one.ctl(&["role", "grant-permission", "--prefix", "node:127.0.0.2", "read", "/meepo/"])
        .await
        .ok();
    let mended = init_auth(&one, dir.path(), "mended", &nodes).await;
    assert!(mended.ok().contains("revoke-permission node:127.0.0.2 /meepo/"), "{mended:?}");
    assert_eq!(state(&one).await, state(&two).await);
    // Nobody locks the door with the key inside.
    let locked = init_auth(&two, dir.path(), "locked", &["--enable", "--dry-run"]).await;
    assert_eq!(locked.code, 0, "root is there, perhaps with a password: {locked:?}");
    let third = dir.path().join("3");
    fs::create_dir(&third).unwrap();
    let three = Etcd::start(1, &third).await;
    let locked = init_auth(&three, dir.path(), "locked-3", &["--enable"]).await;
    assert_eq!(locked.code, 2, "{locked:?}");
    assert!(locked.stderr.contains("--passwords DIR"), "{locked:?}");
    assert!(state(&three).await.is_empty());
}
