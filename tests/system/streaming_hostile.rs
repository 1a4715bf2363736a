//! The streaming server against clients that mean harm: floods, lies about lengths, and leaving at bad moments. Each rule is
//! named after the vulnerability that it answers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::client::{Client, refused};
use crate::cve_image::memory;
use crate::ledger::Ledger;
use crate::lifecycle::host_node;
use crate::node::Node;
use crate::requests::container;
use crate::streaming_client::{
    Session, attach_url, connect, exec_url, forward_url, over_spdy, over_websocket, parts, request,
};
use crate::world::{PATIENCE, eventually};

crate::once!(
    cve_2020_8551_silent_connections,
    cve_2020_8559_no_redirect_and_tokens_good_once,
    cve_2022_23471_resizes_for_what_never_began,
    cve_2025_64329_attached_and_gone,
    cve_2026_35469_lengths_that_lie,
    cve_2026_35469_header_blocks_that_grow,
    conmon_rs_cfa1bdbe_output_that_nobody_reads,
    tokens_are_bounded_and_not_logged,
    a_pair_without_its_other_half,
);

/// What the daemon may keep of everything that a test threw at it: the allocator's, not ours.
const SLACK: u64 = 24 << 20;

/// Ten thousand rounds take a while; a run of the whole lane does a tenth. `CRICKET_ROUNDS=10000` does all.
fn rounds() -> Result<usize> {
    match std::env::var("CRICKET_ROUNDS") {
        Ok(text) => text.parse().context("CRICKET_ROUNDS"),
        Err(_) => Ok(1000),
    }
}

async fn idle() -> Result<(Node, Client, String, String)> {
    let (node, client, sandbox, pod) = host_node("crun").await?;
    let id = client.run(&pod, &container(&sandbox, "idle", "sleep 100000 & while :; do wait; done"), &sandbox).await?;
    Ok((node, client, id, pod))
}

/// Threads of the daemon.
fn threads(node: &Node) -> Result<usize> {
    Ok(std::fs::read_dir(node.world.seen(format!("/proc/{}/task", node.daemon_pid()?)))?.count())
}

async fn works(node: &Node, client: &Client, id: &str) -> Result<()> {
    let url = exec_url(client, id, &["echo", "works"], "o").await?;
    let (out, verdict) = Session::open(node, &url, "o").await?.finish().await?;
    ensure!(out == "works\n" && verdict.contains("Success"), "{out} {verdict}");
    Ok(())
}

async fn cve_2020_8551_silent_connections() -> Result<()> {
    let (node, client, id, _) = Box::pin(idle()).await?;
    works(&node, &client, &id).await?;
    let before = Ledger::take(&node).await?;
    let url = exec_url(&client, &id, &["true"], "o").await?;
    let (address, _) = parts(&url)?;
    let mut silent = Vec::new();
    for n in 0..900_u32 {
        let mut stream = connect(&node, address).await?;
        if n % 2 == 0 {
            // A head that never ends. A connection that was closed already is what we want.
            let _ = stream.write_all(b"GET /exec/00 HTTP/1.1\r\nX-Slow: ").await;
        }
        silent.push(stream);
    }
    works(&node, &client, &id).await?;
    let open = std::fs::read_dir(node.world.seen(format!("/proc/{}/fd", node.daemon_pid()?)))?.count();
    ensure!(open < 400, "{open} descriptors are open");
    // The rest has ended by the clock for a request's head.
    for mut stream in silent {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        // A reset is an end as well.
        let _ = end.context("a silent connection stays open")?;
    }
    before.assert_same(&node).await
}

