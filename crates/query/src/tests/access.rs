//! Who sees what, and what nobody may do.

use super::*;

fn house_of_two() -> House {
    let house = House::new();
    house.lake.commit(&name("acme", "orders"), vec![numbers(0..3)], 3);
    house.durable.store(3, Ordering::Release);
    house.push(&name("acme", "visits"), numbers([1]));
    house.lake.commit(&name("umbrella", "secrets"), vec![numbers(0..9)], 3);
    house.push(&name("umbrella", "orders"), numbers([1, 2]));
    house
}

#[tokio::test]
async fn a_name_without_namespace_is_the_tenants_own() {
    let house = house_of_two();
    assert_eq!(house.lines_as(Some("acme"), "SELECT count(*) FROM orders").await, ["3"]);
    assert_eq!(house.lines_as(Some("umbrella"), "SELECT count(*) FROM orders").await, ["2"]);
    assert_eq!(house.lines_as(Some("acme"), "SELECT count(*) FROM acme.visits").await, ["1"]);
}

#[tokio::test]
async fn with_no_tenant_a_name_must_be_in_one_namespace() {
    let house = house_of_two();
    assert_eq!(house.lines_as(None, "SELECT count(*) FROM secrets").await, ["9"]);
    let error = house.ask("SELECT count(*) FROM orders").await.unwrap_err();
    assert!(error.to_string().contains("acme.orders, umbrella.orders"), "{error}");
    assert_eq!(house.lines_as(None, "SELECT count(*) FROM acme.orders JOIN umbrella.secrets USING (n)").await, ["3"]);
}

#[tokio::test]
async fn s21_another_tenants_table_and_one_that_does_not_exist_give_the_same_answer() {
    let house = house_of_two();
    for tail in ["", " JOIN acme.orders USING (n)", " WHERE n IN (SELECT n FROM acme.orders)"] {
        for form in [
            "SELECT * FROM {}",
            "EXPLAIN SELECT * FROM {}",
            "EXPLAIN ANALYZE SELECT * FROM {}",
            "WITH a AS (SELECT * FROM {}) SELECT * FROM a",
        ] {
            let text = |table: &str| {
                form.replace("{}", &format!("{table}{}", if form.starts_with("WITH") { "" } else { tail }))
            };
            let there = house.ask_as(Some("acme"), &text("umbrella.secrets")).await.unwrap_err().to_string();
            let absent = house.ask_as(Some("acme"), &text("umbrella.zzzzzzz")).await.unwrap_err().to_string();
            assert_eq!(there.replace("secrets", "zzzzzzz"), absent);
            assert!(there.starts_with("there is no table umbrella.secrets"), "{there}");
        }
    }
    for sql in
        ["DESCRIBE umbrella.secrets", "SHOW COLUMNS FROM umbrella.secrets", "SELECT * FROM lakegate.umbrella.secrets"]
    {
        let error = house.ask_as(Some("acme"), sql).await.unwrap_err();
        assert!(!error.to_string().contains("n Int64"), "{sql}: {error}");
    }
}

#[tokio::test]
async fn an_unknown_table_is_answered_with_like_names_that_the_tenant_may_see() {
    let house = house_of_two();
    let error = house.ask_as(Some("acme"), "SELECT * FROM ordres").await.unwrap_err();
    assert_eq!(error.to_string(), "there is no table ordres that you may read; did you mean acme.orders?");
    let error = house.ask_as(Some("acme"), "SELECT * FROM secret").await.unwrap_err();
    assert_eq!(error.to_string(), "there is no table secret that you may read; SHOW TABLES lists those that there are");
}

#[tokio::test]
async fn s21_the_information_schema_shows_a_tenant_its_own_tables_only() {
    let house = house_of_two();
    let sql = "SELECT table_catalog, table_schema, table_name FROM information_schema.tables \
               WHERE table_schema <> 'information_schema' ORDER BY 1, 2, 3";
    assert_eq!(house.lines_as(Some("acme"), sql).await, ["lakegate acme orders", "lakegate acme visits"]);
    assert_eq!(house.lines_as(None, sql).await.len(), 4);
    let sql = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'acme' ORDER BY 1";
    assert_eq!(house.lines_as(Some("acme"), sql).await, ["orders n Int64", "visits n Int64"]);
    assert!(house.lines_as(Some("umbrella"), sql).await.is_empty());
    let sql = "SELECT schema_name FROM information_schema.schemata ORDER BY 1";
    assert_eq!(house.lines_as(Some("acme"), sql).await, ["acme"]);
    let shown = house.lines_as(Some("acme"), "SHOW TABLES").await.join("\n");
    assert!(
        shown.contains("orders")
            && shown.contains("visits")
            && !shown.contains("umbrella")
            && !shown.contains("secrets"),
        "{shown}"
    );
    let shown = house.lines_as(Some("acme"), "SHOW COLUMNS FROM orders").await;
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(house.lines_as(Some("acme"), "DESCRIBE orders").await, ["n Int64 YES"]);
    let error = house.ask_as(Some("acme"), "SELECT * FROM information_schema.df_settings").await.unwrap_err();
    assert!(matches!(error, QueryError::NotAllowed(_)), "{error}");
}

