//! Layers whose entries want out of their folder, and other archives that nobody honest makes.

use anyhow::{Context as _, Result, ensure};

use crate::archive::{Entry, Image, tarball};
use crate::bad_registry::{fails, hostile_node};
use crate::hostile::Hostile;
use crate::node::Node;

crate::once!(escapes_are_refused, escapes_stay_inside, a_bomb_of_entries);

/// A folder beside the store that no layer may reach; its one file has known content.
fn canary(node: &Node) -> Result<String> {
    let folder = node.path("canary");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("file"), "untouched")?;
    Ok(folder.to_string_lossy().into_owned())
}

fn untouched(node: &Node) -> Result<()> {
    let folder = node.path("canary");
    let names: Vec<_> = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(names == ["file"], "the canary's folder holds {names:?}");
    let content = std::fs::read_to_string(folder.join("file"))?;
    ensure!(content == "untouched", "the canary's file holds {content}");
    let links = std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(folder.join("file"))?);
    ensure!(links == 1, "the canary's file has {links} names");
    ensure!(!node.path("escaped").exists() && !std::path::Path::new("/escaped").exists(), "a file outside");
    Ok(())
}

fn serve(hostile: &Hostile, name: &str, entries: &[Entry<'_>]) {
    hostile.serve(name, &Image::of(&tarball(entries)));
}

async fn escapes_are_refused() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    let canary = canary(&node)?;
    let file = format!("{canary}/file");
    // From the layer's folder up to the top, more often than needed.
    let up = "../".repeat(12);
    let (up_file, up_link) = (format!("{up}escaped"), format!("{up}{}", &file[1..]));
    let cases: Vec<(&str, Vec<Entry<'_>>, &str)> = vec![
        ("dotdot", vec![Entry::file("../escaped", b"x")], "../escaped"),
        ("many-dotdots", vec![Entry::file(&up_file, b"x")], "../escaped"),
        ("inner-dotdot", vec![Entry::folder("a/"), Entry::file("a/../../escaped", b"x")], "a/../../escaped"),
        ("dotdot-folder", vec![Entry::folder("../escaped/")], "../escaped"),
        ("hardlink-up", vec![Entry::hardlink("link", &up_link)], "link"),
        ("hardlink-absolute", vec![Entry::hardlink("link", &file)], "link"),
        ("hardlink-then-write", vec![Entry::hardlink("link", &up_link), Entry::file("link", b"overwritten")], "link"),
        ("dot-is-a-link", vec![Entry::symlink(".", &canary), Entry::file("pwned", b"x")], "."),
        ("dot-is-a-file", vec![Entry::file(".", b"x")], "."),
        ("no-name", vec![Entry::file("", b"x")], ""),
        ("whiteout-of-parent", vec![Entry::file(".wh...", b"")], ".wh..."),
        ("whiteout-of-self", vec![Entry::file(".wh..", b"")], ".wh.."),
        ("whiteout-up", vec![Entry::file("../.wh.canary", b"")], "../.wh.canary"),
    ];
    for (name, entries, entry) in cases {
        serve(&hostile, name, &entries);
        fails(&node, &client, &before, name, &[entry]).await?;
        untouched(&node).with_context(|| name.to_owned())?;
    }
    Ok(())
}

async fn escapes_stay_inside() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    let canary = canary(&node)?;
    let file = format!("{canary}/file");
    let up = "../".repeat(12);
    let relative = format!("{up}{}", &canary[1..]);
    // Legal archives whose links lead elsewhere inside of a container: the entry is refused by name, or lands inside.
    let cases: Vec<(&str, Vec<Entry<'_>>)> = vec![
        ("link-then-file", vec![Entry::symlink("link", &canary), Entry::file("link/pwned", b"x")]),
        ("relative-link", vec![Entry::symlink("link", &relative), Entry::file("link/pwned", b"x")]),
        ("link-is-written", vec![Entry::symlink("link", &file), Entry::file("link", b"overwritten")]),
        ("chain", vec![Entry::symlink("one", ".."), Entry::symlink("two", "one/.."), Entry::file("two/escaped", b"x")]),
        (
            "link-then-folder",
            vec![Entry::symlink("link", &canary), Entry::folder("link/"), Entry::file("link/pwned", b"x")],
        ),
        ("hardlink-through", vec![Entry::symlink("link", &canary), Entry::hardlink("other", "link/file")]),
        ("whiteout-through", vec![Entry::symlink("link", &canary), Entry::file("link/.wh.file", b"")]),
        ("opaque-through", vec![Entry::symlink("link", &canary), Entry::file("link/.wh..wh..opq", b"")]),
    ];
    for (name, entries) in cases {
        serve(&hostile, name, &entries);
        let full = format!("hostile.example/{name}:latest");
        match client.pull(&full).await {
            Ok(_) => client.remove_image(&full).await?,
            Err(status) => ensure!(status.message().contains(&full), "{name}: {}", status.message()),
        }
        untouched(&node).with_context(|| name.to_owned())?;
        before.assert_same(&node).await.with_context(|| name.to_owned())?;
    }
    Ok(())
}

async fn a_bomb_of_entries() -> Result<()> {
    let (node, client, hostile, before) = hostile_node().await?;
    // Deep beyond what a path may be long, one level at a time.
    let deep: Vec<String> = (1..=49).map(|depth| "d/".repeat(depth)).collect();
    let entries: Vec<_> = deep.iter().map(|name| Entry::folder(name)).collect();
    serve(&hostile, "deep", &entries);
    client.pull("hostile.example/deep").await?;
    // Many names of one file, and the same name over and over.
    let names: Vec<String> = (0..2000).map(|n| format!("name-{n}")).collect();
    let mut entries = vec![Entry::file("first", b"x")];
    entries.extend(names.iter().map(|name| Entry::hardlink(name, "first")));
    entries.extend((0..500).map(|_| Entry::file("again", b"y")));
    serve(&hostile, "many", &entries);
    client.pull("hostile.example/many").await?;
    client.clear().await?;
    before.assert_same(&node).await
}