async fn cve_2020_8559_no_redirect_and_tokens_good_once() -> Result<()> {
    let (node, client, id, pod) = Box::pin(idle()).await?;
    let url = exec_url(&client, &id, &["true"], "o").await?;
    let (address, path) = parts(&url)?;
    let token = path.rsplit('/').next().context("a token")?;
    ensure!(token.len() >= 32, "a token of {} digits", token.len());
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    for path in [
        "/".to_owned(),
        "/exec".to_owned(),
        "/exec/".to_owned(),
        format!("//evil.example/exec/{token}"),
        format!("/exec/{token}/"),
        format!("/exec/../exec/{token}"),
        format!("/attach/{token}"),
        format!("/portforward/{token}"),
        format!("/exec/{}", "0".repeat(token.len())),
        format!("/exec/{}", &token[..token.len() - 1]),
    ] {
        for method in ["GET", "POST"] {
            let (status, head, _) = request(&node, &format!("http://{address}{path}"), method, upgrade).await?;
            ensure!(status == 404 && !head.to_lowercase().contains("location:"), "{method} {path}: {head}");
            ensure!(!head.contains(token), "the token is repeated: {head}");
        }
    }
    for method in ["PUT", "DELETE", "OPTIONS", "HEAD"] {
        let (status, head, _) = request(&node, &url, method, upgrade).await?;
        ensure!(status == 405, "{method}: {head}");
    }
    // None of this has spent it.
    let (out, verdict) = Session::open(&node, &url, "o").await?.finish().await?;
    ensure!(out.is_empty() && verdict.contains("Success"), "{out} {verdict}");
    let (status, head, _) = request(&node, &url, "POST", upgrade).await?;
    ensure!(status == 404, "a token was good twice: {head}");
    // A token of one kind opens nothing of another.
    let forward = forward_url(&client, &pod, &[80]).await?;
    let (status, head, _) = request(&node, &forward.replace("/portforward/", "/exec/"), "POST", upgrade).await?;
    ensure!(status == 404, "{head}");
    Ok(())
}

async fn cve_2022_23471_resizes_for_what_never_began() -> Result<()> {
    let (node, client, id, _) = Box::pin(idle()).await?;
    let one = async || -> Result<()> {
        let url = exec_url(&client, &id, &["/no/such/program"], "iot").await?;
        let mut session = Session::open(&node, &url, "iot").await?;
        if let Some(resize) = &mut session.resize {
            for _ in 0..20 {
                // A session that has ended takes no more of them.
                let _ = resize.write_all(b"{\"Width\":80,\"Height\":24}").await;
            }
        }
        let (_, verdict) = session.finish().await?;
        ensure!(verdict.contains("Failure"), "{verdict}");
        Ok(())
    };
    for _ in 0..20 {
        one().await?;
    }
    let (before, held, running) = (Ledger::take(&node).await?, memory(&node)?, threads(&node)?);
    for _ in 0..rounds()? / 4 {
        futures_util::future::try_join_all([one(), one(), one(), one()]).await?;
    }
    before.assert_same(&node).await?;
    let (now, still) = (memory(&node)?, threads(&node)?);
    println!("{} rounds: {held} to {now} bytes, {running} to {still} threads", rounds()?);
    ensure!(now < held + SLACK, "the daemon grew from {held} to {now} bytes");
    Ok(())
}

async fn cve_2025_64329_attached_and_gone() -> Result<()> {
    let (node, client, id, _) = Box::pin(idle()).await?;
    let one = async |n: usize| -> Result<()> {
        let url = attach_url(&client, &id, "oe").await?;
        if n.is_multiple_of(2) {
            drop(Session::open(&node, &url, "oe").await?);
        } else {
            drop(over_websocket(&node, &url, "v5.channel.k8s.io").await?);
        }
        Ok(())
    };
    for n in 0..100 {
        one(n).await?;
    }
    let (before, held, running) = (Ledger::take(&node).await?, memory(&node)?, threads(&node)?);
    for n in 0..rounds()? {
        one(n).await?;
    }
    before.assert_same(&node).await?;
    let (now, still) = (memory(&node)?, threads(&node)?);
    println!("{} rounds: {held} to {now} bytes, {running} to {still} threads", rounds()?);
    ensure!(now < held + SLACK, "the daemon grew from {held} to {now} bytes");
    works(&node, &client, &id).await
}

