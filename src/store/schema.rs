//! Opening the file: permissions, checks before the first write, settings, migrations.
//!
//! In: a path. Out: a connection at the newest schema.
//! Invariants: nothing is written before the file is known to be whole, ours, and not newer than we are.
//! Migrations are only ever appended; a released one is never edited.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, Migrations};

use super::StoreError;

/// "MENS": marks the file as ours in SQLite's header field for it.
const APPLICATION_ID: i32 = 0x4D45_4E53;

/// Another process (a reader, a backup tool) may hold the file for a moment; longer than this is its fault.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// After a checkpoint the log file is cut to this many bytes, so that one burst does not keep its space for ever.
const JOURNAL_SIZE_LIMIT: i64 = 16 * 1024 * 1024;

pub(super) const MIGRATIONS: &[M<'static>] = &[M::up(FIRST), M::up(DEVICES), M::up(ALARMS)];

const DEVICES: &str = "CREATE TABLE binding (
         device        TEXT NOT NULL PRIMARY KEY,
         contact       TEXT NOT NULL,
         source        TEXT NOT NULL,
         local         TEXT NOT NULL,
         transport     TEXT NOT NULL,
         expires_at    INTEGER NOT NULL,
         registered_at INTEGER NOT NULL,
         version       TEXT,
         user_agent    TEXT
     ) STRICT, WITHOUT ROWID;

     CREATE TABLE device_item (
         device  TEXT NOT NULL,
         own_id  TEXT NOT NULL,
         code    TEXT NOT NULL UNIQUE CHECK (length(code) = 20),
         item    TEXT NOT NULL,
         seen_at INTEGER NOT NULL,
         gone_at INTEGER,
         PRIMARY KEY (device, own_id)
     ) STRICT;
     CREATE TRIGGER device_item_keep BEFORE DELETE ON device_item
         BEGIN SELECT RAISE(ABORT, 'an item keeps its code for ever: it is marked as gone, never deleted'); END;";

