-- Loses nothing.

SET LOCAL lock_timeout = '5s';

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
            unpriced_reason := published_reason;
        END IF;
    END IF;
    credits := COALESCE(credits, round(cost * 100 * (1 + margin), 6));

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

    IF is_new AND erased_at IS NULL AND num_nonnulls(request, response) > 0 THEN
        INSERT INTO app.message_payloads (
            subject_id, message_id, finished_at, request, response
        )
        VALUES (
            COALESCE(user_id, fingerprint_id), id, finished_at, request, response
        );
    END IF;
    -- A retry is a duplicate, also if the call has no price any more.
    unpriced_reason := CASE
        WHEN cost IS NULL AND NOT app.is_message_recorded(id, user_id, fingerprint_id)
            THEN COALESCE(unpriced_reason, 'no cost is given')
    END;
    IF NOT is_new THEN
        cost := 0;
        credits := 0;
    END IF;
END;
$$;

COMMENT ON FUNCTION app.record_message(
    uuid, uuid, uuid, timestamptz, integer, integer, integer, integer, integer, text,
    text, text, numeric, numeric, jsonb, jsonb, text, integer, numeric, numeric,
    boolean, text, numeric
) IS
    'Records a message once, with its cost and payload; reports what prevents it.';
