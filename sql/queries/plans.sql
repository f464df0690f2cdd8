-- name: list_plans :many
-- Smallest first.
SELECT
    p.id,
    p.monthly_credits,
    (
        SELECT COALESCE(array_agg(pp.stripe_price_id ORDER BY pp.stripe_price_id), '{}')
        FROM app.plan_prices AS pp
        WHERE pp.plan_id = p.id
    ) AS stripe_price_ids
FROM app.plans AS p
ORDER BY p.monthly_credits, p.id
LIMIT :limit;

-- name: get_plan :one
-- By primary key.
SELECT
    p.id,
    p.monthly_credits,
    (
        SELECT COALESCE(array_agg(pp.stripe_price_id ORDER BY pp.stripe_price_id), '{}')
        FROM app.plan_prices AS pp
        WHERE pp.plan_id = p.id
    ) AS stripe_price_ids
FROM app.plans AS p
WHERE p.id = :plan_id;

-- name: create_plan :one
-- No price buys it yet.
INSERT INTO app.plans AS p (id, monthly_credits)
VALUES (:plan_id, :monthly_credits)
RETURNING
    p.id,
    p.monthly_credits,
    '{}'::text[] AS stripe_price_ids;

-- name: set_plan_credits :optional
-- Subscribers get the new amount at their next sync.
UPDATE app.plans AS p
SET monthly_credits = :monthly_credits
WHERE p.id = :plan_id
RETURNING
    p.id,
    p.monthly_credits,
    (
        SELECT COALESCE(array_agg(pp.stripe_price_id ORDER BY pp.stripe_price_id), '{}')
        FROM app.plan_prices AS pp
        WHERE pp.plan_id = p.id
    ) AS stripe_price_ids;

-- name: add_plan_price :optional
-- Repeating it changes nothing. No row: the price buys another plan.
INSERT INTO app.plan_prices AS pp (stripe_price_id, plan_id)
VALUES (:stripe_price_id, :plan_id)
ON CONFLICT (stripe_price_id) DO UPDATE
SET plan_id = excluded.plan_id
WHERE pp.plan_id = excluded.plan_id
RETURNING pp.stripe_price_id, pp.plan_id;

-- name: remove_plan_price :optional
-- Subscribers of the price lose the plan at their next sync.
DELETE FROM app.plan_prices AS pp
WHERE pp.stripe_price_id = :stripe_price_id
RETURNING pp.stripe_price_id, pp.plan_id;
