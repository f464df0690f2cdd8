-- name: set_model_price :optional
-- Repeating it changes nothing. No row: there is another price from that time.
INSERT INTO app.model_prices AS p (
    provider, model, valid_from, input_price, cache_creation_price,
    cache_creation_1h_price, cache_read_price, output_price
)
VALUES (
    :provider, :model, :valid_from, :input_price, :cache_creation_price,
    :cache_creation_1h_price, :cache_read_price, :output_price
)
ON CONFLICT ON CONSTRAINT model_prices_model_valid_from_provider_key DO UPDATE
SET model = excluded.model
WHERE p.input_price IS NOT DISTINCT FROM excluded.input_price
    AND p.cache_creation_price IS NOT DISTINCT FROM excluded.cache_creation_price
    AND p.cache_creation_1h_price IS NOT DISTINCT FROM excluded.cache_creation_1h_price
    AND p.cache_read_price IS NOT DISTINCT FROM excluded.cache_read_price
    AND p.output_price IS NOT DISTINCT FROM excluded.output_price
RETURNING
    p.provider,
    p.model,
    p.valid_from,
    p.input_price,
    p.cache_creation_price,
    p.cache_creation_1h_price,
    p.cache_read_price,
    p.output_price,
    p.created_at;

-- name: delete_model_price :optional
-- The trigger model_prices_keep_in_force refuses a price that is in force.
DELETE FROM app.model_prices AS p
WHERE p.model = :model
    AND p.valid_from = :valid_from
    AND p.provider IS NOT DISTINCT FROM :provider
RETURNING
    p.provider,
    p.model,
    p.valid_from,
    p.input_price,
    p.cache_creation_price,
    p.cache_creation_1h_price,
    p.cache_read_price,
    p.output_price,
    p.created_at;

-- name: list_model_prices :many
-- By model and provider, the latest price first.
SELECT
    p.provider,
    p.model,
    p.valid_from,
    p.input_price,
    p.cache_creation_price,
    p.cache_creation_1h_price,
    p.cache_read_price,
    p.output_price,
    p.created_at
FROM app.model_prices AS p
WHERE :model::text IS NULL OR p.model = :model
ORDER BY p.model ASC, p.provider ASC NULLS FIRST, p.valid_from DESC
LIMIT :limit;

-- name: list_used_models :many
-- By recorded_at, which BRIN serves. A call of each group that uses what its messages
-- used is priced at the present time.
WITH used_model AS (
    SELECT
        m.provider,
        m.model,
        count(*) AS messages,
        max(m.finished_at) AS last_finished_at,
        max(m.input_tokens) > 0 AS has_input,
        max(m.cache_creation_input_tokens) > 0 AS has_cache_writes,
        max(m.cache_read_input_tokens) > 0 AS has_cache_reads,
        max(m.output_tokens) > 0 AS has_output
    FROM app.messages AS m
    WHERE m.recorded_at >= :since
    GROUP BY m.provider, m.model
)

SELECT
    u.provider,
    u.model,
    u.messages,
    u.last_finished_at,
    u.has_input,
    u.has_cache_writes,
    u.has_cache_reads,
    u.has_output,
    o.cost IS NOT NULL AS has_own_price,
    o.problem
FROM used_model AS u
LEFT JOIN LATERAL app.find_own_cost(
    provider => u.provider,
    model => u.model,
    finished_at => statement_timestamp(),
    input_tokens => u.has_input::integer,
    cache_creation_input_tokens => u.has_cache_writes::integer,
    cache_creation_1h_input_tokens => 0,
    cache_read_input_tokens => u.has_cache_reads::integer,
    output_tokens => u.has_output::integer,
    other_cost => 0,
    is_standard => TRUE
) AS o ON TRUE
ORDER BY u.model ASC, u.provider ASC NULLS FIRST
LIMIT :limit;
