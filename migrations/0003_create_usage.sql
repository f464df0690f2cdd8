-- Messages, their payloads, and the daily sums that the quota check reads.

SET LOCAL lock_timeout = '5s';

-- The largest table: columns are ordered by alignment, widest first, to avoid padding.
CREATE TABLE app.messages (
    subject_id                  uuid NOT NULL,
    id                          uuid NOT NULL,
    user_id                     uuid,
    fingerprint_id              uuid,
    finished_at                 timestamptz NOT NULL,
    recorded_at                 timestamptz NOT NULL DEFAULT now(),
    total_tokens                bigint NOT NULL
    GENERATED ALWAYS AS (
        input_tokens::bigint + cache_creation_input_tokens
        + cache_read_input_tokens + output_tokens
    ) STORED,
    input_tokens                integer NOT NULL,
    cache_creation_input_tokens integer NOT NULL,
    cache_read_input_tokens     integer NOT NULL,
    output_tokens               integer NOT NULL,
    latency_ms                  integer,
    model                       text NOT NULL,
    client_id                   text,
    client_request_id           text,
    cost                        numeric NOT NULL,
    credits                     numeric NOT NULL,

    CONSTRAINT messages_pkey PRIMARY KEY (subject_id, id),
    CONSTRAINT messages_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app.users (id) ON DELETE RESTRICT,
    CONSTRAINT messages_fingerprint_id_fkey FOREIGN KEY (fingerprint_id)
        REFERENCES app.fingerprints (id) ON DELETE RESTRICT
) WITH (
    -- Index-only scans of the quota check need pages that VACUUM has marked.
    autovacuum_vacuum_insert_scale_factor = 0.02
);

COMMENT ON TABLE app.messages IS
    'Calls to models, one row each, append-only. The bill is their sum.';
COMMENT ON COLUMN app.messages.subject_id IS
    'Payer: the user, else the fingerprint. Not generated, to allow sharding by it.';
COMMENT ON COLUMN app.messages.id IS
    'Idempotency key given by the caller; unique per payer and per fingerprint.';
COMMENT ON COLUMN app.messages.user_id IS
    'The user; NULL for an anonymous message.';
COMMENT ON COLUMN app.messages.fingerprint_id IS
    'The fingerprint; NULL if unknown.';
COMMENT ON COLUMN app.messages.finished_at IS
    'When the model finished; decides the period and the prices.';
COMMENT ON COLUMN app.messages.recorded_at IS
    'When the row was inserted; finished_at is at most 24 hours later.';
COMMENT ON COLUMN app.messages.total_tokens IS
    'Sum of the four token counts, which are disjoint.';
COMMENT ON COLUMN app.messages.input_tokens IS
    'Input tokens at the full price: neither written to nor read from the cache.';
COMMENT ON COLUMN app.messages.cache_creation_input_tokens IS
    'Input tokens written to the cache.';
COMMENT ON COLUMN app.messages.cache_read_input_tokens IS
    'Input tokens read from the cache.';
COMMENT ON COLUMN app.messages.output_tokens IS
    'Output tokens, including reasoning.';
COMMENT ON COLUMN app.messages.latency_ms IS
    'Milliseconds from the request to the last byte; NULL if not measured.';
COMMENT ON COLUMN app.messages.model IS
    'Model name as used by its provider.';
COMMENT ON COLUMN app.messages.client_id IS
    'The client''s run, such as one session of a tool; NULL if not given.';
COMMENT ON COLUMN app.messages.client_request_id IS
    'The client''s request, which may need several calls; NULL if not given.';
COMMENT ON COLUMN app.messages.cost IS
    'Cost of the call in US dollars.';
COMMENT ON COLUMN app.messages.credits IS
    'Credits billed for the call.';

