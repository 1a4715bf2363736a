//! Against Debian's docker-registry: plain, over TLS with an authority of our own, and with a token service.

use std::ffi::OsString;
use std::path::Path;

use super::*;
use crate::image::document::{OCI_INDEX, OCI_MANIFEST};
use crate::image::policy::bundle::tests::{bundle, statement};
use crate::image::policy::tests::Signer;
use crate::image::tests::server::{Reply, descriptor};
use crate::sys::exec::{self, Exec};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A running docker-registry; it is killed with the test's runtime.
struct Real {
    host: String,
    dir: tempfile::TempDir,
    _task: tokio::task::JoinHandle<()>,
}

fn command(program: &str, args: &[&str], timeout: u64) -> Exec {
    Exec {
        program: program.into(),
        args: args.iter().map(OsString::from).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        stdin: Vec::new(),
        timeout: Duration::from_secs(timeout),
        output_cap: 64 * 1024,
    }
}

pub(super) async fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = exec::run(command(program, args, 60)).await?;
    anyhow::ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Real {
    async fn start(dir: tempfile::TempDir, http: &str, auth: &str) -> anyhow::Result<Self> {
        let host = {
            let free = std::net::TcpListener::bind("127.0.0.1:0")?;
            free.local_addr()?.to_string()
        };
        let config = dir.path().join("registry.yml");
        let root = dir.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n{http}{auth}",
            root.display()
        );
        std::fs::write(&config, text)?;
        let shown = config.display().to_string();
        let task = crate::task::spawn("test-docker-registry", async move {
            let ended = exec::run(command("docker-registry", &["serve", &shown], 300)).await;
            panic!("docker-registry ended: {ended:?}");
        });
        for _ in 0..400 {
            if tokio::net::TcpStream::connect(&host).await.is_ok() {
                return Ok(Self { host, dir, _task: task });
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        anyhow::bail!("docker-registry did not come up")
    }

    async fn put_blob(&self, blob: &[u8]) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let base = format!("http://{}", self.host);
        let begun = client.post(format!("{base}/v2/app/blobs/uploads/")).send().await?.error_for_status()?;
        let location = begun.headers()["location"].to_str()?.to_owned();
        let mut url = reqwest::Url::parse(&base)?.join(&location)?;
        url.query_pairs_mut().append_pair("digest", Digest::of(blob).as_str());
        client.put(url).body(blob.to_vec()).send().await?.error_for_status()?;
        Ok(())
    }

    async fn put_manifest(&self, version: &str, kind: &str, document: &[u8]) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let put = client.put(format!("http://{}/v2/app/manifests/{version}", self.host)).header("content-type", kind);
        put.body(document.to_vec()).send().await?.error_for_status()?;
        Ok(())
    }

    async fn push(&self, image: &TestImage) -> anyhow::Result<()> {
        for blob in image.layers.iter().chain([&image.config]) {
            self.put_blob(blob).await?;
        }
        self.put_manifest("v1", OCI_MANIFEST, &image.manifest).await?;
        let entry = serde_json::json!({"mediaType": OCI_MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": Platform::host().architecture}});
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
        self.put_manifest("multi", OCI_INDEX, index.to_string().as_bytes()).await
    }
}

/// An authority and a certificate for 127.0.0.1, in files `ca.crt`, `server.crt` and `server.key`.
async fn certificates(dir: &Path) -> anyhow::Result<()> {
    let path = |name: &str| dir.join(name).display().to_string();
    let (ca, ca_key, request) = (path("ca.crt"), path("ca.key"), path("server.csr"));
    let (server, key, extra) = (path("server.crt"), path("server.key"), path("server.ext"));
    std::fs::write(&extra, "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")?;
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["req", "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", &ca_key, "-out", &ca];
    run("openssl", &[&authority[..], &curve[..]].concat()).await?;
    let wanted = ["req", "-new", "-subj", "/CN=127.0.0.1", "-keyout", &key, "-out", &request];
    run("openssl", &[&wanted[..], &curve[..]].concat()).await?;
    let sign = ["x509", "-req", "-days", "2", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"];
    run("openssl", &[&sign[..], &["-extfile", &extra, "-out", &server]].concat()).await
}

#[tokio::test]
#[ignore = "needs docker-registry"]
async fn a_real_registry_serves() -> anyhow::Result<()> {
    let registry = Real::start(tempfile::tempdir()?, "", "").await?;
    let image = TestImage::new("real");
    registry.push(&image).await?;
    let conf =
        format!("[[registry]]\nprefix = \"images.example\"\nlocation = \"{}\"\ninsecure = true\n", registry.host);
    let room = Room::new(&conf).await?;
    let record = room.pull("images.example/app:v1").await?;
    assert_eq!((&record.id, record.repo_tags.as_slice()), (&image.id(), &["images.example/app:v1".to_owned()][..]));
    assert_eq!(record.repo_digests, [format!("images.example/app@{}", image.digest())]);
    assert_eq!(room.pull("images.example/app:v1").await?, record);
    let multi = room.pull("images.example/app:multi").await?;
    assert_eq!((multi.repo_tags.len(), multi.repo_digests.len()), (2, 2));
    let by_digest = room.pull(&format!("images.example/app@{}", image.digest())).await?;
    assert_eq!(by_digest, multi);
    assert_eq!(room.layers.stages(), 2);
    let error = room.refused("images.example/app:none").await;
    assert!(error.contains("not found"), "{error}");
    Ok(())
}

/// Pushes a signature of an image as cosign 3 does, but for the list of referrers; gives the entry for that.
async fn push_bundle(registry: &Real, signer: &Signer, image: &TestImage) -> anyhow::Result<serde_json::Value> {
    let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let bundle = bundle(signer, &statement(Some("images.example/app"), &image.digest()));
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind,
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"), "layers": [descriptor(kind, &bundle)],
        "subject": descriptor(OCI_MANIFEST, &image.manifest)})
    .to_string();
    registry.put_blob(b"{}").await?;
    registry.put_blob(&bundle).await?;
    registry.put_manifest(Digest::of(manifest.as_bytes()).as_str(), OCI_MANIFEST, manifest.as_bytes()).await?;
    let mut entry = descriptor(OCI_MANIFEST, manifest.as_bytes());
    entry["artifactType"] = serde_json::json!(kind);
    Ok(entry)
}

