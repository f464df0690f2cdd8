-- Loses nothing.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05,LT01

-- sum_credits and get_period_usage return tables: only a table function is inlined with
-- its subqueries.
CREATE OR REPLACE FUNCTION app.sum_credits(
    subject uuid, period_start timestamptz, period_end timestamptz
)
RETURNS TABLE (credits_used numeric) LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT COALESCE(sum(
        CASE
            WHEN d.day >= sum_credits.period_start AT TIME ZONE interval '0'
                AND d.day + 1 <= sum_credits.period_end AT TIME ZONE interval '0'
                THEN d.credits
            ELSE (
                SELECT sum(m.credits)
                FROM app.messages AS m
                WHERE m.subject_id = d.subject_id
                    AND m.finished_at >= GREATEST(
                        d.day::timestamp AT TIME ZONE interval '0',
                        sum_credits.period_start
                    )
                    AND m.finished_at < LEAST(
                        (d.day + 1)::timestamp AT TIME ZONE interval '0',
                        sum_credits.period_end
                    )
            )
        END
    ), 0)
    FROM app.usage_daily AS d
    WHERE d.subject_id = sum_credits.subject
        AND d.day
        > (sum_credits.period_start AT TIME ZONE interval '0') - interval '1 day'
        AND d.day < sum_credits.period_end AT TIME ZONE interval '0';
END;

COMMENT ON FUNCTION app.sum_credits(uuid, timestamptz, timestamptz) IS
    'Exact credits of a payer in [start, end): daily sums, and messages of part days.';

DROP FUNCTION app.sum_cut_credits(uuid, timestamptz, boolean);
