-- Writers of one payer do not wait for each other's commits, and the quota check of a
-- day that the period cuts reads no messages.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05,LT01

-- The only lock that others wait for. A transaction that has read usage_daily and then
-- inserts messages gets its lock first, so they do not deadlock. add_usage of 0023
-- waits for this lock, and then adds to usage_slots.
-- squawk-ignore renaming-object, renaming-table
ALTER TABLE app.usage_daily RENAME TO former_usage_daily;

CREATE VIEW app.usage_daily WITH (security_invoker = TRUE) AS
SELECT
    s.subject_id,
    (s.starts_at AT TIME ZONE interval '0')::date AS day,
    sum(s.messages)::bigint AS messages,
    sum(s.input_tokens)::bigint AS input_tokens,
    sum(s.cache_creation_input_tokens)::bigint AS cache_creation_input_tokens,
    sum(s.cache_read_input_tokens)::bigint AS cache_read_input_tokens,
    sum(s.output_tokens)::bigint AS output_tokens,
    sum(
        s.input_tokens + s.cache_creation_input_tokens
        + s.cache_read_input_tokens + s.output_tokens
    )::bigint AS total_tokens,
    sum(s.cost) AS cost,
    sum(s.credits) AS credits
FROM app.usage_slots AS s
GROUP BY 1, 2;

COMMENT ON VIEW app.usage_daily IS
    'Sums of messages by payer and UTC day, from usage_slots.';
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

CREATE FUNCTION app.find_quota_anchor(subject uuid)
RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
RETURN COALESCE(
    (
        SELECT u.quota_anchor
        FROM app.users AS u
        WHERE u.id = find_quota_anchor.subject
    ),
    (
        SELECT f.quota_anchor
        FROM app.fingerprints AS f
        WHERE f.id = find_quota_anchor.subject
    )
);

COMMENT ON FUNCTION app.find_quota_anchor(uuid) IS
    'The anchor of a user or fingerprint.';

CREATE FUNCTION app.sum_usage(
    subject uuid, since timestamptz, until timestamptz
)
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
    WHERE m.subject_id = sum_usage.subject
        AND m.finished_at >= sum_usage.since
        AND m.finished_at < sum_usage.until
    HAVING count(*) > 0;
END;

COMMENT ON FUNCTION app.sum_usage(uuid, timestamptz, timestamptz) IS
    'Sums of a payer''s messages in [since, until); no row if there are none.';

-- Replaces the rows of a day by rows on either side of the boundary, if they are the
-- locked ones: these have not changed since, and one snapshot has rows and messages.
-- A row keeps slot 0. Without one it has slot 32, which no writer opens: a writer that
-- had opened slot 0 could wait for this transaction, which would wait for that writer.
CREATE FUNCTION app.replace_usage_rows(
    subject uuid,
    day_start timestamptz,
    boundary timestamptz,
    day_end timestamptz,
    locked bigint,
    is_repair boolean
)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_replaced boolean;
BEGIN
    WITH kept AS MATERIALIZED (
        SELECT
            count(*) = locked AS is_locked,
            is_repair OR bool_or(s.starts_at < boundary AND s.ends_at > boundary)
                AS is_candidate,
            ROW(
                sum(s.messages), sum(s.input_tokens),
                sum(s.cache_creation_input_tokens), sum(s.cache_read_input_tokens),
                sum(s.output_tokens), sum(s.cost), sum(s.credits)
            ) AS sums
        FROM app.usage_slots AS s
        WHERE s.subject_id = subject
            AND s.starts_at >= day_start
            AND s.starts_at < day_end
    ),

    recorded AS MATERIALIZED (
        SELECT p.starts_at, p.ends_at, u.*
        FROM kept AS k
        CROSS JOIN (
            VALUES (day_start, boundary), (boundary, day_end)
        ) AS p (starts_at, ends_at)
        CROSS JOIN LATERAL app.sum_usage(subject, p.starts_at, p.ends_at) AS u
        WHERE k.is_locked AND k.is_candidate
    ),

    due AS MATERIALIZED (
        SELECT k.is_locked
        FROM kept AS k
        CROSS JOIN (
            SELECT
                ROW(
                    sum(r.messages), sum(r.input_tokens),
                    sum(r.cache_creation_input_tokens), sum(r.cache_read_input_tokens),
                    sum(r.output_tokens), sum(r.cost), sum(r.credits)
                ) AS sums
            FROM recorded AS r
        ) AS r
        WHERE k.is_locked
            AND k.is_candidate
            AND is_repair = (k.sums IS DISTINCT FROM r.sums)
    ),

    gone AS (
        DELETE FROM app.usage_slots AS s
        USING due
        WHERE s.subject_id = subject
            AND s.starts_at >= day_start
            AND s.starts_at < day_end
        RETURNING s.starts_at, s.ends_at, s.slot
    ),

    added AS (
        INSERT INTO app.usage_slots (
            subject_id, starts_at, ends_at, messages, input_tokens,
            cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost,
            credits, slot
        )
        SELECT subject, r.*, COALESCE(g.slot, 32)
        FROM recorded AS r
        CROSS JOIN due
        LEFT JOIN gone AS g
            ON r.starts_at = g.starts_at AND r.ends_at = g.ends_at AND g.slot = 0
        WHERE (SELECT count(*) FROM gone) = locked
    )

    SELECT CASE WHEN k.is_locked THEN EXISTS (SELECT FROM due) END
    INTO is_replaced
    FROM kept AS k;
    RETURN is_replaced;