async fn cve_2026_35469_lengths_that_lie() -> Result<()> {
    let (node, client, id, pod) = Box::pin(idle()).await?;
    works(&node, &client, &id).await?;
    let before = Ledger::take(&node).await?;
    let held = memory(&node)?;
    let control = |kind: u8, length: u32, body: &[u8]| {
        let [_, a, b, c] = length.to_be_bytes();
        [&[0x80, 3, 0, kind, 0, a, b, c], body].concat()
    };
    let zeros = vec![0_u8; 64 * 1024];
    let attacks: [(&str, Vec<u8>); 6] = [
        ("2^32-1 settings", control(4, 12, &[0xff; 12])),
        ("settings that are not all there", control(4, 0x00ff_ffff, &[0x00, 0xff, 0xff, 0xff])),
        ("a control frame of 16 MiB", [control(1, 0x00ff_ffff, &[0, 0, 0, 1]), zeros.clone()].concat()),
        ("a block that is not deflated", control(1, 42, &[0xff; 42])),
        ("a frame of another version", [0x80, 2, 0, 1, 0, 0, 0, 0].to_vec()),
        ("noise", vec![0xa5; 64 * 1024]),
    ];
    for (what, bytes) in attacks {
        for kind in ["exec", "portforward"] {
            let (url, version) = match kind {
                "exec" => (exec_url(&client, &id, &["true"], "o").await?, "v4.channel.k8s.io"),
                _ => (forward_url(&client, &pod, &[]).await?, "portforward.k8s.io"),
            };
            let headers =
                format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {version}\r\n");
            let (status, head, mut stream) = request(&node, &url, "POST", &headers).await?;
            ensure!(status == 101, "{head}");
            // The server may close while we still write.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
            // A reset is an end as well.
            let _ = end.with_context(|| format!("{what}, {kind}: the connection stays open"))?;
            ensure!(rest.len() < 4096, "{what}, {kind}: {} bytes in answer", rest.len());
        }
    }
    before.assert_same(&node).await?;
    let now = memory(&node)?;
    ensure!(now < held + (4 << 20), "the daemon grew from {held} to {now} bytes");
    works(&node, &client, &id).await
}

/// A compressed header block that begins with these bytes and goes on with so many zeros.
fn block(begin: &[u8], zeros: usize) -> Result<Vec<u8>> {
    // The zlib header that asks for the dictionary of SPDY/3; the rest uses none of it.
    let mut block = vec![0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];
    let mut zlib = flate2::Compress::new(flate2::Compression::best(), false);
    let plain = [begin, &vec![0; zeros]].concat();
    block.reserve(64 * 1024);
    zlib.compress_vec(&plain, &mut block, flate2::FlushCompress::Sync)?;
    ensure!(zlib.total_in() == plain.len() as u64 && block.len() < 16 * 1024 - 10, "{} bytes", block.len());
    Ok(block)
}

async fn cve_2026_35469_header_blocks_that_grow() -> Result<()> {
    let (node, client, id, pod) = Box::pin(idle()).await?;
    works(&node, &client, &id).await?;
    let before = Ledger::take(&node).await?;
    let held = memory(&node)?;
    // What is remembered as the most memory in use begins anew (proc(5), clear_refs).
    std::fs::write(node.world.seen(format!("/proc/{}/clear_refs", node.daemon_pid()?)), "5")?;
    let one = [0, 0, 0, 1, 0, 0, 0, 1, b'a'];
    // Each is about what a control frame may have, 16 KiB, and inflates to a thousand times as much.
    let blocks = [
        ("one large value", block(&[&one[..], &(15_u32 << 20).to_be_bytes()].concat(), 15 << 20)?),
        ("a value that is said to be larger still", block(&[&one[..], &[0x7f, 0xff, 0xff, 0xff]].concat(), 15 << 20)?),
        ("a name of 2 GiB", block(&[0, 0, 0, 1, 0x80, 0, 0, 0], 15 << 20)?),
        ("2^31 empty headers", block(&[0x80, 0, 0, 0], 15 << 20)?),
    ];
    let attack = async |what: &str, block: &[u8], url: &str, version: &str| -> Result<()> {
        let headers = format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {version}\r\n");
        let (status, head, mut stream) = request(&node, url, "POST", &headers).await?;
        ensure!(status == 101, "{head}");
        let [_, a, b, c] = u32::try_from(block.len() + 10)?.to_be_bytes();
        let syn_stream = [&[0x80, 3, 0, 1, 0, a, b, c, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], block].concat();
        let _ = stream.write_all(&syn_stream).await;
        // The write side stays open: it is the server that ends this.
        let mut rest = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        let _ = end.with_context(|| format!("{what}: the connection stays open"))?;
        // The last frame is a GOAWAY for a broken protocol.
        ensure!(rest.ends_with(&[0, 0, 0, 1]) && rest.len() < 4096, "{what}: {rest:?}");
        Ok(())
    };
    for (what, block) in &blocks {
        let mut at_once = Vec::new();
        for n in 0..16 {
            let (url, version) = if n % 2 == 0 {
                (exec_url(&client, &id, &["true"], "o").await?, "v4.channel.k8s.io")
            } else {
                (forward_url(&client, &pod, &[]).await?, "portforward.k8s.io")
            };
            at_once.push((url, version));
        }
        let attacks = at_once.iter().map(|(url, version)| attack(what, block, url, version));
        futures_util::future::try_join_all(attacks).await?;
    }
    let peak = peak_memory(&node)?;
    println!("header blocks that grow: {held} bytes before, {peak} at the most");
    ensure!(peak < held + (8 << 20), "the daemon grew from {held} to {peak} bytes");
    before.assert_same(&node).await?;
    works(&node, &client, &id).await
}

