-- Loses nothing.

SET LOCAL lock_timeout = '5s';

ALTER TABLE app.messages
    DROP CONSTRAINT messages_provider_length_check;

ALTER TABLE app.messages
    ADD CONSTRAINT messages_provider_length_check
    CHECK (length(provider) BETWEEN 1 AND 255) NOT VALID;
