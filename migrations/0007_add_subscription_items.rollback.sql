-- Loses items and claims, which a reconciliation can fetch again after the next
-- migration.

SET LOCAL lock_timeout = '5s';

DROP TABLE app.stripe_subscription_items;

ALTER TABLE app.stripe_subscriptions
    DROP CONSTRAINT stripe_subscriptions_customer_id_length_check,
    DROP CONSTRAINT stripe_subscriptions_id_length_check,
    DROP COLUMN claimed_user_id,
    DROP COLUMN pause_resumes_at,
    DROP COLUMN pause_behavior,
    DROP COLUMN trial_end,
    DROP COLUMN cancel_at,
    ADD CONSTRAINT stripe_subscriptions_id_shape_check CHECK (id ~ '^sub_.'),
    ADD CONSTRAINT stripe_subscriptions_customer_id_shape_check
        CHECK (customer_id ~ '^cus_.');

ALTER TABLE app.stripe_customers
    DROP CONSTRAINT stripe_customers_claim_has_source_check,
    DROP CONSTRAINT stripe_customers_claim_source_known_check,
    DROP CONSTRAINT stripe_customers_id_length_check,
    DROP COLUMN claim_source,
    DROP COLUMN claimed_user_id,
    ADD CONSTRAINT stripe_customers_id_shape_check CHECK (id ~ '^cus_.');

ALTER TABLE app.users
    DROP CONSTRAINT users_stripe_price_id_length_check,
    DROP CONSTRAINT users_stripe_subscription_id_length_check,
    DROP CONSTRAINT users_stripe_customer_id_length_check,
    ADD CONSTRAINT users_stripe_customer_id_shape_check
        CHECK (stripe_customer_id ~ '^cus_.'),
    ADD CONSTRAINT users_stripe_subscription_id_shape_check
        CHECK (stripe_subscription_id ~ '^sub_.');

DROP TABLE app.plan_prices;

COMMENT ON COLUMN app.users.stripe_customer_id IS
    'Linked Stripe customer, cus_...; NULL if none.';
COMMENT ON COLUMN app.users.stripe_subscription_id IS
    'Best Stripe subscription, sub_...: active first, then latest end; NULL if none.';
COMMENT ON COLUMN app.users.stripe_price_id IS
    'Stripe price of the best subscription; NULL if there is none, or without price.';
COMMENT ON COLUMN app.users.subscription_status IS
    'Status of the best subscription as reported by Stripe; NULL if there is none.';
COMMENT ON COLUMN app.stripe_events.id IS
    'Stripe''s id, evt_....';
COMMENT ON COLUMN app.stripe_customers.id IS
    'Stripe''s id, cus_....';
COMMENT ON COLUMN app.stripe_customers.user_id IS
    'User linked by metadata or checkout; NULL if none.';
COMMENT ON COLUMN app.stripe_subscriptions.id IS
    'Stripe''s id, sub_....';
COMMENT ON COLUMN app.stripe_subscriptions.customer_id IS
    'Stripe customer, cus_.... Not a foreign key: the subscription may arrive first.';
