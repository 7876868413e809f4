//! How a host becomes a node: `meepo-worker join` and `meepo-worker renew`.
//!
//! The key is made here and never leaves. What goes to the master is a request for a
//! certificate, and with it a token, or the certificate that is still valid.

use crate::address;
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy, rt::TokioExecutor};
use jiff::Timestamp;
use meepo_core::{
    api::ErrorBody,
    duration::HumanDuration,
    id::{Name, NodeId},
    join::{JoinRequest, JoinToken, RenewRequest, SignedCertificate},
};
use meepo_runtime::{
    files::private_dir,
    tls::{self, Identity, Issued, TlsFiles, x509},
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Longest time the master may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// `meepo-worker join`.
#[derive(Debug, Args)]
pub struct JoinOptions {
    /// URL of the HTTP API of a master that holds the key of the authority.
    #[arg(long, env = "MEEPO_MASTER", value_name = "URL")]
    pub master: String,
    /// The token of `meepo node join-token`.
    #[arg(long, env = "MEEPO_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File with the token: what stands in a command line, others on this host can see.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// This node's id. [default: the source address of the route to the master]
    #[arg(long, env = "MEEPO_NODE")]
    pub node: Option<NodeId>,
    /// Directory for the certificate, its key and the authority.
    #[arg(long, default_value = "/etc/meepo/tls", value_name = "DIR")]
    pub dir: PathBuf,
}

/// `meepo-worker renew`.
#[derive(Debug, Args)]
pub struct RenewOptions {
    /// URL of the HTTP API of a master that holds the key of the authority.
    #[arg(long, env = "MEEPO_MASTER", value_name = "URL")]
    pub master: String,
    /// Only if the certificate expires within this time.
    #[arg(long, default_value = "30d", value_name = "DURATION")]
    pub within: HumanDuration,
}

/// Joins; answers what is to be said about it.
///
/// # Errors
/// When the master cannot be reached or trusted, refuses, or the files cannot be written. A
/// token is spent only once the master has answered.
pub async fn join(options: JoinOptions) -> anyhow::Result<String> {
    let token = token(&options)?;
    let node = match options.node {
        Some(node) => node,
        None => Name::new(address::own_id(std::slice::from_ref(&options.master)).await?.as_str())?,
    };
    let dir = std::path::absolute(&options.dir).context("the working directory is not known")?;
    let files =
        TlsFiles { cert: dir.join("node.pem"), key: dir.join("node.key"), ca: dir.join("ca.pem") };
    if let Some(there) = [&files.cert, &files.key].into_iter().find(|path| path.exists()) {
        bail!(
            "{} is there already: this host has joined; expected `meepo-worker renew`, or another \
             directory with --dir",
            there.display()
        );
    }
    // Before the token is spent.
    private_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let made = tls::request(&Identity::Node(node.to_string()))?;
    tls::replace(&files.key, &made.key, 0o600)?;
    let config = tls::pinned_config(&token.authority)?;
    let body = JoinRequest { token: token.reveal(), node: node.clone(), request: made.cert };
    let signed = match ask(&options.master, "join", config, &body).await {
        Ok(signed) => signed,
        Err(e) => {
            // Of no use without a certificate.
            let _ = std::fs::remove_file(&files.key);
            return Err(e);
        }
    };
    tls::replace(&files.ca, &signed.ca, 0o644)?;
    tls::replace(&files.cert, &signed.certificate, 0o644)?;
    let etcd: Vec<String> = signed.etcd.iter().map(|url| format!("{url:?}")).collect();
    Ok(format!(
        "joined as node {node}; the certificate is valid until {}\n\nThe settings that go with it \
         (/etc/meepo/worker.toml):\n\nnode = \"{node}\"\netcd = [{}]\n\n[tls]\ncert = {:?}\nkey = \
         {:?}\nca = {:?}\n",
        signed.not_after,
        etcd.join(", "),
        files.cert.display().to_string(),
        files.key.display().to_string(),
        files.ca.display().to_string(),
    ))
}

/// Renews the certificate, if it is about to expire; answers what is to be said about it.
///
/// # Errors
/// When the master cannot be reached or trusted, refuses, or the files cannot be written.
pub async fn renew(files: &TlsFiles, options: &RenewOptions) -> anyhow::Result<String> {
    let cert = tls::certificates(&files.cert)?;
    let facts = cert.first().and_then(|der| x509::facts(der));
    let facts = facts.with_context(|| format!("cannot read {}", files.cert.display()))?;
    let left = facts.not_after.duration_since(Timestamp::now());
    if left.is_positive() && left.unsigned_abs() > options.within.0 {
        return Ok(format!("valid until {}, not renewed\n", facts.not_after));
    }
    let Some(identity) = facts.identity else {
        bail!("{} is no certificate of a node", files.cert.display());
    };
    let made = tls::request(&identity)?;
    let config = tls::client_config(Some(&files.ca), Some((&files.cert, &files.key)))?;
    let body = RenewRequest { request: made.cert };
    let signed = ask(&options.master, "renew", config, &body).await?;
    let issued = Issued { cert: signed.certificate, key: made.key };
    tls::replace_pair(&files.cert, &files.key, &issued)?;
    Ok(format!("renewed, valid until {}\n", signed.not_after))
}

fn token(options: &JoinOptions) -> anyhow::Result<JoinToken> {
    let text = match (&options.token, &options.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => read(path)?,
        (None, None) => bail!("expected a token: --token, --token-file or MEEPO_JOIN_TOKEN"),
    };
    Ok(text.parse()?)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

async fn ask(
    master: &str,
    what: &str,
    config: rustls::ClientConfig,
    body: &impl Serialize,
) -> anyhow::Result<SignedCertificate> {
    let base = master.trim_end_matches('/');
    anyhow::ensure!(
        base.starts_with("https://"),
        "{master:?}: a token or a key is entrusted to nobody without TLS; expected a URL with \
         https://"
    );
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1();
    let client =
        legacy::Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connector.build());
    let request = http::Request::post(format!("{base}/v1/{what}"))
        .header("content-type", "application/json")
        .body(Full::from(serde_json::to_vec(body)?))
        .with_context(|| format!("{master:?} is no URL"))?;
    let asking = async {
        let response = client.request(request).await.map_err(|e| match tls::explain(&e) {
            Some(why) => anyhow::anyhow!("the master at {base} is not trusted: {why}"),
            None => anyhow::Error::from(e).context(format!("cannot reach the master at {base}")),
        })?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let bytes = bytes.map_err(|e| anyhow::anyhow!("the answer broke off: {e}"))?.to_bytes();
        match status.is_success() {
            true => serde_json::from_slice(&bytes).context("the answer is not what was expected"),
            false => match serde_json::from_slice::<ErrorBody>(&bytes) {
                Ok(body) => bail!("the master refuses: {}", body.error.message),
                Err(_) => bail!("the master answers {status}"),
            },
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .with_context(|| format!("no answer of the master at {base} within {PATIENCE:?}"))?
}
