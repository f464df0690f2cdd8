-- name: create_former_table :rowcount
-- The former rollup, a contestant: one row for each payer and day, which each message
-- updates until its commit is on disk.
CREATE TABLE bench.usage_daily (
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

    CONSTRAINT usage_daily_pkey PRIMARY KEY (subject_id, day) INCLUDE (credits),
    CONSTRAINT usage_daily_messages_positive_check CHECK (messages > 0),
    CONSTRAINT usage_daily_cost_is_amount_check
        CHECK (cost >= 0 AND cost < 'Infinity'),
    CONSTRAINT usage_daily_credits_is_amount_check
        CHECK (credits >= 0 AND credits < 'Infinity')
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

-- name: fill_former_table :rowcount
-- As many rows as the rollup has days, in the same order.
INSERT INTO bench.usage_daily (
    subject_id, day, messages, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, cost, credits
)
SELECT
    d.subject_id,
    d.day,
    d.messages,
    d.input_tokens,
    d.cache_creation_input_tokens,
    d.cache_read_input_tokens,
    d.output_tokens,
    d.cost,
    d.credits
FROM app.usage_daily AS d
ORDER BY d.day, d.subject_id;

-- name: create_former_function :rowcount
-- Its trigger function.
CREATE FUNCTION bench.add_usage()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO bench.usage_daily AS d (
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

-- name: guard_former_table :rowcount
-- The trigger that refuses other writers, whose condition each message evaluates.
CREATE TRIGGER usage_daily_kept_by_trigger
BEFORE INSERT OR UPDATE OR DELETE ON bench.usage_daily
FOR EACH STATEMENT WHEN (
    pg_trigger_depth() = 0
    AND current_setting('app.is_repairing', TRUE) IS DISTINCT FROM 'on'
)
EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes usage_daily');

-- name: create_former_trigger :rowcount
-- On the measured table; it is enabled in turn with the present one.
CREATE TRIGGER messages_add_former_usage AFTER INSERT ON app.messages
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION bench.add_usage();

-- name: vacuum_former_table :rowcount
-- As autovacuum would do in time.
VACUUM (ANALYZE) bench.usage_daily;

-- name: enable_former :rowcount
-- The former rollup alone.
ALTER TABLE app.messages
DISABLE TRIGGER messages_add_usage,
ENABLE TRIGGER messages_add_former_usage;

-- name: disable_both :rowcount
-- Neither rollup.
ALTER TABLE app.messages
DISABLE TRIGGER messages_add_usage,
DISABLE TRIGGER messages_add_former_usage;

-- name: enable_present :rowcount
-- The present rollup alone.
ALTER TABLE app.messages
ENABLE TRIGGER messages_add_usage,
DISABLE TRIGGER messages_add_former_usage;

-- name: drop_former_trigger :rowcount
-- The measured table as it was.
DROP TRIGGER messages_add_former_usage ON app.messages;

-- name: drop_former_function :rowcount
-- After its trigger.
DROP FUNCTION bench.add_usage();

-- name: drop_former_table :rowcount
-- After its function.
DROP TABLE bench.usage_daily;
