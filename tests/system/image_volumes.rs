//! Contents of images as volumes: read-only, kept while they are mounted, and never a way out of the image.

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::archive::{Entry, Image, digest, tarball};
use crate::bad_registry::hostile_node;
use crate::client::{Client, refused};
use crate::hostile::{Answer, Hostile, blob};
use crate::ledger::Ledger;
use crate::node::{Node, Setup};
use crate::requests::{BUSYBOX, container, host_pod, image, namespaces, pod, with_namespaces};
use crate::world::World;

crate::per_runtime!(content_is_kept_while_it_is_mounted, with_a_user_namespace);
crate::once!(bad_requests, no_way_out_of_the_image, artifacts);

const LAYERS: &str = "registry.k8s.io/cricket/layers:1";

fn volume(name: &str, inside: &str, sub_path: &str) -> cri::Mount {
    cri::Mount {
        image: Some(image(name)),
        image_sub_path: sub_path.to_owned(),
        container_path: inside.to_owned(),
        readonly: true,
        ..Default::default()
    }
}

async fn node(runtime: &'static str) -> Result<(Node, Client)> {
    let mut node = Node::new(runtime).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    Ok((node, client))
}

async fn content_is_kept_while_it_is_mounted(runtime: &'static str) -> Result<()> {
    let (mut node, client) = node(runtime).await?;
    let before = Ledger::take(&node).await?;
    client.pull(LAYERS).await?;
    let id_of_image = client.image_status(LAYERS).await?.context("pulled")?.id;
    let sandbox = host_pod(&node, "volumes");
    let pod = client.run_pod(&sandbox).await?;
    let mut config = container(&sandbox, "volumes", "exec sleep 414141");
    // The kubelet names the image by its id.
    config.mounts = vec![
        volume(&id_of_image, "/whole", ""),
        volume(&id_of_image, "/part", "data/was-file"),
        volume(LAYERS, "/file", "data/kept"),
    ];
    let id = client.run(&pod, &config, &sandbox).await?;
    let content = |client: Client| {
        let id = id.clone();
        async move {
            client
                .output(&id, "cat /whole/data/kept /part/file /file; ls /whole/data/opaque; [ ! -e /whole/data/gone ]")
                .await
        }
    };
    let was = content(client.clone()).await?;
    ensure!(was.contains("kept") && was.contains("a folder now") && was.contains("new"), "{was}");
    for script in ["touch /whole/x", "touch /part/x", "echo x >>/file", "mount -o remount,rw /whole"] {
        ensure!(client.exec(&id, script, 30).await?.exit_code != 0, "{script} was done");
    }
    let options = client.output(&id, "grep ' /whole ' /proc/self/mountinfo").await?;
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        ensure!(options.split([' ', ',']).any(|word| word == option), "{option}: {options}");
    }
    let mounts = client.status(&id).await?.mounts;
    ensure!(
        mounts.len() == 3 && mounts[1].image_sub_path == "data/was-file" && mounts[0].container_path == "/whole",
        "{mounts:?}"
    );
    let digest = mounts[0].image.clone().unwrap_or_default();
    ensure!(
        digest.image == id_of_image && digest.image_ref.starts_with("registry.k8s.io/cricket/layers@sha256:"),
        "{digest:?}"
    );

    // The image goes, its content stays; also when the next daemon opens the store.
    client.remove_image(LAYERS).await?;
    ensure!(client.image_status(LAYERS).await?.is_none(), "the image is there after its removal");
    ensure!(content(client.clone()).await? == was, "the content changed with the image's removal");
    let client = node.crash_and_restart().await?;
    ensure!(content(client.clone()).await? == was, "the content changed with the daemon's death");
    ensure!(client.status(&id).await?.mounts == mounts, "the mounts changed with the daemon's death");
    client.remove_pod(&pod).await?;
    // With the last mount, the layers that the removal had to leave go as well.
    before.assert_same(&node).await
}

async fn with_a_user_namespace(runtime: &'static str) -> Result<()> {
    let (node, client) = node(runtime).await?;
    client.pull(LAYERS).await?;
    let mut options = namespaces(cri::NamespaceMode::Pod, cri::NamespaceMode::Container);
    let ids = vec![cri::IdMapping { host_id: 200_000, container_id: 0, length: 65536 }];
    options.userns_options = Some(cri::UserNamespace { mode: 0, uids: ids.clone(), gids: ids });
    let sandbox = with_namespaces(pod(&node, "user"), options);
    let pod = client.run_pod(&sandbox).await?;
    let mut config = container(&sandbox, "user", "exec sleep 404040");
    config.mounts = vec![volume(LAYERS, "/whole", ""), volume(LAYERS, "/part", "data")];
    let id = client.run(&pod, &config, &sandbox).await?;
    let owners = client.output(&id, "stat -c %u:%g /whole/data/kept /part/owned").await?;
    ensure!(owners.lines().eq(["0:0", "1234:2345"]), "{owners}");
    ensure!(client.exec(&id, "touch /part/x", 30).await?.exit_code != 0, "written to");
    Ok(())
}

