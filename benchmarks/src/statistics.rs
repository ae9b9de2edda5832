//! Medians, percentiles and geometric means of measured times.

use std::time::Duration;

/// Times of one thing, sorted.
#[derive(Debug, Clone)]
pub struct Times {
    sorted: Vec<f64>,
}

impl Times {
    /// From times in any order; there must be one.
    pub fn new(times: &[Duration]) -> Self {
        assert!(!times.is_empty(), "a median needs at least one time");
        let mut sorted = times.iter().map(|time| time.as_secs_f64() * 1e3).collect::<Vec<_>>();
        sorted.sort_by(f64::total_cmp);
        Self { sorted }
    }

    /// The middle time in milliseconds; between the two middle ones where their number is even.
    pub fn median_ms(&self) -> f64 {
        let middle = self.sorted.len() / 2;
        match self.sorted.len() % 2 {
            0 => (self.sorted[middle - 1] + self.sorted[middle]) / 2.0,
            _ => self.sorted[middle],
        }
    }

    /// The time in milliseconds that `share` of all times stay below.
    pub fn percentile_ms(&self, share: f64) -> f64 {
        let index = (share * self.sorted.len() as f64).ceil() as usize;
        self.sorted[index.clamp(1, self.sorted.len()) - 1]
    }

    /// The shortest time in milliseconds.
    pub fn min_ms(&self) -> f64 {
        self.sorted[0]
    }

    /// The longest time in milliseconds.
    pub fn max_ms(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }
}

/// The geometric mean; of nothing, NaN.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0), |(sum, count), value| (sum + value.ln(), count + 1));
    (sum / f64::from(count)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(milliseconds: &[u64]) -> Times {
        Times::new(&milliseconds.iter().map(|&ms| Duration::from_millis(ms)).collect::<Vec<_>>())
    }

    #[test]
    fn medians_do_not_depend_on_order() {
        assert_eq!(times(&[5, 1, 9]).median_ms(), 5.0);
        assert_eq!(times(&[9, 1, 5, 7]).median_ms(), 6.0);
        assert_eq!(times(&[4]).median_ms(), 4.0);
    }

    #[test]
    fn percentiles_are_times_that_happened() {
        let times = times(&(1..=100).collect::<Vec<_>>());
        assert_eq!((times.percentile_ms(0.99), times.percentile_ms(1.0), times.percentile_ms(0.0)), (99.0, 100.0, 1.0));
    }

    #[test]
    fn the_geometric_mean_of_a_ratio_and_its_inverse_is_one() {
        assert!((geometric_mean([4.0, 0.25]) - 1.0).abs() < 1e-12);
        assert!((geometric_mean([2.0, 8.0]) - 4.0).abs() < 1e-12);
    }
}
