//! Which column a value would need that has none.

use lakegate_model::ColumnType;

use crate::time;

/// The most characters of a column's name that comes from a record.
const NAME_CHARS_MAX: usize = 64;
/// The most digits of a decimal.
const PRECISION_MAX: u8 = 38;

/// The type that takes `raw`; none for null, which takes no column.
pub(crate) fn infer(raw: &str, times: bool) -> Option<ColumnType> {
    Some(match raw.as_bytes().first()? {
        b't' | b'f' => ColumnType::Boolean,
        b'"' => match raw.get(1..raw.len().saturating_sub(1)) {
            Some(text) if times && time::from_text(text).is_ok() => ColumnType::Timestamptz,
            _ => ColumnType::String,
        },
        b'{' | b'[' => ColumnType::Json,
        b'n' => return None,
        _ if raw.parse::<i64>().is_ok() => ColumnType::Long,
        // Digits beyond a long would be lost in a floating point number.
        _ if raw.bytes().all(|b| b.is_ascii_digit() || b == b'-') => ColumnType::Json,
        _ => ColumnType::Double,
    })
}

/// The type that takes what both take.
pub(crate) fn unite(a: ColumnType, b: ColumnType) -> ColumnType {
    use ColumnType as T;
    match (a, b) {
        _ if a == b => a,
        (T::Long, T::Double) | (T::Double, T::Long) => T::Double,
        (T::Timestamptz, T::String) | (T::String, T::Timestamptz) => T::String,
        _ => wider_of(a, b).unwrap_or(T::Json),
    }
}

/// The wider of two types of which Iceberg lets a column go from one to the other.
pub(crate) fn wider_of(a: ColumnType, b: ColumnType) -> Option<ColumnType> {
    use ColumnType as T;
    match (a, b) {
        (T::Int, T::Long) | (T::Long, T::Int) => Some(T::Long),
        (T::Float, T::Double) | (T::Double, T::Float) => Some(T::Double),
        (T::Decimal { precision: p, scale: s }, T::Decimal { precision: q, scale: t }) if s == t => {
            Some(T::Decimal { precision: p.max(q), scale: s })
        }
        _ => None,
    }
}

/// The type to which a column can be widened so that it takes `raw`, which it does not take as it is.
pub(crate) fn widened(column_type: ColumnType, raw: &str) -> Option<ColumnType> {
    let takes = |wider: ColumnType| {
        let read = super::leaf::read_leaf(raw, "", wider, None);
        read.is_ok().then_some(wider)
    };
    match column_type {
        ColumnType::Int => takes(ColumnType::Long),
        ColumnType::Float => takes(ColumnType::Double),
        ColumnType::Decimal { precision, scale } => {
            (precision + 1..=PRECISION_MAX).find_map(|precision| takes(ColumnType::Decimal { precision, scale }))
        }
        _ => None,
    }
}

/// A member's path as a column's name: its names with `_` between them, and for every character that is not a letter, a
/// digit, `_`, `-` or `@`. None where it would be empty, too long, or one of ours, which begin with `_`.
pub(crate) fn column_name(path: &[String]) -> Option<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '@') { c } else { '_' };
    let name: String = path.join("_").chars().map(plain).collect();
    let fits = !name.is_empty() && name.len() <= NAME_CHARS_MAX && !name.starts_with('_');
    fits.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_has_the_type_that_keeps_it_whole() {
        use ColumnType as T;
        for (raw, times, expected) in [
            ("true", false, Some(T::Boolean)),
            ("12", false, Some(T::Long)),
            ("9223372036854775808", false, Some(T::Json)),
            ("1.5", false, Some(T::Double)),
            ("1e3", false, Some(T::Double)),
            ("\"x\"", false, Some(T::String)),
            ("\"2024-01-01T00:00:00Z\"", false, Some(T::String)),
            ("\"2024-01-01T00:00:00Z\"", true, Some(T::Timestamptz)),
            ("[1]", false, Some(T::Json)),
            ("null", false, None),
        ] {
            assert_eq!(infer(raw, times), expected, "{raw}");
        }
        assert_eq!(unite(T::Long, T::Double), T::Double);
        assert_eq!(unite(T::Long, T::String), T::Json);
    }

    #[test]
    fn a_column_is_widened_only_as_far_as_iceberg_allows() {
        use ColumnType as T;
        assert_eq!(widened(T::Int, "3000000000"), Some(T::Long));
        assert_eq!(widened(T::Int, "\"x\""), None);
        assert_eq!(widened(T::Float, "1e39"), Some(T::Double));
        let decimal = |precision| T::Decimal { precision, scale: 2 };
        assert_eq!(widened(decimal(5), "123456.78"), Some(decimal(8)));
        assert_eq!(widened(decimal(5), "1.234"), None);
        assert_eq!(widened(T::Long, "1.5"), None);
    }

    #[test]
    fn s03_a_member_never_takes_a_name_of_ours() {
        let name = |text: &str| column_name(&[text.to_owned()]);
        assert_eq!(name("_rescued"), None);
        assert_eq!(name("a\"; DROP"), Some("a___DROP".to_owned()));
        assert_eq!(name(""), None);
        assert_eq!(name(&"x".repeat(65)), None);
    }
}
