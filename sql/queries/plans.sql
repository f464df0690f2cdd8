-- name: list_plans :many
-- The smallest first.
SELECT
    p.id,
    p.stripe_price_id,
    p.monthly_credits
FROM app.plans AS p
ORDER BY p.monthly_credits, p.id
LIMIT :limit;

-- name: get_plan :one
-- By its primary key.
SELECT
    p.id,
    p.stripe_price_id,
    p.monthly_credits
FROM app.plans AS p
WHERE p.id = :plan_id;

-- name: set_plan_price :optional
-- The sync reads the plan that a subscription's price buys; NULL ends that.
UPDATE app.plans AS p
SET stripe_price_id = :stripe_price_id
WHERE p.id = :plan_id
RETURNING
    p.id,
    p.stripe_price_id,
    p.monthly_credits;
