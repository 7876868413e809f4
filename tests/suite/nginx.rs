//! The shipped configuration of nginx, in a real nginx, before three masters: only its
//! addresses are replaced. Without nginx these tests fail.

use crate::{
    events::Listener,
    failover::wait_leader,
    fleet::{SOON, apply, quick, wait_session},
    shared::{gated, open},
};
use meepo_proto::v1::{
    self as pb, event_item, events_client::EventsClient, jobs_client::JobsClient,
    nodes_client::NodesClient,
};
use meepo_tests::{
    Api, Cluster, Process, Spec, TestDir, eventually, free_port, millis, secs, workspace_root,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Instant,
};
use tokio::{
    io::AsyncReadExt,
    net::TcpListener,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::{Code, transport::Channel};

/// Addresses of three masters, without a scheme.
type Addresses = [String; 3];

struct Nginx {
    process: Process,
    api: Api,
    grpc: String,
}

/// `MEEPO_TEST_NGINX`, or nginx on the `PATH`, or where Debian has it, which is on root's
/// `PATH` only.
fn program() -> PathBuf {
    if let Some(given) = std::env::var_os("MEEPO_TEST_NGINX") {
        return given.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = folders.map(|dir| dir.join("nginx")).find(|file| file.is_file());
    found.expect("this test needs nginx: run `scripts/install-deps.sh test`")
}

/// `text` with `new` in place of `old`, which must be there exactly once.
fn put(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old:?} in deploy/nginx/meepo.conf");
    text.replace(old, new)
}

impl Nginx {
    /// The shipped file, with these masters behind it, changed once more by `edit`.
    async fn start(
        dir: &Path,
        http: &Addresses,
        grpc: &Addresses,
        edit: impl Fn(String) -> String,
    ) -> Self {
        let shipped = fs::read_to_string(workspace_root().join("deploy/nginx/meepo.conf")).unwrap();
        for attempt in 1..=5 {
            let (http_port, grpc_port) = (free_port(), free_port());
            let mut text = edit(shipped.clone());
            for i in 0..3 {
                text = put(&text, &format!("10.0.0.1{}:7600", i + 1), &http[i]);
                text = put(&text, &format!("10.0.0.1{}:7601", i + 1), &grpc[i]);
            }
            text = put(&text, "listen 7600;", &format!("listen 127.0.0.1:{http_port};"));
            text =
                put(&text, "listen 7601 http2;", &format!("listen 127.0.0.1:{grpc_port} http2;"));
            let name = format!("nginx-{attempt}");
            let home = dir.join(&name);
            fs::create_dir(&home).unwrap();
            fs::write(home.join("meepo.conf"), text).unwrap();
            let main = home.join("nginx.conf");
            fs::write(&main, frame(&home)).unwrap();
            let (main, prefix) = (main.display().to_string(), home.display().to_string());
            let args = ["-p", &prefix, "-c", &main, "-e", "stderr"];
            let process = Process::start(Spec::new(&name, program(), &args, dir));
            let up = eventually(SOON, "nginx is up, or ends", async || {
                let ended = !process.is_running();
                let log = process.log();
                if ended {
                    assert!(log.contains("ddress already in use"), "nginx does not start: {log}");
                    return Ok(false);
                }
                let up = log.matches("start worker process ").count() == 2;
                if up { Ok(true) } else { Err("not yet".to_owned()) }
            })
            .await;
            if up {
                let api = Api::new(&format!("http://127.0.0.1:{http_port}"));
                return Self { process, api, grpc: format!("http://127.0.0.1:{grpc_port}") };
            }
        }
        panic!("nginx lost its ports to other processes five times");
    }

    async fn before(cluster: &Cluster, edit: impl Fn(String) -> String) -> Self {
        let bare = |url: &str| url.strip_prefix("http://").unwrap().to_owned();
        let http = [0, 1, 2].map(|i| bare(cluster.master(i).api().base()));
        let grpc = [0, 1, 2].map(|i| bare(&cluster.master(i).grpc_url()));
        Self::start(cluster.dir(), &http, &grpc, edit).await
    }

    fn channel(&self) -> Channel {
        Channel::from_shared(self.grpc.clone()).unwrap().connect_lazy()
    }
}

/// What Debian has around the file: two processes, nothing outside of `home`.
fn frame(home: &Path) -> String {
    let home = home.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {home}/{kind};\n"))
        .collect();
    // Started by root, its processes would be somebody who may not enter the folder.
    let user = if nix::unistd::geteuid().is_root() { "user root root;" } else { "" };
    format!(
        "{user}\ndaemon off;\nworker_processes 2;\npid {home}/pid;\nerror_log stderr notice;\n\
         events {{ worker_connections 256; }}\n\
         http {{\naccess_log off;\n{temp}include {home}/meepo.conf;\n}}\n"
    )
}

/// Three that take a request and break off; the first lines of what they took.
async fn breaking(taken: &Arc<Mutex<Vec<String>>>) -> (Addresses, Vec<JoinHandle<()>>) {
    let (mut addresses, mut tasks) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap().to_string());
        let taken = taken.clone();
        tasks.push(tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let mut bytes = vec![0; 4096];
                let n = connection.read(&mut bytes).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
                if n > 0 {
                    taken.lock().unwrap().push(text.lines().next().unwrap_or("").to_owned());
                }
            }
        }));
    }
    (addresses.try_into().unwrap(), tasks)
}

