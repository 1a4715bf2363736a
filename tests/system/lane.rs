//! The lane itself: whoever ends it is left with nothing of it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{PATIENCE, World, command, eventually, top};

crate::once!(sigterm_leaves_nothing, a_killed_lane_has_no_processes, the_exit_code_and_the_input_are_the_commands);

/// Makes a folder and a cgroup of the lane's name, enters the cgroup, and stays.
const SCRIPT: &str = r#"
    folder=$(mktemp -d "/tmp/$CRICKET_LANE-XXXXXX")
    for memory in /sys/fs/cgroup/memory /sys/fs/cgroup; do [ ! -e "$memory/cgroup.procs" ] || break; done
    mkdir -p "$memory/${folder##*/}/below"
    setsid sh -c 'echo $$ >"$1/cgroup.procs"; exec sleep 525252' sleeper "$memory/${folder##*/}/below" &
    while ! grep -q . "$memory/${folder##*/}/below/cgroup.procs"; do :; done
    printf '%s\n%s\n' "$folder" "$memory/${folder##*/}" >"$1.new"
    mv "$1.new" "$1"
    wait
"#;

/// A lane in which the script has done its work, with the folder and the cgroup that it made.
async fn lane(told: &Path) -> Result<(tokio::process::Child, Pid, PathBuf, PathBuf)> {
    let lane = command(top().join("tests/in-lane.sh")).args(["sh", "-c", SCRIPT, "lane"]).arg(told).spawn()?;
    let pid = lane.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw).context("the lane's pid")?;
    let text = eventually("the lane's script is done", PATIENCE, async || Ok(std::fs::read_to_string(told)?)).await?;
    let mut lines = text.lines().map(PathBuf::from);
    let (folder, cgroup) = (lines.next().context("a folder")?, lines.next().context("a cgroup")?);
    ensure!(folder.is_dir() && cgroup.is_dir(), "{text}: not there");
    Ok((lane, pid, folder, cgroup))
}

async fn sigterm_leaves_nothing() -> Result<()> {
    let told = tempfile::tempdir()?;
    let (mut lane, pid, folder, cgroup) = Box::pin(lane(&told.path().join("told"))).await?;
    // Only the script that was started, as a supervisor does; not its process group.
    kill_process(pid, Signal::TERM)?;
    let status = tokio::time::timeout(PATIENCE, lane.wait()).await.context("the lane does not end")??;
    ensure!(status.code() == Some(143), "{status}");
    ensure!(!folder.exists(), "{} is left", folder.display());
    ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    Ok(())
}

async fn a_killed_lane_has_no_processes() -> Result<()> {
    let told = tempfile::tempdir()?;
    let (mut lane, pid, folder, cgroup) = Box::pin(lane(&told.path().join("told"))).await?;
    kill_process(pid, Signal::KILL)?;
    lane.wait().await?;
    eventually("the cgroup is empty", PATIENCE, async || {
        let procs = std::fs::read_to_string(cgroup.join("below/cgroup.procs"))?;
        ensure!(procs.is_empty(), "in it: {procs}");
        Ok(())
    })
    .await?;
    // What nobody was left to remove.
    eventually("the cgroups are removed", PATIENCE, async || {
        std::fs::remove_dir(cgroup.join("below")).or_else(gone)?;
        Ok(std::fs::remove_dir(&cgroup)?)
    })
    .await?;
    std::fs::remove_dir(folder)?;
    Ok(())
}

fn gone(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

async fn the_exit_code_and_the_input_are_the_commands() -> Result<()> {
    let world = Box::pin(World::new()).await?;
    let input = world.folder().join("input");
    std::fs::write(&input, "a line\n")?;
    let ended = command(top().join("tests/in-lane.sh"))
        .args(["sh", "-c", "cat; exit 7"])
        .stdin(std::fs::File::open(&input)?)
        .output()
        .await?;
    ensure!(ended.status.code() == Some(7), "{}", ended.status);
    ensure!(ended.stdout == b"a line\n", "{}", String::from_utf8_lossy(&ended.stdout));
    Ok(())
}
