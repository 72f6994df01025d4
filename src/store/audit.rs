//! The audit log: who did what to what, from where, and how it ended. Append-only and hash-chained.
//!
//! this = SHA-256(0x01 ‖ prev ‖ u64be(seq) ‖ fields), where prev is the `this` of the record before, and fields are, in
//! the order of [`AuditRecord`] from `at` to `details`, each u64be(length) ‖ bytes: `at` as i64be, `actor` as two
//! fields (kind and name), texts in UTF-8 exactly as stored, an absent hash as length 0. The first prev is
//! SHA-256(0x00 ‖ site_id ‖ i64be(created_at)).
//! Out: [`StoreHandle::audit`] returns after the row is durable; its error means "not recorded": do not act.
//! Invariants: triggers forbid UPDATE and DELETE; a field too long is shortened, never a reason to lose the record.
//! A writer who can rewrite the whole file can also rewrite the chain: send [`AuditHead`] elsewhere to notice that.

use std::path::Path;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{StoreError, StoreHandle, schema};

/// Names the hash in the file, so that a chain with another one can be told apart.
const ALGORITHM: &str = "sha-256";
/// Bytes in a name, address, action or object: longer ones come from hostile peers, and are cut.
const TEXT_MAX: usize = 256;
/// Bytes in a reason.
const REASON_MAX: usize = 1024;
/// Bytes in the details as JSON; more is replaced by its beginning.
const DETAILS_MAX: usize = 4096;
/// Bytes kept of details that were too long; escaping can double them.
const DETAILS_HEAD: usize = 1024;
/// Records in one page at most: what one console page shows, and what keeps the store's thread busy for about a
/// millisecond.
pub const PAGE_MAX: u32 = 500;

const COLUMNS: &str = "seq, at, actor_kind, actor, role, source, action, object_type, object_id, reason, outcome, \
                       before_hash, after_hash, details, prev, this";

/// What kind of party acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActorKind {
    /// A person who logged in, or tried to.
    User,
    /// A part of this program.
    System,
    /// A platform or device on the network.
    Peer,
}

impl ActorKind {
    /// The name stored and hashed.
    pub fn as_str(self) -> &'static str {
        match self {
            ActorKind::User => "user",
            ActorKind::System => "system",
            ActorKind::Peer => "peer",
        }
    }
}

/// Who acted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// What kind of party.
    pub kind: ActorKind,
    /// Login, part of the program, or name of the peer.
    pub name: String,
}

impl Actor {
    /// A person.
    pub fn user(login: impl Into<String>) -> Self {
        Actor { kind: ActorKind::User, name: login.into() }
    }

    /// A part of this program.
    pub fn system(part: impl Into<String>) -> Self {
        Actor { kind: ActorKind::System, name: part.into() }
    }

    /// A platform or device.
    pub fn peer(name: impl Into<String>) -> Self {
        Actor { kind: ActorKind::Peer, name: name.into() }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Ok,
    /// Not allowed.
    Deny,
    /// Allowed, but failed.
    Error,
}

impl Outcome {
    /// The name stored and hashed.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Deny => "deny",
            Outcome::Error => "error",
        }
    }
}

/// One thing to record. Begin with [`AuditEntry::new`] and fill in what is known.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    /// Unix milliseconds.
    pub at: i64,
    /// Who.
    pub actor: Actor,
    /// The role in which they acted; empty if none.
    pub role: String,
    /// Address they came from; empty if from inside.
    pub source: String,
    /// What was done, as `ptz`, `config.reload`, `login`.
    pub action: String,
    /// What kind of thing it was done to, as `channel`, `uplink`.
    pub object_type: String,
    /// Which one.
    pub object_id: String,
    /// Why, in words: given by the person, or why it was denied or failed.
    pub reason: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Hash of the object's state before, where there is one.
    pub before_hash: Option<[u8; 32]>,
    /// Hash of the object's state after, where there is one.
    pub after_hash: Option<[u8; 32]>,
    /// Anything else; no secrets.
    pub details: Value,
}

