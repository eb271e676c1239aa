//! Values from their text: numbers, dates, times.

/// Powers of ten that a double holds exactly.
const EXACT_POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

const MICROS: i64 = 1_000_000;
const DAY: i64 = 86_400;

pub(crate) fn boolean(raw: &[u8]) -> Option<bool> {
    match raw {
        b"1" | b"t" | b"T" | b"y" | b"Y" => Some(true),
        b"0" | b"f" | b"F" | b"n" | b"N" => Some(false),
        _ if raw.eq_ignore_ascii_case(b"true") || raw.eq_ignore_ascii_case(b"yes") => Some(true),
        _ if raw.eq_ignore_ascii_case(b"false") || raw.eq_ignore_ascii_case(b"no") => Some(false),
        _ => None,
    }
}

pub(crate) fn long(raw: &[u8]) -> Option<i64> {
    let (negative, digits) = match raw {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, raw),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value = 0_i64;
    if digits.len() <= 18 {
        for b in digits {
            let digit = b.wrapping_sub(b'0');
            if digit > 9 {
                return None;
            }
            value = value * 10 + i64::from(digit);
        }
        return Some(if negative { -value } else { value });
    }
    for b in digits {
        let digit = i64::from(b.checked_sub(b'0').filter(|d| *d <= 9)?);
        // Downwards, since the lowest number has no positive twin.
        value = value.checked_mul(10)?.checked_sub(digit)?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

pub(crate) fn double(raw: &[u8]) -> Option<f64> {
    let (negative, rest) = match raw {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, raw),
    };
    let (mut mantissa, mut digits, mut behind, mut point) = (0_u64, 0_usize, 0_usize, false);
    for b in rest {
        let digit = b.wrapping_sub(b'0');
        if digit <= 9 {
            mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
            digits += 1;
            behind += usize::from(point);
        } else if *b == b'.' && !point {
            point = true;
        } else {
            return slow_double(raw);
        }
    }
    if digits == 0 || digits > 18 || mantissa > 1 << 53 {
        return slow_double(raw);
    }
    #[expect(clippy::cast_precision_loss, reason = "at most 2^53, which a double holds exactly")]
    let value = mantissa as f64 / EXACT_POWERS.get(behind)?;
    Some(if negative { -value } else { value })
}

fn slow_double(raw: &[u8]) -> Option<f64> {
    // Letters are for exponents and for the three that are no numbers, spelled as databases do.
    let text = std::str::from_utf8(raw).ok()?;
    text.parse().ok()
}

/// An exact decimal, unscaled. Digits behind the scale that are not zero don't fit.
pub(crate) fn decimal(raw: &[u8], precision: u8, scale: u8) -> Option<i128> {
    let (negative, rest) = match raw {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, raw),
    };
    let (mut value, mut behind, mut point, mut any) = (0_i128, 0_u8, false, false);
    for b in rest {
        match b {
            b'0'..=b'9' => {
                any = true;
                if point && behind == scale {
                    if *b != b'0' {
                        return None;
                    }
                    continue;
                }
                behind += u8::from(point);
                value = value.checked_mul(10)?.checked_add(i128::from(b - b'0'))?;
            }
            b'.' if !point => point = true,
            _ => return None,
        }
    }
    value = value.checked_mul(10_i128.checked_pow(u32::from(scale - behind))?)?;
    let fits = any && (precision >= 39 || value < 10_i128.checked_pow(u32::from(precision))?);
    fits.then_some(if negative { -value } else { value })
}

/// Two digits.
fn two(raw: &[u8], at: usize) -> Option<i64> {
    let [a, b] = raw.get(at..at + 2)? else { return None };
    (a.is_ascii_digit() && b.is_ascii_digit()).then(|| i64::from((a - b'0') * 10 + (b - b'0')))
}

