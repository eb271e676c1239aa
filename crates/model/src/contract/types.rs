//! The types that a column may have.

use serde::{Deserialize, Serialize};

use super::nested::{self, Nested};

/// A column's type, in Iceberg's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// true or false.
    Boolean,
    /// 32-bit signed.
    Int,
    /// 64-bit signed.
    Long,
    /// 32-bit IEEE 754.
    Float,
    /// 64-bit IEEE 754.
    Double,
    /// Exact, with `precision` digits of which `scale` are behind the point. Arrow: `Decimal128`.
    Decimal {
        /// 1 to 38.
        precision: u8,
        /// 0 to `precision`.
        scale: u8,
    },
    /// Days since 1970-01-01. Arrow: `Date32`.
    Date,
    /// Microseconds without a zone. Arrow: `Timestamp(Microsecond, None)`.
    Timestamp,
    /// Microseconds UTC. Arrow: `Timestamp(Microsecond, "+00:00")`.
    Timestamptz,
    /// UTF-8 text. Arrow: `Utf8`.
    String,
    /// Bytes. Arrow: `LargeBinary`.
    Binary,
    /// Any JSON value, kept as its text. Arrow and Iceberg: a string.
    Json,
    /// Text to text. Arrow: `Map(key_value: Struct<key: Utf8, value: Utf8>)`.
    StringMap,
    /// A struct, a list or a map, kept as such.
    Nested(&'static Nested),
}

/// A column's type that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a column type; use boolean, int, long, float, double, decimal(P,S), date, timestamp, timestamptz, string, binary, json, map, or one made of them such as list<long>, map<string, double> or struct<a: int, b: string>"
)]
pub struct TypeError(pub String);

impl ColumnType {
    /// Reads a type's name, such as `long` or `decimal(10,2)`.
    ///
    /// # Errors
    /// The text is not one of the types.
    pub fn parse(text: &str) -> Result<Self, TypeError> {
        let wrong = || TypeError(text.to_owned());
        Ok(match text {
            "boolean" => Self::Boolean,
            "int" => Self::Int,
            "long" => Self::Long,
            "float" => Self::Float,
            "double" => Self::Double,
            "date" => Self::Date,
            "timestamp" => Self::Timestamp,
            "timestamptz" => Self::Timestamptz,
            "string" => Self::String,
            "binary" => Self::Binary,
            "json" => Self::Json,
            "map" => Self::StringMap,
            _ if text.ends_with('>') => nested::parse(text)?,
            _ => {
                let inner = text.strip_prefix("decimal(").and_then(|t| t.strip_suffix(')')).ok_or_else(wrong)?;
                let (p, s) = inner.split_once(',').ok_or_else(wrong)?;
                let precision: u8 = p.trim().parse().map_err(|_| wrong())?;
                let scale: u8 = s.trim().parse().map_err(|_| wrong())?;
                if !(1..=38).contains(&precision) || scale > precision {
                    return Err(wrong());
                }
                Self::Decimal { precision, scale }
            }
        })
    }

    /// Whether Iceberg lets a column of this type become one of that.
    #[must_use]
    pub fn is_wider(self, other: Self) -> bool {
        match (self, other) {
            (Self::Int, Self::Long) | (Self::Float, Self::Double) => true,
            (Self::Decimal { precision, scale }, Self::Decimal { precision: wider, scale: same }) => {
                wider > precision && scale == same
            }
            _ => false,
        }
    }

    /// The type's name, as [`Self::parse`] reads it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Boolean => "boolean".into(),
            Self::Int => "int".into(),
            Self::Long => "long".into(),
            Self::Float => "float".into(),
            Self::Double => "double".into(),
            Self::Decimal { precision, scale } => format!("decimal({precision},{scale})"),
            Self::Date => "date".into(),
            Self::Timestamp => "timestamp".into(),
            Self::Timestamptz => "timestamptz".into(),
            Self::String => "string".into(),
            Self::Binary => "binary".into(),
            Self::Json => "json".into(),
            Self::StringMap => "map".into(),
            Self::Nested(nested) => nested.name(),
        }
    }
}

impl Serialize for ColumnType {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for ColumnType {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for ColumnType {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ColumnType".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^(boolean|int|long|float|double|date|timestamp|timestamptz|string|binary|json|map|(list|map|struct)<.+>|decimal\\([0-9]+, ?[0-9]+\\))$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_read_back_as_they_are_written() -> Result<(), TypeError> {
        for text in ["boolean", "int", "long", "float", "double", "decimal(10,2)", "date", "timestamptz", "map", "json"]
        {
            assert_eq!(ColumnType::parse(text)?.name(), text);
        }
        for bad in ["", "varchar", "decimal(0,0)", "decimal(39,2)", "decimal(5,6)", "decimal(5)"] {
            assert!(ColumnType::parse(bad).is_err(), "{bad:?} was taken");
        }
        Ok(())
    }
}
