-- A plan has any number of prices, a subscription all of its items. A customer is
-- claimed before its user exists. Stripe's ids may have any shape.

SET LOCAL lock_timeout = '5s';

CREATE TABLE app.plan_prices (
    stripe_price_id text NOT NULL,
    plan_id         text NOT NULL,

    CONSTRAINT plan_prices_pkey PRIMARY KEY (stripe_price_id),
    CONSTRAINT plan_prices_plan_id_fkey FOREIGN KEY (plan_id)
        REFERENCES app.plans (id) ON DELETE RESTRICT,
    CONSTRAINT plan_prices_stripe_price_id_length_check
        CHECK (length(stripe_price_id) BETWEEN 1 AND 255)
);

COMMENT ON TABLE app.plan_prices IS
    'Stripe prices that buy a plan: monthly, yearly, old ones. Set by the operator.';
COMMENT ON COLUMN app.plan_prices.stripe_price_id IS
    'Stripe''s id of the price, or of a legacy plan.';
COMMENT ON COLUMN app.plan_prices.plan_id IS
    'Plan that the price buys.';

CREATE INDEX plan_prices_plan_id_idx ON app.plan_prices (plan_id);

INSERT INTO app.plan_prices (stripe_price_id, plan_id)
SELECT
    p.stripe_price_id,
    p.id
FROM app.plans AS p
WHERE p.stripe_price_id <> '';

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
    ADD COLUMN claimed_user_id uuid,
    ADD COLUMN claim_source text,
    DROP CONSTRAINT stripe_customers_id_shape_check,
    ADD CONSTRAINT stripe_customers_id_length_check
        CHECK (length(id) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT stripe_customers_claim_source_known_check CHECK (
        claim_source IN ('customer', 'subscription', 'checkout', 'reference', 'email')
    ) NOT VALID,
    ADD CONSTRAINT stripe_customers_claim_has_source_check
        CHECK ((claimed_user_id IS NULL) = (claim_source IS NULL)) NOT VALID;

ALTER TABLE app.stripe_subscriptions
    ADD COLUMN cancel_at timestamptz,
    ADD COLUMN trial_end timestamptz,
    ADD COLUMN pause_behavior text,
    ADD COLUMN pause_resumes_at timestamptz,
    ADD COLUMN claimed_user_id uuid,
    DROP CONSTRAINT stripe_subscriptions_id_shape_check,
    DROP CONSTRAINT stripe_subscriptions_customer_id_shape_check,
    ADD CONSTRAINT stripe_subscriptions_id_length_check
        CHECK (length(id) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT stripe_subscriptions_customer_id_length_check
        CHECK (length(customer_id) BETWEEN 1 AND 255) NOT VALID;

CREATE TABLE app.stripe_subscription_items (
    subscription_id      text NOT NULL,
    id                   text NOT NULL,
    price_id             text,
    unit_amount          numeric,
    quantity             bigint,
    current_period_start timestamptz,
    current_period_end   timestamptz,

    CONSTRAINT stripe_subscription_items_pkey PRIMARY KEY (subscription_id, id),
    CONSTRAINT stripe_subscription_items_subscription_id_fkey
        FOREIGN KEY (subscription_id)
        REFERENCES app.stripe_subscriptions (id) ON DELETE CASCADE,
    CONSTRAINT stripe_subscription_items_id_length_check
        CHECK (length(id) BETWEEN 1 AND 255),
    CONSTRAINT stripe_subscription_items_price_id_length_check
        CHECK (length(price_id) BETWEEN 1 AND 255),
    CONSTRAINT stripe_subscription_items_unit_amount_is_finite_check
        CHECK (unit_amount > '-Infinity' AND unit_amount < 'Infinity'),
    CONSTRAINT stripe_subscription_items_quantity_not_negative_check
        CHECK (quantity >= 0)
);

-- Until the next snapshot, each subscription has one item, with its known price.
INSERT INTO app.stripe_subscription_items (
    subscription_id, id, price_id, current_period_start, current_period_end
)
SELECT
    s.id AS subscription_id,
    s.id,
    s.price_id,
    s.current_period_start,
    s.current_period_end
FROM app.stripe_subscriptions AS s;

COMMENT ON COLUMN app.users.stripe_customer_id IS
    'Stripe customer that the entitlement comes from; NULL if none.';
COMMENT ON COLUMN app.users.stripe_subscription_id IS
    'Stripe subscription of the best item (stripe_entitlements); NULL if none.';
COMMENT ON COLUMN app.users.stripe_price_id IS
    'Stripe price of the best item; NULL if there is none, or without price.';
COMMENT ON COLUMN app.users.subscription_status IS
    'Status of that subscription as reported by Stripe; NULL if there is none.';
COMMENT ON COLUMN app.stripe_events.id IS
    'Stripe''s id.';
COMMENT ON COLUMN app.stripe_customers.id IS
    'Stripe''s id; the integration may have chosen it.';
COMMENT ON COLUMN app.stripe_customers.user_id IS
    'User that the customer belongs to; NULL if none.';
COMMENT ON COLUMN app.stripe_customers.claimed_user_id IS
    'User that the strongest claim names; takes effect once the user exists.';
COMMENT ON COLUMN app.stripe_customers.claim_source IS
    'Where the claim is, strongest first: customer, subscription, checkout (metadata),'
    ' reference (client_reference_id), email; NULL without a claim.';
COMMENT ON COLUMN app.stripe_subscriptions.id IS
    'Stripe''s id.';
COMMENT ON COLUMN app.stripe_subscriptions.customer_id IS
    'Stripe customer. Not a foreign key: the subscription may arrive first.';
COMMENT ON COLUMN app.stripe_subscriptions.cancel_at IS
    'When the subscription will end; NULL if no time is set.';
COMMENT ON COLUMN app.stripe_subscriptions.trial_end IS
    'When the trial ends or ended; NULL if there was none.';
COMMENT ON COLUMN app.stripe_subscriptions.pause_behavior IS
    'What Stripe does with invoices while collection is paused: keep_as_draft,'
    ' mark_uncollectible or void; NULL if it is not paused.';
COMMENT ON COLUMN app.stripe_subscriptions.pause_resumes_at IS
    'When paused collection resumes; NULL if no time is set.';
COMMENT ON COLUMN app.stripe_subscriptions.claimed_user_id IS
    'User that its metadata claims for its customer; NULL if none.';
COMMENT ON TABLE app.stripe_subscription_items IS
    'All items of each Stripe subscription, as in the subscription''s snapshot.';
COMMENT ON COLUMN app.stripe_subscription_items.subscription_id IS
    'Subscription that has the item.';
COMMENT ON COLUMN app.stripe_subscription_items.id IS
    'Stripe''s id; the subscription''s, if Stripe gives the item none.';
COMMENT ON COLUMN app.stripe_subscription_items.price_id IS
    'Stripe price, or legacy plan; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscription_items.unit_amount IS
    'Price of one unit in the currency''s smallest unit; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscription_items.quantity IS
    'Units; NULL if metered, which counts as 1. With 0 the item buys no plan.';
COMMENT ON COLUMN app.stripe_subscription_items.current_period_start IS
    'Start of the item''s paid period; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscription_items.current_period_end IS
    'End of the item''s paid period; NULL if Stripe gives none.';
