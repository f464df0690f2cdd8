-- All items of subscriptions, all prices of plans, and claims. One transaction, because
-- functions depend on columns of the tables. Run `pyapp db roles` right after it.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05

-- Programs of the release before fail from here on: the changelog says to stop them.
-- squawk-ignore-file ban-drop-column, ban-drop-function, ban-drop-view

-- An INSERT into users locks users, then plans, for a default: the same order, because
-- CREATE TRIGGER below needs this lock.
LOCK TABLE app.users IN SHARE ROW EXCLUSIVE MODE;

-- Programs of the release before write the columns that are copied.
LOCK TABLE app.plans, app.stripe_customers, app.stripe_subscriptions
IN ACCESS EXCLUSIVE MODE;

-- Functions of the release before

DROP VIEW app.stripe_entitlements;
DROP FUNCTION app.apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, jsonb, boolean
);
DROP FUNCTION app.sync_stripe_users(uuid[], boolean);
DROP FUNCTION app.find_best_subscription(text, boolean);
DROP FUNCTION app.find_user_customer(uuid, text);
DROP FUNCTION app.upsert_stripe_subscriptions(jsonb, text, boolean, boolean);
DROP FUNCTION app.compare_stripe_subscriptions(jsonb, text, boolean);
DROP FUNCTION app.upsert_stripe_customers(jsonb, text, boolean, boolean, boolean);
DROP FUNCTION app.compare_stripe_customers(jsonb, text, boolean, boolean);
DROP FUNCTION app.find_customer_owners(jsonb);
DROP FUNCTION app.compare_stripe_snapshot(
    timestamptz, timestamptz, boolean, text, boolean
);
DROP FUNCTION app.lock_snapshot_users(jsonb, boolean);

-- Tables

CREATE TABLE app.plan_prices (
    stripe_price_id text NOT NULL,
    plan_id         text NOT NULL,

    CONSTRAINT plan_prices_pkey PRIMARY KEY (stripe_price_id),
    CONSTRAINT plan_prices_plan_id_fkey FOREIGN KEY (plan_id)
        REFERENCES app.plans (id) ON DELETE RESTRICT,
    CONSTRAINT plan_prices_stripe_price_id_length_check
        CHECK (length(stripe_price_id) BETWEEN 1 AND 255)
);

COMMENT ON TABLE app.plan_prices IS
    'Stripe prices that buy a plan: monthly, yearly, old ones. Set by the operator.';
COMMENT ON COLUMN app.plan_prices.stripe_price_id IS
    'Stripe''s id of the price, or of a legacy plan.';
COMMENT ON COLUMN app.plan_prices.plan_id IS
    'Plan that the price buys.';

CREATE INDEX plan_prices_plan_id_idx ON app.plan_prices (plan_id);

INSERT INTO app.plan_prices (stripe_price_id, plan_id)
SELECT
    p.stripe_price_id,
    p.id
FROM app.plans AS p
WHERE length(p.stripe_price_id) BETWEEN 1 AND 255;

CREATE TABLE app.stripe_subscription_items (
    subscription_id      text NOT NULL,
    id                   text NOT NULL,
    price_id             text,
    unit_amount          numeric,
    quantity             bigint,
    current_period_start timestamptz,
    current_period_end   timestamptz,

    CONSTRAINT stripe_subscription_items_pkey PRIMARY KEY (subscription_id, id),
    CONSTRAINT stripe_subscription_items_subscription_id_fkey
        FOREIGN KEY (subscription_id)
        REFERENCES app.stripe_subscriptions (id) ON DELETE CASCADE,
    CONSTRAINT stripe_subscription_items_id_length_check
        CHECK (length(id) BETWEEN 1 AND 255),
    CONSTRAINT stripe_subscription_items_price_id_length_check
        CHECK (length(price_id) BETWEEN 1 AND 255),
    CONSTRAINT stripe_subscription_items_unit_amount_is_finite_check
        CHECK (unit_amount > '-Infinity' AND unit_amount < 'Infinity'),
    CONSTRAINT stripe_subscription_items_quantity_not_negative_check
        CHECK (quantity >= 0)
);

-- Until the next snapshot, each subscription has one item, with its known price.
INSERT INTO app.stripe_subscription_items (
    subscription_id, id, price_id, current_period_start, current_period_end
)
SELECT
    s.id AS subscription_id,
    s.id,
    s.price_id,
    s.current_period_start,
    s.current_period_end
FROM app.stripe_subscriptions AS s;

ALTER TABLE app.plans DROP COLUMN stripe_price_id;

ALTER TABLE app.stripe_subscriptions
    DROP COLUMN user_id,
    DROP COLUMN price_id,
    DROP COLUMN current_period_start,
    DROP COLUMN current_period_end,
    ADD COLUMN cancel_at timestamptz,
    ADD COLUMN trial_end timestamptz,
    ADD COLUMN pause_behavior text,
    ADD COLUMN pause_resumes_at timestamptz,
    ADD COLUMN claimed_user_id uuid;

ALTER TABLE app.stripe_customers
    ADD COLUMN claimed_user_id uuid,
    ADD COLUMN claim_source text,
    ADD CONSTRAINT stripe_customers_claim_source_known_check CHECK (
        claim_source IN ('customer', 'subscription', 'checkout', 'reference', 'email')
    ) NOT VALID,
    ADD CONSTRAINT stripe_customers_claim_has_source_check
        CHECK ((claimed_user_id IS NULL) = (claim_source IS NULL)) NOT VALID;

-- The table is locked, and no row has a claim.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX stripe_customers_pending_claim_idx
ON app.stripe_customers (claimed_user_id)
WHERE claimed_user_id IS DISTINCT FROM user_id AND claimed_user_id IS NOT NULL;

COMMENT ON COLUMN app.users.stripe_customer_id IS
    'Stripe customer that the entitlement comes from; NULL if none.';
COMMENT ON COLUMN app.users.stripe_subscription_id IS
    'Stripe subscription of the best item (stripe_entitlements); NULL if none.';
COMMENT ON COLUMN app.users.stripe_price_id IS
    'Stripe price of the best item; NULL if there is none, or without price.';
COMMENT ON COLUMN app.users.subscription_status IS
    'Status of that subscription as reported by Stripe; NULL if there is none.';
COMMENT ON COLUMN app.stripe_customers.user_id IS
    'User that the customer belongs to; NULL if none.';
COMMENT ON COLUMN app.stripe_customers.as_of IS
    'Stripe''s time of the snapshot stored in this row; 1970 if only the id is known.';
COMMENT ON COLUMN app.stripe_customers.claimed_user_id IS
    'User that the strongest claim names, once it exists; NULL without a claim.';
COMMENT ON COLUMN app.stripe_customers.claim_source IS
    'Where the claim is, strongest first: customer, subscription, checkout (metadata),'
    ' reference (client_reference_id), email; NULL without a claim.';
COMMENT ON COLUMN app.stripe_subscriptions.cancel_at IS
    'When the subscription will end; NULL if no time is set.';
