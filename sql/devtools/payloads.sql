-- name: set_lock_timeout :one
-- Until the transaction ends. A pending ACCESS EXCLUSIVE lock blocks later lock
-- requests, so waits are short.
SELECT set_config('lock_timeout', :milliseconds::text, TRUE) AS setting;

-- name: list_missing_months :many
-- UTC months without a partition: from this month on, and of the last :months_back
-- months those with payloads in the default partition. Older payloads stay there.
WITH this_month AS (
    SELECT date_trunc('month', now() AT TIME ZONE interval '0') AS starts_at
),

wanted_months AS (
    SELECT (m.starts_at + make_interval(months => n))::date AS first_day
    FROM this_month AS m
    CROSS JOIN generate_series(0, :months - 1) AS n
    UNION
    SELECT date_trunc(
        'month', d.finished_at AT TIME ZONE interval '0'
    )::date AS first_day
    FROM this_month AS m
    INNER JOIN app.message_payloads_default AS d
        ON (m.starts_at - make_interval(months => :months_back))
            AT TIME ZONE interval '0' <= d.finished_at
            AND (m.starts_at + make_interval(months => :months))
            AT TIME ZONE interval '0' > d.finished_at
)

SELECT w.first_day
FROM wanted_months AS w
WHERE
    to_regclass('app.message_payloads_' || to_char(w.first_day, 'YYYYMM')) IS NULL
ORDER BY w.first_day;

-- name: has_many_waiting :one
-- Whether the default partition has more payloads than may move under a lock.
SELECT count(*) > :most AS is_there
FROM (
    SELECT 1
    FROM app.message_payloads_default
    LIMIT :most + 1 -- noqa: AM09
) AS d;

-- name: put_default_aside :rowcount
-- Detaches the default partition without reading it, and attaches an empty one with its
-- grants: pyapp stats reads it. Locks app.messages first, as writers do; another order
-- would deadlock with them.
DO $$
DECLARE
    grant_statement text;
BEGIN
    LOCK TABLE app.messages IN SHARE ROW EXCLUSIVE MODE;
    ALTER TABLE app.message_payloads DETACH PARTITION app.message_payloads_default;
    ALTER TABLE app.message_payloads_default RENAME TO waiting_payloads;
    ALTER INDEX app.message_payloads_default_pkey RENAME TO waiting_payloads_pkey;
    CREATE TABLE app.message_payloads_default
    PARTITION OF app.message_payloads DEFAULT;
    COMMENT ON TABLE app.message_payloads_default IS
        'Payloads of months without a partition.';
    FOR grant_statement IN
        SELECT format(
            'GRANT %s%s ON app.message_payloads_default TO %s',
            a.privilege_type, p.columns, a.grantee::regrole
        )
        FROM (
            SELECT c.relacl AS acl, '' AS columns
            FROM pg_class AS c
            WHERE c.oid = 'app.waiting_payloads'::regclass
            UNION ALL
            SELECT t.attacl AS acl, format(' (%I)', t.attname) AS columns
            FROM pg_attribute AS t
            WHERE t.attrelid = 'app.waiting_payloads'::regclass
                AND NOT t.attisdropped
        ) AS p
        CROSS JOIN aclexplode(p.acl) AS a
        WHERE a.grantee NOT IN (0, current_user::regrole)
    LOOP
        EXECUTE grant_statement;
    END LOOP;
END;
$$;

-- name: find_waiting_table :one
-- Exists while payloads move, and after an interrupted run.
SELECT to_regclass('app.waiting_payloads') IS NOT NULL AS is_there;

-- name: list_waiting_months :many
-- As list_missing_months, for the detached payloads.
WITH this_month AS (
    SELECT date_trunc('month', now() AT TIME ZONE interval '0') AS starts_at
),

waiting_months AS (
    SELECT date_trunc(
        'month', p.finished_at AT TIME ZONE interval '0'
    )::date AS first_day
    FROM this_month AS m
    INNER JOIN app.waiting_payloads AS p
        ON (m.starts_at - make_interval(months => :months_back))
            AT TIME ZONE interval '0' <= p.finished_at
            AND (m.starts_at + make_interval(months => :months))
            AT TIME ZONE interval '0' > p.finished_at
    GROUP BY first_day
)

SELECT w.first_day
FROM waiting_months AS w
WHERE
    to_regclass('app.message_payloads_' || to_char(w.first_day, 'YYYYMM')) IS NULL
ORDER BY w.first_day;

-- name: move_waiting_payloads :rowcount
-- Moves a batch to the partitions of its months or to the default partition. Locks the
-- users first, in id order, like all writers of payloads: a concurrent anonymize_user
-- finds each payload in one of the tables. Drops payloads of anonymized users.
WITH batch AS MATERIALIZED (
    SELECT
        w.subject_id,
        w.message_id,
        w.finished_at
    FROM app.waiting_payloads AS w
    ORDER BY w.subject_id, w.message_id, w.finished_at
    LIMIT :rows
),

locked AS MATERIALIZED (
    SELECT
        u.id,
        u.anonymized_at
    FROM app.users AS u
    WHERE u.id IN (
        SELECT b.subject_id
        FROM batch AS b
    )
    ORDER BY u.id
    FOR KEY SHARE OF u
),

moved AS (
    DELETE FROM app.waiting_payloads AS w
    USING batch AS b
    WHERE w.subject_id = b.subject_id
        AND w.message_id = b.message_id
        AND w.finished_at = b.finished_at
        -- Takes the locks before the first row is deleted.
        AND (SELECT count(*) FROM locked) >= 0
    RETURNING w.subject_id, w.message_id, w.finished_at, w.request, w.response
),

