-- Run once by pyapp db adopt, on a database with migrations 0001 to 0021 of the history
-- before the squash: the changes that cannot be derived from the SQL files. Functions,
-- views, triggers and comments with another text are replaced afterwards.

-- Stripe's functions have other names and arguments.
DROP FUNCTION app.take_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, jsonb, boolean
);
DROP FUNCTION app.put_stripe_views(text, jsonb, text, boolean, boolean, boolean);
DROP FUNCTION app.put_stripe_subscriptions(jsonb, text, boolean, boolean);
DROP FUNCTION app.put_stripe_customers(jsonb, text, boolean, boolean, boolean);
DROP FUNCTION app.judge_stripe_view(
    timestamptz, timestamptz, boolean, text, boolean
);

-- A customer's user is unique by a partial index; the status received is gone.
ALTER TABLE app.users DROP CONSTRAINT users_stripe_customer_id_key;
CREATE UNIQUE INDEX users_stripe_customer_id_idx ON app.users (stripe_customer_id)
WHERE stripe_customer_id IS NOT NULL;
UPDATE app.stripe_events AS e
SET
    status = 'failed',
    last_error = COALESCE(e.last_error, 'it was never applied')
WHERE e.status = 'received';
ALTER TABLE app.stripe_events
    ALTER COLUMN status DROP DEFAULT,
    DROP CONSTRAINT stripe_events_status_known_check,
    ADD CONSTRAINT stripe_events_status_known_check
        CHECK (status IN ('applied', 'stale', 'ignored', 'failed'));
ALTER TABLE app.stripe_events
    RENAME CONSTRAINT stripe_events_open_has_payload_check
    TO stripe_events_failed_has_payload_check;

-- Renamed.
UPDATE app.stripe_sync_runs AS r
SET cursor = replace(
    replace(r.cursor, '"noun":', '"object_type":'), '"nameless":', '"without_id":'
)
WHERE r.cursor IS NOT NULL;
DROP TRIGGER users_end_unproved_sessions ON app.users;
DROP FUNCTION app.end_unproved_sessions();
ALTER TABLE app.users
    RENAME CONSTRAINT users_anonymized_is_nobody_check
    TO users_anonymized_is_empty_check;
