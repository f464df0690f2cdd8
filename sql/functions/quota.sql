-- The period of a payer at a moment, and the credits used in it.

-- PL/pgSQL prevents inlining: quota queries rarely evaluate this arithmetic.
CREATE OR REPLACE FUNCTION app.get_period_end(anchor timestamptz, moment timestamptz)
RETURNS timestamptz LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN app.add_months(anchor, app.count_months(anchor, moment) + 1);
END;
$$;

COMMENT ON FUNCTION app.get_period_end(timestamptz, timestamptz) IS
    'First period boundary after the moment; boundaries are anchor + n months.';

CREATE OR REPLACE FUNCTION app.get_next_reset(
    anchor timestamptz, reset timestamptz, moment timestamptz
)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN reset > moment THEN reset
    WHEN reset IS NOT NULL THEN app.get_period_end(anchor, moment)
END;

COMMENT ON FUNCTION app.get_next_reset(timestamptz, timestamptz, timestamptz) IS
    'The reset if after the moment, else the next boundary; NULL if it never resets.';

CREATE OR REPLACE FUNCTION app.get_start_date(
    anchor timestamptz,
    reset timestamptz,
    moment timestamptz,
    known_start timestamptz
)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    -- An operator may move the reset: the period must not start after the moment.
    WHEN reset > moment AND known_start <= moment THEN known_start
    WHEN reset IS NULL THEN anchor
    ELSE app.get_period_start(anchor, moment)
END;

COMMENT ON FUNCTION app.get_start_date(
    timestamptz, timestamptz, timestamptz, timestamptz
) IS
    'Start of the period at the moment; known_start while that period lasts.';

-- The rows of all days of the period, less the messages before and after it.
CREATE OR REPLACE FUNCTION app.sum_cut_credits(
    subject uuid, period_start timestamptz, period_end timestamptz
)
RETURNS numeric LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    days_start timestamptz := date_trunc('day', period_start, '+00');
    days_end timestamptz := date_trunc('day', period_end, '+00') + interval '24 hours';
BEGIN
    RETURN (
        SELECT COALESCE(sum(s.credits), 0)
        FROM app.usage_slots AS s
        WHERE s.subject_id = subject
            AND s.starts_at >= days_start
            AND s.starts_at < days_end
    ) - (
        SELECT COALESCE(sum(m.credits), 0)
        FROM app.messages AS m
        WHERE m.subject_id = subject
            AND m.finished_at >= days_start
            AND m.finished_at < period_start
    ) - (
        SELECT COALESCE(sum(m.credits), 0)
        FROM app.messages AS m
        WHERE m.subject_id = subject
            AND m.finished_at >= period_end
            AND m.finished_at < days_end
    );
END;
$$;

COMMENT ON FUNCTION app.sum_cut_credits(uuid, timestamptz, timestamptz) IS
    'Credits of a payer in [start, end) where rows of usage_slots lie across an edge.';

-- sum_credits and get_period_usage return tables: only a table function is inlined with
-- its subqueries. A row of usage_slots is at most 24 hours long.
CREATE OR REPLACE FUNCTION app.sum_credits(
    subject uuid, period_start timestamptz, period_end timestamptz
)
RETURNS TABLE (credits_used numeric) LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        CASE
            WHEN bool_or(
                    s.starts_at < sum_credits.period_start
                    OR s.ends_at > sum_credits.period_end
                )
                THEN app.sum_cut_credits(
                    sum_credits.subject,
                    sum_credits.period_start,
                    sum_credits.period_end
                )
            ELSE COALESCE(sum(s.credits), 0)
        END AS credits_used
    FROM app.usage_slots AS s
    WHERE s.subject_id = sum_credits.subject
        AND s.starts_at > sum_credits.period_start - interval '24 hours'
        AND s.starts_at < sum_credits.period_end
        AND s.ends_at > sum_credits.period_start;
END;

COMMENT ON FUNCTION app.sum_credits(uuid, timestamptz, timestamptz) IS
    'Exact credits of a payer in [start, end), from usage_slots if its rows allow it.';

-- LIMIT ALL is an optimization fence: the period is computed once.
CREATE OR REPLACE FUNCTION app.get_period_usage(
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
            app.get_start_date(anchor, reset, moment, known_start) AS period_start,
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
    'Period [start, end) of a payer at the moment, and the exact credits used in it.';
