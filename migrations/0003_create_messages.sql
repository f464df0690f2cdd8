-- What each call cost, what was said in it, and the daily sums that quota reads.

SET LOCAL lock_timeout = '5s';

-- Columns go by size, widest alignment first, because nothing here is as long as this.
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
);

COMMENT ON TABLE app.messages IS
    'One row for each call to a model, append-only; the bill is their sum.';
COMMENT ON COLUMN app.messages.subject_id IS
    'Who pays: the user, else the fingerprint. A plain column, the key to shard by.';
COMMENT ON COLUMN app.messages.id IS
    'The caller''s idempotency key, unique for its payer.';
COMMENT ON COLUMN app.messages.user_id IS
    'The user; NULL when anonymous.';
COMMENT ON COLUMN app.messages.fingerprint_id IS
    'The device; NULL if it is not known.';
COMMENT ON COLUMN app.messages.finished_at IS
    'When the model had answered; the period and the prices go by this time.';
COMMENT ON COLUMN app.messages.recorded_at IS
    'When the row was written.';
COMMENT ON COLUMN app.messages.total_tokens IS
    'Sum of the four disjoint token counts.';
COMMENT ON COLUMN app.messages.input_tokens IS
    'Tokens read at the full price: neither written to nor read from the cache.';
COMMENT ON COLUMN app.messages.cache_creation_input_tokens IS
    'Input tokens written to the cache.';
COMMENT ON COLUMN app.messages.cache_read_input_tokens IS
    'Input tokens read from the cache.';
COMMENT ON COLUMN app.messages.output_tokens IS
    'Tokens the model wrote, reasoning included.';
COMMENT ON COLUMN app.messages.latency_ms IS
    'Milliseconds from request to the last byte; NULL if it was not measured.';
COMMENT ON COLUMN app.messages.model IS
    'The model as its provider names it.';
COMMENT ON COLUMN app.messages.client_id IS
    'The client run that asked, such as one session of a tool; NULL if not given.';
COMMENT ON COLUMN app.messages.client_request_id IS
    'The client''s own request, which may take several calls; NULL if not given.';
COMMENT ON COLUMN app.messages.cost IS
    'What the call cost, in US dollars.';
COMMENT ON COLUMN app.messages.credits IS
    'What the call is billed, in credits.';

-- Its checks stand apart, so that the columns fit on one screen.
ALTER TABLE app.messages
    ADD CONSTRAINT messages_subject_is_payer_check
        CHECK (subject_id IS NOT DISTINCT FROM COALESCE(user_id, fingerprint_id)),
    ADD CONSTRAINT messages_finished_at_is_finite_check CHECK (isfinite(finished_at)),
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

-- For get_user_quota and list_messages; the credits ride along, so that the part-days
-- at a period's edges are summed without touching the table.
CREATE INDEX messages_subject_id_finished_at_idx
ON app.messages (subject_id, finished_at) INCLUDE (credits);

-- For messages_user_id_fkey.
CREATE INDEX messages_user_id_idx ON app.messages (user_id);

-- For messages_fingerprint_id_fkey.
CREATE INDEX messages_fingerprint_id_idx ON app.messages (fingerprint_id);

-- For get_client_usage; partial, because imported and anonymous calls often have none.
CREATE INDEX messages_client_id_idx ON app.messages (client_id)
WHERE client_id IS NOT NULL;

-- For get_request_usage; partial for the same reason.
CREATE INDEX messages_client_request_id_idx ON app.messages (client_request_id)
WHERE client_request_id IS NOT NULL;

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
    'What was said: bulky, private, dropped by the month while the bill remains.';
COMMENT ON COLUMN app.message_payloads.subject_id IS
    'Who paid for the message.';
COMMENT ON COLUMN app.message_payloads.message_id IS
    'The message, within its payer.';
COMMENT ON COLUMN app.message_payloads.finished_at IS
    'The message''s own time, which decides the month.';
COMMENT ON COLUMN app.message_payloads.request IS
    'The conversation sent, an array of messages; NULL if it was not kept.';
COMMENT ON COLUMN app.message_payloads.response IS
    'The model''s answer; NULL if it was not kept.';
COMMENT ON COLUMN app.message_payloads.last_message IS
    'Last element of the request, or a bare value itself; NULL if empty or an object.';

-- A month without a partition of its own lands here, so that nothing is ever refused.
CREATE TABLE app.message_payloads_default
PARTITION OF app.message_payloads DEFAULT;

