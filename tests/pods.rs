//! Pods and their tokens on a real API server: who is believed by broker and collector, and what
//! `qvl agent rank` does when ranks, pods and the broker fail.
//!
//! Pods are objects of the cluster with real projected tokens; their supervisors run on this
//! machine, each as the first process of a PID namespace, as in a container. Broker and collector
//! speak TLS.
#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

#[path = "pods/agent.rs"]
mod agent;
#[path = "operator/client.rs"]
mod api;
#[path = "pods/bench.rs"]
mod bench;
#[path = "pods/certificates.rs"]
mod certificates;
#[path = "pods/refusals.rs"]
mod refusals;
