//! The random numbers of numpy's `RandomState`, in which golden files describe large inputs.

/// State of the Mersenne twister MT19937 (Matsumoto and Nishimura, 1998), in words.
const WORDS: usize = 624;

struct Twister {
    state: [u32; WORDS],
    at: usize,
}

impl Twister {
    /// The classic seeding with one word.
    fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        let mut last = seed;
        for (i, word) in (0..).zip(&mut state).skip(1) {
            last = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i);
            *word = last;
        }
        Twister { state, at: WORDS }
    }

    fn next(&mut self) -> u32 {
        if self.at == WORDS {
            self.refill();
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        for i in 0..WORDS {
            let high = self.state[i] & 0x8000_0000;
            let y = high | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + 397) % WORDS] ^ (y >> 1) ^ odd;
        }
        self.at = 0;
    }
}

/// `(RandomState(seed).rand(n) * 255)`, truncated to bytes.
pub fn random_bytes(seed: u32, n: usize) -> Vec<u8> {
    let mut twister = Twister::new(seed);
    let mut byte = || {
        let (a, b) = (f64::from(twister.next() >> 5), f64::from(twister.next() >> 6));
        let uniform = (a * 67_108_864.0 + b) / 9_007_199_254_740_992.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 255")]
        let byte = (uniform * 255.0) as u8;
        byte
    };
    (0..n).map(|_i| byte()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `RandomState(1).rand()` begins with 0.417022, 0.720324, 0.000114, 0.302333, 0.146756.
    #[test]
    fn numbers_are_those_of_numpy() {
        assert_eq!(random_bytes(1, 5), [106, 183, 0, 77, 37]);
    }
}
