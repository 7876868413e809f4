//! Tokens and passwords: made, shown once, limited, ended.

use super::{Guarded, why};
use crate::fleet::{SOON, quick};
use meepo_tests::{Api, eventually, secs};
use serde_json::{Value, json};

async fn create(api: &Api, what: Value) -> (u16, Value) {
    api.post("/v1/tokens", what).await
}

/// Waits until a token is worth nothing at a master.
async fn wait_refused(api: &Api) {
    eventually(secs(10), "the token is worth nothing", async || {
        match api.get("/v1/whoami").await {
            (401, answer) if why(&answer) == "unauthenticated" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_revoked_is_worth_nothing_at_every_master_at_once_and_what_goes_on_ends() {
    let guarded = Guarded::start(quick().masters(2).workers(0)).await;
    let (status, _) =
        guarded.admin.http("PUT", "/v1/users/ann", Some(&json!({"roles": ["operator"]}))).await;
    assert_eq!(status, 201);
    let (_, new) = create(&guarded.admin, json!({"user": "ann", "description": "ci"})).await;
    let token = new["token"].as_str().unwrap();
    // Also where the watch has not told of it yet.
    let [first, second] = [0, 1].map(|i| guarded.master(i).with_token(token));
    for api in [&second, &first] {
        assert_eq!(api.get("/v1/whoami").await.1["user"], "ann");
    }
    let mut stream = second.stream("/v1/events").await;
    assert_eq!(stream.status(), 200);
    // It is listed without its secret, for its user and for who may see all.
    for api in [&first, &guarded.admin] {
        let (_, list) = api.get("/v1/tokens").await;
        let one = list["tokens"].as_array().unwrap().iter().find(|t| t["id"] == new["id"]).unwrap();
        assert_eq!((&one["description"], &one["created_by"]), (&json!("ci"), &json!("admin")));
        assert!(!list.to_string().contains(token) && !list.to_string().contains("argon2"));
    }
    assert_eq!(first.get("/v1/tokens").await.1["tokens"].as_array().unwrap().len(), 1);
    let path = format!("/v1/tokens/{}", new["id"].as_str().unwrap());
    assert_eq!(guarded.admin.http("DELETE", &path, None).await.0, 200);
    assert_eq!(first.get("/v1/whoami").await.0, 401, "at the master that was asked at once");
    wait_refused(&second).await;
    // What was listened to is cut off.
    let ended = async { while let Ok(Some(_)) = stream.chunk().await {} };
    tokio::time::timeout(SOON, ended).await.expect("the stream ends");
    assert_eq!(guarded.admin.http("DELETE", &path, None).await.0, 404);
}

#[tokio::test]
async fn a_token_ends_with_its_time_its_user_and_its_roles() {
    let guarded = Guarded::start(quick().workers(0)).await;
    let admin = &guarded.admin;
    let put = async |name: &str, body: Value| {
        admin.http("PUT", &format!("/v1/users/{name}"), Some(&body)).await
    };
    put("ann", json!({"roles": ["operator", "viewer"]})).await;
    let made = async |what: Value| {
        let (status, new) = create(admin, what.clone()).await;
        assert_eq!(status, 201, "{what}: {new}");
        guarded.cluster.api().with_token(new["token"].as_str().unwrap())
    };
    let short = made(json!({"user": "ann", "ttl": "3s"})).await;
    let whole = made(json!({"user": "ann"})).await;
    let part = made(json!({"user": "ann", "roles": ["viewer"]})).await;
    wait_refused(&short).await;
    // Only some of the user's roles, and never one that the user has not.
    assert_eq!(part.get("/v1/whoami").await.1["roles"], json!(["viewer"]));
    assert_eq!(part.post("/v1/jobs", json!({"name": "a", "cmd": "true"})).await.0, 403);
    assert_eq!(whole.post("/v1/jobs", json!({"name": "a", "cmd": "true"})).await.0, 201);
    assert_eq!(create(admin, json!({"user": "ann", "roles": ["admin"]})).await.0, 400);
    // What it makes is worth no more than itself.
    let (status, new) = create(&part, json!({})).await;
    assert_eq!(status, 201, "{new}");
    let child = guarded.cluster.api().with_token(new["token"].as_str().unwrap());
    assert_eq!(child.get("/v1/whoami").await.1["roles"], json!(["viewer"]));
    let (status, answer) = create(&part, json!({"roles": ["operator"]})).await;
    assert_eq!((status, why(&answer)), (403, "denied"));
    // Neither for others, nor theirs.
    for (method, path, body) in [
        ("POST", "/v1/tokens", json!({"user": "admin"})),
        ("PUT", "/v1/users/admin/password", json!({"password": "correct horse battery"})),
    ] {
        let (status, answer) = whole.http(method, path, Some(&body)).await;
        assert_eq!((status, why(&answer)), (403, "denied"), "{path}: {answer}");
    }
    let (_, all) = admin.get("/v1/tokens").await;
    let of_admin = all["tokens"].as_array().unwrap().iter().find(|t| t["user"] == "admin").unwrap();
    let path = format!("/v1/tokens/{}", of_admin["id"].as_str().unwrap());
    assert_eq!(whole.http("DELETE", &path, None).await.0, 404);
    // A role that is taken away is gone for its tokens, too.
    put("ann", json!({"roles": ["viewer"]})).await;
    assert_eq!(whole.post("/v1/jobs", json!({"name": "a", "cmd": "true"})).await.0, 403);
    put("ann", json!({"roles": ["viewer"], "disabled": true})).await;
    assert_eq!(whole.get("/v1/whoami").await.0, 401);
    put("ann", json!({"roles": ["viewer"]})).await;
    assert_eq!(whole.get("/v1/whoami").await.0, 200);
    // Somebody else of the same name is somebody else.
    assert_eq!(admin.http("DELETE", "/v1/users/ann", None).await.0, 200);
    put("ann", json!({"roles": ["admin"]})).await;
    for api in [&whole, &part, &child] {
        assert_eq!(api.get("/v1/whoami").await.0, 401);
    }
    for (what, field) in [
        (json!({"user": "ann", "ttl": "0s"}), "ttl"),
        (json!({"user": "ann", "ttl": "11000d"}), "ttl"),
        (json!({"user": "ann", "from": ["10.0.0.0/33"]}), "from"),
        (json!({"user": "ann", "unknown": 1}), "unknown"),
    ] {
        let (status, answer) = create(admin, what.clone()).await;
        assert_eq!(status, 400, "{what}");
        assert!(answer["error"]["field"].as_str().unwrap().starts_with(field), "{answer}");
    }
    assert_eq!(create(admin, json!({"user": "nobody"})).await.0, 404);
}

#[tokio::test]
async fn tokens_and_grants_count_from_some_addresses_only() {
    let plan = quick().workers(0).master_arg("--trusted-proxies").master_arg("127.0.0.1");
    let guarded = Guarded::start(plan).await;
    guarded.role("inside", json!([{"permissions": ["job.read"], "from": ["10.0.0.0/8"]}])).await;
    guarded.user("ann", &["inside", "viewer"]).await;
    guarded.user("bob", &["inside"]).await;
    let what = json!({"user": "ann", "from": ["10.1.0.0/16", "192.0.2.1"]});
    let (_, new) = create(&guarded.admin, what).await;
    let ann = guarded.cluster.api().with_token(new["token"].as_str().unwrap());
    let (_, new) = create(&guarded.admin, json!({"user": "bob"})).await;
    let bob = guarded.cluster.api().with_token(new["token"].as_str().unwrap());
    // The proxy on this host is believed.
    let status = async |api: &Api, hops: Option<&str>| {
        let mut request = api.request("GET", "/v1/jobs");
        if let Some(hops) = hops {
            request = request.header("X-Forwarded-For", hops);
        }
        request.send().await.unwrap().status().as_u16()
    };
    for (api, hops, want) in [
        (&ann, None, 401),
        (&ann, Some("10.1.2.3"), 200),
        (&ann, Some("192.0.2.1"), 200),
        (&ann, Some("10.2.2.3"), 401),
        // What the client itself has written stands in front.
        (&ann, Some("10.1.2.3, 203.0.113.5"), 401),
        (&bob, Some("10.9.9.9"), 200),
        (&bob, Some("11.9.9.9"), 403),
        (&bob, None, 403),
    ] {
        assert_eq!(status(api, hops).await, want, "{hops:?}");
    }
    // A token made with it counts from nowhere else.
    let request = ann.request("POST", "/v1/tokens").header("X-Forwarded-For", "10.1.2.3");
    let new: Value = request.json(&json!({})).send().await.unwrap().json().await.unwrap();
    let child = guarded.cluster.api().with_token(new["token"].as_str().unwrap());
    assert_eq!(status(&child, None).await, 401);
    assert_eq!(status(&child, Some("10.1.9.9")).await, 200);
}

#[tokio::test]
async fn passwords_log_in_change_and_cannot_be_guessed() {
    let guarded = Guarded::start(quick().workers(0)).await;
    guarded.user("ann", &["viewer"]).await;
    let set =
        async |api: &Api, body: Value| api.http("PUT", "/v1/users/ann/password", Some(&body)).await;
    let login = async |password: &str| {
        let body = json!({"user": "ann", "password": password});
        guarded.cluster.api().post("/v1/login", body).await
    };
    let (old, new) = ("correct horse battery", "staple staple staple");
    // Without a password there is no login, and none that is too simple is taken.
    assert_eq!(login("").await.0, 401);
    for bad in ["tiny", "", &"x".repeat(2000)] {
        let (status, answer) = set(&guarded.admin, json!({"password": bad})).await;
        assert_eq!((status, &answer["error"]["field"]), (400, &json!("password")), "{answer}");
        assert!(bad.is_empty() || !answer.to_string().contains(bad), "{answer}");
    }
    assert_eq!(set(&guarded.admin, json!({"password": old})).await.0, 200);
    let (status, token) = login(old).await;
    assert_eq!(status, 201, "{token}");
    let ann = guarded.cluster.api().with_token(token["token"].as_str().unwrap());
    let (_, other) = login(old).await;
    let other = guarded.cluster.api().with_token(other["token"].as_str().unwrap());
    assert_eq!(other.get("/v1/whoami").await.1["user"], "ann");
    // One's own with the old one; other logins end, this one goes on.
    for wrong in [json!({"password": new}), json!({"password": new, "old": "staple"})] {
        let (status, answer) = set(&ann, wrong).await;
        assert_eq!((status, why(&answer)), (403, "denied"), "{answer}");
    }
    assert_eq!(set(&ann, json!({"password": new, "old": old})).await.0, 200);
    wait_refused(&other).await;
    assert_eq!(ann.get("/v1/whoami").await.0, 200);
    assert_eq!((login(old).await.0, login(new).await.0), (401, 201));
    assert_eq!(ann.post("/v1/logout", json!({})).await.0, 200);
    assert_eq!(ann.get("/v1/whoami").await.0, 401);
    // Whoever guesses has to wait; who is known goes on.
    let mut refused = 0;
    for n in 0..60 {
        let (status, answer) = login(&format!("guess number {n}")).await;
        assert!(status == 401 || status == 429, "{answer}");
        refused += usize::from(status == 429);
    }
    assert!(refused > 0, "sixty guesses were looked at");
    assert_eq!(guarded.admin.get("/v1/whoami").await.0, 200);
    // Nothing of it in the log.
    let log = guarded.cluster.master(0).process().log();
    assert!(!log.contains(old) && !log.contains(new) && !log.contains("guess number"));
}
