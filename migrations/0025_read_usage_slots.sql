-- The quota check reads usage_slots, so that it waits for nothing while 0026 replaces
-- usage_daily.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05,LT01

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
