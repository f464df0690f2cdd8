-- name: list_usage :many
-- Days and months in the order of time, other groups by cost, the highest first.
-- is_daily means that the groups are days, months or payers and that the range begins
-- and ends at midnight UTC: then usage_slots has the sums. is_daily and subject_id
-- select one part of source; PostgreSQL does not execute the others.
WITH source AS (
    SELECT
        s.subject_id,
        (s.starts_at AT TIME ZONE interval '0')::date AS day,
        NULL::text AS model,
        NULL::text AS provider,
        NULL::text AS client_id,
        s.messages,
        s.input_tokens,
        s.cache_creation_input_tokens,
        s.cache_read_input_tokens,
        s.output_tokens,
        s.input_tokens + s.cache_creation_input_tokens + s.cache_read_input_tokens
        + s.output_tokens AS total_tokens,
        s.cost,
        s.credits
    FROM app.usage_slots AS s
    WHERE :is_daily::boolean
        AND s.subject_id = :subject_id::uuid
        AND s.starts_at >= COALESCE(:since::timestamptz, '-infinity')
        AND s.starts_at < COALESCE(:until::timestamptz, 'infinity')

    UNION ALL

    SELECT
        s.subject_id,
        (s.starts_at AT TIME ZONE interval '0')::date AS day,
        NULL::text AS model,
        NULL::text AS provider,
        NULL::text AS client_id,
        s.messages,
        s.input_tokens,
        s.cache_creation_input_tokens,
        s.cache_read_input_tokens,
        s.output_tokens,
        s.input_tokens + s.cache_creation_input_tokens + s.cache_read_input_tokens
        + s.output_tokens AS total_tokens,
        s.cost,
        s.credits
    FROM app.usage_slots AS s
    WHERE :is_daily::boolean
        AND :subject_id IS NULL
        AND s.starts_at >= COALESCE(:since::timestamptz, '-infinity')
        AND s.starts_at < COALESCE(:until::timestamptz, 'infinity')

    UNION ALL

    SELECT
        m.subject_id,
        (m.finished_at AT TIME ZONE interval '0')::date AS day,
        m.model,
        m.provider,
        m.client_id,
        1::bigint AS messages,
        m.input_tokens::bigint,
        m.cache_creation_input_tokens::bigint,
        m.cache_read_input_tokens::bigint,
        m.output_tokens::bigint,
        m.total_tokens,
        m.cost,
        m.credits
    FROM app.messages AS m
    WHERE NOT :is_daily
        AND m.subject_id = :subject_id
        AND m.finished_at >= COALESCE(:since::timestamptz, '-infinity')
        AND m.finished_at < COALESCE(:until::timestamptz, 'infinity')

    UNION ALL

    SELECT
        m.subject_id,
        (m.finished_at AT TIME ZONE interval '0')::date AS day,
        m.model,
        m.provider,
        m.client_id,
        1::bigint AS messages,
        m.input_tokens::bigint,
        m.cache_creation_input_tokens::bigint,
        m.cache_read_input_tokens::bigint,
        m.output_tokens::bigint,
        m.total_tokens,
        m.cost,
        m.credits
    FROM app.messages AS m
    WHERE NOT :is_daily
        AND :subject_id IS NULL
        AND m.finished_at >= COALESCE(:since::timestamptz, '-infinity')
        AND m.finished_at < COALESCE(:until::timestamptz, 'infinity')
),

keyed AS (
    SELECT
        CASE :by::text
            WHEN 'day' THEN s.day
            WHEN 'month' THEN date_trunc('month', s.day::timestamp)::date
        END AS day,
        CASE WHEN :by = 'model' THEN s.model END AS model,
        CASE WHEN :by = 'provider' THEN s.provider END AS provider,
        CASE WHEN :by = 'client' THEN s.client_id END AS client_id,
        CASE WHEN :by = 'payer' THEN s.subject_id END AS subject_id,
        s.messages,
        s.input_tokens,
        s.cache_creation_input_tokens,
        s.cache_read_input_tokens,
        s.output_tokens,
        s.total_tokens,
        s.cost,
        s.credits
    FROM source AS s
),

group_sums AS (
    SELECT
        k.day,
        k.model,
        k.provider,
        k.client_id,
        k.subject_id,
        sum(k.messages)::bigint AS messages,
        sum(k.input_tokens)::bigint AS input_tokens,
        sum(k.cache_creation_input_tokens)::bigint AS cache_creation_input_tokens,
        sum(k.cache_read_input_tokens)::bigint AS cache_read_input_tokens,
        sum(k.output_tokens)::bigint AS output_tokens,
        sum(k.total_tokens)::bigint AS total_tokens,
        sum(k.cost) AS cost,
        sum(k.credits) AS credits
    FROM keyed AS k
    GROUP BY k.day, k.model, k.provider, k.client_id, k.subject_id
    ORDER BY
        k.day ASC,
        cost DESC,
        k.model ASC,
        k.provider ASC,
        k.client_id ASC,
        k.subject_id ASC
    LIMIT :limit
)

SELECT
    g.day,
    g.model,
    g.provider,
    g.client_id,
    g.subject_id,
    CASE
        WHEN u.id IS NOT NULL THEN 'user'
        WHEN g.subject_id IS NOT NULL THEN 'fingerprint'
    END AS kind,
    u.email,
    g.messages,
    g.input_tokens,
    g.cache_creation_input_tokens,
    g.cache_read_input_tokens,
    g.output_tokens,
    g.total_tokens,
    g.cost,
    g.credits
FROM group_sums AS g
LEFT JOIN app.users AS u ON g.subject_id = u.id
ORDER BY
    g.day ASC,
    g.cost DESC,
    g.model ASC,
    g.provider ASC,
    g.client_id ASC,
    g.subject_id ASC;

-- name: get_request_usage :many
-- The first row, with model NULL, is the total; it exists even without messages.
SELECT
    m.model,
    count(*) AS messages,
    COALESCE(sum(m.input_tokens), 0) AS input_tokens,
    COALESCE(sum(m.cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
    COALESCE(sum(m.cache_read_input_tokens), 0) AS cache_read_input_tokens,
    COALESCE(sum(m.output_tokens), 0) AS output_tokens,
    COALESCE(sum(m.total_tokens), 0)::bigint AS total_tokens,
    COALESCE(sum(m.cost), 0) AS cost,
    COALESCE(sum(m.credits), 0) AS credits
FROM app.messages AS m
WHERE m.client_request_id = :client_request_id
    AND (:subject_id::uuid IS NULL OR m.subject_id = :subject_id)
GROUP BY GROUPING SETS ((), (m.model))
ORDER BY m.model NULLS FIRST;

-- name: get_client_usage :many
-- The first row, with model NULL, is the total; it exists even without messages.
SELECT
    m.model,
    count(*) AS messages,
    COALESCE(sum(m.input_tokens), 0) AS input_tokens,
    COALESCE(sum(m.cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
    COALESCE(sum(m.cache_read_input_tokens), 0) AS cache_read_input_tokens,
    COALESCE(sum(m.output_tokens), 0) AS output_tokens,
    COALESCE(sum(m.total_tokens), 0)::bigint AS total_tokens,
    COALESCE(sum(m.cost), 0) AS cost,
    COALESCE(sum(m.credits), 0) AS credits
FROM app.messages AS m
WHERE m.client_id = :client_id
    AND (:subject_id::uuid IS NULL OR m.subject_id = :subject_id)
GROUP BY GROUPING SETS ((), (m.model))
ORDER BY m.model NULLS FIRST;
