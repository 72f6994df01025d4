//! What the console answers instead of what was asked: one JSON form for all errors.
//! Standard: [RFC9110 15.5], [RFC9110 15.6].
//! In: why not. Out: status, `{"error": word, "message": text}`, the headers the status demands.
//! Invariants: nothing of the request is repeated in an answer.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::time::Duration;

/// See the file's head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    #[error("there is nothing here: see /api/v1/openapi.json")]
    NotFound,
    #[error("no uplink of this name: see /api/v1/uplinks")]
    UnknownUplink,
    #[error("no device of this code has registered: see /api/v1/devices")]
    UnknownDevice,
    #[error("only GET and HEAD are possible")]
    MethodNotAllowed,
    #[error("the query cannot be understood: see /api/v1/openapi.json for its parameters")]
    BadQuery,
    #[error("the address is too long: shorten the query")]
    UriTooLong,
    #[error("the body is too large: send none")]
    BodyTooLarge,
    #[error("asked under a foreign name: use localhost or an IP address")]
    ForeignHost,
    #[error("a login is needed")]
    Unauthorised {
        /// The token of /metrics, not the administrator's login.
        metrics: bool,
    },
    #[error("too many wrong logins from this address: wait")]
    LockedOut(Duration),
    /// The first of these answers: worth a record.
    #[error("too many wrong logins from this address: wait")]
    NowLockedOut(Duration),
    #[error("{0} does not answer in time: see the log")]
    Unavailable(&'static str),
    #[error("a fault of this program: see the log")]
    Internal,
}

impl ApiError {
    fn word(&self) -> &'static str {
        match self {
            ApiError::NotFound => "not_found",
            ApiError::UnknownUplink => "unknown_uplink",
            ApiError::UnknownDevice => "unknown_device",
            ApiError::MethodNotAllowed => "method_not_allowed",
            ApiError::BadQuery => "bad_query",
            ApiError::UriTooLong => "uri_too_long",
            ApiError::BodyTooLarge => "body_too_large",
            ApiError::ForeignHost => "foreign_host",
            ApiError::Unauthorised { .. } => "unauthorised",
            ApiError::LockedOut(_) | ApiError::NowLockedOut(_) => "locked_out",
            ApiError::Unavailable(_) => "unavailable",
            ApiError::Internal => "internal",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            ApiError::NotFound | ApiError::UnknownUplink | ApiError::UnknownDevice => StatusCode::NOT_FOUND,
            ApiError::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::BadQuery => StatusCode::BAD_REQUEST,
            ApiError::UriTooLong => StatusCode::URI_TOO_LONG,
            ApiError::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            ApiError::Unauthorised { .. } => StatusCode::UNAUTHORIZED,
            ApiError::LockedOut(_) | ApiError::NowLockedOut(_) => StatusCode::TOO_MANY_REQUESTS,
            ApiError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.word(), "message": self.to_string() });
        let mut response = (self.status(), Json(body)).into_response();
        let demanded = match self {
            ApiError::MethodNotAllowed => Some((header::ALLOW, HeaderValue::from_static("GET, HEAD"))),
            ApiError::Unauthorised { metrics: true } => {
                Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"menshen metrics\"")))
            }
            ApiError::Unauthorised { metrics: false } => {
                Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"menshen\", charset=\"UTF-8\"")))
            }
            ApiError::LockedOut(left) | ApiError::NowLockedOut(left) => {
                Some((header::RETRY_AFTER, HeaderValue::from(left.as_secs() + 1)))
            }
            _ => None,
        };
        if let Some((name, value)) = demanded {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
