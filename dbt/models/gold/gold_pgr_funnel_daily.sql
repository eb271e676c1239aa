-- Of the cases submitted on a day, how many came how far.
select
    cast(submitted_at as date) as submitted_on,
    tenant_id,
    count(*) as submitted,
    count(assigned_at) as assigned,
    count(resolved_at) as resolved,
    count(closed_at) as closed,
    sum(case when reopened > 0 then 1 else 0 end) as reopened,
    sum(case when is_within_sla then 1 else 0 end) as resolved_within_sla,
    avg(cast(minutes_to_resolve as double)) as minutes_to_resolve_average
from {{ ref('gold_pgr_case_lifecycle') }}
where submitted_at is not null
group by 1, 2
