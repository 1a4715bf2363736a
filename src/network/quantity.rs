//! Kubernetes' resource quantities, as far as bandwidth annotations need them: `10M`, `1.5Gi`, `2e6`, `500k`.

/// The largest number of digits taken; more than any bandwidth has, and small enough for exact arithmetic.
const DIGITS_MAX: usize = 20;

/// The whole value, rounded up; `None` when the text is no quantity, is negative, or is above `u64::MAX`.
///
/// Grammar: digits with an optional point, then `Ki Mi Gi Ti Pi Ei`, `n u m k M G T P E`, or an exponent `e3`, `E-3`.
#[must_use]
pub fn parse(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() > DIGITS_MAX || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let places = i32::try_from(fraction.len()).ok()?;
    let (binary, decimal) = scale(suffix)?;
    let value = digits.checked_shl(binary).filter(|v| v >> binary == digits)?;
    let power = decimal - places;
    let factor = 10_u128.checked_pow(power.unsigned_abs())?;
    let value = if power >= 0 { value.checked_mul(factor)? } else { value.div_ceil(factor) };
    u64::try_from(value).ok()
}

/// A suffix as powers of two and ten.
fn scale(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "" => (0, 0),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let power: i32 = exponent.parse().ok()?;
            (0, Some(power).filter(|power| power.abs() <= 18)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, value) in [
            ("0", Some(0)),
            ("1", Some(1)),
            ("+1", Some(1)),
            ("10M", Some(10_000_000)),
            ("10Mi", Some(10 * 1024 * 1024)),
            ("1.5k", Some(1500)),
            ("1.5Ki", Some(1536)),
            (".5k", Some(500)),
            ("5.k", Some(5000)),
            ("1e3", Some(1000)),
            ("1E3", Some(1000)),
            ("1e+3", Some(1000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("1500e-3", Some(2)),
            ("1001m", Some(2)),
            ("1n", Some(1)),
            ("15E", Some(15_000_000_000_000_000_000)),
            ("15Ei", Some(15 << 60)),
            ("16Ei", None),
            ("19E", None),
            ("-1", None),
            ("", None),
            (".", None),
            ("k", None),
            ("1K", None),
            ("1ki", None),
            ("1 k", None),
            (" 1", None),
            ("1.2.3", None),
            ("1e", None),
            ("1e99", None),
            ("0x10", None),
            ("٣", None),
            ("123456789012345678901", None),
        ] {
            assert_eq!(parse(text), value, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9.+-]{0,24}(.{0,3}|[eE][+-]?[0-9]{0,12})") {
            let _ = parse(&text);
        }

        #[test]
        fn whole_numbers_are_themselves(number: u64) {
            assert_eq!(parse(&number.to_string()), Some(number));
        }
    }
}
