-- Claims: which user a Stripe customer belongs to, by its subscriptions and checkouts.

-- The linter takes parameters for columns without a table.
-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05

-- A claim names the user of a customer. The strongest one counts, also before its user
-- exists. A link without a claim, as in users.stripe_customer_id, is as strong as the
-- claim of a subscription.
CREATE OR REPLACE FUNCTION app.get_claim_strength(source text, is_linked boolean)
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

CREATE OR REPLACE FUNCTION app.find_customer_claim(customer_id text)
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

-- Among several claims on one customer: one that corrects the customer's claim, else
-- the first one whose user exists. A subscription corrects a claim that it made alone.
CREATE OR REPLACE FUNCTION app.find_snapshot_claims(snapshots jsonb)
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

-- The claim that each customer has after those of the snapshots, which may be none. Of
-- equally strong claims the first stays, unless its user does not exist and the other's
-- does, or the object that made it now names another user.
CREATE OR REPLACE FUNCTION app.compare_stripe_claims(snapshots jsonb, source text)
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

CREATE OR REPLACE FUNCTION app.claim_stripe_customers(snapshots jsonb, source text)
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
