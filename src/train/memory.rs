//! How the C library and the kernel hand out memory.

use nix::{
    libc,
    unistd::{SysconfVar, sysconf},
};

/// Keeps freed memory in the process.
///
/// Each operation of a training step allocates its result and frees it soon after. By default
/// glibc gives blocks of this size back to the kernel at once, which then clears new pages for the
/// next operation: half of the time of a step of a small model. Blocks from 32 MiB on (glibc
/// allows no higher limit) are still given back. Other C libraries are left alone.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    {
        use libc::{M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD, mallopt};
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

/// Gives back what was freed: between two phases, whose tensors have other sizes, so that the one
/// does not keep the memory of the other for good. Within a phase everything is used again.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "there is no safe interface to the C library's heap")]
        // SAFETY: `malloc_trim` locks each arena and gives back pages that hold no block in use.
        let _given_back = unsafe { libc::malloc_trim(0) };
    }
}

/// Lets the kernel take the mapped pages of a tensor that was copied: they stay in its cache, but
/// no longer count for this process. Pages that other tensors share stay.
pub fn give_back(data: &[u8]) {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let Some(page) = page.and_then(|size| usize::try_from(size).ok()) else { return };
    let skipped = data.as_ptr().align_offset(page);
    let whole = data.len().saturating_sub(skipped) / page * page;
    let Some(first) = data.get(skipped..).filter(|_rest| 0 < whole) else { return };
    #[expect(unsafe_code, reason = "there is no safe interface to the pages of a map")]
    // SAFETY: the pages belong to a private, read-only map of a file: whoever reads them again
    // gets the same bytes from the file.
    let _advice =
        unsafe { libc::madvise(first.as_ptr().cast_mut().cast(), whole, libc::MADV_DONTNEED) };
}

/// The largest resident set that this process has had, in bytes (`VmHWM`); `None` where the
/// kernel does not tell.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, PoisonError},
        time::Instant,
    };

    /// Page faults are counted for the whole process, so these tests come one after the other.
    static ALONE: Mutex<()> = Mutex::new(());

    /// Memory that was touched counts, and stays counted when it is gone.
    #[test]
    fn the_peak_is_read() {
        let megabytes = 200_u64 << 20;
        let size = usize::try_from(megabytes).unwrap();
        drop(std::hint::black_box(vec![1_u8; size]));
        assert!(megabytes < super::peak_resident_bytes().unwrap());
    }

    /// Page faults of this process so far.
    fn page_faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        // Field 10, counted after the name in brackets, which may hold blanks.
        let fields = stat.rsplit(')').next().unwrap();
        fields.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    /// Blocks below others are given back too, which the kernel then clears anew.
    #[cfg(target_env = "gnu")]
    #[test]
    fn what_was_freed_is_given_back() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        super::keep_freed();
        let blocks: Vec<Vec<u8>> =
            (0..16).map(|_| std::hint::black_box(vec![1; 4 << 20])).collect();
        let above = std::hint::black_box(vec![1_u8; 1 << 20]);
        drop(blocks);
        super::trim();
        let before = page_faults();
        drop((0..16).map(|_| std::hint::black_box(vec![1_u8; 4 << 20])).collect::<Vec<_>>());
        let faults = page_faults() - before;
        assert!(16 * 1024 / 2 < faults, "{faults} page faults");
        drop(above);
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn memory_is_used_again() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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
