-- A separate migration, because validation allows concurrent reads and writes.

SET LOCAL lock_timeout = '5s';

DO $$
BEGIN
    ALTER TABLE app.messages
        VALIDATE CONSTRAINT messages_finished_at_not_ahead_check;
EXCEPTION
    WHEN check_violation THEN
        RAISE EXCEPTION
            'there are messages that finished more than 24 hours after they were'
            ' recorded: correct them as docs/messages.md says under "Messages dated'
            ' ahead", then run pyapp db migrate again'
            USING ERRCODE = 'check_violation';
END;
$$;
