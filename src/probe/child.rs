//! Asks the driver, and makes active tests, in a process of its own.
//!
//! A driver that wedges never returns from a call, and a thread that hangs in the kernel keeps
//! its whole process from ending; a broken library may also crash its caller. So the doctor
//! starts itself again for the driver calls, and kills that process when it stays silent. The
//! child says each call before it makes it: the last one is the one that hangs. A disk that does
//! not answer is the same story.

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

use super::{Progress, cuda, nvml};
use crate::wire::gputest::{ANSWER, CALL};

/// Longest silence: the time of one call, which takes milliseconds on a healthy driver.
const SILENCE: Duration = Duration::from_secs(5);
/// Longest time in all, for drivers that are slow at every call.
pub(super) const LONGEST: Duration = Duration::from_secs(30);

/// A killed process is gone in less, in milliseconds.
const DEATH_MS: u64 = 5_000;
/// Where a process hangs that does not.
const END: &str = "its end";
/// A line of the child is shorter: facts of sixteen GPUs take about 100 KB.
const LINE: u64 = 16 << 20;

/// A library of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverLibrary {
    /// `libnvidia-ml.so.1`.
    Nvml,
    /// `libcuda.so.1`.
    Cuda,
}

impl DriverLibrary {
    /// The argument that names it to the child.
    pub const fn name(self) -> &'static str {
        match self {
            DriverLibrary::Nvml => "nvml",
            DriverLibrary::Cuda => "cuda",
        }
    }
}

/// Why the child has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    Hung { call: String, after_ms: u64 },
    Crashed { message: String },
}

/// What a child does, and how long it may take.
#[derive(Clone, Debug)]
pub(super) struct Errand {
    /// Names it: while a child hangs in it, no other is started for the same.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Environment variables beside those of this process.
    pub variables: Vec<(&'static str, String)>,
    /// Longest time between two steps.
    pub silence: Duration,
    /// Longest time in all.
    pub longest: Duration,
}

/// A child that was started and not yet listened to.
pub(super) struct Question {
    errand: Errand,
    asked: Asked,
}

enum Asked {
    Started(io::Result<Child>),
    /// An earlier child still hangs in this call: another would hang beside it.
    Stuck(Silence),
}

/// A child that was killed and does not die, because its call does not return.
struct Stuck {
    name: String,
    child: Child,
    call: String,
    since: Instant,
}

/// Whoever asks again and again must not gather a hanging process each time.
static STUCK: Mutex<Vec<Stuck>> = Mutex::new(Vec::new());

/// The call in which an earlier child for the library still hangs.
pub(super) fn hangs(library: DriverLibrary) -> Option<String> {
    match stuck(&STUCK, library.name()) {
        Some(Silence::Hung { call, .. }) => Some(call),
        Some(Silence::Crashed { .. }) | None => None,
    }
}

/// What the earlier children say that still hang; those that died are reaped.
fn stuck(all: &Mutex<Vec<Stuck>>, name: &str) -> Option<Silence> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain_mut(|one| matches!(one.child.try_wait(), Ok(None)));
    let one = all.iter().find(|one| one.name == name)?;
    Some(Silence::Hung { call: one.call.clone(), after_ms: millis(one.since) })
}

/// Starts `program probe-driver LIBRARY`, unless the last one still hangs.
pub(super) fn start(program: &Path, library: DriverLibrary) -> Question {
    send(errand(program, library, &[]))
}

pub(super) fn errand(program: &Path, library: DriverLibrary, more: &[&str]) -> Errand {
    let args = ["probe-driver", library.name()];
    Errand {
        name: library.name().to_owned(),
        program: program.to_owned(),
        args: args.iter().chain(more).map(Into::into).collect(),
        variables: Vec::new(),
        silence: SILENCE,
        longest: LONGEST,
    }
}

/// Starts a child for this errand, unless the last one still hangs in it.
pub(super) fn send(errand: Errand) -> Question {
    ask(errand, Stdio::null())
}

