//! A length of time as Go writes it (`time.ParseDuration`): `1.5s`, `300ms`, `1m30s`.

use std::time::Duration;

/// Longest text that is read, in bytes.
const MAX_TEXT: usize = 64;

/// Reads a length of time; one below zero, or longer than fits into 64 bits of nanoseconds as Go has them, is none.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() || text.len() > MAX_TEXT {
        return None;
    }
    let mut whole: u128 = 0;
    while !rest.is_empty() {
        let (before, after) = digits(rest);
        let (behind, after) = after.strip_prefix('.').map_or(("", after), digits);
        if before.len() + behind.len() == 0 {
            return None;
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let unit = unit(&after[..end])?;
        whole = whole.checked_add(number(before)?.checked_mul(unit)?)?;
        // Digits behind the point that are less than a nanosecond count for nothing.
        let behind = behind.get(..behind.len().min(18))?;
        let scale = 10_u128.checked_pow(u32::try_from(behind.len()).ok()?)?;
        whole = whole.checked_add(number(behind)?.checked_mul(unit)? / scale)?;
        rest = &after[end..];
    }
    let nanoseconds = i64::try_from(whole).ok()?;
    Some(Duration::from_nanos(nanoseconds.unsigned_abs()))
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn number(digits: &str) -> Option<u128> {
    if digits.is_empty() { Some(0) } else { digits.parse::<u64>().ok().map(u128::from) }
}

/// Nanoseconds.
fn unit(name: &str) -> Option<u128> {
    Some(match name {
        "ns" => 1,
        // The micro sign and the Greek letter.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_reads_and_what_it_refuses() {
        for (text, ns) in [
            ("1s", 1_000_000_000),
            ("+5ms", 5_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("1m30s", 90_000_000_000),
            ("3\u{b5}s", 3_000),
            ("0", 0),
            ("0s", 0),
            ("0.100000000000000000000h", 360_000_000_000),
            ("9223372036854775807ns", 9_223_372_036_854_775_807),
        ] {
            assert_eq!(parse(text), Some(Duration::from_nanos(ns)), "{text}");
        }
        for text in
            ["", "1", "-1s", "s", ".s", ".", "1s ", "1x", "1s1", "+", "++1s", "9223372036854775808ns", "1h\u{e9}"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"1s".repeat(33)), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9.+a-z\u{b5}]{0,70}") {
            let _ = parse(&text);
        }
    }
}
