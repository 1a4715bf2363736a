//! Hosts that are reached by a proxy, and what it gets to see. The proxy is a server of ours that answers in place of the host:
//! no name of these tests is ever looked up.

use super::*;
use crate::image::registries::proxy::Environment;
use crate::image::registry::auth_file::encoded;
use crate::image::tests::server::{Reply, Request};

/// A proxy that stands for `images.example`, `cdn.example` and `auth.example`, and wants a login of its own.
async fn standing_for_all() -> (Registry, TestImage) {
    let image = TestImage::new("proxied");
    let served = image.clone();
    let proxy = Registry::start(move |request| {
        if request.header("proxy-authorization") != Some(&format!("Basic {}", encoded("proxy-user", "canary@proxy"))) {
            return Reply::new(407, "");
        }
        let whole = request.path.strip_prefix("http://").unwrap_or_default();
        let (host, path) = whole.split_once('/').unwrap_or_default();
        let request = Request { path: format!("/{path}"), ..request.clone() };
        match host {
            "auth.example" => Reply::new(200, r#"{"token":"canary-token"}"#),
            "cdn.example" => {
                let path = request.path.replace("/store", "/v2/app/blobs");
                served.answer(&Request { path, ..request }, "app", &[])
            }
            "images.example" if request.header("authorization") != Some("Bearer canary-token") => {
                Reply::new(401, "").with("www-authenticate", "Bearer realm=\"http://auth.example/token\"")
            }
            "images.example" => match request.path.strip_prefix("/v2/app/blobs") {
                Some(blob) => Reply::new(307, "").with("location", format!("http://cdn.example/store{blob}")),
                None => served.answer(&request, "app", &["v1"]),
            },
            _ => Reply::new(404, ""),
        }
    })
    .await;
    (proxy, image)
}

/// A room whose `images.example` is spoken to over plain http, with more lines in its `hosts.toml`.
async fn plain(more: &str) -> anyhow::Result<Room> {
    let room = Room::new("").await?;
    let folder = room.dir.path().join("certs.d/images.example");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("hosts.toml"), format!("server = 'http://images.example'\n{more}\n"))?;
    Ok(room)
}

fn under(room: &Room, variables: &[(&str, String)]) {
    let value = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
    room.images.0.rules.clients().set_environment(Environment::read(value));
}

fn url(proxy: &Registry) -> String {
    format!("http://proxy-user:canary%40proxy@{}", proxy.host())
}

#[tokio::test]
async fn the_environment_leads_by_a_proxy() -> anyhow::Result<()> {
    let (proxy, image) = standing_for_all().await;
    let room = plain("").await?;
    under(&room, &[("HTTP_PROXY", url(&proxy))]);
    assert_eq!(room.pull("images.example/app:v1").await?.id, image.id());
    let asked = |part: &str| proxy.count(part);
    let (manifests, tokens) = (asked("GET http://images.example/v2/app/manifests/"), asked("GET http://auth.example/"));
    assert_eq!((manifests, tokens, asked("GET http://cdn.example/store/")), (2, 1, 3));
    // What is for the proxy and what is for the registry are not mixed up.
    for request in proxy.seen() {
        let expected = request.path.contains("images.example") && request.number > 0;
        let given = request.header("authorization") == Some("Bearer canary-token");
        assert!(!given || expected, "{request:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_near_is_reached_directly() -> anyhow::Result<()> {
    let (proxy, _) = standing_for_all().await;
    let (registry, _) = good("near").await;
    let room = Room::trusting(&[&registry]).await?;
    under(&room, &[("HTTP_PROXY", url(&proxy)), ("HTTPS_PROXY", url(&proxy))]);
    room.pull(&registry.name("app:v1")).await?;
    assert!(proxy.seen().is_empty(), "{:?}", proxy.seen());
    assert!(registry.headers("proxy-authorization").is_empty());
    Ok(())
}

#[tokio::test]
async fn the_proxy_of_a_place_is_also_for_where_it_leads_whatever_the_environment_says() -> anyhow::Result<()> {
    let (proxy, image) = standing_for_all().await;
    let other = Registry::start(|_| Reply::new(500, "")).await;
    let room = plain(&format!("proxy = '{}'", url(&proxy))).await?;
    under(&room, &[("HTTP_PROXY", format!("http://{}", other.host())), ("NO_PROXY", "*".to_owned())]);
    assert_eq!(room.pull("images.example/app:v1").await?.id, image.id());
    assert!(other.seen().is_empty());
    let told = &room.images.explain("images.example/app:v1", None)?[0].steps[0].notes;
    let want = format!(
        "by the proxy http://{} ({}/certs.d/images.example/hosts.toml:1)",
        proxy.host(),
        room.dir.path().display()
    );
    assert!(told.contains(&want), "{told:?}");
    assert!(!format!("{told:?}").contains("canary"));
    Ok(())
}

#[tokio::test]
async fn a_tunnel_is_told_the_host_and_nothing_else() -> anyhow::Result<()> {
    for (status, want) in [(407, "proxy authoriz"), (502, "tunnel")] {
        let proxy = Registry::start(move |_| Reply::new(status, "canary-body")).await;
        let room = Room::new("").await?;
        under(&room, &[("HTTPS_PROXY", url(&proxy))]);
        let auth = AuthConfig { username: "user".into(), password: "canary".into(), ..AuthConfig::default() };
        let error = room.pull_as("images.example/app:v1", Some(auth)).await.expect_err("no tunnel").to_string();
        assert!(error.starts_with("RegistryUnavailable: ") && error.contains(want), "{error}");
        assert!(error.contains(&format!("by the proxy http://{} (HTTPS_PROXY)", proxy.host())), "{error}");
        assert!(!error.contains("canary"), "{error}");
        assert!(!proxy.seen().is_empty());
        for request in proxy.seen() {
            assert_eq!((&*request.method, &*request.path), ("CONNECT", "images.example:443"));
            assert!(request.header("authorization").is_none(), "{request:?}");
            assert!(request.header("proxy-authorization").is_some(), "{request:?}");
        }
        room.assert_clean().await;
    }
    Ok(())
}

#[tokio::test]
async fn the_error_names_a_proxy_that_is_at_fault() -> anyhow::Result<()> {
    let (proxy, _) = standing_for_all().await;
    let closed = { Registry::start(|_| Reply::new(200, "")).await.host() };
    // No resolver can be asked for a label of 64 bytes (RFC 1035, 2.3.4).
    let nameless = format!("{}.invalid", "a".repeat(64));
    for (url, want) in [
        (format!("http://{closed}"), format!("no connection, by the proxy http://{closed} (HTTP_PROXY)")),
        (
            format!("http://{nameless}:1"),
            format!("the address of its proxy http://{nameless}:1 (HTTP_PROXY) cannot be looked up"),
        ),
        (format!("http://{}", proxy.host()), "HTTP 407 (the proxy on the way asks for a login)".to_owned()),
        (
            "socks5://user:canary@p.example:1080".to_owned(),
            "its proxy cannot be used: HTTP_PROXY of the daemon's environment".to_owned(),
        ),
    ] {
        let room = plain("").await?;
        under(&room, &[("HTTP_PROXY", url.clone())]);
        let error = room.refused("images.example/app:v1").await;
        assert!(error.contains(&want) && !error.contains("canary"), "{url}: {error}");
        let told = room.images.explain("images.example/app:v1", None)?;
        assert!(told[0].steps[0].notes.iter().any(|note| note.contains("HTTP_PROXY")), "{told:?}");
        room.assert_clean().await;
    }
    Ok(())
}
