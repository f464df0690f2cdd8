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

-- Reads the messages of the shorter part of the day, before or after the boundary, and
-- subtracts the rows within that part: the rest is in rows across the boundary.
-- The plans are generic, because planning takes as long as a check.
CREATE OR REPLACE FUNCTION app.sum_cut_credits(
    subject uuid, boundary timestamptz, is_before boolean
)
RETURNS numeric LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    day_start timestamptz := date_trunc('day', boundary, '+00');
    day_end timestamptz := day_start + interval '24 hours';
    reads_before boolean := boundary - day_start < LEAST(day_end, now()) - boundary;
    part_start timestamptz := CASE WHEN reads_before THEN day_start ELSE boundary END;
    part_end timestamptz := CASE WHEN reads_before THEN boundary ELSE day_end END;
    part_credits numeric;
BEGIN
    part_credits := (
        SELECT COALESCE(sum(m.credits), 0)
        FROM app.messages AS m
        WHERE m.subject_id = subject
            AND m.finished_at >= part_start
            AND m.finished_at < part_end
    ) - (
        SELECT COALESCE(sum(s.credits), 0)
        FROM app.usage_slots AS s
        WHERE s.subject_id = subject
            AND s.starts_at >= part_start
            AND s.starts_at < part_end
            AND s.ends_at <= part_end
    );
    IF reads_before = is_before THEN
        RETURN part_credits;
    END IF;
    RETURN (
        SELECT COALESCE(sum(s.credits), 0)
        FROM app.usage_slots AS s
        WHERE s.subject_id = subject
            AND s.starts_at >= day_start
            AND s.starts_at < boundary
            AND s.ends_at > boundary
    ) - part_credits;
END;
$$;

COMMENT ON FUNCTION app.sum_cut_credits(uuid, timestamptz, boolean) IS
    'Credits in a payer''s rows across a boundary, of messages before or after it.';

-- sum_credits and get_period_usage return tables: only a table function is inlined with
-- its subqueries. A row of usage_slots lies in one UTC day.
CREATE OR REPLACE FUNCTION app.sum_credits(
    subject uuid, period_start timestamptz, period_end timestamptz
)
RETURNS TABLE (credits_used numeric) LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        CASE
            WHEN sum_credits.period_start >= sum_credits.period_end THEN 0
            ELSE COALESCE(sum(s.credits), 0)
                - CASE
                    WHEN min(s.starts_at) < sum_credits.period_start
                        THEN app.sum_cut_credits(
                            sum_credits.subject, sum_credits.period_start, TRUE
                        )
                    ELSE 0
                END
                - CASE
                    WHEN max(s.ends_at) > sum_credits.period_end
                        THEN app.sum_cut_credits(
                            sum_credits.subject, sum_credits.period_end, FALSE
                        )
                    ELSE 0
                END
        END AS credits_used
    FROM app.usage_slots AS s
    WHERE s.subject_id = sum_credits.subject
        AND s.starts_at >= date_trunc('day', sum_credits.period_start, '+00')
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
