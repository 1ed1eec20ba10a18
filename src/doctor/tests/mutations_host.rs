//! One broken thing for each rule about the host and its files.

use super::{
    change,
    mutations::{Mutation, first},
};
use crate::{
    doctor::testing::{GIB, sysctl},
    facts::{CgroupEvents, Cpu, Fact, Governor, MemoryErrors, Place, ShmFile, Snapshot, Storage},
    job::Compute,
};

/// Changes the folders of the first node for one purpose.
fn folder(snapshot: &mut Snapshot, place: Place, f: impl Fn(&mut Storage)) {
    change(&mut first(snapshot).storage, |folders| {
        folders.iter_mut().filter(|folder| folder.place == place).for_each(f);
    });
}

pub(super) const HOST: &[(&str, Mutation)] = &[
    ("processors-short", |s, d| {
        d.ranks = Some(6);
        change(&mut first(s).memory.cpus, |cpus| *cpus = 1);
    }),
    ("cpu-governor", |s, _d| {
        let names = ["powersave".to_owned()].into();
        let slow = Governor { driver: "acpi-cpufreq".to_owned(), names };
        change(&mut first(s).system.governor, |governor| *governor = Some(slow));
    }),
    ("cpu-throttled", |s, _d| {
        change(&mut first(s).system.cpu_throttles, |count| *count = Some(20_000));
    }),
    ("cpu-steal", |s, _d| change(&mut first(s).system.steal_percent, |percent| *percent = 12.0)),
    ("cpu-pressure", |s, _d| {
        change(&mut first(s).system.pressure, |p| p.as_mut().expect("measured").cpu_some = 80.0);
    }),
    ("cpu-without-avx2", |s, d| {
        d.compute = Compute::Cpu;
        let old = Cpu { architecture: "x86_64".to_owned(), features: ["f16c".to_owned()].into() };
        first(s).system.cpu = Fact::known(old, "/proc/cpuinfo");
    }),
    ("cgroup-cpu-throttled", |s, _d| {
        let events = CgroupEvents { oom_kills: 0, periods: 1000, throttled: 400 };
        first(s).system.cgroup_events = Fact::known(events, "/sys/fs/cgroup");
    }),
    ("clocksource-slow", |s, _d| {
        change(&mut first(s).system.clocksource, |source| "hpet".clone_into(source));
    }),
    ("swap-in-use", |s, _d| {
        change(&mut first(s).system.memory, |memory| memory.swap_total = 80 * GIB);
    }),
    ("hugepages-waste", |s, _d| {
        change(&mut first(s).system.memory, |memory| memory.huge_free = 100 * GIB);
    }),
    ("memory-pressure", |s, _d| {
        change(&mut first(s).system.pressure, |p| p.as_mut().expect("measured").memory_full = 9.0);
    }),
    ("io-pressure", |s, _d| {
        change(&mut first(s).system.pressure, |p| p.as_mut().expect("measured").io_full = 70.0);
    }),
    ("host-memory-errors", |s, _d| {
        let errors = MemoryErrors { corrected: 0, uncorrected: 1 };
        change(&mut first(s).system.memory_errors, |known| *known = Some(errors));
    }),
    ("cgroup-oom-killed", |s, _d| {
        change(&mut first(s).system.cgroup_events, |events| events.oom_kills = 2);
    }),
    ("overcommit-strict", |s, _d| sysctl(first(s), "vm.overcommit_memory", "2")),
    ("max-map-count-low", |s, _d| sysctl(first(s), "vm.max_map_count", "4096")),
    ("clock-unsynchronised", |s, _d| {
        change(&mut first(s).system.clock, |clock| clock.synchronised = false);
    }),
    ("clock-skew", |s, _d| {
        change(&mut first(s).system.clock, |clock| clock.estimated_error_us = 40_000_000);
    }),
    ("process-limit", |s, _d| {
        change(&mut first(s).limits.processes, |limit| *limit = Some(64));
    }),
    ("pid-max-low", |s, _d| sysctl(first(s), "kernel.pid_max", "1200")),
    ("process-table", |s, _d| {
        change(&mut first(s).system.processes, |processes| processes.zombies = 1500);
    }),
    ("file-size-limit", |s, _d| {
        change(&mut first(s).limits.file_size_bytes, |limit| *limit = Some(1 << 20));
    }),
    ("address-space-limit", |s, _d| {
        change(&mut first(s).limits.address_space_bytes, |limit| *limit = Some(32 * GIB));
    }),
    ("core-dumps-on", |s, _d| {
        change(&mut first(s).limits.core_bytes, |limit| *limit = None);
        sysctl(first(s), "kernel.core_pattern", "core");
    }),
    ("file-table-full", |s, _d| sysctl(first(s), "fs.file-nr", "95000 0 100000")),
    ("kernel-oops", |s, _d| sysctl(first(s), "kernel.tainted", "12416")),
    ("numa-balancing", |s, _d| sysctl(first(s), "kernel.numa_balancing", "1")),
    ("shm-full", |s, _d| {
        change(&mut first(s).shm.mount, |mount| mount.free_bytes = 1 << 20);
    }),
    ("shm-stale", |s, _d| {
        let old = ShmFile { name: "nccl-Xa1b2c".to_owned(), bytes: 9 << 20, age_s: 90_000 };
        change(&mut first(s).shm.files, |files| files.push(old));
    }),
    ("shm-counts-as-memory", |s, _d| {
        change(&mut first(s).memory.cgroup, |limits| limits.memory_max_bytes = Some(60 * GIB));
    }),
    ("remove-ipc", |s, _d| change(&mut first(s).system.uid, |uid| *uid = 1000)),
    ("output-volatile", |s, _d| {
        folder(s, Place::Output, |folder| folder.kind = Some("tmpfs".to_owned()));
    }),
    ("output-not-shared", |s, _d| {
        folder(s, Place::Output, |folder| folder.kind = Some("xfs".to_owned()));
    }),
    ("model-remote", |s, _d| {
        folder(s, Place::Model, |folder| folder.kind = Some("fuse".to_owned()));
    }),
    ("inodes-short", |s, _d| folder(s, Place::Output, |folder| folder.free_inodes = Some(12))),
    ("data-skew", |s, _d| {
        folder(s, Place::Data, |folder| folder.fingerprint = Some("ffff".to_owned()));
    }),
    ("model-skew", |s, _d| {
        folder(s, Place::Model, |folder| folder.fingerprint = Some("ffff".to_owned()));
    }),
    ("step-count-unequal", |s, _d| folder(s, Place::Data, |folder| folder.bytes = Some(17))),
    ("weights-are-pointers", |s, _d| {
        folder(s, Place::Model, |folder| {
            let weights = folder.weights.as_mut().expect("a model");
            weights.pointers.push("model-00001-of-00010.safetensors".to_owned());
        });
    }),
    ("weights-missing", |s, _d| {
        folder(s, Place::Model, |folder| {
            let weights = folder.weights.as_mut().expect("a model");
            weights.missing.push("model-00007-of-00010.safetensors".to_owned());
        });
    }),
    ("glibc-too-old", |s, _d| {
        change(&mut first(s).system.glibc, |version| *version = Some("2.31".to_owned()));
    }),
    ("trainer-wrong-machine", |s, _d| {
        change(&mut first(s).trainer.file, |file| "aarch64".clone_into(&mut file.machine));
    }),
    ("trainer-not-executable", |s, _d| {
        change(&mut first(s).trainer.file, |file| file.executable = false);
    }),
    ("interpreter-missing", |s, _d| {
        change(&mut first(s).trainer.file, |file| file.interpreter_exists = false);
    }),
];
