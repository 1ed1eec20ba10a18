//! What repairs change.

use serde::{Deserialize, Serialize};

/// Kinds of repairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Persistence mode of a GPU.
    Persistence,
    /// Size of `/dev/shm`.
    SharedMemory,
    /// A resource limit of the shell that starts the job.
    Limit,
    /// The same limit for later logins.
    LimitFile,
    /// A kernel module.
    Module,
    /// A setting of the kernel.
    Sysctl,
    /// The job file: variables of the ranks, size of a pod's `/dev/shm`.
    JobFile,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 7] = [
        Kind::Persistence,
        Kind::SharedMemory,
        Kind::Limit,
        Kind::LimitFile,
        Kind::Module,
        Kind::Sysctl,
        Kind::JobFile,
    ];

    /// Name in JSON and in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Persistence => "persistence",
            Kind::SharedMemory => "shared-memory",
            Kind::Limit => "limit",
            Kind::LimitFile => "limit-file",
            Kind::Module => "module",
            Kind::Sysctl => "sysctl",
            Kind::JobFile => "job-file",
        }
    }

    /// How it is made.
    pub const fn how(self) -> &'static str {
        match self {
            Kind::Persistence => "nvmlDeviceSetPersistenceMode",
            Kind::SharedMemory => "mount -o remount,size=BYTES /dev/shm",
            Kind::Limit => "prlimit --pid SHELL --RESOURCE=SOFT:HARD",
            Kind::LimitFile => "a file of its own in /etc/security/limits.d",
            Kind::Module => "modprobe NAME",
            Kind::Sysctl => "a write to /proc/sys",
            Kind::JobFile => "a patch of the job file, shown as a diff",
        }
    }

    /// How long it lasts without an undo.
    pub const fn lasts(self) -> &'static str {
        match self {
            Kind::Persistence | Kind::SharedMemory | Kind::Module | Kind::Sysctl => {
                "until the next boot"
            }
            Kind::Limit => "as long as the shell",
            Kind::LimitFile => "for ever, from the next login on",
            Kind::JobFile => "for ever",
        }
    }

    /// Whether the next boot takes it back.
    pub const fn ends_with_boot(self) -> bool {
        match self {
            Kind::Persistence | Kind::SharedMemory | Kind::Limit | Kind::Module | Kind::Sysctl => {
                true
            }
            Kind::LimitFile | Kind::JobFile => false,
        }
    }
}

/// One thing that is changed. Its state is a text, or nothing when it is not there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Target {
    /// Persistence mode of the GPU with this UUID: `on` or `off`.
    Persistence {
        /// UUID.
        gpu: String,
    },
    /// Size of `/dev/shm` in bytes.
    SharedMemory,
    /// A limit of a process: `SOFT HARD`, numbers or `unlimited`.
    Limit {
        /// The resource.
        resource: Resource,
        /// The process.
        process: Process,
    },
    /// A whole file in `/etc/security/limits.d`.
    LimitFile {
        /// Absolute path.
        path: String,
    },
    /// A kernel module: `loaded`, or not there.
    Module {
        /// As in `/proc/modules`.
        name: String,
    },
    /// A setting of the kernel.
    Sysctl {
        /// As for sysctl(8).
        name: String,
    },
    /// The whole job file.
    JobFile {
        /// Absolute path.
        path: String,
    },
}

/// A process, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Number.
    pub pid: u32,
    /// Start in clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub started: u64,
}

/// A resource that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Locked memory in bytes.
    Memlock,
    /// Open files.
    Nofile,
    /// Processes of the user.
    Nproc,
    /// Size of a file in bytes.
    Fsize,
    /// Address space in bytes.
    As,
    /// Size of a core dump in bytes.
    Core,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 6] = [
        Resource::Memlock,
        Resource::Nofile,
        Resource::Nproc,
        Resource::Fsize,
        Resource::As,
        Resource::Core,
    ];

    /// As prlimit(1) and limits.conf(5) name it.
    pub const fn name(self) -> &'static str {
        match self {
            Resource::Memlock => "memlock",
            Resource::Nofile => "nofile",
            Resource::Nproc => "nproc",
            Resource::Fsize => "fsize",
            Resource::As => "as",
            Resource::Core => "core",
        }
    }

    /// How its line in `/proc/PID/limits` begins.
    pub const fn row(self) -> &'static str {
        match self {
            Resource::Memlock => "Max locked memory",
            Resource::Nofile => "Max open files",
            Resource::Nproc => "Max processes",
            Resource::Fsize => "Max file size",
            Resource::As => "Max address space",
            Resource::Core => "Max core file size",
        }
    }

    /// Soft and hard limit as `SOFT HARD`, from the text of `/proc/PID/limits`.
    pub fn read(self, limits: &str) -> Option<String> {
        let line = limits.lines().find_map(|line| line.strip_prefix(self.row()))?;
        let mut numbers = line.split_whitespace();
        Some(format!("{} {}", numbers.next()?, numbers.next()?))
    }
}

impl Target {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Target::Persistence { .. } => Kind::Persistence,
            Target::SharedMemory => Kind::SharedMemory,
            Target::Limit { .. } => Kind::Limit,
            Target::LimitFile { .. } => Kind::LimitFile,
            Target::Module { .. } => Kind::Module,
            Target::Sysctl { .. } => Kind::Sysctl,
            Target::JobFile { .. } => Kind::JobFile,
        }
    }

    /// The file that it is, if it is one.
    pub fn path(&self) -> Option<&str> {
        match self {
            Target::LimitFile { path } | Target::JobFile { path } => Some(path),
            Target::Persistence { .. }
            | Target::SharedMemory
            | Target::Limit { .. }
            | Target::Module { .. }
            | Target::Sysctl { .. } => None,
        }
    }

    /// The command that gives it this state; `None` for files, and for states that no command makes.
    pub fn command(&self, state: Option<&str>) -> Option<String> {
        match self {
            Target::Persistence { gpu } => {
                let on = u8::from(state? == "on");
                Some(format!("nvidia-smi -i {gpu} -pm {on}"))
            }
            Target::SharedMemory => Some(format!("mount -o remount,size={} /dev/shm", state?)),
            Target::Limit { resource, process } => {
                let (name, pid) = (resource.name(), process.pid);
                let values = state?.replace(' ', ":");
                Some(format!("prlimit --pid {pid} --{name}={values}"))
            }
            Target::Module { name } if state.is_some() => Some(format!("modprobe {name}")),
            Target::Module { name } => Some(format!("modprobe -r {name}")),
            Target::Sysctl { name } => Some(format!("sysctl -w {name}=\"{}\"", state?)),
            Target::LimitFile { .. } | Target::JobFile { .. } => None,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Persistence { gpu } => write!(f, "persistence mode of {gpu}"),
            Target::SharedMemory => f.write_str("size of /dev/shm in bytes"),
            Target::Limit { resource, process } => {
                write!(f, "limit {} of process {}", resource.name(), process.pid)
            }
            Target::Module { name } => write!(f, "kernel module {name}"),
            Target::Sysctl { name } => f.write_str(name),
            Target::LimitFile { path } | Target::JobFile { path } => write!(f, "`{path}`"),
        }
    }
}
