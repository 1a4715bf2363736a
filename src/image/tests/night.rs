//! The failures of a pull that a node meets most, and what whoever mends the node at night reads of each: which image, which host
//! or file, what happened, and, where it is not plain from that, what to do.

use std::path::Path;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto::aws_lc_rs};

use super::*;
use crate::image::document::{OCI_INDEX, OCI_MANIFEST};
use crate::image::registry::auth_file::encoded;
use crate::image::tests::hostile::{changed, manifest, on};
use crate::image::tests::real::run;
use crate::image::tests::server::{Reply, Request, Then, descriptor};
use serde_json::json;

const UNAVAILABLE: &str = "RegistryUnavailable: ";

/// One failure: its text must have all of these words (`HOST` is the registry), and be of this kind.
struct Case<T> {
    words: &'static [&'static str],
    kind: ErrorKind,
    with: T,
}

fn case<T>(words: &'static [&'static str], kind: ErrorKind, with: T) -> Case<T> {
    Case { words, kind, with }
}

impl<T> Case<T> {
    fn check(&self, name: &str, host: &str, error: &ImageError) {
        let text = error.to_string();
        for word in self.words.iter().map(|word| word.replace("HOST", host)).chain([name.to_owned()]) {
            assert!(text.contains(&word), "{word:?}: {text}");
        }
        assert_eq!(error.kind(), self.kind, "{text}");
        // The kubelet waits longer and says another thing when it reads this word.
        assert_eq!(text.starts_with(UNAVAILABLE), self.kind == ErrorKind::Unavailable, "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
}

type Change = fn(&Request, &TestImage) -> Option<Reply>;

fn error_body(status: u16, code: &str) -> Reply {
    Reply::new(status, json!({"errors": [{"code": code, "message": "canary"}]}).to_string())
}

fn challenge(request: &Request) -> Option<Reply> {
    let basic = Reply::new(401, "canary").with("www-authenticate", "Basic realm=\"canary\"");
    on(request, "/v2/", basic)
}

#[tokio::test]
async fn what_a_registry_answers() -> anyhow::Result<()> {
    use ErrorKind::{BadImage, Denied, NotFound, Unavailable};
    let cases: Vec<Case<Change>> = vec![
        case(&["the manifest of", "HOST: unauthorized (HTTP 401)", "none for it here"], Denied, |r, _| challenge(r)),
        case(&["HOST: access denied (HTTP 403, DENIED)"], Denied, |r, _| {
            on(r, "/manifests/", error_body(403, "DENIED"))
        }),
        case(&["HOST: not found (HTTP 404, MANIFEST_UNKNOWN)"], NotFound, |r, _| {
            on(r, "/manifests/", error_body(404, "MANIFEST_UNKNOWN"))
        }),
        case(&["HOST: not found (HTTP 404, NAME_UNKNOWN)"], NotFound, |r, _| {
            on(r, "/manifests/", error_body(404, "NAME_UNKNOWN"))
        }),
        case(&["the layer sha256:", "HOST: not found (HTTP 404)"], NotFound, |r, i| {
            on(r, &i.blob(1), Reply::new(404, ""))
        }),
        case(&["HOST: too many requests (HTTP 429); it asks to wait 3600 s"], Unavailable, |r, _| {
            on(r, "/manifests/", Reply::new(429, "").with("retry-after", "3600"))
        }),
        case(&["HOST: HTTP 400 (servers of https answer so to plain http)"], Denied, |r, _| {
            on(r, "/v2/", Reply::new(400, "Client sent an HTTP request to an HTTPS server."))
        }),
        case(&["HOST: HTTP 500"], Unavailable, |r, _| on(r, "/manifests/", Reply::new(500, "canary"))),
        case(&["HOST: HTTP 503 (UNAVAILABLE)"], Unavailable, |r, _| {
            on(r, "/manifests/", error_body(503, "UNAVAILABLE"))
        }),
        case(&["HOST: no image for linux/", "there is: linux/mips"], BadImage, |r, _| {
            let platform = json!({"os": "linux", "architecture": "mips"});
            let entry = json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(b""), "size": 0, "platform": platform});
            manifest(r, json!({"schemaVersion": 2, "manifests": [entry]}).to_string(), OCI_INDEX)
        }),
        case(&["the layer sha256:", "HOST: no answer and no byte for 500 ms"], Unavailable, |r, i| {
            on(r, &i.blob(1), Reply { cut: Some((1000, Then::Hang)), ..Reply::new(200, i.layers[1].clone()) })
        }),
        case(&["HOST: no answer and no byte for 500 ms"], Unavailable, |r, i| {
            on(r, "/manifests/", Reply { cut: Some((1, Then::Hang)), ..Reply::new(200, i.manifest.clone()) })
        }),
        case(&["the layer sha256:", "HOST: the layer has the digest sha256:", ", not sha256:"], BadImage, |r, i| {
            let mut other = i.layers[1].clone();
            // The time in the header of the gzip file: it unpacks just as well.
            other[4] ^= 1;
            on(r, &i.blob(1), Reply::new(200, other))
        }),
        case(&["the layer sha256:", "HOST: the body ended after 1000 of "], Unavailable, |r, i| {
            on(r, &i.blob(1), Reply::new(200, &i.layers[1][..1000]))
        }),
        case(&["HOST: the manifest is not valid: ", "compressed"], BadImage, |r, i| {
            let packed = crate::image::tests::server::gzip(&i.manifest);
            manifest(r, packed, OCI_MANIFEST).map(|reply| reply.with("content-encoding", "gzip"))
        }),
        case(&["HOST: the manifest is not valid: ", "a page for people"], BadImage, |r, _| {
            manifest(r, "<!DOCTYPE html><html>canary", "text/html")
        }),
        case(&["HOST: the file name \"../x\" of a layer of an artifact"], BadImage, |r, i| {
            // What is an artifact by its manifest, with a layer that cannot be a file of one.
            let mut layer = descriptor("application/x", &i.layers[0]);
            layer["annotations"] = json!({"org.opencontainers.image.title": "../x"});
            let config = descriptor("application/vnd.example", b"{}");
            manifest(r, json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string(), OCI_MANIFEST)
        }),
    ];
    for one in cases {
        let (registry, _) = changed(one.with).await;
        let room = Room::trusting(&[&registry]).await?;
        let name = registry.name("app:v1");
        let error = room.pull(&name).await.expect_err("it must fail");
        one.check(&name, &registry.host(), &error);
        room.assert_clean().await;
    }
    Ok(())
}