-- Checks are added separately to keep the column list on one screen.
ALTER TABLE app.messages
    ADD CONSTRAINT messages_subject_is_payer_check
        CHECK (subject_id IS NOT DISTINCT FROM COALESCE(user_id, fingerprint_id)),
    ADD CONSTRAINT messages_finished_at_is_finite_check CHECK (isfinite(finished_at)),
    -- In UTC, because timestamptz + interval depends on the session's TimeZone. Not a
    -- subtraction, because times that are far apart overflow an interval.
    ADD CONSTRAINT messages_finished_at_not_ahead_check CHECK (
        finished_at AT TIME ZONE interval '0'
        <= recorded_at AT TIME ZONE interval '0' + interval '24 hours'
    ),
    ADD CONSTRAINT messages_tokens_not_negative_check CHECK (
        LEAST(
            input_tokens, cache_creation_input_tokens,
            cache_read_input_tokens, output_tokens
        ) >= 0
    ),
    ADD CONSTRAINT messages_latency_not_negative_check CHECK (latency_ms >= 0),
    ADD CONSTRAINT messages_model_not_empty_check CHECK (model <> ''),
    ADD CONSTRAINT messages_client_ids_length_check
        CHECK (length(client_id) <= 255 AND length(client_request_id) <= 255),
    ADD CONSTRAINT messages_cost_is_amount_check
        CHECK (cost >= 0 AND cost < 'Infinity'),
    ADD CONSTRAINT messages_credits_is_amount_check
        CHECK (credits >= 0 AND credits < 'Infinity');

-- For get_user_quota and list_messages. INCLUDE (credits) allows index-only scans of
-- the partial days at a period's boundaries.
CREATE INDEX messages_subject_id_finished_at_idx
ON app.messages (subject_id, finished_at) INCLUDE (credits);

-- For messages_user_id_fkey.
CREATE INDEX messages_user_id_idx ON app.messages (user_id);

-- For messages_fingerprint_id_fkey. Unique, because a call that is recorded again after
-- a sign-in has the same fingerprint and id, and another payer. Partial, because most
-- messages of users have no fingerprint.
CREATE UNIQUE INDEX messages_fingerprint_id_id_idx
ON app.messages (fingerprint_id, id)
WHERE fingerprint_id IS NOT NULL;

-- For get_client_usage. Partial, because imported and anonymous calls often have none.
CREATE INDEX messages_client_id_idx ON app.messages (client_id)
WHERE client_id IS NOT NULL;

-- For get_request_usage. Partial for the same reason.
CREATE INDEX messages_client_request_id_idx ON app.messages (client_request_id)
WHERE client_request_id IS NOT NULL;

-- For get_message_rates. Rows are inserted in the order of recorded_at, so that BRIN
-- finds the pages of the last hour, and costs writers next to nothing.
CREATE INDEX messages_recorded_at_idx ON app.messages
USING brin (recorded_at) WITH (autosummarize = on);

CREATE TRIGGER messages_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON app.messages
FOR EACH STATEMENT EXECUTE FUNCTION app.refuse_change('messages are append-only');

CREATE TABLE app.message_payloads (
    subject_id   uuid NOT NULL,
    message_id   uuid NOT NULL,
    finished_at  timestamptz NOT NULL,
    request      jsonb,
    response     jsonb,
    last_message jsonb GENERATED ALWAYS AS (request -> -1) STORED,

    CONSTRAINT message_payloads_pkey
        PRIMARY KEY (subject_id, message_id, finished_at),
    CONSTRAINT message_payloads_message_id_fkey FOREIGN KEY (subject_id, message_id)
        REFERENCES app.messages (subject_id, id) ON DELETE RESTRICT,
    CONSTRAINT message_payloads_not_empty_check
        CHECK (num_nonnulls(request, response) > 0)
) PARTITION BY RANGE (finished_at);

COMMENT ON TABLE app.message_payloads IS
    'Request and response bodies, partitioned by month; dropped without the messages.';
COMMENT ON COLUMN app.message_payloads.subject_id IS
    'Payer of the message.';
COMMENT ON COLUMN app.message_payloads.message_id IS
    'The message, unique per payer.';
COMMENT ON COLUMN app.message_payloads.finished_at IS
    'finished_at of the message; decides the partition.';
COMMENT ON COLUMN app.message_payloads.request IS
    'Request body, usually an array of messages; NULL if not kept.';
COMMENT ON COLUMN app.message_payloads.response IS
    'Response body; NULL if not kept.';
COMMENT ON COLUMN app.message_payloads.last_message IS
    'Last element of request, or the value if scalar; NULL if empty or an object.';

-- Takes months without a partition, so that inserts never fail.
CREATE TABLE app.message_payloads_default
PARTITION OF app.message_payloads DEFAULT;

COMMENT ON TABLE app.message_payloads_default IS
    'Payloads of months without a partition.';

