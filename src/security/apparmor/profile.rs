//! The text of the profile that RuntimeDefault means.

use std::path::Path;

use super::DEFAULT_PROFILE;

/// What the machine's AppArmor policy folder offers to build on, and who may signal a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ground {
    /// `tunables/global`, which defines `@{PROC}`.
    pub tunables: bool,
    /// `abstractions/base`.
    pub base: bool,
    /// The confinement of the daemon itself, when it has one.
    pub daemon: Option<String>,
}

impl Ground {
    /// `policy` is `/etc/apparmor.d`, `confinement` the text of `/proc/self/attr/current`.
    pub(super) fn of(policy: &Path, confinement: &str) -> Self {
        let name = confinement.trim_end_matches(['\n', '\0']);
        let name = name.rsplit_once(" (").map_or(name, |(name, _)| name);
        // It is put between quotes; a name with a quote in it is passed by, which costs signals and no safety.
        let legal = !name.is_empty() && name != "unconfined" && !name.contains(['"', '\\', '\n']);
        Self {
            tunables: policy.join("tunables/global").is_file(),
            base: policy.join("abstractions/base").is_file(),
            daemon: legal.then(|| name.to_owned()),
        }
    }
}

/// A container may do what its privileges let it do, except write to the parts of procfs and sysfs that steer the kernel,
/// mount, and trace what is not its own. Runtimes that a distribution confines by name may signal it like the unconfined.
pub(super) fn text(ground: &Ground) -> String {
    let name = DEFAULT_PROFILE;
    let head = if ground.tunables { "#include <tunables/global>" } else { "@{PROC}=/proc/" };
    let base = if ground.base { "#include <abstractions/base>" } else { "" };
    let daemon = ground.daemon.as_ref().map(|name| format!("signal (receive) peer=\"{name}\",")).unwrap_or_default();
    format!(
        "{head}

profile {name} flags=(attach_disconnected,mediate_deleted) {{
  {base}

  # Privileges decide; what follows takes away what no privilege of a container is meant for.
  network,
  capability,
  file,
  umount,
  deny mount,

  # The host's root daemons may signal a container, and containers of this profile each other and themselves.
  signal (receive) peer=unconfined,
  signal (receive) peer=crun,
  signal (receive) peer=runc,
  signal (receive) peer=youki,
  {daemon}
  signal (send, receive) peer={name},
  ptrace (trace, read, tracedby, readby) peer={name},

  # Kernel settings that are the host's: no namespace of the pod owns them.
  deny @{{PROC}}/sys/{{abi,crypto,debug,dev,vm}}/** w,
  deny @{{PROC}}/sys/kernel/{{core_*,hotplug,kexec*,modprobe,modules_disabled,panic*,perf_*,printk*,sysrq,unprivileged_*}} w,
  deny @{{PROC}}/sys/kernel/{{keys,random,yama}}/** w,
  deny @{{PROC}}/sys/fs/{{binfmt_misc,verity}}/** w,
  deny @{{PROC}}/{{acpi,bus,fs,irq,scsi}}/** w,
  deny @{{PROC}}/{{kcore,kmem,mem,sysrq-trigger}} rwklx,

  # Hardware and kernel objects: read, never written; what tells secrets is not even read. cgroups are not named here.
  deny /sys/{{block,bus,class,dev,devices,hypervisor,kernel,module,power}}/** wklx,
  deny /sys/fs/{{bpf,ext4,fuse,pstore,selinux,xfs,btrfs}}/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/{{debug,security,tracing}}/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}}
"
    )
}
