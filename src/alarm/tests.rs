//! Tests of the alarm service through its inbox.
