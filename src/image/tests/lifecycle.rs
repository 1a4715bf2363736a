//! What an image is called, where it shows, and how it goes.

use super::*;
use crate::image::tests::server::Reply;

#[tokio::test]
async fn a_pull_by_tag_is_seen_under_every_name() -> anyhow::Result<()> {
    let (registry, image) = good("tagged").await;
    let room = Room::trusting(&[&registry]).await?;
    assert!(room.images.fs_usage().timestamp_ns > 0);
    let record = room.pull(&registry.name("app:v1")).await?;
    let (name, id) = (registry.name("app"), image.id());
    assert_eq!(record.id, id);
    assert_eq!(record.repo_tags, [format!("{name}:v1")]);
    assert_eq!(record.repo_digests, [format!("{name}@{}", image.digest())]);
    assert_eq!(record.chain.len(), 2);
    assert_eq!(record.chain[1], Digest::chain(Some(&record.chain[0]), &image.diff_ids[1]));
    assert!(record.size > 500_000);
    assert_eq!(
        (record.config.cmd.as_slice(), record.created.as_str()),
        (&["sh".to_owned()][..], "2026-01-02T03:04:05Z")
    );
    let zeros = format!("sha256:{}", "0".repeat(64));
    for (text, found) in [
        (format!("{name}:v1"), true),
        (format!("{name}@{}", image.digest()), true),
        (format!("{name}:other@{}", image.digest()), true),
        (id.to_string(), true),
        (id.hex().to_owned(), true),
        (id.hex()[..8].to_owned(), true),
        (format!("sha256:{}", &id.hex()[..8]), true),
        (name.clone(), false),
        (format!("{name}:v2"), false),
        (image.digest().to_string(), false),
        (zeros, false),
    ] {
        assert_eq!(room.images.find(&text)?.as_ref(), found.then_some(&record), "{text}");
    }
    assert_eq!(room.images.list(None), std::slice::from_ref(&record));
    assert_eq!(room.images.list(Some("nothing")), []);
    assert!(room.images.find("Not A Name").is_err());
    assert!(room.images.find("sha256:../../x").is_err());
    until(|| room.images.fs_usage().bytes > 500_000).await;

    // Unchanged: one cheap question, no download.
    let before = registry.seen().len();
    assert_eq!(room.pull(&registry.name("app:v1")).await?, record);
    assert_eq!((registry.seen().len() - before, registry.count("HEAD ")), (1, 1));

    // The same after a restart, and raw documents are as they came.
    let room = room.reopen().await?;
    assert!(room.images.notes().is_empty(), "{:?}", room.images.notes());
    assert_eq!(room.images.list(None), [record]);
    let stored = std::fs::read(room.dir.path().join("images/blobs/sha256").join(image.digest().hex()))?;
    assert_eq!(stored, image.manifest);
    Ok(())
}

