//! Delays between attempts: doubling from a minimum to a maximum, with jitter so that many do not return together.

use std::time::Duration;

use rand::Rng;

/// Why a [`Backoff`] cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidBackoff {
    /// A zero delay would make a busy loop.
    #[error("back-off minimum: 0: give a delay above zero")]
    ZeroMin,
    /// The maximum is below the minimum.
    #[error("back-off maximum: {max:?}: give at least the minimum, {min:?}")]
    MaxBelowMin {
        /// The minimum given.
        min: Duration,
        /// The maximum given.
        max: Duration,
    },
    /// The jitter is no share of the delay.
    #[error("back-off jitter: {0}: give 0 or more and less than 1")]
    Jitter(f64),
}

/// Doubling delays: `min`, 2·`min`, 4·`min`, … `max`, each moved by up to ±`jitter` of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    jitter: f64,
    next: Duration,
}

impl Backoff {
    /// `jitter`: a share of the delay, 0.2 for ±20 %. It may carry a delay above `max` or below `min`.
    ///
    /// # Errors
    /// [`InvalidBackoff`] when `min` is zero, `max` below `min`, or `jitter` outside 0 ≤ jitter < 1.
    pub fn try_new(min: Duration, max: Duration, jitter: f64) -> Result<Self, InvalidBackoff> {
        if min.is_zero() {
            return Err(InvalidBackoff::ZeroMin);
        }
        if max < min {
            return Err(InvalidBackoff::MaxBelowMin { min, max });
        }
        if !(0.0..1.0).contains(&jitter) {
            return Err(InvalidBackoff::Jitter(jitter));
        }
        Ok(Backoff { min, max, jitter, next: min })
    }

    /// How long to wait before the next attempt.
    pub fn next_delay(&mut self, rng: &mut impl Rng) -> Duration {
        let delay = self.next;
        self.next = delay.saturating_mul(2).min(self.max);
        if self.jitter == 0.0 {
            return delay;
        }
        // Below 2, and a Duration that long would be 10^11 years: only an overflow at Duration::MAX can fail.
        let factor = 1.0 + rng.random_range(-self.jitter..=self.jitter);
        Duration::try_from_secs_f64(delay.as_secs_f64() * factor).unwrap_or(delay)
    }

    /// The attempt succeeded: begin with the minimum again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// The longest delay, without jitter.
    pub fn max(&self) -> Duration {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn doubles_to_the_maximum_and_begins_again() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut backoff = Backoff::try_new(secs(2), secs(60), 0.0).unwrap();
        let mut delays = |n| (0..n).map(|_| backoff.next_delay(&mut rng).as_secs()).collect::<Vec<_>>();
        assert_eq!(delays(7), [2, 4, 8, 16, 32, 60, 60]);
        backoff.reset();
        assert_eq!(backoff.next_delay(&mut rng), secs(2));
    }

    #[test]
    fn jitter_stays_within_its_share_and_moves() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::try_new(secs(60), secs(60), 0.2).unwrap();
        let delays: Vec<f64> = (0..500).map(|_| backoff.next_delay(&mut rng).as_secs_f64()).collect();
        assert!(delays.iter().all(|d| (48.0..=72.0).contains(d)));
        assert!(delays.iter().any(|d| *d < 52.0) && delays.iter().any(|d| *d > 68.0));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        assert_eq!(Backoff::try_new(secs(0), secs(1), 0.0), Err(InvalidBackoff::ZeroMin));
        let below = InvalidBackoff::MaxBelowMin { min: secs(2), max: secs(1) };
        assert_eq!(Backoff::try_new(secs(2), secs(1), 0.0), Err(below));
        assert_eq!(Backoff::try_new(secs(1), secs(1), 1.0), Err(InvalidBackoff::Jitter(1.0)));
        assert!(Backoff::try_new(secs(1), secs(1), -0.1).is_err());
        assert!(Backoff::try_new(secs(1), secs(1), f64::NAN).is_err());
        let mut longest = Backoff::try_new(Duration::MAX, Duration::MAX, 0.5).unwrap();
        let mut rng = StdRng::seed_from_u64(3);
        for _ in 0..20 {
            longest.next_delay(&mut rng);
        }
    }
}