#[tokio::test]
async fn what_may_have_been_done_is_not_sent_again() {
    let (dir, taken) = (TestDir::new(), Arc::new(Mutex::new(Vec::new())));
    let (http, _http) = breaking(&taken).await;
    let (grpc, _grpc) = breaking(&taken).await;
    let nginx = Nginx::start(dir.path(), &http, &grpc, |text| text).await;
    let took = || std::mem::take(&mut *taken.lock().unwrap());

    // Reading does no harm: everybody is asked.
    let (status, body) = nginx.api.get("/v1/jobs").await;
    assert_eq!((status, &body["error"]["name"]), (502, &json!("unknown_outcome")), "{body}");
    assert_eq!(took().len(), 3);
    for path in ["/v1/exec", "/v1/exec/stream", "/v1/jobs/a/trigger"] {
        let (status, body) = nginx.api.post(path, json!({})).await;
        assert_eq!((status, &body["error"]["name"]), (502, &json!("unknown_outcome")), "{body}");
        assert_eq!(took(), [format!("POST {path} HTTP/1.1")]);
    }
    // Each has failed twice by now, and is left alone for a while.
    let (status, _) = nginx.api.get("/v1/jobs").await;
    assert_eq!((status, took().len()), (502, 0));
    assert!(nginx.process.log().contains("no live upstreams"));

    for _ in 0..3 {
        let answer = NodesClient::new(nginx.channel()).list(pb::ListNodesRequest::default()).await;
        assert_eq!(answer.unwrap_err().code(), Code::Unavailable);
        assert_eq!(took().len(), 1);
    }
}

/// A request whose answer comes in pieces; the next piece, or nothing at the end.
async fn piece(response: &mut reqwest::Response) -> Option<String> {
    let bytes = timeout(SOON, response.chunk()).await.expect("something comes").unwrap()?;
    Some(String::from_utf8(bytes.to_vec()).unwrap())
}

/// All that the document calls a stream is in the place for streams, which `edit` marks.
async fn streams_are_known(api: &Api) {
    let document = serde_json::to_value(meepo_master::http::document()).unwrap();
    let mut streams = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let content = &operation["responses"]["200"]["content"];
            let kinds = ["application/x-ndjson", "text/event-stream"];
            if !kinds.iter().any(|kind| content.get(kind).is_some()) {
                continue;
            }
            streams += 1;
            let url = format!("{}{}", api.base(), path.replace("{id}", "x"));
            let method = method.to_uppercase().parse().unwrap();
            let answer = reqwest::Client::new().request(method, &url).send().await.unwrap();
            assert!(answer.headers().contains_key("x-unbuffered"), "{path} is no stream to nginx");
        }
    }
    assert!(streams >= 4, "{streams}");
}

/// The ids of the ends of runs, as they were heard, coming back whenever the stream breaks.
#[derive(Default)]
struct Heard {
    runs: Mutex<Vec<String>>,
    breaks: Mutex<usize>,
}

async fn hear(api: Api, mut listener: Listener, heard: Arc<Heard>) {
    loop {
        while let Some(event) = listener.next_unless_broken().await {
            if event["type"] == "run.ended" && event["job"] == "mark" {
                heard.runs.lock().unwrap().push(event["id"].as_str().unwrap().to_owned());
            }
        }
        *heard.breaks.lock().unwrap() += 1;
        listener = Listener::open(&api, "kind=run", Some(&listener.place.clone())).await;
    }
}

