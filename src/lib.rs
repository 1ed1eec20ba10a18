//! qvl: verify, launch and fine-tune Qwen-VL.
//!
//! # Code map
//!
//! | module | holds | may do I/O |
//! |---|---|---|
//! | [`facts`] | what was observed on machines | no |
//! | [`job`] | the fine-tune job, its defaults, the memory and step plan | no |
//! | [`wire`] | what supervisor and trainer say to each other | no |
//! | [`data`] | samples, prompts, boxes, tokenizer, images, lint | yes |
//! | [`doctor`] | rules over facts | no |
//! | [`locate`] | which node or link spoils a network | no |
//! | [`probe`] | fills facts | yes |
//! | [`repair`] | makes repairs and takes them back; their journal | yes |
//! | [`report`] | renders verdicts to an `impl Write` | no |
//! | [`api`] | custom resources of a cluster | no |
//! | [`launch`] | plan, supervisor and run folder of a job | yes |
//! | [`operator`] | makes pods of jobs, decides about restarts | yes; plan and objects no |
//! | [`agent`] | supervises the ranks of a pod; reports a node | yes |
//! | [`logs`] | keeps the logs of a cluster's ranks | yes |
//! | [`tls`] | certificates between the parts of a cluster | yes |
//! | [`telemetry`] | metrics files, curves, pictures | yes |
//! | `train` | the trainer (feature `train`) | yes |
//! | [`cli`] | one file per subcommand | yes |
//!
//! # Architecture invariants
//!
//! * Facts, then judgement, then action: `probe` collects and never fails, `doctor` and the
//!   plans are pure, thin code applies.
//! * `qvl` never links CUDA and does not depend on candle; only `qvl-train` names `train`.
//! * Time, randomness and environment are arguments of pure code.
//!
//! `tests/architecture.rs` holds the table of allowed imports and the list of pure files.

pub mod agent;
pub mod api;
pub mod cli;
pub mod data;
pub mod doctor;
pub mod facts;
pub mod job;
pub mod launch;
pub mod locate;
pub mod logs;
pub mod operator;
pub mod probe;
pub mod repair;
pub mod report;
pub mod telemetry;
pub mod tls;
#[cfg(feature = "train")]
pub mod train;
pub mod wire;
