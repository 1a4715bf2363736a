//! Generated layers, unpacked by us and by GNU tar and umoci, which know what a tar archive means.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::model::{Features, Generator, below_root, cases, in_memory};
use super::*;

fn run(program: &str, args: Vec<OsString>) -> anyhow::Result<()> {
    let exec = crate::sys::exec::Exec {
        program: program.into(),
        args,
        env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("LC_ALL".into(), "C.UTF-8".into())],
        stdin: Vec::new(),
        timeout: Duration::from_secs(60),
        output_cap: 8192,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let output = runtime.block_on(crate::sys::exec::run(exec))?;
    anyhow::ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn by_tar(archive: &Path, into: &Path) -> anyhow::Result<()> {
    let mut args: Vec<OsString> = vec!["-x".into(), "-P".into(), "-p".into(), "--numeric-owner".into()];
    // Without this it gives up on the times of a directory that it comes back to.
    args.extend(
        ["--delay-directory-restore", "--same-owner", "--xattrs", "--xattrs-include=*", "-f"].map(OsString::from),
    );
    args.extend([archive.into(), "-C".into(), into.into()]);
    run("tar", args)
}

/// An OCI layout of one image with these layers.
pub(super) fn layout(at: &Path, layers: &[Vec<u8>]) -> anyhow::Result<()> {
    let blobs = at.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8], kind: &str| -> anyhow::Result<serde_json::Value> {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes)?;
        let media = format!("application/vnd.oci.image.{kind}");
        Ok(serde_json::json!({ "mediaType": media, "digest": digest, "size": bytes.len() }))
    };
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>() } });
    let config = put(&serde_json::to_vec(&config)?, "config.v1+json")?;
    let put_layer = |layer: &Vec<u8>| put(&gzip(layer), "layer.v1.tar+gzip");
    let layers = layers.iter().map(put_layer).collect::<anyhow::Result<Vec<_>>>()?;
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut manifest = put(&serde_json::to_vec(&manifest)?, "manifest.v1+json")?;
    manifest["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "one" });
    std::fs::write(
        at.join("index.json"),
        serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] }))?,
    )?;
    std::fs::write(at.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

fn against(
    seeds: std::ops::Range<u64>,
    gnu: bool,
    other: impl Fn(&Bench, &[u8], &Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let features = Features { oci: false, whiteouts: false, root: true, sparse: gnu, lists: !gnu };
    for seed in seeds {
        let (layer, _) = Generator::run(seed, features);
        let bench = Bench::new()?;
        bench.unpack(OPEN_PARENTS, Compression::None, &layer)?;
        let theirs = bench.temp.path().join("theirs");
        std::fs::create_dir(&theirs)?;
        other(&bench, &layer, &theirs)?;
        let (mut ours, mut theirs) = (below_root(scan(&bench.diff())?), below_root(scan(&theirs)?));
        // GNU tar leaves a directory the set-group-id bit that it inherited, though its entry has none.
        for facts in ours.values_mut().chain(theirs.values_mut()).filter(|facts| gnu && facts.kind == 'd') {
            facts.mode &= !0o2000;
        }
        let found = differences(&ours, &theirs);
        anyhow::ensure!(found.is_empty(), "seed {seed}: {found:#?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn generated_layers_match_gnu_tar() -> anyhow::Result<()> {
    in_memory(|| {
        against(10_000..10_000 + cases(800), true, |bench, layer, theirs| {
            let archive = bench.temp.path().join("layer.tar");
            std::fs::write(&archive, layer)?;
            by_tar(&archive, theirs)
        })
    })
}

#[test]
#[ignore = "needs root"]
fn generated_layers_match_umoci() -> anyhow::Result<()> {
    in_memory(|| {
        against(20_000..20_000 + cases(200), false, |bench, layer, theirs| {
            let image = bench.temp.path().join("image");
            layout(&image, &[layer.to_vec()])?;
            by_umoci(&image, theirs)
        })
    })
}

pub(super) fn by_umoci(image: &Path, into: &Path) -> anyhow::Result<()> {
    let image = format!("{}:one", image.display());
    // It makes the folder.
    let _ = std::fs::remove_dir(into);
    run("umoci", vec!["raw".into(), "unpack".into(), "--image".into(), image.into(), into.into()])
}
