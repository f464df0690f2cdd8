-- Loses all prices of a plan and items of a subscription but one, and claims.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09

-- Readers and writers of these tables wait for the lock below.
-- squawk-ignore-file require-concurrent-index-creation
-- squawk-ignore-file require-concurrent-index-deletion
-- squawk-ignore-file disallowed-unique-constraint, adding-foreign-key-constraint

-- An INSERT into users locks users, then plans, for a default: the same order, because
-- DROP TRIGGER below needs this lock.
LOCK TABLE app.users IN ACCESS EXCLUSIVE MODE;

LOCK TABLE app.plans, app.stripe_customers, app.stripe_subscriptions
IN ACCESS EXCLUSIVE MODE;

-- Functions

DROP TRIGGER users_take_stripe_claims ON app.users;
DROP FUNCTION app.take_stripe_claims();
DROP VIEW app.stripe_entitlements;
DROP FUNCTION app.upsert_stripe_subscriptions(jsonb, text, boolean);
DROP FUNCTION app.compare_stripe_subscriptions(jsonb, text, boolean);
DROP FUNCTION app.replace_stripe_items(text[], jsonb[]);
DROP FUNCTION app.claim_subscription_customers(jsonb, text, boolean);
DROP FUNCTION app.find_subscription_claims(jsonb, text, boolean);
DROP FUNCTION app.compare_stripe_items(text, jsonb);
DROP FUNCTION app.read_stripe_items(jsonb);
DROP FUNCTION app.apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, boolean, jsonb
);
DROP FUNCTION app.sync_stripe_users(uuid[]);
DROP FUNCTION app.get_paid_period(boolean, timestamptz, timestamptz, timestamptz);
DROP FUNCTION app.find_best_item(uuid, text);
DROP FUNCTION app.find_bought_plan(text, bigint);
DROP FUNCTION app.upsert_stripe_customers(jsonb, text, boolean, boolean);
DROP FUNCTION app.compare_stripe_customers(jsonb, text, boolean, boolean);
DROP FUNCTION app.resolve_stripe_customers(jsonb, text, boolean);
DROP FUNCTION app.find_customer_owners(jsonb);
DROP FUNCTION app.list_user_customers(uuid, text);
DROP FUNCTION app.claim_stripe_customers(jsonb, text);
DROP FUNCTION app.compare_stripe_claims(jsonb, text);
DROP FUNCTION app.find_snapshot_claims(jsonb);
DROP FUNCTION app.find_customer_claim(text);
DROP FUNCTION app.get_claim_strength(text, boolean);
DROP FUNCTION app.compare_stripe_snapshot(
    timestamptz, timestamptz, boolean, text, boolean
);
DROP FUNCTION app.lock_snapshot_users(jsonb, boolean);

-- Tables

ALTER TABLE app.plans ADD COLUMN stripe_price_id text;

COMMENT ON COLUMN app.plans.stripe_price_id IS
    'Stripe price that buys the plan; NULL if none does. Set by the operator.';

-- The price that most subscriptions have.
UPDATE app.plans AS p
SET stripe_price_id = (
    SELECT pp.stripe_price_id
    FROM app.plan_prices AS pp
    LEFT JOIN app.stripe_subscription_items AS i ON pp.stripe_price_id = i.price_id
    WHERE pp.plan_id = p.id
    GROUP BY pp.stripe_price_id
    ORDER BY count(i.id) DESC, pp.stripe_price_id ASC
    LIMIT 1
);

ALTER TABLE app.plans
    ADD CONSTRAINT plans_stripe_price_id_key UNIQUE (stripe_price_id);

ALTER TABLE app.stripe_subscriptions
    DROP COLUMN claimed_user_id,
    DROP COLUMN pause_resumes_at,
    DROP COLUMN pause_behavior,
    DROP COLUMN trial_end,
    DROP COLUMN cancel_at,
    ADD COLUMN user_id uuid,
    ADD COLUMN price_id text,
    ADD COLUMN current_period_start timestamptz,
    ADD COLUMN current_period_end timestamptz;

COMMENT ON COLUMN app.stripe_subscriptions.user_id IS
    'User of the customer; NULL until the customer is linked.';
COMMENT ON COLUMN app.stripe_subscriptions.price_id IS
    'Price of the item that decides the plan; NULL if it has none.';
