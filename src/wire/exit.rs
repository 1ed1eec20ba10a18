//! The two exit-code tables of the product: one for `qvl`, one for `qvl-train`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Exit status of `qvl`, the same for every subcommand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// Done; for the doctor: nothing blocks.
    Success,
    /// The doctor found a blocking problem (any warning too with `--strict`), a launch was refused
    /// because of one, or a repair or its undo did not go through.
    Blocked,
    /// Usage or configuration error (clap's own code).
    Usage,
    /// A check that the job needs could not be evaluated, or an expected node did not report.
    Unknown,
    /// The job cannot run as planned, or did not start before the timeout.
    Infeasible,
    /// The cluster cannot be reached, or permission was denied.
    Unreachable,
    /// A bug in qvl.
    Internal,
    /// The job failed.
    JobFailed,
    /// The job still runs: detached, or the wait timed out.
    JobRunning,
    /// No such job.
    JobNotFound,
    /// The job was cancelled.
    JobCancelled,
    /// Interrupted before anything was submitted.
    Interrupted,
}

impl ExitStatus {
    /// The number that the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            ExitStatus::Success => 0,
            ExitStatus::Blocked => 1,
            ExitStatus::Usage => 2,
            ExitStatus::Unknown => 3,
            ExitStatus::Infeasible => 4,
            ExitStatus::Unreachable => 5,
            ExitStatus::Internal => 70,
            ExitStatus::JobFailed => 100,
            ExitStatus::JobRunning => 101,
            ExitStatus::JobNotFound => 102,
            ExitStatus::JobCancelled => 103,
            ExitStatus::Interrupted => 130,
        }
    }
}

impl From<ExitStatus> for std::process::ExitCode {
    fn from(status: ExitStatus) -> Self {
        std::process::ExitCode::from(status.code())
    }
}

/// Why a trainer process ended. The supervisor decides by it whether to restart.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum TrainerExit {
    /// 0: all steps are done.
    Success,
    /// 64: wrong command line.
    Usage,
    /// 65: a sample, a weight file or a vocabulary is wrong.
    Data,
    /// 66: an input file is missing.
    InputMissing,
    /// 70: a bug in the trainer.
    Internal,
    /// 74: a checkpoint could not be written or read.
    CheckpointIo,
    /// 75: something that may work next time.
    Transient,
    /// 78: the job file is wrong.
    Config,
    /// 80: another rank went away; this one is a victim.
    PeerLost,
    /// 81: the GPU failed.
    GpuFault,
    /// 82: loss or gradient became NaN or infinite.
    Diverged,
    /// 83: the device ran out of memory.
    DeviceOutOfMemory,
    /// 84: the hardware failed the preflight check.
    Preflight,
    /// 85: stopped on request after a checkpoint.
    Preempted,
    /// 86: no step for too long.
    Stalled,
    /// 88: asks for a restart of all containers.
    RestartContainers,
}

impl TrainerExit {
    const TABLE: [(TrainerExit, u8); 16] = [
        (TrainerExit::Success, 0),
        (TrainerExit::Usage, 64),
        (TrainerExit::Data, 65),
        (TrainerExit::InputMissing, 66),
        (TrainerExit::Internal, 70),
        (TrainerExit::CheckpointIo, 74),
        (TrainerExit::Transient, 75),
        (TrainerExit::Config, 78),
        (TrainerExit::PeerLost, 80),
        (TrainerExit::GpuFault, 81),
        (TrainerExit::Diverged, 82),
        (TrainerExit::DeviceOutOfMemory, 83),
        (TrainerExit::Preflight, 84),
        (TrainerExit::Preempted, 85),
        (TrainerExit::Stalled, 86),
        (TrainerExit::RestartContainers, 88),
    ];

    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        Self::TABLE.iter().find(|(exit, _code)| *exit == self).map_or(70, |(_exit, code)| *code)
    }

    /// The meaning of an exit code; `None` for a code that the trainer never gives itself.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::TABLE.iter().find(|(_exit, known)| i32::from(*known) == code).map(|(exit, _)| *exit)
    }

    /// Whether a restart can never help, because the input has to change first.
    pub fn is_permanent(self) -> bool {
        matches!(
            self,
            TrainerExit::Usage
                | TrainerExit::Data
                | TrainerExit::InputMissing
                | TrainerExit::Config
                | TrainerExit::Diverged
        )
    }
}

impl From<TrainerExit> for std::process::ExitCode {
    fn from(exit: TrainerExit) -> Self {
        std::process::ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trainer_code_reads_back() {
        for (exit, code) in TrainerExit::TABLE {
            assert_eq!(exit.code(), code);
            assert_eq!(TrainerExit::from_code(i32::from(code)), Some(exit));
        }
        assert_eq!(TrainerExit::from_code(139), None);
    }
}
