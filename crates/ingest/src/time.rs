//! Times in their notations, to microseconds since 1970 (RFC 3339; the civil-day arithmetic is Howard Hinnant's,
//! "chrono-Compatible Low-Level Date Algorithms").

use chrono::{DateTime, NaiveDate, NaiveDateTime, Offset, TimeZone};
use lakegate_model::{TimeFormat, TimeNotation, ZoneRule};

/// 0001-01-01T00:00:00Z.
pub(crate) const MIN_US: i64 = -62_135_596_800_000_000;
/// 9999-12-31T23:59:59.999999Z.
pub(crate) const MAX_US: i64 = 253_402_300_799_999_999;

/// A time's text or number could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeError {
    /// Not in the notation.
    Notation,
    /// Outside the years 1 to 9999.
    Range,
}

pub(crate) fn in_range(us: i128) -> Result<i64, TimeError> {
    let us = i64::try_from(us).map_err(|_| TimeError::Range)?;
    if (MIN_US..=MAX_US).contains(&us) { Ok(us) } else { Err(TimeError::Range) }
}

/// A number in one of the epoch notations. `Auto` tells the unit by magnitude: below 10^11 seconds, below 10^14
/// milliseconds, below 10^17 microseconds, else nanoseconds.
pub(crate) fn from_number(text: &str, format: &TimeFormat) -> Result<i64, TimeError> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if text.contains(['e', 'E']) {
        let value: f64 = text.parse().map_err(|_| TimeError::Notation)?;
        if !value.is_finite() || value.abs() > 1e18 {
            return Err(TimeError::Range);
        }
        #[allow(clippy::cast_possible_truncation, reason = "bounded by the check above")]
        return from_parts(value.trunc() as i64, 0, format);
    }
    let units: i64 = whole.parse().map_err(|_| TimeError::Notation)?;
    if fraction.bytes().any(|b| !b.is_ascii_digit()) {
        return Err(TimeError::Notation);
    }
    let millionths: i64 = format!("{fraction:0<6}").get(..6).and_then(|t| t.parse().ok()).ok_or(TimeError::Notation)?;
    from_parts(units, if whole.starts_with('-') { -millionths } else { millionths }, format)
}

/// A whole number in one of the epoch notations.
pub(crate) fn from_whole(units: i64, format: &TimeFormat) -> Result<i64, TimeError> {
    from_parts(units, 0, format)
}

/// `units` and millionths of a unit.
fn from_parts(units: i64, millionths: i64, format: &TimeFormat) -> Result<i64, TimeError> {
    let format = match format {
        TimeFormat::Auto => match units.unsigned_abs() {
            0..100_000_000_000 => &TimeFormat::EpochS,
            100_000_000_000..100_000_000_000_000 => &TimeFormat::EpochMs,
            100_000_000_000_000..100_000_000_000_000_000 => &TimeFormat::EpochUs,
            _ => &TimeFormat::EpochNs,
        },
        other => other,
    };
    let (units, millionths) = (i128::from(units), i128::from(millionths));
    in_range(match format {
        TimeFormat::EpochS => units * 1_000_000 + millionths,
        TimeFormat::EpochMs => units * 1_000 + millionths / 1_000,
        TimeFormat::EpochUs => units,
        TimeFormat::EpochNs => units.div_euclid(1_000),
        _ => return Err(TimeError::Notation),
    })
}

fn digits(bytes: &[u8]) -> Option<i64> {
    bytes.iter().try_fold(0_i64, |value, b| b.is_ascii_digit().then(|| value * 10 + i64::from(b - b'0')))
}

/// Days since 1970 of `YYYY-MM-DD`.
pub(crate) fn date(text: &[u8]) -> Result<i64, TimeError> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text else { return Err(TimeError::Notation) };
    let part = |bytes: &[u8]| digits(bytes).ok_or(TimeError::Notation);
    let (year, month, day) = (part(&[*y1, *y2, *y3, *y4])?, part(&[*m1, *m2])?, part(&[*d1, *d2])?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return Err(TimeError::Range),
    };
    if year == 0 || day == 0 || day > last {
        return Err(TimeError::Range);
    }
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Ok(era * 146_097 + day_of_era - 719_468)
}

/// How the times of one field are read, made ready.
#[derive(Debug)]
pub(crate) struct TimeReader {
    formats: Vec<TimeFormat>,
    zone: ZoneRule,
}

impl TimeReader {
    pub(crate) fn new(notation: &TimeNotation) -> Self {
        Self { formats: notation.formats.clone(), zone: notation.zone.rule() }
    }

    /// Reads text by the first notation that fits.
    pub(crate) fn text(&self, text: &str) -> Result<i64, TimeError> {
        self.first(|format| self.text_as(text, format))
    }

    /// Reads a number by the first notation that fits.
    pub(crate) fn number(&self, text: &str) -> Result<i64, TimeError> {
        self.first(|format| from_number(text, format))
    }

