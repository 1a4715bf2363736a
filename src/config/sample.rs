//! The sample file, made from the table of keys so that it cannot drift from the code.

use std::fmt::Write as _;

use super::keys::{self, KEYS};
use super::{Config, Handler, reload};

const HEAD: &str = "\
# The configuration of cricket. Every key is shown with its default, commented out with a bare `#`: take the `#` away to
# change it. Files in conf.d beside this one are read after it, in the order of their names; they change single keys, and
# an array replaces the one before. An unknown key is an error. SIGHUP reads all again, applies the keys marked (live), and
# says which others wait for a restart.
";

/// The handler that the sample shows; it stands for any name.
const HANDLER: &str = "crun";

/// A commented sample with every key, and nothing set: reading it gives the default configuration.
#[must_use]
pub fn default_toml() -> String {
    let mut shown = Config::default();
    shown.runtime.handlers.insert(HANDLER.to_owned(), Handler { path: HANDLER.into(), ..Handler::default() });
    let values = reload::flat(&shown);
    let mut text = HEAD.to_owned();
    let mut section = "";
    for key in KEYS {
        if key.section() != section {
            section = key.section();
            let about = keys::SECTIONS.iter().find(|(name, _)| *name == section).map_or("", |(_, about)| about);
            text.push('\n');
            comment(&mut text, about);
            // A chosen name would define a handler, so that header is commented out like the keys.
            let mark = if section.contains('*') { "#" } else { "" };
            put(&mut text, format_args!("{mark}[{}]\n", named(section)));
        }
        comment(&mut text, key.doc);
        if key.live {
            text.truncate(text.trim_end().len());
            text.push_str(" (live)\n");
        }
        let value = values.get(&named(key.name)).expect("every key has a default");
        put(&mut text, format_args!("#{} = {value}\n", key.leaf()));
    }
    text
}

fn named(name: &str) -> String {
    name.replace('*', HANDLER)
}

fn comment(text: &mut String, about: &str) {
    for line in about.lines() {
        put(text, format_args!("# {line}\n"));
    }
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a string takes all that is written to it");
}
