//! What happens in the fleet is told: by every master, under the same ids, once, filtered,
//! to the command line, to HTTP and to gRPC; and what cannot be told is said to be missing.

mod command;
mod listener;

pub(crate) use listener::Listener;

use crate::fleet::{SOON, apply, quick, wait_session};
use etcd_client::{CompactionOptions, PutOptions, Txn, TxnOp};
use meepo_proto::v1::{self as pb, event_item, events_client::EventsClient};
use meepo_tests::{Api, Cluster, eventually};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// Everything told after `place`, up to now.
async fn told(api: &Api, query: &str, place: &str) -> Vec<Value> {
    let query = format!("follow=false&after={place}&{query}");
    Listener::open(api, &query, None).await.rest().await
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["type"].as_str().unwrap()).collect()
}

fn ids(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["id"].as_str().unwrap()).collect()
}

/// What was told, without the time at which a master saw it.
fn timeless(events: &[Value]) -> Vec<Value> {
    let mut events = events.to_vec();
    for event in &mut events {
        event.as_object_mut().unwrap().remove("at");
    }
    events
}

async fn post(api: &Api, path: &str) {
    let (status, body) = api.post(path, json!({})).await;
    assert!(status < 300, "{path}: {status} {body}");
}

#[tokio::test]
async fn every_kind_is_told() {
    let cluster = quick().workers(1).label(0, "group=web").start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    let start = Listener::open(&api, "follow=false&recent=1000", None).await.rest().await;
    for what in ["leader.elected", "node.registered", "node.online"] {
        assert!(names(&start).contains(&what), "{what} in {start:?}");
    }
    let elected = start.iter().find(|e| e["type"] == "leader.elected").unwrap();
    assert_eq!(elected["master"], api.base());
    assert!(elected["term"].as_i64().unwrap() > 0);
    let online = start.iter().find(|e| e["type"] == "node.online").unwrap();
    assert_eq!(online["labels"], json!({"group": "web"}));

    let mut all = Listener::open(&api, "", None).await;
    let from = all.place.clone();
    let job = |cmd: &str| json!({"name": "a", "cmd": cmd});
    apply(&api, job("sleep 0.4; exit 3")).await;
    // The same again is no change.
    apply(&api, job("sleep 0.4; exit 3")).await;
    post(&api, "/v1/jobs/a/pause").await;
    post(&api, "/v1/jobs/a/resume").await;
    apply(&api, job("sleep 0.4; exit 4")).await;
    let jobs = all.until("job.updated").await;
    assert_eq!(names(&jobs), ["job.created", "job.paused", "job.resumed", "job.updated"]);
    assert!(jobs.iter().all(|e| e["job"] == "a" && e["at"].is_string()));
    assert_eq!(jobs[1]["state"], "pause");

    let (_, triggered) = api.post("/v1/jobs/a/trigger", json!({})).await;
    let runs = all.until("run.ended").await;
    assert_eq!(names(&runs), ["run.started", "run.ended"]);
    for run in &runs {
        assert_eq!(run["run_id"], triggered["runs"][0]["run_id"]);
        assert_eq!((&run["job"], &run["node"]), (&json!("a"), &json!("127.0.0.2")));
    }
    assert_eq!((&runs[0]["state"], &runs[0]["code"]), (&json!("running"), &Value::Null));
    assert_eq!((&runs[1]["state"], &runs[1]["code"]), (&json!("failed"), &json!(0x101)));

    post(&api, "/v1/nodes/127.0.0.2/drain").await;
    let drained = all.until("node.drained").await;
    assert_eq!(names(&drained), ["node.draining", "node.drained"]);
    assert_eq!(api.http("DELETE", "/v1/nodes/127.0.0.2/drain", None).await.0, 200);
    all.find("node.undrained").await;
    assert_eq!(api.http("DELETE", "/v1/jobs/a", None).await.0, 200);
    all.find("job.deleted").await;

    // A worker dies in the middle of a run.
    apply(&api, json!({"name": "long", "cmd": "sleep 600"})).await;
    post(&api, "/v1/jobs/long/trigger").await;
    all.find("run.started").await;
    cluster.worker(0).process().kill9();
    let (mut away, mut offline) = (false, false);
    while !(away && offline) {
        match all.next().await["type"].as_str().unwrap() {
            "run.away" => away = true,
            "node.offline" => offline = true,
            other => panic!("{other}"),
        }
    }
    // It comes back with another label, and is forgotten.
    cluster.etcd().ctl(&["del", "/meepo/nodes/127.0.0.2"]).await.ok();
    all.find("node.forgotten").await;
    let health = |group: &str| {
        json!({"status": "Online", "version": "x", "instance": "x", "labels": {"group": group}})
            .to_string()
    };
    for group in ["web", "db"] {
        cluster.etcd().ctl(&["put", "/agent/health/10.9.9.9", &health(group)]).await.ok();
    }
    let labels = all.find("node.labels").await;
    assert_eq!((&labels["node"], &labels["labels"]), (&json!("10.9.9.9"), &json!({"group": "db"})));

    // Whoever asks later is told the same, from memory; only what is wanted is told.
    let again = told(&api, "", &from).await;
    assert_eq!(again[0], jobs[0]);
    assert!(again.iter().any(|e| e["id"] == labels["id"]));
    assert_eq!(
        names(&told(&api, "kind=job.paused,job.deleted&job=a", &from).await),
        ["job.paused", "job.deleted"]
    );
    assert_eq!(names(&told(&api, "node=10.9.*", &from).await), ["node.online", "node.labels"]);
    let runs = told(&api, "kind=run&job=lo*&node=127.0.0.?", &from).await;
    assert_eq!(names(&runs), ["run.started", "run.away"]);
    assert!(told(&api, "task=*", &from).await.is_empty());
    let (status, body) = api.get("/v1/events?kind=jobs").await;
    assert_eq!((status, &body["error"]["field"]), (400, &json!("kind")), "{body}");
    let (status, body) = api.get("/v1/events?after=yesterday").await;
    assert_eq!((status, &body["error"]["field"]), (400, &json!("after")), "{body}");
}

