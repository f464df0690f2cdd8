"""The functions of `pyapp.sessions`, to be awaited."""

from pyapp import sessions
from pyapp._core.calls import twin

create_session = twin(sessions.create_session)
find_session = twin(sessions.find_session)
extend_session = twin(sessions.extend_session)
delete_session = twin(sessions.delete_session)
delete_user_sessions = twin(sessions.delete_user_sessions)
delete_expired_sessions = twin(sessions.delete_expired_sessions)
