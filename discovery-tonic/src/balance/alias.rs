use super::Rng;

/// Samples indices in proportion to weights, in constant time, with the alias method of Walker
/// (1974), built as by Vose (1991).
#[derive(Debug)]
pub(crate) struct Alias(Box<[Column]>);

#[derive(Clone, Copy, Debug)]
struct Column {
    /// The share of this column that belongs to its own index, of 2³².
    own: u32,
    other: u32,
}

impl Alias {
    /// Builds a table for these weights; `None` if all are equal, which needs no table.
    pub(crate) fn new(weights: &[u64]) -> Option<Self> {
        let total: u64 = weights.iter().sum();
        let count = weights.len() as u64;
        if total == 0 || weights.iter().all(|weight| *weight == weights[0]) {
            return None;
        }
        // Scaled so that the mean is `total`, which keeps the integers exact.
        let mut rest: Vec<u64> = weights.iter().map(|weight| weight * count).collect();
        let mut columns: Vec<Column> = (0..weights.len()).map(|n| Column { own: u32::MAX, other: n as u32 }).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|n| rest[*n] < total);
        while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
            let own = (u128::from(rest[less]) << 32) / u128::from(total);
            columns[less] = Column { own: own as u32, other: more as u32 };
            rest[more] -= total - rest[less];
            if rest[more] < total {
                large.pop();
                small.push(more);
            }
        }
        Some(Self(columns.into()))
    }

    pub(crate) fn sample(&self, draw: &mut Rng) -> usize {
        let n = draw.below(self.0.len());
        let column = self.0[n];
        if draw.bits() < column.own { n } else { column.other as usize }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_follow_the_weights(weights in proptest::collection::vec(0u64..=10_000, 1..40)) {
            let total: u64 = weights.iter().sum();
            let Some(alias) = Alias::new(&weights) else { return Ok(()) };
            let mut shares = vec![0.0; weights.len()];
            let column = 1.0 / weights.len() as f64;
            for (n, entry) in alias.0.iter().enumerate() {
                let own = if entry.other as usize == n { 1.0 } else { f64::from(entry.own) / 2f64.powi(32) };
                shares[n] += column * own;
                shares[entry.other as usize] += column * (1.0 - own);
            }
            for (share, weight) in shares.iter().zip(&weights) {
                prop_assert!((share - *weight as f64 / total as f64).abs() < 1e-6, "{shares:?}");
            }
        }
    }
}