/// A room that takes images of a registry as `images.example`, if they are signed.
async fn strict(host: &str, signer: &Signer) -> anyhow::Result<Room> {
    let conf = format!("[[registry]]\nprefix = \"images.example\"\nlocation = \"{host}\"\ninsecure = true\n");
    let room = Room::new(&conf).await?;
    let signed = serde_json::json!({"type": "sigstoreSigned", "keyData": STANDARD.encode(signer.pem()),
        "signedIdentity": {"type": "matchRepository"}});
    std::fs::write(room.dir.path().join("policy.json"), serde_json::json!({"default": [signed]}).to_string())?;
    Ok(room)
}

/// Debian's registry has no referrers API: what refers to an image is listed under a tag.
#[tokio::test]
#[ignore = "needs docker-registry"]
async fn a_signature_refers_to_its_image_below_a_tag() -> anyhow::Result<()> {
    let registry = Real::start(tempfile::tempdir()?, "", "").await?;
    let (image, signer) = (TestImage::new("referred"), Signer::new());
    registry.push(&image).await?;
    let room = strict(&registry.host, &signer).await?;
    let error = room.refused("images.example/app:v1").await;
    assert!(error.starts_with("SignatureValidationFailed: ") && error.contains("there is no signature"), "{error}");
    let entry = push_bundle(&registry, &signer, &image).await?;
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).to_string();
    let tag = format!("sha256-{}", image.digest().hex());
    registry.put_manifest(&tag, OCI_INDEX, index.as_bytes()).await?;
    assert_eq!(room.pull("images.example/app:v1").await?.id, image.id());
    let other = strict(&registry.host, &Signer::new()).await?;
    assert!(other.refused("images.example/app:v1").await.contains("not made with a key of the policy"));
    Ok(())
}

