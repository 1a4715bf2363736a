//! AppArmor: is it on, which profiles does the kernel hold, and the profile that RuntimeDefault means.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::exec::{self, Exec, ExecError};

/// The name under which cricket loads its own profile.
pub const DEFAULT_PROFILE: &str = "cricket-default";

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";

/// Bytes read of the kernel's list. A profile's line is some fifty bytes, so this is room for 300 000 of them.
const LIST_LIMIT: u64 = 16 * 1024 * 1024;

/// The state of AppArmor on a host where it is enabled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppArmor {
    /// Names of the profiles that the kernel holds now.
    pub loaded: BTreeSet<String>,
}

/// Why AppArmor's state is not known, or its default profile is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    #[error("{}: the list of loaded AppArmor profiles cannot be read", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("the default AppArmor profile was not loaded")]
    Run { source: ExecError },
    #[error("the default AppArmor profile was refused by apparmor_parser ({status}): {stderr}")]
    Refused { status: std::process::ExitStatus, stderr: String },
}

/// AppArmor's state now; `None` when the kernel has it not, or off.
///
/// # Errors
/// [`AppArmorError::List`] when it is on but its list of profiles cannot be read (securityfs is not mounted, say).
pub fn probe() -> Result<Option<AppArmor>, AppArmorError> {
    probe_at(Path::new(ENABLED), Path::new(PROFILES))
}

fn probe_at(enabled: &Path, profiles: &Path) -> Result<Option<AppArmor>, AppArmorError> {
    let on = std::fs::read_to_string(enabled).is_ok_and(|text| text.starts_with('Y'));
    if !on {
        return Ok(None);
    }
    let failed = |source| AppArmorError::List { path: profiles.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(profiles).map_err(failed)?;
    file.take(LIST_LIMIT).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(AppArmor { loaded: parse_profiles(&text) }))
}

/// Lines are `name (mode)`, and a name may hold blanks.
fn parse_profiles(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.rsplit_once(" (")).map(|(name, _)| name.to_owned()).collect()
}

/// Loads (or replaces) the default profile with `apparmor_parser`.
///
/// # Errors
/// [`AppArmorError::Run`] when the program is missing or hangs, [`AppArmorError::Refused`] when it fails.
pub async fn load_default() -> Result<(), AppArmorError> {
    let output = exec::run(Exec {
        program: "apparmor_parser".into(),
        args: vec!["-Kr".into()],
        env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
        stdin: default_profile().into_bytes(),
        timeout: Duration::from_secs(30),
        output_cap: 4096,
    })
    .await
    .map_err(|source| AppArmorError::Run { source })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(AppArmorError::Refused { status: output.status, stderr })
}

/// The text of the default profile: a container may do what its privileges let it do, except write to the parts of procfs
/// and sysfs that steer the kernel, mount, and trace what is not its own.
#[must_use]
pub fn default_profile() -> String {
    let name = DEFAULT_PROFILE;
    format!(
        "#include <tunables/global>

profile {name} flags=(attach_disconnected,mediate_deleted) {{
  #include <abstractions/base>

  # Privileges decide; what follows takes away what no privilege of a container is meant for.
  network,
  capability,
  file,
  umount,
  deny mount,

  # The host's root daemons may signal a container, and containers of this profile each other and themselves.
  signal (receive) peer=unconfined,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_read_and_off_is_off() {
        let dir = tempfile::tempdir().unwrap();
        let (enabled, profiles) = (dir.path().join("enabled"), dir.path().join("profiles"));
        assert_eq!(probe_at(&enabled, &profiles).unwrap(), None);
        std::fs::write(&enabled, "N\n").unwrap();
        assert_eq!(probe_at(&enabled, &profiles).unwrap(), None);
        std::fs::write(&enabled, "Y\n").unwrap();
        assert!(probe_at(&enabled, &profiles).is_err(), "on, but unreadable, is not off");
        std::fs::write(&profiles, "docker-default (enforce)\na b (c) (complain)\n").unwrap();
        let loaded = probe_at(&enabled, &profiles).unwrap().unwrap().loaded;
        assert_eq!(loaded.into_iter().collect::<Vec<_>>(), ["a b (c)", "docker-default"]);
    }

    #[test]
    fn the_default_profile_is_balanced() {
        let text = default_profile();
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        assert!(text.contains("profile cricket-default "));
    }
}