COMMENT ON COLUMN app.stripe_subscriptions.current_period_start IS
    'Start of the paid period; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscriptions.current_period_end IS
    'End of the paid period, the earliest of its items; NULL if Stripe gives none.';

UPDATE app.stripe_subscriptions AS s
SET
    user_id = (
        SELECT c.user_id
        FROM app.stripe_customers AS c
        WHERE c.id = s.customer_id
    ),
    price_id = i.price_id,
    current_period_start = i.current_period_start,
    current_period_end = i.current_period_end
FROM (
    SELECT DISTINCT ON (t.id)
        t.id AS subscription_id,
        k.price_id,
        k.current_period_start,
        k.current_period_end
    FROM app.stripe_subscriptions AS t
    LEFT JOIN app.stripe_subscription_items AS k ON t.id = k.subscription_id
    LEFT JOIN app.plans AS p ON k.price_id = p.stripe_price_id
    ORDER BY
        t.id ASC,
        p.monthly_credits DESC NULLS LAST,
        k.current_period_end DESC NULLS LAST,
        k.id ASC
) AS i
WHERE s.id = i.subscription_id;

ALTER TABLE app.stripe_subscriptions
    ADD CONSTRAINT stripe_subscriptions_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app.users (id) ON DELETE RESTRICT;

CREATE INDEX stripe_subscriptions_user_id_idx ON app.stripe_subscriptions (user_id);

DROP TABLE app.stripe_subscription_items;
DROP TABLE app.plan_prices;
DROP INDEX app.stripe_customers_pending_claim_idx;

ALTER TABLE app.stripe_customers
    DROP CONSTRAINT stripe_customers_claim_has_source_check,
    DROP CONSTRAINT stripe_customers_claim_source_known_check,
    DROP COLUMN claim_source,
    DROP COLUMN claimed_user_id;

COMMENT ON COLUMN app.users.stripe_customer_id IS
    'Linked Stripe customer, cus_...; NULL if none.';
COMMENT ON COLUMN app.users.stripe_subscription_id IS
    'Best Stripe subscription, sub_...: active first, then latest end; NULL if none.';
COMMENT ON COLUMN app.users.stripe_price_id IS
    'Stripe price of the best subscription; NULL if there is none, or without price.';
COMMENT ON COLUMN app.users.subscription_status IS
    'Status of the best subscription as reported by Stripe; NULL if there is none.';
COMMENT ON COLUMN app.stripe_customers.user_id IS
    'User linked by metadata or checkout; NULL if none.';
COMMENT ON COLUMN app.stripe_customers.as_of IS
    'Stripe''s time of the snapshot stored in this row.';

-- Functions of the release before

CREATE FUNCTION app.lock_snapshot_users(snapshots jsonb, match_email boolean)
RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    -- Before rows are written whose foreign keys lock the same users in another order.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = ANY(ARRAY(
        SELECT unnest(ARRAY[
            (v.snapshot ->> 'user_id')::uuid,
            (SELECT c.user_id FROM app.stripe_customers AS c WHERE c.id = n.id),
            (SELECT h.id FROM app.users AS h WHERE h.stripe_customer_id = n.id),
            (
                SELECT p.id
                FROM app.users AS p
                WHERE match_email AND lower(p.email) = lower(v.snapshot ->> 'email')
            )
        ])
        FROM jsonb_array_elements(snapshots) AS v (snapshot)
        CROSS JOIN LATERAL (
            SELECT COALESCE(v.snapshot ->> 'customer_id', v.snapshot ->> 'id') AS id
        ) AS n
    ))
    ORDER BY u.id
    FOR NO KEY UPDATE;
END;
$$;

COMMENT ON FUNCTION app.lock_snapshot_users(jsonb, boolean) IS
    'Locks in id order all users that the customers in snapshots have, had or may get.';

CREATE FUNCTION app.compare_stripe_snapshot(
    seen_at timestamptz,
    known_at timestamptz,
    is_unchanged boolean,
    source text,
    can_fetch boolean
)
RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN known_at IS NULL OR source = 'object' THEN 'applied'
    -- The time of a fetched row is that of the request. The row may contain a change
    -- that Stripe made between the request and the response, in the next second.
    WHEN date_trunc('second', seen_at) >= known_at + interval '1 second' THEN 'applied'
    WHEN is_unchanged
        AND date_trunc('second', seen_at) >= date_trunc('second', known_at)
        THEN 'applied'
    WHEN date_trunc('second', seen_at) < date_trunc('second', known_at)
        AND (is_unchanged OR source = 'event')
        THEN 'stale'
    WHEN can_fetch THEN 'ambiguous'
    ELSE 'applied'