impl AuditEntry {
    /// An entry with what every record needs; the rest is empty.
    pub fn new(at: i64, actor: Actor, action: &str, object_type: &str, object_id: &str, outcome: Outcome) -> Self {
        AuditEntry {
            at,
            actor,
            role: String::new(),
            source: String::new(),
            action: action.to_owned(),
            object_type: object_type.to_owned(),
            object_id: object_id.to_owned(),
            reason: String::new(),
            outcome,
            before_hash: None,
            after_hash: None,
            details: json!({}),
        }
    }
}

/// One record as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// 1, 2, 3, … without a gap.
    pub seq: u64,
    /// Unix milliseconds.
    pub at: i64,
    /// Who.
    pub actor: Actor,
    /// In which role.
    pub role: String,
    /// From where.
    pub source: String,
    /// What was done.
    pub action: String,
    /// To what kind of thing.
    pub object_type: String,
    /// To which one.
    pub object_id: String,
    /// Why.
    pub reason: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Hash of the object's state before.
    pub before_hash: Option<[u8; 32]>,
    /// Hash of the object's state after.
    pub after_hash: Option<[u8; 32]>,
    /// JSON text, byte for byte as hashed.
    pub details: String,
    /// `this` of the record before.
    pub prev: [u8; 32],
    /// The hash of this record.
    pub this: [u8; 32],
}

/// The end of the chain: worth printing or sending to another host, because it proves everything before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditHead {
    /// The last record; 0 when there is none.
    pub seq: u64,
    /// Its hash; the chain's beginning when there is none.
    pub hash: [u8; 32],
}

/// A chain that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditReport {
    /// How many records.
    pub records: u64,
    /// The first one; `None` when there is none.
    pub first: Option<u64>,
    /// The last one; `None` when there is none.
    pub last: Option<u64>,
    /// The hash of the last one.
    pub head_hash: [u8; 32],
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The record is not there, but later ones are.
    #[error("the record is missing")]
    Missing,
    /// Its content does not give its hash.
    #[error("the record was altered")]
    Altered,
    /// It does not follow the record before it.
    #[error("the record does not follow the one before it: one of the two was replaced, or records were reordered")]
    Unlinked,
    /// It cannot be read at all.
    #[error("the record cannot be read")]
    Unreadable,
    /// The chain's head names this record, but it and all after it are gone.
    #[error("the end of the log was cut off here")]
    Truncated,
    /// The record is not covered by the chain's head.
    #[error("the record was added behind the head of the chain, or the head was altered")]
    BeyondHead,
    /// The row that begins or ends the chain is missing or of an unknown kind.
    #[error("the rows that begin and end the chain are missing or not known")]
    NoAnchor,
}

/// The first record that breaks the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "audit record {seq}: {why}: keep a copy of the database, and compare with the last head that was sent elsewhere"
)]
pub struct BadRecord {
    /// Which record; 0 for the chain's own rows.
    pub seq: u64,
    /// What is wrong with it.
    pub why: Fault,
}

