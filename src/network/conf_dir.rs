//! The folder of network configurations: the first legal file in lexical order is the pods' network; every file that is not
//! legal, or that names a network which an earlier one configures, is named with what is wrong with it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::conf::{self, ConfError, NetworkList, PluginConf};

/// Largest configuration file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;
/// Most files of a folder that are looked at.
const FILES_MAX: usize = 256;

/// What the folder says.
#[derive(Debug)]
pub struct Loaded {
    /// The network of pods, and the file it is from.
    pub list: Option<(PathBuf, NetworkList)>,
    /// Files that are of no use, in order, each with the reason.
    pub invalid: Vec<(PathBuf, String)>,
    /// Why the folder could not be read; `None` also when it is merely empty.
    pub unreadable: Option<io::Error>,
}

/// Reads the folder. It blocks on the disk.
#[must_use]
pub fn load(dir: &Path) -> Loaded {
    let mut loaded = Loaded { list: None, invalid: Vec::new(), unreadable: None };
    let files = match files(dir, &["conflist", "conf", "json"]) {
        Ok(files) => files,
        Err(error) => {
            loaded.unreadable = Some(error);
            return loaded;
        }
    };
    let mut owners: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in files {
        match load_file(dir, &path) {
            Ok(list) => {
                if let Some(owner) = owners.get(&list.name) {
                    let reason = format!("network {:?} is configured by {} already", list.name, owner.display());
                    loaded.invalid.push((path, reason));
                    continue;
                }
                owners.insert(list.name.clone(), path.clone());
                if loaded.list.is_none() {
                    loaded.list = Some((path, list));
                }
            }
            Err(error) => loaded.invalid.push((path, error.to_string())),
        }
    }
    loaded
}

impl Loaded {
    /// Lets the network that was in use stay when its file is no longer legal: a file that is being written, or was written
    /// wrongly, must not put new pods on another network or on none. It goes with its file.
    pub fn keep(&mut self, file: Option<&Path>, list: Option<&NetworkList>) {
        let (Some(file), Some(list)) = (file, list) else { return };
        let broken = self.invalid.iter().any(|(path, _)| path == file);
        if broken && self.list.as_ref().is_none_or(|(chosen, _)| chosen.as_path() > file) {
            self.list = Some((file.to_owned(), list.clone()));
        }
    }
}

fn load_file(dir: &Path, path: &Path) -> Result<NetworkList, ConfError> {
    let bytes = read(path)?;
    if path.extension().is_some_and(|extension| extension == "conflist") {
        conf::parse_list(&bytes, &|name| plugin_files(&dir.join(name)))
    } else {
        conf::parse_single(&bytes)
    }
}

/// The plugins of a network that are kept in files of their own (`<dir>/<network>/*.conf`).
fn plugin_files(dir: &Path) -> Result<Vec<PluginConf>, ConfError> {
    let files = match files(dir, &["conf"]) {
        Ok(files) => files,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Vec::new(),
        Err(error) => return Err(ConfError::Read(error)),
    };
    let one = |path: &PathBuf| {
        let value = serde_json::from_slice(&read(path)?).map_err(ConfError::Json)?;
        conf::plugin(&value)
    };
    let named =
        |path: &PathBuf, source| ConfError::PluginFile { path: path.display().to_string(), source: Box::new(source) };
    files.iter().map(|path| one(path).map_err(|source| named(path, source))).collect()
}