const FIRST: &str =
    // 0x4D454E53, see APPLICATION_ID
    "PRAGMA application_id = 1296387667;

     CREATE TABLE minted_id (
         kind       TEXT NOT NULL,
         key        TEXT NOT NULL,
         code       TEXT NOT NULL UNIQUE CHECK (length(code) = 20),
         created_at INTEGER NOT NULL,
         retired_at INTEGER,
         PRIMARY KEY (kind, key)
     ) STRICT;
     CREATE TRIGGER minted_id_keep BEFORE DELETE ON minted_id
         BEGIN SELECT RAISE(ABORT, 'a minted code is retired, never deleted: it must not be given out twice'); END;

     CREATE TABLE learnt (
         scope      TEXT NOT NULL,
         key        TEXT NOT NULL,
         value      TEXT NOT NULL,
         updated_at INTEGER NOT NULL,
         PRIMARY KEY (scope, key)
     ) STRICT;

     CREATE TABLE audit_genesis (
         id         INTEGER PRIMARY KEY CHECK (id = 1),
         site_id    TEXT NOT NULL,
         created_at INTEGER NOT NULL,
         algorithm  TEXT NOT NULL
     ) STRICT;
     CREATE TABLE audit_head (
         id   INTEGER PRIMARY KEY CHECK (id = 1),
         seq  INTEGER NOT NULL,
         hash BLOB NOT NULL CHECK (length(hash) = 32)
     ) STRICT;
     CREATE TABLE audit (
         seq         INTEGER PRIMARY KEY,
         at          INTEGER NOT NULL,
         actor_kind  TEXT NOT NULL CHECK (actor_kind IN ('user', 'system', 'peer')),
         actor       TEXT NOT NULL,
         role        TEXT NOT NULL,
         source      TEXT NOT NULL,
         action      TEXT NOT NULL,
         object_type TEXT NOT NULL,
         object_id   TEXT NOT NULL,
         reason      TEXT NOT NULL,
         outcome     TEXT NOT NULL CHECK (outcome IN ('ok', 'deny', 'error')),
         before_hash BLOB CHECK (length(before_hash) = 32),
         after_hash  BLOB CHECK (length(after_hash) = 32),
         details     TEXT NOT NULL,
         prev        BLOB NOT NULL CHECK (length(prev) = 32),
         this        BLOB NOT NULL CHECK (length(this) = 32)
     ) STRICT;

     CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
         BEGIN SELECT RAISE(ABORT, 'audit rows are never changed'); END;
     CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
         BEGIN SELECT RAISE(ABORT, 'audit rows are never deleted'); END;
     -- also stops INSERT OR REPLACE, which deletes without firing the trigger above
     CREATE TRIGGER audit_in_order BEFORE INSERT ON audit
         WHEN NEW.seq IS NOT (SELECT seq + 1 FROM audit_head) OR NEW.prev IS NOT (SELECT hash FROM audit_head)
         BEGIN SELECT RAISE(ABORT, 'audit rows are only appended'); END;
     CREATE TRIGGER audit_head_follows BEFORE UPDATE ON audit_head
         WHEN NEW.seq IS NOT OLD.seq + 1 OR NEW.hash IS NOT (SELECT this FROM audit WHERE seq = NEW.seq)
         BEGIN SELECT RAISE(ABORT, 'the audit head only follows the last audit row'); END;
     CREATE TRIGGER audit_head_once BEFORE INSERT ON audit_head WHEN EXISTS (SELECT 1 FROM audit_head)
         BEGIN SELECT RAISE(ABORT, 'the audit head exists'); END;
     CREATE TRIGGER audit_head_no_delete BEFORE DELETE ON audit_head
         BEGIN SELECT RAISE(ABORT, 'the audit head is never deleted'); END;
     CREATE TRIGGER audit_genesis_once BEFORE INSERT ON audit_genesis WHEN EXISTS (SELECT 1 FROM audit_genesis)
         BEGIN SELECT RAISE(ABORT, 'the audit chain has begun'); END;
     CREATE TRIGGER audit_genesis_no_update BEFORE UPDATE ON audit_genesis
         BEGIN SELECT RAISE(ABORT, 'the beginning of the audit chain is never changed'); END;
     CREATE TRIGGER audit_genesis_no_delete BEFORE DELETE ON audit_genesis
         BEGIN SELECT RAISE(ABORT, 'the beginning of the audit chain is never deleted'); END;";

const ALARMS: &str = "CREATE TABLE alarms (
         id          INTEGER PRIMARY KEY AUTOINCREMENT,
         channel     TEXT NOT NULL,
         device      TEXT NOT NULL,
         priority    INTEGER NOT NULL,
         method      INTEGER NOT NULL,
         kind        INTEGER,
         type_param  INTEGER,
         device_time INTEGER,
         received_at INTEGER NOT NULL,
         sn          INTEGER NOT NULL,
         description TEXT,
         longitude   REAL,
         latitude    REAL,
         dedup       TEXT
     ) STRICT;
     CREATE INDEX alarms_dedup ON alarms (dedup) WHERE dedup IS NOT NULL;

     -- `open` and `held` are undone; any other state is how it ended, and has a done_at
     CREATE TABLE outbox (
         seq      INTEGER PRIMARY KEY AUTOINCREMENT,
         uplink   TEXT NOT NULL,
         alarm    INTEGER NOT NULL REFERENCES alarms (id) ON DELETE CASCADE,
         channel  TEXT NOT NULL,
         state    TEXT NOT NULL CHECK (state IN ('open', 'held', 'delivered', 'unconfirmed', 'filtered', 'unshared',
                                                 'refused', 'overrun', 'expired')),
         tries    INTEGER NOT NULL DEFAULT 0,
         next_try INTEGER,
         done_at  INTEGER CHECK ((done_at IS NULL) = (state IN ('open', 'held'))),
         UNIQUE (alarm, uplink)
     ) STRICT;
     CREATE INDEX outbox_open ON outbox (uplink, seq) WHERE state = 'open';
     CREATE INDEX outbox_held ON outbox (channel, seq) WHERE state = 'held';

     CREATE TABLE outbox_count (
         uplink TEXT PRIMARY KEY,
         undone INTEGER NOT NULL
     ) STRICT;
     CREATE TRIGGER outbox_counts_new AFTER INSERT ON outbox WHEN NEW.done_at IS NULL BEGIN
         INSERT INTO outbox_count VALUES (NEW.uplink, 1) ON CONFLICT DO UPDATE SET undone = undone + 1;
     END;
     CREATE TRIGGER outbox_counts_done AFTER UPDATE OF done_at ON outbox
         WHEN OLD.done_at IS NULL AND NEW.done_at IS NOT NULL BEGIN
         UPDATE outbox_count SET undone = undone - 1 WHERE uplink = NEW.uplink;
     END;
     CREATE TRIGGER outbox_counts_gone AFTER DELETE ON outbox WHEN OLD.done_at IS NULL BEGIN
         UPDATE outbox_count SET undone = undone - 1 WHERE uplink = OLD.uplink;
     END;

     CREATE TABLE alarm_latch (
         channel TEXT PRIMARY KEY,
         alarm   INTEGER NOT NULL,
         kind    INTEGER
     ) STRICT;

     -- running time, and the newest alarm at each tick of it
     CREATE TABLE alarm_tick (
         tick   INTEGER PRIMARY KEY AUTOINCREMENT,
         newest INTEGER NOT NULL
     ) STRICT;";

