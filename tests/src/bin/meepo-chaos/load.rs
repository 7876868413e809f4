//! The work that goes on meanwhile: jobs of each kind, tasks and commands.

use crate::{check::JobRule, evidence::PRELUDE, stage::Stage};
use fastrand::Rng;
use meepo_tests::{Api, millis, secs};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What `lines` and the parts of tasks write: lines of the form `<run id> <n>`, n from 1.
const LINES: &str = r#"lines() { local n; for n in $(seq "$1"); do echo "$MEEPO_RUN_ID $n"; [ -z "$2" ] || sleep "$2"; done; }"#;

/// A task that was handed in.
#[derive(Debug, Clone)]
pub(crate) struct Put {
    pub(crate) key: String,
    /// Its id, once a master has answered.
    pub(crate) id: Option<String>,
    /// It is buried when its worker dies.
    pub(crate) bury: bool,
    /// The status it was refused with for good.
    pub(crate) refused: Option<u16>,
}

/// A synchronous command.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub(crate) name: String,
    /// Hosts that answered with success, and what they wrote.
    pub(crate) answers: Vec<(String, String)>,
    /// Hosts that answered otherwise, or not at all.
    pub(crate) others: usize,
}

/// What was handed in so far.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    pub(crate) tasks: Vec<Put>,
    pub(crate) commands: Vec<Command>,
    /// Requests that were repeated, as nobody answered or for good reason.
    pub(crate) repeated: u64,
}

/// The work of one stage.
#[derive(Clone)]
pub(crate) struct Load {
    apis: Vec<Api>,
    nodes: Vec<String>,
    dir: PathBuf,
    /// Everything that runs has it in its environment.
    pub(crate) token: String,
    handed: Arc<Mutex<Handed>>,
    stop: CancellationToken,
}

/// The jobs.
pub(crate) fn rules() -> Vec<JobRule> {
    let rule = |name: &str, step, once, rerun| JobRule {
        name: name.to_owned(),
        step,
        once,
        rerun,
        lock: name == "locked",
    };
    vec![
        rule("tick", 2, false, false),
        rule("made-up", 6, false, false),
        rule("lines", 10, false, false),
        rule("flood", 30, false, false),
        rule("once", 2, true, false),
        rule("again", 3, true, true),
        rule("locked", 15, false, false),
    ]
}

impl Load {
    /// The work of a stage.
    pub(crate) fn new(stage: &Stage) -> Self {
        Self {
            apis: stage.masters.iter().map(|m| m.api.clone()).collect(),
            nodes: stage.workers.iter().map(|w| w.node.clone()).collect(),
            dir: stage.dir().to_owned(),
            token: format!("chaos-{}", std::process::id()),
            handed: Arc::default(),
            stop: CancellationToken::new(),
        }
    }

    /// Where runs leave their traces.
    pub(crate) fn evidence(&self) -> PathBuf {
        self.dir.join("evidence")
    }

    fn registers(&self) -> PathBuf {
        self.dir.join("registers")
    }

    /// Applies the jobs.
    ///
    /// # Panics
    /// When a master refuses them.
    pub(crate) async fn apply(&self) {
        std::fs::create_dir_all(self.registers()).expect("a folder for registers");
        for rule in rules() {
            let job = self.job(&rule);
            let (status, body) = self.apis[0].post("/v1/jobs", job).await;
            assert!(status == 200 || status == 201, "{status} {body}");
        }
    }

    /// Pauses the jobs.
    ///
    /// # Panics
    /// When no master takes it for a minute.
    pub(crate) async fn pause(&self) {
        for rule in rules() {
            let path = format!("/v1/jobs/{}/pause", rule.name);
            meepo_tests::eventually(secs(60), format!("{} is paused", rule.name), async || {
                match self.apis[0].try_http("POST", &path, Some(&json!({}))).await? {
                    (200, _) => Ok(()),
                    (status, body) => Err(format!("{status} {body}")),
                }
            })
            .await;
        }
    }

    fn env(&self) -> Value {
        json!({
            "CHAOS": self.token,
            "EVIDENCE": self.evidence().display().to_string(),
            "REGISTERS": self.registers().display().to_string(),
        })
    }

    fn job(&self, rule: &JobRule) -> Value {
        let body = match rule.name.as_str() {
            "lines" => "lines 40 0.05; ev end 40",
            // More than is kept of a run.
            "flood" => "lines 3000; ev end 3000",
            "once" => r#"reg "$REGISTERS/once"; lines 1; ev end 1"#,
            "locked" => r#"reg "$REGISTERS/locked"; sleep 0.3; reg "$REGISTERS/locked"; ev end 0"#,
            // A register of its own for each slot: no attempt may write after a later one.
            "again" => {
                r#"for i in 1 2 3 4 5 6 7 8 9 10; do reg "$REGISTERS/again-$MEEPO_SLOT"; sleep 0.4; done; ev end 0"#
            }
            _ => "lines 3; ev end 3",
        };
        let mut job = json!({
            "name": rule.name,
            "cmd": format!("{PRELUDE}{LINES}\n{body}"),
            "env": self.env(),
            "schedule": format!("*/{} * * * * *", rule.step),
            "concurrency": "allow",
            "timeout": "120s",
        });
        if rule.once {
            job["placement"] = json!("once");
        }
        if rule.rerun {
            job["on_node_loss"] = json!("rerun");
        }
        if rule.lock {
            job["lock"] = json!({"name": "one", "wait": "40s"});
        }
        if rule.name == "made-up" {
            job["misfire"] = json!("all");
            job["misfire_cap"] = json!(1000);
        }
        job
    }

