"""The functions of `pyapp.stats`, to be awaited."""

from pyapp import stats
from pyapp._core.calls import twin

limit_time = twin(stats.limit_time)
get_message_rates = twin(stats.get_message_rates)
get_user_counts = twin(stats.get_user_counts)
get_inbox_counts = twin(stats.get_inbox_counts)
find_last_run = twin(stats.find_last_run)
get_payload_months = twin(stats.get_payload_months)
get_server_state = twin(stats.get_server_state)
list_table_sizes = twin(stats.list_table_sizes)
list_unused_indexes = twin(stats.list_unused_indexes)
