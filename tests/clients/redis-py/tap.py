"""What both programs share: where the cache is, and how a case is reported."""

import asyncio
import os
import time
import traceback

HOST = os.environ["CACHE_HOST"]
PORT = int(os.environ["CACHE_PORT"])
PROTOCOLS = [int(protocol) for protocol in os.environ["PROTOCOLS"].split()]
# A row of the guarded table that nobody else uses; none without the proxy.
USER_ID = int(os.environ.get("USER_ID", 0))
PATIENCE = 20

BINARY = bytes(range(256))
BIG = os.urandom(1 << 20) * 5

failed = 0


def report(protocol, name, error):
    global failed
    if error is None:
        print(f"ok resp{protocol} {name}", flush=True)
    else:
        failed += 1
        where = traceback.extract_tb(error.__traceback__)[-1].lineno
        print(f"not ok resp{protocol} {name}: line {where}: {error!r}"[:500].replace("\n", " "), flush=True)


def skip(protocol, name, why):
    print(f"ok resp{protocol} {name} # SKIP {why}", flush=True)


def wait_for(what, condition):
    end = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


async def until(what, condition):
    end = time.monotonic() + PATIENCE
    while True:
        found = await condition()
        if found:
            return found
        assert time.monotonic() < end, f"waited in vain for {what}"
        await asyncio.sleep(0.005)
