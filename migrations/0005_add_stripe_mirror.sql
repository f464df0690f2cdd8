-- Stripe's events, customers and subscriptions as last synced, and the sync's runs.

SET LOCAL lock_timeout = '5s';

CREATE TABLE app.stripe_events (
    id               text NOT NULL,
    type             text NOT NULL,
    api_version      text,
    event_created_at timestamptz NOT NULL,
    payload          jsonb,
    status           text NOT NULL,
    attempts         integer NOT NULL DEFAULT 0,
    last_error       text,
    received_at      timestamptz NOT NULL DEFAULT now(),
    processed_at     timestamptz,

    CONSTRAINT stripe_events_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_events_status_known_check
        CHECK (status IN ('applied', 'stale', 'ignored', 'failed')),
    CONSTRAINT stripe_events_attempts_not_negative_check CHECK (attempts >= 0),
    CONSTRAINT stripe_events_done_has_time_check CHECK (
        (status IN ('applied', 'stale', 'ignored')) = (processed_at IS NOT NULL)
    ),
    CONSTRAINT stripe_events_failed_has_error_check
        CHECK (status <> 'failed' OR last_error IS NOT NULL),
    CONSTRAINT stripe_events_failed_has_payload_check
        CHECK (payload IS NOT NULL OR processed_at IS NOT NULL)
);

COMMENT ON TABLE app.stripe_events IS
    'Inbox of verified Stripe events, one row each, with the result of each.';
COMMENT ON COLUMN app.stripe_events.id IS
    'Stripe''s id, evt_....';
COMMENT ON COLUMN app.stripe_events.type IS
    'Event type, such as customer.subscription.updated.';
COMMENT ON COLUMN app.stripe_events.api_version IS
    'Stripe API version of the payload; NULL if the event has none.';
COMMENT ON COLUMN app.stripe_events.event_created_at IS
    'When Stripe created the event, in whole seconds.';
COMMENT ON COLUMN app.stripe_events.payload IS
    'The event as delivered; NULL after its retention period.';
COMMENT ON COLUMN app.stripe_events.status IS
    'applied, stale (older than the stored row), ignored or failed.';
COMMENT ON COLUMN app.stripe_events.attempts IS
    'Number of attempts to apply it.';
COMMENT ON COLUMN app.stripe_events.last_error IS
    'Error of the last failed attempt; NULL if none failed.';
COMMENT ON COLUMN app.stripe_events.received_at IS
    'When the first delivery arrived.';
COMMENT ON COLUMN app.stripe_events.processed_at IS
    'When it became applied, stale or ignored; NULL until then.';

-- For list_failed_events. Partial, because few events fail.
CREATE INDEX stripe_events_failed_idx ON app.stripe_events (event_created_at, id)
WHERE status = 'failed';

-- For delete_event_payloads. Partial, because most payloads are deleted.
CREATE INDEX stripe_events_payload_idx ON app.stripe_events (processed_at)
WHERE payload IS NOT NULL;

-- For list_events, newest first.
CREATE INDEX stripe_events_received_at_idx ON app.stripe_events (received_at, id);

CREATE TABLE app.stripe_customers (
    id             text NOT NULL,
    user_id        uuid,
    is_deleted     boolean NOT NULL DEFAULT FALSE,
    created_at     timestamptz,
    as_of          timestamptz NOT NULL,
    is_provisional boolean NOT NULL DEFAULT FALSE,

    CONSTRAINT stripe_customers_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_customers_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app.users (id) ON DELETE RESTRICT,
    CONSTRAINT stripe_customers_id_shape_check CHECK (id ~ '^cus_.')
);

COMMENT ON TABLE app.stripe_customers IS
    'Stripe customers as last seen. A deleted customer keeps its row.';
COMMENT ON COLUMN app.stripe_customers.id IS
    'Stripe''s id, cus_....';
COMMENT ON COLUMN app.stripe_customers.user_id IS
    'User linked by metadata or checkout; NULL if none.';
COMMENT ON COLUMN app.stripe_customers.is_deleted IS
    'Whether the customer was deleted at Stripe.';
COMMENT ON COLUMN app.stripe_customers.created_at IS
    'When Stripe created it; NULL if only the id is known.';
COMMENT ON COLUMN app.stripe_customers.as_of IS
    'Stripe''s time of the snapshot stored in this row.';
COMMENT ON COLUMN app.stripe_customers.is_provisional IS
    'Whether events of the same second were applied in order of arrival, which may be'
    ' wrong; the next reconciliation corrects it.';

-- For stripe_customers_user_id_fkey and sync_users. The function find_user_customer
-- reads it.
CREATE INDEX stripe_customers_user_id_idx ON app.stripe_customers (user_id);

-- For list_unlisted_customers, newest first as in Stripe's lists, and
-- list_name_only_customers.
CREATE INDEX stripe_customers_created_at_idx ON app.stripe_customers (created_at, id);

-- An older snapshot never overwrites a newer one, even by a statement in psql.
CREATE TRIGGER stripe_customers_newer_wins BEFORE UPDATE ON app.stripe_customers
FOR EACH ROW WHEN (NEW.as_of < OLD.as_of)
EXECUTE FUNCTION app.refuse_change('a newer state is known');

