//! How the C library hands out memory.

/// Keeps freed memory in the process.
///
/// Each operation of a training step allocates its result and frees it soon after. By default
/// glibc gives blocks of this size back to the kernel at once, which then clears new pages for the
/// next operation: half of the time of a step of a small model. Blocks from 32 MiB on (glibc
/// allows no higher limit) are still given back. Other C libraries are left alone.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD, mallopt};
        const LIMITS: [(i32, i32); 3] =
            [(M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, i32::MAX), (M_TOP_PAD, 64 << 20)];
        for (name, value) in LIMITS {
            #[expect(unsafe_code, reason = "there is no safe interface to the C library's limits")]
            // SAFETY: `mallopt` takes a lock, changes a limit of the allocator and touches no
            // memory of ours; a limit that it does not accept stays as it was.
            let _accepted = unsafe { mallopt(name, value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    /// Page faults of this process so far.
    fn page_faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        // Field 10, counted after the name in brackets, which may hold blanks.
        let fields = stat.rsplit(')').next().unwrap();
        fields.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn memory_is_used_again() {
        super::keep_freed();
        let allocate = || std::hint::black_box(vec![1_u8; 8 << 20]);
        drop(allocate());
        let (before, started) = (page_faults(), Instant::now());
        for _round in 0..20 {
            drop(allocate());
        }
        // Fresh pages would be 2048 faults each round. Other tests run beside this one.
        let faults = page_faults() - before;
        assert!(faults < 20 * 2048 / 2, "{faults} page faults in {:?}", started.elapsed());
    }
}
