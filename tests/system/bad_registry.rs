//! Registries that lie, stall or refuse: the error names the image and the cause, and nothing of it is kept.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;

use crate::archive::{Entry, Image, digest, gzip, tarball};
use crate::client::{Client, refused};
use crate::hostile::{Answer, Hostile, blob};
use crate::ledger::Ledger;
use crate::node::{Node, Setup};
use crate::world::World;

crate::once!(
    an_honest_image,
    lying_digests,
    truncated_gzip,
    a_manifest_that_is_too_large,
    a_registry_that_stalls,
    status_codes,
    credentials,
    foreign_hosts,
    broken_transfers,
    a_proxy_of_the_environment,
    nobody_listens
);

/// A node with a short clock for downloads, and the hostile registry as `hostile.example`.
pub async fn hostile_node() -> Result<(Node, Client, Hostile, Ledger)> {
    let world = World::new().await?;
    let hostile = Hostile::start(&world).await?;
    let mut setup = Setup::new("crun");
    setup.registry = false;
    setup.registries = hostile.conf();
    setup.keys.push(("image.pull_progress_timeout", 2.into()));
    let mut node = Node::start(world, setup).await?;
    let client = node.client().await?;
    // A first pull makes the store's folders, and shows that this registry works when it is honest.
    hostile.serve("first", &Image::of(&tarball(&[Entry::file("file", b"honest")])));
    client.pull("hostile.example/first:latest").await?;
    client.clear().await?;
    let before = Ledger::take(&node).await?;
    Ok((node, client, hostile, before))
}

/// The pull must fail with these words, list nothing and leave nothing.
pub async fn fails(node: &Node, client: &Client, before: &Ledger, repository: &str, words: &[&str]) -> Result<String> {
    let name = format!("hostile.example/{repository}:latest");
    let call = tokio::time::timeout(Duration::from_secs(120), client.pull(&name)).await;
    let answer = call.with_context(|| format!("the pull of {name} hangs"))?;
    let mut all = vec![&*name];
    all.extend(words);
    let message = refused(answer, &[], &all).with_context(|| name.clone())?;
    ensure!(client.images().await?.is_empty(), "{name} is listed");
    before.assert_same(node).await.with_context(|| name.clone())?;
    Ok(message)
}

async fn an_honest_image() -> Result<()> {
    let (_node, client, hostile, _) = hostile_node().await?;
    let image = Image::of(&tarball(&[Entry::folder("folder/"), Entry::file("folder/file", b"content")]));
    hostile.serve("honest", &image);
    let id = client.pull("hostile.example/honest").await?;
    ensure!(id == digest(&image.config), "the id is not the config's digest: {id}");
    let found = client.image_status("hostile.example/honest").await?.context("pulled")?;
    ensure!(found.repo_digests == [format!("hostile.example/honest@{}", digest(&image.manifest()))], "{found:?}");
    Ok(())
}

async fn lying_digests() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    let honest = Image::of(&tarball(&[Entry::file("file", &[b'x'; 100_000])]));
    let other = gzip(&tarball(&[Entry::file("file", &[b'y'; 100_000])]));
    let wrong = digest(b"something else");

    let mut image = honest.clone();
    image.layer = other;
    image.layer_size = image.layer.len();
    hostile.serve("layer", &image);
    fails(&node, &client, &before, "layer", &["digest"]).await?;

    let mut image = honest.clone();
    image.config_digest = wrong.clone();
    hostile.serve("config", &image);
    fails(&node, &client, &before, "config", &["digest", &wrong]).await?;

    // The unpacked archive is not the one that the config names.
    let image = Image::packed(honest.layer.clone(), &wrong);
    hostile.serve("diff", &image);
    fails(&node, &client, &before, "diff", &[&wrong]).await?;

    // More bytes than stated, and fewer.
    for (name, size) in [("longer", honest.layer.len() - 1), ("shorter", honest.layer.len() + 1)] {
        let mut image = honest.clone();
        image.layer_size = size;
        hostile.serve(name, &image);
        fails(&node, &client, &before, name, &["bytes"]).await?;
    }

    // A manifest that is not what its digest says.
    hostile.serve("manifest", &honest);
    let path = format!("/v2/manifest/manifests/{wrong}");
    hostile.set(path, Answer::Body(honest.manifest_type().into(), honest.manifest()));
    refused(client.pull(&format!("hostile.example/manifest@{wrong}")).await, &[], &["digest", &wrong])?;
    before.assert_same(&node).await
}

