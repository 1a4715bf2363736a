//! What a reload changes at once, and what waits for a restart.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::keys::{self, KEYS};
use super::{Config, Key};

/// The keys that differ between two configurations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReloadDiff {
    /// Marked [`Key::live`]: they take effect with the new configuration.
    pub applied: Vec<String>,
    /// The running daemon keeps the old value.
    pub needs_restart: Vec<String>,
}

/// Compares key by key; the names of handlers are spelled out.
#[must_use]
pub fn reload_diff(old: &Config, new: &Config) -> ReloadDiff {
    let (old, new) = (flat(old), flat(new));
    let mut diff = ReloadDiff::default();
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names.into_iter().filter(|name| old.get(*name) != new.get(*name)) {
        let list = if is_live(name) { &mut diff.applied } else { &mut diff.needs_restart };
        list.push(name.clone());
    }
    diff
}

fn is_live(name: &str) -> bool {
    let path: Vec<&str> = name.split('.').collect();
    KEYS.iter().filter(|key| key.live).any(|key: &Key| keys::find(&path, std::iter::once(key.name)).is_some())
}

/// Every value under its dotted name.
pub(super) fn flat(config: &Config) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    descend("", Table::try_from(config).expect("a configuration is a TOML table"), &mut found);
    found
}

fn descend(prefix: &str, table: Table, found: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => descend(&name, inner, found),
            value => {
                found.insert(name, value);
            }
        }
    }
}
