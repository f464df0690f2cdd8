-- Loses nothing.

SET LOCAL lock_timeout = '5s';

DROP FUNCTION app.put_stripe_customers(jsonb, text, boolean, boolean, boolean);

DROP FUNCTION app.put_stripe_subscriptions(jsonb, text, boolean, boolean);

DROP FUNCTION app.put_stripe_views(text, jsonb, text, boolean, boolean, boolean);

DROP FUNCTION app.sync_stripe_users(uuid[], boolean);

CREATE FUNCTION app.put_stripe_customer(
    view jsonb,
    source text,
    can_ask boolean,
    match_email boolean,
    is_dry_run boolean,
    OUT verdict text,
    OUT differences text[],
    OUT user_id uuid,
    OUT released_user_id uuid,
    OUT proposed_user_id uuid
)
LANGUAGE plpgsql SET search_path = ''
AS $$
DECLARE
    given app.stripe_customers := jsonb_populate_record(
        NULL::app.stripe_customers, view
    );
    known app.stripe_customers;
    claimant uuid;
    holder uuid;
    is_same boolean;
BEGIN
    SELECT c.* INTO known FROM app.stripe_customers AS c WHERE c.id = given.id;
    claimant := (SELECT u.id FROM app.users AS u WHERE u.id = given.user_id);
    holder := (SELECT u.id FROM app.users AS u WHERE u.stripe_customer_id = given.id);
    -- Whoever is linked stays so until another is named; e-mail links only if told so.
    user_id := COALESCE(claimant, known.user_id, holder);
    IF user_id IS NULL THEN
        proposed_user_id := (
            SELECT u.id
            FROM app.users AS u
            WHERE lower(u.email) = lower(view ->> 'email')
                AND u.stripe_customer_id IS NULL
        );
        IF match_email THEN
            user_id := proposed_user_id;
        END IF;
    END IF;

    is_same := claimant IS NULL OR claimant IS NOT DISTINCT FROM known.user_id;
    -- What is known by name only takes any view, and deleted is final.
    verdict := CASE
        WHEN known.created_at IS NULL THEN 'applied'
        WHEN given.is_deleted AND NOT known.is_deleted THEN 'applied'
        ELSE app.judge_stripe_view(
            given.as_of,
            known.as_of,
            is_same AND NOT (known.is_provisional AND source = 'page'),
            source,
            can_ask
        )
    END;
    given.is_provisional := COALESCE(
        source = 'event'
        AND known.created_at IS NOT NULL
        AND date_trunc('second', given.as_of) = date_trunc('second', known.as_of)
        AND (known.is_provisional OR NOT is_same),
        FALSE
    );
    given.is_deleted := given.is_deleted OR COALESCE(known.is_deleted, FALSE);
    given.created_at := COALESCE(given.created_at, known.created_at);
    differences := array_remove(ARRAY[
        CASE WHEN known.id IS NULL THEN 'missing_here' END,
        CASE WHEN given.is_deleted AND NOT known.is_deleted THEN 'missing_there' END,
        CASE
            WHEN known.id IS NOT NULL
                AND given.created_at IS DISTINCT FROM known.created_at
                THEN 'created_at'
        END,
        CASE
            WHEN NOT given.is_deleted AND user_id IS NULL THEN 'unlinked'
            WHEN known.id IS NOT NULL AND user_id IS DISTINCT FROM known.user_id
                THEN 'unlinked'
        END
    ], NULL);
    IF verdict <> 'applied' OR is_dry_run THEN
        RETURN;
    END IF;

    PERFORM u.id
    FROM app.users AS u
    WHERE u.id IN (user_id, holder)
    ORDER BY u.id
    FOR NO KEY UPDATE;
    IF known.id IS NULL THEN
        INSERT INTO app.stripe_customers (
            id, user_id, is_deleted, created_at, as_of, is_provisional
        )
        VALUES (
            given.id, put_stripe_customer.user_id, given.is_deleted, given.created_at,
            given.as_of, given.is_provisional
        );
    ELSE
        UPDATE app.stripe_customers AS c
        SET
            user_id = put_stripe_customer.user_id,
            is_deleted = given.is_deleted,
            created_at = given.created_at,
            as_of = GREATEST(given.as_of, known.as_of),
            is_provisional = given.is_provisional
        WHERE c.id = given.id;
    END IF;
    UPDATE app.stripe_subscriptions AS s
    SET user_id = put_stripe_customer.user_id
    WHERE s.customer_id = given.id
        AND s.user_id IS DISTINCT FROM put_stripe_customer.user_id;
    -- A customer has one user: he who loses it lets go before the other takes it.
    IF holder <> user_id THEN
        UPDATE app.users AS u
        SET stripe_customer_id = NULL
        WHERE u.id = holder AND u.stripe_customer_id = given.id;
        released_user_id := holder;
    END IF;
