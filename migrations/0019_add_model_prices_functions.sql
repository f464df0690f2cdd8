-- Contracts and gateways have prices of their own, by host.

SET LOCAL lock_timeout = '5s';

-- Replaced below, with parameters that running programs need not give.
-- squawk-ignore ban-drop-function
DROP FUNCTION app.record_message(
    uuid, uuid, uuid, timestamptz, integer, integer, integer, integer, integer, text,
    text, text, numeric, numeric, jsonb, jsonb
);

-- For record_message and record_messages: a SETOF function in this form is inlined, so
-- that many messages are priced by one join.
CREATE OR REPLACE FUNCTION app.find_own_cost(
    provider text,
    model text,
    finished_at timestamptz,
    input_tokens integer,
    cache_creation_input_tokens integer,
    cache_creation_1h_input_tokens integer,
    cache_read_input_tokens integer,
    output_tokens integer,
    other_cost numeric,
    is_standard boolean,
    OUT cost numeric,
    OUT problem text
)
RETURNS SETOF record LANGUAGE sql STABLE PARALLEL SAFE ROWS 1
BEGIN ATOMIC
    WITH price AS (
        SELECT
            m.valid_from,
            m.input_price,
            m.cache_creation_price,
            COALESCE(
                m.cache_creation_1h_price, m.cache_creation_price
            ) AS cache_creation_1h_price,
            m.cache_read_price,
            m.output_price
        FROM app.model_prices AS m
        WHERE m.model = find_own_cost.model
            AND m.valid_from <= find_own_cost.finished_at
            AND m.provider IS NOT DISTINCT FROM find_own_cost.provider
        ORDER BY m.valid_from DESC
        LIMIT 1
    ),

    checked_price AS (
        SELECT
            p.valid_from,
            p.input_price,
            p.cache_creation_price,
            p.cache_creation_1h_price,
            p.cache_read_price,
            p.output_price,
            CASE
                WHEN find_own_cost.is_standard IS NOT TRUE
                    THEN 'is for standard calls only, and this call is not'
                WHEN find_own_cost.other_cost IS NULL
                    THEN 'is for tokens only, and this call used something else'
                WHEN find_own_cost.cache_creation_input_tokens > 0
                    AND p.cache_creation_price IS NULL
                    THEN 'does not include cache writes'
                WHEN find_own_cost.cache_read_input_tokens > 0
                    AND p.cache_read_price IS NULL
                    THEN 'does not include cache reads'
            END AS reason
        FROM price AS p
    )

    SELECT
        CASE
            -- Multiplied, because a division of numeric values is rounded.
            WHEN p.reason IS NULL THEN find_own_cost.other_cost + 0.000001 * (
                find_own_cost.input_tokens * p.input_price
                + (
                    find_own_cost.cache_creation_input_tokens
                    - find_own_cost.cache_creation_1h_input_tokens
                ) * COALESCE(p.cache_creation_price, 0)
                + find_own_cost.cache_creation_1h_input_tokens
                * COALESCE(p.cache_creation_1h_price, 0)
                + find_own_cost.cache_read_input_tokens
                * COALESCE(p.cache_read_price, 0)
                + find_own_cost.output_tokens * p.output_price
            )
        END AS cost,
        'the own price of model ' || quote_literal(left(find_own_cost.model, 100))
        || ' since ' || to_char(
            p.valid_from AT TIME ZONE interval '0', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'
        )
        || ' ' || p.reason AS problem
    FROM checked_price AS p
    -- NULL ends the own prices.
    WHERE p.input_price IS NOT NULL;
END;

COMMENT ON FUNCTION app.find_own_cost(
    text, text, timestamptz, integer, integer, integer, integer, integer, numeric,
    boolean
) IS
    'Cost by the own price in force, or why it does not cover the call; no row without'
    ' an own price.';

CREATE OR REPLACE FUNCTION app.is_message_recorded(
    id uuid, user_id uuid, fingerprint_id uuid
)
RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
RETURN
    EXISTS (
        SELECT FROM app.messages AS m
        WHERE m.subject_id = COALESCE(
                is_message_recorded.user_id, is_message_recorded.fingerprint_id
            )
            AND m.id = is_message_recorded.id
    )
    OR EXISTS (
        SELECT FROM app.messages AS m
        WHERE m.fingerprint_id = is_message_recorded.fingerprint_id
            AND m.id = is_message_recorded.id
    );

COMMENT ON FUNCTION app.is_message_recorded(uuid, uuid, uuid) IS
    'Whether the payer or the fingerprint has a message with this id.';

