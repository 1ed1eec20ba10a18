//! The doctor under filters that refuse calls of the kernel, as containers have them.
#![expect(unsafe_code, reason = "a filter is set between fork and exec")]

use std::process::Command;

use nix::libc;
use simgpu::Host;

use crate::{checked, qvl, report, verdict};

/// Runs the doctor under a filter that refuses calls of the kernel with EPERM, as containers do.
#[test]
fn calls_that_a_filter_refuses_are_unknown() {
    for calls in [
        vec![libc::SYS_statfs, libc::SYS_fstatfs],
        vec![libc::SYS_socket],
        vec![libc::SYS_getdents64],
        vec![libc::SYS_readlink, libc::SYS_readlinkat],
        vec![libc::SYS_sched_getaffinity, libc::SYS_prlimit64, libc::SYS_uname],
    ] {
        let mut command = qvl();
        command.args(["doctor", "--gpus", "1", "--format", "json"]);
        refuse(&mut command, &calls);
        let output = checked(&mut command);
        assert_ne!(verdict(&report(&output), "nvml-unavailable"), "pass", "{calls:?}");
    }
    // Without new processes nobody can ask the driver.
    let host = Host::named("healthy-4xa100");
    let mut command = host.command(env!("CARGO_BIN_EXE_qvl"));
    command.args(["doctor", "--gpus", "4", "--format", "json"]);
    refuse(&mut command, &[libc::SYS_clone3, libc::SYS_clone]);
    let output = checked(&mut command);
    assert_ne!(verdict(&report(&output), "nvml-unavailable"), "pass");
}

/// A filter in the language of seccomp(2), set between fork and exec.
fn refuse(command: &mut Command, calls: &[i64]) {
    use std::os::unix::process::CommandExt;
    const EPERM: u32 = 1;
    let narrow = |code: u32| u16::try_from(code).expect("operations have 16 bits");
    let number = |call: i64| u32::try_from(call).expect("numbers of calls are small");
    let statement = |code: u32, k: u32| libc::sock_filter { code: narrow(code), jt: 0, jf: 0, k };
    // The number of the call is the first word.
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in calls {
        let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        filter.push(libc::sock_filter { code: narrow(is), jt: 0, jf: 1, k: number(*call) });
        filter.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | EPERM));
    }
    filter.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let set = move || {
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).expect("a short filter"),
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: prctl with these arguments reads `program`, which lives, and changes this process only.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
                    == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes two calls of the kernel and allocates nothing.
    unsafe { command.pre_exec(set) };
}
