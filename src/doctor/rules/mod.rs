//! The table of all rules. A rule's name in the code is its id in capitals; small siblings share
//! a file.

pub(super) mod active;
mod affinity;
mod batch_lr_drift;
mod binary;
pub(super) mod busy;
mod clock;
mod cuda_version;
mod data_unusable;
mod device_nodes;
mod driver;
mod driver_choice;
mod dtype_unsupported;
mod environment;
mod fabric;
mod files;
mod gpu_count_mismatch;
mod gpu_lost;
mod gpu_modes;
mod gpu_skew;
mod gpu_state;
mod gpu_test;
mod host_memory;
mod host_test;
mod identity;
mod interfaces;
mod kernel;
mod launch_script;
mod libcuda;
mod limits;
mod link_quality;
mod links;
mod memory_errors;
mod memory_size;
mod memory_state;
mod memory_wear;
mod nccl;
mod nccl_settings;
mod network_test;
mod nvml_unavailable;
mod nvswitch;
mod packages;
mod pci;
mod peers;
mod port_in_use;
mod processes;
mod processors;
mod program;
mod rank_env;
mod rdma;
mod rendezvous;
mod shared_memory;
mod storage;
mod storage_test;
pub(super) mod tcp;
mod thermal;
mod training_program;
pub(super) mod visible;
mod xid_seen;

pub(super) use environment::debugging_variables;
pub(super) use interfaces::selects;
pub(super) use nccl_settings::ERROR_HANDLING;

use super::{Rule, Stop};
use crate::facts::{Fact, NodeFacts};

type Settings = Fact<std::collections::BTreeMap<String, String>>;

/// A setting of the kernel; the check is skipped if the kernel does not have it.
fn setting_text<'n>(node: &'n NodeFacts, name: &str) -> Result<&'n str, Stop> {
    let setting = node.system.sysctl.get()?.get(name);
    let missing = || Stop::skip(format!("the kernel has no setting {name}"));
    setting.map(String::as_str).ok_or_else(missing)
}

