//! The doctor where nothing is as it should be: it ends in time, never panics, and never calls unknown good.
#![expect(clippy::unwrap_used, reason = "a failure fails the test")]

mod hostile;
mod seccomp;

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use simgpu::Host;

/// Codes that a doctor may end with: never 70 (a bug), never a signal.
const CODES: [i32; 4] = [0, 1, 2, 3];
/// The longest that it may take: a driver that is slow at every call is given up after 30 seconds, a
/// file system after 10, and the machine has other things to do.
const LONGEST: Duration = Duration::from_secs(90);

fn qvl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
    command.env_remove("RUST_BACKTRACE").stdin(Stdio::null());
    command
}

/// Runs it, and checks what holds whatever happens.
#[track_caller]
fn checked(command: &mut Command) -> Output {
    let begin = Instant::now();
    let output = command.output().unwrap();
    assert!(begin.elapsed() < LONGEST, "{:?}", begin.elapsed());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
    assert!(output.status.code().is_some_and(|code| CODES.contains(&code)), "{output:?}");
    output
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn verdict<'r>(report: &'r Value, id: &str) -> &'r str {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no {id}"));
    check["verdict"].as_str().unwrap()
}

/// Checks about facts that a machine without any of them cannot have.
const NEEDS_FACTS: &[&str] = &[
    "nvml-unavailable",
    "driver-module-mismatch",
    "xid-seen",
    "kernel-faults",
    "host-memory-short",
];

fn never_pass(report: &Value) {
    for id in NEEDS_FACTS {
        assert_ne!(verdict(report, id), "pass", "{id}: {report}");
    }
}

#[test]
fn an_empty_root_is_unknown() {
    let root = tempfile::tempdir().unwrap();
    let mut command = qvl();
    command.args(["doctor", "--gpus", "2", "--format", "json", "--sysroot"]).arg(root.path());
    let output = checked(&mut command);
    assert_ne!(output.status.code(), Some(0));
    never_pass(&report(&output));
}

/// Pipes without a writer, endless devices, loops of links, files without an end, and no text.
#[test]
fn a_root_full_of_traps_is_unknown() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    for path in ["dev/kmsg", "proc/meminfo", "proc/modules", "etc/machine-id"] {
        nix::unistd::mkfifo(&at(path), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    symlink("/dev/zero", at("proc/driver/nvidia/version")).unwrap();
    symlink("loop", at("etc/os-release")).unwrap();
    symlink("os-release", at("etc/loop")).unwrap();
    for path in ["proc/self/limits", "proc/self/status", "proc/sys/kernel/osrelease"] {
        fs::File::create(at(path)).unwrap().set_len(1 << 40).unwrap();
    }
    fs::write(at("etc/ld.so.conf"), "include /etc/ld.so.conf.d/*.conf\n").unwrap();
    for number in 0..50 {
        let file = at(&format!("etc/ld.so.conf.d/{number}.conf"));
        fs::write(file, "include /etc/ld.so.conf.d/*.conf\n/x\n").unwrap();
    }
    fs::write(at("proc/stat"), [0xff; 4096]).unwrap();
    fs::write(at("sys/fs/cgroup/cpuset.cpus.effective"), "0-4294967295,0-4294967295\n").unwrap();
    let controller = "sys/devices/system/edac/mc";
    for number in 0..2 {
        for file in ["ce_count", "ue_count"] {
            fs::write(at(&format!("{controller}/mc{number}/{file}")), u64::MAX.to_string())
                .unwrap();
        }
    }
    let device = "sys/bus/pci/devices/0000:3b:00.0";
    fs::write(at(&format!("{device}/vendor")), "0x10de\n").unwrap();
    fs::write(at(&format!("{device}/class")), "0x030200\n").unwrap();
    fs::write(at(&format!("{device}/config")), [0xff; 3]).unwrap();
    let mut command = qvl();
    command.args(["doctor", "--gpus", "2", "--format", "json", "--sysroot"]).arg(root.path());
    let output = checked(&mut command);
    assert_ne!(output.status.code(), Some(0));
    never_pass(&report(&output));
}

/// Runs the doctor in namespaces of its own, after a shell made the machine worse.
fn worse(prepare: &str) -> Output {
    assert!(nix::unistd::geteuid().is_root(), "only root can mount\n  hint: run the tests as root");
    let shell = format!("{prepare} && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &shell, "sh"]);
    command.arg(env!("CARGO_BIN_EXE_qvl")).args(["doctor", "--gpus", "1", "--format", "json"]);
    checked(command.stdin(Stdio::null()))
}

#[test]
fn a_machine_without_proc_sys_or_dev_is_unknown() {
    for (without, ids) in [
        ("/proc", vec!["driver-module-mismatch", "host-memory-short"]),
        ("/sys", vec!["pcie-link-errors"]),
        ("/dev", vec!["xid-seen", "kernel-faults"]),
    ] {
        let output = worse(&format!("mount -t tmpfs none {without}"));
        let report = report(&output);
        for id in ids.iter().filter(|id| report.to_string().contains(&format!("\"{id}\""))) {
            assert_ne!(verdict(&report, id), "pass", "without {without}: {id}");
        }
    }
}

#[test]
fn a_read_only_root_is_judged() {
    let output = worse("mount --make-rprivate / && mount -o remount,bind,ro /");
    assert!(!report(&output)["checks"].as_array().unwrap().is_empty());
}

#[test]
fn a_user_without_rights_gets_a_verdict() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "only root can be another\n  hint: run the tests as root"
    );
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
    let copy = copied();
    command.arg(copy.path().join("qvl")).args(["doctor", "--gpus", "1", "--format", "json"]);
    command.current_dir("/").env("HOME", "/nonexistent");
    let output = checked(command.stdin(Stdio::null()));
    let report = report(&output);
    assert_ne!(verdict(&report, "nvml-unavailable"), "pass");
}

