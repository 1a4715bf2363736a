//! Pulls at the same time, and pulls that nobody waits for any more.

use super::*;
use crate::image::tests::server::Reply;
use tokio::sync::Semaphore;

/// A registry whose manifests, or whose layers, wait for permits.
async fn gated(layers: bool, images: Vec<(TestImage, &'static str)>) -> (Registry, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let handle = gate.clone();
    let registry = Registry::start(move |request| {
        let answers = images.iter().map(|(image, tag)| image.answer(request, "app", &[tag]));
        let reply = answers.into_iter().find(|reply| reply.status != 404).unwrap_or_else(|| Reply::new(404, ""));
        let of = |image: &TestImage| (0..image.layers.len()).any(|layer| request.path.ends_with(&image.blob(layer)));
        let waits =
            if layers { images.iter().any(|(image, _)| of(image)) } else { request.path.contains("/manifests/") };
        Reply { gate: waits.then(|| handle.clone()), ..reply }
    })
    .await;
    (registry, gate)
}

fn patient(room: &Room) {
    let patience = Patience { progress: Duration::from_secs(60), ..room.images.0.settings.load().patience.clone() };
    room.images.0.settings.store(Arc::new(Settings { patience, ..Settings::of(&settings(room.dir.path(), &[])) }));
}

#[tokio::test]
async fn identical_pulls_are_one() -> anyhow::Result<()> {
    let image = TestImage::new("one");
    let (registry, gate) = gated(false, vec![(image.clone(), "v1")]).await;
    let room = Room::trusting(&[&registry]).await?;
    patient(&room);
    let name = registry.name("app:v1");
    let pulls = futures_util::future::join_all((0..5).map(|_| room.pull(&name)));
    let open = async {
        until(|| registry.count("/manifests/") == 1).await;
        gate.add_permits(1);
    };
    let (results, ()) = tokio::join!(pulls, open);
    for result in results {
        assert_eq!(result?.id, image.id());
    }
    assert_eq!((registry.count("/manifests/"), registry.count("/blobs/")), (1, 3));

    // Other credentials are another pull: the registry decides for each.
    let auth = AuthConfig { username: "u".into(), password: "p".into(), ..AuthConfig::default() };
    gate.add_permits(2);
    let (a, b) = tokio::join!(room.pull(&name), room.pull_as(&name, Some(auth)));
    assert_eq!((a?.id.clone(), b?.id.clone()), (image.id(), image.id()));
    assert_eq!(registry.count("HEAD "), 2);
    Ok(())
}

#[tokio::test]
async fn a_layer_that_two_pulls_need_is_fetched_once() -> anyhow::Result<()> {
    let (a, b) = (TestImage::new("left"), TestImage::new("right"));
    let (registry, gate) = gated(true, vec![(a.clone(), "a"), (b.clone(), "b")]).await;
    let room = Room::trusting(&[&registry]).await?;
    patient(&room);
    let (left, right) = (registry.name("app:a"), registry.name("app:b"));
    let base = Digest::of(&a.layers[0]);
    let chain = a.diff_ids[0].clone();
    let open = async {
        until(|| room.images.0.layer_flights.waiting(&chain) == 2).await;
        gate.add_permits(100);
    };
    let (left, right, ()) = tokio::join!(room.pull(&left), room.pull(&right), open);
    assert_ne!(left?.id, right?.id);
    assert_eq!(registry.count(&format!("/blobs/{base}")), 1);
    assert_eq!((room.layers.count(), room.layers.stages()), (3, 3));
    until(|| room.layers.leases() == 0).await;
    Ok(())
}

/// What a registry refuses to others, it may give to us: however many come before.
#[tokio::test]
async fn the_refusals_of_others_are_not_ours() -> anyhow::Result<()> {
    let image = TestImage::new("refused");
    let (gate, served) = (Arc::new(Semaphore::new(0)), image.clone());
    let held = gate.clone();
    let registry = Registry::start(move |request| {
        let reply = served.answer(request, "app", &["v1"]);
        if !request.path.ends_with(&served.blob(0)) {
            return reply;
        }
        // `good:p`.
        let reply = match request.header("authorization") {
            None => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\""),
            Some("Basic Z29vZDpw") => reply,
            Some(_) => Reply::new(403, ""),
        };
        Reply { gate: Some(held.clone()), ..reply }
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    patient(&room);
    let name = registry.name("app:v1");
    let users = ["a", "b", "c", "d", "e", "good"];
    let pulls = futures_util::future::join_all(users.map(|user| {
        let auth = AuthConfig { username: user.into(), password: "p".into(), ..AuthConfig::default() };
        room.pull_as(&name, Some(auth))
    }));
    let open = async {
        until(|| room.images.0.layer_flights.waiting(&image.diff_ids[0]) == users.len()).await;
        gate.add_permits(1000);
    };
    let (results, ()) = tokio::join!(pulls, open);
    let mut refused = 0;
    for (user, result) in users.iter().zip(results) {
        match result {
            // Who comes after the good one has the layer from it.
            Ok(record) => assert_eq!(record.id, image.id()),
            Err(error) => {
                assert!(*user != "good" && error.to_string().contains("access denied"), "{user}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "nobody was refused");
    until(|| room.layers.leases() == 0).await;
    Ok(())
}

#[tokio::test]
async fn a_pull_ends_with_its_last_caller() -> anyhow::Result<()> {
    let image = TestImage::new("cancelled");
    let (registry, gate) = gated(true, vec![(image.clone(), "v1")]).await;
    let room = Room::trusting(&[&registry]).await?;
    patient(&room);
    let name = registry.name("app:v1");
    let first = room.pull(&name);
    let second = room.pull(&name);
    let waiting = async { until(|| registry.count("/blobs/") == 3).await };
    tokio::select! {
        _ = first => panic!("nothing to end it"),
        _ = second => panic!("nothing to end it"),
        () = waiting => {}
    }
    room.assert_clean().await;
    // Its connections are closed, and the next pull starts afresh.
    gate.add_permits(100);
    assert_eq!(room.pull(&name).await?.id, image.id());
    Ok(())
}

#[tokio::test]
async fn a_deadline_of_no_time_leaves_nothing_odd() -> anyhow::Result<()> {
    let (registry, image) = good("hurried").await;
    let room = Room::trusting(&[&registry]).await?;
    let name = registry.name("app:v1");
    for micros in (0..40).map(|n| n * 300) {
        let pulled = tokio::time::timeout(Duration::from_micros(micros), room.pull(&name)).await;
        if let Ok(record) = pulled {
            assert_eq!(record?.id, image.id());
        }
        // All of it or nothing.
        if let Some(record) = room.images.find(&name)? {
            assert!(record.chain.iter().all(|layer| room.layers.has_layer(layer)));
        }
        room.images.remove(&name).await?;
    }
    until(|| room.layers.staged() == 0 && room.layers.leases() == 0).await;
    room.images.remove(&name).await?;
    room.images.0.collect();
    room.assert_clean().await;
    assert_eq!(room.pull(&name).await?.id, image.id());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pulls_and_removals_at_once_never_lose_a_layer() -> anyhow::Result<()> {
    let (registry, image) = good("busy").await;
    let room = Arc::new(Room::trusting(&[&registry]).await?);
    let name = registry.name("app:v1");
    let workers = (0..6).map(|worker| {
        let (room, name) = (room.clone(), name.clone());
        crate::task::spawn("test-worker", async move {
            for _ in 0..15 {
                if worker % 2 == 0 {
                    room.pull(&name).await.map(|_| ())?;
                } else {
                    room.images.remove(&name).await?;
                }
            }
            Ok::<_, ImageError>(())
        })
    });
    for worker in futures_util::future::join_all(workers).await {
        worker??;
    }
    let record = room.pull(&name).await?;
    until(|| room.layers.leases() == 0).await;
    room.images.0.collect();
    assert_eq!(record.id, image.id());
    assert!(record.chain.iter().all(|layer| room.layers.has_layer(layer)));
    Ok(())
}
