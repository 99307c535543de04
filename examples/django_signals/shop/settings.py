"""Settings: what this example needs, and no more."""

from __future__ import annotations

import os

from psycopg.conninfo import conninfo_to_dict

_given = conninfo_to_dict(os.environ.get("DATABASE_URL", "postgresql://app@localhost/shop"))

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _given.pop("dbname", ""),
        "USER": _given.pop("user", ""),
        "PASSWORD": _given.pop("password", ""),
        "HOST": _given.pop("host", ""),
        "PORT": _given.pop("port", ""),
        "OPTIONS": _given,
        # A connection is kept from handler to handler, and checked before it is reused.
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
    }
}
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
SECRET_KEY = "of an example"
