-- An export returns all that is held of a user, and an erasure covers its fingerprints.

SET LOCAL lock_timeout = '5s';

-- The sessions of a user name its fingerprints until they expire; messages always do.
-- Without the setting, the planner reads all messages for the user with the most.
CREATE OR REPLACE FUNCTION app.list_user_fingerprints(user_id uuid)
RETURNS TABLE (fingerprint_id uuid, is_shared boolean)
LANGUAGE plpgsql STABLE ROWS 10
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH named AS (
        SELECT s.fingerprint_id
        FROM app.sessions AS s
        WHERE s.user_id = list_user_fingerprints.user_id
            AND s.fingerprint_id IS NOT NULL
        UNION
        SELECT m.fingerprint_id
        FROM app.messages AS m
        WHERE m.user_id = list_user_fingerprints.user_id
            AND m.fingerprint_id IS NOT NULL
    )

    SELECT
        n.fingerprint_id,
        other.is_found
    FROM named AS n
    CROSS JOIN LATERAL (
        SELECT count(*) > 0 AS is_found
        FROM (
            SELECT s.user_id
            FROM app.sessions AS s
            WHERE s.fingerprint_id = n.fingerprint_id
                AND s.user_id <> list_user_fingerprints.user_id
            UNION ALL
            SELECT m.user_id
            FROM app.messages AS m
            WHERE m.fingerprint_id = n.fingerprint_id
                AND m.user_id <> list_user_fingerprints.user_id
            LIMIT 1
        ) AS o
    ) AS other
    ORDER BY n.fingerprint_id;
END;
$$;

COMMENT ON FUNCTION app.list_user_fingerprints(uuid) IS
    'Fingerprints that the sessions and messages of a user name. A shared one is also'
    ' named by those of another user.';

-- SECURITY DEFINER, to reach tables that were detached from message_payloads. STABLE,
-- to read them with the snapshot of the calling query.
CREATE OR REPLACE FUNCTION app.list_detached_payloads(payers uuid[])
RETURNS TABLE (
    subject_id uuid, message_id uuid, finished_at timestamptz, request jsonb,
    response jsonb
)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    detached text;
BEGIN
    FOREACH detached IN ARRAY ARRAY['waiting_payloads', 'retired_payloads'] LOOP
        CONTINUE WHEN to_regclass('app.' || detached) IS NULL;
        BEGIN
            RETURN QUERY EXECUTE format(
                'SELECT p.subject_id, p.message_id, p.finished_at, p.request, p.response
                FROM app.%I AS p
                WHERE p.subject_id = ANY($1)',
                detached
            )
            USING payers;
        EXCEPTION
            -- Dropped, with all its rows, while this waited for the lock.
            WHEN undefined_table THEN NULL;
        END;
    END LOOP;
END;
$$;

COMMENT ON FUNCTION app.list_detached_payloads(uuid[]) IS
    'Payloads of these payers in tables that db maintain detached: waiting_payloads and'
    ' retired_payloads.';

REVOKE EXECUTE ON FUNCTION app.list_detached_payloads(uuid[]) FROM public;

-- SECURITY DEFINER: the role that exports a user may not read all events. The customer
-- decides. Another customer's event can contain the user's id in its metadata: the id
-- counts only in an event without a customer.
CREATE OR REPLACE FUNCTION app.list_user_events(user_id uuid)
RETURNS SETOF app.stripe_events
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    customer_ids text[] := ARRAY(
        SELECT c.id
        FROM app.stripe_customers AS c
        WHERE c.user_id = list_user_events.user_id
        UNION
        SELECT u.stripe_customer_id
        FROM app.users AS u
        WHERE u.id = list_user_events.user_id
    );
BEGIN
    RETURN QUERY
    SELECT e.*
    FROM app.stripe_events AS e
    CROSS JOIN LATERAL (SELECT e.payload #> '{data,object}' AS object) AS d
    CROSS JOIN LATERAL (
        SELECT
            CASE
                WHEN d.object ->> 'object' = 'customer' THEN d.object ->> 'id'
                ELSE COALESCE(
                    d.object #>> '{customer,id}', d.object ->> 'customer'
                )
            END AS customer_id
    ) AS o
    WHERE e.payload IS NOT NULL
        AND (
            o.customer_id = ANY(customer_ids)
            OR (
                o.customer_id IS NULL
                AND list_user_events.user_id::text IN (
                    d.object #>> '{metadata,user_id}',
                    d.object ->> 'client_reference_id'
                )
            )
        );
END;
$$;

COMMENT ON FUNCTION app.list_user_events(uuid) IS
    'Stripe events with a payload about a customer of the user, or without a customer'
    ' and with the id of the user.';

REVOKE EXECUTE ON FUNCTION app.list_user_events(uuid) FROM public;

-- SECURITY DEFINER, so that the application needs no DELETE on payloads, and to reach
-- tables that were detached from message_payloads.
CREATE OR REPLACE FUNCTION app.anonymize_user(user_id uuid)
RETURNS SETOF app.users
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    payers uuid[];
    place text;
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

    -- Before the sessions are deleted, because they name fingerprints.
    payers := anonymize_user.user_id || ARRAY(
        SELECT f.fingerprint_id
        FROM app.list_user_fingerprints(anonymize_user.user_id) AS f
        WHERE NOT f.is_shared
    );

    DELETE FROM app.sessions AS s WHERE s.user_id = anonymize_user.user_id;

    DELETE FROM app.referrals AS r
    WHERE (
            r.referrer_id = anonymize_user.user_id
            OR r.referred_id = anonymize_user.user_id
        )
        AND r.status = 'pending';

    -- A transaction that has locked a fingerprint may wait for the user: it stores the
    -- hash of a client that is in use.
    UPDATE app.fingerprints AS f
    SET sig_hash = NULL
    WHERE f.id IN (
        SELECT l.id
        FROM app.fingerprints AS l
        WHERE l.id = ANY(payers) AND l.sig_hash IS NOT NULL
        FOR NO KEY UPDATE SKIP LOCKED
    );

    -- message_payloads first: the lock of the DELETE keeps every partition attached
    -- until commit. waiting_payloads is the detached default partition, until its rows
    -- have moved to their months; retired_payloads is a detached month, until it is
    -- archived and dropped. Both exist only during pyapp db maintain and after an
    -- interruption. A user's rows move between these tables under a lock on the user;
    -- those of a fingerprint without one: the first table is therefore read again.
    FOREACH place IN ARRAY ARRAY[
        'message_payloads', 'waiting_payloads', 'retired_payloads', 'message_payloads'
    ] LOOP
        CONTINUE WHEN to_regclass('app.' || place) IS NULL;
        BEGIN
            EXECUTE format('DELETE FROM app.%I WHERE subject_id = ANY($1)', place)
            USING payers;
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
    'Erases a user''s personal data and payloads, also of fingerprints that no other'
    ' user has; keeps messages; returns the row.';

REVOKE EXECUTE ON FUNCTION app.anonymize_user(uuid) FROM public;
