//! Rules of the variables of ranks.

use super::Found;
use crate::job::RankEnv;

/// Variables by which the launcher tells a rank its place, beside those that begin with `QVL_`.
const LAUNCHERS: [&str; 6] =
    ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAYON_NUM_THREADS"];
/// At most so many variables are set, and at most so many unset.
const MOST: usize = 256;

pub(super) fn problems(env: &RankEnv, found: &mut Found) {
    for name in env.set.keys() {
        let path = format!("spec.env.set.{name}");
        named(name, &path, found);
        let launchers = LAUNCHERS.contains(&name.as_str()) || name.starts_with("QVL_");
        found.refuse(
            launchers,
            &path,
            format!("`{name}` is set by the launcher"),
            "leave it out: each rank gets its own value",
        );
        found.refuse(
            env.set[name].contains('\0'),
            &path,
            "the value has a zero byte",
            "variables cannot hold it",
        );
    }
    for (i, name) in env.unset.iter().enumerate() {
        let path = format!("spec.env.unset[{i}]");
        named(name, &path, found);
        found.refuse(
            env.set.contains_key(name),
            &path,
            format!("`{name}` is both set and unset"),
            "keep one of the two",
        );
    }
    let most = env.set.len().max(env.unset.len());
    found.refuse(
        MOST < most,
        "spec.env",
        format!("{most} variables, at most {MOST}"),
        "put them into the image, or into a script that starts qvl",
    );
}

fn named(name: &str, path: &str, found: &mut Found) {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let digit = name.starts_with(|c: char| c.is_ascii_digit());
    found.refuse(
        name.is_empty() || digit || !name.chars().all(plain),
        path,
        format!("`{name}` is no name of a variable"),
        "use letters, digits and `_`, and begin with a letter",
    );
}
