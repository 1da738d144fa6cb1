# Django's own cache through the proxy. Asks for the name of user 1 once for each line "ask", and reads the "database" from
# its input when the cache has missed.
import sys

from django.conf import settings

settings.configure(
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": sys.argv[1],
        }
    }
)

from django.core.cache import cache


def read(user_id):
    print("reading", flush=True)
    return sys.stdin.readline().strip()


# recipe
def user_name(user_id):
    return cache.get_or_set(f"user:{user_id}", lambda: read(user_id), timeout=300)
# end


for line in sys.stdin:
    print("name", user_name(1), flush=True)
