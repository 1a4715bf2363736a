//! Artifacts: what registries hold beside images (a model, a chart, a list of contents). None can be run, but a pod may mount one
//! as an image volume, and the request to pull does not say what for. So artifacts are pulled like images, each layer as one
//! read-only file, and refused when a container is to be made of one (docs/decisions/038).

use std::collections::BTreeSet;
use std::io::{self, Cursor, Read};

use super::config::{ConfigFile, ImageConfig, LayerPlan};
use super::document::{ContentError, Descriptor, MAX_LAYERS, cut};
use super::platform::Platform;
use crate::storage::Digest;

/// A layer that stands for none: an artifact without content has one, as a manifest must have a layer.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Annotations that name a layer's file; the first that is there counts.
const NAMES: [&str; 2] = ["org.opencontainers.image.title", "org.cncf.model.filepath"];
/// Longest name of a file, and of one component of it, in bytes.
const MAX_NAME: usize = 1024;
const MAX_COMPONENT: usize = 255;

/// What an artifact says about a process to run: nothing.
pub(super) fn config_file() -> ConfigFile {
    let platform = Platform { os: String::new(), architecture: String::new(), variant: None };
    ConfigFile { config: ImageConfig::default(), platform, created: String::new(), diff_ids: Vec::new() }
}

/// The files of an artifact, as layers that no other image has.
///
/// # Errors
/// [`ContentError::FileName`] for a name that could lead elsewhere or that two layers share, [`ContentError::TooManyLayers`],
/// and [`ContentError::Json`] for a digest that is none.
pub(super) fn plan(layers: &[Descriptor]) -> Result<Vec<LayerPlan>, ContentError> {
    let files = layers.iter().filter(|layer| layer.media_type != EMPTY);
    let files = files.map(file).collect::<Result<Vec<LayerPlan>, ContentError>>()?;
    if files.len() > MAX_LAYERS {
        return Err(ContentError::TooManyLayers(files.len()));
    }
    let names: BTreeSet<&str> = files.iter().filter_map(|plan| plan.file.as_deref()).collect();
    for (at, name) in files.iter().filter_map(|plan| plan.file.as_deref()).enumerate() {
        let above = name.match_indices('/').any(|(end, _)| names.contains(&name[..end]));
        let twice = files[..at].iter().any(|other| other.file.as_deref() == Some(name));
        if above || twice {
            return Err(ContentError::FileName(cut(name), "another layer has it, too"));
        }
    }
    Ok(files)
}

fn file(layer: &Descriptor) -> Result<LayerPlan, ContentError> {
    let digest = layer.digest()?;
    let said = |key: &&str| layer.annotations.as_ref().and_then(|all| all.get(*key)).filter(|name| !name.is_empty());
    let name = NAMES.iter().find_map(said).cloned().unwrap_or_else(|| format!("sha256-{}", digest.hex()));
    check_name(&name).map_err(|why| ContentError::FileName(cut(&name), why))?;
    // The same content under the same name is the same layer, whatever artifact it is of.
    let chain = Digest::of(format!("the file {name} with the content {digest}").as_bytes());
    // The archive that it is put into (see `archive`) has a digest that nobody knows beforehand; that of the content counts.
    Ok(LayerPlan { chain, diff_id: digest.clone(), digest, size: layer.size, file: Some(name) })
}

/// A relative path that stays below the folder that it is in, and that no layer format gives another meaning.
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.len() > MAX_NAME {
        return Err("it is longer than 1024 bytes");
    }
    if name.chars().any(char::is_control) {
        return Err("it has control characters in it");
    }
    for component in name.split('/') {
        if matches!(component, "" | "." | "..") {
            return Err("it is not a plain path below the volume");
        }
        if component.len() > MAX_COMPONENT {
            return Err("a part of it is longer than 255 bytes");
        }
        if component.starts_with(".wh.") {
            return Err("it begins as the mark of a removed file does");
        }
    }
    Ok(())
}

