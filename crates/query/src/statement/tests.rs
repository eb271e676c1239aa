use lakegate_model::ColumnType;

use super::*;

fn table(namespace: &str, table: &str) -> TableRef {
    TableRef { namespace: Some(namespace.to_owned()), table: table.to_owned() }
}

#[test]
fn an_insert_of_the_document_is_read_with_its_catalog_columns_and_values() {
    let sql = "INSERT INTO iceberg.bronze.service_events_raw (\n event_date, event_time, tenant_id) VALUES\n\
               (DATE '2024-12-01', TIMESTAMP '2024-12-01 10:00:00', 'it''s'), (NULL, NULL, 'b');";
    let Statement::Insert(insert) = read(sql).unwrap() else { panic!("no INSERT") };
    assert_eq!(insert.table, table("bronze", "service_events_raw"));
    assert_eq!(insert.columns, ["event_date", "event_time", "tenant_id"]);
    assert!(insert.source.contains("'it''s'"), "{}", insert.source);
    let sql = "INSERT INTO t SELECT * FROM 's3://warehouse/staging/x.csv'";
    let Statement::Insert(insert) = read(sql).unwrap() else { panic!("no INSERT") };
    assert_eq!(insert.source, "SELECT * FROM 's3://warehouse/staging/x.csv'");
}

#[test]
fn an_external_table_of_the_document_is_read() {
    let sql = "CREATE TABLE iceberg.bronze.temp_pgr (event_date DATE, event_time TIMESTAMP, n DECIMAL(12,2) NOT NULL,
        z TIMESTAMP(6) WITH TIME ZONE, m MAP(VARCHAR, VARCHAR))
        WITH (format = 'CSV',  -- or 'PARQUET'
              external_location = 's3://warehouse/staging/x.csv', skip_header_line_count = 1)";
    let Statement::CreateTable(create) = read(sql).unwrap() else { panic!("no CREATE TABLE") };
    assert_eq!(create.table, table("bronze", "temp_pgr"));
    let types: Vec<_> = create.columns.iter().map(|c| (c.column_type.name(), c.required)).collect();
    assert_eq!(types[2], (ColumnType::Decimal { precision: 12, scale: 2 }.name(), true));
    assert_eq!(types[3].0, ColumnType::Timestamptz.name());
    assert_eq!(create.options[0], ("format".to_owned(), OptionValue::Text("CSV".to_owned())));
    assert_eq!(create.options[2], ("skip_header_line_count".to_owned(), OptionValue::Number(1.0)));
    let sql = "CREATE TABLE a.b (x DATE, s VARCHAR) WITH (partitioning = ARRAY['day(x)', 's'])";
    let Statement::CreateTable(create) = read(sql).unwrap() else { panic!("no CREATE TABLE") };
    assert_eq!(create.options[0].1, OptionValue::Texts(vec!["day(x)".to_owned(), "s".to_owned()]));
    assert!(read("CREATE TABLE a.b (x HYPERLOGLOG)").unwrap_err().to_string().contains("varbinary"));
}

#[test]
fn words_of_trinos_clients_are_understood() {
    let is = |sql: &str, wanted: Statement| assert_eq!(read(sql).unwrap(), wanted, "{sql}");
    is("SHOW CATALOGS", Statement::Show(Show::Catalogs));
    is("show schemas from iceberg like 'b%'", Statement::Show(Show::Schemas { like: Some("b%".to_owned()) }));
    let tables = Show::Tables { namespace: Some("bronze".to_owned()), like: None };
    is("SHOW TABLES FROM iceberg.bronze;", Statement::Show(tables));
    is("DESCRIBE iceberg.bronze.t", Statement::Show(Show::Columns(table("bronze", "t"))));
    let used = Statement::Use { catalog: Some("iceberg".to_owned()), namespace: "bronze".to_owned() };
    is("USE iceberg.bronze", used);
    is(
        "PREPARE p FROM SELECT ', ?' FROM t",
        Statement::Prepare { name: "p".to_owned(), sql: "SELECT ', ?' FROM t".to_owned() },
    );
    let execute = Execute {
        what: Err("INSERT INTO t VALUES (?, 'a''b')".to_owned()),
        values: vec!["DATE '2024-12-01'".to_owned(), "ARRAY[1,2]".to_owned()],
    };
    let sql = "EXECUTE IMMEDIATE 'INSERT INTO t VALUES (?, ''a''''b'')' USING DATE '2024-12-01', ARRAY[1,2]";
    is(sql, Statement::Execute(execute));
    is("SELECT 1", Statement::Read);
    is("EXPLAIN SELECT 1", Statement::Read);
}

