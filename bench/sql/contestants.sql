-- name: select_user :one
-- The floor for one answer: one row by its primary key.
SELECT
    u.id,
    u.email,
    u.quota,
    u.subscription_active
FROM app.users AS u
WHERE u.id = :user_id;

-- name: select_session :one
-- The floor for a session: one row by its primary key.
SELECT
    s.token_hash,
    s.user_id,
    s.expires_at
FROM app.sessions AS s
WHERE s.token_hash = :token_hash;

-- name: sum_plain :one
-- The obvious design: join and sum over the messages of the period.
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

-- name: insert_with_rollup :rowcount
-- One message of one of so many accounts.
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
    'm' AS model,
    0.012 AS cost,
    1.44 AS credits
FROM bench.accounts AS a
WHERE a.n = :n;

-- name: insert_plain :rowcount
-- The same message into the table without a rollup.
INSERT INTO bench.messages (
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
    'm' AS model,
    0.012 AS cost,
    1.44 AS credits
FROM bench.accounts AS a
WHERE a.n = :n;

-- name: copy_with_rollup :rowcount
-- The bulk of messages.
COPY app.messages (
    subject_id, id, user_id, finished_at, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, model, cost, credits
) FROM STDIN;

-- name: copy_plain :rowcount
-- The same bulk into the table without a rollup.
COPY bench.messages (
    subject_id, id, user_id, finished_at, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, model, cost, credits
) FROM STDIN;

-- name: insert_payloads :rowcount
-- Payloads of two kilobytes for the messages of a month.
INSERT INTO app.message_payloads (subject_id, message_id, finished_at, request)
SELECT
    m.subject_id,
    m.id AS message_id,
    m.finished_at,
    jsonb_build_array(
        jsonb_build_object('role', 'user', 'content', repeat(md5(m.id::text), 64))
    ) AS request
FROM app.messages AS m
WHERE m.finished_at >= :month::timestamptz
    AND m.finished_at < :month::timestamptz + interval '1 month'
ORDER BY m.id
LIMIT :limit;

-- name: delete_payloads :rowcount
-- What a table without partitions would do when retention ends.
DELETE FROM app.message_payloads AS p
WHERE p.finished_at >= :month::timestamptz
    AND p.finished_at < :month::timestamptz + interval '1 month';