END;
$$;

CREATE FUNCTION app.put_stripe_subscription(
    view jsonb,
    source text,
    can_ask boolean,
    is_dry_run boolean,
    OUT verdict text,
    OUT differences text[],
    OUT user_id uuid
)
LANGUAGE plpgsql SET search_path = ''
AS $$
DECLARE
    given app.stripe_subscriptions := jsonb_populate_record(
        NULL::app.stripe_subscriptions, view
    );
    known app.stripe_subscriptions;
BEGIN
    SELECT s.* INTO known FROM app.stripe_subscriptions AS s WHERE s.id = given.id;
    user_id := COALESCE(
        (SELECT c.user_id FROM app.stripe_customers AS c WHERE c.id = given.customer_id),
        (SELECT u.id FROM app.users AS u WHERE u.stripe_customer_id = given.customer_id)
    );
    differences := CASE
        WHEN known.id IS NULL THEN ARRAY['missing_here']
        ELSE array_remove(ARRAY[
            CASE
                WHEN (given.status, given.canceled_at)
                    IS DISTINCT FROM (known.status, known.canceled_at)
                    THEN 'status'
            END,
            CASE WHEN given.price_id IS DISTINCT FROM known.price_id THEN 'price' END,
            CASE
                WHEN (
                    given.current_period_start, given.current_period_end,
                    given.billing_cycle_anchor, given.cancel_at_period_end
                ) IS DISTINCT FROM (
                    known.current_period_start, known.current_period_end,
                    known.billing_cycle_anchor, known.cancel_at_period_end
                )
                    THEN 'period'
            END,
            CASE WHEN given.created_at <> known.created_at THEN 'created_at' END
        ], NULL)
    END;
    verdict := app.judge_stripe_view(
        given.as_of,
        known.as_of,
        differences = '{}' AND NOT (known.is_provisional AND source = 'page'),
        source,
        can_ask
    );
    IF verdict <> 'applied' OR is_dry_run THEN
        RETURN;
    END IF;

    IF user_id IS DISTINCT FROM known.user_id THEN
        PERFORM u.id FROM app.users AS u WHERE u.id = user_id FOR NO KEY UPDATE;
    END IF;
    given.is_provisional := COALESCE(
        source = 'event'
        AND date_trunc('second', given.as_of) = date_trunc('second', known.as_of)
        AND (known.is_provisional OR differences <> '{}'),
        FALSE
    );
    IF known.id IS NULL THEN
        INSERT INTO app.stripe_subscriptions (
            id, customer_id, user_id, status, price_id, current_period_start,
            current_period_end, billing_cycle_anchor, cancel_at_period_end, canceled_at,
            created_at, as_of, is_provisional
        )
        VALUES (
            given.id, given.customer_id, put_stripe_subscription.user_id, given.status,
            given.price_id, given.current_period_start, given.current_period_end,
            given.billing_cycle_anchor, given.cancel_at_period_end, given.canceled_at,
            given.created_at, given.as_of, given.is_provisional
        );
    ELSE
        UPDATE app.stripe_subscriptions AS s
        SET
            customer_id = given.customer_id,
            user_id = put_stripe_subscription.user_id,
            status = given.status,
            price_id = given.price_id,
            current_period_start = given.current_period_start,
            current_period_end = given.current_period_end,
            billing_cycle_anchor = given.billing_cycle_anchor,
            cancel_at_period_end = given.cancel_at_period_end,
            canceled_at = given.canceled_at,
            created_at = given.created_at,
            as_of = GREATEST(given.as_of, known.as_of),
            is_provisional = given.is_provisional
        WHERE s.id = given.id;
    END IF;
END;
$$;

CREATE FUNCTION app.put_stripe_view(
    noun text,
    view jsonb,
    source text,
    can_ask boolean,
    match_email boolean DEFAULT FALSE,
    is_dry_run boolean DEFAULT FALSE,
    with_users boolean DEFAULT FALSE,
    OUT verdict text,
    OUT differences text[],
    OUT user_id uuid,
    OUT released_user_id uuid,
    OUT proposed_user_id uuid
)
LANGUAGE plpgsql SET search_path = ''
AS $$
DECLARE
    judged record;
    synced record;