-- Each statement names one table, so that Citus sends each to one shard. FOR KEY SHARE
-- waits for a concurrent anonymize_user, and anonymized_at is read after the wait: no
-- payload is stored for an anonymized user. The last parameters have defaults for
-- programs that give cost and credits.
CREATE OR REPLACE FUNCTION app.record_message(
    INOUT id uuid,
    user_id uuid,
    fingerprint_id uuid,
    finished_at timestamptz,
    input_tokens integer,
    cache_creation_input_tokens integer,
    cache_read_input_tokens integer,
    output_tokens integer,
    latency_ms integer,
    model text,
    client_id text,
    client_request_id text,
    INOUT cost numeric,
    INOUT credits numeric,
    request jsonb,
    response jsonb,
    provider text DEFAULT NULL,
    cache_creation_1h_input_tokens integer DEFAULT 0,
    published_cost numeric DEFAULT NULL,
    other_cost numeric DEFAULT 0,
    is_standard boolean DEFAULT TRUE,
    published_reason text DEFAULT NULL,
    margin numeric DEFAULT NULL,
    OUT is_user_known boolean,
    OUT is_fingerprint_known boolean,
    OUT is_ahead boolean,
    OUT is_new boolean,
    OUT unpriced_reason text
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    erased_at timestamptz;
BEGIN
    is_user_known := TRUE;
    IF user_id IS NOT NULL THEN
        SELECT u.anonymized_at INTO erased_at
        FROM app.users AS u
        WHERE u.id = record_message.user_id
        FOR KEY SHARE;
        is_user_known := FOUND;
    END IF;

    is_fingerprint_known := TRUE;
    IF fingerprint_id IS NOT NULL THEN
        PERFORM FROM app.fingerprints AS f WHERE f.id = record_message.fingerprint_id;
        is_fingerprint_known := FOUND;
    END IF;

    -- The condition of messages_finished_at_not_ahead_check.
    is_ahead := finished_at AT TIME ZONE interval '0'
        > now() AT TIME ZONE interval '0' + interval '24 hours';

    IF cost IS NULL THEN
        SELECT o.cost, o.problem INTO cost, unpriced_reason
        FROM app.find_own_cost(
            provider, model, finished_at, input_tokens, cache_creation_input_tokens,
            cache_creation_1h_input_tokens, cache_read_input_tokens, output_tokens,
            other_cost, is_standard
        ) AS o;
        IF NOT FOUND THEN
            cost := published_cost;
        END IF;
    END IF;
    IF credits IS NULL THEN
        credits := round(cost * 100 * (1 + margin), 6);
    END IF;

    is_new := FALSE;
    IF is_user_known AND is_fingerprint_known AND NOT is_ahead AND cost IS NOT NULL THEN
        -- No conflict target, because two unique indexes apply: one for the payer, one
        -- for the fingerprint.
        INSERT INTO app.messages (
            subject_id, id, user_id, fingerprint_id, finished_at, input_tokens,
            cache_creation_input_tokens, cache_read_input_tokens, output_tokens,
            latency_ms, model, client_id, client_request_id, cost, credits, provider
        )
        VALUES (
            COALESCE(user_id, fingerprint_id), id, user_id, fingerprint_id, finished_at,
            input_tokens, cache_creation_input_tokens, cache_read_input_tokens,
            output_tokens, latency_ms, model, client_id, client_request_id, cost,
            credits, provider
        )
        ON CONFLICT DO NOTHING;
        is_new := FOUND;
    END IF;

    IF NOT is_new THEN
        -- A retry is a duplicate, also if the call has no price any more.
        IF cost IS NULL THEN
            unpriced_reason := CASE
                WHEN NOT app.is_message_recorded(id, user_id, fingerprint_id)
                    THEN COALESCE(unpriced_reason, published_reason, 'no cost is given')
            END;
        END IF;
        cost := 0;
        credits := 0;
    ELSIF erased_at IS NULL AND num_nonnulls(request, response) > 0 THEN
        INSERT INTO app.message_payloads (
            subject_id, message_id, finished_at, request, response
        )
        VALUES (
            COALESCE(user_id, fingerprint_id), id, finished_at, request, response
        );
    END IF;
END;
$$;

COMMENT ON FUNCTION app.record_message(
    uuid, uuid, uuid, timestamptz, integer, integer, integer, integer, integer, text,
    text, text, numeric, numeric, jsonb, jsonb, text, integer, numeric, numeric,
    boolean, text, numeric
) IS
    'Records a message once, with its cost and payload; reports what prevents it.';