/// Opens `path` for writing, creating file (0600) and directory (0700) if they are not there.
pub(super) fn open_file(path: &Path) -> Result<Connection, StoreError> {
    prepare_path(path)
        .map_err(StoreError::from)
        .and_then(|()| {
            let mut conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | no_mutex())?;
            conn.busy_timeout(BUSY_TIMEOUT)?;
            // A file we refuse must not be touched, not even by folding its log back when we let go of it.
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            let version = check_ours(&conn)?;
            check_whole(&conn)?;
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
            if version == 0 {
                conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            }
            conn.pragma_update(None, "journal_mode", "WAL")?;
            conn.pragma_update(None, "journal_size_limit", JOURNAL_SIZE_LIMIT)?;
            settle(&mut conn)?;
            Ok(conn)
        })
        .map_err(|why| at_path(path, why))
}

/// An empty database in memory: gone with the handle.
pub(super) fn open_memory() -> Result<Connection, StoreError> {
    let mut conn = Connection::open_in_memory()?;
    settle(&mut conn)?;
    Ok(conn)
}

/// Opens `path` for reading beside a running daemon.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | no_mutex())?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        match check_ours(&conn)? {
            0 => Err(StoreError::NotOurs),
            _ => Ok(conn),
        }
    };
    open().map_err(|why| at_path(path, why))
}

/// A connection is used by one thread at a time.
fn no_mutex() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn at_path(path: &Path, why: StoreError) -> StoreError {
    StoreError::Open { path: path.to_path_buf(), why: Box::new(why) }
}

fn prepare_path(path: &Path) -> Result<(), std::io::Error> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        // An existing directory keeps its mode: it may be shared on purpose; the file itself is closed to others.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let mode = fs::metadata(path)?.permissions().mode();
            if mode & 0o077 != 0 {
                fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The schema version of a file that is ours to write; 0 for an empty one.
fn check_ours(conn: &Connection) -> Result<i64, StoreError> {
    let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let objects: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let known = MIGRATIONS.len() as i64;
    match (version, application) {
        (0, 0) if objects == 0 => Ok(0),
        (1.., APPLICATION_ID) if version <= known => Ok(version),
        (1.., APPLICATION_ID) => Err(StoreError::Newer { found: version, known }),
        _ => Err(StoreError::NotOurs),
    }
}

fn check_whole(conn: &Connection) -> Result<(), StoreError> {
    let found: String = conn
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(|error| StoreError::Corrupt { why: error.to_string() })?;
    if found == "ok" { Ok(()) } else { Err(StoreError::Corrupt { why: found }) }
}

fn settle(conn: &mut Connection) -> Result<(), StoreError> {
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    Migrations::from_slice(MIGRATIONS).to_latest(conn).map_err(|error| match error {
        rusqlite_migration::Error::RusqliteError { err, .. } => err.into(),
        other => StoreError::Failed(other.to_string()),
    })
}
