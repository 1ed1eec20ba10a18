//! Who tests with whom, and when.

/// Rounds in which each of `count` players meets one other at a time, so that all meet each other
/// once: the circle method. `count - 1` rounds, or `count` of them if the number is odd and one
/// player rests in each.
pub fn rounds(count: usize) -> Vec<Vec<(usize, usize)>> {
    if count < 2 {
        return Vec::new();
    }
    // With an odd number somebody meets a player who is not there.
    let seats = count + count % 2;
    let others = seats - 1;
    (0..others)
        .map(|round| {
            let fixed = (others, round);
            let facing = (1..seats / 2)
                .map(|step| ((round + step) % others, (round + others - step) % others));
            let pairs = std::iter::once(fixed).chain(facing);
            let pairs = pairs.map(|(a, b)| (a.min(b), a.max(b)));
            pairs.filter(|(_a, b)| *b < count).collect()
        })
        .collect()
}
