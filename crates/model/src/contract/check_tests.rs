use serde_json::json;

use super::*;

fn ready(checks: serde_json::Value, column_type: ColumnType) -> Result<ColumnCheck, CheckError> {
    ColumnCheck::compile(&serde_json::from_value(checks).unwrap(), column_type)
}

fn codes(checks: serde_json::Value, column_type: ColumnType, values: &[Scalar<'_>]) -> Vec<Option<ReasonCode>> {
    let ready = ready(checks, column_type).unwrap();
    values.iter().map(|value| ready.check(*value).err().map(|breach| breach.code)).collect()
}

#[test]
fn each_check_passes_what_is_right_and_names_what_is_not() {
    use ReasonCode::{NotAllowed, OutOfRange, PatternMismatch, WrongLength, WrongType};
    use Scalar as S;
    let values = json!({"values": ["a", "b"]});
    assert_eq!(codes(values, ColumnType::String, &[S::Text("a"), S::Text("c")]), [None, Some(NotAllowed)]);
    let length = json!({"min_length": 2, "max_length": 3});
    let texts = [S::Text("é"), S::Text("éé"), S::Text("ééé"), S::Text("abcd")];
    assert_eq!(codes(length, ColumnType::String, &texts), [Some(WrongLength), None, None, Some(WrongLength)]);
    let pattern = json!({"pattern": "^[A-Z]{3}$"});
    assert_eq!(codes(pattern, ColumnType::String, &[S::Text("EUR"), S::Text("eur")]), [None, Some(PatternMismatch)]);
    let range = json!({"minimum": 1, "exclusive_maximum": 10});
    let numbers = [S::Long(1), S::Long(10), S::Long(0)];
    assert_eq!(codes(range.clone(), ColumnType::Long, &numbers), [None, Some(OutOfRange), Some(OutOfRange)]);
    let decimal = ColumnType::Decimal { precision: 10, scale: 2 };
    let decimals = [S::Decimal(999, 2), S::Decimal(1000, 2), S::Decimal(99, 2)];
    assert_eq!(codes(range.clone(), decimal, &decimals), [None, Some(OutOfRange), Some(OutOfRange)]);
    assert_eq!(codes(range, ColumnType::Double, &[S::Double(f64::NAN)]), [Some(OutOfRange)]);
    let items = json!({"kinds": ["array"], "min_items": 1, "max_items": 2});
    let lists = [S::Json("[]"), S::Json("[ [1,2], \"a,b\" ]"), S::Json("[1,2,3]"), S::Json("{}")];
    assert_eq!(codes(items, ColumnType::Json, &lists), [Some(WrongLength), None, Some(WrongLength), Some(WrongType)]);
}

#[test]
fn a_whole_number_beyond_53_bits_is_compared_exactly() {
    let limit = json!({"maximum": 9_007_199_254_740_993_i64});
    let values = [Scalar::Long(9_007_199_254_740_993), Scalar::Long(9_007_199_254_740_994)];
    assert_eq!(codes(limit, ColumnType::Long, &values), [None, Some(ReasonCode::OutOfRange)]);
}

#[test]
fn s45_a_pattern_that_backtracking_engines_hang_on_is_answered_at_once_and_a_huge_one_is_refused() {
    let evil = ready(json!({"pattern": "^(a+)+$"}), ColumnType::String).unwrap();
    let text = "a".repeat(100_000) + "!";
    assert_eq!(evil.check(Scalar::Text(&text)).unwrap_err().code, ReasonCode::PatternMismatch);
    for bad in ["(", "(?=a)", "a{1000}{1000}{1000}", &"a".repeat(5000), &("(".repeat(100) + &")".repeat(100))] {
        assert!(ready(json!({ "pattern": bad }), ColumnType::String).is_err(), "{bad:.20} was taken");
    }
}

#[test]
fn a_check_that_means_nothing_for_its_type_is_refused() {
    for (checks, column_type) in [
        (json!({"minimum": 1}), ColumnType::String),
        (json!({"pattern": "a"}), ColumnType::Long),
        (json!({"max_items": 1}), ColumnType::String),
        (json!({"values": [1]}), ColumnType::String),
        (json!({"values": ["a"]}), ColumnType::Date),
        (json!({"minimum": 2, "maximum": 1}), ColumnType::Long),
        (json!({"min_length": 2, "max_length": 1}), ColumnType::String),
    ] {
        assert!(ready(checks.clone(), column_type).is_err(), "{checks} was taken");
    }
}
