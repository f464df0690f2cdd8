-- name: set_plan_mode :one
-- Until the transaction ends: force_generic_plan or force_custom_plan.
SELECT set_config('plan_cache_mode', :mode, TRUE) AS statement;

-- name: format_prepare :one
-- The statement has $1, $2 for its parameters.
SELECT format('PREPARE pyapp_plan AS %s', :statement::text) AS statement;

-- name: format_explain :one
-- One value for each parameter, as text; the parameter gives the type.
SELECT
    format(
        'EXPLAIN (%s) EXECUTE pyapp_plan%s',
        CASE WHEN :is_analyzed THEN 'ANALYZE, BUFFERS, SETTINGS' ELSE 'SETTINGS' END,
        '(' || string_agg(quote_nullable(v.value), ', ' ORDER BY v.position) || ')'
    ) AS statement
FROM unnest(:values::text[]) WITH ORDINALITY AS v (value, position);

-- name: deallocate_plan :rowcount
-- Frees the name for the next query.
DEALLOCATE pyapp_plan;