END;
$$;

COMMENT ON FUNCTION app.replace_usage_rows(
    uuid, timestamptz, timestamptz, timestamptz, bigint, boolean
) IS
    'Replaces the rows of a day; NULL if not all are locked, false if none is due.';

-- A writer adds its messages to a row and keeps it locked until it commits. So once
-- this function has locked all rows of a day, the messages that its next statement sees
-- are those in these rows, and a concurrent writer adds its own afterwards. If a writer
-- has opened a row in between, the locks are released, because all sessions have to
-- take them in the same order.
CREATE FUNCTION app.rebuild_usage_day(
    subject uuid, usage_day date, is_repair boolean
)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    day_start timestamptz := usage_day::timestamp AT TIME ZONE interval '0';
    day_end timestamptz;
    boundary timestamptz;
    locked bigint;
    is_replaced boolean;
BEGIN
    SELECT d.ends_at, p.ends_at
    INTO day_end, boundary
    FROM app.get_usage_span(NULL, day_start) AS d
    CROSS JOIN app.get_usage_span(app.find_quota_anchor(subject), day_start) AS p;
    -- Read by usage_slots_kept_by_trigger. It does not grant any privilege.
    PERFORM set_config('app.is_repairing', 'on', TRUE);
    FOR round IN 1..20 LOOP
        BEGIN
            -- Slot 0 is last: while this waits for other rows, it blocks no writer.
            PERFORM FROM app.usage_slots AS s
            WHERE s.subject_id = subject
                AND s.starts_at >= day_start
                AND s.starts_at < day_end
            ORDER BY s.slot = 0, s.starts_at, s.ends_at, s.slot
            FOR UPDATE;
            GET DIAGNOSTICS locked = ROW_COUNT;
            is_replaced := app.replace_usage_rows(
                subject, day_start, boundary, day_end, locked, is_repair
            );
            IF is_replaced IS NULL THEN
                RAISE no_data_found;
            END IF;
            EXIT;
        EXCEPTION WHEN no_data_found THEN
            NULL;
        END;
    END LOOP;
    PERFORM set_config('app.is_repairing', '', TRUE);
    RETURN is_replaced;
END;
$$;

COMMENT ON FUNCTION app.rebuild_usage_day(uuid, date, boolean) IS
    'Repairs a day, or cuts it at its boundary; NULL if writers kept adding rows.';

-- The sums of the day stay as they are: a day whose sums are wrong is not cut.
CREATE FUNCTION app.cut_usage_day(subject uuid, usage_day date)
RETURNS boolean LANGUAGE sql SET search_path = pg_catalog, pg_temp
RETURN COALESCE(app.rebuild_usage_day(subject, usage_day, FALSE), FALSE);

COMMENT ON FUNCTION app.cut_usage_day(uuid, date) IS
    'Splits a payer''s rows across the boundary of a UTC day; true if it did.';

CREATE OR REPLACE FUNCTION app.repair_usage_day(subject uuid, usage_day date)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_repaired boolean;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a repair needs READ COMMITTED, to see concurrent commits'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- Two repairs of a day without rows would lock no row of usage_slots.
    PERFORM FROM app.users AS u WHERE u.id = subject FOR NO KEY UPDATE;
    PERFORM FROM app.fingerprints AS f WHERE f.id = subject FOR NO KEY UPDATE;
    is_repaired := app.rebuild_usage_day(subject, usage_day, TRUE);
    IF is_repaired IS NULL THEN
        RAISE EXCEPTION 'writers of % keep adding rows; repeat the repair', subject
            USING ERRCODE = 'lock_not_available';
    END IF;
    RETURN is_repaired;
END;
$$;

COMMENT ON FUNCTION app.repair_usage_day(uuid, date) IS
    'Sets the sums of a payer and UTC day from messages; true if it changed.';

-- DISTINCT: both boundaries are the anchor while that is ahead and there is no reset.
CREATE VIEW app.uncut_usage WITH (security_invoker = TRUE) AS
SELECT DISTINCT
    p.subject_id,
    (b.boundary AT TIME ZONE interval '0')::date AS day
