//! The connection to the master that leads, one for all requests that are handed to it,
//! with a circuit breaker: a leader that has died or hangs is not asked again and again
//! until another leads.

use crate::error::{ApiError, ApiResult};
use meepo_coord::election::Leadership;
use meepo_core::{
    breaker::{Breaker, State},
    code::Code,
};
use meepo_runtime::tls::{self, Credentials};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tonic::{Status, transport::Channel};
use tracing::warn;

/// Longest time until there is a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest time until the leader has begun to answer.
const BEGIN: Duration = Duration::from_millis(2500);
/// Longest time for which it is not asked, and half of it again.
const BREAKER_CAP: Duration = Duration::from_secs(8);

/// The way to the leader.
#[derive(Default)]
pub struct LeaderLink {
    /// What connections are encrypted with, if they are.
    credentials: Option<Arc<Credentials>>,
    link: Mutex<Option<Link>>,
}

struct Link {
    term: i64,
    channel: Channel,
    breaker: Breaker,
}

impl LeaderLink {
    /// Encrypted, if there are credentials.
    pub fn new(credentials: Option<Arc<Credentials>>) -> Self {
        Self { credentials, link: Mutex::default() }
    }

    /// A connection to whoever leads; made when first used, and again when it breaks.
    pub(super) fn channel(&self, leadership: &Leadership) -> ApiResult<(Channel, i64)> {
        let no_leader = || ApiError::new(Code::NO_LEADER, Code::NO_LEADER.meaning());
        let (leader, term) = leadership.leader.as_ref().ok_or_else(no_leader)?;
        let mut link = self.lock();
        if link.as_ref().is_none_or(|l| l.term != *term) {
            let options = |endpoint| tls::usual(endpoint, CONNECT);
            let channel = tls::channel(&leader.grpc, self.credentials.as_ref(), options);
            let channel = channel.map_err(|e| {
                warn!(error = %e, "the leader's address is not usable");
                no_leader()
            })?;
            let breaker = Breaker::new(BREAKER_CAP);
            *link = Some(Link { term: *term, channel, breaker });
        }
        let Some(link) = link.as_mut() else { return Err(no_leader()) };
        link.breaker
            .allow(Instant::now())
            .map_err(|_| ApiError::new(Code::NO_LEADER, "the leading master does not answer"))?;
        Ok((link.channel.clone(), *term))
    }

    /// Awaits the beginning of the leader's answer.
    pub(super) async fn begin<T>(
        &self,
        term: i64,
        call: impl Future<Output = Result<T, Status>>,
    ) -> ApiResult<T> {
        let (answer, away) = match tokio::time::timeout(BEGIN, call).await {
            Ok(Ok(answer)) => (Ok(answer), false),
            Ok(Err(status)) => {
                // What an operation answered has its code, whatever it is.
                let away = status.metadata().get("meepo-code").is_none();
                (Err(broken(&status)), away)
            }
            Err(_) => (Err(unknown_outcome()), true),
        };
        let dice = (uuid::Uuid::now_v7().as_u128() & 0xffff) as u16;
        let mut link = self.lock();
        if let Some(link) = link.as_mut().filter(|l| l.term == term) {
            match away {
                true => link.breaker.failure(Instant::now(), dice),
                false => link.breaker.success(),
            }
        }
        answer
    }

    /// How the breaker stands.
    pub(crate) fn breaker(&self) -> State {
        self.lock().as_ref().map_or(State::Closed, |l| l.breaker.state(Instant::now()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Link>> {
        // Nothing is left half done while it is held.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a failure of the leader means for the caller.
pub(super) fn broken(status: &Status) -> ApiError {
    let code = status.metadata().get("meepo-code").and_then(|v| v.to_str().ok()?.parse().ok());
    if let Some(code) = code {
        return ApiError::new(Code(code), status.message());
    }
    let mut cause = std::error::Error::source(status);
    while let Some(e) = cause {
        if e.is::<tonic::ConnectError>() {
            return ApiError::new(Code::NO_LEADER, "the leading master does not answer");
        }
        cause = e.source();
    }
    warn!(error = %status, "the connection to the leading master broke");
    unknown_outcome()
}

/// It may have begun: to ask again could run a command twice.
pub(super) fn unknown_outcome() -> ApiError {
    ApiError::new(Code::UNKNOWN_OUTCOME, "the connection to the leading master broke")
}
