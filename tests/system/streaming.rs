//! Exec, Attach and PortForward by the clients that exist: crictl over SPDY and over WebSocket.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::lifecycle::host_node;
use crate::node::{Node, Setup};
use crate::requests::{BUSYBOX, container, host_pod, pod};
use crate::streaming_client::{Session, attach_url, crictl, exec_url, forward_url, kill_crictl, noise, run_crictl};
use crate::world::{PATIENCE, World, eventually};

crate::per_runtime!(
    exec_with_crictl,
    a_terminal_has_the_size_of_its_client,
    a_hundred_megabytes_each_way,
    attach_with_crictl,
    forwarding_with_crictl,
    a_client_that_is_killed_ends_its_command
);
crate::once!(
    many_sessions,
    what_cannot_be,
    a_restart_ends_sessions_and_nothing_else,
    certificates_of_both_sides_and_new_ones
);

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// A node with a container that does nothing and reaps what is orphaned to it.
async fn idle(runtime: &'static str) -> Result<(Node, Client, String)> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let id = client.run(&pod, &container(&sandbox, "idle", "sleep 100000 & while :; do wait; done"), &sandbox).await?;
    Ok((node, client, id))
}

async fn exec_with_crictl(runtime: &'static str) -> Result<()> {
    let (node, _client, id) = Box::pin(idle(runtime)).await?;
    let before = Ledger::take(&node).await?;
    let unread = vec![b'x'; 1 << 20];
    for transport in TRANSPORTS {
        let exec = ["exec", "--transport", transport];
        let run = async |words: &[&str], input| run_crictl(&node, &[&exec, words].concat(), input).await;

        let done = run(&[&id, "sh", "-c", "printf out; printf err >&2"], None).await?;
        ensure!(done.status.success() && done.stdout == "out" && done.stderr.ends_with("err"), "{transport}: {done:?}");

        let done = run(&[&id, "sh", "-c", "echo last words; exit 42"], None).await?;
        ensure!(!done.status.success() && done.stdout == "last words\n", "{transport}: {done:?}");
        ensure!(done.stderr.contains("42"), "{transport}: {done:?}");

        let done = run(&["-i", &id, "sh", "-c", "cat; echo end of input"], Some(b"over stdin\n")).await?;
        ensure!(done.status.success() && done.stdout == "over stdin\nend of input\n", "{transport}: {done:?}");

        let done = run(&["-i", &id, "true"], Some(&unread)).await?;
        ensure!(done.status.success(), "input that nobody reads, {transport}: {done:?}");

        let done = run(&[&id, "/no/such"], None).await?;
        ensure!(!done.status.success() && done.stderr.contains("/no/such"), "{transport}: {done:?}");
    }
    before.assert_same(&node).await
}

