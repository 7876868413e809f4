//! Nodes that join: tokens, and the certificates that are signed for who has one.

use super::Ops;
use crate::{
    audit,
    auth::current,
    error::{ApiError, ApiResult},
};
use jiff::{SignedDuration, Timestamp};
use meepo_coord::{
    CoordError,
    etcd::Cas,
    keys,
    records::{JoinRecord, decode, encode},
};
use meepo_core::{
    api::{Action, Applied},
    code::Code,
    error::Invalid,
    id::{Name, NodeId},
    join::{
        CreateJoinToken, JoinRequest, JoinToken, JoinTokenList, JoinTokenView, NewJoinToken,
        RenewRequest, SignedCertificate,
    },
    run::to_millis,
};
use meepo_runtime::tls::{Authority, Credentials, Identity, Peer, Subject, x509};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tracing::{error, info};

/// How long a token is good for unless said otherwise, and at the longest.
const TTL: Duration = Duration::from_secs(3600);
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Tokens that may be there at once.
const MOST: usize = 1000;
/// Days for which what is signed is valid.
const DAYS: u32 = 365;
/// Hosts in a certificate.
const MAX_HOSTS: usize = 16;

/// What a master needs for nodes that join.
#[derive(Default)]
pub struct Joining {
    /// What it shows itself.
    pub credentials: Option<Arc<Credentials>>,
    /// The key of the authority, if this master holds it.
    pub ca_key: Option<PathBuf>,
    /// URLs of etcd.
    pub etcd: Vec<String>,
}

impl Joining {
    fn credentials(&self) -> ApiResult<&Arc<Credentials>> {
        self.credentials.as_ref().ok_or_else(|| {
            let why = "nothing is encrypted here, so there are no certificates to be had; expected \
                       [tls] on the masters";
            ApiError::new(Code::FORBIDDEN, why)
        })
    }

    /// The authority with its key, as it is in the files now.
    fn authority(&self) -> ApiResult<Authority> {
        let files = self.credentials()?.files();
        let Some(key) = &self.ca_key else {
            let why = "this master does not hold the key of the authority (tls.ca_key); ask one \
                       that does, or make the certificate with `meepo tls issue node`";
            return Err(ApiError::new(Code::FORBIDDEN, why));
        };
        Authority::load(&files.ca, key).map_err(|e| {
            error!(error = format!("{e:#}"), "the authority cannot be used");
            ApiError::new(Code::BUG, "the authority cannot be used; the log of the master says why")
        })
    }

    fn signed(&self, authority: &Authority, request: &str, subject: &Subject) -> ApiResult<Signed> {
        let cert = authority.sign(request, subject, DAYS).map_err(|e| {
            let expected = "a request for a certificate (PKCS #10) in PEM, signed by its own key";
            ApiError::from(Invalid::new(Code::BAD_VALUE, "request", format!("{e:#}"), expected))
        })?;
        let ca = std::fs::read_to_string(&self.credentials()?.files().ca)
            .unwrap_or_else(|_| authority.pem());
        Ok(Signed { cert, ca })
    }

    fn answer(&self, signed: Signed) -> SignedCertificate {
        SignedCertificate {
            not_after: x509::facts_of_pem(&signed.cert)
                .map_or_else(Timestamp::now, |facts| facts.not_after),
            certificate: signed.cert,
            ca: signed.ca,
            etcd: self.etcd.clone(),
        }
    }
}

struct Signed {
    cert: String,
    ca: String,
}

impl Ops {
    /// Makes a token with which a node may join, once.
    pub async fn create_join_token(&self, request: &CreateJoinToken) -> ApiResult<NewJoinToken> {
        let ttl = request.ttl.map_or(TTL, |ttl| ttl.0);
        if !(Duration::from_secs(1)..=LONGEST).contains(&ttl) {
            let problem = format!("{ttl:?} is out of range");
            return Err(Invalid::new(Code::BAD_VALUE, "ttl", problem, "1s to 7d").into());
        }
        if request.node.is_none() && !request.hosts.is_empty() {
            let problem = "whoever may choose its node may not have these names as well";
            let expected = "a node beside them, or none";
            return Err(Invalid::new(Code::BAD_VALUE, "hosts", problem, expected).into());
        }
        if request.hosts.len() > MAX_HOSTS {
            let problem = format!("{} hosts", request.hosts.len());
            let expected = format!("{MAX_HOSTS} at most");
            return Err(Invalid::new(Code::BAD_VALUE, "hosts", problem, expected).into());
        }
        let configs = self.joining.credentials()?.now();
        let authority = configs.authority().map(x509::fingerprint).ok_or_else(|| {
            let why = "the authority of this master's certificate is not in tls.ca";
            ApiError::new(Code::FORBIDDEN, why)
        })?;
        if self.etcd.list(keys::JOIN_TOKENS, None).await?.0.len() >= MOST {
            let why = format!("there are {MOST} join tokens; revoke some, or let them expire");
            return Err(ApiError::new(Code::BUSY, why));
        }
        let token = JoinToken { id: random(8)?, secret: random(32)?, authority };
        audit::object("join-token", &token.id);
        if let Some(node) = &request.node {
            audit::detail("node", node);
        }
        let life = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
        let record = JoinRecord {
            hash: hash(&token.secret),
            node: request.node.clone(),
            hosts: request.hosts.clone(),
            created_by: current().map(|caller| caller.name.clone()),
            expires_at: to_millis(Timestamp::now().saturating_add(life).unwrap_or(Timestamp::MAX)),
            extra: BTreeMap::new(),
        };
        let lease = self.etcd.grant(ttl).await?;
        self.etcd.put(&keys::join_token(&token.id), encode(&record), Some(lease)).await?;
        Ok(NewJoinToken {
            token: token.reveal(),
            authority: token.authority,
            view: view(token.id, record),
        })
    }