#[tokio::test]
async fn whose_login_is_refused() -> anyhow::Result<()> {
    let (registry, _) = changed(|r, _| challenge(r)).await;
    let (name, host) = (registry.name("app:v1"), registry.host());
    let room = Room::trusting(&[&registry]).await?;
    let file = room.dir.path().join("auth.json");
    let shown = file.display().to_string();
    let given = AuthConfig { username: "user".into(), password: "canary".into(), ..AuthConfig::default() };
    let said = |error: &ImageError, words: &[&str]| {
        case(&["HOST: unauthorized (HTTP 401): "], ErrorKind::Denied, ()).check(&name, &host, error);
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    };
    let error = room.pull_as(&name, Some(given)).await.expect_err("a wrong login");
    said(&error, &["refuses the credentials of the request"]);
    std::fs::write(&file, format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"{}\"}}}}}}", encoded("user", "canary")))?;
    let error = room.pull(&name).await.expect_err("a wrong login");
    said(&error, &["refuses the credentials of ", &shown, &format!("({host})")]);
    std::fs::write(&file, format!("{{\"credHelpers\":{{\"{host}\":\"canary\"}}}}"))?;
    let error = room.pull(&name).await.expect_err("no login");
    said(&error, &["names a helper program for them, which is not run", &shown, &format!("(credHelpers: {host})")]);
    // A file that nobody can read.
    std::fs::write(&file, "{\"auths\": 1}")?;
    let error = room.pull(&name).await.expect_err("no file of logins");
    let words = &["its logins cannot be read: ", "auth.json: line 1 column "];
    case(words, ErrorKind::Internal, ()).check(&name, &host, &error);
    std::fs::remove_file(&file)?;
    std::fs::create_dir(&file)?;
    let error = room.pull(&name).await.expect_err("no file of logins");
    case(&["its logins cannot be read: ", "auth.json: ", "not a regular file"], ErrorKind::Internal, ())
        .check(&name, &host, &error);
    Ok(())
}

