//! What happens to every request before it is served: how often, who, whether.

use super::{
    Auth, Caller,
    caller::{acting_for, coming_from},
    forward,
    operations::{self, Need},
    unknown,
};
use crate::{
    error::{ApiError, ApiResult},
    peer,
};
use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use meepo_core::{auth::TokenText, code::Code};
use meepo_runtime::tls::{Identity, Peer};
use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio_stream::{Stream, wrappers::WatchStream};

/// Longest proof of who asks, in bytes.
const MAX_CREDENTIALS: usize = 20 << 10;

/// A request that may be served.
pub struct Admitted {
    /// Who asks; `None`: nobody is asked, or need be.
    pub caller: Option<Arc<Caller>>,
    origin: Option<IpAddr>,
}

/// A request that is not served.
pub struct Refused {
    /// Why.
    pub error: ApiError,
    /// Who asked, where that is known.
    pub caller: Option<Arc<Caller>>,
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self { error, caller: None }
    }
}

/// What of a request says who asks. A request itself cannot be waited with: its body is of one
/// thread at a time.
pub struct Asking {
    need: ApiResult<Option<Need>>,
    peer: Option<Peer>,
    authorization: Option<HeaderValue>,
    hops: Option<String>,
    word: Option<String>,
    path: String,
}

impl Asking {
    /// Of a request over HTTP.
    pub fn http(request: &Request) -> Self {
        let method = request.method().as_str();
        let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        // What is nowhere is found nowhere; nobody is told so who is not known.
        let need = route.map_or(Some(Need::Caller), |route| operations::http(method, route));
        Self::new(request, no_secret_in(request.uri().query()).map(|()| need))
    }

    /// Of a call over gRPC.
    pub fn grpc(request: &Request) -> Self {
        let path = request.uri().path();
        let word = header_text(request.headers(), forward::CALLER).map(str::to_owned);
        Self { word, path: path.to_owned(), ..Self::new(request, Ok(operations::grpc(path))) }
    }

    fn new(request: &Request, need: ApiResult<Option<Need>>) -> Self {
        let headers = request.headers();
        Self {
            need,
            peer: peer::of(request.extensions()).cloned(),
            authorization: headers.get(header::AUTHORIZATION).cloned(),
            hops: header_text(headers, "x-forwarded-for").map(str::to_owned),
            word: None,
            path: String::new(),
        }
    }
}

impl Auth {
    /// Whether a request is served, and for whom.
    ///
    /// # Errors
    /// A refusal that says why.
    pub async fn admit(&self, asking: Asking) -> Result<Admitted, Refused> {
        let need = asking.need?;
        let peer = asking.peer.as_ref();
        let address = peer.map(|p| p.address.ip());
        let origin = self.inner.settings.origin(address, asking.hops.as_deref());
        // Another master has counted it where it came in.
        let word = asking.word.filter(|_| self.inner.on);
        if let Some(Need::Node | Need::Master) = need {
            between(need, peer)?;
            return Ok(Admitted { caller: None, origin });
        }
        if let (Some(rates), Some(origin), None) = (&self.inner.rates, origin, &word) {
            rates.take(origin).map_err(|wait| too_many(wait.as_secs()))?;
        }
        if !self.inner.on || need == Some(Need::Nothing) {
            return Ok(Admitted { caller: None, origin });
        }
        self.ready().await?;
        let caller = match word {
            Some(word) => self.of_master(&word, &asking.path, peer).await?,
            None => self.who(asking.authorization.as_ref(), peer, origin).await?,
        };
        let caller = Arc::new(caller);
        let message = match need {
            Some(Need::May(permission)) if !caller.access.may(permission) => {
                format!("{} may not do this: {permission} is missing", caller.name)
            }
            None => "nobody has said who may do this".to_owned(),
            _ => {
                let origin = caller.address.or(origin);
                return Ok(Admitted { caller: Some(caller), origin });
            }
        };
        Err(Refused { error: ApiError::new(Code::DENIED, message), caller: Some(caller) })
    }

    /// Whom another master works for.
    async fn of_master(&self, word: &str, path: &str, peer: Option<&Peer>) -> ApiResult<Caller> {
        let is_master =
            peer.is_none_or(|p| !p.encrypted || matches!(p.identity, Some(Identity::Master(_))));
        let told = if is_master { self.told(word, path).await } else { None };
        told.ok_or_else(|| {
            unknown("the word of a master that is none, or too old; do clocks differ?")
        })
    }