async fn truncated_gzip() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    let archive = tarball(&[Entry::file("file", &[b'x'; 100_000]), Entry::file("last", b"last")]);
    let whole = gzip(&archive);
    // Cut off, but with the digest and size of what is there: only the decompressor can tell.
    for (name, part) in [("half", whole[..whole.len() / 2].to_vec()), ("no-trailer", whole[..whole.len() - 8].to_vec())]
    {
        hostile.serve(name, &Image::packed(part, &digest(&archive)));
        fails(&node, &client, &before, name, &["layer"]).await?;
    }
    hostile.serve("garbage", &Image::packed(b"this is not gzip at all".to_vec(), &digest(&archive)));
    fails(&node, &client, &before, "garbage", &["layer"]).await?;
    // A whole gzip of half an archive.
    let half = archive[..archive.len() / 2].to_vec();
    hostile.serve("half-tar", &Image::of(&half));
    fails(&node, &client, &before, "half-tar", &["layer"]).await?;
    Ok(())
}

async fn a_manifest_that_is_too_large() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    let mut image = Image::of(&tarball(&[Entry::file("file", b"x")]));
    image.padding = 5 << 20;
    hostile.serve("large", &image);
    fails(&node, &client, &before, "large", &["manifest"]).await?;
    ensure!(hostile.asked(&blob("large", &image.layer_digest)) == 0, "the layer of a refused manifest was fetched");
    // The same without a length told beforehand is the client's own bound; below it all is well.
    image.padding = 1 << 20;
    hostile.serve("legal", &image);
    client.pull("hostile.example/legal").await?;
    Ok(())
}

async fn a_registry_that_stalls() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    let image = Image::of(&tarball(&[Entry::file("file", &[b'x'; 1000])]));
    hostile.serve("layer", &image);
    let (kind, body) = ("application/octet-stream".to_owned(), image.layer.clone());
    hostile.set(blob("layer", &image.layer_digest), Answer::Stall(kind, body, image.layer.len() / 2));
    fails(&node, &client, &before, "layer", &["2"]).await?;
    hostile.serve("manifest", &image);
    hostile.set("/v2/manifest/manifests/latest", Answer::Silence);
    fails(&node, &client, &before, "manifest", &[]).await?;
    // While one pull stalls, another is done.
    // Of another layer, or the stalled pull could take that of the finished one.
    hostile.serve("other", &Image::of(&tarball(&[Entry::file("file", &[b'y'; 1000])])));
    let slow = client.clone();
    let stalled = cricket::task::spawn("stalled pull", async move { slow.pull("hostile.example/layer").await });
    tokio::time::timeout(Duration::from_secs(60), client.pull("hostile.example/other")).await.context("it waits")??;
    ensure!(stalled.await?.is_err(), "half a layer was taken");
    Ok(())
}

async fn status_codes() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    let image = Image::of(&tarball(&[Entry::file("file", b"x")]));
    for (at, code) in [401_u16, 403, 404, 429, 500, 503].into_iter().enumerate() {
        let headers = vec![("Retry-After".to_owned(), "1".to_owned())];
        let text = r#"{"errors":[{"code":"CANARY","message":"canary of the registry"}]}"#;
        let answer = Answer::Error(code, headers, text.to_owned());
        // The number alone may be in a name or a digest.
        let told = format!("(HTTP {code})");
        let told = if code < 500 { &*told } else { &told[1..told.len() - 1] };
        let name = format!("manifest-{at}");
        hostile.serve(&name, &image);
        hostile.set(format!("/v2/{name}/manifests/latest"), answer.clone());
        fails(&node, &client, &before, &name, &[told]).await?;
        let name = format!("blob-{at}");
        hostile.serve(&name, &image);
        hostile.set(blob(&name, &image.layer_digest), answer);
        fails(&node, &client, &before, &name, &[told]).await?;
        let log = node.log();
        let logged = |line: &str| line.contains("WARN") && line.contains(&*name) && line.contains(told);
        ensure!(log.lines().any(logged), "the log has no warning of {name}");
    }
    Ok(())
}

