//! The contracts that come with the binary: shopping carts' events, documents, and the bronze table of service events.

use super::check::{Checks, JsonKind};
use super::{
    Clean, Column, ColumnRules, ColumnType, Conflicts, Contract, Evolution, Field, Malformed, ObjectRule,
    PartitionField, PayloadFormat, Sanitise, SortField, TablePattern, TimeField, TimeFormat, TimeNotation, Transform,
    Undeclared,
};

/// A contract that comes with the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shipped {
    /// Events of shopping carts: `eventId`, `eventType`, `timestamp`, `userId`, `sessionId`, `storeId`, `data`,
    /// `metadata`. One event id is stored once within an hour; text in it is made harmless.
    Cart,
    /// Documents of any event type, a table for each.
    Documents,
    /// `bronze.service_events_raw`: 15 columns, by day and service.
    ServiceEventsRaw,
}

impl Shipped {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cart, Self::Documents, Self::ServiceEventsRaw];

    /// The name by which a configuration asks for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cart => "cart",
            Self::Documents => "documents",
            Self::ServiceEventsRaw => "service_events_raw",
        }
    }

    /// The stream that has it where the configuration says nothing.
    #[must_use]
    pub fn stream(self) -> &'static str {
        match self {
            Self::Cart => "events",
            other => other.name(),
        }
    }

    /// The contract of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shipped| shipped.name() == name)
    }

    /// The contract.
    #[must_use]
    pub fn contract(self) -> Contract {
        match self {
            Self::Cart => cart(),
            Self::Documents => documents(),
            Self::ServiceEventsRaw => service_events_raw(),
        }
    }
}

fn path(members: &[&str]) -> Vec<String> {
    members.iter().map(|&member| member.to_owned()).collect()
}

fn names(columns: &[&str]) -> Vec<String> {
    path(columns)
}

fn base() -> Contract {
    Contract {
        columns: Vec::new(),
        payload: PayloadFormat::Json,
        partitions: Vec::new(),
        sort: Vec::new(),
        ..Contract::undeclared_default()
    }
}

const CART_EVENT_TYPES: [&str; 6] =
    ["cart_created", "cart_updated", "cart_abandoned", "item_added", "item_removed", "purchase_completed"];
const HARMLESS: [Clean; 3] = [Clean::Control, Clean::Unicode, Clean::EscapeHtml];

fn cart() -> Contract {
    use ColumnType::{Json, String, Timestamptz};
    let columns = vec![
        Column::at("event_id", String, &["eventId"], true),
        Column::at("event_type", String, &["eventType"], true),
        Column::at("timestamp", Timestamptz, &["timestamp"], true),
        Column::at("user_id", String, &["userId"], false),
        Column::at("session_id", String, &["sessionId"], true),
        Column::at("store_id", String, &["storeId"], true),
        Column::at("data", Json, &["data"], true),
        Column::at("user_agent", String, &["metadata", "userAgent"], false),
        Column::at("ip_address", String, &["metadata", "ipAddress"], false),
        Column::at("referrer", String, &["metadata", "referrer"], false),
        Column::envelope("tenant_id", String, Field::TenantId, true),
        Column::envelope("received_at", Timestamptz, Field::ReceivedAt, true),
        Column::envelope("source", String, Field::Source, true),
    ];
    let length = |max| Checks { min_length: Some(1), max_length: Some(max), ..Checks::default() };
    let text = |max| ColumnRules {
        checks: Checks { max_length: Some(max), ..Checks::default() },
        sanitise: Sanitise { steps: HARMLESS.to_vec(), paths: Vec::new() },
        ..ColumnRules::default()
    };
    let checked = |checks| ColumnRules { checks, ..ColumnRules::default() };
    let event_types = CART_EVENT_TYPES.iter().map(|&name| name.into()).collect();
    let times = TimeNotation { formats: vec![TimeFormat::Rfc3339], ..TimeNotation::default() };
    let object = Checks { kinds: vec![JsonKind::Object], ..Checks::default() };
    let rules = [
        ("event_id", checked(length(256))),
        ("event_type", checked(Checks { values: event_types, ..Checks::default() })),
        ("timestamp", ColumnRules { times: times.clone(), ..ColumnRules::default() }),
        ("user_id", text(256)),
        ("session_id", ColumnRules { checks: length(256), ..text(256) }),
        ("store_id", ColumnRules { checks: length(256), ..text(256) }),
        ("data", ColumnRules { checks: object, ..text(0) }),
        ("user_agent", text(2048)),
        ("ip_address", text(256)),
        ("referrer", text(8192)),
    ];
    Contract {
        columns,
        event_key: names(&["event_id"]),
        duplicate_window_ms: 3600 * 1000,
        time: Some(TimeField { path: path(&["timestamp"]), notation: times, or_paths: Vec::new() }),
        undeclared: Undeclared::Keep,
        partitions: vec![PartitionField { column: "timestamp".to_owned(), transform: Transform::Day }],
        sort: vec![SortField { column: "timestamp".to_owned(), descending: false }],
        rules: rules.into_iter().map(|(name, rules)| (name.to_owned(), rules)).collect(),
        objects: vec![ObjectRule { path: path(&["metadata"]), ..ObjectRule::default() }],
        event_type_paths: vec![path(&["eventType"])],
        ..base()
    }
}