    /// Hands in tasks and commands until [`Self::end`].
    pub(crate) fn start(&self, seed: u64) -> JoinSet<()> {
        let mut flows = JoinSet::new();
        let mut seeds = Rng::with_seed(seed ^ 0x6c6f_6164);
        for who in 0..2 {
            flows.spawn(self.clone().tasks(who, seeds.u64(..)));
            flows.spawn(self.clone().commands(who, seeds.u64(..)));
        }
        flows
    }

    /// Nothing more is handed in.
    pub(crate) fn end(&self) {
        self.stop.cancel();
    }

    /// Takes out what was handed in.
    pub(crate) fn handed(&self) -> Handed {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Handed> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pause_between(&self, rng: &mut Rng) -> bool {
        let pause = millis(rng.u64(700..3000));
        let slept = tokio::time::timeout(pause, self.stop.cancelled()).await;
        slept.is_err()
    }

    async fn tasks(self, who: u32, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let mut n = 0;
        while self.pause_between(&mut rng).await {
            n += 1;
            let key = format!("task-{who}-{n}");
            let bury = n % 4 == 3;
            let task = self.task(&mut rng, &key, n, bury);
            let i = {
                let mut handed = self.lock();
                handed.tasks.push(Put { key, id: None, bury, refused: None });
                handed.tasks.len() - 1
            };
            self.put(&mut rng, i, &task).await;
        }
    }

    fn task(&self, rng: &mut Rng, key: &str, n: u32, bury: bool) -> Value {
        let last = rng.u32(1..30);
        let body = format!("{PRELUDE}{LINES}\nlines 5 0.{last:02}; ev end 5");
        // Its first attempt fails, and only that.
        let fails =
            format!("{PRELUDE}[ \"$MEEPO_ATTEMPT\" -gt 1 ] || exit 3\n{LINES}\nlines 5; ev end 5");
        let mut task = json!({"key": key, "env": self.env(), "ttr": "60s"});
        let retry = json!({"max": 3, "delay": "1s", "backoff": "fixed"});
        match n % 4 {
            0 => {
                let mut hosts = self.nodes.clone();
                rng.shuffle(&mut hosts);
                hosts.truncate(2);
                task["hosts"] = json!(hosts);
                task["cmd"] = json!(body);
                task["retry"] = retry;
            }
            1 => {
                task["queue"] = json!("work");
                task["retry"] = retry;
                task["commands"] = json!([{"cmd": body}, {"cmd": fails}, {"cmd": body}]);
                // Each command has its own.
                let env = task["env"].take();
                task.as_object_mut().expect("an object").remove("env");
                for command in task["commands"].as_array_mut().expect("a list") {
                    command["env"] = env.clone();
                }
            }
            _ => {
                task["queue"] = json!("work");
                task["cmd"] = json!(body);
                if bury {
                    task["on_loss"] = json!("bury");
                }
            }
        }
        task
    }

    /// Hands a task in until somebody says for certain what became of it.
    async fn put(&self, rng: &mut Rng, i: usize, task: &Value) {
        let end = Instant::now() + secs(180);
        while Instant::now() < end {
            let api = &self.apis[rng.usize(..self.apis.len())];
            let asked = api.try_http("POST", "/v1/tasks", Some(task));
            match tokio::time::timeout(secs(12), asked).await {
                Ok(Ok((200 | 201, body))) => {
                    self.lock().tasks[i].id = body["id"].as_str().map(str::to_owned);
                    return;
                }
                Ok(Ok((status, body))) if status < 500 && status != 429 => {
                    eprintln!("a task was refused: {status} {body}");
                    self.lock().tasks[i].refused = Some(status);
                    return;
                }
                _ => {}
            }
            self.lock().repeated += 1;
            tokio::time::sleep(millis(300)).await;
        }
    }

    async fn commands(self, who: u32, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let mut n = 0;
        while self.pause_between(&mut rng).await {
            n += 1;
            let name = format!("command-{who}-{n}");
            let mut hosts = self.nodes.clone();
            rng.shuffle(&mut hosts);
            hosts.truncate(rng.usize(1..4));
            let cmd = format!(
                "export CHAOS={} EVIDENCE={} NAME={name}\n{PRELUDE}echo said by {name}; ev end 1",
                self.token,
                self.evidence().display()
            );
            let body = json!({"id": name, "method": "sync.bash", "hosts": hosts, "cmd": cmd, "timeout": "10s"});
            let api = &self.apis[rng.usize(..self.apis.len())];
            let asked = api.try_http("POST", "/v1/exec", Some(&body));
            let answer = tokio::time::timeout(secs(25), asked).await;
            let answers = match answer {
                Ok(Ok((200, body))) => succeeded(&body),
                _ => Vec::new(),
            };
            let others = hosts.len() - answers.len();
            self.lock().commands.push(Command { name, answers, others });
        }
    }
}

fn succeeded(body: &Value) -> Vec<(String, String)> {
    let all = body["response"].as_array().into_iter().flatten();
    let good = all.filter(|answer| answer["resp"] == "success");
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    good.map(|answer| (text(&answer["host"]), text(&answer["data"]))).collect()
}

/// Every living process that has `token` in its environment.
pub(crate) fn left_over(token: &str) -> Vec<String> {
    let wanted = format!("CHAOS={token}");
    let has = |dir: &Path| {
        let environ = std::fs::read(dir.join("environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes())
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|e| e.path());
    let found = all.filter(|dir| has(dir)).map(|dir| {
        let words = std::fs::read(dir.join("cmdline")).unwrap_or_default();
        let words: String = String::from_utf8_lossy(&words).chars().take(80).collect();
        format!("{} {}", dir.display(), words.replace(['\0', '\n'], " "))
    });
    found.collect()
}

/// How long after the last fault everything may take to come to rest.
pub(crate) const REST: Duration = secs(240);
