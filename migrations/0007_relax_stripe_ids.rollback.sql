-- Loses customers and subscriptions whose ids do not begin with cus_ and sub_.

SET LOCAL lock_timeout = '5s';

DELETE FROM app.stripe_subscriptions
WHERE id !~ '^sub_.' OR customer_id !~ '^cus_.';

DELETE FROM app.stripe_customers
WHERE id !~ '^cus_.';

UPDATE app.users
SET stripe_customer_id = NULL
WHERE stripe_customer_id !~ '^cus_.';

UPDATE app.users
SET
    stripe_subscription_id = NULL,
    stripe_price_id = NULL,
    subscription_status = NULL
WHERE stripe_subscription_id !~ '^sub_.';

ALTER TABLE app.stripe_subscriptions
    DROP CONSTRAINT stripe_subscriptions_customer_id_length_check,
    DROP CONSTRAINT stripe_subscriptions_id_length_check,
    ADD CONSTRAINT stripe_subscriptions_id_shape_check CHECK (id ~ '^sub_.'),
    ADD CONSTRAINT stripe_subscriptions_customer_id_shape_check
        CHECK (customer_id ~ '^cus_.');

ALTER TABLE app.stripe_customers
    DROP CONSTRAINT stripe_customers_id_length_check,
    ADD CONSTRAINT stripe_customers_id_shape_check CHECK (id ~ '^cus_.');

ALTER TABLE app.users
    DROP CONSTRAINT users_stripe_price_id_length_check,
    DROP CONSTRAINT users_stripe_subscription_id_length_check,
    DROP CONSTRAINT users_stripe_customer_id_length_check,
    ADD CONSTRAINT users_stripe_customer_id_shape_check
        CHECK (stripe_customer_id ~ '^cus_.'),
    ADD CONSTRAINT users_stripe_subscription_id_shape_check
        CHECK (stripe_subscription_id ~ '^sub_.');

COMMENT ON COLUMN app.stripe_events.id IS
    'Stripe''s id, evt_....';
COMMENT ON COLUMN app.stripe_customers.id IS
    'Stripe''s id, cus_....';
COMMENT ON COLUMN app.stripe_subscriptions.id IS
    'Stripe''s id, sub_....';
COMMENT ON COLUMN app.stripe_subscriptions.customer_id IS
    'Stripe customer, cus_.... Not a foreign key: the subscription may arrive first.';
