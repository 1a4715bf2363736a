//! One call of one plugin program: its environment, its clock, and what its answer means.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::conf::Version;
use crate::sys::exec::{self, Exec, ExecError, Output};

/// Most plugin programs at once that set networks up, and as many that take them down: separate, so that plugins that hang
/// in ADD never hold up a teardown.
const CALLS_MAX: usize = 16;
/// Bytes kept of a plugin's output; a result is a few KiB.
const OUTPUT_MAX: usize = 1024 * 1024;
/// Bytes of a plugin's words that go into an error.
const EXCERPT_MAX: usize = 1024;
/// A plugin that is being replaced cannot be started for a moment ("text file busy"); so often it is tried again.
const BUSY_RETRIES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// All of the daemon's environment that a plugin gets: where iptables, nft and ip are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An operation of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Check,
    Del,
    Status,
    Gc,
    Version,
}

impl Verb {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

/// Which interface of which pod a call is about.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    pub container_id: &'a str,
    /// `None` when the namespace is gone: plugins then clean up what they can.
    pub netns: Option<&'a Path>,
    pub interface: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
}

/// Why a plugin did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("CNI plugin {plugin:?} is in none of {dirs}")]
    Missing { plugin: String, dirs: String },
    #[error("CNI plugin {plugin:?}: {} is not executable", path.display())]
    NotExecutable { plugin: String, path: PathBuf },
    #[error("CNI plugin {plugin:?} cannot be started for {}", verb.as_str())]
    Start { plugin: String, verb: Verb, source: io::Error },
    #[error("CNI plugin {plugin:?} did not answer {} within {} s and was killed{}", verb.as_str(), after.as_secs_f64(), said(stderr))]
    TimedOut { plugin: String, verb: Verb, after: Duration, stderr: String },
    #[error("CNI plugin {plugin:?} failed {}: {msg}{} (code {code}{}){}", verb.as_str(), detailed(details), meaning(*code), said(stderr))]
    Failed { plugin: String, verb: Verb, code: u64, msg: String, details: String, stderr: String },
    #[error("CNI plugin {plugin:?} failed {} without an error object: {status}{}{}", verb.as_str(), printed(stdout), said(stderr))]
    Exited { plugin: String, verb: Verb, status: ExitStatus, stdout: String, stderr: String },
    #[error("CNI plugin {plugin:?} printed no result for {}{}", verb.as_str(), said(stderr))]
    Silent { plugin: String, verb: Verb, stderr: String },
    #[error("CNI plugin {plugin:?} printed something else than a result for {}{}{}", verb.as_str(), printed(stdout), said(stderr))]
    Garbage { plugin: String, verb: Verb, stdout: String, stderr: String },
    #[error("CNI plugin {plugin:?} printed more than {OUTPUT_MAX} bytes for {}{}", verb.as_str(), said(stderr))]
    TooMuch { plugin: String, verb: Verb, stderr: String },
    #[error("CNI plugin {plugin:?} speaks the CNI versions {speaks}, the configuration wants {wanted}")]
    Versions { plugin: String, speaks: String, wanted: String },
    #[error("CNI plugin {plugin:?}: the outcome of {} is not known", verb.as_str())]
    Lost { plugin: String, verb: Verb, source: ExecError },
}

impl PluginError {
    /// Whether the program never ran, so that it cannot have done anything, nor undone.
    #[must_use]
    pub fn never_ran(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::NotExecutable { .. } | Self::Start { .. })
    }

    /// Whether the plugin does not know the container, so that it has nothing to clean up (the specification's code 3).
    #[must_use]
    pub fn knows_no_such_container(&self) -> bool {
        matches!(self, Self::Failed { code: 3, .. })
    }
}

/// What the specification's codes mean beyond what the plugin says itself.
fn meaning(code: u64) -> &'static str {
    match code {
        1 => ", incompatible CNI version",
        11 => ", try again later",
        50 => ", not available",
        51 => ", not available, and pods that run may be cut off",
        _ => "",
    }
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; stderr: {stderr}") }
}

fn printed(stdout: &str) -> String {
    if stdout.is_empty() { String::new() } else { format!("; stdout: {stdout}") }
}

fn detailed(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!("; {details}") }
}

