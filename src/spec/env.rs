//! The environment: exactly the image's, the request's, and the defaults named here. Nothing of the daemon's own, and no
//! list shared between containers is ever written to (CVE-2021-21334).

use std::collections::HashMap;

use super::SpecInput;
use super::args::MAX_STRING;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A variable of the request that no process can have. The value is never part of the text: it may be a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("envs[{index}].key {key:?}: a variable's name must not be empty or have `=` or NUL in it")]
    Key { index: usize, key: String },
    #[error("envs: the value of {key:?} has a NUL byte")]
    Nul { key: String },
    #[error("envs: the value of {key:?} is not UTF-8, and an OCI runtime takes its configuration as JSON")]
    NotUtf8 { key: String },
    #[error("envs: {key:?} and its value are {size} bytes, the kernel takes {MAX_STRING} at most")]
    TooLong { key: String, size: usize },
}

/// Later settings of a variable replace earlier ones in place: defaults, then the image's, the request's, the CDI devices'.
/// `TERM` is a default with a terminal only. Entries of an image that are malformed are left out: it cannot be asked to
/// mend them, and its program has been started without them by every other runtime.
pub(super) fn env(input: &SpecInput<'_>) -> Result<Vec<String>, EnvError> {
    let mut list = Env::default();
    list.set("PATH", PATH);
    if !input.hostname.is_empty() && !input.hostname.contains('\0') {
        list.set("HOSTNAME", input.hostname);
    }
    if input.config.tty {
        list.set("TERM", "xterm");
    }
    for entry in input.image.env {
        match entry.split_once('=') {
            Some((key, value)) if !key.is_empty() && !entry.contains('\0') && entry.len() < MAX_STRING => {
                list.set(key, value);
            }
            _ => {}
        }
    }
    for (index, pair) in input.config.envs.iter().enumerate() {
        let key = &pair.key;
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(EnvError::Key { index, key: key.chars().take(256).collect() });
        }
        if pair.value.contains(&0) {
            return Err(EnvError::Nul { key: key.clone() });
        }
        let size = key.len() + 1 + pair.value.len();
        if size >= MAX_STRING {
            return Err(EnvError::TooLong { key: key.chars().take(256).collect(), size });
        }
        let value = std::str::from_utf8(&pair.value).map_err(|_| EnvError::NotUtf8 { key: key.clone() })?;
        list.set(key, value);
    }
    for entry in &input.cdi.env {
        // The file was refused if it had no `=`.
        if let Some((key, value)) = entry.split_once('=') {
            list.set(key, value);
        }
    }
    Ok(list.entries)
}

#[derive(Default)]
struct Env {
    entries: Vec<String>,
    places: HashMap<String, usize>,
}

impl Env {
    fn set(&mut self, key: &str, value: &str) {
        let entry = format!("{key}={value}");
        match self.places.get(key) {
            Some(place) => self.entries[*place] = entry,
            None => {
                self.places.insert(key.to_owned(), self.entries.len());
                self.entries.push(entry);
            }
        }
    }
}
