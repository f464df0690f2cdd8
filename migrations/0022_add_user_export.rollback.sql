-- Loses nothing.

SET LOCAL lock_timeout = '5s';

DROP FUNCTION app.list_user_fingerprints(uuid);

DROP FUNCTION app.list_user_events(uuid);

DROP FUNCTION app.list_detached_payloads(uuid[]);

-- SECURITY DEFINER, so that the application needs no DELETE on payloads, and to reach
-- tables that were detached from message_payloads.
CREATE OR REPLACE FUNCTION app.anonymize_user(user_id uuid)
RETURNS SETOF app.users
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    detached text;
BEGIN
    -- Above READ COMMITTED, payloads committed after the snapshot are not visible.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'anonymize_user needs READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;

    -- FOR UPDATE waits for transactions that insert rows referring to the user; the
    -- statements below then see those rows.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = anonymize_user.user_id
    FOR UPDATE;
    -- The id may be a fingerprint's: do not delete the payloads of that payer.
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

    -- message_payloads first: the lock of the DELETE keeps every partition attached
    -- until commit, and rows move between these tables only under a lock on the user.
    -- waiting_payloads is the detached default partition, until its rows have moved to
    -- their months; retired_payloads is a detached month, until it is archived and
    -- dropped. Both exist only during pyapp db maintain and after an interruption.
    DELETE FROM app.message_payloads AS p
    WHERE p.subject_id = anonymize_user.user_id;

    FOREACH detached IN ARRAY ARRAY['waiting_payloads', 'retired_payloads'] LOOP
        CONTINUE WHEN to_regclass('app.' || detached) IS NULL;
        BEGIN
            EXECUTE format('DELETE FROM app.%I WHERE subject_id = $1', detached)
            USING anonymize_user.user_id;
        EXCEPTION
            -- Dropped, with all its rows, while this waited for the lock.
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
    'Erases a user''s personal data and payloads, keeps messages; returns the row.';

REVOKE EXECUTE ON FUNCTION app.anonymize_user(uuid) FROM public;