fn lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_three_masters_outlive_the_leader() {
    let cluster = quick().masters(3).workers(1).start().await;
    let nginx = Nginx::before(&cluster, |text| {
        let off = "proxy_buffering off;";
        put(&text, off, &format!("{off} add_header X-Unbuffered yes always;"))
    })
    .await;
    let (api, node) = (nginx.api.clone(), cluster.worker(0).node());
    wait_session(&api, node).await;
    let file = cluster.dir().join("runs");
    let cmd = format!("echo $MEEPO_RUN_ID >> {}", file.display());
    apply(&api, json!({"name": "mark", "cmd": cmd, "executor": "sh", "concurrency": "allow"}))
        .await;
    let (status, job) = api.get("/v1/jobs/mark").await;
    assert_eq!((status, &job["name"]), (200, &json!("mark")), "{job}");
    assert_eq!(api.get("/metrics").await.0, 404);
    streams_are_known(&api).await;

    // A command is heard while it runs. The quotes are gone from what it writes.
    let gate = cluster.dir().join("gate");
    let body = json!({"target": node, "cmd": gated(&gate, "fi''rst", "la''st")});
    let url = format!("{}/v1/exec/stream", api.base());
    let mut response = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
    let mut text = String::new();
    while !text.contains("first") {
        text += &piece(&mut response).await.expect("the stream goes on");
    }
    open(&gate);
    while let Some(more) = piece(&mut response).await {
        text += &more;
    }
    assert!(text.contains("last"), "{text}");

    // nginx goes from one to the next: one listener is at each master.
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(Listener::open(&api, "", None).await);
    }
    let channel = nginx.channel();
    let watch = pb::WatchEventsRequest { kind: "job".into(), ..Default::default() };
    let watching = EventsClient::new(channel.clone()).watch(watch).await;
    let mut watching = watching.unwrap().into_inner();
    let began = Instant::now();
    apply(&api, json!({"name": "other", "cmd": "true"})).await;
    for listener in &mut listeners {
        assert_eq!(listener.find("job.created").await["job"], "other");
    }
    loop {
        let item = timeout(SOON, watching.message()).await.unwrap().unwrap().unwrap().item.unwrap();
        if let event_item::Item::Event(event) = item {
            assert_eq!((&*event.r#type, &*event.job), ("job.created", "other"));
            break;
        }
    }
    assert!(began.elapsed() < secs(3), "events took {:?}", began.elapsed());
    let name = || pb::JobName { name: "mark".into(), tree: String::new() };
    JobsClient::new(channel.clone()).get(name()).await.unwrap();

    // Requests flow, and the leader dies.
    let heard: Vec<Arc<Heard>> = listeners.iter().map(|_| Arc::default()).collect();
    let hearing: Vec<JoinHandle<()>> = listeners
        .into_iter()
        .zip(&heard)
        .map(|(listener, heard)| tokio::spawn(hear(api.clone(), listener, heard.clone())))
        .collect();
    let (stop, posted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let reading = tokio::spawn({
        let (api, stop) = (api.clone(), stop.clone());
        async move {
            let mut n = 0;
            while !stop.load(SeqCst) {
                let (status, body) = api.get("/v1/jobs/mark").await;
                assert_eq!(status, 200, "{body}");
                n += 1;
                sleep(millis(20)).await;
            }
            n
        }
    });
    let posting = tokio::spawn({
        let (api, stop, posted) = (api.clone(), stop.clone(), posted.clone());
        async move {
            while !stop.load(SeqCst) {
                let answer = api.post("/v1/jobs/mark/trigger", json!({})).await;
                posted.lock().unwrap().push(answer);
                sleep(millis(40)).await;
            }
        }
    });
    let accepted = || -> Vec<String> {
        let posted = posted.lock().unwrap();
        let runs = posted.iter().filter(|(status, _)| *status == 202);
        runs.map(|(_, body): &(u16, Value)| body["runs"][0]["run_id"].as_str().unwrap().to_owned())
            .collect()
    };
    let flowing = async |more: usize| {
        let want = accepted().len() + more;
        eventually(SOON, format!("{more} more triggers are accepted"), async || {
            let now = accepted().len();
            if now >= want { Ok(()) } else { Err(format!("{} are missing", want - now)) }
        })
        .await;
    };
    flowing(10).await;
    let (leader, term) = wait_leader(&cluster, 0).await;
    cluster.master(leader).process().kill9();
    flowing(5).await;
    wait_leader(&cluster, term).await;
    flowing(10).await;
    // Synchronous commands and gRPC, too, on the connections that are there.
    wait_session(&api, node).await;
    JobsClient::new(channel).get(name()).await.unwrap();
    stop.store(true, SeqCst);
    assert!(reading.await.unwrap() > 20);
    posting.await.unwrap();

    for (status, body) in posted.lock().unwrap().iter().filter(|(status, _)| *status != 202) {
        assert!(matches!(status, 502..=504), "{status} {body}");
        assert!(body["error"]["name"].is_string(), "{status} {body}");
    }
    let accepted = accepted();
    // Two listeners were never cut off: they say what there was to hear.
    let whole = eventually(SOON, "all has run, and all have heard the same", async || {
        let ran = lines(&file);
        let missing = accepted.iter().filter(|id| !ran.contains(id)).count();
        let told: Vec<Vec<String>> = heard.iter().map(|h| h.runs.lock().unwrap().clone()).collect();
        if missing == 0 && told.iter().all(|t| *t == told[0]) {
            return Ok(told[0].clone());
        }
        Err(format!("{missing} have not run; heard: {:?}", told.iter().map(Vec::len)))
    })
    .await;
    let mut once = whole.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), whole.len(), "an event was heard twice");
    assert!(whole.len() > 5, "{whole:?}");
    let mut ran = lines(&file);
    let all = ran.len();
    ran.dedup();
    assert_eq!(ran.len(), all, "a run ran twice");
    let breaks: Vec<usize> = heard.iter().map(|heard| *heard.breaks.lock().unwrap()).collect();
    assert_eq!(breaks.iter().sum::<usize>(), 1, "one listener was at the leader: {breaks:?}");
    for task in hearing {
        assert!(!task.is_finished(), "a listener ended");
        task.abort();
    }
}
