-- name: limit_time :one
-- Until the transaction ends, a question that takes longer is given up.
SELECT set_config('statement_timeout', :milliseconds::integer::text, TRUE) AS setting;

-- name: get_message_rates :one
-- By the time of writing, whenever the model had finished; it reads the last hour.
SELECT
    count(*) FILTER (
        WHERE m.recorded_at > statement_timestamp() - interval '1 minute'
    ) AS minute_messages,
    COALESCE(
        sum(m.credits) FILTER (
            WHERE m.recorded_at > statement_timestamp() - interval '1 minute'
        ),
        0
    ) AS minute_credits,
    count(*) AS hour_messages,
    COALESCE(sum(m.credits), 0) AS hour_credits
FROM app.messages AS m
WHERE m.recorded_at > statement_timestamp() - interval '1 hour';

-- name: get_user_counts :one
-- Blocked is what get_user_quota calls so. A period that resets began at most 31 days
-- ago: who has used less than his quota in all of those days is asked nothing more.
WITH recent_usage AS (
    SELECT
        d.subject_id,
        sum(d.credits) AS credits
    FROM app.usage_daily AS d
    WHERE d.day >= (statement_timestamp() AT TIME ZONE 'UTC')::date - 31
    GROUP BY d.subject_id
),

verdicts AS (
    SELECT
        u.subscription_active,
        CASE
            WHEN u.subscription_active THEN FALSE
            WHEN u.next_quota_reset IS NOT NULL AND COALESCE(r.credits, 0) < u.quota
                THEN FALSE
            ELSE (
                SELECT p.credits_used >= u.quota
                FROM app.get_period_usage(
                    u.id,
                    u.quota_anchor,
                    u.next_quota_reset,
                    statement_timestamp(),
                    u.quota_period_start
                ) AS p
            )
        END AS is_blocked
    FROM app.users AS u
    LEFT JOIN recent_usage AS r ON u.id = r.subject_id
    WHERE u.anonymized_at IS NULL
)

SELECT
    count(*) AS users,
    count(*) FILTER (WHERE v.subscription_active) AS subscribed,
    count(*) FILTER (WHERE v.is_blocked) AS blocked
FROM verdicts AS v;

-- name: get_inbox_counts :one
-- Each by the end of an index, but for those that failed, which are few.
SELECT
    (
        SELECT count(*)
        FROM app.stripe_events AS e
        WHERE e.status = 'failed'
    ) AS failed,
    (
        SELECT min(e.event_created_at)
        FROM app.stripe_events AS e
        WHERE e.status = 'failed'
    ) AS oldest_failed_at,
    (
        SELECT count(*)
        FROM app.stripe_events AS e
        WHERE e.received_at > statement_timestamp() - interval '1 hour'
    ) AS hour_received,
    (SELECT max(e.received_at) FROM app.stripe_events AS e) AS last_received_at;

-- name: find_last_run :optional
-- The newest that was no dry run, and when one last came to its end.
SELECT
    r.id,
    r.started_at,
    r.finished_at,
    r.outcome,
    r.counts,
    r.last_error,
    -- Each kind of difference is counted twice: found, and repaired.
    (
        SELECT COALESCE(sum(n.value::bigint), 0)::bigint
        FROM jsonb_each_text(r.counts) AS n
        WHERE r.counts ? (n.key || ' repaired')
    ) AS differences,
    (
        SELECT COALESCE(sum(n.value::bigint), 0)::bigint
        FROM jsonb_each_text(r.counts) AS n
        WHERE n.key LIKE '% repaired'
    ) AS repaired,
    (
        SELECT c.finished_at
        FROM app.stripe_sync_runs AS c
        WHERE c.kind = r.kind AND NOT c.is_dry_run AND c.outcome = 'completed'
        ORDER BY c.id DESC
        LIMIT 1
    ) AS last_completed_at
FROM app.stripe_sync_runs AS r
WHERE r.kind = :kind AND NOT r.is_dry_run
ORDER BY r.id DESC
LIMIT 1;

