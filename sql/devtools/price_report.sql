-- name: stream_message_prices :many
-- Of messages that finished in the range; own prices are those of the present table.
SELECT
    m.provider,
    m.model,
    m.finished_at,
    m.input_tokens,
    m.cache_creation_input_tokens,
    m.cache_read_input_tokens,
    m.output_tokens,
    m.cost,
    o.cost AS own_cost,
    o.problem
FROM app.messages AS m
LEFT JOIN LATERAL app.find_own_cost(
    provider => m.provider,
    model => m.model,
    finished_at => m.finished_at,
    input_tokens => m.input_tokens,
    cache_creation_input_tokens => m.cache_creation_input_tokens,
    cache_creation_1h_input_tokens => 0,
    cache_read_input_tokens => m.cache_read_input_tokens,
    output_tokens => m.output_tokens,
    other_cost => 0,
    is_standard => TRUE
) AS o ON TRUE
WHERE m.finished_at >= :since
    AND m.finished_at < :until;