/// The most memory that the daemon has had in use (proc(5), VmHWM).
fn peak_memory(node: &Node) -> Result<u64> {
    let status = std::fs::read_to_string(node.world.seen(format!("/proc/{}/status", node.daemon_pid()?)))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

async fn conmon_rs_cfa1bdbe_output_that_nobody_reads() -> Result<()> {
    let (node, client, id, _) = Box::pin(idle()).await?;
    works(&node, &client, &id).await?;
    let before = Ledger::take(&node).await?;
    let held = memory(&node)?;
    let flood = ["sh", "-c", "while :; do head -c 1000000 /dev/zero; done; : 32109"];
    let mut sessions = Vec::new();
    for n in 0..20 {
        let url = exec_url(&client, &id, &flood, "o").await?;
        // The headers of the answer are read, and then nothing any more.
        let headers = if n % 2 == 0 {
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n"
        } else {
            sessions.push((None, Some(Session::open(&node, &url, "o").await?)));
            continue;
        };
        let (status, head, stream) = request(&node, &url, "GET", headers).await?;
        ensure!(status == 101, "{head}");
        sessions.push((Some(stream), None));
    }
    let floods =
        || node.world.processes().iter().filter(|(_, words)| words.iter().any(|word| word.contains("32109"))).count();
    eventually("all of them write", PATIENCE, async || {
        ensure!(floods() >= 20, "only {}", floods());
        Ok(())
    })
    .await?;
    // Other sessions go on beside them, and they take long enough for memory to grow if it can.
    for _ in 0..20 {
        works(&node, &client, &id).await?;
    }
    let now = memory(&node)?;
    println!("20 sessions that nobody reads: {held} to {now} bytes");
    ensure!(now < held + SLACK, "the daemon grew from {held} to {now} bytes");
    drop(sessions);
    eventually("their commands end", PATIENCE, async || {
        ensure!(floods() == 0, "{} still run", floods());
        Ok(())
    })
    .await?;
    before.assert_same(&node).await
}

async fn tokens_are_bounded_and_not_logged() -> Result<()> {
    let (node, client, id, _) = Box::pin(idle()).await?;
    let mut urls = Vec::new();
    for _ in 0..1000 {
        urls.push(exec_url(&client, &id, &["true"], "o").await?);
    }
    refused(exec_url(&client, &id, &["true"], "o").await, &[Code::ResourceExhausted], &["1000"])?;
    refused(attach_url(&client, &id, "o").await, &[Code::ResourceExhausted], &["1000"])?;
    let log = node.log();
    for url in urls.iter().take(50) {
        Session::open(&node, url, "o").await?.finish().await?;
        let token = url.rsplit('/').next().context("a token")?;
        ensure!(!log.contains(token) && !node.log().contains(token), "a token is in the log");
    }
    exec_url(&client, &id, &["true"], "o").await?;
    Ok(())
}

async fn a_pair_without_its_other_half() -> Result<()> {
    let (node, client, id, pod) = Box::pin(idle()).await?;
    let before = Ledger::take(&node).await?;
    let url = forward_url(&client, &pod, &[]).await?;
    let (session, incoming) = over_spdy(&node, &url, "portforward.k8s.io").await?;
    let mut halves = Vec::new();
    for n in 0..1000 {
        let n = n.to_string();
        // Past the bound they are refused; what was accepted waits for its other half.
        if let Ok(half) = session.open([("streamType", "data"), ("port", "80"), ("requestID", &n)]).await {
            halves.push(half);
        }
    }
    ensure!(!halves.is_empty() && halves.len() <= 256, "{} halves were accepted", halves.len());
    for headers in [
        [("streamType", "stdout"), ("port", "80"), ("requestID", "x")],
        [("streamType", "data"), ("port", "none"), ("requestID", "x")],
    ] {
        ensure!(session.open(headers).await.is_err(), "{headers:?}");
    }
    drop((session, incoming, halves));
    tokio::time::timeout(Duration::from_secs(60), works(&node, &client, &id)).await.context("hangs")??;
    before.assert_same(&node).await
}
