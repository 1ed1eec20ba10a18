//! Rules of the part that only a cluster reads.

use super::{Found, is_dns_label};
use crate::job::{Cluster, EXCLUDED_NODES, Volume, quantity};

pub(super) fn problems(cluster: &Cluster, gpus: u32, found: &mut Found) {
    let per_node = cluster.gpus_per_node;
    found.refuse(
        per_node.is_some_and(|count| count == 0 || !gpus.is_multiple_of(count)),
        "spec.cluster.gpusPerNode",
        format!("{} ranks on each node do not make {gpus} ranks", per_node.unwrap_or(0)),
        "`gpusPerNode` must divide world.gpus",
    );
    found.refuse(
        cluster.start_timeout_seconds == 0,
        "spec.cluster.startTimeoutSeconds",
        "expected 1 or more, got 0",
        "leave it out for the default",
    );
    let excluded = cluster.exclude_nodes.len();
    found.refuse(
        EXCLUDED_NODES < excluded,
        "spec.cluster.excludeNodes",
        format!("{excluded} nodes, at most {EXCLUDED_NODES} are excluded by name"),
        "choose nodes by label instead: nodeSelector",
    );
    let optional = |text: &String| !text.is_empty();
    let amounts = [
        ("spec.cluster.resources.cpu", Some(&cluster.resources.cpu).filter(|text| optional(text))),
        (
            "spec.cluster.resources.memory",
            Some(&cluster.resources.memory).filter(|text| optional(text)),
        ),
        ("spec.cluster.shm", Some(&cluster.shm)),
    ];
    for (path, text) in amounts {
        found.refuse(
            text.is_some_and(|text| quantity::value(text).is_none()),
            path,
            format!("`{}` is no amount", text.map_or("", String::as_str)),
            "write it as `4`, `500m` or `32Gi`",
        );
    }
    found.refuse(
        cluster.work_dir.as_ref().is_some_and(|folder| !folder.starts_with('/')),
        "spec.cluster.workDir",
        "not an absolute path",
        "begin with `/`",
    );
    for (i, volume) in cluster.volumes.iter().enumerate() {
        let earlier = cluster.volumes[..i].iter().any(|other| other.name == volume.name);
        found.refuse(
            earlier,
            &format!("spec.cluster.volumes[{i}].name"),
            format!("`{}` is the name of another volume already", volume.name),
            "give each its own name",
        );
        self::volume(volume, &format!("spec.cluster.volumes[{i}]"), found);
    }
}

fn volume(volume: &Volume, path: &str, found: &mut Found) {
    found.refuse(
        !is_dns_label(&volume.name) || 40 < volume.name.len(),
        &format!("{path}.name"),
        format!("`{}` is not a name", volume.name),
        "use lower-case letters, digits and `-`, begin with a letter, at most 40 characters",
    );
    let (claim, folder) = (volume.persistent_volume_claim.is_some(), volume.host_path.is_some());
    found.refuse(
        claim == folder,
        path,
        if claim {
            "both persistentVolumeClaim and hostPath"
        } else {
            "neither persistentVolumeClaim nor hostPath"
        },
        "give one of them",
    );
    let paths = [("mountPath", Some(&volume.mount_path)), ("hostPath", volume.host_path.as_ref())];
    for (name, text) in paths {
        found.refuse(
            text.is_some_and(|text| !text.starts_with('/')),
            &format!("{path}.{name}"),
            "not an absolute path",
            "begin with `/`",
        );
    }
    let reserved = ["/etc/qvl", "/var/run/secrets/qvl.dev", "/var/spool/qvl", "/dev/shm", "/tmp"];
    found.refuse(
        reserved.contains(&volume.mount_path.trim_end_matches('/')),
        &format!("{path}.mountPath"),
        format!("`{}` is used by qvl itself", volume.mount_path),
        "mount it elsewhere, for example at /data",
    );
}
