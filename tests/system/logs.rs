//! Container logs: the CRI's line format, long lines, rotation, and that nothing is missing when a container has ended.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;

use crate::client::refused;
use crate::lifecycle::host_node;
use crate::requests::container;
use crate::world::{PATIENCE, eventually};

crate::per_runtime!(everything_is_there_at_the_end);
crate::once!(streams_and_partial_lines, bytes_are_kept, reopening_loses_nothing, no_log_path_no_file, an_odd_log_path);

/// One record of a log: its stream, whether the line ends with it, and its bytes.
struct Record {
    stream: String,
    full: bool,
    text: Vec<u8>,
}

/// Parses a log strictly.
fn records(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let raw = std::fs::read(path.as_ref()).with_context(|| path.as_ref().display().to_string())?;
    let mut found = Vec::new();
    for line in raw.split_inclusive(|byte| *byte == b'\n') {
        let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        let line = line.strip_suffix(b"\n").with_context(|| format!("a record without an end: {shown}"))?;
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let mut next = || parts.next().with_context(|| format!("a record with too few parts: {shown}"));
        let (time, stream, tag, text) = (next()?, next()?, next()?, next()?);
        let time = std::str::from_utf8(time)?;
        // 2026-01-02T15:04:05.123456789Z or with an offset.
        ensure!(time.len() >= 30 && time.as_bytes()[19] == b'.' && time.as_bytes()[10] == b'T', "time {time}");
        ensure!(time[20..29].bytes().all(|byte| byte.is_ascii_digit()), "time {time}");
        ensure!(tag == b"F" || tag == b"P", "tag of {shown}");
        let stream = String::from_utf8(stream.to_vec())?;
        ensure!(stream == "stdout" || stream == "stderr", "stream of {shown}");
        found.push(Record { stream, full: tag == b"F", text: text.to_vec() });
    }
    Ok(found)
}

/// The lines of one stream, partial ones joined.
fn lines(records: &[Record], stream: &str) -> Vec<Vec<u8>> {
    let mut lines = vec![Vec::new()];
    for record in records.iter().filter(|record| record.stream == stream) {
        lines.last_mut().expect("never empty").extend_from_slice(&record.text);
        if record.full {
            lines.push(Vec::new());
        }
    }
    if lines.last().is_some_and(Vec::is_empty) {
        lines.pop();
    }
    lines
}

async fn everything_is_there_at_the_end(runtime: &'static str) -> Result<()> {
    let (_node, client, sandbox, pod) = host_node(runtime).await?;
    // Far more than a pipe holds, from a process that is gone at once after its last byte.
    let id = client.run(&pod, &container(&sandbox, "much", "seq 1 200000"), &sandbox).await?;
    let path = client.ended(&id).await?.log_path;
    let got = lines(&records(&path)?, "stdout");
    ensure!(got.len() == 200_000, "{} lines", got.len());
    for (n, line) in got.iter().enumerate() {
        ensure!(*line == (n + 1).to_string().into_bytes(), "line {} is {}", n + 1, String::from_utf8_lossy(line));
    }
    let mode = std::fs::metadata(&path)?.permissions().mode();
    ensure!(mode & 0o7137 == 0, "mode {mode:o} of the log");
    Ok(())
}

async fn streams_and_partial_lines() -> Result<()> {
    let (_node, client, sandbox, pod) = host_node("crun").await?;
    let script = "echo short; echo error >&2; head -c 100000 /dev/zero | tr '\\0' x; echo; echo; printf unfinished";
    let id = client.run(&pod, &container(&sandbox, "lines", script), &sandbox).await?;
    let path = client.ended(&id).await?.log_path;
    let records = records(&path)?;
    let got = lines(&records, "stdout");
    let expected = [b"short".to_vec(), vec![b'x'; 100_000], Vec::new(), b"unfinished".to_vec()];
    ensure!(got == expected, "lengths {:?}", got.iter().map(Vec::len).collect::<Vec<_>>());
    ensure!(lines(&records, "stderr") == [b"error".to_vec()], "stderr");
    let longest = records.iter().map(|record| record.text.len()).max().unwrap_or_default();
    ensure!(longest <= 16 * 1024, "a record of {longest} bytes");
    ensure!(records.iter().filter(|record| !record.full).count() >= 6, "too few partial records");
    Ok(())
}

