//! The shell: command line, logging, wiring, signals, exit codes.

mod check;
mod cli;
mod convert;
mod daemon;
mod demo;
mod exit;
mod logging;
mod wiring;

pub use exit::Exit;
pub use wiring::{Gateway, ReloadSummary, StartError, StartOptions};

use clap::Parser;
use cli::{AuditCommand, Cli, Command, ConfigFile};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Revision of the source this was built from.
pub const COMMIT: &str = match option_env!("MENSHEN_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Where the configuration is when nobody says.
const DEFAULT_CONFIG: &str = "/etc/menshen/menshen.toml";

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    // One provider for the whole process, whoever asks.
    let _ = rustls::crypto::ring::default_provider().install_default();
    run(cli.command).into()
}

fn run(command: Command) -> Exit {
    match command {
        Command::Run(file) => daemon::run(&path_of(&file)),
        Command::CheckConfig { file, json } => check::check_config(&path_of(&file), json),
        Command::PrintConfig(file) => check::print_config(&path_of(&file)),
        Command::Demo { seconds } => demo::demo(seconds),
        Command::Sim { which } => demo::sim(which),
        Command::Health { file, ready } => check::health(&path_of(&file), ready),
        Command::Audit { action: AuditCommand::Verify(file) } => check::audit_verify(&path_of(&file)),
        Command::Version { json } => version(json),
    }
}

fn path_of(file: &ConfigFile) -> PathBuf {
    file.config
        .clone()
        .or_else(|| std::env::var_os("MENSHEN_CONFIG").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG))
}

/// A line for people or scripts. What cannot be written (a closed pipe) is nobody's concern any more.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line to standard error.
fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "menshen: {line}");
}

fn version(json: bool) -> Exit {
    let version = env!("CARGO_PKG_VERSION");
    let arch = std::env::consts::ARCH;
    if json {
        say(serde_json::json!({ "name": "menshen", "version": version, "commit": COMMIT, "arch": arch,
            "features": ["daemon"] }));
    } else {
        say(format_args!("menshen {version} (commit {COMMIT}, {arch})"));
    }
    Exit::Ok
}
