//! What the first process of a container owes to the others: it buries orphans.

use std::cell::RefCell;

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    unistd::Pid,
};

/// Buries processes whose parents are gone. The trainers are left to those who wait for them.
#[derive(Debug)]
pub(super) struct Reaper {
    is_init: bool,
    spared: RefCell<Vec<Pid>>,
}

impl Reaper {
    pub(super) fn new() -> Self {
        Reaper { is_init: std::process::id() == 1, spared: RefCell::default() }
    }

    /// Process ids of the trainers.
    pub(super) fn spare(&self, pids: &[u32]) {
        let pid = |pid: &u32| i32::try_from(*pid).ok().map(Pid::from_raw);
        *self.spared.borrow_mut() = pids.iter().filter_map(pid).collect();
    }

    /// Buries all orphans that have ended, up to the first trainer that has: its turn comes when
    /// the trainer is buried.
    pub(super) fn reap(&self) {
        if !self.is_init {
            return;
        }
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) =
            waitid(Id::All, look)
        {
            if self.spared.borrow().contains(&pid) {
                return;
            }
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}
