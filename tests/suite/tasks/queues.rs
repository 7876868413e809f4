//! Queues: who is next, who gets it, and what happens to what fails.

use super::{SOON, act, gated, get, noted, put, runs_by_part, wait, wait_noted, wait_part};
use jiff::Timestamp;
use meepo_tests::{Cluster, eventually};
use serde_json::{Value, json};
use std::fs;

#[tokio::test]
async fn idle_workers_share_a_queue_and_each_part_runs_once() {
    let cluster =
        Cluster::builder().workers(3).worker_arg("--task-slots").worker_arg("2").start().await;
    let api = cluster.api();
    let file = cluster.dir().join("ran");
    let gate = cluster.dir().join("gate");
    let cmd = gated(&file, &gate);
    let items: Vec<_> = (0..30).map(|_| json!({"cmd": cmd})).collect();
    let id = put(&api, json!({"queue": "q", "commands": items})).await;
    // Six slots: no more run at once, and each worker has two.
    let first = wait_noted(&file, 6).await;
    for node in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        assert_eq!(first.iter().filter(|[_, _, n]| n == node).count(), 2, "{first:?}");
    }
    let task = get(&api, &id).await;
    assert_eq!((&task["counts"]["reserved"], &task["counts"]["ready"]), (&json!(6), &json!(24)));
    assert_eq!(noted(&file).len(), 6);
    fs::write(&gate, "").unwrap();
    wait(&api, &id, "success").await;
    let runs = runs_by_part(&file);
    assert!(runs.len() == 30 && runs.values().all(|n| *n == 1), "{runs:?}");
}

#[tokio::test]
async fn the_smaller_priority_goes_first_and_a_delay_is_kept() {
    let cluster = Cluster::builder().worker_arg("--task-slots").worker_arg("1").start().await;
    let api = cluster.api();
    let (file, gate) = (cluster.dir().join("ran"), cluster.dir().join("gate"));
    let cmd = gated(&file, &gate);
    put(&api, json!({"queue": "q", "cmd": cmd})).await;
    wait_noted(&file, 1).await;
    // The only slot is taken: these wait, and go by priority, then by age.
    let order = cluster.dir().join("order");
    let note = |what: &str| format!("echo {what} >> {}", order.display());
    for (what, priority) in [("late", 2000), ("usual", 1024), ("usual2", 1024), ("first", 1)] {
        put(&api, json!({"queue": "q", "cmd": note(what), "priority": priority})).await;
    }
    // When it is due its priority is the first: on a busy machine before others are done.
    let begun = cluster.dir().join("begun");
    let cmd = format!("date +%s%3N > {}", begun.display());
    let put_at = Timestamp::now().as_millisecond();
    let later = json!({"queue": "q", "cmd": cmd, "priority": 0, "delay": "2s"});
    let delayed = put(&api, later).await;
    assert_eq!(wait_part(&api, &delayed, 1, "delayed").await["attempt"], 0);
    fs::write(&gate, "").unwrap();
    wait(&api, &delayed, "success").await;
    let begun: i64 = fs::read_to_string(&begun).unwrap().trim().parse().unwrap();
    assert!(begun >= put_at + 2000, "{begun} is too early for {put_at}");
    eventually(SOON, "all have run", async || {
        let ran = fs::read_to_string(&order).unwrap_or_default();
        let ran: Vec<&str> = ran.lines().collect();
        if ran == ["first", "usual", "usual2", "late"] { Ok(()) } else { Err(format!("{ran:?}")) }
    })
    .await;
}

#[tokio::test]
async fn what_fails_is_tried_again_buried_and_kicked() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let (file, good) = (cluster.dir().join("ran"), cluster.dir().join("good"));
    let cmd = format!(
        "echo \"$MEEPO_JOB $MEEPO_ATTEMPT x\" >> {}; [ -e {} ]",
        file.display(),
        good.display()
    );
    let retry = json!({"max": 2, "delay": "100ms"});
    let id = put(&api, json!({"queue": "q", "cmd": cmd, "retry": retry})).await;
    let buried = wait(&api, &id, "buried").await;
    let part = &buried["parts"][0];
    assert_eq!((&part["attempt"], &part["outcome"]["exit_code"]), (&json!(3), &json!(1)), "{part}");
    assert_eq!(part["runs"].as_array().unwrap().len(), 3);
    let waited = cluster.cli(&["task", "wait", &id]).await;
    assert_eq!(
        (waited.code, waited.stdout.contains("buried: exit status 1")),
        (1, true),
        "{waited:?}"
    );
    fs::write(&good, "").unwrap();
    let (status, body) = act(&api, &id, "kick").await;
    assert_eq!((status, &body["changed"]), (200, &json!(1)), "{body}");
    wait(&api, &id, "success").await;
    let attempts: Vec<String> = noted(&file).into_iter().map(|[_, attempt, _]| attempt).collect();
    assert_eq!(attempts, ["1", "2", "3", "4"]);
    // Without retries a failure is the end; a second task is buried and given up.
    let fails = put(&api, json!({"queue": "q", "cmd": "exit 5"})).await;
    assert_eq!(wait(&api, &fails, "failed").await["parts"][0]["outcome"]["exit_code"], 5);
    let lost = put(&api, json!({"queue": "q", "cmd": "exit 5", "on_failure": "bury"})).await;
    wait(&api, &lost, "buried").await;
    assert_eq!(act(&api, &lost, "touch").await.0, 409);
    assert_eq!(act(&api, &lost, "delete").await.0, 200);
    wait(&api, &lost, "failed").await;
}

