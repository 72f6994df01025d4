//! Reason phrases of SIP status codes.
//! Standard: [RFC3261 21], [RFC3903 6], [RFC4412 4.6.2], [RFC6665 8.3].
//! In: a status code. Out: the phrase the standard gives it.
//! Invariants: never empty; an unknown code gets the phrase of its class.
//! Not here: which status an error means; that is decided where the error arises.

/// The standard's phrase for `status`; the class's phrase when the code is unknown. [RFC3261 21]
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Trying",
        180 => "Ringing",
        181 => "Call Is Being Forwarded",
        182 => "Queued",
        183 => "Session Progress",
        200 => "OK",
        202 => "Accepted",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Moved Temporarily",
        305 => "Use Proxy",
        380 => "Alternative Service",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        410 => "Gone",
        412 => "Conditional Request Failed",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Unsupported URI Scheme",
        420 => "Bad Extension",
        421 => "Extension Required",
        422 => "Session Interval Too Small",
        423 => "Interval Too Brief",
        480 => "Temporarily Unavailable",
        481 => "Call/Transaction Does Not Exist",
        482 => "Loop Detected",
        483 => "Too Many Hops",
        484 => "Address Incomplete",
        485 => "Ambiguous",
        486 => "Busy Here",
        487 => "Request Terminated",
        488 => "Not Acceptable Here",
        489 => "Bad Event",
        491 => "Request Pending",
        493 => "Undecipherable",
        494 => "Security Agreement Required",
        500 => "Server Internal Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Server Time-out",
        505 => "Version Not Supported",
        513 => "Message Too Large",
        580 => "Precondition Failure",
        600 => "Busy Everywhere",
        603 => "Decline",
        604 => "Does Not Exist Anywhere",
        606 => "Not Acceptable",
        _ => class_phrase(status),
    }
}

fn class_phrase(status: u16) -> &'static str {
    match status {
        0..=199 => "Session Progress",
        200..=299 => "OK",
        300..=399 => "Redirection",
        400..=499 => "Bad Request",
        500..=599 => "Server Internal Error",
        _ => "Global Failure",
    }
}

#[cfg(test)]
mod tests {
    use super::reason_phrase;

    #[test]
    fn known_codes_keep_their_spaces_and_unknown_ones_get_their_class() {
        assert_eq!(reason_phrase(404), "Not Found");
        assert_eq!(reason_phrase(480), "Temporarily Unavailable");
        assert_eq!(reason_phrase(481), "Call/Transaction Does Not Exist");
        assert_eq!(reason_phrase(499), "Bad Request");
        assert_eq!(reason_phrase(299), "OK");
        assert!((0..=u16::MAX).all(|code| !reason_phrase(code).is_empty()));
    }
}
