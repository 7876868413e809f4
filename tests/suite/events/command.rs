//! `meepo events`.

use super::{runs, *};
use meepo_tests::{Process, Spec, binary};

fn follow(cluster: &Cluster, name: &str, url: &str, args: &[&str]) -> Process {
    let mut spec = Spec::new(name, binary("meepo"), &["events", "-f", "-o", "json"], cluster.dir());
    spec.args.extend(args.iter().map(|a| (*a).to_owned()));
    spec.env.push(("MEEPO_MASTER".into(), url.into()));
    spec.split_output = true;
    Process::start(spec)
}

fn lines(process: &Process) -> Vec<Value> {
    let text = process.stdout();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

async fn heard(process: &Process, n: usize) -> Vec<Value> {
    eventually(SOON, format!("{n} events are printed"), async || {
        let lines = lines(process);
        if lines.len() >= n { Ok(lines) } else { Err(format!("{} {}", lines.len(), process.log())) }
    })
    .await
}

/// Hands connections on to whichever of the masters is there, as a proxy in front of them.
async fn proxy(masters: Vec<String>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            let masters = masters.clone();
            tokio::spawn(async move {
                for master in masters {
                    if let Ok(mut to) = TcpStream::connect(&master).await {
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                        return;
                    }
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn the_command_goes_on_at_another_master() {
    let cluster = quick().masters(2).workers(0).start().await;
    let address =
        |i: usize| cluster.master(i).api().base().strip_prefix("http://").unwrap().to_owned();
    let behind = proxy(vec![address(0), address(1)]).await;
    let follower = follow(&cluster, "follow", &behind, &["--kind", "run", "-n", "3"]);
    // It has begun when it prints.
    let begun = eventually(SOON, "it listens", async || {
        let before = lines(&follower).len();
        runs(&cluster, 0, 1, 1).await;
        if before > 0 { Ok(()) } else { Err(follower.log()) }
    });
    begun.await;
    let before = lines(&follower).len();
    runs(&cluster, 10, 20, 3).await;
    heard(&follower, before).await;
    cluster.master(0).process().kill9();
    runs(&cluster, 100, 20, 3).await;
    let expected: Vec<String> = (10..30).chain(100..120).map(|i| format!("j{i}")).collect();
    let all = eventually(SOON, "everything is printed", async || {
        let jobs: Vec<String> = lines(&follower)
            .iter()
            .map(|e| e["job"].as_str().unwrap().to_owned())
            .filter(|j| j != "j0")
            .collect();
        if jobs.len() >= expected.len() {
            Ok(jobs)
        } else {
            Err(format!("{jobs:?} {}", follower.log()))
        }
    })
    .await;
    assert_eq!(all, expected, "nothing lost, nothing doubled");
    assert!(follower.log().contains("connected again"), "{}", follower.log());
    assert!(follower.is_running());
}

#[tokio::test]
async fn the_command_prints_what_was_and_ends() {
    let cluster = Cluster::builder().workers(1).start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    apply(&api, json!({"name": "a", "cmd": "exit 3"})).await;
    let mut all = Listener::open(&api, "kind=run", None).await;
    post(&api, "/v1/jobs/a/trigger").await;
    let ended = all.find("run.ended").await;
    let table = cluster.cli(&["events"]).await;
    let table = table.ok();
    for want in ["leader.elected", "node.online      127.0.0.2", "job.created      a"] {
        assert!(table.contains(want), "{want} in\n{table}");
    }
    let last = table.lines().last().unwrap();
    assert!(last.contains("run.ended        a on 127.0.0.2"), "{table}");
    assert!(last.contains("failed (exit_status)"), "{table}");
    let id = ended["id"].as_str().unwrap();
    assert_eq!(cluster.cli(&["events", "--after", id]).await.ok(), "");
    let one = cluster.cli(&["events", "-n", "1", "-o", "json"]).await;
    assert_eq!(one.json(), ended);
    let bad = cluster.cli(&["events", "--kind", "jobs"]).await;
    assert_eq!(bad.code, 2);
    assert!(
        bad.stderr.contains("kind: no events are called \"jobs\"; expected job, task, run"),
        "{bad:?}"
    );
}
