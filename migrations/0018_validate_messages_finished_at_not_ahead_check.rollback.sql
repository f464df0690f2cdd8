-- Loses nothing. A check cannot be made unchecked, so it is dropped and added.

SET LOCAL lock_timeout = '5s';

ALTER TABLE app.messages DROP CONSTRAINT messages_finished_at_not_ahead_check;
ALTER TABLE app.messages
    ADD CONSTRAINT messages_finished_at_not_ahead_check CHECK (
        finished_at AT TIME ZONE interval '0'
        <= recorded_at AT TIME ZONE interval '0' + interval '24 hours'
    ) NOT VALID;