END;

COMMENT ON FUNCTION app.compare_stripe_snapshot(
    timestamptz, timestamptz, boolean, text, boolean
) IS
    'Compares snapshot times: applied, stale or ambiguous (same second, new content).';

CREATE FUNCTION app.find_customer_owners(snapshots jsonb)
RETURNS TABLE (
    id text,
    email text,
    is_deleted boolean,
    created_at timestamptz,
    as_of timestamptz,
    known_user_id uuid,
    was_deleted boolean,
    known_created_at timestamptz,
    known_as_of timestamptz,
    was_provisional boolean,
    holder_id uuid,
    owner_id uuid,
    is_relinked boolean,
    proposed_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH owned AS MATERIALIZED (
        SELECT DISTINCT ON (g.id)
            g.id,
            g.email,
            g.is_deleted,
            COALESCE(g.created_at, known.created_at) AS created_at,
            g.as_of,
            known.user_id AS known_user_id,
            known.is_deleted AS was_deleted,
            known.created_at AS known_created_at,
            known.as_of AS known_as_of,
            known.is_provisional AS was_provisional,
            holder.id AS holder_id,
            COALESCE(claimant.id, known.user_id, holder.id) AS owner_id,
            claimant.id IS NOT NULL
            AND (claimant.id IS DISTINCT FROM known.user_id) AS is_relinked
        FROM jsonb_to_recordset(snapshots) AS g (
            id text,
            user_id uuid,
            email text,
            is_deleted boolean,
            created_at timestamptz,
            as_of timestamptz
        )
        LEFT JOIN LATERAL (
            SELECT c.*
            FROM app.stripe_customers AS c
            WHERE c.id = g.id
            LIMIT 1
        ) AS known ON TRUE
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.id = g.user_id
            LIMIT 1
        ) AS claimant ON TRUE
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.stripe_customer_id = g.id
            LIMIT 1
        ) AS holder ON TRUE
        ORDER BY g.id
    )

    SELECT
        o.*,
        (
            SELECT u.id
            FROM app.users AS u
            WHERE o.owner_id IS NULL
                AND lower(u.email) = lower(o.email)
                AND u.stripe_customer_id IS NULL
                AND NOT EXISTS (
                    SELECT
                    FROM owned AS other
                    WHERE other.owner_id = u.id
                )
        ) AS proposed_user_id
    FROM owned AS o;
END;

COMMENT ON FUNCTION app.find_customer_owners(jsonb) IS
    'Customer snapshots, their stored rows, the users they have and may get by e-mail.';

