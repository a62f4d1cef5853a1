/// A source of random numbers for one pick: the wyrand generator of the `fastrand` crate.
#[derive(Debug)]
pub struct Rng(fastrand::Rng);

impl Rng {
    /// Numbers that follow from a seed, for tests and simulations.
    pub fn seeded(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// 32 random bits.
    #[inline]
    pub fn bits(&mut self) -> u32 {
        (self.0.u64(..) >> 32) as u32
    }

    /// Two numbers below bounds that are not 0, for the price of one.
    #[inline]
    pub fn pair_below(&mut self, first: usize, second: usize) -> (usize, usize) {
        let bits = self.0.u64(..);
        (scale(bits >> 32, first), scale(bits & u64::from(u32::MAX), second))
    }

    /// A number below `bound`, which is not 0: Lemire's multiplication without its rejection, whose
    /// bias is under `bound` / 2³².
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
    /// Numbers from the thread's generator.
    fn default() -> Self {
        Self::seeded(fastrand::u64(..))
    }
}
