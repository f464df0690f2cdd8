-- Loses nothing. Programs of this version cannot end sessions after it.

SET LOCAL lock_timeout = '5s';

COMMENT ON COLUMN app.referrals.status IS
    'pending, then completed, which is final.';

DROP FUNCTION app.cancel_referral(uuid);

DROP TRIGGER users_end_unproved_sessions ON app.users;
DROP FUNCTION app.end_unproved_sessions();
DROP FUNCTION app.delete_expired_sessions(bigint);
DROP FUNCTION app.delete_user_sessions(uuid);
DROP FUNCTION app.delete_session(bytea);
