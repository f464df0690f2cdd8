-- Monthly partitions of message_payloads.

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
    -- A query without a condition on finished_at locks and plans every partition. CASE
    -- keeps an extreme number of months from overflowing the interval.
    IF (
        CASE
            WHEN months BETWEEN 0 AND 120
                THEN first_month >= this_month - interval '120 months'
                    AND first_month < this_month + make_interval(months => 121 - months)
        END
    ) IS NOT TRUE THEN
        RAISE EXCEPTION
            'create_payload_partitions(%, %) is out of range: at most 120 months, from'
            ' 120 months ago to 120 months ahead', first_month, months
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
        -- An INSERT that is routed to the default partition before ATTACH would fail
        -- after it: lock writers out. Tables are locked in the order in which writers
        -- lock them, to avoid deadlocks.
        LOCK TABLE app.messages IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE ONLY app.message_payloads IN SHARE ROW EXCLUSIVE MODE;
        LOCK TABLE app.message_payloads_default IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'CREATE TABLE app.%I (LIKE app.message_payloads INCLUDING ALL)', partition
        );
        -- Move the rows of this month out of the default partition.
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

COMMENT ON FUNCTION app.create_payload_partitions(date, integer) IS
    'Creates monthly partitions from first_month on; returns the number created.';

CREATE OR REPLACE FUNCTION app.retire_payload_partition(keep_from date)
RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    foreign_key text;
    partition text := (
        SELECT min(c.relname)
        FROM pg_catalog.pg_inherits AS i
        INNER JOIN pg_catalog.pg_class AS c ON i.inhrelid = c.oid
        WHERE i.inhparent = 'app.message_payloads'::regclass
            AND c.relname ~ '^message_payloads_[0-9]{6}$'
            AND to_date(right(c.relname, 6), 'YYYYMM') + interval '1 month' <= keep_from
    );
BEGIN
    IF partition IS NOT NULL THEN
        -- Lock messages first, as writers do, to avoid deadlocks. Dropping the foreign
        -- key needs ACCESS EXCLUSIVE on messages; without the foreign key, the table
        -- can be dropped later without a lock on messages.
        LOCK TABLE app.messages IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'ALTER TABLE app.message_payloads DETACH PARTITION app.%I', partition
        );
        EXECUTE format('ALTER TABLE app.%I RENAME TO retired_payloads', partition);
        FOR foreign_key IN
            SELECT c.conname
            FROM pg_catalog.pg_constraint AS c
            WHERE c.conrelid = to_regclass('app.retired_payloads')
                AND c.contype = 'f'
        LOOP
            EXECUTE format(
                'ALTER TABLE app.retired_payloads DROP CONSTRAINT %I', foreign_key
            );
        END LOOP;
    END IF;
    RETURN partition;
END;
$$;

COMMENT ON FUNCTION app.retire_payload_partition(date) IS
    'Detaches the oldest month that ends by keep_from as retired_payloads; its name.';