async fn a_terminal_has_the_size_of_its_client(runtime: &'static str) -> Result<()> {
    let (node, _client, id) = Box::pin(idle(runtime)).await?;
    let before = Ledger::take(&node).await?;
    let socket = node.path("state/cricket.sock");
    let crictl = crate::world::top().join("critest/bin/crictl");
    for transport in TRANSPORTS {
        // The first size comes with the start; the second one while the command runs.
        let inside = "until [ \"$(stty size)\" = \"31 97\" ]; do sleep 0.1; done; stty size; echo first;
                      until [ \"$(stty size)\" = \"25 81\" ]; do sleep 0.1; done; stty size; tty; exit 0";
        std::fs::write(node.path("inside"), inside)?;
        let typed = node.path(&format!("typescript-{transport}")).display().to_string();
        let client = format!(
            "stty cols 97 rows 31; t=$(tty)
             (until grep -q first {typed}; do sleep 0.1; done; stty -F $t cols 81 rows 25) &
             exec {} --runtime-endpoint unix://{} exec --transport {transport} -it {id} sh -c \"$(cat {})\"",
            crictl.display(),
            socket.display(),
            node.path("inside").display(),
        );
        std::fs::write(node.path("client"), client)?;
        let script = format!("exec bash {}", node.path("client").display());
        let mut command = node.world.program("script");
        command.args(["-qfec", &script, &typed]).stdout(std::process::Stdio::piped());
        // `script` ends with its input, so that stays open.
        command.stdin(std::process::Stdio::piped());
        let done = tokio::time::timeout(PATIENCE, async {
            let mut child = command.spawn()?;
            let stdin = child.stdin.take();
            let output = child.wait_with_output().await;
            drop(stdin);
            output
        });
        let done = done
            .await
            .with_context(|| format!("{transport}: hangs; so far {:?}", std::fs::read_to_string(&typed)))??;
        let text = String::from_utf8_lossy(&done.stdout);
        ensure!(text.contains("31 97") && text.contains("25 81") && text.contains("/dev/pts/"), "{transport}: {text}");
    }
    before.assert_same(&node).await
}

async fn a_hundred_megabytes_each_way(runtime: &'static str) -> Result<()> {
    let (node, client, id) = Box::pin(idle(runtime)).await?;
    let file = noise(&node, "noise", 100).await?;
    let sum = node.world.must("sha256sum", &[&file]).await?;
    let sum = sum.split(' ').next().unwrap_or_default().to_owned();
    let before = Ledger::take(&node).await?;
    let base = format!(
        "{} --runtime-endpoint unix://{} exec",
        crate::world::top().join("critest/bin/crictl").display(),
        node.path("state/cricket.sock").display()
    );
    for transport in TRANSPORTS {
        // Both ways at once, and then in alone: what arrives is summed up in the container.
        let both = format!("set -o pipefail; {base} --transport {transport} -i {id} cat < {file} | sha256sum");
        let out = node.world.must("timeout", &["300", "bash", "-c", &both]).await?;
        ensure!(out.starts_with(&sum), "{transport}, both ways: {out}, not {sum}");
        let into = format!("{base} --transport {transport} -i {id} sha256sum < {file}");
        let out = node.world.must("timeout", &["300", "bash", "-c", &into]).await?;
        ensure!(out.starts_with(&sum), "{transport}, in: {out}, not {sum}");
    }
    let memory = crate::cve_image::memory(&node)?;
    ensure!(memory < 128 << 20, "the daemon holds {memory} bytes");
    client.output(&id, "true").await?;
    before.assert_same(&node).await
}

async fn attach_with_crictl(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let before = Ledger::take(&node).await?;
    for transport in TRANSPORTS {
        let mut config = container(&sandbox, transport, "while read line; do echo \"got $line\"; done; echo end >&2");
        config.stdin = true;
        config.stdin_once = true;
        let id = client.run(&pod, &config, &sandbox).await?;
        let done = run_crictl(&node, &["attach", "--transport", transport, "-i", &id], Some(b"one\ntwo\n")).await?;
        ensure!(done.stdout == "got one\ngot two\n", "{transport}: {done:?}");
        ensure!(done.stderr.contains("end"), "{transport}: {done:?}");
        let log = client.ended(&id).await?.log_path;
        let log = std::fs::read_to_string(log)?;
        ensure!(log.contains("got one") && log.contains("got two") && log.contains("end"), "the log lacks: {log}");
        client.remove(&id).await?;
    }
    before.assert_same_but(&node, "file").await
}

/// A pod with a web server on port 8080 whose page is one line.
async fn web(runtime: &'static str) -> Result<(Node, Client, String)> {
    let mut node = Node::new(runtime).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let sandbox = pod(&node, "web");
    let pod = client.run_pod(&sandbox).await?;
    let script = "mkdir -p /tmp/www && cd /tmp/www && echo the page > index.html && head -c 20000000 /dev/zero > big \
                  && exec httpd -f -p 8080 -h /tmp/www";
    let id = client.run(&pod, &container(&sandbox, "httpd", script), &sandbox).await?;
    eventually("the web server listens", PATIENCE, async || {
        client.output(&id, "wget -q -O - http://127.0.0.1:8080/").await.map(drop)
    })
    .await?;
    Ok((node, client, pod))
}

async fn forwarding_with_crictl(runtime: &'static str) -> Result<()> {
    let (node, _client, pod) = Box::pin(web(runtime)).await?;
    let before = Ledger::take(&node).await?;
    for transport in TRANSPORTS {
        let mut command = crictl(&node);
        command.args(["port-forward", "--transport", transport, &pod, "18080:8080"]);
        let mut forward = command.spawn()?;
        let script = "exec 3<>/dev/tcp/127.0.0.1/18080; printf \"GET $0 HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3";
        let fetch = async |path: &str| node.world.run("timeout", &["20", "bash", "-c", script, path]).await;
        eventually("the port is forwarded", PATIENCE, async || {
            let done = fetch("/").await?;
            ensure!(done.stdout.ends_with("the page\n"), "{transport}: {done:?}");
            Ok(())
        })
        .await?;
        let done = fetch("/big").await?;
        ensure!(done.stdout.len() > 20_000_000, "{transport}: only {} bytes", done.stdout.len());
        // Connections that are given up half-way, as browsers do: the others must not notice.
        let aborted = "for n in {1..300}; do exec 3<>/dev/tcp/127.0.0.1/18080; \
                       if ((n % 10)); then page=/; else page=/big; fi; \
                       printf \"GET $page HTTP/1.0\\r\\n\\r\\n\" >&3; head -c 1 <&3 >/dev/null; exec 3>&-; done";
        node.world.must("timeout", &["60", "bash", "-c", aborted]).await?;
        let done = fetch("/").await?;
        ensure!(done.stdout.ends_with("the page\n"), "{transport}, after aborted connections: {done:?}");
        kill_crictl(&node).await?;
        forward.wait().await?;
    }
    before.assert_same(&node).await
}

async fn a_client_that_is_killed_ends_its_command(runtime: &'static str) -> Result<()> {
    let (node, client, id) = Box::pin(idle(runtime)).await?;
    let before = Ledger::take(&node).await?;
    let client_words = |words: &[String]| words.iter().any(|word| word.ends_with("crictl") || word == "nsenter");
    let has = |words: &[String]| words.iter().any(|word| word.contains("54321")) && !client_words(words);
    let running = || node.world.processes().iter().filter(|(_, words)| has(words)).count();
    for transport in TRANSPORTS {
        for words in [vec!["sleep", "54321"], vec!["sh", "-c", "sleep 54321; true"], vec!["sh", "-c", "yes; : 54321"]] {
            let mut command = crictl(&node);
            command.args(["exec", "--transport", transport, &id]).args(&words);
            // Nobody reads what `yes` says: the session is held back when its client is killed.
            let mut child = command.spawn()?;
            eventually("the command runs", PATIENCE, async || {
                ensure!(running() > 0, "not yet");
                Ok(())
            })
            .await?;
            kill_crictl(&node).await?;
            child.wait().await?;
            eventually("the command ends with its client", PATIENCE, async || {
                ensure!(running() == 0, "{transport}: {words:?} is still there");
                Ok(())
            })
            .await?;
        }
    }
    client.output(&id, "echo still here").await?;
    before.assert_same(&node).await
}

async fn many_sessions() -> Result<()> {
    let (node, client, id) = Box::pin(idle("crun")).await?;
    let before = Ledger::take(&node).await?;
    let one = async |n: usize| -> Result<()> {
        let script = format!("echo {n}; exit {}", n % 3);
        let url = exec_url(&client, &id, &["sh", "-c", &script], "o").await?;
        let (out, verdict) = Session::open(&node, &url, "o").await?.finish().await?;
        ensure!(out == format!("{n}\n"), "session {n}: {out:?}");
        let wanted = if n.is_multiple_of(3) { "\"Success\"".to_owned() } else { format!("\"message\":\"{}\"", n % 3) };
        ensure!(verdict.contains(&wanted), "session {n}: {verdict}");
        Ok(())
    };
    for n in 0..1000 {
        one(n).await?;
    }
    for round in 0..4 {
        let sessions = (0..50).map(|n| one(round * 50 + n));
        for outcome in futures_util::future::join_all(sessions).await {
            outcome?;
        }
    }
    before.assert_same(&node).await
}

async fn what_cannot_be() -> Result<()> {
    let (node, client, sandbox, pod) = host_node("crun").await?;
    let running = client.run(&pod, &container(&sandbox, "idle", "sleep 100000"), &sandbox).await?;
    let created = client.create(&pod, &container(&sandbox, "created", "true"), &sandbox).await?;
    let ended = client.run(&pod, &container(&sandbox, "ended", "true"), &sandbox).await?;
    client.ended(&ended).await?;
    let before = Ledger::take(&node).await?;
    let unknown = "0123456789abcdef".repeat(4);

    refused(exec_url(&client, &running, &["true"], "oet").await, &[Code::InvalidArgument], &["stderr"])?;
    refused(exec_url(&client, &running, &["true"], "").await, &[Code::InvalidArgument], &["stdin, stdout, stderr"])?;
    refused(exec_url(&client, &running, &[], "o").await, &[Code::InvalidArgument], &["cmd"])?;
    refused(exec_url(&client, "", &["true"], "o").await, &[Code::InvalidArgument], &["container_id"])?;
    refused(exec_url(&client, &unknown, &["true"], "o").await, &[Code::NotFound], &[&unknown[..12]])?;
    for id in [&created, &ended] {
        refused(exec_url(&client, id, &["true"], "o").await, &[Code::FailedPrecondition], &[&id[..12], "RUNNING"])?;
    }
    refused(attach_url(&client, &running, "io").await, &[], &["stdin"])?;
    refused(attach_url(&client, &ended, "o").await, &[Code::FailedPrecondition], &[&ended[..12]])?;
    refused(attach_url(&client, &unknown, "o").await, &[Code::NotFound], &[&unknown[..12]])?;
    refused(forward_url(&client, &unknown, &[]).await, &[Code::NotFound], &[&unknown[..12]])?;
    for port in [0, -1, 65536] {
        let words = ["port", &port.to_string()];
        refused(forward_url(&client, &pod, &[port]).await, &[Code::InvalidArgument], &words)?;
    }
    before.assert_same(&node).await?;
    client.stop_pod(&pod).await?;
    refused(forward_url(&client, &pod, &[80]).await, &[Code::FailedPrecondition], &[&pod[..12]])?;
    Ok(())
}

async fn a_restart_ends_sessions_and_nothing_else() -> Result<()> {
    let (mut node, client, id) = Box::pin(idle("crun")).await?;
    let url = exec_url(&client, &id, &["sleep", "43210"], "o").await?;
    let session = Session::open(&node, &url, "o").await?;
    let unused = exec_url(&client, &id, &["true"], "o").await?;
    let sleeps = |node: &Node| node.world.processes().iter().any(|(_, words)| words.iter().any(|word| word == "43210"));
    eventually("the command runs", PATIENCE, async || {
        ensure!(sleeps(&node), "not yet");
        Ok(())
    })
    .await?;
    let client = node.crash_and_restart().await?;
    tokio::time::timeout(PATIENCE, session.session.closed()).await.context("the session outlives the daemon")?;
    eventually("the command has ended", Duration::from_secs(30), async || {
        ensure!(!sleeps(&node), "the command of a session that is gone still runs");
        Ok(())
    })
    .await?;
    ensure!(client.status(&id).await?.state() == cri::ContainerState::ContainerRunning, "the container is gone too");
    // The port is another one, or the token is unknown.
    ensure!(Session::open(&node, &unused, "o").await.is_err(), "a token outlived the daemon");
    let url = exec_url(&client, &id, &["echo", "again"], "o").await?;
    let (out, verdict) = Session::open(&node, &url, "o").await?.finish().await?;
    ensure!(out == "again\n" && verdict.contains("Success"), "{out} {verdict}");
    Ok(())
}

/// An authority, and a certificate by it for the server and for a client, in the node's folder: `NAME-*.pem`.
async fn certificates(node: &Node, name: &str) -> Result<()> {
    let script = "cd \"$1\"
        request() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout \"$n-$1-key.pem\" -subj \"/CN=$1\" \"${@:2}\"; }
        n=$2
        request ca -x509 -days 2 -out \"$n-ca.pem\"
        printf 'subjectAltName=DNS:node.example,IP:127.0.0.1\n' >\"$n-san\"
        for who in server client; do
            request $who -out \"$n-$who.csr\"
            openssl x509 -req -days 2 -in \"$n-$who.csr\" -CA \"$n-ca.pem\" -CAkey \"$n-ca-key.pem\" -set_serial $RANDOM \\
                -extfile \"$n-san\" -out \"$n-$who.pem\"
        done";
    let folder = node.path("").to_string_lossy().into_owned();
    node.world.must("bash", &["-ec", script, "certificates", &folder, name]).await?;
    Ok(())
}

async fn certificates_of_both_sides_and_new_ones() -> Result<()> {
    let mut setup = Setup::new("crun");
    let world = World::new().await?;
    let file = |name: &str| world.folder().join(name).to_string_lossy().into_owned();
    let (cert, key, authority) = (file("cert.pem"), file("key.pem"), file("authority.pem"));
    for (name, path) in
        [("streaming.tls_cert", &cert), ("streaming.tls_key", &key), ("streaming.tls_client_ca", &authority)]
    {
        setup.keys.push((name, path.clone().into()));
    }
    let mut node = Node::prepare(world, setup).await?;
    let install = |node: &Node, name: &str| -> Result<()> {
        for (from, to) in [("server", "cert"), ("server-key", "key"), ("ca", "authority")] {
            std::fs::copy(node.path(&format!("{name}-{from}.pem")), node.path(&format!("{to}.pem")))?;
        }
        Ok(())
    };
    certificates(&node, "old").await?;
    certificates(&node, "new").await?;
    install(&node, "old")?;
    let client = node.launch().await?;
    client.pull(BUSYBOX).await?;
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    let id = client.run(&pod, &container(&sandbox, "idle", "sleep 100000"), &sandbox).await?;
    let url = exec_url(&client, &id, &["true"], "o").await?;
    ensure!(url.starts_with("https://127.0.0.1:"), "{url}");
    let run = async |transport: &str, name: &str, own: bool| {
        let [ca, cert, key] = ["ca", "client", "client-key"]
            .map(|kind| node.path(&format!("{name}-{kind}.pem")).to_string_lossy().into_owned());
        let mut words = vec!["exec", "--transport", transport, "--tls-ca", &ca, "--tls-server-name", "node.example"];
        if own {
            words.extend(["--tls-cert", &cert, "--tls-key", &key]);
        }
        words.extend([&id, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; echo end"]);
        run_crictl(&node, &words, None).await
    };
    for transport in TRANSPORTS {
        let done = run(transport, "old", true).await?;
        ensure!(done.status.success() && done.stdout.len() == 3_000_004, "{transport}: {}", done.stderr);
        let done = run(transport, "old", false).await?;
        ensure!(!done.status.success() && done.stdout.is_empty(), "{transport}: no certificate, but served");
        let done = run(transport, "new", true).await?;
        ensure!(!done.status.success() && done.stdout.is_empty(), "{transport}: another authority's, but served");
    }
    install(&node, "new")?;
    node.reload().await?;
    eventually("the new certificates are in use", PATIENCE, async || {
        let done = run("spdy", "new", true).await?;
        ensure!(done.status.success() && done.stdout.ends_with("end\n"), "{}", done.stderr);
        Ok(())
    })
    .await?;
    ensure!(!run("websocket", "old", true).await?.status.success(), "the old authority is still trusted");
    // What cannot be used leaves the old ones in force.
    std::fs::write(node.path("cert.pem"), "nothing")?;
    node.reload().await?;
    eventually("the flaw is reported", PATIENCE, async || {
        ensure!(node.log().contains("certificates stay as they were"), "not yet");
        Ok(())
    })
    .await?;
    let done = run("websocket", "new", true).await?;
    ensure!(done.status.success(), "{}", done.stderr);
    Ok(())
}