COMMENT ON TABLE app.message_payloads_default IS
    'Payloads of months that have no partition yet.';

CREATE FUNCTION app.create_payload_partitions(first_month date, months integer)
RETURNS integer LANGUAGE plpgsql SET search_path = ''
AS $$
DECLARE
    month date;
    lower_bound text;
    upper_bound text;
    partition text;
    created integer := 0;
BEGIN
    FOR month IN
        SELECT (date_trunc('month', first_month::timestamp)
            + make_interval(months => n))::date
        FROM generate_series(0, months - 1) AS n
    LOOP
        partition := 'message_payloads_' || to_char(month, 'YYYYMM');
        CONTINUE WHEN to_regclass('app.' || partition) IS NOT NULL;

        lower_bound := month::text || ' 00:00:00+00';
        upper_bound := (month + interval '1 month')::date::text || ' 00:00:00+00';
        -- A writer who has chosen the default partition before the attachment and
        -- reaches it after would be refused: so nobody may be between the two. The
        -- order is that of the writers, who would deadlock with another.
        LOCK TABLE app.messages IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE ONLY app.message_payloads IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE app.message_payloads_default IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'CREATE TABLE app.%I (LIKE app.message_payloads INCLUDING ALL)', partition
        );
        -- What waits for its month in the default partition moves there.
        EXECUTE format(
            'WITH moved AS (
                DELETE FROM app.message_payloads_default AS d
                WHERE d.finished_at >= %L AND d.finished_at < %L
                RETURNING d.subject_id, d.message_id, d.finished_at,
                    d.request, d.response
            )
            INSERT INTO app.%I (
                subject_id, message_id, finished_at, request, response
            )
            SELECT m.subject_id, m.message_id, m.finished_at, m.request, m.response
            FROM moved AS m',
            lower_bound, upper_bound, partition
        );
        EXECUTE format(
            'ALTER TABLE app.message_payloads ATTACH PARTITION app.%I
            FOR VALUES FROM (%L) TO (%L)',
            partition, lower_bound, upper_bound
        );
        created := created + 1;
    END LOOP;
    RETURN created;
END;
$$;

COMMENT ON FUNCTION app.create_payload_partitions(date, integer) IS
    'Makes the partitions of so many months from the first; returns how many were new.';

CREATE FUNCTION app.retire_payload_partition(keep_from date)
RETURNS text LANGUAGE plpgsql SET search_path = ''
AS $$
DECLARE
    partition text := (
        SELECT min(c.relname)
        FROM pg_catalog.pg_inherits AS i
        INNER JOIN pg_catalog.pg_class AS c ON i.inhrelid = c.oid
        WHERE i.inhparent = 'app.message_payloads'::regclass
            AND c.relname ~ '^message_payloads_[0-9]{6}$'
            AND to_date(right(c.relname, 6), 'YYYYMM') + interval '1 month' <= keep_from
    );
BEGIN
    IF partition IS NOT NULL THEN
        -- In the order of the writers, who would deadlock with another.
        LOCK TABLE app.messages IN SHARE ROW EXCLUSIVE MODE;
        EXECUTE format(
            'ALTER TABLE app.message_payloads DETACH PARTITION app.%I', partition
        );
        EXECUTE format('ALTER TABLE app.%I RENAME TO retired_payloads', partition);
    END IF;
    RETURN partition;
END;
$$;

COMMENT ON FUNCTION app.retire_payload_partition(date) IS
    'Detaches the oldest month over by the date as retired_payloads; returns its name.';

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

    -- The credits ride along, so that the quota check reads whole days off the index.
    CONSTRAINT usage_daily_pkey PRIMARY KEY (subject_id, day) INCLUDE (credits),
    CONSTRAINT usage_daily_messages_positive_check CHECK (messages > 0),
    CONSTRAINT usage_daily_cost_is_amount_check
        CHECK (cost >= 0 AND cost < 'Infinity'),
    CONSTRAINT usage_daily_credits_is_amount_check
        CHECK (credits >= 0 AND credits < 'Infinity')
) WITH (
    -- Today's rows change all day: room for that beside them, and vacuum soon after.
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02
);

COMMENT ON TABLE app.usage_daily IS
    'Sums of messages by payer and UTC day, kept by their trigger in the same commit.';
COMMENT ON COLUMN app.usage_daily.subject_id IS
    'Who pays: a user or a fingerprint.';
COMMENT ON COLUMN app.usage_daily.day IS
    'UTC day of the messages'' finished_at.';
