//! Bearer tokens of OpenID Connect: a JWT that an issuer has signed, with the roles of its
//! claims. Keys come from the issuer's key set, are remembered, and asked for again when a
//! token names one that is not there.

use super::jws;
use crate::error::{ApiError, ApiResult};
use anyhow::Context;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use jiff::Timestamp;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{JwkSet, KeyAlgorithm, PublicKeyUse},
};
use meepo_core::{code::Code, id::Name};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};
use tracing::{debug, info, warn};

/// Largest key set, in bytes, and the most keys of it that are looked at.
const MAX_SET: usize = 1 << 20;
const MAX_KEYS: usize = 100;
/// Longest bearer token, in bytes.
const MAX_TOKEN: usize = 16 << 10;
/// Longest time an issuer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often an issuer is asked at most, whatever tokens name.
const PAUSE: Duration = Duration::from_secs(10);
/// How long keys are used without asking again.
const FRESH: Duration = Duration::from_secs(3600);
/// By how much clocks may differ, in seconds.
const LEEWAY: u64 = 30;
/// Longest name of a user, in bytes.
const MAX_NAME: usize = 100;

/// The table `[oidc]` of the settings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcSettings {
    /// The issuer, as its tokens name it.
    pub issuer: String,
    /// What tokens must be meant for.
    pub audience: String,
    /// Where the keys are. Default: what the issuer's configuration says.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// PEM file with the authorities to trust, in place of the host's own.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The claim with the name. Default `sub`.
    #[serde(default)]
    pub user_claim: Option<String>,
    /// The claim with what roles follow from; a path with dots. Default `groups`.
    #[serde(default)]
    pub roles_claim: Option<String>,
    /// Which value of that claim means which role.
    pub roles: BTreeMap<String, Name>,
    /// Algorithms that count. Default RS256, ES256 and EdDSA.
    #[serde(default)]
    pub algorithms: Option<Vec<String>>,
}

impl OidcSettings {
    fn algorithms(&self) -> anyhow::Result<Vec<Algorithm>> {
        let Some(names) = &self.algorithms else {
            return Ok(vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]);
        };
        let known = || jws::ALGORITHMS.map(|(name, _)| name).join(", ");
        anyhow::ensure!(!names.is_empty(), "oidc.algorithms: empty; expected some of {}", known());
        let find = |name: &String| {
            let found = jws::ALGORITHMS.iter().find(|(n, _)| n == name).map(|(_, a)| *a);
            found
                .with_context(|| format!("oidc.algorithms: {name:?}; expected some of {}", known()))
        };
        names.iter().map(find).collect()
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// When something could never work, or would let others read or change what is sent.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.algorithms()?;
        anyhow::ensure!(!self.audience.is_empty(), "oidc.audience: empty; expected a text");
        anyhow::ensure!(
            !self.roles.is_empty(),
            "oidc.roles: empty; expected which values of `{}` mean which roles",
            self.roles_claim()
        );
        for (field, url) in [("issuer", Some(&self.issuer)), ("jwks_url", self.jwks_url.as_ref())] {
            let Some(url) = url else { continue };
            let uri: Option<http::Uri> = url.parse().ok();
            let secure = uri.as_ref().is_some_and(|u| {
                let host = u.host().unwrap_or_default().trim_matches(['[', ']']);
                let local = host == "localhost"
                    || host.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback());
                u.scheme_str() == Some("https") || (local && u.scheme_str() == Some("http"))
            });
            anyhow::ensure!(secure, "oidc.{field}: {url:?}; expected a URL with https://");
        }
        Ok(())
    }

    fn roles_claim(&self) -> &str {
        self.roles_claim.as_deref().unwrap_or("groups")
    }

    /// The roles that claims stand for.
    fn roles_of(&self, claims: &Value) -> Vec<Name> {
        // One that has the whole name counts before a path.
        let claim = claims.get(self.roles_claim()).or_else(|| {
            self.roles_claim().split('.').try_fold(claims, |value, part| value.get(part))
        });
        let values: Vec<&str> = match claim {
            Some(Value::String(one)) => one.split(' ').collect(),
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let mut roles: Vec<Name> =
            values.iter().filter_map(|v| self.roles.get(*v)).cloned().collect();
        roles.sort();
        roles.dedup();
        roles
    }
}

/// Who a bearer token is of.
pub(super) struct Known {
    pub(super) name: String,
    pub(super) roles: Vec<Name>,
    pub(super) expires_at: Option<Timestamp>,
}

/// The keys of an issuer.
#[derive(Default)]
struct Keys {
    set: Option<Arc<JwkSet>>,
    at: Option<Instant>,
}

