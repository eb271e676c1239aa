select tenant_id, case_id, count(*) as rows_of_it
from {{ ref('gold_pgr_case_lifecycle') }}
group by tenant_id, case_id
having count(*) > 1