#[tokio::test]
#[ignore = "needs docker-registry"]
async fn a_private_authority_and_a_client_certificate() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    certificates(dir.path()).await?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (cert, key, ca) = (path("server.crt"), path("server.key"), path("ca.crt"));
    // Filled over plain HTTP first: the data is the same.
    let plain = Real::start(dir, "", "").await?;
    let image = TestImage::new("private");
    plain.push(&image).await?;
    let tls = format!("  tls:\n    certificate: {cert}\n    key: {key}\n");
    let Real { dir, .. } = plain;
    let registry = Real::start(dir, &tls, "").await?;
    let name = format!("{}/app:v1", registry.host);

    let room = Room::new("").await?;
    let error = room.refused(&name).await;
    assert!(error.starts_with("RegistryUnavailable: ") && error.contains("certificate"), "{error}");

    let folder = room.dir.path().join("certs.d").join(&registry.host);
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(&ca, folder.join("ca.crt"))?;
    room.images.reload(&settings(room.dir.path(), &[]))?;
    assert_eq!(room.pull(&name).await?.id, image.id());

    // Insecure skips verification but still prefers TLS.
    let trusting = Room::new(&format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", registry.host)).await?;
    assert_eq!(trusting.pull(&name).await?.id, image.id());

    let Real { dir, .. } = registry;
    let strict = Real::start(dir, &format!("{tls}    clientcas:\n      - {ca}\n"), "").await?;
    let folder = room.dir.path().join("certs.d").join(&strict.host);
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(&ca, folder.join("ca.crt"))?;
    let name = format!("{}/app:v1", strict.host);
    let error = room.refused(&name).await;
    assert!(error.starts_with("RegistryUnavailable: "), "{error}");
    std::fs::copy(&cert, folder.join("client.cert"))?;
    std::fs::copy(&key, folder.join("client.key"))?;
    room.images.reload(&settings(room.dir.path(), &[]))?;
    assert_eq!(room.pull(&name).await?.id, image.id());
    std::fs::write(folder.join("client.key"), "no key")?;
    room.images.reload(&settings(room.dir.path(), &[]))?;
    let error = room.refused(&name).await;
    assert!(error.contains("not valid PEM"), "{error}");
    Ok(())
}

/// Writes `hosts.toml` of a host, and pulls `app:v1` of it.
async fn pull_under(room: &Room, host: &str, toml: &str) -> Result<Digest, String> {
    let folder = room.dir.path().join("certs.d").join(host);
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    std::fs::write(folder.join("hosts.toml"), toml).map_err(|error| error.to_string())?;
    room.images.remove(&format!("{host}/app:v1")).await.map_err(|error| error.to_string())?;
    room.pull(&format!("{host}/app:v1")).await.map(|record| record.id.clone()).map_err(|error| error.to_string())
}

#[tokio::test]
#[ignore = "needs docker-registry"]
async fn hosts_toml_brings_authorities_and_client_certificates() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    certificates(dir.path()).await?;
    // Another authority, that the server knows nothing of, with a certificate that could be a client's.
    let other = tempfile::tempdir()?;
    certificates(other.path()).await?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (cert, key, ca) = (path("server.crt"), path("server.key"), path("ca.crt"));
    let plain = Real::start(dir, "", "").await?;
    let image = TestImage::new("hosts");
    plain.push(&image).await?;
    let Real { dir, .. } = plain;
    let tls = format!("  tls:\n    certificate: {cert}\n    key: {key}\n    clientcas:\n      - {ca}\n");
    let registry = Real::start(dir, &tls, "").await?;
    let host = registry.host.clone();
    let room = Room::new("").await?;
    let folder = room.dir.path().join("certs.d").join(&host);
    std::fs::create_dir_all(&folder)?;
    // Under endings that are not looked for in folders: what counts here is the file that names them.
    for (from, to) in [(&cert, "own.pem"), (&key, "own-key.pem"), (&ca, "root.pem")] {
        std::fs::copy(from, folder.join(to))?;
    }
    std::fs::copy(other.path().join("server.crt"), folder.join("other.pem"))?;
    std::fs::copy(other.path().join("server.key"), folder.join("other-key.pem"))?;
    std::fs::write(folder.join("both.pem"), [std::fs::read(&cert)?, std::fs::read(&key)?].concat())?;
    std::fs::write(folder.join("no.pem"), "no certificate")?;

    let pair = "client = [['own.pem', 'own-key.pem']]";
    for good in [
        format!("ca = 'root.pem'\n{pair}"),
        format!("ca = ['{}']\nclient = 'both.pem'", folder.join("root.pem").display()),
        "ca = 'root.pem'\nclient = ['both.pem']".to_owned(),
        "ca = 'root.pem'\nclient = [['both.pem', '']]".to_owned(),
        // Not verified, but the client is.
        format!("skip_verify = true\n{pair}"),
        // The same for a host of the file.
        format!("[host.'https://{host}']\nca = 'root.pem'\n{pair}"),
    ] {
        assert_eq!(pull_under(&room, &host, &good).await.as_ref(), Ok(&image.id()), "{good}");
    }
    let file = |name: &str| folder.join(name).display().to_string();
    for (bad, want) in [
        (pair.to_owned(), vec!["invalid peer certificate".to_owned()]),
        // An alert, or only the end of the connection, by which comes first.
        ("ca = 'root.pem'".to_owned(), vec!["the connection broke: ".to_owned()]),
        // Of an authority that the server does not know: only we know which file that was.
        (
            "ca = 'root.pem'\nclient = [['other.pem', 'other-key.pem']]".to_owned(),
            vec!["the connection broke: ".to_owned(), file("other.pem")],
        ),
        (
            "ca = 'root.pem'\nclient = [['own.pem', 'other-key.pem']]".to_owned(),
            vec!["do not fit".to_owned(), file("own.pem")],
        ),
        ("ca = 'root.pem'\nclient = 'own.pem'".to_owned(), vec!["not valid PEM".to_owned(), file("own.pem")]),
        ("ca = 'root.pem'\nclient = 'absent.pem'".to_owned(), vec!["No such file".to_owned(), file("absent.pem")]),
        (format!("ca = 'no.pem'\n{pair}"), vec!["not valid PEM".to_owned(), file("no.pem")]),
        (format!("ca = 'absent.pem'\n{pair}"), vec!["No such file".to_owned(), file("absent.pem")]),
    ] {
        let error = pull_under(&room, &host, &bad).await.expect_err(&bad);
        assert!(error.contains(&host) && want.iter().all(|want| error.contains(want)), "{bad}: {want:?}: {error}");
        room.assert_clean().await;
    }
    drop(registry.dir);
    Ok(())
}