/// Why a chain was not found good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The chain is broken.
    #[error(transparent)]
    Bad(#[from] BadRecord),
    /// The log could not be looked at.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl StoreHandle {
    /// Appends a record; returns its number once it is durable. Texts over their limits are shortened.
    ///
    /// # Errors
    /// Any [`StoreError`]: the record was **not** made, and an action that needs one must not be done.
    pub async fn audit(&self, entry: AuditEntry) -> Result<u64, StoreError> {
        self.transact(move |conn| append(conn, entry)).await
    }

    /// The end of the chain.
    ///
    /// # Errors
    /// As for any request.
    pub async fn audit_head(&self) -> Result<AuditHead, StoreError> {
        self.transact(head).await
    }

    /// The newest records before `before` (all when `None`), newest first; at most `limit` and [`PAGE_MAX`].
    ///
    /// # Errors
    /// As for any request.
    pub async fn audit_page(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, StoreError> {
        self.transact(move |conn| {
            let sql = format!("SELECT {COLUMNS} FROM audit WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2");
            let mut rows = conn.prepare_cached(&sql)?;
            let before = before.and_then(|seq| i64::try_from(seq).ok()).unwrap_or(i64::MAX);
            let page = rows.query_map((before, limit.min(PAGE_MAX)), AuditRecord::from_row)?;
            Ok(page.collect::<Result<_, _>>()?)
        })
        .await
    }
}

/// Checks the whole chain in the database at `path`, read-only, also while the daemon writes to it. Blocks for as long
/// as reading the log takes.
///
/// # Errors
/// [`VerifyError::Bad`] names the first record that breaks the chain; [`VerifyError::Store`] when the file cannot be
/// read.
pub fn verify_audit(path: &Path) -> Result<AuditReport, VerifyError> {
    let mut conn = schema::open_read_only(path)?;
    // One transaction: head and records of the same moment.
    let snapshot = conn.transaction().map_err(StoreError::from)?;
    verify(&snapshot)
}

/// Begins the chain of a new database.
pub(super) fn begin(conn: &Connection, site_id: &str, created_at: i64) -> Result<(), StoreError> {
    if conn.query_row("SELECT count(*) FROM audit_genesis", [], |row| row.get::<_, i64>(0))? > 0 {
        return Ok(());
    }
    let transaction = conn.unchecked_transaction()?;
    transaction.execute(
        "INSERT INTO audit_genesis (id, site_id, created_at, algorithm) VALUES (1, ?1, ?2, ?3)",
        (site_id, created_at, ALGORITHM),
    )?;
    transaction.execute(
        "INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, ?1)",
        [genesis(site_id, created_at).as_slice()],
    )?;
    Ok(transaction.commit()?)
}

fn genesis(site_id: &str, created_at: i64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([0]);
    hash.update(site_id.as_bytes());
    hash.update(created_at.to_be_bytes());
    hash.finalize().into()
}

fn head(conn: &Connection) -> Result<AuditHead, StoreError> {
    Ok(conn.prepare_cached("SELECT seq, hash FROM audit_head WHERE id = 1")?.query_row([], head_of_row)?)
}

fn head_of_row(row: &Row<'_>) -> Result<AuditHead, rusqlite::Error> {
    Ok(AuditHead { seq: seq_of_row(row)?, hash: row.get(1)? })
}

/// SQLite's integers are signed; a negative number is nothing we wrote.
fn seq_of_row(row: &Row<'_>) -> Result<u64, rusqlite::Error> {
    let stored: i64 = row.get(0)?;
    u64::try_from(stored).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, stored))
}

fn append(conn: &Connection, entry: AuditEntry) -> Result<u64, StoreError> {
    let head = head(conn)?;
    let mut record = AuditRecord {
        seq: head.seq + 1,
        at: entry.at,
        actor: Actor { kind: entry.actor.kind, name: shortened(entry.actor.name, TEXT_MAX) },
        role: shortened(entry.role, TEXT_MAX),
        source: shortened(entry.source, TEXT_MAX),
        action: shortened(entry.action, TEXT_MAX),
        object_type: shortened(entry.object_type, TEXT_MAX),
        object_id: shortened(entry.object_id, TEXT_MAX),
        reason: shortened(entry.reason, REASON_MAX),
        outcome: entry.outcome,
        before_hash: entry.before_hash,
        after_hash: entry.after_hash,
        details: details_text(&entry.details),
        prev: head.hash,
        this: [0; 32],
    };
    record.this = record.digest();
    let sql = format!(
        "INSERT INTO audit ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)"
    );
    conn.prepare_cached(&sql)?.execute((
        record.seq as i64,
        record.at,
        record.actor.kind.as_str(),
        &record.actor.name,
        &record.role,
        &record.source,
        &record.action,
        &record.object_type,
        &record.object_id,
        &record.reason,
        record.outcome.as_str(),
        record.before_hash,
        record.after_hash,
        &record.details,
        record.prev,
        record.this,
    ))?;
    conn.prepare_cached("UPDATE audit_head SET seq = ?1, hash = ?2 WHERE id = 1")?
        .execute((record.seq as i64, record.this))?;
    Ok(record.seq)
}

fn shortened(mut text: String, max: usize) -> String {
    const MARK: &str = "…";
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max - MARK.len()));
        text.push_str(MARK);
    }
    text
}

fn details_text(details: &Value) -> String {
    let text = details.to_string();
    if text.len() <= DETAILS_MAX {
        return text;
    }
    json!({ "truncated_bytes": text.len(), "begins": text[..text.floor_char_boundary(DETAILS_HEAD)] }).to_string()
}

