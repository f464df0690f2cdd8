-- Loses nothing; a validated check cannot become NOT VALID, so it is replaced.

SET LOCAL lock_timeout = '5s';

ALTER TABLE app.users
    DROP CONSTRAINT users_stripe_customer_id_length_check,
    DROP CONSTRAINT users_stripe_subscription_id_length_check,
    DROP CONSTRAINT users_stripe_price_id_length_check,
    ADD CONSTRAINT users_stripe_customer_id_length_check
        CHECK (length(stripe_customer_id) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT users_stripe_subscription_id_length_check
        CHECK (length(stripe_subscription_id) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT users_stripe_price_id_length_check
        CHECK (length(stripe_price_id) BETWEEN 1 AND 255) NOT VALID;

ALTER TABLE app.stripe_customers
    DROP CONSTRAINT stripe_customers_id_length_check,
    DROP CONSTRAINT stripe_customers_claim_source_known_check,
    DROP CONSTRAINT stripe_customers_claim_has_source_check,
    ADD CONSTRAINT stripe_customers_id_length_check
        CHECK (length(id) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT stripe_customers_claim_source_known_check CHECK (
        claim_source IN ('customer', 'subscription', 'checkout', 'reference', 'email')
    ) NOT VALID,
    ADD CONSTRAINT stripe_customers_claim_has_source_check
        CHECK ((claimed_user_id IS NULL) = (claim_source IS NULL)) NOT VALID;

ALTER TABLE app.stripe_subscriptions
    DROP CONSTRAINT stripe_subscriptions_id_length_check,
    DROP CONSTRAINT stripe_subscriptions_customer_id_length_check,
    ADD CONSTRAINT stripe_subscriptions_id_length_check
        CHECK (length(id) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT stripe_subscriptions_customer_id_length_check
        CHECK (length(customer_id) BETWEEN 1 AND 255) NOT VALID;
