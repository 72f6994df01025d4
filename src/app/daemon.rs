//! `menshen run`: from the configuration to a running gateway, signals, systemd, and back.

use super::wiring::{Gateway, StartError, StartOptions, warn_of_small_buffers};
use super::{COMMIT, Exit, check, complain, convert, logging, say};
use crate::config::{Config, ProblemFormat, Severity, render_problems};
use sd_notify::NotifyState;
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The whole of the goodbye; systemd and operators wait as long.
const GRACE: Duration = Duration::from_secs(10);
/// An unanswered question of the watchdog: the SIP loop is stuck.
const LIFE_SIGN: Duration = Duration::from_secs(5);

/// Runs until a signal or a fatal fault.
pub fn run(path: &Path) -> Exit {
    let loaded = check::load(path);
    let Some(config) = loaded.config else {
        complain(render_problems(&loaded.problems, ProblemFormat::Text).trim_end());
        complain(format_args!("{}: not started, see above", path.display()));
        return Exit::Config;
    };
    let log = match logging::start(convert::log_format(config.log.format), &config.log.directives()) {
        Ok(log) => log,
        Err(e) => {
            complain(e);
            return Exit::Config;
        }
    };
    for problem in &loaded.problems {
        tracing::warn!(%problem, "configuration");
    }
    warn_of_small_buffers();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("menshen").build() {
        Ok(runtime) => runtime,
        Err(e) => {
            complain(format_args!("cannot start the runtime: {e}"));
            return Exit::Internal;
        }
    };
    let exit = runtime.block_on(serve(path, config, &log));
    runtime.shutdown_timeout(Duration::from_millis(200));
    exit
}

/// The exit code of a failed start, with its line.
pub fn start_failed(error: &StartError) -> Exit {
    tracing::error!(%error, "not started");
    complain(error);
    match error {
        StartError::Bind(_) => Exit::Unavailable,
        StartError::Config(_) => Exit::Config,
        StartError::Store(_) | StartError::Internal(_) => Exit::Internal,
    }
}

async fn serve(path: &Path, config: Config, log: &logging::LogHandle) -> Exit {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = signals else {
        complain("cannot listen for signals");
        return Exit::Internal;
    };
    let options = StartOptions { ephemeral: false, seed: None, commit: COMMIT };
    let mut gateway = match Gateway::start(config, options).await {
        Ok(gateway) => gateway,
        Err(e) => return start_failed(&e),
    };
    print_listeners(&gateway);
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let mut watchdog =
        tokio::time::interval(sd_notify::watchdog_enabled().map_or(Duration::from_secs(3600), |t| t / 2));
    let exit = loop {
        tokio::select! {
            _ = terminate.recv() => break Exit::Ok,
            _ = interrupt.recv() => break Exit::Ok,
            _ = hangup.recv() => reload(path, &mut gateway, log).await,
            why = gateway.fatal() => {
                tracing::error!(error = %why, "stopping");
                break Exit::Internal;
            }
            _ = watchdog.tick() => {
                // Only a living SIP loop pets the watchdog.
                if tokio::time::timeout(LIFE_SIGN, gateway.sip().counts()).await.is_ok_and(|r| r.is_ok()) {
                    let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                } else {
                    tracing::error!("the SIP loop gives no sign of life");
                }
            }
        }
    };
    tracing::info!("stopping: saying goodbye to platforms and cameras");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    tokio::select! {
        _ = tokio::time::timeout(GRACE, gateway.shutdown()) => {}
        _ = terminate.recv() => tracing::warn!("second signal: stopping at once"),
        _ = interrupt.recv() => tracing::warn!("second signal: stopping at once"),
    }
    exit
}

/// One line per listener, as people know it from other servers.
pub fn print_listeners(gateway: &Gateway) {
    for listener in gateway.listeners() {
        let kinds: Vec<&str> = [("UDP", listener.udp), ("TCP", listener.tcp), ("TLS", listener.tls)]
            .into_iter()
            .filter_map(|(name, on)| on.then_some(name))
            .collect();
        say(format_args!("SIP      {} ({})", listener.local, kinds.join(", ")));
    }
    let range = gateway.config().media.port_range;
    say(format_args!("media    ports {}-{} (UDP, TCP)", range.first, range.last));
    say(format_args!(
        "console  http{}://{}/",
        if gateway.config().http.tls_cert.is_some() { "s" } else { "" },
        gateway.http_addr()
    ));
}

async fn reload(path: &Path, gateway: &mut Gateway, log: &logging::LogHandle) {
    let _ = sd_notify::notify(&[
        NotifyState::Reloading,
        NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Reloading),
    ]);
    let loaded = check::load(path);
    match loaded.config {
        None => {
            for problem in loaded.problems.iter().filter(|p| p.severity == Severity::Error) {
                tracing::error!(%problem, "configuration");
            }
            tracing::error!("reload refused: the running configuration stays");
        }
        Some(config) => {
            if let Err(e) = log.set(&config.log.directives()) {
                tracing::error!(error = %e, "log filter not taken");
            }
            match gateway.reload(config).await {
                Ok(summary) => {
                    for done in &summary.done {
                        tracing::info!(change = %done, "reload");
                    }
                    for key in &summary.restart_needed {
                        tracing::warn!(%key, "reload: this change needs a restart and was not taken");
                    }
                    tracing::info!(
                        changes = summary.done.len(),
                        restart_needed = summary.restart_needed.len(),
                        "reloaded"
                    );
                }
                Err(e) => tracing::error!(error = %e, "reload failed"),
            }
        }
    }
    let _ = sd_notify::notify(&[NotifyState::Ready]);
}
