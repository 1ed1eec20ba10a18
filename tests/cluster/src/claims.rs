//! Claims of volumes that hold files from the start: how a job's model and data get into a cluster
//! that has no storage but folders of this machine.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    cluster::Cluster,
    error::{At, Error},
    places::Places,
};

const LIMIT: Duration = Duration::from_secs(30);

impl Cluster {
    /// Makes a claim of namespace `default` that all nodes can read and write, with copies of files
    /// and folders: where they are, and where they will be in the volume. Answers with the folder
    /// behind the volume.
    pub fn claim(&self, name: &str, files: &[(PathBuf, PathBuf)]) -> Result<PathBuf, Error> {
        self.apply(&format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
             accessModes: [ReadWriteMany]\n  resources: {{requests: {{storage: 1Gi}}}}\n"
        ))?;
        let mut volume = String::new();
        self.wait("the claim is not bound", LIMIT, || {
            let path = "jsonpath={.spec.volumeName}";
            volume = self.kubectl(&["get", "pvc", name, "-o", path]).unwrap_or_default();
            !volume.is_empty()
        })?;
        let folder = self.places().volumes().join(&volume);
        for (from, to) in files {
            let to = folder.join(to);
            Places::make(to.parent().unwrap_or(&folder))?;
            Places::copy(from, &to)?;
        }
        // Pods are not root, and the kubelet does not change the owner of a hostPath volume.
        open_up(&folder).at("open", &folder)?;
        Ok(folder)
    }
}

fn open_up(path: &Path) -> io::Result<()> {
    let is_folder = path.is_dir();
    fs::set_permissions(path, fs::Permissions::from_mode(if is_folder { 0o777 } else { 0o666 }))?;
    if is_folder {
        for entry in fs::read_dir(path)? {
            open_up(&entry?.path())?;
        }
    }
    Ok(())
}
