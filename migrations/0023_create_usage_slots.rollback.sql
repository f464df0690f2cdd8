-- Loses nothing: usage_daily has the same sums.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05,LT01

DROP TRIGGER usage_daily_copy_day ON app.usage_daily;

DROP FUNCTION app.copy_usage_day();

CREATE OR REPLACE FUNCTION app.add_usage()
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

DROP TABLE app.usage_slots;
DROP FUNCTION app.get_usage_span(timestamptz, timestamptz);
DROP FUNCTION app.refuse_usage_change();
