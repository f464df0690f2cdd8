-- The quota check reads usage_slots, so that it waits for nothing while 0026 replaces
-- usage_daily.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05,LT01

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

-- PUBLIC may call functions, unless the default privileges say otherwise.
DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT
            format(
                'GRANT EXECUTE ON FUNCTION %s TO %I',
                p.oid::regprocedure,
                pg_get_userbyid(a.grantee)
            ) AS text
        FROM pg_catalog.pg_proc AS f
        CROSS JOIN aclexplode(f.proacl) AS a
        INNER JOIN pg_catalog.pg_proc AS p ON f.pronamespace = p.pronamespace
        WHERE f.pronamespace = 'app'::regnamespace
            AND f.proname = 'sum_credits'
            AND p.proname = 'sum_cut_credits'
            AND a.grantee NOT IN (0, f.proowner)
    LOOP
        EXECUTE statement;
    END LOOP;
END;
$$;
