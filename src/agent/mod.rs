//! What runs beside the work: the supervisor of one pod, and the agent of one node.
