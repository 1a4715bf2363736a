//! From folders to one set of rules.
//!
//! `registries.conf` and its drop-ins count together: when one is bad, none of the new ones counts, as a rule that is
//! missing may be the one that blocks. A bad `hosts.toml` only concerns its host: what it said before stays, and if it
//! said nothing yet, names of that host are refused with the reason.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::reference::check_host;
use super::super::stamps::Stamps;
use super::{Registries, RegistriesError, conf, hosts};

/// Most drop-ins, and most hosts with a folder of their own.
const MAX_FOLDER: usize = 4096;

/// What is to be told of the files, one sentence each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Files that cannot be used.
    pub bad: Vec<String>,
    /// Keys that are not known, in files that are used.
    pub unknown: Vec<String>,
}

impl Notes {
    fn unknown(&mut self, path: &Path, told: &[String]) {
        self.unknown.extend(told.iter().map(|one| format!("{}: {one}", path.display())));
    }
}

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    pub conf: PathBuf,
    pub conf_dir: PathBuf,
    /// Folders with a folder for each host.
    pub certs_d: Vec<PathBuf>,
}

impl Sources {
    /// Reads everything. What is absent is empty. `before` is what was in force; `notes` gets what is to be
    /// told, and `stamps` every file that was looked at.
    ///
    /// # Errors
    /// [`RegistriesError::Read`] and [`RegistriesError::Parse`], with the file.
    pub fn load(
        &self,
        before: Option<&Registries>,
        stamps: &mut Stamps,
        notes: &mut Notes,
    ) -> Result<Registries, RegistriesError> {
        let mut all = Registries::default();
        // First, so that changes of these are seen even when the rest cannot be read.
        for root in &self.certs_d {
            add_hosts(&mut all, root, before, stamps, notes);
        }
        let mut files = vec![self.conf.clone()];
        let dropped = stamps.list(&self.conf_dir, MAX_FOLDER).map_err(|error| unreadable(&self.conf_dir, error))?;
        files.extend(dropped.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "conf")));
        let mut parsed = Vec::new();
        for path in files {
            if let Some(bytes) = stamps.read(&path).map_err(|error| unreadable(&path, error))? {
                let bad = |reason| RegistriesError::Parse { path: path.clone(), reason };
                parsed.push((Arc::from(path.as_path()), conf::parse(&bytes).map_err(bad)?));
            }
        }
        for (path, file) in parsed {
            notes.unknown(&path, &file.unknown);
            all.add(&path, file);
        }
        Ok(all)
    }
}

/// Adds the `hosts.toml` of each folder, unless an earlier root has the same host.
fn add_hosts(all: &mut Registries, root: &Path, before: Option<&Registries>, stamps: &mut Stamps, notes: &mut Notes) {
    let folders = match stamps.list(root, MAX_FOLDER) {
        Ok(folders) => folders,
        Err(error) => return notes.bad.push(format!("{}: cannot be read: {error}", root.display())),
    };
    for folder in folders {
        let Some(host) = folder.file_name().and_then(|name| name.to_str()).and_then(host_of) else { continue };
        // Certificates are read when a host is first met; a change of one must be seen as well.
        for file in stamps.list(&folder, MAX_FOLDER).unwrap_or_default() {
            stamps.note(&file);
        }
        let path: Arc<Path> = folder.join("hosts.toml").into();
        let parsed = match stamps.read(&path) {
            Ok(None) => continue,
            Ok(Some(bytes)) => hosts::parse(&bytes, &folder),
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        if let Ok(file) = &parsed {
            notes.unknown(&path, file.unknown());
        }
        let parsed = parsed.or_else(|reason| {
            let was = before.and_then(|before| before.hosts.get(&host)).filter(|(file, _)| *file == path);
            if let Some((_, Ok(was))) = was {
                notes.bad.push(format!("{}: {reason}; what it said before stays in force", path.display()));
                return Ok(was.clone());
            }
            notes.bad.push(format!("{}: {reason}; names that it leads are refused", path.display()));
            Err(reason)
        });
        for file in parsed.iter().flat_map(hosts::HostsFile::files) {
            stamps.note(file);
        }
        all.hosts.entry(host).or_insert((path, parsed));
    }
}

/// The host that a folder is for: `host`, `host:port`, `host_port_`, or `_default` for all others.
fn host_of(folder: &str) -> Option<String> {
    if folder == "_default" {
        return Some(folder.to_owned());
    }
    let host = match folder.strip_suffix('_').and_then(|rest| rest.rsplit_once('_')) {
        Some((host, port)) => format!("{host}:{port}"),
        None => folder.to_owned(),
    };
    check_host(&host).is_ok().then_some(host)
}

fn unreadable(path: &Path, source: io::Error) -> RegistriesError {
    RegistriesError::Read { path: path.to_owned(), source: Arc::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_named_after_hosts() {
        for (folder, host) in [
            ("docker.io", Some("docker.io")),
            ("a.lan:5000", Some("a.lan:5000")),
            ("a.lan_5000_", Some("a.lan:5000")),
            ("_default", Some("_default")),
            ("..", None),
            ("a b", None),
            ("a_5000", None),
        ] {
            assert_eq!(host_of(folder).as_deref(), host, "{folder}");
        }
    }
}
