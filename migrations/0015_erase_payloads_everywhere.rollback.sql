-- Loses nothing. Run the roles.sql of the earlier version afterwards.

SET LOCAL lock_timeout = '5s';

CREATE OR REPLACE FUNCTION app.retire_payload_partition(keep_from date)
RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
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
        -- In the order of the writers, who would deadlock with another.
        LOCK TABLE app.messages IN SHARE ROW EXCLUSIVE MODE;
        EXECUTE format(
            'ALTER TABLE app.message_payloads DETACH PARTITION app.%I', partition
        );
        EXECUTE format('ALTER TABLE app.%I RENAME TO retired_payloads', partition);
    END IF;
    RETURN partition;
END;
$$;

DROP FUNCTION app.anonymize_user(uuid);
