//! The last known assignments, for a start without etcd.

use rusqlite::{Connection, OptionalExtension, Result, params};

/// A key of etcd with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The revision of etcd at which the value was put.
    pub mod_revision: i64,
}

/// Puts `entry` in the place of what the key held. Writes nothing if nothing changed.
pub(super) fn put(conn: &Connection, entry: &SnapshotEntry) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO snapshot (key, mod_revision, value) VALUES (?1, ?2, ?3)
         ON CONFLICT (key) DO UPDATE SET mod_revision = excluded.mod_revision, value = excluded.value
         WHERE mod_revision <> excluded.mod_revision OR value <> excluded.value",
    )?
    .execute(params![entry.key, entry.mod_revision, entry.value])
    .map(drop)
}

/// Removes `key`.
pub(super) fn delete(conn: &Connection, key: &str) -> Result<()> {
    conn.prepare_cached("DELETE FROM snapshot WHERE key = ?1")?.execute([key]).map(drop)
}

/// The value of `key`.
pub(super) fn get(conn: &Connection, key: &str) -> Result<Option<Vec<u8>>> {
    conn.prepare_cached("SELECT value FROM snapshot WHERE key = ?1")?
        .query_row([key], |r| r.get(0))
        .optional()
}

/// Everything, by key.
pub(super) fn load(conn: &Connection) -> Result<Vec<SnapshotEntry>> {
    let mut statement =
        conn.prepare_cached("SELECT key, mod_revision, value FROM snapshot ORDER BY key")?;
    statement
        .query_map([], |r| {
            Ok(SnapshotEntry { key: r.get(0)?, mod_revision: r.get(1)?, value: r.get(2)? })
        })?
        .collect()
}
