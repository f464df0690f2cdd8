-- Runs as its owner, so that the application needs no DELETE on payloads, and reaches
-- the tables that maintenance has detached from message_payloads.
CREATE OR REPLACE FUNCTION app.anonymize_user(user_id uuid)
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

REVOKE EXECUTE ON FUNCTION app.anonymize_user(uuid) FROM public;
