-- Validates the rows in its own transaction, while others write.

SET LOCAL lock_timeout = '5s';

ALTER TABLE app.messages
    VALIDATE CONSTRAINT messages_provider_length_check;