/// The same; `stdin` is held open by the child.
pub(super) fn ask(errand: Errand, stdin: Stdio) -> Question {
    if let Some(silence) = stuck(&STUCK, &errand.name) {
        return Question { errand, asked: Asked::Stuck(silence) };
    }
    let child = Command::new(&errand.program)
        .args(&errand.args)
        .envs(errand.variables.iter().map(|(name, value)| (name, value)))
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    Question { errand, asked: Asked::Started(child) }
}

impl Question {
    /// Waits for the answer.
    pub(super) fn answer<T: DeserializeOwned>(self) -> Result<T, Silence> {
        let crashed = |message: String| Silence::Crashed { message };
        let child = match self.asked {
            Asked::Started(child) => child,
            Asked::Stuck(silence) => return Err(silence),
        };
        let mut child = child.map_err(|error| crashed(format!("it did not start: {error}")))?;
        let lines = lines(&mut child);
        let answer = listen(&lines, self.errand.silence, self.errand.longest);
        // A process that hangs in the kernel dies only when its call returns, if ever: it is
        // not waited for then. It may hang at its end, too, where it closes the driver.
        let _dead_already = child.kill();
        let name = &self.errand.name;
        match answer {
            Ok(json) => {
                let _status = reap(&STUCK, name, child);
                serde_json::from_str(&json).map_err(|error| crashed(error.to_string()))
            }
            Err(Heard::Silent { call, after_ms }) => {
                keep(&STUCK, name, child, &call);
                Err(Silence::Hung { call, after_ms })
            }
            Err(Heard::Ended { call }) => match reap(&STUCK, name, child) {
                Some(status) => Err(crashed(format!("{status} in {call}"))),
                None => Err(Silence::Hung { call: END.to_owned(), after_ms: DEATH_MS }),
            },
        }
    }
}

/// How a killed child ended; one that does not end is kept among those that hang.
fn reap(all: &Mutex<Vec<Stuck>>, name: &str, mut child: Child) -> Option<String> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(DEATH_MS) {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.to_string()),
            Ok(None) => thread::sleep(Duration::from_millis(1)),
            Err(error) => return Some(error.to_string()),
        }
    }
    keep(all, name, child, END);
    None
}

fn keep(all: &Mutex<Vec<Stuck>>, name: &str, child: Child, call: &str) {
    let one = Stuck { name: name.to_owned(), child, call: call.to_owned(), since: Instant::now() };
    all.lock().unwrap_or_else(PoisonError::into_inner).push(one);
}

enum Heard {
    Silent { call: String, after_ms: u64 },
    Ended { call: String },
}

fn lines(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        let listening = thread::Builder::new().spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut line = String::new();
            // What is longer or no text is no answer: the sender goes, and the child counts as ended.
            while stdout.by_ref().take(LINE).read_line(&mut line).is_ok_and(|bytes| 0 < bytes) {
                let Some(whole) = line.strip_suffix('\n') else { break };
                if sender.send(whole.to_owned()).is_err() {
                    break;
                }
                line.clear();
            }
        });
        // Without a thread more nobody listens, and the child counts as ended.
        drop(listening);
    }
    receiver
}