-- name: get_payload_months :one
-- By the names that app.create_payload_partitions gives. How many wait is what the
-- server's counters say, for there may be millions; it forgets them in a crash.
WITH months AS (
    SELECT
        n,
        (
            date_trunc('month', statement_timestamp() AT TIME ZONE 'UTC')
            + make_interval(months => n)
        )::date AS month
    FROM generate_series(0, 1200) AS n
),

partitions AS (
    SELECT to_date(right(c.relname, 6), 'YYYYMM') AS month
    FROM pg_inherits AS i
    INNER JOIN pg_class AS c ON i.inhrelid = c.oid
    WHERE i.inhparent = to_regclass('app.message_payloads')
        AND c.relname ~ '^message_payloads_[0-9]{6}$'
)

SELECT
    (SELECT count(p.month) FROM partitions AS p) AS partitions,
    (
        SELECT min(m.n) - 1
        FROM months AS m
        WHERE m.month NOT IN (SELECT p.month FROM partitions AS p)
    ) AS months_ahead,
    (SELECT min(p.month) FROM partitions AS p) AS oldest_month,
    (
        SELECT d.finished_at
        FROM app.message_payloads_default AS d
        LIMIT 1 -- noqa: AM09
    ) IS NOT NULL AS has_default_rows,
    to_regclass('app.waiting_payloads') IS NOT NULL AS has_waiting_table,
    pg_stat_get_live_tuples('app.message_payloads_default'::regclass)
    + COALESCE(
        pg_stat_get_live_tuples(to_regclass('app.waiting_payloads')), 0
    ) AS estimated_waiting,
    to_regclass('app.retired_payloads') IS NOT NULL AS has_retired_table;

-- name: get_server_state :one
-- Of this database only. Others' transactions are seen by a role that may see them.
SELECT
    count(*) AS connections,
    current_setting('max_connections')::integer AS max_connections,
    count(*) FILTER (WHERE a.wait_event_type = 'Lock') AS waiting,
    min(a.xact_start) FILTER (WHERE a.pid <> pg_backend_pid()) AS oldest_transaction_at,
    pg_postmaster_start_time() AS started_at,
    (
        SELECT d.stats_reset
        FROM pg_stat_database AS d
        WHERE d.datname = current_database()
    ) AS counted_since
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.backend_type = 'client backend';

-- name: list_table_sizes :many
-- Largest first; partitions count for their table, and rows are as last estimated.
SELECT
    t.relname AS name,
    sum(
        CASE WHEN c.reltuples < 0 THEN s.n_live_tup ELSE c.reltuples END
    )::bigint AS estimated_rows,
    sum(pg_table_size(c.oid))::bigint AS table_bytes,
    sum(pg_indexes_size(c.oid))::bigint AS index_bytes
FROM pg_class AS c
INNER JOIN pg_stat_user_tables AS s ON c.oid = s.relid
LEFT JOIN pg_inherits AS i ON c.oid = i.inhrelid
INNER JOIN pg_class AS t ON t.oid = COALESCE(i.inhparent, c.oid)
WHERE s.schemaname = 'app'
GROUP BY t.relname
ORDER BY sum(pg_total_relation_size(c.oid)) DESC, t.relname
LIMIT :limit;

-- name: list_unused_indexes :many
-- Largest first, keys left out: those keep a rule, whoever reads them.
SELECT
    t.relname AS name,
    sum(pg_relation_size(s.indexrelid))::bigint AS bytes
FROM pg_stat_user_indexes AS s
INNER JOIN pg_index AS x ON s.indexrelid = x.indexrelid
LEFT JOIN pg_inherits AS i ON s.indexrelid = i.inhrelid
INNER JOIN pg_class AS t ON t.oid = COALESCE(i.inhparent, s.indexrelid)
WHERE s.schemaname = 'app' AND NOT x.indisunique
GROUP BY t.relname
HAVING sum(s.idx_scan) = 0
ORDER BY sum(pg_relation_size(s.indexrelid)) DESC, t.relname
LIMIT :limit;
