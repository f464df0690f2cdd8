-- name: get_mirror_size :one
-- Numbers of mirrored objects, for the progress of a reconciliation.
WITH customers AS (
    SELECT count(*) AS customers
    FROM app.stripe_customers
),

subscriptions AS (
    SELECT count(*) AS subscriptions
    FROM app.stripe_subscriptions
)

SELECT
    c.customers,
    s.subscriptions
FROM customers AS c
CROSS JOIN subscriptions AS s;

-- name: list_known_objects :many
-- The newest live customers and subscriptions that Stripe has listed or sent.
WITH customers AS (
    SELECT
        c.id,
        c.created_at
    FROM app.stripe_customers AS c
    WHERE NOT c.is_deleted AND c.created_at IS NOT NULL
    ORDER BY c.created_at DESC, c.id DESC
    LIMIT :limit
),

subscriptions AS (
    SELECT
        s.id,
        s.created_at
    FROM app.stripe_subscriptions AS s
    WHERE s.status NOT IN ('canceled', 'incomplete_expired')
    ORDER BY s.created_at DESC, s.id DESC
    LIMIT :limit
)

SELECT
    'customers' AS object_type,
    c.id,
    c.created_at
FROM customers AS c
UNION ALL
SELECT
    'subscriptions' AS object_type,
    s.id,
    s.created_at
FROM subscriptions AS s
ORDER BY object_type ASC, created_at DESC, id DESC;

-- name: try_lock_runs :one
-- Allows one run of a kind at a time. The lock ends with the session, even if it is
-- killed. If another session holds it, the other columns identify that session, if the
-- role may see it.
WITH tried AS MATERIALIZED (
    SELECT
        k.key,
        pg_try_advisory_lock(k.key) AS is_held
    FROM hashtextextended('stripe_sync_runs ' || :kind, 0) AS k (key)
)

SELECT
    t.is_held,
    holder.pid AS holder_pid,
    holder.usename AS holder_role,
    holder.application_name AS holder_application,
    holder.backend_start AS holder_since
FROM tried AS t
LEFT JOIN LATERAL (
    SELECT
        l.pid,
        a.usename,
        a.application_name,
        a.backend_start
    FROM pg_locks AS l
    INNER JOIN pg_stat_activity AS a ON l.pid = a.pid
    WHERE
        NOT t.is_held
        AND a.datname = current_database()
        AND l.locktype = 'advisory'
        AND l.granted
        AND l.objsubid = 1
        AND (l.classid::bigint << 32) | l.objid::bigint = t.key
    ORDER BY l.pid
    LIMIT 1
) AS holder ON TRUE;

-- name: unlock_runs :one
-- Releases the lock of try_lock_runs.
SELECT
    pg_advisory_unlock(
        hashtextextended('stripe_sync_runs ' || :kind, 0)
    ) AS is_held;

-- name: set_run_settings :one
-- For the rest of the transaction: limits each wait for a lock, and the commit does not
-- wait for the disk. A crash of the server then loses the last pages, and the position
-- after them too: the resumed run repeats them. A run ends with a commit that waits.
SELECT
    set_config('lock_timeout', (:lock_milliseconds::integer)::text, TRUE)
        AS lock_timeout,
    set_config('synchronous_commit', 'off', TRUE) AS synchronous_commit;

-- name: find_resumable_run :optional
-- The newest run, if it did not complete and started after `started_after`.
WITH newest AS (
    SELECT
        r.id,
        r.cursor,
        r.counts,
        r.started_at,
        r.outcome
    FROM app.stripe_sync_runs AS r
    WHERE r.kind = :kind AND NOT r.is_dry_run
    ORDER BY r.id DESC
    LIMIT 1
)

SELECT
    n.id,
    n.cursor,
    n.counts,
    n.started_at
FROM newest AS n
WHERE
    n.outcome <> 'completed'
    AND n.cursor IS NOT NULL
    AND n.started_at > :started_after;

-- name: insert_run :one
-- Records the start of a run.
INSERT INTO app.stripe_sync_runs AS r (kind, is_dry_run)
VALUES (:kind, :is_dry_run)
RETURNING r.id, r.cursor, r.counts, r.started_at;

-- name: update_run :rowcount
-- Saves the progress of a run; without an outcome, the run is still running.
UPDATE app.stripe_sync_runs AS r
SET
    cursor = :cursor,
    counts = :counts::jsonb,
    outcome = COALESCE(:outcome::text, 'running'),
    last_error = :last_error,
    finished_at = CASE WHEN :outcome::text IS NOT NULL THEN now() END
WHERE r.id = :id;

-- name: mark_abandoned_runs :rowcount
-- The caller holds the lock, so no other run of the kind is alive.
UPDATE app.stripe_sync_runs AS r
SET outcome = 'failed', last_error = 'it was killed', finished_at = now()
WHERE r.kind = :kind AND r.outcome = 'running' AND r.id <> :id;
