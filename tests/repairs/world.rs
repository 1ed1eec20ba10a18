//! A machine of its own: a mount namespace with a root of its own, a simulated driver, and a shell in it.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;
use simgpu::Host;

/// Two GPUs, one without persistence mode.
const SCENARIO: &str = r#"{"driver": "550.163.01", "cuda_driver": 12040, "gpus": [
    {"profile": "h100-sxm-80g"}, {"profile": "h100-sxm-80g", "persistence": false}]}"#;

pub(crate) struct World {
    shell: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(crate) folder: tempfile::TempDir,
    _host: Host,
}

/// What a command did.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl World {
    pub(crate) fn new() -> World {
        assert!(nix::unistd::geteuid().is_root(), "these tests mount: run them as root");
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(SCENARIO);
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        fs::copy("tests/repairs/modprobe.sh", bin.join("modprobe")).unwrap();
        fs::set_permissions(bin.join("modprobe"), fs::Permissions::from_mode(0o755)).unwrap();
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/repairs/enter.sh");
        let mut command = Command::new("unshare");
        command.args(["-m", "sh"]).arg(script).arg(folder.path()).env_clear();
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
        let mut shell = command
            .env("PATH", path)
            .env("HOME", folder.path())
            .env("QVL", env!("CARGO_BIN_EXE_qvl"))
            .env("T", folder.path())
            .env("LD_LIBRARY_PATH", host.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) of util-linux: apt-get install util-linux");
        let input = shell.stdin.take().unwrap();
        let output = BufReader::new(shell.stdout.take().unwrap());
        World { shell, input, output, folder, _host: host }
    }

    /// Runs a line in the shell.
    pub(crate) fn run(&mut self, line: &str) -> Ran {
        let (out, err) = ("\"$T/out\"", "\"$T/err\"");
        writeln!(self.input, "{{ {line}\n}} >{out} 2>{err} </dev/null; echo $?").unwrap();
        let mut code = String::new();
        self.output.read_line(&mut code).unwrap();
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap();
        let code =
            code.trim().parse().unwrap_or_else(|_| panic!("the shell died: {}", read("err")));
        Ran { code, out: read("out"), err: read("err") }
    }

    /// Runs a line that must succeed.
    pub(crate) fn must(&mut self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{line}\n{}{}", ran.out, ran.err);
        ran.out
    }

    /// Facts of the machine.
    pub(crate) fn facts(&mut self) -> Value {
        let ran = self.run("\"$QVL\" doctor --save-facts \"$T/facts.json\" --format json");
        assert!(matches!(ran.code, 0 | 1 | 3), "{}{}", ran.out, ran.err);
        let text = fs::read_to_string(self.folder.path().join("facts.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["facts"].take()
    }

    /// Verdicts of a check.
    pub(crate) fn verdicts(&mut self, rule: &str, args: &str) -> Vec<String> {
        let ran = self.run(&format!("\"$QVL\" doctor --format json {args}"));
        let report: Value = serde_json::from_str(&ran.out)
            .unwrap_or_else(|error| panic!("{error}: {}{}", ran.out, ran.err));
        let checks = report["checks"].as_array().unwrap();
        let of_rule = checks.iter().filter(|check| check["id"] == rule);
        of_rule.map(|check| check["verdict"].as_str().unwrap().to_owned()).collect()
    }

    /// The same line, killed at a step of a process whose command line has this word. Whether it
    /// died.
    pub(crate) fn killed(&mut self, line: &str, word: &str, at: u32) -> bool {
        let library = env::current_exe().unwrap().with_file_name("libkiller.so");
        assert!(library.exists(), "{} was not built", library.display());
        let library = library.display();
        let ran = self.run(&format!(
            "LD_PRELOAD={library} QVL_KILLER_AT={at} QVL_KILLER_ARGUMENT={word} {line}"
        ));
        assert!(ran.code < 128 || ran.code == 137, "{}: {}{}", ran.code, ran.out, ran.err);
        ran.code == 137
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _gone = self.shell.kill();
        let _reaped = self.shell.wait();
    }
}
