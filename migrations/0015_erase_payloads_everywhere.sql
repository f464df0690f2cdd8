-- A user was erased while a month of payloads was detached and not yet dropped, and
-- the next run of maintenance archived them.

SET LOCAL lock_timeout = '5s';

-- Runs as its owner, so that the application needs no DELETE on payloads, and reaches
-- the tables that maintenance has detached from message_payloads.
CREATE FUNCTION app.anonymize_user(user_id uuid)
RETURNS SETOF app.users
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    detached text;
BEGIN
    -- An older snapshot would not show the payloads that were committed after it.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'anonymize_user needs a transaction of isolation READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;

    -- The strongest lock waits for what refers to the user and is not yet committed;
    -- each statement below then sees it.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = anonymize_user.user_id
    FOR UPDATE;
    -- The id may be that of a fingerprint, which pays for messages, too.
    IF NOT FOUND THEN
        RETURN;
    END IF;

    DELETE FROM app.sessions AS s WHERE s.user_id = anonymize_user.user_id;

    DELETE FROM app.referrals AS r
    WHERE (
            r.referrer_id = anonymize_user.user_id
            OR r.referred_id = anonymize_user.user_id
        )
        AND r.status = 'pending';

    -- message_payloads first: its lock keeps every partition attached until the end of
    -- this transaction, and rows move between the tables only under a lock on the user.
    DELETE FROM app.message_payloads AS p
    WHERE p.subject_id = anonymize_user.user_id;

    FOREACH detached IN ARRAY ARRAY['waiting_payloads', 'retired_payloads'] LOOP
        CONTINUE WHEN to_regclass('app.' || detached) IS NULL;
        BEGIN
            EXECUTE format('DELETE FROM app.%I WHERE subject_id = $1', detached)
            USING anonymize_user.user_id;
        EXCEPTION
            -- Dropped while this waited for its lock, with all that was left in it.
            WHEN undefined_table THEN NULL;
        END;
    END LOOP;

    RETURN QUERY
    UPDATE app.users AS u
    SET
        email = NULL,
        name = NULL,
        email_verified_at = NULL,
        image_url = NULL,
        anonymized_at = COALESCE(u.anonymized_at, now())
    WHERE u.id = anonymize_user.user_id
    RETURNING u.*;
END;
$$;

COMMENT ON FUNCTION app.anonymize_user(uuid) IS
    'Erases the person and every payload of the user, keeps the bill; returns the row.';

-- PUBLIC may not call a function that runs as its owner.
REVOKE EXECUTE ON FUNCTION app.anonymize_user(uuid) FROM public;

-- Programs of this version call it; pyapp db roles may come later.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pyapp_app') THEN
        GRANT EXECUTE ON FUNCTION app.anonymize_user(uuid) TO pyapp_app;
    END IF;
END;
$$;

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
        -- In the order of the writers, who would deadlock with another. Dropping the
        -- foreign key needs the strongest lock, and is done here so that the table can
        -- later be dropped without locking messages.
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
