//! Why jobs that work on one GPU fail on many, and the checks that catch each cause.

/// One cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Number, from 1 on.
    pub number: u32,
    /// What is wrong.
    pub what: &'static str,
    /// How it shows.
    pub shows: &'static str,
    /// Ids of the checks that catch it, the main one first.
    pub rules: Vec<&'static str>,
    /// Where it was seen.
    pub seen: &'static str,
}

/// All causes that the doctor knows, in the order of their numbers.
pub fn causes() -> Vec<Cause> {
    super::table::rows(include_str!("data/causes.tsv")).filter_map(|row| cause(&row)).collect()
}

fn cause(row: &[&'static str]) -> Option<Cause> {
    let [number, what, shows, rules, seen] = *row else { return None };
    let number = number.parse().ok()?;
    Some(Cause { number, what, shows, rules: rules.split(' ').collect(), seen })
}
