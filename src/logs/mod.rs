//! Logs that outlive their pods: segments in the pod, a collector in the cluster.
