select * from {{ ref('gold_pgr_funnel_daily') }}
where assigned > submitted or resolved > submitted or resolved_within_sla > resolved
