-- name: record_message :one
-- Repeating an id for one payer or one fingerprint changes nothing. An unknown payer,
-- a time that messages_finished_at_not_ahead_check refuses and a call without a price
-- are reported, not raised: the caller's transaction stays usable without a savepoint.
SELECT
    r.is_user_known,
    r.is_fingerprint_known,
    r.is_ahead,
    r.unpriced_reason,
    r.id,
    r.is_new,
    r.cost,
    r.credits
FROM app.record_message(
    id => :id,
    user_id => :user_id,
    fingerprint_id => :fingerprint_id,
    finished_at => :finished_at,
    input_tokens => :input_tokens,
    cache_creation_input_tokens => :cache_creation_input_tokens,
    cache_read_input_tokens => :cache_read_input_tokens,
    output_tokens => :output_tokens,
    latency_ms => :latency_ms,
    model => :model,
    client_id => :client_id,
    client_request_id => :client_request_id,
    cost => :cost,
    credits => :credits,
    request => :request,
    response => :response,
    provider => :provider,
    cache_creation_1h_input_tokens => :cache_creation_1h_input_tokens,
    published_cost => :published_cost,
    other_cost => :other_cost,
    is_standard => :is_standard,
    published_reason => :published_reason,
    margin => :margin
) AS r;

-- name: create_staged_messages :rowcount
-- Created once per server session and emptied by every commit, so that bulk writers do
-- not bloat the catalog, and can share a session through a pooler. Other columns need
-- another name: programs of two versions can share a session.
CREATE TEMPORARY TABLE IF NOT EXISTS pg_temp.staged_calls (
    position                       bigint NOT NULL,
    subject_id                     uuid NOT NULL,
    id                             uuid NOT NULL,
    user_id                        uuid,
    fingerprint_id                 uuid,
    finished_at                    timestamptz NOT NULL,
    input_tokens                   integer NOT NULL,
    cache_creation_input_tokens    integer NOT NULL,
    cache_creation_1h_input_tokens integer NOT NULL,
    cache_read_input_tokens        integer NOT NULL,
    output_tokens                  integer NOT NULL,
    latency_ms                     integer,
    provider                       text,
    model                          text NOT NULL,
    client_id                      text,
    client_request_id              text,
    cost                           numeric,
    credits                        numeric,
    request                        jsonb,
    response                       jsonb,
    published_cost                 numeric,
    other_cost                     numeric,
    is_standard                    boolean NOT NULL,
    published_reason               text
) ON COMMIT DELETE ROWS;

-- name: delete_staged_messages :rowcount
-- Deletes the rows of an earlier call in the same transaction.
DELETE FROM pg_temp.staged_calls;

-- name: copy_staged_messages :rowcount
-- Rows are copied in the order of the caller; position is that order.
COPY pg_temp.staged_calls (
    position, subject_id, id, user_id, fingerprint_id, finished_at, input_tokens,
    cache_creation_input_tokens, cache_creation_1h_input_tokens,
    cache_read_input_tokens, output_tokens, latency_ms, provider, model, client_id,
    client_request_id, cost, credits, request, response, published_cost, other_cost,
    is_standard, published_reason
) FROM STDIN;

-- name: record_messages :one
-- Records the first message of each id and payer, and of each id and fingerprint.
-- Inserts in the order of ids, so that concurrent writers of the same messages do not
-- deadlock. Users are locked as in record_message. If a message is too far ahead for
-- messages_finished_at_not_ahead_check, nothing is recorded and its position is
-- reported. Messages without a price are left out and reported, unless another message
-- of the batch or a stored one has the same id.
WITH locked_user AS MATERIALIZED (
    SELECT
        u.id,
        u.anonymized_at
    FROM app.users AS u
    WHERE u.id IN (
        SELECT s.user_id
        FROM pg_temp.staged_calls AS s
    )
    ORDER BY u.id
    FOR KEY SHARE OF u
),

