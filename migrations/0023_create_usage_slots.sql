-- The sums of messages by spans, which 0026 puts in the place of usage_daily. Until
-- then, a trigger of usage_daily keeps both equal.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05,LT01
-- squawk-ignore-file prefer-bigint-over-smallint

-- The first and the last year have no boundary, because it could be out of range.
-- LIMIT ALL is an optimization fence: the boundary is computed once.
CREATE FUNCTION app.get_usage_span(anchor timestamptz, moment timestamptz)
RETURNS TABLE (starts_at timestamptz, ends_at timestamptz)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        CASE
            WHEN b.boundary <= b.moment THEN GREATEST(b.midnight, b.boundary)
            ELSE b.midnight
        END AT TIME ZONE interval '0' AS starts_at,
        CASE
            WHEN b.boundary > b.moment THEN LEAST(b.next_midnight, b.boundary)
            ELSE b.next_midnight
        END AT TIME ZONE interval '0' AS ends_at
    FROM (
        SELECT
            u.moment,
            date_trunc('day', u.moment) AS midnight,
            CASE
                WHEN u.moment < '294276-12-31'
                    THEN date_trunc('day', u.moment) + interval '24 hours'
                ELSE '294276-12-31 23:59:59.999999'
            END AS next_midnight,
            CASE
                WHEN u.moment > '4712-01-01 BC' AND u.moment < '294276-01-01'
                    THEN u.anchor + make_interval(
                        months => (
                            date_part('year', u.moment) * 12
                            + date_part('month', u.moment)
                            - date_part('year', u.anchor) * 12
                            - date_part('month', u.anchor)
                        )::integer
                    )
            END AS boundary
        FROM (
            SELECT
                get_usage_span.anchor AT TIME ZONE interval '0' AS anchor,
                get_usage_span.moment AT TIME ZONE interval '0' AS moment
        ) AS u
        LIMIT ALL -- noqa: AM09
    ) AS b;
END;

COMMENT ON FUNCTION app.get_usage_span(timestamptz, timestamptz) IS
    'The UTC day of the moment, or its part before or after the day''s boundary.';

CREATE TABLE app.usage_slots (
    subject_id                  uuid NOT NULL,
    starts_at                   timestamptz NOT NULL,
    ends_at                     timestamptz NOT NULL,
    messages                    bigint NOT NULL,
    input_tokens                bigint NOT NULL,
    cache_creation_input_tokens bigint NOT NULL,
    cache_read_input_tokens     bigint NOT NULL,
    output_tokens               bigint NOT NULL,
    slot                        smallint NOT NULL,
    cost                        numeric NOT NULL,
    credits                     numeric NOT NULL,

    -- Without INCLUDE (credits): updates then change no indexed column (HOT). With it,
    -- a message writes 17 % more WAL, and the index grows to twice its size.
    CONSTRAINT usage_slots_pkey PRIMARY KEY (subject_id, starts_at, ends_at, slot),
    -- In one UTC day.
    CONSTRAINT usage_slots_span_in_day_check CHECK (
        starts_at < ends_at
        AND ends_at - interval '24 hours' <= date_trunc('day', starts_at, '+00')
    ),
    -- No more checks: every statement parses the checks of its table again, and each
    -- costs a writer 2 to 4 %. usage_drift compares all sums with messages.
    CONSTRAINT usage_slots_messages_positive_check CHECK (messages > 0)
) WITH (
    -- Rows of the current day are updated by every message. Room for new versions on
    -- the same page keeps 99.7 % of the updates HOT (96 to 99 % without), and vacuum
    -- starts early.
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.02
);

COMMENT ON TABLE app.usage_slots IS
    'Sums of a payer''s messages in a span; written by the trigger of messages.';
COMMENT ON COLUMN app.usage_slots.subject_id IS
    'Payer: the user, else the fingerprint.';
COMMENT ON COLUMN app.usage_slots.starts_at IS
    'Start of the span, inclusive: midnight UTC, or a boundary of the payer.';
COMMENT ON COLUMN app.usage_slots.ends_at IS
    'End of the span, exclusive: midnight UTC, or a boundary of the payer.';
COMMENT ON COLUMN app.usage_slots.slot IS
    '0; 1 to 31 for writers that found the other rows locked; 32 from a cut or repair.';
COMMENT ON COLUMN app.usage_slots.messages IS
    'Number of messages; each message is counted in one row.';
COMMENT ON COLUMN app.usage_slots.input_tokens IS
    'Sum of messages.input_tokens.';
COMMENT ON COLUMN app.usage_slots.cache_creation_input_tokens IS
    'Sum of messages.cache_creation_input_tokens.';
COMMENT ON COLUMN app.usage_slots.cache_read_input_tokens IS
    'Sum of messages.cache_read_input_tokens.';
COMMENT ON COLUMN app.usage_slots.output_tokens IS
    'Sum of messages.output_tokens.';
COMMENT ON COLUMN app.usage_slots.cost IS
    'Sum of messages.cost, in US dollars.';
COMMENT ON COLUMN app.usage_slots.credits IS
    'Sum of messages.credits.';

-- For list_unfolded_usage. Partial: folded days and quiet payers have only slot 0.
CREATE INDEX usage_slots_starts_at_idx ON app.usage_slots (starts_at)
WHERE slot > 0;

