//! What can go wrong with the store, and what to do about it.
//!
//! Invariants: every message names the value found and the way out; SQLite's codes are sorted by who must act.

use std::path::PathBuf;

use rusqlite::ErrorCode;

/// Why the store could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The request queue is full: the disk is slower than what comes in.
    #[error(
        "the store is overloaded: {} requests wait already: refuse the request, try again later",
        super::REQUESTS_MAX
    )]
    Overloaded,
    /// The store was closed, or its thread has died.
    #[error("the store is closed: the request was not done: restart the program if it is not stopping")]
    Closed,
    /// The store did not finish within the deadline given to `close`.
    #[error("the store did not close in time: acknowledged rows are safe, the rest may be lost: check the disk")]
    CloseTimeout,
    /// The database could not be opened; the file was left as it is.
    #[error("cannot open the database {}: {why}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// The reason.
        why: Box<StoreError>,
    },
    /// The file was written by a newer version of this program.
    #[error(
        "its schema is version {found}, this program knows {known}: \
         run the newer version again, or restore the backup made before the upgrade"
    )]
    Newer {
        /// The version in the file.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// The file is a database of another program.
    #[error("it is not a database of this program: nothing was changed: name another data_dir, or move the file away")]
    NotOurs,
    /// The file is damaged.
    #[error("it is damaged ({why}): keep a copy, then restore a backup or move the file away to begin a new one")]
    Corrupt {
        /// What SQLite said.
        why: String,
    },
    /// There is no room left.
    #[error("the disk is full: nothing was written: free some space, the store goes on by itself")]
    DiskFull,
    /// The file or its file system cannot be written.
    #[error("the database is read-only: nothing was written: check the mount, the owner and the mode of data_dir")]
    ReadOnly,
    /// The operating system refused or failed.
    #[error("file error: {0}: check the disk, and the owner and the mode of data_dir")]
    Io(String),
    /// A value that the store does not take.
    #[error("{what}: {value:?}: {allowed}")]
    Refused {
        /// Which value.
        what: &'static str,
        /// The value found, shortened.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// No serial number is left under this prefix and type.
    #[error("no serial number is left under {prefix}: 999999 have been given out: use another prefix")]
    SerialsExhausted {
        /// The first thirteen digits: centre, industry and type.
        prefix: String,
    },
    /// Anything else SQLite reports.
    #[error("database error: {0}: report it, with this text")]
    Failed(String),
}

impl StoreError {
    /// `value` is shortened, because it can come from a peer.
    pub(super) fn refused(what: &'static str, value: &str, allowed: &'static str) -> Self {
        StoreError::Refused { what, value: value.chars().take(64).collect(), allowed }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::DiskFull,
            Some(ErrorCode::ReadOnly) => StoreError::ReadOnly,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Corrupt { why: error.to_string() }
            }
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                StoreError::Io(error.to_string())
            }
            _ => StoreError::Failed(error.to_string()),
        }
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull => StoreError::DiskFull,
            std::io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly,
            _ => StoreError::Io(error.to_string()),
        }
    }
}