/// The same as a number, with the fact that it comes from.
fn setting<'n>(node: &'n NodeFacts, name: &str) -> Result<(&'n Settings, u64), Stop> {
    let number = setting_text(node, name)?.split_whitespace().next().unwrap_or("").parse();
    let wrong = |_error| Stop::skip(format!("the setting {name} is not a number"));
    Ok((&node.system.sysctl, number.map_err(wrong)?))
}

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
    &shared_memory::POD_SHM_SMALL,
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
    &processors::PROCESSORS_SHORT,
    &processors::CPU_GOVERNOR,
    &processors::CPU_THROTTLED,
    &processors::CPU_STEAL,
    &processors::CPU_PRESSURE,
    &processors::CPU_WITHOUT_AVX2,
    &processors::CGROUP_CPU_THROTTLED,
    &processors::CLOCKSOURCE_SLOW,
    &memory_state::SWAP_IN_USE,
    &memory_state::HUGEPAGES_WASTE,
    &memory_state::MEMORY_PRESSURE,
    &memory_state::IO_PRESSURE,
    &memory_state::HOST_MEMORY_ERRORS,
    &memory_state::CGROUP_OOM_KILLED,
    &memory_state::OVERCOMMIT_STRICT,
    &memory_state::MAX_MAP_COUNT_LOW,
    &clock::CLOCK_UNSYNCHRONISED,
    &clock::CLOCK_SKEW,
    &processes::PROCESS_LIMIT,
    &processes::PID_MAX_LOW,
    &processes::PROCESS_TABLE,
    &processes::FILE_SIZE_LIMIT,
    &processes::ADDRESS_SPACE_LIMIT,
    &processes::CORE_DUMPS_ON,
    &processes::FILE_TABLE_FULL,
    &processes::KERNEL_OOPS,
    &processes::NUMA_BALANCING,
    &shared_memory::SHM_FULL,
    &shared_memory::SHM_STALE,
    &shared_memory::SHM_COUNTS_AS_MEMORY,
    &shared_memory::REMOVE_IPC,
    &pci::GPU_DRIVER_NOT_BOUND,
    &pci::PCIE_AER,
    &pci::ACS_ON_P2P_PATH,
    &pci::IOMMU_TRANSLATING,
    &pci::PCIE_SLOT_SLOW,
    &pci::PCIE_REPLAYS,
    &pci::BAR1_SMALL,
    &affinity::NUMA_UNKNOWN,
    &affinity::GPU_FAR_FROM_CPUS,
    &affinity::RDMA_FAR_FROM_GPU,
    &peers::P2P_BROKEN,
    &peers::TOPOLOGY_ODD,
    &peers::NVLINK_COUNT,
    &peers::NVLINK_UNEQUAL,
    &peers::NVLINK_ERRORS,
    &nvswitch::FABRIC_MANAGER,
    &nvswitch::IMEX_NOT_READY,
    &nvswitch::MNNVL_DENIED,
    &gpu_skew::GPU_MODEL_SKEW,
    &gpu_skew::VBIOS_SKEW,
    &gpu_skew::GSP_FIRMWARE_SKEW,
    &gpu_skew::ECC_SKEW,
    &gpu_skew::POWER_CAP_SKEW,
    &gpu_skew::TEMPERATURE_SKEW,
    &gpu_skew::GPU_DUPLICATE,
    &gpu_state::APPLICATION_CLOCKS_SET,
    &gpu_state::GPU_DRIVES_DISPLAY,
    &gpu_state::GPU_VIRTUALISED,
    &gpu_state::MPS_RUNNING,
    &gpu_state::MPS_INCONSISTENT,
    &memory_wear::ECC_CORRECTED_HIGH,
    &memory_wear::ROW_REMAP_COUNT,
    &memory_wear::SRAM_ECC_THRESHOLD,
    &driver_choice::DRIVER_DENIED,
    &driver_choice::DRIVER_END_OF_LIFE,
    &driver_choice::CLOSED_KERNEL_MODULE,
    &driver_choice::OPEN_KERNEL_MODULE_UNSUPPORTED,
    &driver_choice::CUDA_UNAVAILABLE,
    &driver_choice::CUDA_COUNT_MISMATCH,
    &driver_choice::CUDA_DRIVER_MISMATCH,
    &program::CUDA_MAJOR_MIXED,
    &program::GLIBC_TOO_OLD,
    &program::TRAINER_WRONG_MACHINE,
    &program::TRAINER_NOT_EXECUTABLE,
    &program::INTERPRETER_MISSING,
    &program::NCCL_TOO_OLD,
    &program::JIT_CACHE_OFF,
    &rdma::RDMA_PORT_DOWN,
    &rdma::RDMA_RATE_LOW,
    &rdma::RDMA_ERRORS,
    &rdma::NIC_FIRMWARE_SKEW,
    &rdma::GID_MISMATCH,
    &rdma::GPUDIRECT_MISSING,
    &rdma::RDMA_SELECTOR_EMPTY,
    &rdma::NET_PLUGIN_MISSING,
    &tcp::MTU_MISMATCH,
    &link_quality::INTERFACE_SLOW,
    &link_quality::INTERFACE_ERRORS,
    &link_quality::LINK_FLAP,
    &tcp::GLOO_INTERFACE,
    &tcp::SUBNET_DISJOINT,
    &tcp::ADDRESS_CLASH,
    &tcp::SOMAXCONN_LOW,
    &tcp::RP_FILTER_STRICT,
    &tcp::CONNTRACK_FULL,
    &rendezvous::MASTER_ADDR,
    &rendezvous::MASTER_NOT_LOCAL,
    &rendezvous::DNS_UNRESOLVED,
    &rendezvous::TCP_UNREACHABLE,
    &rendezvous::HOSTNAME_LOOPBACK,
    &rendezvous::PORT_EPHEMERAL,
    &rendezvous::NCCL_HOSTID_CLASH,
    &rendezvous::MACHINE_ID_CLASH,
    &nccl_settings::NCCL_DEBUG_VERBOSE,
    &nccl_settings::NCCL_P2P_DISABLED,
    &nccl_settings::NCCL_SHM_DISABLED,
    &nccl_settings::NCCL_ALGORITHM_FORCED,
    &nccl_settings::NCCL_NET_FORCED,
    &nccl_settings::NCCL_ERRORS_IGNORED,
    &nccl_settings::OMP_THREADS,
    &nccl_settings::CUDA_DEVICE_ORDER,
    &nccl_settings::CUDA_EAGER_LOADING,
    &nccl_settings::RANK_ENV_PARTIAL,
    &nccl_settings::LOCAL_RANK_MISMATCH,
    &nccl_settings::CONTAINER_RUNTIME,
    &files::OUTPUT_VOLATILE,
    &files::OUTPUT_NOT_SHARED,
    &files::MODEL_REMOTE,
    &files::INODES_SHORT,
    &files::DATA_SKEW,
    &files::MODEL_SKEW,
    &files::STEP_COUNT_UNEQUAL,
    &files::WEIGHTS_ARE_POINTERS,
    &files::WEIGHTS_MISSING,
    &packages::TORCH_PAIR_INVALID,
    &packages::TORCH_DRIVER_TOO_OLD,
    &packages::TORCH_ARCH_MISSING,
    &packages::DEEPSPEED_INCOMPATIBLE,
    &packages::DEEPSPEED_PYTHON,
    &packages::DEEPSPEED_NVCC,
    &packages::TRANSFORMERS_UNSUPPORTED,
    &packages::NCCL_WHEELS_CLASH,
    &training_program::DEVICE_MAP_AUTO,
    &launch_script::QUANTISED_ZERO3,
    &launch_script::RANK_ENV_MISSING,
    &launch_script::LAUNCHER_COUNT_MISMATCH,
    &launch_script::SCRIPT_DTYPE_UNSUPPORTED,
    &training_program::SHARED_OUTPUT,
    &launch_script::NCCL_TIMEOUT_LOW,
    &training_program::SAMPLER_NOT_SHARDED,
    &launch_script::UNUSED_PARAMETERS,
    &launch_script::SAVE_NEVER_FIRES,
    &launch_script::EMBEDDING_TRAINED,
    &storage_test::STORAGE_BROKEN,
    &storage_test::CHECKPOINT_SLOW,
    &storage_test::FSYNC_SLOW,
    &host_test::MEMORY_BANDWIDTH_UNEVEN,
    &host_test::CPU_MISCOMPUTES,
    &host_test::STRAGGLER,
    &network_test::PEER_UNREACHABLE,
    &network_test::MTU_BLACK_HOLE,
    &network_test::NETWORK_SLOW,
    &network_test::CLOCK_OFFSET,
    &gpu_test::MEMORY_NOT_ALLOCATABLE,
    &gpu_test::GPU_MEMORY_WRONG,
    &gpu_test::P2P_COPY_WRONG,
    &gpu_test::COPY_BANDWIDTH,
    &gpu_test::SDC_VOTE,
];
