-- Loses the inbox and the mirror; a reconciliation can fetch the mirror again.

SET LOCAL lock_timeout = '5s';

DROP TABLE app.stripe_sync_runs;
DROP TABLE app.stripe_subscriptions;
DROP TABLE app.stripe_customers;
DROP TABLE app.stripe_events;
