//! YAML to the values of JSON, for files that people and programs write as configuration.
//!
//! Every scalar becomes text (null, where it is plain and empty or `null`); whoever wants a number reads it from the text
//! by YAML's rules, so that a name like `007` or a version like `1.0` stays what was written. Aliases, tags and a second
//! document are errors: no such file needs them, and aliases are how a small file becomes a large one.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Deepest nesting. CDI's own format has six levels.
const MAX_DEPTH: usize = 32;

/// Reads one document. Its caller bounds the size of the text.
///
/// # Errors
/// A sentence that names the line.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut building = Building::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| error.to_string())?;
        let line = span.start.line();
        building.take(event).map_err(|reason| format!("line {line}: {reason}"))?;
    }
    building.done.ok_or_else(|| "no document".to_owned())
}

/// A collection that is open.
#[derive(Debug)]
enum Open {
    List(Vec<Value>),
    /// The key that waits for its value is apart.
    Map(Map<String, Value>, Option<String>),
}

#[derive(Debug, Default)]
struct Building {
    stack: Vec<Open>,
    done: Option<Value>,
}

impl Building {
    fn take(&mut self, event: Event<'_>) -> Result<(), &'static str> {
        match event {
            Event::Scalar(_, _, _, Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                Err("tags are not taken")
            }
            Event::Scalar(text, style, _, None) => {
                let null = style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                self.put(if null { Value::Null } else { Value::String(text.into_owned()) })
            }
            Event::SequenceStart(_, None) => self.open(Open::List(Vec::new())),
            Event::MappingStart(_, None) => self.open(Open::Map(Map::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => {
                let closed = self.stack.pop().ok_or("a collection ends that did not begin")?;
                self.put(match closed {
                    Open::List(list) => Value::Array(list),
                    Open::Map(map, _) => Value::Object(map),
                })
            }
            Event::Alias(_) => Err("aliases are not taken"),
            Event::DocumentStart(_) if self.done.is_some() => Err("a second document"),
            _ => Ok(()),
        }
    }

    fn open(&mut self, collection: Open) -> Result<(), &'static str> {
        if self.stack.len() >= MAX_DEPTH {
            return Err("nested too deep");
        }
        if matches!(self.stack.last(), Some(Open::Map(_, None))) {
            return Err("a key must be text");
        }
        self.stack.push(collection);
        Ok(())
    }

    fn put(&mut self, value: Value) -> Result<(), &'static str> {
        match self.stack.last_mut() {
            None => self.done = Some(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Map(map, waiting)) => match (waiting.take(), value) {
                (Some(key), value) => {
                    map.insert(key, value);
                }
                (None, Value::String(key)) if map.contains_key(&key) => return Err("a key is given twice"),
                (None, Value::String(key)) => *waiting = Some(key),
                (None, _) => return Err("a key must be text"),
            },
        }
        Ok(())
    }
}

/// An integer as YAML writes them: decimal, `0x…`, `0o…`, and octal with a leading zero, which file modes are written in.
#[must_use]
pub fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let value = if let Some(hex) = digits.strip_prefix("0x") {
        plain(hex, 16)
    } else if let Some(octal) = digits.strip_prefix("0o").or_else(|| digits.strip_prefix('0').filter(|d| !d.is_empty()))
    {
        plain(octal, 8)
    } else {
        plain(digits, 10)
    }?;
    if negative { value.checked_neg() } else { Some(value) }
}

/// Digits alone: the parser of the standard library would take a sign here.
fn plain(digits: &str, radix: u32) -> Option<i64> {
    let legal = digits.chars().all(|c| c.is_digit(radix));
    if legal { i64::from_str_radix(digits, radix).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents() {
        let text =
            "---\ncdiVersion: 0.6.0 # a comment\nlist:\n- a\n- 'b: c'\n- null\n- \"null\"\nempty:\nflow: {k: [1, 2]}\n";
        let want = json!({
            "cdiVersion": "0.6.0", "list": ["a", "b: c", null, "null"], "empty": null, "flow": {"k": ["1", "2"]},
        });
        assert_eq!(parse(text).unwrap(), want);
        assert_eq!(parse("{\"a\": \"b\"}").unwrap(), json!({"a": "b"}));
    }

    #[test]
    fn what_is_not_taken() {
        let deep = "[".repeat(MAX_DEPTH + 1);
        for bad in [
            "",
            "a: &x [1]\nb: *x\n",
            "a: !!str 1",
            "a: 1\n---\nb: 2\n",
            "a: 1\na: 2\n",
            "? [a]\n: b\n",
            "a: [1\n",
            "a: b: c\n",
            "a: \"\\q\"",
            &deep,
        ] {
            assert!(parse(bad).is_err(), "{bad:?}: {:?}", parse(bad));
        }
    }

    #[test]
    fn integers() {
        for (text, want) in [
            ("0", 0),
            ("438", 438),
            ("0660", 0o660),
            ("0o660", 0o660),
            ("0x1F", 31),
            ("-1", -1),
            ("+7", 7),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(integer(text), Some(want), "{text}");
        }
        for bad in ["", "-", "x", "1.0", "1e3", "0x", "0o", "08", "9223372036854775808", "--1", "0x-1", "1 ", "१"] {
            assert_eq!(integer(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,64}|[-a{}\\[\\]:,&*!? \n\"'#|>]{0,64}") {
            let _ = parse(&text);
        }
    }
}
