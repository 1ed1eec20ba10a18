//! Something that was made of files, made anew when they change.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::TlsError;

/// The files are looked at this often. They are some kilobytes in a memory file system.
const LOOK: Duration = Duration::from_secs(2);

/// Makes a value of the contents of files.
type Make<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, TlsError> + Send + Sync>;

/// The value of the newest files that could be used.
pub(super) struct Kept<T> {
    paths: Vec<PathBuf>,
    make: Make<T>,
    state: RwLock<State<T>>,
    changes: AtomicU64,
}

struct State<T> {
    value: Arc<T>,
    /// The contents that were looked at last; `None` if they could not be read.
    seen: Option<Vec<Vec<u8>>>,
    /// They are not what the value was made of.
    unusable: bool,
}

impl<T: Send + Sync + 'static> Kept<T> {
    /// Reads the files and, in a task of this runtime, goes on looking at them.
    pub(super) fn load(paths: Vec<PathBuf>, make: Make<T>) -> Result<Arc<Self>, TlsError> {
        let seen = read(&paths)?;
        let value = Arc::new(make(&seen)?);
        let state = RwLock::new(State { value, seen: Some(seen), unusable: false });
        let kept = Arc::new(Kept { paths, make, state, changes: AtomicU64::new(0) });
        tokio::spawn(watch(Arc::downgrade(&kept)));
        Ok(kept)
    }

    pub(super) fn value(&self) -> Arc<T> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner).value)
    }

    /// The files cannot be used: the value is that of earlier ones.
    pub(super) fn is_unusable(&self) -> bool {
        self.state.read().unwrap_or_else(PoisonError::into_inner).unusable
    }

    /// How often the value was replaced.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    fn look(&self) {
        let found = read(&self.paths);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if found.as_ref().ok() == state.seen.as_ref() {
            return;
        }
        let (seen, made) = match found {
            Ok(files) => {
                let made = (self.make)(&files);
                (Some(files), made)
            }
            Err(error) => (None, Err(error)),
        };
        state.seen = seen;
        state.unusable = made.is_err();
        let paths = &self.paths;
        match made {
            Ok(value) => {
                state.value = Arc::new(value);
                self.changes.fetch_add(1, Ordering::Relaxed);
                tracing::info!(?paths, "new certificates are used");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, ?paths, "the older certificates stay in use");
            }
        }
    }
}

/// Looks until nobody uses the value any more.
async fn watch<T: Send + Sync + 'static>(kept: Weak<Kept<T>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(kept) = kept.upgrade() else { return };
        kept.look();
    }
}

fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, TlsError> {
    let read = |path: &PathBuf| {
        fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source })
    };
    paths.iter().map(read).collect()
}
