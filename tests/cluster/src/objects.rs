//! Objects that every cluster has from the beginning.

use std::{fmt::Write, fs, os::unix::fs::PermissionsExt};

use crate::{
    error::{At, Error},
    network::GATEWAY,
    places::Places,
};

/// Persistent volumes of a new cluster.
const VOLUMES: usize = 32;

/// DNS: a service without pods, because CoreDNS is a process beside the API server.
const DNS: &str = "
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: 10.96.0.10
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: [GATEWAY], conditions: {ready: true}}]
ports:
- {name: dns, port: 53, protocol: UDP}
- {name: dns-tcp, port: 53, protocol: TCP}
";

const CLASSES: &str = "
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: nvidia}
handler: nvidia
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: shared
  annotations: {storageclass.kubernetes.io/is-default-class: 'true'}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: Immediate
";

/// All of them as one YAML text. Makes the folders behind the volumes too.
pub(crate) fn make(places: &Places) -> Result<String, Error> {
    let mut text = format!("{}---{CLASSES}", DNS.replace("GATEWAY", GATEWAY));
    for index in 0..VOLUMES {
        let folder = places.volumes().join(format!("shared-{index}"));
        Places::make(&folder)?;
        // The kubelet does not change the owner of a hostPath volume, and pods are not root.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).at("open", &folder)?;
        let _infallible = write!(
            text,
            "---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: shared-{index}}}\nspec:\n  \
             storageClassName: shared\n  capacity: {{storage: 100Gi}}\n  \
             accessModes: [ReadWriteOnce, ReadWriteMany, ReadOnlyMany]\n  \
             persistentVolumeReclaimPolicy: Retain\n  hostPath: {{path: {}}}\n",
            folder.display()
        );
    }
    Ok(text)
}
