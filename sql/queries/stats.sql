-- name: limit_time :one
-- Sets statement_timeout until the transaction ends.
SELECT set_config('statement_timeout', :milliseconds::integer::text, TRUE) AS setting;

-- name: get_message_rates :one
-- By recorded_at, not finished_at; reads the last hour.
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
-- blocked counts users with is_blocked of get_user_quota. A period that resets started
-- at most 31 days ago: users below their quota over those days skip the exact check.
WITH recent_usage AS (
    SELECT
        s.subject_id,
        sum(s.credits) AS credits
    FROM app.usage_slots AS s
    WHERE s.starts_at >= (
        date_trunc('day', statement_timestamp() AT TIME ZONE interval '0')
        - interval '31 days'
    ) AT TIME ZONE interval '0'
    GROUP BY s.subject_id
),

checked_users AS (
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
    count(*) FILTER (WHERE c.subscription_active) AS subscribed,
    count(*) FILTER (WHERE c.is_blocked) AS blocked
FROM checked_users AS c;

-- name: get_inbox_counts :one
-- Each value is read at the end of an index, except failed events, which are few.
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
-- The newest run that was not a dry run, and when one last completed.
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
-- By the names that create_payload_partitions gives. estimated_waiting comes from the
-- statistics of the server, because there may be millions; a crash resets them.
WITH months AS (
    SELECT
        n,
        (
            date_trunc('month', statement_timestamp() AT TIME ZONE interval '0')
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
-- This database only. Without pg_read_all_stats a role sees only its own clients: NULL
-- then stands for the figures of all.
SELECT
    CASE
        WHEN pg_has_role('pg_read_all_stats', 'USAGE') THEN count(*)
    END AS connections,
    current_setting('max_connections')::integer AS max_connections,
    CASE
        WHEN pg_has_role('pg_read_all_stats', 'USAGE')
            THEN count(*) FILTER (WHERE a.wait_event_type = 'Lock')
    END AS waiting,
    CASE
        WHEN pg_has_role('pg_read_all_stats', 'USAGE')
            THEN min(a.xact_start) FILTER (WHERE a.pid <> pg_backend_pid())
    END AS oldest_transaction_at,
    pg_postmaster_start_time() AS started_at,
    (
        SELECT d.stats_reset
        FROM pg_stat_database AS d
        WHERE d.datname = current_database()
    ) AS counted_since
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.backend_type = 'client backend';

-- name: list_table_sizes :many
-- Largest first; partitions count for their table; row counts are estimates.
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
-- Largest first, without unique indexes, which enforce a rule even if never scanned.
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