#[tokio::test]
async fn a_worker_ends_what_overruns_unless_it_is_touched() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let over = put(&api, json!({"queue": "q", "cmd": "sleep 600", "ttr": "1s"})).await;
    let touched = put(&api, json!({"queue": "q", "cmd": "sleep 3.5", "ttr": "2s"})).await;
    wait_part(&api, &touched, 1, "reserved").await;
    let task = wait(&api, &over, "failed").await;
    let outcome = &task["parts"][0]["outcome"];
    assert_eq!(
        (&outcome["state"], &outcome["code"]),
        (&json!("timeout"), &json!(0x0100)),
        "{task}"
    );
    // It has had more than half of its time by now.
    let (status, body) = act(&api, &touched, "touch").await;
    assert_eq!(status, 200, "{body}");
    let done = eventually(SOON, "the touched one ends", async || {
        let task = get(&api, &touched).await;
        // Each touch gives it the whole two seconds again.
        if task["state"] == "running" {
            let _ = act(&api, &touched, "touch").await;
        }
        let over = task["state"] == "success" || task["state"] == "failed";
        if over { Ok(task) } else { Err(task.to_string()) }
    })
    .await;
    assert_eq!(done["state"], "success", "{done}");
}

#[tokio::test]
async fn an_idempotency_key_makes_one_task_of_many_requests() {
    let cluster = Cluster::builder().masters(2).start().await;
    let file = cluster.dir().join("ran");
    let cmd = format!("echo \"$MEEPO_JOB 1 x\" >> {}", file.display());
    let request = json!({"queue": "q", "cmd": cmd, "key": "once-2026"});
    let (one, two) = (cluster.master(0).api(), cluster.master(1).api());
    let asked = (0..10).map(|n| {
        let (api, request) = (if n % 2 == 0 { &one } else { &two }, request.clone());
        async move { api.post("/v1/tasks", request).await }
    });
    let answers: Vec<(u16, Value)> = futures::future::join_all(asked).await;
    let id = answers[0].1["id"].as_str().unwrap();
    assert!(answers.iter().all(|(_, b)| b["id"] == id), "{answers:?}");
    assert_eq!(answers.iter().filter(|(s, _)| *s == 201).count(), 1, "{answers:?}");
    wait(&one, id, "success").await;
    // Also when it is over; and another request is refused.
    let (status, again) = two.post("/v1/tasks", request.clone()).await;
    assert_eq!((status, again["id"].as_str()), (200, Some(id)), "{again}");
    let mut other = request;
    other["cmd"] = json!("false");
    let (status, body) = one.post("/v1/tasks", other).await;
    assert_eq!(status, 409, "{body}");
    assert_eq!(noted(&file).len(), 1);
}

#[tokio::test]
async fn tasks_are_listed_newest_first_over_etcd_and_the_log_store() {
    let cluster = Cluster::builder().start().await;
    let api = cluster.api();
    let mut ids = Vec::new();
    for n in 0..7 {
        let request = match n % 2 {
            0 => json!({"queue": "done", "cmd": "true"}),
            _ => json!({"queue": "waits", "cmd": "true", "delay": "1h"}),
        };
        ids.push(put(&api, request).await);
    }
    for id in ids.iter().step_by(2) {
        wait(&api, id, "success").await;
    }
    ids.reverse();
    let list = async |query: String| {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let (status, page) = api.get(&format!("/v1/tasks?limit=2&{query}{cursor}")).await;
            assert_eq!(status, 200, "{page}");
            for task in page["tasks"].as_array().unwrap() {
                assert!(task["parts"].is_null());
                all.push(task["id"].as_str().unwrap().to_owned());
            }
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    };
    assert_eq!(list(String::new()).await, ids);
    let odd: Vec<_> = ids.iter().step_by(2).cloned().collect();
    let even: Vec<_> = ids.iter().skip(1).step_by(2).cloned().collect();
    assert_eq!(list("queue=done".into()).await, odd);
    assert_eq!(list("state=waiting".into()).await, even);
    assert_eq!(list("state=success,failed".into()).await, odd);
    assert_eq!(api.get("/v1/tasks?cursor=x").await.0, 400);
    assert_eq!(api.get("/v1/tasks?state=x").await.0, 400);
}