impl AuditRecord {
    /// The hash its content should have; the file's head says how.
    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update([1]);
        hash.update(self.prev);
        hash.update(self.seq.to_be_bytes());
        let at = self.at.to_be_bytes();
        let fields: [&[u8]; 13] = [
            &at,
            self.actor.kind.as_str().as_bytes(),
            self.actor.name.as_bytes(),
            self.role.as_bytes(),
            self.source.as_bytes(),
            self.action.as_bytes(),
            self.object_type.as_bytes(),
            self.object_id.as_bytes(),
            self.reason.as_bytes(),
            self.outcome.as_str().as_bytes(),
            self.before_hash.as_ref().map_or(&[], |h| h),
            self.after_hash.as_ref().map_or(&[], |h| h),
            self.details.as_bytes(),
        ];
        for field in fields {
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field);
        }
        hash.finalize().into()
    }

    fn from_row(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        Ok(AuditRecord {
            seq: seq_of_row(row)?,
            at: row.get(1)?,
            actor: Actor { kind: row.get(2)?, name: row.get(3)? },
            role: row.get(4)?,
            source: row.get(5)?,
            action: row.get(6)?,
            object_type: row.get(7)?,
            object_id: row.get(8)?,
            reason: row.get(9)?,
            outcome: row.get(10)?,
            before_hash: row.get(11)?,
            after_hash: row.get(12)?,
            details: row.get(13)?,
            prev: row.get(14)?,
            this: row.get(15)?,
        })
    }
}

impl FromSql for ActorKind {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "user" => Ok(ActorKind::User),
            "system" => Ok(ActorKind::System),
            "peer" => Ok(ActorKind::Peer),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

impl FromSql for Outcome {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "ok" => Ok(Outcome::Ok),
            "deny" => Ok(Outcome::Deny),
            "error" => Ok(Outcome::Error),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

fn bad(seq: u64, why: Fault) -> VerifyError {
    VerifyError::Bad(BadRecord { seq, why })
}

fn verify(conn: &Connection) -> Result<AuditReport, VerifyError> {
    let no_anchor = |_| bad(0, Fault::NoAnchor);
    let (site_id, created_at, algorithm): (String, i64, String) = conn
        .query_row("SELECT site_id, created_at, algorithm FROM audit_genesis WHERE id = 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .map_err(no_anchor)?;
    if algorithm != ALGORITHM {
        return Err(bad(0, Fault::NoAnchor));
    }
    let head: Option<AuditHead> = conn
        .query_row("SELECT seq, hash FROM audit_head WHERE id = 1", [], head_of_row)
        .optional()
        .map_err(no_anchor)?;
    let head = head.ok_or(bad(0, Fault::NoAnchor))?;

    let mut seq = 0;
    let mut hash = genesis(&site_id, created_at);
    let mut statement = conn.prepare(&format!("SELECT {COLUMNS} FROM audit ORDER BY seq")).map_err(StoreError::from)?;
    let mut rows = statement.query([]).map_err(StoreError::from)?;
    while let Some(row) = rows.next().map_err(|_| bad(seq + 1, Fault::Unreadable))? {
        seq += 1;
        let found = seq_of_row(row).map_err(|_| bad(seq, Fault::Unreadable))?;
        if found != seq {
            return Err(bad(seq, Fault::Missing));
        }
        if seq > head.seq {
            return Err(bad(seq, Fault::BeyondHead));
        }
        let record = AuditRecord::from_row(row).map_err(|_| bad(seq, Fault::Unreadable))?;
        if record.prev != hash {
            return Err(bad(seq, Fault::Unlinked));
        }
        if record.digest() != record.this {
            return Err(bad(seq, Fault::Altered));
        }
        hash = record.this;
    }
    if seq < head.seq {
        return Err(bad(seq + 1, Fault::Truncated));
    }
    if hash != head.hash {
        // Every record holds, and the chain ends elsewhere: the last one was rewritten together with its own hash.
        return Err(bad(seq, if seq == 0 { Fault::NoAnchor } else { Fault::Altered }));
    }
    Ok(AuditReport { records: seq, first: (seq > 0).then_some(1), last: (seq > 0).then_some(seq), head_hash: hash })
}