async fn credentials() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    let challenge = vec![("WWW-Authenticate".to_owned(), "Basic realm=\"hostile\"".to_owned())];
    hostile.set("/v2/", Answer::Error(401, challenge.clone(), String::new()));
    hostile.set("/v2/private/manifests/latest", Answer::Error(401, challenge, String::new()));
    fails_with_a_login(&client, &hostile, "private", &["unauthorized"]).await?;
    ensure!(!node.log().contains("canary-password"), "the log tells the password");
    before.assert_same(&node).await
}

/// A pull with a login for the registry, which must fail with these words.
async fn fails_with_a_login(client: &Client, hostile: &Hostile, repository: &str, words: &[&str]) -> Result<()> {
    let name = format!("hostile.example/{repository}:latest");
    let request = cri::PullImageRequest {
        image: Some(crate::requests::image(&name)),
        auth: Some(cri::AuthConfig {
            username: "canary-user".into(),
            password: "canary-password".into(),
            server_address: hostile.address().into(),
            ..Default::default()
        }),
        sandbox_config: None,
    };
    let mut all = vec![&*name];
    all.extend(words);
    let message = refused(client.image.clone().pull_image(request).await, &[], &all).with_context(|| name.clone())?;
    ensure!(!message.contains("canary"), "the error tells a secret: {message}");
    ensure!(client.images().await?.is_empty(), "{name} is listed");
    Ok(())
}

/// Another host that a registry leads to, by a redirect or by a challenge.
async fn foreign_hosts() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    let foreign = Hostile::start(&node.world).await?;
    let address = foreign.address().to_owned();
    let image = Image::of(&tarball(&[Entry::file("file", b"x")]));
    let login = "Basic Y2FuYXJ5LXVzZXI6Y2FuYXJ5LXBhc3N3b3Jk".to_owned();
    let private = |answer| Answer::Private(login.clone(), "Basic realm=\"x\"".into(), Box::new(answer));

    // The login is for the registry; the host of the layers gets none, however it asks.
    hostile.serve("layer", &image);
    let manifest = Answer::Body(image.manifest_type().into(), image.manifest());
    hostile.set("/v2/layer/manifests/latest", private(manifest));
    let to = ("Location".to_owned(), format!("http://{address}/layer?X-Amz-Signature=canary-signature"));
    hostile.set(blob("layer", &image.layer_digest), private(Answer::Error(307, vec![to], String::new())));
    for challenge in ["Basic realm=\"x\"".to_owned(), format!("Bearer realm=\"http://{address}/token\"")] {
        foreign.set("/layer", Answer::Error(401, vec![("WWW-Authenticate".into(), challenge)], String::new()));
        fails_with_a_login(&client, &hostile, "layer", &["unauthorized"]).await?;
    }
    ensure!(foreign.asked("/layer") == 2 && foreign.asked("/token") == 0, "not asked, or asked for a token");
    ensure!(foreign.headers("authorization").is_empty(), "{:?}", foreign.headers("authorization"));
    ensure!(hostile.headers("authorization").contains(&login), "the login was not used at all");

    // A token service of the registry's choice: nothing of a node without a login, and not more than a token is read.
    hostile.serve("token", &image);
    let challenge = vec![("WWW-Authenticate".to_owned(), format!("Bearer realm=\"http://{address}/token\""))];
    hostile.set("/v2/token/manifests/latest", Answer::Error(401, challenge, String::new()));
    let large =
        Answer::Repeated { head: b"{\"token\":\"".to_vec(), part: vec![b'x'; 1 << 20], times: 100, tail: vec![] };
    foreign.set("/token", large);
    fails(&node, &client, &before, "token", &["the token is larger than 262144 bytes"]).await?;
    // One that sends us on is not followed.
    let to = vec![("Location".to_owned(), format!("http://{address}/elsewhere"))];
    foreign.set("/token", Answer::Error(302, to, String::new()));
    fails(&node, &client, &before, "token", &["redirect"]).await?;
    // Its token is good for nothing: the registry challenges again.
    foreign.set("/token", Answer::Body("application/json".into(), b"{\"token\":\"canary-token\"}".to_vec()));
    let tokens = foreign.asked("/token");
    fails(&node, &client, &before, "token", &["unauthorized"]).await?;
    ensure!(foreign.asked("/token") == tokens + 1, "the challenge was answered more than once");
    ensure!(foreign.asked("/elsewhere") == 0 && foreign.headers("authorization").is_empty(), "a secret left the node");
    ensure!(!node.log().contains("canary"), "the log tells a secret");
    before.assert_same(&node).await
}

