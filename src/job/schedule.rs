//! Learning rate over the steps of a stage.

use super::{Schedule, ScheduleKind};

/// Learning rate of the update that follows `step` finished ones, of `total` in the stage.
///
/// | kind | after the warm-up of w steps | source |
/// |---|---|---|
/// | cosine | peak · (f + (1−f)·½(1 + cos(π·(s−w)/(total−w)))) | transformers' `get_cosine_schedule_with_warmup` |
/// | linear | peak · (f + (1−f)·(total−s)/(total−w)) | transformers' `get_linear_schedule_with_warmup` |
/// | constant | peak | |
/// | warmup-lr-log | peak for ever, see below | `DeepSpeed` 0.11.1, `WarmupLR` |
///
/// f is `finalRatio`. The warm-up of the first three is peak · s/max(1, w).
/// `DeepSpeed` steps its scheduler *after* the optimizer and does not set the rate when it is made:
/// update 1 runs at the peak, update k at γ(k−2) with γ(s) = ln(s+1)/ln(W) for s < W = max(2, w).
pub fn learning_rate(schedule: &Schedule, peak: f64, step: u64, total: u64) -> f64 {
    let warmup = warmup_steps(schedule, total);
    let (s, w) = (step as f64, warmup as f64);
    let rest = total.saturating_sub(warmup).max(1) as f64;
    let decayed = |share: f64| peak * (schedule.final_ratio + (1.0 - schedule.final_ratio) * share);
    if schedule.kind != ScheduleKind::WarmupLrLog && step < warmup {
        return peak * s / w.max(1.0);
    }
    match schedule.kind {
        ScheduleKind::Constant => peak,
        ScheduleKind::Linear => decayed(((total as f64 - s) / rest).clamp(0.0, 1.0)),
        ScheduleKind::Cosine => {
            let progress = ((s - w) / rest).clamp(0.0, 1.0);
            decayed(0.5 * (1.0 + (std::f64::consts::PI * progress).cos()))
        }
        ScheduleKind::WarmupLrLog => {
            let warmup = w.max(2.0);
            match step.checked_sub(1) {
                None => peak,
                Some(before) if (before as f64) < warmup => {
                    peak * (before as f64 + 1.0).ln() / warmup.ln()
                }
                Some(_) => peak,
            }
        }
    }
}

/// Steps of the warm-up: as given, or the share of the stage rounded up.
pub fn warmup_steps(schedule: &Schedule, total: u64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a step count"
    )]
    let from_ratio = (total as f64 * schedule.warmup_ratio).ceil().max(0.0) as u64;
    schedule.warmup_steps.unwrap_or(from_ratio)
}

/// Steps of a stage of `samples` samples: as given, or as many as `epochs` passes need.
pub fn stage_steps(stage: &super::Stage, samples: u64, global: u32) -> u64 {
    if let Some(steps) = stage.steps {
        return steps;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive step count"
    )]
    let steps =
        (stage.epochs.unwrap_or(1.0) * samples as f64 / f64::from(global.max(1))).ceil() as u64;
    steps.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup: u64) -> Schedule {
        Schedule { kind, warmup_steps: Some(warmup), warmup_ratio: 0.0, final_ratio: 0.0 }
    }

    fn curve(schedule: &Schedule, total: u64) -> Vec<f64> {
        (0..total).map(|step| learning_rate(schedule, 1.0, step, total)).collect()
    }

    #[test]
    fn cosine_warms_up_and_falls() {
        let curve = curve(&schedule(ScheduleKind::Cosine, 2), 6);
        let expected = [0.0, 0.5, 1.0, 0.5 + 0.125_f64.sqrt(), 0.5, 0.5 - 0.125_f64.sqrt()];
        for (found, expected) in curve.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{curve:?}");
        }
    }

    #[test]
    fn linear_and_constant() {
        assert_eq!(curve(&schedule(ScheduleKind::Linear, 1), 5), [0.0, 1.0, 0.75, 0.5, 0.25]);
        assert_eq!(curve(&schedule(ScheduleKind::Constant, 0), 3), [1.0, 1.0, 1.0]);
    }

    #[test]
    fn deepspeed_runs_its_second_update_at_zero_and_never_decays() {
        let curve = curve(&schedule(ScheduleKind::WarmupLrLog, 2), 5);
        assert_eq!(curve, [1.0, 0.0, 1.0, 1.0, 1.0]);
        let longer = self::curve(&schedule(ScheduleKind::WarmupLrLog, 10), 4);
        assert!((longer[2] - 2_f64.ln() / 10_f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn final_ratio_is_the_floor() {
        let schedule = Schedule { final_ratio: 0.1, ..schedule(ScheduleKind::Cosine, 0) };
        assert!((learning_rate(&schedule, 2.0, 10, 10) - 0.2).abs() < 1e-12);
    }

    const KINDS: [ScheduleKind; 4] = [
        ScheduleKind::Cosine,
        ScheduleKind::Linear,
        ScheduleKind::Constant,
        ScheduleKind::WarmupLrLog,
    ];

    proptest::proptest! {
        #[test]
        fn the_rate_stays_between_zero_and_the_peak(
            kind in 0_usize..4, total in 1_u64..500, warmup in 0_u64..600, floor in 0.0_f64..=1.0,
        ) {
            let schedule = Schedule { final_ratio: floor, ..schedule(KINDS[kind], warmup) };
            for rate in curve(&schedule, total) {
                proptest::prop_assert!((0.0..=1.0 + 1e-12).contains(&rate), "{rate}");
            }
        }

        #[test]
        fn it_rises_through_the_warmup_and_never_after(
            kind in 0_usize..3, total in 1_u64..500, warmup in 0_u64..600, floor in 0.0_f64..=1.0,
        ) {
            let schedule = Schedule { final_ratio: floor, ..schedule(KINDS[kind], warmup) };
            let curve = curve(&schedule, total);
            for (done, pair) in (1_u64..).zip(curve.windows(2)) {
                let rises = pair[0] < pair[1];
                proptest::prop_assert!(rises == (done <= warmup) || pair[0] <= pair[1] + 1e-12, "step {done}");
                proptest::prop_assert!(done <= warmup || pair[1] <= pair[0] + 1e-12, "step {done}");
            }
        }

        #[test]
        fn a_curve_scales_with_its_peak(kind in 0_usize..4, total in 1_u64..100, step in 0_u64..100, peak in 1e-6_f64..1.0) {
            let schedule = schedule(KINDS[kind], 3);
            let unit = learning_rate(&schedule, 1.0, step, total);
            let found = learning_rate(&schedule, peak, step, total);
            proptest::prop_assert!((found - peak * unit).abs() <= 1e-12 * peak);
        }

        #[test]
        fn epochs_give_as_many_steps_as_they_need(samples in 1_u64..10_000, global in 1_u32..300, epochs in 1_u32..9) {
            let stage = crate::job::Stage {
                name: "a".to_owned(),
                epochs: Some(f64::from(epochs)),
                steps: None,
                sets: None,
                learning_rate: None,
                schedule: None,
                reset_optimizer: false,
            };
            let wanted = samples * u64::from(epochs);
            let done = stage_steps(&stage, samples, global) * u64::from(global);
            proptest::prop_assert!(wanted <= done && done < wanted + u64::from(global));
        }
    }
}
