//! The console's routes, and the server that answers them.
//! Standard: [RFC9110], [RFC9112].
//! In: a bound socket, settings, handles of the program. Out: answers, until cancelled.
//! Invariants: all routes stand in [`routes`], and nothing but reading is among them; every answer carries the security
//! headers; every request passes `guard` first and has its time limit.
//! Not here: what is answered (`api`), connections (`door`).

use super::api::{self, App};
use super::door::{Door, Source, Times};
use super::error::ApiError;
use super::guard::Access;
use super::{ConsoleConfig, ConsoleDeps, ConsoleError};
use crate::clock;
use crate::store::{Actor, AuditEntry, Outcome};
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use rustls::ServerConfig;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A handler that has not answered by then will not.
const HANDLER_TIME: Duration = Duration::from_secs(5);
/// What open requests get to finish when the console stops.
const STOP_TIME: Duration = Duration::from_secs(2);

const SECURITY_HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Everything that can be asked for.
fn routes() -> Vec<(&'static str, MethodRouter<Arc<App>>)> {
    vec![
        ("/", asset("text/html; charset=utf-8", include_str!("assets/index.html"))),
        ("/console.js", asset("text/javascript; charset=utf-8", include_str!("assets/console.js"))),
        ("/console.css", asset("text/css; charset=utf-8", include_str!("assets/console.css"))),
        ("/healthz", get(api::healthz)),
        ("/readyz", get(api::readyz)),
        ("/metrics", get(api::metrics)),
        ("/api/health", get(api::healthz)),
        ("/api/v1/openapi.json", asset("application/json", include_str!("assets/openapi.json"))),
        ("/api/v1/status", get(api::status)),
        ("/api/v1/uplinks", get(api::uplinks)),
        ("/api/v1/uplinks/{name}", get(api::uplink)),
        ("/api/v1/uplinks/{name}/trace", get(api::trace)),
        ("/api/v1/uplinks/{name}/catalog", get(api::catalog)),
        ("/api/v1/devices", get(api::devices)),
        ("/api/v1/devices/{id}/trace", get(api::device_trace)),
        ("/api/v1/channels", get(api::channels)),
        ("/api/v1/streams", get(api::streams)),
        ("/api/v1/audit", get(api::audit)),
    ]
}

fn asset(kind: &'static str, text: &'static str) -> MethodRouter<Arc<App>> {
    get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
}

fn router(app: Arc<App>) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, (path, handler)| router.route(path, handler))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

async fn guard(
    State(app): State<Arc<App>>,
    ConnectInfo(Source(source)): ConnectInfo<Source>,
    request: Request,
    next: Next,
) -> Response {
    let (head, body) = request.into_parts();
    let mut response = match app.access.admit(clock::now(), source, &head) {
        Ok(()) => match tokio::time::timeout(HANDLER_TIME, next.run(Request::from_parts(head, body))).await {
            Ok(response) => response,
            Err(_) => ApiError::Unavailable("the program").into_response(),
        },
        Err(refused) => {
            if matches!(refused, ApiError::NowLockedOut(_)) {
                report_lock_out(&app, source).await;
            }
            refused.into_response()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn report_lock_out(app: &App, source: IpAddr) {
    tracing::warn!(%source, "locked out of the console after too many wrong logins");
    let mut entry =
        AuditEntry::new(app.now_ms(), Actor::user(super::guard::USER), "login", "console", "", Outcome::Deny);
    entry.source = source.to_string();
    entry.reason = "too many wrong logins: source locked out".to_owned();
    // The lock holds whether or not it can be written down.
    match tokio::time::timeout(HANDLER_TIME, app.deps.store.audit(entry)).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => tracing::warn!(error = %e, "the lock-out could not be audited"),
        Err(_) => tracing::warn!("the lock-out could not be audited: the store does not answer"),
    }
}

/// Answers on `listener` until `cancel`, then lets open requests finish for a moment.
///
/// # Errors
/// [`ConsoleError`]: the settings do not protect an address others can reach, or the socket cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    cfg: ConsoleConfig,
    deps: ConsoleDeps,
    cancel: CancellationToken,
) -> Result<(), ConsoleError> {
    let local = listener.local_addr().map_err(unusable)?;
    let access = if local.ip().to_canonical().is_loopback() {
        Access::Local
    } else {
        let missing = |what| ConsoleError::Unprotected { listen: local, what };
        if cfg.tls.is_none() {
            return Err(missing("tls_cert and tls_key"));
        }
        let filled = |secret: &Option<crate::config::Secret>| secret.clone().filter(|s| !s.expose().is_empty());
        let password = filled(&cfg.admin_password).ok_or_else(|| missing("admin_password"))?;
        let token = filled(&cfg.metrics_token).ok_or_else(|| missing("metrics_token"))?;
        Access::login(password.expose(), token.expose())
    };
    run(listener, access, cfg.tls, deps, cancel).await
}

async fn run(
    listener: std::net::TcpListener,
    access: Access,
    tls: Option<Arc<ServerConfig>>,
    deps: ConsoleDeps,
    cancel: CancellationToken,
) -> Result<(), ConsoleError> {
    listener.set_nonblocking(true).map_err(unusable)?;
    let tcp = TcpListener::from_std(listener).map_err(unusable)?;
    let door = Door::new(tcp, tls, Times::default());
    let service = router(Arc::new(App::new(deps, access))).into_make_service_with_connect_info::<Source>();
    let stopping = cancel.clone();
    let server = axum::serve(door, service).with_graceful_shutdown(async move { stopping.cancelled().await });
    let too_long = async {
        cancel.cancelled().await;
        tokio::time::sleep(STOP_TIME).await;
    };
    tokio::select! {
        ended = server => ended.map_err(unusable),
        () = too_long => Ok(()),
    }
}

fn unusable(e: std::io::Error) -> ConsoleError {
    ConsoleError::Listener(e.to_string())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
