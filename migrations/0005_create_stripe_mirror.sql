-- Stripe's events, customers and subscriptions as last synced, and the sync's runs.

SET LOCAL lock_timeout = '5s';

CREATE TABLE app.stripe_events (
    id               text NOT NULL,
    type             text NOT NULL,
    api_version      text,
    event_created_at timestamptz NOT NULL,
    payload          jsonb,
    status           text NOT NULL DEFAULT 'received',
    attempts         integer NOT NULL DEFAULT 0,
    last_error       text,
    received_at      timestamptz NOT NULL DEFAULT now(),
    processed_at     timestamptz,

    CONSTRAINT stripe_events_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_events_status_known_check CHECK (
        status IN ('received', 'applied', 'stale', 'ignored', 'failed')
    ),
    CONSTRAINT stripe_events_attempts_not_negative_check CHECK (attempts >= 0),
    CONSTRAINT stripe_events_done_has_time_check CHECK (
        (status IN ('applied', 'stale', 'ignored')) = (processed_at IS NOT NULL)
    ),
    CONSTRAINT stripe_events_failed_has_error_check
        CHECK (status <> 'failed' OR last_error IS NOT NULL),
    CONSTRAINT stripe_events_open_has_payload_check
        CHECK (payload IS NOT NULL OR processed_at IS NOT NULL)
);

COMMENT ON TABLE app.stripe_events IS
    'The inbox: each verified event once, and what became of it.';
COMMENT ON COLUMN app.stripe_events.id IS
    'Stripe''s evt_....';
COMMENT ON COLUMN app.stripe_events.type IS
    'Stripe''s type, such as customer.subscription.updated.';
COMMENT ON COLUMN app.stripe_events.api_version IS
    'The version that shaped the payload; NULL if Stripe named none.';
COMMENT ON COLUMN app.stripe_events.event_created_at IS
    'When it happened in Stripe''s time, in whole seconds.';
COMMENT ON COLUMN app.stripe_events.payload IS
    'The event as delivered; NULL once its retention has ended.';
COMMENT ON COLUMN app.stripe_events.status IS
    'received, then applied, stale (older than what is known), ignored, or failed.';
COMMENT ON COLUMN app.stripe_events.attempts IS
    'How often applying it was tried.';
COMMENT ON COLUMN app.stripe_events.last_error IS
    'Why it last failed; NULL if it never did.';
COMMENT ON COLUMN app.stripe_events.received_at IS
    'When its first delivery arrived.';
COMMENT ON COLUMN app.stripe_events.processed_at IS
    'When it was applied, or found stale or not needed; NULL until then.';

-- For list_failed_events; partial, because few ever fail.
CREATE INDEX stripe_events_failed_idx ON app.stripe_events (event_created_at, id)
WHERE status = 'failed';

-- For delete_event_payloads; partial, because most have lost theirs.
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
    'Stripe''s customers as last seen; deleted is a state, not a missing row.';
COMMENT ON COLUMN app.stripe_customers.id IS
    'Stripe''s cus_....';
COMMENT ON COLUMN app.stripe_customers.user_id IS
    'Whom it was linked to, by metadata or at checkout; NULL until then.';
COMMENT ON COLUMN app.stripe_customers.is_deleted IS
    'Whether Stripe has deleted it.';
COMMENT ON COLUMN app.stripe_customers.created_at IS
    'When Stripe created it; NULL while only its name is known.';
COMMENT ON COLUMN app.stripe_customers.as_of IS
    'The moment in Stripe''s time at which this row was true.';
COMMENT ON COLUMN app.stripe_customers.is_provisional IS
    'Whether a tie was settled by order of arrival; reconciliation looks again.';

-- For stripe_customers_user_id_fkey and sync_users.
CREATE INDEX stripe_customers_user_id_idx ON app.stripe_customers (user_id);

-- For list_unlisted_customers, newest first as Stripe lists, and
-- list_name_only_customers.
CREATE INDEX stripe_customers_created_at_idx ON app.stripe_customers (created_at, id);

-- However it is written, a late delivery or a page listed earlier undoes nothing.
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
    'Stripe''s subscriptions as last seen; canceled is a state, not a missing row.';
COMMENT ON COLUMN app.stripe_subscriptions.id IS
    'Stripe''s sub_....';
COMMENT ON COLUMN app.stripe_subscriptions.customer_id IS
    'Stripe''s cus_...; no foreign key, for the subscription may arrive first.';
COMMENT ON COLUMN app.stripe_subscriptions.user_id IS
    'Whose it is; NULL until the customer is known here.';
COMMENT ON COLUMN app.stripe_subscriptions.status IS
    'Stripe''s word; Stripe adds new ones.';
COMMENT ON COLUMN app.stripe_subscriptions.price_id IS
    'Price of the item that counts; NULL if it has none.';
COMMENT ON COLUMN app.stripe_subscriptions.current_period_start IS
    'Start of the paid period; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscriptions.current_period_end IS
    'End of the paid period, the earliest of its items; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscriptions.billing_cycle_anchor IS
    'The instant from which Stripe counts its periods; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscriptions.cancel_at_period_end IS
    'Whether it ends with the paid period.';
COMMENT ON COLUMN app.stripe_subscriptions.canceled_at IS
    'When it was canceled; NULL if it was not.';
COMMENT ON COLUMN app.stripe_subscriptions.created_at IS
    'When Stripe created it.';
COMMENT ON COLUMN app.stripe_subscriptions.as_of IS
    'The moment in Stripe''s time at which this row was true.';
COMMENT ON COLUMN app.stripe_subscriptions.is_provisional IS
    'Whether a tie was settled by order of arrival; reconciliation looks again.';

-- For sync_users, which reads all subscriptions of one customer.
CREATE INDEX stripe_subscriptions_customer_id_idx
ON app.stripe_subscriptions (customer_id);

-- For stripe_subscriptions_user_id_fkey.
CREATE INDEX stripe_subscriptions_user_id_idx ON app.stripe_subscriptions (user_id);

-- For list_unlisted_subscriptions, newest first as Stripe lists.
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
    'Each reconciliation and replay: when, how far, what it found, how it ended.';
COMMENT ON COLUMN app.stripe_sync_runs.kind IS
    'reconcile or replay.';
COMMENT ON COLUMN app.stripe_sync_runs.is_dry_run IS
    'Whether it only looked.';
COMMENT ON COLUMN app.stripe_sync_runs.started_at IS
    'When it began.';
COMMENT ON COLUMN app.stripe_sync_runs.finished_at IS
    'When it ended; NULL while it runs, or if it was killed.';
COMMENT ON COLUMN app.stripe_sync_runs.cursor IS
    'The cursor it goes on from after a kill; NULL before the first page.';
COMMENT ON COLUMN app.stripe_sync_runs.counts IS
    'What it has seen and found so far, by kind.';
COMMENT ON COLUMN app.stripe_sync_runs.outcome IS
    'running, completed or failed.';
COMMENT ON COLUMN app.stripe_sync_runs.last_error IS
    'Why it failed; NULL if it did not.';

-- For find_resumable_run, which wants the newest of a kind.
CREATE INDEX stripe_sync_runs_kind_idx ON app.stripe_sync_runs (kind, id);