async fn broken_transfers() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    let image = Image::of(&tarball(&[Entry::file("file", &[b'x'; 100_000])]));
    let kind = || "application/octet-stream".to_owned();
    // Where it breaks, nothing that came before is kept.
    for (name, some) in [("begun", 0), ("half", image.layer.len() / 2), ("last", image.layer.len() - 1)] {
        hostile.serve(name, &image);
        hostile.set(blob(name, &image.layer_digest), Answer::Reset(kind(), image.layer.clone(), some));
        fails(&node, &client, &before, name, &["the connection broke"]).await?;
    }
    hostile.serve("config", &image);
    hostile.set(blob("config", &image.config_digest), Answer::Reset(kind(), image.config.clone(), 10));
    fails(&node, &client, &before, "config", &["the connection broke"]).await?;
    hostile.serve("manifest", &image);
    let manifest = Answer::Reset(image.manifest_type().into(), image.manifest(), 10);
    hostile.set("/v2/manifest/manifests/latest", manifest);
    fails(&node, &client, &before, "manifest", &["the connection broke"]).await?;
    Ok(())
}

/// What is far goes by the proxy and what is near does not; the error and `cricket image explain` tell which it was, without
/// what it is shown.
async fn a_proxy_of_the_environment() -> Result<()> {
    let world = World::new().await?;
    let (near, proxy) = (Hostile::start(&world).await?, Hostile::start(&world).await?);
    let mut setup = Setup::new("crun");
    setup.registry = false;
    setup.registries = near.conf();
    let mut node = Node::prepare(world, setup).await?;
    for name in ["HTTPS_PROXY", "HTTP_PROXY"] {
        node.env.push(format!("{name}=http://canary-user:canary-password@{}", proxy.address()));
    }
    let client = node.launch().await?;
    near.serve("near", &Image::of(&tarball(&[Entry::file("file", b"near")])));
    client.pull("hostile.example/near:latest").await?;
    ensure!(proxy.headers("host").is_empty(), "a loopback address was reached by the proxy");
    ensure!(near.headers("proxy-authorization").is_empty(), "the registry was shown the login of the proxy");

    proxy.set("images.example:443", Answer::Error(502, Vec::new(), String::new()));
    let told = format!("the proxy http://{} (HTTPS_PROXY)", proxy.address());
    let words = ["RegistryUnavailable: ", "images.example/far:latest", &*told];
    let message = refused(client.pull("images.example/far:latest").await, &[tonic::Code::Unknown], &words)?;
    ensure!(proxy.asked("images.example:443") > 0 && !proxy.headers("proxy-authorization").is_empty());
    let socket = node.path("state/cricket.sock").to_string_lossy().into_owned();
    let args = ["image", "--socket", &socket, "explain", "images.example/far"];
    let explained = node.world.run(env!("CARGO_BIN_EXE_cricket"), &args).await?.stdout;
    ensure!(explained.contains(&told), "{explained}");
    ensure!(!format!("{message}{explained}{}", node.log()).contains("canary"), "the proxy's login is told");
    Ok(())
}

async fn nobody_listens() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    drop(hostile);
    // The port is free once the listener's task is gone.
    crate::world::eventually("the registry is gone", Duration::from_secs(20), async || {
        refused(client.pull("hostile.example/first:latest").await, &[], &["hostile.example/first:latest"])
    })
    .await?;
    before.assert_same(&node).await
}