    /// The same of a whole number.
    pub(crate) fn whole(&self, units: i64) -> Result<i64, TimeError> {
        self.first(|format| from_whole(units, format))
    }

    /// The notations, for people.
    pub(crate) fn shown(&self) -> String {
        let one = |format: &TimeFormat| match format {
            TimeFormat::Auto => "a time by RFC 3339 or a number since 1970".to_owned(),
            TimeFormat::Rfc3339 => "a time by RFC 3339".to_owned(),
            other => format!("a time as {}", other.name()),
        };
        self.formats.iter().map(one).collect::<Vec<_>>().join(", or ")
    }

    fn first(&self, read: impl Fn(&TimeFormat) -> Result<i64, TimeError>) -> Result<i64, TimeError> {
        let mut failed = TimeError::Notation;
        for format in &self.formats {
            match read(format) {
                Err(TimeError::Range) => failed = TimeError::Range,
                Err(TimeError::Notation) => {}
                read => return read,
            }
        }
        Err(failed)
    }

    fn text_as(&self, text: &str, format: &TimeFormat) -> Result<i64, TimeError> {
        match format {
            TimeFormat::Auto | TimeFormat::Rfc3339 => from_text_in(text, self.zone),
            TimeFormat::DateTimeSpace if text.as_bytes().get(10) == Some(&b' ') => from_text_in(text, self.zone),
            TimeFormat::DateTimeSpace => Err(TimeError::Notation),
            TimeFormat::Date => {
                let midnight = DateTime::from_timestamp_micros(date(text.as_bytes())? * 86_400_000_000);
                self.to_utc(midnight.ok_or(TimeError::Range)?.naive_utc())
            }
            TimeFormat::Rfc2822 => instant(DateTime::parse_from_rfc2822(text)),
            TimeFormat::Apache => instant(DateTime::parse_from_str(text, "%d/%b/%Y:%H:%M:%S %z")),
            TimeFormat::Pattern(pattern) => self.pattern(text, pattern),
            epoch => from_number(text, epoch),
        }
    }

    fn pattern(&self, text: &str, pattern: &str) -> Result<i64, TimeError> {
        if let Ok(found) = DateTime::parse_from_str(text, pattern) {
            return in_range(found.timestamp_micros().into());
        }
        let midnight = |day: NaiveDate| day.and_time(chrono::NaiveTime::MIN);
        NaiveDateTime::parse_from_str(text, pattern)
            .or_else(|_| NaiveDate::parse_from_str(text, pattern).map(midnight))
            .map_err(|_| TimeError::Notation)
            .and_then(|local| self.to_utc(local))
    }

    fn to_utc(&self, local: NaiveDateTime) -> Result<i64, TimeError> {
        let us = local.and_utc().timestamp_micros();
        in_range(i128::from(us) - i128::from(seconds_east(self.zone, us)) * 1_000_000)
    }
}

fn instant<E>(found: Result<DateTime<chrono::FixedOffset>, E>) -> Result<i64, TimeError> {
    found.map_err(|_| TimeError::Notation).and_then(|time| in_range(time.timestamp_micros().into()))
}

/// How far east of UTC clocks stand in the zone when they show `local_us`. Of an hour that comes twice the first counts;
/// one that is left out is read as if clocks had not been put forward.
fn seconds_east(zone: ZoneRule, local_us: i64) -> i32 {
    let tz = match zone {
        ZoneRule::Fixed(seconds) => return seconds,
        ZoneRule::Named(tz) => tz,
    };
    let Some(local) = DateTime::from_timestamp_micros(local_us).map(|time| time.naive_utc()) else { return 0 };
    match tz.offset_from_local_datetime(&local).earliest() {
        Some(offset) => offset.fix().local_minus_utc(),
        None => tz.offset_from_utc_datetime(&(local - chrono::TimeDelta::days(1))).fix().local_minus_utc(),
    }
}

/// The same as [`from_text_in`], of times that are UTC where they name no zone.
pub(crate) fn from_text(text: &str) -> Result<i64, TimeError> {
    from_text_in(text, ZoneRule::Fixed(0))
}

/// Microseconds of `YYYY-MM-DDTHH:MM:SS[.fraction][zone]`. `T` may be a blank, as RFC 3339 allows.
pub(crate) fn from_text_in(text: &str, assumed: ZoneRule) -> Result<i64, TimeError> {
    let bytes = text.as_bytes();
    let (day, rest) = (bytes.get(..10).ok_or(TimeError::Notation)?, bytes.get(10..).unwrap_or_default());
    let days = date(day)?;
    let [b'T' | b't' | b' ', h1, h2, b':', m1, m2, b':', s1, s2, rest @ ..] = rest else {
        return Err(TimeError::Notation);
    };
    let part = |bytes: &[u8]| digits(bytes).ok_or(TimeError::Notation);
    let (hour, minute, second) = (part(&[*h1, *h2])?, part(&[*m1, *m2])?, part(&[*s1, *s2])?);
    if hour > 23 || minute > 59 || second > 60 {
        return Err(TimeError::Range);
    }
    let (micros, zone) = fraction(rest)?;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    let local_us = i128::from(seconds) * 1_000_000 + i128::from(micros);
    let east = match zone {
        [] => i64::from(seconds_east(assumed, i64::try_from(local_us).map_err(|_| TimeError::Range)?)),
        zone => offset_minutes(zone)? * 60,
    };
    in_range(local_us - i128::from(east) * 1_000_000)
}

