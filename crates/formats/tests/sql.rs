//! Dumps.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failed test is a panic"
)]

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use lakegate_formats::{BytesInput, Mark, Piece, ReadOptions, Rows, open};
use lakegate_model::ColumnType;

/// A file's pieces, and what was passed over.
type Dump = (Vec<Piece>, Vec<(String, u64)>);

fn read(text: &str, options: &ReadOptions, from: Option<Mark>) -> Dump {
    let input = Arc::new(BytesInput::new("dump.sql", text.as_bytes().to_vec()));
    let mut reader = open(input, options, from).unwrap();
    let mut out = Vec::new();
    while let Some(piece) = reader.next().unwrap() {
        out.push(piece);
    }
    (out, reader.passed_over())
}

fn batch(piece: &Piece) -> &RecordBatch {
    let Rows::Columns(batch) = &piece.rows else { panic!("documents") };
    batch
}

const MYSQL: &str = r#"-- MySQL dump 10.13
/*!40101 SET NAMES utf8mb4 */;
DROP TABLE IF EXISTS `orders`;
CREATE TABLE `orders` (
  `id` bigint(20) unsigned NOT NULL AUTO_INCREMENT,
  `n` int(10) unsigned DEFAULT NULL,
  `price` decimal(10,2) NOT NULL DEFAULT '0.00',
  `note` varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin DEFAULT 'a,b)',
  `kind` enum('x','y (z)') DEFAULT 'x',
  `at` datetime(6) DEFAULT NULL,
  `ok` bit(1) DEFAULT b'0',
  `raw` longblob,
  PRIMARY KEY (`id`),
  KEY `k` (`note`(10)),
  CONSTRAINT `c` FOREIGN KEY (`n`) REFERENCES `other` (`id`) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
LOCK TABLES `orders` WRITE;
INSERT INTO `orders` VALUES (18446744073709551615,4294967295,12.50,'it\'s; (a) "q"\n','x','2024-01-02 03:04:05.678',b'1',_binary 'a\0b'),(2,NULL,-1.05,N'''q''','y (z)','0000-00-00 00:00:00',_binary '\0',0xFF00);
INSERT IGNORE INTO `orders` (`price`,`id`) VALUES (3,3),(oops(1),4),('x',5) ON DUPLICATE KEY UPDATE n=1;
UNLOCK TABLES;
DELIMITER ;;
CREATE TRIGGER t BEFORE INSERT ON orders FOR EACH ROW BEGIN INSERT INTO orders VALUES (1); END ;;
DELIMITER ;
LOAD DATA INFILE '/etc/passwd' INTO TABLE orders;
"#;

#[test]
fn s23_a_mysql_dump_gives_tables_and_rows_and_executes_nothing() {
    let (pieces, passed) = read(MYSQL, &ReadOptions::default(), None);
    let table = pieces[0].table.as_ref().unwrap();
    let types: Vec<ColumnType> = table.columns.iter().map(|c| c.column_type).collect();
    assert_eq!(
        types,
        [
            ColumnType::Decimal { precision: 20, scale: 0 },
            ColumnType::Long,
            ColumnType::Decimal { precision: 10, scale: 2 },
            ColumnType::String,
            ColumnType::String,
            ColumnType::Timestamp,
            ColumnType::Boolean,
            ColumnType::Binary
        ]
    );
    assert_eq!(table.primary_key, ["id"]);
    assert!(!table.columns[0].nullable && table.columns[1].nullable);
    let first = batch(&pieces[0]);
    assert_eq!(first.num_rows(), 2);
    assert_eq!(first["id"].as_primitive::<Decimal128Type>().value(0), 18_446_744_073_709_551_615);
    assert_eq!(first["price"].as_primitive::<Decimal128Type>().values(), &[1_250, -105]);
    assert_eq!(first["note"].as_string::<i32>().value(0), "it's; (a) \"q\"\n");
    assert_eq!(first["note"].as_string::<i32>().value(1), "'q'");
    assert_eq!(first["at"].as_primitive::<TimestampMicrosecondType>().value(0), 1_704_164_645_678_000);
    assert!(first["at"].is_null(1));
    assert!(first["ok"].as_boolean().value(0) && !first["ok"].as_boolean().value(1));
    assert_eq!(first["raw"].as_binary::<i64>().value(0), b"a\0b");
    assert_eq!(first["raw"].as_binary::<i64>().value(1), [0xff, 0]);
    let second = &pieces[1];
    assert_eq!(batch(second)["id"].as_primitive::<Decimal128Type>().values(), &[3]);
    let bad: Vec<(u64, Option<&str>)> = second.bad.iter().map(|b| (b.row, b.field.as_deref())).collect();
    assert_eq!(bad, [(3, Some("price")), (4, Some("price"))]);
    assert!(
        passed.contains(&("LOAD".to_owned(), 1)) && passed.contains(&("DELIMITER block".to_owned(), 1)),
        "{passed:?}"
    );
}

const POSTGRES: &str = "--
-- PostgreSQL database dump
--
\\restrict abc
SET standard_conforming_strings = on;
CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS $_$ BEGIN INSERT INTO t VALUES (1); END; $_$;
CREATE TABLE public.t (
    id integer NOT NULL,
    name character varying(20) DEFAULT 'x'::character varying,
    at timestamp with time zone,
    plain timestamp(3) without time zone,
    tags text[],
    doc jsonb,
    raw bytea,
    f double precision
);
CREATE TABLE sales.empty (a numeric(5,1));
COPY public.t (id, name, at, plain, tags, doc, raw, f) FROM stdin;
1\ta\\tb\\\\\t2024-01-01 02:00:00+02\t2024-01-01 00:00:00.5\t{a,b}\t{\"a\": 1}\t\\\\x00ff\t1.5
2\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\tNaN
x\ty
\\.

COPY t FROM PROGRAM 'rm -rf /';
INSERT INTO public.t (id, name) VALUES (3, E'a\\nb'), (4, 'c\\n'::text);
ALTER TABLE ONLY public.t
    ADD CONSTRAINT t_pkey PRIMARY KEY (id);
GRANT ALL ON t TO x;
\\! touch /tmp/x
";

#[test]
fn s23_a_postgres_dump_gives_tables_and_rows_and_executes_nothing() {
    let (pieces, passed) = read(POSTGRES, &ReadOptions::default(), None);
    let first = batch(&pieces[0]);
    assert_eq!(first["id"].as_primitive::<Int32Type>().values(), &[1, 2]);
    assert_eq!(first["name"].as_string::<i32>().value(0), "a\tb\\");
    assert_eq!(first["at"].as_primitive::<TimestampMicrosecondType>().value(0), 1_704_067_200_000_000);
    assert_eq!(first["plain"].as_primitive::<TimestampMicrosecondType>().value(0), 1_704_067_200_500_000);
    assert_eq!(first["raw"].as_binary::<i64>().value(0), [0, 0xff]);
    assert_eq!(pieces[0].bad.len(), 1);
    let second = batch(&pieces[1]);
    assert_eq!(second["name"].as_string::<i32>().value(0), "a\nb");
    assert_eq!(second["name"].as_string::<i32>().value(1), "c\\n");
    let last: Vec<&str> = pieces[2..].iter().map(|p| p.table.as_ref().unwrap().name.as_str()).collect();
    assert_eq!(last, ["sales.empty"], "a table without rows is told of at the end");
    assert_eq!(pieces[0].table.as_ref().unwrap().primary_key, [""; 0]);
    assert_eq!(pieces[1].table.as_ref().unwrap().primary_key, ["id"]);
    assert!(passed.contains(&("psql command".to_owned(), 2)), "{passed:?}");
    assert!(passed.contains(&("COPY that is not FROM stdin in the text format".to_owned(), 1)), "{passed:?}");
}

#[test]
fn a_dump_of_sqlites_own_tool_is_read() {
    let text = include_str!("data/sqlite_dump.sql");
    let (pieces, _) = read(text, &ReadOptions::default(), None);
    let first = batch(&pieces[0]);
    assert_eq!(first["id"].as_primitive::<Int64Type>().values(), &[-3, 1, 2]);
    assert_eq!(first["name"].as_string::<i32>().value(1), "a'b;\nc");
    assert_eq!(first["name"].as_string::<i32>().value(0), "ü\\n");
    assert_eq!(first["amount"].as_primitive::<Decimal128Type>().value(1), 125);
    assert_eq!(first["b"].as_binary::<i64>().value(1), [0, 0xff]);
    assert_eq!(pieces[1].table.as_ref().unwrap().name, "empty");
    assert_eq!(pieces.len(), 2);
}

#[test]
fn a_dump_of_sqlite_keeps_backslashes_whatever_quotes_its_tables_were_made_with() {
    let text = "BEGIN TRANSACTION;\nCREATE TABLE `t` (`a` INT NOT NULL, `b` NVARCHAR(20));\nINSERT INTO \"t\" VALUES(1,'x \\ y');\nCOMMIT;";
    let (pieces, _) = read(text, &ReadOptions::default(), None);
    assert_eq!(batch(&pieces[0])["b"].as_string::<i32>().value(0), "x \\ y");
}

#[test]
fn decimals_that_sqlite_writes_as_doubles_are_the_ones_that_were_stored() {
    // As `sqlite3 x.db .dump` writes 0.99, 1.99 and 0.995.
    let text = "PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\nCREATE TABLE t (a NUMERIC(10,2));\nINSERT INTO t VALUES(0.98999999999999999112);\nINSERT INTO t VALUES(1.9899999999999999911);\nINSERT INTO t VALUES(0.99499999999999999556);\nCOMMIT;";
    let (pieces, _) = read(text, &ReadOptions::default(), None);
    assert_eq!(batch(&pieces[0])["a"].as_primitive::<Decimal128Type>().values(), &[99, 199]);
    assert_eq!(pieces[0].bad.len(), 1, "half a cent is none of the column's values");
}

#[test]
fn a_statement_of_any_length_is_read_in_bounded_pieces_and_goes_on_from_every_mark() {
    let mut text = String::from("CREATE TABLE `t` (`a` int, `b` text);\nINSERT INTO `t` VALUES ");
    for i in 0..5_000 {
        text.push_str(&format!("({i},'text {i}'){}", if i == 4_999 { ";\n" } else { "," }));
    }
    let options = ReadOptions { batch_rows: 700, ..ReadOptions::default() };
    let (whole, _) = read(&text, &options, None);
    assert_eq!(whole.len(), 8);
    assert_eq!(whole.iter().map(|p| p.rows.len()).sum::<usize>(), 5_000);
    for (at, piece) in whole.iter().enumerate() {
        let (rest, _) = read(&text, &options, Some(piece.next));
        assert_eq!(format!("{:?}", &whole[at + 1..]), format!("{rest:?}"), "after piece {at}");
    }
}
