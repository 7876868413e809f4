//! Who may do what: every refusal, end to end.

mod cli;
mod edge;
mod limited;
mod oidc;
mod signed;
mod table;
mod tokens;

use crate::fleet::{SOON, quick};
use meepo_tests::{Api, Builder, Cluster, eventually};
use serde_json::{Value, json};

/// A cluster that asks everybody who they are, and its first user.
struct Guarded {
    cluster: Cluster,
    /// Who may everything.
    admin: Api,
}

/// The token that a master has printed, if it has.
fn printed(log: &str) -> Option<String> {
    let at = log.find("    meepo_")? + 4;
    log[at..].split_whitespace().next().map(str::to_owned)
}

impl Guarded {
    /// One master and the workers that the plan has.
    async fn start(plan: Builder) -> Self {
        let cluster = plan.master_arg("--auth").start().await;
        let token = eventually(SOON, "the first token is printed", async || {
            let mut logs = (0..cluster.masters()).map(|i| cluster.master(i).process().log());
            logs.find_map(|log| printed(&log)).ok_or("no token yet".to_owned())
        })
        .await;
        let admin = cluster.api().with_token(&token);
        Self { cluster, admin }
    }

    /// The master number `i`, asked without a token.
    fn master(&self, i: usize) -> Api {
        self.cluster.master(i).api()
    }

    /// A user with these roles, asked at the first master; answers its token.
    async fn user(&self, name: &str, roles: &[&str]) -> String {
        let body = json!({"roles": roles});
        let (status, answer) =
            self.admin.http("PUT", &format!("/v1/users/{name}"), Some(&body)).await;
        assert!(status == 200 || status == 201, "{status} {answer}");
        let (status, new) = self.admin.post("/v1/tokens", json!({"user": name})).await;
        assert_eq!(status, 201, "{new}");
        new["token"].as_str().unwrap().to_owned()
    }

    /// A role that is made for a test.
    async fn role(&self, name: &str, grants: Value) {
        let body = json!({"grants": grants});
        let (status, answer) =
            self.admin.http("PUT", &format!("/v1/roles/{name}"), Some(&body)).await;
        assert_eq!(status, 201, "{answer}");
    }

    /// The API of the first master for a new user with these roles.
    async fn api_of(&self, name: &str, roles: &[&str]) -> Api {
        let token = self.user(name, roles).await;
        self.cluster.api().with_token(&token)
    }
}

/// The code's name of a refusal.
fn why(answer: &Value) -> &str {
    answer["error"]["name"].as_str().unwrap_or("(none)")
}

#[tokio::test]
async fn the_first_start_prints_one_token_once_and_there_is_no_default_password() {
    // Both begin at the same time.
    let plan = quick().masters(0).workers(0).master_arg("--auth");
    let mut cluster = plan.start().await;
    cluster.add_master().await;
    cluster.add_master().await;
    let tokens = || -> Vec<String> {
        (0..2).filter_map(|i| printed(&cluster.master(i).process().log())).collect()
    };
    eventually(SOON, "one token is printed", async || match tokens().len() {
        1 => Ok(()),
        n => Err(format!("{n}")),
    })
    .await;
    let token = tokens().remove(0);
    for i in 0..2 {
        let api = cluster.master(i).api().with_token(&token);
        let (status, who) = api.get("/v1/whoami").await;
        assert_eq!(
            (status, &who["user"], &who["roles"]),
            (200, &json!("admin"), &json!(["admin"]))
        );
        assert_eq!(who["via"], "token");
        for password in ["", "admin", "meepo", "password", "changeme-changeme"] {
            let body = json!({"user": "admin", "password": password});
            let (status, answer) = cluster.master(i).api().post("/v1/login", body).await;
            assert_eq!((status, why(&answer)), (401, "unauthenticated"), "{password}");
        }
    }
    // Only its hash is kept, and nothing of it in the log of what happens.
    let kept = cluster.etcd().ctl(&["get", "--prefix", "/meepo/"]).await;
    // It may itself have the character that stands before it.
    let secret = token.splitn(3, '_').nth(2).unwrap();
    assert!(kept.ok().contains("$argon2id$") && !kept.ok().contains(secret));
    // Not again in the next life.
    for i in 0..2 {
        let master = cluster.master(i);
        master.process().restart();
        master.wait_ready().await;
        let api = master.api().with_token(&token);
        eventually(SOON, "the token counts", async || match api.get("/v1/whoami").await {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert_eq!(printed(&master.process().log_since_start()), None);
    }
    // Nobody else may everything: the last one stays.
    let admin = cluster.master(0).api().with_token(&token);
    let (status, answer) = admin.http("DELETE", "/v1/users/admin", None).await;
    assert_eq!((status, why(&answer)), (409, "conflict"), "{answer}");
    let (status, _) = admin.http("PUT", "/v1/users/admin", Some(&json!({"roles": []}))).await;
    assert_eq!(status, 409);
}

#[tokio::test]
async fn without_auth_everything_is_as_it_was() {
    let cluster = quick().workers(0).start().await;
    let api = cluster.api();
    let (status, who) = api.get("/v1/whoami").await;
    assert_eq!((status, &who["auth"], &who["via"]), (200, &json!(false), &json!("nothing")));
    // Users can be made before they are asked for.
    let (status, _) = api.http("PUT", "/v1/users/ann", Some(&json!({"roles": ["admin"]}))).await;
    assert_eq!(status, 201);
    let (status, new) = api.post("/v1/tokens", json!({"user": "ann"})).await;
    assert_eq!(status, 201, "{new}");
    // A token does no harm.
    assert_eq!(api.with_token("nonsense").get("/v1/jobs").await.0, 200);
    assert!(!cluster.master(0).process().log().contains("Nobody may do anything"));
}

#[tokio::test]
async fn the_audit_names_who_did_it_and_what_was_refused() {
    let guarded = Guarded::start(quick().workers(0)).await;
    let ann = guarded.api_of("ann", &["operator"]).await;
    let eve = guarded.api_of("eve", &["viewer"]).await;
    let body = json!({"name": "a", "cmd": "true"});
    for (api, want) in [(&ann, 201), (&eve, 403), (&guarded.master(0), 401)] {
        // What the client says of itself counts for nothing.
        let request = api.request("POST", "/v1/jobs").header("Meepo-User", "root").json(&body);
        assert_eq!(request.send().await.unwrap().status(), want);
    }
    let find = async |query: &str| {
        eventually(SOON, format!("there is one record with {query}"), async || {
            let (_, page) =
                guarded.admin.get(&format!("/v1/audit?operation=job.apply&{query}")).await;
            match page["records"].as_array().map(Vec::as_slice) {
                Some([one]) => Ok(one.clone()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    };
    let record = find("actor=ann").await;
    assert_eq!((&record["verified"], &record["result"]), (&json!(true), &json!("ok")), "{record}");
    assert_eq!(record["details"]["via"], "token");
    let record = find("actor=eve").await;
    assert_eq!((&record["verified"], &record["status"]), (&json!(true), &json!("403")), "{record}");
    assert!(record["message"].as_str().unwrap().contains("job.write"), "{record}");
    let record = find("actor=root").await;
    assert_eq!(
        (&record["verified"], &record["status"]),
        (&json!(false), &json!("401")),
        "{record}"
    );
}
