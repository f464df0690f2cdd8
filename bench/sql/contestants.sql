-- name: select_account :one
-- The floor of a read: the user's row by its primary key.
SELECT
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.quota_anchor,
    u.next_quota_reset,
    u.quota_period_start,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at
FROM app.users AS u
WHERE u.id = :user_id;

-- name: sum_plain :one
-- The plain design: join and sum over the messages of the period.
SELECT
    u.quota,
    COALESCE(sum(m.credits), 0) AS credits_used
FROM app.users AS u
LEFT JOIN app.messages AS m
    ON u.id = m.user_id
    AND u.quota_period_start <= m.finished_at
    AND u.next_quota_reset > m.finished_at
WHERE u.id = :user_id
GROUP BY u.id;

-- name: sum_month :many
-- The floor of a report: the same sums by a plain statement.
SELECT
    m.model,
    count(*) AS messages,
    sum(m.input_tokens) AS input_tokens,
    sum(m.cache_creation_input_tokens) AS cache_creation_input_tokens,
    sum(m.cache_read_input_tokens) AS cache_read_input_tokens,
    sum(m.output_tokens) AS output_tokens,
    sum(m.total_tokens) AS total_tokens,
    sum(m.cost) AS cost,
    sum(m.credits) AS credits
FROM app.messages AS m
WHERE m.finished_at >= :since
    AND m.finished_at < :until
GROUP BY m.model
ORDER BY m.model;

-- name: disable_indexes :one
-- Until the session ends: tables are read as a whole.
SELECT
    set_config('enable_bitmapscan', 'off', FALSE) AS bitmapscan,
    set_config('enable_indexscan', 'off', FALSE) AS indexscan,
    set_config('enable_indexonlyscan', 'off', FALSE) AS indexonlyscan;

-- name: disable_rollup :rowcount
-- The same INSERT without the rollup.
ALTER TABLE app.messages DISABLE TRIGGER messages_add_usage;

-- name: enable_rollup :rowcount
-- The normal state.
ALTER TABLE app.messages ENABLE TRIGGER messages_add_usage;

-- name: insert_message :rowcount
-- One message of account n.
INSERT INTO app.messages (
    subject_id, id, user_id, finished_at, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, model, cost, credits
)
SELECT
    a.id AS subject_id,
    gen_random_uuid() AS id,
    a.id AS user_id,
    now() AS finished_at,
    900 AS input_tokens,
    0 AS cache_creation_input_tokens,
    4000 AS cache_read_input_tokens,
    300 AS output_tokens,
    :model AS model,
    0.012 AS cost,
    1.44 AS credits
FROM bench.accounts AS a
WHERE a.n = :n
ON CONFLICT (subject_id, id) DO NOTHING;

-- name: insert_late_message :rowcount
-- One message of account n that finished some minutes ago.
INSERT INTO app.messages (
    subject_id, id, user_id, finished_at, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, model, cost, credits
)
SELECT
    a.id AS subject_id,
    gen_random_uuid() AS id,
    a.id AS user_id,
    now() - make_interval(mins => :minutes) AS finished_at,
    900 AS input_tokens,
    0 AS cache_creation_input_tokens,
    4000 AS cache_read_input_tokens,
    300 AS output_tokens,
    :model AS model,
    0.012 AS cost,
    1.44 AS credits
FROM bench.accounts AS a
WHERE a.n = :n
ON CONFLICT (subject_id, id) DO NOTHING;

-- name: move_account :rowcount
-- The period of account n begins some minutes ago.
UPDATE app.users AS u
SET
    quota_anchor = now() - make_interval(mins => :minutes),
    next_quota_reset = now() - make_interval(mins => :minutes) + interval '1 month'
FROM bench.accounts AS a
WHERE u.id = a.id
    AND a.n = :n;

-- name: cut_account :one
-- As the sync does after it has moved the period.
SELECT app.cut_usage(a.id) AS days
FROM bench.accounts AS a
WHERE a.n = :n;

-- name: fold_account :many
-- As the maintenance does, for one account.
SELECT app.fold_usage(u.subject_id, u.starts_at, u.ends_at) AS folded
FROM app.unfolded_usage AS u
INNER JOIN bench.accounts AS a ON u.subject_id = a.id
WHERE a.n = :n;

-- name: repair_usage :one
-- Adds today's messages that were recorded without the rollup; number of payers' days.
SELECT
    count(*) FILTER (
        WHERE app.repair_usage_day(a.id, (now() AT TIME ZONE 'UTC')::date - d.ago)
    ) AS days
