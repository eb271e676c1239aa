{# What the two engines write differently. #}

{% macro json_text(column, member) %}
  {{ return(adapter.dispatch('json_text', 'lakegate_pgr')(column, member)) }}
{% endmacro %}
{% macro duckdb__json_text(column, member) %}json_extract_string({{ column }}, '$.{{ member }}'){% endmacro %}
{% macro trino__json_text(column, member) %}json_extract_scalar({{ column }}, '$.{{ member }}'){% endmacro %}

{% macro minutes_between(earlier, later) %}
  {{ return(adapter.dispatch('minutes_between', 'lakegate_pgr')(earlier, later)) }}
{% endmacro %}
{% macro duckdb__minutes_between(earlier, later) %}date_diff('minute', {{ earlier }}, {{ later }}){% endmacro %}
{% macro trino__minutes_between(earlier, later) %}date_diff('minute', {{ earlier }}, {{ later }}){% endmacro %}

{# Schemas are called what the models say: silver, gold. #}
{% macro generate_schema_name(custom_schema_name, node) %}
  {{- custom_schema_name | trim if custom_schema_name else target.schema -}}
{% endmacro %}