async fn bad_requests() -> Result<()> {
    let (node, client) = node("crun").await?;
    client.pull(LAYERS).await?;
    let sandbox = host_pod(&node, "bad");
    let pod = client.run_pod(&sandbox).await?;
    let before = Ledger::take(&node).await?;
    let fault: &[Code] = &[Code::InvalidArgument];
    let failed: &[Code] = &[Code::Unknown];
    let cases: [(&str, cri::Mount, &[Code], &[&str]); 8] = [
        (
            "not pulled",
            volume("registry.k8s.io/none:1", "/v", ""),
            failed,
            &["mounts[0]", "registry.k8s.io/none:1", "not present"],
        ),
        ("no such path", volume(LAYERS, "/v", "data/none"), failed, &["mounts[0]", "data/none"]),
        ("a path through a file", volume(LAYERS, "/v", "data/kept/x"), failed, &["data/kept/x"]),
        ("a device", volume(LAYERS, "/v", "data/null"), failed, &["data/null", "neither"]),
        ("an absolute path", volume(LAYERS, "/v", "/data"), fault, &["image_sub_path", "/data"]),
        ("a path that climbs", volume(LAYERS, "/v", "data/../../x"), fault, &["image_sub_path", "data/../../x"]),
        (
            "a host path as well",
            cri::Mount { host_path: "/tmp".into(), ..volume(LAYERS, "/v", "") },
            fault,
            &["host_path", "/tmp"],
        ),
        ("propagation", cri::Mount { propagation: 1, ..volume(LAYERS, "/v", "") }, fault, &["propagation"]),
    ];
    for (name, mount, codes, words) in cases {
        let mut config = container(&sandbox, "bad", "true");
        config.mounts = vec![mount];
        let message = refused(client.create(&pod, &config, &sandbox).await, codes, words).context(name)?;
        ensure!(codes != failed || message.starts_with("ImageVolumeMountFailed: "), "{name}: {message}");
    }
    before.assert_same(&node).await
}

async fn no_way_out_of_the_image() -> Result<()> {
    let (node, client, hostile, _) = hostile_node().await?;
    let canary = node.path("canary");
    std::fs::create_dir(&canary)?;
    std::fs::write(canary.join("file"), "of the host")?;
    let (out, up) = (canary.to_string_lossy().into_owned(), format!("{}{}", "../".repeat(20), canary.display()));
    let entries = [
        Entry::folder("etc/"),
        Entry::file("etc/inside", b"of the image"),
        Entry::symlink("absolute", "/etc"),
        Entry::symlink("climbing", "../../../etc"),
        Entry::symlink("out", &out),
        Entry::symlink("up", &up),
        Entry::symlink("magic", "/proc/self/root"),
    ];
    hostile.serve("links", &Image::of(&tarball(&entries)));
    let name = "hostile.example/links:latest";
    client.pull(name).await?;
    let sandbox = host_pod(&node, "links");
    let pod = client.run_pod(&sandbox).await?;
    for (sub_path, inside) in [("absolute", true), ("climbing", true), ("out", false), ("up", false), ("magic", false)]
    {
        let mut config = container(&sandbox, sub_path, "true");
        // It has no program to run, so the volume's own image does for the container, too.
        config.image = Some(image(name));
        config.mounts = vec![volume(name, "/v", sub_path)];
        let created = client.create(&pod, &config, &sandbox).await;
        let message = created.err().map(|status| status.message().to_owned()).unwrap_or_default();
        ensure!(message.starts_with("ImageVolumeMountFailed: ") != inside, "{sub_path}: {message}");
    }
    ensure!(std::fs::read_to_string(canary.join("file"))? == "of the host", "the canary");
    client.clear().await
}

