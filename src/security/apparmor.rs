//! AppArmor: is it on, which profiles does the kernel hold, and the profile that RuntimeDefault means.
//!
//! The kernel's list is read anew for each container that needs it: profiles come and go while the daemon runs (a reload
//! of the distribution's policy throws out profiles that it does not know, ours among them), and whether one is loaded
//! decides whether a container may be made.

mod profile;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use crate::sys::exec::{self, Exec, ExecError};

use profile::Ground;

/// The name under which cricket loads its own profile.
pub const DEFAULT_PROFILE: &str = "cricket-default";

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

/// AppArmor of this machine: where its files and its parser are.
#[derive(Debug)]
pub struct Profiles {
    /// `apparmor.enabled` of the kernel's modules: `Y` or `N`.
    enabled: PathBuf,
    /// The folder of securityfs, in which `profiles` is.
    securityfs: PathBuf,
    policy: PathBuf,
    parser: PathBuf,
    /// One load at a time: whoever comes second finds the profile there.
    loading: tokio::sync::Mutex<()>,
}

impl Default for Profiles {
    fn default() -> Self {
        Self {
            enabled: "/sys/module/apparmor/parameters/enabled".into(),
            securityfs: "/sys/kernel/security/apparmor".into(),
            policy: "/etc/apparmor.d".into(),
            parser: "apparmor_parser".into(),
            loading: tokio::sync::Mutex::new(()),
        }
    }
}

impl Profiles {
    /// The state now; `None` when the kernel has it not, has it off, or does not show it (securityfs is not mounted, as
    /// inside of a container: nothing could be enforced from there).
    ///
    /// # Errors
    /// [`AppArmorError::List`] when it is on and its list of profiles cannot be read.
    pub fn state(&self) -> Result<Option<AppArmor>, AppArmorError> {
        let on = std::fs::read_to_string(&self.enabled).is_ok_and(|text| text.starts_with('Y'));
        if !on || !self.securityfs.is_dir() {
            return Ok(None);
        }
        let path = self.securityfs.join("profiles");
        let failed = |source| AppArmorError::List { path: path.clone(), source };
        let mut text = String::new();
        let file = std::fs::File::open(&path).map_err(failed)?;
        file.take(LIST_LIMIT).read_to_string(&mut text).map_err(failed)?;
        Ok(Some(AppArmor { loaded: parse_profiles(&text) }))
    }

    /// The state now, with the default profile loaded where AppArmor is on: at start, and again whenever it has gone.
    ///
    /// # Errors
    /// As [`Self::state`]; [`AppArmorError::Run`] when the parser is missing or hangs, [`AppArmorError::Refused`] when it
    /// fails.
    pub async fn with_default(&self) -> Result<Option<AppArmor>, AppArmorError> {
        match self.state()? {
            Some(state) if !state.loaded.contains(DEFAULT_PROFILE) => {}
            state => return Ok(state),
        }
        let _one = self.loading.lock().await;
        match self.state()? {
            Some(state) if !state.loaded.contains(DEFAULT_PROFILE) => self.load_default().await?,
            state => return Ok(state),
        }
        self.state()
    }

    async fn load_default(&self) -> Result<(), AppArmorError> {
        let confinement = std::fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
        let output = exec::run(Exec {
            program: self.parser.clone(),
            // Replaces a profile of the name, and keeps no compiled copy on disk: the text may differ at the next start.
            args: vec!["-Kr".into()],
            env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
            stdin: profile::text(&Ground::of(&self.policy, &confinement)).into_bytes(),
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
}

/// Lines are `name (mode)`, and a name may hold blanks.
fn parse_profiles(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.rsplit_once(" (")).map(|(name, _)| name.to_owned()).collect()
}
