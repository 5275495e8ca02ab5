//! A checksum against damage and mix-ups: fast enough for gigabytes of K/V rows, no defence against someone who means it.

/// Every step is invertible, so that a change in one word alone always shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksum(u64);

impl Checksum {
    /// Adds bytes. The value depends on how they were divided among calls.
    pub fn update(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last));
        self.mix(bytes.len() as u64);
    }

    fn mix(&mut self, word: u64) {
        // An odd factor without a pattern: the golden ratio's bits, as in Fibonacci hashing (Knuth, vol. 3, 6.4).
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// The value so far.
    pub fn value(self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}
