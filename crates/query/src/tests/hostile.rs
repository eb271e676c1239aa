//! Queries that want to bring the machine down. Each must end by an error of ours, and the engine must go on.

use std::fmt::Write;
use std::time::Instant;

use super::*;

const SHORT: QueryLimits =
    QueryLimits { timeout: Duration::from_secs(2), max_rows: 1_000_000, max_result_bytes: 64 * 1024 * 1024 };

/// How much longer than its time-out a query may take: this machine is shared.
const GRACE: Duration = Duration::from_secs(10);

async fn refused(house: &House, sql: &str) -> QueryError {
    refused_within(house, sql, None).await
}

async fn refused_within(house: &House, sql: &str, limits: Option<QueryLimits>) -> QueryError {
    let shown: String = sql.chars().take(120).collect();
    let begun = Instant::now();
    let error = match house.engine.sql(QueryRequest { sql: sql.to_owned(), limits, ..QueryRequest::default() }).await {
        Err(error) => error,
        Ok(result) => result.collect().await.err().unwrap_or_else(|| panic!("{shown} was answered")),
    };
    assert!(begun.elapsed() < SHORT.timeout + GRACE, "{shown} took {:?}", begun.elapsed());
    assert!(!matches!(error, QueryError::Internal(_)), "{shown}: {error}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s21_endless_work_ends_by_the_time_out() {
    let house = House::with(LIMITS, 64 * 1024 * 1024);
    house.push(&name("default", "orders"), numbers(0..20_000));
    for sql in [
        "SELECT count(*) FROM generate_series(1, 1000000000000) WHERE value % 7 = 3",
        "SELECT sum(value) FROM range(1, 9000000000000000000)",
        "SELECT count(*) FROM orders a, orders b, orders c WHERE (a.n + b.n * c.n) % 1000003 = 12",
        "SELECT max(a.n * b.n % 7) FROM orders a, orders b, orders c",
        "SELECT count(*) FROM orders a JOIN orders b ON a.n % 2 = b.n % 2 AND (a.n * b.n) % 1000003 = 1000004",
        "SELECT count(*) FROM orders a JOIN orders b ON a.n < b.n JOIN orders c ON b.n < c.n",
        "SELECT count(*) FROM orders a LEFT JOIN orders b ON a.n * b.n < -1 LEFT JOIN orders c ON b.n + c.n < -1 CROSS JOIN orders d",
        "SELECT count(*) FROM (SELECT unnest(range(1, 300000)) AS u FROM orders) WHERE u % 7 = 9",
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 0 OR n > 0) SELECT n FROM r WHERE n < 0",
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
    ] {
        let error = refused_within(&house, sql, Some(SHORT)).await;
        assert!(matches!(error, QueryError::Timeout { .. } | QueryError::OutOfMemory { .. }), "{sql}: {error}");
        // What was given up gives its thread back.
        assert_eq!(house.number("SELECT count(*) FROM orders").await, 20_000, "after {sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s21_what_needs_too_much_memory_ends_by_the_memory_limit() {
    let house = House::with(QueryLimits { timeout: Duration::from_secs(60), ..SHORT }, 32 * 1024 * 1024);
    for sql in [
        "SELECT count(*) FROM (SELECT DISTINCT value FROM generate_series(1, 1000000000000))",
        "SELECT * FROM generate_series(1, 1000000000000) ORDER BY value % 1000, value DESC",
        "SELECT count(*) FROM generate_series(1, 100000000) a JOIN generate_series(1, 100000000) b USING (value)",
        "SELECT array_agg(value) FROM generate_series(1, 1000000000000)",
    ] {
        let error = match house.ask(sql).await {
            Err(error) => error,
            Ok(_) => panic!("{sql} was answered"),
        };
        assert!(matches!(error, QueryError::OutOfMemory { limit } if limit == 32 * 1024 * 1024), "{sql}: {error}");
    }
    assert_eq!(house.number("SELECT count(*) FROM generate_series(1, 10)").await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s21_functions_that_make_much_of_little_are_refused_before_they_do() {
    let house = House::with(SHORT, 64 * 1024 * 1024);
    for sql in [
        "SELECT repeat('x', 2000000000)",
        "SELECT length(repeat(repeat('x', 10000), 200000))",
        "SELECT lpad('x', 2000000000, 'y')",
        "SELECT rpad('x', 2000000000, 'y')",
        "SELECT range(1, 10000000000)",
        "SELECT generate_series(1, 9223372036854775807)",
        "SELECT generate_series(TIMESTAMP '1970-01-01', TIMESTAMP '2200-01-01', INTERVAL '1 nanosecond')",
        "SELECT array_repeat('x', 2000000000)",
        "SELECT array_resize([1], 2000000000, 0)",
        "SELECT repeat('x', 1000000) || repeat('x', 9000000)",
        "WITH a AS (SELECT repeat('x', n) AS x FROM (VALUES (3000000)) AS v(n)), b AS (SELECT x || x || x AS x FROM a), \
         c AS (SELECT x || x || x AS x FROM b) SELECT length(x || x || x) FROM c",
        "WITH a AS (SELECT range(0, n) AS x FROM (VALUES (3000000)) AS v(n)), b AS (SELECT [x, x, x] AS x FROM a) \
         SELECT array_length([x, x, x]) FROM b",
        "SELECT levenshtein(repeat('x', 1000000), repeat('y', 1000000))",
        "SELECT replace(repeat('x', 100000), 'x', repeat('y', 100000))",
    ] {
        let error = refused(&house, sql).await;
        assert!(matches!(error, QueryError::TooComplex(_)), "{sql}: {error:?}");
    }
}

/// What is copied for each row of a batch is not counted by the memory limit, and so must not be large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s21_wide_values_are_not_copied_for_every_row() {
    let house = House::with(LIMITS, 64 * 1024 * 1024);
    house.push(&name("default", "orders"), numbers(0..20_000));
    let wide = "WITH a AS (SELECT repeat('x', n) AS x FROM (VALUES (8000000)) AS v(n)), \
                l AS (SELECT array_agg(value) AS x FROM generate_series(1, 200000))";
    for sql in [
        format!("{wide} SELECT count(*) FROM a CROSS JOIN orders WHERE length(x) + n = 3"),
        format!("{wide} SELECT count(*) FROM l CROSS JOIN orders WHERE array_length(x) + n = 3"),
        format!("{wide} SELECT count(*) FROM a JOIN orders ON length(a.x) > orders.n AND x <> n || 'x'"),
        format!("{wide} SELECT count(*) FROM (SELECT unnest(x) AS u, x FROM l) WHERE array_length(x) + u = 3"),
        "SELECT count(*) FROM (SELECT array_agg(n) OVER () AS x FROM orders) WHERE array_length(x) = 3".to_owned(),
        "SELECT n, string_agg(n || 'x', ',') OVER (ORDER BY n) FROM orders".to_owned(),
    ] {
        let error = refused(&house, &sql).await;
        let sorted = matches!(error, QueryError::TooComplex(_) | QueryError::OutOfMemory { .. });
        assert!(sorted, "{sql}: {error:?}");
    }
    // Constants are as wide as they are, in smaller batches.
    let constant =
        format!("SELECT count(*) FROM (SELECT '{}' || n AS x FROM orders) WHERE length(x) = 3", "y".repeat(900_000));
    assert_eq!(house.number(&constant).await, 0);
    let array =
        "SELECT count(*) FROM (SELECT range(0, 100000) AS x, n FROM orders LIMIT 100) WHERE array_length(x) = 100000";
    assert_eq!(house.number(array).await, 100);
    let unnested =
        "SELECT count(*) FROM (SELECT unnest(range(0, 100000)) AS u, n FROM orders LIMIT 300000) WHERE u = 5";
    assert_eq!(house.number(unnested).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s21_too_many_rows_or_bytes_end_the_result() {
    let house = House::with(
        QueryLimits { timeout: Duration::from_secs(60), max_rows: 100_000, max_result_bytes: 4_000_000 },
        64 * 1024 * 1024,
    );
    let error = refused(&house, "SELECT * FROM generate_series(1, 1000000000000)").await;
    assert_eq!(error, QueryError::TooManyRows { limit: 100_000 });
    let error = refused(&house, "SELECT repeat('x', 1000) FROM generate_series(1, 50000)").await;
    assert_eq!(error, QueryError::ResultTooLarge { limit: 4_000_000 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s21_deep_texts_end_by_an_error_and_not_by_the_stack() {
    let house = House::with(LIMITS, 64 * 1024 * 1024);
    house.push(&name("default", "orders"), numbers(0..10));
    let nested = |open: &str, core: &str, close: &str, times: usize| {
        format!("SELECT {}{core}{}", open.repeat(times), close.repeat(times))
    };
    let mut with = "WITH a0 AS (SELECT 1 AS x)".to_owned();
    for n in 1..60 {
        write!(with, ", a{n} AS (SELECT l.x FROM a{m} l, a{m} r)", m = n - 1).unwrap();
    }
    let texts = [
        nested("(", "1", ")", 10_000),
        nested("(SELECT ", "1", ")", 5_000),
        nested("NOT ", "true", "", 10_000),
        nested("- ", "1", "", 10_000),
        nested("abs(", "1", ")", 10_000),
        nested("(SELECT ", "1", ")", 20),
        format!("SELECT {}", "1,".repeat(100_000) + "1"),
        format!("SELECT 1 WHERE 1 IN ({})", "1,".repeat(100_000) + "1"),
        nested("CASE WHEN true THEN ", "1", " END", 5_000),
        nested("[", "1", "]", 10_000),
        nested("CAST(", "1", " AS BIGINT)", 10_000),
        nested("", "1", "::bigint", 20_000),
        nested("", "1", "+1", 100_000),
        nested("", "true", " AND true", 100_000),
        nested("", "'a'", "||'a'", 100_000),
        nested("", "1", " UNION ALL SELECT 1", 50_000),
        format!("SELECT * FROM {}orders{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("SELECT * FROM orders{}", " JOIN orders USING (n)".repeat(5_000)),
        format!("SELECT 1 WHERE {}1=1{}", "EXISTS (SELECT 1 WHERE ".repeat(3_000), ")".repeat(3_000)),
        format!("{with} SELECT count(*) FROM a59"),
        format!("{}SELECT 1{}", "WITH a AS (".repeat(30), ") SELECT * FROM a".repeat(30)),
        format!("SELECT '{}'", "x".repeat(2 * 1024 * 1024)),
        format!("EXPLAIN {}", nested("(", "1", ")", 10_000)),
        "EXPLAIN ".repeat(10_000) + "SELECT 1",
    ];
    for text in &texts {
        let error = refused(&house, text).await;
        let sorted = matches!(
            error,
            QueryError::TooComplex(_) | QueryError::Syntax(_) | QueryError::Plan(_) | QueryError::NotAllowed(_)
        );
        assert!(sorted, "{}: {error:?}", text.chars().take(60).collect::<String>());
    }
    assert_eq!(house.number("SELECT count(*) FROM orders").await, 10);
}

/// What lies just within the bounds must be planned, run and dropped, or be refused, but never end the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s21_texts_at_the_bounds_do_no_harm() {
    let house = House::with(QueryLimits { timeout: Duration::from_secs(30), ..SHORT }, 64 * 1024 * 1024);
    house.push(&name("default", "orders"), numbers(0..10));
    let list: Vec<String> = (0..8_000).map(|n| if n % 2 == 0 { n.to_string() } else { format!("-{n}") }).collect();
    let text_list: Vec<String> = (0..12_000).map(|n| format!("'k{n}'")).collect();
    let nested = |open: &str, core: &str, close: &str, times: usize| {
        format!("SELECT {}{core}{}", open.repeat(times), close.repeat(times))
    };
    for text in [
        nested("", "1", "+1", 990),
        nested("", "n", "+n", 490) + " FROM orders",
        nested("", "true", " AND n = 1", 490) + " FROM orders",
        format!("SELECT count(*) FROM orders WHERE false{}", " OR n = 1".repeat(490)),
        nested("", "1", " UNION ALL SELECT 1", 250),
        nested("(", "1", ")", 31),
        nested("abs(", "1", ")", 31),
        nested("(SELECT ", "1", ")", 9),
        nested("", "1", "::bigint", 990),
        format!("SELECT * FROM {}orders{}", "(".repeat(31), ")".repeat(31)),
        format!("SELECT count(*) FROM orders WHERE n IN ({})", list.join(",")),
        format!("SELECT count(*) FROM orders WHERE CAST(n AS VARCHAR) IN ({})", text_list.join(",")),
        format!("SELECT {}", list.join(",")),
    ] {
        let answer = house.ask(&text).await;
        let shown: String = text.chars().take(60).collect();
        assert!(!matches!(answer, Err(QueryError::Internal(_))), "{shown}: {answer:?}");
    }
    assert_eq!(house.number(&format!("SELECT count(*) FROM orders WHERE n IN ({})", list.join(","))).await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s21_hostile_patterns_and_values_end() {
    let house = House::with(SHORT, 64 * 1024 * 1024);
    house.push(&name("default", "orders"), numbers(0..10));
    for sql in [
        "SELECT n / 0 FROM orders",
        "SELECT regexp_like('x', '((((((((((a{1,100}){1,100}){1,100}){1,100}){1,100}){1,100}))))))')",
        "SELECT CAST('not a number' AS BIGINT) FROM orders",
        "SELECT n + 9223372036854775807 + n + 9223372036854775807 FROM orders WHERE CAST(n || 'x' AS INT) > 0",
        "SELECT nosuch FROM orders",
        "SELECT nosuch(n) FROM orders",
        "SELECT * FROM orders WHERE n = $1",
    ] {
        let error = refused(&house, sql).await;
        let sorted = matches!(error, QueryError::Failed(_) | QueryError::Plan(_));
        assert!(sorted, "{sql}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_nobody_reads_on_gives_its_place_back_when_it_is_dropped() {
    let house = House::new();
    for _ in 0..20 {
        let sql = "SELECT * FROM generate_series(1, 1000000000000)".to_owned();
        let mut result = house.engine.sql(QueryRequest { sql, ..QueryRequest::default() }).await.unwrap();
        assert!(result.stream.next().await.unwrap().is_ok());
    }
    assert!(house.engine.running(None).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_queries_than_may_run_are_told_to_come_back() {
    let house = House::new();
    let request = || QueryRequest {
        sql: "SELECT * FROM generate_series(1, 1000000000000)".to_owned(),
        ..QueryRequest::default()
    };
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(house.engine.sql(request()).await.unwrap());
    }
    assert_eq!(house.engine.sql(request()).await.unwrap_err(), QueryError::Busy { limit: 4 });
    held.pop();
    assert!(house.engine.sql(request()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sort_larger_than_the_memory_goes_to_the_folder_for_it_and_leaves_nothing_there() {
    let folder = tempfile::tempdir().unwrap();
    let house = House::new();
    let engine = QueryEngine::new(QueryOptions {
        lake: house.lake.clone(),
        memtables: house.memtables.clone(),
        memory_limit_bytes: 24 * 1024 * 1024,
        default_limits: LIMITS,
        concurrent: 4,
        target_partitions: 2,
        spill_dir: Some(folder.path().to_owned()),
    })
    .unwrap();
    let sql =
        "SELECT value, repeat('x', 100) AS x FROM generate_series(1, 300000) ORDER BY value % 1000, value".to_owned();
    let sorted = engine.sql(QueryRequest { sql: sql.clone(), ..QueryRequest::default() }).await.unwrap();
    let batches = sorted.collect().await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 300_000);
    assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().value(0), 1000);
    assert!(matches!(refused(&House::with(LIMITS, 24 * 1024 * 1024), &sql).await, QueryError::OutOfMemory { .. }));
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().flat_map(|d| std::fs::read_dir(d.unwrap().path()).unwrap()).collect();
    assert!(left.is_empty(), "{left:?}");
}