    /// Join tokens that are neither spent nor expired.
    pub async fn list_join_tokens(&self) -> ApiResult<JoinTokenList> {
        let (entries, _) = self.etcd.list(keys::JOIN_TOKENS, None).await?;
        let views = entries.iter().filter_map(|entry| {
            let id = entry.key.strip_prefix(keys::JOIN_TOKENS)?.to_owned();
            Some(view(id, decode(&entry.value).ok()?))
        });
        Ok(JoinTokenList { tokens: views.collect() })
    }

    /// Takes a join token back.
    pub async fn revoke_join_token(&self, id: &Name) -> ApiResult<Applied> {
        audit::object("join-token", id);
        let gone = || ApiError::not_found("join token", id);
        let key = keys::join_token(id.as_str());
        let entry = self.etcd.get(&key).await?.ok_or_else(gone)?;
        match self.etcd.put_if(&key, None, entry.mod_revision, None).await? {
            Cas::Done(revision) => {
                Ok(Applied { name: id.clone(), action: Action::Deleted, revision })
            }
            Cas::Conflict(_) => Err(gone()),
        }
    }

    /// Signs the certificate of a node that joins, and spends its token.
    pub async fn join(&self, request: &JoinRequest) -> ApiResult<SignedCertificate> {
        let node = &request.node;
        audit::object("node", node);
        let token: JoinToken = request.token.parse()?;
        audit::detail("join_token", &token.id);
        // A master that cannot sign spends nothing.
        let authority = self.joining.authority()?;
        let key = keys::join_token(&token.id);
        let worth_nothing = || {
            let why = "this join token is not known: it was never made, is spent, revoked or has \
                       expired; expected a new one, of `meepo node join-token`";
            ApiError::new(Code::FORBIDDEN, why)
        };
        let entry = self.etcd.get(&key).await?.ok_or_else(worth_nothing)?;
        let record: JoinRecord = decode(&entry.value).map_err(|_| worth_nothing())?;
        // Hashes of random bits: how long the comparison takes tells nothing of use.
        if record.hash != hash(&token.secret) || record.expires_at < Timestamp::now() {
            return Err(worth_nothing());
        }
        let hosts = match &record.node {
            Some(other) if other != node => {
                let why = format!("this join token is for another node than {node}");
                return Err(ApiError::new(Code::FORBIDDEN, why));
            }
            Some(node) if record.hosts.is_empty() => own_host(node),
            Some(_) => record.hosts,
            // Whoever has it must not become a host that others know.
            None if self.is_known(node).await? => {
                let why = format!(
                    "there is a node {node} already, and this join token is for new ones; expected \
                     one of `meepo node join-token --node {node}`"
                );
                return Err(ApiError::new(Code::FORBIDDEN, why));
            }
            None => Vec::new(),
        };
        let subject = Subject::of(Identity::Node(node.to_string()), hosts);
        let signed = self.joining.signed(&authority, &request.request, &subject)?;
        // Spent by whoever deletes it, which is one.
        match self.etcd.put_if(&key, None, entry.mod_revision, None).await? {
            Cas::Done(_) => {}
            Cas::Conflict(_) => return Err(worth_nothing()),
        }
        info!(%node, token = token.id, "a node joins");
        Ok(self.joining.answer(signed))
    }

    /// Signs a certificate for who shows one that is still valid: the same but for the key and
    /// the time.
    pub async fn renew(
        &self,
        peer: Option<&Peer>,
        request: &RenewRequest,
    ) -> ApiResult<SignedCertificate> {
        let shown = peer.and_then(|peer| peer.certificate.as_deref());
        let facts = shown.and_then(x509::facts);
        let Some((facts, Identity::Node(node))) =
            facts.and_then(|facts| facts.identity.clone().map(|who| (facts, who)))
        else {
            let why = "only a node renews its certificate, by the one it has; none was shown";
            return Err(ApiError::new(Code::FORBIDDEN, why));
        };
        audit::object("node", &node);
        let authority = self.joining.authority()?;
        let subject = Subject::from_facts(&facts);
        let signed = self.joining.signed(&authority, &request.request, &subject)?;
        info!(node, "a node renews its certificate");
        Ok(self.joining.answer(signed))
    }

    async fn is_known(&self, node: &NodeId) -> Result<bool, CoordError> {
        let found = self.etcd.get_all(&[keys::node(node), keys::health(node)]).await?;
        Ok(!found.is_empty())
    }
}

/// What the certificate of a node is valid for, as a server: its id, if that can be a host.
fn own_host(node: &NodeId) -> Vec<String> {
    let name = node.as_str();
    let address = name.parse::<std::net::IpAddr>().is_ok();
    let host = address || !name.contains([':', '_']);
    if host { vec![name.to_owned()] } else { Vec::new() }
}

fn view(id: String, record: JoinRecord) -> JoinTokenView {
    JoinTokenView {
        id,
        node: record.node,
        created_by: record.created_by,
        expires_at: record.expires_at,
    }
}

fn random(bytes: usize) -> ApiResult<String> {
    let mut random = vec![0; bytes];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| ApiError::new(Code::BUG, "the kernel gives no random bytes"))?;
    Ok(hex(&random))
}

fn hash(secret: &str) -> String {
    hex(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
