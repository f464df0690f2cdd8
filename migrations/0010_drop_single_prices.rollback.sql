-- Loses all prices of a plan but one, all items of a subscription but one.

SET LOCAL lock_timeout = '5s';

ALTER TABLE app.plans ADD COLUMN stripe_price_id text;

COMMENT ON COLUMN app.plans.stripe_price_id IS
    'Stripe price that buys the plan; NULL if none does. Set by the operator.';

UPDATE app.plans AS p
SET stripe_price_id = (
    SELECT min(pp.stripe_price_id)
    FROM app.plan_prices AS pp
    WHERE pp.plan_id = p.id
);

ALTER TABLE app.plans
    ADD CONSTRAINT plans_stripe_price_id_key UNIQUE (stripe_price_id);

ALTER TABLE app.stripe_subscriptions
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
    SELECT DISTINCT ON (k.subscription_id)
        k.subscription_id,
        k.price_id,
        k.current_period_start,
        k.current_period_end
    FROM app.stripe_subscription_items AS k
    LEFT JOIN app.plans AS p ON k.price_id = p.stripe_price_id
    ORDER BY
        k.subscription_id ASC,
        p.monthly_credits DESC NULLS LAST,
        k.current_period_end DESC NULLS LAST,
        k.id ASC
) AS i
WHERE s.id = i.subscription_id;

ALTER TABLE app.stripe_subscriptions
    ADD CONSTRAINT stripe_subscriptions_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app.users (id) ON DELETE RESTRICT;

CREATE INDEX stripe_subscriptions_user_id_idx ON app.stripe_subscriptions (user_id);
