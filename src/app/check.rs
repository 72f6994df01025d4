//! The commands that look and do not run: check-config, print-config, health, audit verify.

use super::{Exit, complain, say};
use crate::clock;
use crate::config::{self, Loaded, ProblemFormat, Severity, render_problems};
use crate::store::{VerifyError, verify_audit};
use std::path::Path;
use std::time::Duration;

/// Reads a configuration file with the process's environment.
pub fn load(path: &Path) -> Loaded {
    config::load(path, std::env::vars(), clock::system_unix().as_secs() as i64)
}

/// `menshen check-config`.
pub fn check_config(path: &Path, json: bool) -> Exit {
    let loaded = load(path);
    let format = if json { ProblemFormat::Json } else { ProblemFormat::Text };
    let text = render_problems(&loaded.problems, format);
    if !text.trim().is_empty() {
        say(text.trim_end());
    }
    if loaded.has_errors() {
        return Exit::Config;
    }
    if !json {
        let warnings = loaded.problems.iter().filter(|p| p.severity == Severity::Warning).count();
        say(format_args!("{}: ok, {warnings} warning(s)", path.display()));
    }
    Exit::Ok
}

/// `menshen print-config`.
pub fn print_config(path: &Path) -> Exit {
    let loaded = load(path);
    if loaded.has_errors() {
        complain(render_problems(&loaded.problems, ProblemFormat::Text).trim_end());
        return Exit::Config;
    }
    say(config::print_effective(&loaded).trim_end());
    Exit::Ok
}

/// `menshen health`.
pub fn health(path: &Path, ready: bool) -> Exit {
    let loaded = load(path);
    let Some(config) = loaded.config else {
        complain(render_problems(&loaded.problems, ProblemFormat::Text).trim_end());
        return Exit::Config;
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        complain("cannot start a runtime");
        return Exit::Internal;
    };
    let route = if ready { "/readyz" } else { "/healthz" };
    let answer = runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(4), crate::console::client::ask(&config.http, route)).await
    });
    match answer {
        Ok(Ok((200, body))) => {
            say(body.trim());
            Exit::Ok
        }
        Ok(Ok((status, body))) => {
            complain(format_args!("{route} answered {status}: {}", body.trim()));
            Exit::CheckFailed
        }
        Ok(Err(e)) => {
            complain(e);
            Exit::CheckFailed
        }
        Err(_) => {
            complain(format_args!("{route}: no answer within 4 s"));
            Exit::CheckFailed
        }
    }
}

/// `menshen audit verify`.
pub fn audit_verify(path: &Path) -> Exit {
    let loaded = load(path);
    let Some(config) = loaded.config else {
        complain(render_problems(&loaded.problems, ProblemFormat::Text).trim_end());
        return Exit::Config;
    };
    let file = config.gateway.data_dir.join("menshen.db");
    match verify_audit(&file) {
        Ok(report) => {
            let span = match (report.first, report.last) {
                (Some(first), Some(last)) => format!("records {first} to {last}"),
                _ => "no records".to_owned(),
            };
            let head: String = report.head_hash.iter().map(|b| format!("{b:02x}")).collect();
            say(format_args!(
                "{}: audit log intact, {} ({} in all), head {head}",
                file.display(),
                span,
                report.records
            ));
            Exit::Ok
        }
        Err(VerifyError::Bad(bad)) => {
            complain(format_args!("{}: record {}: {}", file.display(), bad.seq, bad.why));
            Exit::CheckFailed
        }
        Err(e) => {
            complain(format_args!("{}: {e}", file.display()));
            Exit::CheckFailed
        }
    }
}