/// Days since 1970-01-01 of a day of the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible date algorithms").
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    const LENGTHS: [i64; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = LENGTHS.get(usize::try_from(month - 1).ok()?)?;
    if day < 1 || day > *length || (month == 2 && day == 29 && !leap) {
        return None;
    }
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

/// `YYYY-MM-DD` or `YYYY/MM/DD` at the front.
fn day_at_front(raw: &[u8]) -> Option<i64> {
    let separator = raw.get(4)?;
    if !matches!(separator, b'-' | b'/') || raw.get(7) != Some(separator) {
        return None;
    }
    days(two(raw, 0)? * 100 + two(raw, 2)?, two(raw, 5)?, two(raw, 8)?)
}

/// A date, as days since 1970-01-01.
pub(crate) fn date(raw: &[u8]) -> Option<i32> {
    full_date(raw).or_else(|| full_date(&padded(raw)?))
}

/// `2024/2/3 4:05` as `2024/02/03 04:05`: months, days and hours of one digit, as MySQL takes them.
fn padded(raw: &[u8]) -> Option<Vec<u8>> {
    let separator = raw.get(4).filter(|s| matches!(s, b'-' | b'/'))?;
    let mut parts = raw.get(5..)?.splitn(2, |b| b == separator);
    let (month, rest) = (parts.next()?, parts.next()?);
    let len = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let (day, rest) = rest.split_at_checked(len)?;
    let mut out = raw.get(..5)?.to_vec();
    let put = |out: &mut Vec<u8>, part: &[u8]| {
        out.extend((part.len() == 1).then_some(b'0'));
        out.extend_from_slice(part);
    };
    put(&mut out, month);
    out.push(*separator);
    put(&mut out, day);
    if let [b' ' | b'T', hour, b':', ..] = rest {
        out.extend([b' ', b'0', *hour]);
        out.extend_from_slice(rest.get(2..)?);
    } else {
        out.extend_from_slice(rest);
    }
    (out.len() > raw.len()).then_some(out)
}

fn full_date(raw: &[u8]) -> Option<i32> {
    let days = day_at_front(raw)?;
    match raw.get(10..)? {
        [] => i32::try_from(days).ok(),
        // A time of midnight is what some tools append to dates.
        rest => matches!(rest, b" 00:00:00" | b"T00:00:00").then(|| i32::try_from(days).ok())?,
    }
}

/// A time, as microseconds since 1970-01-01: `YYYY-MM-DD[ T]HH:MM[:SS[.fraction]][zone]`; a date alone is its midnight.
/// With `zoned`, a text without a zone is taken as UTC; without it, a text with a zone does not fit.
pub(crate) fn timestamp(raw: &[u8], zoned: bool) -> Option<i64> {
    let (micros, zone) = timestamp_parts(raw)?;
    match (zone, zoned) {
        (Some(_), false) => None,
        (zone, _) => micros.checked_sub(zone.unwrap_or(0) * MICROS),
    }
}

/// Microseconds as written, and the zone's seconds east of UTC where there is one. Fractions beyond microseconds are cut.
pub(crate) fn timestamp_parts(raw: &[u8]) -> Option<(i64, Option<i64>)> {
    full_timestamp(raw).or_else(|| full_timestamp(&padded(raw)?))
}

fn full_timestamp(raw: &[u8]) -> Option<(i64, Option<i64>)> {
    let day = day_at_front(raw)? * DAY;
    match raw.get(10) {
        None => return Some((day * MICROS, None)),
        Some(b' ' | b'T' | b't') => {}
        Some(_) => return None,
    }
    let (hour, minute) = (two(raw, 11)?, two(raw, 14)?);
    if raw.get(13) != Some(&b':') || hour > 23 || minute > 59 {
        return None;
    }
    let (mut second, mut micros, mut rest) = (0, 0, raw.get(16..)?);
    if let [b':', ..] = rest {
        second = two(rest, 1)?;
        rest = rest.get(3..)?;
        if second > 60 {
            return None;
        }
        if let [b'.', fraction @ ..] = rest {
            let len = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
            if len == 0 {
                return None;
            }
            let mut unit = MICROS / 10;
            for b in fraction.iter().take(len.min(6)) {
                micros += i64::from(b - b'0') * unit;
                unit /= 10;
            }
            rest = fraction.get(len..)?;
        }
    }
    let total = (day + hour * 3_600 + minute * 60 + second) * MICROS + micros;
    Some((total, zone(rest)?))
}

/// The zone at the end of a time: nothing, `Z`, `UTC`, `+02`, `+0200` or `+02:00`.
#[expect(clippy::option_option, reason = "no zone is not a wrong zone")]
fn zone(raw: &[u8]) -> Option<Option<i64>> {
    let raw = raw.strip_prefix(b" ").unwrap_or(raw);
    let (sign, rest) = match raw {
        [] => return Some(None),
        b"Z" | b"z" | b"UTC" => return Some(Some(0)),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let hours = two(rest, 0)?;
    let minutes = match rest.get(2..)? {
        [] => 0,
        [b':', m @ ..] | m if m.len() == 2 => two(m, 0)?,
        _ => return None,
    };
    (hours <= 18 && minutes < 60).then_some(Some(sign * (hours * 3_600 + minutes * 60)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_gnu_date_reads_them() {
        // Expected values: date -u -d '…' +%s
        for (text, seconds) in [
            ("1962-2-18", -248_313_600),
            ("1962/02/18 00:00:00", -248_313_600),
            ("2016/01/01 00:30:04", 1_451_608_204),
            ("2024-2-29 4:05:06", 1_709_179_506),
            ("2024-02-29T04:05:06+02:00", 1_709_172_306),
            ("1900-03-01", -2_203_891_200),
        ] {
            assert_eq!(timestamp(text.as_bytes(), true), Some(seconds * MICROS), "{text}");
        }
        for text in ["2023-02-29", "2024-13-01", "2024-1-1x", "2024/1-1", "24-01-01", "2024-01-01 25:00:00", ""] {
            assert_eq!(timestamp(text.as_bytes(), true), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_exact_or_refused() {
        assert_eq!(long(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(long(b"9223372036854775808"), None);
        assert_eq!(decimal(b"-1.250", 10, 2), Some(-125));
        assert_eq!(decimal(b"1.255", 10, 2), None);
        assert_eq!(decimal(b"12345", 4, 0), None);
        for text in ["0.1", "-117.1234567", "1e-7", "123456789012345678901", "5e-324"] {
            assert_eq!(double(text.as_bytes()), text.parse().ok(), "{text}");
        }
    }
}
