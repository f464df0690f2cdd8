-- Loses every referral; credits already granted stay with their users.

SET LOCAL lock_timeout = '5s';

DROP TABLE app.referrals;
DROP FUNCTION app.grant_referral_credits();
DROP FUNCTION app.set_completed_at();