/// A proxy that opens tunnels, and remembers to where.
async fn tunnels() -> anyhow::Result<(String, Arc<Mutex<Vec<String>>>)> {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let (host, opened) = (listener.local_addr()?.to_string(), Arc::<Mutex<Vec<String>>>::default());
    let heads = opened.clone();
    crate::task::spawn("test-proxy", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heads = heads.clone();
            crate::task::spawn("test-tunnel", async move {
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    stream.read_line(&mut head).await?;
                }
                let to = head.split(' ').nth(1).unwrap_or_default().to_owned();
                heads.lock().unwrap_or_else(PoisonError::into_inner).push(head);
                let mut there = tokio::net::TcpStream::connect(to).await?;
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                tokio::io::copy_bidirectional(&mut stream, &mut there).await
            });
        }
    });
    Ok((host, opened))
}

/// TLS is spoken with the registry, by the tunnel: the proxy sees where it leads, and no login of the registry.
#[tokio::test]
#[ignore = "needs docker-registry"]
async fn a_registry_is_reached_by_a_tunnel() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    certificates(dir.path()).await?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (cert, key, ca) = (path("server.crt"), path("server.key"), path("ca.crt"));
    let plain = Real::start(dir, "", "").await?;
    let image = TestImage::new("tunnel");
    plain.push(&image).await?;
    let Real { dir, .. } = plain;
    let registry = Real::start(dir, &format!("  tls:\n    certificate: {cert}\n    key: {key}\n"), "").await?;
    let (proxy, opened) = tunnels().await?;
    let room = Room::new("").await?;
    let toml = format!("ca = '{ca}'\nproxy = 'http://user:word@{proxy}'");
    let got = pull_under(&room, &registry.host, &toml).await.map_err(anyhow::Error::msg)?;
    assert_eq!(got, image.id());
    let opened = opened.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(
        !opened.is_empty() && opened.iter().all(|head| head.starts_with(&format!("CONNECT {} ", registry.host))),
        "{opened:?}"
    );
    assert!(opened.iter().all(|head| head.to_ascii_lowercase().contains("proxy-authorization: basic ")), "{opened:?}");
    drop(registry.dir);
    Ok(())
}

#[tokio::test]
#[ignore = "needs docker-registry"]
async fn cve_2019_10214_a_plain_http_token_service_of_a_tls_registry_gets_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    certificates(dir.path()).await?;
    let service = Registry::start(|_| Reply::new(200, r#"{"token":"x"}"#)).await;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", path("server.crt"), path("server.key"));
    let auth = format!(
        "auth:\n  token:\n    realm: http://{}/token\n    service: s\n    issuer: i\n    rootcertbundle: {}\n",
        service.host(),
        path("ca.crt")
    );
    let ca = path("ca.crt");
    let registry = Real::start(dir, &tls, &auth).await?;
    let room = Room::new("").await?;
    let folder = room.dir.path().join("certs.d").join(&registry.host);
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(&ca, folder.join("ca.crt"))?;
    let auth = AuthConfig { username: "u".into(), password: "p".into(), ..AuthConfig::default() };
    let error = room.pull_as(&format!("{}/app:v1", registry.host), Some(auth)).await.expect_err("refused");
    assert!(error.to_string().contains("plain http, the registry over https"), "{error}");
    assert!(service.seen().is_empty());
    drop(registry.dir);
    Ok(())
}
