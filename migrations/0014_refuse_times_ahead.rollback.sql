-- Loses nothing.

SET LOCAL lock_timeout = '5s';

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
BEGIN
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

COMMENT ON COLUMN app.messages.recorded_at IS
    'When the row was written.';
ALTER TABLE app.messages DROP CONSTRAINT messages_finished_at_not_ahead_check;
