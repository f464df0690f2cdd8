-- A message that a wrong clock dated 40 days ahead was billed and counted in no period.
-- Payloads of 3,600 distinct months made 3,604 partitions. Rows that are there already
-- are looked at by validate_messages_finished_at_not_ahead_check.

SET LOCAL lock_timeout = '5s';

ALTER TABLE app.messages
    ADD CONSTRAINT messages_finished_at_not_ahead_check CHECK (
        finished_at AT TIME ZONE interval '0'
        <= recorded_at AT TIME ZONE interval '0' + interval '24 hours'
    ) NOT VALID;
COMMENT ON COLUMN app.messages.recorded_at IS
    'When the row was written; finished_at is at most 24 hours after it.';

CREATE OR REPLACE FUNCTION app.create_payload_partitions(
    first_month date, months integer
)
RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    month date;
    lower_bound text;
    upper_bound text;
    partition text;
    created integer := 0;
    this_month timestamp := date_trunc('month', now() AT TIME ZONE interval '0');
BEGIN
    -- A query that names no time locks every partition and plans for it.
    IF (
        CASE
            WHEN months BETWEEN 0 AND 120
                THEN first_month >= this_month - interval '120 months'
                    AND first_month < this_month + make_interval(months => 121 - months)
        END
    ) IS NOT TRUE THEN
        RAISE EXCEPTION
            'create_payload_partitions(%, %) is refused: at most 120 months, from 120'
            ' months ago to 120 months ahead', first_month, months
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    FOR month IN
        SELECT (date_trunc('month', first_month::timestamp)
            + make_interval(months => n))::date
        FROM generate_series(0, months - 1) AS n
    LOOP
        partition := 'message_payloads_' || to_char(month, 'YYYYMM');
        CONTINUE WHEN to_regclass('app.' || partition) IS NOT NULL;

        lower_bound := month::text || ' 00:00:00+00';
        upper_bound := (month + interval '1 month')::date::text || ' 00:00:00+00';
        -- A writer who has chosen the default partition before the attachment and
        -- reaches it after would be refused: so nobody may be between the two. The
        -- order is that of the writers, who would deadlock with another.
        LOCK TABLE app.messages IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE ONLY app.message_payloads IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE app.message_payloads_default IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'CREATE TABLE app.%I (LIKE app.message_payloads INCLUDING ALL)', partition
        );
        -- What waits for its month in the default partition moves there.
        EXECUTE format(
            'WITH moved AS (
                DELETE FROM app.message_payloads_default AS d
                WHERE d.finished_at >= %L AND d.finished_at < %L
                RETURNING d.subject_id, d.message_id, d.finished_at,
                    d.request, d.response
            )
            INSERT INTO app.%I (
                subject_id, message_id, finished_at, request, response
            )
            SELECT m.subject_id, m.message_id, m.finished_at, m.request, m.response
            FROM moved AS m',
            lower_bound, upper_bound, partition
        );
        EXECUTE format(
            'ALTER TABLE app.message_payloads ATTACH PARTITION app.%I
            FOR VALUES FROM (%L) TO (%L)',
            partition, lower_bound, upper_bound
        );
        created := created + 1;
    END LOOP;
    RETURN created;
END;
$$;
