//! The machine that repairs change: reads and writes the state of each target.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::{resource, statvfs::statvfs};

use super::file;
use crate::{
    doctor::fix::{Process, Resource, Target},
    probe,
};

/// Why a state could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Trouble {
    /// What was tried, and what the system said.
    pub what: String,
    /// Whether rights are missing.
    pub denied: bool,
}

impl Trouble {
    /// Trouble that has nothing to do with rights.
    pub(super) fn new(what: impl Into<String>) -> Self {
        Trouble { what: what.into(), denied: false }
    }

    fn io(what: &str, error: &io::Error) -> Self {
        let denied = matches!(
            error.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        );
        Trouble { what: format!("{what}: {error}"), denied }
    }
}

/// This machine.
#[derive(Debug)]
pub struct Machine {
    /// `qvl` itself, which asks the driver in a process of its own.
    program: PathBuf,
    /// Kept open by children that change something: see [`super::Journal::lock`].
    lock: Option<File>,
}

const SHM: &str = "/dev/shm";
const LOADED: &str = "loaded";

impl Machine {
    /// This machine. `program` is `qvl`, `lock` that of the journal if something will be changed.
    pub fn new(program: PathBuf, lock: Option<File>) -> Self {
        Machine { program, lock }
    }

    /// Random id of this boot; empty if the kernel does not tell.
    pub fn boot(&self) -> String {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        text.unwrap_or_default().trim().to_owned()
    }

    /// The present state; `None` if it is not there. A process that has ended has no limits.
    pub fn read(&self, target: &Target) -> Result<Option<String>, Trouble> {
        let failed = |error: io::Error| Trouble::io(&format!("failed to read {target}"), &error);
        match target {
            Target::Persistence { gpu } => {
                let on = self.persistence(gpu, None)?;
                Ok(Some(if on { "on" } else { "off" }.to_owned()))
            }
            Target::SharedMemory => {
                let stat = statvfs(SHM).map_err(|errno| failed(errno.into()))?;
                Ok(Some((stat.blocks() * stat.fragment_size()).to_string()))
            }
            Target::Limit { resource, process } => {
                if start_of(process.pid) != Some(process.started) {
                    return Ok(None);
                }
                let text = fs::read_to_string(format!("/proc/{}/limits", process.pid));
                Ok(resource.read(&text.map_err(failed)?))
            }
            Target::Module { name } => {
                let text = fs::read_to_string("/proc/modules").map_err(failed)?;
                let mut names = text.lines().filter_map(|line| line.split(' ').next());
                Ok(names.any(|loaded| loaded == name).then(|| LOADED.to_owned()))
            }
            Target::Sysctl { name } => {
                let text = file::read(&setting(name)).map_err(failed)?;
                Ok(text.map(|text| text.trim().to_owned()))
            }
            Target::LimitFile { path } | Target::JobFile { path } => {
                file::read(Path::new(path)).map_err(failed)
            }
        }
    }

    /// Gives a target this state, and looks whether it has it then. `id` is the repair's.
    pub fn write(&self, target: &Target, state: Option<&str>, id: u64) -> Result<(), Trouble> {
        self.make(target, state, id)?;
        let now = self.read(target)?;
        if now.as_deref() == state {
            return Ok(());
        }
        let text = |state: Option<&str>| state.unwrap_or("not there").to_owned();
        let what = match target.path() {
            Some(path) => format!("`{path}` does not read back as it was written"),
            None => format!("{target} is {} instead of {}", text(now.as_deref()), text(state)),
        };
        Err(Trouble::new(what))
    }

    /// Removes what a writer of this target left that died.
    pub fn clean(&self, target: &Target, id: u64) -> Result<(), Trouble> {
        let Some(path) = target.path() else { return Ok(()) };
        let what = format!("failed to remove an unfinished copy of {target}");
        file::clean(Path::new(path), id).map_err(|error| Trouble::io(&what, &error))
    }

