//! Registries that challenge without end, and token services that are not what they should be: every request is counted, and
//! every host's headers are looked at for what it must not have.

use super::*;
use crate::image::registry::auth_file::encoded;
use crate::image::tests::server::{Reply, Request};

fn login() -> AuthConfig {
    AuthConfig { username: "canary-user".into(), password: "canary-password".into(), ..AuthConfig::default() }
}

fn basic() -> String {
    format!("Basic {}", encoded("canary-user", "canary-password"))
}

/// A registry that answers every request with this challenge; `HERE` in it is its own address.
async fn insisting(challenge: String) -> Registry {
    serving(move |request| {
        let here = request.header("host").unwrap_or_default();
        let reply = Reply::new(401, "canary-body");
        if challenge.is_empty() { reply } else { reply.with("www-authenticate", challenge.replace("HERE", here)) }
    })
    .await
}

/// A registry with a token service of its own, which gives `canary-token` to anybody.
async fn serving(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Registry {
    Registry::start(move |request| match request.path.starts_with("/token") {
        true => Reply::new(200, r#"{"token":"canary-token"}"#),
        false => answer(request),
    })
    .await
}

/// The pull's error, which names the host and holds no secret; nothing is left of the pull.
async fn refused(room: &Room, registry: &Registry, auth: Option<AuthConfig>) -> String {
    let error = room.pull_as(&registry.name("app:v1"), auth).await.expect_err("refused");
    let text = error.to_string();
    assert!(text.contains(&registry.host()), "{text}");
    assert!(!format!("{text} {error:?}").contains("canary"), "{error:?}");
    room.assert_clean().await;
    text
}

#[tokio::test]
async fn a_challenge_that_comes_again_and_again_is_answered_once() -> anyhow::Result<()> {
    // The challenge, whether there is a login, then what the error says, and the requests for manifest and token.
    for (challenge, with_login, want, manifests, tokens) in [
        ("Bearer realm=\"http://HERE/token\"", false, "asks for credentials", 2, 1),
        ("Bearer realm=\"http://HERE/token\"", true, "refuses the credentials", 2, 1),
        ("Basic realm=\"x\"", false, "asks for credentials", 1, 0),
        ("Basic realm=\"x\"", true, "refuses the credentials", 2, 0),
        ("Negotiate, Basic realm=\"x\", Bearer realm=\"http://HERE/token\"", true, "refuses the credentials", 2, 1),
        ("Negotiate", true, "a kind of login that is not known", 1, 0),
        ("", true, "does not say how to log in", 1, 0),
        ("Bearer", true, "its address is not a URL", 1, 0),
    ] {
        let registry = insisting(challenge.to_owned()).await;
        let room = Room::trusting(&[&registry]).await?;
        let error = refused(&room, &registry, with_login.then(login)).await;
        assert!(error.contains(want), "{challenge}: {error}");
        let asked = (registry.count("/manifests/"), registry.count("/token"));
        assert_eq!(asked, (manifests, tokens), "{challenge}, {with_login}");
    }
    Ok(())
}

#[tokio::test]
async fn challenges_that_alternate_end_too() -> anyhow::Result<()> {
    let registry = serving(|request| {
        let here = request.header("host").unwrap_or_default();
        let bearer = format!("Bearer realm=\"http://{here}/token\"");
        let challenge = if request.number % 2 == 0 { "Basic realm=\"x\"" } else { &bearer };
        Reply::new(401, "").with("www-authenticate", challenge)
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    let error = refused(&room, &registry, Some(login())).await;
    assert!(error.contains("refuses the credentials"), "{error}");
    assert_eq!(registry.seen().len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_token_ends_where_its_cap_is() -> anyhow::Result<()> {
    let token = |size: usize| format!("{{\"token\":\"{}\"}}", "x".repeat(size));
    let large = "the token is larger than 262144 bytes";
    for (reply, want) in [
        (Reply::new(200, token(1 << 20)), large),
        (Reply { length: Some(100 << 20), ..Reply::new(200, token(1 << 20)) }, large),
        (Reply { endless: true, ..Reply::new(200, vec![b' '; 65536]) }, large),
        (Reply::new(200, "{}"), "answer has no token"),
        (Reply::new(200, r#"{"token":"","access_token":""}"#), "answer has no token"),
        (Reply::new(200, r#"{"token":5}"#), "answer has no token"),
        (Reply::new(200, "{\"token\":\"line\\nbreak\"}"), "token is no token"),
        (Reply::new(200, "<html>"), "answer has no token"),
        (
            Reply::new(401, "").with("www-authenticate", "Bearer realm=\"http://127.0.0.1:1/\""),
            "refuses the credentials",
        ),
        (Reply::new(404, ""), "not found"),
        (Reply::new(500, ""), "HTTP 500"),
    ] {
        let shown = format!("{} {want}", reply.status);
        let registry = Registry::start(move |request| {
            let here = request.header("host").unwrap_or_default();
            match request.path.starts_with("/token") {
                true => reply.clone(),
                false => Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"http://{here}/token\"")),
            }
        })
        .await;
        let room = Room::trusting(&[&registry]).await?;
        let error = refused(&room, &registry, Some(login())).await;
        assert!(error.contains(want), "{shown}: {error}");
        // Only what passes is tried again.
        assert_eq!(registry.count("/token"), if shown.starts_with("500") { 3 } else { 1 }, "{shown}");
    }
    Ok(())
}

/// A token that is good for two requests, of a service that says neither `token` nor how long: the specification wants the
/// first only of registries of old, and the second of none.
#[tokio::test]
async fn a_token_that_runs_out_in_the_middle_of_a_pull_is_fetched_anew() -> anyhow::Result<()> {
    let image = TestImage::new("short-lived");
    let (served, uses) = (image.clone(), std::sync::Mutex::new((0, 0, false)));
    let registry = Registry::start(move |request| {
        let mut uses = uses.lock().expect("no panic");
        let (token, used, cut) = &mut *uses;
        let here = request.header("host").unwrap_or_default();
        if request.path.starts_with("/token") {
            (*token, *used) = (*token + 1, 0);
            return Reply::new(200, format!("{{\"access_token\":\"t{token}\"}}"));
        }
        if *used >= 2 || request.header("authorization") != Some(&format!("Bearer t{token}")) {
            return Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"http://{here}/token\""));
        }
        *used += 1;
        let reply = served.answer(request, "app", &["v1"]);
        // The first answer with a layer breaks: what is left of it is asked for under another token.
        if request.path.ends_with(&served.blob(1)) && !std::mem::replace(cut, true) {
            return Reply { cut: Some((100_000, crate::image::tests::server::Then::Close)), ..reply };
        }
        reply
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    assert_eq!(room.pull(&registry.name("app:v1")).await?.id, image.id());
    assert!(registry.count("/token") >= 2, "{:?}", registry.seen());
    let asked = registry.headers("range");
    assert!(!asked.is_empty() && asked.iter().all(|range| range != "bytes=0-"), "{asked:?}");
    Ok(())
}

/// `Retry-After` counts for token services as well: what is too long is not waited for, and nobody is asked before.
#[tokio::test]
async fn a_token_service_is_not_asked_before_it_wants_to_be() -> anyhow::Result<()> {
    for (wait, asked, want) in [("3600", 1, "it asks to wait 3600 s"), ("0", 3, "HTTP 429")] {
        let registry = Registry::start(move |request| {
            let here = request.header("host").unwrap_or_default();
            match request.path.starts_with("/token") {
                true => Reply::new(429, "").with("retry-after", wait),
                false => Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"http://{here}/token\"")),
            }
        })
        .await;
        let room = Room::trusting(&[&registry]).await?;
        let error = refused(&room, &registry, Some(login())).await;
        assert!(error.starts_with("RegistryUnavailable: ") && error.contains(want), "{error}");
        assert_eq!(registry.count("/token"), asked);
    }
    Ok(())
}

#[tokio::test]
async fn a_token_service_that_cannot_be_reached_is_named() -> anyhow::Result<()> {
    let closed = { Registry::start(|_| Reply::new(200, "")).await.host() };
    let realm = format!("Bearer realm=\"http://{closed}/token\"");
    let registry = serving(move |_| Reply::new(401, "").with("www-authenticate", realm.clone())).await;
    let room = Room::trusting(&[&registry]).await?;
    let error = refused(&room, &registry, None).await;
    let want = format!("{}: its token service {closed}: no connection", registry.host());
    assert!(error.starts_with("RegistryUnavailable: ") && error.contains(&want), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_token_service_that_redirects_is_not_followed() -> anyhow::Result<()> {
    for status in [301, 302, 303, 307, 308] {
        let evil = Registry::start(|_| Reply::new(200, r#"{"token":"canary-evil"}"#)).await;
        let to = format!("http://{}/token", evil.host());
        let registry = Registry::start(move |request| {
            let here = request.header("host").unwrap_or_default();
            match request.path.starts_with("/token") {
                true => Reply::new(status, "").with("location", to.clone()),
                false => Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"http://{here}/token\"")),
            }
        })
        .await;
        let room = Room::trusting(&[&registry, &evil]).await?;
        for auth in [login(), AuthConfig { identity_token: "canary-identity".into(), ..AuthConfig::default() }] {
            let error = refused(&room, &registry, Some(auth)).await;
            assert!(error.contains("it answers with a redirect"), "{error}");
        }
        assert!(evil.seen().is_empty(), "{status}: {:?}", evil.seen());
    }
    Ok(())
}

/// CVE-2026-33540: whose credentials reach a token service on another host. Those for the registry that names it do, as it
/// could ask for them itself; nobody else's do, by no way, and the token goes to the registry alone.
#[tokio::test]
async fn cve_2026_33540_a_token_service_elsewhere_gets_no_credentials_of_others() -> anyhow::Result<()> {
    let service = Registry::start(|_| Reply::new(200, r#"{"token":"canary-token"}"#)).await;
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", service.host());
    let image = TestImage::new("elsewhere");
    let served = image.clone();
    let registry = Registry::start(move |request| match request.header("authorization") {
        Some("Bearer canary-token") => served.answer(request, "app", &["v1"]),
        _ => Reply::new(401, "").with("www-authenticate", realm.clone()),
    })
    .await;
    let host = registry.host();
    let seen_by_service = || service.headers("authorization");

    // Nobody's: the registry's challenge is answered without.
    let room = Room::trusting(&[&registry]).await?;
    room.pull(&registry.name("app:v1")).await?;
    assert!(service.count("/token") == 1 && seen_by_service().is_empty(), "{:?}", service.seen());

    // Those that the kubelet has for another host, and those that a file has for the service's own host: no registry may
    // make the node log in to a host of its choice with what is meant for that host.
    let room = Room::trusting(&[&registry]).await?;
    let file = format!("{{\"auths\":{{{:?}:{{\"auth\":\"{}\"}}}}}}", service.host(), encoded("canary-file", "x"));
    std::fs::write(room.dir.path().join("auth.json"), file)?;
    let elsewhere = AuthConfig { server_address: "elsewhere.lan".into(), ..login() };
    room.pull_as(&registry.name("app:v1"), Some(elsewhere)).await?;
    assert!(seen_by_service().is_empty(), "{:?}", service.seen());

    // Those of the registry, when a mirror of it challenges: neither mirror nor service gets them.
    let conf = format!(
        "[[registry]]\nprefix = \"images.example\"\nlocation = \"closed.invalid\"\n[[registry.mirror]]\nlocation = \"{host}\"\ninsecure = true\n"
    );
    let room = Room::new(&conf).await?;
    room.pull_as("images.example/app:v1", Some(login())).await?;
    assert!(seen_by_service().is_empty(), "{:?}", service.seen());
    assert!(registry.headers("authorization").iter().all(|sent| sent == "Bearer canary-token"));

    // Its own do, and go there in no other form.
    let room = Room::trusting(&[&registry]).await?;
    room.pull_as(&registry.name("app:v1"), Some(login())).await?;
    assert_eq!(seen_by_service(), [basic()]);
    assert!(service.seen().iter().all(|request| !request.path.contains("canary") && request.body.is_empty()));
    // The registry never saw the login, and nobody but it saw the token.
    assert!(registry.headers("authorization").iter().all(|sent| sent == "Bearer canary-token"));
    Ok(())
}