#[tokio::test]
async fn a_heartbeat_is_no_event() {
    let cluster = Cluster::builder().workers(0).start().await;
    let api = cluster.api();
    let mut all = Listener::open(&api, "kind=node", None).await;
    let health = |load: f64, labels: Value| {
        json!({"status": "Online", "version": "x", "instance": "x", "labels": labels,
            "facts": {"load1": load}, "work": {"running": load as u64}})
        .to_string()
    };
    for i in 0..5 {
        let value = health(f64::from(i), json!({}));
        cluster.etcd().ctl(&["put", "/agent/health/n", &value]).await.ok();
    }
    cluster.etcd().ctl(&["put", "/agent/health/n", &health(0.0, json!({"a": "b"}))]).await.ok();
    assert_eq!(names(&all.until("node.labels").await), ["node.online", "node.labels"]);
}

/// Writes the end of `n` runs, `each` a revision.
async fn runs(cluster: &Cluster, from: usize, n: usize, each: usize) {
    let mut etcd = cluster.etcd().client().await;
    let all: Vec<usize> = (from..from + n).collect();
    for some in all.chunks(each) {
        let puts: Vec<TxnOp> = some
            .iter()
            .map(|i| {
                let value = json!({"cronid": format!("01932f5e-0000-7000-8000-{i:012}"),
                    "state": "success", "code": 0, "slot": "2026-01-01T00:00:00Z"});
                let key = format!("/cron/cronid/jobs/10.0.0.9/j{i}");
                TxnOp::put(key, value.to_string(), None::<PutOptions>)
            })
            .collect();
        etcd.txn(Txn::new().and_then(puts)).await.unwrap();
    }
}

