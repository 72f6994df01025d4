//! OpenMetrics 1.0 text made into Prometheus text 0.0.4.
//!
//! The samples are the same; HELP and TYPE of a counter name the sample (`…_total`) in 0.0.4 and the family in
//! OpenMetrics; 0.0.4 has no UNIT and no EOF, and calls an unknown type `untyped`.

/// `Content-Type` of Prometheus text.
pub const CONTENT_TYPE_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// `Content-Type` of OpenMetrics text.
pub const CONTENT_TYPE_OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn from_openmetrics(input: &str) -> String {
    let mut out = String::with_capacity(input.len() + input.len() / 16);
    // HELP stands before the TYPE that decides the name.
    let mut help = None;
    for line in input.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, text)) = help.take().filter(|(named, _)| *named == name) {
                out.extend(["# HELP ", name, suffix, " ", text, "\n"]);
            }
            out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with("# ") {
            out.extend([line, "\n"]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_renamed_and_what_0_0_4_lacks_is_left_out() {
        let open = "# HELP a Text with # TYPE a inside.\n# TYPE a counter\n# UNIT a seconds\na_total{l=\"# EOF\"} 3\n\
                    # TYPE b gauge\nb 1\n# HELP c Odd.\n# TYPE c unknown\nc 2\n# EOF\n";
        let text = "# HELP a_total Text with # TYPE a inside.\n# TYPE a_total counter\na_total{l=\"# EOF\"} 3\n\
                    # TYPE b gauge\nb 1\n# HELP c Odd.\n# TYPE c untyped\nc 2\n";
        assert_eq!(from_openmetrics(open), text);
        assert_eq!(from_openmetrics("# EOF\n"), "");
    }
}