COMMENT ON COLUMN app.usage_daily.messages IS
    'How many messages.';
COMMENT ON COLUMN app.usage_daily.input_tokens IS
    'Their tokens read at the full price.';
COMMENT ON COLUMN app.usage_daily.cache_creation_input_tokens IS
    'Their input tokens written to the cache.';
COMMENT ON COLUMN app.usage_daily.cache_read_input_tokens IS
    'Their input tokens read from the cache.';
COMMENT ON COLUMN app.usage_daily.output_tokens IS
    'Their tokens written by the model.';
COMMENT ON COLUMN app.usage_daily.total_tokens IS
    'Sum of the four token counts.';
COMMENT ON COLUMN app.usage_daily.cost IS
    'Their cost, in US dollars.';
COMMENT ON COLUMN app.usage_daily.credits IS
    'Their bill, in credits.';

CREATE FUNCTION app.add_usage()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
BEGIN
    -- In key order, so that two writers of several rows never wait for each other.
    INSERT INTO app.usage_daily AS d (
        subject_id, day, messages, input_tokens, cache_creation_input_tokens,
        cache_read_input_tokens, output_tokens, cost, credits
    )
    SELECT
        i.subject_id,
        (i.finished_at AT TIME ZONE 'UTC')::date,
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
    'Trigger: adds a statement''s new messages to usage_daily.';

CREATE TRIGGER messages_add_usage AFTER INSERT ON app.messages
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION app.add_usage();

CREATE TRIGGER usage_daily_kept_by_trigger
BEFORE INSERT OR UPDATE OR DELETE ON app.usage_daily
FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0)
EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes it');

CREATE TRIGGER usage_daily_no_truncate BEFORE TRUNCATE ON app.usage_daily
FOR EACH STATEMENT
EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes it');

-- The two below return a row each, for only such a function is inlined with its
-- subqueries. LIMIT ALL keeps a subquery whole, so that it is computed once.
CREATE FUNCTION app.sum_credits(
    subject uuid, period_start timestamptz, period_end timestamptz
)
RETURNS TABLE (credits_used numeric) LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT COALESCE(sum(
        CASE
            WHEN d.day >= utc.period_start AND d.day + 1 <= utc.period_end
                THEN d.credits
            ELSE (
                SELECT sum(m.credits)
                FROM app.messages AS m
                WHERE m.subject_id = d.subject_id
                    AND m.finished_at >= d.day::timestamp AT TIME ZONE 'UTC'
                    AND m.finished_at < (d.day + 1)::timestamp AT TIME ZONE 'UTC'
                    AND m.finished_at >= sum_credits.period_start
                    AND m.finished_at < sum_credits.period_end
            )
        END
    ), 0)
    FROM (
        SELECT
            sum_credits.period_start AT TIME ZONE 'UTC' AS period_start,
            sum_credits.period_end AT TIME ZONE 'UTC' AS period_end
        LIMIT ALL -- noqa: AM09
    ) AS utc
    INNER JOIN app.usage_daily AS d
        ON utc.period_start - interval '1 day' < d.day
        AND utc.period_end > d.day
    WHERE d.subject_id = sum_credits.subject;
END;

COMMENT ON FUNCTION app.sum_credits(uuid, timestamptz, timestamptz) IS
    'Exact credits of a payer in [start, end): whole days, and messages of cut days.';

CREATE FUNCTION app.get_period_usage(
    subject uuid,
    anchor timestamptz,
    reset timestamptz,
    moment timestamptz,
    known_start timestamptz DEFAULT NULL
)
RETURNS TABLE (
    period_start timestamptz,
    end_date timestamptz,
    credits_used numeric
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        p.period_start,
        p.end_date,
        s.credits_used
    FROM (
        SELECT
            CASE
                WHEN reset IS NULL THEN anchor
                -- A reset moved off the boundaries must not begin a period too late.
                WHEN reset > moment AND known_start <= moment THEN known_start
                ELSE app.get_period_start(anchor, moment)
            END AS period_start,
            COALESCE(app.get_next_reset(anchor, reset, moment), moment) AS end_date
        LIMIT ALL -- noqa: AM09
    ) AS p
    CROSS JOIN LATERAL app.sum_credits(
        get_period_usage.subject, p.period_start, p.end_date
    ) AS s;
END;

COMMENT ON FUNCTION app.get_period_usage(
    uuid, timestamptz, timestamptz, timestamptz, timestamptz
) IS
    'The period of a payer that holds the moment, half-open, and its exact credits.';