    /// Who asks, by what came with the request.
    async fn who(
        &self,
        credentials: Option<&HeaderValue>,
        peer: Option<&Peer>,
        origin: Option<IpAddr>,
    ) -> ApiResult<Caller> {
        let Some(credentials) = credentials else {
            let identity = peer.and_then(|p| p.identity.as_ref());
            let caller = identity.and_then(|identity| self.certificate(identity, origin));
            return caller.ok_or_else(|| match identity {
                Some(Identity::Client(name)) => {
                    unknown(&format!("the certificate is of {name:?}, and there is no such user"))
                }
                _ => unknown("nobody is logged in; expected a token (see `meepo login`)"),
            });
        };
        let text = credentials.to_str().ok().filter(|t| t.len() <= MAX_CREDENTIALS);
        let bearer = text
            .and_then(|t| t.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let Some((_, bearer)) = bearer else {
            return Err(unknown("expected `Authorization: Bearer <token>`"));
        };
        let bearer = bearer.trim();
        self.guess(origin, bearer)?;
        let known = self.bearer(bearer, origin).await;
        if let (Err(e), Some(origin)) = (&known, origin)
            && e.0.code == Code::UNAUTHENTICATED
        {
            let _ = self.inner.failures.take(origin);
        }
        known
    }

    /// Refuses who was wrong too often a moment ago, unless the token is known to be right.
    fn guess(&self, origin: Option<IpAddr>, bearer: &str) -> ApiResult<()> {
        let Some(origin) = origin.filter(|o| !self.inner.failures.has(*o)) else { return Ok(()) };
        let token = bearer.parse::<TokenText>().ok();
        if token.is_some_and(|t| self.inner.hashing.knows(&t)) {
            return Ok(());
        }
        tracing::warn!(%origin, "too many wrong tokens and passwords");
        Err(too_many(1))
    }

    /// Lets a password be tried from where this task's request comes from.
    ///
    /// # Errors
    /// When too many were wrong a moment ago.
    pub(super) fn may_try(&self) -> ApiResult<()> {
        self.guess(super::caller::origin(), "")
    }

    /// Notes that a password was wrong.
    pub(super) fn was_wrong(&self) {
        if let Some(origin) = super::caller::origin() {
            let _ = self.inner.failures.take(origin);
        }
    }

    /// Serves a request that was admitted. An answer that goes on ends when who asked is nobody
    /// any more.
    pub async fn serve(
        &self,
        admitted: Admitted,
        serve: impl Future<Output = Response>,
    ) -> Response {
        let Admitted { caller, origin } = admitted;
        let response = coming_from(origin, acting_for(caller.clone(), serve)).await;
        let Some(caller) = caller else { return response };
        if response.body().size_hint().exact().is_some() {
            return response;
        }
        let changes = WatchStream::from_changes(self.inner.directory.changes());
        response.map(|body| Body::new(Watched { body, auth: self.clone(), caller, changes }))
    }
}

/// Masters and workers know each other by certificates, where there are some.
fn between(need: Option<Need>, peer: Option<&Peer>) -> ApiResult<()> {
    let Some(peer) = peer.filter(|p| p.encrypted) else { return Ok(()) };
    match (need, &peer.identity) {
        (Some(Need::Node), Some(Identity::Node(_)))
        | (Some(Need::Master), Some(Identity::Master(_))) => Ok(()),
        (_, other) => {
            let who = other.as_ref().map_or("nobody".to_owned(), ToString::to_string);
            let whose = if need == Some(Need::Master) { "a master" } else { "a node" };
            let message = format!("this is for the certificate of {whose}; {who} has shown one");
            Err(ApiError::new(Code::DENIED, message))
        }
    }
}

fn too_many(seconds: u64) -> ApiError {
    let wait = seconds.max(1);
    ApiError::new(Code::BUSY, format!("too many requests from this address; wait {wait} s"))
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// Refuses a token in an address: it is in logs of proxies by now.
fn no_secret_in(query: Option<&str>) -> ApiResult<()> {
    let Some(query) = query else { return Ok(()) };
    let values = query.split('&').filter_map(|pair| Some(pair.split_once('=')?.1));
    if values.into_iter().any(|v| v.parse::<TokenText>().is_ok()) {
        let message = "a token does not belong into an address, where others keep it: revoke it, \
                       and send the new one as `Authorization: Bearer <token>`";
        return Err(ApiError::new(Code::FORBIDDEN, message));
    }
    Ok(())
}

/// The body of an answer that goes on, as long as who asked is somebody.
struct Watched {
    body: Body,
    auth: Auth,
    caller: Arc<Caller>,
    changes: WatchStream<u64>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        // Also wakes this task when something is revoked while nothing is sent.
        while let Poll::Ready(Some(_)) = Pin::new(&mut this.changes).poll_next(cx) {}
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || this.auth.still(&this.caller) {
            return frame;
        }
        let gone = io::Error::other("the token was revoked or has expired");
        Poll::Ready(Some(Err(axum::Error::new(gone))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_in_an_address_is_refused() {
        let token = super::super::secret::token().unwrap().reveal();
        for query in [format!("token={token}"), format!("a=b&access_token={token}&c=d")] {
            let e = no_secret_in(Some(&query)).unwrap_err();
            assert_eq!(e.0.code, Code::FORBIDDEN);
            assert!(!e.0.message.contains(&token));
        }
        assert!(no_secret_in(Some("job=meepo_backup&q=x")).is_ok() && no_secret_in(None).is_ok());
    }

    #[test]
    fn certificates_of_others_do_not_count() {
        let peer = |identity| Peer {
            identity,
            encrypted: true,
            ..Peer::plain("10.0.0.1:1".parse().unwrap())
        };
        let node = peer(Some(Identity::Node("n".into())));
        let master = peer(Some(Identity::Master("m".into())));
        let client = peer(Some(Identity::Client("c".into())));
        for (need, fits) in [(Need::Node, &node), (Need::Master, &master)] {
            for who in [&node, &master, &client, &peer(None)] {
                assert_eq!(between(Some(need), Some(who)).is_ok(), who == fits, "{need:?} {who:?}");
            }
            // Nobody has certificates.
            assert!(between(Some(need), Some(&Peer::plain(node.address))).is_ok());
        }
    }
}
