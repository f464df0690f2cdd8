-- name: insert_stripe_users :many
-- Users that customers claim.
INSERT INTO app.users AS u (email)
SELECT 'customer' || n || '@bench.example' AS email
FROM generate_series(1, :users::integer) AS n
RETURNING u.id;

-- name: insert_event_plain :rowcount
-- The floor of a webhook, first half: store the event.
INSERT INTO app.stripe_events (
    id, type, api_version, event_created_at, payload, status, attempts, processed_at
)
VALUES (
    :id, :type, :api_version, :event_created_at, :payload::jsonb, 'applied', 1, now()
)
ON CONFLICT (id) DO NOTHING;

-- name: update_user_plain :rowcount
-- The floor of a webhook, second half: update the user.
UPDATE app.users AS u
SET subscription_status = :status, stripe_price_id = :price_id
WHERE u.stripe_customer_id = :customer_id;

-- name: forget_stripe :rowcount
-- Empties the mirror, as before the first reconciliation.
WITH subscriptions AS (
    DELETE FROM app.stripe_subscriptions
    RETURNING id
),

customers AS (
    DELETE FROM app.stripe_customers
    RETURNING id
),

runs AS (
    DELETE FROM app.stripe_sync_runs
    RETURNING id
)

UPDATE app.users AS u
SET
    stripe_customer_id = NULL,
    stripe_subscription_id = NULL,
    stripe_price_id = NULL,
    subscription_status = NULL
WHERE u.stripe_customer_id IS NOT NULL;

-- name: insert_seeded_users :rowcount
-- Users that the customers of the fake Stripe claim.
INSERT INTO app.users AS u (id, email)
SELECT
    ('5eed0000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS id,
    'seed' || n || '@example.com' AS email
FROM generate_series(0, :users::integer - 1) AS n
ON CONFLICT (id) DO NOTHING;

-- name: create_engine_role :rowcount
-- A migration of a sync engine names this role.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = 'postgres')
    THEN
        CREATE ROLE postgres;
    END IF;
END;
$$;

-- name: count_engine_subscriptions :one
-- What a sync engine stored, in its own database.
SELECT count(*) AS subscriptions
FROM stripe.subscriptions AS s
WHERE s.status::text = :status;
