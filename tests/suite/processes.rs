//! What runs may use, and ends that leave nothing behind.

use crate::{
    fleet::{SOON, alive},
    shared::{apply, trigger, wait_run},
};
use meepo_tests::{Cluster, eventually};
use serde_json::json;

#[tokio::test]
async fn a_timeout_ends_daemons_and_limits_the_host_lacks_start_nothing() {
    // No control group: a directory like any other.
    let root = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder()
        .worker_arg("--cgroup-root")
        .worker_arg(root.path().to_str().unwrap())
        .start()
        .await;
    let api = cluster.api();
    let (file, marker) = (root.path().join("daemon.pid"), root.path().join("marker"));
    // Forks twice, leads a session, has closed its pipes, ignores every polite signal.
    let cmd = format!(
        "(setsid sh -c 'trap \"\" INT TERM HUP; umask; nice; ulimit -n; echo $$ > {0}.new; \
         mv {0}.new {0}; while :; do sleep 1; done' </dev/null >{0}.limits 2>&1 &); sleep 600",
        file.display()
    );
    apply(
        &api,
        json!({"name": "daemon", "cmd": cmd, "timeout": "3s", "kill_plan": ["INT 10s"],
               "umask": "0027", "nice": 3, "rlimits": {"nofile": "200"}, "session": true}),
    )
    .await;
    let run = trigger(&api, "daemon").await;
    let pid: u64 = eventually(SOON, "the daemon runs", async || {
        let text = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
        text.trim().parse().map_err(|_| text)
    })
    .await;
    let ended = wait_run(&api, &run, &["timeout"]).await;
    assert!(!alive(pid), "the daemon outlived its run: {ended}");
    assert_eq!((&ended["code"], &ended["message"]), (&json!(0x0100), &json!("ran longer than 3s")));
    let limits = std::fs::read_to_string(file.with_extension("pid.limits")).unwrap();
    assert_eq!(limits, "0027\n3\n200\n");

    let cmd = format!("touch {}", marker.display());
    apply(&api, json!({"name": "limited", "cmd": cmd, "cgroup": {"memory": "64M"}})).await;
    let refused = wait_run(&api, &trigger(&api, "limited").await, &["failed"]).await;
    assert_eq!(refused["code"], 0x0105, "{refused}");
    let message = refused["message"].as_str().unwrap();
    let place = root.path().to_str().unwrap();
    assert!(message.contains("control group") && message.contains(place), "{message}");
    assert!(!marker.exists());
}
