-- Separate, so that rows are checked while other sessions write.

SET LOCAL lock_timeout = '5s';

ALTER TABLE app.stripe_subscriptions
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