COMMENT ON COLUMN app.stripe_subscriptions.trial_end IS
    'When the trial ends or ended; NULL if there was none.';
COMMENT ON COLUMN app.stripe_subscriptions.pause_behavior IS
    'What Stripe does with invoices while collection is paused: keep_as_draft,'
    ' mark_uncollectible or void; NULL if it is not paused.';
COMMENT ON COLUMN app.stripe_subscriptions.pause_resumes_at IS
    'When paused collection resumes; NULL if no time is set.';
COMMENT ON COLUMN app.stripe_subscriptions.claimed_user_id IS
    'User that its metadata claims for its customer; NULL if none.';
COMMENT ON TABLE app.stripe_subscription_items IS
    'All items of each Stripe subscription, as in the subscription''s snapshot.';
COMMENT ON COLUMN app.stripe_subscription_items.subscription_id IS
    'Subscription that has the item.';
COMMENT ON COLUMN app.stripe_subscription_items.id IS
    'Stripe''s id; the subscription''s, if Stripe gives the item none.';
COMMENT ON COLUMN app.stripe_subscription_items.price_id IS
    'Stripe price, or legacy plan; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscription_items.unit_amount IS
    'Price of one unit in the currency''s smallest unit; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscription_items.quantity IS
    'Units; NULL if metered, which counts as 1. With 0 the item buys no plan.';
COMMENT ON COLUMN app.stripe_subscription_items.current_period_start IS
    'Start of the item''s paid period; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscription_items.current_period_end IS
    'End of the item''s paid period; NULL if Stripe gives none.';

-- Functions

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
        SELECT
            unnest(
                ARRAY[
                    (v.snapshot ->> 'claimed_user_id')::uuid,
                    c.user_id,
                    c.claimed_user_id,
                    (SELECT h.id FROM app.users AS h WHERE h.stripe_customer_id = n.id),
                    (
                        SELECT p.id
                        FROM app.users AS p
                        WHERE match_email
                            AND lower(p.email) = lower(v.snapshot ->> 'email')
                    )
                ]
            )
        FROM jsonb_array_elements(snapshots) AS v (snapshot)
        CROSS JOIN LATERAL (
            SELECT COALESCE(v.snapshot ->> 'customer_id', v.snapshot ->> 'id') AS id
        ) AS n
        LEFT JOIN LATERAL (
            SELECT
                k.user_id,
                k.claimed_user_id
            FROM app.stripe_customers AS k
            WHERE k.id = n.id
            LIMIT 1
        ) AS c ON TRUE
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
    WHEN is_unchanged THEN
        CASE
            WHEN date_trunc('second', seen_at) > date_trunc('second', known_at)
                THEN 'applied'
            -- An event would change nothing, not even the time of the row.
            WHEN date_trunc('second', seen_at) = date_trunc('second', known_at)
                AND source <> 'event'
                THEN 'applied'
            ELSE 'stale'
        END
    WHEN source = 'event'
        AND date_trunc('second', seen_at) < date_trunc('second', known_at)
        THEN 'stale'
    WHEN can_fetch THEN 'ambiguous'
    ELSE 'applied'
END;

COMMENT ON FUNCTION app.compare_stripe_snapshot(
    timestamptz, timestamptz, boolean, text, boolean
) IS
    'Compares snapshot times: applied, stale or ambiguous (same second, new content).';

CREATE FUNCTION app.get_claim_strength(source text, is_linked boolean)
RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE source
    WHEN 'customer' THEN 5
    WHEN 'subscription' THEN 4
    WHEN 'checkout' THEN 3
    WHEN 'reference' THEN 2
    WHEN 'email' THEN 1
    ELSE CASE WHEN is_linked THEN 4 ELSE 0 END
END;

COMMENT ON FUNCTION app.get_claim_strength(text, boolean) IS
    'Strength of a claim by its source; without a claim, of being linked or not.';

