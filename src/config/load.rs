//! Files to one table, with the file and line of every key kept for the errors.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::{Config, keys, nearest, validate};

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/cricket/config.toml";

/// The largest file that is read, in bytes.
const FILE_CAP: u64 = 1 << 20;

/// A configuration and the files that it came from, in the order in which they were read.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub config: Config,
    pub sources: Vec<PathBuf>,
}

/// Where in which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
}

/// What is wrong with the configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: larger than {FILE_CAP} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{}: not TOML, or a value of the wrong type: {message}", at(place))]
    Syntax { place: Place, message: String },
    #[error("{}: unknown key {key}{}", at(place), meant.as_ref().map_or(String::new(), |m| format!("; did you mean {m}?")))]
    UnknownKey { place: Place, key: String, meant: Option<String> },
    #[error("{}: {key} = {value}: {why}", place.as_ref().map_or_else(|| "default".to_owned(), at))]
    Invalid { place: Option<Place>, key: String, value: String, why: String },
}

fn at(place: &Place) -> String {
    format!("{}:{}", place.file.display(), place.line)
}

impl Config {
    /// Reads `path`, or the default file, and the drop-ins in `conf.d` beside it.
    ///
    /// The default file may be missing; one that was asked for may not. In `conf.d`, names that end in `.toml` and do not
    /// begin with a dot count.
    ///
    /// # Errors
    /// [`ConfigError`], with the file and line of the first thing that is wrong.
    pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
        Self::load_files(path.unwrap_or(Path::new(DEFAULT_PATH)), path.is_some())
    }

    pub(super) fn load_files(main: &Path, required: bool) -> Result<Loaded, ConfigError> {
        let mut merged = Merged::default();
        match read(main) {
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound && !required => {}
            Err(error) => return Err(error),
            Ok(text) => merged.add(main, &text)?,
        }
        for path in drop_ins(main)? {
            let text = read(&path)?;
            merged.add(&path, &text)?;
        }
        merged.finish()
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(FILE_CAP + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_CAP {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = main.with_file_name("conf.d");
    let failed = |source| ConfigError::Read { path: dir.clone(), source };
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|e| e == "toml") && !hidden && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The files so far.
#[derive(Default)]
struct Merged {
    table: Table,
    /// Where each dotted key was set last.
    places: BTreeMap<String, Place>,
    sources: Vec<PathBuf>,
}

impl Merged {
    fn add(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let file = File { path, text };
        let spanned = DeTable::parse(text).map_err(|e| file.syntax(&e))?;
        file.walk(spanned.get_ref(), &mut Vec::new(), &mut self.places)?;
        // Every field has a default, so each file is a whole configuration and its types can be checked by itself.
        toml::from_str::<Config>(text).map_err(|e| file.syntax(&e))?;
        let table: Table = toml::from_str(text).map_err(|e| file.syntax(&e))?;
        merge(&mut self.table, table);
        self.sources.push(path.to_owned());
        Ok(())
    }

    fn finish(self) -> Result<Loaded, ConfigError> {
        let invalid = |key: String, value: String, why: String| {
            // The key itself, or for an element of an array or a whole section the nearest one above it.
            let mut name = key.as_str();
            let place = loop {
                match (self.places.get(name), name.rsplit_once('.')) {
                    (Some(place), _) => break Some(place.clone()),
                    (None, Some((section, _))) => name = section,
                    (None, None) => break None,
                }
            };
            ConfigError::Invalid { place, key, value, why }
        };
        let config = Config::deserialize(self.table.clone())
            .map_err(|e| invalid(String::new(), String::new(), e.message().to_owned()))?;
        validate::check(&config).map_err(|flaw| invalid(flaw.key, flaw.value, flaw.why))?;
        Ok(Loaded { config, sources: self.sources })
    }
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        Place { file: self.path.to_owned(), line: before.iter().filter(|b| **b == b'\n').count() + 1 }
    }

    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let start = error.span().map_or(0, |span| span.start);
        let place = self.place(start);
        // The line itself, which names the key: the parser's words do not.
        let line = self.text.lines().nth(place.line - 1).unwrap_or_default().trim();
        let line: String = line.chars().take(120).collect();
        ConfigError::Syntax { place, message: format!("{} in `{line}`", error.message()) }
    }

    /// Notes the place of every key and refuses those that the table of keys does not have. A section that holds something
    /// else than a table is left to the check of types.
    fn walk(
        &self,
        table: &DeTable<'_>,
        at: &mut Vec<String>,
        places: &mut BTreeMap<String, Place>,
    ) -> Result<(), ConfigError> {
        for (key, value) in table {
            at.push(key.get_ref().to_string());
            let path: Vec<&str> = at.iter().map(String::as_str).collect();
            let place = self.place(key.span().start);
            let is_section = keys::find(&path, keys::sections()).is_some();
            if !is_section && keys::find(&path, keys::KEYS.iter().map(|key| key.name)).is_none() {
                return Err(ConfigError::UnknownKey { place, key: path.join("."), meant: nearest::nearest(&path) });
            }
            places.insert(path.join("."), place);
            if let (true, DeValue::Table(inner)) = (is_section, value.get_ref()) {
                self.walk(inner, at, places)?;
            }
            at.pop();
        }
        Ok(())
    }
}

/// Tables merge key by key; anything else replaces what was there.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
