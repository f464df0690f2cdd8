-- The column also says why an event is ignored.

SET LOCAL lock_timeout = '5s';

COMMENT ON COLUMN app.stripe_events.last_error IS
    'Error of the last failed attempt, or why it is ignored; NULL if neither.';