CREATE FUNCTION app.find_customer_claim(customer_id text)
RETURNS TABLE (
    user_id uuid,
    claimed_user_id uuid,
    claim_source text,
    holder_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        k.user_id,
        k.claimed_user_id,
        k.claim_source,
        h.id AS holder_id
    FROM (VALUES (find_customer_claim.customer_id)) AS c (id)
    LEFT JOIN LATERAL (
        SELECT
            s.user_id,
            s.claimed_user_id,
            s.claim_source
        FROM app.stripe_customers AS s
        WHERE s.id = c.id
        LIMIT 1
    ) AS k ON TRUE
    LEFT JOIN LATERAL (
        SELECT o.id
        FROM app.users AS o
        WHERE o.stripe_customer_id = c.id
        LIMIT 1
    ) AS h ON TRUE;
END;

COMMENT ON FUNCTION app.find_customer_claim(text) IS
    'The stored user and claim of a customer, and the user whose row names it.';

CREATE FUNCTION app.find_snapshot_claims(snapshots jsonb)
RETURNS TABLE (
    customer_id text,
    claimed_user_id uuid,
    is_present boolean,
    is_correction boolean
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT DISTINCT ON (g.customer_id)
        g.customer_id,
        g.claimed_user_id,
        u.id IS NOT NULL AS is_present,
        b.id IS NOT NULL AS is_correction
    FROM jsonb_array_elements(snapshots) WITH ORDINALITY AS v (snapshot, n)
    CROSS JOIN LATERAL jsonb_to_record(v.snapshot) AS g (
        id text, customer_id text, claimed_user_id uuid
    )
    LEFT JOIN LATERAL (
        SELECT o.id
        FROM app.users AS o
        WHERE o.id = g.claimed_user_id
        LIMIT 1
    ) AS u ON TRUE
    LEFT JOIN LATERAL (
        SELECT s.id
        FROM app.stripe_subscriptions AS s
        WHERE s.id = g.id
            AND s.claimed_user_id <> g.claimed_user_id
            AND s.claimed_user_id = (
                SELECT c.claimed_user_id
                FROM app.stripe_customers AS c
                WHERE c.id = s.customer_id
            )
            AND NOT EXISTS (
                SELECT
                FROM app.stripe_subscriptions AS other
                WHERE other.customer_id = s.customer_id
                    AND other.id <> s.id
                    AND other.claimed_user_id = s.claimed_user_id
            )
        LIMIT 1
    ) AS b ON TRUE
    ORDER BY
        g.customer_id, b.id IS NULL, u.id IS NULL, g.claimed_user_id IS NULL, v.n;
END;

COMMENT ON FUNCTION app.find_snapshot_claims(jsonb) IS
    'One claim for each customer in snapshots, and whether its user exists.';

CREATE FUNCTION app.compare_stripe_claims(snapshots jsonb, source text)
RETURNS TABLE (
    customer_id text,
    user_id uuid,
    claimed_user_id uuid,
    claim_source text,
    released_user_id uuid,
    conflicting_user_id uuid,
    is_changed boolean
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH known AS (
        SELECT
            c.customer_id,
            c.claimed_user_id,
            c.is_present,
            c.is_correction,
            k.user_id AS known_user_id,
            k.claimed_user_id AS known_claim,
            k.claim_source AS known_source,
            (
                SELECT u.id
                FROM app.users AS u
                WHERE u.id = k.claimed_user_id
            ) IS NOT NULL AS is_known_present,
            k.holder_id,
            app.get_claim_strength(source, FALSE) - app.get_claim_strength(
                k.claim_source, COALESCE(k.user_id, k.holder_id) IS NOT NULL
            ) AS advantage
        FROM app.find_snapshot_claims(snapshots) AS c
        CROSS JOIN LATERAL app.find_customer_claim(c.customer_id) AS k
    ),

    decided AS (
        SELECT
            k.*,
            COALESCE(
                k.claimed_user_id IS NOT NULL
                AND (
                    k.advantage > 0
                    OR (
                        k.advantage = 0
                        AND (
                            k.is_correction
                            OR (
                                k.is_present
                                AND k.known_claim IS NOT NULL
                                AND NOT k.is_known_present
                            )
                        )
                    )
                ),
                FALSE
            ) AS is_winner
        FROM known AS k
    )

    SELECT
        d.customer_id,
        o.user_id,
        CASE WHEN d.is_winner THEN d.claimed_user_id ELSE d.known_claim END
            AS claimed_user_id,
        CASE WHEN d.is_winner THEN compare_stripe_claims.source ELSE d.known_source END
            AS claim_source,
        CASE WHEN d.holder_id <> o.user_id THEN d.holder_id END AS released_user_id,
        CASE
            WHEN NOT d.is_winner
                AND d.claimed_user_id
                <> COALESCE(d.known_claim, d.known_user_id, d.holder_id)
                THEN d.claimed_user_id
        END AS conflicting_user_id,
        (
            d.is_winner OR o.user_id IS DISTINCT FROM d.known_user_id
        ) AS is_changed
    FROM decided AS d
    CROSS JOIN LATERAL (
        SELECT
            CASE
                WHEN d.is_winner AND d.is_present THEN d.claimed_user_id
                WHEN NOT d.is_winner AND d.is_known_present THEN d.known_claim
                ELSE d.known_user_id
            END AS user_id
    ) AS o;
END;

COMMENT ON FUNCTION app.compare_stripe_claims(jsonb, text) IS
    'The claim and the user of each customer, after the claims of the snapshots.';

CREATE FUNCTION app.claim_stripe_customers(snapshots jsonb, source text)
RETURNS TABLE (
    customer_id text,
    user_id uuid,
    released_user_id uuid,
    conflicting_user_id uuid,
    is_changed boolean
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH compared AS MATERIALIZED (
        SELECT c.*
        FROM app.compare_stripe_claims(snapshots, claim_stripe_customers.source) AS c
    ),

    changed AS MATERIALIZED (
        SELECT c.*
        FROM compared AS c
        WHERE c.is_changed
    ),

    upserted AS (
        INSERT INTO app.stripe_customers AS c (
            id, user_id, claimed_user_id, claim_source, as_of
        )
        SELECT
            n.customer_id,
            n.user_id,
            n.claimed_user_id,
            n.claim_source,
            -- Older than each snapshot: no snapshot of the customer is stored.
            to_timestamp(0)
        FROM changed AS n
        ON CONFLICT (id) DO UPDATE
        SET
            user_id = excluded.user_id,
            claimed_user_id = excluded.claimed_user_id,
            claim_source = excluded.claim_source
    ),

    released AS (
        UPDATE app.users AS u
        SET stripe_customer_id = NULL
        WHERE u.id = ANY(ARRAY(SELECT n.released_user_id FROM changed AS n))
    )

    SELECT
        c.customer_id,
        c.user_id,
        n.released_user_id,
        c.conflicting_user_id,
        c.is_changed
    FROM compared AS c
    LEFT JOIN changed AS n ON c.customer_id = n.customer_id
    ORDER BY c.customer_id;
END;
$$;

COMMENT ON FUNCTION app.claim_stripe_customers(jsonb, text) IS
    'Stores the claims of snapshots that win, and links the customers. The caller locks'
    ' their users.';

CREATE FUNCTION app.list_user_customers(user_id uuid, linked_id text)
RETURNS TABLE (
    id text, is_deleted boolean, created_at timestamptz, claim_source text
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        m.id,
        m.is_deleted,
        m.created_at,
        m.claim_source
    FROM app.stripe_customers AS m
    WHERE m.user_id = list_user_customers.user_id
    UNION ALL
    -- The linked customer may not be in the mirror yet.
    SELECT
        linked_id AS id,
        FALSE AS is_deleted,
        NULL AS created_at,
        NULL AS claim_source
    WHERE linked_id IS NOT NULL
        AND NOT EXISTS (
            SELECT
            FROM app.stripe_customers AS m
            WHERE m.id = linked_id
        );
END;

COMMENT ON FUNCTION app.list_user_customers(uuid, text) IS
    'The customers of a user, with the linked one.';

CREATE FUNCTION app.find_customer_owners(snapshots jsonb)
RETURNS TABLE (
    id text,
    email text,
    is_deleted boolean,
    created_at timestamptz,
    as_of timestamptz,
    known app.stripe_customers,
    claimed_user_id uuid,
    claim_source text,
    holder_id uuid,
    owner_id uuid,
    proposed_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH owned AS MATERIALIZED (
        SELECT DISTINCT ON (g.id)
            g.id,
            g.email,
            g.is_deleted,
            COALESCE(g.created_at, (k.known).created_at) AS created_at,
            g.as_of,
            k.known,
            claim.user_id AS claimed_user_id,
            claim.source AS claim_source,
            holder.id AS holder_id,
            COALESCE(claimant.id, (k.known).user_id, holder.id) AS owner_id
        FROM jsonb_to_recordset(snapshots) AS g (
            id text,
            claimed_user_id uuid,
            email text,
            is_deleted boolean,
            created_at timestamptz,
            as_of timestamptz
        )
        LEFT JOIN LATERAL (
            SELECT c AS known
            FROM app.stripe_customers AS c
            WHERE c.id = g.id
            LIMIT 1
        ) AS k ON TRUE
        CROSS JOIN LATERAL (
            SELECT
                COALESCE(g.claimed_user_id, s.user_id) AS user_id,
                CASE
                    WHEN g.claimed_user_id IS NOT NULL THEN 'customer'
                    WHEN s.user_id IS NOT NULL THEN (k.known).claim_source
                END AS source
            FROM (
                SELECT
                    CASE
                        WHEN g.is_deleted OR (k.known).claim_source <> 'customer'
                            THEN (k.known).claimed_user_id
                    END AS user_id
            ) AS s
        ) AS claim
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.id = claim.user_id
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
            WHERE COALESCE(o.owner_id, o.claimed_user_id) IS NULL
                AND lower(u.email) = lower(o.email)
                AND u.email_verified_at IS NOT NULL
                AND NOT EXISTS (
                    SELECT
                    FROM app.list_user_customers(u.id, u.stripe_customer_id) AS l
                    WHERE l.claim_source IS DISTINCT FROM 'email'
                )
                AND NOT EXISTS (
                    SELECT
                    FROM owned AS other
                    WHERE other.owner_id = u.id
                        AND other.claim_source IS DISTINCT FROM 'email'
                )
        ) AS proposed_user_id
    FROM owned AS o;
END;

COMMENT ON FUNCTION app.find_customer_owners(jsonb) IS
    'Customer snapshots, their stored rows, their claims, and the users they have.';

CREATE FUNCTION app.resolve_stripe_customers(
    snapshots jsonb, source text, match_email boolean
)
RETURNS TABLE (
    id text,
    known app.stripe_customers,
    is_deleted boolean,
    created_at timestamptz,
    as_of timestamptz,
    user_id uuid,
    claimed_user_id uuid,
    claim_source text,
    is_claim_new boolean,
    is_gone boolean,
    is_revived boolean,
    holder_id uuid,
    proposed_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        o.id,
        o.known,
        o.is_deleted,
        o.created_at,
        o.as_of,
        c.user_id,
        c.claimed_user_id,
        c.claim_source,
        -- The link of a customer without a claim is not part of its snapshot.
        (
            c.claimed_user_id IS DISTINCT FROM (o.known).claimed_user_id
            OR c.claim_source IS DISTINCT FROM (o.known).claim_source
            OR (
                c.claimed_user_id IS NOT DISTINCT FROM c.user_id
                AND c.user_id IS DISTINCT FROM (o.known).user_id
            )
        ) AS is_claim_new,
        -- A page or a fetched object revives a deleted customer; an event does not.
        o.is_deleted OR ((o.known).is_deleted IS TRUE AND source = 'event') AS is_gone,
        (o.known).is_deleted IS TRUE AND NOT o.is_deleted AND source <> 'event'
            AS is_revived,
        o.holder_id,
        o.proposed_user_id
    FROM app.find_customer_owners(snapshots) AS o
    CROSS JOIN LATERAL (
        SELECT CASE WHEN match_email THEN o.proposed_user_id END AS user_id
    ) AS e
    CROSS JOIN LATERAL (
        SELECT
            COALESCE(o.owner_id, e.user_id) AS user_id,
            COALESCE(o.claimed_user_id, e.user_id) AS claimed_user_id,
            COALESCE(
                o.claim_source, CASE WHEN e.user_id IS NOT NULL THEN 'email' END
            ) AS claim_source
    ) AS c;
END;

COMMENT ON FUNCTION app.resolve_stripe_customers(jsonb, text, boolean) IS
    'Customer snapshots with the users and claims that they would have.';

CREATE FUNCTION app.compare_stripe_customers(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean
)
RETURNS TABLE (
    id text,
    user_id uuid,
    claimed_user_id uuid,
    claim_source text,
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
    SELECT
        r.id,
        r.user_id,
        r.claimed_user_id,
        r.claim_source,
        r.is_gone AS is_deleted,
        r.created_at,
        r.as_of,
        COALESCE(
            source = 'event'
            AND (r.known).created_at IS NOT NULL
            AND date_trunc('second', r.as_of) = date_trunc('second', (r.known).as_of)
            AND ((r.known).is_provisional OR r.is_claim_new),
            FALSE
        ) AS is_provisional,
        CASE
            -- Only the id is known, from a claim: any snapshot is newer.
            WHEN (r.known).created_at IS NULL THEN 'applied'
            -- A deletion is final.
            WHEN r.is_deleted AND NOT (r.known).is_deleted THEN 'applied'
            WHEN r.is_gone AND NOT r.is_deleted THEN 'stale'
            ELSE app.compare_stripe_snapshot(
                r.as_of,
                (r.known).as_of,
                NOT r.is_claim_new
                AND NOT r.is_revived
                AND NOT ((r.known).is_provisional AND source = 'page'),
                source,
                can_fetch
            )
        END AS result,
        array_remove(ARRAY[
            CASE WHEN (r.known).id IS NULL OR r.is_revived THEN 'missing_here' END,
            CASE
                WHEN r.is_gone AND NOT (r.known).is_deleted THEN 'missing_there'
            END,
            CASE
                WHEN r.created_at IS DISTINCT FROM (r.known).created_at
                    AND (r.known).id IS NOT NULL
                    THEN 'created_at'
            END,
            CASE
                WHEN NOT r.is_gone AND r.user_id IS NULL THEN 'unlinked'
                WHEN (r.known).id IS NULL THEN NULL
                WHEN r.is_claim_new OR r.user_id IS DISTINCT FROM (r.known).user_id
                    THEN 'unlinked'
            END
        ], NULL) AS differences,
        CASE WHEN r.holder_id <> r.user_id THEN r.holder_id END AS released_user_id,
        r.proposed_user_id
    FROM app.resolve_stripe_customers(snapshots, source, match_email) AS r;
END;

COMMENT ON FUNCTION app.compare_stripe_customers(jsonb, text, boolean, boolean) IS
    'Customer rows as the snapshots would make them, each with its result.';

CREATE FUNCTION app.upsert_stripe_customers(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean
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
    PERFORM app.lock_snapshot_users(snapshots, match_email);

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
        WHERE c.result = 'applied'
    ),

    upserted AS (
        INSERT INTO app.stripe_customers AS c (
            id, user_id, claimed_user_id, claim_source, is_deleted, created_at, as_of,
            is_provisional
        )
        SELECT
            n.id,
            n.user_id,
            n.claimed_user_id,
            n.claim_source,
            n.is_deleted,
            n.created_at,
            n.as_of,
            n.is_provisional
        FROM newer AS n
        ON CONFLICT (id) DO UPDATE
        SET
            user_id = excluded.user_id,
            claimed_user_id = excluded.claimed_user_id,
            claim_source = excluded.claim_source,
            is_deleted = excluded.is_deleted,
            created_at = excluded.created_at,
            as_of = GREATEST(excluded.as_of, c.as_of),
            is_provisional = excluded.is_provisional
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

COMMENT ON FUNCTION app.upsert_stripe_customers(jsonb, text, boolean, boolean) IS
    'Upserts customer snapshots newer than the stored rows; returns a result for each.';

CREATE FUNCTION app.find_bought_plan(price_id text, quantity bigint)
RETURNS TABLE (is_price_known boolean, plan_id text, credits numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        TRUE AS is_price_known,
        CASE WHEN q.units > 0 THEN p.id END AS plan_id,
        p.monthly_credits * NULLIF(q.units, 0) AS credits
    FROM app.plan_prices AS pp
    INNER JOIN app.plans AS p ON pp.plan_id = p.id
    CROSS JOIN (VALUES (COALESCE(quantity, 1))) AS q (units)
    WHERE pp.stripe_price_id = price_id
    LIMIT 1;
END;

COMMENT ON FUNCTION app.find_bought_plan(text, bigint) IS
    'The plan that an item buys, and its credits.';

CREATE FUNCTION app.find_best_item(user_id uuid, linked_id text)
RETURNS TABLE (
    customer_id text,
    is_deleted boolean,
    customer_created_at timestamptz,
    subscription_id text,
    status text,
    is_active boolean,
    anchor timestamptz,
    ends_at timestamptz,
    trial_end timestamptz,
    pause_behavior text,
    pause_resumes_at timestamptz,
    price_id text,
    unit_amount numeric,
    period_start timestamptz,
    period_end timestamptz,
    is_price_known boolean,
    plan_id text,
    credits numeric
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        c.id AS customer_id,
        c.is_deleted,
        c.created_at AS customer_created_at,
        s.id AS subscription_id,
        t.status,
        app.is_active_status(t.status) AS is_active,
        s.billing_cycle_anchor AS anchor,
        -- LEAST ignores NULL.
        LEAST(
            s.cancel_at, CASE WHEN s.cancel_at_period_end THEN i.current_period_end END
        ) AS ends_at,
        s.trial_end,
        s.pause_behavior,
        s.pause_resumes_at,
        i.price_id,
        i.unit_amount,
        i.current_period_start AS period_start,
        i.current_period_end AS period_end,
        p.is_price_known IS TRUE AS is_price_known,
        p.plan_id,
        p.credits
    FROM app.list_user_customers(find_best_item.user_id, linked_id) AS c
    LEFT JOIN LATERAL (
        SELECT
            k.id,
            k.status,
            k.billing_cycle_anchor,
            k.cancel_at,
            k.cancel_at_period_end,
            k.trial_end,
            k.pause_behavior,
            k.pause_resumes_at
        FROM app.stripe_subscriptions AS k
        WHERE k.customer_id = c.id
        LIMIT ALL
    ) AS s ON TRUE
    LEFT JOIN LATERAL (
        SELECT
            k.id,
            k.price_id,
            k.unit_amount,
            k.quantity,
            k.current_period_start,
            k.current_period_end
        FROM app.stripe_subscription_items AS k
        WHERE k.subscription_id = s.id
        LIMIT ALL
    ) AS i ON TRUE
    LEFT JOIN LATERAL app.find_bought_plan(i.price_id, i.quantity) AS p ON TRUE
    CROSS JOIN LATERAL (
        SELECT
            -- Deleting a customer cancels its subscriptions, even if no event says so.
            CASE
                WHEN c.is_deleted AND s.status <> 'incomplete_expired' THEN 'canceled'
                ELSE s.status
            END AS status
    ) AS t
    ORDER BY
        c.is_deleted,
        app.is_active_status(t.status) DESC,
        p.plan_id IS NULL,
        t.status = 'past_due',
        p.credits DESC NULLS LAST,
        i.current_period_end DESC NULLS LAST,
        s.id,
        i.id,
        -- Customers without subscriptions.
        c.id = linked_id DESC NULLS LAST,
        c.created_at,
        c.id
    LIMIT 1;
END;

COMMENT ON FUNCTION app.find_best_item(uuid, text) IS
    'The subscription item that decides what the user has, and its customer.';

CREATE FUNCTION app.get_paid_period(
    is_paid boolean,
    anchor timestamptz,
    period_start timestamptz,
    period_end timestamptz
)
RETURNS TABLE (quota_anchor timestamptz, next_quota_reset timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        CASE
            WHEN NOT is_paid THEN NULL
            WHEN p.is_on_anchor THEN anchor
            WHEN p.is_month THEN period_end
            ELSE COALESCE(anchor, period_end)
        END AS quota_anchor,
        CASE WHEN is_paid AND (p.is_on_anchor OR p.is_month) THEN period_end END
            AS next_quota_reset
    FROM (
        SELECT
            is_paid AND period_end = app.get_period_end(anchor, period_start)
                AS is_on_anchor,
            period_end - period_start
                BETWEEN interval '28 days' AND interval '31 days' AS is_month
        LIMIT ALL
    ) AS p;
END;

COMMENT ON FUNCTION app.get_paid_period(
    boolean, timestamptz, timestamptz, timestamptz
) IS
    'Anchor and reset of the quota by a paid period; NULL where the user''s stay.';

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
    best.ends_at,
    best.trial_end,
    best.pause_behavior,
    best.pause_resumes_at,
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
        WHEN best.is_active AND best.plan_id IS NOT NULL THEN NULL
        WHEN e.stripe_customer_id IS NULL THEN 'no_customer'
        WHEN best.is_deleted THEN 'deleted_customer'
        WHEN best.subscription_id IS NULL THEN 'no_subscription'
        WHEN NOT best.is_active THEN 'inactive_subscription'
        WHEN best.is_price_known THEN 'no_quantity'
        ELSE 'unknown_price'
    END AS reason
FROM app.users AS u
LEFT JOIN LATERAL app.find_best_item(u.id, u.stripe_customer_id) AS best ON TRUE
CROSS JOIN LATERAL app.get_paid_period(
    -- A price that is not known to be zero.
    best.status = 'active' AND best.plan_id IS NOT NULL
    AND best.unit_amount IS DISTINCT FROM 0,
    best.anchor,
    best.period_start,
    best.period_end
) AS paid
LEFT JOIN app.plans AS free ON free.id = 'free'
CROSS JOIN LATERAL (
    SELECT
        best.customer_id AS stripe_customer_id,
        COALESCE(best.customer_created_at, u.created_at) AS created_at,
        best.subscription_id AS stripe_subscription_id,
        best.price_id AS stripe_price_id,
        best.status AS subscription_status,
        COALESCE(
            CASE WHEN best.is_active AND best.plan_id IS NOT NULL THEN best.credits END,
            free.monthly_credits,
            u.base_quota
        ) AS base_quota,
        COALESCE(paid.quota_anchor, u.quota_anchor) AS quota_anchor,
        CASE
            WHEN paid.next_quota_reset IS NOT NULL THEN paid.next_quota_reset
            -- A lapsed reset on an unchanged anchor already means the next boundary.
            WHEN paid.quota_anchor <> u.quota_anchor
                OR (paid.quota_anchor IS NOT NULL AND u.next_quota_reset > now())
                THEN app.get_period_end(paid.quota_anchor, now())
            ELSE u.next_quota_reset
        END AS next_quota_reset,
        COALESCE(best.is_active AND NOT best.is_price_known, FALSE) AS has_unknown_price
    LIMIT ALL
) AS e;

COMMENT ON VIEW app.stripe_entitlements IS
    'What each user should have by the mirror; sync_stripe_users copies it to users.';
COMMENT ON COLUMN app.stripe_entitlements.id IS
    'The user.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_customer_id IS
    'Customer of the best item; without one, the linked or oldest; NULL if none.';
COMMENT ON COLUMN app.stripe_entitlements.created_at IS
    'When the customer was created at Stripe; the user''s created_at if not known.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_subscription_id IS
    'Subscription of the best item, find_best_item; NULL if there is none.';
COMMENT ON COLUMN app.stripe_entitlements.stripe_price_id IS
    'Price of the best item; NULL if there is none or it has no price.';
COMMENT ON COLUMN app.stripe_entitlements.subscription_status IS
    'Stripe''s status; canceled if the customer is deleted; NULL if no subscription.';
COMMENT ON COLUMN app.stripe_entitlements.base_quota IS
    'Credits a period: of the plan that is bought x quantity, else of free.';
COMMENT ON COLUMN app.stripe_entitlements.quota_anchor IS
    'Periods begin at the anchor plus whole months in UTC; only paid plans move it.';
COMMENT ON COLUMN app.stripe_entitlements.next_quota_reset IS
    'When the period ends; only paid plans move it; NULL if it never resets.';
COMMENT ON COLUMN app.stripe_entitlements.ends_at IS
    'When the subscription will end by cancellation; NULL if it renews.';
COMMENT ON COLUMN app.stripe_entitlements.trial_end IS
    'When the trial ends or ended; NULL if there was none.';
COMMENT ON COLUMN app.stripe_entitlements.pause_behavior IS
    'Stripe''s word for paused collection, which takes nothing away; else NULL.';
COMMENT ON COLUMN app.stripe_entitlements.pause_resumes_at IS
    'When paused collection resumes; NULL if no time is set.';
COMMENT ON COLUMN app.stripe_entitlements.has_unknown_price IS
    'Whether the subscription entitles and no plan has the price of its best item.';
COMMENT ON COLUMN app.stripe_entitlements.differences IS
    'Groups of columns that differ from users, docs/stripe.md; empty if none.';
COMMENT ON COLUMN app.stripe_entitlements.reason IS
    'Why no paid plan applies: no_customer, deleted_customer, no_subscription,'
    ' inactive_subscription, no_quantity, unknown_price; NULL if one applies.';

CREATE FUNCTION app.sync_stripe_users(user_ids uuid[])
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
SET enable_memoize = off
AS $$
#variable_conflict use_column
BEGIN
    -- Transactions of two customers of one user queue here: the statement below sees
    -- what the first one committed.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = ANY(user_ids)
    ORDER BY u.id
    FOR NO KEY UPDATE;

    RETURN QUERY
    WITH entitled AS MATERIALIZED (
        -- No other column, because all of a materialized subquery are evaluated.
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
    )

    SELECT
        e.id,
        e.stripe_customer_id AS customer_id,
        e.stripe_subscription_id AS subscription_id,
        e.differences,
        e.has_unknown_price
    FROM entitled AS e;
END;
$$;

COMMENT ON FUNCTION app.sync_stripe_users(uuid[]) IS
    'Updates users from the Stripe mirror; returns the differences.';

CREATE FUNCTION app.apply_stripe_event(
    id text,
    type text,
    api_version text,
    event_created_at timestamptz,
    payload jsonb,
    lock_key text,
    object_type text,
    can_fetch boolean,
    snapshot jsonb,
    OUT result text,
    OUT user_ids uuid[],
    OUT conflicting_user_id uuid
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    snapshots jsonb := jsonb_build_array(snapshot);
    owner_ids uuid[];
BEGIN
    result := 'ignored';
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
        result := 'duplicate';
        RETURN;
    END IF;

    IF object_type = 'customers' THEN
        SELECT c.result, ARRAY[c.released_user_id, c.user_id] INTO result, owner_ids
        FROM app.upsert_stripe_customers(snapshots, 'event', can_fetch, FALSE) AS c;
    ELSIF object_type IS NOT NULL THEN
        SELECT s.result, ARRAY[s.released_user_id, s.user_id], s.conflicting_user_id
        INTO result, owner_ids, conflicting_user_id
        FROM app.upsert_stripe_subscriptions(snapshots, 'event', can_fetch) AS s;
    END IF;
    IF result = 'ambiguous' THEN
        RETURN;
    END IF;
    IF result = 'applied' THEN
        SELECT array_agg(u.id) INTO user_ids
        FROM app.sync_stripe_users(owner_ids) AS u
        -- The released user has lost the customer before.
        WHERE u.differences <> '{}' OR u.id = owner_ids[1];
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
END;
$$;

COMMENT ON FUNCTION app.apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, boolean, jsonb
) IS
    'Records and applies an event once; ambiguous, with nothing recorded, if its object'
    ' must be fetched. user_ids: the users that changed.';

CREATE FUNCTION app.read_stripe_items(items jsonb)
RETURNS TABLE (
    id text,
    price_id text,
    unit_amount numeric,
    quantity bigint,
    current_period_start timestamptz,
    current_period_end timestamptz
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        i.id,
        i.price_id,
        i.unit_amount,
        i.quantity,
        i.current_period_start,
        i.current_period_end
    FROM jsonb_to_recordset(items) AS i (
        id text,
        price_id text,
        unit_amount numeric,
        quantity bigint,
        current_period_start timestamptz,
        current_period_end timestamptz
    );
END;

COMMENT ON FUNCTION app.read_stripe_items(jsonb) IS
    'The items of a subscription''s snapshot, as rows.';

CREATE FUNCTION app.compare_stripe_items(subscription_id text, items jsonb)
RETURNS TABLE (has_new_prices boolean, has_new_periods boolean)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        COALESCE(
            bool_or(
                n.id IS DISTINCT FROM k.id
                OR n.price_id IS DISTINCT FROM k.price_id
                OR n.unit_amount IS DISTINCT FROM k.unit_amount
                OR n.quantity IS DISTINCT FROM k.quantity
            ),
            FALSE
        ) AS has_new_prices,
        COALESCE(
            bool_or(
                (n.current_period_start, n.current_period_end)
                    IS DISTINCT FROM (k.current_period_start, k.current_period_end)
            ),
            FALSE
        ) AS has_new_periods
    FROM app.read_stripe_items(items) AS n
    FULL JOIN (
        SELECT
            i.id,
            i.price_id,
            i.unit_amount,
            i.quantity,
            i.current_period_start,
            i.current_period_end
        FROM app.stripe_subscription_items AS i
        WHERE i.subscription_id = compare_stripe_items.subscription_id
    ) AS k ON n.id = k.id;
END;

COMMENT ON FUNCTION app.compare_stripe_items(text, jsonb) IS
    'Whether items of a snapshot differ from those stored: in price, in period.';

CREATE FUNCTION app.find_subscription_claims(
    snapshots jsonb, source text, can_fetch boolean
)
RETURNS jsonb LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT jsonb_agg(v.snapshot ORDER BY v.n)
    FROM jsonb_array_elements(snapshots) WITH ORDINALITY AS v (snapshot, n)
    WHERE (
            v.snapshot ->> 'claimed_user_id' IS NOT NULL
            -- Conditions of the WHERE clause could read the index of pending claims.
            OR (
                SELECT
                    c.claimed_user_id IS NOT NULL
                    AND (c.claimed_user_id = c.user_id) IS NOT TRUE
                FROM app.stripe_customers AS c
                WHERE c.id = v.snapshot ->> 'customer_id'
            )
        )
        AND (
            SELECT
                app.compare_stripe_snapshot(
                    (v.snapshot ->> 'as_of')::timestamptz,
                    s.as_of,
                    s.claimed_user_id
                    IS NOT DISTINCT FROM (v.snapshot ->> 'claimed_user_id')::uuid,
                    source,
                    can_fetch
                ) <> 'applied'
                AND (
                    date_trunc('second', s.as_of)
                    > date_trunc('second', (v.snapshot ->> 'as_of')::timestamptz)
                    OR s.claimed_user_id
                    IS DISTINCT FROM (v.snapshot ->> 'claimed_user_id')::uuid
                )
            FROM app.stripe_subscriptions AS s
            WHERE s.id = v.snapshot ->> 'id'
        ) IS NOT TRUE;
END;

COMMENT ON FUNCTION app.find_subscription_claims(jsonb, text, boolean) IS
    'The snapshots with a claim, or with one that waits for its user; NULL if none.';

CREATE FUNCTION app.claim_subscription_customers(
    snapshots jsonb, source text, can_fetch boolean
)
RETURNS jsonb LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    given_claim uuid := snapshots -> 0 ->> 'claimed_user_id';
    claims jsonb;
BEGIN
    -- Most events are of a customer with a claim that is in effect, and agree with it.
    IF jsonb_array_length(snapshots) = 1 AND EXISTS (
        SELECT
        FROM app.stripe_customers AS c
        WHERE c.id = snapshots -> 0 ->> 'customer_id'
            AND (c.claimed_user_id IS NULL OR c.claimed_user_id = c.user_id)
            AND (
                given_claim IS NULL
                OR (
                    c.claimed_user_id = given_claim
                    AND app.get_claim_strength(c.claim_source, FALSE)
                    >= app.get_claim_strength('subscription', FALSE)
                )
            )
    )
    THEN
        RETURN NULL;
    END IF;
    -- An ambiguous event changes nothing: its object is fetched, and its claim with it.
    IF source = 'event' AND can_fetch AND (
        SELECT c.result
        FROM app.compare_stripe_subscriptions(snapshots, source, can_fetch) AS c
    ) = 'ambiguous'
    THEN
        RETURN NULL;
    END IF;
    PERFORM app.lock_snapshot_users(snapshots, FALSE);
    claims := app.find_subscription_claims(snapshots, source, can_fetch);
    RETURN CASE
        WHEN claims IS NOT NULL THEN (
            SELECT jsonb_object_agg(c.customer_id, c.released_user_id)
            FROM app.claim_stripe_customers(claims, 'subscription') AS c
            WHERE c.is_changed
        )
    END;
END;
$$;

COMMENT ON FUNCTION app.claim_subscription_customers(jsonb, text, boolean) IS
    'Stores the claims of subscriptions; returns the changed customers, each with the'
    ' released user.';

CREATE FUNCTION app.replace_stripe_items(
    subscription_ids text[], items jsonb[]
)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    WITH given AS MATERIALIZED (
        SELECT
            s.id AS subscription_id,
            i.*
        FROM unnest(subscription_ids, items) AS s (id, items)
        CROSS JOIN LATERAL app.read_stripe_items(s.items) AS i
    ),

    removed AS (
        DELETE FROM app.stripe_subscription_items AS k
        WHERE k.subscription_id = ANY(subscription_ids)
            AND NOT EXISTS (
                SELECT
                FROM given AS g
                WHERE g.subscription_id = k.subscription_id AND g.id = k.id
            )
    )

    INSERT INTO app.stripe_subscription_items (
        subscription_id, id, price_id, unit_amount, quantity, current_period_start,
        current_period_end
    )
    SELECT
        g.subscription_id,
        g.id,
        g.price_id,
        g.unit_amount,
        g.quantity,
        g.current_period_start,
        g.current_period_end
    FROM given AS g
    ON CONFLICT (subscription_id, id) DO UPDATE
    SET
        price_id = excluded.price_id,
        unit_amount = excluded.unit_amount,
        quantity = excluded.quantity,
        current_period_start = excluded.current_period_start,
        current_period_end = excluded.current_period_end;
END;
$$;

COMMENT ON FUNCTION app.replace_stripe_items(text[], jsonb[]) IS
    'Replaces all items of each of the subscriptions.';

REVOKE EXECUTE ON FUNCTION app.replace_stripe_items(text[], jsonb[]) FROM public;

CREATE FUNCTION app.compare_stripe_subscriptions(
    snapshots jsonb, source text, can_fetch boolean
)
RETURNS TABLE (
    snapshot app.stripe_subscriptions,
    items jsonb,
    has_new_items boolean,
    is_provisional boolean,
    result text,
    differences text[],
    user_id uuid,
    conflicting_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH compared AS (
        SELECT DISTINCT ON (s.id)
            s AS snapshot,
            v.snapshot -> 'items' AS items,
            k.known,
            i.has_new_prices OR i.has_new_periods AS has_new_items,
            array_remove(ARRAY[
                CASE
                    WHEN s.status IS DISTINCT FROM (k.known).status
                        OR s.canceled_at IS DISTINCT FROM (k.known).canceled_at
                        OR s.pause_behavior IS DISTINCT FROM (k.known).pause_behavior
                        OR s.pause_resumes_at
                        IS DISTINCT FROM (k.known).pause_resumes_at
                        THEN 'status'
                END,
                CASE WHEN i.has_new_prices THEN 'price' END,
                CASE
                    WHEN i.has_new_periods THEN 'period'
                    WHEN s.cancel_at IS DISTINCT FROM (k.known).cancel_at
                        OR s.cancel_at_period_end
                        IS DISTINCT FROM (k.known).cancel_at_period_end
                        OR s.billing_cycle_anchor
                        IS DISTINCT FROM (k.known).billing_cycle_anchor
                        OR s.trial_end IS DISTINCT FROM (k.known).trial_end
                        THEN 'period'
                END,
                CASE WHEN s.created_at <> (k.known).created_at THEN 'created_at' END,
                CASE
                    WHEN s.claimed_user_id IS DISTINCT FROM (k.known).claimed_user_id
                        THEN 'unlinked'
                END
            ], NULL) AS changes
        FROM jsonb_array_elements(snapshots) AS v (snapshot)
        CROSS JOIN LATERAL jsonb_populate_record(
            NULL::app.stripe_subscriptions, v.snapshot
        ) AS s
        LEFT JOIN LATERAL (
            SELECT t AS known
            FROM app.stripe_subscriptions AS t
            WHERE t.id = s.id
            LIMIT 1
        ) AS k ON TRUE
        CROSS JOIN LATERAL app.compare_stripe_items(s.id, v.snapshot -> 'items') AS i
        ORDER BY s.id
    )

    SELECT
        c.snapshot,
        c.items,
        c.has_new_items,
        COALESCE(
            source = 'event'
            AND date_trunc('second', (c.snapshot).as_of)
            = date_trunc('second', (c.known).as_of)
            AND ((c.known).is_provisional OR c.changes <> '{}'),
            FALSE
        ) AS is_provisional,
        app.compare_stripe_snapshot(
            (c.snapshot).as_of,
            (c.known).as_of,
            c.changes = '{}' AND NOT ((c.known).is_provisional AND source = 'page'),
            source,
            can_fetch
        ) AS result,
        CASE
            WHEN (c.known).id IS NULL THEN ARRAY['missing_here']
            ELSE c.changes
        END AS differences,
        COALESCE(o.user_id, o.holder_id) AS user_id,
        CASE
            WHEN (c.snapshot).claimed_user_id
                <> COALESCE(o.claimed_user_id, o.user_id, o.holder_id)
                THEN (c.snapshot).claimed_user_id
        END AS conflicting_user_id
    FROM compared AS c
    CROSS JOIN LATERAL app.find_customer_claim((c.snapshot).customer_id) AS o;
END;

COMMENT ON FUNCTION app.compare_stripe_subscriptions(jsonb, text, boolean) IS
    'Subscription rows as the snapshots would make them, each with its result.';

CREATE FUNCTION app.upsert_stripe_subscriptions(
    snapshots jsonb, source text, can_fetch boolean
)
RETURNS TABLE (
    id text,
    result text,
    differences text[],
    user_id uuid,
    released_user_id uuid,
    conflicting_user_id uuid
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_memoize = off
AS $$
#variable_conflict use_column
DECLARE
    released jsonb := app.claim_subscription_customers(snapshots, source, can_fetch);
    new_items jsonb;
    changed_ids text[];
    changed_items jsonb[];
BEGIN
    FOR
        id, result, differences, user_id, released_user_id, conflicting_user_id,
        new_items
    IN
    WITH compared AS MATERIALIZED (
        SELECT c.*
        FROM app.compare_stripe_subscriptions(snapshots, source, can_fetch) AS c
    ),

    upserted AS (
        INSERT INTO app.stripe_subscriptions AS s (
            id, customer_id, status, billing_cycle_anchor, cancel_at,
            cancel_at_period_end, canceled_at, trial_end, pause_behavior,
            pause_resumes_at, created_at, as_of, is_provisional, claimed_user_id
        )
        SELECT
            (c.snapshot).id,
            (c.snapshot).customer_id,
            (c.snapshot).status,
            (c.snapshot).billing_cycle_anchor,
            (c.snapshot).cancel_at,
            (c.snapshot).cancel_at_period_end,
            (c.snapshot).canceled_at,
            (c.snapshot).trial_end,
            (c.snapshot).pause_behavior,
            (c.snapshot).pause_resumes_at,
            (c.snapshot).created_at,
            (c.snapshot).as_of,
            c.is_provisional,
            (c.snapshot).claimed_user_id
        FROM compared AS c
        WHERE c.result = 'applied'
        ON CONFLICT (id) DO UPDATE
        SET
            customer_id = excluded.customer_id,
            status = excluded.status,
            billing_cycle_anchor = excluded.billing_cycle_anchor,
            cancel_at = excluded.cancel_at,
            cancel_at_period_end = excluded.cancel_at_period_end,
            canceled_at = excluded.canceled_at,
            trial_end = excluded.trial_end,
            pause_behavior = excluded.pause_behavior,
            pause_resumes_at = excluded.pause_resumes_at,
            created_at = excluded.created_at,
            as_of = GREATEST(excluded.as_of, s.as_of),
            is_provisional = excluded.is_provisional,
            claimed_user_id = excluded.claimed_user_id
    )

    SELECT
        (c.snapshot).id,
        CASE
            WHEN c.result = 'stale' AND released ? (c.snapshot).customer_id
                THEN 'applied'
            ELSE c.result
        END AS result,
        c.differences,
        c.user_id,
        (released ->> (c.snapshot).customer_id)::uuid AS released_user_id,
        c.conflicting_user_id,
        CASE WHEN c.result = 'applied' AND c.has_new_items THEN c.items END AS new_items
    FROM compared AS c
    LOOP
        IF new_items IS NOT NULL THEN
            changed_ids := changed_ids || id;
            changed_items := changed_items || new_items;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF changed_ids IS NOT NULL THEN
        PERFORM app.replace_stripe_items(changed_ids, changed_items);
    END IF;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_subscriptions(jsonb, text, boolean) IS
    'Upserts subscription snapshots newer than the stored rows; a result for each.';

-- SECURITY DEFINER: the role that inserts users may not write the mirror.
CREATE FUNCTION app.take_stripe_claims()
RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    customer_ids text[];
    claims jsonb;
BEGIN
    -- The statements below must see what the last holder of the lock committed.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN NULL;
    END IF;
    -- The lock of a customer belongs to a delivery, which may wait for a row that this
    -- transaction has locked: the delivery, or the next one, takes the claim then.
    -- MATERIALIZED, because the planner may evaluate the lock of a join first, for all
    -- customers with a claim. The server has room for some thousand locks: of users that
    -- are loaded in bulk, a reconciliation takes the other claims.
    WITH claimed AS MATERIALIZED (
        SELECT k.id
        FROM new_users AS u
        CROSS JOIN LATERAL (
            SELECT c.id
            FROM app.stripe_customers AS c
            WHERE c.claimed_user_id = u.id
                AND c.claimed_user_id IS NOT NULL
                AND c.claimed_user_id IS DISTINCT FROM c.user_id
            LIMIT ALL
        ) AS k
        LIMIT 1000
    )

    SELECT array_agg(c.id) INTO customer_ids
    FROM claimed AS c
    WHERE (
            SELECT count(*)
            FROM pg_locks AS l
            WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory'
        ) < 1000
        AND pg_try_advisory_xact_lock(hashtextextended(c.id, 0));
    IF customer_ids IS NULL THEN
        RETURN NULL;
    END IF;
    -- The same holds for the users that lose a customer. They are locked, because a sync
    -- of another customer of theirs could return to this one.
    SELECT jsonb_agg(jsonb_build_object('customer_id', c.id)) INTO claims
    FROM app.stripe_customers AS c
    WHERE c.id = ANY(customer_ids)
        AND NOT EXISTS (
            SELECT
            FROM unnest(
                ARRAY[
                    c.user_id,
                    (SELECT h.id FROM app.users AS h WHERE h.stripe_customer_id = c.id)
                ]
            ) AS o (id)
            WHERE o.id IS NOT NULL
                AND (
                    SELECT u.id
                    FROM app.users AS u
                    WHERE u.id = o.id
                    FOR NO KEY UPDATE SKIP LOCKED
                ) IS NULL
        );
    IF claims IS NOT NULL THEN
        PERFORM app.sync_stripe_users(array_agg(o.id))
        FROM app.claim_stripe_customers(claims, NULL) AS c
        CROSS JOIN LATERAL (VALUES (c.user_id), (c.released_user_id)) AS o (id);
    END IF;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.take_stripe_claims() IS
    'Trigger: links new users to the Stripe customers that claim them.';

REVOKE EXECUTE ON FUNCTION app.take_stripe_claims() FROM public;

CREATE TRIGGER users_take_stripe_claims AFTER INSERT ON app.users
REFERENCING NEW TABLE AS new_users
FOR EACH STATEMENT EXECUTE FUNCTION app.take_stripe_claims();
