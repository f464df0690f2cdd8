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
