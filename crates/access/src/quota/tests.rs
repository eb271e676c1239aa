//! Limits, with a clock that is moved.

use lakegate_env::ManualClock;

use super::*;
use crate::principal::{Grants, Proof};

fn principal(tenant: &str, id: &str) -> Principal {
    Principal {
        id: id.into(),
        tenant: TenantId::new(tenant).unwrap(),
        grants: Grants::default(),
        expires_us: None,
        proof: Proof::Certificate,
    }
}

fn quotas(client: Limits, tenant: Limits) -> (Quotas, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(0));
    clock.advance_us(10_000_000);
    let options = QuotaOptions {
        client,
        tenant,
        tenants: vec![(TenantId::new("big").unwrap(), Limits { records_per_second: 1000, ..Limits::default() })],
        request_records_max: 50,
        request_bytes_max: 6400,
        window_bytes: 1 << 20,
        queue_bytes: 1 << 20,
        clock: clock.clone(),
    };
    (Quotas::new(options), clock)
}

fn records(records_per_second: u64) -> Limits {
    Limits { records_per_second, ..Limits::default() }
}

#[tokio::test]
async fn s41_a_rate_holds_over_time_and_says_when_to_come_back() {
    let (quotas, clock) = quotas(records(100), Limits::default());
    let one = principal("acme", "key:a");
    quotas.admit(&one, 50, 10).await.unwrap();
    quotas.admit(&one, 50, 10).await.unwrap();
    let over = quotas.admit(&one, 20, 10).await.unwrap_err();
    assert_eq!(
        (over.limit, over.setting.as_str()),
        ("client.records_per_second", "limits.rates.client.records_per_second")
    );
    assert!((195..=205).contains(&over.retry_after_ms), "20 records at 100 a second: {}", over.retry_after_ms);
    clock.advance_us(i64::try_from(over.retry_after_ms).unwrap() * 1000);
    quotas.admit(&one, 20, 10).await.unwrap();
    let mut taken = 0;
    for _ in 0..10_000 {
        clock.advance_us(1000);
        taken += u64::from(quotas.admit(&one, 1, 10).await.is_ok());
    }
    assert!((990..=1010).contains(&taken), "{taken} in ten seconds at 100 a second");
}

#[tokio::test]
async fn s41_clients_and_tenants_are_counted_apart_and_a_refusal_costs_nothing() {
    let (quotas, _) = quotas(records(100), records(150));
    let (one, two, other) = (principal("acme", "key:a"), principal("acme", "key:b"), principal("umbrella", "key:a"));
    for who in [&one, &one, &two] {
        quotas.admit(who, 50, 1).await.unwrap();
    }
    let over = quotas.admit(&two, 50, 1).await.unwrap_err();
    assert_eq!(over.limit, "tenant.records_per_second");
    for _ in 0..100 {
        assert_eq!(quotas.admit(&two, 50, 1).await.unwrap_err().limit, "tenant.records_per_second", "not the client's");
    }
    quotas.admit(&other, 50, 1).await.unwrap();
    let named = principal("big", "key:c");
    let over = async {
        loop {
            if let Err(over) = quotas.admit(&principal("big", &format!("k{}", rand())), 50, 1).await {
                break over;
            }
        }
    };
    assert_eq!(over.await.setting, "limits.rates.tenants.big.records_per_second");
    drop(named);
}

fn rand() -> u64 {
    use lakegate_env::Random;
    lakegate_env::SystemRandom.next_u64()
}

#[tokio::test]
async fn s41_bytes_and_requests_under_way_are_bounded() {
    let limits = Limits { bytes_per_second: 6400, requests: 2, connections: 1, ..Limits::default() };
    let (quotas, _) = quotas(limits, Limits::default());
    let one = principal("acme", "key:a");
    let first = quotas.admit(&one, 1, 3200).await.unwrap();
    let _second = quotas.admit(&one, 1, 64).await.unwrap();
    assert_eq!(quotas.admit(&one, 1, 1).await.unwrap_err().limit, "client.requests");
    drop(first);
    assert_eq!(quotas.admit(&one, 1, 6400).await.unwrap_err().limit, "client.bytes_per_second");
    quotas.admit(&one, 1, 3136).await.unwrap();
    let open = quotas.open(&one).unwrap();
    assert_eq!(quotas.open(&one).unwrap_err().limit, "client.connections");
    drop(open);
    quotas.open(&one).unwrap();
}

#[tokio::test]
async fn a_request_as_large_as_any_may_be_is_taken_by_the_smallest_limit() {
    let (quotas, clock) = quotas(records(1), Limits { bytes_per_second: 1, ..Limits::default() });
    let one = principal("acme", "key:a");
    quotas.admit(&one, 50, 6400).await.unwrap();
    let over = quotas.admit(&one, 50, 6400).await.unwrap_err();
    clock.advance_us(i64::try_from(over.retry_after_ms).unwrap() * 1000 + 7_000_000_000);
    quotas.admit(&one, 50, 6400).await.unwrap();
}

#[tokio::test]
async fn clients_without_end_take_bounded_room() {
    let (quotas, _) = quotas(records(100), Limits::default());
    for n in 0..CLIENTS_MAX + 100 {
        quotas.admit(&principal("acme", &format!("token:{n}")), 1, 1).await.unwrap();
    }
    assert!(quotas.tenant(&TenantId::new("acme").unwrap()).clients.read().len() <= CLIENTS_MAX);
}

#[tokio::test]
async fn f63_who_comes_before_the_time_that_it_was_told_is_not_looked_at() {
    let (quotas, clock) = quotas(Limits::default(), records(100));
    let (one, other) = (principal("acme", "key:a"), principal("quiet", "key:b"));
    quotas.admit(&one, 100, 5000).await.unwrap();
    quotas.check_early(&one, 5000).unwrap();
    let over = quotas.admit(&one, 50, 5000).await.unwrap_err();
    let early = quotas.check_early(&one, 5000).unwrap_err();
    assert_eq!((early.limit, &early.setting), (over.limit, &over.setting));
    assert!(early.retry_after_ms <= over.retry_after_ms + 1, "{} and {}", early.retry_after_ms, over.retry_after_ms);
    quotas.check_early(&one, 4999).unwrap();
    quotas.check_early(&other, 5000).unwrap();
    clock.advance_us(i64::try_from(over.retry_after_ms).unwrap() * 1000);
    quotas.check_early(&one, 5000).unwrap();
    quotas.admit(&one, 50, 5000).await.unwrap();
}