#[tokio::test]
async fn who_comes_back_at_any_master_misses_nothing_and_hears_nothing_twice() {
    let mut cluster = Cluster::builder().masters(2).workers(0).start().await;
    let apis = [cluster.master(0).api(), cluster.master(1).api()];
    let mut whole = Listener::open(&apis[0], "kind=run", None).await;
    let (start, total) = (whole.place.clone(), 300);
    let writing = runs(&cluster, 0, total, 7);
    // Meanwhile one hears a few, breaks off, and goes on at the other master.
    let hopping = async {
        let mut heard = Vec::new();
        let mut place = start.clone();
        for hop in 0.. {
            let mut at = Listener::open(&apis[hop % 2], "kind=run", Some(&place)).await;
            for _ in 0..23 {
                heard.push(at.next().await);
                if heard.len() == total {
                    return heard;
                }
            }
            place = at.place;
        }
        unreachable!()
    };
    let ((), heard) = tokio::join!(writing, hopping);
    let mut expected = Vec::new();
    while expected.len() < total {
        expected.push(whole.next().await);
    }
    assert_eq!(timeless(&heard), timeless(&expected));
    let mut different = ids(&heard);
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), total);
    // Several of one revision are told apart, and a place in its middle is kept.
    assert!(ids(&heard).iter().any(|id| id.ends_with(".6")), "{:?}", ids(&heard));

    // A master that was started later tells the same, also what happened before it began:
    // more than the revisions that it reads at its start.
    runs(&cluster, total, 2_100, 1).await;
    let late = cluster.add_master().await.api();
    let old = told(&late, "kind=run", &start).await;
    assert_eq!(old.len(), total + 2_100);
    assert_eq!(timeless(&old[..total]), timeless(&expected));
    assert!(old[0].get("at").is_none(), "nobody knows when it happened: {}", old[0]);
    // And goes over to what happens now, from the middle of a revision.
    let middle = ids(&expected).into_iter().find(|id| id.ends_with(".3")).unwrap();
    let mut on = Listener::open(&late, "kind=run", Some(middle)).await;
    let place = expected.iter().position(|e| e["id"] == middle).unwrap();
    runs(&cluster, 5_000, 1, 1).await;
    for event in &old[place + 1..] {
        assert_eq!(timeless(&[on.next().await]), timeless(std::slice::from_ref(event)));
    }
    assert_eq!(on.next().await["job"], "j5000");
}

#[tokio::test]
async fn what_is_compacted_away_is_a_gap() {
    let mut cluster = Cluster::builder().workers(0).start().await;
    let api = cluster.api();
    let start = Listener::open(&api, "", None).await.place.clone();
    runs(&cluster, 0, 50, 1).await;
    let known = told(&api, "kind=run", &start).await;
    assert_eq!(known.len(), 50);
    let id = ids(&known)[29].to_owned();
    let revision: i64 = id.split('.').next().unwrap().parse().unwrap();
    let mut etcd = cluster.etcd().client().await;
    etcd.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();
    // Who was there has it in memory and needs no history.
    assert_eq!(ids(&told(&api, "kind=run", &start).await), ids(&known));
    // Another begins after that: it says what is missing, whatever the filter, and goes on.
    let late = cluster.add_master().await.api();
    let told_late = told(&late, "kind=run", &start).await;
    assert_eq!(told_late[0]["type"], "gap", "{told_late:?}");
    assert_eq!(
        (&told_late[0]["after"], &told_late[0]["id"]),
        (&json!(start), &json!(format!("{revision}")))
    );
    assert!(told_late[0]["message"].as_str().unwrap().contains("compacted"));
    assert_eq!(ids(&told_late[1..]), ids(&known[30..]));
    // What comes behind the compaction is whole.
    assert_eq!(ids(&told(&late, "kind=run", ids(&known)[30]).await), ids(&known[31..]));
    // An id of another etcd.
    let mut future = Listener::open(&late, "", Some("999999999.4")).await;
    let gap = future.next().await;
    assert_eq!((&gap["type"], &gap["after"]), (&json!("gap"), &json!("999999999.4")));
    runs(&cluster, 100, 1, 1).await;
    assert_eq!(future.find("run.ended").await["job"], "j100");
}

