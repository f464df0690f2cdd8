"""Bad values of DATABASE_URL; `secret` and `word` are parts of the password."""

from collections.abc import Mapping

from tests.bad_input.values import ESCAPE

UNREADABLE: Mapping[str, str] = {
    "a word": "secret-word",
    "white space": "secret word",
    "another scheme": "https://u:secret-word@localhost/x",
    "a driver in the scheme": "postgresql+psycopg://u:secret-word@localhost/x",
    "a broken escape": "postgresql://u:%secret-word@localhost/x",
    "a per cent sign": "postgresql://u:secret-word%@localhost:1/x",
    "a slash in the password": "postgresql://u:secret/word@localhost:1/x",
    "an at sign in the password": "postgresql://u:secret@word@localhost:1/x",
    "both": "postgresql://u:sec@ret/word@localhost:1/x",
    "a space in the password": "postgresql://u:secret word@localhost:1/x",
    "no at sign": "postgresql://u:secret-word/x",
    "NUL": "postgresql://u:secret\0word@localhost:1/x",
    "a lone surrogate": "postgresql://u:secret\udcffword@localhost:1/x",
    "a second line": "postgresql://u:secret-word@localhost:1/x\nHost: y",
    "an escape sequence": f"postgresql://u:secret-word@localhost:1/{ESCAPE}",
    "an open quote": "host=localhost user='u password=secret-word",
    "port 0": "postgresql://u:secret-word@localhost:0/x",
    "port 65536": "postgresql://u:secret-word@localhost:65536/x",
    "port minus one": "postgresql://u:secret-word@localhost:-1/x",
    "port x": "postgresql://u:secret-word@localhost:x/x",
    "a port of 5,001 digits": f"postgresql://u:secret-word@h:{'9' * 5001}/x",
    "a port in Arabic digits": "postgresql://u:secret-word@h:\u0661/x",
    "a host with an escape sequence": "postgresql://u:secret-word@%1B%5B2J:1/x",
    "a long host": f"postgresql://u:secret-word@{'a' * 64}:1/x",
    "an empty label": "postgresql://u:secret-word@a..b:1/x",
    "an unknown parameter": "postgresql://u:secret-word@localhost:1/x?a=b",
    "an invalid time-out": "postgresql://u:secret-word@h:1/x?connect_timeout=x",
}

UNREACHABLE: Mapping[str, str] = {
    "nothing listening": "postgresql://u:secret-word@localhost:1/x",
    "special characters, escaped": "postgresql://u%40:secret%2F%40word@localhost:1/x",
    "special characters, not escaped": "postgresql://u:se:c?r#et[]word@localhost:1/x",
    "other letters": "postgresql://u:secret\u00e9word@localhost:1/\u05d0",
    "a conninfo string": "host=localhost port=1 user=u password=secret-word",
    "the password as a parameter": "postgresql://localhost:1/x?password=secret-word",
    "an unknown host": "postgresql://u:secret-word@no.such.host.invalid/x",
    "a host with a space": "postgresql://u:secret-word@a%20b:1/x",
    "a database with an escape sequence": "postgresql://u:secret-word@localhost:1/%1B%5B",
    "a missing socket folder": "postgresql://u:secret-word@/x?host=/no/such",
    "an invalid sslmode": "postgresql://u:secret-word@localhost:1/x?sslmode=x",
    "an unknown encoding": "postgresql://u:secret-word@h:1/x?client_encoding=x",
    "a missing certificate": "host=localhost port=1 user=u password=secret-word"
    " sslmode=verify-full sslrootcert=/no/such",
    "an unknown service": "service=nope password=secret-word",
    "two hosts": "postgresql://u:secret-word@localhost:1,localhost:2/x",
    "more ports than hosts": "host=a,b port=1,2,3 password=secret-word",
    "a key's password": "postgresql://u@localhost:1/x?sslpassword=secret-word",
}