/// Verifies bearer tokens.
pub(super) struct Oidc {
    settings: OidcSettings,
    validation: Validation,
    keys: RwLock<Keys>,
    /// Held by who asks the issuer; when it was asked last.
    asking: tokio::sync::Mutex<Option<Instant>>,
}

/// A refusal. What was wrong with a token stands in the log alone.
fn refused(why: &str) -> ApiError {
    ApiError::new(Code::UNAUTHENTICATED, format!("the bearer token is worth nothing: {why}"))
}

impl Oidc {
    pub(super) fn new(settings: OidcSettings) -> anyhow::Result<Self> {
        jws::install();
        settings.validate()?;
        let algorithms = settings.algorithms()?;
        let mut validation = Validation::new(algorithms[0]);
        validation.algorithms = algorithms;
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_audience(&[&settings.audience]);
        validation.set_issuer(&[&settings.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        Ok(Self { settings, validation, keys: RwLock::default(), asking: Default::default() })
    }

    /// Who a token is of.
    pub(super) async fn verify(&self, token: &str) -> ApiResult<Known> {
        if token.len() > MAX_TOKEN {
            return Err(refused("it is too long"));
        }
        let header = decode_header(token).map_err(|_| refused("it cannot be read"))?;
        // Before anything is asked of anybody.
        if !self.validation.algorithms.contains(&header.alg) {
            return Err(refused("its algorithm is not one of those that count here"));
        }
        let key = self.key(header.kid.as_deref(), header.alg).await?;
        // The crate wants all of them to be of the key's family.
        let validation = Validation { algorithms: vec![header.alg], ..self.validation.clone() };
        let decoded = decode::<Value>(token, &key, &validation).map_err(|e| {
            debug!(error = %e, "a bearer token was refused");
            use jsonwebtoken::errors::ErrorKind as E;
            refused(match e.kind() {
                E::ExpiredSignature => "it has expired",
                E::ImmatureSignature => "it is not valid yet",
                E::InvalidIssuer => "it is of another issuer",
                E::InvalidAudience => "it is meant for others",
                E::InvalidSignature => "its signature is wrong",
                E::MissingRequiredClaim(_) => {
                    "a claim is missing: exp, iss, aud and sub are needed"
                }
                _ => "it is not valid",
            })
        })?;
        let claims = decoded.claims;
        let user_claim = self.settings.user_claim.as_deref().unwrap_or("sub");
        let name = claims.get(user_claim).and_then(Value::as_str);
        let plain = |n: &&str| {
            !n.is_empty() && n.len() <= MAX_NAME && !n.chars().any(|c| c.is_control() || c == ' ')
        };
        let name = name.filter(plain).ok_or_else(|| refused("it has no usable name"))?;
        let expires_at = claims.get("exp").and_then(Value::as_i64);
        Ok(Known {
            // No user of meepo's own has such a name.
            name: format!("oidc:{name}"),
            roles: self.settings.roles_of(&claims),
            expires_at: expires_at.and_then(|s| Timestamp::from_second(s).ok()),
        })
    }

    /// The key that a token names.
    async fn key(&self, kid: Option<&str>, algorithm: Algorithm) -> ApiResult<DecodingKey> {
        let (set, fresh) = self.known();
        if let Some(key) = set.as_deref().and_then(|set| find(set, kid, algorithm))
            && fresh
        {
            return Ok(key);
        }
        if let Err(e) = self.ask().await {
            warn!(error = format!("{e:#}"), "cannot get the keys of the issuer");
        }
        match self.known().0 {
            Some(set) => find(&set, kid, algorithm).ok_or_else(|| refused("nobody has its key")),
            None => {
                let message = "the keys of the issuer of bearer tokens cannot be had at the moment";
                Err(ApiError::new(Code::ETCD, message))
            }
        }
    }

    fn known(&self) -> (Option<Arc<JwkSet>>, bool) {
        let keys = self.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        (keys.set.clone(), keys.at.is_some_and(|at| at.elapsed() < FRESH))
    }

    /// Asks the issuer, unless that was done a moment ago: tokens of anybody's making must not
    /// make this master ask all the time.
    async fn ask(&self) -> anyhow::Result<()> {
        let mut asked = self.asking.lock().await;
        if asked.is_some_and(|at| at.elapsed() < PAUSE) {
            return Ok(());
        }
        *asked = Some(Instant::now());
        let set =
            tokio::time::timeout(PATIENCE, self.fetch()).await.context("no answer in time")??;
        info!(keys = set.keys.len(), issuer = self.settings.issuer, "keys of the issuer");
        let mut keys = self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *keys = Keys { set: Some(Arc::new(set)), at: Some(Instant::now()) };
        Ok(())
    }

    async fn fetch(&self) -> anyhow::Result<JwkSet> {
        let url = match &self.settings.jwks_url {
            Some(url) => url.clone(),
            None => {
                let base = self.settings.issuer.trim_end_matches('/');
                let text = self.get(&format!("{base}/.well-known/openid-configuration")).await?;
                let found: Value = serde_json::from_slice(&text).context("its configuration")?;
                anyhow::ensure!(
                    found["issuer"] == self.settings.issuer,
                    "the configuration there is of another issuer: {}",
                    found["issuer"]
                );
                let url =
                    found["jwks_uri"].as_str().context("its configuration has no jwks_uri")?;
                // As it could have been set.
                let checked =
                    OidcSettings { jwks_url: Some(url.to_owned()), ..self.settings.clone() };
                checked.validate()?;
                url.to_owned()
            }
        };
        let mut set: JwkSet = serde_json::from_slice(&self.get(&url).await?).context("its keys")?;
        set.keys.truncate(MAX_KEYS);
        Ok(set)
    }

    async fn get(&self, url: &str) -> anyhow::Result<Bytes> {
        let ca = self.settings.ca.as_ref().map(|path| path.display().to_string());
        let client = crate::notify::web_client(ca).await.map_err(anyhow::Error::msg)?;
        let request = Request::get(url).header(header::ACCEPT, "application/json");
        let request = request.body(Full::new(Bytes::new()))?;
        let answer = client.request(request).await.with_context(|| url.to_owned())?;
        anyhow::ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
        let body = Limited::new(answer.into_body(), MAX_SET).collect().await;
        Ok(body.map_err(|e| anyhow::anyhow!("{url}: {e}"))?.to_bytes())
    }
}

/// The key with this id that may be used for this; without an id the only one there is.
fn find(set: &JwkSet, kid: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
    let signs = |u: &Option<PublicKeyUse>| u.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature);
    let mut found = set.keys.iter().filter(|k| {
        let named = kid.is_none_or(|kid| k.common.key_id.as_deref() == Some(kid));
        named
            && signs(&k.common.public_key_use)
            && k.common.key_algorithm.is_none_or(|a| a == KeyAlgorithm::from(algorithm))
    });
    let key = found.next()?;
    if kid.is_none() && found.next().is_some() {
        return None;
    }
    DecodingKey::from_jwk(key).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(change: Value) -> anyhow::Result<OidcSettings> {
        let mut all = json!({"issuer": "https://id.example", "audience": "meepo",
            "roles": {"ops": "operator", "admins": "admin"}});
        let fields = all.as_object_mut().unwrap();
        fields.extend(change.as_object().unwrap().clone());
        let settings: OidcSettings = serde_json::from_value(all)?;
        settings.validate().map(|()| settings)
    }

    #[test]
    fn settings_that_would_let_anybody_in_are_refused() {
        assert!(settings(json!({})).is_ok());
        assert!(settings(json!({"issuer": "http://127.0.0.1:9"})).is_ok());
        for (change, want) in [
            (json!({"issuer": "http://id.example"}), "https://"),
            (json!({"jwks_url": "http://id.example/keys"}), "oidc.jwks_url"),
            (json!({"jwks_url": "http://127.0.0.1.evil.example/keys"}), "oidc.jwks_url"),
            (json!({"algorithms": ["none"]}), "RS256"),
            (json!({"algorithms": ["HS256"]}), "RS256"),
            (json!({"algorithms": []}), "empty"),
            (json!({"audience": ""}), "oidc.audience"),
            (json!({"roles": {}}), "oidc.roles"),
            (json!({"rolls": {}}), "rolls"),
        ] {
            let e = settings(change.clone()).unwrap_err();
            assert!(format!("{e:#}").contains(want), "{change}: {e:#}");
        }
    }

    #[test]
    fn roles_follow_from_claims_that_are_mapped_and_from_no_others() {
        let at = |claim: &str| settings(json!({"roles_claim": claim})).unwrap();
        let names = |s: &OidcSettings, claims: Value| -> Vec<String> {
            s.roles_of(&claims).iter().map(ToString::to_string).collect()
        };
        assert_eq!(names(&at("groups"), json!({"groups": ["ops", "x", "ops"]})), ["operator"]);
        assert_eq!(names(&at("groups"), json!({"groups": ["operator", "admin"]})), [""; 0]);
        assert_eq!(names(&at("scope"), json!({"scope": "ops admins"})), ["admin", "operator"]);
        let nested = json!({"realm": {"roles": ["admins"]}});
        assert_eq!(names(&at("realm.roles"), nested.clone()), ["admin"]);
        assert_eq!(
            names(&at("https://x.example/roles"), json!({"https://x.example/roles": ["ops"]})),
            ["operator"]
        );
        assert_eq!(names(&at("groups"), nested), [""; 0]);
        assert_eq!(names(&at("groups"), json!({"groups": 1})), [""; 0]);
    }
}
