//! Namespaces of one test, and running programs in them.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// How long anything that ought to happen may take. Generous: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer, or gives up with the last complaint after `limit`.
pub async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut ask: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match ask().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("gave up after {} s: {what}", limit.as_secs())));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A program that is not started yet. The system lane starts real programs, that is its purpose.
#[allow(clippy::disallowed_methods)] // the one place of the lane that may
pub fn command(program: impl AsRef<Path>) -> tokio::process::Command {
    let mut command = std::process::Command::new(program.as_ref());
    command.stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    command
}

/// What a program in a world printed, and how it ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Mount, network and pid namespaces with an own folder, made by `tests/in-lane.sh`. Dropping it ends every process in it.
pub struct World {
    // Dropped first: what holds the folder's mounts must be gone before the folder is removed.
    lane: tokio::process::Child,
    init: u32,
    parent: String,
    folder: Option<tempfile::TempDir>,
}

/// The child of a process that has one.
fn only_child(parent: u32) -> Result<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let child = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
    child.with_context(|| format!("the process {parent} has no child"))
}

/// The top of the source tree.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl World {
    /// Makes the namespaces and waits until they are furnished.
    pub async fn new() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "the system lane needs root: make system-test");
        // By this name the lane around the tests finds the folder and the cgroups, should the tests be killed.
        let around = std::env::var("CRICKET_LANE").unwrap_or_else(|_| "cricket".to_owned());
        let folder =
            tempfile::Builder::new().prefix(&format!("{around}-")).tempdir_in("/tmp").context("a folder below /tmp")?;
        // As /run is: the root of a pod's user namespace must be able to walk to the shelf.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        let ready = folder.path().join("ready");
        let lane = command(top().join("tests/in-lane.sh"))
            .args(["sh", "-c", "touch \"$1\"; exec sleep infinity", "lane"])
            .arg(&ready)
            .spawn()
            .context("tests/in-lane.sh")?;
        eventually("the lane is furnished", PATIENCE, async || {
            ensure!(ready.exists(), "{} is not there", ready.display());
            Ok(())
        })
        .await?;
        // The script waits for unshare, and unshare for the first process inside.
        let script = lane.id().context("the lane ended")?;
        let init = only_child(script).and_then(only_child)?;
        let tail = folder.path().file_name().and_then(|name| name.to_str()).context("the folder's name")?;
        let parent = format!("/{}", tail.replace('.', "-"));
        Ok(Self { lane, init, parent, folder: Some(folder) })
    }

    /// The folder of this world; the same path inside and outside, but mounts made inside show only inside.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("taken only by drop").path()
    }

    /// A path as seen from inside, in a form that opens from here.
    pub fn seen(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        Path::new(&format!("/proc/{}/root", self.init)).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The cgroup parent that this world's daemon is given: a name that no other test has.
    pub fn cgroup_parent(&self) -> &str {
        &self.parent
    }

    /// A file that holds the network namespace.
    pub fn network_namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.init))
    }

    /// A program that will run inside.
    pub fn program(&self, program: &str) -> tokio::process::Command {
        let mut command = command("nsenter");
        command.args(["-t", &self.init.to_string(), "-m", "-n", "-p", "--wd=/", "--", program]);
        command
    }

    /// Runs a program inside to its end.
    pub async fn run(&self, program: &str, args: &[&str]) -> Result<Finished> {
        let output = self
            .program(program)
            .args(args)
            .output()
            .await
            .with_context(|| format!("{program} {} cannot be started", args.join(" ")))?;
        Ok(Finished {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a program inside, which must succeed, and returns what it printed.
    pub async fn must(&self, program: &str, args: &[&str]) -> Result<String> {
        let done = self.run(program, args).await?;
        ensure!(done.status.success(), "{program} {}: {}: {}", args.join(" "), done.status, done.stderr.trim());
        Ok(done.stdout)
    }

    /// The processes inside: their pid as seen inside, and their command line.
    pub fn processes(&self) -> Vec<(u32, Vec<String>)> {
        let Ok(entries) = std::fs::read_dir(self.seen("/proc")) else { return Vec::new() };
        let mut found: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .map(|pid: u32| {
                let raw = std::fs::read(self.seen(format!("/proc/{pid}/cmdline"))).unwrap_or_default();
                let words = raw.split(|byte| *byte == 0).filter(|word| !word.is_empty());
                (pid, words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
            })
            .collect();
        found.sort();
        found
    }

    /// Those folders below every cgroup hierarchy that belong to this world's daemon.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut tops = vec![PathBuf::from("/sys/fs/cgroup")];
        tops.extend(std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
        let name = self.parent.trim_start_matches('/');
        for top in tops {
            for own in [top.join(name), top.join(format!("{name}.slice"))] {
                walk_folders(&own, &mut found);
            }
        }
        found
    }
}

fn walk_folders(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    found.push(folder.to_owned());
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk_folders(&entry.path(), found);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The lane's first process is the init of its pid namespace: with it everything inside goes.
        if let Some(pid) = i32::try_from(self.init).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while !matches!(self.lane.try_wait(), Ok(Some(_)) | Err(_)) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        // Deepest first. A killed process may take a moment to leave its cgroup.
        for cgroup in self.cgroups().iter().rev() {
            while std::fs::remove_dir(cgroup).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
                && Instant::now() < deadline
            {
                std::thread::yield_now();
            }
        }
        if let Some(folder) = self.folder.take()
            && let Err(error) = folder.close()
        {
            eprintln!("the world's folder is not removed: {error}");
        }
    }
}