fn fraction(rest: &[u8]) -> Result<(i64, &[u8]), TimeError> {
    let Some((b'.', after)) = rest.split_first() else { return Ok((0, rest)) };
    let count = after.iter().take_while(|b| b.is_ascii_digit()).count();
    let (figures, zone) = after.split_at(count);
    if figures.is_empty() {
        return Err(TimeError::Notation);
    }
    let mut micros = digits(figures.get(..6).unwrap_or(figures)).ok_or(TimeError::Notation)?;
    for _ in count..6 {
        micros *= 10;
    }
    Ok((micros, zone))
}

fn offset_minutes(zone: &[u8]) -> Result<i64, TimeError> {
    match zone {
        [b'Z' | b'z'] => Ok(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (digits(&[*h1, *h2]), digits(&[*m1, *m2]));
            let (Some(hours @ 0..24), Some(minutes @ 0..60)) = (hours, minutes) else {
                return Err(TimeError::Notation);
            };
            let total = hours * 60 + minutes;
            Ok(if *sign == b'-' { -total } else { total })
        }
        _ => Err(TimeError::Notation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values by GNU date: `date -u -d TEXT +%s`.
    #[test]
    fn texts_by_rfc_3339_give_the_instant_that_gnu_date_gives() {
        for (text, us) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2016-01-01T00:30:04.91Z", 1_451_608_204_910_000),
            ("2000-02-29T12:00:00+05:30", 951_805_800_000_000),
            ("1969-12-31T23:59:59.999999Z", -1),
            ("9999-12-31T23:59:59Z", 253_402_300_799_000_000),
            ("0001-01-01T00:00:00Z", MIN_US),
            ("2024-03-10 08:00:00", 1_710_057_600_000_000),
        ] {
            assert_eq!(from_text(text), Ok(us), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_an_error() {
        for bad in [
            "",
            "x",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-01-01",
            "2024-01-01T25:00:00Z",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+25:00",
            "2024-01-01T00:00:00 UTC",
            "20240101T000000Z",
            "éééééééééé",
        ] {
            assert!(from_text(bad).is_err(), "{bad:?} was read");
        }
    }

    #[test]
    fn the_magnitude_tells_the_unit_of_an_epoch_number() {
        for text in ["1451608204", "1451608204000", "1451608204000000", "1451608204000000000"] {
            assert_eq!(from_number(text, &TimeFormat::Auto), Ok(1_451_608_204_000_000), "{text}");
        }
        assert_eq!(from_number("1451608204.91", &TimeFormat::EpochS), Ok(1_451_608_204_910_000));
        assert_eq!(from_number("-1.5", &TimeFormat::EpochS), Ok(-1_500_000));
        assert_eq!(from_number("99999999999999999999", &TimeFormat::Auto), Err(TimeError::Notation));
        assert_eq!(from_number("9223372036854775807", &TimeFormat::EpochS), Err(TimeError::Range));
    }

    // Expected values by GNU date: `TZ=… date -d TEXT +%s`.
    #[test]
    fn each_notation_gives_the_instant_that_gnu_date_gives() {
        for (text, format, zone, seconds) in [
            ("10/Oct/2000:13:55:36 -0700", "apache", "UTC", 971_211_336),
            ("2024-12-01 10:00:00", "date_time_space", "UTC", 1_733_047_200),
            ("2024-12-01 10:00:00", "date_time_space", "+05:30", 1_733_027_400),
            ("2024-07-01T12:00:00", "rfc3339", "Europe/Berlin", 1_719_828_000),
            ("2024-12-01T12:00:00", "auto", "Europe/Berlin", 1_733_050_800),
            ("2024-12-01T12:00:00Z", "auto", "Europe/Berlin", 1_733_054_400),
            ("Tue, 1 Jul 2003 10:52:37 +0200", "rfc2822", "UTC", 1_057_049_557),
            ("31.12.2023 23:59", "%d.%m.%Y %H:%M", "America/New_York", 1_704_085_140),
            ("20240229", "%Y%m%d", "UTC", 1_709_164_800),
            ("2024-02-29", "date", "UTC", 1_709_164_800),
        ] {
            let formats = vec![TimeFormat::parse(format).unwrap(), TimeFormat::EpochMs];
            let zone = lakegate_model::Zone::new(zone).unwrap();
            let reader = TimeReader::new(&TimeNotation { formats, zone });
            assert_eq!(reader.text(text), Ok(seconds * 1_000_000), "{text} as {format}");
            assert_eq!(reader.text("yesterday"), Err(TimeError::Notation), "{format}");
        }
    }
}