/// Runs plugins.
#[derive(Debug)]
pub struct Plugins {
    bin_dirs: Vec<PathBuf>,
    timeout: Duration,
    adds: Semaphore,
    dels: Semaphore,
    /// What programs said that they speak, with the time and the size of the file that said so.
    spoken: Mutex<HashMap<PathBuf, (Stamp, Vec<String>)>>,
}

/// Changes when a program is replaced.
type Stamp = (Option<SystemTime>, u64, u64);

impl Plugins {
    /// `timeout` is the clock of each call.
    #[must_use]
    pub fn new(bin_dirs: Vec<PathBuf>, timeout: Duration) -> Self {
        let (adds, dels) = (Semaphore::new(CALLS_MAX), Semaphore::new(CALLS_MAX));
        Self { bin_dirs, timeout, adds, dels, spoken: Mutex::default() }
    }

    /// The program of a plugin: the first file of that name in the folders.
    ///
    /// # Errors
    /// [`PluginError::Missing`] and [`PluginError::NotExecutable`].
    pub fn find(&self, plugin: &str) -> Result<PathBuf, PluginError> {
        for dir in &self.bin_dirs {
            let path = dir.join(plugin);
            if let Some(file) = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file) {
                let executable = file.permissions().mode() & 0o111 != 0;
                return if executable {
                    Ok(path)
                } else {
                    Err(PluginError::NotExecutable { plugin: plugin.to_owned(), path })
                };
            }
        }
        let dirs: Vec<String> = self.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        Err(PluginError::Missing { plugin: plugin.to_owned(), dirs: dirs.join(", ") })
    }

    /// The versions that a plugin speaks, as its VERSION says; asked once of each file. `None` when it does not say: VERSION
    /// need not be right for ADD to be.
    ///
    /// # Errors
    /// [`PluginError::Missing`], [`PluginError::NotExecutable`], and [`PluginError::TimedOut`], since one that hangs here
    /// costs each caller its clock.
    pub async fn versions(&self, plugin: &str, ours: Version) -> Result<Option<Vec<String>>, PluginError> {
        let path = self.find(plugin)?;
        let stamp =
            std::fs::metadata(&path).map(|file| (file.modified().ok(), file.len(), file.ino())).unwrap_or_default();
        let known = self.spoken.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
        if let Some((_, versions)) = known.filter(|(then, _)| *then == stamp) {
            return Ok(Some(versions));
        }
        let question = serde_json::json!({"cniVersion": ours.as_str()});
        let said = match self.call(Verb::Version, plugin, &question, None).await {
            Ok(said) => said.into_result(Verb::Version, plugin).ok(),
            Err(error @ PluginError::TimedOut { .. }) => return Err(error),
            Err(_) => None,
        };
        let listed = said.as_ref().and_then(|said| said.get("supportedVersions")?.as_array());
        let Some(listed) = listed else { return Ok(None) };
        let versions: Vec<String> = listed.iter().filter_map(|one| Some(one.as_str()?.to_owned())).collect();
        self.spoken.lock().unwrap_or_else(PoisonError::into_inner).insert(path, (stamp, versions.clone()));
        Ok(Some(versions))
    }

    /// Calls a plugin with its configuration on standard input, and returns what it printed.
    ///
    /// Waits for a place first, in which the clock does not run. STATUS, CHECK and VERSION wait for none: they change nothing,
    /// and must say that plugins hang. What the plugin leaves in its process group is killed when it has ended.
    ///
    /// # Errors
    /// Any [`PluginError`] but those that are about a result or a version.
    pub async fn call(
        &self,
        verb: Verb,
        plugin: &str,
        config: &Value,
        target: Option<&Target<'_>>,
    ) -> Result<Said, PluginError> {
        let places = match verb {
            Verb::Add => Some(&self.adds),
            Verb::Del | Verb::Gc => Some(&self.dels),
            Verb::Status | Verb::Check | Verb::Version => None,
        };
        let _place = match places {
            Some(places) => Some(places.acquire().await.expect("the semaphore is never closed")),
            None => None,
        };
        let exec = Exec {
            program: self.find(plugin)?,
            args: Vec::new(),
            env: self.environment(verb, target),
            stdin: config.to_string().into_bytes(),
            timeout: self.timeout,
            output_cap: OUTPUT_MAX,
        };
        let output = run_when_free(exec).await.map_err(|error| call_error(verb, plugin, error))?;
        judge(verb, plugin, output)
    }

    fn environment(&self, verb: Verb, target: Option<&Target<'_>>) -> Vec<(OsString, OsString)> {
        let mut dirs = OsString::new();
        for dir in &self.bin_dirs {
            if !dirs.is_empty() {
                dirs.push(":");
            }
            dirs.push(dir);
        }
        let mut env: Vec<(OsString, OsString)> =
            vec![("CNI_COMMAND".into(), verb.as_str().into()), ("CNI_PATH".into(), dirs), ("PATH".into(), PATH.into())];
        if let Some(target) = target {
            let netns = target.netns.map(|path| path.as_os_str().to_owned()).unwrap_or_default();
            env.push(("CNI_CONTAINERID".into(), target.container_id.into()));
            env.push(("CNI_NETNS".into(), netns));
            env.push(("CNI_IFNAME".into(), target.interface.into()));
            env.push(("CNI_ARGS".into(), target.args.into()));
        }
        env
    }
}

