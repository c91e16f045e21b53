"""For Django's own tests of caches."""

SECRET_KEY = "tests"
INSTALLED_APPS = ["cache"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3"}}
USE_TZ = False
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