BEGIN
    IF noun = 'customers' THEN
        judged := app.put_stripe_customer(
            view, source, can_ask, match_email, is_dry_run
        );
        released_user_id := judged.released_user_id;
        proposed_user_id := judged.proposed_user_id;
    ELSIF noun = 'subscriptions' THEN
        judged := app.put_stripe_subscription(view, source, can_ask, is_dry_run);
    ELSE
        RETURN;
    END IF;
    verdict := judged.verdict;
    differences := judged.differences;
    user_id := judged.user_id;
    IF with_users AND verdict = 'applied' AND NOT is_dry_run THEN
        IF released_user_id IS NOT NULL THEN
            synced := app.sync_stripe_user(released_user_id);
        END IF;
        IF user_id IS NOT NULL THEN
            synced := app.sync_stripe_user(user_id);
        END IF;
    END IF;
END;
$$;

CREATE FUNCTION app.sync_stripe_user(
    user_id uuid,
    is_dry_run boolean DEFAULT FALSE,
    OUT customer_id text,
    OUT subscription_id text,
    OUT differences text[],
    OUT has_unknown_price boolean
)
LANGUAGE plpgsql SET search_path = ''
AS $$
DECLARE
    held app.users;
    wanted app.users;
    customer app.stripe_customers;
    best app.stripe_subscriptions;
    plan_credits numeric;
BEGIN
    -- Two customers of one user have two locks; here their transactions queue up, and
    -- the statements below see what the first one did. Where a row that refers to the
    -- user is written first, so is this lock: its foreign key would share it otherwise.
    IF is_dry_run THEN
        SELECT u.* INTO held FROM app.users AS u WHERE u.id = user_id;
    ELSE
        SELECT u.* INTO held FROM app.users AS u WHERE u.id = user_id
        FOR NO KEY UPDATE;
    END IF;
    IF held.id IS NULL THEN
        RETURN;
    END IF;
    wanted := held;

    -- A live customer, and of those the one that he has, else the first.
    SELECT c.* INTO customer
    FROM app.stripe_customers AS c
    WHERE c.user_id = held.id
    ORDER BY
        c.is_deleted, c.id = held.stripe_customer_id DESC NULLS LAST, c.created_at, c.id
    LIMIT 1;
    wanted.stripe_customer_id := COALESCE(customer.id, held.stripe_customer_id);
    wanted.created_at := COALESCE(customer.created_at, held.created_at);

    -- An active subscription, and of those the one that is paid longest.
    SELECT s.* INTO best
    FROM app.stripe_subscriptions AS s
    WHERE s.customer_id = wanted.stripe_customer_id
    ORDER BY
        app.is_active_status(s.status) DESC,
        s.current_period_end DESC NULLS LAST,
        s.created_at DESC,
        s.id
    LIMIT 1;
    -- Deleting a customer cancels what it has, whether the news of that came or not.
    IF customer.is_deleted AND best.status <> 'incomplete_expired' THEN
        best.status := 'canceled';
    END IF;
    wanted.stripe_subscription_id := best.id;
    wanted.stripe_price_id := best.price_id;
    wanted.subscription_status := best.status;
    has_unknown_price := FALSE;

    IF app.is_active_status(best.status) THEN
        plan_credits := (
            SELECT p.monthly_credits
            FROM app.plans AS p
            WHERE p.stripe_price_id = best.price_id
        );
        has_unknown_price := plan_credits IS NULL;
        IF best.current_period_end = app.get_period_end(
            best.billing_cycle_anchor, best.current_period_start
        ) THEN
            -- Paid up to the next boundary of Stripe's anchor: the quota's month too.
            wanted.quota_anchor := best.billing_cycle_anchor;
            wanted.next_quota_reset := best.current_period_end;
        ELSIF best.current_period_end - best.current_period_start
            BETWEEN interval '28 days' AND interval '31 days'
        THEN
            wanted.quota_anchor := best.current_period_end;
            wanted.next_quota_reset := best.current_period_end;
        ELSE
            -- More than a month is paid, or less: the quota resets monthly all the same.
            -- A lapsed reset on the same boundaries means the next one already.
            wanted.quota_anchor := COALESCE(
                best.billing_cycle_anchor, best.current_period_end, held.quota_anchor
            );
            IF wanted.quota_anchor <> held.quota_anchor
                OR held.next_quota_reset > now()
            THEN
                wanted.next_quota_reset := app.get_period_end(
                    wanted.quota_anchor, now()
                );
            END IF;
        END IF;
    END IF;

    wanted.base_quota := COALESCE(
        plan_credits,
        (SELECT p.monthly_credits FROM app.plans AS p WHERE p.id = 'free'),
        held.base_quota
    );

    customer_id := wanted.stripe_customer_id;
    subscription_id := wanted.stripe_subscription_id;
    differences := array_remove(ARRAY[
        CASE
            WHEN wanted.stripe_customer_id IS DISTINCT FROM held.stripe_customer_id
                THEN 'unlinked'
        END,
        CASE WHEN wanted.created_at <> held.created_at THEN 'created_at' END,
        CASE
            WHEN (wanted.stripe_subscription_id, wanted.subscription_status)
                IS DISTINCT FROM (held.stripe_subscription_id, held.subscription_status)
                THEN 'status'
        END,
        CASE
            WHEN (wanted.stripe_price_id, wanted.base_quota)
                IS DISTINCT FROM (held.stripe_price_id, held.base_quota)
                THEN 'price'
        END,
        CASE
            WHEN (wanted.quota_anchor, wanted.next_quota_reset)
                IS DISTINCT FROM (held.quota_anchor, held.next_quota_reset)
                THEN 'period'
        END
    ], NULL);
    IF differences <> '{}' AND NOT is_dry_run THEN
        UPDATE app.users AS u
        SET
            stripe_customer_id = wanted.stripe_customer_id,
            created_at = wanted.created_at,
            stripe_subscription_id = wanted.stripe_subscription_id,
            stripe_price_id = wanted.stripe_price_id,
            subscription_status = wanted.subscription_status,
            base_quota = wanted.base_quota,
            quota_anchor = wanted.quota_anchor,
            next_quota_reset = wanted.next_quota_reset
        WHERE u.id = held.id;
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION app.take_stripe_event(
    id text,
    type text,
    api_version text,
    event_created_at timestamptz,
    payload jsonb,
    lock_key text,
    noun text,
    view jsonb,
    can_ask boolean
)
RETURNS text LANGUAGE plpgsql SET search_path = ''
AS $$
#variable_conflict use_column
DECLARE
    result text := 'ignored';
    judged record;