FROM bench.accounts AS a
CROSS JOIN generate_series(0, 1) AS d (ago);

-- name: insert_message_and_payload :rowcount
-- One message of account n, with its payload.
WITH new_message AS (
    INSERT INTO app.messages AS m (
        subject_id, id, user_id, finished_at, input_tokens, cache_creation_input_tokens,
        cache_read_input_tokens, output_tokens, model, cost, credits
    )
    SELECT
        a.id AS subject_id,
        gen_random_uuid() AS id,
        a.id AS user_id,
        now() AS finished_at,
        900 AS input_tokens,
        0 AS cache_creation_input_tokens,
        4000 AS cache_read_input_tokens,
        300 AS output_tokens,
        :model AS model,
        0.012 AS cost,
        1.44 AS credits
    FROM bench.accounts AS a
    WHERE a.n = :n
    ON CONFLICT (subject_id, id) DO NOTHING
    RETURNING m.subject_id, m.id, m.finished_at
)

INSERT INTO app.message_payloads (subject_id, message_id, finished_at, request)
SELECT
    n.subject_id,
    n.id AS message_id,
    n.finished_at,
    jsonb_build_array(
        jsonb_build_object('role', 'user', 'content', bench.make_text(n.id::text))
    ) AS request
FROM new_message AS n;

-- name: copy_messages :rowcount
-- Messages in bulk.
COPY app.messages (
    subject_id, id, user_id, finished_at, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, model, cost, credits
) FROM STDIN;

-- name: create_payload_partitions :one
-- A month to fill and retire.
SELECT app.create_payload_partitions(:first_month::date, 1) AS created;

-- name: insert_payloads :rowcount
-- Payloads for at most :rows messages of a month.
INSERT INTO app.message_payloads (subject_id, message_id, finished_at, request)
SELECT
    m.subject_id,
    m.id AS message_id,
    m.finished_at,
    jsonb_build_array(
        jsonb_build_object('role', 'user', 'content', bench.make_text(m.id::text))
    ) AS request
FROM app.messages AS m
WHERE m.finished_at >= :month::timestamptz
    AND m.finished_at < :month::timestamptz + interval '1 month'
ORDER BY m.finished_at
LIMIT :rows;

-- name: insert_made_up_payloads :rowcount
-- Synthetic payloads of a month, without messages; the foreign key is not checked.
INSERT INTO app.message_payloads (subject_id, message_id, finished_at, request)
SELECT
    gen_random_uuid() AS subject_id,
    gen_random_uuid() AS message_id,
    :month::timestamptz + n * (interval '28 days' / :rows::integer) AS finished_at,
    jsonb_build_array(
        jsonb_build_object('role', 'user', 'content', bench.make_text(n::text))
    ) AS request
FROM generate_series(1, :rows::integer) AS n;

-- name: delete_payloads :rowcount
-- Retention in a table without partitions.
DELETE FROM app.message_payloads AS p
WHERE p.finished_at >= :month::timestamptz
    AND p.finished_at < :month::timestamptz + interval '1 month';

-- name: count_usage_differences :one
-- Daily sums that differ from their messages.
SELECT count(*) AS differences
FROM (
    SELECT
        m.subject_id,
        (m.finished_at AT TIME ZONE 'UTC')::date AS day,
        count(*) AS messages,
        sum(m.credits) AS credits
    FROM app.messages AS m
    GROUP BY m.subject_id, (m.finished_at AT TIME ZONE 'UTC')::date
) AS s
FULL JOIN app.usage_daily AS d ON s.subject_id = d.subject_id AND s.day = d.day
WHERE (s.messages, s.credits) IS DISTINCT FROM (d.messages, d.credits);

-- name: count_quota_differences :one
-- Accounts whose credits in the period differ from those of their messages.
SELECT count(*) AS differences
FROM bench.accounts AS a
INNER JOIN app.users AS u ON a.id = u.id
CROSS JOIN LATERAL app.get_period_usage(
    u.id, u.quota_anchor, u.next_quota_reset, now(), u.quota_period_start
) AS p
WHERE p.credits_used <> (
        SELECT COALESCE(sum(m.credits), 0)
        FROM app.messages AS m
        WHERE m.subject_id = u.id
            AND m.finished_at >= p.period_start
            AND m.finished_at < p.end_date
    );
