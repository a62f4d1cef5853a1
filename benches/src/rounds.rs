//! Statistics of many short rounds, on a machine that also does other things.

use crate::Failure;

/// The median of many numbers and their spread around it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "three numbers")]
pub struct Quartiles {
    /// A quarter of the numbers is less.
    pub first: f64,
    /// Half of the numbers is less.
    pub median: f64,
    /// A quarter of the numbers is more.
    pub third: f64,
}

impl Quartiles {
    /// Returns the quartiles of some numbers.
    ///
    /// # Errors
    ///
    /// If there are none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Result<Self, Failure> {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let last = numbers.len().checked_sub(1).ok_or("no rounds")?;
        let [first, median, third] = [1, 2, 3].map(|quarter| numbers[(last * quarter + 2) / 4]);
        Ok(Self { first, median, third })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_in_order_whatever_the_order_of_the_numbers() {
        let quartiles = Quartiles::of([5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!(quartiles, Quartiles { first: 2.0, median: 3.0, third: 4.0 });
        assert_eq!(Quartiles::of([7.0]).unwrap(), Quartiles { first: 7.0, median: 7.0, third: 7.0 });
        assert!(Quartiles::of([]).is_err());
    }
}