#[tokio::test]
async fn what_the_configuration_forbids() -> anyhow::Result<()> {
    use ErrorKind::{Denied, Internal, Invalid};
    let blocked = "[[registry]]\nlocation = 'images.example'\n\n[[registry]]\nprefix = 'images.example/app'\nlocation = 'images.example/app'\nblocked = true\n";
    let hosts = "certs.d/images.example/hosts.toml";
    let name = "images.example/app:v1";
    // Files and their text, and what the error says.
    let cases: Vec<Case<Vec<(&str, &str)>>> = vec![
        case(
            &["blocked by the rule for images.example/app in ", "registries.conf:4"],
            Denied,
            vec![("registries.conf", blocked)],
        ),
        case(
            &["the policy rejects it", "policy.json: default"],
            Denied,
            vec![("policy.json", r#"{"default":[{"type":"reject"}]}"#)],
        ),
        case(
            &["signedBy: signatures made with GPG are not verified", "policy.json: images.example"],
            Denied,
            vec![(
                "policy.json",
                r#"{"default":[{"type":"reject"}],"transports":{"docker":{"images.example":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}}}"#,
            )],
        ),
        case(&["hosts.toml: line 1: "], Internal, vec![(hosts, "server = 5")]),
        case(&["no place may be asked for it", "hosts.toml"], Denied, vec![(hosts, "capabilities = ['push']")]),
    ];
    for one in cases {
        let room = Room::new("").await?;
        for (file, text) in &one.with {
            let path = room.dir.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a folder"))?;
            std::fs::write(path, text)?;
        }
        let error = room.pull(name).await.expect_err("it must fail");
        one.check(name, "images.example", &error);
        // `cricket image explain` tells where, without a request.
        let told = format!("{:?}", room.images.explain(name, None)?);
        let place = one.words.last().expect("words");
        assert!(told.contains(place), "{place}: {told}");
        room.assert_clean().await;
    }
    let room = Room::new("unqualified-search-registries = ['a.example', 'b.example']\nshort-name-mode = 'enforcing'\n")
        .await?;
    let error = room.pull("app:v1").await.expect_err("a guess");
    case(&["write one of a.example/app:v1, b.example/app:v1"], Invalid, ()).check("app:v1", "", &error);
    let error = room.pull("images.example/App:v1").await.expect_err("no name");
    case(&["is not an image name: its path is not of lower-case letters"], Invalid, ()).check(
        "images.example/App:v1",
        "",
        &error,
    );
    std::fs::write(room.dir.path().join("policy.json"), "{")?;
    let room = room.reopen().await?;
    let error = room.pull("images.example/app:v1").await.expect_err("a policy that nobody can read");
    case(&["SignatureValidationFailed: ", "policy.json: the policy cannot be used: "], Denied, ())
        .check("", "", &error);
    Ok(())
}

#[tokio::test]
async fn a_mirror_that_is_down_is_told_beside_what_the_registry_answers() -> anyhow::Result<()> {
    let closed = { Registry::start(|_| Reply::new(200, "")).await.host() };
    let (registry, _) = changed(|r, _| on(r, "/manifests/v2", error_body(404, "MANIFEST_UNKNOWN"))).await;
    let host = registry.host();
    let conf = format!(
        "[[registry]]\nprefix = 'images.example'\nlocation = '{host}'\ninsecure = true\n[[registry.mirror]]\nlocation = '{closed}'\ninsecure = true\n"
    );
    let room = Room::new(&conf).await?;
    let name = "images.example/app:v2";
    let error = room.pull(name).await.expect_err("not there");
    case(&["HOST: not found (HTTP 404, MANIFEST_UNKNOWN)", ": no connection: "], ErrorKind::NotFound, ())
        .check(name, &host, &error);
    assert!(error.to_string().contains(&format!("{closed}: no connection")), "{error}");
    room.pull("images.example/app:v1").await?;
    Ok(())
}

/// The registry is well, and sends us on to a store that is not.
#[tokio::test]
async fn a_store_that_the_registry_leads_to_is_named() -> anyhow::Result<()> {
    let closed = { Registry::start(|_| Reply::new(200, "")).await.host() };
    let refusing = Registry::start(|_| Reply::new(403, "canary")).await;
    for (to, kind, want) in [
        (closed.clone(), ErrorKind::Unavailable, format!("{closed}, where it leads: no connection")),
        (
            refusing.host(),
            ErrorKind::Denied,
            format!("access denied (HTTP 403, of {}, where it leads)", refusing.host()),
        ),
    ] {
        let (registry, _) = changed(move |r, _| {
            let location = format!("http://{to}/store?X-Amz-Signature=canary");
            on(r, "/blobs/", Reply::new(307, "").with("location", location))
        })
        .await;
        let room = Room::trusting(&[&registry]).await?;
        let name = registry.name("app:v1");
        let error = room.pull(&name).await.expect_err("the store is not well");
        case(&["the manifest of ", "HOST: "], kind, ()).check(&name, &registry.host(), &error);
        assert!(error.to_string().contains(&want), "{want}: {error}");
    }
    Ok(())
}

/// Answers every handshake with a certificate, and nothing after it.
async fn tls(cert: &Path, key: &Path) -> anyhow::Result<String> {
    let certificates = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, PrivateKeyDer::from_pem_file(key)?)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    listening(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            // The client ends it.
            let _ = acceptor.accept(stream).await;
        }
    })
    .await
}