fn listen(lines: &Receiver<String>, silence: Duration, longest: Duration) -> Result<String, Heard> {
    let begin = Instant::now();
    let mut call = "its start".to_owned();
    loop {
        let since = Instant::now();
        let left = longest.saturating_sub(begin.elapsed());
        match lines.recv_timeout(silence.min(left)) {
            Ok(line) => {
                if let Some(json) = line.strip_prefix(ANSWER) {
                    return Ok(json.to_owned());
                }
                line.strip_prefix(CALL).unwrap_or(&line).clone_into(&mut call);
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(Heard::Silent { call, after_ms: millis(since) });
            }
            Err(RecvTimeoutError::Disconnected) => return Err(Heard::Ended { call }),
        }
        if longest < begin.elapsed() {
            return Err(Heard::Silent { call, after_ms: millis(begin) });
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The child's side: makes the calls, tells `say` each before, and gives the answer, one line.
pub fn serve(library: DriverLibrary, mut say: impl FnMut(&str) + Send + 'static) -> String {
    let progress = Progress::to(move |call| say(&format!("{CALL}{call}")));
    let json = match library {
        DriverLibrary::Nvml => {
            serde_json::to_string(&nvml::read(nvml::LIBRARY.as_ref(), &progress))
        }
        DriverLibrary::Cuda => {
            serde_json::to_string(&cuda::read(cuda::LIBRARY.as_ref(), &progress))
        }
    };
    format!("{ANSWER}{}", json.expect("plain data"))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::facts::{CudaFacts, NvmlFacts};

    /// A program that does what `script` says when it is asked.
    fn program(script: &str) -> tempfile::TempPath {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "#!/bin/sh\n{script}").unwrap();
        let path = file.into_temp_path();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn an_answer_is_read_back() {
        let answer = serve(DriverLibrary::Nvml, |call| assert!(call.starts_with("call ")));
        let said = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(said.path(), format!("{answer}\n")).unwrap();
        let program = program(&format!("cat {}", said.path().display()));
        let read: NvmlFacts = start(&program, DriverLibrary::Nvml).answer().unwrap();
        assert!(read.state.get().is_ok());
    }

    #[test]
    fn a_call_that_hangs_is_named_and_its_process_killed() {
        let program = program("echo call cuInit; exec sleep 600");
        let begin = Instant::now();
        let mut question = start(&program, DriverLibrary::Cuda);
        question.errand.silence = Duration::from_millis(500);
        let silence = question.answer::<CudaFacts>().unwrap_err();
        assert!(matches!(&silence, Silence::Hung { call, .. } if call == "cuInit"), "{silence:?}");
        assert!(begin.elapsed() < Duration::from_secs(5));
        // It was killed, so the next question is asked again as soon as it is dead.
        while stuck(&STUCK, "cuda").is_some() {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn while_one_hangs_no_other_is_started() {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        let (name, call) = ("nvml".to_owned(), "nvmlInit_v2".to_owned());
        let all = Mutex::new(vec![Stuck { name, child, call, since: Instant::now() }]);
        let silence = stuck(&all, "nvml");
        assert!(matches!(silence, Some(Silence::Hung { call, .. }) if call == "nvmlInit_v2"));
        assert!(stuck(&all, "cuda").is_none());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        while stuck(&all, "nvml").is_some() {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(all.lock().unwrap().is_empty());
    }

    #[test]
    fn what_is_no_answer_is_a_crash_and_not_a_fact() {
        for script in [
            "echo answer {}",
            "echo answer null",
            "echo 'answer {\"state\": 7}'",
            "printf 'answer {'",
            "head -c 20000000 /dev/zero",
            "exit 0",
        ] {
            let program = program(script);
            let silence = start(&program, DriverLibrary::Nvml).answer::<NvmlFacts>().unwrap_err();
            assert!(matches!(silence, Silence::Crashed { .. }), "{script}: {silence:?}");
        }
    }

    #[test]
    fn a_process_that_does_not_die_is_not_waited_for() {
        // Never killed, it stands for one that hangs in the kernel.
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        let (all, begin) = (Mutex::new(Vec::new()), Instant::now());
        assert_eq!(reap(&all, "cuda", child), None);
        assert!(begin.elapsed() < Duration::from_millis(2 * DEATH_MS));
        let silence = stuck(&all, "cuda");
        assert!(matches!(silence, Some(Silence::Hung { call, .. }) if call == END));
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        while stuck(&all, "cuda").is_some() {
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_child_that_talks_for_ever_is_ended_too() {
        let program = program("while :; do echo call again; sleep 0.05; done");
        let mut question = start(&program, DriverLibrary::Nvml);
        question.errand.name = "talks".to_owned();
        question.errand.longest = Duration::from_millis(400);
        let begin = Instant::now();
        let silence = question.answer::<NvmlFacts>().unwrap_err();
        assert!(matches!(&silence, Silence::Hung { call, .. } if call == "again"), "{silence:?}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_crash_says_where() {
        let program = program("echo call nvmlInit_v2; kill -SEGV $$");
        let silence = start(&program, DriverLibrary::Nvml).answer::<NvmlFacts>().unwrap_err();
        let Silence::Crashed { message } = silence else { panic!("{silence:?}") };
        assert!(message.contains("signal: 11") && message.contains("nvmlInit_v2"), "{message}");
    }
}
