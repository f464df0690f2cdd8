"""The functions of `pyapp.users`, to be awaited."""

from pyapp import users
from pyapp._core.calls import twin

create_user = twin(users.create_user)
get_user = twin(users.get_user)
find_user_by_email = twin(users.find_user_by_email)
list_users = twin(users.list_users)
set_user_profile = twin(users.set_user_profile)
set_user_email = twin(users.set_user_email)
mark_user_email_verified = twin(users.mark_user_email_verified)
anonymize_user = twin(users.anonymize_user)
