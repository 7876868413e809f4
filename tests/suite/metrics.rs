//! What masters and workers count: named as Prometheus would have it, and described.

use crate::fleet::{SOON, apply, quick, wait_runs, wait_session};
use meepo_tests::{Api, Cluster, Logs, eventually, workspace_root};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A metric as the reference describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    kind: String,
    pub(crate) labels: BTreeSet<String>,
}

/// Every row of the reference, by the metric's name.
pub(crate) fn described() -> BTreeMap<String, Described> {
    let page = std::fs::read_to_string(workspace_root().join("docs/reference/metrics.md")).unwrap();
    let mut all = BTreeMap::new();
    for row in page.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { panic!("{row}") };
        assert!(!meaning.is_empty(), "{row}");
        let labels = labels.split(',').map(|l| l.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|l| !l.is_empty()).collect();
        let described = Described { kind: kind.to_owned(), labels };
        let before = all.insert(name.trim_matches('`').to_owned(), described);
        assert!(before.is_none(), "{name} stands there twice");
    }
    assert!(all.len() > 40, "{}", all.len());
    all
}

/// Name and kind of every metric that a service declares.
fn declared(service: &str) -> BTreeMap<String, String> {
    let file = workspace_root().join(service).join("src/metrics.rs");
    let source = std::fs::read_to_string(file).unwrap();
    let mut all = BTreeMap::new();
    let lines = source.lines().map(str::trim).filter(|l| l.contains(" = \"") && l.ends_with("\";"));
    for line in lines {
        let (declaration, rest) = line.split_once(" = \"").unwrap();
        let (_, of) = declaration.split_once(": ").unwrap();
        // Of a family, what it is of.
        let of = of.strip_suffix('>').map_or(of, |f| f.rsplit_once(", ").unwrap().1);
        let (kind, end) = match of {
            "Counter" => ("counter", "_total"),
            "Gauge" | "Real" => ("gauge", ""),
            "Seconds" => ("histogram", ""),
            other => panic!("{line}: {other}"),
        };
        let name = rest.split('"').next().unwrap();
        all.insert(format!("meepo_{service}_{name}{end}"), kind.to_owned());
    }
    all.insert(format!("meepo_{service}_build_info"), "info".to_owned());
    assert!(all.len() > 15, "{all:?}");
    all
}

#[test]
fn every_metric_is_described_and_no_other() {
    let mut declared =
        declared("master").into_iter().chain(declared("worker")).collect::<BTreeMap<_, _>>();
    for (name, kind) in [
        ("process_resident_memory_bytes", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_open_fds", "gauge"),
        ("process_threads", "gauge"),
        ("process_start_time_seconds", "gauge"),
    ] {
        declared.insert(name.to_owned(), kind.to_owned());
    }
    let described = described().into_iter().map(|(name, d)| (name, d.kind)).collect();
    assert_eq!(declared, described);
}

#[test]
fn names_have_base_units() {
    for (name, described) in described() {
        for unit in ["milliseconds", "_ms", "kib", "minutes", "percent"] {
            assert!(!name.contains(unit), "{name}: base units are seconds, bytes and ratios");
        }
        assert_eq!(name.ends_with("_total"), described.kind == "counter", "{name}");
        if described.kind == "histogram" {
            assert!(name.ends_with("_seconds"), "{name}: a histogram of what?");
        }
    }
}

/// What a page of metrics holds: the labels of each metric's samples, and the kinds.
pub(crate) async fn exposed(api: &Api) -> (BTreeMap<String, BTreeSet<String>>, String) {
    let (status, page) = api.get("/metrics").await;
    assert_eq!(status, 200, "{page}");
    let page = page.as_str().unwrap().to_owned();
    let described = described();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut kinds = BTreeMap::new();
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            let end = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            kinds.insert(format!("{name}{end}"), kind.to_owned());
        }
        if line.starts_with('#') {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let bare = ["_bucket", "_sum", "_count"].iter().find_map(|e| name.strip_suffix(e));
        let name = bare.filter(|n| kinds.contains_key(*n)).unwrap_or(name);
        let label = |l: &str| l.split('=').next().unwrap().to_owned();
        // No value of a label has a comma in it.
        let labels = labels.trim_end_matches('}').split(',').filter(|l| !l.is_empty()).map(label);
        let labels = labels.filter(|l| l != "le").collect();
        let row = described.get(name).unwrap_or_else(|| panic!("{name} is not described"));
        assert_eq!(row.labels, labels, "{line}");
        assert_eq!(Some(&row.kind), kinds.get(name), "{line}");
        found.insert(name.to_owned(), labels);
    }
    (found, page)
}