CREATE TABLE app.usage_daily (
    subject_id                  uuid NOT NULL,
    day                         date NOT NULL,
    messages                    bigint NOT NULL,
    input_tokens                bigint NOT NULL,
    cache_creation_input_tokens bigint NOT NULL,
    cache_read_input_tokens     bigint NOT NULL,
    output_tokens               bigint NOT NULL,
    total_tokens                bigint NOT NULL
    GENERATED ALWAYS AS (
        input_tokens + cache_creation_input_tokens
        + cache_read_input_tokens + output_tokens
    ) STORED,
    cost                        numeric NOT NULL,
    credits                     numeric NOT NULL,

    -- INCLUDE (credits) allows index-only scans by the quota check.
    CONSTRAINT usage_daily_pkey PRIMARY KEY (subject_id, day) INCLUDE (credits),
    CONSTRAINT usage_daily_messages_positive_check CHECK (messages > 0),
    CONSTRAINT usage_daily_cost_is_amount_check
        CHECK (cost >= 0 AND cost < 'Infinity'),
    CONSTRAINT usage_daily_credits_is_amount_check
        CHECK (credits >= 0 AND credits < 'Infinity')
) WITH (
    -- Rows of the current day are updated by every message: leave room for new
    -- versions on the same page, and vacuum early.
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02
);

COMMENT ON TABLE app.usage_daily IS
    'Sums of messages by payer and UTC day; written by the trigger of messages.';
COMMENT ON COLUMN app.usage_daily.subject_id IS
    'Payer: the user, else the fingerprint.';
COMMENT ON COLUMN app.usage_daily.day IS
    'UTC day of the messages'' finished_at.';
COMMENT ON COLUMN app.usage_daily.messages IS
    'Number of messages.';
COMMENT ON COLUMN app.usage_daily.input_tokens IS
    'Sum of messages.input_tokens.';
COMMENT ON COLUMN app.usage_daily.cache_creation_input_tokens IS
    'Sum of messages.cache_creation_input_tokens.';
COMMENT ON COLUMN app.usage_daily.cache_read_input_tokens IS
    'Sum of messages.cache_read_input_tokens.';
COMMENT ON COLUMN app.usage_daily.output_tokens IS
    'Sum of messages.output_tokens.';
COMMENT ON COLUMN app.usage_daily.total_tokens IS
    'Sum of the four token counts.';
COMMENT ON COLUMN app.usage_daily.cost IS
    'Sum of messages.cost, in US dollars.';
COMMENT ON COLUMN app.usage_daily.credits IS
    'Sum of messages.credits.';

CREATE FUNCTION app.add_usage()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- In key order, so that concurrent writers of several rows do not deadlock.
    INSERT INTO app.usage_daily AS d (
        subject_id, day, messages, input_tokens, cache_creation_input_tokens,
        cache_read_input_tokens, output_tokens, cost, credits
    )
    SELECT
        i.subject_id,
        (i.finished_at AT TIME ZONE interval '0')::date,
        count(*),
        sum(i.input_tokens),
        sum(i.cache_creation_input_tokens),
        sum(i.cache_read_input_tokens),
        sum(i.output_tokens),
        sum(i.cost),
        sum(i.credits)
    FROM inserted AS i
    GROUP BY 1, 2
    ORDER BY 1, 2
    ON CONFLICT ON CONSTRAINT usage_daily_pkey DO UPDATE SET
        messages = d.messages + excluded.messages,
        input_tokens = d.input_tokens + excluded.input_tokens,
        cache_creation_input_tokens
            = d.cache_creation_input_tokens + excluded.cache_creation_input_tokens,
        cache_read_input_tokens
            = d.cache_read_input_tokens + excluded.cache_read_input_tokens,
        output_tokens = d.output_tokens + excluded.output_tokens,
        cost = d.cost + excluded.cost,
        credits = d.credits + excluded.credits;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.add_usage() IS
    'Trigger: adds the messages that a statement inserts to usage_daily.';

REVOKE EXECUTE ON FUNCTION app.add_usage() FROM public;

CREATE TRIGGER messages_add_usage AFTER INSERT ON app.messages
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION app.add_usage();

-- repair_usage_day sets app.is_repairing. Any session can set it: this trigger prevents
-- mistakes, and privileges protect the table.
CREATE TRIGGER usage_daily_kept_by_trigger
BEFORE INSERT OR UPDATE OR DELETE ON app.usage_daily
FOR EACH STATEMENT WHEN (
    pg_trigger_depth() = 0
    AND current_setting('app.is_repairing', TRUE) IS DISTINCT FROM 'on'
)
EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes usage_daily');

CREATE TRIGGER usage_daily_no_truncate BEFORE TRUNCATE ON app.usage_daily
FOR EACH STATEMENT
EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes usage_daily');
