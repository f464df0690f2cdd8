-- name: limit_lock_wait :one
-- Whoever waits for a lock makes all others wait behind him.
SELECT set_config('lock_timeout', '500ms', TRUE) AS setting;

-- name: create_payload_partitions :one
-- From this month on, in UTC.
SELECT app.create_payload_partitions(
    (now() AT TIME ZONE 'UTC')::date, :months
) AS created;

-- name: list_retired_months :many
-- The ends of the months that have a partition and are over for so many months.
SELECT (to_date(right(c.relname, 6), 'YYYYMM') + interval '1 month')::date AS ends_on
FROM pg_inherits AS i
INNER JOIN pg_class AS c ON i.inhrelid = c.oid
WHERE i.inhparent = 'app.message_payloads'::regclass
    AND c.relname ~ '^message_payloads_[0-9]{6}$'
    AND to_date(right(c.relname, 6), 'YYYYMM')
    < date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => :months)
UNION
SELECT
    (
        date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => :months)
    )::date
ORDER BY ends_on;

-- name: retire_payload_partitions :many
-- Months that end by the date, and what waits in the default partition from before it.
SELECT r.name
FROM app.retire_payload_partitions(:keep_from) AS r (name)
ORDER BY r.name;
