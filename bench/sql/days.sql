-- name: insert_day_user :one
-- A user whose period began at this hour of a day, by the day's midnight in UTC.
INSERT INTO app.users AS u (email, quota_anchor, next_quota_reset)
SELECT
    gen_random_uuid() || '@bench.example' AS email,
    a.quota_anchor,
    app.get_period_end(a.quota_anchor, now()) AS next_quota_reset
FROM (
    SELECT :midnight::timestamptz + make_interval(hours => :hour) AS quota_anchor
) AS a
RETURNING u.id;

-- name: insert_day_messages :rowcount
-- :busy messages on the day, and :others on each day since, all evenly distributed.
INSERT INTO app.messages (
    subject_id, id, user_id, finished_at, recorded_at, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, model, cost,
    credits
)
SELECT
    :user_id::uuid AS subject_id,
    gen_random_uuid() AS id,
    :user_id::uuid AS user_id,
    m.finished_at,
    m.finished_at AS recorded_at,
    900 AS input_tokens,
    0 AS cache_creation_input_tokens,
    4000 AS cache_read_input_tokens,
    300 AS output_tokens,
    'model-1' AS model,
    0.012 AS cost,
    1.44 AS credits
FROM (
    SELECT
        d.midnight,
        CASE
            WHEN d.midnight = :midnight THEN :busy::integer
            ELSE :others::integer
        END AS messages
    FROM generate_series(
        :midnight::timestamptz,
        date_trunc('day', now(), 'UTC') - interval '24 hours',
        interval '24 hours'
    ) AS d (midnight)
) AS d
CROSS JOIN LATERAL (
    SELECT d.midnight + n * (interval '24 hours' / d.messages) AS finished_at
    FROM generate_series(0, d.messages - 1) AS n
) AS m
ORDER BY m.finished_at;

-- name: insert_day_usage :rowcount
-- The sums of these messages; those of the first :days days in :slots rows of each
-- span, as concurrent writers leave them.
INSERT INTO app.usage_slots (
    subject_id, starts_at, ends_at, slot, messages, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost, credits
)
SELECT
    m.subject_id,
    p.starts_at,
    p.ends_at,
    CASE
        WHEN p.starts_at < :midnight::timestamptz + :days * interval '24 hours'
            THEN m.n % :slots::integer
        ELSE 0
    END AS slot,
    count(*) AS messages,
    sum(m.input_tokens) AS input_tokens,
    sum(m.cache_creation_input_tokens) AS cache_creation_input_tokens,
    sum(m.cache_read_input_tokens) AS cache_read_input_tokens,
    sum(m.output_tokens) AS output_tokens,
    sum(m.cost) AS cost,
    sum(m.credits) AS credits
FROM (
    SELECT
        i.*,
        row_number() OVER (ORDER BY i.finished_at) AS n
    FROM app.messages AS i
    WHERE i.subject_id = :user_id
) AS m
INNER JOIN app.users AS u ON m.user_id = u.id
CROSS JOIN LATERAL app.get_usage_span(u.quota_anchor, m.finished_at) AS p
GROUP BY m.subject_id, p.starts_at, p.ends_at, slot
ORDER BY p.starts_at ASC, slot ASC;

-- name: forget_reset :rowcount
-- A payer whose period has no end.
UPDATE app.users AS u
SET next_quota_reset = NULL
WHERE u.id = :user_id;

-- name: move_anchor :rowcount
-- As Stripe moves it.
UPDATE app.users AS u
SET quota_anchor = a.quota_anchor, next_quota_reset = app.get_period_end(
        a.quota_anchor, now()
    )
FROM (
    SELECT :midnight::timestamptz + make_interval(hours => :hour) AS quota_anchor
) AS a
WHERE u.id = :user_id;

-- name: cut_usage :one
-- What the sync of Stripe does next.
SELECT app.cut_usage(:user_id) AS days;
