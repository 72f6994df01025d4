//! 20-digit codes the program gives out itself: areas become business groups (215) and virtual organisations (216).
//!
//! Standard: [GB/T28181-2022 E.1] centre 8, industry 2, type 3, network 1, serial 6 digits.
//! Invariants: a key keeps its code for ever, because upper platforms file pictures and rights under it; a serial is
//! never given out twice under one prefix and type, whatever the network digit, not even after its key was retired.

use rusqlite::{Connection, OptionalExtension};

use super::{StoreError, StoreHandle};

/// The last serial number of six digits.
pub const SERIAL_MAX: u32 = 999_999;

/// Bytes in a kind or key.
const NAME_MAX: usize = 128;

/// A code that was given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minted {
    /// What it was minted for, within its kind.
    pub key: String,
    /// 20 digits.
    pub code: String,
    /// Unix milliseconds.
    pub created_at: i64,
    /// Unix milliseconds; `None` while in use.
    pub retired_at: Option<i64>,
}

impl StoreHandle {
    /// The code of `key` within `kind` ("area", …). A known key gets the code it always had, whatever the other
    /// arguments say now, and is in use again if it was retired; a new one takes the next serial never used under
    /// `prefix` and `type_code`.
    ///
    /// `prefix`: the ten digits of centre and industry; `type_code`: three digits, as 215; `network`: one digit;
    /// `at`: Unix milliseconds.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a malformed argument, [`StoreError::SerialsExhausted`], and as for any request.
    pub async fn mint(
        &self,
        kind: &str,
        key: &str,
        prefix: String,
        type_code: u16,
        network: u8,
        at: i64,
    ) -> Result<String, StoreError> {
        for name in [kind, key] {
            if name.is_empty() || name.len() > NAME_MAX {
                return Err(StoreError::refused("name to mint a code for", name, "1 to 128 bytes"));
            }
        }
        if prefix.len() != 10 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(StoreError::refused(
                "prefix of a minted code",
                &prefix,
                "the ten digits of centre and industry",
            ));
        }
        if type_code > 999 {
            return Err(StoreError::refused("type of a minted code", &type_code.to_string(), "three digits"));
        }
        if network > 9 {
            return Err(StoreError::refused("network digit of a minted code", &network.to_string(), "0 to 9"));
        }
        let (kind, key) = (kind.to_owned(), key.to_owned());
        let family = format!("{prefix}{type_code:03}");
        self.transact(move |conn| mint(conn, &kind, &key, &family, network, at)).await
    }

    /// Marks the code of `key` as no longer in use; an unknown key is no error. `at`: Unix milliseconds.
    ///
    /// # Errors
    /// As for any request.
    pub async fn retire(&self, kind: &str, key: &str, at: i64) -> Result<(), StoreError> {
        let (kind, key) = (kind.to_owned(), key.to_owned());
        self.transact(move |conn| {
            conn.execute(
                "UPDATE minted_id SET retired_at = ?3 WHERE kind = ?1 AND key = ?2 AND retired_at IS NULL",
                (&kind, &key, at),
            )?;
            Ok(())
        })
        .await
    }

    /// Every code of `kind`, the retired ones too, by key.
    ///
    /// # Errors
    /// As for any request.
    pub async fn minted(&self, kind: &str) -> Result<Vec<Minted>, StoreError> {
        let kind = kind.to_owned();
        self.transact(move |conn| {
            let mut rows = conn.prepare_cached(
                "SELECT key, code, created_at, retired_at FROM minted_id WHERE kind = ?1 ORDER BY key",
            )?;
            let minted = rows.query_map([&kind], |row| {
                Ok(Minted { key: row.get(0)?, code: row.get(1)?, created_at: row.get(2)?, retired_at: row.get(3)? })
            })?;
            Ok(minted.collect::<Result<_, _>>()?)
        })
        .await
    }
}

/// `family`: the first thirteen digits.
pub(super) fn mint(
    conn: &Connection,
    kind: &str,
    key: &str,
    family: &str,
    network: u8,
    at: i64,
) -> Result<String, StoreError> {
    let known = conn
        .prepare_cached("SELECT code, retired_at IS NOT NULL FROM minted_id WHERE kind = ?1 AND key = ?2")?
        .query_row([kind, key], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)))
        .optional()?;
    if let Some((code, retired)) = known {
        if retired {
            conn.execute("UPDATE minted_id SET retired_at = NULL WHERE kind = ?1 AND key = ?2", [kind, key])?;
        }
        return Ok(code);
    }
    // Rows are never deleted, so the highest serial tells which were used: that of each network digit, each one step in the
    // index on code.
    let mut highest = conn.prepare_cached(
        "SELECT coalesce(CAST(substr(max(code), 15) AS INTEGER), 0) FROM minted_id
         WHERE code BETWEEN ?1 || '000000' AND ?1 || '999999'",
    )?;
    let mut last = 0;
    for digit in 0..10 {
        last = last.max(highest.query_row([format!("{family}{digit}")], |row| row.get::<_, u32>(0))?);
    }
    if last >= SERIAL_MAX {
        return Err(StoreError::SerialsExhausted { prefix: family.to_owned() });
    }
    let code = format!("{family}{network}{:06}", last + 1);
    conn.prepare_cached("INSERT INTO minted_id (kind, key, code, created_at) VALUES (?1, ?2, ?3, ?4)")?
        .execute((kind, key, &code, at))?;
    Ok(code)
}