/// Serves an artifact of files, as `hostile.example/<repository>:latest`.
fn serve_artifact(hostile: &Hostile, repository: &str, files: &[(&str, &[u8])]) {
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let layers = files.iter().map(|(title, content)| {
        hostile
            .set(blob(repository, &digest(content)), Answer::Body("application/octet-stream".into(), content.to_vec()));
        serde_json::json!({"mediaType": "application/vnd.example.model", "digest": digest(content),
            "size": content.len(), "annotations": {"org.opencontainers.image.title": title}})
    });
    let layers: Vec<_> = layers.collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "layers": layers,
        "artifactType": "application/vnd.example.model",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2}});
    let manifest = manifest.to_string().into_bytes();
    hostile
        .set(format!("/v2/{repository}/manifests/{}", digest(&manifest)), Answer::Body(kind.into(), manifest.clone()));
    hostile.set(format!("/v2/{repository}/manifests/latest"), Answer::Body(kind.into(), manifest));
}

/// What is in a registry and is no image: files for a pod, and nothing to run.
async fn artifacts() -> Result<()> {
    let world = World::new().await?;
    let hostile = Hostile::start(&world).await?;
    let mut setup = Setup::new("crun");
    setup.registries = hostile.conf();
    let mut node = Node::start(world, setup).await?;
    let mut client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let before = Ledger::take(&node).await?;
    let long = format!("{}/weights-00001-of-00002", "deep/".repeat(30).trim_end_matches('/'));
    let large = vec![7; 3 << 20];
    serve_artifact(&hostile, "model", &[("config.json", b"{}"), (&long, &large), ("model/tokens", b"a b")]);
    let name = "hostile.example/model:latest";
    let id = client.pull(name).await?;
    let found = client.image_status(name).await?.context("pulled")?;
    ensure!(found.id == id && found.repo_tags == [name] && found.size > 3 << 20, "{found:?}");

    // A byte of a file that changed is found, as in an image.
    let socket = node.path("state/cricket.sock").to_string_lossy().into_owned();
    let verify = ["image", "--socket", &socket, "verify", name];
    node.world.must(env!("CARGO_BIN_EXE_cricket"), &verify).await?;
    let layers = node.world.seen(node.path("root/images/layers"));
    let weights = std::fs::read_dir(&layers)?.flatten().map(|layer| layer.path().join("diff").join(&long));
    let weights = weights.into_iter().find(|path| path.exists()).context("the file of the weights")?;
    std::fs::File::options().write(true).open(&weights)?.write_all_at(b"x", 1 << 20)?;
    let verified = node.world.run(env!("CARGO_BIN_EXE_cricket"), &verify).await?;
    ensure!(!verified.status.success() && verified.stdout.contains(&long), "{verified:?}");
    std::fs::File::options().write(true).open(&weights)?.write_all_at(&[7], 1 << 20)?;

    // Names that would lead elsewhere, and content that is not what the manifest says.
    for title in ["../../../../tmp/x", "/etc/x", "model/../../x", ".wh.config.json"] {
        serve_artifact(&hostile, "bad", &[("good", b"good"), (title, b"bad")]);
        refused(client.pull("hostile.example/bad:latest").await, &[], &["the file name", title])?;
    }
    serve_artifact(&hostile, "lying", &[("file", b"right")]);
    let other = Answer::Body("application/octet-stream".into(), b"wrong".to_vec());
    hostile.set(blob("lying", &digest(b"right")), other);
    refused(client.pull("hostile.example/lying:latest").await, &[], &["has the digest"])?;

    // As a volume, whole and by a part; also under the next daemon.
    let sandbox = host_pod(&node, "artifacts");
    let pod = client.run_pod(&sandbox).await?;
    for round in ["first", "second"] {
        let mut config = container(&sandbox, round, "exec sleep 414141");
        config.mounts =
            vec![volume(&id, "/whole", ""), volume(name, "/part", "model"), volume(name, "/file", "model/tokens")];
        let container = client.run(&pod, &config, &sandbox).await?;
        let script = format!(
            "cat /whole/config.json /part/tokens /file; stat -c '%a %u %s' /whole/{long}; find /whole -type f | wc -l"
        );
        let told = client.output(&container, &script).await?;
        ensure!(told == format!("{{}}a ba b644 0 {}\n3\n", large.len()), "{told}");
        ensure!(client.exec(&container, "echo x >>/whole/config.json", 30).await?.exit_code != 0, "it was written to");
        if round == "first" {
            client = node.crash_and_restart().await?;
        }
        client.stop(&container, 0).await?;
        client.remove(&container).await?;
    }
    // No container is made of it.
    let mut config = container(&sandbox, "run", "true");
    config.image = Some(image(name));
    let created = client.create(&pod, &config, &sandbox).await;
    refused(created, &[Code::InvalidArgument], &["is an artifact", name])?;
    client.stop_pod(&pod).await?;
    client.remove_pod(&pod).await?;
    client.remove_image(name).await?;
    ensure!(client.image_status(name).await?.is_none(), "it is still there");
    before.assert_same(&node).await
}
