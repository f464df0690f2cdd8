"""The functions of `pyapp.quota`, to be awaited."""

from pyapp import quota
from pyapp._core.calls import twin

get_user_quota = twin(quota.get_user_quota)
get_fingerprint_quota = twin(quota.get_fingerprint_quota)
list_user_quotas = twin(quota.list_user_quotas)
list_fingerprint_quotas = twin(quota.list_fingerprint_quotas)