/// What a plugin that succeeded printed.
#[derive(Debug)]
pub struct Said {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Said {
    /// The result that ADD must print.
    ///
    /// # Errors
    /// [`PluginError::Silent`], [`PluginError::TooMuch`] and [`PluginError::Garbage`].
    pub fn into_result(self, verb: Verb, plugin: &str) -> Result<Map<String, Value>, PluginError> {
        let (plugin, stderr) = (plugin.to_owned(), excerpt(&self.stderr));
        if self.stdout.trim_ascii().is_empty() {
            return Err(PluginError::Silent { plugin, verb, stderr });
        }
        match serde_json::from_slice(&self.stdout) {
            Ok(Value::Object(result)) => Ok(result),
            _ if self.stdout.len() >= OUTPUT_MAX => Err(PluginError::TooMuch { plugin, verb, stderr }),
            _ => Err(PluginError::Garbage { plugin, verb, stdout: excerpt(&self.stdout), stderr }),
        }
    }
}

async fn run_when_free(exec: Exec) -> Result<Output, ExecError> {
    for _ in 0..BUSY_RETRIES {
        match exec::run_alone(exec.clone()).await {
            Err(ExecError::Spawn { source, .. }) if source.kind() == io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
    exec::run_alone(exec).await
}

fn call_error(verb: Verb, plugin: &str, error: ExecError) -> PluginError {
    let plugin = plugin.to_owned();
    match error {
        ExecError::Spawn { source, .. } => PluginError::Start { plugin, verb, source },
        ExecError::TimedOut { after, stderr, .. } => {
            PluginError::TimedOut { plugin, verb, after, stderr: excerpt(&stderr) }
        }
        source @ ExecError::Wait { .. } => PluginError::Lost { plugin, verb, source },
    }
}

fn judge(verb: Verb, plugin: &str, output: Output) -> Result<Said, PluginError> {
    // An error object is a failure even if the plugin forgot to say so by its exit code; no result has these keys.
    let error = match serde_json::from_slice(&output.stdout) {
        Ok(Value::Object(error)) if error.contains_key("code") || error.contains_key("msg") => error,
        _ if output.status.success() => return Ok(Said { stdout: output.stdout, stderr: output.stderr }),
        _ => {
            let (plugin, stderr) = (plugin.to_owned(), excerpt(&output.stderr));
            let (status, stdout) = (output.status, excerpt(&output.stdout));
            return Err(PluginError::Exited { plugin, verb, status, stdout, stderr });
        }
    };
    let (plugin, stderr) = (plugin.to_owned(), excerpt(&output.stderr));
    let text = |key| error.get(key).and_then(Value::as_str).map(|text| excerpt(text.as_bytes())).unwrap_or_default();
    let code = error.get("code").and_then(Value::as_u64).unwrap_or_default();
    Err(PluginError::Failed { plugin, verb, code, msg: text("msg"), details: text("details"), stderr })
}

/// The end of what a program said, as one line that is fit for an error message.
fn excerpt(bytes: &[u8]) -> String {
    let bytes = bytes.trim_ascii();
    let start = bytes.len().saturating_sub(EXCERPT_MAX);
    let text = String::from_utf8_lossy(&bytes[start..]);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if start == 0 { text } else { format!("… {text}") }
}
