//! The images that the cluster and its tests use.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cluster::{Cluster, output},
    error::{At, Error},
    image::Image,
    node_files::PAUSE,
    places::Places,
};

/// A shell for tests.
pub const BUSYBOX: &str = "qvl.test/busybox:1";
/// The program `qvl`.
pub const QVL: &str = "qvl.test/qvl:dev";
/// The programs `qvl` and `qvl-train`.
pub const TRAIN: &str = "qvl.test/qvl-train:dev";

/// Where the image of the trainer has a tiny model and a few sentences.
const SMOKE: &str = "/usr/share/qvl/smoke";

/// Writes the images that every node has: what holds a pod, and a shell.
pub(crate) fn basic(places: &Places) -> Result<(), Error> {
    let busybox = PathBuf::from("/bin/busybox");
    let applets = output(Command::new(&busybox).arg("--list"))?;
    let links = applets.lines().filter(|applet| *applet != "busybox");
    let links = links.map(|applet| (format!("/bin/{applet}"), "busybox".to_owned())).collect();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let shell = Image {
        name: BUSYBOX.to_owned(),
        entrypoint: words(&["/bin/busybox"]),
        files: vec![(busybox.clone(), busybox)],
        links,
        root: true,
    };
    let pause = Image {
        name: PAUSE.to_owned(),
        entrypoint: words(&["/bin/sleep", "2147483647"]),
        ..shell.clone()
    };
    pause.write(&places.images().join("pause.tar"))?;
    shell.write(&places.images().join("busybox.tar"))
}

/// Builds [`QVL`] and [`TRAIN`] from the programs in `folder` and imports them on every node.
pub fn product(cluster: &Cluster, folder: &Path) -> Result<(), Error> {
    let program = |name: &str| {
        let path = folder.join(name);
        let hint = "cargo build --release --bins";
        if path.exists() { Ok(path) } else { Err(Error::NotBuilt { path, hint }) }
    };
    let (qvl, train) = (program("qvl")?, program("qvl-train")?);
    let entrypoint = ["/usr/local/bin/qvl"];
    for (name, file, programs) in
        [(QVL, "qvl.tar", vec![qvl.clone()]), (TRAIN, "qvl-train.tar", vec![qvl, train])]
    {
        let archive = cluster.places().images().join(file);
        let mut image = Image::of_programs(name, &entrypoint, &programs)?;
        if name == TRAIN {
            // What `helm test` trains with; the Dockerfile puts it there too.
            for (from, to) in
                [("examples/digits/base", "base"), ("images/smoke/train.json", "train.json")]
            {
                image.add(&repository().join(from), Some(&Path::new(SMOKE).join(to)))?;
            }
        }
        image.write(&archive)?;
        cluster.load(&archive)?;
    }
    Ok(())
}

/// Where cargo puts the product: beside this program or test.
pub fn release_folder() -> Result<PathBuf, Error> {
    let own = env::current_exe().at("find", "this program")?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let is_test = folder.ends_with("deps");
    Ok(if is_test { folder.parent().unwrap_or(folder) } else { folder }.to_owned())
}

/// The repository that this program was built from.
fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
