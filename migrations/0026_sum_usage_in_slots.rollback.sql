-- Loses nothing: usage_daily gets the sums of each day's rows.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05,LT01

-- In this order: a transaction that has read the view may insert messages next. After
-- the locks there is no writer of messages, and no cut or repair. The quota check goes
-- on.
ALTER VIEW app.usage_daily RENAME TO usage_daily_summed;
LOCK TABLE app.messages IN SHARE ROW EXCLUSIVE MODE;
LOCK TABLE app.usage_slots IN EXCLUSIVE MODE;

SET LOCAL work_mem = '256MB';

-- Read by usage_slots_kept_by_trigger.
SELECT set_config('app.is_repairing', 'on', TRUE) AS setting;

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

INSERT INTO app.usage_daily (
    subject_id, day, messages, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, cost, credits
)
SELECT
    s.subject_id,
    s.day,
    s.messages,
    s.input_tokens,
    s.cache_creation_input_tokens,
    s.cache_read_input_tokens,
    s.output_tokens,
    s.cost,
    s.credits
FROM app.usage_daily_summed AS s
ORDER BY s.subject_id, s.day;

ALTER TABLE app.usage_daily
    ADD CONSTRAINT usage_daily_pkey PRIMARY KEY (subject_id, day) INCLUDE (credits);

-- One row a day again, for the trigger below.
WITH parts AS (
    DELETE FROM app.usage_slots AS s
    WHERE s.slot <> 0 OR s.ends_at - s.starts_at < interval '24 hours'
    RETURNING
        s.subject_id,
        (s.starts_at AT TIME ZONE interval '0')::date AS day
)

INSERT INTO app.usage_slots (
    subject_id, starts_at, ends_at, slot, messages, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost, credits
)
SELECT
    d.subject_id,
    p.starts_at,
    p.ends_at,
    0 AS slot,
    d.messages,
    d.input_tokens,
    d.cache_creation_input_tokens,
    d.cache_read_input_tokens,
    d.output_tokens,
    d.cost,
    d.credits
FROM app.usage_daily AS d
CROSS JOIN LATERAL app.get_usage_span(
    NULL, d.day::timestamp AT TIME ZONE interval '0'
) AS p
WHERE EXISTS (
    SELECT FROM parts AS o
    WHERE o.subject_id = d.subject_id AND o.day = d.day
)
ON CONFLICT ON CONSTRAINT usage_slots_pkey DO UPDATE SET
    messages = excluded.messages,
    input_tokens = excluded.input_tokens,
    cache_creation_input_tokens = excluded.cache_creation_input_tokens,
    cache_read_input_tokens = excluded.cache_read_input_tokens,
    output_tokens = excluded.output_tokens,
    cost = excluded.cost,
    credits = excluded.credits;

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

DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT
            format(
                'GRANT SELECT ON app.usage_daily TO %s%s',
                CASE
                    WHEN a.grantee = 0 THEN 'public'
                    ELSE quote_ident(pg_get_userbyid(a.grantee))
                END,
                CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END
            ) AS text
        FROM pg_catalog.pg_class AS c
        CROSS JOIN aclexplode(c.relacl) AS a
        WHERE c.oid = 'app.usage_daily_summed'::regclass
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

COMMENT ON FUNCTION app.add_usage() IS
    'Trigger: adds the messages that a statement inserts to usage_daily.';

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

