//! Bearer tokens of OpenID Connect, against an issuer made for the test.

use super::{Guarded, why};
use crate::fleet::{SOON, quick};
use axum::{Json, Router, extract::State, routing::get};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use meepo_tests::{TestDir, eventually};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use serde_json::{Value, json};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

/// An issuer: its address, its keys by their names, and how often it was asked for them.
struct Issuer {
    url: String,
    keys: Arc<Mutex<Vec<(String, Ed25519KeyPair)>>>,
    asked: Arc<AtomicU32>,
}

type Shared = (String, Arc<Mutex<Vec<(String, Ed25519KeyPair)>>>, Arc<AtomicU32>);

fn fresh_key() -> Ed25519KeyPair {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap()
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

async fn configuration(State((url, ..)): State<Shared>) -> Json<Value> {
    Json(json!({"issuer": url, "jwks_uri": format!("{url}/keys")}))
}

async fn key_set(State((_, keys, asked)): State<Shared>) -> Json<Value> {
    asked.fetch_add(1, Ordering::SeqCst);
    let keys: Vec<Value> = keys.lock().unwrap().iter().map(|(kid, key)| {
        json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": kid, "x": b64(key.public_key())})
    }).collect();
    Json(json!({"keys": keys}))
}

impl Issuer {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let keys = Arc::new(Mutex::new(vec![("k1".to_owned(), fresh_key())]));
        let asked = Arc::new(AtomicU32::new(0));
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(configuration))
            .route("/keys", get(key_set))
            .with_state((url.clone(), keys.clone(), asked.clone()));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, keys, asked }
    }

    /// Claims that are good, with changes.
    fn claims(&self, change: Value) -> Value {
        let now = jiff::Timestamp::now().as_second();
        let mut claims = json!({"iss": self.url, "aud": "meepo", "sub": "ann", "groups": ["ops"],
            "exp": now + 600, "iat": now});
        let all = claims.as_object_mut().unwrap();
        for (name, value) in change.as_object().unwrap() {
            match value {
                Value::Null => drop(all.remove(name)),
                value => drop(all.insert(name.clone(), value.clone())),
            }
        }
        claims
    }

    /// A token with these claims, signed by the key of this name.
    fn token(&self, kid: &str, claims: &Value) -> String {
        let text = body(&json!({"alg": "EdDSA", "kid": kid}), claims);
        let keys = self.keys.lock().unwrap();
        let (_, key) = keys.iter().find(|(name, _)| name == kid).unwrap();
        format!("{text}.{}", b64(key.sign(text.as_bytes())))
    }
}

fn body(header: &Value, claims: &Value) -> String {
    format!("{}.{}", b64(header.to_string()), b64(claims.to_string()))
}

