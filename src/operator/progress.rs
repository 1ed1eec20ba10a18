//! How far a training is, in few characters. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::api::job::Progress;

/// For example `43% 860/2000`.
pub(super) fn percent(progress: &Progress) -> String {
    let Progress { step, total_steps, .. } = *progress;
    match (step * 100).checked_div(total_steps) {
        Some(percent) => format!("{percent}% {step}/{total_steps}"),
        None => String::new(),
    }
}

/// Time for the steps that are left: `45s`, `12m`, `1h12m`, `3d4h`.
pub(super) fn eta(progress: &Progress) -> Option<String> {
    let left = progress.total_steps.checked_sub(progress.step)?;
    let seconds = (left as f64 * progress.step_seconds?).round();
    if progress.step == 0 || !(0.0..1e9).contains(&seconds) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    let seconds = seconds as u64;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    Some(match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m"),
        3600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{}d{}h", hours / 24, hours % 24),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_left_are_short() {
        let at = |step_seconds: f64| {
            let progress = Progress {
                step: 10,
                total_steps: 110,
                step_seconds: Some(step_seconds),
                ..Progress::default()
            };
            eta(&progress).unwrap()
        };
        assert_eq!([at(0.1), at(1.0), at(43.2), at(3000.0)], ["10s", "1m", "1h12m", "3d11h"]);
        assert_eq!(eta(&Progress::default()), None);
        assert_eq!(
            percent(&Progress { step: 860, total_steps: 2000, ..Progress::default() }),
            "43% 860/2000"
        );
        assert_eq!(percent(&Progress::default()), "");
    }
}
