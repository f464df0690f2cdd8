-- plan_prices and stripe_subscription_items have replaced these columns. A subscription
-- belongs to the user of its customer.

SET LOCAL lock_timeout = '5s';

ALTER TABLE app.plans DROP COLUMN stripe_price_id;

ALTER TABLE app.stripe_subscriptions
    DROP COLUMN user_id,
    DROP COLUMN price_id,
    DROP COLUMN current_period_start,
    DROP COLUMN current_period_end,
    VALIDATE CONSTRAINT stripe_subscriptions_id_length_check,
    VALIDATE CONSTRAINT stripe_subscriptions_customer_id_length_check;

ALTER TABLE app.stripe_customers
    VALIDATE CONSTRAINT stripe_customers_id_length_check,
    VALIDATE CONSTRAINT stripe_customers_claim_source_known_check,
    VALIDATE CONSTRAINT stripe_customers_claim_has_source_check;

ALTER TABLE app.users
    VALIDATE CONSTRAINT users_stripe_customer_id_length_check,
    VALIDATE CONSTRAINT users_stripe_subscription_id_length_check,
    VALIDATE CONSTRAINT users_stripe_price_id_length_check;
