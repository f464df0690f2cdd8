-- Loses nothing.

SET LOCAL lock_timeout = '5s';

COMMENT ON COLUMN app.stripe_events.last_error IS
    'Error of the last failed attempt; NULL if none failed.';
