//! Facts the program learnt from its peers and wants to know again after a restart: the address a NAT gives us, a
//! camera's manufacturer, parameters of a stream.
//!
//! Invariants: the last value wins; an unchanged value costs no write; a lost one is only learnt again, so writers
//! do not wait.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::{StoreError, StoreHandle};

/// Bytes in a value: parameter sets and addresses are far below; nothing large belongs here.
pub const LEARNT_VALUE_MAX: usize = 4096;
/// Keys in a scope (one camera, one uplink): keys are named by the program, a peer must not be able to fill the disk.
pub const LEARNT_KEYS_MAX: u32 = 256;
/// Bytes in the name of a scope or key.
const NAME_MAX: usize = 128;

impl StoreHandle {
    /// Keeps `value` under (`scope`, `key`), replacing the older one. Returns as soon as the request is queued; what a
    /// burst brings shares one commit. `at` is Unix milliseconds.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`], [`StoreError::Closed`]; [`StoreError::Refused`] when a text is too long. A later
    /// failure is logged.
    pub fn learn(&self, scope: &str, key: &str, value: &str, at: i64) -> Result<(), StoreError> {
        for name in [scope, key] {
            if name.is_empty() || name.len() > NAME_MAX {
                return Err(StoreError::refused("name of a learnt fact", name, "1 to 128 bytes"));
            }
        }
        if value.len() > LEARNT_VALUE_MAX {
            return Err(StoreError::refused("learnt value", value, "at most 4096 bytes"));
        }
        let (scope, key, value) = (scope.to_owned(), key.to_owned(), value.to_owned());
        self.enqueue("learnt fact", move |conn| learn(conn, &scope, &key, &value, at))
    }

    /// Everything known in `scope`.
    ///
    /// # Errors
    /// As for any request.
    pub async fn learnt(&self, scope: &str) -> Result<BTreeMap<String, String>, StoreError> {
        let scope = scope.to_owned();
        self.transact(move |conn| {
            let mut rows = conn.prepare_cached("SELECT key, value FROM learnt WHERE scope = ?1")?;
            let facts = rows.query_map([&scope], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(facts.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Drops everything known in `scope`: its owner has left the configuration. Returns as soon as it is queued.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`], [`StoreError::Closed`].
    pub fn forget(&self, scope: &str) -> Result<(), StoreError> {
        let scope = scope.to_owned();
        self.enqueue("forgetting of learnt facts", move |conn| {
            conn.execute("DELETE FROM learnt WHERE scope = ?1", [&scope])?;
            Ok(())
        })
    }
}

fn learn(conn: &Connection, scope: &str, key: &str, value: &str, at: i64) -> Result<(), StoreError> {
    let others: u32 = conn
        .prepare_cached("SELECT count(*) FROM learnt WHERE scope = ?1 AND key <> ?2")?
        .query_row([scope, key], |row| row.get(0))?;
    if others >= LEARNT_KEYS_MAX {
        return Err(StoreError::refused("learnt facts of one scope", scope, "at most 256 keys"));
    }
    conn.prepare_cached(
        "INSERT INTO learnt (scope, key, value, updated_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at
         WHERE value <> excluded.value",
    )?
    .execute((scope, key, value, at))?;
    Ok(())
}
