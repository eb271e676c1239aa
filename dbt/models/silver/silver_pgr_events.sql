-- Events of the grievance service (PGR), typed, each once.
with events as (
    select
        cast(event_date as date) as event_date,
        cast(event_time as timestamp) as event_time,
        tenant_id,
        entity_id as case_id,
        event_type,
        upper(status) as status,
        upper(actor_type) as actor_type,
        actor_id,
        upper(channel) as channel,
        ward_id,
        locality_id,
        {{ json_text('attributes_json', 'complaint_type') }} as complaint_type,
        upper({{ json_text('attributes_json', 'priority') }}) as priority,
        try_cast({{ json_text('attributes_json', 'sla_hours') }} as integer) as sla_hours,
        row_number() over (
            partition by tenant_id, entity_id, event_type, event_time, actor_id
            order by channel
        ) as copy
    from {{ source('bronze', 'service_events_raw') }}
    where service = 'PGR' and entity_type = 'complaint' and entity_id is not null
)

select
    event_date,
    event_time,
    tenant_id,
    case_id,
    event_type,
    status,
    actor_type,
    actor_id,
    channel,
    ward_id,
    locality_id,
    complaint_type,
    priority,
    sla_hours
from events
where copy = 1