kept AS (
    INSERT INTO app.message_payloads (
        subject_id, message_id, finished_at, request, response
    )
    SELECT
        m.subject_id,
        m.message_id,
        m.finished_at,
        m.request,
        m.response
    FROM moved AS m
    WHERE NOT EXISTS (
        SELECT FROM locked AS u
        WHERE u.id = m.subject_id AND u.anonymized_at IS NOT NULL
    )
)

SELECT b.message_id
FROM batch AS b;

-- name: drop_waiting_payloads :rowcount
-- After the last batch, when it is empty.
DROP TABLE app.waiting_payloads;

-- name: create_payload_partition :one
-- One month, so that no lock is held for long.
SELECT app.create_payload_partitions(:first_day, 1) AS created;

-- name: retire_payload_partition :one
-- Detaches the oldest partition before the last :months; NULL if there is none.
SELECT
    app.retire_payload_partition(
        (
            date_trunc('month', now() AT TIME ZONE interval '0')
            - make_interval(months => :months)
        )::date
    ) AS name;

-- name: has_expired_payloads :one
-- Whether payloads of months before the last :months are in the default partition.
SELECT count(*) > 0 AS is_there
FROM (
    SELECT 1
    FROM app.message_payloads_default AS d
    WHERE d.finished_at < (
        date_trunc('month', now() AT TIME ZONE interval '0')
        - make_interval(months => :months)
    ) AT TIME ZONE interval '0'
    LIMIT 1 -- noqa: AM09
) AS e;

-- name: create_retired_table :rowcount
-- For payloads moved out of the default partition; blocks no other session.
CREATE TABLE app.retired_payloads (LIKE app.message_payloads INCLUDING ALL);

-- name: move_expired_payloads :rowcount
-- Moves a batch of payloads from before the last :months out of the default partition,
-- with the locks of move_waiting_payloads.
WITH batch AS MATERIALIZED (
    SELECT
        d.subject_id,
        d.message_id,
        d.finished_at
    FROM app.message_payloads_default AS d
    WHERE d.finished_at < (
        date_trunc('month', now() AT TIME ZONE interval '0')
        - make_interval(months => :months)
    ) AT TIME ZONE interval '0'
    ORDER BY d.subject_id, d.message_id, d.finished_at
    LIMIT :rows
),

locked AS MATERIALIZED (
    SELECT
        u.id,
        u.anonymized_at
    FROM app.users AS u
    WHERE u.id IN (
        SELECT b.subject_id
        FROM batch AS b
    )
    ORDER BY u.id
    FOR KEY SHARE OF u
),

moved AS (
    DELETE FROM app.message_payloads_default AS d
    USING batch AS b
    WHERE d.subject_id = b.subject_id
        AND d.message_id = b.message_id
        AND d.finished_at = b.finished_at
        -- Takes the locks before the first row is deleted.
        AND (SELECT count(*) FROM locked) >= 0
    RETURNING d.subject_id, d.message_id, d.finished_at, d.request, d.response
),

kept AS (
    INSERT INTO app.retired_payloads (
        subject_id, message_id, finished_at, request, response
    )
    SELECT
        m.subject_id,
        m.message_id,
        m.finished_at,
        m.request,
        m.response
    FROM moved AS m
    WHERE NOT EXISTS (
        SELECT FROM locked AS u
        WHERE u.id = m.subject_id AND u.anonymized_at IS NOT NULL
    )
)

SELECT b.message_id
FROM batch AS b;

-- name: find_retired_table :one
-- Exists while a month is archived, and after a failed or interrupted run.
SELECT to_regclass('app.retired_payloads') IS NOT NULL AS is_there;

-- name: find_retired_months :one
-- A name with the first and last month of the detached payloads; NULL if none.
SELECT
    CASE
        WHEN count(*) > 0
            THEN 'message_payloads_' || concat_ws(
                '_to_',
                to_char(min(r.finished_at) AT TIME ZONE interval '0', 'YYYYMM'),
                NULLIF(
                    to_char(max(r.finished_at) AT TIME ZONE interval '0', 'YYYYMM'),
                    to_char(min(r.finished_at) AT TIME ZONE interval '0', 'YYYYMM')
                )
            )
    END AS name
FROM app.retired_payloads AS r;

-- name: delete_erased_payloads :rowcount
-- anonymize_user deletes them; this deletes those that its earlier versions left.
DELETE FROM app.retired_payloads AS r
USING app.users AS u
WHERE r.subject_id = u.id
    AND u.anonymized_at IS NOT NULL;

-- name: copy_retired_payloads :rowcount
-- Copies the table to an archive. Payloads are no longer added; anonymize_user may
-- delete some.
COPY app.retired_payloads (
    subject_id, message_id, finished_at, request, response
) TO STDOUT WITH (FORMAT csv, HEADER);

-- name: lock_retired_payloads :rowcount
-- Blocks anonymize_user until the transaction ends.
LOCK TABLE app.retired_payloads IN ACCESS EXCLUSIVE MODE;

-- name: count_retired_payloads :one
-- Read under that lock: one of the counts shows an erasure since the copy.
SELECT
    count(*) AS payloads,
    count(u.id) AS erased
FROM app.retired_payloads AS r
LEFT JOIN app.users AS u ON r.subject_id = u.id AND u.anonymized_at IS NOT NULL;

-- name: drop_retired_payloads :rowcount
-- After the archive has its name, in the same transaction.
DROP TABLE app.retired_payloads;
