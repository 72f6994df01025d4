//! Exit codes: what scripts and service managers may rely on.

use std::process::ExitCode;

/// Why the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Ok,
    /// A check failed (health, audit, demo).
    CheckFailed,
    /// Wrong usage of the command line.
    Usage,
    /// A port or the network is not available.
    Unavailable,
    /// Our own fault.
    Internal,
    /// The configuration is wrong.
    Config,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Ok => 0,
            Exit::CheckFailed => 1,
            Exit::Usage => 64,
            Exit::Unavailable => 69,
            Exit::Internal => 70,
            Exit::Config => 78,
        })
    }
}
