"""The functions of `pyapp.messages`, to be awaited."""

from pyapp import messages
from pyapp._core.calls import twin

record_message = twin(messages.record_message)
record_messages = twin(messages.record_messages)
get_message = twin(messages.get_message)
find_message_payload = twin(messages.find_message_payload)
list_messages = twin(messages.list_messages)
get_request_usage = twin(messages.get_request_usage)
get_client_usage = twin(messages.get_client_usage)
list_daily_usage = twin(messages.list_daily_usage)
