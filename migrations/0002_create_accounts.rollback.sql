-- Loses every account, device and session.

SET LOCAL lock_timeout = '5s';

DROP TABLE app.sessions;
DROP TABLE app.fingerprints;
DROP FUNCTION app.refuse_user_id();
DROP TABLE app.users;
DROP FUNCTION app.is_active_status(text);