/// The files with one of the extensions, in the order of their names' bytes. Hidden ones are an editor's or a copy's.
fn files(dir: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let wanted = Path::new(&name).extension().is_some_and(|found| extensions.iter().any(|one| found == *one));
        if wanted && !name.as_encoded_bytes().starts_with(b".") && !entry.file_type()?.is_dir() {
            files.push(entry.path());
        }
    }
    files.sort();
    files.truncate(FILES_MAX);
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, ConfError> {
    // Without O_NONBLOCK a fifo with a legal name would hold the reader for ever.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).expect("open flags are small");
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(ConfError::Read)?;
    if !file.metadata().map_err(ConfError::Read)?.is_file() {
        return Err(ConfError::NotFile);
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(ConfError::Read)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= FILE_MAX) {
        Ok(bytes)
    } else {
        Err(ConfError::TooLarge(FILE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const GOOD: &str = r#"{"name": "NAME", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}"#;
    const SINGLE: &str = r#"{"name": "single", "cniVersion": "0.3.1", "type": "bridge"}"#;

    fn chosen(files: &[(&str, &str)]) -> (Option<String>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), text).unwrap();
        }
        let loaded = load(dir.path());
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        (loaded.list.map(|(_, list)| list.name), loaded.invalid.iter().map(|(path, _)| name(path)).collect())
    }

    #[test]
    fn the_first_legal_file_in_lexical_order_is_taken() {
        let good = |name: &str| GOOD.replace("NAME", name);
        let (first, second) = (good("first"), good("second"));
        for (files, list, invalid) in [
            (vec![], None, vec![]),
            (vec![("20-b.conflist", &*second), ("10-a.conflist", &*first)], Some("first"), vec![]),
            (vec![("10-a.conflist", "{"), ("20-b.conflist", &*second)], Some("second"), vec!["10-a.conflist"]),
            (vec![("10-a.json", SINGLE), ("20-b.conflist", &*second)], Some("single"), vec![]),
            (vec![("10-a.conf", SINGLE)], Some("single"), vec![]),
            (vec![("10-a.conf", &*first)], Some("first"), vec![]),
            (vec![("10-a.conflist", SINGLE)], None, vec!["10-a.conflist"]),
            (vec![("10-a.conflist.bak", &*first), (".10-a.conflist", &*first), ("a", &*first)], None, vec![]),
            (vec![("10-a.conflist", "{"), ("20-b.conf", "")], None, vec!["10-a.conflist", "20-b.conf"]),
            (vec![("10-a.conflist", &*first), ("20-b.conflist", "{")], Some("first"), vec!["20-b.conflist"]),
            (vec![("10-a.conflist", &*first), ("20-b.conflist", &*second)], Some("first"), vec![]),
            (vec![("10-a.conflist", &*first), ("20-b.conflist", &*first)], Some("first"), vec!["20-b.conflist"]),
            (
                vec![("10-a.conflist", "{"), ("20-b.conf", SINGLE), ("30-c.json", SINGLE)],
                Some("single"),
                vec!["10-a.conflist", "30-c.json"],
            ),
            (vec![("a.conflist/x", ""), ("b.conflist", &*second)], Some("second"), vec![]),
            (vec![("a.conflist", &*first), ("first/10.conf", r#"{"type": "a/b"}"#)], None, vec!["a.conflist"]),
        ] {
            let wanted = (list.map(str::to_owned), invalid.iter().map(|name| (*name).to_owned()).collect());
            assert_eq!(chosen(&files), wanted, "{files:?}");
        }
    }

    #[test]
    fn a_link_that_leads_to_itself_is_named_and_passed_by() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("10-a.conflist", dir.path().join("10-a.conflist")).unwrap();
        fs::write(dir.path().join("20-b.conflist"), GOOD.replace("NAME", "second")).unwrap();
        let loaded = load(dir.path());
        assert_eq!(loaded.list.unwrap().1.name, "second");
        assert!(
            loaded.invalid[0].1.starts_with("cannot be read: Too many levels of symbolic links"),
            "{:?}",
            loaded.invalid
        );
    }

    #[test]
    fn the_network_in_use_outlives_a_bad_edit_but_not_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("20-b.conflist");
        fs::write(&file, GOOD.replace("NAME", "used")).unwrap();
        let (path, used) = load(dir.path()).list.unwrap();
        let kept = || {
            let mut loaded = load(dir.path());
            loaded.keep(Some(&path), Some(&used));
            loaded.list.map(|(_, list)| list.name)
        };
        fs::write(&file, "{").unwrap();
        assert_eq!(kept().as_deref(), Some("used"));
        // One that comes after it does not take its place, one that comes before it does.
        fs::write(dir.path().join("30-c.conflist"), GOOD.replace("NAME", "after")).unwrap();
        assert_eq!(kept().as_deref(), Some("used"));
        fs::write(dir.path().join("10-a.conflist"), GOOD.replace("NAME", "before")).unwrap();
        assert_eq!(kept().as_deref(), Some("before"));
        fs::remove_file(dir.path().join("10-a.conflist")).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(kept().as_deref(), Some("after"));
    }

    #[test]
    fn a_folder_that_is_not_there_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = load(&dir.path().join("net.d"));
        assert_eq!(loaded.unreadable.unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn neither_a_fifo_nor_a_giant_holds_the_reader() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("10.conflist");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        fs::File::create(dir.path().join("20.conflist")).unwrap().set_len(FILE_MAX + 1).unwrap();
        let reasons: Vec<_> = load(dir.path()).invalid.into_iter().map(|(_, reason)| reason).collect();
        assert_eq!(reasons, ["not a regular file", "larger than 1048576 bytes"]);
    }
}
