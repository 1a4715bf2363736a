//! Who is asked, and who is told what.

use super::*;
use crate::image::tests::server::{Reply, Request};
use crate::sys::exec::{self, Exec};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const PASSWORD: &str = "canary-password";

fn login(server: &str) -> AuthConfig {
    AuthConfig {
        username: "canary-user".into(),
        password: PASSWORD.into(),
        server_address: server.into(),
        ..AuthConfig::default()
    }
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode(format!("canary-user:{PASSWORD}")))
}

/// A registry that wants `want` as authorization, and gives `challenge` otherwise.
async fn guarded(want: String, challenge: impl Fn(&Request) -> String + Send + Sync + 'static) -> Registry {
    let image = TestImage::new("guarded");
    Registry::start(move |request| {
        if request.path.starts_with("/token") {
            let right = request.header("authorization") == Some(&basic())
                || request.body.contains("refresh_token=canary-identity")
                    && request.body.contains("grant_type=refresh_token");
            return if right { Reply::new(200, r#"{"token":"canary-token"}"#) } else { Reply::new(401, "canary-body") };
        }
        if request.header("authorization") == Some(&want) {
            image.answer(request, "app", &["v1"])
        } else {
            Reply::new(401, "canary-body").with("www-authenticate", challenge(request))
        }
    })
    .await
}

fn own_realm(request: &Request) -> String {
    let host = request.header("host").unwrap_or_default();
    format!("Bearer realm=\"http://{host}/token?q=1\",service=\"test service\",scope=\"repository:app:pull\"")
}

#[tokio::test]
async fn logins_of_every_kind() -> anyhow::Result<()> {
    let password = login("");
    let encoded = AuthConfig { auth: STANDARD.encode(format!("canary-user:{PASSWORD}")), ..AuthConfig::default() };
    let identity = AuthConfig { identity_token: "canary-identity".into(), ..AuthConfig::default() };
    let token = AuthConfig { registry_token: "canary-token".into(), ..AuthConfig::default() };
    let wrong = AuthConfig { username: "canary-user".into(), password: "canary-wrong".into(), ..AuthConfig::default() };
    let elsewhere = login("https://elsewhere.lan/v1/");
    let cases: Vec<(bool, Option<AuthConfig>, bool)> = vec![
        (true, Some(password.clone()), true),
        (true, Some(encoded.clone()), true),
        (true, Some(identity.clone()), true),
        (true, Some(token.clone()), true),
        (true, Some(wrong.clone()), false),
        (true, Some(elsewhere.clone()), false),
        (true, None, false),
        (false, Some(password), true),
        (false, Some(encoded), true),
        (false, Some(identity), false),
        (false, Some(token), false),
        (false, Some(wrong), false),
        (false, Some(elsewhere), false),
        (false, None, false),
    ];
    for (bearer, auth, good) in cases {
        let registry = if bearer {
            guarded("Bearer canary-token".into(), own_realm).await
        } else {
            guarded(basic(), |_| "Basic realm=\"x\"".into()).await
        };
        let room = Room::trusting(&[&registry]).await?;
        let shown = format!("bearer {bearer}, {auth:?}");
        match room.pull_as(&registry.name("app:v1"), auth).await {
            Ok(_) => assert!(good, "{shown}"),
            Err(error) => {
                assert!(!good, "{shown}: {error}");
                assert!(error.to_string().contains("unauthorized"), "{error}");
                assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
                assert_eq!(error.kind(), ErrorKind::Denied);
            }
        }
        if shown.contains("elsewhere") {
            assert!(registry.headers("authorization").is_empty());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_token_is_asked_for_once_with_the_pull_scope_only() -> anyhow::Result<()> {
    let registry = guarded("Bearer canary-token".into(), |request| {
        own_realm(request).replace("repository:app:pull", "repository:app:pull,push repository:other:*")
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    room.pull_as(&registry.name("app:v1"), Some(login(""))).await?;
    let asked: Vec<String> = registry.seen().into_iter().map(|r| r.path).filter(|p| p.starts_with("/token")).collect();
    assert_eq!(asked, ["/token?q=1&scope=repository%3Aapp%3Apull&service=test+service"]);
    // Packed answers are wanted of nobody.
    assert_eq!(registry.headers("accept-encoding"), vec!["identity"; registry.seen().len()]);
    Ok(())
}

#[tokio::test]
async fn a_redirect_to_another_host_carries_no_authorization() -> anyhow::Result<()> {
    let image = TestImage::new("guarded");
    let served = image.clone();
    let store = Registry::start(move |request| {
        let path = request.path.replace("/store", "/v2/app/blobs");
        served.answer(&Request { path, ..request.clone() }, "app", &[])
    })
    .await;
    let base = format!("http://{}/store", store.host());
    let served = image.clone();
    let registry = Registry::start(move |request| {
        if request.header("authorization") != Some(&basic()) {
            return Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"");
        }
        match request.path.strip_prefix("/v2/app/blobs") {
            Some(blob) => {
                Reply::new(307, "").with("location", format!("{base}{blob}?X-Amz-Signature=canary-signature"))
            }
            None => served.answer(request, "app", &["v1"]),
        }
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    room.pull_as(&registry.name("app:v1"), Some(login(""))).await?;
    assert_eq!(store.seen().len(), 3);
    assert!(store.headers("authorization").is_empty());
    assert!(!registry.headers("authorization").is_empty());
    Ok(())
}

#[tokio::test]
async fn another_host_gets_nothing_by_challenging() -> anyhow::Result<()> {
    for challenge in ["Basic realm=\"x\"", "Bearer realm=\"http://HOST/token\""] {
        let evil = Registry::start(move |request| {
            let host = request.header("host").unwrap_or_default();
            Reply::new(401, "").with("www-authenticate", challenge.replace("HOST", host))
        })
        .await;
        let image = TestImage::new("guarded");
        let to = format!("http://{}/x", evil.host());
        let registry = Registry::start(move |request| {
            if request.header("authorization") != Some(&basic()) {
                return Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"");
            }
            if request.path.contains("/blobs/") {
                return Reply::new(307, "").with("location", to.clone());
            }
            image.answer(request, "app", &["v1"])
        })
        .await;
        let room = Room::trusting(&[&registry, &evil]).await?;
        assert!(room.pull_as(&registry.name("app:v1"), Some(login(""))).await.is_err());
        assert!(evil.headers("authorization").is_empty());
        assert_eq!(evil.count("/token"), 0);
    }
    Ok(())
}

fn mirrored(name: &str, own: &Registry, mirrors: &[&Registry]) -> String {
    let mut conf = format!("[[registry]]\nprefix = \"{name}\"\nlocation = \"{}\"\ninsecure = true\n", own.host());
    for mirror in mirrors {
        conf.push_str(&format!("[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n", mirror.host()));
    }
    conf
}

#[tokio::test]
async fn mirrors_are_tried_in_order_and_names_stay() -> anyhow::Result<()> {
    let (good, image) = good("mirrored").await;
    let missing = Registry::start(|_| Reply::new(404, "")).await;
    let broken = Registry::start(|_| Reply::new(502, "")).await;
    // Serves the manifest, but other bytes as layers: the next place must help out.
    let served = image.clone();
    let lying = Registry::start(move |request| {
        if request.path.contains(&served.blob(1)) {
            return Reply::new(200, vec![b'x'; served.layers[1].len()]);
        }
        served.answer(request, "app", &["v1"])
    })
    .await;
    let conf = mirrored("images.example", &good, &[&missing, &broken, &lying]);
    let room = Room::new(&conf).await?;
    let record = room.pull("images.example/app:v1").await?;
    assert_eq!(record.repo_tags, ["images.example/app:v1"]);
    assert_eq!(record.repo_digests, [format!("images.example/app@{}", image.digest())]);
    assert_eq!((good.count("/manifests/"), good.count(&image.blob(1))), (0, 1));
    let error = room.refused("images.example/app:v2").await;
    for registry in [&missing, &broken, &lying, &good] {
        assert!(error.contains(&format!("{}: ", registry.host())), "{error}");
    }
    assert!(error.contains("HTTP 502") && !error.starts_with("RegistryUnavailable"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_mirror_gets_no_credentials_of_the_registry() -> anyhow::Result<()> {
    let mirror = guarded("nothing fits".into(), |_| "Basic realm=\"x\"".into()).await;
    let token_mirror = guarded("nothing fits".into(), own_realm).await;
    let registry = guarded(basic(), |_| "Basic realm=\"x\"".into()).await;
    let host = registry.host();
    let room = Room::new(&mirrored(&host, &registry, &[&mirror, &token_mirror])).await?;
    room.pull_as(&format!("{host}/app:v1"), Some(login(""))).await?;
    assert!(!mirror.seen().is_empty() && mirror.headers("authorization").is_empty());
    assert!(token_mirror.count("/token") > 0 && token_mirror.headers("authorization").is_empty());
    Ok(())
}

#[tokio::test]
async fn plain_http_needs_the_operators_word() -> anyhow::Result<()> {
    let (registry, _) = good("plain").await;
    let room = Room::new("").await?;
    let error = room.refused(&registry.name("app:v1")).await;
    assert!(error.starts_with("RegistryUnavailable: the manifest of"), "{error}");
    assert!(registry.seen().is_empty());
    let closed = { Registry::start(|_| Reply::new(200, "")).await.host() };
    let error = room.refused(&format!("{closed}/app:v1")).await;
    assert!(error.contains("no connection: "), "{error}");
    Ok(())
}

#[tokio::test]
async fn blocked_registries_are_not_asked() -> anyhow::Result<()> {
    let (registry, _) = good("blocked").await;
    let conf = format!("[[registry]]\nprefix = \"{}/app\"\ninsecure = true\nblocked = true\n", registry.host());
    let room = Room::new(&conf).await?;
    let error = room.pull(&registry.name("app:v1")).await.expect_err("blocked");
    assert!(error.to_string().contains("blocked by the rule"), "{error}");
    assert_eq!((error.kind(), registry.seen().len()), (ErrorKind::Denied, 0));
    Ok(())
}

/// A pull that meets secrets in every place where a server can put them, and fails in the end.
async fn pull_among_canaries() -> anyhow::Result<String> {
    let image = TestImage::new("guarded");
    let registry = Registry::start(move |request| {
        let signed = "http://127.0.0.1:1/x?X-Amz-Signature=canary-signature&token=canary-query";
        let body = r#"{"errors":[{"code":"canary-code","message":"canary-message"}]}"#;
        match (request.header("authorization"), request.number) {
            (None, _) => Reply::new(401, "canary-body").with("www-authenticate", "Basic realm=\"canary-realm\""),
            (_, 1..=2) => Reply::new(500, body).with("x-secret", "canary-header"),
            _ if request.path.contains("/blobs/") => Reply::new(307, "").with("location", signed),
            _ => image.answer(request, "app", &["v1"]),
        }
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    let error = room.pull_as(&registry.name("app:v1"), Some(login(""))).await.expect_err("the store is not there");
    Ok(format!("{error} {error:?}"))
}

/// A pull by a proxy that wants another login than it is shown, without a tunnel and with one.
async fn pull_by_a_proxy() -> anyhow::Result<String> {
    let proxy = Registry::start(|_| Reply::new(407, "canary-body")).await;
    let room = Room::new("").await?;
    let mut errors = String::new();
    for scheme in ["http", "https"] {
        let folder = room.dir.path().join("certs.d/images.example");
        std::fs::create_dir_all(&folder)?;
        let url = format!("http://canary-proxy:canary-word@{}", proxy.host());
        std::fs::write(folder.join("hosts.toml"), format!("server = '{scheme}://images.example'\nproxy = '{url}'\n"))?;
        let error = room.pull_as("images.example/app:v1", Some(login(""))).await.expect_err("no way");
        errors.push_str(&format!("{error} {error:?} "));
    }
    assert_eq!(proxy.count("CONNECT "), 3);
    assert!(proxy.headers("proxy-authorization").len() >= 4);
    Ok(errors)
}

/// Set in the process that logs everything.
const TALKATIVE: &str = "CRICKET_TEST_TALKATIVE";

#[tokio::test]
#[ignore = "run by containerd_5453_no_secret_reaches_an_error_or_the_log, in a process of its own"]
async fn a_talkative_pull() -> anyhow::Result<()> {
    if std::env::var_os(TALKATIVE).is_some() {
        let all = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        tracing::subscriber::set_global_default(all.finish())?;
    }
    let error = pull_among_canaries().await?;
    println!("the error: {error}");
    let error = pull_by_a_proxy().await?;
    println!("the proxy's error: {error}");
    Ok(())
}

#[tokio::test]
async fn containerd_5453_no_secret_reaches_an_error_or_the_log() -> anyhow::Result<()> {
    // Which events are logged is remembered for the whole process, so beside other tests a log has gaps.
    let test = concat!(module_path!(), "::a_talkative_pull").trim_start_matches("cricket::");
    let output = exec::run(Exec {
        program: std::env::current_exe()?,
        args: ["--exact", test, "--ignored", "--nocapture"].iter().map(Into::into).collect(),
        env: vec![(TALKATIVE.into(), "1".into())],
        stdin: Vec::new(),
        timeout: Duration::from_secs(60),
        output_cap: 16 * 1024 * 1024,
    })
    .await?;
    let log = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    for part in ["1 passed", "trying again", "the error: ", "no connection", "the proxy's error: ", "HTTP 407", "TRACE"]
    {
        assert!(log.contains(part), "no {part:?} in {log}");
    }
    let told: Vec<&str> = log.lines().filter(|line| line.contains("canary")).collect();
    assert!(told.is_empty(), "{told:#?}");
    for secret in [basic(), format!("Basic {}", STANDARD.encode("canary-proxy:canary-word"))] {
        assert!(!log.contains(secret.trim_start_matches("Basic ")));
    }
    Ok(())
}