#[tokio::test]
async fn s20_nothing_but_reading_is_allowed_and_no_file_or_address_is_a_table() {
    let house = house_of_two();
    let refused = [
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "COPY acme.orders TO 's3://bucket/x' STORED AS PARQUET",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE TABLE t AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "CREATE FUNCTION f(a INT) RETURNS INT RETURN a",
        "CREATE SCHEMA s",
        "CREATE DATABASE d",
        "DROP TABLE acme.orders",
        "INSERT INTO acme.orders VALUES (1)",
        "UPDATE acme.orders SET n = 1",
        "DELETE FROM acme.orders",
        "TRUNCATE TABLE acme.orders",
        "SET datafusion.execution.target_partitions = 1000",
        "RESET datafusion.execution.target_partitions",
        "SHOW ALL",
        "SHOW datafusion.execution.target_partitions",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "BEGIN",
        "INSTALL httpfs",
        "LOAD httpfs",
        "ATTACH DATABASE 'x' AS y",
        "EXPLAIN ANALYZE INSERT INTO acme.orders VALUES (1)",
        "EXPLAIN COPY (SELECT 1) TO '/tmp/x.csv'",
        "SELECT 1; DROP TABLE acme.orders",
        "SELECT * INTO t FROM acme.orders",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM \"/etc/passwd\"",
        "SELECT * FROM '../../etc/passwd'",
        "SELECT * FROM 's3://bucket/x.parquet'",
        "SELECT * FROM 'http://169.254.169.254/latest/meta-data'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_parquet('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "SELECT read_text('/etc/passwd')",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM datafusion.public.orders",
        "SELECT * FROM acme.\"../umbrella/secrets\"",
        "",
        "-- nothing",
    ];
    for sql in refused {
        let error = house.ask_as(Some("acme"), sql).await.expect_err(sql);
        let sorted = matches!(
            error,
            QueryError::Syntax(_) | QueryError::Plan(_) | QueryError::NotAllowed(_) | QueryError::UnknownTable { .. }
        );
        assert!(sorted, "{sql}: {error:?}");
        assert!(!error.to_string().contains("root:"), "{sql}: {error}");
    }
    assert_eq!(house.lines_as(Some("acme"), "SELECT count(*) FROM orders").await, ["3"]);
}

#[tokio::test]
async fn what_reads_is_allowed() {
    let house = house_of_two();
    for sql in [
        "VALUES (1), (2)",
        "SELECT 1 UNION ALL SELECT 2",
        "WITH a AS (SELECT n FROM orders) SELECT max(n) FROM a",
        "EXPLAIN SELECT * FROM orders WHERE n > 1",
        "EXPLAIN ANALYZE SELECT * FROM orders",
        "EXPLAIN VERBOSE SELECT * FROM orders",
        "SELECT * FROM generate_series(1, 3)",
        "SELECT n, row_number() OVER (ORDER BY n) FROM orders",
        "SELECT repeat('ab', 3), array_agg(n) FROM orders",
        "SELECT unnest(range(DATE '2025-01-01', DATE '2025-02-01', INTERVAL '1 day'))",
        "SELECT date_trunc('day', now()), regexp_replace('aa', 'a', 'b')",
        "SELECT 'a' || n || NULL || 'b', [1] || 2, [1] || [n], 1 || [2], ['a', 'b'], n || 'x' AS named FROM orders",
        "SHOW TABLES",
    ] {
        let rows = house.ask_as(Some("acme"), sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert!(!rows.is_empty(), "{sql}");
    }
}

#[tokio::test]
async fn operators_on_texts_and_arrays_mean_what_they_do_elsewhere() {
    let house = house_of_two();
    let sql =
        "SELECT 'a' || n, 'a' || NULL, n || 'b' || n, [1] || [n], [1] || n, 1 || [n] FROM orders WHERE 'x' || n = 'x2'";
    assert_eq!(house.lines_as(Some("acme"), sql).await, ["a2  2b2 [1, 2] [1, 2] [1, 2]"]);
    let rows = house.ask("SELECT 'a' || 'b'").await.unwrap();
    assert_eq!(lines(&rows), ["ab"]);
}

#[tokio::test]
async fn a_tenant_sees_and_cancels_its_own_queries_only() {
    let house = house_of_two();
    let acme = TenantId::new("acme").unwrap();
    let umbrella = TenantId::new("umbrella").unwrap();
    let request = QueryRequest {
        sql: "SELECT * FROM generate_series(1, 100000000)".to_owned(),
        tenant: Some(acme.clone()),
        query_id: Some("mine".to_owned()),
        ..QueryRequest::default()
    };
    let mut result = house.engine.sql(request.clone()).await.unwrap();
    assert!(result.stream.next().await.unwrap().is_ok());
    assert!(house.engine.running(Some(&umbrella)).is_empty());
    assert_eq!(house.engine.running(Some(&acme))[0].query_id, "mine");
    assert_eq!(house.engine.running(None).len(), 1);
    assert!(house.engine.sql(request).await.is_err(), "the same name twice");
    assert!(!house.engine.cancel("mine", Some(&umbrella)));
    assert!(!house.engine.cancel("other", None));
    assert!(house.engine.cancel("mine", Some(&acme)));
    assert_eq!(result.stream.next().await.unwrap().unwrap_err(), QueryError::Cancelled);
    assert!(result.stream.next().await.is_none());
    assert!(house.engine.running(None).is_empty());
}

#[tokio::test]
async fn a_catalog_that_is_away_is_said_so() {
    let house = house_of_two();
    *house.lake.away.lock() = true;
    let error = house.ask("SELECT * FROM acme.orders").await.unwrap_err();
    assert!(error.is_retryable() && error.code() == "unavailable", "{error}");
}