fn documents() -> Contract {
    use ColumnType::{Json, String, Timestamptz};
    let columns = vec![
        Column::envelope("event_type", String, Field::EventType, true),
        Column::envelope("@timestamp", Timestamptz, Field::EventTime, true),
        Column::at("memberCode", String, &["fields", "memberCode"], false),
        Column::envelope("fields", Json, Field::Undeclared, false),
        Column::envelope("tenant_id", String, Field::TenantId, true),
        Column::envelope("time_source", String, Field::TimeSource, true),
        Column::envelope("received_at", Timestamptz, Field::ReceivedAt, true),
        Column::envelope("source", String, Field::Source, true),
    ];
    let member = ColumnRules { or_paths: vec![path(&["memberCode"])], ..ColumnRules::default() };
    let notation = TimeNotation {
        formats: vec![TimeFormat::Auto, TimeFormat::Apache, TimeFormat::Rfc2822],
        ..TimeNotation::default()
    };
    Contract {
        columns,
        event_key: names(&["event_type", "memberCode", "@timestamp"]),
        time: Some(TimeField {
            path: path(&["timestamp"]),
            notation,
            or_paths: vec![path(&["@timestamp"]), path(&["fields", "@timestamp"])],
        }),
        malformed: Malformed::Skip,
        undeclared: Undeclared::Keep,
        table: TablePattern("documents.{event_type}".to_owned()),
        partitions: vec![PartitionField { column: "@timestamp".to_owned(), transform: Transform::Day }],
        sort: vec![SortField { column: "@timestamp".to_owned(), descending: false }],
        rules: [("memberCode".to_owned(), member)].into(),
        objects: vec![ObjectRule { path: path(&["fields"]), lifted: true, ..ObjectRule::default() }],
        event_type_paths: vec![path(&["event_type"])],
        evolution: Evolution::default(),
        conflicts: Conflicts::Reject,
        ..base()
    }
}

/// Its columns in their order; which of them a record must have.
const SERVICE_EVENT_COLUMNS: [(&str, bool); 15] = [
    ("event_date", true),
    ("event_time", true),
    ("tenant_id", true),
    ("service", true),
    ("entity_type", false),
    ("entity_id", false),
    ("event_type", true),
    ("status", false),
    ("actor_type", false),
    ("actor_id", false),
    ("channel", false),
    ("ward_id", false),
    ("locality_id", false),
    ("attributes_json", false),
    ("raw_payload", false),
];

fn service_events_raw() -> Contract {
    let column = |(name, required): (&str, bool)| {
        let column_type = match name {
            "event_date" => ColumnType::Date,
            "event_time" => ColumnType::Timestamp,
            "attributes_json" | "raw_payload" => ColumnType::Json,
            _ => ColumnType::String,
        };
        Column::at(name, column_type, &[name], required)
    };
    let times = TimeNotation { formats: vec![TimeFormat::DateTimeSpace, TimeFormat::Auto], ..TimeNotation::default() };
    let as_text = ColumnRules { json_text: true, ..ColumnRules::default() };
    let rules = [
        ("event_date", ColumnRules { or_envelope: Some(Field::EventTime), ..ColumnRules::default() }),
        ("event_time", ColumnRules { times: times.clone(), ..ColumnRules::default() }),
        ("attributes_json", as_text.clone()),
        ("raw_payload", as_text),
    ];
    let partition = |column: &str| PartitionField { column: column.to_owned(), transform: Transform::Identity };
    Contract {
        columns: SERVICE_EVENT_COLUMNS.into_iter().map(column).collect(),
        time: Some(TimeField { path: path(&["event_time"]), notation: times, or_paths: Vec::new() }),
        malformed: Malformed::Skip,
        undeclared: Undeclared::Ignore,
        table: TablePattern("bronze.service_events_raw".to_owned()),
        partitions: vec![partition("event_date"), partition("service")],
        sort: vec![SortField { column: "event_time".to_owned(), descending: false }],
        rules: rules.into_iter().map(|(name, rules)| (name.to_owned(), rules)).collect(),
        event_type_paths: vec![path(&["event_type"])],
        ..base()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_whole_and_found_by_its_name() -> Result<(), super::super::ContractError> {
        for shipped in Shipped::ALL {
            let mut contract = shipped.contract();
            contract.check()?;
            let declared = contract.columns.len();
            contract.add_policy_columns();
            contract.check()?;
            assert_eq!(Shipped::named(shipped.name()), Some(shipped));
            if shipped == Shipped::ServiceEventsRaw {
                assert_eq!(declared, contract.columns.len(), "nothing is added");
            }
        }
        assert_eq!(Shipped::named("events"), None);
        Ok(())
    }
}
