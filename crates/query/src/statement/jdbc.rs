//! The tables by which Trino's JDBC driver asks for names: `system.jdbc.…`, put together from the engine's own, so that each
//! asker sees its own tables there too.

use datafusion::sql::sqlparser::tokenizer::Token;

/// What a column's type is called: the engine's word, JDBC's number, Trino's word.
const TYPES: [(&str, i32, &str); 13] = [
    ("Boolean", 16, "boolean"),
    ("Int8", -6, "tinyint"),
    ("Int16", 5, "smallint"),
    ("Int32", 4, "integer"),
    ("Int64", -5, "bigint"),
    ("Float32", 7, "real"),
    ("Float64", 8, "double"),
    ("Date32", 91, "date"),
    ("Utf8", 12, "varchar"),
    ("Utf8View", 12, "varchar"),
    ("LargeUtf8", 12, "varchar"),
    ("Binary", -3, "varbinary"),
    ("BinaryView", -3, "varbinary"),
];

/// Puts a subquery in the place of each of them. Returns whether there was one.
pub(super) fn name_tables(tokens: &mut [Token]) -> bool {
    let mut changed = false;
    for at in 0..tokens.len() {
        let Some([system, Token::Period, jdbc, Token::Period, Token::Word(table)]) = tokens.get(at..at + 5) else {
            continue;
        };
        let is =
            |token: &Token, name: &str| matches!(token, Token::Word(word) if word.value.eq_ignore_ascii_case(name));
        let Some(query) = (is(system, "system") && is(jdbc, "jdbc")).then(|| query_of(&table.value)).flatten() else {
            continue;
        };
        for token in tokens.iter_mut().skip(at).take(5) {
            *token = Token::make_word("", None);
        }
        if let Some(first) = tokens.get_mut(at) {
            *first = Token::make_word(&format!("({query})"), None);
        }
        changed = true;
    }
    changed
}

fn query_of(table: &str) -> Option<String> {
    let tables = "information_schema.tables WHERE table_schema <> 'information_schema'";
    let none = |names: &[&str]| {
        names.iter().map(|name| format!("CAST(NULL AS VARCHAR) AS {name}")).collect::<Vec<_>>().join(", ")
    };
    Some(match table.to_lowercase().as_str() {
        "catalogs" => "SELECT 'iceberg' AS table_cat".to_owned(),
        "table_types" => "SELECT 'TABLE' AS table_type".to_owned(),
        "schemas" => format!("SELECT DISTINCT table_schema AS table_schem, 'iceberg' AS table_catalog FROM {tables}"),
        "tables" => format!(
            "SELECT 'iceberg' AS table_cat, table_schema AS table_schem, table_name, 'TABLE' AS table_type, {} FROM {tables}",
            none(&["remarks", "type_cat", "type_schem", "type_name", "self_referencing_col_name", "ref_generation"])
        ),
        "columns" => columns(&none(&["remarks", "column_def", "scope_catalog", "scope_schema", "scope_table"])),
        _ => return None,
    })
}

fn columns(none: &str) -> String {
    let case = |of: &dyn Fn(&(&str, i32, &str)) -> String, others: &str| {
        let whens: Vec<String> = TYPES.iter().map(|kind| format!("WHEN '{}' THEN {}", kind.0, of(kind))).collect();
        format!("CASE data_type {} ELSE {others} END", whens.join(" "))
    };
    let numbers = case(
        &|kind| kind.1.to_string(),
        "CASE WHEN starts_with(data_type, 'Decimal') THEN 3 WHEN starts_with(data_type, 'Timestamp') THEN \
         CASE WHEN strpos(data_type, ',') > 0 THEN 2014 ELSE 93 END WHEN starts_with(data_type, 'List') THEN 2003 ELSE 2000 END",
    );
    let names = case(
        &|kind| format!("'{}'", kind.2),
        "CASE WHEN starts_with(data_type, 'Decimal') THEN 'decimal' || replace(substr(data_type, strpos(data_type, '(')), ' ', '') \
         WHEN starts_with(data_type, 'Timestamp') THEN CASE WHEN strpos(data_type, ',') > 0 THEN 'timestamp(6) with time zone' \
         ELSE 'timestamp(6)' END WHEN starts_with(data_type, 'List') THEN 'array' ELSE 'row' END",
    );
    let whole = "CAST(NULL AS INTEGER)";
    format!(
        "SELECT 'iceberg' AS table_cat, table_schema AS table_schem, table_name, column_name, CAST({numbers} AS INTEGER) AS data_type, \
         {names} AS type_name, {whole} AS column_size, {whole} AS buffer_length, {whole} AS decimal_digits, 10 AS num_prec_radix, \
         CASE is_nullable WHEN 'NO' THEN 0 ELSE 1 END AS nullable, {whole} AS sql_data_type, {whole} AS sql_datetime_sub, \
         {whole} AS char_octet_length, CAST(ordinal_position AS INTEGER) AS ordinal_position, is_nullable, \
         CAST(NULL AS SMALLINT) AS source_data_type, 'NO' AS is_autoincrement, 'NO' AS is_generatedcolumn, {none} \
         FROM information_schema.columns WHERE table_schema <> 'information_schema'"
    )
}
