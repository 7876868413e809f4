//! Where masters sign, whoever can write to etcd alone makes no users, tokens or roles.

use super::{Guarded, why};
use crate::fleet::quick;
use meepo_core::auth::TokenText;
use meepo_runtime::signing::generate;
use meepo_tests::{TestDir, eventually, secs};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn what_is_put_into_etcd_by_hand_lets_nobody_in() {
    let dir = TestDir::new();
    let key = dir.path().join("signing.key");
    std::fs::write(&key, generate().unwrap()).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let plan = quick().workers(0).master_arg("--signing-key").master_arg(key.to_str().unwrap());
    let guarded = Guarded::start(plan).await;
    let ann = guarded.api_of("ann", &["viewer"]).await;
    assert_eq!(ann.get("/v1/whoami").await.1["roles"], json!(["viewer"]));
    let mut etcd = guarded.cluster.etcd().client().await;
    let mut value = async |key: &str| -> Value {
        let found = etcd.get(key, None).await.unwrap();
        serde_json::from_slice(found.kvs()[0].value()).unwrap()
    };
    let id = ann.token().unwrap().parse::<TokenText>().unwrap().id;
    let (user, token) =
        (value("/meepo/users/ann").await, value(&format!("/meepo/tokens/{id}")).await);
    // More roles for a user that is there; the copy of a user under another name; a role that
    // allows everything.
    let mut more = user.clone();
    more["roles"] = json!(["admin"]);
    let mut eve = user.clone();
    eve["name"] = json!("eve");
    eve["roles"] = json!(["admin"]);
    let mut bare = eve.clone();
    bare.as_object_mut().unwrap().remove("signature");
    let mut of_eve = token.clone();
    of_eve["user"] = json!("eve");
    of_eve["roles"] = json!(["admin"]);
    let role = json!({"name": "all", "grants": [{"permissions": ["*"]}]});
    let mut etcd = guarded.cluster.etcd().client().await;
    for (key, forged) in [
        ("/meepo/users/eve", &eve),
        ("/meepo/users/eve", &bare),
        (&*format!("/meepo/tokens/{id}"), &of_eve),
        ("/meepo/roles/all", &role),
    ] {
        etcd.put(key, forged.to_string(), None).await.unwrap();
        let refused = format!("key=\"{key}\"");
        eventually(secs(30), format!("{key} is refused"), async || {
            let log = guarded.cluster.master(0).process().log();
            match log.lines().any(|l| l.contains("no master has written") && l.contains(key)) {
                true => Ok(()),
                false => Err(refused.clone()),
            }
        })
        .await;
    }
    let (status, answer) = ann.get("/v1/whoami").await;
    assert_eq!((status, why(&answer)), (401, "unauthenticated"), "its token was spoilt: {answer}");
    let (_, users) = guarded.admin.get("/v1/users").await;
    assert!(!users.to_string().contains("eve"), "{users}");
    let (_, roles) = guarded.admin.get("/v1/roles").await;
    assert!(!roles.to_string().contains("\"all\""), "{roles}");
    // As it was, it counts again; what was revoked does not.
    etcd.put(format!("/meepo/tokens/{id}"), token.to_string(), None).await.unwrap();
    eventually(secs(30), "the token counts again", async || match ann.get("/v1/whoami").await {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    etcd.put("/meepo/users/ann", more.to_string(), None).await.unwrap();
    eventually(secs(30), "a user with roles of its own making is nobody", async || {
        match ann.get("/v1/whoami").await {
            (401, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    etcd.put("/meepo/users/ann", user.to_string(), None).await.unwrap();
    let path = format!("/v1/tokens/{id}");
    assert_eq!(guarded.admin.http("DELETE", &path, None).await.0, 200);
    etcd.put(format!("/meepo/tokens/{id}"), token.to_string(), None).await.unwrap();
    eventually(secs(30), "the old token is refused", async || {
        let log = guarded.cluster.master(0).process().log();
        let refused =
            log.lines().filter(|l| l.contains("no master has written") && l.contains(&id));
        match refused.count() {
            2.. => Ok(()),
            n => Err(format!("{n}")),
        }
    })
    .await;
    assert_eq!(ann.get("/v1/whoami").await.0, 401);
}