-- The functions that fold, cut and repair set app.is_repairing. Any session can set it:
-- this trigger prevents mistakes, and privileges protect the table.
CREATE FUNCTION app.refuse_usage_change()
RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('app.is_repairing', TRUE) IS DISTINCT FROM 'on' THEN
        RAISE EXCEPTION '% on %.% is refused: only the trigger of messages writes it',
            TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation',
                SCHEMA = TG_TABLE_SCHEMA,
                TABLE = TG_TABLE_NAME,
                CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.refuse_usage_change() IS
    'Trigger: refuses changes of usage_slots that no function of its upkeep makes.';

-- The condition is short because every statement parses it again.
CREATE TRIGGER usage_slots_kept_by_trigger
BEFORE INSERT OR UPDATE OR DELETE ON app.usage_slots
FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0)
EXECUTE FUNCTION app.refuse_usage_change();

CREATE TRIGGER usage_slots_no_truncate BEFORE TRUNCATE ON app.usage_slots
FOR EACH STATEMENT
EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes it');

DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT
            format(
                'GRANT SELECT ON app.usage_slots TO %s%s',
                CASE
                    WHEN a.grantee = 0 THEN 'public'
                    ELSE quote_ident(pg_get_userbyid(a.grantee))
                END,
                CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END
            ) AS text
        FROM pg_catalog.pg_class AS c
        CROSS JOIN aclexplode(c.relacl) AS a
        WHERE c.oid = 'app.usage_daily'::regclass
            AND a.privilege_type = 'SELECT'
            AND a.grantee <> c.relowner
    LOOP
        EXECUTE statement;
    END LOOP;
END;
$$;

-- A statement that waits here while 0026 replaces the table adds to usage_slots: in
-- usage_daily, which is a view then, the INSERT would fail.
CREATE OR REPLACE FUNCTION app.add_usage()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    LOCK TABLE app.usage_daily IN ROW EXCLUSIVE MODE;
    -- NULL for a view. pg_class could show the state before the wait.
    IF pg_relation_filenode(to_regclass('app.usage_daily')) IS NOT NULL THEN
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
    ELSE
        INSERT INTO app.usage_slots AS s (
            subject_id, starts_at, ends_at, slot, messages, input_tokens,
            cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost,
            credits
        )
        SELECT
            i.subject_id,
            p.starts_at,
            p.ends_at,
            0,
            count(*),
            sum(i.input_tokens),
            sum(i.cache_creation_input_tokens),
            sum(i.cache_read_input_tokens),
            sum(i.output_tokens),
            sum(i.cost),
            sum(i.credits)
        FROM inserted AS i
        CROSS JOIN LATERAL app.get_usage_span(NULL, i.finished_at) AS p
        GROUP BY 1, 2, 3
        ORDER BY 1, 2, 3
        ON CONFLICT ON CONSTRAINT usage_slots_pkey DO UPDATE SET
            messages = s.messages + excluded.messages,
            input_tokens = s.input_tokens + excluded.input_tokens,
            cache_creation_input_tokens
                = s.cache_creation_input_tokens + excluded.cache_creation_input_tokens,
            cache_read_input_tokens
                = s.cache_read_input_tokens + excluded.cache_read_input_tokens,
            output_tokens = s.output_tokens + excluded.output_tokens,
            cost = s.cost + excluded.cost,
            credits = s.credits + excluded.credits;
    END IF;
    RETURN NULL;
END;
$$;

-- Keeps usage_slots equal to usage_daily until 0026 replaces the table by a view.
CREATE FUNCTION app.copy_usage_day()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM app.usage_slots AS s
        WHERE s.subject_id = OLD.subject_id
            AND s.starts_at = OLD.day::timestamp AT TIME ZONE interval '0';
        RETURN NULL;
    END IF;
    INSERT INTO app.usage_slots (
        subject_id, starts_at, ends_at, slot, messages, input_tokens,
        cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost,
        credits
    )
    SELECT
        NEW.subject_id, p.starts_at, p.ends_at, 0, NEW.messages, NEW.input_tokens,
        NEW.cache_creation_input_tokens, NEW.cache_read_input_tokens,
        NEW.output_tokens, NEW.cost, NEW.credits
    FROM app.get_usage_span(NULL, NEW.day::timestamp AT TIME ZONE interval '0') AS p
    ON CONFLICT ON CONSTRAINT usage_slots_pkey DO UPDATE SET
        messages = excluded.messages,
        input_tokens = excluded.input_tokens,
        cache_creation_input_tokens = excluded.cache_creation_input_tokens,
        cache_read_input_tokens = excluded.cache_read_input_tokens,
        output_tokens = excluded.output_tokens,
        cost = excluded.cost,
        credits = excluded.credits;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.copy_usage_day() IS
    'Trigger: copies a row of usage_daily to usage_slots.';

REVOKE EXECUTE ON FUNCTION app.copy_usage_day() FROM public;

CREATE TRIGGER usage_daily_copy_day
AFTER INSERT OR UPDATE OR DELETE ON app.usage_daily
FOR EACH ROW EXECUTE FUNCTION app.copy_usage_day();
