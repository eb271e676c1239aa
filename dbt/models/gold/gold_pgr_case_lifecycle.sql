-- One row for each case: when it passed which stage, and whether it was in time.
with stages as (
    select
        tenant_id,
        case_id,
        min(event_time) as first_event_at,
        max(event_time) as last_event_at,
        min(case when event_type = 'CaseSubmitted' then event_time end) as submitted_at,
        min(case when event_type = 'CaseAssigned' then event_time end) as assigned_at,
        min(case when event_type = 'CaseResolved' then event_time end) as resolved_at,
        min(case when event_type = 'CaseClosed' then event_time end) as closed_at,
        sum(case when event_type = 'CaseReopened' then 1 else 0 end) as reopened,
        count(*) as events,
        max(complaint_type) as complaint_type,
        max(priority) as priority,
        max(sla_hours) as sla_hours,
        max(ward_id) as ward_id,
        max(locality_id) as locality_id
    from {{ ref('silver_pgr_events') }}
    group by tenant_id, case_id
),

latest as (
    select tenant_id, case_id, status, row_number() over (
        partition by tenant_id, case_id order by event_time desc, event_type desc
    ) as place
    from {{ ref('silver_pgr_events') }}
)

select
    stages.tenant_id,
    stages.case_id,
    latest.status,
    stages.complaint_type,
    stages.priority,
    stages.ward_id,
    stages.locality_id,
    stages.submitted_at,
    stages.assigned_at,
    stages.resolved_at,
    stages.closed_at,
    stages.first_event_at,
    stages.last_event_at,
    stages.events,
    stages.reopened,
    stages.sla_hours,
    {{ minutes_between('stages.submitted_at', 'stages.assigned_at') }} as minutes_to_assign,
    {{ minutes_between('stages.submitted_at', 'stages.resolved_at') }} as minutes_to_resolve,
    case
        when stages.resolved_at is null or stages.sla_hours is null then null
        else {{ minutes_between('stages.submitted_at', 'stages.resolved_at') }} <= stages.sla_hours * 60
    end as is_within_sla
from stages
join latest
    on latest.tenant_id = stages.tenant_id and latest.case_id = stages.case_id and latest.place = 1