async fn bytes_are_kept() -> Result<()> {
    let (_node, client, sandbox, pod) = host_node("crun").await?;
    let script = r"printf 'a\377\376\000\rb\n'";
    let id = client.run(&pod, &container(&sandbox, "bytes", script), &sandbox).await?;
    let got = lines(&records(client.ended(&id).await?.log_path)?, "stdout");
    ensure!(got == [b"a\xff\xfe\0\rb".to_vec()], "{got:?}");
    Ok(())
}

async fn reopening_loses_nothing() -> Result<()> {
    let (_node, client, sandbox, pod) = host_node("crun").await?;
    let script = "trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo $i; usleep 500; done";
    let id = client.run(&pod, &container(&sandbox, "ticks", script), &sandbox).await?;
    let path = client.status(&id).await?.log_path;
    let grown = async |path: &str| {
        eventually("the log grows", PATIENCE, async || {
            ensure!(records(path).is_ok_and(|records| records.len() > 20), "not yet");
            Ok(())
        })
        .await
    };
    let mut old = Vec::new();
    for turn in 1..=3 {
        grown(&path).await?;
        let aside = format!("{path}.{turn}");
        std::fs::rename(&path, &aside)?;
        let request = cri::ReopenContainerLogRequest { container_id: id.clone() };
        client.runtime.clone().reopen_container_log(request).await?;
        ensure!(Path::new(&path).exists(), "no new file when ReopenContainerLog returns");
        old.push(aside);
    }
    grown(&path).await?;
    client.stop(&id, 30).await?;
    old.push(path.clone());
    let mut all = Vec::new();
    for file in &old {
        all.extend(lines(&records(file)?, "stdout"));
    }
    for (n, line) in all.iter().enumerate() {
        ensure!(*line == (n + 1).to_string().into_bytes(), "line {} is {}", n + 1, String::from_utf8_lossy(line));
    }

    // Of an ended container nothing is reopened, and above all no file is made.
    std::fs::rename(&path, format!("{path}.4"))?;
    let request = cri::ReopenContainerLogRequest { container_id: id.clone() };
    refused(client.runtime.clone().reopen_container_log(request).await, &[], &[&id[..12]])?;
    ensure!(!Path::new(&path).exists(), "a refused ReopenContainerLog made {path}");
    Ok(())
}

async fn no_log_path_no_file() -> Result<()> {
    let (_node, client, sandbox, pod) = host_node("crun").await?;
    let mut config = container(&sandbox, "silent", "seq 1 100000; exit 3");
    config.log_path = String::new();
    let id = client.run(&pod, &config, &sandbox).await?;
    let ended = client.ended(&id).await?;
    ensure!(ended.exit_code == 3, "exit code {}", ended.exit_code);
    ensure!(ended.log_path.is_empty(), "log path {}", ended.log_path);
    let files = std::fs::read_dir(&sandbox.log_directory).map_or(0, Iterator::count);
    ensure!(files == 0, "{files} files in the log folder");
    Ok(())
}

async fn an_odd_log_path() -> Result<()> {
    let (node, client, sandbox, pod) = host_node("crun").await?;
    let mut config = container(&sandbox, "nested", "echo deep");
    config.log_path = "folder/that/is not there/0.log".into();
    let id = client.run(&pod, &config, &sandbox).await?;
    let got = lines(&records(client.ended(&id).await?.log_path)?, "stdout");
    ensure!(got == [b"deep".to_vec()], "{got:?}");

    config = container(&sandbox, "escape", "echo out");
    config.log_path = "../../escaped.log".into();
    refused(
        client.create(&pod, &config, &sandbox).await,
        &[tonic::Code::InvalidArgument],
        &["log_path", "escaped.log"],
    )?;
    ensure!(!node.path("escaped.log").exists(), "a log outside of the pod's folder");
    Ok(())
}