#[tokio::test]
async fn a_slow_reader_is_cut_off_and_goes_on_where_it_was() {
    let cluster = Cluster::builder().workers(0).start().await;
    let api = cluster.api();
    let address = api.base().strip_prefix("http://").unwrap().to_owned();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow: TcpStream = socket.connect(address.parse().unwrap()).await.unwrap();
    let request =
        format!("GET /v1/events?kind=run HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    slow.write_all(request.as_bytes()).await.unwrap();
    let listeners = |n: &'static str| {
        let api = &api;
        eventually(SOON, format!("{n} listen"), async move || {
            let metrics = api.get("/metrics").await.1;
            let metrics = metrics.as_str().unwrap_or_default();
            match metrics.contains(&format!("meepo_master_event_listeners {n}\n")) {
                true => Ok(metrics.contains("meepo_master_event_listeners_cut_total 1\n")),
                false => Err(metrics.lines().filter(|l| l.contains("event")).collect()),
            }
        })
    };
    assert!(!listeners("1").await);
    // Another one that reads is not held up.
    let mut quick = Listener::open(&api, "kind=run", None).await;
    let total = 50_000;
    let reading = async {
        for i in 0..total {
            let event = quick.next().await;
            assert_eq!(event["job"], format!("j{i}"));
        }
    };
    tokio::join!(runs(&cluster, 0, total, 125), reading);
    assert!(listeners("1").await, "the slow one was cut off, and counted");
    // It reads what it was sent, and the last it reads says how to go on.
    let mut raw = Vec::new();
    timeout(SOON, slow.read_to_end(&mut raw)).await.unwrap().unwrap();
    let text = String::from_utf8(raw).unwrap();
    let sent = text.matches("event: run").count();
    assert!(sent > 100 && sent < total, "{sent}");
    let end = text.rsplit("event: error").next().unwrap();
    assert!(end.contains("too slow") && end.contains("\"retry\":true"), "{end}");
    let place = end.split("after=").nth(1).unwrap().split(' ').next().unwrap();
    let mut on = Listener::open(&api, "kind=run", Some(place)).await;
    assert_eq!(on.next().await["job"], format!("j{sent}"));
}

#[tokio::test]
async fn listeners_are_bounded() {
    let cluster = Cluster::builder().workers(0).start().await;
    let api = cluster.api();
    let mut open = Vec::new();
    for _ in 0..256 {
        open.push(Listener::open(&api, "", None).await);
    }
    let (status, body) = api.get("/v1/events").await;
    assert_eq!((status, &body["error"]["name"]), (429, &json!("busy")), "{body}");
    open.pop();
    eventually(SOON, "there is a place again", async || {
        let response = api.stream("/v1/events").await;
        if response.status() == 200 { Ok(()) } else { Err(response.status().to_string()) }
    })
    .await;
}

#[tokio::test]
async fn grpc_tells_the_same() {
    let cluster = Cluster::builder().workers(0).start().await;
    let api = cluster.api();
    let mut http = Listener::open(&api, "", None).await;
    let address = cluster.master(0).grpc_url();
    let mut client = EventsClient::connect(address).await.unwrap();
    let ask = |after: &str, no_follow| pb::WatchEventsRequest {
        kind: "job,run".into(),
        after: after.into(),
        no_follow,
        ..Default::default()
    };
    let mut stream = client.watch(ask(&http.place, false)).await.unwrap().into_inner();
    let mut next = async || loop {
        let item = timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap().item.unwrap();
        if let event_item::Item::Event(event) = item {
            return event;
        }
    };
    let from = http.place.clone();
    apply(&api, json!({"name": "a", "cmd": "true"})).await;
    runs(&cluster, 0, 1, 1).await;
    for want in [http.find("job.created").await, http.find("run.ended").await] {
        let got = next().await;
        assert_eq!(
            (want["id"].as_str(), want["type"].as_str()),
            (Some(got.id.as_str()), Some(got.r#type.as_str()))
        );
        assert_eq!(want["job"], got.job);
        assert_eq!(want["code"].as_u64(), got.code.map(u64::from));
    }
    let mut all = client.watch(ask(&from, true)).await.unwrap().into_inner();
    let mut items = Vec::new();
    while let Some(item) = all.message().await.unwrap() {
        items.push(item.item.unwrap());
    }
    assert_eq!(items.len(), 4, "where it begins, two events, where it ends: {items:?}");
    let refused = client.watch(ask("x", false)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}
