//! Random numbers that can be repeated, and how much of a test is done.

/// A number from the environment, such as how many rounds a test makes.
pub fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Random numbers that `LARDER_SEED` repeats.
pub struct Random(u64);

impl Random {
    /// Prints the seed, so that a failure can be had again.
    pub fn seeded() -> Random {
        let seed = from_environment("LARDER_SEED", u64::from(std::process::id()));
        println!("LARDER_SEED={seed}");
        Random::of(seed)
    }

    /// Those of a seed.
    pub fn of(seed: u64) -> Random {
        Random(seed)
    }

    /// Other dice, the same for the same number.
    pub fn fork(&self, number: u64) -> Random {
        Random(self.0 ^ number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// A number from 0 to `limit`, which is not among them.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % limit as u64) as usize
    }
}
