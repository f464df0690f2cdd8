"""Serve the fake until interrupted: python -m tests.fake_stripe --port 4242"""

import argparse
import signal
import threading

from .fake import TEST_KEY, TEST_SECRET, FakeStripe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fake_stripe")
    parser.add_argument("--port", type=int, default=4242, help="0 for any free port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--accounts", type=int, default=0, help="number of seeded accounts"
    )
    parser.add_argument(
        "--start", type=int, help="initial time of the clock, in seconds"
    )
    parser.add_argument("--frozen", action="store_true", help="stop the clock")
    parser.add_argument("--webhook-url", help="URL that gets the deliveries")
    parser.add_argument("--webhook-secret", action="append", metavar="SECRET")
    parser.add_argument("--api-version", help="API version of events")
    options = parser.parse_args()
    versions = {"api_version": options.api_version} if options.api_version else {}
    fake = FakeStripe(
        seed=options.seed,
        start=options.start,
        running=not options.frozen,
        secrets=options.webhook_secret or (TEST_SECRET,),
        webhook_url=options.webhook_url,
        **versions,
    )
    if options.accounts:
        fake.seed_accounts(options.accounts)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    url = fake.start(options.host, options.port)
    print(f"fake Stripe on {url}, key {TEST_KEY}", flush=True)
    stopped.wait()
    fake.stop()


if __name__ == "__main__":
    main()
