//! Keys in a file of another tool that nothing here reads. They are told, not refused: the file may be right for the tool that
//! it was written for, and a release later for this one. Untold, a key that is mistyped would be a rule that nobody follows.

use toml::de::{DeTable, DeValue};

use super::conf::{line_of, scrub};
use crate::config::nearest_word;

/// Most keys of one file that are told.
const MAX_TOLD: usize = 16;

/// The keys that a table may have.
pub(super) struct Shape {
    pub keys: &'static [&'static str],
    /// What is below some of them; what is below the others is free.
    pub below: &'static [(&'static str, &'static Self)],
}

/// A sentence for each key of a file that is not in its shape, in the order of the lines. Below a key with a shape there is a list of
/// tables, or a table of tables under free names.
pub(super) fn unknown(text: &str, shape: &Shape) -> Vec<String> {
    let mut told = Vec::new();
    // What does not parse has an error of its own.
    if let Ok(table) = DeTable::parse(text) {
        look(text, table.get_ref(), shape, &mut told);
    }
    told.sort();
    told.into_iter().map(|(line, what)| format!("line {line}: {what}")).collect()
}

fn look(text: &str, table: &DeTable<'_>, shape: &Shape, told: &mut Vec<(usize, String)>) {
    for (key, value) in table {
        if told.len() >= MAX_TOLD {
            return;
        }
        let name = key.get_ref();
        if !shape.keys.contains(&&**name) {
            let line = line_of(text, key.span().start);
            let meant = nearest_word(name, shape.keys).map(|near| format!(" (near to {near:?})")).unwrap_or_default();
            told.push((line, format!("the key {:?} is not known here and has no effect{meant}", scrub(name))));
            continue;
        }
        let Some((_, below)) = shape.below.iter().find(|(known, _)| known == name) else { continue };
        match value.get_ref() {
            DeValue::Table(tables) => tables.values().for_each(|one| look_into(text, one.get_ref(), below, told)),
            DeValue::Array(tables) => tables.iter().for_each(|one| look_into(text, one.get_ref(), below, told)),
            _ => {}
        }
    }
}

fn look_into(text: &str, value: &DeValue<'_>, shape: &Shape, told: &mut Vec<(usize, String)>) {
    if let DeValue::Table(table) = value {
        look(text, table, shape, told);
    }
}
