-- Integrations choose ids of customers; ids of old subscriptions begin with su_.

SET LOCAL lock_timeout = '5s';

-- A weaker check replaces each dropped one.
-- squawk-ignore-file ban-drop-constraint

ALTER TABLE app.users
    DROP CONSTRAINT users_stripe_customer_id_shape_check,
    DROP CONSTRAINT users_stripe_subscription_id_shape_check,
    ADD CONSTRAINT users_stripe_customer_id_length_check
        CHECK (length(stripe_customer_id) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT users_stripe_subscription_id_length_check
        CHECK (length(stripe_subscription_id) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT users_stripe_price_id_length_check
        CHECK (length(stripe_price_id) BETWEEN 1 AND 255) NOT VALID;

ALTER TABLE app.stripe_customers
    DROP CONSTRAINT stripe_customers_id_shape_check,
    ADD CONSTRAINT stripe_customers_id_length_check
        CHECK (length(id) BETWEEN 1 AND 255) NOT VALID;

ALTER TABLE app.stripe_subscriptions
    DROP CONSTRAINT stripe_subscriptions_id_shape_check,
    DROP CONSTRAINT stripe_subscriptions_customer_id_shape_check,
    ADD CONSTRAINT stripe_subscriptions_id_length_check
        CHECK (length(id) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT stripe_subscriptions_customer_id_length_check
        CHECK (length(customer_id) BETWEEN 1 AND 255) NOT VALID;

COMMENT ON COLUMN app.stripe_events.id IS
    'Stripe''s id.';
COMMENT ON COLUMN app.stripe_customers.id IS
    'Stripe''s id; the integration may have chosen it.';
COMMENT ON COLUMN app.stripe_subscriptions.id IS
    'Stripe''s id.';
COMMENT ON COLUMN app.stripe_subscriptions.customer_id IS
    'Stripe customer. Not a foreign key: the subscription may arrive first.';