#[tokio::test]
async fn a_pull_by_digest_makes_no_tag() -> anyhow::Result<()> {
    let (registry, image) = good("digest").await;
    let room = Room::trusting(&[&registry]).await?;
    let index = Digest::of(&image.index);
    let record = room.pull(&registry.name(&format!("app@{index}"))).await?;
    assert!(record.repo_tags.is_empty());
    assert_eq!(record.repo_digests, [registry.name(&format!("app@{index}"))]);
    assert_eq!(record.manifest, image.digest());
    let record = room.pull(&registry.name(&format!("app:v1@{}", image.digest()))).await?;
    assert!(record.repo_tags.is_empty());
    assert_eq!(record.repo_digests.len(), 2);
    let record = room.pull(&registry.name("app:index")).await?;
    assert_eq!(record.repo_tags, [registry.name("app:index")]);
    assert_eq!(record.repo_digests.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_moved_tag_leaves_the_old_image_untagged() -> anyhow::Result<()> {
    let (old, new) = (TestImage::new("old"), TestImage::new("new"));
    let moved = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (first, second, switch) = (old.clone(), new.clone(), moved.clone());
    let registry = Registry::start(move |request| {
        if switch.load(std::sync::atomic::Ordering::SeqCst) {
            second.answer(request, "app", &["v1"])
        } else {
            first.answer(request, "app", &["v1"])
        }
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    room.pull(&registry.name("app:v1")).await?;
    moved.store(true, std::sync::atomic::Ordering::SeqCst);
    let record = room.pull(&registry.name("app:v1")).await?;
    assert_eq!(record.id, new.id());
    let left = room.images.find(old.id().as_str())?.expect("the old image");
    assert!(left.repo_tags.is_empty());
    assert_eq!(left.repo_digests.len(), 1);
    assert_eq!(room.images.list(None).len(), 2);
    // The base layer is shared, so it was fetched once.
    assert_eq!((room.layers.count(), registry.count(&new.blob(0))), (3, 1));
    room.images.remove(old.id().as_str()).await?;
    until(|| room.layers.count() == 2).await;
    assert_eq!(room.images.list(None), [record]);
    Ok(())
}

#[tokio::test]
async fn one_image_from_two_registries_is_one_and_goes_as_one() -> anyhow::Result<()> {
    let ((a, image), (b, _)) = (good("twice").await, good("twice").await);
    let room = Room::trusting(&[&a, &b]).await?;
    let first = room.pull(&a.name("app:v1")).await?;
    let second = room.pull(&b.name("app:v1")).await?;
    assert_eq!(first.id, second.id);
    let mut tags = vec![a.name("app:v1"), b.name("app:v1")];
    tags.sort();
    assert_eq!(second.repo_tags, tags);
    assert_eq!(room.layers.stages(), 2);
    let id = image.id().to_string();
    let removals = (0..5).map(|_| async {
        room.images.remove(&id).await.map(|()| room.images.find(&id).is_ok_and(|found| found.is_none()))
    });
    for gone in futures_util::future::join_all(removals).await {
        assert!(gone?);
    }
    room.images.remove(&a.name("app:v1")).await?;
    room.images.remove(&"0".repeat(64)).await?;
    until(|| room.layers.count() == 0).await;
    room.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn a_layer_in_use_outlives_its_image() -> anyhow::Result<()> {
    let (registry, _) = good("used").await;
    let room = Room::trusting(&[&registry]).await?;
    let record = room.pull(&registry.name("app:v1")).await?;
    let lease = room.layers.lease(&record.chain);
    room.images.remove(&registry.name("app:v1")).await?;
    room.images.0.collect();
    assert_eq!((room.images.list(None).len(), room.layers.count()), (0, 2));
    drop(lease);
    room.images.0.collect();
    room.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn damage_drops_one_image_and_never_the_store() -> anyhow::Result<()> {
    let ((a, _), (b, second)) = (good("first").await, good("second").await);
    let room = Room::trusting(&[&a, &b]).await?;
    let first = room.pull(&a.name("app:v1")).await?;
    let kept = room.pull(&b.name("app:v1")).await?;
    room.layers.lose(&first.chain[1]);
    // Pulling again repairs.
    room.pull(&a.name("app:v1")).await?;
    room.layers.lose(&first.chain[1]);
    let room = room.reopen().await?;
    assert!(room.images.notes()[0].contains("layer"), "{:?}", room.images.notes());
    assert_eq!(room.images.list(None), [kept]);

    let blob = room.dir.path().join("images/blobs/sha256").join(second.id().hex());
    std::fs::write(&blob, "{}")?;
    let room = room.reopen().await?;
    assert!(room.images.notes()[0].contains("config"), "{:?}", room.images.notes());
    room.assert_clean().await;

    let kept = room.pull(&b.name("app:v1")).await?;
    let room_dir = room.dir.path().join("images");
    let Room { dir, layers, images } = room;
    until(|| layers.leases() == 0 && Arc::strong_count(&images.0) == 1).await;
    drop(images);
    std::fs::write(room_dir.join("db.redb"), "this is no database".repeat(1000))?;
    let images = Room::open(dir.path(), layers.clone(), &[]).await?;
    assert!(images.notes()[0].contains("set aside"), "{:?}", images.notes());
    let room = Room { dir, layers, images };
    assert!(room_dir.join("db.redb.broken-0").exists());
    // With all its names; nothing is fetched again.
    assert_eq!(room.images.list(None), std::slice::from_ref(&kept));
    let before = b.count("/blobs/");
    assert_eq!(room.pull(&b.name("app:v1")).await?, kept);
    assert_eq!((b.count("/blobs/"), room.layers.count()), (before, 2));
    room.images.remove(&b.name("app:v1")).await?;
    room.reopen().await?.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn two_daemons_do_not_share_a_store() -> anyhow::Result<()> {
    let room = Room::new("").await?;
    let second = Room::open(room.dir.path(), room.layers.clone(), &[]).await;
    assert!(second.is_err());
    assert!(!room.dir.path().join("images/db.redb.broken-0").exists());
    Ok(())
}

#[tokio::test]
async fn pins_follow_the_configuration() -> anyhow::Result<()> {
    let (registry, _) = good("pinned").await;
    let room = Room::with(&insecure(&[&registry]), &["*/app:v*"]).await?;
    assert!(room.pull(&registry.name("app:v1")).await?.pinned);
    room.images.reload(&settings(room.dir.path(), &[]))?;
    assert!(!room.images.list(None)[0].pinned);
    // A file that cannot be used changes nothing.
    std::fs::write(room.dir.path().join("registries.conf"), "[[registry]")?;
    assert!(room.images.reload(&settings(room.dir.path(), &["*"])).is_err());
    assert!(!room.images.list(None)[0].pinned);
    assert_eq!(room.pull(&registry.name("app:v1")).await?.repo_tags.len(), 1);
    Ok(())
}

#[tokio::test]
async fn beginnings_of_ids_must_be_unique() -> anyhow::Result<()> {
    // Enough images that some first digits collide.
    let images: Vec<TestImage> = (0..17).map(|n| TestImage::of(&["base"], &format!("image {n}"), "")).collect();
    let served = images.clone();
    let registry = Registry::start(move |request| {
        let tags: Vec<String> = (0..served.len()).map(|n| format!("v{n}")).collect();
        let answers = served.iter().zip(&tags).map(|(image, tag)| image.answer(request, "app", &[tag]));
        answers.into_iter().find(|reply| reply.status != 404).unwrap_or_else(|| Reply::new(404, ""))
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    for n in 0..images.len() {
        room.pull(&registry.name(&format!("app:v{n}"))).await?;
    }
    let ids: Vec<String> = room.images.list(None).iter().map(|record| record.id.hex().to_owned()).collect();
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!(ids, sorted);
    let shared = ids.windows(2).find(|pair| pair[0][..1] == pair[1][..1]).expect("17 ids, 16 digits");
    let error = room.images.find(&shared[0][..1]).expect_err("ambiguous").to_string();
    assert!(error.contains(&shared[0][..12]) && error.contains("app:v"), "{error}");
    assert!(room.images.remove(&shared[0][..1]).await.is_err());
    Ok(())
}
