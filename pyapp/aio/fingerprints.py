"""The functions of `pyapp.fingerprints`, to be awaited."""

from pyapp import fingerprints
from pyapp._core.calls import twin

upsert_fingerprint = twin(fingerprints.upsert_fingerprint)
get_fingerprint = twin(fingerprints.get_fingerprint)