CREATE TABLE app.stripe_subscriptions (
    id                   text NOT NULL,
    customer_id          text NOT NULL,
    user_id              uuid,
    status               text NOT NULL,
    price_id             text,
    current_period_start timestamptz,
    current_period_end   timestamptz,
    billing_cycle_anchor timestamptz,
    cancel_at_period_end boolean NOT NULL DEFAULT FALSE,
    canceled_at          timestamptz,
    created_at           timestamptz NOT NULL,
    as_of                timestamptz NOT NULL,
    is_provisional       boolean NOT NULL DEFAULT FALSE,

    CONSTRAINT stripe_subscriptions_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_subscriptions_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app.users (id) ON DELETE RESTRICT,
    CONSTRAINT stripe_subscriptions_id_shape_check CHECK (id ~ '^sub_.'),
    CONSTRAINT stripe_subscriptions_customer_id_shape_check
        CHECK (customer_id ~ '^cus_.')
);

COMMENT ON TABLE app.stripe_subscriptions IS
    'Stripe subscriptions as last seen. A canceled subscription keeps its row.';
COMMENT ON COLUMN app.stripe_subscriptions.id IS
    'Stripe''s id, sub_....';
COMMENT ON COLUMN app.stripe_subscriptions.customer_id IS
    'Stripe customer, cus_.... Not a foreign key: the subscription may arrive first.';
COMMENT ON COLUMN app.stripe_subscriptions.user_id IS
    'User of the customer; NULL until the customer is linked.';
COMMENT ON COLUMN app.stripe_subscriptions.status IS
    'Status as reported by Stripe; an open set.';
COMMENT ON COLUMN app.stripe_subscriptions.price_id IS
    'Price of the item that decides the plan; NULL if it has none.';
COMMENT ON COLUMN app.stripe_subscriptions.current_period_start IS
    'Start of the paid period; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscriptions.current_period_end IS
    'End of the paid period, the earliest of its items; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscriptions.billing_cycle_anchor IS
    'Start of Stripe''s billing cycles; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscriptions.cancel_at_period_end IS
    'Whether the subscription ends with the paid period.';
COMMENT ON COLUMN app.stripe_subscriptions.canceled_at IS
    'When the subscription was canceled; NULL if it was not.';
COMMENT ON COLUMN app.stripe_subscriptions.created_at IS
    'When Stripe created it.';
COMMENT ON COLUMN app.stripe_subscriptions.as_of IS
    'Stripe''s time of the snapshot stored in this row.';
COMMENT ON COLUMN app.stripe_subscriptions.is_provisional IS
    'Whether events of the same second were applied in order of arrival, which may be'
    ' wrong; the next reconciliation corrects it.';

-- For sync_users. The functions find_user_customer and find_best_subscription read all
-- subscriptions of one customer.
CREATE INDEX stripe_subscriptions_customer_id_idx
ON app.stripe_subscriptions (customer_id);

-- For stripe_subscriptions_user_id_fkey.
CREATE INDEX stripe_subscriptions_user_id_idx ON app.stripe_subscriptions (user_id);

-- For list_unlisted_subscriptions, newest first as in Stripe's lists.
CREATE INDEX stripe_subscriptions_created_at_idx
ON app.stripe_subscriptions (created_at, id);

-- As stripe_customers_newer_wins.
CREATE TRIGGER stripe_subscriptions_newer_wins BEFORE UPDATE ON app.stripe_subscriptions
FOR EACH ROW WHEN (NEW.as_of < OLD.as_of)
EXECUTE FUNCTION app.refuse_change('a newer state is known');

CREATE TABLE app.stripe_sync_runs (
    id          bigint GENERATED ALWAYS AS IDENTITY,
    kind        text NOT NULL,
    is_dry_run  boolean NOT NULL DEFAULT FALSE,
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    cursor      text,
    counts      jsonb NOT NULL DEFAULT '{}',
    outcome     text NOT NULL DEFAULT 'running',
    last_error  text,

    CONSTRAINT stripe_sync_runs_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_sync_runs_kind_known_check
        CHECK (kind IN ('reconcile', 'replay')),
    CONSTRAINT stripe_sync_runs_outcome_known_check
        CHECK (outcome IN ('running', 'completed', 'failed')),
    CONSTRAINT stripe_sync_runs_ended_has_time_check
        CHECK ((outcome = 'running') = (finished_at IS NULL))
);

COMMENT ON TABLE app.stripe_sync_runs IS
    'Reconciliations and replays, with progress, counts and outcome.';
COMMENT ON COLUMN app.stripe_sync_runs.kind IS
    'reconcile or replay.';
COMMENT ON COLUMN app.stripe_sync_runs.is_dry_run IS
    'Whether the run only reported differences.';
COMMENT ON COLUMN app.stripe_sync_runs.started_at IS
    'When the run started.';
COMMENT ON COLUMN app.stripe_sync_runs.finished_at IS
    'When the run ended; NULL while it runs, or if it was killed.';
COMMENT ON COLUMN app.stripe_sync_runs.cursor IS
    'Where a killed run is resumed; NULL before the first page.';
COMMENT ON COLUMN app.stripe_sync_runs.counts IS
    'Objects seen and differences found so far, by kind.';
COMMENT ON COLUMN app.stripe_sync_runs.outcome IS
    'running, completed or failed.';
COMMENT ON COLUMN app.stripe_sync_runs.last_error IS
    'Why the run failed; NULL if it did not.';

-- For find_resumable_run, which reads the newest run of a kind.
CREATE INDEX stripe_sync_runs_kind_idx ON app.stripe_sync_runs (kind, id);