FROM (
    SELECT
        u.id AS subject_id,
        u.quota_anchor,
        u.next_quota_reset,
        u.quota_period_start
    FROM app.users AS u
    UNION ALL
    SELECT
        f.id AS subject_id,
        f.quota_anchor,
        f.next_quota_reset,
        f.quota_period_start
    FROM app.fingerprints AS f
) AS p
CROSS JOIN LATERAL (
    VALUES
        (app.get_start_date(
            p.quota_anchor, p.next_quota_reset, now(), p.quota_period_start
        )),
        (app.get_period_end(p.quota_anchor, now()))
) AS b (boundary)
WHERE EXISTS (
    SELECT
    FROM app.usage_slots AS s
    WHERE s.subject_id = p.subject_id
        AND s.starts_at > b.boundary - interval '24 hours'
        AND s.starts_at < b.boundary
        AND s.ends_at > b.boundary
);

COMMENT ON VIEW app.uncut_usage IS
    'Payers with rows of usage_slots across the start or end of their period.';
COMMENT ON COLUMN app.uncut_usage.subject_id IS
    'Payer: the user, else the fingerprint.';
COMMENT ON COLUMN app.uncut_usage.day IS
    'UTC day of that boundary.';

-- SECURITY DEFINER: pyapp_sync may not write usage_slots.
CREATE FUNCTION app.cut_usage(subject uuid)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT count(*) FILTER (WHERE app.cut_usage_day(u.subject_id, u.day))
        FROM (
            SELECT v.subject_id, v.day
            FROM app.uncut_usage AS v
            WHERE v.subject_id = subject
            ORDER BY v.day
        ) AS u
    );
END;
$$;

COMMENT ON FUNCTION app.cut_usage(uuid) IS
    'Splits a payer''s rows across the start or end of its period; number of days.';

REVOKE EXECUTE ON FUNCTION app.cut_usage(uuid) FROM public;

CREATE VIEW app.unfolded_usage WITH (security_invoker = TRUE) AS
SELECT DISTINCT
    s.subject_id,
    s.starts_at,
    s.ends_at
FROM app.usage_slots AS s
WHERE s.slot > 0
    AND s.starts_at < date_trunc('day', now(), '+00')
    AND EXISTS (
        SELECT FROM app.usage_slots AS o
        WHERE o.subject_id = s.subject_id
            AND o.starts_at = s.starts_at
            AND o.ends_at = s.ends_at
            AND o.slot <> s.slot
    );

COMMENT ON VIEW app.unfolded_usage IS
    'Spans of past days that have several rows; fold_usage makes one of them.';
COMMENT ON COLUMN app.unfolded_usage.subject_id IS
    'Payer: the user, else the fingerprint.';
COMMENT ON COLUMN app.unfolded_usage.starts_at IS
    'Start of the span.';
COMMENT ON COLUMN app.unfolded_usage.ends_at IS
    'End of the span.';

-- Rows that another session has locked are left to the next call: it waits for no
-- writer.
CREATE FUNCTION app.fold_usage(
    subject uuid, span_start timestamptz, span_end timestamptz
)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    folded bigint;
BEGIN
    -- Read by usage_slots_kept_by_trigger. It does not grant any privilege.
    PERFORM set_config('app.is_repairing', 'on', TRUE);
    WITH locked AS MATERIALIZED (
        SELECT s.slot
        FROM app.usage_slots AS s
        WHERE s.subject_id = subject
            AND s.starts_at = span_start
            AND s.ends_at = span_end
        FOR UPDATE SKIP LOCKED
    ),

    kept AS MATERIALIZED (
        SELECT min(k.slot) AS slot FROM locked AS k
    ),

    gone AS (
        DELETE FROM app.usage_slots AS s
        USING locked AS k, kept
        WHERE s.subject_id = subject
            AND s.starts_at = span_start
            AND s.ends_at = span_end
            AND s.slot = k.slot
            AND k.slot > kept.slot
        RETURNING s.*
    ),

    total AS MATERIALIZED (
        SELECT
            count(*) AS folded,
            sum(g.messages) AS messages,
            sum(g.input_tokens) AS input_tokens,
            sum(g.cache_creation_input_tokens) AS cache_creation_input_tokens,
            sum(g.cache_read_input_tokens) AS cache_read_input_tokens,
            sum(g.output_tokens) AS output_tokens,
            sum(g.cost) AS cost,
            sum(g.credits) AS credits
        FROM gone AS g
    )

    UPDATE app.usage_slots AS s
    SET
        messages = s.messages + t.messages,
        input_tokens = s.input_tokens + t.input_tokens,
        cache_creation_input_tokens
            = s.cache_creation_input_tokens + t.cache_creation_input_tokens,
        cache_read_input_tokens = s.cache_read_input_tokens + t.cache_read_input_tokens,
        output_tokens = s.output_tokens + t.output_tokens,
        cost = s.cost + t.cost,
        credits = s.credits + t.credits
    FROM kept, total AS t
    WHERE s.subject_id = subject
        AND s.starts_at = span_start
        AND s.ends_at = span_end
        AND s.slot = kept.slot
        AND t.folded > 0
    RETURNING t.folded INTO folded;
    PERFORM set_config('app.is_repairing', '', TRUE);
    RETURN COALESCE(folded, 0);
