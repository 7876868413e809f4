//! Which signatures were accepted, as far as that matters still.

use super::{
    State, StateError,
    cursor::{instant, millis},
};
use jiff::Timestamp;
use meepo_core::signing::Floor;
use rusqlite::params;

impl State {
    /// The newest signature of each key that was accepted.
    pub async fn accepted(&self) -> Result<Vec<(String, Floor)>, StateError> {
        self.call(|cx| {
            let mut statement =
                cx.conn.prepare("SELECT key, term, issued, closed, keep FROM accepted")?;
            let rows = statement.query_map([], |r| {
                let floor = Floor {
                    term: r.get(1)?,
                    issued_at: instant(r.get(2)?),
                    closed: r.get(3)?,
                    keep_until: instant(r.get(4)?),
                };
                Ok((r.get(0)?, floor))
            })?;
            rows.collect()
        })
        .await
    }

    /// Sends an order to remember the newest signature of keys; what begins later is not
    /// written before it. Errors: the state is closed.
    pub async fn accept_later(&self, floors: Vec<(String, Floor)>) -> Result<(), StateError> {
        self.later(move |cx| {
            let mut put = cx.conn.prepare_cached(
                "INSERT OR REPLACE INTO accepted (key, term, issued, closed, keep)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for (key, floor) in &floors {
                let (issued, keep) = (millis(floor.issued_at), millis(floor.keep_until));
                put.execute(params![key, floor.term, issued, floor.closed, keep])?;
            }
            Ok(())
        })
        .await
    }

    /// Sends an order to forget what is not needed any more.
    pub async fn forget_accepted_later(&self, now: Timestamp) -> Result<(), StateError> {
        let now = millis(now);
        self.later(move |cx| {
            cx.conn.prepare_cached("DELETE FROM accepted WHERE keep < ?1")?.execute([now]).map(drop)
        })
        .await
    }
}