BEGIN
    -- What the lock waits for must be seen after it.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'app.take_stripe_event needs READ COMMITTED'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM app.lock_stripe_customer(lock_key);
    IF EXISTS (
        SELECT FROM app.stripe_events AS e
        WHERE e.id = take_stripe_event.id
            AND e.status IN ('applied', 'stale', 'ignored')
    ) THEN
        RETURN 'duplicate';
    END IF;

    IF noun IS NOT NULL THEN
        judged := app.put_stripe_view(
            noun, view, 'event', can_ask, FALSE, FALSE, TRUE
        );
        result := judged.verdict;
        IF result = 'unclear' THEN
            RETURN result;
        END IF;
    END IF;
    INSERT INTO app.stripe_events AS e (
        id, type, api_version, event_created_at, payload, status, attempts, processed_at
    )
    VALUES (
        take_stripe_event.id, take_stripe_event.type, take_stripe_event.api_version,
        take_stripe_event.event_created_at, take_stripe_event.payload, result, 1, now()
    )
    ON CONFLICT (id) DO UPDATE
    SET
        status = excluded.status,
        payload = excluded.payload,
        attempts = e.attempts + 1,
        processed_at = excluded.processed_at
    WHERE e.status IN ('received', 'failed');
    RETURN result;
END;
$$;

COMMENT ON FUNCTION app.put_stripe_customer(jsonb, text, boolean, boolean, boolean) IS
    'Judges a view of a customer, its user_id a claim, and keeps it if it counts.';
COMMENT ON FUNCTION app.put_stripe_subscription(jsonb, text, boolean, boolean) IS
    'Judges a view of a subscription, and keeps it if it counts.';
COMMENT ON FUNCTION app.put_stripe_view(
    text, jsonb, text, boolean, boolean, boolean, boolean
) IS
    'Judges a view of a customer or subscription, and syncs its users if told so.';
COMMENT ON FUNCTION app.sync_stripe_user(uuid, boolean) IS
    'Gives a user what his customer and its best subscription say, and tells it.';