CREATE FUNCTION app.compare_stripe_customers(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean
)
RETURNS TABLE (
    id text,
    user_id uuid,
    is_deleted boolean,
    created_at timestamptz,
    as_of timestamptz,
    is_provisional boolean,
    result text,
    differences text[],
    released_user_id uuid,
    proposed_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH resolved AS (
        SELECT
            o.*,
            COALESCE(
                o.owner_id, CASE WHEN match_email THEN o.proposed_user_id END
            ) AS user_id,
            -- A page or a fetched object revives a deleted customer; an event does not.
            o.is_deleted OR (o.was_deleted IS TRUE AND source = 'event') AS is_gone,
            o.was_deleted IS TRUE AND NOT o.is_deleted AND source <> 'event'
                AS is_revived
        FROM app.find_customer_owners(snapshots) AS o
    )

    SELECT
        r.id,
        r.user_id,
        r.is_gone AS is_deleted,
        r.created_at,
        r.as_of,
        COALESCE(
            source = 'event'
            AND r.known_created_at IS NOT NULL
            AND date_trunc('second', r.as_of) = date_trunc('second', r.known_as_of)
            AND (r.was_provisional OR r.is_relinked),
            FALSE
        ) AS is_provisional,
        CASE
            -- Only the id is known, from a checkout: any snapshot is newer.
            WHEN r.known_created_at IS NULL THEN 'applied'
            -- A deletion is final.
            WHEN r.is_deleted AND NOT r.was_deleted THEN 'applied'
            ELSE app.compare_stripe_snapshot(
                r.as_of,
                r.known_as_of,
                NOT r.is_relinked
                AND NOT r.is_revived
                AND NOT (r.was_provisional AND source = 'page'),
                source,
                can_fetch
            )
        END AS result,
        array_remove(ARRAY[
            CASE WHEN r.known_as_of IS NULL OR r.is_revived THEN 'missing_here' END,
            CASE WHEN r.is_gone AND NOT r.was_deleted THEN 'missing_there' END,
            CASE
                WHEN r.created_at IS DISTINCT FROM r.known_created_at
                    AND r.known_as_of IS NOT NULL
                    THEN 'created_at'
            END,
            CASE
                WHEN NOT r.is_gone AND r.user_id IS NULL THEN 'unlinked'
                WHEN r.user_id IS DISTINCT FROM r.known_user_id
                    AND r.known_as_of IS NOT NULL
                    THEN 'unlinked'
            END
        ], NULL) AS differences,
        CASE WHEN r.holder_id <> r.user_id THEN r.holder_id END AS released_user_id,
        r.proposed_user_id
    FROM resolved AS r;
END;

COMMENT ON FUNCTION app.compare_stripe_customers(jsonb, text, boolean, boolean) IS
    'Customer rows as the snapshots would make them, each with its result.';

CREATE FUNCTION app.upsert_stripe_customers(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean,
    is_dry_run boolean
)
RETURNS TABLE (
    id text,
    result text,
    differences text[],
    user_id uuid,
    released_user_id uuid,
    proposed_user_id uuid
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
    IF NOT is_dry_run THEN
        PERFORM app.lock_snapshot_users(snapshots, match_email);
    END IF;

    RETURN QUERY
    WITH compared AS MATERIALIZED (
        SELECT c.*
        FROM app.compare_stripe_customers(
            snapshots, source, can_fetch, match_email
        ) AS c
    ),

    newer AS MATERIALIZED (
        SELECT c.*
        FROM compared AS c
        WHERE c.result = 'applied' AND NOT is_dry_run
    ),

    upserted AS (
        INSERT INTO app.stripe_customers AS c (
            id, user_id, is_deleted, created_at, as_of, is_provisional
        )
        SELECT
            n.id,
            n.user_id,
            n.is_deleted,
            n.created_at,
            n.as_of,
            n.is_provisional
        FROM newer AS n
        ON CONFLICT (id) DO UPDATE
        SET
            user_id = excluded.user_id,
            is_deleted = excluded.is_deleted,
            created_at = excluded.created_at,
            as_of = GREATEST(excluded.as_of, c.as_of),
            is_provisional = excluded.is_provisional
    ),

    moved AS (
        UPDATE app.stripe_subscriptions AS s
        SET user_id = n.user_id
        FROM newer AS n
        WHERE s.customer_id = n.id
            AND s.customer_id = ANY(ARRAY(SELECT o.id FROM newer AS o))
            AND s.user_id IS DISTINCT FROM n.user_id
    ),

    -- A customer has one user: clear the old link before sync_stripe_users sets the new.
    released AS (
        UPDATE app.users AS u
        SET stripe_customer_id = NULL
        WHERE u.id = ANY(ARRAY(SELECT n.released_user_id FROM newer AS n))
    )

    SELECT
        c.id,
        c.result,
        c.differences,
        c.user_id,
        n.released_user_id,
        c.proposed_user_id
    FROM compared AS c
    LEFT JOIN newer AS n ON c.id = n.id
    ORDER BY c.id;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_customers(
    jsonb, text, boolean, boolean, boolean
) IS
    'Upserts customer snapshots newer than the stored rows; returns a result for each.';

CREATE FUNCTION app.compare_stripe_subscriptions(
    snapshots jsonb, source text, can_fetch boolean
)
RETURNS TABLE (
    id text,
    customer_id text,
    user_id uuid,
    status text,
    price_id text,
    current_period_start timestamptz,
    current_period_end timestamptz,
    billing_cycle_anchor timestamptz,
    cancel_at_period_end boolean,
    canceled_at timestamptz,
    created_at timestamptz,
    as_of timestamptz,
    is_provisional boolean,
    result text,
    differences text[]
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH compared AS (
        SELECT DISTINCT ON (g.id)
            g.*,
            k.as_of AS known_as_of,
            k.is_provisional AS was_provisional,
            COALESCE(customer.user_id, holder.id) AS owner_id,
            -- A restored dump of a comparison of longer rows has another text.
            array_remove(ARRAY[
                CASE
                    WHEN (g.status, g.canceled_at)
                        IS DISTINCT FROM (k.status, k.canceled_at)
                        THEN 'status'
                END,
                CASE WHEN g.price_id IS DISTINCT FROM k.price_id THEN 'price' END,
                CASE
                    WHEN (g.current_period_start, g.current_period_end)
                        IS DISTINCT FROM (k.current_period_start, k.current_period_end)
                        THEN 'period'
                    WHEN (g.billing_cycle_anchor, g.cancel_at_period_end)
                        IS DISTINCT FROM (
                            k.billing_cycle_anchor, k.cancel_at_period_end
                        )
                        THEN 'period'
                END,
                CASE WHEN g.created_at <> k.created_at THEN 'created_at' END
            ], NULL) AS changes
        FROM jsonb_populate_recordset(NULL::app.stripe_subscriptions, snapshots) AS g
        LEFT JOIN LATERAL (
            SELECT s.*
            FROM app.stripe_subscriptions AS s
            WHERE s.id = g.id
            LIMIT 1
        ) AS k ON TRUE
        LEFT JOIN LATERAL (
            SELECT c.user_id
            FROM app.stripe_customers AS c
            WHERE c.id = g.customer_id
            LIMIT 1
        ) AS customer ON TRUE
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.stripe_customer_id = g.customer_id
            LIMIT 1
        ) AS holder ON TRUE
        ORDER BY g.id
    )

    SELECT
        c.id,
        c.customer_id,
        c.owner_id AS user_id,
        c.status,
        c.price_id,
        c.current_period_start,
        c.current_period_end,
        c.billing_cycle_anchor,
        c.cancel_at_period_end,
        c.canceled_at,
        c.created_at,
        c.as_of,
        COALESCE(
            source = 'event'
            AND date_trunc('second', c.as_of) = date_trunc('second', c.known_as_of)
            AND (c.was_provisional OR c.changes <> '{}'),
            FALSE
        ) AS is_provisional,
        app.compare_stripe_snapshot(
            c.as_of,
            c.known_as_of,
            c.changes = '{}' AND NOT (c.was_provisional AND source = 'page'),
            source,
            can_fetch
        ) AS result,
        CASE
            WHEN c.known_as_of IS NULL THEN ARRAY['missing_here']
            ELSE c.changes
        END AS differences
    FROM compared AS c;
END;

COMMENT ON FUNCTION app.compare_stripe_subscriptions(jsonb, text, boolean) IS
    'Subscription rows as the snapshots would make them, each with its result.';

CREATE FUNCTION app.upsert_stripe_subscriptions(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    is_dry_run boolean
)
RETURNS TABLE (id text, result text, differences text[], user_id uuid)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
    IF NOT is_dry_run THEN
        PERFORM app.lock_snapshot_users(snapshots, FALSE);
    END IF;

    RETURN QUERY
    WITH compared AS MATERIALIZED (
        SELECT c.*
        FROM app.compare_stripe_subscriptions(snapshots, source, can_fetch) AS c
    ),

    upserted AS (
        INSERT INTO app.stripe_subscriptions AS s (
            id, customer_id, user_id, status, price_id, current_period_start,
            current_period_end, billing_cycle_anchor, cancel_at_period_end, canceled_at,
            created_at, as_of, is_provisional
        )
        SELECT
            c.id,
            c.customer_id,
            c.user_id,
            c.status,
            c.price_id,
            c.current_period_start,
            c.current_period_end,
            c.billing_cycle_anchor,
            c.cancel_at_period_end,
            c.canceled_at,
            c.created_at,
            c.as_of,
            c.is_provisional
        FROM compared AS c
        WHERE c.result = 'applied' AND NOT is_dry_run
        ON CONFLICT (id) DO UPDATE
        SET
            customer_id = excluded.customer_id,
            user_id = excluded.user_id,
            status = excluded.status,
            price_id = excluded.price_id,
            current_period_start = excluded.current_period_start,
            current_period_end = excluded.current_period_end,
            billing_cycle_anchor = excluded.billing_cycle_anchor,
            cancel_at_period_end = excluded.cancel_at_period_end,
            canceled_at = excluded.canceled_at,
            created_at = excluded.created_at,
            as_of = GREATEST(excluded.as_of, s.as_of),
            is_provisional = excluded.is_provisional
    )

    SELECT
        c.id,
        c.result,
        c.differences,
        c.user_id
    FROM compared AS c
    ORDER BY c.id;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_subscriptions(jsonb, text, boolean, boolean) IS
    'Upserts subscription snapshots newer than the stored rows; a result for each.';

CREATE FUNCTION app.find_user_customer(user_id uuid, linked_id text)
RETURNS TABLE (id text, is_deleted boolean, created_at timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        c.id,
        c.is_deleted,
        c.created_at
    FROM (
        SELECT
            m.id,
            m.is_deleted,
            m.created_at
        FROM app.stripe_customers AS m
        WHERE m.user_id = find_user_customer.user_id
        UNION ALL
        -- The linked customer may not be in the mirror yet.
        SELECT
            linked_id AS id,
            FALSE AS is_deleted,
            NULL AS created_at
        WHERE linked_id IS NOT NULL
            AND NOT EXISTS (
                SELECT
                FROM app.stripe_customers AS m
                WHERE m.id = linked_id
            )
    ) AS c
    ORDER BY
        c.is_deleted,
        EXISTS (
            SELECT
            FROM app.stripe_subscriptions AS s
            WHERE s.customer_id = c.id AND app.is_active_status(s.status)
        ) DESC,
        c.id = linked_id DESC NULLS LAST,
        c.created_at,
        c.id
    LIMIT 1;
END;

COMMENT ON FUNCTION app.find_user_customer(uuid, text) IS
    'The user''s customer that counts: live, then subscribed, then linked, oldest.';

CREATE FUNCTION app.find_best_subscription(
    customer_id text, is_customer_deleted boolean
)
RETURNS TABLE (
    id text,
    price_id text,
    status text,
    is_active boolean,
    quota_anchor timestamptz,
    next_quota_reset timestamptz
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH best AS (
        SELECT
            s.id,
            s.price_id,
            s.billing_cycle_anchor AS anchor,
            s.current_period_start AS period_start,
            s.current_period_end AS period_end,
            -- Deleting a customer cancels its subscriptions, even if no event says so.
            CASE
                WHEN is_customer_deleted AND s.status <> 'incomplete_expired'
                    THEN 'canceled'
                ELSE s.status
            END AS status
        FROM app.stripe_subscriptions AS s
        WHERE s.customer_id = find_best_subscription.customer_id
        ORDER BY
            app.is_active_status(s.status) DESC,
            s.current_period_end DESC NULLS LAST,
            s.created_at DESC,
            s.id
        LIMIT 1
    ),

    -- The quota's period is the paid one if that ends on Stripe's anchor or is a month.
    paid AS (
        SELECT
            b.id,
            b.price_id,
            b.anchor,
            b.period_end,
            b.status,
            app.is_active_status(b.status) AS is_active,
            b.period_end = app.get_period_end(b.anchor, b.period_start) AS is_on_anchor,
            b.period_end - b.period_start
                BETWEEN interval '28 days' AND interval '31 days' AS is_month
        FROM best AS b
        LIMIT ALL
    )

    SELECT
        p.id,
        p.price_id,
        p.status,
        p.is_active,
        -- NULL: the user keeps its anchor and its reset.
        CASE
            WHEN NOT p.is_active THEN NULL
            WHEN p.is_on_anchor THEN p.anchor
            WHEN p.is_month THEN p.period_end
            ELSE COALESCE(p.anchor, p.period_end)
        END AS quota_anchor,
        CASE
            WHEN p.is_active AND (p.is_on_anchor OR p.is_month) THEN p.period_end
        END AS next_quota_reset
    FROM paid AS p;
END;

COMMENT ON FUNCTION app.find_best_subscription(text, boolean) IS
    'The customer''s subscription that counts: active first, then the latest end.';

CREATE VIEW app.stripe_entitlements WITH (security_invoker = TRUE) AS
SELECT
    u.id,
    e.stripe_customer_id,
    e.created_at,
    e.stripe_subscription_id,
    e.stripe_price_id,
    e.subscription_status,
    e.base_quota,
    e.quota_anchor,
    e.next_quota_reset,
    e.has_unknown_price,
    array_remove(ARRAY[
        CASE
            WHEN e.stripe_customer_id IS DISTINCT FROM u.stripe_customer_id
                THEN 'unlinked'
        END,
        CASE WHEN e.created_at <> u.created_at THEN 'created_at' END,
        CASE
            WHEN (e.stripe_subscription_id, e.subscription_status)
                IS DISTINCT FROM (u.stripe_subscription_id, u.subscription_status)
                THEN 'status'
        END,
        CASE
            WHEN (e.stripe_price_id, e.base_quota)
                IS DISTINCT FROM (u.stripe_price_id, u.base_quota)
                THEN 'price'
        END,
        CASE
            WHEN (e.quota_anchor, e.next_quota_reset)
                IS DISTINCT FROM (u.quota_anchor, u.next_quota_reset)
                THEN 'period'
        END
    ], NULL) AS differences,
    CASE
        WHEN best.is_active AND plan.id IS NOT NULL THEN NULL
        WHEN e.stripe_customer_id IS NULL THEN 'no_customer'
        WHEN customer.is_deleted THEN 'deleted_customer'
        WHEN best.id IS NULL THEN 'no_subscription'
        WHEN NOT best.is_active THEN 'inactive_subscription'
        ELSE 'unknown_price'
    END AS reason
FROM app.users AS u
LEFT JOIN LATERAL app.find_user_customer(u.id, u.stripe_customer_id) AS customer ON TRUE
LEFT JOIN LATERAL app.find_best_subscription(
    COALESCE(customer.id, u.stripe_customer_id), customer.is_deleted
) AS best ON TRUE
LEFT JOIN app.plans AS plan ON best.price_id = plan.stripe_price_id
LEFT JOIN app.plans AS free ON free.id = 'free'
CROSS JOIN LATERAL ( -- noqa: ST05
    SELECT
        COALESCE(customer.id, u.stripe_customer_id) AS stripe_customer_id,
        COALESCE(customer.created_at, u.created_at) AS created_at,
        best.id AS stripe_subscription_id,
        best.price_id AS stripe_price_id,
        best.status AS subscription_status,
        COALESCE(
            CASE WHEN best.is_active THEN plan.monthly_credits END,
            free.monthly_credits,
            u.base_quota
        ) AS base_quota,
        COALESCE(best.quota_anchor, u.quota_anchor) AS quota_anchor,
        CASE
            WHEN best.next_quota_reset IS NOT NULL THEN best.next_quota_reset
            -- A lapsed reset on an unchanged anchor already means the next boundary.
            WHEN best.is_active
                AND (best.quota_anchor <> u.quota_anchor OR u.next_quota_reset > now())
                THEN app.get_period_end(
                    COALESCE(best.quota_anchor, u.quota_anchor), now()
                )
            ELSE u.next_quota_reset
        END AS next_quota_reset,
        COALESCE(best.is_active AND plan.id IS NULL, FALSE) AS has_unknown_price
    LIMIT ALL
) AS e;

COMMENT ON VIEW app.stripe_entitlements IS
    'What each user should have by the mirror; sync_stripe_users copies it to users.';
COMMENT ON COLUMN app.stripe_entitlements.id IS
    'The user.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_customer_id IS
    'The customer that counts: live, then subscribed, then linked; NULL if none.';
COMMENT ON COLUMN app.stripe_entitlements.created_at IS
    'When the customer was created at Stripe; the user''s created_at if not known.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_subscription_id IS
    'Its best subscription: active first, then latest period end; NULL if none.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_price_id IS
    'Price of the subscription; NULL if there is none or it has no price.';
COMMENT ON COLUMN app.stripe_entitlements.subscription_status IS
    'Stripe''s status; canceled if the customer is deleted; NULL if no subscription.';
COMMENT ON COLUMN app.stripe_entitlements.base_quota IS
    'Credits a period: of the plan that the price buys if active, else of free.';
COMMENT ON COLUMN app.stripe_entitlements.quota_anchor IS
    'Periods begin at the anchor plus whole months in UTC; kept if not active.';
COMMENT ON COLUMN app.stripe_entitlements.next_quota_reset IS
    'When the period ends; kept if not active; NULL if it never resets.';
COMMENT ON COLUMN app.stripe_entitlements.has_unknown_price IS
    'Whether the subscription is active and its price buys no plan.';
COMMENT ON COLUMN app.stripe_entitlements.differences IS
    'Groups of columns that differ from users, docs/stripe.md; empty if none.';
COMMENT ON COLUMN app.stripe_entitlements.reason IS
    'Why no paid plan applies: no_customer, deleted_customer, no_subscription,'
    ' inactive_subscription, unknown_price; NULL if one applies.';

CREATE FUNCTION app.sync_stripe_users(
    user_ids uuid[], is_dry_run boolean DEFAULT FALSE
)
RETURNS TABLE (
    id uuid,
    customer_id text,
    subscription_id text,
    differences text[],
    has_unknown_price boolean
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
    -- Transactions of two customers of one user queue here: the statement below sees
    -- what the first one committed.
    IF NOT is_dry_run THEN
        PERFORM u.id
        FROM app.users AS u
        WHERE u.id = ANY(user_ids)
        ORDER BY u.id
        FOR NO KEY UPDATE;
    END IF;

    RETURN QUERY
    WITH entitled AS MATERIALIZED (
        SELECT
            e.id,
            e.stripe_customer_id,
            e.created_at,
            e.stripe_subscription_id,
            e.stripe_price_id,
            e.subscription_status,
            e.base_quota,
            e.quota_anchor,
            e.next_quota_reset,
            e.has_unknown_price,
            e.differences
        FROM app.stripe_entitlements AS e
        WHERE e.id = ANY(user_ids)
    ),

    synced AS (
        UPDATE app.users AS u
        SET
            stripe_customer_id = e.stripe_customer_id,
            created_at = e.created_at,
            stripe_subscription_id = e.stripe_subscription_id,
            stripe_price_id = e.stripe_price_id,
            subscription_status = e.subscription_status,
            base_quota = e.base_quota,
            quota_anchor = e.quota_anchor,
            next_quota_reset = e.next_quota_reset
        FROM entitled AS e
        WHERE u.id = e.id
            AND u.id = ANY(user_ids)
            AND e.differences <> '{}'
            AND NOT is_dry_run
    )

    SELECT
        e.id,
        e.stripe_customer_id AS customer_id,
        e.stripe_subscription_id AS subscription_id,
        e.differences,
        e.has_unknown_price
    FROM entitled AS e
    ORDER BY e.id;
END;
$$;

COMMENT ON FUNCTION app.sync_stripe_users(uuid[], boolean) IS
    'Updates users from the Stripe mirror; returns the differences.';

CREATE FUNCTION app.apply_stripe_event(
    id text,
    type text,
    api_version text,
    event_created_at timestamptz,
    payload jsonb,
    lock_key text,
    object_type text,
    snapshot jsonb,
    can_fetch boolean
)
RETURNS text LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    snapshots jsonb := jsonb_build_array(snapshot);
    result text := 'ignored';
    owner_ids uuid[];
BEGIN
    -- Statements after the lock must see what its last holder committed.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'app.apply_stripe_event needs READ COMMITTED'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM app.lock_stripe_customer(lock_key);
    IF EXISTS (
        SELECT FROM app.stripe_events AS e
        WHERE e.id = apply_stripe_event.id AND e.status <> 'failed'
    ) THEN
        RETURN 'duplicate';
    END IF;

    IF object_type = 'customers' THEN
        SELECT c.result, ARRAY[c.released_user_id, c.user_id] INTO result, owner_ids
        FROM app.upsert_stripe_customers(snapshots, 'event', can_fetch, FALSE, FALSE)
            AS c;
    ELSIF object_type IS NOT NULL THEN
        SELECT s.result, ARRAY[s.user_id] INTO result, owner_ids
        FROM app.upsert_stripe_subscriptions(snapshots, 'event', can_fetch, FALSE)
            AS s;
    END IF;
    IF result = 'ambiguous' THEN
        RETURN result;
    END IF;
    IF result = 'applied' THEN
        PERFORM FROM app.sync_stripe_users(owner_ids);
    END IF;

    INSERT INTO app.stripe_events AS e (
        id, type, api_version, event_created_at, payload, status, attempts, processed_at
    )
    VALUES (
        apply_stripe_event.id, apply_stripe_event.type, apply_stripe_event.api_version,
        apply_stripe_event.event_created_at, apply_stripe_event.payload, result, 1, now()
    )
    ON CONFLICT (id) DO UPDATE
    SET
        status = excluded.status,
        payload = excluded.payload,
        attempts = e.attempts + 1,
        processed_at = excluded.processed_at
    WHERE e.status = 'failed';
    RETURN result;
END;
$$;

COMMENT ON FUNCTION app.apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, jsonb, boolean
) IS
    'Records and applies an event once; ambiguous, with nothing recorded, if its object'
    ' must be fetched.';
