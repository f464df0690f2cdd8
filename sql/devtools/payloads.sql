-- name: limit_lock_wait :one
-- Whoever waits for a lock makes all others wait behind him.
SELECT set_config('lock_timeout', :milliseconds::text, TRUE) AS setting;

-- name: list_missing_months :many
-- From this month on, in UTC, and those that wait in the default partition.
WITH wanted_months AS (
    SELECT
        (
            date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => n)
        )::date AS first_day
    FROM generate_series(0, :months - 1) AS n
    UNION
    SELECT date_trunc('month', d.finished_at AT TIME ZONE 'UTC')::date AS first_day
    FROM app.message_payloads_default AS d
    WHERE isfinite(d.finished_at)
)

SELECT w.first_day
FROM wanted_months AS w
WHERE
    to_regclass('app.message_payloads_' || to_char(w.first_day, 'YYYYMM')) IS NULL
ORDER BY w.first_day;

-- name: create_payload_partition :one
-- Of one month, so that no lock is held for long.
SELECT app.create_payload_partitions(:first_day, 1) AS created;

-- name: retire_payload_partition :one
-- The oldest that is over for so many months; the name is NULL once there is none.
SELECT
    app.retire_payload_partition(
        (
            date_trunc('month', now() AT TIME ZONE 'UTC')
            - make_interval(months => :months)
        )::date
    ) AS name;

-- name: find_retired_table :one
-- Left over where a run was ended between detaching and dropping.
SELECT to_regclass('app.retired_payloads') IS NOT NULL AS is_there;

-- name: find_retired_month :one
-- The month of what was detached; NULL if it is empty.
SELECT
    'message_payloads_'
    || to_char(min(r.finished_at) AT TIME ZONE 'UTC', 'YYYYMM') AS name
FROM app.retired_payloads AS r;

-- name: copy_retired_payloads :rowcount
-- For an archive. Nobody can write it any more: it is no partition.
COPY app.retired_payloads (
    subject_id, message_id, finished_at, request, response
) TO STDOUT WITH (FORMAT csv, HEADER);

-- name: drop_retired_payloads :rowcount
-- For good.
DROP TABLE app.retired_payloads;