#[test]
fn s30_a_value_never_becomes_sql() {
    let values = literals(&[serde_json::json!("x'); DROP TABLE t; --"), serde_json::json!(-3)]).unwrap();
    let sql = bind("INSERT INTO t VALUES (?, '?', 5 - ?) -- ?\n", &values).unwrap();
    assert_eq!(sql, "INSERT INTO t VALUES (('x''); DROP TABLE t; --'), '?', 5 - (-3)) -- ?\n");
    assert!(matches!(read(&sql).unwrap(), Statement::Insert(_)));
    assert_eq!(bind("SELECT $2, $1", &["'a'".to_owned(), "2".to_owned()]).unwrap(), "SELECT 2, 'a'");
    assert!(bind("SELECT ?", &[]).is_err());
    assert!(bind("SELECT ?", &["1".to_owned(), "2".to_owned()]).is_err());
}

#[test]
fn literals_of_trino_become_those_of_the_engine() {
    let is = |sql: &str, wanted: &str| assert_eq!(prefer_engine_words(sql).unwrap(), wanted);
    is("SELECT DATE '2024-12-01'", "SELECT DATE '2024-12-01'");
    is(
        "VALUES (TIMESTAMP '2024-12-01 10:00:00.5 UTC')",
        "VALUES (CAST('2024-12-01T10:00:00.5+00:00' AS TIMESTAMP WITH TIME ZONE) )",
    );
    is("SELECT DECIMAL '-12.50'", "SELECT CAST('-12.50' AS DECIMAL(4,2)) ");
    is("SELECT 'UUID', \"uuid\" 'x'", "SELECT 'UUID', \"uuid\" 'x'");
}

#[test]
fn parameters_of_an_insert_know_their_columns_and_are_counted() {
    assert_eq!(parameter_count("SELECT ?, '?', $3 FROM t WHERE a = ? -- ?").unwrap(), 3);
    let Statement::Insert(insert) = read("INSERT INTO t (a, b) VALUES (($1), 7), (lower($2), $3)").unwrap() else {
        panic!()
    };
    assert_eq!((insert.width, insert.parameters), (2, vec![(1, 0), (3, 1)]));
}

#[test]
fn the_tables_of_the_jdbc_driver_are_put_together_from_the_engines() {
    let sql = prefer_engine_words("SELECT TABLE_CAT FROM system.jdbc.catalogs ORDER BY TABLE_CAT").unwrap();
    assert_eq!(sql, "SELECT TABLE_CAT FROM (SELECT 'iceberg' AS table_cat) ORDER BY TABLE_CAT");
    let untouched = "SELECT * FROM system.runtime.nodes";
    assert_eq!(prefer_engine_words(untouched).unwrap(), untouched);
}

#[test]
fn a_table_function_is_answered_with_the_way_that_files_are_read() {
    let told =
        read("INSERT INTO t SELECT * FROM TABLE(\n EXTERNAL('s3://b/x.csv', CSV, 'a DATE'))").unwrap_err().to_string();
    assert!(told.contains("EXTERNAL") && told.contains("SELECT * FROM 's3://b/x.csv'"), "{told}");
}
