//! Repairs of the machine.

use super::{Draft, Finding, Goal, Resource, Step, Target};

/// A size of `/dev/shm` that is enough for every job on eight GPUs.
const SHM: u64 = 16 << 30;
/// The least that `shm-small` wants, for machines with little memory.
const SHM_LEAST: u64 = 8 << 30;

pub(super) fn persistence(finding: &Finding<'_>) -> Option<Draft> {
    let gpus = finding.node()?.nvml.gpus.value()?;
    let off = gpus.iter().filter(|gpu| gpu.persistence.value() == Some(&false));
    let step = |gpu: String| Step {
        target: Target::Persistence { gpu },
        goal: Goal::Value("on".to_owned()),
    };
    let steps = off.filter_map(|gpu| gpu.uuid.value().cloned()).map(step).collect();
    finding.draft(steps, finding.elsewhere())
}

/// The size is a bound: memory is taken only as far as files need it.
pub(super) fn shm(finding: &Finding<'_>) -> Option<Draft> {
    let node = finding.node()?;
    let memory = node.memory.total_bytes.value().copied().unwrap_or(u64::MAX);
    let bytes = if 2 * SHM <= memory { SHM } else { SHM_LEAST };
    let step = Step { target: Target::SharedMemory, goal: Goal::Size(bytes) };
    let kind = node.container.kind.value().cloned().flatten();
    let obstacle = finding.elsewhere().or_else(|| {
        let kind = kind?;
        let start = if kind == "kubernetes" {
            "set spec.cluster.shm of the job, or an emptyDir with medium Memory".to_owned()
        } else {
            format!("start it with --shm-size={}g", bytes >> 30)
        };
        Some(format!("/dev/shm belongs to the container ({kind}): {start}"))
    });
    finding.draft(vec![step], obstacle)
}

pub(super) fn module(finding: &Finding<'_>) -> Option<Draft> {
    let node = finding.node()?;
    let loaded = node.driver.modules.value()?;
    let name = match finding.rule {
        "gpudirect-missing" => "nvidia_peermem",
        // Another driver holds the GPUs: that is no matter of a module more.
        _ if loaded.contains("nouveau") => return None,
        // It brings `nvidia` with it.
        _ => "nvidia_uvm",
    };
    let target = Target::Module { name: name.to_owned() };
    let step = Step { target, goal: Goal::Value("loaded".to_owned()) };
    finding.draft(vec![step], finding.on_host())
}

/// Settings of the kernel that checks ask for.
const SYSCTLS: &[(&str, &str, &str)] = &[
    ("overcommit-strict", "vm.overcommit_memory", "0"),
    ("max-map-count-low", "vm.max_map_count", "65530"),
    ("numa-balancing", "kernel.numa_balancing", "0"),
    ("pid-max-low", "kernel.pid_max", "4194304"),
    ("somaxconn-low", "net.core.somaxconn", "4096"),
    ("rp-filter-strict", "net.ipv4.conf.all.rp_filter", "2"),
    ("conntrack-full", "net.netfilter.nf_conntrack_max", "1048576"),
];

pub(super) fn sysctl(finding: &Finding<'_>) -> Option<Draft> {
    let (_rule, name, value) = SYSCTLS.iter().find(|(rule, _, _)| *rule == finding.rule)?;
    let now = finding.node()?.system.sysctl.value()?.get(*name)?;
    // A setting that is larger already is not what is wrong.
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    let grows = ["max-map-count-low", "pid-max-low", "somaxconn-low", "conntrack-full"];
    if grows.contains(&finding.rule) && number(value) <= number(now) {
        return None;
    }
    let target = Target::Sysctl { name: (*name).to_owned() };
    let step = Step { target, goal: Goal::Value((*value).to_owned()) };
    finding.draft(vec![step], finding.on_host())
}

/// Limits that checks ask for; `None` = unlimited.
const LIMITS: &[(&str, Resource, Option<u64>)] = &[
    ("memlock-low", Resource::Memlock, None),
    ("fd-limit", Resource::Nofile, Some(65_536)),
    ("process-limit", Resource::Nproc, None),
    ("file-size-limit", Resource::Fsize, None),
    ("address-space-limit", Resource::As, None),
];

/// The shell gets the limit at once; a file gives it to later logins.
pub(super) fn limit(finding: &Finding<'_>) -> Option<Draft> {
    let (resource, goal) = match finding.rule {
        "core-dumps-on" => (Resource::Core, Goal::AtMost(0)),
        rule => {
            let (_rule, resource, wanted) = LIMITS.iter().find(|(id, _, _)| *id == rule)?;
            (*resource, Goal::AtLeast(*wanted))
        }
    };
    let process = finding.scene.session.unwrap_or(super::Process { pid: 0, started: 0 });
    let container = finding.node()?.container.kind.value().is_some_and(Option::is_some);
    let value = match &goal {
        Goal::AtLeast(Some(limit)) | Goal::AtMost(limit) => limit.to_string(),
        Goal::AtLeast(None) | Goal::Value(_) | Goal::Size(_) | Goal::Edits(_) => {
            "unlimited".to_owned()
        }
    };
    let session = Step { target: Target::Limit { resource, process }, goal };
    let flag = if resource == Resource::Core { "soft" } else { "-" };
    let mut steps = vec![session];
    if finding.scene.root && !container {
        let name = resource.name();
        let path = format!("/etc/security/limits.d/90-qvl-{name}.conf");
        // The wildcard does not mean root: limits.conf(5).
        let text = format!(
            "# Written by `qvl doctor --fix` ({}); `qvl doctor undo` removes it.\n\
             *    {flag}  {name}  {value}\nroot {flag}  {name}  {value}\n",
            finding.rule
        );
        steps.push(Step { target: Target::LimitFile { path }, goal: Goal::Value(text) });
    }
    let hint = match resource {
        Resource::Memlock => "ulimit -l unlimited".to_owned(),
        Resource::Nofile => "ulimit -n 65536".to_owned(),
        Resource::Nproc => "ulimit -u unlimited".to_owned(),
        Resource::Fsize => "ulimit -f unlimited".to_owned(),
        Resource::As => "ulimit -v unlimited".to_owned(),
        Resource::Core => "ulimit -S -c 0".to_owned(),
    };
    let missing = || "the process that will start the job was not found".to_owned();
    let obstacle = finding.elsewhere().or_else(|| finding.scene.session.is_none().then(missing));
    finding.draft_with(steps, obstacle, vec![hint])
}