/// A server that treats each connection so, until the test's runtime ends.
async fn listening<F: Future<Output = ()> + Send>(
    treat: impl Fn(TcpStream) -> F + Send + Sync + 'static,
) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let host = listener.local_addr()?.to_string();
    crate::task::spawn("test-tls", async move {
        while let Ok((stream, _)) = listener.accept().await {
            treat(stream).await;
        }
    });
    Ok(host)
}

/// A certificate that vouches for itself, in `<name>.crt` and `<name>.key`.
async fn certificate(dir: &Path, name: &str, names: &str, days: &str) -> anyhow::Result<()> {
    let path = |ending: &str| dir.join(format!("{name}.{ending}")).display().to_string();
    let (cert, key, request, more) = (path("crt"), path("key"), path("csr"), path("ext"));
    std::fs::write(&more, format!("subjectAltName={names}\n"))?;
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let wanted = ["req", "-new", "-subj", "/CN=test", "-keyout", &key, "-out", &request];
    run("openssl", &[&wanted[..], &curve[..]].concat()).await?;
    let sign = ["x509", "-req", "-days", days, "-in", &request, "-signkey", &key, "-extfile", &more, "-out", &cert];
    run("openssl", &sign).await
}

#[tokio::test]
#[ignore = "needs openssl"]
async fn what_is_wrong_with_a_connection() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    certificate(dir.path(), "self", "IP:127.0.0.1", "2").await?;
    certificate(dir.path(), "other", "DNS:other.example", "2").await?;
    certificate(dir.path(), "expired", "IP:127.0.0.1", "-1").await?;
    let file = |name: &str| dir.path().join(name);
    let servers = [
        // Whose authority nobody knows.
        (&["HOST: no connection: ", "UnknownIssuer", "image.certs_d"][..], "self", false),
        // Whose authority is known, but which is for another host.
        (&["HOST: no connection: ", "not valid for name", "other.example"], "other", true),
        (&["HOST: no connection: ", "Expired; or the clock"], "expired", true),
    ];
    for (words, name, known) in servers {
        let host = tls(&file(&format!("{name}.crt")), &file(&format!("{name}.key"))).await?;
        let room = Room::new("").await?;
        if known {
            let folder = room.dir.path().join("certs.d").join(&host);
            std::fs::create_dir_all(&folder)?;
            std::fs::copy(file(&format!("{name}.crt")), folder.join("ca.crt"))?;
        }
        let image = format!("{host}/app:v1");
        let error = room.pull(&image).await.expect_err("no connection");
        case(words, ErrorKind::Unavailable, ()).check(&image, &host, &error);
    }
    Ok(())
}

#[tokio::test]
async fn who_is_not_there_or_speaks_otherwise() -> anyhow::Result<()> {
    let room = Room::new("").await?;
    let closed = { Registry::start(|_| Reply::new(200, "")).await.host() };
    let image = format!("{closed}/app:v1");
    let error = room.pull(&image).await.expect_err("nobody listens");
    case(&["HOST: no connection: ", "Connection refused"], ErrorKind::Unavailable, ()).check(&image, &closed, &error);
    // As servers of plain http answer to a handshake.
    let plain = listening(|mut stream| async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent something else").await;
    })
    .await?;
    let image = format!("{plain}/app:v1");
    let error = room.pull(&image).await.expect_err("plain http");
    case(
        &["HOST: no connection: ", "it does not speak TLS", "insecure in registries.conf"],
        ErrorKind::Unavailable,
        (),
    )
    .check(&image, &plain, &error);
    Ok(())
}