END;
$$;

COMMENT ON FUNCTION app.fold_usage(uuid, timestamptz, timestamptz) IS
    'Adds the rows of a span to one of them; returns the number of rows removed.';

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
        WHERE c.oid = 'app.former_usage_daily'::regclass
            AND a.privilege_type = 'SELECT'
            AND a.grantee <> c.relowner
    LOOP
        EXECUTE statement;
    END LOOP;
END;
$$;

-- A single message goes into a row that no other session has locked, so that writers
-- of one payer do not wait for each other's commits. One statement locks the row and
-- the next updates it. A join that did both could execute the subquery for each row of
-- the payer, find another free row each time, and add the message to two rows. The
-- ctid stays valid because the row is locked. A session keeps the plans that it made
-- for its first statements: all are the same for any number of rows in inserted, and
-- without sequential scans also for an empty usage_slots. LIMIT 1 and count(*) prevent
-- joins and hashes, which read all users or all sums.
--
-- All other messages go into slot 0, in key order, so that concurrent writers of
-- several rows do not deadlock. A single message that found all rows locked opens one
-- for its process, or waits for that one.
CREATE OR REPLACE FUNCTION app.add_usage()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    message record;
    is_single boolean;
BEGIN
    SELECT
        i.input_tokens, i.cache_creation_input_tokens, i.cache_read_input_tokens,
        i.output_tokens, i.cost, i.credits,
        (
            SELECT s.ctid
            FROM app.usage_slots AS s
            WHERE s.subject_id = i.subject_id
                AND s.starts_at >= date_trunc('day', i.finished_at, '+00')
                AND s.starts_at <= i.finished_at
                AND s.ends_at > i.finished_at
            ORDER BY s.starts_at DESC, s.ends_at DESC, s.slot DESC
            LIMIT 1
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS free_row
    INTO message FROM inserted AS i
    WHERE NOT EXISTS (SELECT FROM inserted OFFSET 1);
    is_single := FOUND;
    IF message.free_row IS NOT NULL THEN
        UPDATE app.usage_slots AS s
        SET
            messages = s.messages + 1,
            input_tokens = s.input_tokens + message.input_tokens,
            cache_creation_input_tokens
                = s.cache_creation_input_tokens + message.cache_creation_input_tokens,
            cache_read_input_tokens
                = s.cache_read_input_tokens + message.cache_read_input_tokens,
            output_tokens = s.output_tokens + message.output_tokens,
            cost = s.cost + message.cost,
            credits = s.credits + message.credits
        WHERE s.ctid = message.free_row;
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END IF;

    INSERT INTO app.usage_slots AS s (
        subject_id, starts_at, ends_at, slot, messages, input_tokens,
        cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost,
        credits
    )
    SELECT i.subject_id, p.starts_at, p.ends_at,
        CASE
            WHEN is_single AND (
                SELECT count(*) FROM app.usage_slots AS o
                WHERE o.subject_id = i.subject_id
                    AND o.starts_at = p.starts_at
                    AND o.ends_at = p.ends_at
            ) > 0 THEN 1 + pg_backend_pid() % 31
            ELSE 0
        END,
        count(*), sum(i.input_tokens), sum(i.cache_creation_input_tokens),
        sum(i.cache_read_input_tokens), sum(i.output_tokens), sum(i.cost),
        sum(i.credits)
    FROM inserted AS i
    LEFT JOIN LATERAL (
        SELECT u.quota_anchor FROM app.users AS u WHERE u.id = i.user_id
        UNION ALL
        SELECT f.quota_anchor FROM app.fingerprints AS f
        WHERE f.id = i.fingerprint_id AND i.user_id IS NULL
        LIMIT 1
    ) AS a ON TRUE
    CROSS JOIN LATERAL app.get_usage_span(a.quota_anchor, i.finished_at) AS p
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
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.add_usage() IS
    'Trigger: adds the messages that a statement inserts to usage_slots.';

-- Its sums are in usage_slots.
-- squawk-ignore ban-drop-table
DROP TABLE app.former_usage_daily;

-- squawk-ignore ban-drop-function
DROP FUNCTION app.copy_usage_day();

-- squawk-ignore ban-drop-function
DROP FUNCTION app.sum_usage_day(uuid, date);