/// The program where everybody may read it.
fn copied() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_qvl"), folder.path().join("qvl")).unwrap();
    folder
}

#[test]
fn a_driver_that_hangs_or_crashes_ends_in_time() {
    let host = Host::named("hung-call");
    let begin = Instant::now();
    let mut command = host.command(env!("CARGO_BIN_EXE_qvl"));
    let output = checked(command.args(["doctor", "--gpus", "2", "--format", "json"]));
    assert!(begin.elapsed() < Duration::from_secs(40), "{:?}", begin.elapsed());
    assert_eq!(verdict(&report(&output), "driver-hang"), "fail");
    // A library that is none, and one that kills its caller.
    let host = Host::named("healthy-4xa100");
    fs::write(host.nvml(), b"\x7fELF no library").unwrap();
    let mut command = host.command(env!("CARGO_BIN_EXE_qvl"));
    let output = checked(command.args(["doctor", "--gpus", "4", "--format", "json"]));
    assert_eq!(verdict(&report(&output), "nvml-unavailable"), "fail");
}

#[test]
fn inputs_that_are_too_large_are_refused_with_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let huge = folder.path().join("huge.json");
    fs::File::create(&huge).unwrap().set_len(600 << 20).unwrap();
    for (args, says) in [
        (vec!["--facts"], "more than 512 MiB"),
        (vec!["diff", "/dev/null"], "failed to read"),
        (vec!["--kernel-log"], "there is no line of a kernel in it"),
    ] {
        let output = checked(qvl().arg("doctor").args(&args).arg(&huge));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(says), "{args:?}: {errors}");
    }
}

/// A kernel log of half a gigabyte is read in bounded memory; what it says last counts.
#[test]
fn a_huge_kernel_log_is_read_in_bounded_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel.log");
    let mut file = std::io::BufWriter::new(fs::File::create(&path).unwrap());
    let line = "[  100.000001] NVRM: Xid (PCI:0000:3b:00): 31, pid=7, name=python, MMU Fault\n";
    for _ in 0..(64 << 20) / line.len() {
        file.write_all(line.as_bytes()).unwrap();
    }
    writeln!(file, "[  200.000001] NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.")
        .unwrap();
    let file = file.into_inner().unwrap();
    // One line without an end.
    file.set_len(512 << 20).unwrap();
    let shell = format!(
        "ulimit -d 200000; exec {} doctor --gpus 1 --format json --kernel-log {}",
        env!("CARGO_BIN_EXE_qvl"),
        path.display()
    );
    let output = checked(Command::new("sh").args(["-c", &shell]).stdin(Stdio::null()));
    let report = report(&output);
    assert_eq!(verdict(&report, "xid-seen"), "fail");
    assert!(report.to_string().contains("Xid 79"), "{report}");
}

#[test]
fn a_saved_kernel_log_names_the_gpu_and_who_judges_otherwise() {
    let host = Host::named("broken-host");
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("dmesg.txt");
    let text = "[   10.000000] Linux version 6.8.0\n\
        [  100.000000] NVRM: Xid (PCI:0000:52:00): 109, pid=7, name=python, errorString CTX SWITCH TIMEOUT\n";
    fs::write(&log, text).unwrap();
    let mut command = host.command(env!("CARGO_BIN_EXE_qvl"));
    command.args(["doctor", "--gpus", "4", "--format", "json", "--kernel-log"]).arg(&log);
    let report = report(&checked(&mut command));
    assert_eq!(verdict(&report, "xid-seen"), "fail");
    let text = report.to_string();
    for part in [
        "GPU 2 (0000:52:00.0, NVIDIA H100 80GB HBM3",
        "the driver asks for a reset of the GPU now",
        "so say NVIDIA (RESET_GPU); others differ: gpud (Warning: watch)",
        "k8s-device-plugin (ignored: ignore)",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