/// A cluster that has done a little of everything.
pub(crate) async fn busy() -> Cluster {
    let cluster = quick().start().await;
    let api = cluster.api();
    wait_session(&api, "127.0.0.2").await;
    apply(&api, json!({"name": "ticks", "cmd": "true", "schedule": "* * * * * *"})).await;
    let once =
        json!({"name": "once", "cmd": "true", "schedule": "* * * * * *", "placement": "once"});
    apply(&api, once).await;
    assert_eq!(api.post("/v1/tasks", json!({"target": "all", "cmd": "false"})).await.0, 201);
    wait_runs(&api, "job=ticks&state=success", 2).await;
    wait_runs(&api, "job=once&state=success", 1).await;
    assert_eq!(api.get("/v1/jobs/nothing").await.0, 404);
    assert_eq!(api.get("/no/such/path").await.0, 404);
    cluster
}

/// The sum of a metric over the series that hold all of `labels`.
fn value(page: &str, name: &str, labels: &[&str]) -> f64 {
    let of = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let is =
            series.split('{').next() == Some(name) && labels.iter().all(|l| series.contains(l));
        is.then(|| value.parse::<f64>().unwrap())
    };
    page.lines().filter_map(of).sum()
}

#[tokio::test]
async fn what_happens_is_counted() {
    let cluster = busy().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).metrics());
    let mut events = api.stream("/v1/events").await;
    assert!(events.chunk().await.unwrap().is_some());
    let (_, page) = exposed(&api).await;
    for (name, labels, least) in [
        (
            "meepo_master_http_request_duration_seconds_count",
            &[r#"route="/v1/jobs""#, r#"method="POST""#, r#"status="201""#][..],
            2.0,
        ),
        (
            "meepo_master_http_request_duration_seconds_count",
            &[r#"route="/v1/jobs/{name}""#, r#"status="404""#],
            1.0,
        ),
        (
            "meepo_master_http_request_duration_seconds_count",
            &[r#"route="other""#, r#"status="404""#],
            1.0,
        ),
        (
            "meepo_master_grpc_requests_total",
            &[r#"method="meepo.internal.v1.Workers/Deliver""#, r#"code="Ok""#],
            1.0,
        ),
        ("meepo_master_streams", &[r#"kind="events""#], 1.0),
        ("meepo_master_leading", &[], 1.0),
        ("meepo_master_sessions", &[], 1.0),
        ("meepo_master_nodes", &[r#"state="online""#], 1.0),
        ("meepo_master_etcd_request_duration_seconds_count", &[r#"operation="get""#], 1.0),
        ("meepo_master_etcd_request_duration_seconds_sum", &[], 0.0001),
        ("meepo_master_log_store_request_duration_seconds_count", &[r#"operation="append""#], 1.0),
        (
            "meepo_master_log_store_request_duration_seconds_count",
            &[r#"operation="list_runs""#],
            1.0,
        ),
        ("meepo_master_received_items_total", &[], 3.0),
        ("meepo_master_build_info", &[concat!(r#"version=""#, env!("CARGO_PKG_VERSION"))], 1.0),
        ("process_resident_memory_bytes", &[], 1e6),
    ] {
        let is = value(&page, name, labels);
        assert!(is >= least, "{name}{labels:?} is {is}, not {least}:\n{page}");
    }
    drop(events);
    let (_, page) = exposed(&worker).await;
    for (name, labels, least) in [
        ("meepo_worker_fires_total", &[][..], 3.0),
        ("meepo_worker_schedule_lag_seconds_count", &[], 3.0),
        ("meepo_worker_runs_total", &[r#"state="success""#], 3.0),
        ("meepo_worker_claims_won_total", &[], 1.0),
        ("meepo_worker_spool_limit_bytes", &[], 1e6),
        ("meepo_worker_delivered_items_total", &[], 3.0),
        ("meepo_worker_session_up", &[], 1.0),
        ("meepo_worker_etcd_request_duration_seconds_count", &[], 3.0),
        ("process_start_time_seconds", &[], 1.7e9),
    ] {
        let is = value(&page, name, labels);
        assert!(is >= least, "{name}{labels:?} is {is}, not {least}:\n{page}");
    }
    // Somebody who has left is counted no more.
    eventually(SOON, "the stream is over", async || {
        let (_, page) = exposed(&api).await;
        match value(&page, "meepo_master_streams", &[r#"kind="events""#]) {
            0.0 => Ok(()),
            n => Err(n.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn an_etcd_that_fails_shows_in_errors_and_restarts() {
    let cluster = busy().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).metrics());
    cluster.member(0).process().kill9();
    eventually(SOON, "the failures are counted", async || {
        assert_eq!(api.get("/v1/jobs").await.0, 503);
        let (_, master) = exposed(&api).await;
        let (_, worker) = exposed(&worker).await;
        let errors = value(&master, "meepo_master_etcd_request_errors_total", &[]);
        let again = [
            value(&master, "meepo_master_etcd_watch_restarts_total", &[r#"reason="broken""#]),
            value(&worker, "meepo_worker_etcd_watch_restarts_total", &[r#"reason="broken""#]),
        ];
        match errors > 0.0 && again.iter().all(|n| *n > 0.0) {
            true => Ok(()),
            false => Err(format!("{errors} {again:?}")),
        }
    })
    .await;
}

/// Every expression of the dashboard and of the alerts, with what it belongs to.
fn expressions() -> Vec<(String, String)> {
    fn walk(value: &Value, title: &str, out: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                let name = ["title", "alert"].iter().find_map(|k| fields.get(*k)?.as_str());
                let title = name.unwrap_or(title);
                if let Some(expr) = fields.get("expr").and_then(Value::as_str) {
                    out.push((title.to_owned(), expr.to_owned()));
                }
                fields.values().for_each(|v| walk(v, title, out));
            }
            Value::Array(all) => all.iter().for_each(|v| walk(v, title, out)),
            _ => {}
        }
    }
    let read =
        |path: &str| std::fs::read_to_string(workspace_root().join("deploy").join(path)).unwrap();
    let dashboard: Value = serde_json::from_str(&read("grafana/meepo.json")).unwrap();
    let rules: Value = serde_saphyr::from_str(&read("prometheus/rules.yml")).unwrap();
    let mut out = Vec::new();
    walk(&dashboard, "", &mut out);
    let panels = out.len();
    walk(&rules, "", &mut out);
    assert!(panels > 30 && out.len() > panels + 15, "{panels} {}", out.len());
    out
}

/// The metrics that an expression names, each with the labels it selects by.
fn named(expr: &str) -> Vec<(String, BTreeSet<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in expr.char_indices() {
        let before = expr[..at].chars().next_back();
        let rest = &expr[at..];
        let begins = ["meepo_", "process_", "up{"].iter().any(|p| rest.starts_with(p));
        if before.is_some_and(|c| is_name(c) || c == '"') || !begins {
            continue;
        }
        let name: String = rest.chars().take_while(|c| is_name(*c)).collect();
        let after = &rest[name.len()..];
        let selector = after.strip_prefix('{').map_or("", |s| s.split('}').next().unwrap());
        let label = |s: &str| s.trim().chars().take_while(|c| is_name(*c)).collect::<String>();
        found.push((name, selector.split(',').map(label).filter(|l| !l.is_empty()).collect()));
    }
    found
}

/// The labels by which an expression puts series together.
fn grouped(expr: &str) -> BTreeSet<String> {
    let groups = expr.split(" by (").skip(1).map(|g| g.split(')').next().unwrap());
    groups.flat_map(|g| g.split(',').map(|l| l.trim().to_owned())).collect()
}

/// Those that Prometheus itself adds.
const ADDED: [&str; 2] = ["job", "instance"];

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_exist() {
    let described = described();
    let mut seen = 0;
    for (title, expr) in expressions() {
        let depth = |c| expr.matches(c).count();
        assert_eq!((depth('('), depth('{')), (depth(')'), depth('}')), "{title}: {expr}");
        let named = named(&expr);
        assert!(!named.is_empty(), "{title}: {expr} names no metric");
        let mut labels: BTreeSet<String> = BTreeSet::new();
        for (name, selected) in &named {
            seen += 1;
            if name == "up" {
                continue;
            }
            let bare = ["_bucket", "_sum", "_count"].iter().find_map(|e| name.strip_suffix(e));
            let row = described.get(name).filter(|d| d.kind != "histogram");
            let row = row.or_else(|| described.get(bare?).filter(|d| d.kind == "histogram"));
            let row = row.unwrap_or_else(|| panic!("{title}: there is no {name}"));
            labels.extend(row.labels.iter().cloned());
            if name.ends_with("_bucket") {
                labels.insert("le".to_owned());
                assert!(expr.contains("histogram_quantile"), "{title}: {expr}");
            }
            for label in selected {
                let known = row.labels.contains(label) || ADDED.contains(&label.as_str());
                assert!(known, "{title}: {name} has no label {label}");
            }
            // A counter's own value says nothing.
            if row.kind == "counter" {
                let rated =
                    ["rate(", "increase("].iter().any(|f| expr.contains(&format!("{f}{name}")));
                assert!(rated, "{title}: {name} is a counter: {expr}");
            }
        }
        for label in grouped(&expr) {
            let known = labels.contains(&label) || ADDED.contains(&label.as_str());
            assert!(known, "{title}: nothing in {expr} has the label {label}");
        }
    }
    assert!(seen > 60, "{seen}");
    // A metric that is renamed is seen.
    let broken = named("sum by (state) (rate(meepo_worker_ran_total{state=~\"a|b\"}[5m]))");
    assert_eq!(broken, [("meepo_worker_ran_total".to_owned(), ["state".to_owned()].into())]);
}

/// A real master and a real worker have shown every metric that the dashboard and the alerts
/// ask for, once things have gone well and ill.
#[tokio::test]
async fn what_the_dashboard_asks_for_is_exposed() {
    let cluster = quick().logs(Logs::OwnMongo).start().await;
    let (api, worker) = (cluster.api(), cluster.worker(0).metrics());
    wait_session(&api, "127.0.0.2").await;
    let job = |name: &str| json!({"name": name, "cmd": "true", "schedule": "* * * * * *"});
    apply(&api, job("ticks")).await;
    let mut once = job("once");
    once["placement"] = json!("once");
    apply(&api, once).await;
    wait_runs(&api, "job=ticks&state=success", 2).await;
    wait_runs(&api, "job=once&state=success", 1).await;
    let _events = api.stream("/v1/events").await;
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut look = async || {
        for service in [&api, &worker] {
            seen.extend(exposed(service).await.0.into_keys());
        }
        let asked = expressions();
        let asked = asked.iter().flat_map(|(_, expr)| named(expr)).map(|(name, _)| name);
        let bare = |name: &String| {
            let ends = ["_bucket", "_sum", "_count"];
            ends.iter().find_map(|e| name.strip_suffix(e)).unwrap_or(name).to_owned()
        };
        let missing: BTreeSet<String> = asked
            .filter(|name| name != "up" && !seen.contains(name) && !seen.contains(&bare(name)))
            .collect();
        missing
    };
    let missing = look().await;
    assert!(missing.iter().all(|m| m.contains("errors") || m.contains("restarts")), "{missing:?}");
    cluster.mongo().kill();
    cluster.member(0).process().kill9();
    eventually(SOON, "failures are shown", async || {
        let _ = api.try_http("GET", "/v1/runs", None).await;
        let _ = api.try_http("GET", "/v1/jobs", None).await;
        let missing = look().await;
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    })
    .await;
}
