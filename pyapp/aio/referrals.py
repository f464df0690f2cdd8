"""The functions of `pyapp.referrals`, to be awaited."""

from pyapp import referrals
from pyapp._core.calls import twin

redeem_referral = twin(referrals.redeem_referral)
create_referral = twin(referrals.create_referral)
complete_referral = twin(referrals.complete_referral)
cancel_referral = twin(referrals.cancel_referral)
get_referral_summary = twin(referrals.get_referral_summary)
list_referrals = twin(referrals.list_referrals)
