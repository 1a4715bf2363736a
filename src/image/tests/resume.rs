//! Downloads that break, stall, crawl, or are not what they were.

use super::*;
use crate::image::tests::server::{Reply, Request, Then};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A registry whose second layer is served by `change`, which is told how often it was asked for before.
async fn layered(
    change: impl Fn(usize, &Request, &[u8]) -> Option<Reply> + Send + Sync + 'static,
) -> (Registry, TestImage) {
    let image = TestImage::new("resumed");
    let (served, asked) = (image.clone(), AtomicUsize::new(0));
    let registry = Registry::start(move |request| {
        let usual = || served.answer(request, "app", &["v1"]);
        if !request.path.ends_with(&served.blob(1)) {
            return usual();
        }
        change(asked.fetch_add(1, Ordering::SeqCst), request, &served.layers[1]).unwrap_or_else(usual)
    })
    .await;
    (registry, image)
}

fn cut(layer: &[u8], then: Then) -> Reply {
    Reply { cut: Some((100_000, then)), ..Reply::new(200, layer) }
}

#[tokio::test]
async fn another_version_of_a_layer_is_noticed_when_its_download_goes_on() -> anyhow::Result<()> {
    for (first, second, good) in [
        ("\"a\"", "\"a\"", true),
        ("\"a\"", "\"b\"", false),
        // What promises nothing, decides nothing: the digest does.
        ("W/\"a\"", "W/\"b\"", true),
        ("\"a\"", "", true),
    ] {
        let (registry, image) = layered(move |asked, request, layer| {
            let reply = match asked {
                0 => cut(layer, Then::Close),
                _ => {
                    let from: usize =
                        request.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()?;
                    Reply::new(206, &layer[from..])
                        .with("content-range", format!("bytes {from}-{}/{}", layer.len() - 1, layer.len()))
                }
            };
            let tag = if asked == 0 { first } else { second };
            Some(if tag.is_empty() { reply } else { reply.with("etag", tag) })
        })
        .await;
        let room = Room::trusting(&[&registry]).await?;
        let name = registry.name("app:v1");
        if good {
            assert_eq!(room.pull(&name).await?.id, image.id());
        } else {
            let error = room.refused(&name).await;
            assert!(error.contains("not the same any more"), "{error}");
            room.assert_clean().await;
        }
        assert_eq!(registry.count(&image.blob(1)), 2);
    }
    Ok(())
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_not_taken() -> anyhow::Result<()> {
    type Range = fn(usize) -> String;
    // The header for a layer of so many bytes, what the error says, and how often the layer is asked for.
    let cases: [(Range, &str, usize); 4] = [
        (|all| format!("bytes 100000-{}/{}", all - 1, all + 1), "bytes, not", 2),
        (|all| format!("bytes 0-{}/{all}", all - 1), "another range", 4),
        (|all| format!("bytes 100000-{all}/{all}"), "another range", 4),
        (|_| "bytes".to_owned(), "another range", 4),
    ];
    for (range, want, asked) in cases {
        let (registry, image) = layered(move |asked, _, layer| {
            Some(match asked {
                0 => cut(layer, Then::Close),
                _ => Reply::new(206, &layer[100_000..]).with("content-range", range(layer.len())),
            })
        })
        .await;
        let room = Room::trusting(&[&registry]).await?;
        let error = room.refused(&registry.name("app:v1")).await;
        assert!(error.contains(want), "{error}");
        assert!(registry.count(&image.blob(1)) <= asked, "{} requests", registry.count(&image.blob(1)));
        room.assert_clean().await;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_refuses_ranges_is_asked_for_all() -> anyhow::Result<()> {
    let (registry, image) = layered(|asked, request, layer| match (asked, request.header("range")) {
        (0, _) => Some(cut(layer, Then::Close)),
        (_, Some(_)) => Some(Reply::new(416, "")),
        _ => None,
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    assert_eq!(room.pull(&registry.name("app:v1")).await?.id, image.id());
    assert_eq!((registry.count(&image.blob(1)), room.layers.stages()), (3, 2));
    Ok(())
}

#[tokio::test]
async fn a_length_other_than_the_manifests_is_not_read() -> anyhow::Result<()> {
    let (registry, image) = layered(|_, _, layer| {
        Some(Reply { length: Some(1 << 40), cut: Some((0, Then::Hang)), ..Reply::new(200, layer) })
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    let error = room.refused(&registry.name("app:v1")).await;
    assert!(error.contains("the layer has 1099511627776 bytes"), "{error}");
    assert_eq!(registry.count(&image.blob(1)), 1);
    room.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn a_connection_that_stalls_is_left_for_a_new_one() -> anyhow::Result<()> {
    let (registry, image) = layered(|asked, _, layer| (asked == 0).then(|| cut(layer, Then::Hang))).await;
    let room = Room::trusting(&[&registry]).await?;
    assert_eq!(room.pull(&registry.name("app:v1")).await?.id, image.id());
    let asked = registry.headers("range");
    assert!(asked.len() == 1 && asked[0] != "bytes=0-", "{asked:?}");
    // Once: a server that stalls each time is given up, however far each connection came.
    let (registry, image) = layered(|asked, request, layer| {
        let from = if asked == 0 {
            0
        } else {
            request.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()?
        };
        let part = Reply { cut: Some((20_000, Then::Hang)), ..Reply::new(206, &layer[from..]) };
        let range = format!("bytes {from}-{}/{}", layer.len() - 1, layer.len());
        Some(if asked == 0 { Reply { status: 200, ..part } } else { part.with("content-range", range) })
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    let error = room.refused(&registry.name("app:v1")).await;
    assert!(error.starts_with("RegistryUnavailable: ") && error.contains("no byte for 500 ms"), "{error}");
    assert_eq!(registry.count(&image.blob(1)), 2);
    room.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn a_download_that_crawls_is_given_up() -> anyhow::Result<()> {
    let crawling = |_: usize, _: &Request, layer: &[u8]| Some(cut(layer, Then::Drip));
    let (slow, image) = layered(crawling).await;
    let served = image.clone();
    let good = Registry::start(move |request| served.answer(request, "app", &["v1"])).await;
    let quick = |room: &Room| {
        let patience = Patience { least_rate: 1_000_000, ..room.images.0.settings.load().patience.clone() };
        room.images.0.settings.store(Arc::new(Settings { patience, ..Settings::of(&settings(room.dir.path(), &[])) }));
    };
    let room = Room::trusting(&[&slow]).await?;
    quick(&room);
    let error = room.refused(&slow.name("app:v1")).await;
    assert!(error.starts_with("RegistryUnavailable: ") && error.contains("too slow: "), "{error}");
    room.assert_clean().await;
    // A mirror that crawls costs one window; what it sent is not asked for again.
    let conf = format!(
        "[[registry]]\nlocation = \"{}\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        good.host(),
        slow.host()
    );
    let room = Room::new(&conf).await?;
    quick(&room);
    let before = slow.count(&image.blob(1));
    assert_eq!(room.pull(&good.name("app:v1")).await?.id, image.id());
    assert_eq!((slow.count(&image.blob(1)) - before, good.count(&image.blob(1))), (1, 1));
    let asked = good.headers("range");
    assert!(asked.len() == 1 && asked[0] != "bytes=0-", "{asked:?}");
    Ok(())
}
