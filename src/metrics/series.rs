//! A metric family that knows its label sets, so that those of one uplink or camera can be removed together.
//!
//! Invariants: at most [`SERIES_MAX`] label sets; beyond that a caller gets a metric that nobody sees.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::family::Family;

/// A backstop: labels are bounded already, by the configuration (uplinks × methods × codes, cameras) and by the code.
pub(super) const SERIES_MAX: usize = 100_000;

#[derive(Debug)]
pub(super) struct Series<L, M> {
    family: Family<L, M, fn() -> M>,
    make: fn() -> M,
    labels: Mutex<HashSet<L>>,
}

impl<L: Clone + Hash + Eq, M: Clone> Series<L, M> {
    pub(super) fn new(make: fn() -> M) -> Self {
        Series { family: Family::new_with_constructor(make), make, labels: Mutex::default() }
    }

    /// The same family, to be registered.
    pub(super) fn family(&self) -> Family<L, M, fn() -> M> {
        self.family.clone()
    }

    /// The metric of `labels`, made when it is not there.
    pub(super) fn of(&self, labels: &L) -> M {
        if let Some(metric) = self.family.get(labels) {
            return metric.clone();
        }
        let mut known = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= SERIES_MAX {
            return (self.make)();
        }
        known.insert(labels.clone());
        // Under our lock, so that no removal comes between the set and the family.
        self.family.get_or_create_owned(labels)
    }

    /// Removes the metrics whose labels are `gone`.
    pub(super) fn remove_where(&self, gone: impl Fn(&L) -> bool) {
        let mut known = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|labels| {
            let gone = gone(labels);
            if gone {
                self.family.remove(labels);
            }
            !gone
        });
    }
}
