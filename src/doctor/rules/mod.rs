//! The table of all rules. A rule's name in the code is its id in capitals; small siblings share
//! a file.

mod batch_lr_drift;
mod binary;
mod busy;
mod cuda_version;
mod data_unusable;
mod device_nodes;
mod driver;
mod dtype_unsupported;
mod environment;
mod fabric;
mod gpu_count_mismatch;
mod gpu_lost;
mod gpu_modes;
mod host_memory;
mod identity;
mod interfaces;
mod kernel;
mod libcuda;
mod limits;
mod links;
mod memory_errors;
mod memory_size;
mod nccl;
mod nvml_unavailable;
mod port_in_use;
mod rank_env;
mod storage;
mod thermal;
pub(super) mod visible;
mod xid_seen;

use super::Rule;

/// All rules. A rule that is not here does not run.
pub static RULES: &[&Rule] = &[
    &identity::NODE_MISSING,
    &nvml_unavailable::NVML_UNAVAILABLE,
    &nvml_unavailable::DRIVER_HANG,
    &driver::DRIVER_MODULE_MISMATCH,
    &driver::DRIVER_SKEW,
    &driver::KERNEL_MODULE_MISSING,
    &device_nodes::DEVICE_NODE_MISSING,
    &device_nodes::CGROUP_DEVICE_DENIED,
    &gpu_count_mismatch::RULE,
    &gpu_lost::GPU_LOST,
    &gpu_lost::RECOVERY_ACTION_PENDING,
    &busy::RULE,
    &gpu_modes::COMPUTE_MODE_EXCLUSIVE,
    &gpu_modes::MIG_ENABLED,
    &gpu_modes::PERSISTENCE_OFF,
    &memory_errors::ECC_MODE,
    &memory_errors::ECC_UNCORRECTED,
    &memory_errors::ROW_REMAP_PENDING,
    &memory_errors::ROW_REMAP_FAILED,
    &memory_errors::RETIRED_PAGES,
    &memory_size::MEMORY_TOO_SMALL,
    &memory_size::MEMORY_SKEW,
    &thermal::HW_THROTTLE,
    &thermal::TEMPERATURE_MARGIN,
    &thermal::POWER_CAP,
    &links::PCIE_WIDTH,
    &links::NVLINK_INACTIVE,
    &fabric::RULE,
    &cuda_version::CUDA_TOO_NEW,
    &cuda_version::PTX_TOO_NEW,
    &cuda_version::ARCH_NOT_COVERED,
    &binary::TRAINER_MISSING,
    &binary::TRAINER_WITHOUT_CUDA,
    &binary::LIBRARY_MISSING,
    &binary::BINARY_SKEW,
    &libcuda::FORWARD_COMPAT_SHADOW,
    &libcuda::STUB_LIBCUDA,
    &dtype_unsupported::RULE,
    &nccl::NCCL_DUPLICATE,
    &nccl::NCCL_SKEW,
    &limits::SHM_SMALL,
    &limits::MEMLOCK_LOW,
    &limits::FD_LIMIT,
    &host_memory::CGROUP_LIMITS,
    &host_memory::HOST_MEMORY_SHORT,
    &kernel::KERNEL_OLD,
    &kernel::OS_SKEW,
    &kernel::KERNEL_FAULTS,
    &kernel::TIME_DAEMON,
    &xid_seen::RULE,
    &identity::HOST_IDENTITY_CLASH,
    &storage::STORAGE_UNWRITABLE,
    &storage::DISK_SHORT,
    &port_in_use::RULE,
    &interfaces::BOOTSTRAP_INTERFACE,
    &interfaces::VIRTUAL_INTERFACE_FIRST,
    &interfaces::IB_DISABLED_LEFTOVER,
    &rank_env::WORLD_SIZE_MISMATCH,
    &rank_env::RANK_GPU_CLASH,
    &visible::RULE,
    &environment::BAD_CUDA_ENV,
    &environment::ENV_SKEW,
    &batch_lr_drift::RULE,
    &data_unusable::RULE,
];
