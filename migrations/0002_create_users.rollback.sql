-- Loses every user, fingerprint and session.

SET LOCAL lock_timeout = '5s';

DROP TABLE app.sessions;
DROP TABLE app.fingerprints;
DROP TABLE app.users;
DROP FUNCTION app.is_active_status(text);
DROP FUNCTION app.end_unverified_sessions();
DROP FUNCTION app.refuse_user_id();