first_ahead AS MATERIALIZED (
    SELECT min(s.position) AS position
    FROM pg_temp.staged_calls AS s
    WHERE s.finished_at AT TIME ZONE interval '0'
        > now() AT TIME ZONE interval '0' + interval '24 hours'
),

priced AS (
    SELECT
        s.position,
        s.subject_id,
        s.id,
        s.user_id,
        s.fingerprint_id,
        s.finished_at,
        s.input_tokens,
        s.cache_creation_input_tokens,
        s.cache_read_input_tokens,
        s.output_tokens,
        s.latency_ms,
        s.provider,
        s.model,
        s.client_id,
        s.client_request_id,
        s.credits,
        s.published_reason,
        o.problem,
        num_nonnulls(s.request, s.response) > 0 AS has_payload,
        -- As in record_message: the given cost, the own price, the published price.
        COALESCE(
            s.cost, o.cost, CASE WHEN o.problem IS NULL THEN s.published_cost END
        ) AS cost
    FROM pg_temp.staged_calls AS s
    LEFT JOIN LATERAL (
        SELECT
            p.cost,
            p.problem
        FROM app.find_own_cost(
            provider => s.provider,
            model => s.model,
            finished_at => s.finished_at,
            input_tokens => s.input_tokens,
            cache_creation_input_tokens => s.cache_creation_input_tokens,
            cache_creation_1h_input_tokens => s.cache_creation_1h_input_tokens,
            cache_read_input_tokens => s.cache_read_input_tokens,
            output_tokens => s.output_tokens,
            other_cost => s.other_cost,
            is_standard => s.is_standard
        ) AS p
        WHERE s.cost IS NULL
    ) AS o ON TRUE
),

ranked AS (
    SELECT
        p.position,
        p.subject_id,
        p.id,
        p.user_id,
        p.fingerprint_id,
        p.finished_at,
        p.input_tokens,
        p.cache_creation_input_tokens,
        p.cache_read_input_tokens,
        p.output_tokens,
        p.latency_ms,
        p.provider,
        p.model,
        p.client_id,
        p.client_request_id,
        p.cost,
        COALESCE(p.credits, round(p.cost * 100 * (1 + :margin::numeric), 6)) AS credits,
        p.published_reason,
        p.problem,
        p.has_payload,
        p.position = min(p.position) FILTER (WHERE p.cost IS NOT NULL)
            OVER (PARTITION BY p.id, p.subject_id) AS is_first_of_payer,
        p.fingerprint_id IS NULL
        OR p.position = min(p.position) FILTER (WHERE p.cost IS NOT NULL)
            OVER (PARTITION BY p.id, p.fingerprint_id) AS is_first_of_fingerprint,
        count(p.cost) OVER (PARTITION BY p.id, p.subject_id)
        + CASE
            WHEN p.fingerprint_id IS NULL THEN 0
            ELSE count(p.cost) OVER (PARTITION BY p.id, p.fingerprint_id)
        END AS priced
    FROM priced AS p
),

first_message AS (
    SELECT
        r.position,
        r.subject_id,
        r.id,
        r.user_id,
        r.fingerprint_id,
        r.finished_at,
        r.input_tokens,
        r.cache_creation_input_tokens,
        r.cache_read_input_tokens,
        r.output_tokens,
        r.latency_ms,
        r.provider,
        r.model,
        r.client_id,
        r.client_request_id,
        r.cost,
        r.credits,
        r.has_payload
    FROM ranked AS r
    -- Boolean columns, of which the planner expects half to be true. It expects nearly
    -- no row of a comparison, and would choose a nested loop over these rows.
    WHERE r.is_first_of_payer AND r.is_first_of_fingerprint
),

unpriced AS (
    SELECT
        r.position,
        COALESCE(r.problem, r.published_reason, 'no cost is given') AS reason
    FROM ranked AS r
    WHERE r.priced = 0
        AND NOT app.is_message_recorded(r.id, r.user_id, r.fingerprint_id)
),

