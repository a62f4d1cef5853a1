/// A source of random numbers for one pick: the wyrand generator of the `fastrand` crate.
#[derive(Debug)]
pub struct Rng(fastrand::Rng);

impl Rng {
    /// Creates a generator from a seed, for tests and simulations.
    pub fn seeded(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Returns 32 random bits.
    #[inline]
    pub fn bits(&mut self) -> u32 {
        (self.0.u64(..) >> 32) as u32
    }

    /// Returns two numbers below two bounds, at the cost of one. The bounds must not be 0.
    #[inline]
    pub fn pair_below(&mut self, first: usize, second: usize) -> (usize, usize) {
        let bits = self.0.u64(..);
        (scale(bits >> 32, first), scale(bits & u64::from(u32::MAX), second))
    }

    /// Returns a number below `bound`, which must not be 0.
    ///
    /// This is Lemire's multiplication without its rejection step, whose bias is below `bound` /
    /// 2³².
    #[inline]
    pub fn below(&mut self, bound: usize) -> usize {
        scale(self.bits().into(), bound)
    }
}

#[inline]
fn scale(bits: u64, bound: usize) -> usize {
    ((bits * bound as u64) >> 32) as usize
}

impl Default for Rng {
    /// Creates a generator that is seeded by the thread's.
    fn default() -> Self {
        Self::seeded(fastrand::u64(..))
    }
}