/// A layer's archive of one file of root's, made around its content as that is read.
pub(super) fn archive<'a>(
    name: &str,
    size: u64,
    content: &'a mut (dyn Read + Send),
) -> io::Result<impl Read + Send + 'a> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, name, io::empty())?;
    let mut head = builder.into_inner()?;
    // The two empty blocks at its end are to come after the content.
    head.truncate(head.len().saturating_sub(1024));
    let tail = io::repeat(0).take(size.wrapping_neg() % 512 + 1024);
    Ok(Cursor::new(head).chain(content.take(size)).chain(tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layer(kind: &str, title: Option<&str>) -> Descriptor {
        let annotations = title.map(|title| [(NAMES[0].to_owned(), title.to_owned())].into());
        let digest = Digest::of(title.unwrap_or_default().as_bytes()).to_string();
        Descriptor { media_type: kind.into(), digest, size: 1, platform: None, artifact_type: None, annotations }
    }

    fn names(layers: &[Descriptor]) -> Result<Vec<String>, ContentError> {
        Ok(plan(layers)?.into_iter().filter_map(|plan| plan.file).collect())
    }

    #[test]
    fn each_layer_is_a_file_by_its_title() {
        let unnamed = format!("sha256-{}", Digest::of(b"").hex());
        let all = [layer("x/y", Some("model/a.bin")), layer("x/y", Some("model/b.bin")), layer("x/y", None)];
        assert_eq!(names(&all), Ok(vec!["model/a.bin".into(), "model/b.bin".into(), unnamed]));
        assert_eq!(names(&[layer(EMPTY, None)]), Ok(Vec::new()));
        // Also what could be unpacked: the artifact's maker named a file.
        let archive = layer("application/vnd.oci.image.layer.v1.tar+gzip", Some("all.tgz"));
        assert_eq!(names(&[archive]), Ok(vec!["all.tgz".into()]));
        let mut model = layer("x/y", None);
        model.annotations = Some([(NAMES[1].to_owned(), "weights".to_owned())].into());
        assert_eq!(names(&[model]), Ok(vec!["weights".into()]));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let long = "a".repeat(256);
        let deep = "a/".repeat(600) + "a";
        for bad in [
            "/etc/passwd",
            "../x",
            "a/../../x",
            ".",
            "a//b",
            "a/",
            "./a",
            ".wh.x",
            "a/.wh..wh..opq",
            "a\0b",
            "a\nb",
            &long,
            &deep,
        ] {
            assert!(matches!(names(&[layer("x/y", Some(bad))]), Err(ContentError::FileName(..))), "{bad}");
        }
        for both in [["a", "a"], ["a", "a/b"], ["a/b/c", "a"], ["a/b", "a/b/c"]] {
            let layers = both.map(|title| layer("x/y", Some(title)));
            assert!(matches!(names(&layers), Err(ContentError::FileName(..))), "{both:?}");
        }
        assert!(names(&[layer("x/y", Some("a")), layer("x/y", Some("ab")), layer("x/y", Some("a.b/c"))]).is_ok());
        let many: Vec<Descriptor> = (0..=MAX_LAYERS).map(|n| layer("x/y", Some(&n.to_string()))).collect();
        assert_eq!(names(&many), Err(ContentError::TooManyLayers(MAX_LAYERS + 1)));
    }

    proptest! {
        #[test]
        fn an_archive_holds_the_content_under_the_name(
            name in "[a-z.]{1,20}(/[a-z ]{1,120}){0,3}", content in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            prop_assume!(check_name(&name).is_ok());
            let mut source = content.as_slice();
            let mut bytes = Vec::new();
            archive(&name, content.len() as u64, &mut source)?.read_to_end(&mut bytes)?;
            prop_assert_eq!(bytes.len() % 512, 0);
            let mut archive = tar::Archive::new(bytes.as_slice());
            let mut entries = archive.entries()?;
            let mut entry = entries.next().expect("one entry")?;
            let path = entry.path()?.into_owned();
            prop_assert_eq!(path.to_str(), Some(name.as_str()));
            let mut found = Vec::new();
            entry.read_to_end(&mut found)?;
            prop_assert_eq!(found, content);
            prop_assert!(entries.next().is_none());
        }
    }
}