    fn make(&self, target: &Target, state: Option<&str>, id: u64) -> Result<(), Trouble> {
        let failed = |error: io::Error| Trouble::io(&format!("failed to change {target}"), &error);
        let no_state = || Trouble::new(format!("{target} cannot be taken away"));
        match (target, state) {
            (Target::Persistence { gpu }, state) => {
                let on = state.ok_or_else(no_state)? == "on";
                self.persistence(gpu, Some(on)).map(|_on| ())
            }
            (Target::SharedMemory, state) => {
                let size = format!("remount,size={}", state.ok_or_else(no_state)?);
                self.run("mount", &["-o", &size, SHM])
            }
            (Target::Limit { resource, process }, state) => {
                let state = state.ok_or_else(no_state)?;
                let limit = format!("--{}={}", resource.name(), state.replace(' ', ":"));
                self.run("prlimit", &["--pid", &process.pid.to_string(), &limit])?;
                // So that a new look of this process at itself sees what the ranks will see.
                own_limit(*resource, state).map_err(failed)
            }
            (Target::Module { name }, Some(_)) => self.run("modprobe", &[name]),
            (Target::Module { name }, None) => self.run("modprobe", &["-r", name]),
            (Target::Sysctl { name }, state) => {
                set(&setting(name), state.ok_or_else(no_state)?).map_err(failed)
            }
            (Target::LimitFile { path } | Target::JobFile { path }, state) => {
                file::replace(Path::new(path), state, id).map_err(failed)
            }
        }
    }

    fn persistence(&self, gpu: &str, set: Option<bool>) -> Result<bool, Trouble> {
        let lock = if set.is_some() { self.lock() } else { Stdio::null() };
        let answer = probe::persistence(&self.program, gpu, set, lock);
        answer.map_err(|error| Trouble { what: error.message, denied: error.denied })
    }

    fn lock(&self) -> Stdio {
        let lock = self.lock.as_ref().and_then(|lock| lock.try_clone().ok());
        lock.map_or_else(Stdio::null, Stdio::from)
    }

    /// Runs a command of the system, and gives what it complains of.
    fn run(&self, program: &str, args: &[&str]) -> Result<(), Trouble> {
        let line = format!("{program} {}", args.join(" "));
        let output = Command::new(program).args(args).stdin(self.lock()).output();
        let output =
            output.map_err(|error| Trouble::io(&format!("`{line}` did not start"), &error))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or("it gave no reason").trim().to_owned();
        let words = ["not permitted", "ermission denied", "must be superuser"];
        let denied = words.iter().any(|word| said.contains(word));
        Err(Trouble { what: format!("`{line}` failed: {said}"), denied })
    }
}

/// One write, which the kernel takes whole or not at all.
fn set(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(format!("{value}\n").as_bytes())
}

fn setting(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}

fn own_limit(resource: Resource, state: &str) -> io::Result<()> {
    let kind = match resource {
        Resource::Memlock => resource::Resource::RLIMIT_MEMLOCK,
        Resource::Nofile => resource::Resource::RLIMIT_NOFILE,
        Resource::Nproc => resource::Resource::RLIMIT_NPROC,
        Resource::Fsize => resource::Resource::RLIMIT_FSIZE,
        Resource::As => resource::Resource::RLIMIT_AS,
        Resource::Core => resource::Resource::RLIMIT_CORE,
    };
    let number = |text: &str| match text {
        "unlimited" => Ok(resource::RLIM_INFINITY),
        text => {
            text.parse::<u64>().map_err(|_error| io::Error::other(format!("`{text}` is no limit")))
        }
    };
    let (soft, hard) = state.split_once(' ').unwrap_or((state, state));
    resource::setrlimit(kind, number(soft)?, number(hard)?)?;
    Ok(())
}

/// Fields of `/proc/PID/stat` behind the name, which may hold anything.
fn stat(pid: u32) -> Option<(String, Vec<String>)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, fields) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    Some((name, fields.split_whitespace().map(str::to_owned).collect()))
}

/// Start of a process in clock ticks since boot; `None` if there is no such process.
fn start_of(pid: u32) -> Option<u64> {
    // Field 22; the first behind the name is field 3.
    stat(pid)?.1.get(19)?.parse().ok()
}

/// The process that will start the job after this one: the nearest above it that is not there to
/// change rights.
pub fn session() -> Option<Process> {
    const BETWEEN: [&str; 5] = ["sudo", "su", "doas", "runuser", "env"];
    let mut pid = std::os::unix::process::parent_id();
    loop {
        let (name, fields) = stat(pid)?;
        if !BETWEEN.contains(&name.as_str()) {
            return Some(Process { pid, started: start_of(pid)? });
        }
        pid = fields.get(1)?.parse().ok()?;
    }
}