#[tokio::test]
async fn only_tokens_of_the_issuer_that_are_meant_for_this_fleet_count() {
    let issuer = Issuer::start().await;
    let dir = TestDir::new();
    let file = dir.path().join("master.toml");
    let text = format!(
        "[oidc]\nissuer = \"{}\"\naudience = \"meepo\"\n[oidc.roles]\nops = \"operator\"\nlook = \"viewer\"\n",
        issuer.url
    );
    std::fs::write(&file, text).unwrap();
    let plan = quick().workers(0).master_arg("--config").master_arg(file.to_str().unwrap());
    let guarded = Guarded::start(plan).await;
    let api = guarded.cluster.api();
    let good = issuer.token("k1", &issuer.claims(json!({})));
    let (status, who) = api.with_token(&good).get("/v1/whoami").await;
    assert_eq!(status, 200, "{who}");
    assert_eq!((&who["user"], &who["via"]), (&json!("oidc:ann"), &json!("oidc")));
    assert_eq!(who["roles"], json!(["operator"]));
    let ann = api.with_token(&good);
    assert_eq!(ann.post("/v1/jobs", json!({"name": "a", "cmd": "true"})).await.0, 201);
    assert_eq!(ann.get("/v1/users").await.0, 403);
    assert_eq!(ann.post("/v1/tokens", json!({})).await.0, 400, "no token that outlives the login");
    // Roles follow from what is mapped, not from what is claimed.
    for (groups, want) in [
        (json!(["look"]), 403),
        (json!(["operator", "admin"]), 403),
        (json!([]), 403),
        (json!(["look", "ops"]), 200),
    ] {
        let token = issuer.token("k1", &issuer.claims(json!({"groups": groups})));
        let job = json!({"name": "a", "cmd": "true"});
        assert_eq!(api.with_token(&token).post("/v1/jobs", job).await.0, want, "{groups}");
    }
    let now = jiff::Timestamp::now().as_second();
    let mut refused = Vec::new();
    for (change, what) in [
        (json!({"exp": now - 120}), "expired"),
        (json!({"exp": "never"}), "missing"),
        (json!({"exp": null}), "missing"),
        (json!({"nbf": now + 600}), "not valid yet"),
        (json!({"aud": "others"}), "others"),
        (json!({"aud": null}), "missing"),
        (json!({"iss": "http://evil.example"}), "another issuer"),
        (json!({"iss": null}), "missing"),
        (json!({"sub": null}), "missing"),
        (json!({"sub": "a\nb"}), "name"),
    ] {
        refused.push((issuer.token("k1", &issuer.claims(change)), what));
    }
    let claims = issuer.claims(json!({}));
    let public = issuer.keys.lock().unwrap()[0].1.public_key().as_ref().to_vec();
    let none = format!("{}.", body(&json!({"alg": "none", "kid": "k1"}), &claims));
    refused.push((none, "cannot be read"));
    // The public key taken for a shared secret.
    let text = body(&json!({"alg": "HS256", "kid": "k1"}), &claims);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &public), text.as_bytes());
    refused.push((format!("{text}.{}", b64(tag)), "algorithm"));
    // Another key under the same name, and other claims under the same signature.
    let text = body(&json!({"alg": "EdDSA", "kid": "k1"}), &claims);
    refused.push((format!("{text}.{}", b64(fresh_key().sign(text.as_bytes()))), "signature"));
    let signature = good.rsplit_once('.').unwrap().1;
    let other = body(&json!({"alg": "EdDSA", "kid": "k1"}), &issuer.claims(json!({"sub": "bob"})));
    refused.push((format!("{other}.{signature}"), "signature"));
    // Keys that come with the token are not looked at.
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(public)});
    let text = body(&json!({"alg": "EdDSA", "kid": "k9", "jwk": jwk}), &claims);
    refused.push((format!("{text}.{}", b64(fresh_key().sign(text.as_bytes()))), "key"));
    for (n, (token, what)) in refused.iter().enumerate() {
        let (status, answer) = api.with_token(token).get("/v1/whoami").await;
        // Many wrong ones in a row are not looked at; the right ones come from elsewhere then.
        if status == 429 {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            let (status, answer) = api.with_token(token).get("/v1/whoami").await;
            assert_eq!((status, why(&answer)), (401, "unauthenticated"), "{n} {what}: {answer}");
            continue;
        }
        assert_eq!((status, why(&answer)), (401, "unauthenticated"), "{n} {what}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(what), "{what}: {answer}");
    }
    // A new key of the issuer is found; names that nobody has do not make it ask all the time.
    let before = issuer.asked.load(Ordering::SeqCst);
    issuer.keys.lock().unwrap().push(("k2".to_owned(), fresh_key()));
    let new = api.with_token(&issuer.token("k2", &issuer.claims(json!({}))));
    eventually(SOON, "the new key is known", async || match new.get("/v1/whoami").await {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let asked = issuer.asked.load(Ordering::SeqCst) - before;
    assert!(asked <= 6, "the issuer was asked {asked} times");
}
