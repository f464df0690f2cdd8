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

-- name: has_many_waiting :one
-- Whether more wait in the default partition than may move under the writers' lock.
SELECT count(*) > :most AS is_there
FROM (
    SELECT 1
    FROM app.message_payloads_default
    LIMIT :most + 1 -- noqa: AM09
) AS d;

-- name: put_default_aside :rowcount
-- With all that waits in it, however much, for none of it is read; a new one takes its
-- place. The first lock is in the order of writers, who would deadlock with another.
DO $$
BEGIN
    LOCK TABLE app.messages IN SHARE ROW EXCLUSIVE MODE;
    ALTER TABLE app.message_payloads DETACH PARTITION app.message_payloads_default;
    ALTER TABLE app.message_payloads_default RENAME TO waiting_payloads;
    ALTER INDEX app.message_payloads_default_pkey RENAME TO waiting_payloads_pkey;
    CREATE TABLE app.message_payloads_default
    PARTITION OF app.message_payloads DEFAULT;
    COMMENT ON TABLE app.message_payloads_default IS
        'Payloads of months that have no partition yet.';
END;
$$;

-- name: find_waiting_table :one
-- There while payloads move, and where a run was ended meanwhile.
SELECT to_regclass('app.waiting_payloads') IS NOT NULL AS is_there;

-- name: list_waiting_months :many
-- Those of what was set aside, as far as they have no partition.
WITH waiting_months AS (
    SELECT date_trunc('month', p.finished_at AT TIME ZONE 'UTC')::date AS first_day
    FROM app.waiting_payloads AS p
    WHERE isfinite(p.finished_at)
    GROUP BY first_day
)

SELECT w.first_day
FROM waiting_months AS w
WHERE
    to_regclass('app.message_payloads_' || to_char(w.first_day, 'YYYYMM')) IS NULL
ORDER BY w.first_day;

-- name: move_waiting_payloads :rowcount
-- So many at once; each goes to the partition of its month.
WITH moved AS (
    DELETE FROM app.waiting_payloads AS w
    USING (
        SELECT
            b.subject_id,
            b.message_id,
            b.finished_at
        FROM app.waiting_payloads AS b
        ORDER BY b.subject_id, b.message_id, b.finished_at
        LIMIT :rows
    ) AS b
    WHERE w.subject_id = b.subject_id
        AND w.message_id = b.message_id
        AND w.finished_at = b.finished_at
    RETURNING w.subject_id, w.message_id, w.finished_at, w.request, w.response
)

INSERT INTO app.message_payloads (
    subject_id, message_id, finished_at, request, response
)
SELECT
    m.subject_id,
    m.message_id,
    m.finished_at,
    m.request,
    m.response
FROM moved AS m;

-- name: lock_users :rowcount
-- Waits for every anonymize_user that began before the last payloads had moved.
LOCK TABLE app.users IN SHARE MODE;

-- name: delete_anonymous_payloads :rowcount
-- What anonymize_user did not find, for it was set aside.
DELETE FROM app.message_payloads AS p
USING app.users AS u
WHERE p.subject_id = u.id
    AND u.anonymized_at IS NOT NULL;

-- name: drop_waiting_payloads :rowcount
-- Once it is empty.
DROP TABLE app.waiting_payloads;

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
