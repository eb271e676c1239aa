//! The short notations of a stream's layout: `day(event_time)`, `bucket(16, customer)`, `event_time desc`.

use lakegate_model::{PartitionField, SortField, Transform};

/// A text that is none of the notation's forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotationError {
    #[error(
        "{0:?} is not a partition; write \"identity COLUMN\", \"year(COLUMN)\", \"month(COLUMN)\", \"day(COLUMN)\", \
         \"hour(COLUMN)\", \"bucket(N, COLUMN)\" or \"truncate(N, COLUMN)\""
    )]
    Partition(String),
    #[error("{0:?} is not a sort field; write \"COLUMN\", \"COLUMN asc\" or \"COLUMN desc\"")]
    Sort(String),
}

/// Reads a partition field.
pub(crate) fn parse_partition(text: &str) -> Result<PartitionField, NotationError> {
    partition(text.trim()).ok_or_else(|| NotationError::Partition(text.chars().take(80).collect()))
}

fn partition(text: &str) -> Option<PartitionField> {
    let field = |column: &str, transform| {
        let column = column.trim();
        (!column.is_empty() && !column.contains(['(', ')', ',']))
            .then(|| PartitionField { column: column.to_owned(), transform })
    };
    if let Some(column) = text.strip_prefix("identity ") {
        return field(column, Transform::Identity);
    }
    let Some((name, rest)) = text.split_once('(') else {
        return (!text.contains(' ')).then(|| field(text, Transform::Identity))?;
    };
    let inner = rest.strip_suffix(')')?;
    match name.trim() {
        "identity" => field(inner, Transform::Identity),
        "year" => field(inner, Transform::Year),
        "month" => field(inner, Transform::Month),
        "day" => field(inner, Transform::Day),
        "hour" => field(inner, Transform::Hour),
        wide @ ("bucket" | "truncate") => {
            let (first, second) = inner.split_once(',')?;
            let (number, column) = match first.trim().parse::<u32>() {
                Ok(number) => (number, second),
                Err(_) => (second.trim().parse().ok()?, first),
            };
            let transform = if wide == "bucket" { Transform::Bucket(number) } else { Transform::Truncate(number) };
            (number > 0).then(|| field(column, transform))?
        }
        _ => None,
    }
}

/// Writes a partition field as [`parse_partition`] reads it.
pub(crate) fn print_partition(field: &PartitionField) -> String {
    let column = &field.column;
    match field.transform {
        Transform::Identity => format!("identity {column}"),
        Transform::Year => format!("year({column})"),
        Transform::Month => format!("month({column})"),
        Transform::Day => format!("day({column})"),
        Transform::Hour => format!("hour({column})"),
        Transform::Bucket(n) => format!("bucket({n}, {column})"),
        Transform::Truncate(n) => format!("truncate({n}, {column})"),
    }
}

/// Reads a sort field.
pub(crate) fn parse_sort(text: &str) -> Result<SortField, NotationError> {
    let mut words = text.split_whitespace();
    let wrong = || NotationError::Sort(text.chars().take(80).collect());
    let column = words.next().ok_or_else(wrong)?.to_owned();
    let descending = match words.next().map(str::to_ascii_lowercase).as_deref() {
        None | Some("asc") => false,
        Some("desc") => true,
        Some(_) => return Err(wrong()),
    };
    if words.next().is_some() {
        return Err(wrong());
    }
    Ok(SortField { column, descending })
}

/// Writes a sort field as [`parse_sort`] reads it.
pub(crate) fn print_sort(field: &SortField) -> String {
    if field.descending { format!("{} desc", field.column) } else { field.column.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_notation_reads_back_as_it_is_printed() {
        for text in [
            "identity region",
            "year(t)",
            "month(t)",
            "day(event_time)",
            "hour(t)",
            "bucket(16, id)",
            "truncate(4, id)",
        ] {
            assert_eq!(print_partition(&parse_partition(text).unwrap()), text);
        }
        assert_eq!(parse_partition("region").unwrap(), parse_partition("identity(region)").unwrap());
        assert_eq!(parse_partition("bucket(id, 16)").unwrap(), parse_partition("bucket(16,id)").unwrap());
        for text in ["", "day", "day()", "weekly(t)", "bucket(t)", "bucket(0, t)", "day(t", "a b", "day(a, b)"] {
            let found = parse_partition(text);
            assert!(found.is_err() || text == "day", "{text:?} became {found:?}");
        }
    }

    #[test]
    fn a_sort_field_is_a_column_and_perhaps_a_direction() {
        assert_eq!(parse_sort("t desc").unwrap(), SortField { column: "t".into(), descending: true });
        assert_eq!(print_sort(&parse_sort("t ASC").unwrap()), "t");
        for text in ["", "t down", "t desc please"] {
            assert!(parse_sort(text).is_err(), "{text:?}");
        }
    }
}
