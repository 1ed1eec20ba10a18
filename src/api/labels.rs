//! Labels, annotations and fixed names.

/// Name of the job an object belongs to; every watch of the operator filters by it.
pub const JOB: &str = "qvl.dev/job";
/// Attempt an object belongs to, from 1.
pub const ATTEMPT: &str = "qvl.dev/attempt";
/// Index of a pod, which Kubernetes sets on the pods of an Indexed Job.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// First rank of a pod.
pub const RANK: &str = "qvl.dev/rank";
/// Queue of Kueue; set on the child Job, which Kueue then owns the suspension of.
pub const QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Field manager of the operator.
pub const OPERATOR: &str = "qvl-operator";
/// Field manager of node agents.
pub const AGENT: &str = "qvl-agent";
/// Finalizer of a job: pods may save a checkpoint before they go.
pub const DRAIN: &str = "qvl.dev/drain";
/// Name of the one container of a rank pod.
pub const CONTAINER: &str = "trainer";