CREATE FUNCTION app.sum_usage_day(subject uuid, usage_day date)
RETURNS TABLE (
    messages bigint,
    input_tokens bigint,
    cache_creation_input_tokens bigint,
    cache_read_input_tokens bigint,
    output_tokens bigint,
    cost numeric,
    credits numeric
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        count(*) AS messages,
        sum(m.input_tokens) AS input_tokens,
        sum(m.cache_creation_input_tokens) AS cache_creation_input_tokens,
        sum(m.cache_read_input_tokens) AS cache_read_input_tokens,
        sum(m.output_tokens) AS output_tokens,
        sum(m.cost) AS cost,
        sum(m.credits) AS credits
    FROM app.messages AS m
    WHERE m.subject_id = sum_usage_day.subject
        AND m.finished_at
        >= sum_usage_day.usage_day::timestamp AT TIME ZONE interval '0'
        AND m.finished_at
        < (sum_usage_day.usage_day + 1)::timestamp AT TIME ZONE interval '0'
    HAVING count(*) > 0;
END;

COMMENT ON FUNCTION app.sum_usage_day(uuid, date) IS
    'Sums of the messages of a payer on a UTC day; no row if there are none.';

-- One statement and one snapshot: a message and its sum commit together, so that
-- concurrent writers never appear as differences.
CREATE OR REPLACE VIEW app.usage_drift WITH (security_invoker = TRUE) AS
WITH recorded AS (
    SELECT
        m.subject_id,
        (m.finished_at AT TIME ZONE interval '0')::date AS day,
        count(*) AS messages,
        sum(m.input_tokens) AS input_tokens,
        sum(m.cache_creation_input_tokens) AS cache_creation_input_tokens,
        sum(m.cache_read_input_tokens) AS cache_read_input_tokens,
        sum(m.output_tokens) AS output_tokens,
        sum(m.cost) AS cost,
        sum(m.credits) AS credits
    FROM app.messages AS m
    GROUP BY 1, 2
)

SELECT
    COALESCE(d.subject_id, r.subject_id) AS subject_id,
    COALESCE(d.day, r.day) AS day,
    d.messages AS kept_messages,
    r.messages AS recorded_messages,
    d.input_tokens AS kept_input_tokens,
    r.input_tokens AS recorded_input_tokens,
    d.cache_creation_input_tokens AS kept_cache_creation_input_tokens,
    r.cache_creation_input_tokens AS recorded_cache_creation_input_tokens,
    d.cache_read_input_tokens AS kept_cache_read_input_tokens,
    r.cache_read_input_tokens AS recorded_cache_read_input_tokens,
    d.output_tokens AS kept_output_tokens,
    r.output_tokens AS recorded_output_tokens,
    d.cost AS kept_cost,
    r.cost AS recorded_cost,
    d.credits AS kept_credits,
    r.credits AS recorded_credits
FROM app.usage_daily AS d
FULL JOIN recorded AS r ON d.subject_id = r.subject_id AND d.day = r.day
-- Column by column, because pg_dump prints a row comparison of a view in another form
-- after a restore.
WHERE d.messages IS DISTINCT FROM r.messages
    OR d.input_tokens IS DISTINCT FROM r.input_tokens
    OR d.cache_creation_input_tokens IS DISTINCT FROM r.cache_creation_input_tokens
    OR d.cache_read_input_tokens IS DISTINCT FROM r.cache_read_input_tokens
    OR d.output_tokens IS DISTINCT FROM r.output_tokens
    OR d.cost IS DISTINCT FROM r.cost
    OR d.credits IS DISTINCT FROM r.credits;

COMMENT ON VIEW app.usage_drift IS
    'Days of payers for which usage_daily differs from messages; should be empty.';
COMMENT ON COLUMN app.usage_drift.subject_id IS
    'Payer: the user, else the fingerprint.';
COMMENT ON COLUMN app.usage_drift.day IS
    'UTC day.';
COMMENT ON COLUMN app.usage_drift.kept_messages IS
    'Value in usage_daily; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_messages IS
    'Sum of messages; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_input_tokens IS
    'Value in usage_daily; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_input_tokens IS
    'Sum of messages; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_cache_creation_input_tokens IS
    'Value in usage_daily; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_cache_creation_input_tokens IS
    'Sum of messages; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_cache_read_input_tokens IS
    'Value in usage_daily; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_cache_read_input_tokens IS
    'Sum of messages; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_output_tokens IS
    'Value in usage_daily; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_output_tokens IS
    'Sum of messages; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_cost IS
    'Value in usage_daily, in US dollars; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_cost IS
    'Sum of messages, in US dollars; NULL if there are none.';
COMMENT ON COLUMN app.usage_drift.kept_credits IS
    'Value in usage_daily, in credits; NULL if there is no row.';
COMMENT ON COLUMN app.usage_drift.recorded_credits IS
    'Sum of messages, in credits; NULL if there are none.';

-- A writer inserts its messages, then updates the row of usage_daily and keeps the row
-- locked until it commits. So once this function holds that lock, its next statement
-- sees exactly the messages that the row should count: messages of a writer that waits
-- for the lock are not committed, and that writer adds them afterwards.
CREATE OR REPLACE FUNCTION app.repair_usage_day(subject uuid, usage_day date)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_changed boolean := FALSE;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a repair needs READ COMMITTED, to see concurrent commits'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- Read by usage_daily_kept_by_trigger. It does not grant any privilege.
    PERFORM set_config('app.is_repairing', 'on', TRUE);
    LOOP
        PERFORM FROM app.usage_daily AS d
        WHERE d.subject_id = subject AND d.day = usage_day
        FOR UPDATE;
        EXIT WHEN FOUND;
        -- There is no row to lock. If a concurrent writer inserts it first, this INSERT
        -- waits for its commit and does nothing, and the loop locks that row.
        INSERT INTO app.usage_daily AS d (
            subject_id, day, messages, input_tokens, cache_creation_input_tokens,
            cache_read_input_tokens, output_tokens, cost, credits
        )
        SELECT
            subject,
            usage_day,
            s.messages,
            s.input_tokens,
            s.cache_creation_input_tokens,
            s.cache_read_input_tokens,
            s.output_tokens,
            s.cost,
            s.credits
        FROM app.sum_usage_day(subject, usage_day) AS s
        ON CONFLICT ON CONSTRAINT usage_daily_pkey DO NOTHING;
        is_changed := FOUND;
        EXIT WHEN is_changed
            OR NOT EXISTS (SELECT FROM app.sum_usage_day(subject, usage_day));
    END LOOP;
    IF NOT is_changed THEN
        UPDATE app.usage_daily AS d
        SET
            messages = s.messages,
            input_tokens = s.input_tokens,
            cache_creation_input_tokens = s.cache_creation_input_tokens,
            cache_read_input_tokens = s.cache_read_input_tokens,
            output_tokens = s.output_tokens,
            cost = s.cost,
            credits = s.credits
        FROM app.sum_usage_day(subject, usage_day) AS s
        WHERE d.subject_id = subject
            AND d.day = usage_day
            AND (
                d.messages, d.input_tokens, d.cache_creation_input_tokens,
                d.cache_read_input_tokens, d.output_tokens, d.cost, d.credits
            ) IS DISTINCT FROM (
                s.messages, s.input_tokens, s.cache_creation_input_tokens,
                s.cache_read_input_tokens, s.output_tokens, s.cost, s.credits
            );
        is_changed := FOUND;
        DELETE FROM app.usage_daily AS d
        WHERE d.subject_id = subject
            AND d.day = usage_day
            AND NOT EXISTS (SELECT FROM app.sum_usage_day(subject, usage_day));
        is_changed := is_changed OR FOUND;
    END IF;
    PERFORM set_config('app.is_repairing', '', TRUE);
    RETURN is_changed;
END;
$$;

COMMENT ON FUNCTION app.repair_usage_day(uuid, date) IS
    'Sets the usage_daily row of a payer and day from messages; true if it changed.';

DROP FUNCTION app.fold_usage(uuid, timestamptz, timestamptz);
DROP VIEW app.unfolded_usage;
DROP FUNCTION app.cut_usage(uuid);
DROP VIEW app.uncut_usage;
DROP FUNCTION app.cut_usage_day(uuid, date);
DROP FUNCTION app.rebuild_usage_day(uuid, date, boolean);
DROP FUNCTION app.replace_usage_rows(
    uuid, timestamptz, timestamptz, timestamptz, bigint, boolean
);
DROP FUNCTION app.sum_usage(uuid, timestamptz, timestamptz);
DROP FUNCTION app.find_quota_anchor(uuid);

DROP VIEW app.usage_daily_summed;