new_message AS (
    INSERT INTO app.messages AS m (
        subject_id, id, user_id, fingerprint_id, finished_at,
        input_tokens, cache_creation_input_tokens, cache_read_input_tokens,
        output_tokens, latency_ms, provider, model, client_id, client_request_id, cost,
        credits
    )
    SELECT
        f.subject_id,
        f.id,
        f.user_id,
        f.fingerprint_id,
        f.finished_at,
        f.input_tokens,
        f.cache_creation_input_tokens,
        f.cache_read_input_tokens,
        f.output_tokens,
        f.latency_ms,
        f.provider,
        f.model,
        f.client_id,
        f.client_request_id,
        f.cost,
        f.credits
    FROM first_message AS f
    WHERE (SELECT a.position FROM first_ahead AS a) IS NULL
    ORDER BY f.id, f.subject_id
    ON CONFLICT DO NOTHING
    RETURNING m.subject_id, m.id, m.cost, m.credits
),

new_payload AS (
    INSERT INTO app.message_payloads (
        subject_id, message_id, finished_at, request, response
    )
    SELECT
        f.subject_id,
        f.id,
        f.finished_at,
        s.request,
        s.response
    FROM new_message AS n
    INNER JOIN first_message AS f ON n.subject_id = f.subject_id AND n.id = f.id
    INNER JOIN pg_temp.staged_calls AS s ON f.position = s.position
    WHERE f.has_payload
        AND NOT EXISTS (
            SELECT FROM locked_user AS u
            WHERE u.id = f.user_id AND u.anonymized_at IS NOT NULL
        )
)

SELECT
    count(*) AS recorded,
    (SELECT count(*) FROM pg_temp.staged_calls)
    - (SELECT count(*) FROM unpriced) - count(*) AS duplicates,
    COALESCE(sum(n.cost), 0) AS cost,
    COALESCE(sum(n.credits), 0) AS credits,
    (SELECT a.position FROM first_ahead AS a) AS ahead_position,
    (
        SELECT array_agg(u.position ORDER BY u.position) FROM unpriced AS u
    ) AS unpriced_positions,
    (
        SELECT array_agg(u.reason ORDER BY u.position) FROM unpriced AS u
    ) AS unpriced_reasons
FROM new_message AS n;

-- name: get_message :one
-- Without the payload, which find_message_payload returns.
SELECT
    m.subject_id,
    m.id,
    m.user_id,
    m.fingerprint_id,
    m.finished_at,
    m.recorded_at,
    m.provider,
    m.model,
    m.input_tokens,
    m.cache_creation_input_tokens,
    m.cache_read_input_tokens,
    m.output_tokens,
    m.total_tokens,
    m.cost,
    m.credits,
    m.latency_ms,
    m.client_id,
    m.client_request_id
FROM app.messages AS m
WHERE m.subject_id = :subject_id AND m.id = :message_id;

-- name: find_message_payload :optional
-- Joins the message, because its finished_at selects the partition.
SELECT
    p.request,
    p.response,
    p.last_message
FROM app.messages AS m
INNER JOIN app.message_payloads AS p
    ON m.subject_id = p.subject_id
    AND m.id = p.message_id
    AND m.finished_at = p.finished_at
WHERE m.subject_id = :subject_id AND m.id = :message_id;

-- name: list_messages :many
-- Newest first. The cursor is the last message of the page before. A time without an id
-- excludes messages of that time.
SELECT
    m.subject_id,
    m.id,
    m.user_id,
    m.fingerprint_id,
    m.finished_at,
    m.recorded_at,
    m.provider,
    m.model,
    m.input_tokens,
    m.cache_creation_input_tokens,
    m.cache_read_input_tokens,
    m.output_tokens,
    m.total_tokens,
    m.cost,
    m.credits,
    m.latency_ms,
    m.client_id,
    m.client_request_id
FROM app.messages AS m
WHERE m.subject_id = :subject_id
    AND (m.finished_at, m.id) < (
        COALESCE(:before::timestamptz, 'infinity'),
        COALESCE(:before_id::uuid, '00000000-0000-0000-0000-000000000000')
    )
ORDER BY m.finished_at DESC, m.id DESC
LIMIT :limit;
